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
use crate::error::Context;
use crate::freeze::FrozenProcess;
use crate::maps::{self, Vma};
use crate::memory::vdso;
use crate::{signals, threads};
use stasis_sys::procfs;
use stasis_tracee::arch::continuation::{self, Frame, IN_CALL, PAGE, ROOM, SLOT, SLOTS};
use stasis_tracee::{Memory, Registers, Remote, TraceError};

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

/// Maps one more page of slots.
fn map(process: &mut FrozenProcess, vmas: &[Vma], code: &[u8]) -> Result<u64, EngineError> {
    let instruction = vdso::syscall_instruction(vmas, &process.memory)?;
    let thread = process.threads.first_mut().ok_or(EngineError::Gone)?;
    let path = format!("/proc/{}/status", thread.tid);
    let status = procfs::read_to_string(&path).context(|| format!("reading {path}"))?;
    let mut stopped = thread.stopped.take().ok_or(EngineError::Gone)?;
    let aborted = threads::abort_restartable_sequence(&mut stopped, &process.memory);
    if let Err(error) = aborted {
        thread.stopped = Some(stopped);
        return Err(error);
    }
    let mut remote = Remote::begin(stopped, instruction, signals::ignores_trap(&status))?;
    let mapped = map_remotely(&mut remote, &process.memory, code);
    thread.stopped = Some(remote.finish()?);
    mapped
}

fn map_remotely(remote: &mut Remote, memory: &Memory, code: &[u8]) -> Result<u64, EngineError> {
    let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let page = remote.call(
        "mmap",
        libc::SYS_mmap,
        &[0, PAGES, writable, flags, u64::MAX, 0],
    )?;
    let written = memory
        .write(code, page)
        .context(|| "writing the code of continued calls".into());
    let mut protect = || -> Result<(), TraceError> {
        remote.call("mprotect", libc::SYS_mprotect, &[page, PAGE, executable])?;
        remote.call(
            "mprotect",
            libc::SYS_mprotect,
            &[page + 2 * PAGE, PAGE, libc::PROT_NONE as u64],
        )?;
        Ok(())
    };
    if let Err(error) = written.and_then(|()| Ok(protect()?)) {
        let _ = remote.call("munmap", libc::SYS_munmap, &[page, PAGES]);
        return Err(error);
    }
    // The room of the last slot holds the name for the moment. Kernels without names go without.
    let name = page + 2 * PAGE - (SLOT - ROOM);
    if memory.write(b"stasis\0", name).is_ok() {
        let arguments = [
            libc::PR_SET_VMA as u64,
            libc::PR_SET_VMA_ANON_NAME as u64,
            page,
            PAGES,
            name,
        ];
        let _ = remote.call("prctl(PR_SET_VMA)", libc::SYS_prctl, &arguments);
    }
    Ok(page)
}
