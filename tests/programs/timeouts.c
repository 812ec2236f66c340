/* Calls that wait for a while: they end when they should have.
 *
 *   timeouts calls MILLISECONDS    each call in a thread of its own; prints "NAME ELAPSED_IN_MICROSECONDS" for each
 *   timeouts timers MILLISECONDS   one-shot timers of each kind, the same way
 *   timeouts CASE                  a case that verifies itself
 */
#include "check.h"
#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/time.h>
#include <sys/timerfd.h>

static int64_t length_ms;
static struct timespec in_time(void) {
    return (struct timespec){length_ms / 1000, length_ms % 1000 * 1000000};
}
static struct timespec at_time(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    int64_t ns = now.tv_nsec + length_ms % 1000 * 1000000;
    return (struct timespec){now.tv_sec + length_ms / 1000 + ns / 1000000000, ns % 1000000000};
}

static void do_nanosleep(void) {
    struct timespec time = in_time();
    CHECK_EQ(nanosleep(&time, NULL), 0);
}
static void do_clock_nanosleep(void) {
    struct timespec time = in_time();
    CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL), 0);
}
static void do_clock_nanosleep_absolute(void) {
    struct timespec time = at_time(CLOCK_MONOTONIC);
    CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL), 0);
}
static void do_clock_nanosleep_boottime(void) {
    struct timespec time = at_time(CLOCK_BOOTTIME);
    CHECK_EQ(clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &time, NULL), 0);
}
/* The time that is left goes to where the time was. */
static void do_nanosleep_in_place(void) {
    struct timespec time = in_time();
    CHECK_EQ(syscall(SYS_nanosleep, &time, &time), 0);
}
static void do_clock_nanosleep_in_place(void) {
    struct timespec time = in_time();
    CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, 0, &time, &time), 0);
}
static void do_poll(void) {
    CHECK_EQ(poll(NULL, 0, (int)length_ms), 0);
}
static void do_poll_pipe(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    struct pollfd set = {.fd = ends[0], .events = POLLIN};
    CHECK_EQ(poll(&set, 1, (int)length_ms), 0);
}
static void do_ppoll(void) {
    struct timespec time = in_time();
    CHECK_EQ(ppoll(NULL, 0, &time, NULL), 0);
}
/* Where the kernel cannot write back what is left it gives EINTR. */
static const struct timespec *constant_time(void) {
    struct timespec *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    *page = in_time();
    CHECK(mprotect(page, 4096, PROT_READ) == 0);
    return page;
}
static void do_ppoll_constant(void) {
    CHECK_EQ(syscall(SYS_ppoll, NULL, 0, constant_time(), NULL, 8), 0);
}
static void do_pselect_constant(void) {
    CHECK_EQ(syscall(SYS_pselect6, 0, NULL, NULL, NULL, constant_time(), NULL), 0);
}
static void do_select(void) {
    struct timeval time = {length_ms / 1000, length_ms % 1000 * 1000};
    CHECK_EQ(select(0, NULL, NULL, NULL, &time), 0);
}
static void do_pselect(void) {
    struct timespec time = in_time();
    sigset_t mask;
    sigemptyset(&mask);
    CHECK_EQ(pselect(0, NULL, NULL, NULL, &time, &mask), 0);
}
static void do_epoll_wait(void) {
    int epoll = epoll_create1(0);
    struct epoll_event event;
    CHECK_EQ(epoll_wait(epoll, &event, 1, (int)length_ms), 0);
}
static void do_epoll_pwait(void) {
    int epoll = epoll_create1(0);
    struct epoll_event event;
    sigset_t mask;
    sigemptyset(&mask);
    CHECK_EQ(epoll_pwait(epoll, &event, 1, (int)length_ms, &mask), 0);
}
static void do_epoll_pwait2(void) {
    int epoll = epoll_create1(0);
    struct epoll_event event;
    struct timespec time = in_time();
    CHECK_EQ(syscall(SYS_epoll_pwait2, epoll, &event, 1, &time, NULL, 0), 0);
}
static void do_futex(void) {
    uint32_t word = 1;
    struct timespec time = in_time();
    CHECK(syscall(SYS_futex, &word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1, &time, NULL, 0) == -1);
    CHECK_EQ(errno, ETIMEDOUT);
}
static void do_futex_absolute(void) {
    uint32_t word = 1;
    struct timespec time = at_time(CLOCK_MONOTONIC);
    CHECK(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 1, &time, NULL, FUTEX_BITSET_MATCH_ANY) == -1);
    CHECK_EQ(errno, ETIMEDOUT);
}
static void do_condition(void) {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&condition, &attributes);
    struct timespec time = at_time(CLOCK_MONOTONIC);
    pthread_mutex_lock(&mutex);
    CHECK_EQ(pthread_cond_timedwait(&condition, &mutex, &time), ETIMEDOUT);
    pthread_mutex_unlock(&mutex);
}
static void do_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMAX);
    struct timespec time = in_time();
    CHECK(sigtimedwait(&set, NULL, &time) == -1);
    CHECK_EQ(errno, EAGAIN);
}
/* The registers of the arguments are the same afterwards: a compiler counts on it. */
static void do_registers(void) {
    int epoll = epoll_create1(0);
    struct epoll_event event;
    register long r10 __asm__("r10") = length_ms;
    register long r8 __asm__("r8") = 0;
    register long r9 __asm__("r9") = 8;
    long result = SYS_epoll_pwait, rdi = epoll, rsi = (long)&event, rdx = 1;
    __asm__ volatile("syscall"
                     : "+a"(result), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r10), "+r"(r8), "+r"(r9)
                     :
                     : "rcx", "r11", "memory");
    long left = r10;
    CHECK(result == 0 && rdi == epoll && rsi == (long)&event && rdx == 1 && r8 == 0 && r9 == 8);
    CHECK_EQ(left, length_ms);
}
/* The handlers of the other timers shall not interrupt this thread's call. */
static void block_all(void) {
    sigset_t set;
    sigfillset(&set);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
}
static void do_timerfd(void) {
    block_all();
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec setting = {.it_value = in_time()};
    CHECK(timerfd_settime(fd, 0, &setting, NULL) == 0);
    uint64_t count;
    CHECK_EQ(read(fd, &count, 8), 8);
    CHECK_EQ(count, 1);
}
static void do_timerfd_absolute(void) {
    block_all();
    int fd = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK);
    struct itimerspec setting = {.it_value = at_time(CLOCK_BOOTTIME)};
    CHECK(timerfd_settime(fd, TFD_TIMER_ABSTIME, &setting, NULL) == 0);
    struct pollfd set = {.fd = fd, .events = POLLIN};
    CHECK_EQ(poll(&set, 1, -1), 1);
    uint64_t count;
    CHECK_EQ(read(fd, &count, 8), 8);
}
static void do_timerfd_wake(void) {
    block_all();
    int fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);
    struct itimerspec setting = {.it_value = in_time()};
    CHECK(timerfd_settime(fd, 0, &setting, NULL) == 0);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 99};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
    CHECK_EQ(epoll_wait(epoll, &event, 1, -1), 1);
    CHECK_EQ(event.data.u64, 99);
}
/* A child's wait has its own time. */
static void do_child(void) {
    pid_t child = fork();
    if (child == 0) {
        do_nanosleep();
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}
static volatile sig_atomic_t alarms[128];
static void on_alarm(int signal) {
    alarms[signal]++;
}
static void catch(int signal) {
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    CHECK(sigaction(signal, &action, NULL) == 0);
}
static void await(int signal) {
    while (alarms[signal] == 0) sleep_ms(1);
    CHECK_EQ(alarms[signal], 1);
}
static void do_timer(clockid_t clock, int flags, int signal) {
    catch(signal);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal};
    CHECK(timer_create(clock, &event, &timer) == 0);
    struct itimerspec setting = {.it_value = flags ? at_time(clock) : in_time()}, now;
    CHECK(timer_settime(timer, flags, &setting, NULL) == 0);
    await(signal);
    CHECK(timer_gettime(timer, &now) == 0 && now.it_value.tv_sec == 0 && now.it_value.tv_nsec == 0);
    CHECK(timer_delete(timer) == 0);
}
static void do_timer_monotonic(void) { do_timer(CLOCK_MONOTONIC, 0, SIGRTMIN); }
static void do_timer_absolute(void) { do_timer(CLOCK_MONOTONIC, TIMER_ABSTIME, SIGRTMIN + 1); }
static void do_timer_realtime(void) { do_timer(CLOCK_REALTIME, 0, SIGRTMIN + 2); }
static void do_timer_boottime(void) { do_timer(CLOCK_BOOTTIME, 0, SIGRTMIN + 3); }
static void do_timer_thread(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 4);
    block_all();
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 4, .sigev_value.sival_int = 55};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    struct itimerspec setting = {.it_value = in_time()};
    CHECK(timer_settime(timer, 0, &setting, NULL) == 0);
    siginfo_t info;
    CHECK_EQ(sigwaitinfo(&set, &info), SIGRTMIN + 4);
    CHECK_EQ(info.si_code, SI_TIMER);
    CHECK_EQ(info.si_value.sival_int, 55);
}
static void do_setitimer(void) {
    catch(SIGALRM);
    struct itimerval setting = {.it_value = {length_ms / 1000, length_ms % 1000 * 1000}};
    CHECK(setitimer(ITIMER_REAL, &setting, NULL) == 0);
    await(SIGALRM);
}

struct timed {
    const char *name;
    void (*run)(void);
    int64_t took;
};
static struct timed calls[] = {
    {"nanosleep", do_nanosleep, 0},
    {"clock_nanosleep", do_clock_nanosleep, 0},
    {"clock_nanosleep_absolute", do_clock_nanosleep_absolute, 0},
    {"clock_nanosleep_boottime", do_clock_nanosleep_boottime, 0},
    {"nanosleep_in_place", do_nanosleep_in_place, 0},
    {"clock_nanosleep_in_place", do_clock_nanosleep_in_place, 0},
    {"poll", do_poll, 0},
    {"poll_pipe", do_poll_pipe, 0},
    {"ppoll", do_ppoll, 0},
    {"ppoll_constant", do_ppoll_constant, 0},
    {"pselect_constant", do_pselect_constant, 0},
    {"select", do_select, 0},
    {"pselect", do_pselect, 0},
    {"epoll_wait", do_epoll_wait, 0},
    {"epoll_pwait", do_epoll_pwait, 0},
    {"epoll_pwait2", do_epoll_pwait2, 0},
    {"futex", do_futex, 0},
    {"futex_absolute", do_futex_absolute, 0},
    {"condition", do_condition, 0},
    {"sigtimedwait", do_sigtimedwait, 0},
    {"registers", do_registers, 0},
    {"child", do_child, 0},
    {NULL, NULL, 0},
};
static struct timed timers[] = {
    {"timerfd", do_timerfd, 0},
    {"timerfd_absolute", do_timerfd_absolute, 0},
    {"timerfd_realtime", do_timerfd_wake, 0},
    {"timer_monotonic", do_timer_monotonic, 0},
    {"timer_absolute", do_timer_absolute, 0},
    {"timer_realtime", do_timer_realtime, 0},
    {"timer_boottime", do_timer_boottime, 0},
    {"timer_thread", do_timer_thread, 0},
    {"setitimer", do_setitimer, 0},
    {NULL, NULL, 0},
};
static void *run_timed(void *argument) {
    struct timed *timed = argument;
    int64_t start = monotonic_ns();
    timed->run();
    timed->took = monotonic_ns() - start;
    return NULL;
}
/* With a name: only that one, in the only thread. */
static int run_all(struct timed *all, const char *only) {
    pthread_t threads[64];
    bool found = false;
    sigset_t set, old;
    sigfillset(&set);
    for (int i = 0; all[i].name != NULL; i++) {
        if (only != NULL) {
            if (strcmp(all[i].name, only) != 0) continue;
            found = true;
            say("ready\n");
            run_timed(&all[i]);
            say("%s %lld\n", all[i].name, (long long)all[i].took / 1000);
            continue;
        }
        CHECK(pthread_create(&threads[i], NULL, run_timed, &all[i]) == 0);
    }
    if (only != NULL) return !found;
    /* The main thread only joins. */
    CHECK(pthread_sigmask(SIG_BLOCK, &set, &old) == 0);
    say("ready\n");
    for (int i = 0; all[i].name != NULL; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        say("%s %lld\n", all[i].name, (long long)all[i].took / 1000);
    }
    return 0;
}

/* Timers that repeat: every period counts once, none is missing, over the checkpoint and the restart. */
static void intervals(void) {
    catch(SIGALRM);
    catch(SIGRTMIN);
    int64_t start = monotonic_ns();
    struct itimerval every = {{0, 20000}, {0, 20000}};
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
    timer_t timer, idle;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &idle) == 0);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    CHECK(timer_delete(idle) == 0); /* so that the numbers have a gap */
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &idle) == 0);
    struct itimerspec setting = {{0, 25000000}, {0, 25000000}}, now;
    CHECK(timer_settime(timer, 0, &setting, NULL) == 0);
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    CHECK(timerfd_settime(fd, 0, &setting, NULL) == 0);
    struct itimerval profile = {{0, 30000}, {5, 30000}}, virtual = {{0, 40000}, {5, 40000}}, value;
    CHECK(setitimer(ITIMER_PROF, &profile, NULL) == 0 && setitimer(ITIMER_VIRTUAL, &virtual, NULL) == 0);
    sleep_ms(100);
    ready_and_wait();
    int64_t took = monotonic_ns() - start;
    CHECK(getitimer(ITIMER_REAL, &value) == 0);
    CHECK_EQ(value.it_interval.tv_usec, 20000);
    CHECK(value.it_value.tv_sec == 0 && value.it_value.tv_usec <= 20000);
    CHECK(getitimer(ITIMER_PROF, &value) == 0);
    CHECK_EQ(value.it_interval.tv_usec, 30000);
    CHECK(value.it_value.tv_sec >= 3);
    CHECK(getitimer(ITIMER_VIRTUAL, &value) == 0);
    CHECK_EQ(value.it_interval.tv_usec, 40000);
    CHECK(value.it_value.tv_sec >= 3);
    CHECK(timer_gettime(timer, &now) == 0);
    CHECK_EQ(now.it_interval.tv_nsec, 25000000);
    CHECK(now.it_value.tv_sec == 0 && now.it_value.tv_nsec <= 25000000);
    CHECK(timer_gettime(idle, &now) == 0 && now.it_value.tv_nsec == 0);
    uint64_t count;
    int64_t least = (monotonic_ns() - start) / 25000000;
    CHECK_EQ(read(fd, &count, 8), 8);
    int64_t most = (monotonic_ns() - start) / 25000000;
    /* Without a time namespace the clock leaps over the time between the kill and the restart. */
    bool leaps = getenv("STASIS_TEST_OUTSIDE_MAY_CHANGE") != NULL;
    if (!leaps && ((int64_t)count < least - 3 || (int64_t)count > most)) {
        say("FAILED: timerfd counted %lld periods of 25 ms, not %lld to %lld\n", (long long)count, (long long)least - 3,
            (long long)most);
        _exit(99);
    }
    int then = alarms[SIGALRM], then_rt = alarms[SIGRTMIN];
    CHECK(then > 0 || took < 40000000);
    for (int64_t end = monotonic_ns() + 200000000; monotonic_ns() < end;) sleep_ms(5);
    CHECK(alarms[SIGALRM] > then && alarms[SIGRTMIN] > then_rt);
    CHECK(timer_delete(timer) == 0 && timer_delete(idle) == 0);
}

/* The signal of a periodic timer waits: the kernel arms the timer again only when the signal is taken. */
static void waiting_alarm(void) {
    sigset_t set, now;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    struct itimerval every = {{0, 20000}, {0, 20000}}, value;
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
    do CHECK(sigpending(&now) == 0);
    while (!sigismember(&now, SIGALRM));
    ready_and_wait();
    CHECK(getitimer(ITIMER_REAL, &value) == 0);
    CHECK_EQ(value.it_interval.tv_usec, 20000);
    for (int i = 0; i < 5; i++) CHECK_EQ(sigwaitinfo(&set, NULL), SIGALRM);
}

/* Of many one-shot timers each gives one signal, whatever it is doing when it is saved: none is lost, none comes twice. */
static void many_timers(void) {
    enum { TIMERS = 200 };
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    static timer_t timers[TIMERS];
    static int got[TIMERS];
    for (int i = 0; i < TIMERS; i++) {
        struct sigevent event = {
            .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = i};
        CHECK(timer_create(CLOCK_MONOTONIC, &event, &timers[i]) == 0);
        struct itimerspec setting = {.it_value = {0, 1000000 + 2500000 * (long)i}};
        CHECK(timer_settime(timers[i], 0, &setting, NULL) == 0);
    }
    say("ready\n");
    siginfo_t info;
    struct timespec soon = {0, 400000000};
    for (int i = 0; i < TIMERS; i++) {
        CHECK_EQ(sigwaitinfo(&set, &info), SIGRTMIN);
        got[info.si_value.sival_int]++;
    }
    for (int i = 0; i < TIMERS; i++) CHECK_EQ(got[i], 1);
    wait_go();
    CHECK(sigtimedwait(&set, &info, &soon) == -1 && errno == EAGAIN);
}

/* No clock that promises not to goes back; none stands still or leaps. */
static void clocks(void) {
    static const clockid_t kinds[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE,
                                      CLOCK_REALTIME};
    enum { KINDS = sizeof kinds / sizeof kinds[0] };
    struct timespec then[KINDS], now;
    for (int i = 0; i < KINDS; i++) clock_gettime(kinds[i], &then[i]);
    say("ready\n");
    for (int round = 0; round % 64 != 0 || access("go", F_OK) != 0; round++) {
        for (int i = 0; i < KINDS; i++) {
            /* Half by the vdso, half by the kernel. */
            if (round % 2)
                clock_gettime(kinds[i], &now);
            else
                syscall(SYS_clock_gettime, kinds[i], &now);
            int64_t step = (now.tv_sec - then[i].tv_sec) * 1000000000LL + now.tv_nsec - then[i].tv_nsec;
            if (step < 0 || (step > 60000000000LL && kinds[i] != CLOCK_REALTIME)) {
                say("FAILED: clock %d went from %lld.%09ld to %lld.%09ld\n", kinds[i], (long long)then[i].tv_sec,
                    then[i].tv_nsec, (long long)now.tv_sec, now.tv_nsec);
                _exit(99);
            }
            then[i] = now;
        }
        if (round % 16 == 0) sleep_ms(1);
    }
}

static const struct check_case cases[] = {
    {"intervals", intervals},
    {"clocks", clocks},
    {"waiting_alarm", waiting_alarm},
    {"many_timers", many_timers},
};

int main(int argc, char **argv) {
    if (argc > 2 && (strcmp(argv[1], "calls") == 0 || strcmp(argv[1], "timers") == 0)) {
        length_ms = atoll(argv[2]);
        return run_all(argv[1][0] == 'c' ? calls : timers, argc > 3 ? argv[3] : NULL);
    }
    return RUN_CASE(cases, argc, argv);
}
