//! Lines of job scripts that call DMTCP's commands, run as their users run them.

use crate::running::{Finished, Running};
use crate::sandbox::Sandbox;
use crate::{Linkage, build};
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

/// The file of [`PRELUDE`].
const WORDS: &str = "words.sh";
/// What every script begins with: words for waiting, which have no limits of their own.
const PRELUDE: &str = r#"
trap 'kill -9 $(jobs -p) 2> /dev/null' EXIT
until_ok() { until "$@" > /dev/null 2>&1; do sleep 0.03; done; }
peers() { dmtcp_command -s 2> /dev/null | grep -q "NUM_PEERS=$1\$"; }
running() { dmtcp_command -s 2> /dev/null | grep -q RUNNING=yes; }
all_run() { peers "$1" && running; }
has_lines() { [ "$(wc -l < "$1")" -gt "$2" ]; }
grows() { until_ok has_lines "$1" "$(wc -l < "$1")"; }
nobody_listens() { ! dmtcp_command -s; }
fails() { echo "FAILED: $*" >&2; exit 1; }
is() { [ "$1" = "$2" ] || fails "$1, not $2 ${3-}"; }
says() { grep -q -e "$2" "$1" || { cat "$1" >&2; fails "$1 does not say $2"; }; }
status() { "$@" > /dev/null 2>&1; echo $?; }
"#;

/// A sandbox with a coordinator's port of its own, in `DMTCP_COORD_PORT`, and the program `./count`.
#[derive(Debug)]
pub struct JobScript {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// The port.
    pub port: u16,
}

/// A port at which nobody listens, below those that the kernel gives to whoever wants any.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + u16::try_from(std::process::id() % 100).unwrap_or(0) * 100;
    for _ in 0..100 {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free")
}

impl JobScript {
    /// A sandbox; none where there is no C compiler.
    #[must_use]
    pub fn new() -> Option<JobScript> {
        JobScript::in_sandbox(Sandbox::new())
    }

    /// The same in a sandbox that is there.
    ///
    /// # Panics
    /// When the program cannot be copied.
    #[must_use]
    pub fn in_sandbox(mut sandbox: Sandbox) -> Option<JobScript> {
        let count = build::program("count", Linkage::Dynamic)?;
        let own = sandbox.work().join("count");
        std::fs::copy(count, &own).expect("copying a program");
        sandbox.give(&own);
        std::fs::write(sandbox.path().join(WORDS), PRELUDE).expect("writing the words");
        let port = free_port();
        sandbox
            .env
            .push(("DMTCP_COORD_PORT".into(), port.to_string()));
        Some(JobScript { sandbox, port })
    }

    /// A shell that runs `script`.
    #[must_use]
    pub fn command(&self, script: &str) -> Command {
        let mut command = self.sandbox.command("bash");
        let line = format!(". {}\n{script}", self.sandbox.path().join(WORDS).display());
        command.arg("-c").arg(line);
        command
    }

    /// Starts a script.
    pub fn start(&self, script: &str) -> Running<'_> {
        self.sandbox.start(self.command(script))
    }

    /// Runs a script to its end.
    pub fn run(&self, script: &str) -> Finished {
        self.start(script).finish()
    }

    /// Runs a script that is to end with status 0.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self, script: &str) -> Finished {
        // The last wait may be one for a program that was killed.
        let finished = self.run(&format!("{script}\ntrue"));
        assert!(
            finished.success(),
            "{script}\n-- {:?}\n-- stdout\n{}\n-- stderr\n{}",
            finished.exit,
            finished.stdout,
            finished.stderr
        );
        finished
    }
}
