//! The table: launch and restart, coordinator, command, files and failures.

mod command;
mod coordinator;
mod files;
mod launch;
mod restart;

use std::sync::LazyLock;

/// A line of what users of DMTCP's commands rely on.
pub struct Entry {
    /// Its number.
    pub number: &'static str,
    /// What is kept.
    pub what: &'static str,
    /// A script that ends with status 0 where it is.
    pub script: &'static str,
    /// Why it is not kept, where it is not.
    pub ignored: Option<&'static str>,
}

/// A line that is kept.
const fn kept(number: &'static str, what: &'static str, script: &'static str) -> Entry {
    Entry {
        number,
        what,
        script,
        ignored: None,
    }
}

/// A line that is not kept, and why.
const fn ignored(
    number: &'static str,
    what: &'static str,
    reason: &'static str,
    script: &'static str,
) -> Entry {
    Entry {
        number,
        what,
        script,
        ignored: Some(reason),
    }
}

/// All of them.
pub static TABLE: LazyLock<Vec<&'static Entry>> = LazyLock::new(|| {
    [
        launch::TABLE,
        restart::TABLE,
        coordinator::TABLE,
        command::TABLE,
        files::TABLE,
    ]
    .into_iter()
    .flatten()
    .collect()
});
