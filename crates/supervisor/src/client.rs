//! Talking to supervisors.

use crate::error::Context;
use crate::protocol::{
    Answer, AnswerKind, JobStatus, Progress, Request, RequestKind, Saved, VERSION, read_line,
    write_line,
};
use crate::{Error, runtime_dir};
use stasis_engine::look::Look;
use std::fs;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For how long an answer may take that needs no work: on a machine that has far more to do than it can, a supervisor was seen to
/// wait more than ten seconds for its turn.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running job and the way to its supervisor.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its control socket.
    pub socket: PathBuf,
    /// What it says of itself.
    pub status: JobStatus,
}

/// Every running job of this user. Sockets that nobody serves any more are removed.
///
/// # Errors
/// [`Error::System`] when a directory of sockets cannot be read.
pub fn jobs() -> Result<Vec<Found>, Error> {
    let mut found: Vec<Found> = Vec::new();
    for directory in runtime_dir::candidates() {
        // A directory that somebody else could have made is not believed.
        if runtime_dir::check(&directory).is_err() {
            continue;
        }
        let entries =
            fs::read_dir(&directory).context(|| format!("reading {}", directory.display()))?;
        for entry in entries.flatten() {
            let socket = entry.path();
            if socket.extension().is_none_or(|ending| ending != "sock") {
                continue;
            }
            match status(&socket) {
                Ok(Some(status)) => found.push(Found { socket, status }),
                Ok(None) => {}
                Err(error) => tracing::warn!(socket = %socket.display(), %error, "no answer"),
            }
        }
    }
    found.sort_by(|a, b| {
        (&a.status.name, a.status.supervisor).cmp(&(&b.status.name, b.status.supervisor))
    });
    found.dedup_by_key(|found| found.socket.clone());
    Ok(found)
}

/// Takes nothing that comes before the answer.
fn no_parts(_: AnswerKind) {}

/// Asks for the status; `None` when nobody is there.
fn status(socket: &Path) -> Result<Option<JobStatus>, Error> {
    let Some(stream) = connect(socket)? else {
        return Ok(None);
    };
    match ask(stream, socket, RequestKind::Status, &mut no_parts)? {
        AnswerKind::Status(status) => Ok(Some(*status)),
        other => Err(unexpected(socket, &other)),
    }
}

/// Connects; a socket without a listener is stale, and removed.
fn connect(socket: &Path) -> Result<Option<UnixStream>, Error> {
    match UnixStream::connect(socket) {
        Ok(stream) => {
            stream
                .set_read_timeout(Some(PATIENCE))
                .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
                .context(|| "preparing a socket".into())?;
            Ok(Some(stream))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let _ = fs::remove_file(socket);
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("connecting to {}", socket.display())),
    }
}

fn supervisor_of(socket: &Path) -> i32 {
    let stem = socket.file_stem().unwrap_or_default().to_string_lossy();
    stem.split('-')
        .next()
        .and_then(|pid| pid.parse().ok())
        .unwrap_or(0)
}

fn unexpected(socket: &Path, answer: &AnswerKind) -> Error {
    match answer {
        AnswerKind::Error { message } => Error::Told(message.clone()),
        other => Error::NoAnswer {
            supervisor: supervisor_of(socket),
            reason: format!("it does not fit the request: {other:?}"),
        },
    }
}

fn ask(
    mut stream: UnixStream,
    socket: &Path,
    kind: RequestKind,
    part: &mut dyn FnMut(AnswerKind),
) -> Result<AnswerKind, Error> {
    let none = |reason: String| Error::NoAnswer {
        supervisor: supervisor_of(socket),
        reason,
    };
    write_line(
        &mut stream,
        &Request {
            version: VERSION,
            kind,
        },
    )
    .map_err(|error| none(error.to_string()))?;
    let mut reader = BufReader::new(stream);
    loop {
        match read_line::<Answer>(&mut reader) {
            Ok(Some(Answer {
                kind: kind @ (AnswerKind::Progress(_) | AnswerKind::Seen { .. }),
                ..
            })) => part(kind),
            Ok(Some(answer)) => return Ok(answer.kind),
            Ok(None) => return Err(none("it has ended, or was killed".into())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(none(format!("none came within {} s", PATIENCE.as_secs())));
            }
            Err(error) => return Err(none(error.to_string())),
        }
    }
}

impl Found {
    fn connect(&self) -> Result<UnixStream, Error> {
        connect(&self.socket)?
            .ok_or_else(|| Error::NoJob(format!("the job {} has just ended", self.status.name)))
    }
    /// Asks and expects an answer without content.
    fn demand(&self, kind: RequestKind) -> Result<(), Error> {
        match ask(self.connect()?, &self.socket, kind, &mut no_parts)? {
            AnswerKind::Done => Ok(()),
            other => Err(unexpected(&self.socket, &other)),
        }
    }
    /// Whether the calling process belongs to the job's tree.
    #[must_use]
    pub fn is_around_us(&self) -> bool {
        self.status.distance.is_some()
    }
    /// Has a checkpoint taken and waits for it. Not for a process of the tree itself: see
    /// [`Found::request_by_signal`].
    ///
    /// # Errors
    /// [`Error::Told`] with the supervisor's reason; [`Error::NoAnswer`] when it dies.
    pub fn checkpoint(
        &self,
        stop: bool,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Saved, Error> {
        let stream = self.connect()?;
        // Lines of progress come all the while: their absence is a sign of death, but a frozen disk is none.
        stream
            .set_read_timeout(None)
            .context(|| "preparing a socket".into())?;
        let request = RequestKind::Checkpoint {
            stop,
            progress: true,
            by_signal: false,
        };
        let mut told = |part| {
            if let AnswerKind::Progress(state) = part {
                progress(&state);
            }
        };
        match ask(stream, &self.socket, request, &mut told)? {
            AnswerKind::Saved(saved) => Ok(saved),
            other => Err(unexpected(&self.socket, &other)),
        }
    }
    /// Looks at the job as its next checkpoint would. A checkpoint that is under way is waited for.
    ///
    /// # Errors
    /// [`Error::Told`], [`Error::NoAnswer`].
    pub fn check(&self) -> Result<Look, Error> {
        let stream = self.connect()?;
        stream
            .set_read_timeout(None)
            .context(|| "preparing a socket".into())?;
        let mut seen = Vec::new();
        let mut told = |part| {
            if let AnswerKind::Seen { items } = part {
                seen.extend(items);
            }
        };
        match ask(stream, &self.socket, RequestKind::Check, &mut told)? {
            AnswerKind::Checked(mut look) => {
                seen.append(&mut look.items);
                look.items = seen;
                Ok(*look)
            }
            other => Err(unexpected(&self.socket, &other)),
        }
    }
    /// Asks for a checkpoint whose outcome comes as SIGUSR2, which the caller has blocked. When this returns, the
    /// socket is closed.
    ///
    /// # Errors
    /// [`Error::Told`], [`Error::NoAnswer`].
    pub fn request_by_signal(&self, stop: bool) -> Result<(), Error> {
        let request = RequestKind::Checkpoint {
            stop,
            progress: false,
            by_signal: true,
        };
        match ask(self.connect()?, &self.socket, request, &mut no_parts)? {
            AnswerKind::Accepted => Ok(()),
            other => Err(unexpected(&self.socket, &other)),
        }
    }
    /// Sets another interval, or none.
    ///
    /// # Errors
    /// [`Error::Told`], [`Error::NoAnswer`].
    pub fn set_interval(&self, interval: Option<crate::Interval>) -> Result<(), Error> {
        let seconds = interval.map(|interval| interval.duration().as_secs());
        self.demand(RequestKind::Interval {
            seconds,
            auto: false,
        })
    }

    /// Has checkpoints taken as often as pays.
    ///
    /// # Errors
    /// As [`set_interval`](Self::set_interval).
    pub fn set_auto(&self) -> Result<(), Error> {
        self.demand(RequestKind::Interval {
            seconds: None,
            auto: true,
        })
    }
    /// Ends the whole tree, unsaved.
    ///
    /// # Errors
    /// [`Error::Told`], [`Error::NoAnswer`].
    pub fn kill(&self) -> Result<(), Error> {
        self.demand(RequestKind::Kill)
    }
}

/// The job that `wanted` means: a name, or the number of any of its processes or of its supervisor; without one, the
/// innermost job around the caller, else the only one.
///
/// # Errors
/// [`Error::NoJob`] that says what there is to choose from.
pub fn resolve<'a>(jobs: &'a [Found], wanted: Option<&str>) -> Result<&'a Found, Error> {
    let candidates: Vec<&Found> = match wanted {
        Some(wanted) => {
            let named: Vec<&Found> = jobs
                .iter()
                .filter(|job| job.status.name == wanted)
                .collect();
            match wanted.parse::<i32>() {
                Ok(pid) if named.is_empty() => owners(jobs, pid),
                _ => named,
            }
        }
        None => match innermost(jobs) {
            Some(job) => vec![job],
            None => jobs.iter().collect(),
        },
    };
    match (candidates.as_slice(), wanted) {
        ([job], _) => Ok(job),
        ([], Some(wanted)) => Err(Error::NoJob(format!(
            "no job is named {wanted} or holds a process of that number; {}",
            listed(jobs)
        ))),
        ([], None) => Err(Error::NoJob(
            "no job is running; start one with: stasis run -- COMMAND".into(),
        )),
        (several, _) => {
            let several: Vec<Found> = several.iter().copied().cloned().collect();
            Err(Error::NoJob(format!(
                "more than one job fits, say which by its pid; {}",
                listed(&several)
            )))
        }
    }
}

/// Jobs that hold the process; of nested ones the innermost, which is the one with the fewest processes.
fn owners(jobs: &[Found], pid: i32) -> Vec<&Found> {
    let holds = |job: &&Found| {
        job.status.pids.contains(&pid) || job.status.supervisor == pid || job.status.root == pid
    };
    if let Some(supervised) = jobs.iter().find(|job| job.status.supervisor == pid) {
        return vec![supervised];
    }
    jobs.iter()
        .filter(holds)
        .min_by_key(|job| job.status.pids.len())
        .into_iter()
        .collect()
}

fn innermost(jobs: &[Found]) -> Option<&Found> {
    jobs.iter()
        .filter(|job| job.is_around_us())
        .min_by_key(|job| job.status.distance)
}

fn listed(jobs: &[Found]) -> String {
    if jobs.is_empty() {
        return "no job is running".into();
    }
    let jobs: Vec<String> = jobs
        .iter()
        .map(|job| format!("{} (pid {})", job.status.name, job.status.root))
        .collect();
    format!("running: {}", jobs.join(", "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn status(name: &str, root: i32, pids: &[i32], distance: Option<u32>) -> JobStatus {
        JobStatus {
            name: name.into(),
            root,
            virtual_root: root,
            supervisor: root - 2,
            pids: pids.to_vec(),
            memory_bytes: 4096,
            command: vec![name.into()],
            directory: "/tmp".into(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            restarted_from: None,
            interval_seconds: None,
            interval_auto: false,
            next_due: None,
            checkpointing: false,
            last: None,
            last_error: None,
            coordinator: None,
            computation: None,
            distance,
        }
    }
    fn job(name: &str, root: i32, pids: &[i32], distance: Option<u32>) -> Found {
        Found {
            socket: format!("/x/{root}.sock").into(),
            status: status(name, root, pids, distance),
        }
    }
    fn root(jobs: &[Found], wanted: Option<&str>) -> Result<i32, String> {
        resolve(jobs, wanted)
            .map(|job| job.status.root)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_and_numbers_find_their_job() {
        let jobs = [job("a", 12, &[12, 13], None), job("b", 22, &[22, 23], None)];
        assert_eq!(root(&jobs, Some("b")), Ok(22));
        assert_eq!(root(&jobs, Some("13")), Ok(12));
        assert_eq!(root(&jobs, Some("20")), Ok(22), "a supervisor's number");
        let error = root(&jobs, Some("c")).unwrap_err();
        assert!(error.contains("a (pid 12), b (pid 22)"), "{error}");
    }

    #[test]
    fn without_a_word_the_job_around_or_the_only_one_is_meant() {
        let two = [job("a", 12, &[12], None), job("a", 22, &[22], None)];
        assert_eq!(root(&two[..1], None), Ok(12));
        assert!(
            root(&two, None)
                .unwrap_err()
                .contains("a (pid 12), a (pid 22)")
        );
        assert!(root(&two, Some("a")).unwrap_err().contains("more than one"));
        assert!(root(&[], None).unwrap_err().contains("no job is running"));
        let nested = [
            job("outer", 12, &[12, 20, 22], Some(4)),
            job("inner", 22, &[22], Some(1)),
        ];
        assert_eq!(root(&nested, None), Ok(22));
        assert_eq!(root(&nested, Some("22")), Ok(22));
        assert_eq!(root(&nested, Some("outer")), Ok(12));
    }
}
