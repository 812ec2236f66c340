//! Unix sockets.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart, verify_or_refused};

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            need!("cc");
            let program = program("sockets", Linkage::Dynamic).expect("there is a compiler");
            verify_after_restart(&Sandbox::new(), &[program.as_os_str(), stringify!($name).as_ref()]);
        }
    )*};
}

cases! {
    pairs closed shutdowns tree full empty options rights watched fresh load
}

fn check_refused(case: &str, words: &[&str]) {
    need!("cc");
    let program = program("sockets", Linkage::Dynamic).expect("there is a compiler");
    verify_or_refused(
        &Sandbox::new(),
        &[program.as_os_str(), case.as_ref()],
        words,
    );
}

/// Bytes out of band.
#[test]
fn urgent() {
    check_refused("urgent", &["urgent data"]);
}
