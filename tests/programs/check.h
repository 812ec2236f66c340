/* What the test programs share: they say "ready", wait for a file `go` in their directory, verify their own state, say
 * "ok" and end with 0. Whatever is not as it was is told on standard output, and ends the program with 99. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Not stdio: nothing of it may be left in a buffer of a forked child. */
__attribute__((format(printf, 1, 2), unused)) static void say(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (write(1, text, (size_t)length) != length) _exit(98);
}

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            say("FAILED %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);     \
            _exit(99);                                                                       \
        }                                                                                    \
    } while (0)

#define CHECK_EQ(left, right)                                                                \
    do {                                                                                     \
        long long l_ = (long long)(left), r_ = (long long)(right);                           \
        if (l_ != r_) {                                                                      \
            say("FAILED %s:%d: %s is %lld (0x%llx), %s is %lld (0x%llx), errno %d\n",        \
                __FILE__, __LINE__, #left, l_, l_, #right, r_, r_, errno);                   \
            _exit(99);                                                                       \
        }                                                                                    \
    } while (0)

__attribute__((unused)) static void sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&time, &time) != 0 && errno == EINTR) {}
}

__attribute__((unused)) static void wait_go(void) {
    while (access("go", F_OK) != 0) sleep_ms(5);
}

__attribute__((unused)) static void ready_and_wait(void) {
    say("ready\n");
    wait_go();
}

__attribute__((unused)) static int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* A whole file of /proc, without allocating anything. */
__attribute__((unused)) static size_t slurp(const char *path, char *buffer, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    size_t got = 0;
    for (;;) {
        ssize_t n = read(fd, buffer + got, size - got);
        CHECK(n >= 0);
        if (n == 0) break;
        got += (size_t)n;
        CHECK(got < size);
    }
    close(fd);
    return got;
}

/* Bytes that depend on where they are and on a seed. */
__attribute__((unused)) static void fill(void *start, size_t length, uint64_t seed) {
    uint64_t *words = start;
    for (size_t i = 0; i < length / 8; i++) words[i] = (i + 1) * 0x9e3779b97f4a7c15u ^ seed;
}

__attribute__((unused)) static void expect_filled(const void *start, size_t length, uint64_t seed) {
    const uint64_t *words = start;
    for (size_t i = 0; i < length / 8; i++) {
        if (words[i] != ((i + 1) * 0x9e3779b97f4a7c15u ^ seed)) {
            say("FAILED: word %zu of area %p (seed %llu) is 0x%llx\n", i, start, (unsigned long long)seed,
                (unsigned long long)words[i]);
            _exit(99);
        }
    }
}

__attribute__((unused)) static void expect_zero(const void *start, size_t length) {
    const uint64_t *words = start;
    for (size_t i = 0; i < length / 8; i++) {
        if (words[i] != 0) {
            say("FAILED: word %zu of area %p is 0x%llx, not zero\n", i, start, (unsigned long long)words[i]);
            _exit(99);
        }
    }
}

struct check_case {
    const char *name;
    void (*run)(void);
};

__attribute__((unused)) static int run_case(const struct check_case *cases, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(cases[i].name, name) == 0) {
            cases[i].run();
            say("ok\n");
            return 0;
        }
    }
    say("no case %s\n", name);
    return 97;
}
#define RUN_CASE(cases, argc, argv) \
    run_case(cases, sizeof(cases) / sizeof((cases)[0]), (argc) > 1 ? (argv)[1] : "")
