//! A coordinator at work: threads and sockets around a [`Machine`].
//!
//! The calling thread owns the machine. One thread listens; each connection has one that reads and, where it is a
//! member's, one that writes, so that a member that does not read holds nobody up.

use crate::error::{Context, Error};
use crate::machine::{Action, AskId, Event, Machine, MemberId, Set};
use crate::protocol::{
    Admission, Ask, Credentials, FromMember, Greeting, Opening, Reply, ToMember, VERSION,
};
use crate::secret::{Role, Secret, challenge};
use crate::wire::{self, Lines};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// For how long whoever connects may take to say what he wants.
const PATIENCE: Duration = Duration::from_secs(20);

/// What makes the coordinator act.
enum Task {
    Event(Event),
    Joins(MemberId, crate::protocol::Join, Sender<Letter>),
    Asks(AskId, Ask, Sender<Reply>),
    End,
}

/// What is written to a member.
enum Letter {
    Message(ToMember),
    Close,
}

/// Who wants to know what a coordinator does.
pub trait Observer {
    /// All images of a checkpoint are there.
    fn committed(&mut self, set: &Set);
}

/// A way to speak to a running coordinator from its own process.
#[derive(Clone)]
pub struct Handle {
    tasks: Sender<Task>,
    asks: Arc<AtomicU64>,
}

impl Handle {
    /// Asks, and waits for the reply; none when the coordinator has ended.
    #[must_use]
    pub fn ask(&self, ask: Ask) -> Option<Reply> {
        let id = AskId(self.asks.fetch_add(1, Ordering::Relaxed));
        let (sender, reply) = bounded(1);
        self.tasks.send(Task::Asks(id, ask, sender)).ok()?;
        reply.recv().ok()
    }
    /// Ends the coordinator; the programs run on.
    pub fn end(&self) {
        // One that has ended already need not be told.
        let _ = self.tasks.send(Task::End);
    }
}

/// A coordinator that is about to serve.
pub struct Server {
    machine: Machine,
    tasks: Receiver<Task>,
    handle: Handle,
    members: HashMap<MemberId, Sender<Letter>>,
    asks: HashMap<AskId, Sender<Reply>>,
}

impl Server {
    /// A coordinator that serves on `listener` whoever knows `secret`.
    ///
    /// # Errors
    /// [`Error::System`] when no thread can be started.
    pub fn new(listener: TcpListener, secret: Secret, machine: Machine) -> Result<Server, Error> {
        let (sender, tasks) = unbounded();
        let handle = Handle {
            tasks: sender,
            asks: Arc::default(),
        };
        let listening = handle.clone();
        thread::Builder::new()
            .name("listener".into())
            .spawn(move || listen(&listener, &secret, &listening))
            .context(|| "starting a thread".into())?;
        Ok(Server {
            machine,
            tasks,
            handle,
            members: HashMap::new(),
            asks: HashMap::new(),
        })
    }

    /// The way to speak to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until the coordinator is to end.
    pub fn serve(mut self, observer: &mut dyn Observer) {
        loop {
            let task = match self.machine.deadline() {
                Some(due) => self.tasks.recv_deadline(due),
                None => self
                    .tasks
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
            };
            let now = Instant::now();
            let actions = match task {
                Ok(Task::Event(event)) => self.machine.handle(event, now),
                Ok(Task::Joins(id, join, letters)) => {
                    self.members.insert(id, letters);
                    self.machine.handle(Event::Join(id, join), now)
                }
                Ok(Task::Asks(id, ask, reply)) => {
                    self.asks.insert(id, reply);
                    self.machine.handle(Event::Asked(id, ask), now)
                }
                Ok(Task::End) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => self.machine.tick(now),
            };
            if self.carry_out(actions, observer) {
                return;
            }
        }
    }

    /// Whether the end has come.
    fn carry_out(&mut self, actions: Vec<Action>, observer: &mut dyn Observer) -> bool {
        let mut over = false;
        for action in actions {
            match action {
                Action::Tell(id, message) => {
                    tracing::debug!(member = id.0, ?message, "tell");
                    self.write(id, Letter::Message(message));
                }
                Action::Close(id) => {
                    self.write(id, Letter::Close);
                    self.members.remove(&id);
                }
                Action::Answer(id, reply) => {
                    if let Some(asker) = self.asks.remove(&id) {
                        // One who has left does not want to know.
                        let _ = asker.send(reply);
                    }
                }
                Action::Committed(set) => observer.committed(&set),
                Action::Exit => over = true,
            }
        }
        over
    }

    fn write(&self, id: MemberId, letter: Letter) {
        if let Some(writer) = self.members.get(&id) {
            // A writer that has given up is noticed by the reader of the same connection.
            let _ = writer.send(letter);
        }
    }
}

fn listen(listener: &TcpListener, secret: &Secret, handle: &Handle) {
    let members = Arc::new(AtomicU64::new(1));
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
        let (secret, handle, members) = (secret.clone(), handle.clone(), Arc::clone(&members));
        let serving = thread::Builder::new()
            .name("connection".into())
            .spawn(move || {
                if let Err(error) = converse(stream, &secret, &handle, &members) {
                    tracing::debug!(%error, "a connection was lost");
                }
            });
        if let Err(error) = serving {
            tracing::warn!(%error, "serving a connection");
        }
    }
}

fn converse(
    stream: TcpStream,
    secret: &Secret,
    handle: &Handle,
    members: &AtomicU64,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut lines = Lines::new(stream);
    if !admit(&mut lines, secret)? {
        return Ok(());
    }
    match lines.next()? {
        Some(Opening::Join(join)) => {
            let id = MemberId(members.fetch_add(1, Ordering::Relaxed));
            attend(lines, id, join, handle)
        }
        Some(Opening::Ask(ask)) => answer(lines, ask, handle),
        None => Ok(()),
    }
}

/// Both sides prove that they know the secret.
fn admit(lines: &mut Lines, secret: &Secret) -> io::Result<bool> {
    let ours = challenge()?;
    wire::write(
        lines.get(),
        &Greeting {
            stasis_coordinator: VERSION,
            key: secret.name(),
            challenge: ours.clone(),
        },
    )?;
    let Some(theirs) = lines.next::<Credentials>()? else {
        return Ok(false);
    };
    let refusal = if theirs.version > VERSION {
        Some(format!(
            "this coordinator speaks version {VERSION}, not {}: use the commands that it came with",
            theirs.version
        ))
    } else if !secret.is_proven(&theirs.proof, Role::Client, &ours, &theirs.challenge) {
        Some("this coordinator obeys its own user only".to_owned())
    } else {
        None
    };
    let admitted = refusal.is_none();
    let proof = || Admission::Proof(secret.prove(Role::Server, &ours, &theirs.challenge));
    wire::write(lines.get(), &refusal.map_or_else(proof, Admission::Refused))?;
    Ok(admitted)
}

/// Serves a command, which may ask several things.
fn answer(mut lines: Lines, first: Ask, handle: &Handle) -> io::Result<()> {
    let mut next = Some(first);
    while let Some(ask) = next {
        let Some(reply) = handle.ask(ask) else {
            return Ok(());
        };
        wire::write(lines.get(), &reply)?;
        next = match lines.next()? {
            Some(Opening::Ask(ask)) => Some(ask),
            _ => None,
        };
    }
    Ok(())
}

/// Serves a member until it leaves.
fn attend(
    mut lines: Lines,
    id: MemberId,
    join: crate::protocol::Join,
    handle: &Handle,
) -> io::Result<()> {
    let (letters, to_write) = unbounded();
    let writing = lines.get().try_clone()?;
    thread::Builder::new()
        .name("writer".into())
        .spawn(move || write_letters(&writing, &to_write))?;
    lines.get().set_read_timeout(None)?;
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    handle
        .tasks
        .send(Task::Joins(id, join, letters))
        .map_err(gone)?;
    let result = loop {
        match lines.next::<FromMember>() {
            Ok(Some(said)) => {
                if said != FromMember::Alive {
                    tracing::debug!(member = id.0, ?said, "heard");
                }
                let event = Event::Heard(id, said);
                if let Err(error) = handle.tasks.send(Task::Event(event)) {
                    break Err(gone(error));
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let _ = lines.get().shutdown(Shutdown::Both);
    let _ = handle.tasks.send(Task::Event(Event::Left(id)));
    result
}

fn write_letters(to: &TcpStream, letters: &Receiver<Letter>) {
    for letter in letters {
        let written = match letter {
            Letter::Message(message) => wire::write(to, &message),
            Letter::Close => break,
        };
        if written.is_err() {
            break;
        }
    }
    // The reader notices.
    let _ = to.shutdown(Shutdown::Both);
}
