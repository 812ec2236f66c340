//! Making processes and waiting for them.

use crate::Pid;
use crate::signal::{self, SignalSet};
use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

pub use libc::{SIGCHLD, SIGKILL, WCONTINUED, WNOHANG, WUNTRACED};

/// What `fork(2)` returned.
#[derive(Debug, PartialEq, Eq)]
pub enum Fork {
    /// In the parent: the child's id.
    Parent(Pid),
    /// In the child.
    Child,
}

/// Forks the calling process, which must have a single thread: with more, the child could find a lock of the
/// allocator held for ever by a thread that it does not have.
///
/// # Errors
/// `EAGAIN` (process limit), `ENOMEM`; [`io::ErrorKind::Other`] when there is more than one thread.
pub fn fork() -> io::Result<Fork> {
    require_single_thread()?;
    // SAFETY: the process has one thread, so the child is an exact copy in a consistent state.
    let rc = unsafe { libc::fork() };
    match rc {
        0 => Ok(Fork::Child),
        n if n > 0 => Ok(Fork::Parent(Pid(n))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks a process of many threads: the child has the calling thread only. The C library puts its allocator in order for the
/// child (glibc `__libc_fork`, musl `fork`); any other lock may be held for ever by a thread that the child does not have. So the
/// child computes, makes system calls and ends with [`exit_now`]; it does not log, and starts no thread.
///
/// # Errors
/// `EAGAIN` (process limit), `ENOMEM`.
pub fn fork_beside_threads() -> io::Result<Fork> {
    // SAFETY: the child's memory is a copy; its allocator is consistent by what the C library does, and nothing here or in what
    // the child is allowed to do relies on other locks.
    let rc = unsafe { libc::fork() };
    match rc {
        0 => Ok(Fork::Child),
        n if n > 0 => Ok(Fork::Parent(Pid(n))),
        _ => Err(io::Error::last_os_error()),
    }
}

fn require_single_thread() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads == 1 {
        Ok(())
    } else {
        Err(io::Error::other(format!("fork with {threads} threads")))
    }
}

/// `clone3` arguments of this module's use (`struct clone_args`, `linux/sched.h`).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with `clone3(2)`: the child gets the id `want` in its innermost pid namespace where one is given
/// (needs CAP_CHECKPOINT_RESTORE over that namespace), and new namespaces by the `CLONE_NEW*` bits of `flags`.
///
/// # Errors
/// `EEXIST` when the id is taken, `EPERM` without the capability, `EINVAL` for an id beyond `pid_max`, `EAGAIN`,
/// `ENOMEM`, `ENOSPC` (too many namespaces).
pub fn fork_with(want: Option<Pid>, flags: u64) -> io::Result<Fork> {
    require_single_thread()?;
    let id = want.map_or(0, |pid| pid.0);
    let args = CloneArgs {
        flags,
        exit_signal: libc::SIGCHLD as u64,
        set_tid: if want.is_some() {
            (&raw const id) as u64
        } else {
            0
        },
        set_tid_size: u64::from(want.is_some()),
        ..CloneArgs::default()
    };
    // SAFETY: the arguments live across the call and their size is given; without CLONE_VM the child has its own copy
    // of everything, and there is one thread (checked above).
    let rc = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match rc {
        0 => Ok(Fork::Child),
        n if n > 0 => Ok(Fork::Parent(Pid(n as i32))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the kernel's counter of ids go on to the next free one, without making a process: `clone(2)` is asked to deliver a
/// pidfd to an address of the kernel's, and fails after the id was taken and before anything of the child is seen
/// (`copy_process`, `kernel/fork.c`; Linux 5.2). Half the price, or less, of the cheapest child that lives (some 15
/// microseconds).
///
/// # Errors
/// `EAGAIN` (process limit), `ENOMEM`; what a seccomp filter says.
pub fn spend_id() -> io::Result<()> {
    const NOWHERE: usize = usize::MAX - 4095;
    // Whatever can be shared is: nothing is copied for a child that there will not be.
    let flags = libc::CLONE_PIDFD
        | libc::CLONE_VM
        | libc::CLONE_VFORK
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_SYSVSEM;
    // SAFETY: the third argument, where the pidfd is to be written, is no address of a program on any processor, so that the
    // call fails and no child ever runs on this stack.
    let rc = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, NOWHERE, 0usize, 0usize) };
    if rc == 0 {
        // In a child that cannot be: it must not run on.
        exit_now(0);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EFAULT) {
        Ok(())
    } else {
        Err(error)
    }
}

/// What `wait4(2)` told of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It changed state; the raw status word.
    Child(Pid, WaitStatus),
    /// Children exist, but none has news.
    Nothing,
    /// There are no children.
    NoChildren,
}

/// A raw status word of `wait4(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitStatus(pub i32);

impl WaitStatus {
    /// The exit code, where the process exited.
    #[must_use]
    pub fn exit_code(self) -> Option<i32> {
        libc::WIFEXITED(self.0).then(|| libc::WEXITSTATUS(self.0))
    }
    /// The signal that killed the process, where one did.
    #[must_use]
    pub fn killed_by(self) -> Option<i32> {
        libc::WIFSIGNALED(self.0).then(|| libc::WTERMSIG(self.0))
    }
    /// The signal that stopped the process, where it is stopped.
    #[must_use]
    pub fn stopped_by(self) -> Option<i32> {
        libc::WIFSTOPPED(self.0).then(|| libc::WSTOPSIG(self.0))
    }
    /// Whether it was continued.
    #[must_use]
    pub fn continued(self) -> bool {
        libc::WIFCONTINUED(self.0)
    }
    /// What a shell would call it: the exit code, or 128 + the signal. `None` while it lives.
    #[must_use]
    pub fn shell_code(self) -> Option<i32> {
        self.exit_code()
            .or_else(|| self.killed_by().map(|signal| 128 + signal))
    }
}

/// Waits for a child (`wait4(2)` with `__WALL`). `pid` -1 is any child; `options` are `WNOHANG`, `WUNTRACED`,
/// `WCONTINUED`.
///
/// # Errors
/// `EINTR` and others of the kernel; having no children is not an error here.
pub fn wait(pid: Pid, options: i32) -> io::Result<Waited> {
    let mut status = 0;
    // SAFETY: the pointer is to a live c_int.
    let rc = unsafe { libc::waitpid(pid.0, &raw mut status, options | libc::__WALL) };
    match rc {
        0 => Ok(Waited::Nothing),
        n if n > 0 => Ok(Waited::Child(Pid(n), WaitStatus(status))),
        _ => {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ECHILD) {
                Ok(Waited::NoChildren)
            } else {
                Err(error)
            }
        }
    }
}

/// Waits until a child has ended, and leaves it to be waited for (`waitid(2)` with `WNOWAIT`).
///
/// # Errors
/// `ECHILD` where there is no such child; `EINTR`.
pub fn await_end(pid: Pid) -> io::Result<()> {
    // SAFETY: all zeros are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOWAIT | libc::__WALL;
    // SAFETY: the pointer is to a live siginfo_t.
    let rc = unsafe { libc::waitid(libc::P_PID, pid.0 as u32, &raw mut info, options) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether `id` names a process group.
#[must_use]
pub fn is_group(id: Pid) -> bool {
    // SAFETY: kill takes no pointers; signal 0 only asks.
    let rc = unsafe { libc::kill(-id.0, 0) };
    rc == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Ends the calling process at once, without running destructors or exit handlers (`_exit(2)`): the only right end
/// for a forked copy.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Replaces the calling process, which has one thread, by `argv`, found through PATH (`execvp(3)`), with the variables
/// `environment` set, the signal mask `mask`, the signals `ignored` ignored and all others at their default. Returns only
/// when that fails.
#[must_use]
pub fn exec(
    argv: &[OsString],
    environment: &[(OsString, OsString)],
    mask: SignalSet,
    ignored: &[i32],
) -> io::Error {
    let words: Result<Vec<CString>, _> = argv
        .iter()
        .map(|word| CString::new(word.as_bytes()))
        .collect();
    let Ok(words) = words else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    if pointers.is_empty() {
        return io::Error::from_raw_os_error(libc::ENOENT);
    }
    pointers.push(std::ptr::null());
    for (name, value) in environment {
        let (Ok(name), Ok(value)) = (
            CString::new(name.as_bytes()),
            CString::new(value.as_bytes()),
        ) else {
            return io::Error::from_raw_os_error(libc::EINVAL);
        };
        // SAFETY: both are strings that live until the call returns, which copies them; no other thread reads the
        // environment, as there is none.
        if unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) } != 0 {
            return io::Error::last_os_error();
        }
    }
    for signal in 1..=64 {
        // SIGKILL, SIGSTOP and the two that libc keeps for itself refuse, and need nothing.
        let _ = if ignored.contains(&signal) {
            signal::ignore(signal)
        } else {
            signal::set_default(signal)
        };
    }
    if let Err(error) = signal::set_mask(mask) {
        return error;
    }
    // SAFETY: `pointers` is a null-terminated array of pointers to strings that live until the call returns.
    unsafe { libc::execvp(pointers[0], pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Sleeps for ever. Signals that are not blocked still arrive.
pub fn sleep_for_ever() -> ! {
    loop {
        // SAFETY: pause takes no pointers.
        unsafe { libc::pause() };
    }
}

/// Sets the process group of the calling process (`setpgid(2)`); 0 makes it a leader.
///
/// # Errors
/// `EPERM` for a group of another session or a session leader, `ESRCH` for no such group.
pub fn set_group(group: Pid) -> io::Result<()> {
    // SAFETY: setpgid takes no pointers.
    let rc = unsafe { libc::setpgid(0, group.0) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The process group of the calling process.
#[must_use]
pub fn group() -> Pid {
    // SAFETY: getpgrp takes nothing and cannot fail.
    Pid(unsafe { libc::getpgrp() })
}

/// Makes the calling process the leader of a new session (`setsid(2)`).
///
/// # Errors
/// `EPERM` when it leads a process group.
pub fn new_session() -> io::Result<()> {
    // SAFETY: setsid takes no pointers.
    let rc = unsafe { libc::setsid() };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The process id as the kernel says it now, in the caller's own pid namespace.
#[must_use]
pub fn own_id() -> Pid {
    // SAFETY: getpid takes nothing and cannot fail.
    Pid(unsafe { libc::getpid() })
}

/// Ends the calling process with the raw wait status `status`: exits with its code or dies of its signal, without a core dump.
pub fn end_with(status: WaitStatus) -> ! {
    if let Some(signal) = status.killed_by() {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the pointer is to a live structure.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
        let _ = signal::set_default(signal);
        let _ = signal::set_mask(SignalSet::EMPTY);
        let _ = signal::send(own_id(), signal);
    }
    exit_now(status.exit_code().unwrap_or(0))
}
