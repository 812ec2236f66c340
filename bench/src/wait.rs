//! Waiting for a program's report.

use crate::workload::REPORT;
use std::io;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// Deletes the report, so that a program that runs writes it anew.
pub fn ask(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(REPORT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits for the report; fails when `holder`, the process that holds the program, ends before.
pub fn report(directory: &Path, holder: Option<&mut Child>) -> Result<String, String> {
    let path = directory.join(REPORT);
    let deadline = Instant::now() + LIMIT;
    let mut holder = holder;
    let mut looks = 0u32;
    loop {
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("reading {}: {error}", path.display())),
        }
        looks += 1;
        if looks.is_multiple_of(100)
            && let Some(status) = holder
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten())
        {
            return Err(format!("it ended too early ({status})"));
        }
        if Instant::now() > deadline {
            return Err(format!("nothing was heard of it for {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
