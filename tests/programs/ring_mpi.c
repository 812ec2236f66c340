/* Ranks of MPI that send numbers around a ring, and sum up: each message and each sum is checked. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void require(int condition, const char *what, int round) {
    if (condition) return;
    fprintf(stderr, "wrong in round %d: %s\n", round, what);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

int main(int argc, char **argv) {
    int rank, size, rounds = atoi(argv[1]);
    static long out[20000], in[20000];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    for (int round = 0; round < rounds; round++) {
        /* Small ones go at once, large ones by rendezvous. */
        int count = round % 5 == 0 ? 20000 : 1 + round % 100;
        for (int i = 0; i < count; i++) out[i] = (long)rank * 1000003 + round * 31L + i;
        MPI_Sendrecv(out, count, MPI_LONG, next, round, in, count, MPI_LONG, previous, round, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        for (int i = 0; i < count; i++) require(in[i] == (long)previous * 1000003 + round * 31L + i, "a message", round);
        long mine = (long)round * (rank + 1), sum = 0;
        MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
        require(sum == (long)round * size * (size + 1) / 2, "a sum", round);
        if (rank == 0 && round % 500 == 0) { printf("round %d\n", round); fflush(stdout); }
    }
    if (rank == 0) printf("all %d rounds\n", rounds);
    MPI_Finalize();
    return 0;
}
