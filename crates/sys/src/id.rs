//! Process and thread ids.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A process id or thread id.
///
/// Whether it is the number that the supervisor sees or the one that the program sees (they differ in a
/// pid namespace) is told by the name of whatever holds it: `pid`/`tid` are the supervisor's,
/// `virtual_pid`/`virtual_tid` the program's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Pid(pub i32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Pid {
    /// The calling process.
    #[must_use]
    pub fn current() -> Pid {
        Pid(std::process::id() as i32)
    }
}
