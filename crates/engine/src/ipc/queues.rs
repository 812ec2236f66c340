//! System V message queues.
//!
//! Saved: id, key, owner, mode, the room for messages, and the messages in their order, each with its type. They are looked at where they are
//! (`MSG_COPY`, `msgop(2)`). Threads that wait in msgsnd(2) or msgrcv(2) wait again.
//!
//! Not saved: who sent and received last, and the times of that.

use super::table::{Kind, Object, Row};
use super::{failure, tell};
use crate::EngineError;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use stasis_sys::sysv::{self, Message, Permissions};
use std::io;

/// What an image keeps of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Id, key, owner.
    pub object: Object,
    /// Bytes that its messages may have in all.
    pub room: u64,
    /// Type and text of each message.
    pub messages: Vec<(i64, ByteBuf)>,
}

/// Looks at a queue.
///
/// # Errors
/// When it may not be read, or is gone.
pub fn look(object: &Object, row: &Row) -> io::Result<State> {
    let bytes = row.number::<usize>("cbytes").unwrap_or(0);
    let mut messages = Vec::new();
    while let Some(message) = sysv::peek(object.id, messages.len(), bytes)? {
        messages.push((message.kind, ByteBuf::from(message.text)));
    }
    Ok(State {
        object: object.clone(),
        room: sysv::queue_room(object.id)?,
        messages,
    })
}

impl State {
    /// Bytes of all messages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.messages
            .iter()
            .map(|(_, text)| text.len() as u64)
            .sum()
    }
}

/// Gives a queue that has just been made, or found again, messages and owner.
///
/// # Errors
/// When that is not possible.
pub fn fill(state: &State, notes: &mut Vec<String>) -> Result<(), EngineError> {
    let id = state.object.id;
    let failed = |source| failure(&Kind::Queue.words(id), source);
    // One that was found again has other messages.
    let mut room = 1 << 16;
    loop {
        match sysv::receive(id, room) {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) && room < 1 << 31 => room *= 4,
            Err(error) => return Err(failed(error)),
        }
    }
    for (kind, text) in &state.messages {
        let message = Message {
            kind: *kind,
            text: text.to_vec(),
        };
        sysv::send(id, &message).map_err(failed)?;
    }
    let permissions = Permissions {
        uid: state.object.uid,
        gid: state.object.gid,
        mode: state.object.mode,
    };
    tell(
        notes,
        Kind::Queue,
        id,
        sysv::set_queue(id, permissions, state.room),
    );
    Ok(())
}
