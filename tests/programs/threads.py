"""Threads, generators, a queue, and a CSV file that stays open."""
import csv
import hashlib
import queue
import random
import threading
import time


def primes():
    found = []
    n = 2
    while True:
        if all(n % p for p in found if p * p <= n):
            found.append(n)
            yield n
        n += 1


class Node:
    def __init__(self, value, other):
        self.value, self.other = value, other


tasks, results = queue.Queue(maxsize=8), queue.Queue()


def worker():
    while (task := tasks.get()) is not None:
        number, data = task
        for _ in range(300):
            data = hashlib.sha256(data).digest()
        time.sleep(0.001)
        results.put((number, data.hex()))


threads = [threading.Thread(target=worker, name=f"worker-{i}") for i in range(6)]
for thread in threads:
    thread.start()
generator, chance, chain = primes(), random.Random(7), None
with open("out.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["step", "prime", "hash", "chance"])
    for step in range(700):
        for k in range(8):
            tasks.put((k, f"{step}/{k}".encode()))
        got = sorted(results.get() for _ in range(8))
        for _ in range(20):
            prime = next(generator)
        chain = Node((step, prime), chain)
        writer.writerow([step, prime, hashlib.sha256(repr(got).encode()).hexdigest()[:16], chance.random()])
        if step % 10 == 9:
            file.flush()
            print("step", step, prime, flush=True)
for _ in threads:
    tasks.put(None)
for thread in threads:
    thread.join()
total = 0
while chain is not None:
    total = (total * 31 + chain.value[0] * chain.value[1]) % 1000000007
    chain = chain.other
print("total", total, threading.active_count())
