/* System V IPC and POSIX message queues. What a case makes it notes in the file `objects`, and removes when all is well; `clean` removes
 * what a killed run has left behind. */
#include "check.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

static void note(const char *kind, long id, const char *name) {
    int fd = open("objects", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    CHECK(fd >= 0);
    char line[128];
    int length = snprintf(line, sizeof line, "%s %ld %s\n", kind, id, name);
    CHECK(write(fd, line, (size_t)length) == length);
    close(fd);
}

/* A key that nobody has. */
static key_t next_key(void) {
    static int count;
    return (key_t)((unsigned)getpid() << 8 | (unsigned)++count | 0x40000000);
}

static int make_segment(key_t key, size_t size, int mode) {
    int id = shmget(key, size, IPC_CREAT | IPC_EXCL | mode);
    CHECK(id >= 0);
    note("shm", id, "-");
    return id;
}

static struct shmid_ds segment(int id) {
    struct shmid_ds state;
    CHECK(shmctl(id, IPC_STAT, &state) == 0);
    return state;
}

static void clean(void) {
    FILE *file = fopen("objects", "r");
    if (!file) return;
    char kind[8], name[100];
    long id;
    while (fscanf(file, "%7s %ld %99s", kind, &id, name) == 3) {
        if (strcmp(kind, "shm") == 0) shmctl((int)id, IPC_RMID, NULL);
        if (strcmp(kind, "sem") == 0) semctl((int)id, 0, IPC_RMID);
        if (strcmp(kind, "msg") == 0) msgctl((int)id, IPC_RMID, NULL);
        if (strcmp(kind, "mq") == 0) mq_unlink(name);
    }
    fclose(file);
    unlink("objects");
}

/* Starts a child that does `work` when it is told and ends with 0. */
static int told[2];
static pid_t child(void (*work)(void)) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char byte;
        CHECK(read(told[0], &byte, 1) == 1);
        work();
        _exit(0);
    }
    return pid;
}

static void tell(pid_t pid) {
    int status;
    CHECK(write(told[1], "x", 1) == 1);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_EQ(status, 0);
}

static char *shared_by_two;
static size_t const SIZE = 16 * 4096;

static void in_child(void) {
    expect_filled(shared_by_two, 4096, 7);
    strcpy(shared_by_two + 8192, "from the child");
}

static void segments(void) {
    CHECK(pipe(told) == 0);
    key_t key = next_key(), other_key = next_key();
    int keyed = make_segment(key, SIZE, 0640);
    int alone = make_segment(other_key, SIZE - 100, 0600);
    int leaving = make_segment(IPC_PRIVATE, 4096, 0600);
    shared_by_two = shmat(keyed, NULL, 0);
    char *again = shmat(keyed, (void *)0x7000000000, SHM_RDONLY);
    CHECK(again == (void *)0x7000000000);
    fill(shared_by_two, 4096, 7);
    char *lonely = shmat(alone, NULL, 0);
    fill(lonely + 4096, 4096, 8);
    strcpy(lonely + SIZE - 4096 + 20, "on the last page");
    CHECK(shmdt(lonely) == 0);
    char *last = shmat(leaving, NULL, 0);
    strcpy(last, "leaving");
    CHECK(shmctl(leaving, IPC_RMID, NULL) == 0);
    pid_t pid = child(in_child);
    CHECK_EQ(segment(keyed).shm_nattch, 4);
    CHECK_EQ(segment(leaving).shm_nattch, 2);
    ready_and_wait();
    struct shmid_ds state = segment(keyed);
    CHECK_EQ(state.shm_nattch, 4);
    CHECK_EQ(state.shm_perm.__key, key);
    CHECK_EQ(state.shm_perm.mode, 0640);
    CHECK_EQ(state.shm_perm.uid, getuid());
    CHECK_EQ(state.shm_segsz, SIZE);
    CHECK_EQ(shmget(key, 0, 0), keyed);
    CHECK(shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0600) == -1 && errno == EEXIST);
    tell(pid);
    CHECK(strcmp(again + 8192, "from the child") == 0);
    CHECK(mprotect(again, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    expect_zero(again + 3 * 4096, SIZE - 3 * 4096);
    CHECK_EQ(segment(keyed).shm_nattch, 2);
    CHECK_EQ(shmget(other_key, 0, 0), alone);
    CHECK_EQ(segment(alone).shm_nattch, 0);
    CHECK_EQ(segment(alone).shm_segsz, SIZE - 100);
    lonely = shmat(alone, NULL, 0);
    expect_zero(lonely, 4096);
    expect_filled(lonely + 4096, 4096, 8);
    CHECK(strcmp(lonely + SIZE - 4096 + 20, "on the last page") == 0);
    CHECK_EQ(segment(leaving).shm_nattch, 1);
    CHECK(segment(leaving).shm_perm.mode & SHM_DEST);
    char *once_more = shmat(leaving, NULL, 0);
    CHECK(strcmp(once_more, "leaving") == 0 && shmdt(once_more) == 0);
    CHECK(shmdt(last) == 0);
    struct shmid_ds gone;
    CHECK(shmctl(leaving, IPC_STAT, &gone) == -1);
    CHECK(shmctl(keyed, IPC_RMID, NULL) == 0 && shmctl(alone, IPC_RMID, NULL) == 0);
    int next = make_segment(IPC_PRIVATE, 4096, 0600);
    CHECK(next != keyed && next != alone && next != leaving);
    CHECK(shmctl(next, IPC_RMID, NULL) == 0);
}

/* What is left of attachments when parts were unmapped, moved, and protected. */
static void parts(void) {
    int id = make_segment(IPC_PRIVATE, SIZE, 0600);
    char *whole = shmat(id, NULL, 0), *cut = shmat(id, NULL, 0);
    for (size_t at = 0; at < SIZE; at += 4096) fill(whole + at, 4096, at);
    char *target = mmap(NULL, 4 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(munmap(cut, 4096) == 0 && munmap(cut + 5 * 4096, 4096) == 0);
    CHECK(mremap(cut + 2 * 4096, 2 * 4096, 2 * 4096, MREMAP_MAYMOVE | MREMAP_FIXED, target + 4096) == target + 4096);
    CHECK(mprotect(whole + 4096, 4096, PROT_READ) == 0);
    unsigned long attached = segment(id).shm_nattch;
    ready_and_wait();
    CHECK_EQ(segment(id).shm_nattch, attached);
    for (size_t at = 0; at < SIZE; at += 4096) expect_filled(whole + at, 4096, at);
    expect_filled(cut + 4096, 4096, 4096);
    expect_filled(cut + 4 * 4096, 4096, 4 * 4096);
    expect_filled(cut + SIZE - 4096, 4096, SIZE - 4096);
    expect_filled(target + 4096, 4096, 2 * 4096);
    whole[2 * 4096] = 'x';
    CHECK(target[4096] == 'x');
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    /* Not mapped, or not to be written, as the kernel sees it. */
    CHECK(write(pipes[1], cut, 1) == -1 && errno == EFAULT);
    CHECK(write(pipes[1], cut + 5 * 4096, 1) == -1 && errno == EFAULT);
    CHECK(write(pipes[1], cut + 2 * 4096, 1) == -1 && errno == EFAULT);
    CHECK(write(pipes[1], "a", 1) == 1 && read(pipes[0], whole + 4096, 1) == -1 && errno == EFAULT);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static int watched;

/* How often it is attached does not change for anybody who looks, while it is saved from twins. */
static void attachments(void) {
    size_t size = 32 << 20;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(memory, size, 1);
    watched = make_segment(IPC_PRIVATE, SIZE, 0600);
    char *attached = shmat(watched, NULL, 0);
    fill(attached, SIZE, 2);
    say("ready\n");
    while (access("go", F_OK) != 0) {
        for (int i = 0; i < 1000; i++) CHECK_EQ(segment(watched).shm_nattch, 1);
    }
    expect_filled(memory, size, 1);
    expect_filled(attached, SIZE, 2);
    CHECK(shmctl(watched, IPC_RMID, NULL) == 0);
}

/* Written to all the time by two processes: what one has seen of the other's before the checkpoint is there after it. */
static volatile uint64_t *counters;

static void count_too(void) {
    while (counters[2] == 0) {
        counters[1] = counters[0];
        __sync_synchronize();
    }
}

static void live(void) {
    CHECK(pipe(told) == 0);
    int id = make_segment(IPC_PRIVATE, SIZE, 0600);
    counters = shmat(id, NULL, 0);
    pid_t pid = child(count_too);
    CHECK(write(told[1], "x", 1) == 1);
    say("ready\n");
    while (access("go", F_OK) != 0) {
        for (int i = 0; i < 10000; i++) {
            uint64_t next = counters[0] + 1;
            counters[0] = next;
            __sync_synchronize();
            CHECK(counters[1] <= next);
            CHECK_EQ(counters[0], next);
        }
    }
    uint64_t reached = counters[0];
    while (counters[1] != reached) sched_yield();
    counters[2] = 1;
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

/* Made by a child that has ended, and attached by nobody. */
static void make_and_end(void) {
    int id = make_segment(IPC_PRIVATE, SIZE, 0600);
    char *attached = shmat(id, NULL, 0);
    strcpy(attached, "left by a child");
    CHECK(shmdt(attached) == 0);
    CHECK(write(told[1], &id, sizeof id) == sizeof id);
}

static void orphaned(void) {
    CHECK(pipe(told) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        make_and_end();
        _exit(0);
    }
    int status, id;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(read(told[0], &id, sizeof id) == sizeof id);
    ready_and_wait();
    char *attached = shmat(id, NULL, 0);
    CHECK(attached != (void *)-1);
    CHECK(strcmp(attached, "left by a child") == 0);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static int make_set(key_t key, int count, const unsigned short *values) {
    int id = semget(key, count, IPC_CREAT | IPC_EXCL | 0640);
    CHECK(id >= 0);
    note("sem", id, "-");
    CHECK(semctl(id, 0, SETALL, (union semun){.array = (unsigned short *)values}) == 0);
    return id;
}

static int change(int id, int number, int by, int flags) {
    struct sembuf operation = {(unsigned short)number, (short)by, (short)flags};
    return semop(id, &operation, 1);
}

static int value(int id, int number) {
    return semctl(id, number, GETVAL);
}

static int set;

static void change_second(void) {
    CHECK(change(set, 1, 3, 0) == 0);
}

static void end(void) {}

static void semaphores(void) {
    CHECK(pipe(told) == 0);
    key_t key = next_key();
    set = make_set(key, 5, (unsigned short[]){4, 0, 32767, 17, 1});
    pid_t pid = child(change_second);
    CHECK(write(told[1], "x", 1) == 1);
    while (value(set, 1) != 3) sleep_ms(1);
    int status;
    siginfo_t ended;
    CHECK(waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOWAIT) == 0);
    CHECK(change(set, 2, -1, 0) == 0 && change(set, 2, 1, 0) == 0);
    pid_t other = child(end);
    ready_and_wait();
    CHECK_EQ(semget(key, 0, 0), set);
    unsigned short values[5];
    CHECK(semctl(set, 0, GETALL, (union semun){.array = values}) == 0);
    CHECK(values[0] == 4 && values[1] == 3 && values[2] == 32767 && values[3] == 17 && values[4] == 1);
    struct semid_ds state;
    CHECK(semctl(set, 0, IPC_STAT, (union semun){.buf = &state}) == 0);
    CHECK_EQ(state.sem_nsems, 5);
    CHECK_EQ(state.sem_perm.mode, 0640);
    CHECK_EQ(state.sem_perm.__key, key);
    CHECK_EQ(semctl(set, 2, GETPID), getpid());
    tell(other);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(change(set, 0, -5, IPC_NOWAIT) == -1 && errno == EAGAIN);
    CHECK(semctl(set, 0, IPC_RMID) == 0);
}

/* Whoever waits for a semaphore waits on, with what is left of its time. */
static void *wait_for_first(void *unused) {
    (void)unused;
    CHECK(change(set, 0, -2, 0) == 0);
    return NULL;
}

static void *wait_for_second(void *unused) {
    (void)unused;
    struct sembuf operation = {1, -1, SEM_UNDO};
    struct timespec long_time = {1000, 0};
    CHECK(semtimedop(set, &operation, 1, &long_time) == 0);
    return NULL;
}

static void wait_for_zero(void) {
    CHECK(change(set, 2, 0, 0) == 0);
}

static void waiters(void) {
    CHECK(pipe(told) == 0);
    set = make_set(IPC_PRIVATE, 3, (unsigned short[]){1, 0, 1});
    pthread_t first, second;
    CHECK(pthread_create(&first, NULL, wait_for_first, NULL) == 0);
    CHECK(pthread_create(&second, NULL, wait_for_second, NULL) == 0);
    pid_t pid = child(wait_for_zero);
    CHECK(write(told[1], "x", 1) == 1);
    while (semctl(set, 0, GETNCNT) != 1 || semctl(set, 1, GETNCNT) != 1 || semctl(set, 2, GETZCNT) != 1) sleep_ms(1);
    ready_and_wait();
    while (semctl(set, 0, GETNCNT) != 1 || semctl(set, 1, GETNCNT) != 1 || semctl(set, 2, GETZCNT) != 1) sleep_ms(1);
    CHECK(change(set, 0, 1, 0) == 0 && change(set, 1, 1, 0) == 0 && change(set, 2, -1, 0) == 0);
    int status;
    CHECK(pthread_join(first, NULL) == 0 && pthread_join(second, NULL) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK_EQ(value(set, 0), 0);
    CHECK_EQ(value(set, 1), 0);
    CHECK(semctl(set, 0, IPC_RMID) == 0);
}

/* What ends with a process is undone then, and not before. */
static void *nothing(void *unused) {
    pause();
    return unused;
}

static void hold_and_end(void) {
    char byte;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, nothing, NULL) == 0);
    CHECK(change(set, 0, -3, SEM_UNDO) == 0);
    CHECK(change(set, 1, 2, SEM_UNDO) == 0);
    CHECK(change(set, 2, -1, SEM_UNDO) == 0 && change(set, 2, 1, 0) == 0);
    for (int i = 0; i < 20; i++) CHECK(change(set, 3, 1, SEM_UNDO) == 0);
    CHECK(change(set, 3, -20, 0) == 0);
    CHECK(change(set, 4, -1, SEM_UNDO) == 0 && change(set, 4, 1, SEM_UNDO) == 0);
    CHECK(change(set, 5, 32767, SEM_UNDO) == 0 && change(set, 5, -32767, 0) == 0 && change(set, 5, 1, SEM_UNDO) == 0);
    CHECK(read(told[0], &byte, 1) == 1);
}

static void undo(void) {
    CHECK(pipe(told) == 0);
    set = make_set(IPC_PRIVATE, 6, (unsigned short[]){5, 0, 32767, 0, 1, 0});
    pid_t pid = child(hold_and_end);
    CHECK(write(told[1], "x", 1) == 1);
    while (value(set, 5) != 1) sleep_ms(1);
    CHECK(change(set, 0, -1, SEM_UNDO) == 0);
    say("ready\n");
    /* Nobody sees another value in between. */
    while (access("go", F_OK) != 0) {
        for (int i = 0; i < 100; i++) CHECK(value(set, 0) == 1 && value(set, 1) == 2 && value(set, 2) == 32767);
    }
    CHECK_EQ(value(set, 0), 1);
    CHECK_EQ(value(set, 3), 0);
    CHECK(change(set, 2, -10, 0) == 0);
    CHECK(change(set, 3, 30, 0) == 0);
    CHECK(change(set, 5, 32766, 0) == 0);
    tell(pid);
    CHECK_EQ(value(set, 0), 4);
    CHECK_EQ(value(set, 1), 0);
    CHECK_EQ(value(set, 2), 32758);
    CHECK_EQ(value(set, 3), 10);
    CHECK_EQ(value(set, 4), 1);
    CHECK_EQ(value(set, 5), 0);
    CHECK(semctl(set, 0, IPC_RMID) == 0);
}

/* Two processes with one list. */
static void shared_undo(void) {
    CHECK(pipe(told) == 0);
    set = make_set(IPC_PRIVATE, 1, (unsigned short[]){5});
    CHECK(change(set, 0, -1, SEM_UNDO) == 0);
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_SYSVSEM | SIGCHLD, 0, 0, 0, 0);
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char byte;
        CHECK(read(told[0], &byte, 1) == 1);
        CHECK(change(set, 0, -1, SEM_UNDO) == 0);
        _exit(0);
    }
    ready_and_wait();
    CHECK_EQ(value(set, 0), 4);
    tell(pid);
    CHECK_EQ(value(set, 0), 3);
    CHECK(semctl(set, 0, IPC_RMID) == 0);
}

struct message {
    long type;
    char text[200];
};

static int make_queue(key_t key) {
    int id = msgget(key, IPC_CREAT | IPC_EXCL | 0620);
    CHECK(id >= 0);
    note("msg", id, "-");
    return id;
}

static void post(int id, long type, const char *text, size_t length) {
    struct message message = {type, ""};
    memcpy(message.text, text, length);
    CHECK(msgsnd(id, &message, length, IPC_NOWAIT) == 0);
}

static void expect(int id, long wanted, long type, const char *text, size_t length) {
    struct message message;
    CHECK_EQ(msgrcv(id, &message, sizeof message.text, wanted, IPC_NOWAIT), length);
    CHECK_EQ(message.type, type);
    CHECK(memcmp(message.text, text, length) == 0);
}

static void queues(void) {
    key_t key = next_key();
    int id = make_queue(key), empty = make_queue(IPC_PRIVATE);
    post(id, 3, "first", 5);
    post(id, 1, "", 0);
    post(id, 0x7fffffffffffL, "a\0b", 3);
    post(id, 3, "fourth", 6);
    char text[200];
    memset(text, 'x', sizeof text);
    post(id, 9, text, sizeof text);
    struct msqid_ds state;
    CHECK(msgctl(id, IPC_STAT, &state) == 0);
    state.msg_qbytes = 1000;
    CHECK(msgctl(id, IPC_SET, &state) == 0);
    ready_and_wait();
    CHECK_EQ(msgget(key, 0), id);
    CHECK(msgctl(id, IPC_STAT, &state) == 0);
    CHECK_EQ(state.msg_qnum, 5);
    CHECK_EQ(state.__msg_cbytes, 214);
    CHECK_EQ(state.msg_qbytes, 1000);
    CHECK_EQ(state.msg_perm.mode, 0620);
    CHECK_EQ(state.msg_perm.__key, key);
    expect(id, 9, 9, text, sizeof text);
    expect(id, 0, 3, "first", 5);
    expect(id, -2, 1, "", 0);
    expect(id, 0, 0x7fffffffffffL, "a\0b", 3);
    expect(id, 3, 3, "fourth", 6);
    CHECK(msgctl(empty, IPC_STAT, &state) == 0);
    CHECK_EQ(state.msg_qnum, 0);
    CHECK(msgctl(id, IPC_RMID, NULL) == 0 && msgctl(empty, IPC_RMID, NULL) == 0);
}

static int full, quiet;

static void *send_more(void *unused) {
    struct message message = {77, "more"};
    CHECK(msgsnd(full, &message, 4, 0) == 0);
    return unused;
}

static void receive_one(void) {
    struct message message;
    CHECK_EQ(msgrcv(quiet, &message, sizeof message.text, 5, 0), 3);
    CHECK(memcmp(message.text, "yes", 3) == 0);
}

static bool sleeps_in(pid_t pid, long tid, long number) {
    char path[64], text[200];
    snprintf(path, sizeof path, "/proc/%d/task/%ld/syscall", pid, tid);
    text[slurp(path, text, sizeof text - 1)] = 0;
    return strtol(text, NULL, 10) == number;
}

static volatile long sender;

static void *send_as_sender(void *unused) {
    sender = syscall(SYS_gettid);
    return send_more(unused);
}

static void blocked_queues(void) {
    CHECK(pipe(told) == 0);
    full = make_queue(IPC_PRIVATE);
    quiet = make_queue(IPC_PRIVATE);
    struct message message = {1, ""};
    int count = 0;
    while (msgsnd(full, &message, sizeof message.text, IPC_NOWAIT) == 0) count++;
    while (msgsnd(full, &message, 1, IPC_NOWAIT) == 0) count++;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, send_as_sender, NULL) == 0);
    pid_t pid = child(receive_one);
    CHECK(write(told[1], "x", 1) == 1);
    while (sender == 0 || !sleeps_in(getpid(), sender, SYS_msgsnd) || !sleeps_in(pid, pid, SYS_msgrcv)) sleep_ms(1);
    ready_and_wait();
    post(quiet, 4, "no", 2);
    post(quiet, 5, "yes", 3);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    for (int i = 0; i < count; i++) {
        CHECK(msgrcv(full, &message, sizeof message.text, 1, 0) >= 0);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    expect(full, 0, 77, "more", 4);
    expect(quiet, 0, 4, "no", 2);
    CHECK(msgctl(full, IPC_RMID, NULL) == 0 && msgctl(quiet, IPC_RMID, NULL) == 0);
}

static mqd_t make_mq(const char *name, long messages, long size) {
    struct mq_attr limits = {.mq_maxmsg = messages, .mq_msgsize = size};
    mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &limits);
    CHECK(queue >= 0);
    note("mq", 0, name);
    return queue;
}

static const char *mq_name(int n) {
    static char names[4][64];
    snprintf(names[n], sizeof names[n], "/stasis-ipc-%d-%d", getpid(), n);
    return names[n];
}

static void expect_mq(mqd_t queue, const char *text, unsigned wanted) {
    char buffer[100];
    unsigned priority;
    CHECK_EQ(mq_receive(queue, buffer, sizeof buffer, &priority), strlen(text));
    CHECK_EQ(priority, wanted);
    CHECK(memcmp(buffer, text, strlen(text)) == 0);
}

static mqd_t common;

static void send_as_child(void) {
    CHECK(mq_send(common, "from the child", 14, 7) == 0);
}

static void mqueues(void) {
    CHECK(pipe(told) == 0);
    char name[64];
    strcpy(name, mq_name(0));
    common = make_mq(name, 8, 100);
    CHECK(fchmod(common, 0640) == 0);
    mqd_t reads = mq_open(name, O_RDONLY | O_NONBLOCK), writes = mq_open(name, O_WRONLY);
    CHECK(reads >= 0 && writes >= 0);
    int twice = dup(reads);
    mqd_t hidden = make_mq(mq_name(1), 3, 50), empty = make_mq(mq_name(2), 1, 8192);
    CHECK(mq_send(hidden, "hidden", 6, 0) == 0);
    CHECK(mq_unlink(mq_name(1)) == 0);
    struct {
        const char *text;
        unsigned priority;
    } sent[] = {{"one", 1}, {"two", 30000}, {"three", 1}, {"", 1}, {"five", 0}, {"six", 30000}};
    for (size_t i = 0; i < 6; i++) CHECK(mq_send(writes, sent[i].text, strlen(sent[i].text), sent[i].priority) == 0);
    pid_t pid = child(send_as_child);
    ready_and_wait();
    struct mq_attr state;
    CHECK(mq_getattr(reads, &state) == 0);
    CHECK(state.mq_maxmsg == 8 && state.mq_msgsize == 100 && state.mq_curmsgs == 6 && state.mq_flags == O_NONBLOCK);
    CHECK(mq_getattr(writes, &state) == 0 && state.mq_flags == 0);
    struct stat about;
    CHECK(fstat(common, &about) == 0);
    CHECK_EQ(about.st_mode & 07777, 0640);
    CHECK_EQ(about.st_uid, getuid());
    CHECK(mq_send(reads, "x", 1, 0) == -1 && errno == EBADF);
    char buffer[100];
    CHECK(mq_receive(writes, buffer, sizeof buffer, NULL) == -1 && errno == EBADF);
    tell(pid);
    mqd_t by_name = mq_open(name, O_RDONLY);
    CHECK(by_name >= 0);
    expect_mq(by_name, "two", 30000);
    expect_mq(twice, "six", 30000);
    expect_mq(reads, "from the child", 7);
    expect_mq(reads, "one", 1);
    expect_mq(reads, "three", 1);
    expect_mq(reads, "", 1);
    expect_mq(reads, "five", 0);
    CHECK(mq_receive(reads, buffer, sizeof buffer, NULL) == -1 && errno == EAGAIN);
    state.mq_flags = 0;
    CHECK(mq_setattr(twice, &state, NULL) == 0);
    CHECK(mq_getattr(reads, &state) == 0 && state.mq_flags == 0);
    expect_mq(hidden, "hidden", 0);
    CHECK(mq_open(mq_name(1), O_RDONLY) == -1 && errno == ENOENT);
    CHECK(mq_getattr(empty, &state) == 0 && state.mq_maxmsg == 1 && state.mq_msgsize == 8192 && state.mq_curmsgs == 0);
    CHECK(mq_unlink(name) == 0 && mq_unlink(mq_name(2)) == 0);
}

static mqd_t full_mq, quiet_mq;

static void *send_to_full(void *unused) {
    sender = syscall(SYS_gettid);
    CHECK(mq_send(full_mq, "last", 4, 0) == 0);
    return unused;
}

static void receive_quiet(void) {
    expect_mq(quiet_mq, "loud", 3);
}

static void blocked_mqueues(void) {
    CHECK(pipe(told) == 0);
    full_mq = make_mq(mq_name(0), 2, 100);
    quiet_mq = make_mq(mq_name(1), 2, 100);
    CHECK(mq_send(full_mq, "a", 1, 0) == 0 && mq_send(full_mq, "b", 1, 5) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, send_to_full, NULL) == 0);
    pid_t pid = child(receive_quiet);
    CHECK(write(told[1], "x", 1) == 1);
    while (sender == 0 || !sleeps_in(getpid(), sender, SYS_mq_timedsend) || !sleeps_in(pid, pid, SYS_mq_timedreceive)) sleep_ms(1);
    ready_and_wait();
    CHECK(mq_send(quiet_mq, "loud", 4, 3) == 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    expect_mq(full_mq, "b", 5);
    CHECK(pthread_join(thread, NULL) == 0);
    expect_mq(full_mq, "a", 0);
    expect_mq(full_mq, "last", 0);
    CHECK(mq_unlink(mq_name(0)) == 0 && mq_unlink(mq_name(1)) == 0);
}

/* Numbers of two priorities, sent without pause: none is lost, doubled or out of its turn. */
static volatile int *enough;

static void send_numbers(void) {
    for (long next = 0; !*enough; next++) CHECK(mq_send(common, (char *)&next, sizeof next, (unsigned)next & 1) == 0);
    long last = -1;
    CHECK(mq_send(common, (char *)&last, sizeof last, 0) == 0);
}

static void stream(void) {
    CHECK(pipe(told) == 0);
    enough = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    common = make_mq(mq_name(0), 10, sizeof(long));
    pid_t pid = child(send_numbers);
    CHECK(write(told[1], "x", 1) == 1);
    say("ready\n");
    long expected[2] = {0, 1}, got;
    unsigned priority;
    for (int i = 0;; i++) {
        CHECK_EQ(mq_receive(common, (char *)&got, sizeof got, &priority), sizeof got);
        if (got == -1) break;
        CHECK(priority < 2);
        CHECK_EQ(got, expected[priority]);
        expected[priority] += 2;
        /* Now and then it becomes full. */
        if (i % 100 == 0) sleep_ms(1);
        if (i % 100 == 0 && access("go", F_OK) == 0) *enough = 1;
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(mq_unlink(mq_name(0)) == 0);
}

/* To be told when a message comes. */
static volatile sig_atomic_t noticed;

static void notice(int signal) {
    (void)signal;
    noticed++;
}

static void notify(void) {
    common = make_mq(mq_name(0), 3, 100);
    signal(SIGUSR1, notice);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    CHECK(mq_send(common, "before", 6, 0) == 0);
    CHECK(mq_notify(common, &event) == 0);
    ready_and_wait();
    CHECK_EQ(noticed, 0);
    expect_mq(common, "before", 0);
    CHECK(mq_send(common, "after", 5, 0) == 0);
    CHECK_EQ(noticed, 1);
    CHECK(mq_unlink(mq_name(0)) == 0);
}

/* A queue that is made in an ipc namespace of the job's own, as a first one was open before, and closed. */
static void closed_mqueue(void) {
    common = make_mq(mq_name(0), 3, 100);
    ready_and_wait();
    mqd_t other = make_mq(mq_name(1), 4, 50);
    CHECK(mq_send(other, "one", 3, 1) == 0 && mq_send(other, "two", 3, 2) == 0);
    CHECK(fchmod(other, 0604) == 0);
    CHECK(mq_close(other) == 0);
    say("closed\n");
    while (access("end", F_OK) != 0) sleep_ms(5);
    other = mq_open(mq_name(1), O_RDWR);
    CHECK(other >= 0);
    struct mq_attr state;
    CHECK(mq_getattr(other, &state) == 0 && state.mq_maxmsg == 4 && state.mq_msgsize == 50 && state.mq_curmsgs == 2);
    struct stat about;
    CHECK(fstat(other, &about) == 0);
    CHECK_EQ(about.st_mode & 07777, 0604);
    expect_mq(other, "two", 2);
    expect_mq(other, "one", 1);
    CHECK(mq_unlink(mq_name(0)) == 0 && mq_unlink(mq_name(1)) == 0);
}

/* A queue with a message that another job opens as well. */
static void lend(void) {
    common = make_mq("/stasis-ipc-lent", 3, 100);
    CHECK(mq_send(common, "lent", 4, 2) == 0);
    ready_and_wait();
    expect_mq(common, "lent", 2);
    CHECK(mq_unlink("/stasis-ipc-lent") == 0);
}

static void borrow(void) {
    common = mq_open("/stasis-ipc-lent", O_RDONLY);
    CHECK(common >= 0);
    struct mq_attr state;
    CHECK(mq_getattr(common, &state) == 0 && state.mq_curmsgs == 1);
    say("ready\n");
    while (access("returned", F_OK) != 0) sleep_ms(5);
}

/* One of each, with keys and names that the file `keys` gives to another program. */
struct all {
    key_t key;
    char name[64];
    int segment, unattached, set, queue;
    mqd_t mqueue;
    char *memory;
};

static void make_all(struct all *all, const char *text) {
    all->segment = make_segment(all->key, SIZE, 0600);
    all->unattached = make_segment(all->key + 1, 100, 0600);
    all->set = make_set(all->key, 2, (unsigned short[]){3, 8});
    all->queue = make_queue(all->key);
    post(all->queue, 5, text, strlen(text));
    all->mqueue = make_mq(all->name, 3, 100);
    CHECK(mq_send(all->mqueue, text, strlen(text), 4) == 0);
    char *memory = shmat(all->unattached, NULL, 0);
    strcpy(memory, text);
    CHECK(shmdt(memory) == 0);
    all->memory = shmat(all->segment, NULL, 0);
    strcpy(all->memory + 5000, text);
}

static void expect_all(const struct all *all, const char *text, long attached) {
    CHECK_EQ(shmget(all->key, 0, 0), all->segment);
    CHECK_EQ(shmget(all->key + 1, 0, 0), all->unattached);
    CHECK_EQ(semget(all->key, 0, 0), all->set);
    CHECK_EQ(msgget(all->key, 0), all->queue);
    CHECK_EQ(segment(all->segment).shm_nattch, attached);
    CHECK(strcmp(all->memory + 5000, text) == 0);
    char *memory = shmat(all->unattached, NULL, 0);
    CHECK(memory != (void *)-1 && strcmp(memory, text) == 0 && shmdt(memory) == 0);
    CHECK(value(all->set, 0) == 3 && value(all->set, 1) == 8);
    expect(all->queue, 0, 5, text, strlen(text));
    mqd_t by_name = mq_open(all->name, O_RDONLY | O_NONBLOCK);
    CHECK(by_name >= 0);
    expect_mq(by_name, text, 4);
    struct mq_attr state;
    CHECK(mq_getattr(all->mqueue, &state) == 0 && state.mq_curmsgs == 0);
    CHECK(shmctl(all->segment, IPC_RMID, NULL) == 0 && shmctl(all->unattached, IPC_RMID, NULL) == 0);
    CHECK(semctl(all->set, 0, IPC_RMID) == 0 && msgctl(all->queue, IPC_RMID, NULL) == 0);
    CHECK(mq_unlink(all->name) == 0);
}

static void everything(void) {
    struct all all = {.key = next_key()};
    next_key();
    strcpy(all.name, mq_name(0));
    make_all(&all, "the job's");
    CHECK(change(all.set, 1, -2, SEM_UNDO) == 0 && change(all.set, 1, 2, 0) == 0);
    FILE *keys = fopen("keys", "w");
    CHECK(keys != NULL);
    fprintf(keys, "%d %s\n", all.key, all.name);
    fclose(keys);
    ready_and_wait();
    expect_all(&all, "the job's", 1);
}

/* Spoils what the job has left behind, as it would have itself had it run on. */
static void spoil(void) {
    struct all all;
    FILE *keys = fopen("keys", "r");
    CHECK(keys != NULL && fscanf(keys, "%d %63s", &all.key, all.name) == 2);
    fclose(keys);
    char *memory = shmat(shmget(all.key, 0, 0), NULL, 0);
    memset(memory, 'x', SIZE);
    int left = semget(all.key, 0, 0), queue = msgget(all.key, 0);
    CHECK(change(left, 0, 5, 0) == 0);
    post(queue, 6, "more", 4);
    mqd_t open = mq_open(all.name, O_RDWR);
    expect_mq(open, "the job's", 4);
}

static void occupy(void) {
    struct all all;
    FILE *keys = fopen("keys", "r");
    CHECK(keys != NULL && fscanf(keys, "%d %63s", &all.key, all.name) == 2);
    fclose(keys);
    make_all(&all, "a stranger's");
    say("ready\n");
    while (access("returned", F_OK) != 0) sleep_ms(5);
    expect_all(&all, "a stranger's", 1);
}

/* Objects that have nothing to do with a job. */
static void stranger(void) {
    struct all all = {.key = next_key()};
    next_key();
    strcpy(all.name, mq_name(0));
    make_all(&all, "a stranger's");
    say("ready\n");
    while (access("returned", F_OK) != 0) sleep_ms(5);
    expect_all(&all, "a stranger's", 1);
}

static const struct check_case cases[] = {
    {"clean", clean},
    {"segments", segments},
    {"parts", parts},
    {"attachments", attachments},
    {"live", live},
    {"orphaned", orphaned},
    {"semaphores", semaphores},
    {"waiters", waiters},
    {"undo", undo},
    {"shared_undo", shared_undo},
    {"queues", queues},
    {"blocked_queues", blocked_queues},
    {"mqueues", mqueues},
    {"blocked_mqueues", blocked_mqueues},
    {"stream", stream},
    {"notify", notify},
    {"everything", everything},
    {"spoil", spoil},
    {"occupy", occupy},
    {"stranger", stranger},
    {"closed_mqueue", closed_mqueue},
    {"lend", lend},
    {"borrow", borrow},
};

int main(int argc, char **argv) {
    return RUN_CASE(cases, argc, argv);
}
