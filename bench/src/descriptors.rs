//! Many descriptors: how pause and restart grow with their number.

use crate::checkpoints::{Case, Measured};
use crate::stasis::Stasis;
use crate::table::{self, milliseconds};
use crate::workload_argv;
use std::time::Duration;

/// Each is measured with a quarter of its number first, then with all.
const PART: usize = 4;

/// What there is of each, a name that a number is put before, and the workload's arguments.
const KINDS: [(usize, &str, &[&str]); 4] = [
    (
        10_000,
        "open files",
        &["holding", "--what", "files", "--count"],
    ),
    (
        1000,
        "TCP connections",
        &["holding", "--what", "connections", "--count"],
    ),
    (
        1000,
        "epoll targets",
        &["holding", "--what", "watched", "--count"],
    ),
    (
        200,
        "processes with 50 descriptors each",
        &["family", "--each", "50", "--count"],
    ),
];

/// The programs.
pub fn cases(stasis: &Stasis, quick: bool) -> Result<Vec<Case>, String> {
    let mut cases = Vec::new();
    for (count, what, arguments) in KINDS {
        for count in [count / PART, count] {
            let text = count.to_string();
            let arguments = [arguments, &[text.as_str()]].concat();
            cases.push(Case {
                name: format!("{count} {what}"),
                compression: None,
                argv: workload_argv(&stasis.directory, &arguments)?,
                rounds: if quick { 1 } else { 5 },
                large: false,
            });
        }
    }
    Ok(cases)
}

/// Prints them: the last columns say how much longer four times as many take, which is four where time grows with the number.
pub fn print(all: &[Measured]) {
    let time = |ms: f64| milliseconds(Duration::from_secs_f64(ms / 1e3));
    let row = |(at, one): (usize, &Measured)| {
        if let Some(failure) = &one.failure {
            return vec![one.name.clone(), failure.clone()];
        }
        let kind = |name: &str| name.split_once(' ').map(|(_, kind)| kind.to_owned());
        let before = at.checked_sub(1).and_then(|before| all.get(before));
        let part =
            before.filter(|part| part.failure.is_none() && kind(&part.name) == kind(&one.name));
        let ratio = |of: fn(&Measured) -> f64| {
            part.map_or("-".to_owned(), |part| format!("{:.1}", of(one) / of(part)))
        };
        vec![
            one.name.clone(),
            time(one.pause),
            time(one.restart),
            ratio(|one| one.pause),
            ratio(|one| one.restart),
        ]
    };
    let rows: Vec<_> = all.iter().enumerate().map(row).collect();
    let head = [
        "program",
        "pause (ms)",
        "restart (ms)",
        "pause / that of a quarter",
        "restart / that of a quarter",
    ];
    table::print("Many descriptors", &head, &rows);
}
