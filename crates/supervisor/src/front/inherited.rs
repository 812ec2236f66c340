//! The signal state that the caller has chosen, which the program gets and the front puts away.

use rustix::process::Signal;
use stasis_engine::keeper::Inherited;
use stasis_sys::process::SIGCHLD;
use stasis_sys::signal::{self, SignalSet};
use stasis_sys::startup;
use std::io;

/// Blocks every signal, and tells what the mask was before and which signals were ignored when the process started.
pub(super) fn take() -> io::Result<Inherited> {
    let ignored = ignored(
        &std::fs::read_to_string("/proc/self/status")?,
        startup::sigpipe_was_ignored(),
    );
    // With SIGCHLD ignored the kernel would keep no status of children.
    signal::set_default(SIGCHLD)?;
    let mask = signal::set_mask(SignalSet::ALL)?;
    Ok(Inherited {
        mask,
        ignored,
        environment: Vec::new(),
    })
}

/// From `/proc/PID/status`. What it says of SIGPIPE is the doing of the language's runtime.
fn ignored(status: &str, sigpipe: bool) -> Vec<i32> {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .map_or(SignalSet::EMPTY, SignalSet);
    let pipe = Signal::PIPE.as_raw();
    let set = if sigpipe {
        set.with(pipe)
    } else {
        set.without(pipe)
    };
    set.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_kernels_words() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status, false), [1]);
        assert_eq!(ignored(status, true), [1, 13]);
        assert_eq!(ignored("", false), [0; 0]);
    }
}
