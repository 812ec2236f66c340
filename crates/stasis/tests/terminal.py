"""Drives an interactive shell on a pseudo terminal, as a user would. Usage: terminal.py STASIS SCENARIO"""

import json
import os
import pty
import select
import subprocess
import sys
import time

STASIS, SCENARIO = sys.argv[1:3]
PATIENCE = 20
INT, STOP = "\x03", "\x1a"


class Screen:
    def __init__(self, argv):
        os.closerange(3, 4096)
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["PS1"] = "$ "
            os.environ["TERM"] = "dumb"
            os.execvp(argv[0], argv)
        self.text = ""

    def type(self, text):
        os.write(self.fd, text.encode())

    def line(self, text):
        # The marker is told apart from its echo by the quotes in it.
        self.type(text + "\n")

    def expect(self, wanted):
        """Waits until `wanted` appears after what was expected before."""
        end = time.monotonic() + PATIENCE
        while wanted not in self.text:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                sys.exit(f"waited in vain for {wanted!r}; on the screen:\n{self.text!r}")
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            if not data:
                sys.exit(f"the end came before {wanted!r}; on the screen:\n{self.text!r}")
            self.text += data.decode(errors="replace")
        self.text = self.text.split(wanted, 1)[1]


def shell():
    screen = Screen(["bash", "--norc", "--noprofile", "-i"])
    screen.expect("$ ")
    screen.line("set +o history; bind 'set enable-bracketed-paste off'; s=" + STASIS)
    screen.expect("$ ")
    return screen


# One process: a shell that has just forked, and waits for the exec, cannot be stopped. Nothing that is expected stands in
# the text itself, which the terminal echoes.
WORK = """
import os, signal, sys, time
def end(*_):
    print("got", "int", sep="-")
    sys.exit(7)
signal.signal(signal.SIGINT, end)
print("rea" + "dy", flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
print("fin" + "ished")
"""


def interrupt():
    screen = shell()
    screen.line(f'$s run -- python3 -c {quoted(WORK)}; echo "rc"=$?')
    screen.expect("ready")
    screen.type(INT)
    screen.expect("got-int")
    screen.expect("rc=7")


def suspend():
    screen = shell()
    screen.line(f'$s run -- python3 -c {quoted(WORK)}; echo "rc"=$?')
    screen.expect("ready")
    screen.type(STOP)
    screen.expect("Stopped")
    screen.expect("$ ")
    open("go", "w").close()
    screen.line("fg; echo \"rc\"=$?")
    screen.expect("finished")
    screen.expect("rc=0")


def inner_shell():
    screen = shell()
    screen.line("PS1='in> ' $s run -- bash --norc --noprofile -i; echo \"rc\"=$?")
    screen.expect("in> ")
    screen.line("sleep 1000")
    screen.expect("sleep 1000")
    wait_for_foreground(screen, "sleep")
    screen.type(STOP)
    screen.expect("Stopped")
    screen.line("jobs; kill -9 %1; exec sh -c 'exit 3'")
    screen.expect("rc=3")


def wait_for_foreground(screen, name):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        group = os.tcgetpgrp(screen.fd)
        try:
            if open(f"/proc/{group}/comm").read().strip() == name:
                return
        except OSError:
            pass
        time.sleep(0.01)
    sys.exit(f"{name} did not come to the foreground")


def stasis(*arguments):
    done = subprocess.run([STASIS, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"stasis {arguments}: {done.stderr}")
    return done.stdout


def restarted():
    """A job that was saved and stopped, and runs again in namespaces: in a session that is not the terminal's."""
    screen = shell()
    screen.line(f'$s run -n j -- python3 -c {quoted(WORK)}; echo "rc"=$?')
    screen.expect("ready")
    stasis("checkpoint", "--stop", "j")
    screen.expect("saved and stopped")
    screen.expect("rc=85")
    screen.line('$s restart --strategy namespaces j-000001.ckpt; echo "rc"=$?')
    screen.expect('"rc"=$?')
    end = time.monotonic() + PATIENCE
    while not json.loads(stasis("ps", "--json")) and time.monotonic() < end:
        time.sleep(0.01)
    return screen


def restart_interrupt():
    screen = restarted()
    screen.type(INT)
    screen.expect("got-int")
    screen.expect("rc=7")


def restart_suspend():
    screen = restarted()
    screen.type(STOP)
    screen.expect("Stopped")
    screen.expect("$ ")
    screen.line('stty -a | grep -ow isig; fg; echo "rc"=$?')
    screen.expect("\nisig")
    wait_for_foreground(screen, "stasis")
    screen.type(INT)
    screen.expect("got-int")
    screen.expect("rc=7")
    screen.line('stty -a | grep -ow icanon')
    screen.expect("\nicanon")


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


globals()[SCENARIO]()
