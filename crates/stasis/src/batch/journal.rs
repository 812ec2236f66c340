//! One line for each event of a run, for people who read a job's output file.

use crate::output::{self, Bytes};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use stasis_supervisor::line::{Told, Why};
use stasis_supervisor::signal_name;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// Writes to standard error, and to a file beside the checkpoints, where a restart takes nothing back.
pub struct Journal {
    file: Option<File>,
}

impl Journal {
    /// Opens `NAME.log` in the directory; without it, standard error has to do.
    pub fn open(directory: &Path, name: &str) -> Journal {
        let path = directory.join(format!("{name}.log"));
        let file = File::options().append(true).create(true).open(path);
        Journal { file: file.ok() }
    }

    /// Writes a line with the time.
    pub fn say(&mut self, text: &str) {
        let line = format!("{}  {text}", now().strftime("%F %T"));
        output::message(&line);
        if let Some(file) = &mut self.file {
            // A full disk has been told of already, on standard error.
            let _ = writeln!(file, "{line}");
        }
    }

    /// Writes what a checkpoint came to.
    pub fn checkpoint(&mut self, told: &Told) {
        self.say(&sentence(told));
    }
}

fn now() -> Zoned {
    Timestamp::now().to_zoned(TimeZone::system())
}

/// Why a checkpoint was taken, as the beginning of a sentence.
pub fn reason(why: Why) -> String {
    match why {
        Why::Request => "on request".to_owned(),
        Why::Interval => "periodic".to_owned(),
        Why::Signal(signal) => format!("on {}", signal_name::name(signal)),
        Why::Deadline => "before the time limit".to_owned(),
    }
}

fn sentence(told: &Told) -> String {
    let why = reason(told.why);
    let next = told.next_seconds.filter(|_| !told.stop).map(|seconds| {
        let at = now().checked_add(Duration::from_secs(seconds));
        at.map_or_else(
            |_| String::new(),
            |at| format!("; next at {}", at.strftime("%T")),
        )
    });
    let next = next.unwrap_or_default();
    match &told.outcome {
        Ok(brief) => format!(
            "checkpoint {} ({why}): pause {}, {} written in {}{}",
            brief.sequence,
            milliseconds(brief.pause_us),
            Bytes(brief.image_bytes),
            milliseconds(brief.total_us),
            if told.stop {
                "; the program is stopped"
            } else {
                &next
            },
        ),
        Err(problem) => format!("checkpoint failed ({why}), the program runs on{next}: {problem}"),
    }
}

fn milliseconds(microseconds: u64) -> String {
    let seconds = microseconds as f64 / 1e6;
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.1} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_supervisor::line::Brief;

    #[test]
    fn a_line_tells_pause_size_and_what_comes_next() {
        let brief = Brief {
            path: "x".into(),
            sequence: 3,
            pause_us: 12_400,
            total_us: 1_500_000,
            image_bytes: 10 << 20,
        };
        let mut told = Told {
            why: Why::Interval,
            outcome: Ok(brief),
            next_seconds: Some(600),
            stop: false,
        };
        let text = sentence(&told);
        assert!(
            text.starts_with(
                "checkpoint 3 (periodic): pause 12 ms, 10.0 MiB written in 1.5 s; next at "
            ),
            "{text}"
        );
        told.stop = true;
        told.why = Why::Signal(15);
        assert!(
            sentence(&told).ends_with("1.5 s; the program is stopped"),
            "{}",
            sentence(&told)
        );
        told.outcome = Err("no room".into());
        assert!(sentence(&told).ends_with("the program runs on: no room"));
    }
}
