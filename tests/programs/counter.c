/* Counts to argv[1], one line every argv[2] milliseconds. */
#include "check.h"

int main(int argc, char **argv) {
    long end = argc > 1 ? atol(argv[1]) : 100;
    long pause = argc > 2 ? atol(argv[2]) : 10;
    for (long i = 1; i <= end; i++) {
        say("%ld\n", i);
        sleep_ms(pause);
    }
    return 0;
}
