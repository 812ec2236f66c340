//! Thin safe wrappers over kernel interfaces that no well-kept crate has.
//!
//! One module per subject. Every function is one system call, or a fixed short sequence of them, and
//! returns [`std::io::Result`] with the kernel's own error number. This crate and `stasis-tracee` are
//! the only ones that contain `unsafe`.

pub mod board;
pub mod descriptor;
pub mod epoll;
pub mod id;
pub mod kcmp;
pub mod lock;
pub mod mqueue;
pub mod namespace;
pub mod pagemap;
pub mod pidfd;
pub mod process;
pub mod procfs;
pub mod pty;
pub mod quota;
pub mod signal;
pub mod socket;
pub mod socket_option;
pub mod startup;
pub mod sysv;
pub mod task;
pub mod terminal;
pub mod timer;
pub mod timerfd;
pub mod userfaultfd;

pub use id::Pid;
