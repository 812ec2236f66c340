/* UDP and netlink sockets. Each run has an address of its own on the loopback interface. */
#include "check.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>

static in_addr_t own;

static void choose_address(void) {
    unsigned mixed = (unsigned)getpid() * 2654435761u ^ (unsigned)monotonic_ns();
    own = htonl(0x7f000000u | (1 + mixed % 250) << 16 | (1 + mixed / 251 % 250) << 8 | (1 + mixed / 63001 % 250));
}

static struct sockaddr_in at(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = own};
    return address;
}
static int bound(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = at(0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}
static int port_of(int fd) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    CHECK(getsockname(fd, (struct sockaddr *)&address, &length) == 0);
    return ntohs(address.sin_port);
}
static void send_to(int fd, int port, const char *text) {
    struct sockaddr_in address = at(port);
    CHECK_EQ(sendto(fd, text, strlen(text), 0, (struct sockaddr *)&address, sizeof address), strlen(text));
}
static void expect(int fd, int from, const char *wanted) {
    char text[2000] = {0};
    struct sockaddr_in sender;
    socklen_t length = sizeof sender;
    ssize_t got = recvfrom(fd, text, sizeof text - 1, MSG_DONTWAIT, (struct sockaddr *)&sender, &length);
    if (got != (ssize_t)strlen(wanted) || strcmp(text, wanted) != 0 || ntohs(sender.sin_port) != from) {
        say("FAILED: socket %d gives \"%s\" (%zd, errno %d) from %d, not \"%s\" from %d\n", fd, text, got, errno,
            ntohs(sender.sin_port), wanted, from);
        _exit(99);
    }
    CHECK(sender.sin_addr.s_addr == own);
}
static void expect_nothing(int fd) {
    char byte;
    CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

/* What waits, from a socket that is there and from one that was closed. */
static void queues(void) {
    int one = bound(), other = bound(), gone = bound();
    int last = port_of(gone), first = port_of(one), second = port_of(other);
    send_to(one, second, "first");
    send_to(gone, second, "from one that is closed");
    send_to(one, second, "third");
    send_to(other, first, "back");
    close(gone);
    ready_and_wait();
    CHECK(port_of(one) == first && port_of(other) == second);
    expect(other, first, "first");
    expect(other, last, "from one that is closed");
    expect(other, first, "third");
    expect_nothing(other);
    expect(one, second, "back");
    expect_nothing(one);
    send_to(one, second, "new");
    expect(other, first, "new");
}

static void connected(void) {
    int one = bound(), other = bound(), stranger = bound();
    struct sockaddr_in address = at(port_of(other));
    CHECK(connect(one, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(fcntl(one, F_SETFL, O_NONBLOCK) == 0);
    send_to(other, port_of(one), "to the one that is connected");
    ready_and_wait();
    CHECK_EQ(fcntl(one, F_GETFL), O_RDWR | O_NONBLOCK);
    socklen_t length = sizeof address;
    CHECK(getpeername(one, (struct sockaddr *)&address, &length) == 0);
    CHECK_EQ(ntohs(address.sin_port), port_of(other));
    expect(one, port_of(other), "to the one that is connected");
    send_to(stranger, port_of(one), "not for you");
    expect_nothing(one);
    CHECK_EQ(send(one, "x", 1, 0), 1);
    expect(other, port_of(one), "x");
}

/* Two that share a port, options, and a group. */
static void groups(void) {
    int members[2], on = 1, size = 70000;
    for (int n = 0; n < 2; n++) {
        members[n] = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(setsockopt(members[n], SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr("239.7.7.7")};
        address.sin_port = n ? htons((uint16_t)port_of(members[0])) : 0;
        CHECK(bind(members[n], (struct sockaddr *)&address, sizeof address) == 0);
        struct ip_mreqn group = {.imr_multiaddr.s_addr = inet_addr("239.7.7.7"), .imr_ifindex = (int)if_nametoindex("lo")};
        CHECK(setsockopt(members[n], IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) == 0);
    }
    CHECK(setsockopt(members[1], SOL_SOCKET, SO_RCVBUF, &size, sizeof size) == 0);
    CHECK(setsockopt(members[1], IPPROTO_IP, IP_MULTICAST_TTL, &on, sizeof on) == 0);
    CHECK(setsockopt(members[1], IPPROTO_IP, IP_PKTINFO, &on, sizeof on) == 0);
    socklen_t length = sizeof size;
    CHECK(getsockopt(members[1], SOL_SOCKET, SO_RCVBUF, &size, &length) == 0);
    ready_and_wait();
    int after;
    CHECK(getsockopt(members[1], SOL_SOCKET, SO_RCVBUF, &after, &length) == 0);
    CHECK_EQ(after, size);
    CHECK(getsockopt(members[1], IPPROTO_IP, IP_PKTINFO, &after, &length) == 0 && after == 1);
    struct ip_mreqn loopback = {.imr_ifindex = (int)if_nametoindex("lo")};
    int sender = bound();
    CHECK(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof loopback) == 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr("239.7.7.7")};
    to.sin_port = htons((uint16_t)port_of(members[0]));
    CHECK_EQ(sendto(sender, "all", 3, 0, (struct sockaddr *)&to, sizeof to), 3);
    for (int n = 0; n < 2; n++) {
        struct pollfd asked = {members[n], POLLIN, 0};
        CHECK(poll(&asked, 1, 20000) == 1);
        expect(members[n], port_of(sender), "all");
    }
}

/* Idle lines to the kernel, of which one is asked afterwards. */
static void lines(void) {
    int idle = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), listening = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE);
    struct sockaddr_nl address = {.nl_family = AF_NETLINK}, other = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_ROUTE};
    CHECK(bind(idle, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(bind(listening, (struct sockaddr *)&other, sizeof other) == 0);
    socklen_t length = sizeof address;
    CHECK(getsockname(idle, (struct sockaddr *)&address, &length) == 0);
    ready_and_wait();
    struct sockaddr_nl now;
    CHECK(getsockname(idle, (struct sockaddr *)&now, &length) == 0);
    CHECK_EQ(now.nl_pid, address.nl_pid);
    CHECK(getsockname(listening, (struct sockaddr *)&now, &length) == 0);
    CHECK_EQ(now.nl_groups, RTMGRP_IPV4_ROUTE);
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
    } request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST, 1, 0}, {.ifi_index = 1}};
    CHECK_EQ(send(idle, &request, sizeof request, 0), sizeof request);
    char answer[8192];
    CHECK(recv(idle, answer, sizeof answer, 0) > (ssize_t)sizeof request);
    CHECK_EQ(((struct nlmsghdr *)(void *)answer)->nlmsg_type, RTM_NEWLINK);
}

/* Refused: an answer that was not read. */
static void answer(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
    } request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST, 1, 0}, {.ifi_index = 1}};
    CHECK_EQ(send(fd, &request, sizeof request, 0), sizeof request);
    ready_and_wait();
    char text[8192];
    CHECK(recv(fd, text, sizeof text, 0) > 0);
}

/* Refused: a datagram that is not complete. */
static void corked(void) {
    int one = bound(), other = bound(), on = 1, off = 0;
    CHECK(setsockopt(one, IPPROTO_UDP, UDP_CORK, &on, sizeof on) == 0);
    send_to(one, port_of(other), "a part");
    ready_and_wait();
    CHECK(setsockopt(one, IPPROTO_UDP, UDP_CORK, &off, sizeof off) == 0);
    expect(other, port_of(one), "a part");
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    choose_address();
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {{"queues", queues}, {"connected", connected}, {"groups", groups}, {"lines", lines}, {"answer", answer}, {"corked", corked}};
    bool found = false;
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        if (strcmp(arguments[1], cases[n].name) == 0) {
            cases[n].run();
            found = true;
        }
    }
    CHECK(found);
    say("ok\n");
    return 0;
}
