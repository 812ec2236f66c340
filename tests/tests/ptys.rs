//! Pseudo terminals that the job has made itself, and the programs that make them.

use stasis_tests::{Finished, Linkage, Sandbox, need, program, verify_after_restart};
use std::path::PathBuf;

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            need!("cc");
            let program = program("ptys", Linkage::Dynamic).expect("there is a compiler");
            verify_after_restart(&Sandbox::new(), &[program.as_os_str(), stringify!($name).as_ref()]);
        }
    )*};
}

cases! { pair states session }

/// A copy of the job that runs beside it has the numbers too: it gets a devpts of its own.
#[test]
fn numbers_that_others_have() {
    need!("cc");
    let sandbox = Sandbox::new();
    let program = program("ptys", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[program.as_os_str(), "session".as_ref()]);
    job.wait_line("ready");
    let image = job.checkpoint();
    let mut copy = sandbox.restart(&image);
    copy.wait_listed();
    let second = copy.checkpoint();
    let mut grandcopy = sandbox.restart(&second);
    grandcopy.wait_listed();
    sandbox.write("go", "");
    for job in [job, copy, grandcopy] {
        let end = job.finish();
        assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    }
}

/// script(1) writes down what a shell shows on a terminal of its own.
#[test]
fn script() {
    need!("script");
    let sandbox = Sandbox::new();
    let line = "tty > /dev/null && test -t 0 && i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; \
                [ $i = 20 ] && touch half && while ! [ -e go ]; do sleep 0.02; done; done; true";
    let mut job = sandbox.run(&["script", "-q", "-e", "-c", line, "typescript"]);
    wait_until("half of the lines", || sandbox.work().join("half").exists());
    let image = job.checkpoint();
    job.kill_all();
    let mut job = sandbox.restart(&image);
    job.wait_listed();
    let second = job.checkpoint();
    job.kill_all();
    let job = sandbox.restart(&second);
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success(), "{end:?}");
    let written = String::from_utf8_lossy(&sandbox.read("typescript")).into_owned();
    let lines = written.lines().filter(|line| line.starts_with("line "));
    let expected: Vec<String> = (1..=40).map(|n| format!("line {n}")).collect();
    assert_eq!(lines.map(str::trim_end).collect::<Vec<_>>(), expected);
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    stasis_tests::wait_until(what, || is_so().then_some(()));
}

struct Tmux<'a> {
    sandbox: &'a Sandbox,
    socket: PathBuf,
}

impl Tmux<'_> {
    fn arguments<'b>(&'b self, words: &[&'b str]) -> Vec<&'b str> {
        let socket = self.socket.to_str().expect("a path of words");
        let mut all = vec!["-S", socket, "-f", "/dev/null"];
        all.extend(words);
        all
    }

    fn try_to(&self, words: &[&str]) -> Finished {
        let mut command = self.sandbox.command("tmux");
        command.args(self.arguments(words));
        self.sandbox.start(command).finish()
    }

    fn ask(&self, words: &[&str]) -> String {
        let end = self.try_to(words);
        assert!(end.success(), "{end:?}");
        end.stdout
    }

    fn screen(&self, pane: &str) -> String {
        self.ask(&["capture-pane", "-p", "-t", pane])
    }

    fn wait_for(&self, pane: &str, text: &str) {
        wait_until(text, || self.screen(pane).contains(text));
    }
}

/// tmux(1): a server with shells in its panes; whoever attaches from outside comes and goes.
#[test]
fn tmux() {
    need!("tmux");
    let mut sandbox = Sandbox::new();
    let shell = ("SHELL".to_owned(), "/bin/sh".to_owned());
    sandbox.env.push(shell);
    let tmux = Tmux {
        sandbox: &sandbox,
        socket: sandbox.work().join("tmux"),
    };
    let counting = "i=0; while :; do i=$((i+1)); echo count $i; sleep 0.02; done";
    let mut start = vec!["tmux"];
    start.extend(tmux.arguments(&["new-session", "-d", "-x", "90", "-y", "30", "sh"]));
    let mut job = sandbox.run(&start);
    job.wait_listed();
    wait_until("the session", || {
        tmux.try_to(&["has-session", "-t", "0"]).success()
    });
    tmux.ask(&["split-window", "-d", "-t", "0", "sh"]);
    tmux.ask(&["split-window", "-d", "-h", "-t", "0", counting]);
    tmux.ask(&[
        "send-keys",
        "-t",
        "0.0",
        "word=kept; tty; echo first is ready",
        "Enter",
    ]);
    tmux.wait_for("0.0", "\nfirst is ready");
    tmux.wait_for("0.1", "count ");
    let before = tmux.screen("0.0");
    let image = job.checkpoint();
    tmux.ask(&["send-keys", "-t", "0.0", "word=lost", "Enter"]);
    job.kill_all();

    let mut image = image;
    for _ in 0..2 {
        let mut job = sandbox.restart(&image);
        job.wait_listed();
        assert_eq!(tmux.screen("0.0"), before);
        assert_eq!(
            tmux.ask(&["list-panes", "-t", "0", "-F", "#{pane_width}"])
                .lines()
                .count(),
            3
        );
        image = job.checkpoint();
        tmux.ask(&["send-keys", "-t", "0.0", "echo $word after; tty", "Enter"]);
        tmux.wait_for("0.0", "kept after");
        let terminal = |screen: &str| {
            let mut names = screen.lines().filter(|line| line.starts_with("/dev/pts/"));
            names.next_back().map(str::to_owned)
        };
        wait_until("the terminal's name", || {
            let screen = tmux.screen("0.0");
            screen.matches("/dev/pts/").count() == 2 && terminal(&screen) == terminal(&before)
        });
        let counted = |screen: String| {
            let last = screen
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix("count ")?.parse().ok());
            last.unwrap_or(0)
        };
        let now: u32 = counted(tmux.screen("0.1"));
        wait_until("more counts", || counted(tmux.screen("0.1")) > now);
        tmux.ask(&["send-keys", "-t", "0.1", "C-c", ""]);
        wait_until("the end of counting", || {
            tmux.ask(&["list-panes", "-t", "0"]).lines().count() == 2
        });
        job.kill_all();
    }
}

/// An editor in one of three panes, with changes that are not written yet.
#[test]
fn tmux_with_an_editor() {
    need!("tmux");
    need!("vim.tiny");
    let mut sandbox = Sandbox::new();
    let shell = ("SHELL".to_owned(), "/bin/sh".to_owned());
    sandbox.env.push(shell);
    sandbox.write("text", "the first line\nthe last line\n");
    let tmux = Tmux {
        sandbox: &sandbox,
        socket: sandbox.work().join("tmux"),
    };
    let mut start = vec!["tmux"];
    start.extend(tmux.arguments(&[
        "new-session",
        "-d",
        "-x",
        "100",
        "-y",
        "30",
        "vim.tiny -N -u NONE text",
    ]));
    let mut job = sandbox.run(&start);
    job.wait_listed();
    wait_until("the session", || {
        tmux.try_to(&["has-session", "-t", "0"]).success()
    });
    tmux.ask(&["split-window", "-d", "-t", "0", "sh"]);
    tmux.ask(&[
        "split-window",
        "-d",
        "-h",
        "-t",
        "0",
        "while :; do date +%N; done",
    ]);
    tmux.wait_for("0.0", "the last line");
    tmux.ask(&["send-keys", "-t", "0.0", "o", "a new line", "Escape"]);
    tmux.wait_for("0.0", "a new line");
    // Whatever the editor has still to say of the keys has been said when it has answered one more question.
    tmux.ask(&["send-keys", "-t", "0.0", ":f", "Enter"]);
    tmux.wait_for("0.0", "[Modified]");
    let mut image = job.checkpoint();
    let before = tmux.screen("0.0");
    tmux.ask(&["send-keys", "-t", "0.0", ":q!", "Enter"]);
    job.kill_all();
    for round in 1..=2 {
        let mut job = sandbox.restart(&image);
        job.wait_listed();
        assert_eq!(tmux.screen("0.0"), before);
        image = job.checkpoint();
        let name = format!("written{round}");
        let keys = [
            "send-keys",
            "-t",
            "0.0",
            "Go",
            "and one more",
            "Escape",
            "uu",
        ];
        tmux.ask(&keys);
        tmux.ask(&["send-keys", "-t", "0.0", &format!(":w {name}"), "Enter"]);
        wait_until("the file", || {
            sandbox.read(&name) == b"the first line\nthe last line\n"
        });
        tmux.ask(&[
            "send-keys",
            "-t",
            "0.0",
            ":redo",
            "Enter",
            &format!(":w! {name}"),
            "Enter",
        ]);
        let expected = b"the first line\na new line\nthe last line\n";
        wait_until("the file again", || sandbox.read(&name) == expected);
        job.kill_all();
    }
}

/// screen(1): a server with two windows, told from outside what to do.
#[test]
fn screen() {
    need!("screen");
    let mut sandbox = Sandbox::new();
    let sockets = sandbox.work().join("sockets");
    let shell = ("SHELL".to_owned(), "/bin/sh".to_owned());
    let directory = ("SCREENDIR".to_owned(), sockets.display().to_string());
    sandbox.env.extend([shell, directory]);
    let made = sandbox.plain(&["mkdir", "-m", "700", "sockets"]);
    made.expect_success("a directory");
    sandbox.write("screenrc", "defscrollback 100\n");
    let tell = |words: &[&str]| {
        let mut all = vec!["screen", "-S", "kept"];
        all.extend(words);
        sandbox.plain(&all)
    };
    let ask = |window: &str, words: &[&str]| {
        let mut all = vec!["-p", window, "-X"];
        all.extend(words);
        tell(&all).expect_success("telling screen");
    };
    let shown = |window: &str, text: &str| {
        wait_until(text, || {
            ask(window, &["hardcopy", "copy"]);
            String::from_utf8_lossy(&sandbox.read("copy")).contains(text)
        });
    };
    let mut job = sandbox.run(&["screen", "-c", "screenrc", "-D", "-m", "-S", "kept", "sh"]);
    job.wait_listed();
    wait_until("the first window", || tell(&["-Q", "windows"]).success());
    ask("0", &["screen", "-t", "second", "sh"]);
    ask("0", &["stuff", "word=kept; echo one \\$word\n"]);
    ask("1", &["stuff", "word=also; echo two \\$word\n"]);
    shown("0", "\none kept");
    shown("1", "\ntwo also");
    let mut image = job.checkpoint();
    ask("0", &["stuff", "word=lost\n"]);
    job.kill_all();
    for _ in 0..2 {
        let mut job = sandbox.restart(&image);
        job.wait_listed();
        image = job.checkpoint();
        ask("0", &["stuff", "echo three \\$word; tty\n"]);
        ask("1", &["stuff", "echo four \\$word; tty\n"]);
        shown("0", "\nthree kept\n/dev/pts/");
        shown("1", "\nfour also\n/dev/pts/");
        job.kill_all();
    }
}
