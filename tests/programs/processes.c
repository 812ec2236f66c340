/* Process trees, and what belongs to each process. */
#include "check.h"
#include <sys/personality.h>
#include <sys/resource.h>

static void expect_end(pid_t child, int wanted) {
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, wanted);
}

struct ids {
    pid_t pid, session, group;
};
static struct ids own_ids(void) {
    return (struct ids){getpid(), getsid(0), getpgrp()};
}
static struct ids outside;
static void expect_ids(struct ids then, pid_t parent) {
    struct ids now = own_ids();
    CHECK_EQ(now.pid, then.pid);
    /* What lies outside of the tree belongs to whoever started it, which is another one after a restart without
     * namespaces: the tests that do so set this variable. */
    bool strict = getenv("STASIS_TEST_OUTSIDE_MAY_CHANGE") == NULL;
    if (strict || then.session != outside.session) CHECK_EQ(now.session, then.session);
    if (strict || then.group != outside.group) CHECK_EQ(now.group, then.group);
    if (parent > 0) CHECK_EQ(getppid(), parent);
}

/* Shared between all processes of a case: how many have come to their place. */
static volatile int *arrived;
static void share(void) {
    arrived = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(arrived != MAP_FAILED);
}
static void arrive(void) {
    __atomic_add_fetch(arrived, 1, __ATOMIC_SEQ_CST);
}
static void wait_arrived(int number) {
    while (__atomic_load_n(arrived, __ATOMIC_SEQ_CST) < number) sleep_ms(2);
}

static void grow(int level) {
    if (level == 0) return;
    pid_t children[3];
    pid_t parent = getpid();
    for (int i = 0; i < 3; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            grow(level - 1);
            if (level > 1) _exit(i);
            struct ids ids = own_ids();
            arrive();
            wait_go();
            expect_ids(ids, parent);
            _exit(i);
        }
    }
    for (int i = 0; i < 3; i++) expect_end(children[i], i << 8);
}
static void tree_of(int levels, int leaves) {
    share();
    pid_t top = fork();
    if (top == 0) {
        grow(levels);
        _exit(5);
    }
    wait_arrived(leaves);
    struct ids ids = own_ids();
    ready_and_wait();
    expect_ids(ids, 0);
    expect_end(top, 5 << 8);
}

static void tree(void) {
    tree_of(3, 27);
}
static void small_tree(void) {
    tree_of(1, 3);
}

static void sessions(void) {
    share();
    pid_t first = fork();
    if (first == 0) { /* a session with two groups */
        CHECK(setsid() == getpid());
        pid_t parent = getpid();
        pid_t grandchildren[2];
        for (int i = 0; i < 2; i++) {
            grandchildren[i] = fork();
            if (grandchildren[i] == 0) {
                CHECK(setpgid(0, 0) == 0);
                pid_t member = fork();
                if (member == 0) { /* in the group of its parent */
                    struct ids ids = own_ids();
                    CHECK(ids.group != ids.pid);
                    arrive();
                    wait_go();
                    expect_ids(ids, 0);
                    _exit(0);
                }
                struct ids ids = own_ids();
                arrive();
                wait_go();
                expect_ids(ids, parent);
                expect_end(member, 0);
                _exit(0);
            }
        }
        struct ids ids = own_ids();
        arrive();
        wait_go();
        expect_ids(ids, 0);
        expect_end(grandchildren[0], 0);
        expect_end(grandchildren[1], 0);
        _exit(0);
    }
    pid_t second = fork();
    if (second == 0) { /* a group of its own in the old session, led by a child's child */
        CHECK(setpgid(0, 0) == 0);
        pid_t child = fork();
        if (child == 0) {
            CHECK(setpgid(0, 0) == 0);
            struct ids ids = own_ids();
            arrive();
            wait_go();
            expect_ids(ids, 0);
            _exit(0);
        }
        struct ids ids = own_ids();
        arrive();
        wait_go();
        expect_ids(ids, 0);
        expect_end(child, 0);
        _exit(0);
    }
    wait_arrived(7);
    struct ids ids = own_ids();
    ready_and_wait();
    expect_ids(ids, 0);
    expect_end(first, 0);
    expect_end(second, 0);
}

/* The leader of a session and the leader of a group are gone, their followers live. */
static void dead_leaders(void) {
    share();
    pid_t leader = fork();
    if (leader == 0) {
        CHECK(setsid() == getpid());
        if (fork() == 0) {
            struct ids ids = own_ids();
            arrive();
            while (getppid() == ids.session) sleep_ms(2);
            arrive();
            wait_go();
            expect_ids(ids, 0);
            __atomic_store_n(&arrived[1], 1, __ATOMIC_SEQ_CST);
            _exit(0);
        }
        wait_arrived(1);
        _exit(0);
    }
    expect_end(leader, 0);
    wait_arrived(2);
    pid_t group = fork();
    if (group == 0) {
        for (;;) pause();
    }
    setpgid(group, group);
    pid_t follower = fork();
    if (follower == 0) {
        CHECK(setpgid(0, group) == 0);
        arrive();
        while (kill(group, 0) == 0) sleep_ms(2);
        struct ids ids = own_ids();
        arrive();
        wait_go();
        expect_ids(ids, 0);
        _exit(0);
    }
    wait_arrived(3);
    CHECK(kill(group, SIGKILL) == 0);
    expect_end(group, SIGKILL);
    wait_arrived(4);
    ready_and_wait();
    expect_end(follower, 0);
    while (__atomic_load_n(&arrived[1], __ATOMIC_SEQ_CST) == 0) sleep_ms(2);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
}

static void zombies(void) {
    static const int statuses[] = {0, 1, 7, 255};
    pid_t children[6];
    for (int i = 0; i < 6; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            if (i < 4) _exit(statuses[i]);
            raise(i == 4 ? SIGTERM : SIGKILL);
        }
        siginfo_t info;
        CHECK(waitid(P_PID, (id_t)children[i], &info, WEXITED | WNOWAIT) == 0);
    }
    ready_and_wait();
    for (int i = 0; i < 6; i++) {
        siginfo_t info;
        CHECK(waitid(P_PID, (id_t)children[i], &info, WEXITED | WNOWAIT | WNOHANG) == 0);
        CHECK_EQ(info.si_pid, children[i]);
        CHECK_EQ(info.si_uid, getuid());
        if (i < 4) {
            CHECK_EQ(info.si_code, CLD_EXITED);
            CHECK_EQ(info.si_status, statuses[i]);
            expect_end(children[i], statuses[i] << 8);
        } else {
            CHECK_EQ(info.si_status, i == 4 ? SIGTERM : SIGKILL);
            expect_end(children[i], i == 4 ? SIGTERM : SIGKILL);
        }
    }
    CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
}

static char state_of(pid_t pid) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    size_t length = slurp(path, text, sizeof text - 1);
    text[length] = 0;
    return strrchr(text, ')')[2];
}
static void stopped(void) {
    pid_t reported = fork();
    if (reported == 0) {
        raise(SIGSTOP);
        _exit(3);
    }
    pid_t unreported = fork();
    if (unreported == 0) {
        raise(SIGTSTP);
        _exit(4);
    }
    int status;
    CHECK(waitpid(reported, &status, WUNTRACED) == reported && WIFSTOPPED(status));
    while (state_of(unreported) != 'T') sleep_ms(2);
    ready_and_wait();
    CHECK_EQ(state_of(reported), 'T');
    CHECK_EQ(state_of(unreported), 'T');
    CHECK(waitpid(unreported, &status, WUNTRACED | WNOHANG) == unreported);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTSTP);
    CHECK_EQ(waitpid(reported, &status, WUNTRACED | WNOHANG), 0);
    CHECK(kill(reported, SIGCONT) == 0 && kill(unreported, SIGCONT) == 0);
    expect_end(reported, 3 << 8);
    expect_end(unreported, 4 << 8);
}

/* Children of a process that is gone belong to somebody else, and live on. */
static void orphans(void) {
    share();
    pid_t middle = fork();
    if (middle == 0) {
        pid_t parent = getpid();
        for (int i = 0; i < 3; i++) {
            if (fork() == 0) {
                while (getppid() == parent) sleep_ms(2);
                struct ids ids = own_ids();
                arrive();
                wait_go();
                expect_ids(ids, 0);
                arrive();
                _exit(0);
            }
        }
        _exit(0);
    }
    expect_end(middle, 0);
    wait_arrived(3);
    ready_and_wait();
    wait_arrived(6);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
}

/* A subreaper adopts them itself. */
static void subreaper(void) {
    share();
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pid_t own = getpid();
    pid_t middle = fork();
    if (middle == 0) {
        pid_t parent = getpid();
        pid_t child = fork();
        if (child == 0) {
            while (getppid() == parent) sleep_ms(2);
            CHECK_EQ(getppid(), own);
            arrive();
            wait_go();
            CHECK_EQ(getppid(), own);
            _exit(9);
        }
        _exit(0);
    }
    expect_end(middle, 0);
    wait_arrived(1);
    ready_and_wait();
    int value = 0, status;
    CHECK(prctl(PR_GET_CHILD_SUBREAPER, &value) == 0);
    CHECK_EQ(value, 1);
    CHECK(wait(&status) > 0);
    CHECK_EQ(status, 9 << 8);
}

static char before[1 << 16], after[1 << 16];
static void expect_same_text(const char *path, size_t length) {
    size_t now = slurp(path, after, sizeof after - 1);
    after[now] = 0;
    if (now != length || memcmp(before, after, length) != 0) {
        say("FAILED: %s is now \"%.200s\"\n", path, after);
        _exit(99);
    }
}

static void attributes(void) {
    CHECK(mkdir("inner", 0700) == 0 || errno == EEXIST);
    CHECK(chdir("inner") == 0);
    char *directory = getcwd(NULL, 0), *now;
    umask(0137);
    struct rlimit limits[RLIM_NLIMITS], limit;
    CHECK(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 4096000}) == 0 || setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}) == 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &(struct rlimit){200, 900}) == 0);
    CHECK(setrlimit(RLIMIT_STACK, &(struct rlimit){6 << 20, 32 << 20}) == 0);
    CHECK(setrlimit(RLIMIT_FSIZE, &(struct rlimit){1 << 30, RLIM_INFINITY}) == 0);
    for (int i = 0; i < (int)RLIM_NLIMITS; i++) CHECK(getrlimit((__rlimit_resource_t)i, &limits[i]) == 0);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0);
    CHECK(prctl(PR_SET_TIMERSLACK, 77777, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_NAME, "an odd) name") == 0);
    CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0);
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    CHECK(fd >= 0 && write(fd, "321", 3) == 3);
    close(fd);
    fd = open("/proc/self/coredump_filter", O_WRONLY);
    CHECK(fd >= 0 && write(fd, "0x13", 4) == 4);
    close(fd);
    CHECK(personality(ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT) != -1);
    int niceness = getpriority(PRIO_PROCESS, 0) + 7;
    if (niceness > 19) niceness = 19;
    CHECK(setpriority(PRIO_PROCESS, 0, niceness) == 0);
    CHECK(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6) == 0);
    char executable[4096] = {0}, executable_now[4096] = {0};
    CHECK(readlink("/proc/self/exe", executable, sizeof executable - 1) > 0);
    struct sched_param parameter = {0};
    CHECK(sched_setscheduler(0, SCHED_BATCH, &parameter) == 0);
    sleep_ms(1);
    CHECK(chdir("..") == 0);
    say("ready\n");
    while (access("go", F_OK) != 0) {
        CHECK(chdir("inner") == 0);
        for (int i = 0; i < 20; i++) sleep_ms(2);
        CHECK(chdir("..") == 0);
    }
    CHECK(chdir("inner") == 0);
    now = getcwd(NULL, 0);
    CHECK(now != NULL && strcmp(directory, now) == 0);
    CHECK_EQ(umask(0), 0137);
    for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
        CHECK(getrlimit((__rlimit_resource_t)i, &limit) == 0);
        if (limit.rlim_cur != limits[i].rlim_cur || limit.rlim_max != limits[i].rlim_max) {
            say("FAILED: limit %d is %llx of %llx, was %llx of %llx\n", i, (unsigned long long)limit.rlim_cur,
                (unsigned long long)limit.rlim_max, (unsigned long long)limits[i].rlim_cur,
                (unsigned long long)limits[i].rlim_max);
            _exit(99);
        }
    }
    int value = 0;
    CHECK_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
    CHECK(prctl(PR_GET_PDEATHSIG, &value) == 0);
    CHECK_EQ(value, SIGUSR2);
    CHECK_EQ(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 77777);
    CHECK_EQ(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
    CHECK_EQ(prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0), 1);
    CHECK_EQ(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 1);
    char name[17] = {0};
    CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "an odd) name") == 0);
    before[0] = 0;
    memcpy(before, "321\n", 4);
    expect_same_text("/proc/self/oom_score_adj", 4);
    memcpy(before, "00000013\n", 9);
    expect_same_text("/proc/self/coredump_filter", 9);
    CHECK_EQ(personality(0xffffffff), ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT);
    CHECK_EQ(getpriority(PRIO_PROCESS, 0), niceness);
    CHECK_EQ(syscall(SYS_ioprio_get, 1, 0), 2 << 13 | 6);
    CHECK(readlink("/proc/self/exe", executable_now, sizeof executable_now - 1) > 0);
    if (strcmp(executable, executable_now) != 0) {
        say("FAILED: /proc/self/exe is %.200s, was %.200s\n", executable_now, executable);
        _exit(99);
    }
    CHECK_EQ(sched_getscheduler(0), SCHED_BATCH);
}

/* What ps shows. */
static char cmdline[1 << 16], environment[1 << 16], auxiliary[1 << 12];
static void shown(void) {
    setenv("LATER", "not in the initial environment", 1);
    size_t cmdline_length = slurp("/proc/self/cmdline", cmdline, sizeof cmdline);
    size_t environment_length = slurp("/proc/self/environ", environment, sizeof environment);
    size_t auxiliary_length = slurp("/proc/self/auxv", auxiliary, sizeof auxiliary);
    CHECK(cmdline_length > 0 && environment_length > 0);
    ready_and_wait();
    memcpy(before, cmdline, cmdline_length);
    expect_same_text("/proc/self/cmdline", cmdline_length);
    memcpy(before, environment, environment_length);
    expect_same_text("/proc/self/environ", environment_length);
    memcpy(before, auxiliary, auxiliary_length);
    expect_same_text("/proc/self/auxv", auxiliary_length);
    CHECK(strcmp(getenv("LATER"), "not in the initial environment") == 0);
}

static void credentials(void) {
    uid_t uid[3], uid_now[3];
    gid_t gid[3], gid_now[3];
    gid_t groups[1024], groups_now[1024];
    CHECK(getresuid(&uid[0], &uid[1], &uid[2]) == 0 && getresgid(&gid[0], &gid[1], &gid[2]) == 0);
    int count = getgroups(1024, groups);
    ready_and_wait();
    CHECK(getresuid(&uid_now[0], &uid_now[1], &uid_now[2]) == 0 && getresgid(&gid_now[0], &gid_now[1], &gid_now[2]) == 0);
    CHECK(memcmp(uid, uid_now, sizeof uid) == 0 && memcmp(gid, gid_now, sizeof gid) == 0);
    CHECK_EQ(getgroups(1024, groups_now), count);
    CHECK(memcmp(groups, groups_now, (size_t)count * sizeof groups[0]) == 0);
}

/* A parent that hangs in vfork, and its child. */
static void vforked(void) {
    pid_t own = getpid();
    volatile int touched = 0;
    pid_t child = vfork();
    if (child == 0) {
        say("ready\n");
        wait_go();
        touched = 17;
        _exit(getppid() == own ? 6 : 1);
    }
    CHECK_EQ(touched, 17);
    expect_end(child, 6 << 8);
}

/* Forks and ends children all the time: the freeze must catch up with it. */
static void forking_madly(void) {
    say("ready\n");
    int rounds = 0;
    while (access("go", F_OK) != 0 || rounds < 20) {
        pid_t children[8];
        for (int i = 0; i < 8; i++) {
            children[i] = fork();
            CHECK(children[i] >= 0);
            if (children[i] == 0) {
                if (i % 2 == 0) {
                    pid_t inner = fork();
                    if (inner == 0) _exit(5);
                    expect_end(inner, 5 << 8);
                }
                _exit(i);
            }
        }
        for (int i = 0; i < 8; i++) expect_end(children[i], i << 8);
        rounds++;
    }
}

static void *short_lived(void *argument) {
    return argument;
}
static void threading_madly(void) {
    say("ready\n");
    for (long rounds = 0; access("go", F_OK) != 0 || rounds < 20; rounds++) {
        pthread_t threads[8];
        for (long i = 0; i < 8; i++) CHECK(pthread_create(&threads[i], NULL, short_lived, (void *)(rounds + i)) == 0);
        for (long i = 0; i < 8; i++) {
            void *result;
            CHECK(pthread_join(threads[i], &result) == 0);
            CHECK_EQ((long)result, rounds + i);
        }
    }
}

/* Runners that live on only in their children: each forks and ends at once, and who comes next is an orphan. One that a
 * checkpoint has not seen is missing in the end. */
enum { RUNNERS = 6 };
static void run_on(int lives) {
    while (access("go", F_OK) != 0 || lives < 20) {
        usleep(200);
        pid_t next = fork();
        CHECK(next >= 0);
        if (next > 0) _exit(0);
        lives++;
    }
    arrive();
    _exit(0);
}
static void passing_on(void) {
    share();
    for (int i = 0; i < RUNNERS; i++) {
        pid_t first = fork();
        CHECK(first >= 0);
        if (first == 0) run_on(0);
        expect_end(first, 0);
    }
    ready_and_wait();
    wait_arrived(RUNNERS);
}

/* Executes itself again and again, counting in its arguments. */
static int executing_madly(int argc, char **argv) {
    char number[16];
    int round = argc > 2 ? atoi(argv[2]) : 0;
    if (round == 0) say("ready\n");
    if (round >= 50 && access("go", F_OK) == 0) {
        say("ok\n");
        return 0;
    }
    snprintf(number, sizeof number, "%d", round + 1);
    execl("/proc/self/exe", argv[0], argv[1], number, NULL);
    CHECK(false);
    return 1;
}

/* A pid counts on: new children after the restart get new numbers, not those in use. */
static void new_children(void) {
    share();
    pid_t old[10];
    for (int i = 0; i < 10; i++) {
        old[i] = fork();
        if (old[i] == 0) {
            wait_go();
            wait_arrived(1);
            _exit(0);
        }
    }
    ready_and_wait();
    for (int i = 0; i < 50; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) _exit(0);
        for (int k = 0; k < 10; k++) CHECK(child != old[k]);
        CHECK(child != getpid());
        expect_end(child, 0);
    }
    arrive();
    for (int i = 0; i < 10; i++) expect_end(old[i], 0);
}

/* What few programs set. */
static void *stampless(void *argument) {
    int value = 0;
    CHECK(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0) == 0);
    *(volatile int *)argument = 1;
    while (access("go", F_OK) != 0) usleep(5000);
    CHECK(prctl(PR_GET_TSC, &value, 0, 0, 0) == 0);
    CHECK_EQ(value, PR_TSC_SIGSEGV);
    return NULL;
}

static void settings(void) {
    enum { BIND = 2, REGISTER = 16, BARRIER = 8, STATIC = 1 << 15 };
    volatile int ready = 0;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, stampless, (void *)&ready) == 0);
    while (!ready) usleep(1000);
    unsigned long nodes = 1, seen[16] = {0};
    bool policy = syscall(SYS_set_mempolicy, BIND | STATIC, &nodes, 65) == 0;
    bool barrier = syscall(SYS_membarrier, REGISTER, 0, 0) == 0;
    int bypass = prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0);
    int speculation = prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0);
    (void)bypass;
    int no_code = prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0);
    ready_and_wait();
    CHECK(pthread_join(thread, NULL) == 0);
    if (policy) {
        int mode = 0;
        CHECK(syscall(SYS_get_mempolicy, &mode, seen, 1024, NULL, 0) == 0);
        CHECK_EQ(mode, BIND | STATIC);
        CHECK_EQ(seen[0], 1);
    }
    if (barrier) CHECK(syscall(SYS_membarrier, BARRIER, 0, 0) == 0);
    CHECK_EQ(prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0), speculation);
    if (no_code == 0) {
        CHECK_EQ(prctl(66 /* PR_GET_MDWE */, 0, 0, 0, 0), 1);
        CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    }
}

/* All memory locked, also what is still to come. */
static void locked_to_come(void) {
    bool locked = mlockall(MCL_CURRENT | MCL_FUTURE) == 0;
    ready_and_wait();
    if (!locked) return;
    char *area = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    unsigned char resident[2] = {0};
    CHECK(mincore(area, 8192, resident) == 0);
    CHECK(resident[0] == 1 && resident[1] == 1);
}

static const struct check_case cases[] = {
    {"settings", settings},
    {"locked_to_come", locked_to_come},
    {"tree", tree},
    {"small_tree", small_tree},
    {"sessions", sessions},
    {"dead_leaders", dead_leaders},
    {"zombies", zombies},
    {"stopped", stopped},
    {"orphans", orphans},
    {"subreaper", subreaper},
    {"attributes", attributes},
    {"shown", shown},
    {"credentials", credentials},
    {"vforked", vforked},
    {"forking_madly", forking_madly},
    {"threading_madly", threading_madly},
    {"new_children", new_children},
    {"passing_on", passing_on},
};

int main(int argc, char **argv) {
    outside = own_ids();
    if (argc > 1 && strcmp(argv[1], "executing_madly") == 0) return executing_madly(argc, argv);
    return RUN_CASE(cases, argc, argv);
}
