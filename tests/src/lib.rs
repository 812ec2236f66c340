//! What the end-to-end tests share: a [`Sandbox`] for each test, jobs started in it, and the checks that every
//! checkpointed program has to pass.
//!
//! The command is always the built `stasis` binary, started as its user starts it. When the tests run as root they drop
//! to an ordinary user (`stasis-test` if there is such a user, else `nobody`); [`Sandbox::root`] is for the tests that
//! are about root.
//!
//! Environment variables for whoever looks for a fault:
//!
//! | variable | meaning |
//! |---|---|
//! | `STASIS_TEST_SEED` | seed of the random checkpoint moments; each test prints the one that it used |
//! | `STASIS_TEST_TIMEOUT` | seconds that any one condition is waited for, 120 by default |
//! | `STASIS_TEST_KEEP` | the directories of failed tests are kept |
//! | `STASIS_TEST_BINARY` | the `stasis` to test, instead of the one of this workspace |
#![forbid(unsafe_code)]

mod build;
mod cluster;
pub mod conformance;
mod cycle;
mod job_script;
mod processes;
mod random;
mod running;
mod sandbox;

pub use build::{Linkage, go_program, program, script, stasis_binary};
pub use cluster::{Cluster, SlurmJob};
pub use cycle::{
    Compare, Program, refused_and_goes_on, verify_after_restart, verify_after_restart_with,
    verify_or_refused,
};
pub use job_script::JobScript;
pub use processes::{ProcessState, alive, children, descendants, process_state};
pub use random::Random;
pub use running::{Exit, Finished, Running};
pub use sandbox::{IMAGE_SUFFIX, Sandbox, User};

use std::time::{Duration, Instant};

/// How long any one condition is waited for.
#[must_use]
pub fn patience() -> Duration {
    let seconds = std::env::var("STASIS_TEST_TIMEOUT")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(120);
    Duration::from_secs(seconds)
}

/// Asks `probe` every few milliseconds until it gives something.
///
/// # Panics
/// After [`patience`], naming `what` was waited for.
pub fn wait_until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            start.elapsed() < patience(),
            "waited {:?} in vain: {what}",
            start.elapsed()
        );
        std::thread::sleep(Duration::from_millis(4));
    }
}

/// Whether `command` is on the path that the tests give to their programs.
#[must_use]
pub fn installed(command: &str) -> bool {
    sandbox::PROGRAM_PATH
        .split(':')
        .any(|dir| std::path::Path::new(dir).join(command).exists())
}

/// Leaves the test, saying why it cannot run here.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("skipped: {}", format!($($reason)*));
        return;
    }};
}

/// Leaves the test unless `command` is installed.
#[macro_export]
macro_rules! need {
    ($command:expr) => {
        if !$crate::installed($command) {
            $crate::skip!("{} is not installed", $command);
        }
    };
}
