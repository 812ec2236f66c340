/* Calls in loops, each in a process of its own: a stop must never show as EINTR, as a short transfer, or as a wait that
 * ends early. Ends when the file `go` is there. */
#include "check.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>

/* In the time of CLOCK_MONOTONIC: `wanted` has passed since `start`. */
static void expect_passed(const char *what, int64_t start, int64_t wanted) {
    int64_t took = monotonic_ns() - start;
    if (took < wanted) {
        say("FAILED: %s ended after %lld of %lld us\n", what, (long long)took / 1000, (long long)wanted / 1000);
        _exit(99);
    }
}

static bool going(void) {
    return access("go", F_OK) != 0;
}

/* Large transfers through a pipe: a read of a full buffer's worth that blocks in between. */
static void transfers(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    enum { SIZE = 1 << 20 };
    static char data[SIZE], got[SIZE];
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(ends[0]);
        for (uint64_t round = 0; going(); round++) {
            fill(data, SIZE, round);
            CHECK_EQ(write(ends[1], data, SIZE), SIZE); /* blocks, and must not come back short */
        }
        _exit(0);
    }
    close(ends[1]);
    for (uint64_t round = 0;; round++) {
        size_t have = 0;
        while (have < SIZE) {
            ssize_t n = read(ends[0], got + have, SIZE - have);
            CHECK(n >= 0);
            if (n == 0) break;
            have += (size_t)n;
        }
        if (have == 0) break;
        CHECK_EQ(have, SIZE);
        expect_filled(got, SIZE, round);
        sleep_ms(1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

/* The same in pieces, of which a stop may cut any. */
static void vectors(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    enum { PIECES = 5, PIECE = 200 << 10, SIZE = PIECES * PIECE };
    static char data[SIZE], got[SIZE];
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(ends[0]);
        for (uint64_t round = 0; going(); round++) {
            fill(data, SIZE, round);
            struct iovec pieces[PIECES], before[PIECES];
            for (int i = 0; i < PIECES; i++) pieces[i] = (struct iovec){data + i * PIECE, PIECE};
            memcpy(before, pieces, sizeof pieces);
            CHECK_EQ(writev(ends[1], pieces, PIECES), SIZE);
            CHECK(memcmp(before, pieces, sizeof pieces) == 0);
        }
        _exit(0);
    }
    close(ends[1]);
    for (uint64_t round = 0;; round++) {
        size_t have = 0;
        while (have < SIZE) {
            ssize_t n = read(ends[0], got + have, SIZE - have);
            CHECK(n >= 0);
            if (n == 0) break;
            have += (size_t)n;
        }
        if (have == 0) break;
        CHECK_EQ(have, SIZE);
        expect_filled(got, SIZE, round);
        sleep_ms(1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

/* Reads of devices that never end, and that look for signals between two pages. */
static void devices(void) {
    enum { SIZE = 1 << 20 };
    static char data[SIZE];
    int zero = open("/dev/zero", O_RDONLY), random = open("/dev/urandom", O_RDONLY);
    CHECK(zero >= 0 && random >= 0);
    while (going()) {
        memset(data, 1, SIZE);
        CHECK_EQ(read(zero, data, SIZE), SIZE);
        expect_zero(data, SIZE);
        CHECK_EQ(read(random, data, SIZE), SIZE);
        CHECK_EQ(syscall(SYS_getrandom, data, SIZE, 0), SIZE);
    }
}

static void files(void) {
    enum { SIZE = 1 << 18 };
    static char data[SIZE], got[SIZE];
    int fd = open("invisible.data", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    for (uint64_t round = 0; going(); round++) {
        fill(data, SIZE, round);
        CHECK_EQ(pwrite(fd, data, SIZE, 0), SIZE);
        CHECK_EQ(pread(fd, got, SIZE, 0), SIZE);
        CHECK(memcmp(data, got, SIZE) == 0);
    }
}

static void naps(void) {
    while (going()) {
        struct timespec time = {0, 30000000};
        int64_t start = monotonic_ns();
        CHECK_EQ(nanosleep(&time, NULL), 0);
        expect_passed("nanosleep", start, 30000000);
        start = monotonic_ns();
        CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL), 0);
        expect_passed("clock_nanosleep", start, 30000000);
    }
}

static void polls(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event) == 0);
    while (going()) {
        int64_t start = monotonic_ns();
        CHECK_EQ(epoll_wait(epoll, &event, 1, 30), 0);
        expect_passed("epoll_wait", start, 30000000);
        start = monotonic_ns();
        struct timespec short_time = {0, 30000000};
        long result = syscall(SYS_epoll_pwait2, epoll, &event, 1, &short_time, NULL, 0);
        CHECK(result == 0 || errno == ENOSYS);
        start = monotonic_ns();
        struct pollfd set = {.fd = ends[0], .events = POLLIN};
        CHECK_EQ(poll(&set, 1, 30), 0);
        expect_passed("poll", start, 30000000);
        start = monotonic_ns();
        fd_set reading;
        FD_ZERO(&reading);
        FD_SET(ends[0], &reading);
        struct timeval time = {0, 30000};
        CHECK_EQ(select(ends[0] + 1, &reading, NULL, NULL, &time), 0);
        expect_passed("select", start, 30000000);
        start = monotonic_ns();
        sigset_t mask;
        sigemptyset(&mask);
        struct timespec precise = {0, 30000000};
        CHECK_EQ(ppoll(&set, 1, &precise, &mask), 0);
        expect_passed("ppoll", start, 30000000);
    }
}

static void signal_waits(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMAX);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    while (going()) {
        struct timespec time = {0, 30000000};
        int64_t start = monotonic_ns();
        CHECK(sigtimedwait(&set, NULL, &time) == -1);
        CHECK_EQ(errno, EAGAIN);
        expect_passed("sigtimedwait", start, 30000000);
    }
}

/* Written to by a loop that has something to make before it begins. */
static int begun[2];

static void semaphores(void) {
    int id = semget(IPC_PRIVATE, 1, 0600);
    CHECK(id >= 0);
    /* A use that succeeds: by that it is known to be this program's. */
    CHECK(semctl(id, 0, SETVAL, 0) == 0);
    CHECK(write(begun[1], "", 1) == 1);
    while (going()) {
        struct sembuf take = {0, -1, 0};
        struct timespec time = {0, 30000000};
        int64_t start = monotonic_ns();
        CHECK(semtimedop(id, &take, 1, &time) == -1);
        if (errno != EAGAIN) {
            int error = errno;
            semctl(id, 0, IPC_RMID);
            CHECK_EQ(error, EAGAIN);
        }
        expect_passed("semtimedop", start, 30000000);
    }
    CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void receives(void) {
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    struct timeval time = {0, 30000};
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0);
    while (going()) {
        char byte;
        int64_t start = monotonic_ns();
        CHECK(recv(ends[0], &byte, 1, 0) == -1);
        CHECK_EQ(errno, EAGAIN);
        expect_passed("recv", start, 25000000); /* in ticks */
    }
}

static void children(void) {
    while (going()) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            sleep_ms(20);
            _exit(7);
        }
        int status = -1;
        siginfo_t info;
        CHECK_EQ(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
        CHECK_EQ(wait4(child, &status, 0, NULL), child);
        CHECK_EQ(status, 7 << 8);
    }
}

static void futexes(void) {
    uint32_t word = 1;
    while (going()) {
        struct timespec time = {0, 30000000};
        int64_t start = monotonic_ns();
        CHECK(syscall(SYS_futex, &word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1, &time, NULL, 0) == -1);
        CHECK_EQ(errno, ETIMEDOUT);
        expect_passed("futex", start, 30000000);
    }
}

static void *ping(void *argument) {
    uint32_t *words = argument;
    for (;;) {
        while (__atomic_load_n(&words[0], __ATOMIC_SEQ_CST) == 0)
            CHECK(syscall(SYS_futex, &words[0], FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) == 0 || errno == EAGAIN);
        uint32_t value = __atomic_exchange_n(&words[0], 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&words[1], value, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &words[1], FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        if (value == UINT32_MAX) return NULL;
    }
}
static void wakes(void) {
    static uint32_t words[2];
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, ping, words) == 0);
    for (uint32_t round = 1;; round++) {
        bool last = !going();
        uint32_t value = last ? UINT32_MAX : round;
        __atomic_store_n(&words[0], value, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &words[0], FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        while (__atomic_load_n(&words[1], __ATOMIC_SEQ_CST) == 0)
            CHECK(syscall(SYS_futex, &words[1], FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) == 0 || errno == EAGAIN);
        CHECK_EQ(__atomic_exchange_n(&words[1], 0, __ATOMIC_SEQ_CST), value);
        if (last) break;
        if (round % 32 == 0) sleep_ms(1);
    }
    CHECK(pthread_join(thread, NULL) == 0);
}

/* Blocking reads that nobody ends: of a pipe, an eventfd; a lock that another holds. */
static void blocked(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    int event = eventfd(0, 0);
    pid_t reader = fork();
    if (reader == 0) {
        char byte;
        CHECK_EQ(read(ends[0], &byte, 1), 1);
        CHECK(access("go", F_OK) == 0);
        uint64_t value;
        CHECK_EQ(read(event, &value, 8), 8);
        _exit(0);
    }
    wait_go();
    CHECK(write(ends[1], "x", 1) == 1);
    sleep_ms(20);
    CHECK(eventfd_write(event, 1) == 0);
    int status;
    CHECK(waitpid(reader, &status, 0) == reader);
    CHECK_EQ(status, 0);
}

/* Computes without a call; a register lost would show. */
static void computes(void) {
    uint64_t value = 1;
    double real = 1.5;
    while (going()) {
        uint64_t first = 0;
        double first_real = 0;
        for (int pass = 0; pass < 2; pass++) {
            value = 12345;
            real = 0.1;
            for (int i = 0; i < 2000000; i++) {
                value = value * 6364136223846793005u + 1442695040888963407u;
                real = real * 1.0000001 + (double)(value >> 60) * 1e-3;
            }
            if (pass == 0) {
                first = value;
                first_real = real;
            }
        }
        CHECK(first == value && first_real == real);
    }
}

static const struct check_case cases[] = {
    {"transfers", transfers}, {"files", files},           {"naps", naps},
    {"vectors", vectors},     {"devices", devices},
    {"polls", polls},         {"signal_waits", signal_waits}, {"semaphores", semaphores},
    {"receives", receives},   {"children", children},     {"futexes", futexes},
    {"wakes", wakes},         {"blocked", blocked},       {"computes", computes},
};

/* invisible NAME...: all at once. */
int main(int argc, char **argv) {
    pid_t processes[32];
    CHECK(argc <= 32 && pipe(begun) == 0);
    for (int i = 1; i < argc; i++) {
        processes[i] = fork();
        CHECK(processes[i] >= 0);
        if (processes[i] == 0) {
            for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
                if (strcmp(cases[k].name, argv[i]) == 0) {
                    cases[k].run();
                    _exit(0);
                }
            }
            say("no case %s\n", argv[i]);
            _exit(97);
        }
    }
    for (int i = 1; i < argc; i++) {
        char byte;
        if (strcmp(argv[i], "semaphores") == 0) CHECK(read(begun[0], &byte, 1) == 1);
    }
    say("ready\n");
    int failures = 0;
    for (int i = 1; i < argc; i++) {
        int status;
        CHECK(waitpid(processes[i], &status, 0) == processes[i]);
        if (status != 0) {
            say("FAILED: %s ended with %#x\n", argv[i], status);
            failures++;
        }
    }
    if (failures == 0) say("ok\n");
    return failures;
}
