# Sets up what the first argument names, which stands in the way of a checkpoint or is near to; says ready, waits for the file
# go, says ok.
import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
kept = []


def must(result, what):
    if result < 0:
        sys.exit("%s: %s" % (what, os.strerror(ctypes.get_errno())))
    return result


def wait_for_go():
    while not os.path.exists("go"):
        time.sleep(0.01)


def child():
    """A child that waits as well."""
    pid = os.fork()
    if pid == 0:
        wait_for_go()
        os._exit(0)
    kept.append(pid)


def filter():
    allow = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    code = ctypes.create_string_buffer(allow)
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(code))
    must(libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    must(libc.prctl(22, 2, program, 0, 0), "PR_SET_SECCOMP")


def namespaces():
    must(libc.unshare(0x10000000 | 0x04000000), "unshare")


def root():
    os.makedirs("below", exist_ok=True)
    must(libc.unshare(0x10000000), "unshare")
    here = os.open(".", os.O_PATH)
    os.chroot("below")
    # Where the file go is.
    os.fchdir(here)
    os.close(here)


def shared():
    # A child with the same descriptor table (CLONE_FILES).
    pid = must(libc.syscall(56, 0x400 | signal.SIGCHLD, 0, 0, 0, 0), "clone")
    if pid == 0:
        wait_for_go()
        os._exit(0)
    kept.append(pid)


def traced():
    pid = os.fork()
    if pid == 0:
        libc.ptrace(0, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        wait_for_go()
        os._exit(0)
    os.waitpid(pid, 0)
    must(libc.ptrace(7, pid, None, None), "PTRACE_CONT")
    kept.append(pid)


def limit(hard):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limit = size + (64 << 10)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit if hard else resource.RLIM_INFINITY))


def directory():
    os.makedirs("gone", exist_ok=True)
    kept.append(os.open("gone", os.O_RDONLY))
    os.rmdir("gone")


def several():
    # In two processes, several kinds.
    child()
    kept.append(must(libc.syscall(323, 1), "userfaultfd"))
    kept.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9))
    directory()


def many():
    for _ in range(200):
        kept.append(open("file", "a"))
        kept.append(os.pipe())
        kept.append(socket.socketpair())
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    kept.append(listener)
    kept.append(socket.create_connection(listener.getsockname()))
    kept.append(listener.accept())
    file = open("locked", "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    kept.append(file)
    subprocess.Popen(["sh", "-c", "while [ ! -e go ]; do sleep 0.1; done"])
    child()


{
    "filter": filter,
    "namespaces": namespaces,
    "root": root,
    "shared": shared,
    "traced": traced,
    "soft": lambda: limit(False),
    "hard": lambda: limit(True),
    "directory": directory,
    "several": several,
    "many": many,
}[sys.argv[1]]()
print("ready", flush=True)
wait_for_go()
for one in kept:
    if isinstance(one, int) and sys.argv[1] in ("shared", "traced"):
        os.waitpid(one, 0)
print("ok", flush=True)
