//! Signals, as people write them.

use rustix::process::Signal;

const NAMES: [(&str, Signal); 29] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ILL", Signal::ILL),
    ("TRAP", Signal::TRAP),
    ("ABRT", Signal::ABORT),
    ("BUS", Signal::BUS),
    ("FPE", Signal::FPE),
    ("USR1", Signal::USR1),
    ("SEGV", Signal::SEGV),
    ("USR2", Signal::USR2),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("STKFLT", Signal::STKFLT),
    ("CHLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("URG", Signal::URG),
    ("XCPU", Signal::XCPU),
    ("XFSZ", Signal::XFSZ),
    ("VTALRM", Signal::VTALARM),
    ("PROF", Signal::PROF),
    ("WINCH", Signal::WINCH),
    ("IO", Signal::IO),
    ("PWR", Signal::POWER),
    ("SYS", Signal::SYS),
];

/// Those that a process cannot catch, so that they can be no trigger, and the one that tells of children.
const NEVER_TRIGGERS: [i32; 3] = [
    Signal::KILL.as_raw(),
    Signal::STOP.as_raw(),
    Signal::CHILD.as_raw(),
];

/// A signal that can be made a trigger, from `USR1`, `SIGUSR1` or a number.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn parse_trigger(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse::<i32>() {
        Ok(number) => Some(number).filter(|number| (1..=64).contains(number)),
        Err(_) if name == "KILL" => Some(Signal::KILL.as_raw()),
        Err(_) if name == "STOP" => Some(Signal::STOP.as_raw()),
        Err(_) => NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, signal)| signal.as_raw()),
    };
    match number {
        None => Err(format!(
            "{text} is no signal; write a name such as USR1 or a number from 1 to 64"
        )),
        Some(number) if NEVER_TRIGGERS.contains(&number) => Err(format!(
            "{text} cannot be used: it never reaches this command as a request"
        )),
        Some(number) => Ok(number),
    }
}

/// `SIGTERM` for 15; `signal 64` for one without a name.
#[must_use]
pub fn name(number: i32) -> String {
    match number {
        9 => "SIGKILL".to_owned(),
        19 => "SIGSTOP".to_owned(),
        _ => NAMES
            .iter()
            .find(|(_, signal)| signal.as_raw() == number)
            .map_or_else(
                || format!("signal {number}"),
                |(name, _)| format!("SIG{name}"),
            ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        for text in ["USR1", "usr1", "SIGUSR1", "sigusr1", "10"] {
            assert_eq!(parse_trigger(text), Ok(10), "{text}");
        }
        assert_eq!(name(15), "SIGTERM");
        assert_eq!(name(40), "signal 40");
    }

    #[test]
    fn what_cannot_trigger_is_refused() {
        for text in ["KILL", "9", "STOP", "CHLD", "0", "65", "-1", "FOO", ""] {
            assert!(parse_trigger(text).is_err(), "{text}");
        }
    }
}
