//! What the process was given at its start, recorded before the language's runtime changes it.
//!
//! Rust's runtime ignores SIGPIPE before `main`. A command that starts other programs has to hand on what its own
//! caller had chosen, so the choice is read from an initialiser, which the C library runs earlier.

use std::sync::atomic::{AtomicBool, Ordering};

static SIGPIPE_IGNORED: AtomicBool = AtomicBool::new(false);

extern "C" fn record() {
    // SAFETY: sigaction is plain data for which all zeros is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action is given, and the pointer for the old one is to a live value.
    let rc = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action) };
    let ignored = rc == 0 && action.sa_sigaction == libc::SIG_IGN;
    SIGPIPE_IGNORED.store(ignored, Ordering::Relaxed);
}

// SAFETY: `.init_array` holds pointers to functions that the C library calls before `main`; `record` is one, and it
// uses nothing that the runtime has to set up first.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

/// Whether SIGPIPE was ignored when the process was started.
#[must_use]
pub fn sigpipe_was_ignored() -> bool {
    SIGPIPE_IGNORED.load(Ordering::Relaxed)
}
