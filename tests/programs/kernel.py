"""A Jupyter kernel and its client, which talk over ZeroMQ on the loopback interface: cells that build on each other."""
import sys
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="python3", extra_arguments=["--log-level=ERROR"])


def run(code):
    shown = []

    def output(message):
        if message["msg_type"] == "stream":
            shown.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=output, timeout=None)
    assert reply["content"]["status"] == "ok", reply
    return reply["content"]["execution_count"], "".join(shown)


run("values = [1]\ndef step():\n    values.append((values[-1] * 69069 + 1) % 2**32)\n    return values[-1]")
for cell in range(int(sys.argv[1])):
    count, shown = run("for _ in range(2000):\n    step()\nprint(len(values), sum(values))")
    print(cell, count, shown.strip(), flush=True)
client.stop_channels()
manager.shutdown_kernel()
