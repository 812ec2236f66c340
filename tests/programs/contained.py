"""The first process of a container: runs, saves, kills and restarts a job: contained.py ROLE DIRECTORY.

ROLE is what this process is to the job: `stranger` (the leaders of the session and the process group are outside of the container),
`group` (this process leads the group), or `session` (this process leads both).
"""
import os
import subprocess
import sys
import time

from container import stop_everything, wait

PROGRAM = """
import os, time
def ids():
    terminal = os.isatty(0)
    return os.getpid(), os.getsid(0), os.getpgrp(), terminal and os.tcgetpgrp(0), terminal and os.path.exists('/dev/tty')
then = ids()
open('ready', 'w').close()
while not os.path.exists('go'): time.sleep(0.01)
with open('found', 'w') as file: print(then, ids(), file=file)
"""


role, directory = sys.argv[1:]
if role == "session":
    os.setsid()
elif role == "group":
    os.setpgid(0, 0)
assert os.getpid() == 1
with open("program.py", "w") as file:
    file.write(PROGRAM)
front = subprocess.Popen(["stasis", "run", "-n", "job", "-d", directory, "--", "/usr/bin/python3", "program.py"])
wait("ready", front)
subprocess.run(["stasis", "checkpoint", "job"], check=True)
# Twice: the second one starts from a job that was restarted.
for turn in range(2):
    stop_everything(front)
    front = subprocess.Popen(["stasis", "restart", directory])
    while subprocess.run(["stasis", "checkpoint", "job"], stderr=subprocess.DEVNULL).returncode != 0:
        if front.poll() is not None:
            sys.exit(f"the restart ended with {front.returncode}")
        time.sleep(0.01)
stop_everything(front)
front = subprocess.Popen(["stasis", "restart", directory])
open("go", "w").close()
status = front.wait()
sys.exit(status)
