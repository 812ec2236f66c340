//! What DMTCP's commands do, seen by their user, line by line: each entry of the table is a script that ends with status 0 where
//! the commands do what is said.
//!
//! What is not done is in the table, too, with the reason: such an entry must fail, so that it is noticed when it is done.

mod dmtcp_table;

use dmtcp_table::{Entry, TABLE};
use stasis_tests::{Finished, JobScript, installed, skip};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Entries that run at once.
const WORKERS: usize = 3;

fn run(entry: &Entry) -> Option<Finished> {
    let scripts = JobScript::new()?;
    let finished = scripts.run(&format!("{}\ntrue", entry.script));
    // What an entry has started and left belongs to it.
    scripts.sandbox.kill_all();
    Some(finished)
}

#[test]
fn every_line_is_kept() {
    if !installed("cc") {
        skip!("there is no C compiler");
    }
    // For whoever looks for a fault.
    let only = std::env::var("STASIS_TEST_ENTRY").ok();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(entry) = TABLE.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if only.as_ref().is_some_and(|only| only != entry.number) {
                        continue;
                    }
                    let Some(finished) = run(entry) else { return };
                    let text = match (finished.success(), entry.ignored) {
                        (true, None) | (false, Some(_)) => continue,
                        (true, Some(reason)) => format!(
                            "{}: {} is ignored ({reason}), and done: take the mark away",
                            entry.number, entry.what
                        ),
                        (false, None) => format!(
                            "{}: {}\n{}\n{:?}\n{}{}",
                            entry.number,
                            entry.what,
                            entry.script,
                            finished.exit,
                            finished.stdout,
                            finished.stderr
                        ),
                    };
                    wrong.lock().expect("nobody panics with it").push(text);
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("nobody panics with it");
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        TABLE.len(),
        wrong.join("\n----\n")
    );
}

#[test]
fn every_entry_has_its_number() {
    let numbers: BTreeSet<&str> = TABLE.iter().map(|entry| entry.number).collect();
    assert_eq!(numbers.len(), TABLE.len());
}
