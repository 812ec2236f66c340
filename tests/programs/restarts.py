# Holds what a restart may find taken, gone or changed; says ready, waits for the file go, says ok.
import fcntl
import mmap
import os
import socket
import time

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
named = socket.socket(socket.AF_UNIX)
named.bind(os.path.join(os.getcwd(), "socket"))
named.listen()
hidden = socket.socket(socket.AF_UNIX)
hidden.bind("\0stasis-test-%d-%d" % (os.getpid(), time.time_ns()))
locked = open("locked", "w")
fcntl.flock(locked, fcntl.LOCK_EX)
fcntl.lockf(locked, fcntl.LOCK_EX)
read = open("read")
assert read.read(3) == "a f"
mapped = open("mapped", "rb")
area = mmap.mmap(mapped.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
written = open("written", "w")
written.write("what the program wrote\n")
written.flush()
place = os.open("place", os.O_RDONLY)
print("abstract %s" % hidden.getsockname()[1:].decode())
print("ports %d %d" % (listener.getsockname()[1], datagrams.getsockname()[1]))
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
assert read.read() == "ile that is read\n"
assert area[:] == b"a file that is mapped\n"
assert os.listdir(place) == ["inside"]
print("ok", flush=True)
