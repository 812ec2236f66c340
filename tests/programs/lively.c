/* A program that is always in the midst of something: threads that sleep, poll, pass messages, compute; a timer whose signal
 * the first thread waits for; a child that forks and waits; memory worth a twin. All of it checks itself. A line is printed
 * whenever everybody has got further. With the argument `watch` nothing of the kernel's code in this process may change. */
#include "check.h"
#include <poll.h>
#include <sys/time.h>

enum { SLEEPER, POLLER, PINGER, PONGER, COMPUTER, CHILD, ALARM, WORKERS };
static volatile unsigned long *progress;
static int ping[2], pong[2];

static void *sleeper(void *unused) {
    sigset_t all;
    sigfillset(&all);
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, &all, NULL), 0);
    for (;;) {
        const struct timespec time = {0, 2000000};
        int64_t before = monotonic_ns();
        CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL), 0);
        CHECK(monotonic_ns() - before >= 2000000);
        progress[SLEEPER]++;
    }
    return unused;
}

static void *poller(void *unused) {
    for (;;) {
        CHECK_EQ(poll(NULL, 0, 2), 0);
        progress[POLLER]++;
    }
    return unused;
}

/* Each gets the other's number, one higher every time. */
static void pass(int from, int to, unsigned number, int worker) {
    for (;; number += 2) {
        CHECK_EQ(write(to, &number, sizeof number), sizeof number);
        unsigned answer = 0;
        CHECK_EQ(read(from, &answer, sizeof answer), sizeof answer);
        CHECK_EQ(answer, number + 1);
        progress[worker]++;
        if (worker == PINGER) sleep_ms(1);
    }
}

static void *pinger(void *unused) {
    pass(pong[0], ping[1], 0, PINGER);
    return unused;
}

static void *ponger(void *unused) {
    unsigned first = 1;
    CHECK_EQ(read(ping[0], &first, sizeof first), sizeof first);
    CHECK_EQ(first, 0);
    pass(ping[0], pong[1], 1, PONGER);
    return unused;
}

static double compute(uint64_t *hash) {
    double sum = 0;
    *hash = 14695981039346656037u;
    for (int i = 1; i < 20000; i++) {
        sum += 1.0 / i;
        *hash = (*hash ^ (unsigned)i) * 1099511628211u;
    }
    return sum;
}

static unsigned char *vdso, *vdso_copy;
static size_t vdso_size;

static void *computer(void *unused) {
    uint64_t first, hash;
    double sum = compute(&first);
    for (;;) {
        CHECK(compute(&hash) == sum);
        CHECK_EQ(hash, first);
        if (vdso) CHECK(memcmp(vdso, vdso_copy, vdso_size) == 0);
        if (++progress[COMPUTER] % 32 == 0) sleep_ms(1);
    }
    return unused;
}

static void child(void) {
    for (;;) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) _exit(7);
        int status;
        CHECK_EQ(waitpid(pid, &status, 0), pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
        CHECK(waitpid(-1, &status, __WALL) == -1 && errno == ECHILD);
        progress[CHILD]++;
        sleep_ms(2);
    }
}

static void on_alarm(int signal) {
    CHECK_EQ(signal, SIGALRM);
    progress[ALARM]++;
}

static void look_at_vdso(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    char line[512];
    unsigned long start, end;
    while (fgets(line, sizeof line, maps)) {
        if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &start, &end) == 2) {
            vdso_size = end - start;
            CHECK(vdso_copy = malloc(vdso_size));
            memcpy(vdso_copy, (void *)start, vdso_size);
            vdso = (unsigned char *)start;
        }
    }
    fclose(maps);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "watch") == 0) look_at_vdso();
    progress = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(progress != MAP_FAILED);
    size_t size = 6 << 20;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    for (size_t at = 0; at < size; at += 512) memory[at] = (char)(at >> 9);
    CHECK(pipe(ping) == 0 && pipe(pong) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);
        child();
    }
    sigset_t alarm_only, former;
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &alarm_only, &former), 0);
    void *(*const workers[])(void *) = {sleeper, poller, pinger, ponger, computer};
    for (size_t i = 0; i < sizeof workers / sizeof workers[0]; i++) {
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, workers[i], NULL), 0);
    }
    struct sigaction action = {.sa_handler = on_alarm};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval every = {{0, 2000}, {0, 2000}};
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
    unsigned long seen[WORKERS] = {0};
    for (unsigned long line = 1;; line++) {
        for (int worker = 0; worker < WORKERS; worker++) {
            while (progress[worker] == seen[worker]) CHECK(sigsuspend(&former) == -1 && errno == EINTR);
            seen[worker] = progress[worker];
        }
        for (size_t at = line % 97 * 512; at < size; at += 97 * 512) CHECK_EQ(memory[at], (char)(at >> 9));
        say("%lu\n", line);
    }
}
