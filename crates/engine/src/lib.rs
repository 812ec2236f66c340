//! Engine.
#![forbid(unsafe_code)]
