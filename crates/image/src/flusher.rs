//! Sending what has been written to the disk while more is being written, so that the flush at the commit is short.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// How much is written between two flushes, in bytes. Measured: see `docs/image-format.md`.
const STEP: u64 = 64 << 20;

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

    /// Asks for a flush, unless one is waiting already.
    pub(crate) fn request(&mut self, file: &Arc<File>) {
        if self.running.is_none() {
            let (sender, requests) = sync_channel(1);
            let file = Arc::clone(file);
            // The kernel reports a failure to write back once for each open file: if this thread is told, the flush
            // at the commit is not, so the result must be kept.
            let flush = move || requests.iter().try_for_each(|()| file.sync_data());
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
