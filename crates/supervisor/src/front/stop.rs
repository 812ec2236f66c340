//! Job control: when the program stops, so does the front, and the user's shell sees a stopped job.

use rustix::process::Signal;
use stasis_sys::Pid;
use stasis_sys::signal::{self, SignalSet};

/// Stops the calling process as `by` has stopped the program, and returns when it is continued.
///
/// For the stops of the terminal the kernel is left to decide: in an orphaned process group, where no shell could
/// continue it, nothing stops.
pub(super) fn stop_self(by: i32) {
    let of_terminal = [Signal::TSTP, Signal::TTIN, Signal::TTOU];
    if !of_terminal.iter().any(|known| known.as_raw() == by) {
        let _ = signal::send(Pid::current(), Signal::STOP.as_raw());
        return;
    }
    // Sent while it is blocked, so that it becomes one with the terminal's own that may be pending: two of them would
    // stop this process again when it is continued. Each step can fail only for numbers that are no signals.
    let _ = signal::set_default(by);
    let _ = signal::send(Pid::current(), by);
    let _ = signal::set_mask(SignalSet::ALL.without(by));
    let _ = signal::set_mask(SignalSet::ALL);
}
