//! The person, or the pipe, in front of a coordinator: one command a line.

use crate::command::{rows, text};
use crate::connection::keys;
use crate::output;
use stasis_coordinator::link::Address;
use stasis_coordinator::protocol::{Ask, Reply};
use stasis_coordinator::server::Handle;
use std::io::{self, BufRead, IsTerminal, Write};
use std::thread;

const HELP: &str = "COMMANDS:
  l : List connected nodes
  s : Print status message
  c : Checkpoint all nodes
  bc: Checkpoint all nodes, and wait for it
  kc : Checkpoint and then kill all nodes
  i : Print current checkpoint interval; i N : Set it to N seconds
  k : Kill all nodes
  q : Kill all nodes and quit
  u : List hosts
  ? : Show this message";

/// Reads standard input from now on.
pub(super) fn start(handle: Handle, port: u16, quiet: bool) -> io::Result<()> {
    let reading = move || {
        let person = io::stdin().is_terminal() || !quiet;
        if person && !quiet {
            let _ = writeln!(io::stderr(), "\nType '?' for help.\n");
        }
        prompt(person);
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if !line.trim().is_empty() {
                obey(line.trim(), &handle, port);
            }
            prompt(person);
        }
    };
    thread::Builder::new()
        .name("console".into())
        .spawn(reading)
        .map(drop)
}

fn prompt(person: bool) {
    if person {
        let mut out = io::stdout();
        let _ = write!(out, "dmtcp> ").and_then(|()| out.flush());
    }
}

fn obey(line: &str, handle: &Handle, port: u16) {
    let lower = line.to_ascii_lowercase();
    let (word, rest) = lower
        .split_once(char::is_whitespace)
        .unwrap_or((&lower, ""));
    let checkpoint = |wait, stop| Some(Ask::Checkpoint { wait, stop });
    let ask = match word {
        "l" | "t" | "list" | "u" => Some(Ask::List),
        "s" | "status" => Some(Ask::Status),
        "c" | "checkpoint" => checkpoint(false, false),
        "bc" => checkpoint(true, false),
        "kc" | "ck" => checkpoint(true, true),
        "i" | "interval" => match rest.trim().parse() {
            Ok(seconds) => Some(Ask::Interval { seconds }),
            Err(_) => Some(Ask::Status),
        },
        "k" | "kill" => Some(Ask::Kill),
        "q" | "quit" => Some(Ask::Quit),
        "h" | "help" | "?" => None,
        _ => {
            output::result(format_args!("unhandled user command: {line}"));
            None
        }
    };
    let Some(ask) = ask else {
        output::result(HELP);
        return;
    };
    if let Some(reply) = handle.ask(ask) {
        show(&reply, word, port);
    }
}

fn show(reply: &Reply, word: &str, port: u16) {
    let said = match reply {
        Reply::Status(status) if word.starts_with('i') => {
            format!("Current Checkpoint Interval: {}", status.interval)
        }
        Reply::Status(status) => {
            let address = Address {
                host: "localhost".into(),
                port,
                keys: keys(),
            };
            text(&address, status)
        }
        Reply::List(list) if word == "u" => {
            let mut hosts: Vec<&str> = list.iter().map(|member| member.host.as_str()).collect();
            hosts.sort_unstable();
            hosts.dedup();
            hosts.join("\n")
        }
        Reply::List(list) => rows(list),
        Reply::Checkpoint { .. } | Reply::Done => return,
        Reply::NotRunning => "no program is connected, or none that runs".into(),
        Reply::Failed { reason } => format!("nothing was saved: {reason}"),
    };
    output::result(said);
}
