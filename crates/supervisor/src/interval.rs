//! Times between checkpoints, as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The time from the end of one checkpoint to the start of the next: one second or more, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(Duration);

/// A text that is no interval.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an interval: write seconds (90), or units as in 90s, 30m, 1h30m, 2d")]
pub struct ParseIntervalError(String);

/// Units, the largest first, with their lengths in seconds.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

impl Interval {
    /// An interval of so many seconds; `None` for zero.
    #[must_use]
    pub fn from_seconds(seconds: u64) -> Option<Interval> {
        (seconds > 0).then_some(Interval(Duration::from_secs(seconds)))
    }
    /// Its length.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Interval {
    type Err = ParseIntervalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        seconds(text)
            .and_then(Interval::from_seconds)
            .ok_or_else(|| ParseIntervalError(text.to_owned()))
    }
}

/// Each unit at most once, the larger before the smaller; no number beyond what `u64` seconds hold.
fn seconds(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let mut rest = text;
    let mut total = 0u64;
    for (unit, length) in UNITS {
        let Some((digits, after)) = rest.split_once(unit) else {
            continue;
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(length)?)?;
        rest = after;
    }
    rest.is_empty().then_some(total)
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_secs();
        for (unit, length) in UNITS {
            if rest >= length {
                write!(f, "{}{unit}", rest / length)?;
                rest %= length;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<u64> {
        text.parse::<Interval>()
            .ok()
            .map(|interval| interval.duration().as_secs())
    }

    #[test]
    fn what_people_write_is_understood() {
        assert_eq!(parsed("90"), Some(90));
        assert_eq!(parsed("90s"), Some(90));
        assert_eq!(parsed("30m"), Some(1800));
        assert_eq!(parsed("1h30m"), Some(5400));
        assert_eq!(parsed("1d1s"), Some(86_401));
    }

    #[test]
    fn what_has_no_clear_meaning_is_refused() {
        for text in [
            "",
            "0",
            "0s",
            "s",
            "-5",
            "+5",
            "1.5h",
            "30m1h",
            "1h1h",
            "5 m",
            "5x",
            "1h30",
            "٣s",
            "18446744073709551616",
            "999999999999999999d",
        ] {
            assert_eq!(parsed(text), None, "{text:?}");
        }
    }

    #[test]
    fn it_is_shown_as_it_would_be_written() {
        for text in ["1s", "1m30s", "1h30m", "2d1h"] {
            assert_eq!(text.parse::<Interval>().expect(text).to_string(), text);
        }
    }
}
