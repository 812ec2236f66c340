"""A Redis server with a benchmark at work, and a client that counts: each number that was acknowledged must be there."""
import socket, subprocess, sys, time

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen(
    ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"],
    stdout=subprocess.DEVNULL)
while True:
    try:
        client = socket.create_connection(("127.0.0.1", port))
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
replies = client.makefile("rb")
benchmark = subprocess.Popen(
    ["redis-benchmark", "-p", str(port), "-c", "20", "-n", sys.argv[2], "-t", "set,lpush", "-q"], stdout=subprocess.DEVNULL)
for number in range(1, int(sys.argv[1]) + 1):
    client.sendall(b"INCR counter\r\nRPUSH list %d\r\n" % number)
    for _ in range(2):
        reply = replies.readline()
        assert reply == b":%d\r\n" % number, (number, reply)
    if number % 1000 == 0:
        print("counted to", number, flush=True)
assert benchmark.wait() == 0
client.sendall(b"LRANGE list 0 -1\r\n")
count = int(replies.readline()[1:])
for number in range(1, count + 1):
    replies.readline()
    assert int(replies.readline()) == number
print("all", count, "are there")
client.sendall(b"SHUTDOWN NOSAVE\r\n")
assert server.wait() == 0
