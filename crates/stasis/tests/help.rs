//! What the command says about itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Ended, Place};
use std::fs;

#[test]
fn the_version_is_told() {
    let told = Ended::from(Place::new().output(&["--version"]));
    assert_eq!(
        (told.code, told.out),
        (Some(0), format!("stasis {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn every_shell_gets_a_completion_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = Ended::from(Place::new().output(&["completions", shell]));
        assert!(
            script.code == Some(0) && script.out.contains("checkpoint"),
            "{shell}"
        );
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let place = Place::new();
    assert_eq!(Ended::from(place.output(&["man", "."])).code, Some(0));
    let help = Ended::from(place.output(&["--help"])).out;
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    // Descriptions may go on in lines that are further to the right.
    let verbs = verbs
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "));
    let verbs: Vec<&str> = verbs
        .filter_map(|line| line.split_ascii_whitespace().next())
        .collect();
    assert!(verbs.len() > 12, "{verbs:?}");
    for verb in verbs.iter().filter(|verb| **verb != "help") {
        let page = fs::read_to_string(place.dir().join(format!("stasis-{verb}.1"))).unwrap();
        assert!(page.contains(".SH NAME"), "{verb}");
    }
    for name in [
        "launch",
        "checkpoint",
        "restart",
        "relaunch",
        "command",
        "coordinator",
        "nocheckpoint",
    ] {
        let page = place.dir().join(format!("dmtcp_{name}.1"));
        assert!(page.exists(), "{name}");
    }
    let whole = Ended::from(place.output(&["man"]));
    assert!(whole.out.contains(".TH stasis 1"), "{whole:?}");
}
