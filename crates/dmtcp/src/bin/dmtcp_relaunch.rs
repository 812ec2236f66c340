//! The command `dmtcp_relaunch`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    stasis_dmtcp::main(stasis_dmtcp::Verb::Restart)
}
