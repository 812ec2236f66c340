//! Files made beside other files: complete before they get a name, and never in the place of an older one.

use crate::EngineError;
use crate::contents::ContentLoader;
use crate::error::Context;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, SeekFrom, fsync, linkat, open, openat, renameat,
    renameat_with, seek, unlinkat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Longest name in a directory (`NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// `NAME.stasis-SUFFIX` in the same directory; the name is shortened where the whole would be too long.
fn named(path: &Path, suffix: &str, number: u32) -> PathBuf {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut ending = format!(".stasis-{suffix}");
    if number > 1 {
        ending.push_str(&format!("-{number}"));
    }
    let kept = name.len().min(LONGEST_NAME - ending.len());
    let mut name = name[..kept].to_vec();
    name.extend(ending.as_bytes());
    path.with_file_name(OsString::from_vec(name))
}

/// The names under which something of `path` may be kept, in the order in which they are tried.
pub(super) fn names(path: &Path, suffix: &str) -> impl Iterator<Item = PathBuf> {
    (1..=u32::MAX).map(move |number| named(path, suffix, number))
}

/// The first of [`names`] that is free now.
pub(super) fn free_name(path: &Path, suffix: &str) -> PathBuf {
    names(path, suffix)
        .find(|path| path.symlink_metadata().is_err())
        .unwrap_or_else(|| path.to_owned())
}

/// What was cut off `path` at `len`.
pub(super) fn cut_suffix(sequence: u64, len: u64) -> String {
    format!("cut-{sequence:06}-at-{len}")
}

/// What stood at `path` before it was restored.
pub(super) fn changed_suffix(sequence: u64) -> String {
    format!("changed-{sequence:06}")
}

/// A file without a name, or with a hidden one where the file system knows no `O_TMPFILE`.
#[derive(Debug)]
pub(super) struct Draft {
    directory: OwnedFd,
    pub(super) file: File,
    /// The hidden name that it has, or will have for the moment of a replacement.
    hidden: OsString,
    is_named: bool,
}

impl Draft {
    /// An empty file (mode 0600) in the directory of `path`, to become something of `path`.
    pub(super) fn beside(path: &Path, sequence: u64) -> io::Result<Draft> {
        let directory = open(
            parent(path),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut hidden = OsString::from(".");
        hidden.push(
            named(path, &format!("restoring-{sequence:06}"), 1)
                .file_name()
                .unwrap_or_default(),
        );
        if hidden.len() > LONGEST_NAME {
            let start = hidden.len() - LONGEST_NAME;
            let mut bytes = b".".to_vec();
            bytes.extend(&hidden.as_bytes()[start + 1..]);
            hidden = OsString::from_vec(bytes);
        }
        match create_unnamed(&directory) {
            Ok(file) => Ok(Draft {
                directory,
                file,
                hidden,
                is_named: false,
            }),
            Err(error) if has_no_tmpfile(error) => Draft::hidden(directory, hidden),
            Err(error) => Err(error.into()),
        }
    }

    fn hidden(directory: OwnedFd, hidden: OsString) -> io::Result<Draft> {
        let file = create_hidden(&directory, &hidden)?;
        Ok(Draft {
            directory,
            file,
            hidden,
            is_named: true,
        })
    }

    /// Gives it its name; `false` where that is taken. Complete and on disk afterwards.
    pub(super) fn publish(&mut self, name: &OsStr) -> io::Result<bool> {
        fsync(&self.file)?;
        let published = if self.is_named {
            renameat_with(
                &self.directory,
                &self.hidden,
                &self.directory,
                name,
                RenameFlags::NOREPLACE,
            )
            .or_else(|error| match error {
                // Not every file system knows the flag.
                Errno::INVAL => linkat(
                    &self.directory,
                    &self.hidden,
                    &self.directory,
                    name,
                    AtFlags::empty(),
                ),
                error => Err(error),
            })
        } else {
            self.link_as(name)
        };
        match published {
            Ok(()) => {
                if self.is_named {
                    // Gone after a rename; after a link this removes the hidden name.
                    let _ = unlinkat(&self.directory, &self.hidden, AtFlags::empty());
                }
                self.is_named = false;
                fsync(&self.directory)?;
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts it in the place of the file `name` in one step. Complete and on disk afterwards.
    pub(super) fn replace(&mut self, name: &OsStr) -> io::Result<()> {
        fsync(&self.file)?;
        if !self.is_named {
            let hidden = self.hidden.clone();
            match self.link_as(&hidden) {
                // Left by a restart that was killed between this link and the rename below: the image has its bytes.
                Err(Errno::EXIST) => {
                    unlinkat(&self.directory, &hidden, AtFlags::empty())?;
                    self.link_as(&hidden)?;
                }
                other => other?,
            }
            self.is_named = true;
        }
        renameat(&self.directory, &self.hidden, &self.directory, name)?;
        self.is_named = false;
        fsync(&self.directory)?;
        Ok(())
    }

    fn link_as(&self, name: &OsStr) -> Result<(), Errno> {
        linkat(
            CWD,
            format!("/proc/self/fd/{}", self.file.as_raw_fd()),
            &self.directory,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.is_named {
            let _ = unlinkat(&self.directory, &self.hidden, AtFlags::empty());
        }
    }
}

fn create_unnamed(directory: &OwnedFd) -> Result<File, Errno> {
    openat(
        directory,
        ".",
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )
    .map(File::from)
}

fn create_hidden(directory: &OwnedFd, name: &OsStr) -> Result<File, Errno> {
    let create = || {
        openat(
            directory,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::RUSR | Mode::WUSR,
        )
    };
    match create() {
        // Left by a restart that was killed: the image has its bytes.
        Err(Errno::EXIST) => {
            unlinkat(directory, name, AtFlags::empty())?;
            create()
        }
        other => other,
    }
    .map(File::from)
}

/// `EOPNOTSUPP`: the file system has none; `EISDIR`: the kernel or a network file system does not know the flag.
fn has_no_tmpfile(error: Errno) -> bool {
    matches!(
        error,
        Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT
    )
}

/// A file in `directory` that has no name, and never gets one.
pub(super) fn unnamed_file(directory: &Path, index: u32) -> io::Result<File> {
    let directory = open(
        directory,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match create_unnamed(&directory) {
        Err(error) if has_no_tmpfile(error) => {
            let name = OsString::from(format!(".stasis-unnamed-{}-{index}", std::process::id()));
            let file = create_hidden(&directory, &name)?;
            unlinkat(&directory, &name, AtFlags::empty())?;
            Ok(file)
        }
        other => Ok(other?),
    }
}

/// The directory of a file.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Fills an empty file with what is stored, `len` bytes long.
pub(super) fn fill(
    file: &File,
    content: crate::contents::ContentId,
    len: u64,
    loader: &dyn ContentLoader,
    path: &Path,
) -> Result<(), EngineError> {
    loader.load_into(content, file)?;
    file.set_len(len)
        .context(|| format!("restoring {}", super::paths::show(path)))
}

/// Copies bytes of one file to the beginning of another, empty one; holes stay holes.
pub(super) fn copy_range(from: &File, range: Range<u64>, to: &File) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data.min(range.end),
            // No data up to the end.
            Err(Errno::NXIO) => range.end,
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let hole = match seek(from, SeekFrom::Hole(data)) {
            Ok(hole) => hole.min(range.end),
            Err(_) => range.end,
        };
        copy_bytes(from, data..hole, to, data - range.start)?;
        at = hole;
    }
    to.set_len(range.end - range.start)
}

fn copy_bytes(from: &File, range: Range<u64>, to: &File, to_at: u64) -> io::Result<()> {
    let (mut source, mut target) = (range.start, to_at);
    let mut in_kernel = true;
    let mut buffer = Vec::new();
    while source < range.end {
        let wanted = (range.end - source).min(1 << 30) as usize;
        if in_kernel {
            match rustix::fs::copy_file_range(
                from,
                Some(&mut source),
                to,
                Some(&mut target),
                wanted,
            ) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    in_kernel = false;
                }
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        buffer.resize(wanted.min(1 << 20), 0);
        let n = from.read_at(&mut buffer, source)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&buffer[..n], target)?;
        source += n as u64;
        target += n as u64;
    }
    Ok(())
}

/// Whether the file at `kept` is exactly these bytes of `file`.
pub(super) fn holds_the_same(kept: &Path, file: &File, range: Range<u64>) -> bool {
    let Ok(kept) = super::collect::open_to_read(kept).map(File::from) else {
        return false;
    };
    let long_enough = kept
        .metadata()
        .is_ok_and(|m| m.is_file() && m.len() == range.end - range.start);
    long_enough && same_bytes(&kept, file, range).unwrap_or(false)
}

fn same_bytes(kept: &File, file: &File, range: Range<u64>) -> io::Result<bool> {
    let mut ours = vec![0u8; 256 << 10];
    let mut theirs = vec![0u8; 256 << 10];
    let mut at = range.start;
    while at < range.end {
        let n = ours.len().min((range.end - at) as usize);
        file.read_exact_at(&mut ours[..n], at)?;
        kept.read_exact_at(&mut theirs[..n], at - range.start)?;
        if ours[..n] != theirs[..n] {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}

/// Gives `file` the extended attributes (access lists among them) of the file at `path`, as far as that is allowed.
pub(super) fn take_attributes(path: &Path, file: &File) {
    use rustix::fs::{XattrFlags, fsetxattr, getxattr, listxattr};
    let mut names = vec![0u8; 64 << 10];
    let Ok(len) = listxattr(path, &mut names[..]) else {
        return;
    };
    // Security labels and what file systems keep for themselves are not ours to copy.
    let ours = |name: &&[u8]| name.starts_with(b"user.") || *name == b"system.posix_acl_access";
    for name in names[..len].split(|byte| *byte == 0).filter(ours) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0u8; 64 << 10];
        if let Ok(len) = getxattr(path, name, &mut value[..]) {
            let _ = fsetxattr(file, name, &value[..len], XattrFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A draft as it is made where there is no O_TMPFILE.
    fn hidden(path: &Path, bytes: &[u8]) -> Draft {
        let directory = File::open(parent(path)).expect("a directory").into();
        let draft = Draft::hidden(directory, OsString::from(".draft")).expect("made");
        draft.file.write_all_at(bytes, 0).expect("writable");
        draft
    }

    #[test]
    fn drafts_with_a_hidden_name_do_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out");
        let name = OsStr::new("out");
        drop(hidden(&path, b"given up"));
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
        assert!(hidden(&path, b"one").publish(name).expect("published"));
        assert!(
            !hidden(&path, b"two")
                .publish(name)
                .expect("the name is taken")
        );
        assert_eq!(fs::read(&path).expect("readable"), b"one");
        // Left by a process that was killed.
        fs::write(dir.path().join(".draft"), b"stale").expect("writable");
        hidden(&path, b"three").replace(name).expect("replaced");
        assert_eq!(fs::read(&path).expect("readable"), b"three");
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn an_unnamed_draft_gets_over_a_stale_hidden_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out");
        fs::write(&path, b"old").expect("writable");
        let mut draft = Draft::beside(&path, 7).expect("made");
        draft.file.write_all_at(b"new", 0).expect("writable");
        fs::write(dir.path().join(&draft.hidden), b"stale").expect("writable");
        draft.replace(OsStr::new("out")).expect("replaced");
        assert_eq!(fs::read(&path).expect("readable"), b"new");
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }
}
