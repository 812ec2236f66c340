//! Exit statuses. They are documented in `docs/cli.md` and do not change.

use std::ffi::OsStr;
use std::process::ExitCode;

/// The command did not do what was asked.
pub const FAILED: u8 = 1;
/// The command line was not understood (all commands but `run` and `restart`).
pub const USAGE: u8 = 2;
/// `run` and `restart`: the job was saved and stopped on request.
pub const SAVED_AND_STOPPED: u8 = 85;
/// `run` and `restart`: a trouble of their own, as `env(1)` has it.
pub const OWN: u8 = stasis_supervisor::OWN_FAILURE;

/// The status for a command line that was not understood: where the status is otherwise the program's, one that is
/// reserved.
pub fn usage_error() -> ExitCode {
    let verb = std::env::args_os()
        .skip(1)
        .find(|word| !word.as_encoded_bytes().starts_with(b"-"));
    let foreground = verb
        .as_deref()
        .is_some_and(|verb| verb == OsStr::new("run") || verb == OsStr::new("restart"));
    ExitCode::from(if foreground { OWN } else { USAGE })
}
