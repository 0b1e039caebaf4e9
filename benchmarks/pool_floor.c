/*
 * The floor for a pool of rings: the least that a C program with liburing spends, with one ring for each of its threads.
 *
 *   cc -O2 -o pool_floor benchmarks/pool_floor.c -luring -lpthread
 *   ./pool_floor FILE [direct] [kept] [coop] [threads=8] [count=64] [size=4096] [seconds=2]
 *
 * Each thread reads lists of `count` blocks of `size` bytes at random aligned places. Memory: `count` buffers that are used again; with
 * `kept`, one from malloc for each block, freed after the list, as for a caller who gets results of his own. Rings are set up with
 * SINGLE_ISSUER and DEFER_TASKRUN; with `coop` with COOP_TASKRUN and TASKRUN_FLAG, which a ring that moves between threads has to be.
 *
 * Prints blocks, seconds and CPU seconds of the window.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define LISTS 64

static int direct, kept, coop, fd;
static unsigned threads = 8, count = 64, size = 4096;
static double seconds = 2;
static uint64_t blocks;
static atomic_int stop;
static atomic_ulong done;
static pthread_barrier_t ready;

static void fail(const char *what)
{
    fprintf(stderr, "pool_floor: %s\n", what);
    exit(1);
}

static double now(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void *work(void *number)
{
    struct io_uring_params p = {.flags = coop ? IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG
                                              : IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    unsigned seed = (unsigned)(uintptr_t)number + 1;
    uint64_t *offsets = calloc(LISTS * count, sizeof *offsets);
    char **memory = calloc(count, sizeof *memory);
    struct io_uring ring;

    if (io_uring_queue_init_params(count, &ring, &p) < 0)
        fail("no ring");
    for (unsigned i = 0; i < LISTS * count; i++)
        offsets[i] = (uint64_t)rand_r(&seed) % blocks * size;
    for (unsigned i = 0; i < count && !kept; i++) {
        memory[i] = aligned_alloc(4096, size);
        memset(memory[i], 0, size);
    }
    pthread_barrier_wait(&ready);
    for (unsigned list = 0; !atomic_load_explicit(&stop, memory_order_relaxed); list = (list + 1) % LISTS) {
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;

        for (unsigned i = 0; i < count; i++) {
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

            if (kept)
                memory[i] = malloc(size);
            io_uring_prep_read(sqe, fd, memory[i], size, offsets[list * count + i]);
        }
        while (seen < count) {
            unsigned these = 0;

            io_uring_submit_and_wait(&ring, count - seen);
            io_uring_for_each_cqe(&ring, head, cqe)
            {
                if (cqe->res != (int)size)
                    fail("a read failed");
                these++;
            }
            io_uring_cq_advance(&ring, these);
            seen += these;
        }
        for (unsigned i = 0; i < count && kept; i++)
            free(memory[i]);
        atomic_fetch_add_explicit(&done, count, memory_order_relaxed);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct timespec span;
    pthread_t *all;
    struct stat st;
    double wall, cpu;
    unsigned long before;

    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "direct"))
            direct = 1;
        else if (!strcmp(argv[i], "kept"))
            kept = 1;
        else if (!strcmp(argv[i], "coop"))
            coop = 1;
        else if (sscanf(argv[i], "threads=%u", &threads) != 1 && sscanf(argv[i], "count=%u", &count) != 1 &&
                 sscanf(argv[i], "size=%u", &size) != 1 && sscanf(argv[i], "seconds=%lf", &seconds) != 1)
            fail(argv[i]);
    }
    if (argc < 2 || (kept && direct) || !threads || !count || !size)
        fail("usage: pool_floor FILE [option…]");
    fd = open(argv[1], O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd < 0 || fstat(fd, &st) < 0 || !(blocks = (uint64_t)st.st_size / size))
        fail(argv[1]);
    all = calloc(threads, sizeof *all);
    pthread_barrier_init(&ready, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(all + i, NULL, work, (void *)(uintptr_t)i))
            fail("no thread");
    pthread_barrier_wait(&ready);
    nanosleep(&(struct timespec){0, 200000000}, NULL);
    before = atomic_load(&done);
    wall = now(CLOCK_MONOTONIC);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    span = (struct timespec){(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&span, NULL);
    wall = now(CLOCK_MONOTONIC) - wall;
    cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("blocks=%lu seconds=%f cpu_seconds=%f\n", atomic_load(&done) - before, wall, cpu);
    atomic_store(&stop, 1);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(all[i], NULL);
    return 0;
}
