//! A program asks for its own checkpoint by running `stasis checkpoint`: it returns 0 in the run that goes on and, with
//! the same number, in each restart, once.

use stasis_tests::{Exit, Sandbox, installed, skip};

fn check(argv: &[&str], file: &str, text: &str) {
    if !installed(argv[0].rsplit('/').next().unwrap_or_default())
        && !std::path::Path::new(argv[0]).exists()
    {
        skip!("{} is not installed", argv[0]);
    }
    let sandbox = Sandbox::new();
    sandbox.write(file, text);
    let end = sandbox.run(argv).finish();
    assert_eq!(end.exit, Exit::Code(5), "{end:?}");
    let (before, after) = end
        .stdout
        .split_once("before\n")
        .unwrap_or_else(|| panic!("{end:?}"));
    assert_eq!(before, "", "{end:?}");
    assert_eq!(after.matches("result 0").count(), 1, "{end:?}");
    let image = sandbox.newest_image();
    for _ in 0..2 {
        let again = sandbox.restart(&image).finish();
        assert_eq!(again.exit, Exit::Code(5), "{again:?}");
        assert_eq!(again.stdout, after, "{again:?}");
    }
}

#[test]
fn python_os_system() {
    check(
        &["/usr/bin/python3", "self.py"],
        "self.py",
        "import os\nprint('before', flush=True)\nrc = os.system('stasis checkpoint > /dev/null')\nprint('result', rc, os.getpid(), flush=True)\nos._exit(5)\n",
    );
}

/// The number of the asking command is the same in every run.
#[test]
fn python_subprocess() {
    check(
        &["/usr/bin/python3", "self.py"],
        "self.py",
        "import os, subprocess\nprint('before', flush=True)\nchild = subprocess.Popen(['stasis', 'checkpoint'], stdout=subprocess.PIPE)\nout = child.communicate()[0]\nprint('result', child.returncode, child.pid, out.decode().strip(), flush=True)\nos._exit(5)\n",
    );
}

#[test]
fn a_shell_line() {
    check(
        &["sh", "self.sh"],
        "self.sh",
        "echo before\nstasis checkpoint > /dev/null\necho result $? $$\nexit 5\n",
    );
}

/// The very first thing that a program does.
#[test]
fn at_once() {
    let sandbox = Sandbox::new();
    for _ in 0..10 {
        let end = sandbox.run(&["stasis", "checkpoint"]).finish();
        assert_eq!(end.exit, Exit::Code(0), "{end:?}");
    }
}

/// Twice from one program; the second image restarts behind the second.
#[test]
fn twice() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "self.sh",
        "for i in 1 2; do echo before $i; stasis checkpoint > /dev/null; echo result $i $?; done; exit 5\n",
    );
    let end = sandbox.run(&["sh", "self.sh"]).finish();
    assert_eq!(end.stdout, "before 1\nresult 1 0\nbefore 2\nresult 2 0\n");
    let images = sandbox.all_images();
    assert_eq!(images.len(), 2);
    let first = sandbox.restart(&images[0]).finish();
    assert_eq!(first.exit, Exit::Code(5), "{first:?}");
    assert_eq!(first.stdout, "result 1 0\nbefore 2\nresult 2 0\n");
    let second = sandbox.restart(&images[1]).finish();
    assert_eq!(second.stdout, "result 2 0\n");
}

/// The program asks to be saved and stopped.
#[test]
fn save_and_stop() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "self.sh",
        "echo before\nstasis checkpoint --stop > /dev/null\necho result $?\nexit 5\n",
    );
    let end = sandbox.run(&["sh", "self.sh"]).finish();
    assert_eq!(
        (end.exit, end.stdout.as_str()),
        (Exit::Code(85), "before\n")
    );
    let again = sandbox.restart(&sandbox.newest_image()).finish();
    assert_eq!(
        (again.exit, again.stdout.as_str()),
        (Exit::Code(5), "result 0\n")
    );
}
