/* A program that changes its memory in every way there is, and knows what each page must hold.
 *
 *     tracked [huge | beside]
 *
 * It says `ready` after the first step. When there is a file `check`, it looks at every page, removes the file and says `fine`; when
 * there is a file `again`, it removes it and executes itself; when there is a file `go`, it looks at every page, says `ok`
 * and ends. A child that it forks now and then does the same with its own copy of the memory until the next one is forked; if
 * a page of that is wrong, there is a file `broken`.
 *
 * With `beside` it has but one region, whose second half it moves away and back, each time that there is a file `move`; whenever
 * there is a file `write` it writes all of the first half. It answers `moved` and `written`. */
#include "check.h"
#include <sys/uio.h>

#define PAGE 4096
#define PAGES 640
#define REGIONS 6
#define ZERO 0

static unsigned char *regions[REGIONS];
/* Of each page: the step at which it was written, and so what it holds. */
static uint32_t steps[REGIONS][PAGES];
static uint64_t state = 88172645463325252u;
static bool is_child;
static int file;
static unsigned char *aligned;

static uint64_t next(uint64_t *at) {
    *at ^= *at << 13;
    *at ^= *at >> 7;
    *at ^= *at << 17;
    return *at;
}

static size_t below(size_t n) { return next(&state) % n; }

static void fill_page(void *to, uint32_t step) {
    uint64_t seed = (uint64_t)step * 0x9e3779b97f4a7c15u | 1;
    uint64_t *words = to;
    for (size_t i = 0; i < PAGE / 8; i++) words[i] = step == ZERO ? 0 : next(&seed);
}

static void look(void) {
    static unsigned char expected[PAGE];
    for (int region = 0; region < REGIONS; region++)
        for (int page = 0; page < PAGES; page++) {
            fill_page(expected, steps[region][page]);
            if (memcmp(expected, regions[region] + page * PAGE, PAGE) == 0) continue;
            if (is_child) {
                close(open("broken", O_CREAT | O_WRONLY, 0600));
                _exit(1);
            }
            say("FAILED: page %d of region %d is not of step %u\n", page, region, steps[region][page]);
            _exit(99);
        }
}

static unsigned char *place(unsigned char *at) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0);
    unsigned char *got = mmap(at, PAGES * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(got != MAP_FAILED);
    return got;
}

/* What consists of several areas cannot be moved as one, but for some that the kernel moves before it finds that out: the rest is
 * copied. */
static void move(unsigned char *from, unsigned char *to) {
    if (mremap(from, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to) return;
    CHECK_EQ(errno, EFAULT);
    for (int page = 0; page < PAGES; page++) {
        unsigned char *at = from + page * PAGE, *new = to + page * PAGE;
        if (msync(at, PAGE, MS_ASYNC) != 0) continue;
        CHECK(mmap(new, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == new);
        memcpy(new, at, PAGE);
    }
    CHECK(munmap(from, PAGES * PAGE) == 0);
}

static void change(uint32_t step) {
    static unsigned char page_of[PAGE];
    size_t r = below(REGIONS), p = below(PAGES - 8), n = 1 + below(8);
    unsigned char *at = regions[r] + p * PAGE;
    fill_page(page_of, step);
    switch (below(40)) {
    case 0: /* gone, and zero again */
        CHECK(madvise(at, n * PAGE, MADV_DONTNEED) == 0);
        for (size_t i = 0; i < n; i++) steps[r][p + i] = ZERO;
        return;
    case 1: { /* two regions change places */
        size_t o = (r + 1 + below(REGIONS - 1)) % REGIONS;
        unsigned char *between = place(NULL);
        move(regions[r], between);
        move(regions[o], regions[r]);
        move(between, regions[o]);
        static uint32_t kept[PAGES];
        memcpy(kept, steps[r], sizeof kept);
        memcpy(steps[r], steps[o], sizeof kept);
        memcpy(steps[o], kept, sizeof kept);
        return;
    }
    case 2: { /* moves elsewhere */
        unsigned char *to = place(NULL);
        move(regions[r], to);
        regions[r] = to;
        return;
    }
    case 3: /* another mapping at the same place */
        if (below(4) != 0) return;
        place(regions[r]);
        memset(steps[r], 0, sizeof steps[r]);
        return;
    case 4: /* a part of it is other memory */
        CHECK(munmap(at, n * PAGE) == 0);
        CHECK(mmap(at, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
        for (size_t i = 0; i < n; i++) steps[r][p + i] = ZERO;
        return;
    case 5: /* written by the kernel */
        CHECK(pwrite(file, page_of, PAGE, 0) == PAGE);
        CHECK(pread(file, at, PAGE, 0) == PAGE);
        break;
    case 6: { /* by a call that takes hold of pages */
        struct iovec from = {page_of, PAGE}, to = {at, PAGE};
        CHECK(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == PAGE);
        break;
    }
    case 7: { /* by the device, where the file system has it */
        const char *name = is_child ? "direct-of-child" : "direct";
        int to = open(name, O_CREAT | O_WRONLY, 0600);
        int direct = open(name, O_RDONLY | O_DIRECT);
        if (direct < 0) {
            close(to);
            return;
        }
        memcpy(aligned, page_of, PAGE);
        CHECK(to >= 0 && pwrite(to, aligned, PAGE, 0) == PAGE && close(to) == 0);
        ssize_t got = pread(direct, at, PAGE, 0);
        close(direct);
        if (got != PAGE) return;
        break;
    }
    case 8: /* may not be written for a while */
        CHECK(mprotect(at, n * PAGE, PROT_READ) == 0);
        CHECK(mprotect(at, n * PAGE, PROT_READ | PROT_WRITE) == 0);
        memcpy(at, page_of, PAGE);
        break;
    case 9: /* through another descriptor of the memory */
    {
        int memory = open("/proc/self/mem", O_RDWR);
        CHECK(memory >= 0 && pwrite(memory, page_of, PAGE, (off_t)at) == PAGE && close(memory) == 0);
        break;
    }
    case 10: /* its end is given up and comes back */
        if (mremap(regions[r], PAGES * PAGE, (PAGES - 8) * PAGE, 0) != regions[r]) return;
        at = mremap(regions[r], (PAGES - 8) * PAGE, PAGES * PAGE, MREMAP_MAYMOVE);
        if (at == MAP_FAILED) {
            CHECK_EQ(errno, EFAULT);
            at = place(NULL);
            memcpy(at, regions[r], (PAGES - 8) * PAGE);
            CHECK(munmap(regions[r], (PAGES - 8) * PAGE) == 0);
        }
        regions[r] = at;
        memset(&steps[r][PAGES - 8], 0, 8 * sizeof steps[r][0]);
        return;
    case 11: /* rid of and written at once */
        CHECK(madvise(at, PAGE, MADV_FREE) == 0);
        memcpy(at, page_of, PAGE);
        break;
    case 12: /* written as it was */
        memmove(at, at, PAGE);
        return;
    default:
        memcpy(at, page_of, PAGE);
    }
    steps[r][p] = step;
}

/* A child with a copy of everything, instead of the one before. */
static pid_t fork_child(pid_t before, uint32_t step) {
    if (before > 0) {
        CHECK(kill(before, SIGKILL) == 0);
        CHECK(waitpid(before, NULL, 0) == before);
    }
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        is_child = true;
        file = open("of-child", O_CREAT | O_RDWR | O_TRUNC, 0600);
        for (uint32_t n = 1;; n++) {
            change(step + n);
            if (n % 64 == 0) look();
            sleep_ms(1);
        }
    }
    return child;
}

static bool asked(const char *name) { return access(name, F_OK) == 0 && unlink(name) == 0; }

/* Two areas that become one. */
static void beside(void) {
    size_t half = PAGES * PAGE;
    unsigned char *first = mmap(NULL, 2 * half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *second = first + half, *away = mmap(NULL, 3 * half, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(first != MAP_FAILED && away != MAP_FAILED);
    madvise(first, 2 * half, MADV_NOHUGEPAGE);
    for (int page = 0; page < 2 * PAGES; page++) fill_page(first + page * PAGE, 1 + page);
    bool is_away = false;
    uint32_t step = 0;
    say("ready\n");
    while (access("go", F_OK) != 0) {
        if (asked("move")) {
            unsigned char *from = is_away ? away + half : second, *to = is_away ? second : away + half;
            CHECK(mremap(from, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
            is_away = !is_away;
            say("moved\n");
        }
        if (asked("write")) {
            step += 10000;
            for (int page = 0; page < PAGES; page++) fill_page(first + page * PAGE, step + page);
            say("written\n");
        }
        sleep_ms(1);
    }
    say("ok\n");
    exit(0);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "beside") == 0) beside();
    bool huge = argc > 1 && strcmp(argv[1], "huge") == 0;
    file = open("file", O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(file >= 0);
    CHECK(posix_memalign((void **)&aligned, PAGE, PAGE) == 0);
    for (int region = 0; region < REGIONS; region++) {
        regions[region] = place(NULL);
        madvise(regions[region], PAGES * PAGE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        for (int page = 0; page < PAGES; page++) {
            steps[region][page] = 1 + page;
            fill_page(regions[region] + page * PAGE, 1 + page);
        }
    }
    pid_t child = 0;
    say("ready\n");
    for (uint32_t step = 10000; access("go", F_OK) != 0; step++) {
        for (int n = 0; n < 4; n++) change(step);
        if (step % 256 == 0) child = fork_child(child, step);
        if (asked("check")) {
            look();
            say("fine\n");
        }
        if (asked("again")) {
            if (child > 0) {
                kill(child, SIGKILL);
                waitpid(child, NULL, 0);
            }
            execv("/proc/self/exe", argv);
        }
        sleep_ms(1);
    }
    look();
    if (child > 0) kill(child, SIGKILL);
    CHECK(access("broken", F_OK) != 0);
    say("ok\n");
    return 0;
}
