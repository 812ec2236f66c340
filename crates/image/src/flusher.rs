//! Sending what has been written to the disk while more is being written, so that the flush at the commit is short.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// How much is written between two flushes, in bytes. Measured: see `docs/image-format.md`.
const STEP: u64 = 64 << 20;

/// How the disk comes along.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Bytes of the file for which a flush was asked.
    asked: AtomicU64,
    /// Bytes of the file that have reached the disk.
    flushed: AtomicU64,
}

impl Pace {
    /// Whether the disk has fallen behind a writer that has come to `end`, or how fast it is has not been seen yet.
    ///
    /// While one step is flushed, a disk that keeps up gets no more than another: the rest is what it cannot take in time.
    pub(crate) fn is_behind(&self, end: u64) -> bool {
        let flushed = self.flushed.load(Ordering::Relaxed);
        flushed == 0 || end.saturating_sub(flushed) >= 2 * STEP
    }
}

/// A thread that does nothing but flush one file, begun when there is enough to be worth it.
#[derive(Default)]
pub(crate) struct Flusher {
    running: Option<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
}

impl Flusher {
    /// Whether writing this stretch makes another flush due.
    pub(crate) fn is_due(start: u64, end: u64) -> bool {
        start / STEP != end / STEP
    }

    /// Asks for a flush of what is written up to `end`, unless one is waiting already.
    pub(crate) fn request(&mut self, file: &Arc<File>, pace: &Arc<Pace>, end: u64) {
        pace.asked.fetch_max(end, Ordering::Relaxed);
        if self.running.is_none() {
            let (sender, requests) = sync_channel(1);
            let (file, pace) = (Arc::clone(file), Arc::clone(pace));
            // The kernel reports a failure to write back once for each open file: if this thread is told, the flush
            // at the commit is not, so the result must be kept.
            let flush = move || {
                requests.iter().try_for_each(|()| {
                    let asked = pace.asked.load(Ordering::Relaxed);
                    file.sync_data()?;
                    pace.flushed.store(asked, Ordering::Relaxed);
                    Ok(())
                })
            };
            let thread = std::thread::Builder::new()
                .name("image-flush".into())
                .spawn(flush);
            // Without the thread the flush at the commit does it all.
            self.running = thread.ok().map(|thread| (sender, thread));
        }
        if let Some((sender, _)) = &self.running {
            let _ = sender.try_send(());
        }
    }

    /// Ends the thread; fails if a flush has failed.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self.running.take() {
            Some((sender, thread)) => {
                drop(sender);
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
            None => Ok(()),
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // The image is given up: whether it would have reached the disk matters no more.
        let _ = self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_behind_from_two_steps_on_and_until_it_was_seen() {
        let pace = Pace::default();
        assert!(pace.is_behind(0));
        pace.flushed.store(STEP, Ordering::Relaxed);
        assert!(!pace.is_behind(STEP) && !pace.is_behind(3 * STEP - 1));
        assert!(pace.is_behind(3 * STEP));
    }

    #[test]
    fn what_was_asked_for_is_flushed() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let pace = Arc::new(Pace::default());
        let mut flusher = Flusher::default();
        flusher.request(&file, &pace, STEP);
        flusher.finish().expect("flushing");
        assert!(!pace.is_behind(2 * STEP));
    }
}
