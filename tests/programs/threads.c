/* Threads: what belongs to each of them. */
#include "check.h"
#include <dlfcn.h>
#include <stddef.h>
#include <sys/resource.h>

#ifndef SCHED_BATCH
#define SCHED_BATCH 3
#endif

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t started = PTHREAD_COND_INITIALIZER, proceed = PTHREAD_COND_INITIALIZER;
static int running, count;
static bool going;
static __thread uint64_t local_word;
static __thread char local_text[1000];
static uint64_t sum;

static pid_t thread_id(void) {
    return (pid_t)syscall(SYS_gettid);
}

static int processors(void) {
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
    return CPU_COUNT(&set);
}

/* The number of the `index`-th processor that we may use. */
static int processor(int index) {
    static cpu_set_t allowed;
    if (CPU_COUNT(&allowed) == 0) CHECK(sched_getaffinity(getpid(), sizeof allowed, &allowed) == 0);
    index %= CPU_COUNT(&allowed);
    for (int cpu = 0;; cpu++)
        if (CPU_ISSET(cpu, &allowed) && index-- == 0) return cpu;
}

static void *worker(void *argument) {
    long number = (long)argument;
    pid_t tid = thread_id();
    char name[40], text[40];
    snprintf(name, sizeof name, "worker-%ld", number);
    CHECK(prctl(PR_SET_NAME, name) == 0);
    local_word = (uint64_t)number * 3 + 1;
    snprintf(local_text, sizeof local_text, "of thread %ld", number);

    sigset_t mask, mask_now;
    sigemptyset(&mask);
    for (int bit = 0; bit < 20; bit++)
        if (number >> bit & 1) sigaddset(&mask, SIGRTMIN + 2 + bit);
    CHECK(pthread_sigmask(SIG_SETMASK, &mask, NULL) == 0);

    char *stack_room = malloc(32768);
    CHECK(stack_room != NULL);
    stack_t stack = {.ss_sp = stack_room, .ss_size = 16384 + (size_t)(number % 16) * 1024}, stack_now;
    CHECK(sigaltstack(&stack, NULL) == 0);

    int nice = getpriority(PRIO_PROCESS, 0) + (int)(number % 15);
    if (nice > 19) nice = 19;
    CHECK(setpriority(PRIO_PROCESS, (id_t)tid, nice) == 0);
    cpu_set_t set, set_now;
    CPU_ZERO(&set);
    CPU_SET(processor((int)number), &set);
    bool pinned = number % 3 != 0;
    if (pinned) CHECK(sched_setaffinity(0, sizeof set, &set) == 0);
    int policy = number % 7 == 3 ? SCHED_BATCH : number % 7 == 4 ? SCHED_IDLE : SCHED_OTHER;
    struct sched_param parameter = {0};
    CHECK(sched_setscheduler(0, policy, &parameter) == 0);
    CHECK(prctl(PR_SET_TIMERSLACK, 60000 + number, 0, 0, 0) == 0);
    double value = 1.0 / (double)(number + 3);

    pthread_mutex_lock(&mutex);
    if (++running == count) pthread_cond_signal(&started);
    while (!going) pthread_cond_wait(&proceed, &mutex);
    sum += local_word;
    pthread_mutex_unlock(&mutex);

    CHECK_EQ(thread_id(), tid);
    CHECK(prctl(PR_GET_NAME, text) == 0);
    CHECK(strcmp(text, name) == 0);
    CHECK_EQ(local_word, number * 3 + 1);
    snprintf(text, sizeof text, "of thread %ld", number);
    CHECK(strcmp(local_text, text) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask_now) == 0);
    for (int signal = 1; signal <= SIGRTMAX; signal++) CHECK_EQ(sigismember(&mask_now, signal), sigismember(&mask, signal));
    CHECK(sigaltstack(NULL, &stack_now) == 0);
    CHECK(stack_now.ss_sp == stack.ss_sp && stack_now.ss_size == stack.ss_size && stack_now.ss_flags == 0);
    CHECK_EQ(getpriority(PRIO_PROCESS, 0), nice);
    if (pinned) {
        CHECK(sched_getaffinity(0, sizeof set_now, &set_now) == 0);
        CHECK(CPU_EQUAL(&set, &set_now));
    }
    CHECK_EQ(sched_getscheduler(0), policy);
    CHECK_EQ(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 60000 + number);
    CHECK(value == 1.0 / (double)(number + 3));
    return (void *)(number + 7);
}

static int crowd(int size) {
    count = size;
    pthread_t *threads = calloc((size_t)size, sizeof *threads);
    CHECK(threads != NULL);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    for (long i = 0; i < size; i++) {
        errno = pthread_create(&threads[i], &attributes, worker, (void *)i);
        CHECK(errno == 0);
    }
    pthread_mutex_lock(&mutex);
    while (running < count) pthread_cond_wait(&started, &mutex);
    pthread_mutex_unlock(&mutex);
    ready_and_wait();
    pthread_mutex_lock(&mutex);
    going = true;
    pthread_cond_broadcast(&proceed);
    pthread_mutex_unlock(&mutex);
    uint64_t expected = 0;
    for (long i = 0; i < size; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        CHECK_EQ((long)result, i + 7);
        expected += (uint64_t)i * 3 + 1;
    }
    CHECK_EQ(sum, expected);
    say("ok\n");
    return 0;
}

/* --- robust mutex --- */
static pthread_mutex_t robust;
static void *dies_with_mutex(void *unused) {
    (void)unused;
    CHECK(pthread_mutex_lock(&robust) == 0);
    __atomic_store_n(&going, true, __ATOMIC_SEQ_CST);
    wait_go();
    return NULL;
}
static void robust_owner(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    CHECK(pthread_mutex_init(&robust, &attributes) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, dies_with_mutex, NULL) == 0);
    while (!__atomic_load_n(&going, __ATOMIC_SEQ_CST)) sleep_ms(2);
    ready_and_wait();
    CHECK_EQ(pthread_mutex_lock(&robust), EOWNERDEAD);
    CHECK(pthread_mutex_consistent(&robust) == 0);
    CHECK(pthread_mutex_unlock(&robust) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* --- the leader is gone, the others go on --- */
static pthread_t leader;
static void *survivor(void *unused) {
    (void)unused;
    CHECK(pthread_join(leader, NULL) == 0);
    char text[4096];
    do {
        size_t length = slurp("/proc/self/stat", text, sizeof text - 1);
        text[length] = 0;
    } while (strrchr(text, ')')[2] != 'Z');
    pid_t tid = thread_id();
    ready_and_wait();
    CHECK_EQ(thread_id(), tid);
    size_t length = slurp("/proc/self/stat", text, sizeof text - 1);
    text[length] = 0;
    CHECK_EQ(strrchr(text, ')')[2], 'Z');
    say("ok\n");
    exit(0);
}
static void exited_leader(void) {
    leader = pthread_self();
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, survivor, NULL) == 0);
    pthread_exit(NULL);
}

/* --- restartable sequences: the kernel writes the processor's number into the thread --- */
static void rseq_registered(void) {
    ptrdiff_t *offset = dlsym(RTLD_DEFAULT, "__rseq_offset");
    unsigned *size = dlsym(RTLD_DEFAULT, "__rseq_size");
    bool there = offset != NULL && size != NULL && *size > 0;
    volatile uint32_t *area = NULL;
    if (there) area = (volatile uint32_t *)((char *)__builtin_thread_pointer() + *offset);
    ready_and_wait();
    for (int i = 0; there && i < 2 * processors() && i < 16; i++) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(processor(i), &set);
        CHECK(sched_setaffinity(0, sizeof set, &set) == 0);
        sched_yield();
        unsigned cpu;
        CHECK(syscall(SYS_getcpu, &cpu, NULL, NULL) == 0);
        CHECK_EQ(cpu, processor(i));
        CHECK_EQ(area[1], cpu); /* cpu_id */
        CHECK_EQ(area[0], cpu); /* cpu_id_start */
    }
}

/* --- every register, in a loop that never enters the kernel --- */
volatile int spin_end;
volatile int spinning;

struct registers {
    uint64_t general[14]; /* rax rbx rcx rdx rsi rdi rbp r8-r14 */
    uint64_t r15;
    uint64_t flags;
};
/* Global, so that the compiler knows that the assembly uses them. */
struct registers out;
uint8_t vector_in[32][64], vector_out[32][64];
uint64_t mask_in[8], mask_out[8];

static void *spin_general(void *unused) {
    (void)unused;
    __asm__ volatile(
        "push %%rbp\n push %%rbx\n push %%r12\n push %%r13\n push %%r14\n push %%r15\n"
        "movabs $0x1111111111111101, %%rax\n movabs $0x1111111111111102, %%rbx\n"
        "movabs $0x1111111111111103, %%rcx\n movabs $0x1111111111111104, %%rdx\n"
        "movabs $0x1111111111111105, %%rsi\n movabs $0x1111111111111106, %%rdi\n"
        "movabs $0x1111111111111107, %%rbp\n movabs $0x1111111111111108, %%r8\n"
        "movabs $0x1111111111111109, %%r9\n movabs $0x111111111111110a, %%r10\n"
        "movabs $0x111111111111110b, %%r11\n movabs $0x111111111111110c, %%r12\n"
        "movabs $0x111111111111110d, %%r13\n movabs $0x111111111111110e, %%r14\n"
        "movabs $0x111111111111110f, %%r15\n"
        "movl $1, spinning(%%rip)\n"
        "1: pause\n cmpl $0, spin_end(%%rip)\n je 1b\n"
        "mov %%rax, out(%%rip)\n mov %%rbx, out+8(%%rip)\n mov %%rcx, out+16(%%rip)\n mov %%rdx, out+24(%%rip)\n"
        "mov %%rsi, out+32(%%rip)\n mov %%rdi, out+40(%%rip)\n mov %%rbp, out+48(%%rip)\n mov %%r8, out+56(%%rip)\n"
        "mov %%r9, out+64(%%rip)\n mov %%r10, out+72(%%rip)\n mov %%r11, out+80(%%rip)\n mov %%r12, out+88(%%rip)\n"
        "mov %%r13, out+96(%%rip)\n mov %%r14, out+104(%%rip)\n mov %%r15, out+112(%%rip)\n"
        "pop %%r15\n pop %%r14\n pop %%r13\n pop %%r12\n pop %%rbx\n pop %%rbp\n" ::
            : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
    for (int i = 0; i < 14; i++) CHECK_EQ(out.general[i], 0x1111111111111101ull + (unsigned)i);
    CHECK_EQ(out.r15, 0x111111111111110full);
    return NULL;
}

static void spin(void *(*function)(void *)) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, function, NULL) == 0);
    while (!spinning) sleep_ms(1);
    ready_and_wait();
    spin_end = 1;
    CHECK(pthread_join(thread, NULL) == 0);
}
static void general_registers(void) {
    spin(spin_general);
}

static void *spin_sse(void *unused) {
    (void)unused;
    __asm__ volatile(
        "movdqu vector_in+0(%%rip), %%xmm0\n movdqu vector_in+64(%%rip), %%xmm1\n"
        "movdqu vector_in+128(%%rip), %%xmm2\n movdqu vector_in+192(%%rip), %%xmm3\n"
        "movdqu vector_in+256(%%rip), %%xmm4\n movdqu vector_in+320(%%rip), %%xmm5\n"
        "movdqu vector_in+384(%%rip), %%xmm6\n movdqu vector_in+448(%%rip), %%xmm7\n"
        "movdqu vector_in+512(%%rip), %%xmm8\n movdqu vector_in+576(%%rip), %%xmm9\n"
        "movdqu vector_in+640(%%rip), %%xmm10\n movdqu vector_in+704(%%rip), %%xmm11\n"
        "movdqu vector_in+768(%%rip), %%xmm12\n movdqu vector_in+832(%%rip), %%xmm13\n"
        "movdqu vector_in+896(%%rip), %%xmm14\n movdqu vector_in+960(%%rip), %%xmm15\n"
        "movl $1, spinning(%%rip)\n"
        "1: pause\n cmpl $0, spin_end(%%rip)\n je 1b\n"
        "movdqu %%xmm0, vector_out+0(%%rip)\n movdqu %%xmm1, vector_out+64(%%rip)\n"
        "movdqu %%xmm2, vector_out+128(%%rip)\n movdqu %%xmm3, vector_out+192(%%rip)\n"
        "movdqu %%xmm4, vector_out+256(%%rip)\n movdqu %%xmm5, vector_out+320(%%rip)\n"
        "movdqu %%xmm6, vector_out+384(%%rip)\n movdqu %%xmm7, vector_out+448(%%rip)\n"
        "movdqu %%xmm8, vector_out+512(%%rip)\n movdqu %%xmm9, vector_out+576(%%rip)\n"
        "movdqu %%xmm10, vector_out+640(%%rip)\n movdqu %%xmm11, vector_out+704(%%rip)\n"
        "movdqu %%xmm12, vector_out+768(%%rip)\n movdqu %%xmm13, vector_out+832(%%rip)\n"
        "movdqu %%xmm14, vector_out+896(%%rip)\n movdqu %%xmm15, vector_out+960(%%rip)\n" ::
            : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
              "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    for (int i = 0; i < 16; i++) CHECK(memcmp(vector_in[i], vector_out[i], 16) == 0);
    return NULL;
}
static void sse_registers(void) {
    fill(vector_in, sizeof vector_in, 50);
    spin(spin_sse);
}

__attribute__((target("avx"))) static void *spin_avx(void *unused) {
    (void)unused;
#define Y(n) "vmovdqu vector_in+64*" #n "(%%rip), %%ymm" #n "\n"
#define S(n) "vmovdqu %%ymm" #n ", vector_out+64*" #n "(%%rip)\n"
    __asm__ volatile(Y(0) Y(1) Y(2) Y(3) Y(4) Y(5) Y(6) Y(7) Y(8) Y(9) Y(10) Y(11) Y(12) Y(13) Y(14) Y(15)
                     "movl $1, spinning(%%rip)\n"
                     "1: pause\n cmpl $0, spin_end(%%rip)\n je 1b\n"
                     S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15)
                     "vzeroupper\n" ::: "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                     "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#undef Y
#undef S
    for (int i = 0; i < 16; i++) CHECK(memcmp(vector_in[i], vector_out[i], 32) == 0);
    return NULL;
}
static void avx_registers(void) {
    if (!__builtin_cpu_supports("avx")) {
        ready_and_wait();
        return;
    }
    fill(vector_in, sizeof vector_in, 51);
    spin(spin_avx);
}

__attribute__((target("avx512f,avx512bw"))) static void *spin_avx512(void *unused) {
    (void)unused;
#define Z(n) "vmovdqu64 vector_in+64*" #n "(%%rip), %%zmm" #n "\n"
#define S(n) "vmovdqu64 %%zmm" #n ", vector_out+64*" #n "(%%rip)\n"
#define K(n) "kmovq mask_in+8*" #n "(%%rip), %%k" #n "\n"
#define L(n) "kmovq %%k" #n ", mask_out+8*" #n "(%%rip)\n"
    __asm__ volatile(
        Z(0) Z(1) Z(2) Z(3) Z(4) Z(5) Z(6) Z(7) Z(8) Z(9) Z(10) Z(11) Z(12) Z(13) Z(14) Z(15) Z(16) Z(17) Z(18) Z(19)
        Z(20) Z(21) Z(22) Z(23) Z(24) Z(25) Z(26) Z(27) Z(28) Z(29) Z(30) Z(31)
        K(0) K(1) K(2) K(3) K(4) K(5) K(6) K(7)
        "movl $1, spinning(%%rip)\n"
        "1: pause\n cmpl $0, spin_end(%%rip)\n je 1b\n"
        S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15) S(16) S(17) S(18) S(19)
        S(20) S(21) S(22) S(23) S(24) S(25) S(26) S(27) S(28) S(29) S(30) S(31)
        L(0) L(1) L(2) L(3) L(4) L(5) L(6) L(7)
        "vzeroupper\n" ::: "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
        "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20",
        "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2",
        "k3", "k4", "k5", "k6", "k7");
#undef Z
#undef S
#undef K
#undef L
    CHECK(memcmp(vector_in, vector_out, sizeof vector_in) == 0);
    CHECK(memcmp(mask_in, mask_out, sizeof mask_in) == 0);
    return NULL;
}
static void avx512_registers(void) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")) {
        ready_and_wait();
        return;
    }
    fill(vector_in, sizeof vector_in, 52);
    fill(mask_in, sizeof mask_in, 53);
    spin(spin_avx512);
}

/* x87 stack, its control word, and the control word of SSE. */
static void *spin_x87(void *unused) {
    (void)unused;
    uint16_t control = 0x0c7f /* truncate, all masked, double precision off */, control_now = 0;
    uint32_t mxcsr = 0xbfc0 /* all masked, flush to zero, denormals are zero, down */, mxcsr_now = 0;
    double now[8];
    __asm__ volatile("fninit\n fldcw %[cw]\n ldmxcsr %[mx]\n"
                     "fldpi\n fldl2e\n fldl2t\n fldlg2\n fldln2\n fld1\n"
                     "movl $1, spinning(%%rip)\n"
                     "1: pause\n cmpl $0, spin_end(%%rip)\n je 1b\n"
                     "fnstcw %[cn]\n stmxcsr %[mn]\n"
                     "fstpl %[a]\n fstpl %[b]\n fstpl %[c]\n fstpl %[d]\n fstpl %[e]\n fstpl %[f]\n fninit\n"
                     : [cn] "=m"(control_now), [mn] "=m"(mxcsr_now), [a] "=m"(now[0]), [b] "=m"(now[1]), [c] "=m"(now[2]),
                       [d] "=m"(now[3]), [e] "=m"(now[4]), [f] "=m"(now[5])
                     : [cw] "m"(control), [mx] "m"(mxcsr)
                     : "memory", "cc");
    uint32_t plain = 0x1f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(plain));
    CHECK_EQ(control_now, control);
    CHECK_EQ(mxcsr_now & ~0x3fu, mxcsr & ~0x3fu);
    CHECK(now[0] == 1.0);
    CHECK(now[1] > 0.6931 && now[1] < 0.6932);
    CHECK(now[2] > 0.3010 && now[2] < 0.3011);
    CHECK(now[3] > 3.3219 && now[3] < 3.3220);
    CHECK(now[4] > 1.4426 && now[4] < 1.4427);
    CHECK(now[5] > 3.1415 && now[5] < 3.1416);
    return NULL;
}
static void x87_registers(void) {
    spin(spin_x87);
}

/* The base of gs, which threads of emulators use. */
static uint64_t gs_target[4] = {0xfeedbeef, 0xabad1dea, 3, 4};
static void *spin_gs(void *unused) {
    (void)unused;
    CHECK(syscall(SYS_arch_prctl, 0x1001 /* ARCH_SET_GS */, gs_target) == 0);
    spinning = 1;
    while (!spin_end) __builtin_ia32_pause();
    uint64_t value;
    __asm__ volatile("movq %%gs:8, %0" : "=r"(value));
    CHECK_EQ(value, 0xabad1dea);
    return NULL;
}
static void gs_base(void) {
    spin(spin_gs);
}

/* 64 threads that hand numbers around, with mutexes and condition variables, and never stop. */
enum { RING = 64 };
static pthread_mutex_t ring_mutex[RING];
static pthread_cond_t ring_ready[RING];
static uint64_t ring_value[RING];
static bool ring_full[RING];
static uint64_t rounds = 3000;
static void *ring_member(void *argument) {
    long own = (long)argument, next = (own + 1) % RING;
    for (uint64_t round = 0; round < rounds; round++) {
        pthread_mutex_lock(&ring_mutex[own]);
        while (!ring_full[own]) pthread_cond_wait(&ring_ready[own], &ring_mutex[own]);
        uint64_t value = ring_value[own];
        ring_full[own] = false;
        pthread_cond_broadcast(&ring_ready[own]);
        pthread_mutex_unlock(&ring_mutex[own]);
        value = value * 6364136223846793005u + (uint64_t)own;
        if (own == RING - 1 && round % 250 == 0) say("round %llu: %016llx\n", (unsigned long long)round, (unsigned long long)value);
        pthread_mutex_lock(&ring_mutex[next]);
        while (ring_full[next]) pthread_cond_wait(&ring_ready[next], &ring_mutex[next]);
        ring_value[next] = value;
        ring_full[next] = true;
        pthread_cond_broadcast(&ring_ready[next]);
        pthread_mutex_unlock(&ring_mutex[next]);
    }
    return NULL;
}
static int ring(void) {
    pthread_t threads[RING];
    for (int i = 0; i < RING; i++) {
        pthread_mutex_init(&ring_mutex[i], NULL);
        pthread_cond_init(&ring_ready[i], NULL);
        ring_full[i] = i % 8 == 0;
        ring_value[i] = (uint64_t)i;
    }
    for (long i = 0; i < RING; i++) CHECK(pthread_create(&threads[i], NULL, ring_member, (void *)i) == 0);
    for (int i = 0; i < RING; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    uint64_t total = 0;
    for (int i = 0; i < RING; i++) total = total * 31 + ring_value[i];
    say("total %016llx\n", (unsigned long long)total);
    return 0;
}

static const struct check_case cases[] = {
    {"robust_owner", robust_owner},       {"exited_leader", exited_leader},
    {"rseq_registered", rseq_registered}, {"general_registers", general_registers},
    {"sse_registers", sse_registers},     {"avx_registers", avx_registers},
    {"avx512_registers", avx512_registers}, {"x87_registers", x87_registers},
    {"gs_base", gs_base},
};

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "crowd") == 0) return crowd(atoi(argv[2]));
    if (argc > 1 && strcmp(argv[1], "ring") == 0) {
        if (argc > 2) rounds = (uint64_t)atoll(argv[2]);
        return ring();
    }
    return RUN_CASE(cases, argc, argv);
}
