//! Every kind that is refused, and how that is said.

use crate::harness::Program;
use stasis_engine::{EngineError, Refusal};

/// What capturing a program refuses; a mere look says the same.
fn refused(setup: &str) -> Vec<Refusal> {
    let program = Program::start(setup, "");
    let looked = program.refusals();
    match program.capture() {
        Err(EngineError::Refused(refusals)) => {
            assert_eq!(refusals, looked);
            refusals
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("nothing was refused"),
    }
}

/// The only refusal, as a sentence.
fn one(setup: &str) -> String {
    let mut all = refused(setup);
    assert_eq!(all.len(), 1, "{all:?}");
    let refusal = all.remove(0);
    assert!(refusal.pid.is_some() && refusal.process == "python3" && !refusal.hint.is_empty());
    assert!(refusal.object.starts_with("descriptor 10 ("), "{refusal}");
    format!("{}: {}", refusal.object, refusal.reason)
}

#[test]
fn sockets() {
    let said = one(
        "a, b = socket.socketpair(); a.send(b'!', socket.MSG_OOB); b.setblocking(False); at(11, a.detach()); at(10, b.detach())",
    );
    assert!(said.contains("urgent data"), "{said}");
    let said = one("s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9); at(10, s.detach())");
    assert!(said.contains("netlink socket of protocol 9"), "{said}");
    let vsock = "s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); at(10, s.detach())";
    if let Some(program) = available(vsock, "vsock") {
        assert!(one(program).contains("a socket (vsock, stream"));
    }
    let packets = "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); at(10, s.detach())";
    if let Some(program) = available(packets, "packet sockets") {
        assert!(one(program).contains("a socket (packet, raw"));
    }
    let sctp = "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132); at(10, s.detach())";
    if let Some(program) = available(sctp, "SCTP") {
        assert!(one(program).contains("SCTP"));
    }
    let ping = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1); at(10, s.detach())";
    if let Some(program) = available(ping, "ICMP") {
        assert!(one(program).contains("ICMP"));
    }
}

#[test]
fn every_process_is_named() {
    let all = refused(
        r"
at(10, libc.inotify_init())
child(lambda: (os.close(10), at(11, libc.inotify_init())))
",
    );
    assert_eq!(all.len(), 2, "{all:?}");
    assert_ne!(all[0].pid, all[1].pid);
}

#[test]
fn watches_on_files() {
    assert!(one("at(10, libc.inotify_init())").contains("a watch on files (inotify)"));
}

#[test]
fn io_uring() {
    let Some(program) = available(
        "at(10, system(425, 4, ctypes.byref((ctypes.c_char * 120)())))",
        "io_uring",
    ) else {
        return;
    };
    assert!(one(program).contains("io_uring"));
}

#[test]
fn userfaultfd() {
    let Some(program) = available("at(10, system(323, 1))", "userfaultfd") else {
        return;
    };
    assert!(one(program).contains("userfaultfd"));
}

#[test]
fn perf_events() {
    let program = "attr = (ctypes.c_uint64 * 16)(1 | 128 << 32, 0, 0, 0, 0, 1 | 1 << 5 | 1 << 6)
at(10, system(298, ctypes.byref(attr), 0, -1, -1, 8))";
    let Some(program) = available(program, "perf_event_open") else {
        return;
    };
    assert!(one(program).contains("performance counter"));
}

#[test]
fn namespaces() {
    assert!(one("at(10, os.open('/proc/self/ns/net', os.O_RDONLY))").contains("a namespace"));
}

#[test]
fn hidden_memory() {
    let Some(program) = available("at(10, system(447, 0))", "memfd_secret") else {
        return;
    };
    assert!(one(program).contains("memory hidden from the kernel"));
}

#[test]
fn memory_in_huge_pages() {
    let Some(program) = available("at(10, os.memfd_create('h', 4))", "MFD_HUGETLB") else {
        return;
    };
    assert!(one(program).contains("huge pages"));
}

#[test]
fn landlock_rules() {
    let program = "at(10, system(444, ctypes.byref((ctypes.c_uint64 * 2)(1, 0)), 8, 0))";
    let Some(program) = available(program, "Landlock") else {
        return;
    };
    assert!(one(program).contains("Landlock"));
}

#[test]
fn pipes_that_lead_outside() {
    let outside = |which: &str| {
        let other = if which == "r" { "w" } else { "r" };
        // The other end is kept by a process that has left the tree.
        format!(
            "r, w = os.pipe()
import subprocess
holder = subprocess.Popen(['setsid', '-f', 'sh', '-c', 'echo $$; exec >&-; exec sleep 1000'], pass_fds=[{other}], stdout=subprocess.PIPE)
pid = holder.stdout.readline(); holder.stdout.close(); holder.wait()
import atexit
os.close({other}); at(10, {which}); os.environ['HOLDER'] = pid.decode()"
        )
    };
    for (end, word) in [("r", "for writing"), ("w", "for reading")] {
        let script = outside(end);
        let program = Program::start(&script, "os.kill(int(os.environ['HOLDER']), 9)");
        let all = program.refusals();
        let mut program = program;
        program.check();
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(
            all[0].reason.contains(word) && all[0].reason.contains("outside the job"),
            "{all:?}"
        );
    }
}

#[test]
fn a_program_that_stasis_did_not_start_may_have_streams() {
    let program = Program::start("", "");
    let pid = program.views()[0].pid;
    let streams = stasis_engine::descriptors::stdio_of(pid);
    assert!(streams.iter().all(Option::is_some));
    assert_eq!(program.refusals_with(&streams), Vec::new());
    let none = program.refusals_with(&[None, None, None]);
    assert!(
        none.iter().all(|r| r.reason.contains("outside the job")) && !none.is_empty(),
        "{none:?}"
    );
}

#[test]
fn processes_outside() {
    let said = one("at(10, os.pidfd_open(os.getppid()))");
    assert!(said.contains("not one of the job's"), "{said}");
}

#[test]
fn epoll_targets_that_nobody_holds() {
    // A process that has left the tree keeps the target alive.
    let script = "v = eventfd(0)
import subprocess
holder = subprocess.Popen(['setsid', '-f', 'sh', '-c', 'echo $$; exec >&-; exec sleep 1000'], pass_fds=[v], stdout=subprocess.PIPE)
pid = holder.stdout.readline(); holder.stdout.close(); holder.wait(); os.environ['HOLDER'] = pid.decode()
at(10, epoll()); add(10, v, IN, 1); os.close(v)";
    let mut program = Program::start(script, "os.kill(int(os.environ['HOLDER']), 9)");
    let all = program.refusals();
    program.check();
    assert!(
        all.iter()
            .any(|r| r.reason.contains("not held by any process of the job")),
        "{all:?}"
    );
}

#[test]
fn devices_with_state() {
    let Some(program) = available("at(10, os.open('/dev/net/tun', os.O_RDWR))", "/dev/net/tun")
    else {
        return;
    };
    assert!(one(program).contains("network tunnel"));
}

/// The program, where this machine can run it.
fn available<'a>(setup: &'a str, what: &str) -> Option<&'a str> {
    let script = format!(
        "import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def at(number, fd): pass
def system(number, *args):
    result = libc.syscall(number, *args)
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
{setup}"
    );
    let output = std::process::Command::new("python3")
        .args(["-c", &script])
        .output()
        .expect("python3 starts");
    if output.status.success() {
        Some(setup)
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        eprintln!(
            "skipped: no {what} here: {}",
            said.lines().last().unwrap_or_default()
        );
        None
    }
}
