//! File handles (`name_to_handle_at(2)`): what a file system calls an inode, for as long as that exists.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `MAX_HANDLE_SZ` (`linux/exportfs.h`).
const MOST: usize = 128;
/// `AT_HANDLE_FID` (Linux 6.5 and newer): a handle for telling inodes apart, which need not lead back to one.
const FID: i32 = 0x200;

/// A handle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// What the file system calls this kind of handle.
    pub kind: i32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// `struct file_handle`, with all the room that there can be.
#[repr(C)]
struct Raw {
    len: u32,
    kind: i32,
    bytes: [u8; MOST],
}

impl Handle {
    /// That of what is at `path`; a symbolic link is not followed.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the file system has none; those of a path.
    pub fn of(path: &Path) -> io::Result<Handle> {
        Handle::with(path, 0).or_else(|_| Handle::with(path, FID))
    }

    fn with(path: &Path, flags: i32) -> io::Result<Handle> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut raw = Raw {
            len: MOST as u32,
            kind: 0,
            bytes: [0; MOST],
        };
        let mut mount = 0i32;
        // SAFETY: the path ends with a zero, `raw` has room for as many bytes as its length says, `mount` is live.
        let done = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                libc::AT_FDCWD,
                path.as_ptr(),
                &raw mut raw,
                &raw mut mount,
                flags,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = raw.bytes.get(..raw.len as usize).unwrap_or(&raw.bytes);
        Ok(Handle {
            kind: raw.kind,
            bytes: bytes.to_vec(),
        })
    }

    /// Opens what it stands for on the file system of `mount`, as a mere name (`O_PATH`).
    ///
    /// # Errors
    /// `EPERM` for whoever may not read every directory (`CAP_DAC_READ_SEARCH`), `ESTALE` when the inode is gone.
    pub fn open(&self, mount: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let mut raw = Raw {
            len: self.bytes.len() as u32,
            kind: self.kind,
            bytes: [0; MOST],
        };
        let room = raw.bytes.get_mut(..self.bytes.len());
        let too_long = || io::Error::from_raw_os_error(libc::EINVAL);
        room.ok_or_else(too_long)?.copy_from_slice(&self.bytes);
        // SAFETY: `raw` holds as many bytes as its length says, and the kernel only reads it.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                &raw mut raw,
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_has_one_handle_by_all_its_names() {
        let directory = std::env::temp_dir().join(format!("handle-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        let (one, two) = (directory.join("one"), directory.join("two"));
        std::fs::write(&one, "").expect("a file");
        std::fs::hard_link(&one, &two).expect("a second name");
        let handles = (Handle::of(&one), Handle::of(&two), Handle::of(&directory));
        std::fs::remove_dir_all(&directory).expect("removing it");
        if let (Ok(one), Ok(two), Ok(other)) = handles {
            assert!(one == two && one != other);
        }
    }
}
