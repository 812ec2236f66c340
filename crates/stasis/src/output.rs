//! What is written where: results on standard output, everything else on standard error behind `stasis: `.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Writes a message for people.
pub fn message(text: &str) {
    // Nothing can be done about a standard error that cannot be written.
    let _ = writeln!(io::stderr(), "stasis: {text}");
}

/// Writes a result, with a line end.
///
/// # Errors
/// The kernel's: a full disk must not look like success.
pub fn result(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

/// Writes a result as JSON.
///
/// # Errors
/// As [`result`].
pub fn json(value: &impl Serialize) -> io::Result<()> {
    result(serde_json::to_string_pretty(value)?)
}

/// A moment in the user's time zone, to the second.
pub fn local_time(at: jiff::Timestamp) -> String {
    at.to_zoned(jiff::tz::TimeZone::system())
        .strftime("%F %T")
        .to_string()
}

/// A number of bytes for people: three digits or so, binary units.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 999.5 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = if value < 9.995 {
            2
        } else {
            usize::from(value < 99.95)
        };
        f.pad(&format!("{value:.digits$} {}", UNITS[unit]))
    }
}

/// Columns of text, each as wide as its widest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// A table with a heading; the columns in `right` are numbers.
    pub fn new(heading: &[&str], right: &'static [usize]) -> Table {
        Table {
            rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()],
            right,
        }
    }
    /// Adds a row of as many cells.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .map(|row| row[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for (n, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let cell = if self.right.contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
                line.push_str(&cell);
                line.push_str("  ");
            }
            if n > 0 {
                writeln!(f)?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

/// What takes less is over before it can be read.
const WORTH_SHOWING: Duration = Duration::from_millis(500);

/// Draws one line of progress on standard error where that is a terminal.
pub struct ProgressLine {
    bar: Option<(ProgressBar, Instant)>,
}

impl ProgressLine {
    /// Draws nothing until there is progress.
    pub fn new() -> ProgressLine {
        ProgressLine { bar: None }
    }
    /// `done` of about `total` bytes.
    pub fn show(&mut self, what: &str, done: u64, total: u64) {
        if total == 0 || !io::stderr().is_terminal() {
            return;
        }
        let (bar, since) = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
            let template =
                "stasis: {msg} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            (bar, Instant::now())
        });
        bar.set_message(what.to_owned());
        bar.set_length(total);
        bar.set_position(done);
        if bar.is_hidden() && since.elapsed() >= WORTH_SHOWING {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        bar.tick();
    }
    /// Takes the line away.
    pub fn clear(&mut self) {
        if let Some((bar, _)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_three_digits() {
        let shown = |bytes| Bytes(bytes).to_string();
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(1023), "1023 B");
        assert_eq!(shown(1024), "1.00 KiB");
        assert_eq!(shown(10 << 20), "10.0 MiB");
        assert_eq!(shown(1000 << 20), "0.98 GiB");
        assert_eq!(shown(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["A", "NUMBER"], &[1]);
        table.row(vec!["long".into(), "7".into()]);
        assert_eq!(table.to_string(), "A     NUMBER\nlong       7");
    }
}
