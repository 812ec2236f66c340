//! How answers look: as people and scripts know them, or as JSON in one line, whose keys have their order.

use crate::{names, options, output};
use stasis_coordinator::DEFAULT_PORT;
use stasis_coordinator::link::Address;
use stasis_coordinator::protocol::{Listed, Point, Status};
use std::fmt::Write;

/// How to show.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    pub json: bool,
}

/// A value in JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Shown {
    pub(super) const UNKNOWN: &str = "DMT_INVALID_COORDINATOR_COMMAND";
    pub(super) const INVALID: &str = "DMT_COORD_INVALID_COMMAND";
    pub(super) const NOT_FOUND: &str = "DMT_COORD_NOT_FOUND";
    pub(super) const NOT_RUNNING: &str = "DMT_COORD_NOT_RUNNING";

    fn line(command: &str, status: &str, address: Option<&Address>, more: &str) -> u8 {
        let (host, port) = address.map_or(("", 0), |address| (address.host.as_str(), address.port));
        let written = output::result(format_args!(
            "{{\"schema_version\":1,\"command\":{},\"command_status\":{},\"coordinator_host\":{},\"coordinator_port\":{port}{more}}}",
            quoted(command),
            quoted(status),
            quoted(host),
        ));
        u8::from(!written)
    }

    fn success(command: &str, address: &Address, more: &str) -> u8 {
        Self::line(command, "DMT_COORD_SUCCESS", Some(address), more)
    }

    /// Done, and there is nothing to show.
    pub(super) fn plain(self, command: &str, address: &Address) -> u8 {
        if self.json {
            Self::success(command, address, "")
        } else {
            0
        }
    }

    pub(super) fn version(self, address: &Address) -> u8 {
        let more = format!(",\"version\":{}", quoted(env!("CARGO_PKG_VERSION")));
        if self.json {
            Self::success("DMT_VERSION", address, &more)
        } else {
            u8::from(!output::result(options::version("dmtcp_command")))
        }
    }

    pub(super) fn peers(self, command: &str, address: &Address, peers: usize) -> u8 {
        if self.json {
            Self::success(command, address, &format!(",\"num_peers\":{peers}"))
        } else {
            0
        }
    }

    pub(super) fn interval(self, address: &Address, seconds: u64) -> u8 {
        if self.json {
            let more = format!(",\"checkpoint_interval\":{seconds}");
            Self::success("DMT_UPDATE_CKPT_INTERVAL", address, &more)
        } else {
            u8::from(!output::result(format_args!(
                "Interval changed to {seconds}"
            )))
        }
    }

    pub(super) fn status(self, address: &Address, status: &Status) -> u8 {
        if self.json {
            let more = format!(
                ",\"num_peers\":{},\"running\":{},\"checkpoint_interval\":{}",
                status.members, status.running, status.interval
            );
            return Self::success("DMT_STATUS", address, &more);
        }
        u8::from(!output::result(text(address, status)))
    }

    pub(super) fn list(self, address: &Address, list: &[Listed]) -> u8 {
        let text = rows(list);
        if self.json {
            let more = format!(",\"workers\":{}", quoted(&format!("{text}\n")));
            return Self::success("DMT_LIST", address, &more);
        }
        u8::from(!output::result(text.trim_end_matches('\n')))
    }

    /// Tells what was not done, and gives the exit status.
    pub(super) fn failure(
        self,
        command: &str,
        address: Option<&Address>,
        status: &str,
        text: &str,
    ) -> u8 {
        if self.json {
            Self::line(command, status, address, "");
        }
        if !text.is_empty() {
            output::message(text);
        }
        super::NOT_DONE
    }
}

/// What a coordinator is and does; scripts count its words.
pub(crate) fn text(address: &Address, status: &Status) -> String {
    let standard = if address.port == DEFAULT_PORT {
        " (default port)"
    } else {
        ""
    };
    let manual = if status.interval == 0 {
        " (checkpoint manually)"
    } else {
        ""
    };
    format!(
        "Coordinator:\n  Host: {}\n  Port: {}{standard}\nStatus...\n  NUM_PEERS={}\n  RUNNING={}\n  CKPT_INTERVAL={}{manual}",
        address.host,
        address.port,
        status.members,
        if status.running { "yes" } else { "no" },
        status.interval,
    )
}

/// All programs, a line each, every line with its end.
pub(crate) fn rows(list: &[Listed]) -> String {
    let mut text = String::from(
        "Client List:\n#, PROG[virtPID:realPID]@HOST, DMTCP-UNIQUEPID, STATE, BARRIER\n",
    );
    for (n, member) in list.iter().enumerate() {
        let (real, seen) = member
            .running
            .map_or((0, 0), |running| (running.pid, running.virtual_pid));
        let state = match (member.running, member.checkpointing) {
            (None, _) => "UNKNOWN",
            (Some(_), false) => "RUNNING",
            (Some(_), true) => "CHECKPOINTING",
        };
        let barrier = match member.reached {
            None => "",
            Some(Point::Frozen) => "frozen",
            Some(Point::Captured) => "captured",
            Some(Point::Complete) => "complete",
        };
        // A String takes everything.
        let _ = writeln!(
            text,
            "{}, {}[{seen}:{real}]@{}, {}, WorkerState::{state}, {barrier}",
            n + 1,
            member.program,
            member.host,
            names::unique_part(&member.name),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_coordinator::Keys;
    use stasis_coordinator::protocol::Running;

    #[test]
    fn status_and_list_have_the_words_that_scripts_count() {
        let mut address = Address {
            host: "localhost".into(),
            port: 36795,
            keys: Keys::default(),
        };
        let status = Status {
            members: 1,
            running: true,
            interval: 0,
            computation: None,
            generation: 0,
            last_error: None,
        };
        let shown = text(&address, &status);
        assert_eq!(
            shown,
            "Coordinator:\n  Host: localhost\n  Port: 36795\nStatus...\n  NUM_PEERS=1\n  RUNNING=yes\n  CKPT_INTERVAL=0 (checkpoint manually)"
        );
        let words: Vec<&str> = shown.split_ascii_whitespace().collect();
        assert_eq!(words[6..8], ["NUM_PEERS=1", "RUNNING=yes"]);
        address.port = 7779;
        assert!(text(&address, &status).contains("  Port: 7779 (default port)\n"));
        let member = Listed {
            number: 3,
            program: "dmtcp1".into(),
            host: "vm".into(),
            name: "ckpt_dmtcp1_98ff-40000-676474a1bc5".into(),
            running: Some(Running {
                pid: 23621,
                virtual_pid: 40000,
            }),
            reached: None,
            checkpointing: false,
        };
        assert!(rows(&[member]).ends_with(
            "\n1, dmtcp1[40000:23621]@vm, 98ff-40000-676474a1bc5, WorkerState::RUNNING, \n"
        ));
    }
}
