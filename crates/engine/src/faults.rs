//! Faults on purpose, for the tests: `STASIS_TEST_FAULT=kill@STEP` ends the process that reaches the step with SIGKILL,
//! `fail@STEP` makes the step fail. Unset, a step costs one comparison.

use crate::EngineError;
use stasis_sys::Pid;
use std::sync::OnceLock;

fn wanted() -> Option<&'static (String, String)> {
    static WANTED: OnceLock<Option<(String, String)>> = OnceLock::new();
    let read = || {
        let value = std::env::var("STASIS_TEST_FAULT").ok()?;
        let (action, step) = value.split_once('@')?;
        Some((action.to_owned(), step.to_owned()))
    };
    WANTED.get_or_init(read).as_ref()
}

/// Whether a circumstance is to be pretended: `STASIS_TEST_FAULT=pretend@CIRCUMSTANCE`.
#[must_use]
pub fn asked(circumstance: &str) -> bool {
    wanted().is_some_and(|(action, what)| action == "pretend" && what == circumstance)
}

/// Takes two seconds where `pretend@slow` asks for a machine that is.
pub fn linger() {
    if asked("slow") {
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
}

/// Passes `step`.
///
/// # Errors
/// When the step is to fail.
pub fn pass(step: &str) -> Result<(), EngineError> {
    match wanted() {
        Some((action, at)) if at == step => match action.as_str() {
            "kill" => {
                let _ = stasis_sys::signal::send(Pid::current(), stasis_sys::process::SIGKILL);
                Ok(())
            }
            _ => Err(EngineError::Failed(format!(
                "a fault was asked for at {step}"
            ))),
        },
        _ => Ok(()),
    }
}
