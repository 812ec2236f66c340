//! Descriptors beside the standard streams that a job was started with and that lead out of it.

use stasis_tests::{Running, Sandbox, alive, script, wait_until};
use std::process::Command;

const PYTHON: &str = "/usr/bin/python3";

/// What the program finds at its descriptors, a line each.
const PROGRAM: &str = r"
import errno, os, select, socket, time
def attempt(call, *args):
    try: return call(*args)
    except OSError as error: return errno.errorcode[error.errno]
def reads(fd):
    if not select.select([fd], [], [], 0)[0]: return 'nothing'
    return attempt(os.read, fd, 100)
os.write(9, b'1'); os.write(1, b'ready\n')
while not os.path.exists('go'): time.sleep(0.01)
print('reader', reads(5), reads(5))
print('writer', attempt(os.write, 6, b'x'))
print('socket', attempt(os.write, 7, b'x'), reads(7))
print('terminal', attempt(os.write, 8, b'x'), os.isatty(8), reads(8))
os.write(9, b'2')
print('file', os.pread(9, 100, 0), flush=True)
";

/// The other sides are there.
fn connected(text: &str) -> String {
    format!(
        "reader b'{text}' nothing\nwriter 1\nsocket 1 nothing\nterminal 1 True nothing\nfile b'12'\n"
    )
}

/// The other sides have gone away: what was on its way can still be read.
const DEAD: &str =
    "reader b'first' b''\nwriter EPIPE\nsocket EPIPE b''\nterminal EIO False b''\nfile b'12'\n";

/// `command`, given descriptors that lead outside.
fn given(sandbox: &Sandbox, text: &str, command: &Command) -> Command {
    sandbox.write("outside.py", script("outside.py"));
    let mut outer = sandbox.command(PYTHON);
    outer.args(["outside.py", text]);
    outer.arg(command.get_program()).args(command.get_args());
    outer
}

fn started(sandbox: &Sandbox) -> Running<'_> {
    sandbox.write("program.py", PROGRAM);
    let command = sandbox.run_command(&[PYTHON, "program.py"]);
    let mut job = sandbox.start(given(sandbox, "first", &command));
    job.wait_line("ready");
    job
}

fn rest(output: &str) -> &str {
    output.strip_prefix("ready\n").unwrap_or(output)
}

fn go(sandbox: &Sandbox) {
    sandbox.write("go", "");
}

fn wait(sandbox: &Sandbox) {
    let _ = std::fs::remove_file(sandbox.work().join("go"));
}

const NUMBERS: &str = "descriptors 5, 6, 7, 8";

/// The program that runs on has all that it had, and the user is told what a restart will not have.
#[test]
fn the_continued_run() {
    let sandbox = Sandbox::new();
    let mut job = started(&sandbox);
    let saved = job.try_checkpoint().expect_success("checkpoint");
    assert!(saved.stderr.contains(NUMBERS), "{saved:?}");
    assert_eq!(saved.stderr.lines().count(), 1, "{saved:?}");
    go(&sandbox);
    let end = job.finish().expect_success("the program");
    assert_eq!(rest(&end.stdout), connected("first"), "{end:?}");
}

/// A restart that has no such descriptors: they lead to dead ends, and to the same ones after a restart of the restart.
#[test]
fn dead_ends() {
    let sandbox = Sandbox::new();
    let mut job = started(&sandbox);
    let first = job.checkpoint();
    job.kill_all();
    let mut job = sandbox.restart(&first);
    job.wait_listed();
    let second = job.checkpoint();
    job.kill_all();
    // A pipe without another side is one like any other.
    for (image, numbers) in [(&first, NUMBERS), (&second, "descriptors 7, 8")] {
        go(&sandbox);
        let end = sandbox.restart(image).finish().expect_success("restart");
        assert_eq!(end.stdout, DEAD, "{end:?}");
        assert!(
            end.stderr.contains(numbers) && end.stderr.contains("dead end"),
            "{end:?}"
        );
        wait(&sandbox);
    }
}

/// A restart that is given such descriptors: the program has those, and again in a restart of the restart.
#[test]
fn bound_anew() {
    let sandbox = Sandbox::new();
    let mut job = started(&sandbox);
    let first = job.checkpoint();
    job.kill_all();
    let mut job = sandbox.start(given(&sandbox, "x", &sandbox.restart_command(&first)));
    job.wait_listed();
    let second = job.checkpoint();
    job.kill_all();
    for image in [&first, &second] {
        go(&sandbox);
        let command = given(&sandbox, "second", &sandbox.restart_command(image));
        let end = sandbox.start(command).finish().expect_success("restart");
        assert_eq!(end.stdout, connected("second"), "{end:?}");
        assert!(
            end.stderr.contains(NUMBERS) && end.stderr.contains("own"),
            "{end:?}"
        );
        wait(&sandbox);
    }
}

/// Where the kind or the direction is another one, nothing is bound.
#[test]
fn nothing_that_does_not_fit() {
    let sandbox = Sandbox::new();
    let mut job = started(&sandbox);
    let image = job.checkpoint();
    job.kill_all();
    go(&sandbox);
    let restart = sandbox.restart_command(&image);
    let mut command = sandbox.command("bash");
    command.args([
        "-c",
        "exec 5> >(cat >&2) 6< <(echo wrong) 7>kept 8</dev/null; exec \"$@\"",
        "bash",
    ]);
    command.arg(restart.get_program()).args(restart.get_args());
    let end = sandbox.start(command).finish().expect_success("restart");
    assert_eq!(end.stdout, DEAD, "{end:?}");
    assert_eq!(sandbox.read("kept"), b"");
}

/// `--dry-run` says what will be done.
#[test]
fn a_dry_run_tells() {
    let sandbox = Sandbox::new();
    let mut job = started(&sandbox);
    let image = job.checkpoint();
    job.kill_all();
    let mut dry = sandbox.restart_command(&image);
    dry.arg("--dry-run");
    let plan = sandbox.start(dry).finish().expect_success("--dry-run");
    assert!(
        plan.stdout.contains("binds descriptor 6 to a dead end"),
        "{plan:?}"
    );
}

/// A shell's process substitution ends when the program closes its side, whoever else runs on: before and after a
/// restart.
#[test]
fn whoever_listens_sees_the_end() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "closing.sh",
        "echo early >&6; while [ ! -e close ]; do sleep 0.01; done; echo late >&6; exec 6>&-; touch closed; while [ ! -e go ]; do sleep 0.01; done",
    );
    let substituted = |command: &Command| {
        let mut shell = sandbox.command("bash");
        shell.args([
            "-c",
            "exec \"$@\" 6> >(cat > copied; touch ended) 63>&-",
            "bash",
        ]);
        shell.arg(command.get_program()).args(command.get_args());
        shell
    };
    let wait_for = |name: &str| {
        wait_until(name, || sandbox.work().join(name).exists().then_some(()));
    };
    let remove = |name: &str| {
        let _ = std::fs::remove_file(sandbox.work().join(name));
    };
    let mut job = sandbox.start(substituted(&sandbox.run_command(&["sh", "closing.sh"])));
    wait_until("the first line has arrived", || {
        (sandbox.read("copied") == b"early\n").then_some(())
    });
    let image = job.checkpoint();
    sandbox.write("close", "");
    wait_for("ended");
    assert!(alive(job.pid()) && sandbox.read("copied") == b"early\nlate\n");
    job.kill_all();
    for name in ["close", "closed", "ended", "copied"] {
        remove(name);
    }
    let job = sandbox.start(substituted(&sandbox.restart_command(&image)));
    sandbox.write("close", "");
    wait_for("ended");
    wait_for("closed");
    assert!(alive(job.pid()) && sandbox.read("copied") == b"late\n");
    go(&sandbox);
    job.finish().expect_success("the program");
}
