//! The front: the process that the user started, in the terminal's session and process group.
//!
//! It holds nothing that the program needs. It passes signals on, tells what there is to tell, and ends with the
//! program's status. It has one thread, as it forks the supervisor.

mod inherited;
mod stop;
mod terminal;

use crate::error::Context;
use crate::line::{self, ToFront, ToSupervisor};
use crate::start::{self, Lines, Start};
use crate::{Error, Settings, signal_name};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::process::Signal;
use stasis_engine::keeper::{self, Command, Event};
use stasis_sys::process::{self, Fork, SIGCHLD, SIGKILL, WNOHANG, WaitStatus, Waited};
use stasis_sys::signal::{self, Received, SignalFd, SignalSet};
use stasis_sys::{Pid, descriptor};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use terminal::{Found, Side, Terminal};

/// Shows the user what there is to see. What the program itself writes does not pass through here.
pub trait Screen {
    /// A sentence.
    fn note(&mut self, text: &str);
    /// How far a long step has come, in bytes.
    fn progress(&mut self, what: &str, done: u64, total: u64);
    /// Takes what [`Screen::progress`] has drawn away again.
    fn clear(&mut self);
}

/// How a job ended, as far as the front is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The first process ended with this status.
    Status(WaitStatus),
    /// It was saved and stopped on request.
    Saved(PathBuf),
    /// It could not be started; nothing of it is left.
    Failed {
        /// Exit status for that.
        code: u8,
        /// Why.
        message: String,
        /// The image is damaged: an older one may do.
        damaged: bool,
    },
    /// The keeper was killed, and nobody can tell how the program ends.
    Lost,
}

/// Signals that give up a start, and the waiting for a supervisor that still writes when the program is gone.
const GIVE_UP: [Signal; 4] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT];
/// `si_code` of signals from the terminal and the like; those of processes are 0 and below.
const SI_KERNEL: i32 = 0x80;
/// For how long the remains of a start that was given up may take to go.
const LAST_WAIT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// How often a job in the background looks whether the terminal is its own again.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 250_000_000,
};
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Puts `/dev/null` in the place of standard input and output where these are pipes or sockets: a program that closes its own
/// must be seen to have done so at the other end. Standard error stays, as there may be something to say.
pub(crate) fn let_go_of_pipes() {
    let leads = |fd: BorrowedFd<'_>| {
        let mode = rustix::fs::fstat(fd).map_or(0, |stat| stat.st_mode);
        matches!(
            FileType::from_raw_mode(mode),
            FileType::Fifo | FileType::Socket
        )
    };
    let Ok(null) = (File::options().read(true).write(true)).open("/dev/null") else {
        return;
    };
    // Neither can fail with an open descriptor.
    if leads(rustix::stdio::stdin()) {
        let _ = rustix::stdio::dup2_stdin(&null);
    }
    if leads(rustix::stdio::stdout()) {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// Starts a job under a new supervisor and attends to it until its end. The calling process has one thread.
///
/// # Errors
/// [`Error::System`] when the processes and lines around the job cannot be made.
pub fn attend(start: Start, settings: &Settings, screen: &mut dyn Screen) -> Result<End, Error> {
    let mut front = Front::start(start, settings)?;
    let end = front.attend(settings, screen);
    match (&mut front.terminal, &front.found) {
        (Some(terminal), _) => terminal.finish(),
        (None, Some(found)) => found.put_back(),
        (None, None) => {}
    }
    screen.clear();
    end
}

struct Front {
    signals: SignalFd,
    /// To the keeper; none when that has left.
    keeper: Option<OwnedFd>,
    /// To the supervisor; none when that has left.
    line: Option<OwnedFd>,
    supervisor: Pid,
    supervisor_gone: bool,
    started: bool,
    failed: Option<End>,
    saved: Option<PathBuf>,
    status: Option<WaitStatus>,
    /// The last process of the program is gone.
    empty: bool,
    /// The job comes from an image, which may take long to read.
    restarts: bool,
    /// Signals that arrived before the program ran.
    early: Vec<Received>,
    /// A terminal that the supervisor may give to the job.
    offered: Option<Terminal>,
    /// The job's own terminal, where it has one.
    terminal: Option<Terminal>,
    /// The user's terminal before a restart.
    found: Option<Found>,
    /// This process has stopped itself, and a continuation is meant for the whole job.
    was_stopped: bool,
}

/// What has something to say.
struct Ready {
    signals: bool,
    keeper: bool,
    line: bool,
    terminal: Vec<Side>,
}

impl Front {
    fn start(start: Start, settings: &Settings) -> Result<Front, Error> {
        let mut inherited = inherited::take().context(|| "preparing signals".into())?;
        inherited.environment.clone_from(&settings.environment);
        let (keeper, keepers_end) = keeper::line().context(|| "making the keeper's line".into())?;
        let (line, supervisors_end) =
            keeper::line().context(|| "making the supervisor's line".into())?;
        let restarts = matches!(start, Start::Restart { .. });
        let found = restarts.then(Found::take).flatten();
        let (terminal, slave) = restarts.then(Terminal::make).flatten().unzip();
        match process::fork().context(|| "starting the supervisor".into())? {
            Fork::Child => {
                drop((keeper, line, terminal));
                let lines = Lines {
                    keeper: keepers_end,
                    front: supervisors_end,
                    terminal: slave,
                };
                start::become_supervisor(start, settings.clone(), &inherited, lines)
            }
            Fork::Parent(supervisor) => {
                drop((keepers_end, supervisors_end, slave));
                if let Some(membership) = &settings.membership {
                    // The supervisor speaks for the job, and nobody after its death.
                    drop(membership.take());
                }
                let signals =
                    SignalFd::new(SignalSet::ALL).context(|| "preparing signals".into())?;
                Ok(Front {
                    signals,
                    keeper: Some(keeper),
                    line: Some(line),
                    supervisor,
                    supervisor_gone: false,
                    started: false,
                    failed: None,
                    saved: None,
                    status: None,
                    empty: false,
                    restarts,
                    early: Vec::new(),
                    offered: terminal,
                    terminal: None,
                    found,
                    was_stopped: false,
                })
            }
        }
    }

    fn attend(&mut self, settings: &Settings, screen: &mut dyn Screen) -> Result<End, Error> {
        loop {
            let ready = self.wait(None)?;
            // What the supervisor and the keeper have said before they died comes first.
            self.hear(&ready, settings, screen);
            if ready.signals {
                while let Some(received) =
                    self.signals.read().context(|| "reading signals".into())?
                {
                    if received.signal == SIGCHLD && received.code > 0 {
                        self.look_after_supervisor(settings, screen)?;
                    } else if let Some(end) = self.receive(received, settings, screen) {
                        return Ok(end);
                    }
                }
            }
            if let Some(end) = self.end(settings) {
                return Ok(end);
            }
        }
    }

    /// Waits until somebody has something to say.
    fn wait(&self, limit: Option<&Timespec>) -> Result<Ready, Error> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let [keeper, line] = [&self.keeper, &self.line].map(|fd| {
            let at = fds.len();
            fds.extend(fd.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            (fds.len() > at).then_some(at)
        });
        let first = fds.len();
        let sides = self
            .terminal
            .as_ref()
            .map(Terminal::watched)
            .unwrap_or_default();
        for (_, fd, flags) in &sides {
            fds.push(PollFd::from_borrowed_fd(*fd, *flags));
        }
        let background = self
            .terminal
            .as_ref()
            .is_some_and(Terminal::is_in_background);
        let limit = limit.or(background.then_some(&LOOK_AGAIN));
        match poll(&mut fds, limit) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "waiting for events".into()),
        }
        let ready = |at: usize| !fds[at].revents().is_empty();
        Ok(Ready {
            signals: ready(0),
            keeper: keeper.is_some_and(ready),
            line: line.is_some_and(ready),
            terminal: (sides.iter().enumerate())
                .filter(|(n, _)| ready(first + n))
                .map(|(_, (side, _, _))| *side)
                .collect(),
        })
    }

    fn hear(&mut self, ready: &Ready, settings: &Settings, screen: &mut dyn Screen) {
        for side in &ready.terminal {
            if let Some(terminal) = &mut self.terminal {
                terminal.relay(*side);
            }
        }
        if ready.line {
            self.hear_supervisor(settings, screen);
        }
        if ready.keeper {
            self.hear_keeper(settings, screen);
        }
    }

    /// Shows a sentence, with the user's terminal in the modes that it is used to.
    fn note(&mut self, text: &str, screen: &mut dyn Screen) {
        let raw = self.terminal.as_mut().filter(|terminal| terminal.is_raw());
        match raw {
            Some(terminal) => {
                terminal.leave();
                screen.note(text);
                terminal.enter();
            }
            None => screen.note(text),
        }
    }

    fn hear_supervisor(&mut self, settings: &Settings, screen: &mut dyn Screen) {
        let Some(line) = &self.line else { return };
        match line::hear(line) {
            Ok(Some(ToFront::Started { root, terminal })) => {
                tracing::debug!(root, terminal, "the program runs");
                self.started = true;
                // The program has them: here they would keep pipes open that it closes.
                descriptor::close_inherited();
                let_go_of_pipes();
                screen.clear();
                self.terminal = self.offered.take().filter(|_| terminal);
                if let Some(terminal) = &mut self.terminal {
                    terminal.enter();
                }
                for received in std::mem::take(&mut self.early) {
                    self.receive(received, settings, screen);
                }
            }
            Ok(Some(ToFront::Failed {
                code,
                message,
                damaged,
            })) => {
                self.failed = Some(End::Failed {
                    code,
                    message,
                    damaged,
                });
            }
            Ok(Some(ToFront::Note(text))) => self.note(&text, screen),
            Ok(Some(ToFront::Progress { what, done, total })) => {
                if done >= total {
                    screen.clear();
                } else {
                    screen.progress(&what, done, total);
                }
            }
            Ok(Some(ToFront::SavedAndStopped { path })) => self.saved = Some(path),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "a message of the supervisor was not understood");
            }
            Ok(None) | Err(_) => self.line = None,
        }
    }

    fn hear_keeper(&mut self, settings: &Settings, screen: &mut dyn Screen) {
        let Some(keeper) = &self.keeper else { return };
        match Event::receive(keeper.as_fd()) {
            Ok(Some(Event::RootExited(status))) => {
                self.status = Some(status);
                if settings.exit_with_root {
                    self.command(Command::Release);
                }
            }
            Ok(Some(Event::RootStopped(signal))) => {
                screen.clear();
                if let Some(terminal) = &mut self.terminal {
                    terminal.leave();
                }
                stop::stop_self(signal);
                self.was_stopped = true;
                if let Some(terminal) = &mut self.terminal {
                    terminal.enter();
                }
            }
            Ok(Some(Event::RootContinued)) => {}
            Ok(Some(Event::Empty)) => self.empty = true,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(None) | Err(_) => self.keeper = None,
        }
    }

    /// A child has changed its state, and there is but one. Its last words, and the keeper's, are read before its
    /// death is believed to be a misfortune.
    fn look_after_supervisor(
        &mut self,
        settings: &Settings,
        screen: &mut dyn Screen,
    ) -> Result<(), Error> {
        match process::wait(self.supervisor, WNOHANG) {
            Ok(Waited::Nothing) | Err(_) => return Ok(()),
            Ok(Waited::Child(..) | Waited::NoChildren) => {}
        }
        if std::mem::replace(&mut self.supervisor_gone, true) {
            return Ok(());
        }
        loop {
            let ready = self.wait(Some(&AT_ONCE))?;
            if !ready.line && !ready.keeper {
                break;
            }
            self.hear(&ready, settings, screen);
        }
        let over = self.empty
            || self.keeper.is_none()
            || (settings.exit_with_root && self.status.is_some());
        if self.started && !over {
            let text =
                "the supervisor has died: the program runs on, but is no longer checkpointed";
            self.note(text, screen);
        }
        Ok(())
    }

    /// Deals with a signal that was sent to this process. Tells the end where the signal makes it.
    fn receive(
        &mut self,
        received: Received,
        settings: &Settings,
        screen: &mut dyn Screen,
    ) -> Option<End> {
        let Received {
            signal,
            code,
            sender,
            ..
        } = received;
        let gives_up = GIVE_UP.iter().any(|known| known.as_raw() == signal);
        let stop = settings.stop_signal == Some(signal);
        if stop || settings.checkpoint_signal == Some(signal) {
            if self.started {
                self.trigger(stop, signal, screen);
            } else {
                self.early.push(received);
            }
            return None;
        }
        let from_supervisor =
            code <= 0 && sender == self.supervisor && signal == Signal::CONT.as_raw();
        if from_supervisor || (code > 0 && code != SI_KERNEL) {
            return None;
        }
        if self.empty || self.supervisor_gone && self.keeper.is_none() {
            // Only the supervisor's last work is waited for.
            return gives_up.then(|| self.status.map_or(End::Lost, End::Status));
        }
        if !self.started && !self.supervisor_gone {
            // A launch takes a moment only, and may have happened already.
            if gives_up && self.restarts {
                self.give_up();
                return Some(End::Failed {
                    code: u8::try_from(128 + signal).unwrap_or(u8::MAX),
                    message: format!("given up on {}", signal_name::name(signal)),
                    damaged: false,
                });
            }
            self.early.push(received);
            return None;
        }
        if signal == Signal::WINCH.as_raw()
            && code == SI_KERNEL
            && let Some(terminal) = &self.terminal
        {
            terminal.resize();
            return None;
        }
        // What a shell sends to continue a job is meant for all of it.
        let continues = signal == Signal::CONT.as_raw() && std::mem::take(&mut self.was_stopped);
        self.command(if code == SI_KERNEL || continues {
            Command::GroupSignal(signal)
        } else {
            Command::Signal(signal)
        });
        None
    }

    fn trigger(&mut self, stop: bool, signal: i32, screen: &mut dyn Screen) {
        let told = match &self.line {
            Some(line) if !self.supervisor_gone => {
                line::tell(line, &ToSupervisor::Checkpoint { stop }, false).is_ok()
            }
            _ => false,
        };
        if !told {
            let name = signal_name::name(signal);
            let text = format!(
                "{name} asks for a checkpoint, but the supervisor is gone: nothing is saved"
            );
            self.note(&text, screen);
        }
    }

    fn command(&self, command: Command) {
        if let Some(keeper) = &self.keeper {
            // A keeper that has just left is noticed by its line.
            let _ = command.send(keeper.as_fd());
        }
    }

    /// Ends a start that is under way, and waits until nothing of it is left.
    fn give_up(&mut self) {
        self.command(Command::Kill);
        let _ = signal::send(self.supervisor, SIGKILL);
        let _ = process::wait(self.supervisor, 0);
        self.line = None;
        while let Some(keeper) = &self.keeper {
            let mut fds = [PollFd::new(keeper, PollFlags::IN)];
            match poll(&mut fds, Some(&LAST_WAIT)) {
                Ok(0) => break,
                _ => {
                    if !matches!(Event::receive(keeper.as_fd()), Ok(Some(_))) {
                        self.keeper = None;
                    }
                }
            }
        }
    }

    /// The end, where it has come.
    fn end(&self, settings: &Settings) -> Option<End> {
        if settings.exit_with_root
            && let Some(status) = self.status
        {
            return Some(End::Status(status));
        }
        if !self.supervisor_gone {
            return None;
        }
        if let Some(failed) = &self.failed {
            return Some(failed.clone());
        }
        let over = self.empty || self.keeper.is_none();
        if !over {
            return None;
        }
        if let Some(path) = &self.saved {
            return Some(End::Saved(path.clone()));
        }
        Some(match self.status {
            Some(status) => End::Status(status),
            None if self.started => End::Lost,
            None => End::Failed {
                code: start::OWN_FAILURE,
                message: "the supervisor has died before the program ran".into(),
                damaged: false,
            },
        })
    }
}
