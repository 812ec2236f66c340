//! POSIX message queues (`mq_overview(7)`), by system calls, so that no further library is needed.

use crate::process::{self, Fork};
use crate::signal::{self, SignalSet};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// `struct mq_attr` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `O_NONBLOCK` or nothing: of the description.
    pub flags: i64,
    /// Most messages.
    pub max_messages: i64,
    /// Most bytes of one.
    pub max_size: i64,
    /// Messages that wait.
    pub messages: i64,
    reserved: [i64; 4],
}

impl Attributes {
    /// Of a queue that is to be made.
    #[must_use]
    pub fn new(max_messages: i64, max_size: i64) -> Attributes {
        Attributes {
            max_messages,
            max_size,
            ..Attributes::default()
        }
    }
}

/// A message: priority and text.
pub type Message = (u32, Vec<u8>);

fn checked(rc: libc::c_long) -> io::Result<libc::c_long> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

fn owned(rc: libc::c_long) -> io::Result<OwnedFd> {
    let number = checked(rc)? as i32;
    // SAFETY: the kernel has just given this descriptor to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes a queue, which must not be there. `name` has no slash.
///
/// # Errors
/// `EEXIST`; `EINVAL` beyond the limits of `/proc/sys/fs/mqueue`; `EMFILE` beyond `RLIMIT_MSGQUEUE`.
pub fn make(name: &CStr, attributes: &Attributes) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: both pointers are to live values of the types that the call reads.
    owned(unsafe {
        libc::syscall(
            libc::SYS_mq_open,
            name.as_ptr(),
            flags,
            0o600,
            std::ptr::from_ref(attributes),
        )
    })
}

/// Opens a queue.
///
/// # Errors
/// `ENOENT`, `EACCES`.
pub fn open(name: &CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the pointer is to a live string; without O_CREAT the others are not looked at.
    owned(unsafe {
        libc::syscall(
            libc::SYS_mq_open,
            name.as_ptr(),
            flags | libc::O_CLOEXEC,
            0,
            0usize,
        )
    })
}

/// Takes a queue's name away.
///
/// # Errors
/// `ENOENT`, `EACCES`.
pub fn unlink(name: &CStr) -> io::Result<()> {
    // SAFETY: the pointer is to a live string.
    checked(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

/// A queue's attributes.
///
/// # Errors
/// `EBADF` for what is no queue.
pub fn attributes(queue: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: without new attributes the call only writes the old ones, to a live structure of their type.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mq_getsetattr,
            queue.as_raw_fd(),
            0usize,
            &raw mut attributes,
        )
    })?;
    Ok(attributes)
}

/// Sends without waiting where the description does not.
///
/// # Errors
/// `EAGAIN` when it is full.
pub fn send(queue: BorrowedFd<'_>, priority: u32, text: &[u8]) -> io::Result<()> {
    // SAFETY: the buffer is as long as named; there is no time limit.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mq_timedsend,
            queue.as_raw_fd(),
            text.as_ptr(),
            text.len(),
            priority,
            0usize,
        )
    })
    .map(drop)
}

/// Takes the first message of the highest priority into `buffer`, which must be large enough for any; its length.
///
/// # Errors
/// `EAGAIN` when there is none, `EMSGSIZE`.
pub fn receive(queue: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(u32, usize)> {
    let mut priority = 0u32;
    // SAFETY: the buffer is as long as named, the priority lives; there is no time limit.
    let length = checked(unsafe {
        libc::syscall(
            libc::SYS_mq_timedreceive,
            queue.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut priority,
            0usize,
        )
    })?;
    Ok((priority, length as usize))
}

/// Memory that a child shares with its parent: a message for each place, and how many there are.
struct Shared {
    start: NonNull<u64>,
    bytes: usize,
    place: usize,
}

/// Words before the text of a message: length, priority.
const HEAD: usize = 2;

impl Shared {
    fn new(places: usize, size: usize) -> io::Result<Shared> {
        let place = HEAD + size.div_ceil(size_of::<u64>());
        let bytes = places
            .checked_mul(place * size_of::<u64>())
            .filter(|bytes| *bytes > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel wants it.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        match NonNull::new(start.cast::<u64>()) {
            Some(address) if start != libc::MAP_FAILED => Ok(Shared {
                start: address,
                bytes,
                place,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The words of a place.
    fn words(&mut self, n: usize) -> &mut [u64] {
        let all = self.bytes / size_of::<u64>();
        assert!((n + 1) * self.place <= all, "a place of this memory");
        // SAFETY: the range lies inside the mapping (checked above), which `self` owns and the caller borrows; parent and child never
        // use it at the same time: the parent waits for the child's end.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr().add(n * self.place), self.place)
        }
    }

    /// The kernel writes the message itself to where both can see it.
    fn take(&mut self, n: usize, queue: BorrowedFd<'_>, size: usize) -> io::Result<()> {
        let words = self.words(n);
        let (head, text) = words.split_at_mut(HEAD);
        // SAFETY: the words of the text are `size` bytes or more, and any bytes are words.
        let text = unsafe { std::slice::from_raw_parts_mut(text.as_mut_ptr().cast::<u8>(), size) };
        let (priority, length) = receive(queue, text)?;
        head[1] = u64::from(priority);
        head[0] = 1 + length as u64;
        Ok(())
    }

    /// The message at a place, if there is one.
    fn message(&mut self, n: usize) -> Option<Message> {
        let words = self.words(n);
        let length = usize::try_from(words[0].checked_sub(1)?).ok()?;
        let bytes = words[HEAD..].iter().flat_map(|word| word.to_ne_bytes());
        Some((words[1] as u32, bytes.take(length).collect()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no reference into it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// How long the messages may be out.
const LIMIT: Duration = Duration::from_secs(2);

/// The messages of a queue, in the order in which they are received, where nobody uses it meanwhile. `queue` can be read and written, and
/// does not wait.
///
/// There is no call to look at messages. A child takes them out and puts them back in the same order, which is the order of each priority.
/// It blocks all signals, is in a session of its own, and needs nobody: it goes on when the caller is killed. The caller has all that it
/// takes in memory of both, and puts it back if the child should be killed. So nothing is lost unless both are, within the same microseconds.
///
/// # Errors
/// When messages cannot be taken, and `TimedOut` when they cannot be put back, as somebody else has sent others; the child keeps trying.
pub fn look(queue: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<Vec<Message>> {
    let count = usize::try_from(attributes.messages).map_err(io::Error::other)?;
    let size = usize::try_from(attributes.max_size).map_err(io::Error::other)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut shared = Shared::new(count, size)?;
    let child = match process::fork_beside_threads()? {
        Fork::Parent(child) => child,
        Fork::Child => {
            let _ = signal::set_mask(SignalSet::ALL);
            let _ = process::new_session();
            let taken = (0..count)
                .take_while(|n| shared.take(*n, queue, size).is_ok())
                .count();
            (0..taken).for_each(|n| put_back(&mut shared, n, queue));
            process::exit_now(i32::from(taken != count))
        }
    };
    let deadline = Instant::now() + LIMIT;
    loop {
        match process::wait(child, process::WNOHANG)? {
            process::Waited::Child(_, status) => {
                if status.killed_by().is_some() {
                    recover(&mut shared, count, queue, size)?;
                    return Err(io::ErrorKind::Interrupted.into());
                }
                if status.exit_code() != Some(0) {
                    return Err(io::Error::other("messages were taken by somebody else"));
                }
                return Ok((0..count).filter_map(|n| shared.message(n)).collect());
            }
            _ if Instant::now() > deadline => return Err(io::ErrorKind::TimedOut.into()),
            _ => std::thread::sleep(Duration::from_micros(20)),
        }
    }
}

/// Does what is left to do for a child that was killed.
fn recover(
    shared: &mut Shared,
    count: usize,
    queue: BorrowedFd<'_>,
    size: usize,
) -> io::Result<()> {
    let taken = (0..count)
        .take_while(|n| shared.message(*n).is_some())
        .count();
    // It had put back some, or none: first the others are taken, as the order is that of putting back.
    let first = if taken == count {
        attributes(queue)?.messages as usize
    } else {
        (taken..count).try_for_each(|n| shared.take(n, queue, size))?;
        0
    };
    (first..count).for_each(|n| put_back(shared, n, queue));
    Ok(())
}

fn put_back(shared: &mut Shared, n: usize, queue: BorrowedFd<'_>) {
    let Some((priority, text)) = shared.message(n) else {
        return;
    };
    while let Err(error) = send(queue, priority, &text) {
        if error.raw_os_error() != Some(libc::EAGAIN) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// A queue without a name; `None` where the kernel has none.
    fn queue(name: &str) -> Option<OwnedFd> {
        let name = format!("stasis-test-{name}-{}", std::process::id());
        let name = std::ffi::CString::new(name).expect("a name");
        let queue = match make(&name, &Attributes::new(5, 100)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                println!("skipped: no message queues in this kernel");
                return None;
            }
            made => made.expect("a queue"),
        };
        unlink(&name).expect("its name goes");
        for (priority, text) in SENT {
            send(queue.as_fd(), priority, text).expect("there is room");
        }
        Some(queue)
    }

    const SENT: [(u32, &[u8]); 5] = [(1, b"a"), (9, b"b"), (1, b""), (9, b"d"), (0, b"e")];
    const ORDER: [(u32, &[u8]); 5] = [(9, b"b"), (9, b"d"), (1, b"a"), (1, b""), (0, b"e")];

    fn expect_order(queue: &OwnedFd) {
        for (priority, text) in ORDER {
            let mut buffer = [0; 100];
            let (p, length) = receive(queue.as_fd(), &mut buffer).expect("a message");
            assert_eq!((p, &buffer[..length]), (priority, text));
        }
        assert!(receive(queue.as_fd(), &mut [0; 100]).is_err(), "one more");
    }

    #[test]
    fn what_a_killed_child_has_taken_is_put_back() {
        for (taken, put) in [(0, 0), (2, 0), (5, 0), (5, 3), (5, 5)] {
            let Some(queue) = queue(&format!("killed-{taken}-{put}")) else {
                return;
            };
            let mut shared = Shared::new(5, 100).expect("memory");
            for n in 0..taken {
                shared.take(n, queue.as_fd(), 100).expect("a message");
            }
            (0..put).for_each(|n| put_back(&mut shared, n, queue.as_fd()));
            recover(&mut shared, 5, queue.as_fd(), 100).expect("recovered");
            expect_order(&queue);
        }
    }

    #[test]
    fn messages_are_looked_at_and_are_there_afterwards() {
        let Some(queue) = queue("look") else {
            return;
        };
        let before = attributes(queue.as_fd()).expect("attributes");
        assert_eq!(before.messages, 5);
        let seen = look(queue.as_fd(), &before).expect("looked at");
        assert_eq!(
            seen,
            ORDER.map(|(priority, text)| (priority, text.to_vec()))
        );
        assert_eq!(attributes(queue.as_fd()).expect("attributes"), before);
        expect_order(&queue);
    }
}
