//! The keeper: the small process between the supervisor and the program.
//!
//! It is the program's parent and adopts its orphans, so that the supervisor can be a tracer only, may die without the
//! program noticing, and has one place to learn exit statuses from. It runs no threads and holds no locks.
//!
//! ```text
//! front (foreground, terminal) -> supervisor (own session) -> keeper -> program
//! ```
//!
//! Two sockets (`SOCK_SEQPACKET`) end here: the *front line*, to the process in the foreground, and the *event line*, to
//! the supervisor. Events go to both. Commands come from the front line. When the front line closes without
//! [`Command::Release`], the foreground process was killed, and the keeper kills the program: it belongs to the command
//! that the user typed. When the supervisor dies, the program lives on.

mod relay;

use crate::descriptors::inherited;
use crate::error::Context;
use crate::job::{self, Memory};
use crate::{EngineError, Job};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use stasis_sys::Pid;
use stasis_sys::process::{self, Fork, SIGKILL, WNOHANG, WaitStatus, Waited};
use stasis_sys::signal::{self, SignalFd, SignalSet};
use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What the keeper tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The root ended with this status.
    RootExited(WaitStatus),
    /// The root was stopped by this signal (job control).
    RootStopped(i32),
    /// The root was continued.
    RootContinued,
    /// The last descendant is gone. Nothing follows.
    Empty,
}

/// What the keeper is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The front has received this signal: see to it that the program has it too (see `relay.rs`).
    Signal(i32),
    /// The same for one that was meant for a whole process group: it came from the terminal.
    GroupSignal(i32),
    /// The front leaves, and the program may live on.
    Release,
    /// Kill every descendant.
    Kill,
    /// The memory of the restored processes is mapped, but none of them runs yet.
    Mapped,
}

const WAIT_OPTIONS: i32 = WNOHANG | process::WUNTRACED | process::WCONTINUED;

/// Length of an encoded event or command in bytes: a tag and an argument, both `i32`, native order (one host).
pub const MESSAGE_LEN: usize = 8;

fn encode(tag: i32, argument: i32) -> [u8; MESSAGE_LEN] {
    let mut bytes = [0; MESSAGE_LEN];
    bytes[..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..].copy_from_slice(&argument.to_ne_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(i32, i32)> {
    let tag = i32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let argument = i32::from_ne_bytes(bytes.get(4..8)?.try_into().ok()?);
    Some((tag, argument))
}

impl Event {
    /// The message's bytes.
    #[must_use]
    pub fn encode(self) -> [u8; MESSAGE_LEN] {
        match self {
            Event::RootExited(status) => encode(1, status.0),
            Event::RootStopped(signal) => encode(2, signal),
            Event::RootContinued => encode(3, 0),
            Event::Empty => encode(4, 0),
        }
    }
    /// The event of a message; `None` for bytes that are none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Event> {
        match decode(bytes)? {
            (1, status) => Some(Event::RootExited(WaitStatus(status))),
            (2, signal) => Some(Event::RootStopped(signal)),
            (3, _) => Some(Event::RootContinued),
            (4, _) => Some(Event::Empty),
            _ => None,
        }
    }
    /// Receives the next event from a line; `None` when the keeper is gone.
    ///
    /// # Errors
    /// The kernel's (`EAGAIN` where the line is non-blocking).
    pub fn receive(line: BorrowedFd<'_>) -> std::io::Result<Option<Event>> {
        let mut buffer = [0u8; MESSAGE_LEN];
        let (n, _) = rustix::net::recv(line, &mut buffer, RecvFlags::empty())?;
        Ok(Event::decode(&buffer[..n]))
    }
}

impl Command {
    /// The message's bytes.
    #[must_use]
    pub fn encode(self) -> [u8; MESSAGE_LEN] {
        match self {
            Command::Signal(signal) => encode(1, signal),
            Command::Release => encode(2, 0),
            Command::Kill => encode(3, 0),
            Command::GroupSignal(signal) => encode(4, signal),
            Command::Mapped => encode(5, 0),
        }
    }
    fn decode(bytes: &[u8]) -> Option<Command> {
        match decode(bytes)? {
            (1, signal) => Some(Command::Signal(signal)),
            (2, _) => Some(Command::Release),
            (3, _) => Some(Command::Kill),
            (4, signal) => Some(Command::GroupSignal(signal)),
            (5, _) => Some(Command::Mapped),
            _ => None,
        }
    }
    /// Sends it down a line.
    ///
    /// # Errors
    /// `EPIPE` when the keeper is gone.
    pub fn send(self, line: BorrowedFd<'_>) -> std::io::Result<()> {
        rustix::net::send(line, &self.encode(), SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// A pair of connected message sockets, close-on-exec.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn line() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Starts `argv` under a new keeper. The caller has one thread. The program inherits the caller's standard
/// descriptors, environment, working directory, session, process group, and the signal dispositions and mask given.
///
/// # Errors
/// [`EngineError::System`] whose source is what `execvp(3)` said when the program could not be started (`ENOENT`: not
/// found; others: found but not executable).
pub fn launch(
    argv: &[OsString],
    front: OwnedFd,
    inherited: &Inherited,
) -> Result<Job, EngineError> {
    let (events, keeper_end) = line().context(|| "making the keeper's line".into())?;
    let stdio = job::remembered(&job::own_stdio());
    let outside = inherited::of_this_process();
    match process::fork().context(|| "starting the keeper".into())? {
        Fork::Parent(keeper) => {
            drop((keeper_end, front));
            let mut buffer = [0u8; MESSAGE_LEN];
            let (n, _) = rustix::net::recv(&events, &mut buffer, RecvFlags::empty())
                .context(|| "waiting for the keeper".into())?;
            let name = argv
                .first()
                .map(|a| a.to_string_lossy().into_owned())
                .unwrap_or_default();
            match decode(&buffer[..n]) {
                Some((LAUNCHED, root)) => Ok(Job {
                    keeper,
                    root: Pid(root),
                    virtual_root: Pid(root),
                    stdio,
                    inherited: outside,
                    events,
                    requesters: Vec::new(),
                    resized: Vec::new(),
                    memory: Memory::default(),
                }),
                Some((LAUNCH_FAILED, errno)) => Err(EngineError::System {
                    what: format!("starting {name}"),
                    source: std::io::Error::from_raw_os_error(errno),
                }),
                _ => Err(EngineError::Failed(format!(
                    "starting {name}: the keeper died"
                ))),
            }
        }
        Fork::Child => {
            drop((events, stdio, outside));
            become_keeper();
            let started = start_root(argv, inherited);
            let (message, root) = match started {
                Ok(root) => (encode(LAUNCHED, root.0), Some(root)),
                Err(error) => (
                    encode(LAUNCH_FAILED, error.raw_os_error().unwrap_or(0)),
                    None,
                ),
            };
            let _ = rustix::net::send(&keeper_end, &message, SendFlags::NOSIGNAL);
            match root {
                Some(root) => serve(&front, &keeper_end, root),
                None => process::exit_now(127),
            }
        }
    }
}

const LAUNCHED: i32 = 101;
const LAUNCH_FAILED: i32 = 102;
const SEALED: i32 = 103;
const SEALING_FAILED: i32 = 104;

/// Tells the supervisor how sealing memory files went, which it waits for in [`await_seals`].
pub(crate) fn tell_sealed(supervisor: &OwnedFd, result: &Result<(), EngineError>) {
    let message = match result {
        Ok(()) => encode(SEALED, 0),
        Err(EngineError::System { source, .. }) => {
            encode(SEALING_FAILED, source.raw_os_error().unwrap_or(0))
        }
        Err(_) => encode(SEALING_FAILED, 0),
    };
    // A supervisor that has died is noticed by whoever waits for its next word.
    let _ = rustix::net::send(supervisor, &message, SendFlags::NOSIGNAL);
}

/// Lets the keeper do what had to wait for the memory to be mapped.
pub(crate) fn await_seals(events: BorrowedFd<'_>) -> Result<(), EngineError> {
    let what = || "sealing memory files".to_owned();
    Command::Mapped.send(events).context(what)?;
    let mut buffer = [0u8; MESSAGE_LEN];
    let (n, _) =
        rustix::io::retry_on_intr(|| rustix::net::recv(events, &mut buffer, RecvFlags::empty()))
            .context(what)?;
    match decode(&buffer[..n]) {
        Some((SEALED, _)) => Ok(()),
        Some((SEALING_FAILED, errno)) => Err(EngineError::System {
            what: what(),
            source: std::io::Error::from_raw_os_error(errno),
        }),
        _ => Err(EngineError::Failed(format!("{}: the keeper died", what()))),
    }
}

/// Makes the calling process adopt orphans and deaf to every signal but SIGKILL, so that what a terminal sends to its
/// process group cannot end it.
pub(crate) fn become_keeper() {
    // Neither call can fail with these arguments; a keeper without them would still keep.
    let _ = signal::set_mask(SignalSet::ALL);
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Puts `/dev/null` in the place of the standard descriptors: a pipe that the program closes must be closed for those
/// at its other end.
pub(crate) fn let_go_of_stdio() {
    let Ok(null) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
    else {
        return;
    };
    // Neither can fail with an open descriptor.
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
}

/// Forks and executes the root. An error of exec comes back through a close-on-exec pipe.
fn start_root(argv: &[OsString], inherited: &Inherited) -> std::io::Result<Pid> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match process::fork()? {
        Fork::Child => {
            let error = process::exec(
                argv,
                &inherited.environment,
                inherited.mask,
                &inherited.ignored,
            );
            let errno = error.raw_os_error().unwrap_or(0).to_ne_bytes();
            let _ = rustix::io::write(&writer, &errno);
            process::exit_now(127)
        }
        Fork::Parent(root) => {
            drop(writer);
            let mut errno = [0u8; 4];
            if rustix::io::retry_on_intr(|| rustix::io::read(&reader, &mut errno))? == errno.len() {
                let _ = process::wait(root, 0);
                return Err(std::io::Error::from_raw_os_error(i32::from_ne_bytes(errno)));
            }
            Ok(root)
        }
    }
}

/// Closes every descriptor but the standard ones and `keep`, by number: in a forked copy that never returns to their owners.
pub(crate) fn close_all_but(keep: &[RawFd]) {
    for fd in stasis_sys::descriptor::open_descriptors().unwrap_or_default() {
        if fd > 2 && !keep.contains(&fd) {
            stasis_sys::descriptor::close(fd);
        }
    }
}

/// Serves until the last descendant is gone or the job is given up; never returns.
pub(crate) fn serve(front: &OwnedFd, supervisor: &OwnedFd, root: Pid) -> ! {
    // Pipes that the program closes, and the supervisor's socket, would stay open with this process.
    let_go_of_stdio();
    close_all_but(&[front.as_raw_fd(), supervisor.as_raw_fd()]);
    let code = i32::from(serve_until_done(front, supervisor, root).is_err());
    process::exit_now(code)
}

fn serve_until_done(front: &OwnedFd, supervisor: &OwnedFd, root: Pid) -> std::io::Result<()> {
    let signals = SignalFd::new(SignalSet::ALL)?;
    let mut heard = relay::Heard::default();
    let tell = |event: Event| {
        for line in [front, supervisor] {
            // Whoever has left does not want to know.
            let _ = rustix::net::send(line, &event.encode(), SendFlags::NOSIGNAL);
        }
    };
    let mut root_lives = true;
    let mut attached = true;
    loop {
        loop {
            match process::wait(Pid(-1), WAIT_OPTIONS)? {
                Waited::Child(pid, status) if pid == root && root_lives => {
                    if let Some(signal) = status.stopped_by() {
                        tell(Event::RootStopped(signal));
                    } else if status.continued() {
                        tell(Event::RootContinued);
                    } else {
                        root_lives = false;
                        tell(Event::RootExited(status));
                    }
                }
                Waited::Child(..) => {}
                Waited::Nothing => break,
                Waited::NoChildren => {
                    tell(Event::Empty);
                    return Ok(());
                }
            }
        }
        let mut ready = [
            PollFd::new(&signals, PollFlags::IN),
            PollFd::new(front, PollFlags::IN),
        ];
        // A line that has hung up would wake every poll: once released, it is not looked at.
        let watched = if attached { 2 } else { 1 };
        match poll(&mut ready[..watched], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let spoken_to = attached && !ready[1].revents().is_empty();
        while let Some(received) = signals.read()? {
            heard.note(received.signal);
        }
        if spoken_to {
            let mut buffer = [0u8; MESSAGE_LEN];
            match rustix::net::recv(front, &mut buffer, RecvFlags::empty()) {
                Ok((n, _)) if n > 0 => match Command::decode(&buffer[..n]) {
                    Some(Command::Signal(signal)) if root_lives => {
                        relay::pass_on(root, signal, heard.take(signal), false);
                    }
                    Some(Command::GroupSignal(signal)) if root_lives => {
                        relay::pass_on(root, signal, heard.take(signal), true);
                    }
                    Some(Command::Release) => attached = false,
                    Some(Command::Kill) => kill_descendants(),
                    Some(Command::Signal(_) | Command::GroupSignal(_) | Command::Mapped) | None => {
                    }
                },
                Err(rustix::io::Errno::INTR) => {}
                // The foreground process is gone without a word: it was killed, and the program goes with it.
                Ok(_) | Err(_) => {
                    attached = false;
                    kill_descendants();
                }
            }
        }
    }
}

/// Kills every descendant, also those that are forked meanwhile: repeats until two looks find none alive and nothing else
/// changed, as one look may miss the children of a process that ends during it.
pub(crate) fn kill_descendants() {
    let mut last = None;
    loop {
        let all = crate::tree::descendants(Pid::current());
        let alive = crate::tree::living(&all);
        if alive.is_empty() && last.as_ref() == Some(&all) {
            return;
        }
        for pid in alive {
            let _ = signal::send(pid, SIGKILL);
        }
        while let Ok(Waited::Child(..)) = process::wait(Pid(-1), WNOHANG) {}
        std::thread::yield_now();
        last = Some(all);
    }
}

/// What the program starts with: the signal state that the shell gave to `stasis run`, and variables.
#[derive(Clone, Debug, Default)]
pub struct Inherited {
    /// Its signal mask.
    pub mask: SignalSet,
    /// Signals that it ignores (`nohup`, background jobs of a plain `sh`).
    pub ignored: Vec<i32>,
    /// Variables that it has beside those of the calling process.
    pub environment: Vec<(OsString, OsString)>,
}
