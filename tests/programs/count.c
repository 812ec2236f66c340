// count [LAST [STATUS]]: prints 1, 2, ... to LAST, a line each, and ends with STATUS.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    long last = argc > 1 ? atol(argv[1]) : 100000;
    for (long n = 1; n <= last; n++) {
        printf("%ld\n", n);
        fflush(stdout);
        usleep(20000);
    }
    return argc > 2 ? atoi(argv[2]) : 0;
}
