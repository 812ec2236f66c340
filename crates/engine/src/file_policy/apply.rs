//! Carrying out a plan, so that a restart that is killed or fails at any point has lost nothing.
//!
//! First everything that needs space is written and made durable, in files without a name: a failure here, such as a full
//! disk, leaves every file as it was. Then, file by file, names are given and lengths set:
//!
//! | what    | steps                                                                                                  |
//! |---------|--------------------------------------------------------------------------------------------------------|
//! | cut     | the cut bytes get their name; the file is truncated; its old time stamp is set                         |
//! | replace | the file that is there gets a second name; the restored one takes its first name by `rename(2)`        |
//! | create  | the restored file gets its name                                                                        |
//!
//! Killed between two of these, the next restart finds a file that is longer or changed, and does the rest. It finds what
//! was already kept, and does not keep it twice.

use super::beside::{
    Draft, changed_suffix, copy_range, cut_suffix, fill, holds_the_same, names, parent,
    take_attributes, unnamed_file,
};
use super::paths::show;
use super::plan::{FilePlan, Step, What};
use super::record::{FileIndex, FileRecord, Seen, Timestamp};
use crate::EngineError;
use crate::contents::ContentLoader;
use crate::error::Context;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, Uid, fchmod,
    fchown, fstat, fsync, futimens, linkat, open, renameat_with, statat,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// The files of an image, in the state that matches memory.
#[derive(Debug, Default)]
pub struct ReadyFiles {
    files: Vec<Ready>,
}

#[derive(Debug)]
struct Ready {
    path: PathBuf,
    seen: Seen,
    /// The file itself, where it has no name.
    unnamed: Option<OwnedFd>,
    mode: u32,
    modified: Timestamp,
}

impl ReadyFiles {
    /// Opens a file with a new description, at offset 0. Of `flags`, those that would make or truncate are ignored.
    /// `O_CLOEXEC` is up to the caller.
    ///
    /// # Errors
    /// The kernel's, and when the file has been replaced by another since [`apply`].
    pub fn open(&self, index: FileIndex, flags: OFlags) -> Result<OwnedFd, EngineError> {
        let file = self.files.get(index.0 as usize).ok_or_else(|| {
            EngineError::Failed(format!("the image has no file number {}", index.0))
        })?;
        let making = OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::TMPFILE;
        let flags = flags.difference(making | OFlags::NOFOLLOW);
        let path = match &file.unnamed {
            Some(fd) => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            None => file.path.clone(),
        };
        let fd = open(&path, flags | OFlags::NOCTTY, Mode::empty())
            .context(|| format!("opening {}", show(&file.path)))?;
        let found = Seen::from(&fstat(&fd).context(|| format!("opening {}", show(&file.path)))?);
        if found.id == file.seen.id {
            Ok(fd)
        } else {
            Err(changed_meanwhile(&file.path))
        }
    }

    /// Moves the descriptors that are held here, those of files without a name, to numbers from `first` on.
    ///
    /// # Errors
    /// When the descriptor limit leaves no such number.
    pub fn raise(&mut self, first: RawFd) -> Result<(), EngineError> {
        for file in &mut self.files {
            if let Some(fd) = file.unnamed.as_mut().filter(|fd| fd.as_raw_fd() < first) {
                *fd = fcntl_dupfd_cloexec(&*fd, first)
                    .context(|| format!("moving the descriptor of {}", show(&file.path)))?;
            }
        }
        Ok(())
    }

    /// How messages name the file.
    #[must_use]
    pub fn name(&self, index: FileIndex) -> String {
        self.files
            .get(index.0 as usize)
            .map_or_else(String::new, |file| show(&file.path))
    }

    /// Gives the files without a name their permission bits and time stamp: everything is open.
    pub fn finish(self) {
        for file in self.files {
            if let Some(fd) = file.unnamed {
                // Ours, and without a name: nothing depends on these.
                let _ = fchmod(&fd, Mode::from_raw_mode(file.mode));
                let _ = set_modified(&fd, file.modified);
            }
        }
    }
}

fn changed_meanwhile(path: &Path) -> EngineError {
    EngineError::Failed(format!(
        "{} changed while the restart was on its way: end what writes to it (is the job still running?) and try again",
        show(path)
    ))
}

/// Carries out `plan`, which was made of `records` and has no problems left.
///
/// # Errors
/// The kernel's, the image's, and when a file has changed since the plan was made.
pub fn apply(
    plan: &FilePlan,
    records: &[FileRecord],
    loader: &dyn ContentLoader,
) -> Result<ReadyFiles, EngineError> {
    apply_watched(plan, records, loader, &mut |_| Ok(()))
}

/// [`apply`], telling `watch` before every step that changes something; where that fails, the step is not taken.
pub(super) fn apply_watched(
    plan: &FilePlan,
    records: &[FileRecord],
    loader: &dyn ContentLoader,
    watch: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<ReadyFiles, EngineError> {
    if !plan.problems.is_empty() {
        return Err(EngineError::Refused(plan.problems.clone()));
    }
    let mut work = Vec::with_capacity(plan.steps.len());
    for (number, (step, record)) in plan.steps.iter().zip(records).enumerate() {
        let mut case = Case {
            step,
            record,
            loader,
            sequence: plan.sequence,
            watch,
        };
        work.push(case.prepare(number as u32)?);
    }
    let mut ready = ReadyFiles::default();
    for ((step, record), prepared) in plan.steps.iter().zip(records).zip(work) {
        let mut case = Case {
            step,
            record,
            loader,
            sequence: plan.sequence,
            watch,
        };
        let (seen, unnamed) = case.commit(prepared)?;
        ready.files.push(Ready {
            path: step.path.clone(),
            seen,
            unnamed,
            mode: record.mode,
            modified: record.modified,
        });
    }
    Ok(ready)
}

/// What is ready to get its name.
enum Prepared {
    Nothing,
    /// The file, and its cut bytes; `None` where they are kept already.
    Cut(File, Option<Draft>),
    Replace(Draft),
    Create(Draft),
    Unlinked(OwnedFd),
}

struct Case<'a> {
    step: &'a Step,
    record: &'a FileRecord,
    loader: &'a dyn ContentLoader,
    sequence: u64,
    watch: &'a mut dyn FnMut(&str) -> io::Result<()>,
}

impl Case<'_> {
    /// Writes what needs space. No file is touched.
    fn prepare(&mut self, number: u32) -> Result<Prepared, EngineError> {
        let path = &self.step.path;
        Ok(match self.step.what {
            What::Use | What::Accept => Prepared::Nothing,
            What::Cut => {
                let seen = self.seen()?;
                let file = open(
                    path,
                    OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
                    Mode::empty(),
                )
                .map(File::from)
                .context(|| format!("opening {}", show(path)))?;
                let range = self.record.size..seen.size;
                let suffix = cut_suffix(self.sequence, self.record.size);
                let kept = names(path, &suffix)
                    .take_while(|name| name.symlink_metadata().is_ok())
                    .any(|name| holds_the_same(&name, &file, range.clone()));
                let draft = if kept {
                    None
                } else {
                    self.about("write the cut bytes")?;
                    let keeping = || format!("keeping the bytes to be cut off {}", show(path));
                    let draft = Draft::beside(path, self.sequence).context(keeping)?;
                    copy_range(&file, range, &draft.file).context(keeping)?;
                    // Whoever may not read the file may not read what was cut off it.
                    fchmod(&draft.file, Mode::from_raw_mode(seen.mode & 0o666)).context(keeping)?;
                    let _ = set_modified(&draft.file, seen.modified);
                    fsync(&draft.file).context(keeping)?;
                    Some(draft)
                };
                Prepared::Cut(file, draft)
            }
            What::Replace { .. } => Prepared::Replace(self.restored_draft()?),
            What::Create => Prepared::Create(self.restored_draft()?),
            What::Unlinked => {
                self.about("make a file without a name")?;
                let making = || format!("making {} again in {}", self.record.path, show(path));
                let file = unnamed_file(path, number).context(making)?;
                let content = self.stored()?;
                fill(
                    &file,
                    content,
                    self.record.size,
                    self.loader,
                    self.record.path.as_path(),
                )?;
                take_owner(&file, self.record.uid, self.record.gid);
                Prepared::Unlinked(file.into())
            }
        })
    }

    /// The saved file, complete but for its name.
    fn restored_draft(&mut self) -> Result<Draft, EngineError> {
        self.about("write the saved contents")?;
        let path = &self.step.path;
        let restoring = || format!("restoring {}", show(path));
        let draft = Draft::beside(path, self.sequence).context(restoring)?;
        fill(
            &draft.file,
            self.stored()?,
            self.record.size,
            self.loader,
            path,
        )?;
        take_owner(&draft.file, self.record.uid, self.record.gid);
        if self.step.seen.is_some() {
            take_attributes(path, &draft.file);
        }
        fchmod(&draft.file, Mode::from_raw_mode(self.record.mode)).context(restoring)?;
        set_modified(&draft.file, self.record.modified).context(restoring)?;
        fsync(&draft.file).context(restoring)?;
        Ok(draft)
    }

    /// Gives names and sets lengths. Needs no space to speak of.
    fn commit(&mut self, prepared: Prepared) -> Result<(Seen, Option<OwnedFd>), EngineError> {
        let path = self.step.path.clone();
        let name = path.file_name().unwrap_or_default();
        let restoring = || format!("restoring {}", show(&path));
        match prepared {
            Prepared::Nothing => {
                if self.step.what == What::Use && self.record.uses.writes() {
                    self.check_unchanged_at(&path)?;
                }
                Ok((self.seen()?, None))
            }
            Prepared::Cut(file, draft) => {
                self.check_unchanged(&file)?;
                if let Some(mut draft) = draft {
                    let suffix = cut_suffix(self.sequence, self.record.size);
                    self.about("name the cut bytes")?;
                    for name in names(&path, &suffix) {
                        let keeping = || format!("keeping the cut bytes in {}", show(&name));
                        if draft
                            .publish(name.file_name().unwrap_or_default())
                            .context(keeping)?
                        {
                            break;
                        }
                    }
                }
                self.check_unchanged(&file)?;
                self.about("cut")?;
                let cutting = || format!("cutting {}", show(&path));
                file.set_len(self.record.size).context(cutting)?;
                self.about("set the time")?;
                // Not ours to set where the file belongs to somebody else; contents are compared then.
                let _ = set_modified(&file, self.record.modified);
                fsync(&file).context(cutting)?;
                Ok((Seen::from(&fstat(&file).context(cutting)?), None))
            }
            Prepared::Replace(mut draft) => {
                self.check_unchanged_at(&path)?;
                let mut is_there = true;
                if self.step.what == (What::Replace { keep: true }) {
                    self.about("give the file that is there a second name")?;
                    is_there = self.keep_second_name(&path)?;
                }
                self.about("put the saved file in its place")?;
                if is_there {
                    draft.replace(name).context(restoring)?;
                } else if !draft.publish(name).context(restoring)? {
                    return Err(changed_meanwhile(&path));
                }
                Ok((Seen::from(&fstat(&draft.file).context(restoring)?), None))
            }
            Prepared::Create(mut draft) => {
                self.about("name the restored file")?;
                if !draft.publish(name).context(restoring)? {
                    return Err(changed_meanwhile(&path));
                }
                Ok((Seen::from(&fstat(&draft.file).context(restoring)?), None))
            }
            Prepared::Unlinked(fd) => {
                let seen = Seen::from(&fstat(&fd).context(restoring)?);
                Ok((seen, Some(fd)))
            }
        }
    }

    /// Makes the file at `path` reachable by a name that says what it is; `false` where it had to lose its first name.
    fn keep_second_name(&mut self, path: &Path) -> Result<bool, EngineError> {
        let seen = self.seen()?;
        let file = super::collect::open_to_read(path)
            .map(File::from)
            .context(|| format!("opening {}", show(path)))?;
        for kept in names(path, &changed_suffix(self.sequence)) {
            let keeping = || format!("keeping {} as {}", show(path), show(&kept));
            match linkat(CWD, path, CWD, &kept, AtFlags::empty()) {
                Ok(()) => return sync_directory(path).map(|()| true).context(keeping),
                // Kept by an earlier restart: by this very link, or with the same bytes.
                Err(Errno::EXIST) => {
                    let same_file = statat(CWD, &kept, AtFlags::SYMLINK_NOFOLLOW)
                        .is_ok_and(|stat| Seen::from(&stat).id == seen.id);
                    if same_file || holds_the_same(&kept, &file, 0..seen.size) {
                        return Ok(true);
                    }
                }
                // No hard links here, or not to this file (protected_hardlinks, too many).
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK | Errno::NOSYS | Errno::XDEV) => {
                    match renameat_with(CWD, path, CWD, &kept, RenameFlags::NOREPLACE) {
                        Ok(()) => return sync_directory(path).map(|()| false).context(keeping),
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(error).context(keeping),
                    }
                }
                Err(error) => return Err(error).context(keeping),
            }
        }
        Err(EngineError::Failed(format!(
            "no name is free beside {}",
            show(path)
        )))
    }

    fn about(&mut self, step: &str) -> Result<(), EngineError> {
        (self.watch)(step).context(|| format!("{}, to {step}", show(&self.step.path)))
    }

    fn seen(&self) -> Result<Seen, EngineError> {
        self.step
            .seen
            .ok_or_else(|| changed_meanwhile(&self.step.path))
    }

    fn stored(&self) -> Result<crate::contents::ContentId, EngineError> {
        self.record.evidence.stored.ok_or_else(|| {
            EngineError::Failed(format!("the image does not hold {}", self.record.path))
        })
    }

    fn check_unchanged(&self, file: &File) -> Result<(), EngineError> {
        let now = fstat(file).context(|| format!("looking at {}", show(&self.step.path)))?;
        self.check(Seen::from(&now))
    }

    fn check_unchanged_at(&self, path: &Path) -> Result<(), EngineError> {
        let now = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
            .context(|| format!("looking at {}", show(path)))?;
        self.check(Seen::from(&now))
    }

    fn check(&self, now: Seen) -> Result<(), EngineError> {
        let planned = self.seen()?;
        if (now.id, now.size, now.modified) == (planned.id, planned.size, planned.modified) {
            Ok(())
        } else {
            Err(changed_meanwhile(&self.step.path))
        }
    }
}

fn sync_directory(path: &Path) -> Result<(), Errno> {
    let directory = open(
        parent(path),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    fsync(directory)
}

/// Only root can give files away: for others the file is theirs, as it will have been before.
fn take_owner(file: &File, uid: u32, gid: u32) {
    let _ = fchown(file, Some(Uid::from_raw(uid)), None);
    let _ = fchown(file, None, Some(Gid::from_raw(gid)));
}

fn set_modified(file: impl std::os::fd::AsFd, modified: Timestamp) -> Result<(), Errno> {
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT as _,
    };
    let times = Timestamps {
        last_access: omit,
        last_modification: Timespec {
            tv_sec: modified.seconds,
            tv_nsec: modified.nanoseconds.into(),
        },
    };
    futimens(file, &times)
}
