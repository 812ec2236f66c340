//! Dispositions, masks, pending signals, and calls that wait for one.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart};

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            need!("cc");
            let program = program("signals", Linkage::Dynamic).expect("there is a compiler");
            verify_after_restart(&Sandbox::new(), &[program.as_os_str(), stringify!($name).as_ref()]);
        }
    )*};
}

cases! {
    dispositions ignored pending suspended polling_with_mask paused signal_descriptor in_handler counted
}
