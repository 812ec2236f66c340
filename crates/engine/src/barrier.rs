//! Places in a checkpoint where a tree waits for others that are saved at the same instant.
//!
//! Whoever takes the checkpoints of several trees as one gives each a [`Barrier`]. When all are frozen, none of them can
//! change what another is about to save (a file, a pipe, a message on its way); when none runs on before all are captured,
//! none of them has seen anything that the others' images do not know of; and when none is given its name before all are
//! complete, either all images are there or none. The engine knows nothing else of the others.

use crate::EngineError;
use std::fmt::Debug;

/// A place in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// The whole tree is frozen, and nothing of it was read.
    Frozen,
    /// What must be read from the frozen tree was read. It is still frozen.
    Captured,
    /// The image is on the disk and complete, but for its name.
    Complete,
}

/// What a checkpoint waits for.
pub trait Barrier: Debug + Send + Sync {
    /// Tells that this tree has come to `point` and waits until all others have.
    ///
    /// # Errors
    /// When another one cannot come there, or nobody can tell: this checkpoint fails as well.
    fn wait(&self, point: Point) -> Result<(), EngineError>;
}
