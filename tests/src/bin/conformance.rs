//! `conformance write` makes `docs/conformance.md` from what the modules of the engine say of themselves; `conformance judge DIR`
//! holds the same against the logs of a run of the tests, `PROGRAM.log` each, as `.ci/test` makes them.

use stasis_tests::conformance;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write"] => match std::fs::write(conformance::document(), conformance::table()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{}: {error}", conformance::document().display());
                ExitCode::FAILURE
            }
        },
        ["judge", logs] => {
            let judged = conformance::judge(Path::new(logs));
            for line in &judged.skipped {
                println!("not shown on this host: {line}");
            }
            for line in &judged.missing {
                println!("NOT SHOWN: {line}");
            }
            println!(
                "docs/conformance.md: of {} tests {} have passed, {} were skipped, {} are missing or have failed",
                judged.tests,
                judged.tests - judged.skipped.len() - judged.missing.len(),
                judged.skipped.len(),
                judged.missing.len()
            );
            ExitCode::from(u8::from(!judged.missing.is_empty()))
        }
        _ => {
            eprintln!("conformance write, or conformance judge DIRECTORY");
            ExitCode::from(2)
        }
    }
}
