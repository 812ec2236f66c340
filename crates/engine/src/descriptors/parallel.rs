//! Looking at many things at once.
//!
//! While the program stands still its processors have nothing to do, and most of what is looked at are calls that do not wait for each
//! other.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread::{self, Builder, ScopedJoinHandle};

/// Fewer than this are looked at one after the other: a thread costs some of that time itself.
const WORTH_A_THREAD: usize = 128;
/// More threads than this wait for each other in the kernel.
const MOST_THREADS: usize = 4;

/// What `look` makes of all items, in their order; it is given a part of them each time.
pub(super) fn map<T: Sync, R: Send>(items: &[T], look: impl Fn(&[T]) -> Vec<R> + Sync) -> Vec<R> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors
        .min(MOST_THREADS)
        .min(items.len() / WORTH_A_THREAD);
    if threads < 2 {
        return look(items);
    }
    let look = &look;
    let mut parts = items.chunks(items.len().div_ceil(threads));
    let own = parts.next().unwrap_or_default();
    thread::scope(|scope| {
        let begin = |part| Builder::new().spawn_scoped(scope, move || look(part));
        let others: Vec<_> = parts.map(|part| (part, begin(part).ok())).collect();
        let mut all = look(own);
        for (part, other) in others {
            match other.map(ScopedJoinHandle::join) {
                Some(Ok(done)) => all.extend(done),
                Some(Err(panic)) => resume_unwind(panic),
                // No more threads are to be had.
                None => all.extend(look(part)),
            }
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::map;

    #[test]
    fn the_order_is_kept() {
        for count in [0, 1, 127, 128, 255, 256, 1000, 1001] {
            let items: Vec<usize> = (0..count).collect();
            let doubled = map(&items, |part| part.iter().map(|n| n * 2).collect());
            assert_eq!(doubled, (0..count).map(|n| n * 2).collect::<Vec<_>>());
        }
    }
}
