//! What cannot be saved, in words.

use super::{Found, Obstacle};
use rustix::fs::FileType;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType, getpeername, getsockname};
use std::os::unix::ffi::OsStrExt;

const CLOSE: &str = "let the program close it before the checkpoint";

/// A refusal of something that is no file.
pub(super) fn refuse(found: &Found) -> Obstacle {
    match FileType::from_raw_mode(found.stat.st_mode) {
        FileType::Socket => return socket(found),
        FileType::BlockDevice => {
            return found.refuse(
                "is a block device, which other programs change as well",
                CLOSE,
            );
        }
        FileType::CharacterDevice => return device(found),
        _ => {}
    }
    let link = found.link.to_string_lossy();
    let name = link.strip_prefix("anon_inode:").unwrap_or(&link);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let (words, hint) = anonymous(name);
    found.refuse(format!("{words} cannot be saved yet"), hint)
}

fn anonymous(name: &str) -> (String, &'static str) {
    let known = |words: &str, hint| (words.to_owned(), hint);
    match name {
        "inotify" => known("a watch on files (inotify)", CLOSE),
        "fanotify" => known("a watch on file systems (fanotify)", CLOSE),
        "io_uring" => known(
            "a queue for input and output (io_uring)",
            "switch the program to another way of input and output (Node.js: UV_USE_IO_URING=0)",
        ),
        "userfaultfd" => known("a handler of page faults (userfaultfd)", CLOSE),
        "perf_event" => known(
            "a performance counter (perf_event_open)",
            "run the program without its profiler",
        ),
        "landlock-ruleset" => known("a set of Landlock rules", CLOSE),
        "fscontext" | "mount" => known("a file system that is being mounted", CLOSE),
        "seccomp notify" => known("a handler of system calls (seccomp)", CLOSE),
        _ if name.starts_with("bpf") => known("a BPF object", CLOSE),
        _ if name.starts_with("kvm") => known(
            "a virtual machine (KVM)",
            "save it with its own program (QEMU: savevm)",
        ),
        _ if name.starts_with("sync_file") || name.starts_with("dmabuf") => {
            known("a buffer or fence of a graphics driver", CLOSE)
        }
        _ if name.ends_with(']') || name.contains(":[") => {
            (format!("the kernel object {name}"), CLOSE)
        }
        _ => (format!("an object of the kind \"{name}\""), CLOSE),
    }
}

fn socket(found: &Found) -> Obstacle {
    let words = found
        .duplicate()
        .ok()
        .and_then(|socket| socket_words(&socket))
        .unwrap_or_else(|| "a socket".into());
    found.refuse(
        format!("{words} cannot be saved yet"),
        "let the program close its connections before the checkpoint",
    )
}

fn socket_words(socket: &std::os::fd::OwnedFd) -> Option<String> {
    let family = socket_domain(socket).ok()?;
    let kind = socket_type(socket).ok()?;
    let family = match family {
        AddressFamily::UNIX => "Unix".to_owned(),
        AddressFamily::INET => "IPv4".to_owned(),
        AddressFamily::INET6 => "IPv6".to_owned(),
        AddressFamily::NETLINK => "netlink".to_owned(),
        AddressFamily::PACKET => "packet".to_owned(),
        other if i32::from(other.as_raw()) == libc::AF_VSOCK => "vsock".to_owned(),
        other => format!("family {}", other.as_raw()),
    };
    let kind = match kind {
        SocketType::STREAM => "stream".to_owned(),
        SocketType::DGRAM => "datagram".to_owned(),
        SocketType::SEQPACKET => "packet sequence".to_owned(),
        SocketType::RAW => "raw".to_owned(),
        other => format!("type {}", other.as_raw()),
    };
    let mut words = format!("a socket ({family}, {kind}");
    if let Some(protocol) = protocol(socket) {
        words += &format!(", {protocol}");
    }
    if let Some(address) = getsockname(socket).ok().and_then(address) {
        words += &format!(", bound to {address}");
    }
    if let Some(peer) = getpeername(socket).ok().flatten_some().and_then(address) {
        words += &format!(", connected to {peer}");
    }
    Some(words + ")")
}

/// The protocol of a network socket, where it is an unusual one.
fn protocol(socket: &std::os::fd::OwnedFd) -> Option<&'static str> {
    use std::os::fd::AsFd;
    const SO_PROTOCOL: i32 = 38;
    const IPPROTO_MPTCP: i32 = 262;
    if ![AddressFamily::INET, AddressFamily::INET6].contains(&socket_domain(socket).ok()?) {
        return None;
    }
    match stasis_sys::socket::option(socket.as_fd(), SO_PROTOCOL).ok()? {
        libc::IPPROTO_SCTP => Some("SCTP"),
        libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => Some("ICMP"),
        libc::IPPROTO_UDPLITE => Some("UDP-Lite"),
        IPPROTO_MPTCP => Some("Multipath TCP"),
        _ => None,
    }
}

/// `getpeername` gives an optional address on some systems, a plain one on others.
trait FlattenSome<T> {
    fn flatten_some(self) -> Option<T>;
}

impl<T> FlattenSome<T> for Option<Option<T>> {
    fn flatten_some(self) -> Option<T> {
        self.flatten()
    }
}

/// An address, where it says something.
fn address(address: rustix::net::SocketAddrAny) -> Option<String> {
    if let Ok(internet) = std::net::SocketAddr::try_from(address.clone()) {
        return (internet.port() != 0).then(|| internet.to_string());
    }
    let unix = rustix::net::SocketAddrUnix::try_from(address).ok()?;
    if let Some(path) = unix.path_bytes() {
        return (!path.is_empty()).then(|| String::from_utf8_lossy(path).into_owned());
    }
    let name = unix.abstract_name().filter(|name| !name.is_empty())?;
    Some(format!("@{}", String::from_utf8_lossy(name)))
}

/// A refusal of a character device.
pub(super) fn device(found: &Found) -> Obstacle {
    let (major, minor) = found.device_numbers();
    let words = match (major, minor) {
        (1, _) => "a window on the kernel's memory or log",
        (4 | 5 | 136..=143, _) => {
            return found.refuse(
                "is a terminal other than the job's own, and its controlling side is not in the job",
                "start what makes the terminal (script, tmux, expect) in the job as well, or the job inside of that",
            );
        }
        (10, 200) => "a network tunnel (TUN/TAP)",
        (10, 229) => "a file system served by the program (FUSE)",
        (10, 232) => "a virtual machine monitor (KVM)",
        (13, _) => "an input device",
        (116, _) => "a sound device",
        (195, _) => "an NVIDIA graphics processor",
        (226, _) => "a graphics device (DRM)",
        (231, _) => "an InfiniBand device",
        _ => {
            return found.refuse(
                format!("is a device ({major}, {minor}) whose state cannot be saved"),
                CLOSE,
            );
        }
    };
    found.refuse(format!("is {words}, whose state cannot be saved"), CLOSE)
}

/// A refusal of something that `stat` calls a regular file and that is none.
pub(super) fn special_file(found: &Found) -> Option<Obstacle> {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    const SECRETMEM_MAGIC: u64 = 0x5345_434d;
    const DMABUF_MAGIC: u64 = 0x444d_4142;
    let magic = rustix::fs::statfs(found.proc_path().as_str()).ok()?.f_type as u64;
    let words = match magic {
        NSFS_MAGIC => "a namespace",
        SECRETMEM_MAGIC => "memory hidden from the kernel (memfd_secret)",
        DMABUF_MAGIC => "a buffer of a graphics driver",
        _ if found.link.as_bytes().starts_with(b"/") || found.stat.st_nlink > 0 => return None,
        _ => return Some(refuse(found)),
    };
    Some(found.refuse(format!("{words} cannot be saved yet"), CLOSE))
}
