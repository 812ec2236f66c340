"""Starts a command with descriptors that lead out of it, and holds their other ends: outside.py TEXT COMMAND...

  5  a pipe to read TEXT from
  6  a pipe to write into
  7  one of a pair of sockets
  8  a terminal
  9  the regular file `given`

Ends with the command's status.
"""
import os
import pty
import socket
import sys
import tty

text, command = sys.argv[1], sys.argv[2:]
reader, feed = os.pipe()
sink, writer = os.pipe()
end, far = socket.socketpair()
controlling, terminal = pty.openpty()
tty.setraw(terminal)
given = os.open("given", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
os.write(feed, text.encode())
if os.fork() == 0:
    # Out of the way first: the numbers may be in use for one another.
    sources = [os.dup2(fd, 20 + n) for n, fd in enumerate([reader, writer, end.fileno(), terminal, given])]
    for number, source in enumerate(sources, 5):
        os.dup2(source, number)
    os.closerange(10, 30)
    os.execvp(command[0], command)
for mine in reader, writer, terminal, given:
    os.close(mine)
end.close()
_, status = os.wait()
sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
