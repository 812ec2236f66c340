"""The first process of a container in which nothing else runs, so that the kernel's ids follow upon each other: runs a job with threads,
saves and kills it, and restarts it several times without choosing ids: quiet.py DIRECTORY.
"""
import os
import subprocess
import sys

from container import stop_everything, wait

PROGRAM = """
import os, threading, time
def wait():
    while not os.path.exists('go'): time.sleep(0.01)
# Until Stasis has started what it starts beside the job: from here on the ids of the threads come right after that of their process.
while not os.path.exists('listed'): time.sleep(0.01)
child = os.fork()
if child > 0: os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
threads = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
ids = sorted(map(int, os.listdir('/proc/self/task')))
open('ready', 'w').close()
wait()
with open('found', 'w') as file: print(os.getpid() == ids[0], ids == sorted(map(int, os.listdir('/proc/self/task'))), file=file)
# They are to be there when they are looked at.
os._exit(0)
"""


directory, = sys.argv[1:]
with open("/proc/sys/kernel/pid_max", "w") as file:
    file.write("1000")
# The first ids are given only once.
last = 0
while last < 400:
    last = os.fork()
    if last == 0:
        os._exit(0)
    os.waitpid(last, 0)
with open("program.py", "w") as file:
    file.write(PROGRAM)
front = subprocess.Popen(["stasis", "run", "-n", "job", "-d", directory, "--", "/usr/bin/python3", "program.py"])
while b'"job"' not in subprocess.run(["stasis", "ps", "--json"], stdout=subprocess.PIPE).stdout:
    if front.poll() is not None:
        sys.exit(f"the job ended with {front.returncode}")
open("listed", "w").close()
wait("ready", front)
subprocess.run(["stasis", "checkpoint", "job"], check=True)
stop_everything(front)
open("go", "w").close()
for turn in range(12):
    if os.path.exists("found"):
        os.remove("found")
    subprocess.run(["stasis", "restart", "--strategy", "burn", directory], check=True)
    with open("found") as file:
        print(file.read())
