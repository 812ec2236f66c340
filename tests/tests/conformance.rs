//! `docs/conformance.md` is what the modules say of themselves, every module says something, and the tests that they name are there.

use stasis_engine::conformance::SECTIONS;
use stasis_tests::conformance::{claims, document, files, program_of, root, sources, table};
use std::collections::BTreeSet;
use std::fs;

/// Claims that no test shows: what it takes for one cannot be had by an ordinary user on any machine.
const NOT_SHOWN: [&str; 2] = [
    "terminal that has hung up",
    "thread inside the vdso, under another kernel",
];

/// Files of the engine that hold no resource by themselves: they find, sort and carry out what others say.
const PLUMBING: [&str; 17] = [
    "conformance.rs",
    "error.rs",
    "host.rs",
    "look.rs",
    "checkpoint.rs",
    "model.rs",
    "twin.rs",
    "inquiry.rs",
    "descriptors/capture.rs",
    "descriptors/external.rs",
    "descriptors/fdinfo.rs",
    "descriptors/handles.rs",
    "descriptors/look.rs",
    "descriptors/mod.rs",
    "descriptors/outside.rs",
    "descriptors/parallel.rs",
    "descriptors/restore.rs",
];

#[test]
fn the_document_is_up_to_date() {
    let there = fs::read_to_string(document()).unwrap_or_default();
    assert!(
        there == table(),
        "docs/conformance.md is not what the modules say: cargo run -p stasis-tests --bin conformance write"
    );
}

#[test]
fn every_module_says_what_becomes_of_its_resource() {
    let engine = root().join("crates/engine/src");
    let listed: BTreeSet<&str> = SECTIONS.iter().map(|section| section.file).collect();
    assert_eq!(listed.len(), SECTIONS.len(), "a module is listed twice");
    for section in SECTIONS {
        assert!(!section.claims.is_empty(), "{} says nothing", section.file);
        assert!(
            engine.join(section.file).exists(),
            "{} is not there",
            section.file
        );
    }
    for path in files(&engine) {
        let text = fs::read_to_string(&path).expect("a source file");
        let name = path
            .strip_prefix(&engine)
            .expect("below it")
            .to_str()
            .expect("a name");
        let declares = text.contains("CONFORMANCE: &[Claim]");
        assert!(
            !declares || listed.contains(name),
            "{name} has claims that crates/engine/src/conformance.rs does not list"
        );
        let holds = ["pub struct State", ".refuse(", "Refusal {", "refusal("];
        let holds =
            holds.iter().any(|sign| text.contains(sign)) || name.starts_with("descriptors/");
        // The files of a directory belong to the module whose directory it is.
        let mut above = path
            .strip_prefix(&engine)
            .expect("below it")
            .ancestors()
            .skip(1);
        let spoken_for = above.any(|directory| {
            let directory = directory.to_str().expect("a name");
            !matches!(directory, "" | "descriptors")
                && listed.iter().any(|file| {
                    *file == format!("{directory}.rs") || file.starts_with(&format!("{directory}/"))
                })
        });
        assert!(
            !holds || declares || spoken_for || PLUMBING.contains(&name),
            "{name} saves or refuses something, and says nothing of it (CONFORMANCE, see CONTRIBUTING.md)"
        );
    }
}

/// Every test that is named is in the sources, and is run.
#[test]
fn the_tests_that_are_named_are_there() {
    let mut wrong = Vec::new();
    for claim in claims() {
        let no_test = NOT_SHOWN.contains(&claim.resource);
        assert_eq!(
            claim.tests.is_empty(),
            no_test,
            "{}: a claim needs a test",
            claim.resource
        );
        for test in claim.tests {
            let Some((program, name)) = program_of(test) else {
                wrong.push(format!("{test} is no name"));
                continue;
            };
            if let Err(reason) = look_for(&program, name) {
                wrong.push(format!("{test}: {reason}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn look_for(program: &str, path: &str) -> Result<(), String> {
    let name = path.rsplit("::").next().unwrap_or(path);
    let word = |text: &str, at: usize| {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        !text[..at].ends_with(part) && !text[at + name.len()..].starts_with(part)
    };
    let mut found = false;
    for file in sources(program) {
        let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        for (at, _) in text.match_indices(name).filter(|(at, _)| word(&text, *at)) {
            found = true;
            // The attributes stand right above.
            let head = text[..at].trim_end_matches("fn ").trim_end();
            let attributes: Vec<&str> = head
                .lines()
                .rev()
                .take_while(|line| line.trim_start().starts_with("#["))
                .collect();
            if attributes.iter().any(|line| line.contains("#[ignore")) {
                return Err("it is not run (#[ignore])".into());
            }
        }
    }
    if found {
        Ok(())
    } else {
        Err(format!("no test of that name in {program}"))
    }
}
