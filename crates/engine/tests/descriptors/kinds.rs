//! Every kind that comes back.

use crate::harness::round_trip;

#[test]
fn devices_keep_their_flags() {
    let found = round_trip(
        r"
at(10, os.open('/dev/null', os.O_RDWR | os.O_APPEND))
at(11, os.open('/dev/zero', os.O_RDONLY | os.O_NONBLOCK))
at(12, os.open('/dev/full', os.O_WRONLY))
at(13, os.open('/dev/urandom', os.O_RDONLY), False)
at(14, os.open('/dev/random', os.O_RDONLY))
",
        r"
print(flags(10) & os.O_APPEND, flags(11) & os.O_NONBLOCK, os.read(11, 2), attempt(os.write, 12, b'x'))
print([os.readlink(f'/proc/self/fd/{n}') for n in (10, 11, 12, 14)])
",
    );
    assert_eq!(
        found,
        "1024 2048 b'\\x00\\x00' ENOSPC\n['/dev/null', '/dev/zero', '/dev/full', '/dev/random']\n"
    );
}

#[test]
fn descriptions_shared_by_dup_and_fork_stay_shared() {
    let found = round_trip(
        r"
r, w = os.pipe(); at(10, r); at(11, w)
os.dup2(10, 12); os.dup2(11, 3000, False)
at(13, os.open('/proc/self/fd/10', os.O_RDONLY | os.O_NONBLOCK))
at(14, os.open('/proc/self/fd/11', os.O_WRONLY))
fcntl.fcntl(12, fcntl.F_SETFL, os.O_NONBLOCK)
child(lambda: (os.close(11), os.dup2(12, 500)))
",
        r"
fcntl.fcntl(10, fcntl.F_SETFL, 0)
print([flags(n) & os.O_NONBLOCK for n in (10, 12, 13)], flags(11) & 3, flags(14) & 3)
",
    );
    assert_eq!(found, "[0, 0, 2048] 1 1\n");
}

#[test]
fn pipes_keep_their_bytes_size_and_ends() {
    let found = round_trip(
        r"
r, w = os.pipe(); os.write(w, b'hello'); os.write(w, b' world'); fcntl.fcntl(w, F_SETPIPE_SZ, 8192); at(10, r); at(11, w)
r, w = os.pipe(); os.write(w, b'last words'); os.close(w); at(12, r)
r, w = os.pipe(); os.close(w); at(13, r)
r, w = os.pipe(); os.write(w, b'unread'); os.close(r); at(14, w)
r, w = os.pipe(); fcntl.fcntl(w, fcntl.F_SETFL, os.O_NONBLOCK); at(15, r); at(16, w)
while attempt(os.write, 16, bytes(range(256)) * 16) != 'EAGAIN': pass
",
        r"
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
print(fcntl.fcntl(10, F_GETPIPE_SZ), os.read(10, 100), os.read(12, 100), os.read(12, 100), os.read(13, 1), attempt(os.write, 14, b'x'))
print(attempt(os.write, 16, b'x'), len(os.read(15, 1 << 20)), attempt(os.write, 16, b'x'), flags(15) & os.O_NONBLOCK)
",
    );
    assert_eq!(
        found,
        "8192 b'hello world' b'last words' b'' b'' EPIPE\nEAGAIN 65536 1 0\n"
    );
}

#[test]
fn packets_stay_apart() {
    let found = round_trip(
        r"
r, w = os.pipe2(O_DIRECT)
for p in (b'a', b'bc', b'd' * 3000, b'e'): os.write(w, p)
at(10, r); at(11, w)
r, w = os.pipe()
os.write(w, b's' * 4096); fcntl.fcntl(w, fcntl.F_SETFL, O_DIRECT); os.write(w, b'packet'); os.write(w, b'1')
fcntl.fcntl(w, fcntl.F_SETFL, 0); os.write(w, b'more'); os.write(w, b' stream')
at(12, r); at(13, w)
# A page that splice(2) brings is not added to.
r, w = os.pipe(); a, b = os.pipe(); os.write(b, b'part'); assert libc.tee(a, w, 4, 0) == 4; os.close(a); os.close(b)
fcntl.fcntl(w, fcntl.F_SETFL, O_DIRECT); os.write(w, b'p'); os.write(w, b'q'); at(14, r); at(15, w)
",
        r"
print([len(os.read(10, 5000)) for _ in range(4)], flags(11) & O_DIRECT != 0)
print(os.read(12, 5000)[4090:], os.read(12, 5000), os.read(12, 5000), flags(13) & O_DIRECT != 0)
print(os.read(14, 5000), os.read(14, 5000), flags(15) & O_DIRECT != 0)
",
    );
    assert_eq!(
        found,
        "[1, 2, 3000, 1] True\nb'sssssspacket' b'1' b'more stream' False\nb'partp' b'q' True\n"
    );
}

#[test]
fn eventfds_keep_counter_and_semaphore() {
    let found = round_trip(
        r"
at(10, eventfd(3)); at(11, eventfd(2, EFD_SEMAPHORE | os.O_NONBLOCK), False); os.set_inheritable(11, True)
at(12, eventfd(0)); os.write(12, struct.pack('Q', (1 << 64) - 2))
",
        r"
print([struct.unpack('Q', os.read(n, 8))[0] for n in (10, 11, 11, 12)], attempt(os.read, 11, 8))
",
    );
    assert_eq!(found, "[3, 1, 1, 18446744073709551614] EAGAIN\n");
}

#[test]
fn signalfds_keep_their_signals() {
    let found = round_trip(
        "at(10, signalfd([signal.SIGUSR1, 64], os.O_NONBLOCK))",
        r"
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2, 64])
for s in (signal.SIGUSR1, signal.SIGUSR2, 64): os.kill(os.getpid(), s)
print([struct.unpack('I', os.read(10, 128)[:4])[0] for _ in range(2)], attempt(os.read, 10, 128))
",
    );
    assert_eq!(found, "[10, 64] EAGAIN\n");
}

#[test]
fn timerfds_keep_time_interval_and_unread_expirations() {
    let found = round_trip(
        r"
at(10, timerfd(1)); timerfd_set(10, 0, 1000, 7)
at(11, timerfd(1)); timerfd_set(11, 0, 0.001)
at(12, timerfd(7)); timerfd_set(12, 0, 0.001, 3600); os.set_blocking(12, False)
at(13, timerfd(0)); timerfd_set(13, 3, time.time() + 500)
at(14, timerfd(0)); timerfd_set(14, 1, 1)
at(15, timerfd(1)); timerfd_set(15, 1, time.clock_gettime(1) + 900)
at(16, timerfd(1))
select.select([11, 12, 14], [], [])
while not all(select.select([n], [], [], 0)[0] for n in (11, 12, 14)): pass
",
        r"
near = lambda fd, what: what - 30 < timerfd_get(fd)[0] <= what
print(near(10, 1000), timerfd_get(10)[1], near(13, 500), near(15, 900), timerfd_get(16))
print([struct.unpack('Q', os.read(n, 8))[0] for n in (11, 12, 14)], attempt(os.read, 12, 8), near(12, 3600), timerfd_get(11))
",
    );
    assert_eq!(
        found,
        "True 7.0 True True (0.0, 0.0)\n[1, 1, 1] EAGAIN True (0.0, 0.0)\n"
    );
}

#[test]
fn memfds_keep_contents_seals_and_what_is_shared() {
    let found = round_trip(
        r"
m = os.memfd_create('a name', os.MFD_ALLOW_SEALING); os.write(m, b'contents'); os.ftruncate(m, 1 << 20); os.pwrite(m, b'end', 1 << 19)
os.lseek(m, 3, 0); at(10, m); os.dup2(10, 11)
at(12, os.open('/proc/self/fd/10', os.O_RDONLY)); os.lseek(12, 5, 0)
at(13, os.open('/proc/self/fd/10', os.O_WRONLY | os.O_APPEND))
fcntl.fcntl(10, 1033, 2 | 4)
m = os.memfd_create('x'); os.write(m, b'y'); os.fchmod(m, 0o600); at(14, m)
m = os.memfd_create('future', os.MFD_ALLOW_SEALING); os.write(m, b'z'); fcntl.fcntl(m, 1033, 8); at(15, m)
at(16, os.open('/proc/self/fd/15', os.O_RDONLY))
",
        r"
print(os.read(11, 3), os.read(10, 2), os.read(12, 3), os.pread(10, 3, 1 << 19), os.fstat(10).st_size, os.fstat(10).st_blocks <= 16)
print(fcntl.fcntl(10, 1034), attempt(os.ftruncate, 10, 5), fcntl.fcntl(14, 1034), oct(os.fstat(14).st_mode))
os.pwrite(10, b'X', 0); print(os.pread(12, 2, 0), os.readlink('/proc/self/fd/10'), flags(13) & 0o2003)
",
    );
    assert_eq!(
        found,
        "b'ten' b'ts' b'nts' b'end' 1048576 True\n6 EPERM 1 0o100600\nb'Xo' /memfd:a name (deleted) 1025\n"
    );
}

#[test]
fn pidfds_follow_the_processes_of_the_job() {
    let found = round_trip(
        r"
me = os.getpid()
at(10, os.pidfd_open(child(lambda: at(20, os.pidfd_open(me))))); at(11, os.pidfd_open(me)); os.dup2(11, 12)
gone = os.fork()
if gone == 0: os._exit(7)
at(13, os.pidfd_open(gone)); os.waitpid(gone, 0)
at(14, epoll()); add(14, 10, IN, 10)
os.dup2(10, 30); add(14, 30, IN, 30); os.close(30)
",
        r"
ready = lambda fd: bool(select.select([fd], [], [], 0)[0])
print([ready(n) for n in (10, 11, 13)], take(14))
signal.pidfd_send_signal(10, signal.SIGKILL)
print(take(14, wait=10000) != [], [f for f in open('/proc/self/fdinfo/11') if f.startswith('NSpid')] != [])
",
    );
    assert_eq!(found, "[False, False, True] []\nTrue True\n");
}

#[test]
fn epoll_sets_keep_entries_events_and_data() {
    let found = round_trip(
        r"
r, w = os.pipe(); at(10, r); at(11, w)
at(20, epoll()); at(21, epoll())
add(20, 10, IN, 0xfeedfacecafebeef); add(20, 11, OUT | ET, 11)
at(12, eventfd(1)); add(20, 12, IN | ONESHOT, 12)
at(13, eventfd(1)); add(20, 13, IN | EXCLUSIVE, 13)
add(21, 20, IN, 20)
",
        r"
print([(e, hex(d)) for e, d in take(21)], [(e, hex(d)) for e, d in take(20)])
os.write(11, b'x'); print([(e, hex(d)) for e, d in take(20)])
",
    );
    assert_eq!(
        found,
        "[(1, '0x14')] [(1, '0xc'), (1, '0xd'), (4, '0xb')]\n[(1, '0xd'), (1, '0xfeedfacecafebeef')]\n"
    );
}

#[test]
fn epoll_edges_that_were_taken_do_not_come_back() {
    let found = round_trip(
        r"
at(10, eventfd(5)); at(11, eventfd(5)); at(12, eventfd(5))
at(20, epoll())
add(20, 10, IN | ET, 10); add(20, 11, IN | ONESHOT, 11); add(20, 12, IN | ET | ONESHOT, 12)
assert len(take(20)) == 3
",
        r"
print(take(20)); os.write(10, struct.pack('Q', 1)); os.write(11, struct.pack('Q', 1)); print(take(20))
",
    );
    assert_eq!(found, "[]\n[(1, 10)]\n");
}

#[test]
fn epoll_edges_that_were_not_taken_are_there() {
    let found = round_trip(
        r"
at(10, eventfd(5)); at(20, epoll()); add(20, 10, IN | ET, 10)
",
        "print(take(20), take(20))",
    );
    assert_eq!(found, "[(1, 10)] []\n");
}

#[test]
fn epoll_entries_outlive_their_numbers() {
    let found = round_trip(
        r"
at(20, epoll())
a = eventfd(0); at(10, a); os.dup2(10, 11); add(20, 10, IN, 1); os.close(10)
at(10, eventfd(0)); add(20, 10, IN, 2); os.dup2(10, 12)
at(10, eventfd(0))
# One that only another process holds.
at(13, eventfd(0)); add(20, 13, IN, 3)
child(lambda: (os.close(20), os.write(13, struct.pack('Q', 1))))
os.close(13)
",
        r"
print(take(20)); os.write(11, struct.pack('Q', 1)); print(take(20))
os.write(12, struct.pack('Q', 1)); os.write(10, struct.pack('Q', 1)); print(take(20))
",
    );
    assert_eq!(
        found,
        "[(1, 3)]\n[(1, 1), (1, 3)]\n[(1, 1), (1, 2), (1, 3)]\n"
    );
}

#[test]
fn epoll_on_a_signalfd_hears_of_the_process_that_holds_it() {
    let setup = r"
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
at(10, signalfd([signal.SIGUSR1])); at(20, epoll()); add(20, 10, IN, 5)
";
    let check = r"
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print(take(20)); os.kill(os.getpid(), signal.SIGUSR1); print(take(20, wait=10000))
";
    assert_eq!(round_trip(setup, check), "[]\n[(1, 5)]\n");
}

#[test]
fn owners_of_signals_come_back() {
    let found = round_trip(
        r"
signal.signal(signal.SIGIO, signal.SIG_IGN)
r, w = os.pipe(); at(10, r); at(11, w)
fcntl.fcntl(10, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(10, fcntl.F_SETSIG, 40); fcntl.fcntl(10, fcntl.F_SETFL, os.O_ASYNC)
",
        r"
signal.pthread_sigmask(signal.SIG_BLOCK, [40])
os.write(11, b'x'); print(int(signal.sigwait([40])), fcntl.fcntl(10, fcntl.F_GETOWN) == os.getpid(), flags(10) & os.O_ASYNC != 0)
",
    );
    assert_eq!(found, "40 True True\n");
}

#[test]
fn ten_thousand_descriptors_are_sorted_quickly() {
    let found = round_trip(
        r"
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
count = min(10000, hard // 3)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
first = [eventfd(0) for _ in range(count // 2)]
for n in first: os.set_inheritable(os.dup(n), True)
",
        "print('there')",
    );
    assert_eq!(found, "there\n");
}
