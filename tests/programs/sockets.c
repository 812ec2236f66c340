/* Unix sockets. */
#include "check.h"
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <linux/sockios.h>

static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};

static void pair(int kind, int ends[2]) { CHECK(socketpair(AF_UNIX, kind, 0, ends) == 0); }

static void put(int fd, const char *text) { CHECK_EQ(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text)); }

/* Exactly this, whether as one message or as what is left of a stream. */
static void expect(int fd, const char *wanted) {
    char text[256] = {0};
    ssize_t got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
    if (got != (ssize_t)strlen(wanted) || memcmp(text, wanted, strlen(wanted)) != 0) {
        say("FAILED: socket %d gives \"%s\" (%zd, errno %d), not \"%s\"\n", fd, text, got, errno, wanted);
        _exit(99);
    }
}
static void expect_nothing(int fd) {
    char byte;
    ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
    CHECK(got == -1 && errno == EAGAIN);
}
static void expect_end_of_file(int fd) {
    char byte;
    CHECK_EQ(recv(fd, &byte, 1, MSG_DONTWAIT), 0);
}
static void expect_failure(int fd, int error) {
    ssize_t sent = send(fd, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    CHECK_EQ(sent, -1);
    CHECK_EQ(errno, error);
}
static int events(int fd) {
    struct pollfd asked = {fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0};
    CHECK(poll(&asked, 1, 0) >= 0);
    return asked.revents;
}
static void expect_end(pid_t child) {
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

/* Both ends here, with something in both directions. */
static void pairs(void) {
    int ends[3][2], before[3][2];
    struct stat stats[6];
    for (int k = 0; k < 3; k++) {
        pair(kinds[k], ends[k]);
        put(ends[k][0], "first");
        put(ends[k][0], "second message");
        put(ends[k][1], "back");
        for (int e = 0; e < 2; e++) {
            CHECK(fstat(ends[k][e], &stats[2 * k + e]) == 0);
            before[k][e] = events(ends[k][e]);
        }
    }
    CHECK(fcntl(ends[1][0], F_SETFL, O_NONBLOCK) == 0);
    int copy = fcntl(ends[0][1], F_DUPFD_CLOEXEC, 100);
    CHECK(copy == 100);
    int flags = fcntl(ends[1][0], F_GETFL), plain = fcntl(ends[1][1], F_GETFL);
    ready_and_wait();
    for (int k = 0; k < 3; k++) {
        for (int e = 0; e < 2; e++) {
            CHECK_EQ(events(ends[k][e]), before[k][e]);
            int type, domain;
            socklen_t length = sizeof type;
            CHECK(getsockopt(ends[k][e], SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == kinds[k]);
            CHECK(getsockopt(ends[k][e], SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX);
        }
        if (kinds[k] == SOCK_STREAM) {
            expect(copy, "firstsecond message");
        } else {
            expect(ends[k][1], "first");
            expect(ends[k][1], "second message");
        }
        expect_nothing(ends[k][1]);
        expect(ends[k][0], "back");
        expect_nothing(ends[k][0]);
        put(ends[k][0], "new");
        put(ends[k][1], "newer");
        expect(ends[k][1], "new");
        expect(ends[k][0], "newer");
        struct sockaddr_un name;
        socklen_t length = sizeof name;
        CHECK(getpeername(ends[k][0], (struct sockaddr *)&name, &length) == 0 && length == sizeof name.sun_family);
    }
    CHECK_EQ(fcntl(ends[1][0], F_GETFL), flags);
    CHECK_EQ(fcntl(ends[1][1], F_GETFL), plain);
    CHECK_EQ(fcntl(copy, F_GETFD), FD_CLOEXEC);
    CHECK_EQ(fcntl(ends[0][1], F_GETFD), 0);
}

/* One end closed before the checkpoint: with nothing, with something in the queue, with something unread at the other end. */
static void closed(void) {
    for (int run = 0; run < 2; run++) {
        static int quiet[3][2], left[3][2], reset[3][2], before[3][3];
        if (run == 0) {
            for (int k = 0; k < 3; k++) {
                pair(kinds[k], quiet[k]);
                close(quiet[k][1]);
                pair(kinds[k], left[k]);
                put(left[k][1], "last");
                put(left[k][1], "words");
                close(left[k][1]);
                pair(kinds[k], reset[k]);
                put(reset[k][0], "never read");
                close(reset[k][1]);
                before[k][0] = events(quiet[k][0]);
                before[k][1] = events(left[k][0]);
                before[k][2] = events(reset[k][0]);
            }
            ready_and_wait();
            continue;
        }
        for (int k = 0; k < 3; k++) {
            bool datagram = kinds[k] == SOCK_DGRAM;
            CHECK_EQ(events(quiet[k][0]), before[k][0]);
            CHECK_EQ(events(left[k][0]), before[k][1]);
            CHECK_EQ(events(reset[k][0]), before[k][2]);
            if (kinds[k] == SOCK_STREAM) {
                expect(left[k][0], "lastwords");
            } else {
                expect(left[k][0], "last");
                expect(left[k][0], "words");
            }
            if (!datagram) {
                expect_end_of_file(quiet[k][0]);
                expect_end_of_file(left[k][0]);
                char byte;
                CHECK(recv(reset[k][0], &byte, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET);
                expect_end_of_file(reset[k][0]);
            } else {
                expect_nothing(quiet[k][0]);
            }
            expect_failure(quiet[k][0], datagram ? ECONNREFUSED : EPIPE);
            expect_failure(left[k][0], datagram ? ECONNREFUSED : EPIPE);
        }
    }
}

/* Directions that were shut down, before and after something was sent. */
static void shutdowns(void) {
    int stream[2], packets[2], both[2], datagram[2];
    pair(SOCK_STREAM, stream);
    pair(SOCK_SEQPACKET, packets);
    pair(SOCK_STREAM, both);
    pair(SOCK_DGRAM, datagram);
    put(stream[0], "the end");
    CHECK(shutdown(stream[0], SHUT_WR) == 0);
    put(packets[0], "one");
    put(packets[0], "two");
    CHECK(shutdown(packets[1], SHUT_RD) == 0);
    put(both[0], "left");
    CHECK(shutdown(both[1], SHUT_RDWR) == 0);
    put(datagram[0], "datagram");
    CHECK(shutdown(datagram[0], SHUT_WR) == 0);
    int before[] = {events(stream[0]), events(stream[1]), events(packets[0]), events(packets[1]), events(both[0])};
    ready_and_wait();
    int now[] = {events(stream[0]), events(stream[1]), events(packets[0]), events(packets[1]), events(both[0])};
    for (int i = 0; i < 5; i++) CHECK_EQ(now[i], before[i]);
    expect(stream[1], "the end");
    expect_end_of_file(stream[1]);
    expect_failure(stream[0], EPIPE);
    put(stream[1], "other direction");
    expect(stream[0], "other direction");
    expect(packets[1], "one");
    expect(packets[1], "two");
    expect_end_of_file(packets[1]);
    expect_failure(packets[0], EPIPE);
    put(packets[1], "back");
    expect(packets[0], "back");
    expect(both[1], "left");
    expect_end_of_file(both[1]);
    expect_end_of_file(both[0]);
    expect_failure(both[0], EPIPE);
    expect_failure(both[1], EPIPE);
    expect(datagram[1], "datagram");
    expect_failure(datagram[0], EPIPE);
    put(datagram[1], "still");
    expect(datagram[0], "still");
}

/* Ends in different processes: inherited, one held twice, one by a grandchild alone. */
static void tree(void) {
    int line[2], deep[2];
    pair(SOCK_STREAM, line);
    pair(SOCK_SEQPACKET, deep);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(line[0]);
        pid_t grandchild = fork();
        CHECK(grandchild >= 0);
        if (grandchild == 0) {
            close(line[1]);
            close(deep[0]);
            char text[32];
            put(deep[1], "waiting");
            CHECK_EQ(recv(deep[1], text, sizeof text, 0), 2);
            put(deep[1], "deep answer");
            _exit(0);
        }
        close(deep[0]);
        close(deep[1]);
        char text[32] = {0};
        put(line[1], "waiting");
        CHECK_EQ(read(line[1], text, sizeof text), 2);
        CHECK(memcmp(text, "go", 2) == 0);
        put(line[1], "answer");
        expect_end(grandchild);
        _exit(0);
    }
    close(line[1]);
    close(deep[1]);
    while (!(events(line[0]) & POLLIN) || !(events(deep[0]) & POLLIN)) sleep_ms(1);
    ready_and_wait();
    expect(line[0], "waiting");
    expect(deep[0], "waiting");
    put(line[0], "go");
    put(deep[0], "go");
    char text[32] = {0};
    CHECK_EQ(recv(line[0], text, sizeof text, 0), 6);
    CHECK_EQ(recv(deep[0], text, sizeof text, 0), 11);
    expect_end(child);
    expect_end_of_file(line[0]);
    expect_end_of_file(deep[0]);
}

/* Queues as full as they get, of small and of large messages. */
static void full(void) {
    int ends[4][2], counts[4] = {0};
    const size_t sizes[] = {65536, 7, 30000, 3};
    static char buffer[1 << 20];
    for (int i = 0; i < 4; i++) {
        pair(i == 0 ? SOCK_STREAM : i < 3 ? SOCK_DGRAM : SOCK_SEQPACKET, ends[i]);
        for (;;) {
            for (size_t at = 0; at < sizes[i]; at++) buffer[at] = (char)(counts[i] * 31 + (int)at * 7);
            ssize_t sent = send(ends[i][0], buffer, sizes[i], MSG_DONTWAIT);
            if (sent < 0) break;
            counts[i] += i == 0 ? (int)sent : 1;
        }
        CHECK(errno == EAGAIN && counts[i] > 0);
    }
    int size = 0, given = 70000;
    socklen_t length = sizeof size;
    /* Less than is in it already. */
    CHECK(setsockopt(ends[2][0], SOL_SOCKET, SO_SNDBUF, &given, sizeof given) == 0);
    CHECK(getsockopt(ends[2][0], SOL_SOCKET, SO_SNDBUF, &given, &length) == 0);
    ready_and_wait();
    CHECK(getsockopt(ends[2][0], SOL_SOCKET, SO_SNDBUF, &size, &length) == 0);
    CHECK_EQ(size, given);
    int got = 0;
    while (got < counts[0]) {
        ssize_t n = recv(ends[0][1], buffer, sizeof buffer, MSG_DONTWAIT);
        CHECK(n > 0);
        for (ssize_t at = 0; at < n; at++, got++) {
            int round = got / 65536 * 65536;
            CHECK_EQ(buffer[at], (char)(round * 31 + (got - round) * 7));
        }
    }
    expect_nothing(ends[0][1]);
    for (int i = 1; i < 4; i++) {
        for (int n = 0; n < counts[i]; n++) {
            CHECK_EQ(recv(ends[i][1], buffer, sizeof buffer, MSG_DONTWAIT), sizes[i]);
            for (size_t at = 0; at < sizes[i]; at++) CHECK_EQ(buffer[at], (char)(n * 31 + (int)at * 7));
        }
        expect_nothing(ends[i][1]);
    }
}

/* Messages of no bytes are messages. */
static void empty(void) {
    int datagram[2], packets[2];
    pair(SOCK_DGRAM, datagram);
    pair(SOCK_SEQPACKET, packets);
    int *all[] = {datagram, packets};
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(send(all[i][0], "", 0, 0), 0);
        put(all[i][0], "a");
        CHECK_EQ(send(all[i][0], "", 0, 0), 0);
        CHECK_EQ(send(all[i][0], "", 0, 0), 0);
        put(all[i][0], "b");
    }
    ready_and_wait();
    for (int i = 0; i < 2; i++) {
        char text[8];
        CHECK_EQ(recv(all[i][1], text, 8, MSG_DONTWAIT), 0);
        expect(all[i][1], "a");
        CHECK_EQ(recv(all[i][1], text, 8, MSG_DONTWAIT), 0);
        CHECK_EQ(recv(all[i][1], text, 8, MSG_DONTWAIT), 0);
        expect(all[i][1], "b");
        expect_nothing(all[i][1]);
    }
}

static int number(int fd, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0);
    return value;
}

static volatile sig_atomic_t signalled;
static void on_signal(int number) { signalled = number; }

static void options(void) {
    int ends[2], plain[2];
    pair(SOCK_STREAM, ends);
    pair(SOCK_DGRAM, plain);
    const int names[] = {SO_SNDBUF, SO_RCVBUF, SO_PASSCRED, SO_RCVLOWAT, SO_PRIORITY, SO_KEEPALIVE, SO_BROADCAST,
                         SO_REUSEADDR, SO_TIMESTAMP, SO_PEEK_OFF, SO_PASSSEC, SO_OOBINLINE};
    const int given[] = {50000, 60000, 1, 5, 3, 1, 1, 1, 1, 2, 1, 1};
    enum { COUNT = sizeof names / sizeof names[0] };
    put(ends[1], "abcdefgh");
    int values[COUNT], defaults[COUNT];
    for (int i = 0; i < COUNT; i++) {
        CHECK(setsockopt(ends[0], SOL_SOCKET, names[i], &given[i], sizeof(int)) == 0);
        values[i] = number(ends[0], names[i]);
        defaults[i] = number(plain[0], names[i]);
    }
    struct timeval receive = {3, 250000}, send_time = {1, 0}, now;
    struct linger linger = {1, 9}, linger_now;
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive) == 0);
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &send_time, sizeof send_time) == 0);
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    socklen_t length = sizeof receive;
    CHECK(getsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &receive, &length) == 0);
    CHECK(signal(SIGUSR1, on_signal) != SIG_ERR);
    CHECK(fcntl(plain[0], F_SETOWN, getpid()) == 0 && fcntl(plain[0], F_SETSIG, SIGUSR1) == 0);
    CHECK(fcntl(plain[0], F_SETFL, O_ASYNC) == 0);
    ready_and_wait();
    for (int i = 0; i < COUNT; i++) {
        CHECK_EQ(number(ends[0], names[i]), values[i]);
        CHECK_EQ(number(plain[0], names[i]), defaults[i]);
    }
    length = sizeof now;
    CHECK(getsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &now, &length) == 0);
    CHECK_EQ(now.tv_sec, receive.tv_sec);
    CHECK_EQ(now.tv_usec, receive.tv_usec);
    CHECK(getsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &now, &length) == 0 && now.tv_sec == 1 && now.tv_usec == 0);
    length = sizeof linger_now;
    CHECK(getsockopt(ends[0], SOL_SOCKET, SO_LINGER, &linger_now, &length) == 0);
    CHECK(linger_now.l_onoff == 1 && linger_now.l_linger == 9);
    char text[8] = {0};
    CHECK_EQ(recv(ends[0], text, 3, MSG_PEEK), 3);
    CHECK(memcmp(text, "cde", 3) == 0);
    CHECK_EQ(signalled, 0);
    put(plain[1], "signal");
    while (signalled == 0) sleep_ms(1);
    CHECK_EQ(signalled, SIGUSR1);
}

static void pass(int through, const int *fds, int count, const char *text) {
    char space[CMSG_SPACE(4 * sizeof(int))] = {0};
    struct iovec part = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space};
    message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, (size_t)count * sizeof(int));
    CHECK_EQ(sendmsg(through, &message, 0), strlen(text));
}
static void take(int from, int *fds, int count, const char *wanted) {
    char space[CMSG_SPACE(4 * sizeof(int))] = {0}, text[64] = {0};
    struct iovec part = {text, sizeof text - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    CHECK_EQ(recvmsg(from, &message, MSG_DONTWAIT), strlen(wanted));
    CHECK(strcmp(text, wanted) == 0);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    CHECK(header != NULL && header->cmsg_type == SCM_RIGHTS);
    CHECK_EQ(header->cmsg_len, CMSG_LEN((size_t)count * sizeof(int)));
    memcpy(fds, CMSG_DATA(header), (size_t)count * sizeof(int));
}

/* Descriptors in flight: of an open file, of a pipe that nobody else holds, of sockets with messages in them. */
static void rights(void) {
    for (int k = 0; k < 3; k++) {
        char go[32];
        int ends[2], inner[2], innermost[2], pipes[2], got[4];
        pair(kinds[k], ends);
        pair(kinds[k], inner);
        pair(SOCK_STREAM, innermost);
        CHECK(pipe(pipes) == 0 && write(pipes[1], "in the pipe", 11) == 11);
        char name[32];
        snprintf(name, sizeof name, "sent-%d", k);
        int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
        CHECK(file >= 0 && write(file, "0123456789", 10) == 10 && lseek(file, 4, SEEK_SET) == 4);
        put(ends[0], "before");
        put(innermost[0], "innermost");
        pass(inner[0], (int[]){innermost[1], pipes[1]}, 2, "inner");
        put(inner[0], "more");
        pass(ends[0], (int[]){file, pipes[0]}, 2, "two");
        pass(ends[0], (int[]){inner[1]}, 1, "socket");
        put(ends[0], "after");
        close(pipes[0]);
        close(pipes[1]);
        close(inner[1]);
        close(innermost[1]);
        if (k < 2) {
            /* Each kind in a process of its own, all saved at once. */
            pid_t child = fork();
            CHECK(child >= 0);
            if (child > 0) {
                close(file);
                for (int e = 0; e < 2; e++) close(ends[e]);
                close(inner[0]);
                close(innermost[0]);
                continue;
            }
        }
        snprintf(go, sizeof go, "set-%d", k);
        close(open(go, O_CREAT | O_WRONLY, 0600));
        if (k == 2) {
            while (access("set-0", F_OK) != 0 || access("set-1", F_OK) != 0) sleep_ms(1);
            ready_and_wait();
        } else {
            wait_go();
        }
        if (kinds[k] == SOCK_STREAM) {
            /* What was sent before descriptors is read with them. */
            take(ends[1], got, 2, "beforetwo");
        } else {
            expect(ends[1], "before");
            take(ends[1], got, 2, "two");
        }
        char text[32] = {0};
        CHECK_EQ(read(got[0], text, 3), 3);
        CHECK(memcmp(text, "456", 3) == 0);
        CHECK_EQ(lseek(file, 0, SEEK_CUR), 7);
        CHECK(read(got[1], text, sizeof text) == 11 && memcmp(text, "in the pipe", 11) == 0);
        take(ends[1], got + 2, 1, "socket");
        expect(ends[1], "after");
        int deeper[2];
        take(got[2], deeper, 2, "inner");
        expect(got[2], "more");
        expect(deeper[0], "innermost");
        put(deeper[0], "answer");
        expect(innermost[0], "answer");
        CHECK(write(deeper[1], "again", 5) == 5);
        CHECK(read(got[1], text, sizeof text) == 5);
        if (k < 2) _exit(0);
        for (int i = 0; i < 2; i++) {
            int status;
            CHECK(wait(&status) > 0);
            CHECK_EQ(status, 0);
        }
    }
}

/* Sockets in an epoll set. */
static void watched(void) {
    int ends[2], half[2], set = epoll_create1(0), edge = epoll_create1(0);
    pair(SOCK_STREAM, ends);
    pair(SOCK_STREAM, half);
    close(half[1]);
    struct epoll_event wanted = {EPOLLIN | EPOLLRDHUP, {.u64 = 7}}, got[4];
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &wanted) == 0);
    wanted.data.u64 = 8;
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, half[0], &wanted) == 0);
    wanted = (struct epoll_event){EPOLLIN | EPOLLET, {.u64 = 9}};
    CHECK(epoll_ctl(edge, EPOLL_CTL_ADD, ends[1], &wanted) == 0);
    put(ends[0], "seen");
    CHECK_EQ(epoll_wait(edge, got, 4, 0), 1);
    CHECK_EQ(epoll_wait(edge, got, 4, 0), 0);
    ready_and_wait();
    CHECK_EQ(epoll_wait(set, got, 4, 0), 1);
    CHECK_EQ(got[0].data.u64, 8);
    CHECK_EQ(got[0].events, EPOLLIN | EPOLLRDHUP | EPOLLHUP);
    CHECK_EQ(epoll_wait(edge, got, 4, 0), 0);
    put(ends[0], "more");
    CHECK_EQ(epoll_wait(edge, got, 4, 0), 1);
    expect(ends[1], "seenmore");
    put(ends[1], "x");
    CHECK_EQ(epoll_wait(set, got, 4, 0), 2);
}

/* A socket that was made and not used yet. */
static void fresh(void) {
    int fds[3];
    for (int k = 0; k < 3; k++) CHECK((fds[k] = socket(AF_UNIX, kinds[k] | SOCK_NONBLOCK, 0)) >= 0);
    ready_and_wait();
    for (int k = 0; k < 3; k++) {
        expect_failure(fds[k], ENOTCONN);
        CHECK(fcntl(fds[k], F_GETFL) & O_NONBLOCK);
        struct sockaddr_un name = {AF_UNIX, "bound"};
        unlink("bound");
        CHECK(bind(fds[k], (struct sockaddr *)&name, sizeof name) == 0);
        unlink("bound");
    }
}

/* Both directions at full rate, between two processes; every byte is checked. */
static void exchange(int fd, bool packets, const char *stop) {
    unsigned char out[4096], in[8192];
    uint64_t sent = 0, got = 0;
    bool stopping = false, ended = false;
    size_t pending = 0;
    while (!ended || !stopping) {
        struct pollfd asked = {fd, (short)(POLLIN | (stopping ? 0 : POLLOUT)), 0};
        CHECK(poll(&asked, 1, -1) == 1);
        if (!stopping && (asked.revents & POLLOUT)) {
            if (pending == 0) {
                if (sent > 100000 && access(stop, F_OK) == 0) {
                    stopping = true;
                    CHECK(shutdown(fd, SHUT_WR) == 0);
                    continue;
                }
                pending = 1 + sent * 2654435761u % sizeof out;
            }
            for (size_t i = 0; i < pending; i++) out[i] = (unsigned char)((sent + i) * 131 >> 3);
            ssize_t n = send(fd, out, pending, MSG_DONTWAIT | MSG_NOSIGNAL);
            CHECK(n > 0 || errno == EAGAIN);
            if (n > 0) sent += (uint64_t)n, pending = packets ? 0 : pending - (size_t)n;
        }
        if (asked.revents & (POLLIN | POLLHUP)) {
            ssize_t n = recv(fd, in, sizeof in, MSG_DONTWAIT);
            CHECK(n >= 0 || errno == EAGAIN);
            if (n == 0) ended = true;
            if (n > 0 && packets) CHECK_EQ(n, 1 + got * 2654435761u % sizeof out);
            for (ssize_t i = 0; i < n; i++, got++) CHECK_EQ(in[i], (unsigned char)(got * 131 >> 3));
        }
    }
    CHECK(sent > 100000 && got > 100000);
}
static void load(void) {
    const int used[] = {SOCK_STREAM, SOCK_SEQPACKET};
    pid_t children[4];
    for (int k = 0; k < 2; k++) {
        int ends[2];
        pair(used[k], ends);
        for (int e = 0; e < 2; e++) {
            children[2 * k + e] = fork();
            CHECK(children[2 * k + e] >= 0);
            if (children[2 * k + e] == 0) {
                close(ends[1 - e]);
                exchange(ends[e], k == 1, "go");
                _exit(0);
            }
        }
        close(ends[0]);
        close(ends[1]);
    }
    ready_and_wait();
    for (int i = 0; i < 4; i++) expect_end(children[i]);
}

/* What is refused, each with the program running on. */
static void urgent(void) {
    int ends[2];
    pair(SOCK_STREAM, ends);
    put(ends[0], "plain");
    CHECK_EQ(send(ends[0], "!", 1, MSG_OOB), 1);
    ready_and_wait();
    char byte = 0;
    CHECK(recv(ends[1], &byte, 1, MSG_OOB) == 1 && byte == '!');
    expect(ends[1], "plain");
}

static struct sockaddr_un address_of(const char *path, socklen_t *length) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (path[0] == '@') {
        /* Abstract names are the host's: each run has its own. */
        int n = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "stasis-test-%d-%s", getpid(), path + 1);
        *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    } else {
        snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
        *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
    }
    return address;
}
static int bound(int kind, const char *path) {
    int fd = socket(AF_UNIX, kind, 0);
    CHECK(fd >= 0);
    if (path[0] != '@') unlink(path);
    socklen_t length;
    struct sockaddr_un address = address_of(path, &length);
    CHECK(bind(fd, (struct sockaddr *)&address, length) == 0);
    return fd;
}
static int connected(int kind, const struct sockaddr_un *address, socklen_t length) {
    int fd = socket(AF_UNIX, kind, 0);
    CHECK(fd >= 0);
    CHECK(connect(fd, (const struct sockaddr *)address, length) == 0);
    return fd;
}
static void expect_name(const struct sockaddr_un *have, socklen_t length, const struct sockaddr_un *wanted, socklen_t size) {
    CHECK_EQ(length, size);
    CHECK(memcmp(have, wanted, size) == 0);
}
static void expect_names(int fd, const struct sockaddr_un *own, socklen_t own_size, const struct sockaddr_un *peer,
                         socklen_t peer_size) {
    struct sockaddr_un have;
    socklen_t length = sizeof have;
    CHECK(getsockname(fd, (struct sockaddr *)&have, &length) == 0);
    expect_name(&have, length, own, own_size);
    if (peer == NULL) return;
    length = sizeof have;
    CHECK(getpeername(fd, (struct sockaddr *)&have, &length) == 0);
    expect_name(&have, length, peer, peer_size);
}

/* Listening sockets with accepted connections, connections that wait, and one whose client has gone; under a relative path, an
 * absolute one and an abstract name. */
static void servers(void) {
    static char absolute[512];
    CHECK(getcwd(absolute, 60) != NULL);
    strcat(absolute, "/absolute.sock");
    const char *names[] = {"relative.sock", absolute, "@server"};
    enum { COUNT = 3 };
    int kinds_used[COUNT] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_STREAM};
    int server[COUNT], client[COUNT], served[COUNT], waiting[COUNT][2], gone[COUNT], served_gone[COUNT], widow[COUNT];
    struct sockaddr_un address[COUNT], none = {.sun_family = AF_UNIX};
    socklen_t length[COUNT];
    for (int i = 0; i < COUNT; i++) {
        server[i] = bound(kinds_used[i], names[i]);
        address[i] = address_of(names[i], &length[i]);
        if (names[i][0] != '@') CHECK(chmod(names[i], 0640) == 0);
        CHECK(listen(server[i], 5) == 0);
        client[i] = connected(kinds_used[i], &address[i], length[i]);
        CHECK((served[i] = accept(server[i], NULL, NULL)) >= 0);
        put(client[i], "request");
        put(served[i], "response");
        gone[i] = connected(kinds_used[i], &address[i], length[i]);
        CHECK((served_gone[i] = accept(server[i], NULL, NULL)) >= 0);
        put(gone[i], "farewell");
        close(gone[i]);
        widow[i] = connected(kinds_used[i], &address[i], length[i]);
        int end = accept(server[i], NULL, NULL);
        CHECK(end >= 0);
        close(end);
        for (int w = 0; w < 2; w++) waiting[i][w] = connected(kinds_used[i], &address[i], length[i]);
    }
    ready_and_wait();
    socklen_t nothing = sizeof none.sun_family;
    for (int i = 0; i < COUNT; i++) {
        expect_names(server[i], &address[i], length[i], NULL, 0);
        expect_names(client[i], &none, nothing, &address[i], length[i]);
        expect_names(served[i], &address[i], length[i], &none, nothing);
        expect_names(served_gone[i], &address[i], length[i], NULL, 0);
        expect_names(widow[i], &none, nothing, &address[i], length[i]);
        if (names[i][0] != '@') {
            struct stat data;
            CHECK(stat(names[i], &data) == 0 && S_ISSOCK(data.st_mode) && (data.st_mode & 07777) == 0640);
        }
        expect(served[i], "request");
        expect(client[i], "response");
        expect(served_gone[i], "farewell");
        expect_end_of_file(served_gone[i]);
        expect_end_of_file(widow[i]);
        expect_failure(widow[i], EPIPE);
        CHECK(events(server[i]) & POLLIN);
        for (int w = 0; w < 2; w++) {
            int end = accept(server[i], NULL, NULL);
            CHECK(end >= 0);
            put(waiting[i][w], w == 0 ? "one" : "two");
            expect(end, w == 0 ? "one" : "two");
            put(end, "welcome");
            expect(waiting[i][w], "welcome");
        }
        CHECK(!(events(server[i]) & POLLIN));
        /* As many as may wait. */
        int more = 0;
        for (;; more++) {
            int fd = socket(AF_UNIX, kinds_used[i] | SOCK_NONBLOCK, 0);
            if (connect(fd, (struct sockaddr *)&address[i], length[i]) != 0) break;
        }
        CHECK_EQ(errno, EAGAIN);
        CHECK_EQ(more, 6);
    }
}

/* Connections whose listening socket is closed, and its file removed. */
static void orphans(void) {
    int server = bound(SOCK_STREAM, "orphan.sock"), other = bound(SOCK_STREAM, "left.sock");
    socklen_t length, left_length;
    struct sockaddr_un address = address_of("orphan.sock", &length), left = address_of("left.sock", &left_length);
    CHECK(listen(server, 5) == 0 && listen(other, 5) == 0);
    int client = connected(SOCK_STREAM, &address, length), left_client = connected(SOCK_STREAM, &left, left_length);
    int served = accept(server, NULL, NULL), left_served = accept(other, NULL, NULL);
    CHECK(served >= 0 && left_served >= 0);
    put(client, "to the orphan");
    close(server);
    close(other);
    CHECK(unlink("orphan.sock") == 0);
    ready_and_wait();
    expect_names(served, &address, length, NULL, 0);
    expect_names(left_served, &left, left_length, NULL, 0);
    CHECK(access("orphan.sock", F_OK) == -1 && errno == ENOENT);
    CHECK(access("left.sock", F_OK) == 0);
    expect(served, "to the orphan");
    put(left_served, "back");
    expect(left_client, "back");
}

/* Datagram sockets with names, connected one way, and messages of several senders. */
static void datagrams(void) {
    const char *names[] = {"receiver.sock", "@receiver"};
    int receiver[2], sender[2], nameless[2], several[2];
    struct sockaddr_un address[2], from[2], first;
    socklen_t length[2], from_length[2];
    for (int i = 0; i < 2; i++) {
        receiver[i] = bound(SOCK_DGRAM, names[i]);
        address[i] = address_of(names[i], &length[i]);
        const char *own = i == 0 ? "sender.sock" : "@sender";
        sender[i] = bound(SOCK_DGRAM, own);
        from[i] = address_of(own, &from_length[i]);
        CHECK(connect(sender[i], (struct sockaddr *)&address[i], length[i]) == 0);
        nameless[i] = connected(SOCK_DGRAM, &address[i], length[i]);
        several[i] = socket(AF_UNIX, SOCK_DGRAM, 0);
        put(sender[i], "with a name");
        put(nameless[i], "without");
        CHECK_EQ(sendto(several[i], "unconnected", 11, 0, (struct sockaddr *)&address[i], length[i]), 11);
        put(sender[i], "again");
    }
    ready_and_wait();
    for (int i = 0; i < 2; i++) {
        char text[32] = {0};
        socklen_t size = sizeof first;
        CHECK_EQ(recvfrom(receiver[i], text, sizeof text, MSG_DONTWAIT, (struct sockaddr *)&first, &size), 11);
        CHECK(memcmp(text, "with a name", 11) == 0);
        expect_name(&first, size, &from[i], from_length[i]);
        size = sizeof first;
        CHECK_EQ(recvfrom(receiver[i], text, sizeof text, MSG_DONTWAIT, (struct sockaddr *)&first, &size), 7);
        CHECK(memcmp(text, "without", 7) == 0 && size == 0);
        expect(receiver[i], "unconnected");
        expect(receiver[i], "again");
        expect_nothing(receiver[i]);
        CHECK_EQ(sendto(receiver[i], "answer", 6, 0, (struct sockaddr *)&from[i], from_length[i]), 6);
        expect(sender[i], "answer");
        put(nameless[i], "more");
        expect(receiver[i], "more");
        expect_names(nameless[i], &(struct sockaddr_un){.sun_family = AF_UNIX}, sizeof(sa_family_t), &address[i], length[i]);
    }
}

/* A connection that nobody accepted, with something in it. */
static void impatient(void) {
    int server = bound(SOCK_STREAM, "impatient.sock");
    socklen_t length;
    struct sockaddr_un address = address_of("impatient.sock", &length);
    CHECK(listen(server, 5) == 0);
    int client = connected(SOCK_STREAM, &address, length);
    put(client, "too early");
    ready_and_wait();
    int end = accept(server, NULL, NULL);
    CHECK(end >= 0);
    expect(end, "too early");
}

/* A message that says who sent it, this process or a child. */
static void expect_signed(int fd, pid_t by) {
    char space[CMSG_SPACE(sizeof(struct ucred))] = {0}, text[16];
    struct iovec part = {text, sizeof text};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    CHECK_EQ(recvmsg(fd, &message, MSG_DONTWAIT), 6);
    CHECK(memcmp(text, "signed", 6) == 0);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    CHECK(header != NULL && header->cmsg_type == SCM_CREDENTIALS);
    struct ucred sender;
    memcpy(&sender, CMSG_DATA(header), sizeof sender);
    CHECK_EQ(sender.pid, by);
    CHECK_EQ(sender.uid, getuid());
    CHECK_EQ(sender.gid, getgid());
}
static void credentials(void) {
    int own[2], theirs[3][2], one = 1;
    pair(SOCK_STREAM, own);
    CHECK(setsockopt(own[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
    put(own[0], "signed");
    for (int k = 0; k < 3; k++) {
        pair(kinds[k], theirs[k]);
        CHECK(setsockopt(theirs[k][1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
    }
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (int k = 0; k < 3; k++) put(theirs[k][0], "signed");
        wait_go();
        _exit(0);
    }
    for (int k = 0; k < 3; k++) {
        while (!(events(theirs[k][1]) & POLLIN)) sleep_ms(1);
    }
    ready_and_wait();
    expect_signed(own[1], getpid());
    for (int k = 0; k < 3; k++) {
        expect_signed(theirs[k][1], child);
        put(theirs[k][0], "signed");
        expect_signed(theirs[k][1], getpid());
    }
    expect_end(child);
}

/* A server that anybody may connect to, in a directory of its own. */
static void listener(void) {
    CHECK(mkdir("directory", 0755) == 0 || errno == EEXIST);
    int server = bound(SOCK_STREAM, "directory/listener.sock");
    CHECK(listen(server, 5) == 0);
    ready_and_wait();
    socklen_t length;
    struct sockaddr_un address = address_of("directory/listener.sock", &length);
    int client = connected(SOCK_STREAM, &address, length), served = accept(server, NULL, NULL);
    CHECK(served >= 0);
    put(client, "new");
    expect(served, "new");
}

/* Connections to somebody outside. */
static void outside(void) {
    socklen_t length;
    struct sockaddr_un address = address_of("outside.sock", &length);
    int stream = connected(SOCK_STREAM, &address, length), datagram;
    address = address_of("outside.datagrams", &length);
    datagram = connected(SOCK_DGRAM, &address, length);
    say("connected\n");
    while (!(events(stream) & POLLIN)) sleep_ms(1);
    ready_and_wait();
    expect(stream, "greeting");
    char byte;
    if (recv(stream, &byte, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET) {
        expect_end_of_file(stream);
        expect_failure(stream, EPIPE);
        expect_failure(datagram, ECONNREFUSED);
        say("reset\n");
    } else {
        put(stream, "still here");
        put(datagram, "still here");
        say("undisturbed\n");
    }
}

int main(int argc, char **argv) {
    static const struct check_case cases[] = {
        {"pairs", pairs},     {"closed", closed}, {"shutdowns", shutdowns}, {"tree", tree},   {"full", full},
        {"empty", empty},     {"options", options}, {"rights", rights},     {"watched", watched}, {"fresh", fresh},
        {"load", load},       {"urgent", urgent},    {"servers", servers}, {"orphans", orphans}, {"datagrams", datagrams},
        {"impatient", impatient}, {"credentials", credentials}, {"listener", listener},
        {"outside", outside},
    };
    alarm(300);
    return RUN_CASE(cases, argc, argv);
}
