//! The control socket: who may ask, and what is answered.

use super::Task;
use super::state::Shared;
use super::worker::{Outcome, Request, Waiter};
use crate::error::Context;
use crate::protocol::{self, Answer, AnswerKind, RequestKind, VERSION, read_line, write_line};
use crate::schedule::Cadence;
use crate::{Error, Interval};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use rustix::fs::Mode;
use rustix::process::{geteuid, umask};
use stasis_sys::{Pid, socket};
use std::fs;
use std::io::{self, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// For how long a client may take over its line.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a client hears about progress.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// So much of what was seen of a job is told in a line.
const ITEMS_A_LINE: usize = 500;

/// The bound socket and its file.
pub(crate) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Makes `PID.sock`. A file of that name is left over from a dead supervisor, or belongs to a living one of
    /// another pid namespace: then a number is added.
    ///
    /// The name appears when the socket listens, and not before: a client takes a name that nobody listens behind for a dead
    /// supervisor's and removes it.
    pub(crate) fn bind(directory: &Path) -> Result<Socket, Error> {
        let pid = Pid::current();
        let first = directory.join(format!("{pid}.sock"));
        let making = || format!("making the control socket {}", first.display());
        let unnamed = directory.join(format!("{pid}.new"));
        let _ = fs::remove_file(&unnamed);
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(&unnamed);
        umask(before);
        let listener = bound.context(making)?;
        let path = name(&unnamed, directory, pid);
        let _ = fs::remove_file(&unnamed);
        Ok(Socket {
            path: path.context(making)?,
            listener,
        })
    }
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
    /// Removes the file.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives the socket at `unnamed` its name, which replaces no living supervisor's.
fn name(unnamed: &Path, directory: &Path, pid: Pid) -> io::Result<PathBuf> {
    let mut path = directory.join(format!("{pid}.sock"));
    let mut named = fs::hard_link(unnamed, &path);
    for number in 2..100 {
        match &named {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            _ => break,
        }
        if UnixStream::connect(&path).is_err() {
            let _ = fs::remove_file(&path);
        } else {
            path = directory.join(format!("{pid}-{number}.sock"));
        }
        named = fs::hard_link(unnamed, &path);
    }
    named.map(|()| path)
}

/// Accepts connections for ever.
pub(super) fn listen(listener: &UnixListener, shared: &Arc<Shared>, tasks: &Sender<Task>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others may be closed in a moment.
                tracing::warn!(%error, "accepting a connection");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let (shared, tasks) = (Arc::clone(shared), tasks.clone());
        let serving = thread::Builder::new()
            .name("connection".into())
            .spawn(move || serve(stream, &shared, &tasks));
        if let Err(error) = serving {
            tracing::warn!(%error, "serving a connection");
        }
    }
}

fn serve(stream: UnixStream, shared: &Shared, tasks: &Sender<Task>) {
    let peer = socket::peer(&stream);
    let inner = peer
        .as_ref()
        .ok()
        .and_then(|peer| shared.distance(peer.pid?))
        .is_some();
    let Some(_counted) = shared.connect(inner) else {
        return;
    };
    let conversation = peer.and_then(|peer| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Conversation {
            reader: BufReader::new(stream),
            peer,
            inner,
            shared,
            tasks,
        }
        .hold()
    });
    if let Err(error) = conversation {
        tracing::debug!(%error, "a client was lost");
    }
}

struct Conversation<'a> {
    reader: BufReader<UnixStream>,
    peer: socket::Peer,
    inner: bool,
    shared: &'a Shared,
    tasks: &'a Sender<Task>,
}

impl Conversation<'_> {
    fn hold(mut self) -> io::Result<()> {
        // Read first, whoever it is: a socket closed with something unread in it would lose the answer.
        let request = read_line::<protocol::Request>(&mut self.reader);
        let ours = geteuid().as_raw();
        if self.peer.uid != ours && self.peer.uid != 0 {
            return self.refuse(format!(
                "user {} may not ask about a job of user {ours}",
                self.peer.uid
            ));
        }
        let request = match request {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return self.refuse(format!(
                    "the request was not understood ({error}); this supervisor speaks version {VERSION}"
                ));
            }
            Err(error) => return Err(error),
        };
        if request.version > VERSION {
            return self.refuse(format!(
                "the request is of version {}, this job's supervisor speaks version {VERSION}: use the stasis that \
                 started the job",
                request.version
            ));
        }
        match request.kind {
            RequestKind::Status => {
                let status = self.shared.status(self.peer.pid);
                self.say(AnswerKind::Status(Box::new(status)))
            }
            RequestKind::Interval { auto: true, .. } => {
                let economy = self.shared.settings.economy;
                self.give(Task::Interval(Some(Cadence::Auto(economy))))
            }
            RequestKind::Interval {
                seconds: Some(0), ..
            } => self.refuse("the interval is zero".into()),
            RequestKind::Interval { seconds, .. } => {
                let interval = seconds.and_then(Interval::from_seconds);
                self.give(Task::Interval(interval.map(Cadence::Every)))
            }
            RequestKind::Check => self.check(),
            RequestKind::Kill => {
                self.shared.kill();
                self.say(AnswerKind::Done)
            }
            RequestKind::Checkpoint { stop, by_signal: true, .. } => self.checkpoint_by_signal(stop),
            RequestKind::Checkpoint { .. } if self.inner => self.refuse(
                "a process of the job itself must ask for the answer by signal, as `stasis checkpoint` does".into(),
            ),
            RequestKind::Checkpoint { stop, progress, .. } => self.checkpoint(stop, progress),
        }
    }

    fn say(&mut self, kind: AnswerKind) -> io::Result<()> {
        write_line(
            self.reader.get_mut(),
            &Answer {
                version: VERSION,
                kind,
            },
        )
    }
    fn refuse(&mut self, message: String) -> io::Result<()> {
        self.say(AnswerKind::Error { message })
    }
    fn give(&mut self, task: Task) -> io::Result<()> {
        match self.tasks.send(task) {
            Ok(()) => self.say(AnswerKind::Done),
            Err(_) => self.refuse("the job has ended".into()),
        }
    }

    fn check(&mut self) -> io::Result<()> {
        let (sender, looks) = bounded(1);
        if self.tasks.send(Task::Check(sender)).is_err() {
            return self.refuse("the job has ended".into());
        }
        match looks.recv() {
            Ok(Ok(mut look)) => {
                // A line is not to be longer than a reader takes.
                while look.items.len() > ITEMS_A_LINE {
                    let rest = look.items.split_off(ITEMS_A_LINE);
                    let items = std::mem::replace(&mut look.items, rest);
                    self.say(AnswerKind::Seen { items })?;
                }
                self.say(AnswerKind::Checked(Box::new(look)))
            }
            Ok(Err(message)) => self.refuse(message),
            Err(_) => self.refuse("the job has ended".into()),
        }
    }

    fn checkpoint(&mut self, stop: bool, progress: bool) -> io::Result<()> {
        let (sender, outcomes) = bounded::<Outcome>(1);
        let request = Request {
            stop,
            waiter: Waiter::Connection(sender),
        };
        if self.tasks.send(Task::Checkpoint(request)).is_err() {
            return self.refuse("the job has ended".into());
        }
        loop {
            match outcomes.recv_timeout(TELL_EVERY) {
                Ok(Ok(saved)) => return self.say(AnswerKind::Saved(saved)),
                Ok(Err(message)) => return self.refuse(message),
                Err(RecvTimeoutError::Disconnected) => {
                    return self.refuse("the job has ended".into());
                }
                Err(RecvTimeoutError::Timeout) if progress => {
                    let (done, total) = self.shared.bytes.get();
                    self.say(AnswerKind::Progress(protocol::Progress { done, total }))?;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The client is going to be saved, so it must not hold this connection: the checkpoint is asked for when it has
    /// closed its end.
    fn checkpoint_by_signal(&mut self, stop: bool) -> io::Result<()> {
        let Some(pid) = self.peer.pid else {
            return self.refuse("the asking process cannot be seen from here".into());
        };
        // Before the client can believe that it is heard: a checkpoint that begins after that must know of it.
        self.shared.requesters.add(pid);
        let left = self.accept();
        let request = Request {
            stop,
            waiter: Waiter::Process(pid),
        };
        if left.is_err() || self.tasks.send(Task::Checkpoint(request)).is_err() {
            self.shared.requesters.remove(pid);
        }
        left
    }

    /// Says yes and waits until the client has closed its end.
    fn accept(&mut self) -> io::Result<()> {
        self.say(AnswerKind::Accepted)?;
        let mut nothing = [0u8; 1];
        if self.reader.read(&mut nothing)? != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the client speaks on",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_name_that_can_be_seen_can_be_connected_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(format!("{}.sock", Pid::current()));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let named = || {
                    let metadata = fs::metadata(&path).ok()?;
                    Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
                };
                while !done.load(Ordering::Relaxed) {
                    let before = named();
                    match UnixStream::connect(&path) {
                        // A name that went away meanwhile may have been the one of a socket that was still there.
                        Err(error)
                            if error.kind() == io::ErrorKind::ConnectionRefused
                                && before.is_some()
                                && named() == before =>
                        {
                            return false;
                        }
                        _ => {}
                    }
                }
                true
            });
            for _ in 0..2000 {
                let socket = Socket::bind(directory.path()).expect("a socket");
                // Before it stops listening.
                socket.remove();
            }
            done.store(true, Ordering::Relaxed);
            assert!(
                looking.join().expect("the client"),
                "a name without a listener"
            );
        });
    }

    #[test]
    fn a_living_supervisor_keeps_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Socket::bind(directory.path()).expect("a socket");
        let second = Socket::bind(directory.path()).expect("another");
        assert_ne!(first.path, second.path);
        drop(first);
        let third = Socket::bind(directory.path()).expect("a dead one's");
        assert!(
            !third.path.to_string_lossy().contains('-'),
            "{third:?}",
            third = third.path
        );
        let left: Vec<_> = fs::read_dir(directory.path())
            .expect("reading it")
            .flatten()
            .collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
