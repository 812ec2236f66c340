//! The vdso: code of the kernel in every process, and the `syscall` instruction in it.
//!
//! Its address is in the program's memory in many places, so that it must come back where it was. Code and data (`[vvar]`,
//! `[vvar_vclock]`) lie side by side and can be moved with mremap(2) (`arch/x86/entry/vdso/vma.c`).

use crate::EngineError;
use crate::error::Context;
use crate::maps::Vma;
use stasis_tracee::Memory;
use stasis_tracee::arch::SYSCALL;

/// The contents of the vdso of a process.
///
/// # Errors
/// When it cannot be read.
pub fn contents(vmas: &[Vma], memory: &Memory) -> Result<Vec<u8>, EngineError> {
    let Some(vma) = vmas.iter().find(|vma| vma.path == b"[vdso]") else { return Ok(Vec::new()) };
    let mut bytes = vec![0; vma.len() as usize];
    memory.read(&mut bytes, vma.range.start).context(|| "reading the vdso".into())?;
    Ok(bytes)
}

/// The address of a `syscall` instruction: in the vdso, or, where there is none, in any code.
///
/// # Errors
/// When there is none at all, or memory cannot be read.
pub fn syscall_instruction(vmas: &[Vma], memory: &Memory) -> Result<u64, EngineError> {
    let executable = |vma: &&Vma| {
        vma.protection & libc::PROT_EXEC != 0 && vma.protection & libc::PROT_READ != 0 && vma.path != b"[vsyscall]"
    };
    let vdso = vmas.iter().filter(|vma| vma.path == b"[vdso]");
    for vma in vdso.chain(vmas.iter().filter(executable)) {
        // A piece at a time: code of a large program need not be read whole.
        let mut buffer = vec![0; (64 << 10).min(vma.len() as usize)];
        let mut at = vma.range.start;
        while at < vma.range.end {
            let len = buffer.len().min((vma.range.end - at) as usize);
            if memory.read(&mut buffer[..len], at).is_err() {
                break;
            }
            if let Some(found) = buffer[..len].windows(SYSCALL.len()).position(|bytes| bytes == SYSCALL) {
                return Ok(at + found as u64);
            }
            at += len as u64;
        }
    }
    Err(EngineError::Failed("the process has no system call instruction in its memory".into()))
}
