//! What a look has seen, in words: resources that are alike in one line, what is refused last.

use crate::output::{Bytes, Table};
use stasis_engine::Refusal;
use stasis_engine::conformance::Verdict;
use stasis_engine::look::{Item, Look};
use stasis_sys::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// So many characters tell which ones they are.
const WIDTH: usize = 70;
/// So many refusals that are alike are told each.
const ALIKE: usize = 3;

/// The whole answer.
pub(super) fn text(look: &Look, verbose: bool) -> String {
    let mut text = String::new();
    for verdict in [Verdict::Kept, Verdict::Reset] {
        let items = look.items.iter().filter(|item| item.verdict == verdict);
        let rows = rows(items, verbose);
        if !rows.is_empty() {
            let _ = writeln!(text, "{}", verdict.name());
            text += &indented(&table(&rows, verdict).to_string());
        }
    }
    if !look.notes.is_empty() {
        let notes: Vec<&str> = look.notes.iter().map(String::as_str).collect();
        let _ = writeln!(text, "notes");
        text += &indented(&notes.join("\n"));
    }
    if look.can_be_saved() {
        return text + "nothing stands in the way of a checkpoint";
    }
    let _ = writeln!(text, "{}", Verdict::Refused.name());
    text += &indented(&refusals(&look.refusals, verbose));
    let number = look.refusals.len();
    let stand = if number == 1 {
        "obstacle stands"
    } else {
        "obstacles stand"
    };
    text + &format!("{number} {stand} in the way of a checkpoint")
}

fn indented(text: &str) -> String {
    text.lines()
        .fold(String::new(), |all, line| all + "  " + line + "\n")
}

/// What resources that make one line have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    process: &'a str,
    /// Told apart only where each is shown by itself.
    single: Option<usize>,
    resource: &'a str,
    remark: &'a str,
}

#[derive(Default)]
struct Row<'a> {
    pids: BTreeSet<Pid>,
    count: u64,
    bytes: Option<u64>,
    descriptors: Vec<i32>,
    objects: Vec<&'a str>,
}

fn rows<'a>(items: impl Iterator<Item = &'a Item>, verbose: bool) -> Vec<(Key<'a>, Row<'a>)> {
    let mut places: BTreeMap<Key, usize> = BTreeMap::new();
    let mut rows: Vec<Row> = Vec::new();
    for (place, item) in items.enumerate() {
        // What is kept needs no explanation, nor memory its kinds.
        let short = !verbose && item.verdict == Verdict::Kept;
        let kind = item
            .resource
            .split_once(':')
            .filter(|_| short && item.bytes.is_some());
        let key = Key {
            process: &item.process,
            single: verbose.then_some(place),
            resource: kind.map_or(item.resource.as_str(), |(kind, _)| kind),
            remark: if short { "" } else { &item.remark },
        };
        let next = rows.len();
        let at = *places.entry(key).or_insert(next);
        if at == next {
            rows.push(Row::default());
        }
        let row = &mut rows[at];
        row.pids.extend(item.pid);
        row.count += item.count;
        row.bytes = item
            .bytes
            .map(|bytes| bytes + row.bytes.unwrap_or(0))
            .or(row.bytes);
        row.descriptors.extend(item.descriptor);
        if !item.object.is_empty()
            && !row.objects.contains(&item.object.as_str())
            && row.objects.len() < 2
        {
            row.objects.push(&item.object);
        }
    }
    // By process, and there in the order in which they were seen.
    let mut all: Vec<(Key, usize)> = places.into_iter().collect();
    all.sort_by(|(one, at), (other, there)| (one.process, at).cmp(&(other.process, there)));
    let mut rows: Vec<Option<Row>> = rows.into_iter().map(Some).collect();
    all.into_iter()
        .filter_map(|(key, at)| Some((key, rows[at].take()?)))
        .collect()
}

fn table(rows: &[(Key, Row)], verdict: Verdict) -> Table {
    let last = match verdict {
        Verdict::Kept => "WHICH",
        Verdict::Reset | Verdict::Refused => "WHICH, AND WHAT BECOMES OF IT",
    };
    let mut table = Table::new(&["PROCESS", "RESOURCE", "NUMBER", last], &[2]);
    let mut before = String::new();
    for (key, row) in rows {
        let process = match (row.pids.len(), row.pids.first()) {
            (1, Some(pid)) => format!("{} {pid}", key.process),
            (n, _) => format!("{} ({n} processes)", key.process),
        };
        let which = match verdict {
            Verdict::Kept => row.which(),
            Verdict::Reset | Verdict::Refused => [row.which(), key.remark.to_owned()]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(": "),
        };
        let shown = if process == before {
            String::new()
        } else {
            process.clone()
        };
        before = process;
        table.row(vec![
            shown,
            key.resource.to_owned(),
            row.count.to_string(),
            which,
        ]);
    }
    table
}

impl Row<'_> {
    fn which(&self) -> String {
        let mut parts = Vec::new();
        if let Some(bytes) = self.bytes {
            parts.push(Bytes(bytes).to_string());
        }
        // Numbers of several processes mean nothing together.
        if self.pids.len() == 1 && !self.descriptors.is_empty() {
            let word = if self.descriptors.len() == 1 {
                "descriptor"
            } else {
                "descriptors"
            };
            parts.push(format!("{word} {}", ranges(&self.descriptors)));
        }
        if let [object] = self.objects[..] {
            parts.push(object.to_owned());
        }
        shortened(&parts.join(", "))
    }
}

/// `3-5, 9`.
fn ranges(numbers: &[i32]) -> String {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => parts.push((number, number)),
        }
    }
    let part = |(start, end): &(i32, i32)| match end - start {
        0 => start.to_string(),
        _ => format!("{start}-{end}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    text.chars().take(WIDTH - 3).collect::<String>() + "..."
}

/// A line each; of many that are alike the first ones.
fn refusals(all: &[Refusal], verbose: bool) -> String {
    let mut seen: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    let mut lines = Vec::new();
    for refusal in all {
        let alike = (
            refusal.process.as_str(),
            refusal.reason.as_str(),
            refusal.hint.as_str(),
        );
        let count = seen.entry(alike).or_insert(0);
        *count += 1;
        if verbose || *count <= ALIKE {
            lines.push(refusal.to_string());
        }
    }
    for ((process, reason, _), count) in seen {
        if !verbose && count > ALIKE {
            let more = count - ALIKE;
            lines.push(format!(
                "{more} more of {process}: {reason} (--verbose shows them)"
            ));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(pid: i32, descriptor: i32, resource: &str, verdict: Verdict) -> Item {
        Item {
            pid: Some(Pid(pid)),
            process: "sh".into(),
            descriptor: Some(descriptor),
            resource: resource.into(),
            object: format!("pipe:[{descriptor}]"),
            count: 1,
            bytes: None,
            verdict,
            remark: String::new(),
            hint: String::new(),
        }
    }

    fn refusal(pid: i32) -> Refusal {
        Refusal {
            pid: Some(Pid(pid)),
            process: "sh".into(),
            object: "descriptor 9".into(),
            reason: "is odd".into(),
            hint: "close it".into(),
        }
    }

    #[test]
    fn two_hundred_processes_are_a_few_lines() {
        let mut look = Look::default();
        for pid in 0..200 {
            let items = (0..50).map(|fd| {
                item(
                    pid,
                    fd,
                    if fd < 25 { "pipe" } else { "file" },
                    Verdict::Kept,
                )
            });
            look.items.extend(items);
            look.refusals.push(refusal(pid));
        }
        let shown = text(&look, false);
        assert!(shown.lines().count() < 12, "{shown}");
        assert!(
            shown.contains("sh (200 processes)  pipe        5000"),
            "{shown}"
        );
        assert!(shown.contains("197 more of sh: is odd"), "{shown}");
        assert!(
            shown.ends_with("200 obstacles stand in the way of a checkpoint"),
            "{shown}"
        );
        assert!(text(&look, true).lines().count() > 10_000);
    }

    #[test]
    fn one_of_a_kind_is_told_by_its_name() {
        let look = Look {
            items: vec![
                item(7, 3, "pipe", Verdict::Kept),
                item(7, 4, "file", Verdict::Kept),
                item(7, 5, "file", Verdict::Kept),
                item(7, 9, "file", Verdict::Kept),
            ],
            ..Look::default()
        };
        let shown = text(&look, false);
        assert!(shown.contains("descriptor 3, pipe:[3]"), "{shown}");
        assert!(shown.contains("descriptors 4-5, 9"), "{shown}");
        assert!(
            shown.ends_with("\nnothing stands in the way of a checkpoint"),
            "{shown}"
        );
    }
}
