//! Attributes of other processes and threads that the kernel lets their owner read and set from outside.

use crate::Pid;
use serde::{Deserialize, Serialize};
use std::io;

/// The list of robust futexes of a thread: its head's address and the head's size (`get_robust_list(2)`). It can be read of
/// any thread that may be traced, but set only by the thread itself.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn robust_list(tid: Pid) -> io::Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both pointers are to live 64-bit values.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            tid.0,
            &raw mut head,
            &raw mut len,
        )
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok((head, len))
    }
}

/// A thread's scheduling parameters (`sched_getattr(2)`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    size: u32,
    /// `SCHED_OTHER`, `SCHED_BATCH`, `SCHED_IDLE`, `SCHED_FIFO`, `SCHED_RR`, `SCHED_DEADLINE`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value of the ordinary policies.
    pub nice: i32,
    /// Priority of the real-time policies.
    pub priority: u32,
    /// Nanoseconds, of `SCHED_DEADLINE`; the slice of ordinary policies from Linux 6.12 on.
    pub runtime: u64,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    pub period: u64,
}

/// Reads a thread's scheduling parameters.
///
/// # Errors
/// `ESRCH`.
pub fn scheduling(tid: Pid) -> io::Result<Scheduling> {
    let mut attributes = Scheduling::default();
    let size = size_of::<Scheduling>();
    // SAFETY: the pointer is to a live structure of the size given.
    let rc = unsafe { libc::syscall(libc::SYS_sched_getattr, tid.0, &raw mut attributes, size, 0) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(attributes)
    }
}

/// Sets a thread's scheduling parameters.
///
/// # Errors
/// `ESRCH`, `EPERM` (real-time priority or a lower nice value than the user may have).
pub fn set_scheduling(tid: Pid, attributes: &Scheduling) -> io::Result<()> {
    let attributes = Scheduling {
        size: size_of::<Scheduling>() as u32,
        ..*attributes
    };
    // SAFETY: the pointer is to a live structure whose size it names.
    let rc = unsafe { libc::syscall(libc::SYS_sched_setattr, tid.0, &raw const attributes, 0) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // With SCHED_IDLE the call above leaves the nice value as it is (`__setscheduler_params`, `kernel/sched/syscalls.c`).
    if attributes.policy == libc::SCHED_IDLE as u32 {
        // SAFETY: the call takes no pointers.
        let rc =
            unsafe { libc::setpriority(libc::PRIO_PROCESS, tid.0 as libc::id_t, attributes.nice) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The processors that a thread may run on: a bit each, as many bytes as the kernel uses (`sched_getaffinity(2)`).
///
/// # Errors
/// `ESRCH`.
pub fn affinity(tid: Pid) -> io::Result<Vec<u8>> {
    let mut mask = vec![0u8; 1024];
    // SAFETY: the pointer is to a live buffer of the length given.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            tid.0,
            mask.len(),
            mask.as_mut_ptr(),
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    mask.truncate(rc as usize);
    Ok(mask)
}

/// Sets the processors that a thread may run on.
///
/// # Errors
/// `ESRCH`; `EINVAL` when none of them exists here.
pub fn set_affinity(tid: Pid, mask: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer is to a live buffer of the length given.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            tid.0,
            mask.len(),
            mask.as_ptr(),
        )
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

const IOPRIO_WHO_PROCESS: libc::c_long = 1;

/// A thread's input/output priority, class and level in one number (`ioprio_get(2)`).
///
/// # Errors
/// `ESRCH`.
pub fn io_priority(tid: Pid) -> io::Result<u32> {
    // SAFETY: the call takes no pointers.
    let rc = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.0) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc as u32)
    }
}

/// Sets a thread's input/output priority.
///
/// # Errors
/// `ESRCH`, `EPERM` (real-time class).
pub fn set_io_priority(tid: Pid, priority: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    let rc = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid.0, priority) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether two processes share a resource (`kcmp(2)`).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Shared {
    /// The address space.
    Memory = 1,
    /// The descriptor table.
    Descriptors = 2,
    /// Working directory, root and umask.
    FileSystem = 3,
    /// System V semaphore undo values.
    SemaphoreUndo = 6,
}

/// Whether `a` and `b` share `resource`.
///
/// # Errors
/// `ESRCH`, `EPERM`, `ENOSYS` (no CONFIG_KCMP).
pub fn share(a: Pid, b: Pid, resource: Shared) -> io::Result<bool> {
    // SAFETY: the call takes no pointers for these types.
    let rc = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, resource as i32, 0, 0) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_attributes_can_be_read_and_set_to_what_they_are() -> io::Result<()> {
        let me = Pid(0);
        set_scheduling(me, &scheduling(me)?)?;
        set_affinity(me, &affinity(me)?)?;
        set_io_priority(me, io_priority(me)?)?;
        assert_ne!(robust_list(me)?.0, 0);
        assert!(share(Pid::current(), Pid::current(), Shared::Memory)?);
        Ok(())
    }
}
