//! Memory of every kind comes back as it was.

use stasis_tests::{
    Linkage, Sandbox, need, program, verify_after_restart, verify_after_restart_with,
};
use std::path::Path;

fn check(case: &str) {
    check_image(case, |_| {});
}

fn check_image(case: &str, look: impl Fn(&Path)) {
    need!("cc");
    let program = program("memory", Linkage::Dynamic).expect("there is a compiler");
    let sandbox = Sandbox::new();
    verify_after_restart_with(&sandbox, &[program.as_os_str(), case.as_ref()], look);
}

fn expect_at_most(image: &Path, bytes: u64) {
    let length = std::fs::metadata(image).expect("the image is there").len();
    assert!(
        length <= bytes,
        "{} has {length} bytes, more than {bytes}",
        image.display()
    );
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
    anonymous private_file beyond_end shared_anonymous shared_file memfd_mapped deleted_file heap_growth stack_growth
    protections advice many_areas vdso grows_down huge_pages copy_on_write named_semaphores
}

/// 64 GiB reserved, 100 pages touched: only those are stored, and only those exist after the restart.
#[test]
fn sparse() {
    check_image("sparse", |image| expect_at_most(image, 8 << 20));
}

/// 80 MiB of pages that were written, with zeros.
#[test]
fn zeros() {
    check_image("zeros", |image| expect_at_most(image, 8 << 20));
}

/// Everything once without a shared library, whose areas lie elsewhere.
#[test]
fn static_program() {
    need!("cc");
    let Some(program) = program("memory", Linkage::Static) else {
        stasis_tests::skip!("no static C library");
    };
    for case in ["anonymous", "heap_growth", "stack_growth", "protections"] {
        verify_after_restart(&Sandbox::new(), &[program.as_os_str(), case.as_ref()]);
    }
}
