"""Tasks in processes that joblib starts and keeps (loky), with arguments and results that go through pipes and mapped files."""
import sys
import numpy
from joblib import Parallel, delayed


def work(number, table):
    value = number
    for _ in range(20000):
        value = (value * 1103515245 + 12345) % 2147483648
    return value, float(table[number % len(table)].sum())


if __name__ == "__main__":
    # Large enough that joblib gives it to the workers as a file in memory.
    table = numpy.arange(400000, dtype=float).reshape(400, 1000)
    with Parallel(n_jobs=3, max_nbytes="1M") as parallel:
        for round in range(int(sys.argv[1])):
            results = parallel(delayed(work)(round * 100 + n, table) for n in range(30))
            print(round, sum(a for a, _ in results), sum(b for _, b in results), flush=True)
