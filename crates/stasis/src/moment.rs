//! Moments, as people write them.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use stasis_supervisor::Interval;
use std::time::SystemTime;

/// `+90m` from now; `2026-11-21T18:00` on this host's clock; or with an offset, as RFC 3339 has it.
///
/// # Errors
/// A sentence that says what is understood.
pub fn parse(text: &str) -> Result<SystemTime, String> {
    let from_now = || {
        let length: Interval = text.strip_prefix('+')?.parse().ok()?;
        SystemTime::now().checked_add(length.duration())
    };
    let absolute = || Some(SystemTime::from(text.parse::<Timestamp>().ok()?));
    let local = || {
        let civil: DateTime = text.parse().ok()?;
        let zoned = civil.to_zoned(TimeZone::system()).ok()?;
        Some(SystemTime::from(zoned.timestamp()))
    };
    from_now().or_else(absolute).or_else(local).ok_or_else(|| {
        format!("{text} is no moment: write +90m, 2026-11-21T18:00 or 2026-11-21T18:00:00Z")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_understood() {
        let soon = parse("+90m")
            .unwrap()
            .duration_since(SystemTime::now())
            .unwrap();
        assert!(soon > Duration::from_secs(5300) && soon <= Duration::from_secs(5400));
        let known = parse("1970-01-01T01:00:00+01:00").unwrap();
        assert_eq!(known, SystemTime::UNIX_EPOCH);
        assert!(parse("2026-11-21T18:00").is_ok() && parse("2026-11-21 18:00:30").is_ok());
        for bad in ["", "90m", "+", "+1.5h", "tomorrow"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
