"""A server that echoes and 50 clients, at full rate over TCP, in two processes. Each client checks what comes back."""
import asyncio, hashlib, os, sys

CONNECTIONS, ROUNDS, SIZE = 50, int(sys.argv[1]), 20000


async def serve(write_port):
    async def echo(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    os.write(write_port, b"%d\n" % server.sockets[0].getsockname()[1])
    os.close(write_port)
    await server.serve_forever()


def block(number, round):
    return hashlib.sha256(b"%d %d" % (number, round)).digest() * (SIZE // 32)


async def client(number, port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send():
        for round in range(ROUNDS):
            writer.write(block(number, round))
            await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    sums = hashlib.sha256()
    for round in range(ROUNDS):
        data = await reader.readexactly(len(block(number, round)))
        assert data == block(number, round), f"connection {number}, block {round} came back changed"
        sums.update(data)
    assert await reader.read() == b""
    await sending
    writer.close()
    return sums.hexdigest()


async def main(port):
    for number, result in enumerate(await asyncio.gather(*(client(n, port) for n in range(CONNECTIONS)))):
        print(number, result)


read_port, write_port = os.pipe()
child = os.fork()
if child == 0:
    os.close(read_port)
    asyncio.run(serve(write_port))
os.close(write_port)
port = int(os.read(read_port, 100))
os.close(read_port)
asyncio.run(main(port))
os.kill(child, 9)
os.waitpid(child, 0)
