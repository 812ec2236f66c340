/* Descriptors of every kind. */
#include "check.h"
#include <dirent.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif

static int make(const char *name, const char *text) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0640);
    CHECK(fd >= 0);
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    return fd;
}
static void expect_read(int fd, const char *wanted) {
    char text[256] = {0};
    ssize_t got = read(fd, text, strlen(wanted));
    if (got != (ssize_t)strlen(wanted) || memcmp(text, wanted, strlen(wanted)) != 0) {
        say("FAILED: descriptor %d reads \"%s\" (%zd, errno %d), not \"%s\"\n", fd, text, got, errno, wanted);
        _exit(99);
    }
}
static void expect_end(pid_t child) {
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

static void regular(void) {
    int writer = make("file", "0123456789abcdefghij");
    int reader = open("file", O_RDONLY | O_NOATIME);
    int second = open("file", O_RDWR);
    int append = open("file", O_WRONLY | O_APPEND | O_DSYNC);
    int path = open("file", O_PATH);
    int closing = open("file", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    CHECK(reader >= 0 && second >= 0 && append >= 0 && path >= 0 && closing >= 0);
    CHECK(lseek(reader, 5, SEEK_SET) == 5 && lseek(second, 10, SEEK_SET) == 10);
    int duplicate = fcntl(reader, F_DUPFD, 500);
    int own = fcntl(reader, F_DUPFD_CLOEXEC, 150);
    CHECK(duplicate == 500 && own == 150);
    int flags = fcntl(reader, F_GETFL), append_flags = fcntl(append, F_GETFL), path_flags = fcntl(path, F_GETFL);
    int closing_flags = fcntl(closing, F_GETFL);
    bool known[600];
    for (int fd = 0; fd < 600; fd++) known[fd] = fcntl(fd, F_GETFD) >= 0;
    pid_t child = fork();
    if (child == 0) {
        wait_go();
        while (lseek(reader, 0, SEEK_CUR) != 8) sleep_ms(2);
        expect_read(reader, "89a");
        _exit(0);
    }
    ready_and_wait();
    CHECK_EQ(lseek(writer, 0, SEEK_CUR), 20);
    CHECK_EQ(lseek(second, 0, SEEK_CUR), 10);
    expect_read(duplicate, "567");
    expect_end(child);
    CHECK_EQ(lseek(own, 0, SEEK_CUR), 11);
    expect_read(second, "abc");
    CHECK_EQ(fcntl(reader, F_GETFL), flags);
    CHECK_EQ(fcntl(append, F_GETFL), append_flags);
    CHECK_EQ(fcntl(path, F_GETFL), path_flags);
    CHECK_EQ(fcntl(closing, F_GETFL), closing_flags);
    CHECK_EQ(fcntl(reader, F_GETFD), 0);
    CHECK_EQ(fcntl(duplicate, F_GETFD), 0);
    CHECK_EQ(fcntl(own, F_GETFD), FD_CLOEXEC);
    CHECK_EQ(fcntl(closing, F_GETFD), FD_CLOEXEC);
    CHECK(write(append, "END", 3) == 3);
    CHECK_EQ(lseek(writer, 0, SEEK_END), 23);
    struct stat data;
    CHECK(fstat(path, &data) == 0 && data.st_size == 23 && (data.st_mode & 07777) == 0640);
    /* No descriptor is there that was not. */
    for (int fd = 0; fd < 600; fd++) CHECK_EQ(fcntl(fd, F_GETFD) >= 0, known[fd]);
}

static void directories(void) {
    CHECK(mkdir("many", 0700) == 0 || errno == EEXIST);
    char name[64];
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "many/entry-with-a-long-name-%03d", i);
        close(make(name, ""));
    }
    int fd = open("many", O_RDONLY | O_DIRECTORY);
    int whole = open("many", O_RDONLY | O_DIRECTORY);
    int handle = open("many", O_PATH);
    CHECK(fd >= 0 && whole >= 0 && handle >= 0);
    static char buffer[4096], all[1 << 20];
    long first = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
    CHECK(first > 0);
    long total = 0, n;
    while ((n = syscall(SYS_getdents64, whole, all + total, sizeof all - (size_t)total)) > 0) total += n;
    ready_and_wait();
    CHECK(memcmp(buffer, all, (size_t)first) == 0);
    static char rest[1 << 20];
    long have = 0;
    while ((n = syscall(SYS_getdents64, fd, rest + have, sizeof rest - (size_t)have)) > 0) have += n;
    CHECK_EQ(first + have, total);
    CHECK(memcmp(rest, all + first, (size_t)have) == 0);
    CHECK(faccessat(handle, "entry-with-a-long-name-007", F_OK, 0) == 0);
    CHECK(fchdir(fd) == 0 && access("entry-with-a-long-name-299", F_OK) == 0);
}

static void devices(void) {
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY), full = open("/dev/full", O_RDWR);
    int random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    CHECK(null >= 0 && zero >= 0 && full >= 0 && random >= 0);
    ready_and_wait();
    char text[64] = "x";
    CHECK_EQ(read(null, text, 64), 0);
    CHECK_EQ(write(null, text, 64), 64);
    CHECK_EQ(read(zero, text, 64), 64);
    expect_zero(text, 64);
    CHECK(write(full, text, 64) == -1 && errno == ENOSPC);
    CHECK_EQ(read(random, text, 64), 64);
    bool any = false;
    for (int i = 0; i < 64; i++) any |= text[i] != 0;
    CHECK(any);
    CHECK_EQ(fcntl(random, F_GETFD), FD_CLOEXEC);
}

static void pipes(void) {
    int bytes[2], full[2], gone_writer[2], gone_reader[2], large[2], both[2], packets[2], empty[2];
    CHECK(pipe2(bytes, O_CLOEXEC) == 0 && pipe2(full, O_NONBLOCK) == 0 && pipe(gone_writer) == 0);
    CHECK(pipe(gone_reader) == 0 && pipe(large) == 0 && pipe(both) == 0 && pipe(empty) == 0);
    CHECK(pipe2(packets, O_DIRECT) == 0);
    CHECK(write(bytes[1], "in the pipe", 11) == 11);
    static char block[4096], got[4096];
    fill(block, sizeof block, 60);
    int blocks = 0;
    while (write(full[1], block, sizeof block) == (ssize_t)sizeof block) blocks++;
    CHECK(errno == EAGAIN && blocks >= 1);
    CHECK(write(gone_writer[1], "left behind", 11) == 11);
    close(gone_writer[1]);
    close(gone_reader[0]);
    int size = fcntl(large[1], F_SETPIPE_SZ, 262144);
    CHECK(size == 262144);
    for (int i = 0; i < 40; i++) CHECK(write(large[1], block, sizeof block) == (ssize_t)sizeof block);
    CHECK(write(packets[1], "one", 3) == 3 && write(packets[1], "three", 5) == 5);
    pid_t child = fork();
    if (child == 0) { /* reads what its parent writes after the restart */
        close(both[1]);
        char text[16] = {0};
        size_t have = 0;
        ssize_t n;
        while ((n = read(both[0], text + have, sizeof text - have)) > 0) have += (size_t)n;
        CHECK(n == 0 && strcmp(text, "before after") == 0);
        _exit(0);
    }
    close(both[0]);
    CHECK(write(both[1], "before ", 7) == 7);
    ready_and_wait();
    signal(SIGPIPE, SIG_IGN);
    expect_read(bytes[0], "in the pipe");
    int waiting = -1;
    CHECK(ioctl(bytes[0], FIONREAD, &waiting) == 0);
    CHECK_EQ(waiting, 0);
    CHECK_EQ(fcntl(bytes[0], F_GETFD), FD_CLOEXEC);
    CHECK(write(full[1], block, sizeof block) == -1 && errno == EAGAIN);
    for (int i = 0; i < blocks; i++) {
        CHECK_EQ(read(full[0], got, sizeof got), sizeof got);
        CHECK(memcmp(block, got, sizeof got) == 0);
    }
    CHECK(read(full[0], got, sizeof got) == -1 && errno == EAGAIN);
    expect_read(gone_writer[0], "left behind");
    CHECK_EQ(read(gone_writer[0], got, 1), 0);
    CHECK(write(gone_reader[1], "x", 1) == -1 && errno == EPIPE);
    CHECK_EQ(fcntl(large[0], F_GETPIPE_SZ), 262144);
    for (int i = 0; i < 40; i++) {
        CHECK_EQ(read(large[0], got, sizeof got), sizeof got);
        CHECK(memcmp(block, got, sizeof got) == 0);
    }
    CHECK_EQ(read(packets[0], got, sizeof got), 3);
    CHECK(memcmp(got, "one", 3) == 0);
    CHECK_EQ(read(packets[0], got, sizeof got), 5);
    CHECK(memcmp(got, "three", 5) == 0);
    CHECK(write(both[1], "after", 5) == 5);
    close(both[1]);
    expect_end(child);
    struct pollfd set = {.fd = empty[0], .events = POLLIN};
    CHECK_EQ(poll(&set, 1, 0), 0);
}

static void fifos(void) {
    unlink("fifo-is-open");
    CHECK(mkfifo("fifo", 0600) == 0 || errno == EEXIST);
    int both = open("fifo", O_RDWR);
    int writer = open("fifo", O_WRONLY);
    CHECK(both >= 0 && writer >= 0);
    CHECK(write(writer, "first ", 6) == 6);
    pid_t child = fork();
    if (child == 0) {
        close(both);
        close(writer);
        int reader = open("fifo", O_RDONLY);
        CHECK(reader >= 0);
        close(make("fifo-is-open", ""));
        say("ready\n");
        wait_go();
        char text[32] = {0};
        size_t have = 0;
        ssize_t n;
        while ((n = read(reader, text + have, sizeof text - have)) > 0) have += (size_t)n;
        CHECK(n == 0 && strcmp(text, "first second") == 0);
        _exit(0);
    }
    while (access("fifo-is-open", F_OK) != 0) sleep_ms(2);
    wait_go();
    CHECK(write(writer, "second", 6) == 6);
    close(writer);
    close(both);
    expect_end(child);
}

static void eventfds(void) {
    int counter = eventfd(5, 0), semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
    int zero = eventfd(0, EFD_NONBLOCK), shared = eventfd(0, 0);
    CHECK(counter >= 0 && semaphore >= 0 && zero >= 0 && shared >= 0);
    uint64_t value = 37;
    CHECK(write(counter, &value, 8) == 8);
    pid_t child = fork();
    if (child == 0) {
        CHECK_EQ(read(shared, &value, 8), 8); /* blocked in here */
        CHECK_EQ(value, 4711);
        _exit(0);
    }
    ready_and_wait();
    CHECK_EQ(read(counter, &value, 8), 8);
    CHECK_EQ(value, 42);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(read(semaphore, &value, 8), 8);
        CHECK_EQ(value, 1);
    }
    CHECK(read(semaphore, &value, 8) == -1 && errno == EAGAIN);
    CHECK(read(zero, &value, 8) == -1 && errno == EAGAIN);
    CHECK_EQ(fcntl(semaphore, F_GETFD), FD_CLOEXEC);
    value = 4711;
    CHECK(write(shared, &value, 8) == 8);
    expect_end(child);
}

static void add(int epoll, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}
static int ready_events(int epoll, struct epoll_event *events) {
    int got = epoll_wait(epoll, events, 16, 0);
    CHECK(got >= 0);
    return got;
}
static void epolls(void) {
    int level = epoll_create1(EPOLL_CLOEXEC), edge = epoll_create1(0), outer = epoll_create1(0);
    int one_shot = epoll_create1(0), duplicated = epoll_create1(0);
    int ends[2], other[2];
    CHECK(pipe(ends) == 0 && pipe(other) == 0);
    int event = eventfd(0, EFD_NONBLOCK);
    struct epoll_event events[16];
    add(level, ends[0], EPOLLIN, 0x1122334455667788);
    add(level, event, EPOLLIN | EPOLLRDHUP, 2);
    add(edge, ends[0], EPOLLIN | EPOLLET, 3);
    add(edge, event, EPOLLIN | EPOLLET, 4);
    add(one_shot, ends[0], EPOLLIN | EPOLLONESHOT, 5);
    add(one_shot, event, EPOLLIN | EPOLLONESHOT, 6);
    add(outer, level, EPOLLIN, 7);
    add(outer, edge, EPOLLIN | EPOLLET, 8);
    /* The registration outlives the number that it was made with. */
    int copy = dup(other[0]);
    add(duplicated, copy, EPOLLIN, 9);
    close(copy);
    CHECK(write(ends[1], "x", 1) == 1);
    CHECK_EQ(ready_events(one_shot, events), 1); /* disarmed from now on */
    CHECK_EQ(events[0].data.u64, 5);
    CHECK_EQ(ready_events(edge, events), 1); /* seen: quiet until more comes */
    CHECK_EQ(ready_events(edge, events), 0);
    ready_and_wait();
    CHECK_EQ(ready_events(level, events), 1);
    CHECK_EQ(events[0].data.u64, 0x1122334455667788);
    CHECK_EQ(events[0].events, EPOLLIN);
    CHECK_EQ(ready_events(one_shot, events), 0);
    CHECK(write(ends[1], "y", 1) == 1);
    CHECK_EQ(ready_events(one_shot, events), 0);
    CHECK_EQ(ready_events(edge, events), 1);
    CHECK_EQ(events[0].data.u64, 3);
    CHECK_EQ(ready_events(edge, events), 0);
    CHECK(eventfd_write(event, 1) == 0);
    CHECK_EQ(ready_events(one_shot, events), 1);
    CHECK_EQ(events[0].data.u64, 6);
    CHECK_EQ(ready_events(level, events), 2);
    int got = ready_events(outer, events);
    CHECK(got >= 1);
    CHECK(events[0].data.u64 == 7 || events[got - 1].data.u64 == 7);
    CHECK_EQ(ready_events(duplicated, events), 0);
    CHECK(write(other[1], "z", 1) == 1);
    CHECK_EQ(ready_events(duplicated, events), 1);
    CHECK_EQ(events[0].data.u64, 9);
    struct epoll_event change = {.events = EPOLLIN, .data.u64 = 10};
    CHECK(epoll_ctl(one_shot, EPOLL_CTL_MOD, ends[0], &change) == 0);
    got = ready_events(one_shot, events);
    CHECK(got == 1 && events[0].data.u64 == 10);
    CHECK_EQ(fcntl(level, F_GETFD), FD_CLOEXEC);
}

static void memfds(void) {
    int fd = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    CHECK(fd >= 0 && write(fd, "contents of it", 14) == 14);
    CHECK(ftruncate(fd, 1 << 20) == 0 && pwrite(fd, "end", 3, (1 << 20) - 3) == 3);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);
    int open_one = memfd_create("open", 0);
    CHECK(open_one >= 0 && write(open_one, "abcdef", 6) == 6 && lseek(open_one, 2, SEEK_SET) == 2);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", open_one);
    int reopened = open(path, O_RDONLY);
    CHECK(reopened >= 0);
    ready_and_wait();
    CHECK_EQ(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    CHECK(write(fd, "x", 1) == -1 && errno == EPERM);
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    expect_read(fd, "contents of it");
    CHECK(lseek(fd, -3, SEEK_END) == (1 << 20) - 3);
    expect_read(fd, "end");
    expect_read(open_one, "cdef");
    CHECK(pwrite(open_one, "AB", 2, 0) == 2);
    expect_read(reopened, "ABcdef");
}

#ifndef P_PIDFD
#define P_PIDFD 3
#endif
static void pidfds(void) {
    pid_t child = fork();
    if (child == 0) {
        for (;;) pause();
    }
    pid_t dead = fork();
    if (dead == 0) _exit(3);
    int fd = (int)syscall(SYS_pidfd_open, child, 0), of_dead = (int)syscall(SYS_pidfd_open, dead, 0);
    int own = (int)syscall(SYS_pidfd_open, getpid(), 0);
    CHECK(fd >= 0 && of_dead >= 0 && own >= 0);
    siginfo_t info;
    CHECK(waitid(P_PID, (id_t)dead, &info, WEXITED | WNOWAIT) == 0);
    ready_and_wait();
    struct pollfd set[3] = {{.fd = fd, .events = POLLIN}, {.fd = of_dead, .events = POLLIN}, {.fd = own, .events = POLLIN}};
    CHECK_EQ(poll(set, 3, 0), 1);
    CHECK_EQ(set[1].revents, POLLIN);
    CHECK(syscall(SYS_pidfd_send_signal, own, 0, NULL, 0) == 0);
    CHECK(syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0) == 0);
    CHECK_EQ(poll(set, 1, 10000), 1);
    CHECK(waitid((idtype_t)P_PIDFD, (id_t)fd, &info, WEXITED) == 0);
    CHECK_EQ(info.si_pid, child);
    CHECK_EQ(info.si_status, SIGKILL);
    CHECK(waitid((idtype_t)P_PIDFD, (id_t)of_dead, &info, WEXITED) == 0);
    CHECK_EQ(info.si_status, 3);
}

static void locks(void) {
    int whole = make("whole", "text"), range = make("range", "0123456789"), open_range = make("open range", "0123456789");
    CHECK(flock(whole, LOCK_EX | LOCK_NB) == 0);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 3}, probe;
    CHECK(fcntl(range, F_SETLK, &lock) == 0);
    lock.l_type = F_RDLCK;
    lock.l_start = 7;
    CHECK(fcntl(range, F_SETLK, &lock) == 0);
    struct flock description = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = 1};
    CHECK(fcntl(open_range, F_OFD_SETLK, &description) == 0);
    ready_and_wait();
    pid_t own = getpid();
    pid_t child = fork();
    if (child == 0) { /* somebody else sees them */
        int again = open("whole", O_RDWR);
        CHECK(flock(again, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
        probe = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 6};
        CHECK(fcntl(range, F_GETLK, &probe) == 0);
        CHECK_EQ(probe.l_type, F_WRLCK);
        CHECK_EQ(probe.l_start, 2);
        CHECK_EQ(probe.l_len, 3);
        CHECK_EQ(probe.l_pid, own);
        probe = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 6, .l_len = 4};
        CHECK(fcntl(range, F_GETLK, &probe) == 0);
        CHECK_EQ(probe.l_type, F_RDLCK);
        int another = open("open range", O_RDWR);
        probe = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0};
        CHECK(fcntl(another, F_OFD_GETLK, &probe) == 0);
        CHECK_EQ(probe.l_type, F_WRLCK);
        CHECK_EQ(probe.l_start, 1);
        _exit(0);
    }
    expect_end(child);
}

/* Descriptors that only a thread's sibling process or nobody else has; a process without any. */
static void closed_stdio(void) {
    pid_t child = fork();
    if (child == 0) {
        int out = fcntl(1, F_DUPFD_CLOEXEC, 77);
        CHECK(out == 77);
        for (int fd = 0; fd < 3; fd++) close(fd);
        while (access("go", F_OK) != 0) sleep_ms(5);
        for (int fd = 0; fd < 3; fd++)
            if (fcntl(fd, F_GETFD) != -1) _exit(1 + fd);
        if (open("/dev/null", O_RDWR) != 0) _exit(5);
        if (write(77, "from the child\n", 15) != 15) _exit(6);
        _exit(0);
    }
    ready_and_wait();
    expect_end(child);
    CHECK(fcntl(0, F_GETFD) >= 0 && fcntl(2, F_GETFD) >= 0);
}

/* A thread of its own descriptor table. */
static volatile int table_state;
static void *own_table(void *argument) {
    int fd = *(int *)argument;
    CHECK(unshare(CLONE_FILES) == 0);
    CHECK(dup2(fd, 300) == 300);
    close(fd);
    table_state = 1;
    wait_go();
    while (table_state != 2) sleep_ms(1);
    CHECK(fcntl(fd, F_GETFD) == -1);
    CHECK(lseek(300, 0, SEEK_CUR) == 4);
    table_state = 3;
    return NULL;
}
static void thread_table(void) {
    int fd = make("of the thread", "text");
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, own_table, &fd) == 0);
    while (table_state != 1) sleep_ms(1);
    ready_and_wait();
    CHECK(fcntl(300, F_GETFD) == -1 && fcntl(fd, F_GETFD) == 0);
    table_state = 2;
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 4);
}

static void deleted(void) {
    int fd = make("soon deleted", "what it holds");
    int moved = make("soon moved", "has another name");
    CHECK(unlink("soon deleted") == 0);
    CHECK(rename("soon moved", "moved") == 0);
    int linked = make("linked", "by two names");
    unlink("linked too");
    CHECK(link("linked", "linked too") == 0 && unlink("linked") == 0);
    CHECK(lseek(fd, 5, SEEK_SET) == 5);
    ready_and_wait();
    expect_read(fd, "it holds");
    CHECK(write(fd, "!", 1) == 1);
    struct stat data, named;
    CHECK(fstat(fd, &data) == 0);
    CHECK_EQ(data.st_nlink, 0);
    CHECK_EQ(data.st_size, 14);
    CHECK(access("soon deleted", F_OK) == -1);
    CHECK(fstat(moved, &data) == 0 && stat("moved", &named) == 0);
    CHECK(data.st_ino == named.st_ino);
    CHECK(fstat(linked, &data) == 0 && stat("linked too", &named) == 0);
    CHECK(data.st_ino == named.st_ino);
    CHECK(lseek(linked, 0, SEEK_SET) == 0);
    expect_read(linked, "by two names");
}

/* 900 of them, in some order. */
static void many(void) {
    static int fds[900];
    for (int i = 0; i < 900; i++) {
        if (i % 3 == 0) {
            fds[i] = open("/dev/null", O_RDONLY);
        } else if (i % 3 == 1) {
            char name[32];
            snprintf(name, sizeof name, "numbered %d", i);
            fds[i] = make(name, name);
        } else
            fds[i] = eventfd((unsigned)i, EFD_NONBLOCK);
        CHECK(fds[i] >= 0);
    }
    ready_and_wait();
    for (int i = 0; i < 900; i++) {
        uint64_t value;
        char name[32];
        if (i % 3 == 0) {
            CHECK_EQ(read(fds[i], name, 1), 0);
        } else if (i % 3 == 1) {
            snprintf(name, sizeof name, "numbered %d", i);
            CHECK(lseek(fds[i], 0, SEEK_SET) == 0);
            expect_read(fds[i], name);
        } else {
            CHECK_EQ(read(fds[i], &value, 8), 8);
            CHECK_EQ(value, i);
        }
    }
}

/* Descriptors that read the program itself. */
static void proc_files(void) {
    int status = open("/proc/self/status", O_RDONLY), directory = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
    int memory = open("/proc/self/mem", O_RDWR);
    CHECK(status >= 0 && directory >= 0 && memory >= 0);
    volatile int word = 5;
    ready_and_wait();
    char text[4096] = {0}, wanted[32];
    CHECK(lseek(status, 0, SEEK_SET) == 0 && read(status, text, sizeof text - 1) > 0);
    snprintf(wanted, sizeof wanted, "Pid:\t%d\n", getpid());
    CHECK(strstr(text, wanted) != NULL);
    int seen;
    CHECK(pread(memory, &seen, 4, (off_t)(uintptr_t)&word) == 4);
    CHECK_EQ(seen, 5);
}

/* The next events of a queue as text: number, events, name. */
static void expect_event(int fd, int number, uint32_t events, const char *name) {
    static char buffer[4096] __attribute__((aligned(8)));
    static size_t at, have;
    if (at == have) {
        ssize_t got = read(fd, buffer, sizeof buffer);
        CHECK(got > 0);
        at = 0, have = (size_t)got;
    }
    struct inotify_event *event = (void *)(buffer + at);
    at += sizeof *event + event->len;
    if (event->wd != number || event->mask != events || strcmp(event->len ? event->name : "", name) != 0) {
        say("FAILED: event %d %x %s, not %d %x %s\n", event->wd, event->mask, event->len ? event->name : "", number, events, name);
        _exit(99);
    }
}
static void expect_none(int fd) {
    char buffer[4096];
    CHECK(read(fd, buffer, sizeof buffer) == -1 && errno == EAGAIN);
}

static void watches(void) {
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), other = inotify_init(), unused = inotify_init1(0);
    CHECK(fd >= 0 && other >= 0 && unused >= 0);
    CHECK((mkdir("watched", 0700) == 0 || errno == EEXIST) && (mkdir("watched/inner", 0700) == 0 || errno == EEXIST));
    int file = make("watched/file", "text"), gone = make("watched/gone", "text");
    close(make("watched/inner/deep", "text"));
    unlink("link");
    CHECK(symlink("watched/inner/deep", "link") == 0);
    CHECK_EQ(inotify_add_watch(fd, "watched/file", IN_ATTRIB), 1);
    CHECK_EQ(inotify_add_watch(fd, "watched", IN_CREATE | IN_DELETE | IN_ONLYDIR), 2);
    CHECK_EQ(inotify_add_watch(fd, "watched/inner", IN_CREATE), 3);
    CHECK_EQ(inotify_add_watch(fd, "watched/file", IN_MODIFY | IN_MASK_ADD), 1);
    for (int i = 4; i < 100; i++) {
        CHECK_EQ(inotify_add_watch(fd, "watched/gone", IN_MODIFY), i);
        CHECK(inotify_rm_watch(fd, i) == 0);
        expect_event(fd, i, IN_IGNORED, "");
    }
    CHECK(inotify_rm_watch(fd, 3) == 0);
    expect_event(fd, 3, IN_IGNORED, "");
    CHECK_EQ(inotify_add_watch(fd, "link", IN_MODIFY | IN_ONESHOT), 100);
    CHECK_EQ(inotify_add_watch(fd, "link", IN_ATTRIB | IN_DONT_FOLLOW), 101);
    CHECK_EQ(inotify_add_watch(fd, "watched/inner", IN_DELETE | IN_ONESHOT), 102);
    CHECK_EQ(inotify_add_watch(fd, "watched/gone", IN_MODIFY), 103);
    CHECK(unlink("watched/gone") == 0);
    expect_event(fd, 2, IN_DELETE, "gone");
    CHECK(close(open("watched/inner/one", O_CREAT | O_RDWR, 0600)) == 0 && unlink("watched/inner/one") == 0);
    expect_event(fd, 102, IN_DELETE, "one");
    expect_event(fd, 102, IN_IGNORED, "");
    CHECK_EQ(inotify_add_watch(other, "watched/file", IN_MODIFY), 1);
    expect_none(fd);
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = 5};
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
    ready_and_wait();
    CHECK_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    CHECK_EQ(fcntl(other, F_GETFL) & O_NONBLOCK, 0);
    CHECK_EQ(epoll_wait(set, &event, 1, 0), 0);
    expect_none(fd);
    CHECK(pwrite(file, "T", 1, 0) == 1);
    CHECK_EQ(epoll_wait(set, &event, 1, 0), 1);
    CHECK_EQ(event.data.u64, 5);
    expect_event(fd, 1, IN_MODIFY, "");
    CHECK(fchmod(file, 0600) == 0);
    expect_event(fd, 1, IN_ATTRIB, "");
    CHECK(pwrite(gone, "T", 1, 0) == 1);
    expect_event(fd, 103, IN_MODIFY, "");
    close(open("watched/new", O_CREAT | O_RDWR, 0600));
    expect_event(fd, 2, IN_CREATE, "new");
    CHECK(unlink("watched/new") == 0);
    expect_event(fd, 2, IN_DELETE, "new");
    close(open("watched/inner/two", O_CREAT | O_RDWR, 0600));
    expect_none(fd);
    CHECK(truncate("link", 2) == 0);
    expect_event(fd, 100, IN_MODIFY, "");
    expect_event(fd, 100, IN_IGNORED, "");
    struct timespec times[2] = {{1, 0}, {1, 0}};
    CHECK(utimensat(AT_FDCWD, "link", times, AT_SYMLINK_NOFOLLOW) == 0);
    expect_event(fd, 101, IN_ATTRIB, "");
    CHECK_EQ(inotify_add_watch(fd, "watched/inner", IN_CREATE), 104);
    expect_none(fd);
    struct inotify_event last;
    CHECK_EQ(read(other, &last, sizeof last), sizeof last);
    CHECK(last.wd == 1 && last.mask == IN_MODIFY);
    CHECK(unlink("watched/inner/two") == 0);
    CHECK_EQ(inotify_add_watch(unused, "watched", IN_CREATE), 1);
}

/* A program that has not read what has happened. */
static void unread_watch(void) {
    int fd = inotify_init();
    CHECK(fd >= 0 && inotify_add_watch(fd, ".", IN_CREATE) == 1);
    close(make("an event", ""));
    ready_and_wait();
    expect_event(fd, 1, IN_CREATE, "an event");
}

/* Who is told of what happens on descriptors, and a lease. */
static volatile int told_of;
static void on_told(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    told_of = info->si_fd;
}
static void owners(void) {
    struct sigaction action = {.sa_sigaction = on_told, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    int stream = socket(AF_INET, SOCK_STREAM, 0), datagrams = socket(AF_INET, SOCK_DGRAM, 0);
    int pair[2], terminal = posix_openpt(O_RDWR | O_NOCTTY);
    CHECK(stream >= 0 && datagrams >= 0 && terminal >= 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pid_t child = fork();
    if (child == 0)
        for (;;) pause();
    CHECK(fcntl(stream, F_SETOWN, child) == 0 && fcntl(stream, F_SETSIG, SIGRTMIN + 2) == 0);
    CHECK(fcntl(datagrams, F_SETOWN, -getpgrp()) == 0);
    CHECK(fcntl(terminal, F_SETOWN, getpid()) == 0);
    CHECK(fcntl(pair[0], F_SETOWN, getpid()) == 0 && fcntl(pair[0], F_SETSIG, SIGUSR1) == 0);
    CHECK(fcntl(pair[0], F_SETFL, O_ASYNC) == 0);
    close(make("leased", "text"));
    int leased = open("leased", O_RDONLY);
    CHECK(leased >= 0 && fcntl(leased, F_SETLEASE, F_RDLCK) == 0 && fcntl(leased, F_SETSIG, SIGUSR1) == 0);
    ready_and_wait();
    CHECK_EQ(fcntl(stream, F_GETOWN), child);
    CHECK_EQ(fcntl(stream, F_GETSIG), SIGRTMIN + 2);
    CHECK_EQ(fcntl(datagrams, F_GETOWN), -getpgrp());
    CHECK_EQ(fcntl(terminal, F_GETOWN), getpid());
    CHECK_EQ(told_of, 0);
    CHECK(write(pair[1], "x", 1) == 1);
    while (told_of == 0) sleep_ms(1);
    CHECK_EQ(told_of, pair[0]);
    CHECK_EQ(fcntl(leased, F_GETLEASE), F_RDLCK);
    CHECK_EQ(fcntl(leased, F_GETOWN), getpid());
    told_of = 0;
    CHECK(open("leased", O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK);
    while (told_of == 0) sleep_ms(1);
    CHECK_EQ(told_of, leased);
    CHECK(fcntl(leased, F_SETLEASE, F_UNLCK) == 0);
    CHECK(close(open("leased", O_WRONLY | O_NONBLOCK)) == 0);
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}

/* Descriptors that read other processes of the job, and how far they were read. */
static void proc_of_others(void) {
    pid_t child = fork();
    if (child == 0)
        for (;;) pause();
    char name[64], text[4096] = {0}, wanted[32];
    snprintf(name, sizeof name, "/proc/%d/status", child);
    int status = open(name, O_RDONLY);
    snprintf(name, sizeof name, "/proc/%d/fd", child);
    int numbers = open(name, O_RDONLY | O_DIRECTORY);
    int maps = open("/proc/self/maps", O_RDONLY), own = open("/proc/self/task", O_RDONLY | O_DIRECTORY);
    int named = open("/proc/self/cmdline", O_PATH);
    CHECK(status >= 0 && numbers >= 0 && maps >= 0 && own >= 0 && named >= 0);
    CHECK(read(maps, text, 100) > 0);
    ready_and_wait();
    memset(text, 0, sizeof text);
    CHECK(pread(status, text, sizeof text - 1, 0) > 0);
    snprintf(wanted, sizeof wanted, "Pid:\t%d\n", child);
    CHECK(strstr(text, wanted) != NULL);
    CHECK(faccessat(numbers, "1", F_OK, AT_SYMLINK_NOFOLLOW) == 0);
    CHECK(lseek(maps, 0, SEEK_CUR) > 0 && lseek(maps, 0, SEEK_SET) == 0 && read(maps, text, 100) > 0);
    snprintf(name, sizeof name, "%d", getpid());
    CHECK(faccessat(own, name, F_OK, 0) == 0);
    snprintf(name, sizeof name, "/proc/self/fd/%d", named);
    int again = open(name, O_RDONLY);
    CHECK(again >= 0 && read(again, text, sizeof text) > 0 && strstr(text, "descriptors") != NULL);
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    CHECK(pread(status, text, sizeof text, 0) == -1 && errno == ESRCH);
}

/* A file in memory that may be written through mappings of before its seal only. */
static void sealed_late(void) {
    int fd = memfd_create("sealed late", MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    char *old = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(old != MAP_FAILED);
    strcpy(old, "before");
    int seals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;
    CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0);
    ready_and_wait();
    CHECK_EQ(fcntl(fd, F_GET_SEALS), seals);
    CHECK(strcmp(old, "before") == 0);
    strcpy(old, "later");
    expect_read(fd, "later");
    CHECK(write(fd, "x", 1) == -1 && errno == EPERM);
    CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
    CHECK_EQ(errno, EPERM);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED);
}

static const struct check_case cases[] = {
    {"regular", regular},
    {"sealed_late", sealed_late},
    {"directories", directories},
    {"devices", devices},
    {"pipes", pipes},
    {"fifos", fifos},
    {"eventfds", eventfds},
    {"epolls", epolls},
    {"memfds", memfds},
    {"pidfds", pidfds},
    {"locks", locks},
    {"closed_stdio", closed_stdio},
    {"thread_table", thread_table},
    {"deleted", deleted},
    {"many", many},
    {"proc_files", proc_files},
    {"watches", watches},
    {"owners", owners},
    {"proc_of_others", proc_of_others},
    {"unread_watch", unread_watch},
};

int main(int argc, char **argv) {
    return RUN_CASE(cases, argc, argv);
}
