//! What a new image need not store, because it or an older file holds it already.
//!
//! Contents are looked for in two ways. By their hash: a chunk that is the same as any chunk of the older image, or as any that
//! was stored before in this one, is named instead of stored. Where only a part of a chunk has changed, by their place: what
//! the older image holds at the same place of the same object is read and compared page by page, and so is, for an
//! object that the older image does not have, what another object of this image holds there (a forked process has the same
//! memory at the same addresses).
//!
//! Comparing costs reading. Where it keeps finding changes only, it is given up but for a sample.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bases::{self, Base};
use crate::chain;
use crate::format::limits::CHUNK;
use crate::index::{Extent, Place};
use crate::reader::{Image, used};
use crate::stored::Stored;

/// So many bytes are compared before it is asked whether that pays.
const TRIAL: u64 = 8 << 20;
/// One chunk in so many is compared where it did not pay.
const SAMPLE: u64 = 16;

/// An older image, seen from the one being written.
pub(crate) struct Older {
    pub image: Arc<Image>,
    /// What its files are called: the image first, then its bases. In the new image they have the next numbers.
    pub bases: Vec<Base>,
    by_hash: HashMap<[u8; 32], (Place, u64)>,
}

impl Older {
    /// `None` where `image` is better not built upon: another name would be needed, or it is worn (see [`chain`]).
    pub(crate) fn new(image: Arc<Image>) -> Option<Older> {
        let own = Base {
            stem: bases::stem(image.path())?,
            checksum: image.header().checksum,
            file_len: image.header().file_len,
        };
        let mut all = vec![own];
        all.extend(image.bases().iter().cloned());
        let mut live = used(image.all_extents(), all.len());
        // Its own metadata and index go with it.
        let added = if all.len() > 1 {
            image.header().file_len
        } else {
            0
        };
        live.iter_mut()
            .zip(&all)
            .for_each(|(live, base)| *live = (*live).min(base.file_len));
        let files: Vec<chain::Use> = all
            .iter()
            .zip(&live)
            .map(|(base, live)| chain::Use {
                len: base.file_len,
                live: *live,
            })
            .collect();
        if chain::is_worn(added, &files) {
            return None;
        }
        let by_hash = image.all_extents().iter().map(|extent| {
            let place = seen_from_later(extent.place);
            (extent.hash, (place, extent.len))
        });
        Some(Older {
            by_hash: by_hash.collect(),
            bases: all,
            image,
        })
    }

    /// Its files, as the new image numbers them (from 1 on).
    pub(crate) fn files(&self) -> impl Iterator<Item = &Stored> {
        self.image.files.iter()
    }
}

/// The new image is 0 itself, so each file of the older one has one more.
fn seen_from_later(place: Place) -> Place {
    Place {
        source: place.source + 1,
        ..place
    }
}

/// Everything that need not be stored again.
#[derive(Default)]
pub(crate) struct Known {
    pub older: Option<Older>,
    own: Mutex<Own>,
    compared: AtomicU64,
    gained: AtomicU64,
    asked: AtomicU64,
}

#[derive(Default)]
struct Own {
    by_hash: HashMap<[u8; 32], (Place, u64)>,
    /// The pieces of the first object that has something there, by the number of the chunk.
    by_chunk: HashMap<u64, Vec<Extent>>,
}

impl Known {
    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `len` bytes with this hash are.
    pub(crate) fn by_hash(&self, hash: &[u8; 32], len: u64) -> Option<Place> {
        let fits = |found: Option<&(Place, u64)>| {
            let (place, found_len) = found?;
            (*found_len == len).then_some(*place)
        };
        fits(self.own().by_hash.get(hash)).or_else(|| fits(self.older.as_ref()?.by_hash.get(hash)))
    }

    /// What the older image has of a part of an object: all pieces that reach into it, in order.
    pub(crate) fn of_older(&self, wanted: &Extent) -> Vec<Extent> {
        let Some(older) = &self.older else {
            return Vec::new();
        };
        let extents = older.image.extents(wanted.object);
        let from = extents.partition_point(|extent| extent.end() <= wanted.offset);
        let until = extents.partition_point(|extent| extent.offset < wanted.end());
        let seen = |extent: &Extent| Extent {
            place: seen_from_later(extent.place),
            ..*extent
        };
        extents
            .get(from..until)
            .map_or_else(Vec::new, |extents| extents.iter().map(seen).collect())
    }

    /// What an older version of `len` bytes from `offset` of an object on may be made of: pieces, in order.
    pub(crate) fn by_place(&self, wanted: &Extent) -> Vec<Extent> {
        let (offset, end) = (wanted.offset, wanted.end());
        let older = self.of_older(wanted);
        if !older.is_empty() {
            return older;
        }
        let own = self.own();
        let there = own.by_chunk.get(&(offset / CHUNK as u64));
        let overlaps = |extent: &&Extent| extent.end() > offset && extent.offset < end;
        there.map_or_else(Vec::new, |there| {
            there.iter().filter(overlaps).copied().collect()
        })
    }

    /// Remembers pieces of one chunk of one object.
    pub(crate) fn remember(&self, pieces: &[Extent]) {
        let Some(first) = pieces.first() else {
            return;
        };
        let mut own = self.own();
        for piece in pieces {
            own.by_hash
                .entry(piece.hash)
                .or_insert((piece.place, piece.len));
        }
        own.by_chunk
            .entry(first.offset / CHUNK as u64)
            .or_insert_with(|| pieces.to_vec());
    }

    /// Whether another chunk is worth comparing.
    pub(crate) fn is_worth_comparing(&self) -> bool {
        let compared = self.compared.load(Ordering::Relaxed);
        compared < TRIAL
            || self.gained.load(Ordering::Relaxed) * 8 >= compared
            || self
                .asked
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(SAMPLE)
    }

    /// Notes what comparing has brought.
    pub(crate) fn note(&self, compared: u64, gained: u64) {
        self.compared.fetch_add(compared, Ordering::Relaxed);
        self.gained.fetch_add(gained, Ordering::Relaxed);
    }
}
