//! How the engine tells what it is doing, without printing.

/// The steps of a checkpoint and of a restart, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Stopping every thread of the tree.
    Freeze,
    /// Looking for what cannot be saved.
    Settle,
    /// Registers, remote calls, descriptors, shared memory.
    LivePart,
    /// Forking copy-on-write twins.
    Twin,
    /// The program runs again.
    Resume,
    /// Memory is written to the image.
    Write,
    /// The image gets its final name.
    Commit,
    /// Restart: the image is checked.
    Verify,
    /// Restart: files are put into the state that matches memory.
    Files,
    /// Restart: processes are made.
    Skeleton,
    /// Restart: memory is filled.
    Memory,
    /// Restart: threads are made.
    Threads,
    /// Restart: the program is let go.
    Start,
}

/// Receives what the engine does. All methods may be called from several threads.
pub trait Progress: Sync {
    /// A step begins.
    fn step(&self, step: Step) {
        let _ = step;
    }
    /// `done` of about `total` bytes have been written or read.
    fn bytes(&self, done: u64, total: u64) {
        let _ = (done, total);
    }
    /// A sentence that the user should see (a decision taken, something not kept).
    fn note(&self, text: &str) {
        let _ = text;
    }
}

/// Nobody listens.
pub struct Silent;
impl Progress for Silent {}
