//! A job of a batch system: what `run --scheduler` sets, and what becomes of the job at the end of a run.
//!
//! What is done is made of ordinary options of `run`; here they get their values from the batch system. Each job, and each
//! task of an array, has a directory of its own, `stasis-JOBID`, in which its next run finds what the last one has left.

pub mod journal;
mod record;
mod slurm;

use crate::cli::{JobOptions, Often};
use crate::commands::{Failure, hold};
use crate::output;
use clap::{Args, ValueEnum};
use record::{Owner, Slot, explained};
use stasis_engine::tree::Stat;
use stasis_scheduler::{Identity, System};
use stasis_supervisor::{Interval, JobName, line::Why};
use stasis_sys::{Pid, signal};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `run` for jobs of a batch system.
#[derive(Debug, Args)]
pub struct BatchOptions {
    /// Run as a job of Slurm: the same as --scheduler slurm
    #[arg(long, conflicts_with = "scheduler")]
    pub slurm: bool,
    /// Run as a job of this batch system: continue what an earlier run of the job has left, save in time before the job is
    /// ended, and, under Slurm, queue it again
    #[arg(long, value_enum, value_name = "SYSTEM")]
    pub scheduler: Option<SystemName>,
    /// Under Slurm: queue the job again when its time was up, at most N times in all (without N as often as Slurm allows;
    /// the default unless --stop-code is given)
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, conflicts_with = "no_requeue")]
    pub requeue: Option<Option<u32>>,
    /// Under Slurm: never queue the job again
    #[arg(long)]
    pub no_requeue: bool,
    /// As a job of a batch system: keep the checkpoints when the program has ended with status 0
    #[arg(long)]
    pub keep_after_success: bool,
    /// As a job of a batch system: pay no heed to what a job of another number has left
    #[arg(long)]
    pub fresh: bool,
}

/// Names of batch systems.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SystemName {
    /// Slurm
    Slurm,
    /// HTCondor, with checkpoint_exit_code = 85
    Htcondor,
    /// OpenPBS, PBS Professional, Torque
    Pbs,
    /// LSF, submitted with -Q 85
    Lsf,
    /// Grid Engine, submitted with -notify
    Sge,
}

impl BatchOptions {
    /// The batch system, where one was named.
    pub fn system(&self) -> Option<System> {
        let named = self.scheduler.or(self.slurm.then_some(SystemName::Slurm));
        named.map(|name| match name {
            SystemName::Slurm => System::Slurm,
            SystemName::Htcondor => System::HtCondor,
            SystemName::Pbs => System::Pbs,
            SystemName::Lsf => System::Lsf,
            SystemName::Sge => System::GridEngine,
        })
    }
}

/// How often a job is saved where nobody says: the warning of its end may never come.
const INTERVAL_SECONDS: u64 = 600;

/// A job of a batch system, before and after its run.
pub struct Batch {
    directory: PathBuf,
    name: JobName,
    slot: Slot,
    slurm: Option<slurm::Run>,
    /// Processes between the batch system and this command.
    ancestors: Vec<Pid>,
}

/// What to do with a job.
pub enum Prepared {
    /// It is to be run.
    Run(Box<Batch>),
    /// An earlier run has finished it.
    Finished,
}

impl Batch {
    /// Finds out who the job is and sets the options accordingly.
    pub fn prepare(
        system: System,
        options: &BatchOptions,
        job: &mut JobOptions,
        command: &[String],
    ) -> Result<Prepared, Failure> {
        let variable = |name: &str| std::env::var(name).ok();
        let identity = system.identity(variable).ok_or_else(|| {
            Failure::own(format!(
                "this is no job of {}, as its variables are not set; outside of a job, use stasis run --resume",
                system_name(system)
            ))
        })?;
        let contract = system.contract();
        let slurm = (system == System::Slurm).then(|| slurm::Run::new(options, job));
        let directory = own_directory(job, &identity, slurm.as_ref(), options.fresh)?;
        let wanted = wanted_name(job, command, slurm.as_ref())?;
        let (name, slot) = Slot::choose(&directory, &wanted, command)?;
        if let Some(at) = slot.finished_at {
            output::message(&format!(
                "{name} has finished, on {}: it is not started again (to have it run anew, remove {})",
                output::local_time(at),
                directory.display()
            ));
            return Ok(Prepared::Finished);
        }
        slot.note(&directory, &name)?;
        let ancestors = ancestors();
        for signal in contract.stop {
            if !job.stop_signal.contains(signal) {
                job.stop_signal.push(*signal);
            }
        }
        job.checkpoint_signal = job.checkpoint_signal.or(contract.checkpoint);
        let usual = Interval::from_seconds(INTERVAL_SECONDS).map(Often::Every);
        job.interval = job.interval.or(usual);
        job.stop_code = job.stop_code.or(Some(contract.stop_code));
        job.remove_after_success = !options.keep_after_success;
        job.directory = Some(directory.clone());
        job.name = Some(name.clone());
        job.shield = true;
        job.log = true;
        job.strangers = ancestors.iter().map(|pid| pid.0).collect();
        if let Some(slurm) = &slurm {
            slurm.set(job, !ancestors.is_empty());
        }
        Ok(Prepared::Run(Box::new(Batch {
            directory,
            name,
            slot,
            slurm,
            ancestors,
        })))
    }

    /// What the log begins with.
    pub fn opening(&self, interval: Option<Often>) -> String {
        let interval = interval.map_or_else(String::new, |often| {
            let often = match often {
                Often::Every(interval) => format!("every {interval}"),
                Often::Auto => "as often as pays".to_owned(),
            };
            format!("; a checkpoint {often}, in {}", self.directory.display())
        });
        let who = self
            .slurm
            .as_ref()
            .map_or_else(String::new, slurm::Run::opening);
        format!("{who}{interval}")
    }

    /// Notes a success.
    pub fn finished(&mut self) {
        self.slot.finished_at = Some(jiff::Timestamp::now());
        if let Err(failure) = self.slot.note(&self.directory, &self.name) {
            output::message(&format!(
                "the job's end could not be noted: {}",
                failure.message
            ));
        }
    }

    /// What a failed restart means for the job: said once, at its end.
    pub fn refused(&self, message: &str) -> String {
        let where_it_ran = self
            .slurm
            .as_ref()
            .and_then(|slurm| slurm.where_it_ran(&self.directory));
        match where_it_ran.filter(|_| message.contains("processor")) {
            Some(hint) => format!("{message}\n{hint}"),
            None => message.to_owned(),
        }
    }

    /// Sees to it that the job goes on another time, when it was saved because it has to end; gives the exit status.
    pub fn end(&self, why: Why, code: u8, journal: &mut journal::Journal) -> ExitCode {
        if why != Why::Request
            && let Some(slurm) = &self.slurm
        {
            slurm.requeue(journal);
        }
        // The shell that started this command was kept from the signal that ends it: it is not to go on with the script.
        if let Why::Signal(number) = why
            && number == hold::SIGTERM
        {
            for pid in &self.ancestors {
                let _ = signal::send(*pid, number);
            }
        }
        ExitCode::from(code)
    }
}

fn system_name(system: System) -> &'static str {
    match system {
        System::Slurm => "Slurm",
        System::HtCondor => "HTCondor",
        System::Pbs => "PBS",
        System::Lsf => "LSF",
        System::GridEngine => "Grid Engine",
    }
}

/// The processes above this one that belong to the same user, up to the batch system's own.
fn ancestors() -> Vec<Pid> {
    let user = rustix::process::geteuid().as_raw();
    let owner = |pid: Pid| {
        std::fs::metadata(format!("/proc/{pid}"))
            .ok()
            .map(|data| data.uid())
    };
    let mut found = Vec::new();
    let mut at = Pid::current();
    while let Some(stat) = Stat::read(at) {
        let parent = stat.parent;
        let Some(above) = Stat::read(parent).filter(|_| parent.0 > 1) else {
            break;
        };
        if owner(parent) != Some(user) || above.comm.starts_with("slurmstepd") {
            break;
        }
        found.push(parent);
        at = parent;
    }
    found
}

/// The name for the job's checkpoints: of several tasks of one step each has its own.
fn wanted_name(
    job: &JobOptions,
    command: &[String],
    slurm: Option<&slurm::Run>,
) -> Result<JobName, Failure> {
    let plain = match &job.name {
        Some(name) => name.clone(),
        None => JobName::of_program(command.first().map_or("", String::as_str).as_ref()),
    };
    match slurm.and_then(slurm::Run::task) {
        Some(task) => format!("{plain}.task{task}").parse().map_err(Failure::own),
        None => Ok(plain),
    }
}

/// The job's directory, made where it is missing; or that of the job whose work it is, submitted again.
fn own_directory(
    job: &JobOptions,
    identity: &Identity,
    slurm: Option<&slurm::Run>,
    fresh: bool,
) -> Result<PathBuf, Failure> {
    let base = job.directory(Path::new("."))?;
    let own = base.join(format!("stasis-{}", identity.label()));
    let now = std::env::current_dir()
        .map_err(|error| Failure::own(format!("the current directory: {}", explained(&error))))?;
    let mut owner = Owner {
        job: slurm.map_or_else(|| identity.job.clone(), |slurm| slurm.id().to_owned()),
        task: identity.task.clone(),
        name: slurm.map_or_else(String::new, |slurm| slurm.job_name().to_owned()),
        directory: now,
        nodes: Vec::new(),
    };
    if !own.exists()
        && !fresh
        && let Some(slurm) = slurm
        && let Some(left) = slurm.left_behind(&base, &owner)
        && std::fs::rename(&left, &own).is_ok()
    {
        output::message(&format!(
            "this job goes on with what {} has left (--fresh starts anew)",
            left.file_name().unwrap_or_default().to_string_lossy()
        ));
    }
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&own);
    made.map_err(|error| {
        Failure::own(format!(
            "making the checkpoint directory {}: {}",
            own.display(),
            explained(&error)
        ))
    })?;
    owner.nodes = Owner::of(&own)?
        .map(|known| known.nodes)
        .unwrap_or_default();
    let node = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let node = slurm.and_then(slurm::Run::node).unwrap_or(node);
    owner.nodes.retain(|known| *known != node);
    owner.nodes.push(node);
    owner.note(&own)?;
    Ok(own)
}
