//! A file under its temporary name: made, and either renamed or removed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::ImageError;

/// What is added to a name until the image is complete.
pub(crate) const SUFFIX: &str = ".partial";
/// The same where an image takes the place of an older one.
const REPLACING_SUFFIX: &str = ".temp";

/// What an image's final name means for a file that has it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// There must be none: each image has a name of its own.
    New,
    /// It is the image before this one, and there until this one is complete.
    Replace,
}

/// The file being written. Locked (flock) while it lives, so that what a killed writer left behind can be told from
/// what is being written. Removed when dropped, unless it was renamed.
#[derive(Debug)]
pub(crate) struct Partial {
    file: Arc<File>,
    path: PathBuf,
    final_path: PathBuf,
    place: Place,
    committed: bool,
}

impl Partial {
    pub(crate) fn create(final_path: &Path, place: Place) -> Result<Self, ImageError> {
        if place == Place::New && fs::symlink_metadata(final_path).is_ok() {
            return Err(ImageError::Exists {
                path: final_path.to_owned(),
            });
        }
        let mut name = OsString::from(final_path);
        name.push(match place {
            Place::New => SUFFIX,
            Place::Replace => REPLACING_SUFFIX,
        });
        let path = PathBuf::from(name);
        let failed = |source| ImageError::Create {
            path: path.clone(),
            source,
        };
        let mut left_behind = true;
        loop {
            // A new file always: one left behind may have another owner, mode or a second name.
            let created = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits() as i32)
                .open(&path);
            match created {
                Ok(file) => {
                    // From here on the file is removed if anything fails.
                    let partial = Partial {
                        file: Arc::new(file),
                        path: path.clone(),
                        final_path: final_path.to_owned(),
                        place,
                        committed: false,
                    };
                    // File systems without locks are used without: two writers of one name are then kept apart by
                    // whoever gives out the numbers.
                    if rustix::fs::flock(&partial.file, FlockOperation::NonBlockingLockExclusive)
                        == Err(Errno::WOULDBLOCK)
                    {
                        return Err(ImageError::Busy { path: path.clone() });
                    }
                    return Ok(partial);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && left_behind => {
                    if !remove_abandoned(&path).map_err(failed)? {
                        return Err(ImageError::Busy { path });
                    }
                    left_behind = false;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its final name. All its contents are on the disk already.
    pub(crate) fn commit(mut self) -> Result<PathBuf, ImageError> {
        let renamed = match self.place {
            Place::New => rename_new(&self.path, &self.final_path),
            Place::Replace => rustix::fs::rename(&self.path, &self.final_path),
        };
        match renamed {
            Ok(()) => self.committed = true,
            Err(Errno::EXIST) => {
                return Err(ImageError::Exists {
                    path: self.final_path.clone(),
                });
            }
            Err(error) => {
                return Err(ImageError::Write {
                    path: self.path.clone(),
                    source: error.into(),
                });
            }
        }
        let directory = match self.final_path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| ImageError::Write {
                path: directory.to_owned(),
                source,
            })?;
        Ok(std::mem::take(&mut self.final_path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a failure: the name says what the file is.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Renames unless the new name is taken.
fn rename_new(from: &Path, to: &Path) -> Result<(), Errno> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can (NFS cannot): a second name cannot replace anything either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        done => return done,
    }
    match rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()) {
        Ok(()) => rustix::fs::unlink(from),
        // Nor has every file system hard links (vfat, some FUSE); then the check is all that is left.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => match rustix::fs::lstat(to) {
            Ok(_) => Err(Errno::EXIST),
            Err(_) => rustix::fs::rename(from, to),
        },
        Err(error) => Err(error),
    }
}

/// Whether nobody writes the partial file any more.
pub(crate) fn is_abandoned(path: &Path) -> io::Result<bool> {
    let file = open_to_lock(path)?;
    Ok(
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            != Err(Errno::WOULDBLOCK),
    )
}

fn open_to_lock(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)
}

/// Removes a partial file that nobody writes any more. False if somebody does.
pub(crate) fn remove_abandoned(path: &Path) -> io::Result<bool> {
    let file = match open_to_lock(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
    {
        return Ok(false);
    }
    // The name may belong to another file by now.
    let (locked, named) = (file.metadata()?, fs::symlink_metadata(path));
    match named {
        Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => {
            fs::remove_file(path)?;
            Ok(true)
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}
