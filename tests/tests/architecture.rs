//! What ARCHITECTURE.md says of the crates is so: who may depend on whom, and where `unsafe` is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate, and those of ours that it may depend on: what lies below it in the map.
const MAP: [(&str, &[&str]); 8] = [
    ("sys", &[]),
    ("image", &[]),
    ("tracee", &["sys"]),
    ("engine", &["sys", "tracee", "image"]),
    ("coordinator", &[]),
    (
        "supervisor",
        &["sys", "tracee", "image", "engine", "coordinator"],
    ),
    (
        "dmtcp",
        &["sys", "image", "engine", "coordinator", "supervisor"],
    ),
    (
        "stasis",
        &["sys", "tracee", "image", "engine", "supervisor", "dmtcp"],
    ),
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates")
}

/// Our crates in `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.strip_prefix("stasis-"))
        .filter_map(|rest| rest.split(['.', ' ', '=']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_depend_downwards_only() {
    let there: BTreeSet<String> = fs::read_dir(crates())
        .expect("crates/")
        .map(|entry| {
            let name = entry.expect("an entry").file_name();
            name.into_string().expect("a name")
        })
        .collect();
    let known: BTreeSet<String> = MAP.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(there, known, "the map does not show these crates");
    for (name, below) in MAP {
        let manifest =
            fs::read_to_string(crates().join(name).join("Cargo.toml")).expect("a manifest");
        for dependency in dependencies(&manifest) {
            assert!(
                below.contains(&dependency.as_str()),
                "{name} depends on {dependency}, which is not below it"
            );
        }
    }
}

#[test]
fn unsafe_code_is_where_the_kernel_is_wrapped() {
    for (name, _) in MAP {
        if ["sys", "tracee"].contains(&name) {
            continue;
        }
        let roots = ["src/lib.rs", "src/main.rs"].map(|root| crates().join(name).join(root));
        let mut roots = roots
            .iter()
            .filter_map(|root| fs::read_to_string(root).ok());
        assert!(
            roots.all(|root| root.contains("#![forbid(unsafe_code)]")),
            "{name} does not forbid unsafe code"
        );
    }
    let source = crates().join("tracee/src");
    let wrappers = ["ptrace.rs", "memory.rs"].map(|name| source.join(name));
    for file in walk(&source) {
        let text = fs::read_to_string(&file).expect("a source file");
        assert!(
            wrappers.contains(&file) || !text.contains("unsafe {"),
            "{} has unsafe code",
            file.display()
        );
    }
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files
}
