//! One job of a name in a directory at a time: numbers of images and retention rest on it.
//!
//! A hidden file `.NAME.lock` beside the images is locked with `flock(2)` for as long as the job lives, and removed
//! at its end. The lock is on the open file description, which the processes around the program share: it ends when
//! the last of them is gone, however they died. A lock file without a holder means nothing.

use crate::error::Context;
use crate::{Error, JobName};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The right to a name in a directory.
#[derive(Debug)]
pub struct NameLock {
    path: PathBuf,
    _file: File,
}

impl NameLock {
    /// Takes the name.
    ///
    /// # Errors
    /// [`Error::NameTaken`]; [`Error::System`] when the directory cannot be written.
    pub fn take(directory: &Path, name: &JobName) -> Result<NameLock, Error> {
        let path = directory.join(format!(".{name}.lock"));
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
                .context(|| format!("making the lock file {}", path.display()))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(Error::NameTaken {
                        name: name.to_string(),
                        directory: directory.to_owned(),
                    });
                }
                Err(error) => return Err(error).context(|| format!("locking {}", path.display())),
            }
            // The former holder may have removed the file between the opening and the locking.
            let ours = file.metadata().context(|| "looking at the lock".into())?;
            if fs::metadata(&path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
            {
                return Ok(NameLock { path, _file: file });
            }
        }
    }
    /// Takes the name, or the first of NAME-2, NAME-3 and so on that is free.
    ///
    /// # Errors
    /// As [`NameLock::take`].
    pub fn take_numbered(directory: &Path, name: &JobName) -> Result<(NameLock, JobName), Error> {
        let mut wanted = name.clone();
        for number in 2.. {
            match NameLock::take(directory, &wanted) {
                Err(Error::NameTaken { .. }) if number < 1000 => wanted = name.numbered(number),
                other => return other.map(|lock| (lock, wanted)),
            }
        }
        unreachable!("the loop above returns")
    }
    /// Gives the name back. Without this call the file stays, unlocked, once every holder is gone.
    pub fn release(self) {
        // A file that cannot be removed is without meaning, and in nobody's way.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_by_one_and_free_again_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let name: JobName = "md".parse().unwrap();
        let lock = NameLock::take(directory.path(), &name).unwrap();
        let error = NameLock::take(directory.path(), &name).unwrap_err();
        assert!(matches!(error, Error::NameTaken { .. }), "{error}");
        let (other, numbered) = NameLock::take_numbered(directory.path(), &name).unwrap();
        assert_eq!(numbered.as_str(), "md-2");
        lock.release();
        other.release();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        NameLock::take(directory.path(), &name).unwrap();
    }

    #[test]
    fn a_file_that_nobody_locks_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let name: JobName = "md".parse().unwrap();
        drop(NameLock::take(directory.path(), &name).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        NameLock::take(directory.path(), &name).unwrap();
    }
}
