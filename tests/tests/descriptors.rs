//! Descriptors of every kind.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart};

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            need!("cc");
            let program = program("descriptors", Linkage::Dynamic).expect("there is a compiler");
            verify_after_restart(&Sandbox::new(), &[program.as_os_str(), stringify!($name).as_ref()]);
        }
    )*};
}

cases! {
    regular directories devices pipes fifos eventfds epolls memfds pidfds locks closed_stdio thread_table deleted many
    proc_files
}
