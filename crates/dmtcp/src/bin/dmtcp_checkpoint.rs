//! The command `dmtcp_checkpoint`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    stasis_dmtcp::main(stasis_dmtcp::Verb::Launch)
}
