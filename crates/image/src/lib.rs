//! The checkpoint file.
#![forbid(unsafe_code)]
