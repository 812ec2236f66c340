//! The vdso: code of the kernel in every process, and the `syscall` instruction in it.
//!
//! Its address is in the program's memory in many places, so that it must come back where it was. Code and data (`[vvar]`,
//! `[vvar_vclock]`) lie side by side and can be moved with mremap(2) (`arch/x86/entry/vdso/vma.c`). Under another kernel
//! the code is another: then the saved one is kept as a signpost to it ([`redirect`]). A thread that was stopped inside the vdso goes
//! on in the saved code, which must be this kernel's own: such an image is refused under another kernel.

use super::restore::Places;
use super::{Area, Backing};
use crate::EngineError;
use crate::calls::Calls;
use crate::conformance::Claim;
use crate::error::Context;
use crate::maps::Vma;
use object::{Object, ObjectSymbol};
use stasis_tracee::Memory;
use stasis_tracee::arch::SYSCALL;
use std::collections::HashMap;
use std::ops::Range;

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    Claim::kept(
        "vdso",
        "under another kernel its functions lead to the new ones",
        &["memory::vdso"],
    ),
    Claim::refused(
        "thread inside the vdso, under another kernel",
        "at the restart",
        &[],
    ),
];

/// The contents of the vdso of a process.
///
/// # Errors
/// When it cannot be read.
pub fn contents(vmas: &[Vma], memory: &Memory) -> Result<Vec<u8>, EngineError> {
    let Some(vma) = vmas.iter().find(|vma| vma.path == b"[vdso]") else {
        return Ok(Vec::new());
    };
    let mut bytes = vec![0; vma.size() as usize];
    memory
        .read(&mut bytes, vma.range.start)
        .context(|| "reading the vdso".into())?;
    Ok(bytes)
}

/// The address of a `syscall` instruction: in the vdso, or, where there is none, in any code.
///
/// # Errors
/// When there is none at all, or memory cannot be read.
pub fn syscall_instruction(vmas: &[Vma], memory: &Memory) -> Result<u64, EngineError> {
    let executable = |vma: &&Vma| {
        vma.protection & libc::PROT_EXEC != 0
            && vma.protection & libc::PROT_READ != 0
            && vma.path != b"[vsyscall]"
    };
    let vdso = vmas.iter().filter(|vma| vma.path == b"[vdso]");
    for vma in vdso.chain(vmas.iter().filter(executable)) {
        // A piece at a time: code of a large program need not be read whole.
        let mut buffer = vec![0; (64 << 10).min(vma.size() as usize)];
        let mut at = vma.range.start;
        while at < vma.range.end {
            let len = buffer.len().min((vma.range.end - at) as usize);
            if memory.read(&mut buffer[..len], at).is_err() {
                break;
            }
            if let Some(found) = buffer[..len]
                .windows(SYSCALL.len())
                .position(|bytes| bytes == SYSCALL)
            {
                return Ok(at + found as u64);
            }
            at += len as u64;
        }
    }
    Err(EngineError::Failed(
        "the process has no system call instruction in its memory".into(),
    ))
}

/// The zeros that end the vdso's last page, a little away from what is before them: nobody reads or executes them. `None` where
/// there is no vdso, or none to speak of.
///
/// Who writes there gets a page of his own, as a debugger who sets a breakpoint does (`VM_MAYWRITE`, `arch/x86/entry/vdso/vma.c`).
///
/// # Errors
/// When memory cannot be read.
pub fn padding(vmas: &[Vma], memory: &Memory) -> Result<Option<Range<u64>>, EngineError> {
    const DISTANCE: u64 = 64;
    const ENOUGH: u64 = 512;
    let Some(vma) = vmas.iter().find(|vma| vma.path == b"[vdso]") else {
        return Ok(None);
    };
    let bytes = contents(vmas, memory)?;
    let used = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |n| n + 1) as u64;
    let start = (vma.range.start + used + DISTANCE).next_multiple_of(DISTANCE);
    let room = start + ENOUGH <= vma.range.end && !crate::faults::asked("full-vdso");
    // A kernel may be told to let no tracer write where the program cannot (`proc_mem.force_override`, Linux 6.12).
    let writable = || memory.write(&[0], start).is_ok();
    Ok((room && writable()).then_some(start..vma.range.end))
}

/// Makes the saved vdso, which is another kernel's, lead to this kernel's: its code comes back at its address as ordinary
/// memory, and each function that it exports begins with a jump to the one of the same name of this kernel, or, where this one
/// has none, to nothing: the saved code then runs as it was, which for getcpu(2) and its like is a system call in the end.
///
/// The saved kernel's data pages do not come back: no code that is still reached reads them.
///
/// # Errors
/// When either vdso cannot be understood, or a remote call fails.
pub fn redirect(
    saved: &[u8],
    areas: &[Area],
    places: &Places,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    let Some(area) = areas.iter().find(|area| area.backing == Backing::Vdso) else {
        return Ok(());
    };
    let Some((_, here)) = places.kernel.iter().find(|(name, _)| name == b"[vdso]") else {
        return Err(EngineError::Failed(
            "this kernel has no vdso, and the image's program uses one".into(),
        ));
    };
    let mut present = vec![0; (here.end - here.start) as usize];
    calls
        .memory
        .read(&mut present, here.start)
        .context(|| "reading the vdso".into())?;
    let patched = patch(saved, &present, here.start)?;
    let len = area.range.end - area.range.start;
    let protection = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
    calls.call(
        "mmap",
        libc::SYS_mmap,
        &[area.range.start, len, protection, flags, u64::MAX, 0],
    )?;
    calls
        .memory
        .write(&patched, area.range.start)
        .context(|| "writing the vdso".into())
}

/// The functions of a vdso: name and offset.
fn functions(vdso: &[u8]) -> Result<HashMap<String, u64>, EngineError> {
    let file = object::File::parse(vdso)
        .map_err(|error| EngineError::Failed(format!("the vdso is not understood: {error}")))?;
    let defined = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition() && symbol.address() != 0);
    Ok(defined
        .filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.address())))
        .collect())
}

fn patch(saved: &[u8], present: &[u8], present_at: u64) -> Result<Vec<u8>, EngineError> {
    let (old, new) = (functions(saved)?, functions(present)?);
    let mut code = saved.to_vec();
    let mut starts: Vec<u64> = old.values().copied().collect();
    starts.sort_unstable();
    starts.dedup();
    for (name, start) in &old {
        let Some(target) = new.get(name) else {
            continue;
        };
        let jump = stasis_tracee::arch::jump_to(present_at + target);
        let next = starts
            .iter()
            .find(|other| *other > start)
            .copied()
            .unwrap_or(saved.len() as u64);
        let place = *start as usize..*start as usize + jump.len();
        // A function too short to be replaced does nothing that depends on the kernel's data.
        if place.end as u64 <= next && place.end <= code.len() {
            code[place].copy_from_slice(&jump);
        }
    }
    Ok(code)
}

/// Whether a thread was stopped inside the vdso.
#[must_use]
pub fn holds(areas: &[Area], address: u64) -> bool {
    areas
        .iter()
        .any(|area| area.backing == Backing::Vdso && area.range.contains(&address))
}

/// The vdso of the calling process, which is that of every process on this host.
///
/// # Errors
/// When it cannot be read.
pub fn own() -> Result<Vec<u8>, EngineError> {
    let me = stasis_sys::Pid::current();
    let memory = Memory::open(me).context(|| "reading the vdso".into())?;
    contents(&crate::maps::read(me)?, &memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_of_this_kernel_is_found_and_leads_to_itself() {
        let vdso = own().expect("a vdso");
        let found = functions(&vdso).expect("an ELF file");
        assert!(found.contains_key("__vdso_clock_gettime"), "{found:?}");
        let patched = patch(&vdso, &vdso, 0x7000_0000_0000).expect("patching");
        let start = found["__vdso_clock_gettime"] as usize;
        let jump = stasis_tracee::arch::jump_to(0x7000_0000_0000 + start as u64);
        assert_eq!(&patched[start..start + jump.len()], &jump);
    }
}
