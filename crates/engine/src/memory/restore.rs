//! Filling memory.
