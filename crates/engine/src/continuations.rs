//! Pages in a process by which its threads continue calls with other arguments than the program gave.
//!
//! A call that has to be executed again with less time, or with the rest of a buffer, cannot simply be given other registers: the
//! program may count on its own being unchanged after the call, and its result may lack what was done before. So the thread
//! executes the call in a slot of a page of code ([`continuation`]) that puts both right and jumps back. The page stays, a
//! private one named `stasis` where the kernel gives names, as a signal frame may lead back into it at any time; later
//! checkpoints use it again. Since it is ordinary memory, it is saved and restored, and needs no supervisor.
//!
//! Where the page cannot be had (address space limit, a security module that allows no such code), the caller is told so.

use crate::EngineError;
use crate::batch::{Answers, Argument, Batch};
use crate::error::Context;
use crate::freeze::FrozenProcess;
use crate::maps::{self, Vma};
use crate::threads;
use crate::visits::{self, Errands};
use stasis_sys::procfs;
use stasis_tracee::arch::continuation::{self, Frame, IN_CALL, PAGE, ROOM, SLOT, SLOTS};
use stasis_tracee::{Memory, Registers};

/// Code, data, and a page without access, so that no neighbour merges with the data.
const PAGES: u64 = 3 * PAGE;

/// A slot, by the address of its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u64);

impl Slot {
    /// Where its data has room for what arguments point to.
    #[must_use]
    pub fn room(self) -> u64 {
        self.0 + PAGE + ROOM
    }

    fn frame(self, memory: &Memory) -> Option<Frame> {
        let mut bytes = [0; ROOM as usize];
        memory.read(&mut bytes, self.0 + PAGE).ok()?;
        Some(Frame::decode(&bytes))
    }

    fn write(self, frame: &Frame, memory: &Memory) -> Result<(), EngineError> {
        memory
            .write(&frame.encode(), self.0 + PAGE)
            .context(|| "writing a continued call".into())
    }
}

/// The slots of a process.
pub struct Slots {
    pages: Vec<u64>,
    free: Vec<Slot>,
}

impl Slots {
    /// Finds those that are there; at least `wanted` are free afterwards.
    ///
    /// # Errors
    /// When no more can be made.
    pub fn prepare(process: &mut FrozenProcess, wanted: usize) -> Result<Slots, EngineError> {
        let id = crate::capture::living(process);
        let vmas = maps::read(id)?;
        let code = continuation::code();
        let is_ours = |vma: &&Vma| {
            let mut there = vec![0; PAGE as usize];
            vma.protection == libc::PROT_READ | libc::PROT_EXEC
                && vma.inode == 0
                && vma.size() == PAGE
                && process.memory.read(&mut there, vma.range.start).is_ok()
                && there == code
        };
        let pages: Vec<u64> = vmas
            .iter()
            .filter(is_ours)
            .map(|vma| vma.range.start)
            .collect();
        let mut slots = Slots {
            pages,
            free: Vec::new(),
        };
        let all = slots.pages.iter().flat_map(|page| of_page(*page));
        slots.free = all
            .filter(|slot| !slot.frame(&process.memory).is_none_or(|frame| frame.busy))
            .collect();
        while slots.free.len() < wanted {
            let page = map(process, &vmas, &code)?;
            slots.pages.push(page);
            slots.free.extend(of_page(page));
        }
        Ok(slots)
    }

    /// The slot whose call a thread with these registers is in.
    fn around(&self, registers: &Registers) -> Option<Slot> {
        let start = registers.instruction_pointer().checked_sub(IN_CALL)?;
        let within = |page: &u64| (*page..page + PAGE).contains(&start);
        (start % SLOT == 0 && self.pages.iter().any(within)).then_some(Slot(start))
    }

    /// A free slot.
    pub fn take(&mut self) -> Option<Slot> {
        self.free.pop()
    }

    /// Has a thread, which is in a call, continue it in `slot`: with other arguments, where `done` is what it has transferred so
    /// far. The thread must still be given the registers; until then nothing has changed for it. Gives the slot that it was in
    /// before, to be left when it has them.
    ///
    /// # Errors
    /// When its memory cannot be written.
    pub fn enter(
        &self,
        slot: Slot,
        registers: &mut Registers,
        arguments: &[u64; 6],
        done: u64,
        memory: &Memory,
    ) -> Result<Option<Slot>, EngineError> {
        let before = self.around(registers);
        let mut frame = before.and_then(|slot| slot.frame(memory)).unwrap_or(Frame {
            busy: true,
            back: registers.instruction_pointer(),
            done: 0,
            arguments: registers.arguments(),
        });
        frame.busy = true;
        frame.done += done;
        slot.write(&frame, memory)?;
        registers.set_arguments(arguments);
        registers.set_instruction_pointer(slot.0 + IN_CALL);
        Ok(before)
    }

    /// The thread is not in `slot` any more.
    ///
    /// # Errors
    /// When its memory cannot be written.
    pub fn leave(&mut self, slot: Slot, memory: &Memory) -> Result<(), EngineError> {
        if let Some(mut frame) = slot.frame(memory) {
            frame.busy = false;
            slot.write(&frame, memory)?;
        }
        self.free.push(slot);
        Ok(())
    }
}

fn of_page(page: u64) -> impl Iterator<Item = Slot> {
    (0..SLOTS).map(move |n| Slot(page + n * SLOT))
}

/// Maps one more page of slots, in two visits of the first thread: a supervisor that is killed meanwhile leaves memory that nobody
/// uses, and a thread that goes on.
fn map(process: &mut FrozenProcess, vmas: &[Vma], code: &[u8]) -> Result<u64, EngineError> {
    let thread = process.threads.first_mut().ok_or(EngineError::Gone)?;
    let path = format!("/proc/{}/status", thread.tid);
    let status = procfs::read_to_string(&path).context(|| format!("reading {path}"))?;
    let stopped = thread.stopped.as_mut().ok_or(EngineError::Gone)?;
    threads::abort_restartable_sequence(stopped, &process.memory)?;

    let mut batch = Batch::default();
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let arguments = [0, PAGES, libc::PROT_NONE as u64, flags, u64::MAX, 0];
    let mapped = batch.call("mmap", libc::SYS_mmap, &arguments.map(Argument::Value));
    let page = visit(process, vmas, &status, batch)?.result(mapped)?;
    let opened = open(process, vmas, &status, code, page);
    if opened.is_err() {
        let mut batch = Batch::default();
        let arguments = [page, PAGES].map(Argument::Value);
        batch.call("munmap", libc::SYS_munmap, &arguments);
        let _ = visit(process, vmas, &status, batch);
    }
    opened.map(|()| page)
}

/// Fills the pages at `page`, and lets the process execute the first and write the second.
fn open(
    process: &mut FrozenProcess,
    vmas: &[Vma],
    status: &str,
    code: &[u8],
    page: u64,
) -> Result<(), EngineError> {
    let writing = || "writing the code of continued calls".to_owned();
    process.memory.write(code, page).context(writing)?;
    // The room of the last slot holds the name for the moment.
    let name = page + 2 * PAGE - (SLOT - ROOM);
    process.memory.write(b"stasis\0", name).context(writing)?;
    let mut batch = Batch::default();
    let mut protect = |address: u64, protection: i32| {
        let arguments = [address, PAGE, protection as u64].map(Argument::Value);
        batch.call("mprotect", libc::SYS_mprotect, &arguments)
    };
    let protected = [
        protect(page, libc::PROT_READ | libc::PROT_EXEC),
        protect(page + PAGE, libc::PROT_READ | libc::PROT_WRITE),
    ];
    // Kernels without names go without.
    let arguments = [
        libc::PR_SET_VMA as u64,
        libc::PR_SET_VMA_ANON_NAME as u64,
        page,
        PAGES,
        name,
    ];
    let arguments = arguments.map(Argument::Value);
    batch.call("prctl(PR_SET_VMA)", libc::SYS_prctl, &arguments);
    let answers = visit(process, vmas, status, batch)?;
    for asked in protected {
        answers.result(asked)?;
    }
    Ok(())
}

/// Has the first thread make the calls of `batch`.
fn visit(
    process: &mut FrozenProcess,
    vmas: &[Vma],
    status: &str,
    batch: Batch,
) -> Result<Answers, EngineError> {
    let errand = Errands {
        process,
        vmas,
        status,
        batches: &[batch],
    };
    let answers = visits::make(vec![errand])?.into_iter().flatten().next();
    answers.ok_or(EngineError::Gone)
}
