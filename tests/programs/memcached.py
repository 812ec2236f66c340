"""A memcached server with threads of its own, and clients in processes that count with it and check each answer."""
import os, socket, subprocess, sys, time

clients, rounds = 8, int(sys.argv[1])
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen(["memcached", "-l", "127.0.0.1", "-p", str(port), "-t", "4", "-m", "64"])


def connect():
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.02)


def work(number):
    connection = connect()
    replies = connection.makefile("rb")

    def ask(request, *expected):
        connection.sendall(request)
        for line in expected:
            reply = replies.readline()
            assert reply == line + b"\r\n", (number, request, reply)

    ask(b"set counter%d 0 0 1\r\n0\r\n" % number, b"STORED")
    for round in range(1, rounds + 1):
        value = (b"%d," % (round * number)) * (1 + round % 50)
        ask(b"set key%d.%d 0 0 %d\r\n%s\r\n" % (number, round % 100, len(value), value), b"STORED")
        ask(b"incr counter%d 1\r\n" % number, b"%d" % round)
        ask(b"get key%d.%d\r\n" % (number, round % 100),
            b"VALUE key%d.%d 0 %d" % (number, round % 100, len(value)), value, b"END")
        ask(b"incr all 1\r\n")
        assert int(replies.readline()) >= round
    connection.close()


first = connect()
answers = first.makefile("rb")
first.sendall(b"set all 0 0 1\r\n0\r\n")
assert answers.readline() == b"STORED\r\n"
workers = []
for number in range(clients):
    child = os.fork()
    if child == 0:
        work(number)
        os._exit(0)
    workers.append(child)
for worker in workers:
    assert os.waitpid(worker, 0)[1] == 0
first.sendall(b"get all\r\n")
assert answers.readline().startswith(b"VALUE all")
print("counted", answers.readline().decode().strip())
server.terminate()
server.wait()
