//! The command `dmtcp_command`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    stasis_dmtcp::main(stasis_dmtcp::Verb::Command)
}
