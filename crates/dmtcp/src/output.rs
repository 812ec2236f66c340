//! What is written where: results on standard output, everything else on standard error behind `stasis: `.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};

/// How many times `--quiet` was given.
static QUIET: AtomicU8 = AtomicU8::new(0);

/// Sets how much is left unsaid: 1 remarks, 2 warnings as well.
pub fn be_quiet(level: u8) {
    QUIET.store(level, Ordering::Relaxed);
}

/// Writes a message that is always told: why something was not done.
pub fn message(text: &str) {
    // Nothing can be done about a standard error that cannot be written.
    let _ = writeln!(io::stderr(), "stasis: {text}");
}

/// Writes a warning.
pub fn warning(text: &str) {
    if QUIET.load(Ordering::Relaxed) < 2 {
        message(text);
    }
}

/// Writes a remark.
pub fn remark(text: &str) {
    if QUIET.load(Ordering::Relaxed) < 1 {
        message(text);
    }
}

/// Writes a result, with a line end; whether that went well: a full disk must not look like success.
pub fn result(text: impl fmt::Display) -> bool {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}
