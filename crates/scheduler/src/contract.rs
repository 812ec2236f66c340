//! What each batch system documents: how a job learns who it is, what warns it, which exit status has it queued again.
//!
//! Sources: Slurm, `sbatch(1)`, `slurm.conf(5)`; HTCondor manual, "Self-Checkpointing Applications"; PBS, `qsub(1B)` and the
//! administrator's guide (`kill_delay`); LSF, `bsub(1)` (`-W`, `-wa`, `-Q`); Grid Engine, `qsub(1)` (`-notify`), `queue_conf(5)`,
//! `submit(1)` (exit status 99).

/// `SIGUSR1` on x86-64, as everywhere but on MIPS, Alpha and SPARC.
const SIGUSR1: i32 = 10;
/// `SIGUSR2`.
const SIGUSR2: i32 = 12;
/// `SIGTERM`.
const SIGTERM: i32 = 15;

/// A batch system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Slurm.
    Slurm,
    /// HTCondor.
    HtCondor,
    /// OpenPBS, PBS Professional, Torque.
    Pbs,
    /// IBM Spectrum LSF.
    Lsf,
    /// Grid Engine: Sun's, Univa's, Altair's, Son of.
    GridEngine,
}

/// What a job can count on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contract {
    /// Signals after which the job is going to be killed.
    pub stop: &'static [i32],
    /// A signal after which it is going to stand still, but lives on.
    pub checkpoint: Option<i32>,
    /// The exit status that says: saved, run me again.
    pub stop_code: u8,
}

/// Who a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its number; of an array the number of the array.
    pub job: String,
    /// Which one of an array it is.
    pub task: Option<String>,
}

impl Identity {
    /// `123`, or `123_4` for a task of an array.
    #[must_use]
    pub fn label(&self) -> String {
        let safe = |text: &str| text.replace(|c: char| c == '/' || c.is_whitespace(), "_");
        match &self.task {
            Some(task) => format!("{}_{}", safe(&self.job), safe(task)),
            None => safe(&self.job),
        }
    }
}

impl System {
    /// All of them.
    pub const ALL: [System; 5] = [
        System::Slurm,
        System::HtCondor,
        System::Pbs,
        System::Lsf,
        System::GridEngine,
    ];

    /// Its contract.
    #[must_use]
    pub fn contract(self) -> Contract {
        match self {
            // SIGTERM, and SIGKILL after KillWait; SIGUSR1 is what job scripts ask for with --signal.
            System::Slurm => Contract {
                stop: &[SIGTERM, SIGUSR1],
                checkpoint: None,
                stop_code: 85,
            },
            // kill_sig is SIGTERM unless the job says otherwise; checkpoint_exit_code = 85 in the manual's examples.
            System::HtCondor => Contract {
                stop: &[SIGTERM],
                checkpoint: None,
                stop_code: 85,
            },
            // SIGTERM, and SIGKILL after kill_delay.
            System::Pbs => Contract {
                stop: &[SIGTERM],
                checkpoint: None,
                stop_code: 85,
            },
            // SIGUSR2 at the run limit, then SIGINT, SIGTERM, SIGKILL; -Q or REQUEUE_EXIT_VALUES names the status.
            System::Lsf => Contract {
                stop: &[SIGUSR2, SIGTERM],
                checkpoint: None,
                stop_code: 85,
            },
            // -notify: SIGUSR2 before SIGKILL, SIGUSR1 before SIGSTOP; 99 has a job queued again.
            System::GridEngine => Contract {
                stop: &[SIGUSR2, SIGTERM],
                checkpoint: Some(SIGUSR1),
                stop_code: 99,
            },
        }
    }

    /// The variables that hold a job's number and its place in an array.
    fn variables(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            System::Slurm => (
                &["SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID"],
                &["SLURM_ARRAY_TASK_ID"],
            ),
            // It sets neither: they are in a file, see below.
            System::HtCondor => (&["CONDOR_CLUSTER_ID"], &["CONDOR_PROC_ID"]),
            System::Pbs => (&["PBS_JOBID"], &["PBS_ARRAY_INDEX", "PBS_ARRAYID"]),
            System::Lsf => (&["LSB_JOBID"], &["LSB_JOBINDEX"]),
            System::GridEngine => (&["JOB_ID"], &["SGE_TASK_ID"]),
        }
    }

    /// Who the job is, by its environment; `None` outside of a job.
    #[must_use]
    pub fn identity(self, variable: impl Fn(&str) -> Option<String>) -> Option<Identity> {
        let (jobs, tasks) = self.variables();
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name));
        let set = |value: &String| !value.is_empty();
        // A job that is not of an array: LSF says 0, Grid Engine says "undefined".
        let none = |value: &String| value == "undefined" || self == System::Lsf && value == "0";
        let named = first(jobs).filter(set);
        if named.is_none() && self == System::HtCondor {
            return advertised(&variable("_CONDOR_JOB_AD")?);
        }
        Some(Identity {
            job: named?,
            task: first(tasks).filter(set).filter(|value| !none(value)),
        })
    }
}

/// Who a job of HTCondor is, by the file that describes it: `ClusterId = 12` and `ProcId = 0`, one on a line.
fn advertised(path: &str) -> Option<Identity> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = |name: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        let (_, value) = pairs.find(|(known, _)| known.trim().eq_ignore_ascii_case(name))?;
        Some(value.trim().to_owned())
    };
    Some(Identity {
        job: value("ClusterId")?,
        task: value("ProcId"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(system: System, variables: &[(&str, &str)]) -> Option<String> {
        let found = system.identity(|name| {
            let hit = variables.iter().find(|(known, _)| *known == name);
            hit.map(|(_, value)| (*value).to_owned())
        });
        found.map(|identity| identity.label())
    }

    #[test]
    fn jobs_know_their_numbers() {
        type Case<'a> = (System, &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case<'_>; 8] = [
            (System::Slurm, &[("SLURM_JOB_ID", "7")], "7"),
            (
                System::Slurm,
                &[
                    ("SLURM_JOB_ID", "9"),
                    ("SLURM_ARRAY_JOB_ID", "7"),
                    ("SLURM_ARRAY_TASK_ID", "3"),
                ],
                "7_3",
            ),
            (
                System::HtCondor,
                &[("CONDOR_CLUSTER_ID", "5"), ("CONDOR_PROC_ID", "0")],
                "5_0",
            ),
            (System::Pbs, &[("PBS_JOBID", "12.head")], "12.head"),
            (
                System::Pbs,
                &[("PBS_JOBID", "12[3].head"), ("PBS_ARRAY_INDEX", "3")],
                "12[3].head_3",
            ),
            (
                System::Lsf,
                &[("LSB_JOBID", "8"), ("LSB_JOBINDEX", "0")],
                "8",
            ),
            (
                System::Lsf,
                &[("LSB_JOBID", "8"), ("LSB_JOBINDEX", "2")],
                "8_2",
            ),
            (
                System::GridEngine,
                &[("JOB_ID", "4"), ("SGE_TASK_ID", "undefined")],
                "4",
            ),
        ];
        for (system, variables, label) in cases {
            assert_eq!(identity(system, variables).as_deref(), Some(label));
        }
        for system in System::ALL {
            assert_eq!(identity(system, &[("HOME", "/")]), None, "{system:?}");
        }
    }

    #[test]
    fn a_job_of_htcondor_reads_who_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "Cmd = \"x\"\nProcId = 3\nClusterId = 12\n").unwrap();
        let path = file.path().to_string_lossy().into_owned();
        let found = identity(System::HtCondor, &[("_CONDOR_JOB_AD", &path)]);
        assert_eq!(found.as_deref(), Some("12_3"));
        assert_eq!(
            identity(System::HtCondor, &[("_CONDOR_JOB_AD", "/none")]),
            None
        );
    }

    #[test]
    fn every_system_warns_before_it_kills() {
        for system in System::ALL {
            let contract = system.contract();
            assert!(contract.stop.contains(&SIGTERM), "{system:?}");
            assert!(contract.stop_code > 0);
            assert!(
                contract
                    .checkpoint
                    .is_none_or(|signal| !contract.stop.contains(&signal))
            );
        }
        assert_eq!(System::GridEngine.contract().stop_code, 99);
        assert_eq!(System::HtCondor.contract().stop_code, 85);
        assert_eq!(System::Lsf.contract().stop[0], SIGUSR2);
    }
}
