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
    tree sessions dead_leaders zombies stopped orphans subreaper attributes shown credentials vforked forking_madly
    threading_madly executing_madly new_children
}
