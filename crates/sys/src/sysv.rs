//! System V shared memory, semaphores and message queues (`sysvipc(7)`), in the caller's ipc namespace.

use crate::Pid;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

/// `IPC_PRIVATE`.
pub const PRIVATE: i32 = 0;
/// Made by this call, or not at all (`IPC_CREAT | IPC_EXCL`).
const MAKE: i32 = libc::IPC_CREAT | libc::IPC_EXCL;
const PAGE: usize = 4096;

fn checked(rc: libc::c_int) -> io::Result<i32> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

/// Owner and mode of an object, as `IPC_SET` sets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The lowest nine bits count.
    pub mode: u32,
}

impl Permissions {
    fn put(self, place: &mut libc::ipc_perm) {
        place.uid = self.uid;
        place.gid = self.gid;
        place.mode = (self.mode & 0o777) as _;
    }
}

/// Makes a segment of shared memory, which nobody may use yet but its maker; its id.
///
/// # Errors
/// `EEXIST` when the key is taken; `EINVAL`, `ENOMEM`, `ENOSPC` by the limits.
pub fn make_segment(key: i32, size: usize) -> io::Result<i32> {
    // SAFETY: the call takes numbers only.
    checked(unsafe { libc::shmget(key, size, MAKE | 0o600) })
}

/// Removes a segment, as soon as nobody has it attached.
///
/// # Errors
/// `EINVAL`, `EIDRM`, `EPERM`.
pub fn remove_segment(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID looks at no buffer.
    checked(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// Keeps a segment from being swapped out.
///
/// # Errors
/// `EPERM`, `ENOMEM` by the limit of locked memory.
pub fn lock_segment(id: i32) -> io::Result<()> {
    const SHM_LOCK: i32 = 11;
    // SAFETY: SHM_LOCK looks at no buffer.
    checked(unsafe { libc::shmctl(id, SHM_LOCK, std::ptr::null_mut()) }).map(drop)
}

/// Sets owner and mode of a segment.
///
/// # Errors
/// `EPERM`; `EINVAL` for ids that have no meaning here.
pub fn set_segment(id: i32, permissions: Permissions) -> io::Result<()> {
    // SAFETY: all fields of the structure are numbers, for which zeros are values.
    let mut state: libc::shmid_ds = unsafe { std::mem::zeroed() };
    permissions.put(&mut state.shm_perm);
    // SAFETY: the pointer is to a live structure of the type that the call reads.
    checked(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut state) }).map(drop)
}

/// A segment attached to this process, until it is dropped.
#[derive(Debug)]
pub struct Attachment {
    address: NonNull<u8>,
    len: usize,
}

impl Attachment {
    /// Attaches a segment of `len` bytes.
    ///
    /// # Errors
    /// `EACCES`; `EINVAL` and `EIDRM` when it is gone; `ENOMEM`.
    pub fn new(id: i32, len: usize, read_only: bool) -> io::Result<Attachment> {
        let flags = if read_only { libc::SHM_RDONLY } else { 0 };
        // SAFETY: without an address the kernel chooses one where nothing is.
        let address = unsafe { libc::shmat(id, std::ptr::null(), flags) };
        match NonNull::new(address.cast::<u8>()) {
            Some(address) if address.as_ptr() as isize != -1 => Ok(Attachment { address, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address.as_ptr() as u64
    }

    /// Writes to it.
    ///
    /// # Errors
    /// When that is not inside of it.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = usize::try_from(offset)
            .ok()
            .and_then(|at| at.checked_add(bytes.len()));
        if end.is_none_or(|end| end > self.len.next_multiple_of(PAGE)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range lies inside the mapping (checked above), which lives as long as `self`; nobody has a reference into it,
        // as none is ever given out. What other processes write meanwhile is theirs to lose.
        unsafe {
            let place = self.address.as_ptr().add(offset as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
        }
        Ok(())
    }

    /// Makes all of it zeros that take no room.
    ///
    /// # Errors
    /// What madvise(2) says.
    pub fn clear(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping, into which nobody has a reference.
        checked(unsafe { libc::madvise(self.address.as_ptr().cast(), self.len, libc::MADV_REMOVE) })
            .map(drop)
    }

    /// The pages that are in memory, as offsets (`mincore(2)`, which asks the segment, not only this mapping).
    ///
    /// # Errors
    /// What the call says.
    pub fn resident(&self) -> io::Result<Vec<Range<u64>>> {
        let mut pages = vec![0u8; self.len.div_ceil(PAGE)];
        // SAFETY: the range is this mapping; the buffer has a byte for each of its pages.
        checked(unsafe {
            libc::mincore(self.address.as_ptr().cast(), self.len, pages.as_mut_ptr())
        })?;
        let mut found: Vec<Range<u64>> = Vec::new();
        for (n, _) in pages.iter().enumerate().filter(|(_, page)| *page & 1 == 1) {
            let at = (n * PAGE) as u64;
            match found.last_mut() {
                Some(last) if last.end == at => last.end += PAGE as u64,
                _ => found.push(at..at + PAGE as u64),
            }
        }
        Ok(found)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: the address is that of an attached segment, into which no reference is left.
        unsafe { libc::shmdt(self.address.as_ptr().cast()) };
    }
}

/// Makes a set of semaphores, all zero; its id.
///
/// # Errors
/// `EEXIST` when the key is taken; `EINVAL`, `ENOMEM`, `ENOSPC` by the limits.
pub fn make_semaphores(key: i32, count: i32) -> io::Result<i32> {
    // SAFETY: the call takes numbers only.
    checked(unsafe { libc::semget(key, count, MAKE | 0o600) })
}

/// Removes a set.
///
/// # Errors
/// `EINVAL`, `EIDRM`, `EPERM`.
pub fn remove_semaphores(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no fourth argument.
    checked(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }).map(drop)
}

/// Sets owner and mode of a set.
///
/// # Errors
/// `EPERM`; `EINVAL` for ids that have no meaning here.
pub fn set_semaphores(id: i32, permissions: Permissions) -> io::Result<()> {
    // SAFETY: all fields of the structure are numbers, for which zeros are values.
    let mut state: libc::semid_ds = unsafe { std::mem::zeroed() };
    permissions.put(&mut state.sem_perm);
    // SAFETY: the pointer is to a live structure of the type that the call reads.
    checked(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut state) }).map(drop)
}

/// The values of a set of `count` semaphores.
///
/// # Errors
/// `EACCES`; `EINVAL` and `EIDRM` when it is gone.
pub fn semaphore_values(id: i32, count: usize) -> io::Result<Vec<u16>> {
    let mut values = vec![0u16; count];
    // SAFETY: the buffer has room for the set: who asks has read its size, which never changes, and no other set gets the id.
    checked(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

/// Sets all values of a set, which forgets all that processes would undo.
///
/// # Errors
/// `EACCES`; `ERANGE`; `EINVAL` and `EIDRM` when it is gone.
pub fn set_semaphore_values(id: i32, values: &[u16]) -> io::Result<()> {
    // SAFETY: the buffer has a value for each semaphore of the set.
    checked(unsafe { libc::semctl(id, 0, libc::SETALL, values.as_ptr()) }).map(drop)
}

/// The process that last changed semaphore `number` of a set (`GETPID`), in the numbers of the
/// caller's pid namespace; 0 where there was none, or it was in a namespace that the caller does not see.
///
/// # Errors
/// `EACCES` for a set that the caller may not read, `EINVAL` when it is gone or smaller.
pub fn last_user_of_semaphore(set: i32, number: i32) -> io::Result<Pid> {
    // SAFETY: GETPID takes two numbers and no fourth argument.
    checked(unsafe { libc::semctl(set, number, libc::GETPID) }).map(Pid)
}

/// `struct sembuf`, as the kernel reads it.
#[must_use]
pub fn semaphore_operation(number: u16, change: i16, flags: i32) -> [u8; 6] {
    let mut bytes = [0; 6];
    bytes[..2].copy_from_slice(&number.to_ne_bytes());
    bytes[2..4].copy_from_slice(&change.to_ne_bytes());
    bytes[4..].copy_from_slice(&(flags as i16).to_ne_bytes());
    bytes
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type, at least 1.
    pub kind: i64,
    /// What it says.
    pub text: Vec<u8>,
}

const WORD: usize = size_of::<i64>();

impl Message {
    fn buffer(&self) -> Vec<u64> {
        let mut words = vec![0u64; 1 + self.text.len().div_ceil(WORD)];
        words[0] = self.kind as u64;
        for (word, chunk) in words[1..].iter_mut().zip(self.text.chunks(WORD)) {
            let mut bytes = [0; WORD];
            bytes[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_ne_bytes(bytes);
        }
        words
    }
}

/// Makes a message queue; its id.
///
/// # Errors
/// `EEXIST` when the key is taken; `ENOMEM`, `ENOSPC` by the limits.
pub fn make_queue(key: i32) -> io::Result<i32> {
    // SAFETY: the call takes numbers only.
    checked(unsafe { libc::msgget(key, MAKE | 0o600) })
}

/// Removes a queue.
///
/// # Errors
/// `EINVAL`, `EIDRM`, `EPERM`.
pub fn remove_queue(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID looks at no buffer.
    checked(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// How many bytes of messages a queue takes.
///
/// # Errors
/// `EACCES`; `EINVAL` and `EIDRM` when it is gone.
pub fn queue_room(id: i32) -> io::Result<u64> {
    // SAFETY: all fields of the structure are numbers, for which zeros are values.
    let mut state: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live structure of the type that the call writes.
    checked(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut state) })?;
    Ok(state.msg_qbytes)
}

/// Sets owner, mode and room of a queue.
///
/// # Errors
/// `EPERM`, also for more room than the host gives an ordinary user; `EINVAL` for ids that have no meaning here.
pub fn set_queue(id: i32, permissions: Permissions, room: u64) -> io::Result<()> {
    // SAFETY: all fields of the structure are numbers, for which zeros are values.
    let mut state: libc::msqid_ds = unsafe { std::mem::zeroed() };
    permissions.put(&mut state.msg_perm);
    state.msg_qbytes = room;
    // SAFETY: the pointer is to a live structure of the type that the call reads.
    checked(unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut state) }).map(drop)
}

/// The message at `place` of a queue, which stays there (`MSG_COPY`, `msgop(2)`); `None` when there are not so many. It has at most
/// `room` bytes.
///
/// # Errors
/// `EACCES`; `ENOSYS` where the kernel cannot (`CONFIG_CHECKPOINT_RESTORE`); `EINVAL` and `EIDRM` when it is gone.
pub fn peek(id: i32, place: usize, room: usize) -> io::Result<Option<Message>> {
    const MSG_COPY: i32 = 0o40000;
    receive_with(id, place as i64, room, MSG_COPY)
}

/// Takes the first message of a queue; `None` when it is empty.
///
/// # Errors
/// `EACCES`; `EINVAL` and `EIDRM` when it is gone.
pub fn receive(id: i32, room: usize) -> io::Result<Option<Message>> {
    receive_with(id, 0, room, 0)
}

fn receive_with(id: i32, which: i64, room: usize, flags: i32) -> io::Result<Option<Message>> {
    let mut words = vec![0u64; 1 + room.div_ceil(WORD)];
    let flags = flags | libc::IPC_NOWAIT;
    // SAFETY: the buffer has room for a type and `room` bytes of text.
    let rc = unsafe { libc::msgrcv(id, words.as_mut_ptr().cast(), room, which, flags) };
    if rc < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOMSG) => Ok(None),
            _ => Err(error),
        };
    }
    let mut text: Vec<u8> = words[1..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    text.truncate(rc as usize);
    Ok(Some(Message {
        kind: words[0] as i64,
        text,
    }))
}

/// Puts a message at the end of a queue.
///
/// # Errors
/// `EAGAIN` when it is full; `EACCES`; `EINVAL` when it is gone, or the message longer than allowed.
pub fn send(id: i32, message: &Message) -> io::Result<()> {
    let words = message.buffer();
    // SAFETY: the buffer has a type and as many bytes as named.
    let rc = unsafe {
        libc::msgsnd(
            id,
            words.as_ptr().cast(),
            message.text.len(),
            libc::IPC_NOWAIT,
        )
    };
    checked(rc).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_written_and_cleared() {
        let id = make_segment(PRIVATE, 3 * PAGE).expect("a segment");
        let attached = Attachment::new(id, 3 * PAGE, false);
        remove_segment(id).expect("removed when it is let go");
        let attached = attached.expect("attached");
        assert_eq!(attached.resident().expect("mincore"), []);
        let page = PAGE as u64;
        attached.write(page + 5, b"here").expect("inside");
        let second = page..2 * page;
        assert_eq!(
            attached.resident().expect("mincore"),
            std::slice::from_ref(&second)
        );
        assert!(attached.write(3 * page - 1, b"ab").is_err());
        attached.clear().expect("madvise");
        assert_eq!(attached.resident().expect("mincore"), []);
    }

    #[test]
    fn messages_are_looked_at_and_stay() {
        let id = make_queue(PRIVATE).expect("a queue");
        let message = |kind, text: &[u8]| Message {
            kind,
            text: text.to_vec(),
        };
        let sent = [message(7, b"seven bytes."), message(1, b"")];
        let result = (|| -> io::Result<_> {
            sent.iter().try_for_each(|message| send(id, message))?;
            let seen = [peek(id, 0, 100)?, peek(id, 1, 100)?, peek(id, 2, 100)?];
            Ok((seen, receive(id, 100)?))
        })();
        remove_queue(id).expect("removed");
        let (seen, taken) = result.expect("messages go and come");
        assert_eq!(seen, [Some(sent[0].clone()), Some(sent[1].clone()), None]);
        assert_eq!(taken.as_ref(), sent.first());
    }

    #[test]
    fn values_of_semaphores_come_back() {
        let id = make_semaphores(PRIVATE, 3).expect("a set");
        let set = set_semaphore_values(id, &[1, 0, 32767]);
        let values = semaphore_values(id, 3);
        let user = last_user_of_semaphore(id, 0);
        remove_semaphores(id).expect("removed");
        set.expect("SETALL");
        assert_eq!(values.expect("GETALL"), [1, 0, 32767]);
        assert_eq!(user.expect("GETPID"), Pid::current());
    }
}
