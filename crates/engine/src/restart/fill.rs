//! Filling the memory of new processes from the image, by several threads at once.

use crate::EngineError;
use crate::progress::Progress;
use stasis_image::{Image, ObjectId};
use stasis_tracee::Memory;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes the contents of each object to its memory: offsets are addresses.
///
/// # Errors
/// When the image is damaged or memory cannot be written.
pub fn fill(
    image: &Image,
    objects: &HashMap<ObjectId, &Memory>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(), EngineError> {
    let numbers: Vec<ObjectId> = objects.keys().copied().collect();
    let total = numbers
        .iter()
        .flat_map(|number| image.extents(*number))
        .map(|extent| extent.len)
        .sum();
    let done = AtomicU64::new(0);
    image.for_each_extent(&numbers, threads, &|extent, bytes| {
        let Some(memory) = objects.get(&extent.object) else {
            return Ok(());
        };
        memory.fill(bytes, extent.offset)?;
        let done = done.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        progress.bytes(done, total);
        Ok(())
    })?;
    Ok(())
}
