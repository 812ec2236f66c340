/* A stencil in parallel. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 600 };
static double a[N][N], b[N][N];

int main(int argc, char **argv) {
    int steps = argc > 1 ? atoi(argv[1]) : 1000;
    for (int i = 0; i < N; i++)
        for (int k = 0; k < N; k++) a[i][k] = (i * 31 + k * 17) % 101;
    for (int step = 0; step < steps; step++) {
#pragma omp parallel for schedule(static)
        for (int i = 1; i < N - 1; i++)
            for (int k = 1; k < N - 1; k++)
                b[i][k] = 0.25 * (a[i - 1][k] + a[i + 1][k] + a[i][k - 1] + a[i][k + 1]) + 1e-3 * ((i * k + step) % 7);
#pragma omp parallel for schedule(dynamic, 16)
        for (int i = 1; i < N - 1; i++)
            for (int k = 1; k < N - 1; k++) a[i][k] = b[i][k];
        if (step % (steps / 10) == 0) {
            printf("%d %.12e\n", step, a[N / 2][N / 3]);
            fflush(stdout);
        }
    }
    double sum = 0;
    for (int i = 0; i < N; i++)
        for (int k = 0; k < N; k++) sum += a[i][k];
    printf("sum %.12e with %d threads\n", sum, omp_get_max_threads());
    return 0;
}
