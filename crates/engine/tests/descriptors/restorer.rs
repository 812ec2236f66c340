//! Restores, for the tests of descriptors, what its standard input describes: a program of its own, as processes are forked here,
//! which a test's has too many threads for. It makes the namespaces, the keeper in them and the tree below that, tells, and
//! waits for the tree's end.

#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    reason = "a test that cannot be set up has to fail"
)]

mod parcel;

use parcel::{Parcel, Store};
use rustix::fs::{Mode, OFlags};
use stasis_engine::EngineError;
use stasis_engine::descriptors::{self, Opened, ProcessView, RestoreContext};
use stasis_engine::file_policy::{self, PathMap, PlanOptions};
use stasis_engine::restart::ChangedFiles;
use stasis_sys::process::{self, Fork, WUNTRACED, Waited};
use stasis_sys::{Pid, signal};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

/// An inherited descriptor: a duplicate that is closed on exec, out of the program's way.
fn take(fds: &[(RawFd, OwnedFd)], number: RawFd, first_free: RawFd) -> OwnedFd {
    let (_, fd) = (fds.iter().find(|(n, _)| *n == number)).expect("it was inherited");
    rustix::io::fcntl_dupfd_cloexec(fd, first_free).expect("a number")
}

fn main() {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).expect("readable");
    let parcel: Parcel = postcard::from_bytes(&bytes).expect("a parcel");
    let inherited = stasis_sys::descriptor::inherited();
    let own = |number: RawFd| take(&inherited, number, parcel.first_free);
    let stdio = parcel.stdio.map(|number| number.map(own));
    let terminal = parcel.terminal.map(own);
    let mut told = File::from(own(parcel.told));
    drop(inherited);
    // Nobody but the tree may hold what the tree is given.
    stasis_sys::descriptor::close_inherited();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).expect("/dev/null");
    rustix::stdio::dup2_stdin(&null).expect("placed");
    drop(null);
    match process::fork_with(None, (libc::CLONE_NEWUSER | libc::CLONE_NEWPID) as u64) {
        Ok(Fork::Child) => {}
        Ok(Fork::Parent(first)) => {
            drop((told, stdio, terminal));
            let _ = process::wait(first, 0);
            return;
        }
        Err(error) => {
            let _ = told.write_all(format!("making namespaces: {error}").as_bytes());
            return;
        }
    }
    let text = match restore(&parcel, &stdio, terminal.as_ref(), &told) {
        Ok(notes) => format!("ok\n{notes}"),
        Err(error) => error.to_string(),
    };
    let _ = told.write_all(text.as_bytes());
    drop((told, stdio, terminal));
    while let Ok(Waited::Child(..)) = process::wait(Pid(-1), 0) {}
}

/// Restores the tree below this process; gives the notes.
fn restore(
    parcel: &Parcel,
    stdio: &[Option<OwnedFd>; 3],
    terminal: Option<&OwnedFd>,
    told: &File,
) -> Result<String, EngineError> {
    let store = Store {
        all: Mutex::new(parcel.contents.clone()),
        files: Mutex::new(parcel.files.clone()),
    };
    let options = PlanOptions {
        changed: ChangedFiles::Refuse,
        map: PathMap::default(),
        sequence: 1,
        own: Vec::new(),
        held: Vec::new(),
    };
    let files = store.files.lock().expect("unpoisoned").clone();
    let plan = file_policy::plan(&files, &options, &store);
    let ready = file_policy::apply(&plan, &files, &store)?;
    let context = RestoreContext {
        contents: &store,
        files: Some(&ready),
        first_free: parcel.first_free,
        stdio,
        inherited: &[],
        terminal,
        path_map: &[],
        clocks: None,
        own_mounts: false,
        changed_files: ChangedFiles::Refuse,
    };
    let failed =
        |what: &str, error: std::io::Error| EngineError::Failed(format!("{what}: {error}"));
    let opened = descriptors::open_all(&parcel.descriptions, &context)?;
    let moved = |fd| rustix::io::fcntl_dupfd_cloexec::<OwnedFd>(fd, context.first_free);
    let (gate, key) = rustix::pipe::pipe().map_err(|e| failed("a pipe", e.into()))?;
    let gate = moved(gate).map_err(|e| failed("a pipe", e.into()))?;
    let key = moved(key).map_err(|e| failed("a pipe", e.into()))?;
    for (index, (pid, _)) in parcel.processes.iter().enumerate() {
        match process::fork_with(Some(Pid(*pid)), 0) {
            Ok(Fork::Parent(_)) => {}
            Ok(Fork::Child) => {
                drop(key);
                if let Err(error) = live(index, parcel, opened, gate) {
                    // Standard error may not be what it was.
                    let _ = (&*told).write_all(format!("process {index}: {error}").as_bytes());
                }
                process::exit_now(97)
            }
            Err(error) => return Err(failed("forking", error)),
        }
    }
    drop(key);
    let notes = opened.notes.join("\n");
    drop(opened);
    for _ in &parcel.processes {
        match process::wait(Pid(-1), WUNTRACED) {
            Ok(Waited::Child(_, status)) if status.stopped_by() == Some(libc::SIGSTOP) => {}
            other => return Err(EngineError::Failed(format!("a process ended: {other:?}"))),
        }
    }
    Ok(notes)
}

/// What each restored process does.
fn live(index: usize, parcel: &Parcel, opened: Opened, gate: OwnedFd) -> Result<(), EngineError> {
    let (pid, name) = &parcel.processes[index];
    let view = ProcessView {
        pid: Pid(*pid),
        virtual_pid: Pid(*pid),
        name: name.clone(),
    };
    let table = &parcel.tables[index];
    descriptors::install(table, &opened)?;
    let mut byte = [0u8];
    let _ = rustix::io::read(&gate, &mut byte);
    descriptors::finish(index, &parcel.tables, &parcel.descriptions, &opened)?;
    assert!(gate.as_raw_fd() > 0);
    std::mem::forget(gate);
    descriptors::close_high(&view, table, &opened, &[])?;
    std::mem::forget(opened);
    let _ = signal::send(Pid::current(), libc::SIGSTOP);
    if index > 0 {
        loop {
            std::thread::park();
        }
    }
    let argv = ["python3", "-u", "-c", &parcel.script].map(Into::into);
    Err(EngineError::Failed(
        process::exec(&argv, &[], signal::SignalSet::EMPTY, &[]).to_string(),
    ))
}
