/* Signals: dispositions, masks, what is pending, and calls that wait for one. */
#include "check.h"
#include <sys/signalfd.h>
#include <ucontext.h>

static volatile sig_atomic_t seen[128];
static volatile int seen_value[128];
static void on_signal(int signal, siginfo_t *info, void *context) {
    (void)context;
    seen[signal]++;
    seen_value[signal] = info->si_value.sival_int;
}
static void on_other(int signal) {
    seen[signal] += 100;
}

/* The kernel's own structure: the C library hides the restorer and two signals. */
struct kernel_action {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};

static void dispositions(void) {
    struct sigaction action = {.sa_sigaction = on_signal};
    static struct kernel_action before[65], now;
    for (int signal = 1; signal <= SIGRTMAX; signal++) {
        if (signal == SIGKILL || signal == SIGSTOP || (signal > 31 && signal < SIGRTMIN)) continue;
        sigemptyset(&action.sa_mask);
        sigaddset(&action.sa_mask, 1 + signal * 7 % 31);
        action.sa_flags = SA_SIGINFO | (signal % 2 ? SA_RESTART : 0) | (signal % 3 ? SA_ONSTACK : 0) |
                          (signal % 5 ? SA_NODEFER : 0) | (signal % 11 == 0 ? (int)SA_RESETHAND : 0);
        if (signal % 4 == 2) {
            action.sa_handler = on_other;
            action.sa_flags &= ~SA_SIGINFO;
        } else
            action.sa_sigaction = on_signal;
        if (signal % 13 == 1) action.sa_handler = SIG_IGN;
        if (signal % 13 == 4) action.sa_handler = SIG_DFL;
        CHECK(sigaction(signal, &action, NULL) == 0);
    }
    sigset_t mask, mask_now;
    sigemptyset(&mask);
    for (int signal = 2; signal <= SIGRTMAX; signal += 3)
        if (signal != SIGSEGV) sigaddset(&mask, signal);
    CHECK(sigprocmask(SIG_SETMASK, &mask, &mask_now) == 0);
    CHECK(sigprocmask(SIG_SETMASK, NULL, &mask) == 0);
    for (int signal = 1; signal < 65; signal++) CHECK(syscall(SYS_rt_sigaction, signal, NULL, &before[signal], 8) == 0);
    ready_and_wait();
    CHECK(sigprocmask(SIG_SETMASK, NULL, &mask_now) == 0);
    for (int signal = 1; signal < 65; signal++) {
        CHECK(syscall(SYS_rt_sigaction, signal, NULL, &now, 8) == 0);
        if (memcmp(&now, &before[signal], sizeof now) != 0) {
            say("FAILED: the disposition of signal %d\n", signal);
            _exit(99);
        }
        if (signal < 32 || signal >= SIGRTMIN) CHECK_EQ(sigismember(&mask_now, signal), sigismember(&mask, signal));
    }
    CHECK(raise(16) == 0); /* unblocked, with siginfo */
    CHECK_EQ(seen[16], 1);
}

static void ignored(void) {
    signal(SIGHUP, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
    ready_and_wait();
    CHECK(raise(SIGHUP) == 0 && raise(SIGTERM) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) _exit(3);
    /* Ignored children leave no zombie. */
    CHECK(waitpid(child, NULL, 0) == -1 && errno == ECHILD);
}

/* Without the C library, which rewrites some codes. */
static int take(const sigset_t *set, siginfo_t *info, const struct timespec *limit) {
    return (int)syscall(SYS_rt_sigtimedwait, set, info, limit, 8);
}

/* Standard and real-time signals wait, at the process and at one thread. */
static volatile int thread_ready, all_sent;
static void *receiver(void *unused) {
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    sigaddset(&set, SIGUSR2);
    thread_ready = 1;
    while (!all_sent) sleep_ms(5);
    siginfo_t info;
    struct timespec none = {0, 0};
    for (int i = 0; i < 3; i++) {
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, SIGRTMIN + 5);
        CHECK_EQ(take(&one, &info, &none), SIGRTMIN + 5);
        CHECK_EQ(info.si_value.sival_int, 300 + i);
        CHECK_EQ(info.si_code, SI_QUEUE);
        CHECK_EQ(info.si_pid, getpid());
        CHECK_EQ(info.si_uid, getuid());
    }
    CHECK_EQ(take(&set, &info, &none), SIGUSR2);
    CHECK_EQ(info.si_code, SI_TKILL);
    CHECK(take(&set, &info, &none) == -1 && errno == EAGAIN);
    return NULL;
}
static void pending(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    for (int i = 1; i <= 5; i++) sigaddset(&set, SIGRTMIN + i);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, receiver, NULL) == 0);
    while (!thread_ready) sleep_ms(1);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    CHECK(kill(getpid(), SIGUSR1) == 0); /* the second is lost, as it must be */
    for (int i = 0; i < 8; i++)
        CHECK(sigqueue(getpid(), SIGRTMIN + 1 + i % 2, (union sigval){.sival_int = 100 + i}) == 0);
    for (int i = 0; i < 3; i++) CHECK(pthread_sigqueue(thread, SIGRTMIN + 5, (union sigval){.sival_int = 300 + i}) == 0);
    CHECK(pthread_kill(thread, SIGUSR2) == 0);
    pid_t child = fork();
    if (child == 0) _exit(42);
    siginfo_t info;
    CHECK(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) == 0); /* stays a zombie; SIGCHLD is pending */
    ready_and_wait();
    all_sent = 1;
    sigset_t now;
    CHECK(sigpending(&now) == 0);
    CHECK(sigismember(&now, SIGUSR1) && sigismember(&now, SIGCHLD));
    CHECK(sigismember(&now, SIGRTMIN + 1) && sigismember(&now, SIGRTMIN + 2));
    CHECK(!sigismember(&now, SIGTERM) && !sigismember(&now, SIGRTMIN + 3));
    struct timespec none = {0, 0};
    sigset_t one;
    for (int kind = 1; kind <= 2; kind++) {
        sigemptyset(&one);
        sigaddset(&one, SIGRTMIN + kind);
        for (int i = 0; i < 4; i++) {
            CHECK_EQ(take(&one, &info, &none), SIGRTMIN + kind);
            CHECK_EQ(info.si_value.sival_int, 100 + 2 * i + kind - 1);
            CHECK_EQ(info.si_code, SI_QUEUE);
            CHECK_EQ(info.si_pid, getpid());
            CHECK_EQ(info.si_uid, getuid());
        }
        CHECK_EQ(take(&one, &info, &none), -1);
    }
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    CHECK_EQ(take(&one, &info, &none), SIGUSR1);
    CHECK_EQ(info.si_code, SI_USER);
    CHECK_EQ(info.si_pid, getpid());
    CHECK_EQ(take(&one, &info, &none), -1);
    sigemptyset(&one);
    sigaddset(&one, SIGCHLD);
    CHECK_EQ(take(&one, &info, &none), SIGCHLD);
    CHECK_EQ(info.si_pid, child);
    CHECK_EQ(info.si_status, 42);
    CHECK_EQ(info.si_code, CLD_EXITED);
    CHECK_EQ(waitpid(child, NULL, 0), child);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* The checkpoint finds the program in sigsuspend: the mask that the call put aside must come back too. */
static void suspended(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    sigset_t blocked, waiting, now;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGHUP);
    CHECK(sigprocmask(SIG_SETMASK, &blocked, NULL) == 0);
    pid_t parent = getpid();
    pid_t child = fork();
    if (child == 0) {
        wait_go();
        sleep_ms(50);
        CHECK(kill(parent, SIGUSR1) == 0);
        _exit(0);
    }
    sigemptyset(&waiting);
    sigaddset(&waiting, SIGTERM);
    say("ready\n");
    CHECK(sigsuspend(&waiting) == -1 && errno == EINTR);
    CHECK_EQ(seen[SIGUSR1], 1);
    CHECK(access("go", F_OK) == 0);
    CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0);
    CHECK(sigismember(&now, SIGUSR1) && sigismember(&now, SIGHUP) && !sigismember(&now, SIGTERM));
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* ppoll, pselect and epoll_pwait put a mask aside as well. */
#include <poll.h>
static void polling_with_mask(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    sigset_t blocked, waiting, now;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    CHECK(sigprocmask(SIG_SETMASK, &blocked, NULL) == 0);
    pid_t parent = getpid();
    pid_t child = fork();
    if (child == 0) {
        wait_go();
        sleep_ms(50);
        CHECK(kill(parent, SIGUSR1) == 0);
        _exit(0);
    }
    sigemptyset(&waiting);
    say("ready\n");
    CHECK(ppoll(NULL, 0, NULL, &waiting) == -1 && errno == EINTR);
    CHECK_EQ(seen[SIGUSR1], 1);
    CHECK(access("go", F_OK) == 0);
    CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0);
    CHECK(sigismember(&now, SIGUSR1));
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void paused(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    pid_t parent = getpid();
    pid_t child = fork();
    if (child == 0) {
        wait_go();
        for (int i = 0; i < 200 && kill(parent, SIGUSR1) == 0; i++) sleep_ms(20);
        _exit(0);
    }
    say("ready\n");
    CHECK(pause() == -1 && errno == EINTR);
    CHECK(seen[SIGUSR1] >= 1);
    CHECK(access("go", F_OK) == 0);
    CHECK(kill(child, SIGKILL) == 0);
    while (waitpid(child, NULL, 0) != child) {}
}

static void signal_descriptor(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 3);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 9}) == 0);
    ready_and_wait();
    struct signalfd_siginfo info;
    CHECK_EQ(read(fd, &info, sizeof info), sizeof info);
    CHECK_EQ(info.ssi_signo, SIGUSR1);
    CHECK_EQ(info.ssi_pid, getpid());
    CHECK_EQ(read(fd, &info, sizeof info), sizeof info);
    CHECK_EQ(info.ssi_signo, SIGRTMIN + 3);
    CHECK_EQ(info.ssi_int, 9);
    CHECK(read(fd, &info, sizeof info) == -1 && errno == EAGAIN);
    CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    CHECK(raise(SIGUSR1) == 0);
    CHECK_EQ(read(fd, &info, sizeof info), sizeof info);
}

/* The checkpoint finds the program in a handler, on the alternate stack. */
static volatile int depth;
static char *stack_room;
static void nested(int signal, siginfo_t *info, void *context) {
    (void)signal;
    char here;
    CHECK(&here > stack_room && &here < stack_room + 65536);
    CHECK_EQ(info->si_value.sival_int, 1234);
    ucontext_t *frame = context;
    CHECK(sigismember(&frame->uc_sigmask, SIGHUP));
    depth = 1;
    ready_and_wait();
    stack_t now;
    CHECK(sigaltstack(NULL, &now) == 0);
    CHECK(now.ss_flags & SS_ONSTACK);
    sigset_t mask;
    CHECK(sigprocmask(SIG_SETMASK, NULL, &mask) == 0);
    CHECK(sigismember(&mask, SIGRTMIN + 4) && sigismember(&mask, SIGHUP));
    depth = 2;
}
static void in_handler(void) {
    stack_room = malloc(65536);
    stack_t stack = {.ss_sp = stack_room, .ss_size = 65536};
    CHECK(sigaltstack(&stack, NULL) == 0);
    struct sigaction action = {.sa_sigaction = nested, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    CHECK(sigaction(SIGRTMIN + 4, &action, NULL) == 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    double value = 3.25;
    CHECK(sigqueue(getpid(), SIGRTMIN + 4, (union sigval){.sival_int = 1234}) == 0);
    CHECK_EQ(depth, 2);
    CHECK(value == 3.25);
    stack_t now;
    CHECK(sigaltstack(NULL, &now) == 0);
    CHECK_EQ(now.ss_flags, 0);
    sigset_t mask;
    CHECK(sigprocmask(SIG_SETMASK, NULL, &mask) == 0);
    CHECK(!sigismember(&mask, SIGRTMIN + 4) && sigismember(&mask, SIGHUP));
}

/* A parent that counts signals of its child: none may be lost or doubled. For the test of invisible stops. */
static void counted(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigaddset(&set, SIGRTMIN + 1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    pid_t parent = getpid();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int sent = 0;
        bool last = false;
        while (!last) {
            last = access("go", F_OK) == 0;
            while (sigqueue(parent, SIGRTMIN, (union sigval){.sival_int = sent}) != 0) {
                CHECK_EQ(errno, EAGAIN);
                sleep_ms(1);
            }
            sent++;
            if (sent % 16 == 0) sleep_ms(1);
        }
        CHECK(sigqueue(parent, SIGRTMIN + 1, (union sigval){.sival_int = sent}) == 0);
        _exit(0);
    }
    say("ready\n");
    int got = 0, end = -1;
    while (end != got) {
        siginfo_t info;
        int signal = sigwaitinfo(&set, &info);
        CHECK(signal > 0);
        CHECK_EQ(info.si_pid, child);
        if (signal == SIGRTMIN + 1)
            end = info.si_value.sival_int;
        else
            CHECK_EQ(info.si_value.sival_int, got++);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static const struct check_case cases[] = {
    {"dispositions", dispositions},
    {"ignored", ignored},
    {"pending", pending},
    {"suspended", suspended},
    {"polling_with_mask", polling_with_mask},
    {"paused", paused},
    {"signal_descriptor", signal_descriptor},
    {"in_handler", in_handler},
    {"counted", counted},
};

int main(int argc, char **argv) {
    return RUN_CASE(cases, argc, argv);
}
