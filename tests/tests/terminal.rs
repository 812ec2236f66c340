//! A job in a terminal: the program has it as without Stasis, job control works, and a restart binds to its own.

use stasis_tests::{Finished, Running, Sandbox, script, skip, stasis_binary, wait_until};
use std::ffi::OsString;
use std::path::Path;

const PYTHON: &str = "/usr/bin/python3";

/// A shell command in a new terminal, and what is typed there.
fn in_terminal<'a>(sandbox: &'a Sandbox, argv: &[OsString], steps: &str) -> Running<'a> {
    sandbox.write("terminal.py", script("terminal.py"));
    sandbox.write("steps", steps);
    let mut command = sandbox.command(PYTHON);
    command.env("TERM", "xterm").arg("terminal.py").args(argv);
    command.stdin(std::fs::File::open(sandbox.work().join("steps")).expect("the steps"));
    sandbox.start(command)
}

fn run(sandbox: &Sandbox, argv: &[&str]) -> Vec<OsString> {
    let command = sandbox.run_command(argv);
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    words
}

fn restart(sandbox: &Sandbox, image: &Path) -> Vec<OsString> {
    let command = sandbox.restart_command(image);
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    words
}

fn expect(end: &Finished, texts: &[&str]) {
    for text in texts {
        assert!(end.stdout.contains(text), "no {text:?}: {end:?}");
    }
}

/// The program has the terminal: line editing, size, echo, its name.
#[test]
fn the_program_has_the_terminal() {
    let sandbox = Sandbox::new();
    let text = "test -t 0 && test -t 1 && test -t 2 && echo is-a-terminal; stty size; read line; echo got-$line; stty -echo; read line; stty echo; echo hidden-${#line}; : > /dev/tty && echo has-dev-tty";
    let end = in_terminal(
        &sandbox,
        &run(&sandbox, &["sh", "-c", text]),
        "wait is-a-terminal\nwait 24 80\nsend hello\nwait got-hello\nsend 12345\nwait hidden-5\nwait has-dev-tty\nend\n",
    )
    .finish();
    expect(&end, &["[status 0]"]);
}

#[test]
fn interrupt_key() {
    let sandbox = Sandbox::new();
    let end = in_terminal(
        &sandbox,
        &run(&sandbox, &["sh", "-c", "echo ready; exec sleep 100"]),
        "wait ready\nkey 03\nend\n",
    )
    .finish();
    assert!(
        end.stdout.contains("[status 130]") || end.stdout.contains("[signal 2]"),
        "{end:?}"
    );
    sandbox.wait_empty();
}

/// A shell with job control around it: Ctrl-Z stops the job, `fg` continues it.
#[test]
fn stop_key_and_fg() {
    let sandbox = Sandbox::new();
    let stasis = stasis_binary().display();
    let images = sandbox.images();
    // One process that makes no others: a shell's child that is stopped before its exec would hold the shell up (vfork).
    sandbox.write(
        "waits.py",
        "import os, time\nos.write(1, b'first\\r\\n')\nwhile not os.path.exists('go'): time.sleep(0.02)\nos.write(1, b'second\\r\\n')\n",
    );
    let steps = format!(
        "send PS1='ready> '\nwait ready> \nsend {stasis} run -n job -d {} -- {PYTHON} waits.py\nwait first\nkey 1a\nwait Stopped\nwait ready> \nsend echo in-the-$((20+2))-shell\nwait in-the-22-shell\nsend touch go; fg\nwait second\nwait ready> \nsend exit 6\nend\n",
        images.display()
    );
    let end = in_terminal(
        &sandbox,
        &["bash", "--norc", "-i"].map(OsString::from),
        &steps,
    )
    .finish();
    expect(&end, &["[status 6]"]);
}

/// An interactive shell as the job: it does its own job control in the terminal, and does so after a restart in another.
#[test]
fn an_interactive_shell() {
    let sandbox = Sandbox::new();
    let job = in_terminal(
        &sandbox,
        &run(&sandbox, &["bash", "--norc", "-i"]),
        "send PS1='ready> '; x=17; stty -ixon\nwait ready> \nsend sleep 1000\nfront sleep\nkey 1a\nwait Stopped\nsend echo $((x+1))\nwait 18\nsend touch here\nwait never\nend\n",
    );
    wait_until("the shell is there", || {
        sandbox.work().join("here").exists().then_some(())
    });
    sandbox
        .stasis(["checkpoint", "job"])
        .expect_success("checkpoint");
    let image = sandbox.newest_image();
    job.kill_all();
    let end = in_terminal(
        &sandbox,
        &restart(&sandbox, &image),
        "size 30 100\nraw\nsend \nwait ready> \nsend echo $((x+2))\nwait 19\nsend stty size; stty -a\nwait 30 100\nwait -ixon\nsend jobs\nwait Stopped\nwait ready> \nsend fg\nwait sleep 1000\npause 0.5\nkey 03\nwait ready> \nsend exit 7\nend\n",
    )
    .finish();
    assert!(end.stdout.contains("[status 7]"), "{end:?}");
}

/// A full-screen program puts its terminal into raw mode: so must a restart.
#[test]
fn raw_mode() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "raw.py",
        "import os, sys, termios, tty\nold = termios.tcgetattr(0)\ntty.setraw(0)\nos.write(1, b'raw\\r\\n')\nopen('here', 'w').close()\nwhile True:\n  c = os.read(0, 1)\n  os.write(1, b'<%02x>' % c[0])\n  if c == b'q': break\ntermios.tcsetattr(0, termios.TCSADRAIN, old)\nsys.exit(4)\n",
    );
    let job = in_terminal(
        &sandbox,
        &run(&sandbox, &[PYTHON, "raw.py"]),
        "wait raw\nkey 03\nwait <03>\nwait never\n",
    );
    wait_until("the program is there", || {
        sandbox.work().join("here").exists().then_some(())
    });
    sandbox
        .stasis(["checkpoint", "job"])
        .expect_success("checkpoint");
    let image = sandbox.newest_image();
    job.kill_all();
    let end = in_terminal(
        &sandbox,
        &restart(&sandbox, &image),
        "raw\nkey 03\nwait <03>\nkey 0d\nwait <0d>\nkey 71\nend\n",
    )
    .finish();
    expect(&end, &["[status 4]"]);
}

/// A job under an interactive shell: what it had put in the foreground is there again, reads what is typed, and gets the
/// interrupt key; then the shell has the terminal.
fn the_foreground(sandbox: &Sandbox, first: &str) {
    let job = in_terminal(
        sandbox,
        &run(sandbox, &["bash", "--norc", "-i"]),
        "send PS1='ready> '; touch here\nwait ready> \nsend cat\nwait cat\nsend one\nwait one\nwait one\nwait never\nend\n",
    );
    wait_until("the shell is there", || {
        sandbox.work().join("here").exists().then_some(())
    });
    wait_until("cat is in the foreground", || {
        let pids = job.descendants();
        let cat = pids
            .iter()
            .filter_map(|pid| stasis_tests::process_state(*pid))
            .find(|state| state.name == "cat")?;
        (cat.state == 'S').then_some(())
    });
    sandbox
        .stasis(["checkpoint", "job"])
        .expect_success("checkpoint");
    let image = sandbox.newest_image();
    job.kill_all();
    let end = in_terminal(
        sandbox,
        &restart(sandbox, &image),
        &format!("{first}send two\nwait two\nwait two\nkey 03\nwait ready> \nsend echo $((20+2))\nwait 22\nsend exit 7\nend\n"),
    )
    .finish();
    expect(&end, &["[status 7]"]);
}

#[test]
fn the_foreground_in_namespaces() {
    the_foreground(&Sandbox::new(), "raw\n");
}

/// The terminal is the restart's own.
#[test]
fn the_foreground_without_namespaces() {
    let Some(mut sandbox) = Sandbox::root() else {
        skip!("only root can choose process ids");
    };
    let strategy = ["--strategy", "privileged"].map(String::from);
    sandbox.restart_options.extend(strategy);
    the_foreground(&sandbox, "");
}

/// A program that finds a window of another size is told, as when the window had changed under it, and the modes are those
/// that it had set.
fn another_window(sandbox: &mut Sandbox) {
    sandbox.write(
        "window.py",
        "import os, signal, termios, tty
def size(*_): os.write(1, b'<%d %d>' % os.get_terminal_size()[::-1])
signal.signal(signal.SIGWINCH, size)
old = termios.tcgetattr(0); tty.setraw(0)
size(); open('here', 'w').close()
while os.read(0, 1) != b'q': pass
os.write(1, b'raw' if not termios.tcgetattr(0)[3] & termios.ICANON else b'cooked')
termios.tcsetattr(0, termios.TCSADRAIN, old)
",
    );
    let job = in_terminal(
        sandbox,
        &run(sandbox, &[PYTHON, "window.py"]),
        "wait <24 80>\nwait never\n",
    );
    wait_until("the program is there", || {
        sandbox.work().join("here").exists().then_some(())
    });
    sandbox
        .stasis(["checkpoint", "job"])
        .expect_success("checkpoint");
    let image = sandbox.newest_image();
    job.kill_all();
    sandbox.env.push(("SIZE".into(), "30 100".into()));
    let end = in_terminal(
        sandbox,
        &restart(sandbox, &image),
        "wait <30 100>\nraw\nkey 71\nwait raw\nend\n",
    )
    .finish();
    expect(&end, &["[status 0]"]);
}

#[test]
fn another_window_in_namespaces() {
    another_window(&mut Sandbox::new());
}

#[test]
fn another_window_without_namespaces() {
    let Some(mut sandbox) = Sandbox::root() else {
        skip!("only root can choose process ids");
    };
    let strategy = ["--strategy", "privileged"].map(String::from);
    sandbox.restart_options.extend(strategy);
    another_window(&mut sandbox);
}

/// Standard output is the terminal at the checkpoint, and a pipe at the restart.
#[test]
fn from_a_terminal_to_a_pipe() {
    let sandbox = Sandbox::new();
    let text = "i=0; while [ $i -lt 80 ]; do i=$((i+1)); echo count-$i; sleep 0.02; done";
    let job = in_terminal(
        &sandbox,
        &run(&sandbox, &["sh", "-c", text]),
        "wait count-15\nsend \nwait never\n",
    );
    wait_until("the job is listed", || {
        sandbox.stasis(["ps"]).stdout.contains("job").then_some(())
    });
    sandbox
        .stasis(["checkpoint", "job"])
        .expect_success("checkpoint");
    let image = sandbox.newest_image();
    job.kill_all();
    let end = sandbox.restart(&image).finish();
    assert!(
        end.success() && end.stdout.contains("count-80\n"),
        "{end:?}"
    );
}
