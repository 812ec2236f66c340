//! Descriptors of real programs: captured from outside, restored into new processes, compared.

#![allow(
    clippy::expect_used,
    reason = "a test that cannot be set up has to fail"
)]

mod harness;
mod kinds;
mod refused;
mod streams;
