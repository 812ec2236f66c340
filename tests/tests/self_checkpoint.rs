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

/// Whether a process waits for a signal (`rt_sigtimedwait(2)`), as an asking command does.
fn awaits_a_signal(pid: i32) -> bool {
    const RT_SIGTIMEDWAIT: &str = "128 ";
    std::fs::read_to_string(format!("/proc/{pid}/syscall"))
        .is_ok_and(|text| text.starts_with(RT_SIGTIMEDWAIT))
}

/// Three commands of one job wait at the same time: the image knows all three, whichever of them it was made for, and each
/// returns 0 once, in every run. A process that cannot be stopped (it waits for its vfork child) holds the checkpoint up
/// until all three have asked.
#[test]
fn three_at_once() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "three.py",
        "import os, subprocess
os.mkfifo('gate')
holder = os.fork()
if holder == 0:
    os.posix_spawn('/bin/true', ['true'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 9, 'gate', os.O_RDONLY, 0)])
    os.wait(); os._exit(0)
while not open(f'/proc/{holder}/task/{holder}/children').read(): pass
asking = [subprocess.Popen(['stasis', 'checkpoint'], stdout=subprocess.DEVNULL) for _ in range(3)]
print('asking', *(child.pid for child in asking), flush=True)
for child in asking: print('result', child.pid, child.wait(), flush=True)
os.waitpid(holder, 0)
",
    );
    let mut job = sandbox.run(&["/usr/bin/python3", "three.py"]);
    job.wait_stdout("numbers", |text| text.ends_with('\n'));
    let text = job.stdout();
    let numbers: Vec<i32> = (text.split_ascii_whitespace().skip(1))
        .map(|number| number.parse().expect("a number"))
        .collect();
    stasis_tests::wait_until("all three wait", || {
        numbers
            .iter()
            .all(|pid| awaits_a_signal(*pid))
            .then_some(())
    });
    let gate = sandbox.work().join("gate");
    drop(std::fs::File::options().write(true).open(gate));
    let end = job.finish();
    let results: String = (numbers.iter())
        .map(|pid| format!("result {pid} 0\n"))
        .collect();
    assert_eq!(end.exit, Exit::Code(0), "{end:?}");
    assert_eq!(end.stdout, text + &results, "{end:?}");
    let image = &sandbox.all_images()[0];
    let inspected = sandbox
        .stasis(["inspect", "--json", &image.to_string_lossy()])
        .expect_success("inspect");
    let tree: serde_json::Value = serde_json::from_str(&inspected.stdout).expect("valid JSON");
    let mut waiting: Vec<i64> = (tree["requesters"].as_array().expect("a list").iter())
        .filter_map(serde_json::Value::as_i64)
        .collect();
    waiting.sort_unstable();
    let mut asked: Vec<i64> = numbers.iter().map(|pid| i64::from(*pid)).collect();
    asked.sort_unstable();
    assert_eq!(waiting, asked);
    for _ in 0..2 {
        let again = sandbox.restart(image).finish();
        assert_eq!(again.exit, Exit::Code(0), "{again:?}");
        assert_eq!(again.stdout, results, "{again:?}");
    }
}
