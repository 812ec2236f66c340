/* Rings for input and output that are idle: io_uring, and the older io_setup. Raw calls, no library. */
#include "check.h"
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

struct ring {
    int fd;
    struct io_uring_params params;
    char *rings, *completion;
    struct io_uring_sqe *submissions;
    unsigned *array;
};

static unsigned *word(char *rings, unsigned offset) {
    return (unsigned *)(void *)(rings + offset);
}

static void *map(int fd, size_t size, off_t offset) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
    CHECK(at != MAP_FAILED);
    return at;
}

static bool make_ring(struct ring *ring, unsigned entries, unsigned flags) {
    memset(ring, 0, sizeof *ring);
    ring->params.flags = flags | IORING_SETUP_CQSIZE;
    ring->params.cq_entries = entries * 4;
    ring->fd = (int)syscall(SYS_io_uring_setup, entries, &ring->params);
    if (ring->fd < 0) return false;
    const struct io_uring_params *p = &ring->params;
    size_t first = p->sq_off.array + p->sq_entries * 4, second = p->cq_off.cqes + p->cq_entries * 16;
    if (flags & (1u << 16)) first = second; /* IORING_SETUP_NO_SQARRAY */
    ring->rings = map(ring->fd, first > second ? first : second, IORING_OFF_SQ_RING);
    /* As older libraries do: the completions in a mapping of their own. */
    ring->completion = entries == 8 ? map(ring->fd, second, IORING_OFF_CQ_RING) : ring->rings;
    ring->submissions = map(ring->fd, p->sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
    ring->array = flags & (1u << 16) ? NULL : word(ring->rings, p->sq_off.array);
    return true;
}

static struct io_uring_sqe *next(struct ring *ring, int operation, uint64_t data) {
    unsigned *tail = word(ring->rings, ring->params.sq_off.tail), mask = ring->params.sq_entries - 1;
    struct io_uring_sqe *entry = &ring->submissions[*tail & mask];
    memset(entry, 0, sizeof *entry);
    entry->opcode = (uint8_t)operation;
    entry->user_data = data;
    if (ring->array) ring->array[*tail & mask] = *tail & mask;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    return entry;
}

static void submit(struct ring *ring, unsigned count, unsigned wait) {
    CHECK_EQ(syscall(SYS_io_uring_enter, ring->fd, count, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0), count);
}

static int expect_completion(struct ring *ring, uint64_t data) {
    unsigned *head = word(ring->completion, ring->params.cq_off.head), *tail = word(ring->completion, ring->params.cq_off.tail);
    CHECK(*head != __atomic_load_n(tail, __ATOMIC_ACQUIRE));
    struct io_uring_cqe *all = (void *)(ring->completion + ring->params.cq_off.cqes);
    struct io_uring_cqe *done = &all[*head & (ring->params.cq_entries - 1)];
    CHECK_EQ(done->user_data, data);
    int result = done->res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

static void expect_no_completion(struct ring *ring) {
    CHECK_EQ(*word(ring->completion, ring->params.cq_off.head), *word(ring->completion, ring->params.cq_off.tail));
}

static void nothing(struct ring *ring, unsigned times) {
    for (unsigned i = 0; i < times; i++) {
        next(ring, IORING_OP_NOP, i);
        submit(ring, 1, 1);
        CHECK_EQ(expect_completion(ring, i), 0);
    }
}

/* Several rings: unused, far on, with completions that nobody has read, with submissions that were not told of. */
static void idle(void) {
    struct ring unused, busy, small, plain;
    if (!make_ring(&unused, 64, 0)) {
        say("ready\n");
        wait_go();
        return;
    }
    CHECK(make_ring(&busy, 256, IORING_SETUP_SUBMIT_ALL) && make_ring(&small, 8, 0));
    bool without_array = make_ring(&plain, 16, 1u << 16);
    if (!without_array) CHECK(make_ring(&plain, 16, 0));
    int file = open("data", O_RDWR | O_CREAT | O_TRUNC, 0600), pipes[2];
    CHECK(file >= 0 && pwrite(file, "what the file holds", 19, 0) == 19 && socketpair(AF_UNIX, SOCK_STREAM, 0, pipes) == 0);
    nothing(&busy, 5003);
    nothing(&plain, 21);
    nothing(&small, 13);
    static char buffer[8192] __attribute__((aligned(4096)));
    struct iovec vector = {buffer, sizeof buffer};
    CHECK_EQ(syscall(SYS_io_uring_register, busy.fd, IORING_REGISTER_BUFFERS, &vector, 1), 0);
    int files[3] = {pipes[0], -1, file};
    CHECK_EQ(syscall(SYS_io_uring_register, busy.fd, IORING_REGISTER_FILES, files, 3), 0);
    /* Thirty completions wait, two submissions were not told of. */
    for (unsigned i = 0; i < 30; i++) {
        next(&small, IORING_OP_NOP, 1000 + i);
        submit(&small, 1, 0);
    }
    next(&small, IORING_OP_NOP, 2000);
    struct io_uring_sqe *entry = next(&small, IORING_OP_READ, 2001);
    char text[32] = {0};
    entry->fd = file, entry->addr = (uintptr_t)text, entry->len = 8, entry->off = 5;
    ready_and_wait();
    for (unsigned i = 0; i < 30; i++) CHECK_EQ(expect_completion(&small, 1000 + i), 0);
    expect_no_completion(&small);
    submit(&small, 2, 2);
    CHECK_EQ(expect_completion(&small, 2000), 0);
    CHECK_EQ(expect_completion(&small, 2001), 8);
    CHECK(memcmp(text, "the file", 8) == 0);
    nothing(&small, 100);
    nothing(&unused, 300);
    nothing(&plain, 100);
    expect_no_completion(&busy);
    nothing(&busy, 2000);
    entry = next(&busy, IORING_OP_READ_FIXED, 7);
    entry->flags = IOSQE_FIXED_FILE, entry->fd = 2, entry->addr = (uintptr_t)buffer + 4090, entry->len = 19;
    submit(&busy, 1, 1);
    CHECK_EQ(expect_completion(&busy, 7), 19);
    CHECK(memcmp(buffer + 4090, "what the file holds", 19) == 0);
    entry = next(&busy, IORING_OP_READ, 8);
    entry->flags = IOSQE_FIXED_FILE, entry->fd = 0, entry->addr = (uintptr_t)buffer, entry->len = 10;
    submit(&busy, 1, 0);
    CHECK(write(pipes[1], "through it", 10) == 10);
    submit(&busy, 0, 1);
    CHECK_EQ(expect_completion(&busy, 8), 10);
    CHECK(memcmp(buffer, "through it", 10) == 0);
    CHECK_EQ(*word(busy.rings, busy.params.cq_off.overflow), 0);
    CHECK_EQ(*word(busy.rings, busy.params.sq_off.dropped), 0);
}

/* A request that waits for something. */
static void under_way(void) {
    struct ring ring;
    if (make_ring(&ring, 8, 0)) {
        int fd = eventfd(0, 0);
        struct io_uring_sqe *entry = next(&ring, IORING_OP_POLL_ADD, 5);
        entry->fd = fd, entry->poll32_events = 1;
        submit(&ring, 1, 0);
        ready_and_wait();
        uint64_t one = 1;
        CHECK(write(fd, &one, 8) == 8);
        submit(&ring, 0, 1);
        CHECK_EQ(expect_completion(&ring, 5), 1);
    } else
        ready_and_wait();
}

/* What a restart could not give back. */
static void with_eventfd(void) {
    struct ring ring;
    if (make_ring(&ring, 8, 0)) {
        int fd = eventfd(0, EFD_NONBLOCK);
        CHECK_EQ(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_EVENTFD, &fd, 1), 0);
        ready_and_wait();
        nothing(&ring, 3);
        uint64_t count;
        CHECK(read(fd, &count, 8) == 8 && count == 3);
    } else
        ready_and_wait();
}

static void one_thread(void) {
    struct ring ring;
    if (make_ring(&ring, 8, 1u << 12)) { /* IORING_SETUP_SINGLE_ISSUER */
        nothing(&ring, 3);
        ready_and_wait();
        nothing(&ring, 3);
    } else
        ready_and_wait();
}

static void kernel_thread(void) {
    struct ring ring;
    if (make_ring(&ring, 8, IORING_SETUP_SQPOLL)) {
        ready_and_wait();
        next(&ring, IORING_OP_NOP, 9);
        CHECK(syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_SQ_WAKEUP, NULL, 0) >= 0);
        CHECK_EQ(expect_completion(&ring, 9), 0);
    } else
        ready_and_wait();
}

/* Threads of the kernel that have worked for a ring stay. */
static void workers(void) {
    struct ring ring;
    if (make_ring(&ring, 8, 0)) {
        int file = open("data", O_RDWR | O_CREAT, 0600);
        for (unsigned i = 0; i < 5; i++) {
            struct io_uring_sqe *entry = next(&ring, IORING_OP_FSYNC, i);
            entry->flags = IOSQE_ASYNC, entry->fd = file;
            submit(&ring, 1, 1);
            CHECK_EQ(expect_completion(&ring, i), 0);
        }
        ready_and_wait();
        nothing(&ring, 30);
    } else
        ready_and_wait();
}

static struct iocb request(int operation, int fd, void *buffer, size_t length, uint64_t data) {
    return (struct iocb){.aio_lio_opcode = (uint16_t)operation, .aio_fildes = (uint32_t)fd,
        .aio_buf = (uintptr_t)buffer, .aio_nbytes = length, .aio_data = data};
}

/* Contexts of io_setup: one far on with completions that nobody has fetched, one unused. */
static void contexts(void) {
    aio_context_t used = 0, unused = 0, large = 0;
    CHECK_EQ(syscall(SYS_io_setup, 10, &used), 0);
    CHECK_EQ(syscall(SYS_io_setup, 1, &unused), 0);
    CHECK_EQ(syscall(SYS_io_setup, 2000, &large), 0);
    int file = open("data", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0 && pwrite(file, "what the file holds", 19, 0) == 19);
    char text[32] = {0};
    struct io_event events[8];
    for (uint64_t i = 0; i < 3000; i++) {
        struct iocb one = request(IOCB_CMD_PREAD, file, text, 4, i), *list[1] = {&one};
        CHECK_EQ(syscall(SYS_io_submit, i % 3 ? used : large, 1, list), 1);
        CHECK_EQ(syscall(SYS_io_getevents, i % 3 ? used : large, 1, 8, events, NULL), 1);
        CHECK(events[0].data == i && events[0].res == 4);
    }
    for (uint64_t i = 0; i < 5; i++) {
        struct iocb one = request(IOCB_CMD_PREAD, file, text, i + 1, 100 + i), *list[1] = {&one};
        CHECK_EQ(syscall(SYS_io_submit, used, 1, list), 1);
    }
    ready_and_wait();
    struct timespec now = {0, 0};
    CHECK_EQ(syscall(SYS_io_getevents, used, 0, 8, events, &now), 5);
    for (uint64_t i = 0; i < 5; i++) CHECK(events[i].data == 100 + i && events[i].res == (int64_t)i + 1);
    CHECK_EQ(syscall(SYS_io_getevents, used, 0, 8, events, &now), 0);
    CHECK_EQ(syscall(SYS_io_getevents, unused, 0, 8, events, &now), 0);
    for (uint64_t i = 0; i < 3000; i++) {
        aio_context_t context = i % 3 == 0 ? used : i % 3 == 1 ? unused : large;
        memset(text, 0, sizeof text);
        struct iocb one = request(IOCB_CMD_PREAD, file, text, 8, i), *list[1] = {&one};
        one.aio_offset = 5;
        CHECK_EQ(syscall(SYS_io_submit, context, 1, list), 1);
        CHECK_EQ(syscall(SYS_io_getevents, context, 1, 8, events, NULL), 1);
        CHECK(events[0].data == i && events[0].res == 8 && memcmp(text, "the file", 8) == 0);
    }
    /* As many at once as there is room for. */
    static struct iocb many[1500];
    static struct iocb *all[1500];
    for (uint64_t i = 0; i < 1500; i++) {
        many[i] = request(IOCB_CMD_PREAD, file, text, 1, i);
        all[i] = &many[i];
    }
    static struct io_event got[1500];
    for (long done = 0, n; done < 1500; done += n) CHECK((n = syscall(SYS_io_submit, large, 1500 - done, all + done)) > 0);
    CHECK_EQ(syscall(SYS_io_getevents, large, 1500, 1500, got, NULL), 1500);
    for (uint64_t i = 0; i < 1500; i++) CHECK_EQ(got[i].data, i);
    CHECK_EQ(syscall(SYS_io_destroy, used), 0);
    CHECK_EQ(syscall(SYS_io_destroy, unused), 0);
    CHECK_EQ(syscall(SYS_io_destroy, large), 0);
}

static const struct check_case cases[] = {
    {"contexts", contexts},
    {"idle", idle},
    {"under_way", under_way},
    {"with_eventfd", with_eventfd},
    {"one_thread", one_thread},
    {"kernel_thread", kernel_thread},
    {"workers", workers},
};

int main(int argc, char **argv) {
    return RUN_CASE(cases, argc, argv);
}
