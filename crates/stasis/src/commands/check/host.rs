//! What this host allows, in words.

use super::super::Result;
use crate::output;
use serde::Serialize;
use stasis_engine::host::Host;
use stasis_engine::restart::Strategy;
use std::process::ExitCode;

/// One line of the answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// A stable name.
    name: &'static str,
    /// What was found.
    found: String,
    level: Level,
    /// What to do about it, where something can be.
    hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As wished.
    Good,
    /// Works, with something less.
    Less,
    /// Stands in the way.
    Bad,
}

/// The answer, for scripts.
#[derive(Serialize)]
struct Answer {
    can_checkpoint: bool,
    can_restart: bool,
    strategy: Option<Strategy>,
    findings: Vec<Finding>,
}

pub(super) fn run(json: bool) -> Result {
    let answer = answer(&Host::look());
    if json {
        output::json(&answer)?;
    } else {
        show(&answer)?;
    }
    let fine = answer.can_checkpoint && answer.can_restart;
    Ok(ExitCode::from(if fine { 0 } else { crate::exit::FAILED }))
}

fn show(answer: &Answer) -> std::io::Result<()> {
    for finding in &answer.findings {
        let mark = match finding.level {
            Level::Good => "ok  ",
            Level::Less => "less",
            Level::Bad => "NO  ",
        };
        output::result(format_args!(
            "{mark}  {:<22} {}",
            finding.name, finding.found
        ))?;
        if let Some(hint) = &finding.hint {
            output::result(format_args!("      {:<22} fix: {hint}", ""))?;
        }
    }
    let restart = match answer.strategy {
        Some(Strategy::Privileged) => {
            "restarts choose their process ids freely where they are free, and use namespaces otherwise"
        }
        Some(Strategy::Namespaces) => {
            "restarts run in namespaces of their own, with their old process ids"
        }
        Some(Strategy::Burn) => {
            "restarts wait for their process ids to come round, which takes time, and need them to be free"
        }
        None => "restarts are not possible here",
    };
    output::result(format_args!("\n{restart}"))
}

fn answer(host: &Host) -> Answer {
    let strategy = host.ids.choice(true);
    Answer {
        can_checkpoint: host.tracing.is_ok(),
        can_restart: host.tracing.is_ok() && strategy.is_some(),
        strategy,
        findings: findings(host),
    }
}

fn findings(host: &Host) -> Vec<Finding> {
    let finding = |name, found: String, level, hint: Option<&str>| Finding {
        name,
        found,
        level,
        hint: hint.map(ToOwned::to_owned),
    };
    // Where ids can be chosen, nothing depends on namespaces.
    let wanted = if host.ids.chooses_ids {
        Level::Less
    } else {
        Level::Bad
    };
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    vec![
        kernel(host),
        tracing(host),
        namespaces(host, wanted),
        finding(
            "time-namespace",
            yes(host.ids.namespaces.time),
            if host.ids.namespaces.time { Level::Good } else { Level::Less },
            (!host.ids.namespaces.time).then_some(
                "without it CLOCK_MONOTONIC jumps at a restart; it needs Linux 5.6 with CONFIG_TIME_NS and user namespaces",
            ),
        ),
        finding(
            "fresh-proc",
            yes(host.ids.namespaces.proc),
            if host.ids.namespaces.proc { Level::Good } else { Level::Less },
            (!host.ids.namespaces.proc).then_some(
                "a restarted program sees the host's process ids in /proc; in a container, start it with an unmasked /proc \
                 (podman and docker: --security-opt unmask=/proc)",
            ),
        ),
        finding(
            "choose-ids",
            yes(host.ids.chooses_ids),
            if host.ids.chooses_ids { Level::Good } else { Level::Less },
            (!host.ids.chooses_ids && strategy_needs_help(host)).then_some(
                "an administrator can give it: setcap cap_checkpoint_restore+ep on the stasis binary (Linux 5.9)",
            ),
        ),
        strategies(host),
        pid_max(host),
        finding(
            "pagemap-scan",
            yes(host.pagemap_scan),
            if host.pagemap_scan { Level::Good } else { Level::Less },
            (!host.pagemap_scan).then_some("Linux 6.7 and newer find the pages to save faster; nothing is lost without"),
        ),
        finding(
            "timers",
            match (host.shows_timers, host.chooses_timer_ids) {
                (true, true) => "shown; their ids can be chosen".to_owned(),
                (true, false) => "shown; their ids have to be burnt".to_owned(),
                (false, _) => "not shown".to_owned(),
            },
            if host.shows_timers { Level::Good } else { Level::Less },
            (!host.shows_timers).then_some(
                "POSIX timers of programs are not found, and lost at a restart; it needs a kernel with CONFIG_CHECKPOINT_RESTORE",
            ),
        ),
        finding(
            "children",
            if host.shows_children { "listed" } else { "not listed" }.to_owned(),
            if host.shows_children { Level::Good } else { Level::Less },
            (!host.shows_children).then_some(
                "all processes of the host are searched instead, which is slower; it needs a kernel with CONFIG_PROC_CHILDREN",
            ),
        ),
        finding(
            "userfaultfd",
            yes(host.tracks_writes),
            if host.tracks_writes { Level::Good } else { Level::Less },
            (!host.tracks_writes).then_some(
                "increments read all memory, which is slower; it needs Linux 6.7 or newer with userfaultfd(2), which seccomp filters \
                 (containers) may forbid",
            ),
        ),
    ]
}

fn strategy_needs_help(host: &Host) -> bool {
    host.ids.choice(true) != Some(Strategy::Namespaces)
}

fn kernel(host: &Host) -> Finding {
    let numbers: Vec<u32> = host
        .kernel
        .split(['.', '-'])
        .map_while(|part| part.parse().ok())
        .take(2)
        .collect();
    let old = matches!(numbers.as_slice(), [major, minor] if (*major, *minor) < (5, 14));
    Finding {
        name: "kernel",
        found: format!("Linux {}", host.kernel),
        level: if old { Level::Less } else { Level::Good },
        hint: old.then(|| "Linux 5.14 and newer are tested".to_owned()),
    }
}

fn tracing(host: &Host) -> Finding {
    let scope = host.ptrace_scope.map_or_else(
        || "no Yama".to_owned(),
        |scope| format!("ptrace_scope {scope}"),
    );
    match &host.tracing {
        Ok(()) => Finding {
            name: "tracing",
            found: format!("yes ({scope})"),
            level: Level::Good,
            hint: None,
        },
        Err(reason) => {
            let hint = match host.ptrace_scope {
                Some(2) => "an administrator has to set kernel.yama.ptrace_scope to 0 or 1",
                Some(3) => {
                    "kernel.yama.ptrace_scope is 3, which only a reboot with another setting changes"
                }
                _ => {
                    "a seccomp filter forbids ptrace, most likely; in a container, allow it (--cap-add SYS_PTRACE or another profile)"
                }
            };
            Finding {
                name: "tracing",
                found: format!("no: {reason} ({scope})"),
                level: Level::Bad,
                hint: Some(hint.to_owned()),
            }
        }
    }
}

fn namespaces(host: &Host, wanted: Level) -> Finding {
    let (found, works) = match (host.ids.namespaces.user, host.ids.namespaces.pid) {
        (true, true) => ("yes", true),
        (true, false) => ("user namespaces, but no pid namespaces in them", false),
        (false, _) => ("no", false),
    };
    let burn = if host.ids.shows_last_id {
        Level::Less
    } else {
        wanted
    };
    Finding {
        name: "user-namespaces",
        found: found.to_owned(),
        level: if works { Level::Good } else { burn },
        hint: (!works).then(|| {
            "an administrator can allow them: user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 (Debian), \
             kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 24.04); in a container, a seccomp profile that lets \
             unshare pass"
                .to_owned()
        }),
    }
}

fn strategies(host: &Host) -> Finding {
    let obstacle = |strategy| host.ids.obstacle(strategy);
    let (possible, not): (Vec<_>, Vec<_>) = Strategy::ALL
        .into_iter()
        .partition(|strategy| obstacle(*strategy).is_none());
    let names: Vec<_> = possible.iter().map(|strategy| strategy.name()).collect();
    let reasons: Vec<_> = not
        .iter()
        .filter_map(|strategy| {
            Some(format!(
                "not {}: {}",
                strategy.name(),
                obstacle(*strategy)?.reason
            ))
        })
        .collect();
    let names = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    Finding {
        name: "strategies",
        found: std::iter::once(names)
            .chain(reasons)
            .collect::<Vec<_>>()
            .join("; "),
        level: match host.ids.choice(true) {
            None => Level::Bad,
            Some(Strategy::Burn) => Level::Less,
            Some(_) => Level::Good,
        },
        hint: possible
            .is_empty()
            .then(|| "see user-namespaces and choose-ids".to_owned()),
    }
}

/// What burning one id costs.
const BURN_SECONDS: f64 = 15e-6;

fn pid_max(host: &Host) -> Finding {
    let found = match host.pid_max {
        None => "unknown".to_owned(),
        Some(max) if host.ids.shows_last_id => {
            format!(
                "{max}; spending all ids takes about {:.0} s",
                (f64::from(max) * BURN_SECONDS).max(1.0)
            )
        }
        Some(max) => format!("{max}; the last id is not shown, so ids cannot be burnt"),
    };
    Finding {
        name: "pid-max",
        found,
        level: if host.ids.shows_last_id {
            Level::Good
        } else {
            Level::Less
        },
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_engine::restart::{Abilities, Namespaces};

    fn good() -> Host {
        Host {
            kernel: "6.12.0-rc1".into(),
            tracing: Ok(()),
            ptrace_scope: Some(1),
            ids: Abilities {
                chooses_ids: false,
                namespaces: Namespaces {
                    user: true,
                    pid: true,
                    time: true,
                    proc: true,
                    ipc: true,
                },
                shows_last_id: true,
            },
            pid_max: Some(4_194_304),
            pagemap_scan: true,
            tracks_writes: true,
            shows_timers: true,
            shows_children: true,
            chooses_timer_ids: true,
        }
    }

    #[test]
    fn a_good_host_needs_no_hints() {
        let answer = answer(&good());
        assert!(answer.can_checkpoint && answer.can_restart);
        assert!(
            answer.findings.iter().all(|finding| finding.hint.is_none()),
            "{:?}",
            answer.findings
        );
    }

    #[test]
    fn everything_that_is_missing_has_a_hint() {
        let bad = Host {
            kernel: "4.18.0-477.el8".into(),
            tracing: Err("EPERM".into()),
            ptrace_scope: Some(3),
            ids: Abilities::default(),
            pid_max: Some(32768),
            pagemap_scan: false,
            tracks_writes: false,
            shows_timers: false,
            shows_children: false,
            chooses_timer_ids: false,
        };
        let answer = answer(&bad);
        assert!(!answer.can_checkpoint && !answer.can_restart);
        for finding in answer
            .findings
            .iter()
            .filter(|finding| finding.name != "pid-max")
        {
            assert!(
                finding.hint.is_some() && finding.level != Level::Good,
                "{finding:?}"
            );
        }
    }

    #[test]
    fn the_json_of_a_host_keeps_its_shape() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&answer(&good())).unwrap());
    }
}
