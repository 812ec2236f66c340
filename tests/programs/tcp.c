/* TCP sockets. Each run has an address of its own on the loopback interface, so that no other test takes its ports. */
#include "check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static in_addr_t own;

static void choose_address(void) {
    unsigned mixed = (unsigned)getpid() * 2654435761u ^ (unsigned)monotonic_ns();
    own = htonl(0x7f000000u | (1 + mixed % 250) << 16 | (1 + mixed / 251 % 250) << 8 | (1 + mixed / 63001 % 250));
}

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};
enum form { V4, V6, MAPPED };

static socklen_t address_of(enum form form, int port, union address *address) {
    memset(address, 0, sizeof *address);
    if (form == V4) {
        address->v4.sin_family = AF_INET;
        address->v4.sin_addr.s_addr = own;
        address->v4.sin_port = htons((uint16_t)port);
        return sizeof address->v4;
    }
    address->v6.sin6_family = AF_INET6;
    address->v6.sin6_port = htons((uint16_t)port);
    if (form == MAPPED) {
        unsigned char *bytes = address->v6.sin6_addr.s6_addr;
        bytes[10] = bytes[11] = 0xff;
        memcpy(bytes + 12, &own, 4);
    } else {
        address->v6.sin6_addr = in6addr_loopback;
    }
    return sizeof address->v6;
}

static int port_of(int fd) {
    union address address;
    socklen_t length = sizeof address;
    CHECK(getsockname(fd, &address.any, &length) == 0);
    return ntohs(address.v4.sin_port);
}

static int new_socket(enum form form) {
    int fd = socket(form == V4 ? AF_INET : AF_INET6, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    return fd;
}

/* As servers do, it lets its port be used again at once. */
static int server(enum form form, int backlog) {
    union address address;
    int fd = new_socket(form), one = 1;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    socklen_t length = address_of(form, 0, &address);
    CHECK(bind(fd, &address.any, length) == 0);
    CHECK(listen(fd, backlog) == 0);
    return fd;
}

/* A client whose own address is of this run as well. */
static int client_of(enum form form, int to, int flags) {
    union address address;
    int fd = new_socket(form);
    socklen_t length = address_of(form, 0, &address);
    CHECK(bind(fd, &address.any, length) == 0);
    CHECK(fcntl(fd, F_SETFL, flags) == 0);
    length = address_of(form, port_of(to), &address);
    CHECK(connect(fd, &address.any, length) == 0 || errno == EINPROGRESS);
    return fd;
}

static int no_delay(int fd) {
    int one = 1;
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
    return fd;
}

static void pair_of(enum form client, enum form listening, int ends[2]) {
    int listener = server(listening, 8);
    ends[0] = client_of(client, listener, 0);
    ends[1] = accept(listener, NULL, NULL);
    CHECK(ends[1] >= 0);
    close(listener);
}
static void pair(int ends[2]) { pair_of(V4, V4, ends); }

static void put(int fd, const char *text) { CHECK_EQ(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text)); }

/* Exactly this, and no more of it. What was just sent may be on its way. */
static void expect(int fd, const char *wanted) {
    char text[256] = {0};
    size_t length = strlen(wanted), got = 0;
    while (got < length) {
        struct pollfd asked = {fd, POLLIN, 0};
        CHECK(poll(&asked, 1, 20000) == 1);
        ssize_t part = recv(fd, text + got, length - got, 0);
        if (part <= 0) {
            say("FAILED: socket %d gives %zd (errno %d) after \"%s\", not \"%s\"\n", fd, part, errno, text, wanted);
            _exit(99);
        }
        got += (size_t)part;
    }
    if (strcmp(text, wanted) != 0) {
        say("FAILED: socket %d gives \"%s\", not \"%s\"\n", fd, text, wanted);
        _exit(99);
    }
}
static void expect_nothing(int fd) {
    char byte;
    CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}
static void expect_end_of_file(int fd) {
    char byte;
    struct pollfd asked = {fd, POLLIN, 0};
    CHECK(poll(&asked, 1, 20000) == 1);
    CHECK_EQ(recv(fd, &byte, 1, MSG_DONTWAIT), 0);
}
static void expect_error(int fd, int error) {
    char byte;
    struct pollfd asked = {fd, POLLIN, 0};
    CHECK(poll(&asked, 1, 20000) == 1);
    CHECK_EQ(recv(fd, &byte, 1, MSG_DONTWAIT), -1);
    CHECK_EQ(errno, error);
}
static int events(int fd) {
    struct pollfd asked = {fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0};
    CHECK(poll(&asked, 1, 0) >= 0);
    return asked.revents;
}
static int waits_for(int fd, int wanted) {
    struct pollfd asked = {fd, (short)wanted, 0};
    CHECK(poll(&asked, 1, 20000) == 1);
    return asked.revents;
}
static void expect_end(pid_t child) {
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

struct names {
    union address own, peer;
    socklen_t own_length, peer_length;
};
static struct names names_of(int fd) {
    struct names names;
    memset(&names, 0, sizeof names);
    names.own_length = names.peer_length = sizeof names.own;
    CHECK(getsockname(fd, &names.own.any, &names.own_length) == 0);
    if (getpeername(fd, &names.peer.any, &names.peer_length) != 0) names.peer_length = 0;
    return names;
}
static bool same_names(int fd, struct names before) {
    struct names now = names_of(fd);
    return memcmp(&now, &before, sizeof now) == 0;
}

/* Both ends here, with something in both directions. */
static void pairs(void) {
    static const enum form forms[][2] = {{V4, V4}, {V6, V6}, {MAPPED, MAPPED}, {V4, MAPPED}, {MAPPED, V4}};
    enum { MANY = sizeof forms / sizeof *forms };
    int ends[MANY][2], before[MANY][2];
    struct names names[MANY][2];
    for (int k = 0; k < MANY; k++) {
        pair_of(forms[k][0], forms[k][1], ends[k]);
        put(ends[k][0], "first");
        put(ends[k][0], " second");
        put(ends[k][1], "back");
        for (int e = 0; e < 2; e++) {
            waits_for(ends[k][e], POLLIN);
            names[k][e] = names_of(ends[k][e]);
            before[k][e] = events(ends[k][e]);
        }
    }
    CHECK(fcntl(ends[1][0], F_SETFL, O_NONBLOCK) == 0);
    int copy = fcntl(ends[0][1], F_DUPFD_CLOEXEC, 100);
    CHECK(copy == 100);
    ready_and_wait();
    for (int k = 0; k < MANY; k++) {
        for (int e = 0; e < 2; e++) {
            CHECK_EQ(events(ends[k][e]), before[k][e]);
            CHECK(same_names(ends[k][e], names[k][e]));
        }
        expect(k == 0 ? copy : ends[k][1], "first second");
        expect_nothing(ends[k][1]);
        expect(ends[k][0], "back");
        expect_nothing(ends[k][0]);
        put(ends[k][0], "new");
        put(ends[k][1], "newer");
        expect(ends[k][1], "new");
        expect(ends[k][0], "newer");
    }
    CHECK_EQ(fcntl(ends[1][0], F_GETFL), O_RDWR | O_NONBLOCK);
    CHECK_EQ(fcntl(ends[1][1], F_GETFL), O_RDWR);
}

/* One end closed before the checkpoint: with nothing, with something to be read, and with something unread, which resets. */
static void closed(void) {
    int quiet[2], left[2], reset[2], seen[2], refused;
    pair(quiet);
    close(quiet[1]);
    waits_for(quiet[0], POLLRDHUP);
    pair(left);
    put(left[1], "last words");
    close(left[1]);
    waits_for(left[0], POLLRDHUP);
    struct names names = names_of(left[0]);
    for (int run = 0; run < 2; run++) {
        int *ends = run ? seen : reset;
        pair(ends);
        put(ends[0], "never read");
        put(ends[1], "but this");
        waits_for(ends[1], POLLIN);
        close(ends[1]);
        waits_for(ends[0], POLLERR);
    }
    expect(seen[0], "but this");
    expect_error(seen[0], ECONNRESET);
    int listener = server(V4, 1);
    union address nobody;
    socklen_t length = address_of(V4, port_of(listener), &nobody);
    close(listener);
    refused = new_socket(V4);
    CHECK(fcntl(refused, F_SETFL, O_NONBLOCK) == 0);
    CHECK(connect(refused, &nobody.any, length) == -1 && errno == EINPROGRESS);
    waits_for(refused, POLLERR);
    int before[] = {events(quiet[0]), events(left[0]), events(reset[0]), events(seen[0]), events(refused)};
    ready_and_wait();
    int after[] = {events(quiet[0]), events(left[0]), events(reset[0]), events(seen[0]), events(refused)};
    for (int n = 0; n < 5; n++) CHECK_EQ(after[n], before[n]);
    CHECK(same_names(left[0], names));
    expect_end_of_file(quiet[0]);
    /* The other end is gone: this is told to whoever writes. */
    put(quiet[0], "x");
    waits_for(quiet[0], POLLERR);
    CHECK(send(quiet[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    expect(left[0], "last words");
    expect_end_of_file(left[0]);
    expect(reset[0], "but this");
    expect_error(reset[0], ECONNRESET);
    expect_end_of_file(reset[0]);
    expect_end_of_file(seen[0]);
    int error;
    length = sizeof error;
    CHECK(getsockopt(refused, SOL_SOCKET, SO_ERROR, &error, &length) == 0);
    CHECK_EQ(error, ECONNREFUSED);
}

static void halves(void) {
    int half[2], both[2], reading[2];
    pair(half);
    put(half[0], "the end");
    put(half[1], "go on");
    CHECK(shutdown(half[0], SHUT_WR) == 0);
    pair(both);
    put(both[0], "there");
    put(both[1], "here");
    CHECK(shutdown(both[0], SHUT_WR) == 0);
    CHECK(shutdown(both[1], SHUT_WR) == 0);
    pair(reading);
    CHECK(shutdown(reading[0], SHUT_RD) == 0);
    ready_and_wait();
    expect(half[1], "the end");
    expect_end_of_file(half[1]);
    put(half[1], " and on");
    expect(half[0], "go on and on");
    expect_nothing(half[0]);
    CHECK(send(half[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    close(half[1]);
    expect_end_of_file(half[0]);
    expect(both[1], "there");
    expect_end_of_file(both[1]);
    expect(both[0], "here");
    expect_end_of_file(both[0]);
    CHECK(send(both[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    expect_end_of_file(reading[0]);
    put(reading[0], "still");
    expect(reading[1], "still");
}

/* The byte at a place of a stream. */
static unsigned char byte_at(uint64_t place, unsigned seed) {
    uint64_t word = (place / 8 + 1) * 0x9e3779b97f4a7c15u + seed;
    word ^= word >> 29;
    return (unsigned char)(word >> place % 8 * 8);
}

static uint64_t stuff(int fd, unsigned seed, uint64_t from, uint64_t most) {
    static unsigned char bytes[60000];
    uint64_t sent = from;
    while (sent < most) {
        size_t part = sizeof bytes;
        if (part > most - sent) part = most - sent;
        for (size_t n = 0; n < part; n++) bytes[n] = byte_at(sent + n, seed);
        ssize_t done = send(fd, bytes, part, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (done < 0) {
            CHECK_EQ(errno, EAGAIN);
            break;
        }
        sent += (uint64_t)done;
    }
    return sent;
}
static void take(int fd, unsigned seed, uint64_t from, uint64_t to) {
    static unsigned char bytes[60000];
    while (from < to) {
        size_t part = sizeof bytes;
        if (part > to - from) part = to - from;
        ssize_t got = recv(fd, bytes, part, 0);
        CHECK(got > 0);
        for (ssize_t n = 0; n < got; n++) {
            if (bytes[n] != byte_at(from + (uint64_t)n, seed)) {
                say("FAILED: another byte at %llu of stream %u\n", (unsigned long long)from + (unsigned)n, seed);
                _exit(99);
            }
        }
        from += (uint64_t)got;
    }
}

/* Senders that are blocked, as nobody reads: large buffers, small ones, and both directions at once; with an end behind it. */
static void full(void) {
    int ends[3][2];
    uint64_t sent[3][2];
    int small = 2048;
    for (int k = 0; k < 3; k++) {
        pair(ends[k]);
        if (k == 1) {
            CHECK(setsockopt(ends[k][1], SOL_SOCKET, SO_RCVBUF, &small, sizeof small) == 0);
            CHECK(setsockopt(ends[k][0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
        }
        for (int e = 0; e < 2; e++) sent[k][e] = stuff(ends[k][e], (unsigned)(2 * k + e), 0, 1 << 30);
    }
    CHECK(shutdown(ends[2][0], SHUT_WR) == 0);
    int size;
    socklen_t length = sizeof size;
    CHECK(getsockopt(ends[1][1], SOL_SOCKET, SO_RCVBUF, &size, &length) == 0);
    ready_and_wait();
    int now;
    CHECK(getsockopt(ends[1][1], SOL_SOCKET, SO_RCVBUF, &now, &length) == 0);
    CHECK_EQ(now, size);
    for (int k = 0; k < 3; k++) {
        for (int e = 0; e < 2; e++) {
            unsigned seed = (unsigned)(2 * k + e);
            take(ends[k][!e], seed, 0, sent[k][e] / 2);
            uint64_t more = k == 2 && e == 0 ? sent[k][e] : stuff(ends[k][e], seed, sent[k][e], sent[k][e] + 5000);
            take(ends[k][!e], seed, sent[k][e] / 2, more);
        }
    }
    expect_end_of_file(ends[2][1]);
    expect_nothing(ends[0][0]);
    expect_nothing(ends[0][1]);
}

static void numbers(int fd, const int (*options)[3], int count, bool check) {
    for (int n = 0; n < count; n++) {
        int value = options[n][2];
        socklen_t length = sizeof value;
        if (!check) {
            if (setsockopt(fd, options[n][0], options[n][1], &value, length) != 0) say("FAILED: option %d\n", n), _exit(99);
            continue;
        }
        CHECK(getsockopt(fd, options[n][0], options[n][1], &value, &length) == 0);
        if (value != options[n][2]) {
            say("FAILED: option %d of level %d is %d, and was %d\n", options[n][1], options[n][0], value, options[n][2]);
            _exit(99);
        }
    }
}
static void options(void) {
    static const int connected[][3] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},   {IPPROTO_TCP, TCP_KEEPIDLE, 77},      {IPPROTO_TCP, TCP_KEEPINTVL, 11},
        {IPPROTO_TCP, TCP_KEEPCNT, 4},   {IPPROTO_TCP, TCP_USER_TIMEOUT, 9000}, {IPPROTO_TCP, TCP_CORK, 1},
        {SOL_SOCKET, SO_KEEPALIVE, 1},   {IPPROTO_IP, IP_TOS, 0x10},           {IPPROTO_IP, IP_TTL, 33},
        {SOL_SOCKET, SO_REUSEADDR, 1},   {SOL_SOCKET, SO_OOBINLINE, 1},        {SOL_SOCKET, SO_RCVLOWAT, 3},
        {IPPROTO_TCP, TCP_LINGER2, 17},  {IPPROTO_TCP, TCP_SYNCNT, 3},
    };
    static const int listening[][3] = {{SOL_SOCKET, SO_REUSEPORT, 1}, {IPPROTO_IPV6, IPV6_V6ONLY, 1}, {IPPROTO_IPV6, IPV6_TCLASS, 0x20}};
    enum { CONNECTED = sizeof connected / sizeof *connected, LISTENING = sizeof listening / sizeof *listening };
    int ends[2], plain[2];
    pair(ends);
    pair(plain);
    numbers(ends[1], connected, CONNECTED, false);
    struct linger linger = {1, 5}, found;
    struct timeval limit = {3, 0}, now;
    CHECK(setsockopt(ends[1], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    CHECK(setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    int size = 50000;
    CHECK(setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    socklen_t length = sizeof size;
    CHECK(getsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, &length) == 0);
    char reno[16] = "reno", name[16] = {0};
    CHECK(setsockopt(ends[1], IPPROTO_TCP, TCP_CONGESTION, reno, 4) == 0);
    int listener = new_socket(V6);
    numbers(listener, listening, LISTENING, false);
    union address address;
    length = address_of(V6, 0, &address);
    CHECK(bind(listener, &address.any, length) == 0);
    CHECK(listen(listener, 7) == 0);
    ready_and_wait();
    numbers(ends[1], connected, CONNECTED, true);
    numbers(listener, listening, LISTENING, true);
    length = sizeof found;
    CHECK(getsockopt(ends[1], SOL_SOCKET, SO_LINGER, &found, &length) == 0);
    CHECK(found.l_onoff == 1 && found.l_linger == 5);
    length = sizeof now;
    CHECK(getsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &now, &length) == 0);
    CHECK_EQ(now.tv_sec, 3);
    int after;
    length = sizeof after;
    CHECK(getsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &after, &length) == 0);
    CHECK_EQ(after, size);
    length = sizeof name;
    CHECK(getsockopt(ends[1], IPPROTO_TCP, TCP_CONGESTION, name, &length) == 0);
    CHECK(strcmp(name, reno) == 0);
    for (int e = 0; e < 2; e++) {
        length = sizeof after;
        CHECK(getsockopt(plain[e], SOL_SOCKET, SO_REUSEADDR, &after, &length) == 0 && after == e);
        CHECK(getsockopt(plain[e], IPPROTO_TCP, TCP_NODELAY, &after, &length) == 0 && after == 0);
    }
    struct tcp_info info;
    length = sizeof info;
    CHECK(getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
    CHECK_EQ(info.tcpi_sacked, 7);
}

/* A server: connections that it has accepted, some that wait, and clients that come later. */
static void servers(void) {
    int listener = server(V4, 16), clients[4], accepted;
    struct names names[4];
    for (int n = 0; n < 4; n++) {
        clients[n] = client_of(V4, listener, 0);
        names[n] = names_of(clients[n]);
    }
    accepted = accept(listener, NULL, NULL);
    CHECK(accepted >= 0);
    CHECK(shutdown(clients[3], SHUT_WR) == 0);
    put(clients[0], "hello");
    int unused = new_socket(V4), bound = new_socket(V4);
    union address address;
    socklen_t length = address_of(V4, 0, &address);
    CHECK(bind(bound, &address.any, length) == 0);
    int port = port_of(bound);
    ready_and_wait();
    for (int n = 0; n < 4; n++) CHECK(same_names(clients[n], names[n]));
    expect(accepted, "hello");
    put(accepted, "welcome");
    expect(clients[0], "welcome");
    for (int n = 1; n < 4; n++) put(clients[n == 3 ? 1 : n], "now");
    for (int n = 1; n < 4; n++) {
        int end = accept(listener, NULL, NULL);
        CHECK(end >= 0);
        struct names other = names_of(end);
        int who = 0;
        for (int k = 1; k < 4; k++)
            if (memcmp(&other.peer, &names[k].own, sizeof other.peer) == 0) who = k;
        CHECK(who > 0);
        if (who == 3) expect_end_of_file(end);
        else expect(end, who == 1 ? "nownow" : "now");
        put(end, "at last");
        expect(clients[who], "at last");
        close(end);
    }
    int late = client_of(V4, listener, 0), end = accept(listener, NULL, NULL);
    put(late, "late");
    expect(end, "late");
    CHECK_EQ(port_of(bound), port);
    length = address_of(V4, port_of(listener), &address);
    CHECK(connect(unused, &address.any, length) == 0);
    CHECK(listen(bound, 1) == 0);
    end = client_of(V4, bound, 0);
    CHECK(accept(bound, NULL, NULL) >= 0);
}

/* A connection that cannot be made yet, as there is no room for it at the server. */
static void connecting(void) {
    int listener = server(V4, 0);
    int first = client_of(V4, listener, 0), second = client_of(V4, listener, O_NONBLOCK);
    for (;;) {
        /* Whoever is let in by the way does not count. */
        struct pollfd asked = {second, POLLOUT, 0};
        if (poll(&asked, 1, 50) == 0) break;
        second = client_of(V4, listener, O_NONBLOCK);
    }
    ready_and_wait();
    for (int n = 0;; n++) {
        struct pollfd asked = {listener, POLLIN, 0};
        CHECK(poll(&asked, 1, 60000) == 1);
        int end = accept(listener, NULL, NULL);
        CHECK(end >= 0);
        struct names names = names_of(end), wanted = names_of(second);
        if (names.peer.v4.sin_port == wanted.own.v4.sin_port) {
            waits_for(second, POLLOUT);
            int error;
            socklen_t length = sizeof error;
            CHECK(getsockopt(second, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0);
            put(second, "in");
            expect(end, "in");
            break;
        }
        close(end);
        CHECK(n < 10);
    }
    close(first);
}

/* Ends in different processes, and a server that has closed its listening socket. */
static void tree(void) {
    int ends[2];
    pair(ends);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        char byte;
        while (recv(ends[1], &byte, 1, 0) == 1) CHECK(send(ends[1], &byte, 1, MSG_NOSIGNAL) == 1);
        _exit(0);
    }
    close(ends[1]);
    put(ends[0], "a");
    expect(ends[0], "a");
    ready_and_wait();
    put(ends[0], "echo");
    expect(ends[0], "echo");
    close(ends[0]);
    expect_end(child);
}

/* Watched by epoll, level and edge: nothing is reported twice, and what comes is. */
static void watched(void) {
    int level[2], edge[2], set = epoll_create1(0);
    pair(level);
    pair(edge);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 1}, got[4];
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, level[0], &event) == 0);
    event = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.u32 = 2};
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, edge[0], &event) == 0);
    put(edge[1], "seen");
    CHECK_EQ(epoll_wait(set, got, 4, 20000), 1);
    ready_and_wait();
    put(level[1], "level");
    put(edge[1], "edge");
    unsigned seen = 0;
    while (seen != 3) {
        int count = epoll_wait(set, got, 4, 20000);
        CHECK(count > 0);
        for (int n = 0; n < count; n++) seen |= got[n].data.u32;
    }
    expect(level[0], "level");
    expect(edge[0], "seenedge");
}

/* A child for each direction of a connection, and both at full rate, until told to stop. */
static void pump(int fd, unsigned seed, bool sends) {
    uint64_t place = 0;
    if (sends) {
        do {
            struct pollfd asked = {fd, POLLOUT, 0};
            CHECK(poll(&asked, 1, 20000) == 1);
            place = stuff(fd, seed, place, place + 300000);
        } while (access("go", F_OK) != 0);
        CHECK(shutdown(fd, SHUT_WR) == 0);
        _exit(0);
    }
    static unsigned char bytes[100000];
    for (;;) {
        ssize_t got = recv(fd, bytes, 1 + place % sizeof bytes, 0);
        CHECK(got >= 0);
        if (got == 0) _exit(place > 0 ? 0 : 97);
        for (ssize_t n = 0; n < got; n++) {
            if (bytes[n] != byte_at(place + (uint64_t)n, seed)) {
                say("FAILED: another byte at %llu of stream %u\n", (unsigned long long)place + (unsigned)n, seed);
                _exit(99);
            }
        }
        place += (uint64_t)got;
    }
}
static void load(void) {
    enum { PAIRS = 2 };
    pid_t children[PAIRS * 4];
    int ends[PAIRS][2], count = 0;
    for (int k = 0; k < PAIRS; k++) pair_of(k ? V6 : V4, k ? V6 : V4, ends[k]);
    int small = 6000;
    CHECK(setsockopt(ends[1][0], SOL_SOCKET, SO_RCVBUF, &small, sizeof small) == 0);
    for (int k = 0; k < PAIRS; k++) {
        for (int e = 0; e < 2; e++) {
            for (int sends = 0; sends < 2; sends++) {
                pid_t child = fork();
                if (child == 0) pump(ends[k][e], (unsigned)(2 * k + (e ^ !sends)), sends);
                children[count++] = child;
            }
        }
    }
    for (int k = 0; k < PAIRS; k++) close(ends[k][0]), close(ends[k][1]);
    ready_and_wait();
    for (int n = 0; n < count; n++) expect_end(children[n]);
}

/* Refused: a byte out of band. */
static void urgent(void) {
    int ends[2];
    pair(ends);
    put(ends[0], "before");
    CHECK_EQ(send(ends[0], "!", 1, MSG_OOB), 1);
    waits_for(ends[1], POLLPRI);
    ready_and_wait();
    char byte;
    CHECK(recv(ends[1], &byte, 1, MSG_OOB) == 1 && byte == '!');
    expect(ends[1], "before");
}

/* Refused: something in a connection that nobody has accepted. */
static void impatient(void) {
    int listener = server(V4, 4), client = client_of(V4, listener, 0);
    put(client, "already");
    ready_and_wait();
    int end = accept(listener, NULL, NULL);
    expect(end, "already");
}

/* The same, but it is accepted soon. */
static void soon(void) {
    int listener = server(V4, 4);
    pid_t child = fork();
    if (child == 0) {
        while (access("go", F_OK) != 0) {
            int client = client_of(V4, listener, 0);
            put(client, "hello");
            expect_end_of_file(client);
            close(client);
        }
        _exit(0);
    }
    say("ready\n");
    while (access("go", F_OK) != 0 || waitpid(child, NULL, WNOHANG) == 0) {
        struct pollfd asked = {listener, POLLIN, 0};
        if (poll(&asked, 1, 10) == 0) continue;
        int end = accept(listener, NULL, NULL);
        sleep_ms(1);
        expect(end, "hello");
        close(end);
    }
}

/* A server whose address the test gives. */
static void listener(int port) {
    int fd = new_socket(V4), one = 1;
    union address address;
    own = htonl(INADDR_LOOPBACK);
    socklen_t length = address_of(V4, port, &address);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    CHECK(bind(fd, &address.any, length) == 0);
    CHECK(listen(fd, 10) == 0);
    say("port %d\n", port_of(fd));
    ready_and_wait();
    int client = client_of(V4, fd, 0), end = accept(fd, NULL, NULL);
    put(client, "served");
    expect(end, "served");
}

/* A connection to who has started the program: a greeting comes, and then the end or a reset. */
static void outside(int port, bool edge) {
    int fd = new_socket(V4), set = epoll_create1(0);
    union address address;
    own = htonl(INADDR_LOOPBACK);
    socklen_t length = address_of(V4, port, &address);
    CHECK(connect(fd, &address.any, length) == 0);
    expect(fd, "hello");
    struct epoll_event event = {.events = edge ? EPOLLIN | EPOLLRDHUP | EPOLLET : EPOLLIN | EPOLLRDHUP};
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
    if (!edge) waits_for(fd, POLLIN);
    ready_and_wait();
    if (edge) CHECK_EQ(epoll_wait(set, &event, 1, 60000), 1);
    char text[32] = {0};
    if (!edge) expect(fd, "greeting");
    waits_for(fd, POLLIN);
    ssize_t got = recv(fd, text, sizeof text - 1, 0);
    if (got < 0) {
        CHECK_EQ(errno, ECONNRESET);
        say("reset\n");
    } else {
        say("undisturbed %s\n", text);
        put(fd, "still here");
    }
}

/* So many connections, each end watched. */
static void many(int count) {
    int listener = server(V4, 4096), set = epoll_create1(0);
    int *ends = calloc((size_t)count * 2, sizeof *ends);
    for (int n = 0; n < count; n++) {
        ends[2 * n] = no_delay(client_of(V4, listener, 0));
        ends[2 * n + 1] = accept(listener, NULL, NULL);
        CHECK(ends[2 * n + 1] >= 0);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)n};
        CHECK(epoll_ctl(set, EPOLL_CTL_ADD, ends[2 * n + 1], &event) == 0);
        put(ends[2 * n], "something");
    }
    ready_and_wait();
    for (int n = 0; n < count; n++) {
        expect(ends[2 * n + 1], "something");
        put(ends[2 * n + 1], "answer");
        expect(ends[2 * n], "answer");
    }
}

int main(int count, char **arguments) {
    CHECK(count >= 2);
    choose_address();
    const char *name = arguments[1];
    int number = count > 2 ? atoi(arguments[2]) : 0;
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
        {"pairs", pairs}, {"closed", closed}, {"halves", halves}, {"full", full}, {"options", options},
        {"servers", servers}, {"connecting", connecting}, {"tree", tree}, {"watched", watched}, {"load", load},
        {"urgent", urgent}, {"impatient", impatient}, {"soon", soon},
    };
    bool found = true;
    if (strcmp(name, "listener") == 0) listener(number);
    else if (strcmp(name, "outside") == 0) outside(number, false);
    else if (strcmp(name, "outside-edge") == 0) outside(number, true);
    else if (strcmp(name, "many") == 0) many(number);
    else found = false;
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        if (strcmp(name, cases[n].name) == 0) {
            cases[n].run();
            found = true;
        }
    }
    CHECK(found);
    say("ok\n");
    return 0;
}
