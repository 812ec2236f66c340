//! Tables for people.

use std::time::Duration;

/// Prints a table in Markdown.
pub fn print(title: &str, head: &[&str], rows: &[Vec<String>]) {
    println!("\n## {title}\n");
    let line = |cells: Vec<&str>| println!("| {} |", cells.join(" | "));
    line(head.to_vec());
    let rule = (0..head.len()).map(|n| if n == 0 { "---" } else { "---:" });
    line(rule.collect());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

/// The middle one; zero of none.
pub fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// In milliseconds, with as many digits as mean something.
pub fn milliseconds(time: Duration) -> String {
    let value = time.as_secs_f64() * 1e3;
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// An optional value, or a dash.
pub fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

/// Bytes in MiB.
pub fn mebibytes(bytes: u64) -> String {
    let value = bytes as f64 / f64::from(1 << 20);
    if value >= 10.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}
