/* Pseudo terminals that the job has made itself. */
#include "check.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

struct pair {
    int master, number;
    char name[64];
};

static struct pair make(void) {
    struct pair pair;
    pair.master = posix_openpt(O_RDWR | O_NOCTTY);
    CHECK(pair.master >= 0 && grantpt(pair.master) == 0 && unlockpt(pair.master) == 0);
    CHECK(ptsname_r(pair.master, pair.name, sizeof pair.name) == 0);
    pair.number = atoi(strrchr(pair.name, '/') + 1);
    return pair;
}
static int open_slave(const struct pair *pair, int flags) {
    int fd = open(pair->name, flags | O_NOCTTY);
    CHECK(fd >= 0);
    return fd;
}
static void put(int fd, const char *text) {
    CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
}
static void expect_read(int fd, const char *wanted) {
    char text[256] = {0};
    ssize_t got = read(fd, text, sizeof text - 1);
    if (got != (ssize_t)strlen(wanted) || memcmp(text, wanted, strlen(wanted)) != 0) {
        say("FAILED: descriptor %d reads \"%s\" (%zd, errno %d), not \"%s\"\n", fd, text, got, errno, wanted);
        _exit(99);
    }
}
static void await_input(int fd, int bytes) {
    for (int there = 0; there < bytes;) CHECK(ioctl(fd, FIONREAD, &there) == 0);
}
static short events(int fd) {
    struct pollfd set = {.fd = fd, .events = POLLIN | POLLOUT};
    CHECK(poll(&set, 1, 0) >= 0);
    return set.revents;
}

/* Settings, window, numbers, names, flags, and what waits in both directions. */
static void pair(void) {
    struct pair first = make(), second = make();
    int slave = open_slave(&first, O_RDWR), reader = open_slave(&first, O_RDONLY | O_NONBLOCK);
    int other = open_slave(&second, O_RDWR);
    CHECK(fchmod(other, 0600) == 0);
    CHECK(fcntl(second.master, F_SETFL, O_NONBLOCK) == 0);
    struct winsize window = {.ws_row = 33, .ws_col = 121}, now;
    CHECK(ioctl(first.master, TIOCSWINSZ, &window) == 0);
    /* Compared as bytes, the gaps too. */
    struct termios raw = {0}, cooked = {0};
    CHECK(tcgetattr(other, &raw) == 0);
    cfmakeraw(&raw);
    raw.c_cc[VMIN] = 3;
    CHECK(tcsetattr(other, TCSANOW, &raw) == 0);
    CHECK(tcgetattr(slave, &cooked) == 0);
    cooked.c_lflag &= ~(tcflag_t)ECHO;
    cooked.c_cc[VINTR] = 'q' - 'a' + 1;
    CHECK(tcsetattr(slave, TCSANOW, &cooked) == 0);
    put(first.master, "one\ntwo\nthr");
    await_input(slave, 8);
    put(slave, "line\nof output\n");
    put(second.master, "\003\004raw\n");
    await_input(other, 6);
    put(other, "back\n");
    int flags[] = {fcntl(slave, F_GETFL), fcntl(reader, F_GETFL), fcntl(second.master, F_GETFL)};
    ready_and_wait();
    CHECK_EQ(fcntl(slave, F_GETFL), flags[0]);
    CHECK_EQ(fcntl(reader, F_GETFL), flags[1]);
    CHECK_EQ(fcntl(second.master, F_GETFL), flags[2]);
    struct stat by_name, by_descriptor;
    char name[64];
    CHECK(ptsname_r(first.master, name, sizeof name) == 0 && strcmp(name, first.name) == 0);
    CHECK(ttyname_r(other, name, sizeof name) == 0 && strcmp(name, second.name) == 0);
    CHECK(stat(second.name, &by_name) == 0 && fstat(other, &by_descriptor) == 0);
    CHECK(by_name.st_ino == by_descriptor.st_ino && by_name.st_dev == by_descriptor.st_dev);
    CHECK_EQ(by_name.st_mode & 0777, 0600);
    CHECK(ioctl(slave, TIOCGWINSZ, &now) == 0 && now.ws_row == 33 && now.ws_col == 121);
    struct termios is = {0};
    CHECK(tcgetattr(other, &is) == 0 && memcmp(&is, &raw, sizeof is) == 0);
    CHECK(tcgetattr(slave, &is) == 0 && memcmp(&is, &cooked, sizeof is) == 0);
    expect_read(slave, "one\n");
    put(first.master, "ee\n");
    expect_read(reader, "two\n");
    expect_read(slave, "three\n");
    expect_read(first.master, "line\r\nof output\r\n");
    expect_read(other, "\003\004raw\n");
    expect_read(second.master, "back\n");
    errno = 0;
    CHECK(read(second.master, name, 1) == -1 && errno == EAGAIN);
    CHECK(read(reader, name, 1) == -1 && errno == EAGAIN);
}

/* Pairs in states of their own. */
static void states(void) {
    struct pair fresh = make(), left = make(), packets = make(), own = make();
    int gone = open_slave(&left, O_RDWR);
    put(gone, "last words");
    CHECK(close(gone) == 0);
    int one = 1, slave = open_slave(&packets, O_RDWR), exclusive = open_slave(&own, O_RDWR);
    CHECK(ioctl(packets.master, TIOCPKT, &one) == 0);
    put(slave, "packet");
    CHECK(ioctl(exclusive, TIOCEXCL) == 0);
    CHECK(ioctl(own.master, TIOCSPTLCK, &one) == 0);
    int hung_up_master = posix_openpt(O_RDWR | O_NOCTTY), hung_up;
    CHECK(unlockpt(hung_up_master) == 0);
    CHECK((hung_up = open(ptsname(hung_up_master), O_RDWR | O_NOCTTY)) >= 0);
    CHECK(close(hung_up_master) == 0);
    ready_and_wait();
    CHECK_EQ(events(fresh.master) & POLLHUP, 0);
    int late = open_slave(&fresh, O_RDWR);
    put(late, "x");
    expect_read(fresh.master, "x");
    CHECK_EQ(events(left.master) & POLLHUP, POLLHUP);
    expect_read(left.master, "last words");
    char byte;
    CHECK(read(left.master, &byte, 1) == -1 && errno == EIO);
    char text[8] = {0};
    CHECK_EQ(read(packets.master, text, sizeof text), 7);
    CHECK(text[0] == TIOCPKT_DATA && strcmp(text + 1, "packet") == 0);
    int is = 0;
    CHECK(ioctl(own.master, TIOCGPTLCK, &is) == 0 && is != 0);
    is = 0;
    CHECK(ioctl(exclusive, TIOCGEXCL, &is) == 0 && is != 0);
    CHECK(tcgetattr(hung_up, &(struct termios){0}) == -1 && errno == EIO);
}

static volatile sig_atomic_t interrupted;
static void interrupt(int signal) {
    interrupted = signal;
}

static int answer(int line) {
    int result = 0;
    CHECK_EQ(read(line, &result, sizeof result), sizeof result);
    return result;
}
static void tell(int line, int result) {
    CHECK_EQ(write(line, &result, sizeof result), sizeof result);
}

/* A session with a terminal: two process groups, the second in the foreground. */
static void session(void) {
    struct pair pair = make();
    int lines[2], jobs[2];
    CHECK(pipe(lines) == 0 && pipe(jobs) == 0);
    pid_t leader = fork();
    if (leader == 0) {
        CHECK(close(pair.master) == 0);
        CHECK(setsid() == getpid());
        int slave = open(pair.name, O_RDWR);
        CHECK(slave >= 0 && tcgetsid(slave) == getpid());
        signal(SIGINT, SIG_IGN);
        signal(SIGTTOU, SIG_IGN);
        pid_t job = fork();
        if (job == 0) {
            CHECK(setpgid(0, 0) == 0 && close(slave) == 0);
            struct sigaction action = {.sa_handler = interrupt};
            sigaction(SIGINT, &action, NULL);
            tell(jobs[1], 1);
            while (!interrupted) sleep_ms(2);
            int tty = open("/dev/tty", O_RDWR);
            CHECK(tty >= 0);
            CHECK_EQ(tcgetpgrp(tty), getpid());
            CHECK_EQ(tcgetsid(tty), getppid());
            put(tty, "interrupted");
            _exit(7);
        }
        CHECK(setpgid(job, job) == 0 || errno == EACCES);
        CHECK_EQ(answer(jobs[0]), 1);
        CHECK(tcsetpgrp(slave, job) == 0);
        int tty = open("/dev/tty", O_RDWR);
        CHECK(tty >= 0);
        tell(lines[1], job);
        int status;
        CHECK_EQ(waitpid(job, &status, 0), job);
        CHECK_EQ(WEXITSTATUS(status), 7);
        CHECK_EQ(tcgetsid(tty), getpid());
        _exit(0);
    }
    int job = answer(lines[0]);
    ready_and_wait();
    CHECK_EQ(tcgetpgrp(pair.master), job);
    CHECK_EQ(tcgetsid(pair.master), leader);
    put(pair.master, "\003");
    char text[64] = {0};
    for (size_t got = 0; strstr(text, "interrupted") == NULL;) {
        ssize_t n = read(pair.master, text + got, sizeof text - 1 - got);
        CHECK(n > 0);
        got += (size_t)n;
    }
    int status;
    CHECK_EQ(waitpid(leader, &status, 0), leader);
    CHECK_EQ(status, 0);
}

int main(int argc, char **argv) {
    static const struct check_case cases[] = {{"pair", pair}, {"states", states}, {"session", session}};
    alarm(300);
    return RUN_CASE(cases, argc, argv);
}
