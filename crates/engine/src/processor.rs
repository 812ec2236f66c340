//! What the program may rely on of the processor.
//!
//! Saved: the features of the processor. Programs and libraries choose their code by them once, when they start (the C library
//! picks its string functions, numerical libraries their kernels), so that a restart on a processor that lacks one of them ends
//! in SIGILL, sooner or later. Not saved: what a program really uses, which cannot be known.

use crate::Refusal;
use crate::conformance::Claim;
use serde::{Deserialize, Serialize};
use stasis_tracee::arch;

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[Claim::refused(
    "processor that lacks features of the one of the checkpoint",
    "at the restart; --any-processor tries it",
    &["restarts::another_processor"],
)];

/// The processor of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Names of its features (`tracee/src/arch`).
    pub features: Vec<String>,
}

/// Looks at this host's.
#[must_use]
pub fn capture() -> State {
    let names = arch::features().into_iter();
    State {
        features: names.map(str::to_owned).collect(),
    }
}

/// What this host lacks.
#[must_use]
pub fn missing(state: &State) -> Option<Refusal> {
    let mut here = arch::features();
    if crate::faults::asked("old-processor") {
        here.retain(|name| !name.starts_with("sse4"));
    }
    let lacks = |name: &&String| !here.contains(&name.as_str());
    let missing: Vec<&str> = state
        .features
        .iter()
        .filter(lacks)
        .map(String::as_str)
        .collect();
    (!missing.is_empty()).then(|| {
        crate::restart::refusal(
            "this host's processor",
            format!(
                "it lacks what the one of the checkpoint had, and the program may use: {}",
                missing.join(", ")
            ),
            "restart on a host of the same kind or a newer one, or with --any-processor where the program is known not to use \
             them",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_named() {
        let mut state = capture();
        assert_eq!(missing(&state), None);
        state.features.push("flux-capacitor".into());
        let refusal = missing(&state).unwrap();
        assert!(
            refusal.reason.ends_with("may use: flux-capacitor"),
            "{refusal:?}"
        );
        assert_eq!(missing(&State::default()), None, "less is no obstacle");
    }
}
