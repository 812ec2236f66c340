//! The command `dmtcp_nocheckpoint`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    stasis_dmtcp::main(stasis_dmtcp::Verb::NoCheckpoint)
}
