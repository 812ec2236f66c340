//! The table of conformance: made of what the modules of the engine say of themselves, and held against the tests' sources
//! and against a run of them.

use stasis_engine::conformance::{Claim, SECTIONS, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const HEAD: &str = "\
# Conformance

What becomes of each thing that a program may hold, and the tests that show it. This page is made of what the modules say of
themselves (`cargo run -p stasis-tests --bin conformance write`); a test fails where it is not what they say, where a module
says nothing, and where it names a test that is not there or is not run. `.ci/test` holds it against the run: it fails where
one of these tests did not run or did not pass, and names those that the host could not run.

- **kept**: it is there after a restart as it was at the checkpoint.
- **reset**: a restart makes something else of it, as said.
- **refused**: the checkpoint is refused by name before anything is touched, and the program runs on; where \"at the restart\"
  is said, the restart is refused before anything is started or changed. `stasis check PID` tells it beforehand, in the same words.

Tests are called as `PROGRAM::TEST`: a file of `tests/tests`, `CRATE-PROGRAM` for a file of `crates/CRATE/tests`, or a crate for
the tests beside its code.
";

/// `docs/conformance.md`.
#[must_use]
pub fn document() -> PathBuf {
    root().join("docs/conformance.md")
}

/// The workspace.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What the document has to be.
#[must_use]
pub fn table() -> String {
    let mut text = HEAD.to_owned();
    for section in SECTIONS {
        let _ = write!(
            text,
            "\n## {}\n\n`crates/engine/src/{}`\n\n| resource | | remark | shown by |\n|---|---|---|---|\n",
            section.title, section.file
        );
        for claim in section.claims {
            let verdict = match claim.verdict {
                Verdict::Kept => "kept",
                Verdict::Reset => "reset",
                Verdict::Refused => "refused",
            };
            let tests: Vec<String> = claim.tests.iter().map(|test| format!("`{test}`")).collect();
            let tests = match tests.is_empty() {
                true => "no test".to_owned(),
                false => tests.join(", "),
            };
            let _ = writeln!(
                text,
                "| {} | {verdict} | {} | {tests} |",
                claim.resource, claim.remark
            );
        }
    }
    text
}

/// Every claim.
pub fn claims() -> impl Iterator<Item = &'static Claim> {
    SECTIONS.iter().flat_map(|section| section.claims)
}

/// The program of tests that a name means, as `.ci/test` calls it, and the test's name in it.
#[must_use]
pub fn program_of(test: &str) -> Option<(String, &str)> {
    let (program, name) = test.split_once("::")?;
    let program = if program.contains('-') {
        program.to_owned()
    } else if root().join(format!("tests/tests/{program}.rs")).exists() {
        format!("tests-{program}")
    } else {
        format!("{program}-stasis_{program}")
    };
    Some((program, name))
}

/// The files that a program of tests is made of.
#[must_use]
pub fn sources(program: &str) -> Vec<PathBuf> {
    let Some((owner, name)) = program.split_once('-') else {
        return Vec::new();
    };
    let home = match owner {
        "tests" => root().join("tests"),
        owner => root().join("crates").join(owner),
    };
    if name == format!("stasis_{owner}") {
        return files(&home.join("src"));
    }
    let mut all = files(&home.join("tests").join(name));
    all.push(home.join("tests").join(format!("{name}.rs")));
    all.retain(|file| file.exists());
    all
}

/// Every Rust file below a directory.
#[must_use]
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What a run has to say of the tests that the table names.
#[derive(Debug, Default)]
pub struct Judged {
    /// How many the table names.
    pub tests: usize,
    /// Those that the host could not run, and why.
    pub skipped: Vec<String>,
    /// Those that did not run, or failed.
    pub missing: Vec<String>,
}

/// Holds the table against logs.
#[must_use]
pub fn judge(logs: &Path) -> Judged {
    let named: BTreeSet<&str> = claims().flat_map(|claim| claim.tests).copied().collect();
    let mut runs: BTreeMap<String, Run> = BTreeMap::new();
    let mut judged = Judged {
        tests: named.len(),
        ..Judged::default()
    };
    for test in named {
        let Some((program, name)) = program_of(test) else {
            judged.missing.push(test.to_owned());
            continue;
        };
        let run = runs.entry(program).or_insert_with_key(|program| {
            let log = fs::read(logs.join(format!("{program}.log"))).unwrap_or_default();
            Run::read(&String::from_utf8_lossy(&log))
        });
        if !run.passed.contains(name) {
            judged.missing.push(test.to_owned());
        } else if let Some(reason) = run.skipped.get(name) {
            judged.skipped.push(format!("{test} ({reason})"));
        }
    }
    judged
}

/// A log of a program of tests that was run with `--show-output`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Tests that have passed.
    pub passed: BTreeSet<String>,
    /// Those of them that were skipped, and why.
    pub skipped: BTreeMap<String, String>,
}

impl Run {
    /// Reads it.
    #[must_use]
    pub fn read(log: &str) -> Run {
        let mut run = Run::default();
        let mut showing: Option<&str> = None;
        for line in log.lines() {
            let shown = line
                .strip_prefix("---- ")
                .and_then(|rest| rest.strip_suffix(" stdout ----"));
            if shown.is_some() {
                showing = shown;
            } else if matches!(line, "successes:" | "failures:") {
                showing = None;
            } else if let Some(passed) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.strip_suffix(" ... ok"))
            {
                run.passed.insert(passed.to_owned());
            } else if let (Some(test), Some(reason)) = (showing, line.strip_prefix("skipped")) {
                let reason = reason.trim_start_matches(':').trim();
                run.skipped.insert(test.to_owned(), reason.to_owned());
            }
        }
        run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_what_passed_and_what_was_skipped() {
        let log = "\nrunning 3 tests\ntest a::one ... ok\ntest two ... FAILED\ntest three ... ok\n\nsuccesses:\n\n\
                   ---- a::one stdout ----\nseed 7\n\n---- three stdout ----\nskipped: redis is not installed\n\n\nsuccesses:\n    \
                   a::one\n    three\n\nfailures:\n\n---- two stdout ----\nskipped: not really\n";
        let run = Run::read(log);
        assert_eq!(run.passed, ["a::one", "three"].map(String::from).into());
        assert_eq!(run.skipped["three"], "redis is not installed");
        assert!(!run.skipped.contains_key("a::one"));
    }

    #[test]
    fn names_lead_to_programs() {
        assert_eq!(
            program_of("tcp::pairs"),
            Some(("tests-tcp".into(), "pairs"))
        );
        assert_eq!(
            program_of("engine-descriptors::kinds::x"),
            Some(("engine-descriptors".into(), "kinds::x"))
        );
        assert_eq!(
            program_of("engine::sysv::tests::x"),
            Some(("engine-stasis_engine".into(), "sysv::tests::x"))
        );
        assert_eq!(program_of("nothing"), None);
    }
}
