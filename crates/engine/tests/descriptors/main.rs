//! Descriptors of real programs: captured from outside, restored into new processes, compared.

#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    reason = "a test that cannot be set up has to fail"
)]

mod harness;
mod kinds;
mod parcel;
mod refused;
mod streams;
