//! Getting System V objects back under the ids and keys that they had.
//!
//! | strategy     | ids                                                                                                 |
//! |--------------|-----------------------------------------------------------------------------------------------------|
//! | `namespaces` | chosen (`/proc/sys/kernel/{shm,sem,msg}_next_id`), in an ipc namespace of the job's own: all are free  |
//! | `privileged` | chosen, on the host: ids and keys must be free, or what has them must be what the program has left there |
//! | `burn`       | an ordinary user cannot choose on the host: only what the program has left there is taken again       |
//!
//! A killed program leaves its objects behind. One is taken for that, and taken again, with the contents of the image, where the host
//! has not been started anew since, id, key, owner, maker and size are the same (an id comes again only after some million others), nobody
//! has it attached, and everybody who has used it has ended. Anything else under the same id or key stands in the way, and is told with
//! all other problems before anything is started.
//!
//! What may not be the program's at all (see [`super::belonging`]) is left as it is where it is there, or where its id cannot be had.

use super::table::{Kind, Object, Row};
use super::{State, belonging, failure, queues, segments, semaphores};
use crate::descriptors::mqueues;
use crate::restart::{Strategy, refusal};
use crate::store::Loader;
use crate::{EngineError, Refusal};
use rustix::io::Errno;
use stasis_sys::sysv::{self, Attachment};
use std::collections::HashSet;
use std::fs;
use std::io;

/// How an object comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Made, with its id.
    Make,
    /// Found, and filled.
    TakeAgain,
    /// Not at all.
    LeaveOut,
}

/// What is there.
struct Surroundings(Vec<(Kind, Row)>);

impl Surroundings {
    fn look() -> Surroundings {
        let rows = Kind::ALL.into_iter().flat_map(|kind| {
            let rows = kind.rows().into_iter();
            rows.map(move |row| (kind, row))
        });
        Surroundings(rows.collect())
    }

    /// What has the id, or the key, of an object.
    fn in_the_way(&self, kind: Kind, object: &Object) -> Option<&Row> {
        let rows = self.0.iter().filter(|(other, _)| *other == kind);
        let mut rows = rows.map(|(_, row)| row).filter(|row| {
            let key = row.number::<i32>("key").unwrap_or(0);
            row.id(kind) == object.id || (key != 0 && key == object.key)
        });
        rows.next()
    }
}

/// Whether `row` is what the program has left behind.
fn is_leftover(state: &State, kind: Kind, object: &Object, size: u64, row: &Row) -> bool {
    let found = row.object(kind);
    let same = (found.id, found.key, found.uid, found.maker, row.size())
        == (object.id, object.key, object.uid, object.maker, size);
    state.boot == super::boot()
        && same
        && row.attached() == 0
        && belonging::is_abandoned(kind, &found)
}

/// How each object comes back, in the order of [`State::objects`], and what stands in the way.
fn ways(state: &State, strategy: Strategy) -> Result<Vec<Way>, Vec<Refusal>> {
    if strategy == Strategy::Namespaces {
        return Ok(state.objects().map(|_| Way::Make).collect());
    }
    let there = Surroundings::look();
    let mut refusals = Vec::new();
    let mut ways = Vec::new();
    for (kind, object, size) in state.objects() {
        let (reason, hint) = match there.in_the_way(kind, object) {
            Some(row) if object.certain && is_leftover(state, kind, object, size, row) => {
                ways.push(Way::TakeAgain);
                continue;
            }
            Some(row) => {
                let what = if row.id(kind) == object.id {
                    "id"
                } else {
                    "key"
                };
                (
                    format!(
                        "its {what} is in use by an object of user {}",
                        row.object(kind).uid
                    ),
                    format!(
                        "remove that if nothing needs it ({}), or restart with --strategy namespaces where the host allows it",
                        kind.removal(row.id(kind))
                    ),
                )
            }
            None if strategy == Strategy::Privileged => {
                ways.push(Way::Make);
                continue;
            }
            None => (
                "it is gone, and an ordinary user cannot choose its id on the host".into(),
                "restart with --strategy namespaces where the host allows it, or as root".into(),
            ),
        };
        ways.push(Way::LeaveOut);
        if object.certain {
            refusals.push(refusal(&kind.words(object.id), reason, &hint));
        }
    }
    if refusals.is_empty() {
        Ok(ways)
    } else {
        Err(refusals)
    }
}

/// What an ipc namespace gives a queue, whatever the host does (`MSGMNB`, `linux/msg.h`).
const QUEUE_ROOM: u64 = 16384;

/// Finds what stands in the way of having these objects again.
pub fn plan(state: &State, strategy: Strategy, refusals: &mut Vec<Refusal>) {
    if let Err(more) = ways(state, strategy) {
        refusals.extend(more);
    }
    if strategy == Strategy::Namespaces {
        let too_full = state
            .queues
            .iter()
            .filter(|queue| queue.bytes() > QUEUE_ROOM);
        refusals.extend(too_full.map(|queue| {
            refusal(
                &Kind::Queue.words(queue.object.id),
                format!(
                    "a new ipc namespace has no room for its messages of {} bytes",
                    queue.bytes()
                ),
                "restart as root, with --strategy privileged",
            )
        }));
    }
}

/// Makes all objects again. What is returned keeps segments until processes have them attached.
///
/// # Errors
/// When something has come into the way since [`plan`].
pub fn make(
    state: &State,
    strategy: Strategy,
    loader: &Loader<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<Attachment>, EngineError> {
    let ways = ways(state, strategy).map_err(EngineError::Refused)?;
    let mut left_out = HashSet::new();
    for ((kind, object, size), way) in state.objects().zip(ways) {
        match way {
            Way::Make => make_one(kind, object, size)?,
            Way::TakeAgain => {}
            Way::LeaveOut => {
                notes.push(format!(
                    "{}, which may not be the program's, is left as it is: nothing that may be others' is touched",
                    kind.words(object.id)
                ));
                left_out.insert((kind, object.id));
            }
        }
    }
    let wanted = |kind: Kind, object: &Object| !left_out.contains(&(kind, object.id));
    let mut attachments = Vec::new();
    for segment in &state.segments {
        if wanted(Kind::Segment, &segment.object) {
            attachments.push(segments::fill(segment, loader, notes)?);
        }
    }
    for set in state
        .sets
        .iter()
        .filter(|set| wanted(Kind::Set, &set.object))
    {
        semaphores::fill(set, notes)?;
    }
    for queue in state
        .queues
        .iter()
        .filter(|queue| wanted(Kind::Queue, &queue.object))
    {
        queues::fill(queue, notes)?;
    }
    for queue in &state.closed {
        mqueues::make_closed(queue, notes)?;
    }
    Ok(attachments)
}

/// Others may make one in between.
const ATTEMPTS: usize = 10;

fn make_one(kind: Kind, object: &Object, size: u64) -> Result<(), EngineError> {
    let failed = |source: io::Error| failure(&kind.words(object.id), source);
    for _ in 0..ATTEMPTS {
        let choice = format!("/proc/sys/kernel/{}_next_id", kind.name());
        fs::write(&choice, object.id.to_string()).map_err(failed)?;
        let made = match kind {
            Kind::Segment => sysv::make_segment(object.key, size as usize),
            Kind::Set => sysv::make_semaphores(object.key, size as i32),
            Kind::Queue => sysv::make_queue(object.key),
        };
        let made = made.map_err(failed)?;
        if made == object.id {
            return Ok(());
        }
        match kind {
            Kind::Segment => sysv::remove_segment(made),
            Kind::Set => sysv::remove_semaphores(made),
            Kind::Queue => sysv::remove_queue(made),
        }
        .map_err(failed)?;
    }
    Err(failed(Errno::EXIST.into()))
}
