"""A pool of processes, queues, shared memory, locks and a manager: what Python's multiprocessing is used for, all at once."""
import multiprocessing as mp, sys
from multiprocessing import shared_memory


def initialise(name, counter):
    global block, total
    block, total = shared_memory.SharedMemory(name=name), counter


def task(number):
    value = number
    for _ in range(3000):
        value = (value * 69069 + 1) % 4294967296
    with total.get_lock():
        total.value += 1
        block.buf[number % 1000] = (block.buf[number % 1000] + 1) % 256
    return value


def stage(source, sink, seen):
    while (item := source.get()) is not None:
        seen[item % 17] = item
        sink.put(item * 3 + 1)
    sink.put(None)


if __name__ == "__main__":
    mp.set_start_method(sys.argv[2])
    rounds = int(sys.argv[1])
    shared = shared_memory.SharedMemory(create=True, size=4096)
    counter = mp.Value("q", 0)
    with mp.Manager() as manager, mp.Pool(3, initialise, (shared.name, counter)) as pool:
        seen = manager.dict()
        first, second, third = mp.Queue(), mp.Queue(maxsize=5), mp.SimpleQueue()
        stages = [mp.Process(target=stage, args=ends + (seen,)) for ends in ((first, second), (second, third))]
        for process in stages:
            process.start()
        for round in range(rounds):
            numbers = range(round * 200, round * 200 + 200)
            for number in range(round * 20, round * 20 + 20):
                first.put(number)
            done = pool.imap_unordered(task, numbers, chunksize=7)
            passed = [third.get() for _ in range(20)]
            assert passed == [(n * 3 + 1) * 3 + 1 for n in range(round * 20, round * 20 + 20)], passed
            print(round, sum(done), counter.value, sum(shared.buf[:1000]), flush=True)
        first.put(None)
        assert third.get() is None
        for process in stages:
            process.join()
            assert process.exitcode == 0
        print(sorted(seen.keys()))
    shared.close()
    shared.unlink()
