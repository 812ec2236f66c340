//! `/proc/PID/fdinfo/FD`: what the kernel tells of a descriptor (`proc_pid_fdinfo(5)`).

use stasis_sys::{Pid, procfs};
use std::io;
use std::os::fd::RawFd;

/// A parsed fdinfo file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// File offset.
    pub position: u64,
    /// Access mode and status flags of the description (`O_*`), without `O_CLOEXEC`.
    pub flags: u32,
    /// `FD_CLOEXEC` of this descriptor.
    pub close_on_exec: bool,
    /// The mount that it was opened through, as in mountinfo; 0 where the kernel does not say.
    pub mount: u64,
    /// All other lines, in order: the part before the colon, and what follows, both trimmed.
    pub fields: Vec<(String, String)>,
}

const O_CLOEXEC: u32 = 0o2_000_000;

impl FdInfo {
    /// Reads it.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` when the descriptor or process is gone, `EACCES` when it is not ours to look at.
    pub fn read(pid: Pid, fd: RawFd) -> io::Result<FdInfo> {
        Ok(FdInfo::parse(&procfs::read_to_string(format!(
            "/proc/{pid}/fdinfo/{fd}"
        ))?))
    }

    /// Parses the text of such a file; what cannot be understood counts as absent.
    #[must_use]
    pub fn parse(text: &str) -> FdInfo {
        let mut info = FdInfo::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let (name, value) = (name.trim(), value.trim());
            match name {
                "pos" => info.position = value.parse().unwrap_or(0),
                "mnt_id" => info.mount = value.parse().unwrap_or(0),
                "flags" => {
                    let all = u32::from_str_radix(value, 8).unwrap_or(0);
                    info.flags = all & !O_CLOEXEC;
                    info.close_on_exec = all & O_CLOEXEC != 0;
                }
                _ => info.fields.push((name.to_owned(), value.to_owned())),
            }
        }
        info
    }

    /// The value of the first line of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.fields.iter();
        lines.find_map(|(field, value)| (field == name).then_some(value.as_str()))
    }

    /// The values of all lines of that name (`tfd`, `lock`, `inotify` come many times).
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.fields
            .iter()
            .filter(move |(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eventfd_as_the_kernel_writes_it() {
        let info = FdInfo::parse(
            "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\neventfd-count:               2a\neventfd-id: 3\n",
        );
        assert_eq!((info.flags, info.close_on_exec, info.mount), (2, true, 15));
        assert_eq!(info.field("eventfd-count"), Some("2a"));
        assert_eq!(info.field("nothing"), None);
    }

    #[test]
    fn garbage_is_no_harm() {
        assert_eq!(
            FdInfo::parse("pos: x\nflags\n:::"),
            FdInfo {
                fields: vec![(String::new(), "::".into())],
                ..FdInfo::default()
            }
        );
    }
}
