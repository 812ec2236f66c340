//! What `scontrol show job` tells, and what follows from it for a job that had to stop.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::time::{Duration, SystemTime};

/// A job as the controller sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// `RUNNING`, `COMPLETING`, `CANCELLED` and so on.
    pub state: String,
    /// When it is going to be ended; none where it has no limit.
    pub end: Option<SystemTime>,
    /// When its time limit is reached.
    pub limit: Option<SystemTime>,
    /// When it was submitted.
    pub submitted: Option<SystemTime>,
    /// How often it was queued again.
    pub restarts: u32,
    /// Whether it may be queued again.
    pub may_requeue: bool,
    /// 0 for one that is no batch job; else 1 and one more for each time that Slurm itself has queued it again.
    pub batch: u32,
    /// Its name.
    pub name: String,
    /// The file that its standard output goes to.
    pub stdout: Option<String>,
}

/// The value of a field of `scontrol -o`: `Name=value`, up to the next blank.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_ascii_whitespace().find_map(|word| {
        let (known, value) = word.split_once('=')?;
        (known == name).then_some(value)
    })
}

/// A job from one line of `scontrol show job -o`; `None` where the line is not of a job.
#[must_use]
pub fn parse_job(text: &str) -> Option<Job> {
    let field = |name| field(text, name);
    let number = |name| field(name).and_then(|value| value.parse().ok());
    Some(Job {
        state: field("JobState")?.to_owned(),
        end: field("EndTime").and_then(moment),
        limit: field("StartTime")
            .and_then(moment)
            .and_then(|start| start.checked_add(length(field("TimeLimit")?)?)),
        submitted: field("SubmitTime").and_then(moment),
        restarts: number("Restarts").unwrap_or(0),
        may_requeue: field("Requeue") == Some("1"),
        batch: number("BatchFlag").unwrap_or(0),
        name: field("JobName").unwrap_or_default().to_owned(),
        stdout: field("StdOut").map(str::to_owned),
    })
}

/// `2026-11-21T15:53:36`, in the host's time zone; `None` for `Unknown`, `N/A` and their like.
fn moment(text: &str) -> Option<SystemTime> {
    let civil: DateTime = text.parse().ok()?;
    let zoned = civil.to_zoned(TimeZone::system()).ok()?;
    Some(SystemTime::from(zoned.timestamp()))
}

/// `[DAYS-]HOURS:MINUTES:SECONDS`; `None` for `UNLIMITED`.
fn length(text: &str) -> Option<Duration> {
    let (days, rest) = text.split_once('-').unwrap_or(("0", text));
    let parts: Vec<u64> = rest
        .split(':')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let [hours, minutes, seconds] = parts.try_into().ok()?;
    let hours = days
        .parse::<u64>()
        .ok()?
        .checked_mul(24)?
        .checked_add(hours)?;
    let minutes = hours.checked_mul(60)?.checked_add(minutes)?;
    Some(Duration::from_secs(
        minutes.checked_mul(60)?.checked_add(seconds)?,
    ))
}

/// What becomes of a job that was saved because its time was up, or because it was told to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has to be queued again by itself.
    Requeue,
    /// Slurm has queued it again already.
    Requeued,
    /// It is not queued again; why, and what the user can do.
    Stays(String),
}

/// Whether it was told to end before its time: what the controller shows of a cancelled job until its last process is gone.
fn is_ended_early(job: &Job, now: SystemTime) -> bool {
    job.state == "COMPLETING" && job.limit.is_none_or(|limit| now < limit)
}

/// Decides, at the moment `now`. `run` is how often it had been queued again when this run began, `limit` how often it may be, `most` is
/// `MaxBatchRequeue`.
#[must_use]
pub fn verdict(
    job: &Job,
    now: SystemTime,
    run: u32,
    limit: Option<u32>,
    most: Option<u32>,
) -> Verdict {
    let stays = |why: String| Verdict::Stays(why);
    if job.restarts > run {
        return Verdict::Requeued;
    }
    if job.state.starts_with("CANCELLED") || is_ended_early(job, now) {
        return stays("the job was cancelled: submit it again to continue".into());
    }
    if job.state.starts_with("PREEMPTED") {
        return stays(
            "the job was preempted and is not queued again: submit it again to continue".into(),
        );
    }
    if job.batch == 0 {
        return stays("it is no batch job, and only those are queued again".into());
    }
    if !job.may_requeue {
        return stays("the job may not be queued again: submit it with --requeue".into());
    }
    if let Some(limit) = limit.filter(|limit| job.restarts >= *limit) {
        return stays(format!(
            "the job was queued again {limit} times, as often as --requeue allows: submit it again to continue"
        ));
    }
    if let Some(most) = most.filter(|most| job.batch > *most) {
        return stays(format!(
            "Slurm has queued the job again {most} times after failures, as often as MaxBatchRequeue allows: submit it again to continue"
        ));
    }
    Verdict::Requeue
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "JobId=2 JobName=limB UserId=u(1001) Requeue=1 Restarts=1 BatchFlag=1 Reboot=0 ExitCode=0:0 \
        JobState=RUNNING Reason=None RunTime=00:00:02 TimeLimit=00:01:00 SubmitTime=2026-11-21T15:52:35 \
        StartTime=2026-11-21T15:52:36 EndTime=2026-11-21T15:53:36 Deadline=N/A StdOut=/tmp/slurm-2.out";

    #[test]
    fn a_job_is_read() {
        let job = parse_job(LINE).unwrap();
        assert_eq!(
            (job.state.as_str(), job.restarts, job.batch),
            ("RUNNING", 1, 1)
        );
        assert!(job.may_requeue);
        assert_eq!(job.stdout.as_deref(), Some("/tmp/slurm-2.out"));
        let lasts = job
            .end
            .unwrap()
            .duration_since(job.submitted.unwrap())
            .unwrap();
        assert_eq!(lasts.as_secs(), 61);
        let endless = parse_job("JobState=RUNNING EndTime=Unknown").unwrap();
        assert_eq!((endless.end, endless.limit), (None, None));
        let hours = |text| length(text).map(|length| length.as_secs() / 3600);
        assert_eq!(
            (hours("2-01:30:00"), hours("48:00:00"), hours("UNLIMITED")),
            (Some(49), Some(48), None)
        );
        assert_eq!(parse_job("slurm_load_jobs error: Invalid job id"), None);
    }

    #[test]
    fn only_what_may_be_queued_again_is() {
        let job = parse_job(LINE).unwrap();
        let end = job.limit.unwrap();
        let decide = |job: &Job, limit| verdict(job, end, 1, limit, Some(5));
        assert_eq!(decide(&job, None), Verdict::Requeue);
        assert_eq!(decide(&job, Some(2)), Verdict::Requeue);
        assert_eq!(verdict(&job, end, 0, None, None), Verdict::Requeued);
        let completing = Job {
            state: "COMPLETING".into(),
            ..job.clone()
        };
        assert_eq!(
            decide(&completing, None),
            Verdict::Requeue,
            "its time is up"
        );
        let early = end - Duration::from_secs(1);
        assert!(matches!(
            verdict(&completing, early, 1, None, None),
            Verdict::Stays(_)
        ));
        let stays = |job: Job, limit, word: &str| match decide(&job, limit) {
            Verdict::Stays(why) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        };
        let with = |change: fn(&mut Job)| {
            let mut job = job.clone();
            change(&mut job);
            job
        };
        stays(job.clone(), Some(1), "--requeue");
        stays(
            with(|job| job.state = "CANCELLED".into()),
            None,
            "cancelled",
        );
        stays(with(|job| job.may_requeue = false), None, "--requeue");
        stays(with(|job| job.batch = 0), None, "no batch job");
        stays(with(|job| job.batch = 6), None, "MaxBatchRequeue");
    }
}
