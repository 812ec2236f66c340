//! Slurm's part of a batch job.

use super::BatchOptions;
use super::journal::Journal;
use super::record::{Owner, last_use};
use crate::cli::JobOptions;
use crate::output;
use stasis_engine::host;
use stasis_scheduler::Installed;
use stasis_scheduler::slurm::{Job, Slurm, Verdict, verdict, warning_signal};
use stasis_supervisor::{Deadline, signal_name};
use stasis_sys::signal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How early Slurm may send the signal of `--signal`, beyond the time that was asked for (`sbatch(1)`), and a little.
const EARLY: Duration = Duration::from_secs(75);
/// For how long the controller is asked to queue the job again.
const ATTEMPTS: u32 = 4;
/// After the controller has queued the job again it ends this run, sooner or later.
const UNTIL_ENDED: Duration = Duration::from_secs(90);
/// Between questions to a controller that did not answer, and from SIGTERM to the end.
const PAUSE: Duration = Duration::from_secs(3);

/// One run of a job.
pub(super) struct Run {
    id: String,
    /// How often the job had been queued again when this run began.
    restarts: u32,
    /// None where the controller did not answer.
    job: Option<Job>,
    /// Queue it again, at most so many times; none where that is not wanted.
    requeue: Option<Option<u32>>,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str) -> Option<u32> {
    variable(name)?.parse().ok()
}

impl Run {
    pub(super) fn new(options: &BatchOptions, job: &JobOptions) -> Run {
        let id = variable("SLURM_JOB_ID").unwrap_or_default();
        let known = Slurm::new(Installed::default(), &id).job();
        let known = known.inspect_err(|error| {
            output::message(&format!(
                "the job's time limit is not known, periodic checkpoints have to do: {error}"
            ));
        });
        let by_default = job.stop_code.is_none() && !options.no_requeue;
        Run {
            id,
            restarts: number("SLURM_RESTART_COUNT").unwrap_or(0),
            job: known.ok(),
            requeue: options.requeue.or(by_default.then_some(None)),
        }
    }

    fn slurm(&self) -> Slurm<Installed> {
        Slurm::new(Installed::default(), &self.id)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn job_name(&self) -> &str {
        self.job.as_ref().map_or("", |job| job.name.as_str())
    }

    pub(super) fn node(&self) -> Option<String> {
        variable("SLURMD_NODENAME")
    }

    /// Which task of a step with several this is.
    pub(super) fn task(&self) -> Option<u32> {
        number("SLURM_STEP_ID")?;
        number("SLURM_STEP_NUM_TASKS").filter(|tasks| *tasks > 1)?;
        number("SLURM_PROCID")
    }

    /// Signals and the end.
    pub(super) fn set(&self, job: &mut JobOptions, below_a_shell: bool) {
        let asked = self.slurm_signal();
        if let Some((signal, _)) = &asked
            && !job.stop_signal.contains(signal)
        {
            job.stop_signal.push(*signal);
        }
        // A shell that cannot be kept from the signal dies of it, and the job with it: it must be saved before.
        let unshielded = below_a_shell && host::may_not_trace_ancestors();
        let least = asked
            .filter(|_| unshielded)
            .map(|(_, before)| before + EARLY);
        let commands = self.slurm();
        let known = self.job.as_ref().and_then(|job| job.end);
        let fallback = variable("SLURM_JOB_END_TIME").and_then(|text| text.parse().ok());
        let fallback =
            fallback.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        if job.deadline_source.is_none() {
            job.deadline_source = Some(Deadline {
                look_up: Arc::new(move || match commands.job() {
                    Ok(job) => job.end,
                    Err(_) => known.or(fallback),
                }),
                margin: job.margin.map(stasis_supervisor::Interval::duration),
                least,
            });
        }
    }

    /// The signal that the script asks for, and how long before the end.
    fn slurm_signal(&self) -> Option<(i32, Duration)> {
        let script = self.slurm().script().ok()?;
        let (name, before) = warning_signal(&script)?;
        let number = signal_name::parse_trigger(&name).ok()?;
        Some((number, before))
    }

    pub(super) fn opening(&self) -> String {
        let node = self
            .node()
            .map_or_else(String::new, |node| format!(" on {node}"));
        let end = match &self.job {
            Some(Job { end: Some(end), .. }) => jiff::Timestamp::try_from(*end).map_or_else(
                |_| String::new(),
                |end| format!(", until {}", output::local_time(end)),
            ),
            Some(_) => ", without a time limit".to_owned(),
            None => String::new(),
        };
        format!("job {}{node}, run {}{end}", self.id, self.restarts + 1)
    }

    /// The directory of an earlier job that was the same work, has not finished and is over, where this job was submitted
    /// after that.
    pub(super) fn left_behind(&self, base: &Path, own: &Owner) -> Option<PathBuf> {
        let submitted = self.job.as_ref()?.submitted?;
        let candidates = std::fs::read_dir(base).ok()?.flatten().filter_map(|entry| {
            let path = entry.path();
            let named = entry.file_name().to_string_lossy().starts_with("stasis-");
            let owner = Owner::of(&path).ok().flatten().filter(|_| named)?;
            let used = last_use(&path)?;
            let ours = owner.is_same_work(own) && owner.job != own.job && used <= submitted;
            ours.then_some((used, path, owner.job))
        });
        let mut candidates: Vec<_> = candidates.filter(|(_, path, _)| has_image(path)).collect();
        candidates.sort();
        let (_, path, job) = candidates.pop()?;
        (self.slurm().is_active(&job) == Ok(false)).then_some(path)
    }

    /// Which nodes have what a checkpoint needs of the processor: those that it ran on.
    pub(super) fn where_it_ran(&self, directory: &Path) -> Option<String> {
        let nodes = Owner::of(directory).ok()??.nodes;
        let here = self.node();
        let node = nodes
            .iter()
            .rev()
            .find(|node| Some(*node) != here.as_ref())?;
        let features = self.slurm().features(node).unwrap_or_default();
        let ask = match features.as_slice() {
            [] => format!("--nodelist={node}"),
            features => format!("--constraint=\"{}\"", features.join("&")),
        };
        Some(format!(
            "the job ran on {node} before: ask for a node like it, with scontrol update or sbatch {ask}"
        ))
    }

    /// Has the job queued again, where that is wanted and possible, and waits for the end of this run.
    pub(super) fn requeue(&self, journal: &mut Journal) {
        let Some(limit) = self.requeue else {
            return;
        };
        let slurm = self.slurm();
        for attempt in 1..=ATTEMPTS {
            let asked = slurm.job().and_then(|job| {
                let most = slurm.most_requeues()?;
                let verdict = verdict(&job, SystemTime::now(), self.restarts, limit, most);
                if verdict == Verdict::Requeue {
                    slurm.requeue()?;
                }
                Ok(verdict)
            });
            match asked {
                Ok(Verdict::Requeue) => {
                    journal.say("the job is queued again, and continues from there");
                    wait_for_the_end();
                    return;
                }
                Ok(Verdict::Requeued) => {
                    journal.say("Slurm queues the job again; it continues from there");
                    return;
                }
                Ok(Verdict::Stays(why)) => {
                    journal.say(&format!("not queued again: {why}"));
                    return;
                }
                Err(error) if attempt == ATTEMPTS => journal.say(&format!(
                    "the job could not be queued again ({error}): do so with scontrol requeue {}",
                    self.id
                )),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

/// Waits until Slurm ends this run: the script must not go on as if the program had finished. A shell that has died already is
/// the end of the run as well.
fn wait_for_the_end() {
    let parent = rustix::process::getppid();
    let since = Instant::now();
    while since.elapsed() < UNTIL_ENDED && rustix::process::getppid() == parent {
        if signal::is_pending(super::hold::SIGTERM) {
            thread::sleep(PAUSE);
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn has_image(directory: &Path) -> bool {
    stasis_image::scan(directory, None).is_ok_and(|images| !images.is_empty())
}
