//! Names of jobs. A name becomes part of file names and of lines in tables.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Longest name in bytes: with the number and the endings, a file name stays under the 255 that file systems allow.
const LONGEST: usize = 200;

/// The name of a job: not empty, no slash, no blank or control characters, no dot or hyphen in front, and not a
/// number (a number is a process id wherever a job is asked for).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobName(String);

/// A text that cannot be a job's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be the name of a job: {1}")]
pub struct BadName(String, &'static str);

impl JobName {
    /// The name that a job gets when nobody gives it one: the file name of its program, with what a name cannot hold
    /// replaced.
    #[must_use]
    pub fn of_program(program: &OsStr) -> JobName {
        let file = Path::new(program).file_name().unwrap_or(program);
        let mut name = String::new();
        for c in file.to_string_lossy().chars() {
            let c = if allowed(c) { c } else { '_' };
            if name.len() + c.len_utf8() > LONGEST {
                break;
            }
            name.push(c);
        }
        if name.starts_with(['.', '-']) {
            name.replace_range(..1, "_");
        }
        name.parse().unwrap_or_else(|_| JobName("job".to_owned()))
    }
    /// The same name with a number, for a second job.
    #[must_use]
    pub fn numbered(&self, number: u32) -> JobName {
        JobName(format!("{}-{number}", self.0))
    }
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn allowed(c: char) -> bool {
    !(c == '/' || c.is_control() || c.is_whitespace())
}

impl FromStr for JobName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why| Err(BadName(text.to_owned(), why));
        if text.is_empty() {
            return bad("it is empty");
        }
        if text.len() > LONGEST {
            return bad("it is longer than 200 bytes");
        }
        if text.starts_with(['.', '-']) {
            return bad("it starts with a dot or a hyphen");
        }
        if !text.chars().all(allowed) {
            return bad("it holds a slash, a blank or a control character");
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return bad("a number is taken for a process id");
        }
        Ok(JobName(text.to_owned()))
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gives_its_file_name() {
        let name = |program: &str| JobName::of_program(OsStr::new(program)).0;
        assert_eq!(name("/usr/bin/python3"), "python3");
        assert_eq!(name("./a b"), "a_b");
        assert_eq!(name(".hidden"), "_hidden");
        assert_eq!(name("-sh"), "_sh");
        assert_eq!(name("/"), "_");
        assert_eq!(name("7"), "job");
        assert_eq!(name(&"x".repeat(300)).len(), LONGEST);
    }

    #[test]
    fn names_that_would_confuse_are_refused() {
        for text in ["", "a/b", "..", "-x", "a b", "a\nb", "123"] {
            assert!(text.parse::<JobName>().is_err(), "{text:?}");
        }
        assert!("md-run.1".parse::<JobName>().is_ok());
    }
}
