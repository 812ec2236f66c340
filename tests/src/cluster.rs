//! A private Slurm on this host: munged, slurmctld and a slurmd for each of some nodes, all in one directory.
//!
//! It needs root, as slurmd starts jobs as their users. Jobs are submitted as the ordinary user of a [`Sandbox`].

use crate::sandbox::{Sandbox, User};
use crate::{descendants, processes, wait_until};
use rustix::process::Signal;
use std::cell::RefCell;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// The nodes, each with 16 processors, and the partitions: `NAME=NODES[,GRACE]`. In `high` nothing is preempted, and what is in
/// the others gives way to it.
const NODES: u32 = 6;

/// A running cluster. Dropping it kills every process that it has started.
#[derive(Debug)]
pub struct Cluster {
    root: PathBuf,
    daemons: Mutex<Vec<(String, Child)>>,
}

/// A job that was submitted.
#[derive(Debug)]
pub struct SlurmJob<'a> {
    cluster: &'a Cluster,
    sandbox: &'a Sandbox,
    /// Its number.
    pub id: String,
    /// After which of its restarts it was told to start soon.
    hurried: RefCell<String>,
}

impl Cluster {
    /// Starts one; or tells why that is not possible here.
    ///
    /// # Errors
    /// What is missing.
    pub fn start() -> Result<Cluster, String> {
        if User::current().uid != 0 {
            return Err("a private Slurm needs root".into());
        }
        for program in ["munged", "slurmctld", "slurmd", "sbatch", "scontrol"] {
            if !crate::installed(program) {
                return Err(format!("{program} is not installed"));
            }
        }
        processes::adopt_orphans();
        let root = tempfile::Builder::new()
            .prefix("stasis-slurm-")
            .tempdir()
            .map_err(|error| error.to_string())?
            .keep();
        let cluster = Cluster {
            root,
            daemons: Mutex::default(),
        };
        cluster.prepare();
        cluster.daemon(
            "munged",
            &[
                "--foreground",
                "--force",
                "--socket=ROOT/munge.sock",
                "--key-file=ROOT/munge.key",
                "--pid-file=ROOT/munged.pid",
                "--log-file=ROOT/munged.log",
                "--seed-file=ROOT/munge.seed",
            ],
        );
        wait_until("munged listens", || {
            cluster.root.join("munge.sock").exists().then_some(())
        });
        cluster.daemon("slurmctld", &["-D", "-f", "ROOT/slurm.conf"]);
        for node in 1..=NODES {
            cluster.start_node(&format!("n{node}"));
        }
        wait_until("all nodes are idle", || {
            let states = cluster.try_admin("sinfo", &["-h", "-N", "-o", "%N %t"])?;
            let idle = |line: &str| line.ends_with(" idle");
            (states.lines().count() >= NODES as usize && states.lines().all(idle)).then_some(())
        });
        Ok(cluster)
    }

    fn prepare(&self) {
        let open = |path: &Path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
                .expect("opening it to all");
        };
        open(&self.root);
        for name in ["state", "spool"] {
            fs::create_dir(self.root.join(name)).expect("a directory of the cluster");
        }
        let key = self.root.join("munge.key");
        let random = fs::File::open("/dev/urandom").expect("/dev/urandom");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(random, 1024), &mut bytes)
            .expect("a key");
        fs::write(&key, bytes).expect("writing the key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).expect("closing the key");
        // Held until all are known, so that they differ.
        let listeners: Vec<TcpListener> = (0..=NODES)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"))
            .collect();
        let ports: Vec<u16> = listeners
            .iter()
            .map(|listener| listener.local_addr().expect("its number").port())
            .collect();
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let host = host.split('.').next().unwrap_or("localhost");
        let root = self.root.display();
        let mut text = format!(
            "ClusterName=stasis-test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\n\
             AuthInfo=socket={root}/munge.sock\nSlurmctldPort={}\nStateSaveLocation={root}/state\nSlurmdSpoolDir={root}/spool/%n\n\
             SlurmctldPidFile={root}/slurmctld.pid\nSlurmdPidFile={root}/slurmd-%n.pid\nSlurmctldLogFile={root}/slurmctld.log\n\
             SlurmdLogFile={root}/slurmd-%n.log\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSwitchType=switch/none\n\
             JobAcctGatherType=jobacct_gather/none\nMpiDefault=none\nReturnToService=2\nSchedulerType=sched/backfill\n\
             SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nPreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n\
             KillWait=30\nInactiveLimit=0\nMinJobAge=600\nSlurmdTimeout=120\nTreeWidth=65533\n\
             SlurmdParameters=config_overrides\nJobFileAppend=0\n",
            ports[0]
        );
        for (node, port) in (1..=NODES).zip(&ports[1..]) {
            text += &format!(
                "NodeName=n{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=8000 Feature=kind{node}\n"
            );
        }
        let low = "PriorityTier=1 PreemptMode=REQUEUE State=UP";
        text += &format!(
            "PartitionName=low Nodes=n[3-6] Default=YES {low} GraceTime=0\n\
             PartitionName=grace Nodes=n[3-6] {low} GraceTime=5\n\
             PartitionName=pair Nodes=n[1-2] {low} GraceTime=0\n\
             PartitionName=high Nodes=n[1-6] PriorityTier=10 PreemptMode=OFF State=UP\n"
        );
        fs::write(self.root.join("slurm.conf"), text).expect("writing slurm.conf");
    }

    fn start_node(&self, node: &str) {
        self.daemon("slurmd", &["-D", "-N", node, "-f", "ROOT/slurm.conf"]);
    }

    /// Starts a daemon in the foreground, as a child; `ROOT` stands for the cluster's directory.
    fn daemon(&self, program: &str, arguments: &[&str]) {
        let root = self.root.to_string_lossy();
        let arguments: Vec<String> = arguments
            .iter()
            .map(|word| word.replace("ROOT", &root))
            .collect();
        let said = fs::File::create(self.root.join(format!("{program}.said"))).expect("a file");
        let mut command = self.as_root(program);
        command.args(&arguments).stdout(Stdio::null()).stderr(said);
        let child =
            processes::spawn(&mut command).unwrap_or_else(|error| panic!("{program}: {error}"));
        let name = format!("{program} {}", arguments.join(" "));
        self.daemons().push((name, child));
    }

    fn daemons(&self) -> std::sync::MutexGuard<'_, Vec<(String, Child)>> {
        match self.daemons.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn as_root(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", crate::sandbox::PROGRAM_PATH)
            .env("SLURM_CONF", self.conf())
            .stdin(Stdio::null());
        command
    }

    /// Its configuration file.
    #[must_use]
    pub fn conf(&self) -> String {
        self.root.join("slurm.conf").to_string_lossy().into_owned()
    }

    fn try_admin(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let output = self.as_root(program).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    }

    /// Runs a command as the administrator.
    ///
    /// # Panics
    /// When it fails.
    pub fn admin(&self, program: &str, arguments: &[&str]) -> String {
        wait_until(&format!("{program} {arguments:?} succeeds"), || {
            self.try_admin(program, arguments)
        })
    }

    /// Submits a script as the sandbox's user.
    ///
    /// # Panics
    /// When that fails.
    pub fn submit<'a>(
        &'a self,
        sandbox: &'a Sandbox,
        options: &[&str],
        body: &str,
    ) -> SlurmJob<'a> {
        let script = format!("#!/bin/bash\n#SBATCH --open-mode=append --requeue\n{body}\n");
        sandbox.write("job.sh", script);
        let mut command = sandbox.command("sbatch");
        command.env("SLURM_CONF", self.conf());
        command.arg("--parsable").args(options).arg("job.sh");
        let submitted = sandbox.start(command).finish().expect_success("sbatch");
        SlurmJob {
            cluster: self,
            sandbox,
            id: submitted.stdout.trim().to_owned(),
            hurried: RefCell::default(),
        }
    }

    /// Kills a node as a loss of power does: its daemon and everything below, without a word; and has the controller know.
    ///
    /// # Panics
    /// When something does not die.
    pub fn kill_node(&self, node: &str, job: &SlurmJob<'_>) {
        let this = format!(" -N {node} ");
        let mut daemons = self.daemons();
        let (_, daemon) = daemons
            .iter_mut()
            .find(|(name, _)| name.contains(&this))
            .expect("the node's daemon");
        let mark = format!("slurmstepd: [{}.", job.id);
        let step = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).starts_with(&mark)
        };
        let own = std::process::id().cast_signed();
        let mut doomed: Vec<i32> = descendants(own).into_iter().filter(step).collect();
        let below: Vec<i32> = doomed.iter().flat_map(|pid| descendants(*pid)).collect();
        doomed.extend(below);
        processes::send(daemon.id().cast_signed(), Signal::KILL);
        for pid in &doomed {
            processes::send(*pid, Signal::KILL);
        }
        let _ = daemon.wait();
        drop(daemons);
        wait_until("the node is dead", || {
            doomed.iter().all(|pid| !crate::alive(*pid)).then_some(())
        });
        self.admin(
            "scontrol",
            &[
                "update",
                &format!("nodename={node}"),
                "state=down",
                "reason=test",
            ],
        );
    }
}

impl<'a> SlurmJob<'a> {
    /// A task of the array that this is.
    #[must_use]
    pub fn task(&self, number: u32) -> SlurmJob<'a> {
        SlurmJob {
            cluster: self.cluster,
            sandbox: self.sandbox,
            id: format!("{}_{number}", self.id),
            hurried: RefCell::default(),
        }
    }

    /// A field of `scontrol show job`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<String> {
        let text = self
            .cluster
            .try_admin("scontrol", &["show", "job", "-o", &self.id])?;
        let fields = text
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='));
        let mut found = fields.filter(|(known, _)| *known == name);
        found.next().map(|(_, value)| value.to_owned())
    }

    /// What the job has written: its output file.
    #[must_use]
    pub fn output(&self) -> String {
        let bytes = self.sandbox.read(&format!("slurm-{}.out", self.id));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the output satisfies `wanted`; a job that waits for its time to come is let start at once.
    ///
    /// # Panics
    /// When it does not in good time.
    pub fn wait_output(&self, what: &str, wanted: impl Fn(&str) -> bool) {
        let _shown = Shown(self);
        wait_until(&format!("job {}: {what}", self.id), || {
            self.hurry();
            wanted(&self.output()).then_some(())
        });
    }

    /// Waits for a state.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_state(&self, wanted: &str) {
        let _shown = Shown(self);
        wait_until(&format!("job {} is {wanted}", self.id), || {
            self.hurry();
            (self.field("JobState")? == wanted).then_some(())
        });
    }

    /// Slurm lets a job that was queued again wait for two minutes. A few seconds are enough for its node to forget the last run.
    fn hurry(&self) {
        let restarts = self.field("Restarts").unwrap_or_default();
        let waits = self.field("Reason").as_deref() == Some("BeginTime");
        if waits && *self.hurried.borrow() != restarts {
            let job = format!("jobid={}", self.id);
            let update = ["update", &job, "StartTime=now+3"];
            if self.cluster.try_admin("scontrol", &update).is_some() {
                self.hurried.replace(restarts);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }

    /// Runs one of Slurm's commands as the job's user.
    ///
    /// # Panics
    /// When it fails.
    pub fn command(&self, program: &str, arguments: &[&str]) {
        let mut command = self.sandbox.command(program);
        command
            .env("SLURM_CONF", self.cluster.conf())
            .args(arguments);
        self.sandbox.start(command).finish().expect_success(program);
    }
}

/// Shows a job when waiting for it was in vain.
struct Shown<'a>(&'a SlurmJob<'a>);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let job = self.0;
            let known = job.cluster.try_admin("scontrol", &["show", "job", &job.id]);
            eprintln!(
                "---- job {} ----\n{}\n{}",
                job.id,
                job.output(),
                known.unwrap_or_default()
            );
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.root.join("slurmctld.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "---- slurmctld ----\n{}",
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
        for (_, child) in self.daemons().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Steps have left their daemons and belong to this process now, with everything below them.
        let own = std::process::id().cast_signed();
        let of_slurm = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"slurmstepd")
        };
        for _ in 0..1000 {
            let steps: Vec<i32> = descendants(own).into_iter().filter(of_slurm).collect();
            if steps.is_empty() {
                break;
            }
            for pid in steps
                .iter()
                .flat_map(|pid| descendants(*pid))
                .chain(steps.iter().copied())
            {
                processes::send(pid, Signal::KILL);
            }
            processes::reap_orphans();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}
