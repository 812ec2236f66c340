//! At a restart: what must happen to each file, decided without touching any.

use super::beside::{changed_suffix, cut_suffix, free_name, parent};
use super::collect::open_to_read;
use super::elf::build_id;
use super::paths::{PathMap, kind_name, refusal, show};
use super::record::{FileId, FileRecord, Presence, Seen};
use crate::contents::ContentLoader;
use crate::restart::ChangedFiles;
use crate::{EngineError, Refusal};
use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, statat};
use rustix::io::Errno;
use std::cell::LazyCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often, and at what distance, a file is looked at that seems to be open for writing.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(4);

/// What the user wants.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// What to do with files that do not match the saved memory and cannot be made to.
    pub changed: ChangedFiles,
    /// Where files are now.
    pub map: PathMap,
    /// The number of the checkpoint, for the names of what is kept.
    pub sequence: u64,
    /// The files that are the restart command's own standard streams: that they are open is no sign of somebody else's work.
    pub own: Vec<FileId>,
    /// A file that is one of these and has grown is not cut: what is written again is doubled in it.
    pub keep_own: bool,
    /// The same, of everything that the command was started with.
    pub held: Vec<FileId>,
}

/// What a restart is going to do with the files of an image.
#[derive(Clone, Debug, Default)]
pub struct FilePlan {
    pub(super) steps: Vec<Step>,
    pub(super) sequence: u64,
    /// Sentences, one for each file that a descriptor refers to.
    pub actions: Vec<String>,
    /// What stands in the way, all of it.
    pub problems: Vec<Refusal>,
}

impl FilePlan {
    /// Whether any file is changed, made or replaced.
    #[must_use]
    pub fn changes_files(&self) -> bool {
        let stays = |step: &Step| matches!(step.what, What::Use | What::Accept);
        !self.steps.iter().all(stays)
    }
}

/// What happens to one file.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) path: PathBuf,
    /// The file as it was when the plan was made.
    pub(super) seen: Option<Seen>,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It is used as it is.
    Use,
    /// It has changed, and is used as it is.
    Accept,
    /// It has grown: it is cut to the saved length, and what is cut off is kept.
    Cut,
    /// It was changed: it is kept (where it has anything that the image has not), and the saved one takes its name.
    Replace { keep: bool },
    /// It is gone: it is made again.
    Create,
    /// It had no name, and is made again without one, in the directory that is the step's path.
    Unlinked,
}

/// Decides what must happen to each of `records`. Files are read where contents must be compared; none is touched.
#[must_use]
pub fn plan(records: &[FileRecord], options: &PlanOptions, loader: &dyn ContentLoader) -> FilePlan {
    let mut plan = FilePlan {
        sequence: options.sequence,
        ..FilePlan::default()
    };
    // Only looked at where a file would be touched: the kernel waits for all processors before it shows its locks, which
    // takes it 6 to 14 ms.
    let locked = LazyCell::new(locked_files as fn() -> HashMap<FileId, i64>);
    for record in records {
        let mut case = Case {
            record,
            path: options.map.apply(record.path.as_path()),
            options,
            loader,
            locked: &locked,
            sentence: String::new(),
        };
        match case.decide() {
            Ok(step) => {
                let has_descriptor = record.uses.read || record.uses.written;
                if !case.sentence.is_empty() && (has_descriptor || step.what != What::Use) {
                    plan.actions.push(case.sentence);
                }
                plan.steps.push(step);
            }
            Err(problem) => plan.problems.push(problem),
        }
    }
    plan
}

/// Files that some process on this host has locked for writing, by what `/proc/locks` tells (`proc_locks(5)`).
fn locked_files() -> HashMap<FileId, i64> {
    let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            let (kind, _mode, access) = (words.next()?, words.next()?, words.next()?);
            if access != "WRITE" || !matches!(kind, "POSIX" | "FLOCK" | "OFDLCK") {
                return None;
            }
            let holder = words.next()?.parse().ok()?;
            let mut file = words.next()?.split(':');
            let major = u32::from_str_radix(file.next()?, 16).ok()?;
            let minor = u32::from_str_radix(file.next()?, 16).ok()?;
            let inode = file.next()?.parse().ok()?;
            let device = rustix::fs::makedev(major, minor);
            Some((FileId { device, inode }, holder))
        })
        .collect()
}

/// One file under consideration.
struct Case<'a> {
    record: &'a FileRecord,
    path: PathBuf,
    options: &'a PlanOptions,
    loader: &'a dyn ContentLoader,
    locked: &'a LazyCell<HashMap<FileId, i64>>,
    sentence: String,
}

impl Case<'_> {
    fn decide(&mut self) -> Result<Step, Refusal> {
        if self.record.presence == Presence::Unlinked {
            return self.unlinked();
        }
        // What is done must be done to the file, not to a symbolic link that leads to it by now.
        if let Ok(resolved) = self.path.canonicalize() {
            self.path = resolved;
        }
        let seen = match statat(CWD, &self.path, AtFlags::empty()) {
            Ok(stat) => {
                let seen = Seen::from(&stat);
                if !seen.regular {
                    let kind = kind_name(FileType::from_raw_mode(stat.st_mode));
                    return Err(self.problem(
                        format!("it was a regular file at the checkpoint and is {kind} now"),
                        "move it away, or use --map-path",
                    ));
                }
                seen
            }
            Err(Errno::NOENT | Errno::NOTDIR) => return self.gone(),
            Err(error) => {
                return Err(self.problem(
                    format!("it cannot be looked at: {error}"),
                    "check the permissions of its directories",
                ));
            }
        };
        self.may_open()?;
        if self.record.uses.writes() {
            self.written(seen)
        } else {
            self.only_read(seen)
        }
    }

    fn unlinked(&mut self) -> Result<Step, Refusal> {
        let was_in = parent(&self.path).to_owned();
        let temporary = std::env::temp_dir();
        let directory = [
            was_in,
            temporary,
            PathBuf::from("/tmp"),
            PathBuf::from("/dev/shm"),
        ]
        .into_iter()
        .find(|directory| {
            directory.is_dir() && allowed(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok()
        });
        let Some(directory) = directory else {
            return Err(self.problem(
                "it had been deleted while open, and no directory was found in which it could be made again",
                "make its directory writable, or set TMPDIR",
            ));
        };
        self.sentence = format!(
            "makes {} again, which had been deleted while open ({} bytes), without a name in {}",
            self.name(),
            self.record.size,
            show(&directory)
        );
        Ok(self.step_at(directory, None, What::Unlinked))
    }

    fn gone(&mut self) -> Result<Step, Refusal> {
        let directory = parent(&self.path);
        if !directory.is_dir() {
            let hint = format!(
                "make it again (mkdir -p {}), or use --map-path",
                show(directory)
            );
            let reason = format!("its directory {} is missing", show(directory));
            return Err(self.problem(reason, hint));
        }
        if !self.record.uses.any() {
            return Err(self.problem("it is missing", "put it back, or use --map-path"));
        }
        if self.record.evidence.stored.is_none() {
            let hint = if self.record.uses.writes() {
                "it was larger than the content limit of the checkpoint and is not stored: put it back, or use --map-path"
            } else {
                "files that are only read are not stored: put it back, or use --map-path"
            };
            return Err(self.problem("it is missing", hint));
        }
        self.may_make_beside()?;
        self.sentence = format!(
            "restores {}, which is gone ({} bytes)",
            self.name(),
            self.record.size
        );
        Ok(self.step(None, What::Create))
    }

    /// The permissions that reopening needs. What the program had when it opened the file may have been taken away since.
    fn may_open(&self) -> Result<(), Refusal> {
        let uses = self.record.uses;
        let mut access = Access::empty();
        access.set(
            Access::READ_OK,
            uses.read || uses.mapped || uses.mapped_shared_writable,
        );
        access.set(Access::WRITE_OK, uses.writes());
        if access.is_empty() {
            return Ok(());
        }
        allowed(&self.path, access).map_err(|error| {
            let what = match (uses.read, uses.writes()) {
                (true, true) => "opened for reading and writing",
                (false, true) => "opened for writing",
                _ => "opened for reading",
            };
            let hint = if error == Errno::ROFS {
                "mount its file system writable"
            } else {
                "give yourself the permission (chmod)"
            };
            self.problem(format!("it cannot be {what}: {error}"), hint)
        })
    }

    fn written(&mut self, seen: Seen) -> Result<Step, Refusal> {
        let record = self.record;
        if record.times_tell && is_untouched(record, seen) {
            return Ok(self.used(seen));
        }
        let file = self.open_to_compare()?;
        if let Some(stored) = record.evidence.stored {
            let begins_the_same = |len| self.said(self.loader.matches(stored, &file, len));
            if seen.size < record.size {
                // Nothing is lost where all that is there is in the image as well.
                let keep = !begins_the_same(seen.size)?;
                return self.replaced(seen, keep, "is shorter than at the checkpoint");
            }
            if !begins_the_same(record.size)? {
                return self.replaced(seen, true, "was changed in place");
            }
            return if seen.size == record.size {
                Ok(self.used(seen))
            } else {
                self.cut(seen, "")
            };
        }
        let Some(fingerprint) = record.evidence.fingerprint else {
            return self.changed(
                seen,
                "nothing was stored of it, so whether it has changed is not known",
            );
        };
        if seen.size < record.size {
            return self.changed(
                seen,
                "it is shorter than at the checkpoint, and was too large to be stored",
            );
        }
        let alike = fingerprint
            .matches(&file)
            .map_err(|error| self.unreadable(&error.to_string()))?;
        if !alike {
            self.changed(
                seen,
                "it was changed in place since the checkpoint, and was too large to be stored",
            )
        } else if seen.size > record.size {
            let doubt = if fingerprint.is_exact() {
                ""
            } else {
                " (that it only grew was judged by samples, for it was too large to be stored)"
            };
            self.cut(seen, doubt)
        } else if seen.modified == record.modified || fingerprint.is_exact() {
            Ok(self.used(seen))
        } else {
            self.changed(seen, "it was written to since the checkpoint, and was too large to be stored; samples show no change")
        }
    }

    fn only_read(&mut self, seen: Seen) -> Result<Step, Refusal> {
        let record = self.record;
        let evidence = &record.evidence;
        if !record.uses.any() {
            return Ok(self.used(seen));
        }
        if seen.size != record.size {
            let what = if seen.size > record.size {
                "it has grown"
            } else {
                "it has become shorter"
            };
            let reason = format!(
                "{what} since the checkpoint, from {} to {} bytes",
                record.size, seen.size
            );
            return self.changed(seen, &reason);
        }
        let same_stamp = seen.modified == record.modified;
        if same_stamp && record.times_tell && seen.id == record.id {
            return Ok(self.used(seen));
        }
        let file = match self.open_to_compare() {
            Ok(file) => file,
            // An executable without read permission, say: the time stamp is all there is.
            Err(_) if same_stamp => return Ok(self.used(seen)),
            Err(problem) => return Err(problem),
        };
        if let Some(id) = &evidence.build_id
            && build_id(&file).as_ref() != Some(id)
        {
            return self.changed(seen, "it is another build than at the checkpoint");
        }
        let same_build = evidence.build_id.is_some();
        match evidence.fingerprint {
            Some(fingerprint) => {
                let alike = fingerprint
                    .matches(&file)
                    .map_err(|error| self.unreadable(&error.to_string()))?;
                if alike && (same_stamp || same_build || fingerprint.is_exact()) {
                    Ok(self.used(seen))
                } else {
                    self.changed(seen, "it was changed since the checkpoint")
                }
            }
            None if same_stamp || same_build => Ok(self.used(seen)),
            None => self.changed(seen, "it was written to since the checkpoint"),
        }
    }

    fn open_to_compare(&self) -> Result<File, Refusal> {
        open_to_read(&self.path)
            .map(File::from)
            .map_err(|error| self.unreadable(&error.to_string()))
    }

    fn said<T>(&self, result: Result<T, EngineError>) -> Result<T, Refusal> {
        result.map_err(|error| self.unreadable(&error.to_string()))
    }

    fn unreadable(&self, error: &str) -> Refusal {
        self.problem(
            format!("it cannot be compared with the checkpoint: {error}"),
            "give yourself the permission to read it (chmod)",
        )
    }

    fn used(&mut self, seen: Seen) -> Step {
        self.sentence = format!("uses {} as it is ({} bytes)", self.name(), seen.size);
        self.step(Some(seen), What::Use)
    }

    fn cut(&mut self, seen: Seen, doubt: &str) -> Result<Step, Refusal> {
        if self.options.keep_own && self.options.own.contains(&seen.id) {
            self.sentence = format!(
                "goes on at the end of {}, which has grown and is the restart's own output",
                self.name()
            );
            return Ok(self.step(Some(seen), What::Accept));
        }
        if let Some(reason) = self.at_work(seen) {
            return self.changed(seen, &reason);
        }
        self.may_make_beside()?;
        allowed(&self.path, Access::WRITE_OK).map_err(|error| {
            self.problem(
                format!("it has grown and cannot be cut: {error}"),
                "give yourself the permission (chmod)",
            )
        })?;
        let len = self.record.size;
        self.sentence = format!(
            "cuts {} from {} to {len} bytes, and keeps the {} cut bytes in {}{doubt}",
            self.name(),
            seen.size,
            seen.size - len,
            show(&free_name(
                &self.path,
                &cut_suffix(self.options.sequence, len)
            )),
        );
        Ok(self.step(Some(seen), What::Cut))
    }

    fn replaced(&mut self, seen: Seen, keep: bool, why: &str) -> Result<Step, Refusal> {
        if self.options.own.contains(&seen.id) {
            // Another file under its name would not be the one that the restart writes to.
            self.sentence = format!(
                "goes on in {}, which {why} and is the restart's own output",
                self.name()
            );
            return Ok(self.step(Some(seen), What::Accept));
        }
        if let Some(reason) = self.at_work(seen) {
            return self.changed(seen, &reason);
        }
        self.may_make_beside()?;
        self.may_rename_over(seen)?;
        let kept = if keep {
            let name = free_name(&self.path, &changed_suffix(self.options.sequence));
            format!(", and keeps the file that is there now as {}", show(&name))
        } else {
            String::new()
        };
        let links = if seen.links > 1 {
            "; its other names go on leading to the file that is there now"
        } else {
            ""
        };
        self.sentence = format!(
            "restores {} ({} bytes), which {why}{kept}{links}",
            self.name(),
            self.record.size
        );
        Ok(self.step(Some(seen), What::Replace { keep }))
    }

    /// It does not match and cannot be made to: the user decides, where a decision can be left to him.
    fn changed(&mut self, seen: Seen, reason: &str) -> Result<Step, Refusal> {
        // Code that is not the code that the registers point into is no decision, it is a crash.
        if self.record.evidence.build_id.is_some() {
            return Err(self.problem(
                format!("{reason}, and the program has it mapped"),
                "put the version of the checkpoint back, or restart on a host that has it (--map-path)",
            ));
        }
        if self.options.changed == ChangedFiles::Accept {
            self.sentence = format!(
                "uses {} as it is, though {reason}: accepted by option",
                self.name()
            );
            return Ok(self.step(Some(seen), What::Accept));
        }
        Err(self.problem(
            reason,
            "put the file of the checkpoint back, or use --changed-files accept to go on with the one that is there",
        ))
    }

    /// Why the file had better not be changed: somebody is at work on it, the job itself, perhaps, still running.
    fn at_work(&self, seen: Seen) -> Option<String> {
        if self.options.held.contains(&seen.id) {
            return None;
        }
        if let Some(holder) = self.locked.get(&seen.id) {
            let by = match holder {
                ..=0 => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            return Some(format!(
                "it has changed since the checkpoint, and {by} holds a lock on it (is the job still running?)"
            ));
        }
        let file = open_to_read(&self.path).ok()?;
        // A process between fork and exec holds for a moment what its parent had open: look again before believing.
        let mut looks = 0;
        // Where leases cannot be had, this is not known.
        while stasis_sys::lock::is_open_for_writing(&file).unwrap_or(false) {
            looks += 1;
            if looks == LOOKS {
                return Some(
                    "it has changed since the checkpoint, and a process has it open for writing (is the job still \
                     running?)"
                        .to_owned(),
                );
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        None
    }

    fn may_make_beside(&self) -> Result<(), Refusal> {
        let directory = parent(&self.path);
        allowed(directory, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
            self.problem(
                format!(
                    "it must be put back as it was at the checkpoint, and no file can be made in {}: {error}",
                    show(directory)
                ),
                "make the directory writable (chmod u+w)",
            )
        })
    }

    /// In a sticky directory only the owner of a file or of the directory may rename over it (`unlink(2)`, EPERM).
    fn may_rename_over(&self, seen: Seen) -> Result<(), Refusal> {
        const STICKY: u32 = 0o1000;
        let us = rustix::process::geteuid().as_raw();
        let Ok(directory) = statat(CWD, parent(&self.path), AtFlags::empty()) else {
            return Ok(());
        };
        let owner = us == 0 || us == seen.uid || us == directory.st_uid;
        if directory.st_mode & STICKY == 0 || owner {
            return Ok(());
        }
        Err(self.problem(
            "it was changed since the checkpoint, and belongs to another user in a sticky directory: it cannot be replaced",
            "move it away",
        ))
    }

    fn name(&self) -> String {
        show(&self.path)
    }

    fn problem(&self, reason: impl Into<String>, hint: impl Into<String>) -> Refusal {
        let role = if self.record.evidence.build_id.is_some() {
            "program file"
        } else {
            "file"
        };
        refusal(format!("{role} {}", self.name()), reason, hint)
    }

    fn step(&self, seen: Option<Seen>, what: What) -> Step {
        self.step_at(self.path.clone(), seen, what)
    }

    fn step_at(&self, path: PathBuf, seen: Option<Seen>, what: What) -> Step {
        Step { path, seen, what }
    }
}

fn is_untouched(record: &FileRecord, seen: Seen) -> bool {
    (record.id, record.size, record.modified, record.changed)
        == (seen.id, seen.size, seen.modified, seen.changed)
}

/// `faccessat(2)` with the effective ids.
pub(super) fn allowed(path: &Path, access: Access) -> Result<(), Errno> {
    accessat(CWD, path, access, AtFlags::EACCESS)
}
