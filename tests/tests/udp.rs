//! UDP and netlink sockets.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart, verify_or_refused};
use std::path::PathBuf;

fn udp() -> PathBuf {
    program("udp", Linkage::Dynamic).expect("there is a compiler")
}

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            need!("cc");
            verify_after_restart(&Sandbox::new(), &[udp().as_os_str(), stringify!($name).as_ref()]);
        }
    )*};
}

cases! { queues connected groups lines }

fn check_refused(case: &str, words: &[&str]) {
    need!("cc");
    verify_or_refused(&Sandbox::new(), &[udp().as_os_str(), case.as_ref()], words);
}

/// An answer of the kernel that the program has not read.
#[test]
fn answer() {
    check_refused("answer", &["netlink", "not read yet", "try again"]);
}

/// A datagram that is put together in parts.
#[test]
fn corked() {
    check_refused("corked", &["not complete yet (UDP_CORK)"]);
}
