//! Making the keeper and the skeleton: everything that runs in forked copies of the supervisor.

use super::births::Births;
use super::ids::IdSource;
use super::numbers::Numbers;
use super::skeleton::{self, Skeleton};
use super::{Options, Plan, Strategy, clocks_go_on, context, world};
use crate::EngineError;
use crate::descriptors::{self, RestoreContext, ttys};
use crate::error::Context;
use crate::file_policy::{PathMap, ReadyFiles};
use crate::ipc;
use crate::keeper;
use crate::model::Tree;
use crate::store::Loader;
use rustix::fs::MemfdFlags;
use stasis_image::Image;
use stasis_sys::Pid;
use stasis_sys::board::Board;
use stasis_sys::process::{self, Fork};
use stasis_sys::signal::{self, SignalSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The first process of a pid namespace. In a container it may have been what started the job, and led its session and group.
const INIT: Pid = Pid(1);

/// Makes the keeper and the skeleton: everything that runs in forked copies.
pub struct Maker<'a> {
    pub image: &'a Image,
    pub plan: &'a Plan,
    pub options: &'a Options,
    pub births: &'a Births,
    pub numbers: &'a Numbers,
    pub board: Board,
    pub ids: IdSource,
    pub ready: &'a ReadyFiles,
    pub stdio: &'a [Option<OwnedFd>; 3],
    pub inherited: &'a [(RawFd, OwnedFd)],
    pub front: &'a OwnedFd,
    pub supervisor: &'a OwnedFd,
    pub report: BorrowedFd<'a>,
}

impl Maker<'_> {
    /// Runs in the first forked copy; its end is a process's end.
    pub fn first(&self) -> ! {
        let _ = signal::set_mask(SignalSet::ALL);
        for signal in 1..=64 {
            let _ = signal::set_default(signal);
        }
        let result = match self.plan.strategy {
            Strategy::Namespaces => self.make_world(),
            Strategy::Privileged | Strategy::Burn => self.make_keeper(),
        };
        self.end(result)
    }

    fn end(&self, result: Result<(), EngineError>) -> ! {
        if let Err(error) = &result {
            let _ = rustix::io::write(
                self.report,
                format!("{}\n", error.to_string().replace('\n', "; ")).as_bytes(),
            );
            self.board.fail();
            // The supervisor, which would do the same, may be gone.
            keeper::kill_descendants();
        }
        process::exit_now(i32::from(result.is_err()))
    }

    fn note(&self, note: &str) {
        let _ = rustix::io::write(
            self.report,
            format!("{}{note}\n", skeleton::NOTE).as_bytes(),
        );
    }

    /// Forks and runs `child` in the child, which then ends.
    fn fork(
        &self,
        want: Option<Pid>,
        child: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<Pid, EngineError> {
        match process::fork_with(want, 0).context(|| "making a process".into())? {
            Fork::Child => self.end(child()),
            Fork::Parent(pid) => Ok(pid),
        }
    }

    fn make_world(&self) -> Result<(), EngineError> {
        let mut notes = Vec::new();
        let tree = &self.plan.tree;
        world::enter(&tree.clocks, world::wants_ipc(tree), &mut notes)?;
        for note in notes {
            self.note(&note);
        }
        if self.plan.tree.outer_session.0 != 0 {
            self.fork(None, || self.be_init())?;
            return Ok(());
        }
        // The job saw a session whose leader was outside of its pid namespace, as a container's first process does: the leader is
        // outside again.
        self.lead_session()?;
        self.foreground()?;
        self.fork(None, || self.be_init())?;
        self.stand_by();
        Ok(())
    }

    /// The first process of the pid namespace: makes the keeper in the session and group that it had, and waits for its end,
    /// which takes everything with it.
    fn be_init(&self) -> Result<(), EngineError> {
        if let Err(error) = world::mount_proc() {
            self.note(&format!("/proc shows the host's process ids ({error}): the program may not find itself there"));
        }
        let tree = &self.plan.tree;
        match tree.outer_session {
            Pid(0) => self.make_group()?,
            INIT => {
                self.lead_session()?;
                self.make_group()?;
            }
            session => {
                self.fork(Some(session), || {
                    self.lead_session()?;
                    self.make_group()?;
                    self.stand_by();
                    Ok(())
                })?;
            }
        }
        // This process lives as long as the job: what it kept open, nobody else would ever see closed.
        keeper::let_go_of_stdio();
        keeper::close_all_but(&[]);
        loop {
            match process::wait(Pid(-1), 0).context(|| "waiting for the keeper".into())? {
                process::Waited::NoChildren => return Ok(()),
                process::Waited::Child(..) | process::Waited::Nothing => {}
            }
        }
    }

    /// Becomes the leader of a new session, which has the job's terminal.
    fn lead_session(&self) -> Result<(), EngineError> {
        process::new_session().context(|| "making a session".into())?;
        if let Some(terminal) = &self.options.terminal {
            rustix::process::ioctl_tiocsctty(terminal).context(|| "taking the terminal".into())?;
        }
        Ok(())
    }

    /// Puts the calling process's group in the foreground of the job's terminal.
    fn foreground(&self) -> Result<(), EngineError> {
        let Some(terminal) = &self.options.terminal else {
            return Ok(());
        };
        let group = rustix::process::Pid::from_raw(process::group().0);
        let group = group.ok_or_else(|| EngineError::Failed("no process group".into()))?;
        rustix::termios::tcsetpgrp(terminal, group)
            .context(|| "giving the terminal to the job".into())
    }

    /// Makes the keeper in the process group that it had, and in the calling process's session.
    fn make_group(&self) -> Result<(), EngineError> {
        let Tree {
            outer_session,
            outer_group,
            keeper,
            ..
        } = *self.plan.tree;
        if outer_group.0 == 0 {
            // Of a leader outside, which has the foreground already.
            self.fork(Some(keeper), || self.make_keeper())?;
        } else if outer_group == outer_session {
            self.foreground()?;
            self.fork(Some(keeper), || self.make_keeper())?;
        } else {
            let lead = || -> Result<(), EngineError> {
                process::set_group(Pid(0)).context(|| "making a process group".into())?;
                self.foreground()?;
                self.fork(Some(keeper), || self.make_keeper())?;
                Ok(())
            };
            if outer_group == INIT {
                return lead();
            }
            self.fork(Some(outer_group), || {
                lead()?;
                self.stand_by();
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Waits for the end of all children, holding nothing. The leader of a session takes its terminal with it when it ends; and
    /// in an orphaned process group, of which no ancestor in another group of the session could continue it, SIGTSTP and its
    /// like do not stop a process (`setpgid(2)`).
    fn stand_by(&self) {
        // Nothing of this process is used any more but its place in the tree.
        let _ = stasis_sys::descriptor::close_from(0);
        while let Ok(process::Waited::Child(..)) = process::wait(Pid(-1), 0) {}
    }

    /// In the keeper: opens everything, makes the processes, and serves.
    fn make_keeper(&self) -> Result<(), EngineError> {
        keeper::become_keeper();
        let tree = &self.plan.tree;
        let loader = Loader(self.image);
        let context = context(
            self.options,
            &loader,
            Some(self.ready),
            self.stdio,
            self.inherited,
            self.numbers.first_free,
        );
        // What this process itself needs must not be in the way of the program's numbers.
        let high = |fd: BorrowedFd<'_>| {
            rustix::io::fcntl_dupfd_cloexec(fd, self.numbers.end)
                .context(|| "duplicating a descriptor".into())
        };
        let (front, supervisor, report) = (
            high(self.front.as_fd())?,
            high(self.supervisor.as_fd())?,
            high(self.report)?,
        );
        // In a time namespace this process's clocks are the program's.
        let continues = clocks_go_on(self.plan.strategy);
        let context = RestoreContext {
            clocks: continues.then_some(tree.clocks),
            own_mounts: self.plan.strategy == Strategy::Namespaces,
            ..context
        };
        let mut notes = Vec::new();
        let segments = ipc::ids::make(&tree.ipc, self.plan.strategy, &loader, &mut notes)?;
        notes.iter().for_each(|note| self.note(note));
        let opened = descriptors::open_all(&tree.descriptions, &context)?;
        for note in &opened.notes {
            self.note(note);
        }
        self.open_mapped(&opened, &loader)?;
        let keep = self.numbers.keep();
        let path_map = PathMap::new(&self.options.map_path);
        let skeleton = Skeleton {
            tree,
            births: self.births,
            board: self.board,
            ids: &self.ids,
            opened: &opened,
            keep: &keep,
            path_map: &path_map,
            report: report.as_fd(),
        };
        skeleton.make()?;
        self.bring_to_foreground();
        if self.plan.strategy == Strategy::Namespaces {
            // New processes of the program get ids above those that it knows, as they would have. Without that they would be low.
            let highest = self.births.wanted(tree).last().map_or(1, |id| id.0);
            let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", highest.to_string());
        }
        self.await_word(&supervisor)?;
        // Whoever had them attached has them attached again.
        drop(segments);
        keeper::tell_sealed(&supervisor, &descriptors::seal(&tree.descriptions, &opened));
        drop(opened);
        keeper::let_go_of_stdio();
        keeper::close_all_but(&[front.as_raw_fd(), supervisor.as_raw_fd()]);
        self.await_word(&supervisor)?;
        keeper::serve(&front, &supervisor, tree.root)
    }

    /// Puts the process group in the foreground of the terminal that was there: in the keeper, which blocks SIGTTOU. Where the
    /// terminal is the restart's own, this command has to be in its foreground.
    fn bring_to_foreground(&self) {
        let tree = &self.plan.tree;
        let Some(group) = (tree.foreground.filter(|group| *group != tree.outer_group))
            .and_then(|group| rustix::process::Pid::from_raw(group.0))
        else {
            return;
        };
        let terminal = match &self.options.terminal {
            Some(made) => Some(made.as_fd()),
            None => ttys::in_foreground(self.stdio),
        };
        if let Some(terminal) = terminal
            && let Err(error) = rustix::termios::tcsetpgrp(terminal, group)
        {
            self.note(&format!(
                "process group {} could not be put in the foreground of the terminal: {error}",
                group.as_raw_nonzero()
            ));
        }
    }

    /// Waits until the supervisor has come to the next step; when it dies instead, the processes die.
    fn await_word(&self, supervisor: &OwnedFd) -> Result<(), EngineError> {
        let mut buffer = [0u8; keeper::MESSAGE_LEN];
        match rustix::net::recv(supervisor, &mut buffer, rustix::net::RecvFlags::empty()) {
            Ok((n, _)) if n > 0 => Ok(()),
            _ => {
                keeper::kill_descendants();
                process::exit_now(1)
            }
        }
    }

    /// Opens what is mapped, on the numbers that the supervisor will use.
    fn open_mapped(
        &self,
        opened: &descriptors::Opened,
        loader: &Loader<'_>,
    ) -> Result<(), EngineError> {
        use crate::contents::{ContentId, ContentLoader};
        use crate::file_policy::FileIndex;
        use rustix::fs::OFlags;
        let tree = &self.plan.tree;
        let place = |fd: BorrowedFd<'_>, number: RawFd| {
            stasis_sys::descriptor::duplicate_to(fd.as_raw_fd(), number, true)
                .context(|| format!("making descriptor {number}"))
        };
        for (n, record) in tree.files.iter().enumerate() {
            if !(record.uses.mapped || record.uses.mapped_shared_writable) {
                continue;
            }
            let access = if record.uses.mapped_shared_writable {
                OFlags::RDWR
            } else {
                OFlags::RDONLY
            };
            let fd = self
                .ready
                .open(FileIndex(n as u32), access | OFlags::CLOEXEC)?;
            place(fd.as_fd(), self.numbers.files + n as RawFd)?;
        }
        for (n, object) in tree.shared.iter().enumerate() {
            let number = self.numbers.shared + n as RawFd;
            if let Some(fd) = object.description.and_then(|id| opened.fd(id)) {
                place(fd, number)?;
                continue;
            }
            let name = String::from_utf8_lossy(&object.name);
            let name = name
                .trim_end_matches(" (deleted)")
                .trim_start_matches("/memfd:");
            let name = name.rsplit('/').next().unwrap_or(name);
            let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
                .context(|| "making shared memory".into())?;
            rustix::fs::ftruncate(&fd, object.len).context(|| "making shared memory".into())?;
            let file = File::from(fd);
            if let Some(contents) = object.contents {
                loader.load_into(ContentId(contents), &file)?;
            }
            place(file.as_fd(), number)?;
        }
        for (n, process) in tree.processes.iter().enumerate() {
            use std::os::unix::ffi::OsStrExt;
            let path = std::path::Path::new(std::ffi::OsStr::from_bytes(
                &process.memory.layout.executable,
            ));
            // A program whose file is gone runs on without its name in /proc/PID/exe.
            if let Ok(file) = File::open(path) {
                place(file.as_fd(), self.numbers.executables + n as RawFd)?;
            }
        }
        Ok(())
    }
}
