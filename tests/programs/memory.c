/* Areas of memory of every kind. */
#include "check.h"
#include <semaphore.h>
#include <alloca.h>
#include <sys/time.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

static void *map(size_t length, int protection, int flags) {
    void *area = mmap(NULL, length, protection, flags | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    return area;
}

static int new_file(const char *name, size_t length, uint64_t seed) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    char *text = malloc(length);
    CHECK(text != NULL);
    fill(text, length, seed);
    CHECK(write(fd, text, length) == (ssize_t)length);
    free(text);
    return fd;
}

static void anonymous(void) {
    char *small = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *large = map(24 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *heap = malloc(300000);
    fill(small, PAGE, 1);
    fill(large, 24 * MIB, 2);
    fill(heap, 300000, 3);
    ready_and_wait();
    expect_filled(small, PAGE, 1);
    expect_filled(large, 24 * MIB, 2);
    expect_filled(heap, 300000, 3);
    fill(large, 24 * MIB, 4);
    expect_filled(large, 24 * MIB, 4);
    /* What is given back to the kernel reads as zero again. */
    CHECK(madvise(large, MIB, MADV_DONTNEED) == 0);
    expect_zero(large, MIB);
}

static void private_file(void) {
    int fd = new_file("private", 16 * PAGE, 5);
    close(fd);
    fd = open("private", O_RDONLY);
    char *area = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *read_only = mmap(NULL, 4 * PAGE, PROT_READ, MAP_PRIVATE, fd, 8 * PAGE);
    CHECK(area != MAP_FAILED && read_only != MAP_FAILED);
    close(fd);
    char *expected = malloc(16 * PAGE);
    fill(expected, 16 * PAGE, 5);
    fill(area + 3 * PAGE, PAGE, 6);
    fill(expected + 3 * PAGE, PAGE, 6);
    memset(area + 15 * PAGE, 0, PAGE); /* dirty, and all zero */
    memset(expected + 15 * PAGE, 0, PAGE);
    CHECK(area[0] == expected[0]);
    ready_and_wait();
    CHECK(memcmp(area, expected, 16 * PAGE) == 0);
    fill(expected, 16 * PAGE, 5);
    CHECK(memcmp(read_only, expected + 8 * PAGE, 4 * PAGE) == 0);
    /* Dropping the own copy shows the file again. */
    CHECK(madvise(area + 3 * PAGE, PAGE, MADV_DONTNEED) == 0);
    CHECK(memcmp(area + 3 * PAGE, expected + 3 * PAGE, PAGE) == 0);
}

/* The mapping reaches beyond the file's end: those pages raise SIGBUS. */
static volatile sig_atomic_t buses;
static void on_bus(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    buses++;
    /* The access is tried again: give it something to find. */
    void *page = (void *)((uintptr_t)info->si_addr & ~(PAGE - 1));
    mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

}
static void beyond_end(void) {
    int fd = new_file("short", 2 * PAGE, 7);
    close(fd);
    fd = open("short", O_RDONLY);
    char *private = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *shared = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(private != MAP_FAILED && shared != MAP_FAILED);
    private[0] ^= 0;
    struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    ready_and_wait();
    expect_filled(private, 2 * PAGE, 7);
    expect_filled(shared, 2 * PAGE, 7);
    CHECK_EQ(((volatile char *)private)[5 * PAGE], 0);
    CHECK_EQ(buses, 1);
    CHECK_EQ(((volatile char *)shared)[6 * PAGE], 0);
    CHECK_EQ(buses, 2);
}

static void shared_anonymous(void) {
    uint64_t *shared = map(4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED);
    fill(shared, 4 * MIB, 8);
    shared[0] = 1;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* The child sees another part of it at another place too. */
        uint64_t *moved = mremap(shared, 0, MIB, MREMAP_MAYMOVE);
        CHECK(moved != MAP_FAILED);
        shared[1] = 77;
        wait_go();
        while (__atomic_load_n(&shared[0], __ATOMIC_SEQ_CST) != 2) sleep_ms(2);
        CHECK_EQ(moved[0], 2);
        moved[1] = 4711;
        __atomic_store_n(&moved[0], 3, __ATOMIC_SEQ_CST);
        _exit(0);
    }
    while (__atomic_load_n(&shared[1], __ATOMIC_SEQ_CST) != 77) sleep_ms(2);
    ready_and_wait();
    CHECK_EQ(shared[1], 77);
    __atomic_store_n(&shared[0], 2, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&shared[0], __ATOMIC_SEQ_CST) != 3) sleep_ms(2);
    CHECK_EQ(shared[1], 4711);
    uint64_t expected[2];
    fill(expected, 16, 8);
    for (size_t i = 2; i < 4 * MIB / 8; i += 511) CHECK_EQ(shared[i], (i + 1) * 0x9e3779b97f4a7c15u ^ 8);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

static void shared_file(void) {
    int fd = new_file("shared", 8 * PAGE, 9);
    char *area = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(area != MAP_FAILED);
    fill(area + PAGE, PAGE, 10);
    ready_and_wait();
    char page[PAGE];
    CHECK(pread(fd, page, PAGE, PAGE) == (ssize_t)PAGE);
    expect_filled(page, PAGE, 10);
    expect_filled(area, PAGE, 9);
    fill(area + 2 * PAGE, PAGE, 11);
    CHECK(pread(fd, page, PAGE, 2 * PAGE) == (ssize_t)PAGE);
    expect_filled(page, PAGE, 11);
    CHECK(pwrite(fd, "via the descriptor", 18, 3 * PAGE) == 18);
    CHECK(memcmp(area + 3 * PAGE, "via the descriptor", 18) == 0);
}

static void memfd_mapped(void) {
    int fd = memfd_create("of the test", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 8 * PAGE) == 0);
    char *one = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *two = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fd, 4 * PAGE);
    char *private = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    int closed = memfd_create("without a descriptor", 0);
    CHECK(closed >= 0 && ftruncate(closed, 2 * PAGE) == 0);
    char *lonely = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, closed, 0);
    CHECK(one != MAP_FAILED && two != MAP_FAILED && private != MAP_FAILED && lonely != MAP_FAILED);
    close(closed);
    fill(one, 8 * PAGE, 12);
    fill(private + PAGE, PAGE, 13);
    fill(lonely, 2 * PAGE, 14);
    CHECK(lseek(fd, 100, SEEK_SET) == 100);
    ready_and_wait();
    expect_filled(one, 8 * PAGE, 12);
    CHECK(memcmp(one + 4 * PAGE, two, 4 * PAGE) == 0);
    expect_filled(private + PAGE, PAGE, 13);
    CHECK(memcmp(private, one, PAGE) == 0);
    expect_filled(lonely, 2 * PAGE, 14);
    one[5 * PAGE] = 'x';
    CHECK_EQ(two[PAGE], 'x');
    CHECK_EQ(private[5 * PAGE], 'x'); /* not yet copied: still the object's */
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 100);
    CHECK(ftruncate(fd, 16 * PAGE) == 0);
    char name[64] = {0}, link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    CHECK(readlink(link, name, sizeof name - 1) > 0);
    CHECK(strstr(name, "of the test") != NULL);
}

static void deleted_file(void) {
    int fd = new_file("deleted", 8 * PAGE, 15);
    char *shared = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *private = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(shared != MAP_FAILED && private != MAP_FAILED);
    CHECK(unlink("deleted") == 0);
    fill(private + PAGE, PAGE, 16);
    int closed = new_file("deleted too", 4 * PAGE, 17);
    char *lonely = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, closed, 0);
    CHECK(lonely != MAP_FAILED && unlink("deleted too") == 0);
    close(closed);
    pid_t child = fork();
    if (child == 0) {
        wait_go();
        expect_filled(lonely, 4 * PAGE, 17);
        while (__atomic_load_n((uint64_t *)shared, __ATOMIC_SEQ_CST) != 5) sleep_ms(2);
        __atomic_store_n((uint64_t *)shared, 6, __ATOMIC_SEQ_CST);
        _exit(0);
    }
    ready_and_wait();
    expect_filled(shared, 8 * PAGE, 15);
    expect_filled(private + PAGE, PAGE, 16);
    expect_filled(lonely, 4 * PAGE, 17);
    shared[7 * PAGE] = 'y';
    char byte;
    CHECK(pread(fd, &byte, 1, 7 * PAGE) == 1 && byte == 'y');
    struct stat data;
    CHECK(fstat(fd, &data) == 0 && data.st_nlink == 0 && data.st_size == (off_t)(8 * PAGE));
    CHECK(access("deleted", F_OK) != 0);
    __atomic_store_n((uint64_t *)shared, 5, __ATOMIC_SEQ_CST);
    while (__atomic_load_n((uint64_t *)shared, __ATOMIC_SEQ_CST) != 6) sleep_ms(2);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static sem_t *semaphore(char which, const char *id, int flags) {
    char name[64];
    snprintf(name, sizeof name, "/stasis-test-%c-%s", which, id);
    sem_t *all = sem_open(name, flags, 0600, 2);
    CHECK(all != SEM_FAILED);
    return all;
}

/* The C library makes a named semaphore under another name first: who has made it shows that one, who has opened it its own. */
static void named_semaphores(void) {
    char id[32];
    snprintf(id, sizeof id, "%d", getpid());
    sem_t *ask = semaphore('a', id, O_CREAT | O_EXCL), *answer = semaphore('b', id, O_CREAT | O_EXCL);
    for (int i = 0; i < 2; i++) CHECK_EQ(sem_wait(ask) | sem_wait(answer), 0);
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "memory", "semaphores_of", id, NULL);
        _exit(97);
    }
    CHECK_EQ(sem_wait(answer), 0);
    for (int i = 0; i < 5; i++) CHECK_EQ(sem_post(answer), 0);
    ready_and_wait();
    int value = 0;
    CHECK_EQ(sem_getvalue(answer, &value), 0);
    CHECK_EQ(value, 5);
    for (int i = 0; i < 6; i++) {
        CHECK_EQ(sem_post(ask), 0);
        CHECK_EQ(sem_wait(answer), 0);
    }
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    for (const char *which = "ab"; *which; which++) {
        char name[64];
        snprintf(name, sizeof name, "/stasis-test-%c-%s", *which, id);
        CHECK_EQ(sem_unlink(name), 0);
    }
}

static int semaphores_of(const char *id) {
    sem_t *ask = semaphore('a', id, 0), *answer = semaphore('b', id, 0);
    CHECK_EQ(sem_post(answer), 0);
    for (int i = 0; i < 6; i++) {
        CHECK_EQ(sem_wait(ask), 0);
        if (i > 0) CHECK_EQ(sem_post(answer), 0);
    }
    return 0;
}

static void heap_growth(void) {
    char *before = sbrk(3 * MIB);
    CHECK(before != (void *)-1);
    fill(before, 3 * MIB, 18);
    char *top = sbrk(0);
    ready_and_wait();
    CHECK(sbrk(0) == top);
    char *more = sbrk(5 * MIB);
    CHECK(more == top);
    expect_zero(more, 5 * MIB);
    fill(more, 5 * MIB, 19);
    expect_filled(before, 3 * MIB, 18);
    expect_filled(more, 5 * MIB, 19);
    CHECK(brk(top) == 0);
    char *many[64];
    for (int i = 0; i < 64; i++) CHECK((many[i] = malloc(100000)) != NULL);
    for (int i = 0; i < 64; i++) free(many[i]);
}

static __attribute__((noinline)) uint64_t deep(int levels) {
    volatile char frame[8192];
    memset((char *)frame, levels & 0x7f, sizeof frame);
    uint64_t sum = levels > 0 ? deep(levels - 1) : 0;
    CHECK_EQ(frame[8191], levels & 0x7f);
    return sum + (uint64_t)frame[17];
}
static void stack_growth(void) {
    uint64_t before = deep(100);
    char local[3000];
    memset(local, 'l', sizeof local);
    ready_and_wait();
    for (size_t i = 0; i < sizeof local; i++) CHECK_EQ(local[i], 'l');
    CHECK_EQ(deep(100), before);
    deep(850); /* 7 MiB, of 8 */
}

/* /proc/self/maps and the flags of smaps, without what a kernel may number anew. */
static char old_maps[1 << 22], new_maps[1 << 22];
struct area {
    unsigned long start, end;
    char what[600];
};
/* Neighbours that are alike may become one area. */
static size_t emit(char *to, size_t size, size_t used, struct area *last, const struct area *next) {
    if (last->end != 0 && next != NULL && last->end == next->start && strcmp(last->what, next->what) == 0) {
        last->end = next->end;
        return used;
    }
    if (last->end != 0) used += (size_t)snprintf(to + used, size - used, "%lx-%lx %s\n", last->start, last->end, last->what);
    if (next != NULL) *last = *next;
    return used;
}
/* Soft-dirty marks do not count; nor does whether an area that cannot be written was accounted when it could. */
static void without(char *text, const char *word) {
    for (char *at; (at = strstr(text, word)) != NULL;) memmove(at, at + strlen(word), strlen(at + strlen(word)) + 1);
}
static size_t layout(char *to, size_t size) {
    static char text[1 << 22];
    static struct area last, area;
    size_t length = slurp("/proc/self/smaps", text, sizeof text), used = 0;
    text[length] = 0;
    last.end = 0;
    bool skip = false;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        unsigned long start, end, offset;
        char protection[5];
        const char *path;
        /* Names of fields may begin with letters that are digits, too. */
        if (sscanf(line, "%lx-%lx %4s %lx", &start, &end, protection, &offset) == 4) {
            area.start = start;
            area.end = end;
            path = strchr(line, '/');
            if (path == NULL) path = strchr(line, '[');
            /* Names of objects that have none. */
            if (path != NULL && (strncmp(path, "/dev/zero", 9) == 0 || strncmp(path, "/memfd:", 7) == 0)) path = "shared";
            /* The vdso's own data pages have a size that belongs to the kernel. */
            skip = path != NULL && (strncmp(path, "[vvar", 5) == 0 || strncmp(path, "[vsys", 5) == 0);
            snprintf(area.what, sizeof area.what, "%s %s", protection, path == NULL ? "" : path);
        } else if (!skip && strncmp(line, "VmFlags:", 8) == 0) {
            without(line, " sd");
            without(line, " ac");
            /* Dirty tracking: documented to be seen. */
            without(line, " uw");
            size_t have = strlen(area.what);
            snprintf(area.what + have, sizeof area.what - have, " %s", line + 9);
            used = emit(to, size, used, &last, &area);
        }
    }
    return emit(to, size, used, &last, NULL);
}

static void compare_layout(void) {
    deep(2);
    memset(old_maps, 0, sizeof old_maps);
    memset(new_maps, 0, sizeof new_maps);
    layout(new_maps, sizeof new_maps);
    layout(old_maps, sizeof old_maps);
    ready_and_wait();
    layout(new_maps, sizeof new_maps);
    if (strcmp(old_maps, new_maps) != 0) {
        char *old = old_maps, *now = new_maps;
        while (*old != 0 || *now != 0) {
            char *old_end = strchrnul(old, '\n'), *now_end = strchrnul(now, '\n');
            if (old_end - old != now_end - now || memcmp(old, now, (size_t)(old_end - old)) != 0) {
                say("FAILED: was \"%.*s\"\nFAILED: now \"%.*s\"\n", (int)(old_end - old), old, (int)(now_end - now), now);
                break;
            }
            old = *old_end ? old_end + 1 : old_end;
            now = *now_end ? now_end + 1 : now_end;
        }
        _exit(99);
    }
}

static void protections(void) {
    char *area = map(12 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    fill(area, 12 * PAGE, 20);
    static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov $42, %eax; ret */
    memcpy(area + 2 * PAGE, code, sizeof code);
    CHECK(mprotect(area, PAGE, PROT_READ) == 0);
    CHECK(mprotect(area + 2 * PAGE, PAGE, PROT_READ | PROT_EXEC) == 0);
    CHECK(mprotect(area + 4 * PAGE, 2 * PAGE, PROT_NONE) == 0);
    CHECK(mprotect(area + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
    char *never = map(3 * MIB, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
    char *shared = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    fill(shared, 4 * PAGE, 21);
    CHECK(mprotect(shared + PAGE, PAGE, PROT_NONE) == 0);
    compare_layout();
    int (*function)(void) = (int (*)(void))(area + 2 * PAGE);
    CHECK_EQ(function(), 42);
    CHECK(mprotect(area, 12 * PAGE, PROT_READ | PROT_WRITE) == 0);
    memset(area + 2 * PAGE, 0, sizeof code);
    char *expected = malloc(12 * PAGE);
    fill(expected, 12 * PAGE, 20);
    memset(expected + 2 * PAGE, 0, sizeof code);
    CHECK(memcmp(area, expected, 12 * PAGE) == 0);
    CHECK(mprotect(never, PAGE, PROT_READ | PROT_WRITE) == 0);
    expect_zero(never, PAGE);
    CHECK(mprotect(shared, 4 * PAGE, PROT_READ) == 0);
    expect_filled(shared, 4 * PAGE, 21);
}

static void advice(void) {
    static const int kinds[] = {MADV_DONTFORK, MADV_DONTDUMP,   MADV_WIPEONFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
                                MADV_RANDOM,   MADV_SEQUENTIAL, MADV_MERGEABLE,  MADV_NORMAL};
    enum { KINDS = sizeof kinds / sizeof kinds[0] };
    char *areas[KINDS];
    for (size_t i = 0; i < KINDS; i++) {
        /* A gap before each keeps them apart. */
        areas[i] = (char *)map(4 * MIB + PAGE, PROT_NONE, MAP_PRIVATE) + PAGE;
        CHECK(mprotect(areas[i], 4 * MIB, PROT_READ | PROT_WRITE) == 0);
        CHECK(madvise(areas[i], 4 * MIB, kinds[i]) == 0 || (kinds[i] == MADV_MERGEABLE && errno == EINVAL));
        fill(areas[i], 4 * MIB - 64 * PAGE, 30 + i);
    }
    char *locked = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    bool is_locked = mlock(locked, 4 * PAGE) == 0;
    char *no_reserve = map(MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE);
    fill(no_reserve, PAGE, 29);
    fill(locked, 4 * PAGE, 28);
    compare_layout();
    for (size_t i = 0; i < KINDS; i++) {
        expect_filled(areas[i], 4 * MIB - 64 * PAGE, 30 + i);
        expect_zero(areas[i] + 4 * MIB - 64 * PAGE, 64 * PAGE);
    }
    expect_filled(no_reserve, PAGE, 29);
    expect_filled(locked, 4 * PAGE, 28);
    CHECK(is_locked || munlock(locked, 4 * PAGE) == 0);
}

static bool present(const void *page) {
    static int fd = -1;
    if (fd < 0) fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uint64_t entry = 0;
    CHECK(pread(fd, &entry, 8, (off_t)((uintptr_t)page / PAGE * 8)) == 8);
    return entry >> 62 != 0;
}

static void sparse(void) {
    const size_t size = 64UL << 30;
    char *area = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE);
    CHECK(madvise(area, size, MADV_NOHUGEPAGE) == 0);
    for (size_t i = 0; i < 100; i++) fill(area + i * (size / 100) / PAGE * PAGE, PAGE, 100 + i);
    ready_and_wait();
    for (size_t i = 0; i < 100; i++) {
        char *page = area + i * (size / 100) / PAGE * PAGE;
        CHECK(present(page));
        CHECK(!present(page + PAGE));
        if (i > 0) CHECK(!present(page - PAGE));
        expect_filled(page, PAGE, 100 + i);
    }
    char text[4096];
    size_t length = slurp("/proc/self/statm", text, sizeof text);
    text[length] = 0;
    long total, resident;
    CHECK(sscanf(text, "%ld %ld", &total, &resident) == 2);
    CHECK(resident < 4096); /* 16 MiB */
}

static void zeros(void) {
    char *area = map(64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    memset(area, 0, 64 * MIB);
    area[40 * MIB] = 1;
    char *shared = map(16 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED);
    memset(shared, 0, 16 * MIB);
    ready_and_wait();
    CHECK_EQ(area[40 * MIB], 1);
    area[40 * MIB] = 0;
    expect_zero(area, 64 * MIB);
    expect_zero(shared, 16 * MIB);
}

static void many_areas(void) {
    enum { COUNT = 30000 };
    char *area = map(COUNT * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    fill(area, COUNT * PAGE, 40);
    for (size_t i = 0; i < COUNT; i += 2) CHECK(mprotect(area + i * PAGE, PAGE, PROT_READ) == 0);
    ready_and_wait();
    expect_filled(area, COUNT * PAGE, 40);
    CHECK(mprotect(area, COUNT * PAGE, PROT_READ | PROT_WRITE) == 0);
    fill(area, COUNT * PAGE, 41);
}

static void vdso(void) {
    struct timespec then, now;
    struct timeval day;
    clock_gettime(CLOCK_MONOTONIC, &then);
    say("ready\n");
    for (uint64_t i = 0; i % 1000 != 0 || access("go", F_OK) != 0; i++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        CHECK(now.tv_sec > then.tv_sec || (now.tv_sec == then.tv_sec && now.tv_nsec >= then.tv_nsec));
        then = now;
        CHECK(clock_gettime(CLOCK_REALTIME, &now) == 0);
        CHECK(gettimeofday(&day, NULL) == 0);
        CHECK(day.tv_sec >= now.tv_sec);
        CHECK(time(NULL) + 1 >= day.tv_sec);
        CHECK(sched_getcpu() >= 0);
        CHECK(clock_getres(CLOCK_MONOTONIC, &now) == 0);
        CHECK(clock_gettime(CLOCK_BOOTTIME, &now) == 0);
    }
}

static void grows_down(void) {
    /* Room below, which the kernel keeps a gap in. */
    char *room = map(16 * MIB, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
    CHECK(munmap(room, 16 * MIB) == 0);
    char *top = room + 16 * MIB;
    char *area = mmap(top - 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
    CHECK(area == top - 4 * PAGE);
    fill(area, 4 * PAGE, 42);
    for (size_t i = 5; i < 20; i++) *(volatile char *)(top - i * PAGE) = (char)i;
    ready_and_wait();
    expect_filled(area, 4 * PAGE, 42);
    for (size_t i = 5; i < 20; i++) CHECK_EQ(*(volatile char *)(top - i * PAGE), (char)i);
    for (size_t i = 20; i < 300; i++) *(volatile char *)(top - i * PAGE) = (char)i;
}

static void huge_pages(void) {
    char *raw = map(34 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *area = (char *)(((uintptr_t)raw + 2 * MIB - 1) & ~(2 * MIB - 1));
    CHECK(madvise(area, 32 * MIB, MADV_HUGEPAGE) == 0);
    fill(area, 32 * MIB, 43);
    CHECK(madvise(area + 4 * MIB, 3 * PAGE, MADV_DONTNEED) == 0);
    ready_and_wait();
    expect_filled(area, 4 * MIB, 43);
    expect_zero(area + 4 * MIB, 3 * PAGE);
    char *expected = malloc(32 * MIB);
    fill(expected, 32 * MIB, 43);
    CHECK(memcmp(area + 5 * MIB, expected + 5 * MIB, 27 * MIB) == 0);
}

/* Copy-on-write between parent and child: each sees its own. */
static void copy_on_write(void) {
    char *area = map(16 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    fill(area, 16 * MIB, 44);
    pid_t child = fork();
    if (child == 0) {
        fill(area, MIB, 45);
        wait_go();
        expect_filled(area, MIB, 45);
        fill(area + 8 * MIB, MIB, 46);
        expect_filled(area + 8 * MIB, MIB, 46);
        _exit(0);
    }
    ready_and_wait();
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    expect_filled(area, 16 * MIB, 44);
}

static const struct check_case cases[] = {
    {"anonymous", anonymous},       {"private_file", private_file},
    {"beyond_end", beyond_end},     {"shared_anonymous", shared_anonymous},
    {"shared_file", shared_file},   {"memfd_mapped", memfd_mapped},
    {"deleted_file", deleted_file}, {"heap_growth", heap_growth},
    {"stack_growth", stack_growth}, {"protections", protections},
    {"advice", advice},             {"sparse", sparse},
    {"zeros", zeros},               {"many_areas", many_areas},
    {"vdso", vdso},                 {"grows_down", grows_down},
    {"huge_pages", huge_pages},     {"copy_on_write", copy_on_write},
    {"named_semaphores", named_semaphores},
};

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "semaphores_of") == 0) return semaphores_of(argv[2]);
    return RUN_CASE(cases, argc, argv);
}
