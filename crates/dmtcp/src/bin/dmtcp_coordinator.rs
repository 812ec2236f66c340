//! The command `dmtcp_coordinator`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    stasis_dmtcp::main(stasis_dmtcp::Verb::Coordinator)
}
