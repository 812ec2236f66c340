"""Drives a job in a terminal of its own: the arguments are a command; standard input holds steps, one on each line.

  wait TEXT      until TEXT was seen since the last wait
  send TEXT      types TEXT and a return
  key HEX        types one byte
  size ROWS COLS gives the terminal another size
  front NAME     until the terminal's foreground process group is led by a process of that name
  raw            until the terminal passes every key on as it is
  pause SECONDS  no more than that
  end            waits for the command's end and prints its status

The terminal has the SIZE (rows and columns) of the environment at first. Prints everything that was seen, and `[status N]` or `[signal N]` at the end.
"""
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

steps = sys.stdin.read().splitlines()
rows, columns = map(int, os.environ.get("SIZE", "24 80").split())
sized, size = os.pipe()
pid, terminal = pty.fork()
if pid == 0:
    os.read(sized, 1)
    # As in a terminal that a person opens, also where the tests were started in the background, which ignores them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
os.write(size, b"x")
seen = ""
everything = ""


def look(seconds):
    global seen, everything
    if select.select([terminal], [], [], seconds)[0]:
        try:
            text = os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            return False
        seen += text
        everything += text
        return text != ""
    return True


def fail(why):
    print(everything)
    print(f"[failed: {why}]")
    os.kill(pid, 9)
    sys.exit(1)


for step in steps:
    verb, _, rest = step.partition(" ")
    limit = time.monotonic() + 60
    if verb == "wait":
        while rest not in seen:
            if not look(0.1) or time.monotonic() > limit:
                fail(f"waiting for {rest!r}")
        seen = seen[seen.index(rest) + len(rest):]
    elif verb == "send":
        os.write(terminal, rest.encode() + b"\r")
    elif verb == "key":
        os.write(terminal, bytes.fromhex(rest))
    elif verb == "size":
        rows, columns = map(int, rest.split())
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    elif verb == "raw":
        while termios.tcgetattr(terminal)[3] & (termios.ICANON | termios.ISIG):
            look(0.02)
            if time.monotonic() > limit:
                fail("waiting for raw mode")
    elif verb == "pause":
        time.sleep(float(rest))
    elif verb == "front":
        while True:
            look(0.02)
            try:
                with open(f"/proc/{os.tcgetpgrp(terminal)}/comm") as file:
                    if file.read().strip() == rest:
                        break
            except OSError:
                pass
            if time.monotonic() > limit:
                fail(f"waiting for {rest!r} in the foreground")
    elif verb == "end":
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if not look(0.02):
                done, status = os.waitpid(pid, 0)
                break
            if time.monotonic() > limit:
                fail("waiting for the end")
        while select.select([terminal], [], [], 0.1)[0] and look(0):
            pass
        print(everything)
        print(f"[status {os.WEXITSTATUS(status)}]" if os.WIFEXITED(status) else f"[signal {os.WTERMSIG(status)}]")
        sys.exit(0)
