//! Job control: an interactive shell on a pseudo terminal, driven by `terminal.py`.

mod common;

use common::{Ended, Place};

fn scenario(name: &str) {
    if !common::has("python3") || !common::has("bash") {
        println!("skipped: python3 and bash are needed to drive a terminal");
        return;
    }
    let place = Place::new();
    let output = std::process::Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/terminal.py"))
        .args([env!("CARGO_BIN_EXE_stasis"), name])
        .current_dir(place.dir())
        .env("STASIS_RUNTIME_DIR", place.runtime())
        .env_remove("STASIS_DIR")
        .output();
    let ended = Ended::from(output.expect("python3 starts"));
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
}

#[test]
fn ctrl_c_reaches_the_program() {
    scenario("interrupt");
}

#[test]
fn ctrl_z_stops_the_job_and_fg_continues_it() {
    scenario("suspend");
}

#[test]
fn a_shell_can_be_the_program() {
    scenario("inner_shell");
}

#[test]
fn ctrl_c_reaches_a_restarted_program() {
    scenario("restart_interrupt");
}

#[test]
fn ctrl_z_stops_a_restarted_job_and_fg_continues_it() {
    scenario("restart_suspend");
}
