/*
 * The floor for positional reads: the least that a C program with liburing spends on what trio_uring.read_many does.
 *
 *   cc -O2 -o floor benchmarks/floor.c -luring
 *   ./floor FILE [direct] [kept] [fixed_file] [fixed_buffers] [depth=32] [size=4096] [count=1024] [rounds=100] [seed=1]
 *
 * Reads `count` blocks of `size` bytes at random aligned places, `depth` in flight, `rounds` times. With `direct` the file is
 * opened with O_DIRECT. Memory: `depth` buffers used in turn; with `kept`, one of its own for each read, taken from malloc
 * and freed after the round, since a caller who gets results has them in memory of their own. `fixed_file` and
 * `fixed_buffers` (not with `kept`) register them with the ring.
 *
 * Prints one line: cpu_ns and wall_ns for each read, of the best round, and of the median one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static int direct, kept, fixed_file, fixed_buffers;
static unsigned depth = 32, size = 4096, count = 1024, rounds = 100, seed = 1;
static struct io_uring ring;
static int fd;
static char **memory;  /* by window slot, or by read */
static uint64_t *offsets;

static void fail(const char *what, int error)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(error));
    exit(1);
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static void queue(unsigned item, unsigned slot)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    char *where = memory[kept ? item : slot];

    if (fixed_buffers)
        io_uring_prep_read_fixed(sqe, fixed_file ? 0 : fd, where, size, offsets[item], (int)slot);
    else
        io_uring_prep_read(sqe, fixed_file ? 0 : fd, where, size, offsets[item]);
    if (fixed_file)
        sqe->flags |= IOSQE_FIXED_FILE;
    sqe->user_data = slot;
}

static void one_round(void)
{
    unsigned next = 0, done = 0, head, seen;
    struct io_uring_cqe *cqe;

    if (kept)
        for (unsigned i = 0; i < count; i++)
            if (!(memory[i] = malloc(size)))
                fail("malloc", ENOMEM);
    while (next < depth && next < count)
        queue(next, next), next++;
    while (done < count) {
        int rc = io_uring_submit_and_wait(&ring, 1);

        if (rc < 0 && rc != -EINTR)
            fail("io_uring_enter", -rc);
        seen = 0;
        io_uring_for_each_cqe(&ring, head, cqe)
        {
            if (cqe->res != (int)size)
                fail("read", cqe->res < 0 ? -cqe->res : EIO);
            seen++;
            done++;
            if (next < count)
                queue(next++, (unsigned)cqe->user_data);
        }
        io_uring_cq_advance(&ring, seen);
    }
    if (kept)
        for (unsigned i = 0; i < count; i++)
            free(memory[i]);
}

int main(int argc, char **argv)
{
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    int64_t *cpu, *wall;
    struct stat st;
    int rc;

    if (argc < 2)
        fail("usage: floor FILE [option…]", EINVAL);
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "direct"))
            direct = 1;
        else if (!strcmp(argv[i], "kept"))
            kept = 1;
        else if (!strcmp(argv[i], "fixed_file"))
            fixed_file = 1;
        else if (!strcmp(argv[i], "fixed_buffers"))
            fixed_buffers = 1;
        else if (sscanf(argv[i], "depth=%u", &depth) != 1 && sscanf(argv[i], "size=%u", &size) != 1 &&
                 sscanf(argv[i], "count=%u", &count) != 1 && sscanf(argv[i], "rounds=%u", &rounds) != 1 &&
                 sscanf(argv[i], "seed=%u", &seed) != 1)
            fail(argv[i], EINVAL);
    }
    if (!depth || !size || !count || !rounds || (kept && (fixed_buffers || direct)))
        fail("options", EINVAL);
    fd = open(argv[1], O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd < 0 || fstat(fd, &st) < 0 || st.st_size < (off_t)size)
        fail(argv[1], errno ? errno : EINVAL);
    rc = io_uring_queue_init_params(depth, &ring, &p);
    if (rc < 0)
        fail("io_uring_setup", -rc);
    memory = calloc(kept ? count : depth, sizeof *memory);
    offsets = calloc(count, sizeof *offsets);
    cpu = calloc(rounds, sizeof *cpu);
    wall = calloc(rounds, sizeof *wall);
    for (unsigned i = 0; !kept && i < depth; i++) {
        struct iovec iov;

        if (posix_memalign((void **)&memory[i], 4096, size))
            fail("posix_memalign", ENOMEM);
        memset(memory[i], 0, size);
        iov = (struct iovec){memory[i], size};
        if (fixed_buffers && i == 0 && (rc = io_uring_register_buffers_sparse(&ring, depth)) < 0)
            fail("register_buffers", -rc);
        if (fixed_buffers && (rc = io_uring_register_buffers_update_tag(&ring, i, &iov, &(__u64){0}, 1)) < 0)
            fail("register_buffers", -rc);
    }
    if (fixed_file && (rc = io_uring_register_files(&ring, &fd, 1)) < 0)
        fail("register_files", -rc);
    srandom(seed);
    for (unsigned i = 0; i < count; i++)
        offsets[i] = (uint64_t)random() % (uint64_t)(st.st_size / size) * size;
    one_round(); /* warms the page cache and the allocator */
    for (unsigned i = 0; i < rounds; i++) {
        cpu[i] = -clock_ns(CLOCK_PROCESS_CPUTIME_ID);
        wall[i] = -clock_ns(CLOCK_MONOTONIC);
        one_round();
        wall[i] += clock_ns(CLOCK_MONOTONIC);
        cpu[i] += clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    }
    qsort(cpu, rounds, sizeof *cpu, by_size);
    qsort(wall, rounds, sizeof *wall, by_size);
    printf("cpu_ns=%.1f wall_ns=%.1f median_cpu_ns=%.1f median_wall_ns=%.1f\n", (double)cpu[0] / count,
           (double)wall[0] / count, (double)cpu[rounds / 2] / count, (double)wall[rounds / 2] / count);
    return 0;
}
