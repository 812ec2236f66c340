/* A program whose memory changes all the time, and that can tell whether it is of one moment.
 *
 *     changing KIB PAGES
 *
 * holds KIB KiB. In each step it writes PAGES pages anew, each from its number and the number of the step, and notes that
 * step for the page. When there is a file `check`, it looks at every page, removes the file and says `fine`. When there is a
 * file `go` it looks at every page, says `ok` and ends. */
#include "check.h"
#include <stdint.h>
#include <sys/mman.h>

#define PAGE 4096

static uint64_t *pages;
static uint32_t *steps;
static size_t count;

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t seed(size_t page, uint32_t step) {
    return ((uint64_t)(page + 1) << 32 | step) * 0x9e3779b97f4a7c15u | 1;
}

static void write_page(size_t page, uint32_t step) {
    uint64_t state = seed(page, step);
    uint64_t *at = pages + page * (PAGE / 8);
    for (size_t i = 0; i < PAGE / 8; i++)
        at[i] = next(&state);
    steps[page] = step;
}

static void look(void) {
    for (size_t page = 0; page < count; page++) {
        uint64_t state = seed(page, steps[page]);
        uint64_t *at = pages + page * (PAGE / 8);
        for (size_t i = 0; i < PAGE / 8; i++)
            if (at[i] != next(&state)) {
                printf("page %zu is not of step %u\n", page, steps[page]);
                fflush(stdout);
                exit(1);
            }
    }
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    count = strtoul(argv[1], 0, 10) * 1024 / PAGE;
    size_t changes = strtoul(argv[2], 0, 10);
    pages = mmap(0, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    steps = calloc(count, sizeof *steps);
    if (pages == MAP_FAILED || !steps)
        return 3;
    for (size_t page = 0; page < count; page++)
        write_page(page, 0);
    printf("ready\n");
    fflush(stdout);
    uint64_t state = 88172645463325252u;
    for (uint32_t step = 1;; step++) {
        for (size_t n = 0; n < changes; n++)
            write_page(next(&state) % count, step);
        if (access("check", F_OK) == 0) {
            look();
            unlink("check");
            printf("fine\n");
            fflush(stdout);
        }
        if (access("go", F_OK) == 0)
            break;
        usleep(2000);
    }
    look();
    printf("ok\n");
    return 0;
}
