//! Remote calls that are planned first and made all at once, many in one visit of a thread ([`crate::visits`]).

use crate::EngineError;
use stasis_sys::Pid;
use stasis_tracee::slot::{self, Call};
use stasis_tracee::{SIGINFO_BYTES, TraceError};

/// A place in a thread's scratch memory, which holds zeros, or what it was given, until a call writes there.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    at: u64,
}

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A number.
    Value(u64),
    /// The address of a room.
    Room(Room),
}

impl From<Room> for Argument {
    fn from(room: Room) -> Argument {
        Argument::Room(room)
    }
}

impl From<u64> for Argument {
    fn from(value: u64) -> Argument {
        Argument::Value(value)
    }
}

/// A call of a batch, whose answer can be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    place: usize,
    name: &'static str,
}

/// Calls for one thread.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    calls: Vec<(i64, [Argument; 6])>,
    rooms: u64,
    /// What the rooms hold before the first call, as far as they hold something.
    contents: Vec<u8>,
}

const ROOM_ALIGNMENT: u64 = 16;
const _: () = assert!((SIGINFO_BYTES as u64).is_multiple_of(ROOM_ALIGNMENT));

impl Batch {
    /// Sets room aside for an answer of so many bytes.
    pub fn room(&mut self, bytes: u64) -> Room {
        let at = self.rooms;
        self.rooms += bytes.next_multiple_of(ROOM_ALIGNMENT);
        Room { at }
    }

    /// Sets room aside that holds `bytes`.
    pub fn room_with(&mut self, bytes: &[u8]) -> Room {
        let room = self.room(bytes.len() as u64);
        self.contents.resize(room.at as usize, 0);
        self.contents.extend(bytes);
        room
    }

    /// What the rooms hold before the first call; zeros follow.
    #[must_use]
    pub fn contents(&self) -> &[u8] {
        &self.contents
    }

    /// Bytes of all rooms.
    #[must_use]
    pub fn rooms(&self) -> u64 {
        self.rooms
    }

    /// Adds a call; of an argument that the kernel does not look at nothing need be said.
    pub fn call(&mut self, name: &'static str, number: i64, some: &[Argument]) -> Asked {
        let mut arguments = [Argument::Value(0); 6];
        for (place, argument) in arguments.iter_mut().zip(some) {
            *place = *argument;
        }
        self.calls.push((number, arguments));
        Asked {
            place: self.calls.len() - 1,
            name,
        }
    }

    /// How many calls there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// The calls, the rooms being at `address`.
    #[must_use]
    pub fn at(&self, address: u64) -> Vec<Call> {
        let value = |argument: &Argument| match argument {
            Argument::Value(value) => *value,
            Argument::Room(room) => address + room.at,
        };
        let calls = self.calls.iter();
        calls
            .map(|(number, arguments)| Call {
                number: *number,
                arguments: arguments.each_ref().map(value),
            })
            .collect()
    }
}

/// What came of a batch.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The thread that made the calls.
    pub tid: Pid,
    /// The results of all calls.
    pub results: Vec<i64>,
    /// What the rooms hold.
    pub rooms: Vec<u8>,
}

impl Answers {
    /// A call's result.
    ///
    /// # Errors
    /// The call's.
    pub fn result(&self, asked: Asked) -> Result<u64, TraceError> {
        let result = self.results.get(asked.place).copied();
        slot::outcome(
            asked.name,
            self.tid,
            result.unwrap_or(-i64::from(libc::EFAULT)),
        )
    }

    /// What a call has written to a room.
    ///
    /// # Errors
    /// The call's.
    pub fn written<const N: usize>(
        &self,
        asked: Asked,
        room: Room,
    ) -> Result<[u8; N], EngineError> {
        self.result(asked)?;
        let bytes = self.bytes(room, N as u64).try_into();
        bytes.map_err(|_| EngineError::Failed(format!("{} has no answer", asked.name)))
    }

    /// So many bytes of a room.
    #[must_use]
    pub fn bytes(&self, room: Room, len: u64) -> &[u8] {
        let range = room.at as usize..(room.at + len) as usize;
        self.rooms.get(range).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_lie_side_by_side_and_are_found_again() {
        let mut batch = Batch::default();
        let (first, second) = (batch.room(24), batch.room(8));
        let one = batch.call("one", 1, &[Argument::Value(7), first.into()]);
        let two = batch.call("two", 2, &[second.into()]);
        let calls = batch.at(0x1000);
        assert_eq!(calls[0].arguments[..2], [7, 0x1000]);
        assert_eq!(calls[1].arguments[0], 0x1020);
        let mut rooms = vec![0; batch.rooms() as usize];
        rooms[0x20] = 5;
        let answers = Answers {
            tid: Pid(1),
            results: vec![3, -2],
            rooms,
        };
        assert_eq!(answers.result(one).expect("a result"), 3);
        assert_eq!(answers.bytes(second, 2), [5, 0]);
        let error = answers.written::<8>(two, second).expect_err("a failure");
        assert!(error.to_string().starts_with("two in thread 1"), "{error}");
    }
}
