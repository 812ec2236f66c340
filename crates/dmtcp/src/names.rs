//! Names of images: `ckpt_<program>_<computation>-<number>-<time>.dmtcp`.

use stasis_supervisor::JobName;
use std::ffi::OsStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// How names of images end.
pub(crate) const ENDING: &str = ".dmtcp";
/// The first number of a member, and how far they are apart.
const FIRST: u64 = 40_000;
const STEP: u64 = 1_000;

/// The program's name in lists and names of images.
pub(crate) fn program(argument: &OsStr) -> String {
    JobName::of_program(argument).to_string()
}

/// The name of a new job, which is also the name of its images.
pub(crate) fn job(
    program: &str,
    computation: &str,
    number: u64,
) -> Result<JobName, stasis_supervisor::BadName> {
    let number = FIRST + STEP * number.saturating_sub(1);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let with =
        |program: &str| format!("ckpt_{program}_{computation}-{number}-{:x}", now.as_nanos());
    with(program).parse().or_else(|_| with("job").parse())
}

/// What a list shows of a job: the part of its name that no other has.
pub(crate) fn unique_part(name: &str) -> &str {
    name.rsplit_once('_').map_or(name, |(_, last)| last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_like_its_images() {
        let name = job("count", "7b1f03a2", 2).unwrap().to_string();
        let rest = name.strip_prefix("ckpt_count_7b1f03a2-41000-").unwrap();
        assert!(u128::from_str_radix(rest, 16).is_ok(), "{name}");
        assert_eq!(
            unique_part(&name),
            name.strip_prefix("ckpt_count_").unwrap()
        );
        let long = job(&"ä".repeat(100), "7b1f03a2", 1).unwrap().to_string();
        assert!(long.len() <= 200 && long.starts_with("ckpt_job_"), "{long}");
    }
}
