//! Process trees, and what belongs to each process.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart};

fn check(case: &str) {
    need!("cc");
    let program = program("processes", Linkage::Dynamic).expect("there is a compiler");
    verify_after_restart(&Sandbox::new(), &[program.as_os_str(), case.as_ref()]);
}

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name));
        }
    )*};
}

cases! {
    tree sessions dead_leaders zombies stopped orphans subreaper attributes settings locked_to_come shown credentials
    forking_madly threading_madly executing_madly new_children passing_on
}

/// A process that waits for its vfork child sleeps where no stop reaches it: refused by name, and it runs on.
#[test]
fn vforked() {
    need!("cc");
    let program = program("processes", Linkage::Dynamic).expect("there is a compiler");
    let argv = [program.as_os_str(), "vforked".as_ref()];
    stasis_tests::verify_or_refused(&Sandbox::new(), &argv, &["vfork", "try again"]);
}
