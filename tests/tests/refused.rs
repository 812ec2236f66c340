//! What cannot be saved: each is refused by name, with what to do, before anything is touched, and the program runs on.

use stasis_tests::{Sandbox, need, refused_and_goes_on, skip};

/// Somebody that may have what is refused.
#[derive(Clone, Copy, PartialEq)]
enum By {
    User,
    Root,
}
use By::{Root, User};

/// What the program does, what it checks in the end, and the words that the refusal must have.
type Case = (By, &'static str, &'static str, &'static [&'static str]);

const PROGRAM: &str = "import ctypes, fcntl, mmap, os, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def number(result):
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def system(*arguments): return number(libc.syscall(*arguments))
def words(*values): return (ctypes.c_uint64 * len(values))(*values)
try:
    SETUP
except OSError as error:
    print('skip:', error, flush=True)
    sys.exit(0)
print('ready', flush=True)
while not os.path.exists('go'): time.sleep(0.01)
CHECK
print('ok')
";

fn check((by, setup, check, named): Case) {
    let sandbox = match by {
        User => Some(Sandbox::new()),
        Root => Sandbox::root(),
    };
    let Some(sandbox) = sandbox else {
        skip!("the tests do not run as root")
    };
    let setup = setup.replace('\n', "\n    ");
    let program = PROGRAM.replace("SETUP", &setup).replace("CHECK", check);
    sandbox.write("program.py", program);
    let mut job = sandbox.run(&["/usr/bin/python3", "program.py"]);
    job.wait_stdout("a word", |text| {
        text.contains("ready") || text.contains("skip")
    });
    if job.stdout().contains("skip") {
        skip!("{}", job.stdout().trim());
    }
    let refused = job.try_checkpoint();
    let words: Vec<&str> = named.iter().chain(&["process ", "; "]).copied().collect();
    refused_and_goes_on(&sandbox, job, &refused, &words);
}

macro_rules! cases {
    ($($name:ident: $case:expr;)*) => {$(
        #[test]
        fn $name() {
            check($case);
        }
    )*};
}

cases! {
    userfaultfd: (User, "fd = system(323, 1)", "os.close(fd)", &["descriptor 3", "userfaultfd"]);
    performance_counters: (User,
        "fd = system(298, words(1 | 128 << 32, 0, 0, 0, 0, 1 | 1 << 5 | 1 << 6, *[0] * 10), 0, -1, -1, 8)",
        "os.read(fd, 8)", &["perf_event"]);
    bpf_maps: (Root, "fd = system(321, 0, words(2 | 4 << 32, 4 | 1 << 32, *[0] * 14), 128)", "os.close(fd)",
        &["descriptor 3", "BPF"]);
    virtual_machines: (Root, "kvm = os.open('/dev/kvm', os.O_RDWR)\nvm = number(fcntl.ioctl(kvm, 0xae01, 0))",
        "os.close(vm)", &["/dev/kvm", "KVM", "kvm-vm"]);
    watches_on_file_systems: (User, "fd = system(300, 0x200, 0)", "os.close(fd)", &["fanotify"]);
    landlock_rules: (User, "fd = system(444, words(1, 0), 8, 0)", "os.close(fd)", &["Landlock"]);
    secret_memory: (User, "fd = system(447, 0)\nos.ftruncate(fd, 4096)", "os.close(fd)", &["memfd_secret"]);
    packet_sockets: (Root, "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "s.close()", &["packet, raw"]);
    raw_sockets: (Root, "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "s.close()", &["raw", "ICMP"]);
    machine_sockets: (User, "s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)", "s.close()", &["vsock"]);
    multipath_tcp: (User, "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)", "s.close()",
        &["Multipath TCP"]);
    sctp: (User, "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)", "s.close()", &["SCTP"]);
    kernel_tls: (User,
        "l = socket.create_server(('127.0.0.1', 0))\na = socket.create_connection(l.getsockname())\nb = l.accept()[0]\n\
         a.setsockopt(6, 31, b'tls')", "a.close()", &["TLS"]);
    socket_filters: (User,
        "code = words(6 | 0xffff << 32)\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.setsockopt(1, 26, struct.pack('HxxxxxxP', 1, ctypes.addressof(code)))", "s.close()", &["filter"]);
    file_systems_of_its_own: (Root, "fd = os.open('/dev/fuse', os.O_RDWR)", "os.close(fd)", &["/dev/fuse", "FUSE"]);
    tunnels: (Root, "fd = os.open('/dev/net/tun', os.O_RDWR)", "os.close(fd)", &["/dev/net/tun", "TUN"]);
    processes_outside: (User, "fd = os.pidfd_open(os.getppid())", "os.close(fd)", &["pidfd", "not one of the job's"]);
    mounts_in_the_making: (Root, "fd = system(430, b'tmpfs', 0)", "os.close(fd)", &["fscontext", "mounted"]);
    system_call_filters: (User,
        "code = words(6 | 0x7fff0000 << 32)\nnumber(libc.prctl(38, 1, 0, 0, 0))\n\
         number(libc.prctl(22, 2, struct.pack('HxxxxxxP', 1, ctypes.addressof(code))))", "os.getpid()", &["seccomp"]);
    write_leases: (User,
        "fd = os.open('leased', os.O_RDWR | os.O_CREAT)\nbroken = []\n\
         signal.signal(signal.SIGIO, lambda *_: broken.append(1))\nfcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)",
        "assert not broken and fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK", &["leased", "F_SETLEASE"]);
    process_keys: (User, "system(248, b'user', b'a key', b'secret', 6, -2)", "os.getpid()",
        &["its process keyring", "keyctl"]);
    thread_keys: (User, "system(248, b'user', b'a key', b'secret', 6, -1)", "os.getpid()",
        &["its thread keyring", "keyctl"]);
    session_keys: (User, "system(250, 1, None)", "os.getpid()", &["its session keyring", "keyctl"]);
    user_namespaces: (User, "number(libc.unshare(0x10000000))", "os.getpid()", &["its user namespace"]);
    mount_namespaces: (Root, "number(libc.unshare(0x20000))", "os.getpid()", &["its mnt namespace"]);
    network_namespaces: (Root, "number(libc.unshare(0x40000000))", "os.getpid()", &["its net namespace"]);
    ipc_namespaces: (Root, "number(libc.unshare(0x8000000))", "os.getpid()", &["its ipc namespace"]);
    name_namespaces: (Root, "number(libc.unshare(0x4000000))", "os.getpid()", &["its uts namespace"]);
    cgroup_namespaces: (Root, "number(libc.unshare(0x2000000))", "os.getpid()", &["its cgroup namespace"]);
    pid_namespaces: (Root, "number(libc.unshare(0x20000000))\nchild = os.fork()\nif child == 0:\n    signal.pause()",
        "os.kill(child, 9); os.waitpid(child, 0)", &["its pid namespace"]);
    pid_namespaces_to_come: (Root, "number(libc.unshare(0x20000000))", "os.getpid()", &["pid_for_children namespace"]);
    other_roots: (Root, "os.mkdir('root')\nhere = os.open('.', os.O_RDONLY)\nos.chroot('root')\nos.fchdir(here)",
        "os.close(here)", &["its root directory", "chroot"]);
    debuggers: (User,
        "child = os.fork()\nif child == 0:\n    libc.prctl(1, 9)\n    signal.pause()\nnumber(libc.ptrace(0x4206, child, 0, 0))",
        "os.kill(child, 9); os.waitpid(child, 0)", &["cannot be traced", "debugger"]);
}

/// A program under strace(1) in the job: its tracer and Stasis cannot both trace it.
#[test]
fn traced_programs() {
    need!("strace");
    let sandbox = Sandbox::new();
    let script = "echo ready; while [ ! -e go ]; do sleep 0.02; done; echo ok";
    let mut job = sandbox.run(&["strace", "-o", "trace", "sh", "-c", script]);
    job.wait_line("ready");
    let refused = job.try_checkpoint();
    refused_and_goes_on(&sandbox, job, &refused, &["cannot be traced", "(sh)"]);
}
