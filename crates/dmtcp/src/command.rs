//! `dmtcp_command`: asks a coordinator.
//!
//! Words are taken with any number of hyphens in front, or none, before or behind options. All that are given are carried out,
//! in their order. A process of a program that asks for a checkpoint is answered through the supervisor of its own job: it
//! is saved itself, and must not hold a connection meanwhile.

mod show;

use crate::connection::{self, Wanted};
use crate::{options, output};
use clap::{Arg, ArgAction, Command};
use show::Shown;
pub(crate) use show::{rows, text};
use stasis_coordinator::Error;
use stasis_coordinator::client::Client;
use stasis_coordinator::protocol::{Ask, Reply};
use stasis_supervisor::{client, inside};
use std::ffi::OsString;
use std::process::ExitCode;

/// No coordinator, or nothing that it could do this to.
const NOT_DONE: u8 = 2;
/// The command line was not understood; also the status of help and version.
const USAGE: u8 = 1;

/// The command line. The words are looked at by [`run`] itself.
#[must_use]
pub fn parser() -> Command {
    let command = Command::new("dmtcp_command")
        .about("Asks a coordinator: for a checkpoint, what there is, an end")
        .override_usage("dmtcp_command [-h HOST] [-p PORT] [--json] COMMAND...")
        .after_help(
            "Commands, with or without hyphens in front:\n  \
             s, status            what the coordinator does\n  \
             l, list              all programs\n  \
             c, checkpoint        have all programs saved\n  \
             bc, bcheckpoint      the same, and wait for it\n  \
             kc, kcheckpoint      have all programs saved, and ended in that instant\n  \
             i, interval SECONDS  another interval; 0: no checkpoints by time\n  \
             k, kill              end all programs, unsaved\n  \
             q, quit              end all programs, unsaved, and the coordinator\n\
             Exit status: 0 done, 1 not understood, 2 no coordinator or nothing that could be done.",
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Answer in JSON, in one line"),
        )
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .action(ArgAction::Append)
                .num_args(1..),
        );
    options::coordinates(options::common(command))
}

/// One word of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verb {
    Status,
    List,
    Checkpoint,
    BlockingCheckpoint,
    KillCheckpoint,
    Interval(u64),
    Kill,
    Quit,
    Help,
    Version,
    Unknown(String),
}

/// What the command line says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    host: Option<String>,
    port: Option<String>,
    json: bool,
    verbs: Vec<Verb>,
    /// What was wrong.
    wrong: Option<String>,
}

fn understand(words: &[String]) -> Said {
    let mut said = Said::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let hyphens = word.len() - word.trim_start_matches('-').len();
        let bare = &word[hyphens..];
        let (name, attached) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (bare, None),
        };
        let mut value = || attached.clone().or_else(|| rest.next().cloned());
        match (hyphens, name) {
            (1.., "coord-host" | "host") | (1, "h") => said.host = value(),
            (1.., "coord-port" | "port") | (1, "p") => said.port = value(),
            (1.., "json") => said.json = true,
            (1.., "quiet") => output::be_quiet(1),
            (1.., "ckpt-open-files" | "checkpoint-open-files") => {
                output::remark(&format!(
                    "--{name} belongs to dmtcp_launch; it is not needed here"
                ));
            }
            (_, "version") => said.verbs.push(Verb::Version),
            (_, "h" | "help" | "?") => said.verbs.push(Verb::Help),
            (_, "s" | "status") => said.verbs.push(Verb::Status),
            (_, "l" | "t" | "list") => said.verbs.push(Verb::List),
            (_, "c" | "checkpoint") => said.verbs.push(Verb::Checkpoint),
            (_, "bc" | "bcheckpoint") => said.verbs.push(Verb::BlockingCheckpoint),
            (_, "kc" | "ck" | "K" | "Kc" | "kcheckpoint") => said.verbs.push(Verb::KillCheckpoint),
            (_, "k" | "kill") => said.verbs.push(Verb::Kill),
            (_, "q" | "quit") => said.verbs.push(Verb::Quit),
            (_, "i" | "interval") => match value().map(|text| (text.trim().parse(), text)) {
                Some((Ok(seconds), _)) => said.verbs.push(Verb::Interval(seconds)),
                other => {
                    let text = other.map(|(_, text)| text).unwrap_or_default();
                    said.wrong = Some(format!("{text:?} is no number of seconds"));
                }
            },
            (1, _) if name.starts_with('p') && is_number(&name[1..]) => {
                said.port = Some(name[1..].to_owned());
            }
            (_, _) if name.starts_with('i') && is_number(&name[1..]) => match name[1..].parse() {
                Ok(seconds) => said.verbs.push(Verb::Interval(seconds)),
                Err(_) => said.wrong = Some(format!("{name} is no interval")),
            },
            _ => said.verbs.push(Verb::Unknown(word.clone())),
        }
    }
    said
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Carries it out.
#[must_use]
pub fn run(words: &[OsString]) -> ExitCode {
    let words: Vec<String> = words
        .iter()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let said = understand(&words);
    let shown = Shown { json: said.json };
    if let Some(Verb::Unknown(word)) = said
        .verbs
        .iter()
        .find(|verb| matches!(verb, Verb::Unknown(_)))
    {
        if shown.json {
            return ExitCode::from(shown.failure(Shown::UNKNOWN, None, Shown::INVALID, ""));
        }
        output::message(&format!("dmtcp_command: {word} is not understood"));
        return usage();
    }
    if let Some(wrong) = said.wrong {
        output::message(&wrong);
        return usage();
    }
    if said.verbs.is_empty() {
        return usage();
    }
    let port = match connection::port(said.port) {
        Ok(port) => port,
        Err(error) => {
            output::message(&error);
            return ExitCode::from(USAGE);
        }
    };
    let wanted = connection::wanted(said.host, port);
    let mut client = None;
    for verb in &said.verbs {
        let code = carry_out(verb, &wanted, &mut client, shown);
        if code != 0 {
            return ExitCode::from(code);
        }
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    output::message(&parser().render_help().to_string());
    ExitCode::from(USAGE)
}

/// Gives the exit status.
fn carry_out(verb: &Verb, wanted: &Wanted, client: &mut Option<Client>, shown: Shown) -> u8 {
    let address = &wanted.address;
    let (name, ask) = match verb {
        Verb::Help if shown.json => return shown.plain("DMT_HELP", address),
        Verb::Version if shown.json => return shown.version(address),
        Verb::Help => {
            output::result(parser().render_help());
            return USAGE;
        }
        Verb::Version => {
            output::result(options::version("dmtcp_command"));
            return USAGE;
        }
        Verb::Status => ("DMT_STATUS", Ask::Status),
        Verb::List => ("DMT_LIST", Ask::List),
        Verb::Checkpoint => (
            "DMT_CHECKPOINT",
            Ask::Checkpoint {
                wait: false,
                stop: false,
            },
        ),
        Verb::BlockingCheckpoint => (
            "DMT_BLOCKING_CKPT",
            Ask::Checkpoint {
                wait: true,
                stop: false,
            },
        ),
        Verb::KillCheckpoint => (
            "DMT_KILL_AFTER_CKPT",
            Ask::Checkpoint {
                wait: true,
                stop: true,
            },
        ),
        Verb::Interval(seconds) => (
            "DMT_UPDATE_CKPT_INTERVAL",
            Ask::Interval { seconds: *seconds },
        ),
        Verb::Kill => ("DMT_KILL", Ask::Kill),
        Verb::Quit => ("DMT_QUIT", Ask::Quit),
        Verb::Unknown(_) => return USAGE,
    };
    if let Ask::Checkpoint { stop, .. } = ask
        && let Some(code) = from_inside(name, wanted, stop, client, shown)
    {
        return code;
    }
    let asked = match client.take().map_or_else(|| Client::connect(address), Ok) {
        Ok(mut connected) => {
            let reply = connected.ask(ask.clone());
            *client = Some(connected);
            reply
        }
        Err(error) => Err(error),
    };
    match asked {
        Ok(reply) => told(name, &ask, reply, wanted, shown),
        // A coordinator that ends closes its connections.
        Err(Error::Lost { .. }) if ask == Ask::Quit => shown.plain(name, address),
        Err(error) => {
            let hint = if wanted.explicit {
                "Coordinator not found. Please check port and host."
            } else {
                "Coordinator not found. Try specifying port with '--port'."
            };
            shown.failure(
                name,
                Some(address),
                Shown::NOT_FOUND,
                &format!("{hint} ({error})"),
            )
        }
    }
}

/// A process of a job that belongs to this coordinator asks its own supervisor, which asks the coordinator. It returns when
/// the checkpoint is taken, and once more in each program that is continued from it.
fn from_inside(
    name: &str,
    wanted: &Wanted,
    stop: bool,
    client: &mut Option<Client>,
    shown: Shown,
) -> Option<u8> {
    let jobs = client::jobs().ok()?;
    let job = client::resolve(&jobs, None)
        .ok()
        .filter(|job| job.is_around_us())?;
    let address = wanted.address.to_string();
    if job.status.coordinator.as_ref() != Some(&address) {
        return None;
    }
    drop(client.take());
    Some(match inside::checkpoint(job, stop) {
        Ok(()) => shown.peers(name, &wanted.address, 1),
        Err(error) => shown.failure(
            name,
            Some(&wanted.address),
            Shown::NOT_RUNNING,
            &error.to_string(),
        ),
    })
}

fn told(name: &str, ask: &Ask, reply: Reply, wanted: &Wanted, shown: Shown) -> u8 {
    let address = &wanted.address;
    match reply {
        Reply::Status(status) => shown.status(address, &status),
        Reply::List(list) => shown.list(address, &list),
        Reply::Checkpoint { members, .. } => shown.peers(name, address, members),
        Reply::Done => match ask {
            Ask::Interval { seconds } => shown.interval(address, *seconds),
            _ => shown.plain(name, address),
        },
        Reply::NotRunning => shown.failure(
            name,
            Some(address),
            Shown::NOT_RUNNING,
            "Error, computation not in running state.  Either a checkpoint is\n currently happening or there are no connected processes.",
        ),
        Reply::Failed { reason } => {
            shown.failure(name, Some(address), Shown::NOT_RUNNING, &format!("nothing was saved: {reason}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Said {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        understand(&words)
    }

    #[test]
    fn words_are_taken_with_any_hyphens() {
        for line in [
            "s",
            "-s",
            "--s",
            "status",
            "-status",
            "--status",
            "---status",
        ] {
            assert_eq!(said(line).verbs, [Verb::Status], "{line}");
        }
        for line in ["kc", "-ck", "K", "--Kc", "kcheckpoint"] {
            assert_eq!(said(line).verbs, [Verb::KillCheckpoint], "{line}");
        }
        for line in ["i 30", "-i30", "--interval 30", "i30", "--interval=30"] {
            assert_eq!(said(line).verbs, [Verb::Interval(30)], "{line}");
        }
        for line in ["h", "--help", "?", "help"] {
            assert_eq!(said(line).verbs, [Verb::Help], "{line}");
        }
    }

    #[test]
    fn options_may_stand_before_and_behind() {
        for line in [
            "-h x -p 7 -bc",
            "--bcheckpoint --coord-host x --port 7",
            "bc -p7 --host=x",
        ] {
            let said = said(line);
            assert_eq!(
                (said.host.as_deref(), said.port.as_deref()),
                (Some("x"), Some("7")),
                "{line}"
            );
            assert_eq!(said.verbs, [Verb::BlockingCheckpoint], "{line}");
        }
    }

    #[test]
    fn all_words_count_and_unknown_ones_are_told() {
        assert_eq!(said("-bc -q").verbs, [Verb::BlockingCheckpoint, Verb::Quit]);
        assert_eq!(
            said("--ckpt-open-files --bcheckpoint").verbs,
            [Verb::BlockingCheckpoint]
        );
        assert_eq!(
            said("frobnicate").verbs,
            [Verb::Unknown("frobnicate".into())]
        );
        assert!(said("-i x").wrong.is_some());
    }

    #[test]
    fn the_parser_is_consistent() {
        for parser in crate::parsers() {
            parser.debug_assert();
        }
    }
}
