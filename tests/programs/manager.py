"""Processes that work on an object of another one, over TCP (multiprocessing.managers)."""
import multiprocessing, sys
from multiprocessing.managers import BaseManager


class Account:
    def __init__(self):
        self.sum, self.calls = 0, 0

    def add(self, number):
        self.sum += number
        self.calls += 1
        return self.calls

    def told(self):
        return self.sum, self.calls


class Manager(BaseManager):
    pass


Manager.register("Account", Account)


def work(account, first, count):
    before = 0
    for number in range(first, first + count):
        calls = account.add(number)
        assert calls > before
        before = calls


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    count = int(sys.argv[1])
    with Manager(address=("127.0.0.1", 0), authkey=b"secret") as manager:
        account = manager.Account()
        workers = [multiprocessing.Process(target=work, args=(account, n * count, count)) for n in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        print(account.told())
