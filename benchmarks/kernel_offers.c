/*
 * What newer kernels offer, against what this project does in its place: with bare rings, without any interpreter.
 * kernel_offers.py compiles and runs it. Each pair is measured by turns; the medians are told: of CPU time, of the sends of time.
 *
 *   buffers  provided buffers that are consumed piece by piece (IOU_PBUF_RING_INC, 6.12) against whole ones: 50 socket pairs, 1 KiB
 *   sends    IORING_OP_SEND_ZC (6.0) against IORING_OP_SEND, to a thread that receives, over TCP on the loopback interface
 *   query    IORING_REGISTER_QUERY (6.18) against trying each set-up flag by making a ring
 */
#define _GNU_SOURCE
#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Newer than liburing 2.3's header; and struct io_uring_buf_reg has no flags there. */
#define PIECE_BY_PIECE 2      /* IOU_PBUF_RING_INC */
#define MORE_OF_IT (1U << 4)  /* IORING_CQE_F_BUF_MORE */
#define REGISTER_QUERY 35

enum { TURNS = 9, PAIRS = 50, ROUNDS = 4000, MESSAGE = 1024, LARGE = 65536 };

static struct io_uring ring;

static void die(const char *what, int code)
{
    fprintf(stderr, "%s: %s\n", what, strerror(code < 0 ? -code : code));
    exit(1);
}

static double us_of(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static double cpu_us(void)
{
    return us_of(CLOCK_PROCESS_CPUTIME_ID);
}

static void give(struct io_uring_buf_ring *buffers, char *base, unsigned size, unsigned id, unsigned count)
{
    io_uring_buf_ring_add(buffers, base + (size_t)id * size, size, (unsigned short)id, (int)count - 1, 0);
    io_uring_buf_ring_advance(buffers, 1);
}

/* CPU microseconds for each message that is sent, received into a provided buffer and copied. */
static double messages(int pieces)
{
    unsigned count = pieces ? 16 : 256, size = pieces ? LARGE : 4096, used[256] = {0};
    struct {
        uint64_t address;
        uint32_t entries;
        uint16_t group, flags;
        uint64_t reserved[3];
    } reg = {0, count, 1, pieces ? PIECE_BY_PIECE : 0, {0}};
    struct io_uring_buf_ring *buffers = aligned_alloc(LARGE, LARGE);
    char *base = aligned_alloc(LARGE, (size_t)size * count), data[MESSAGE] = {1}, copy[MESSAGE];
    int pairs[PAIRS][2], rc;
    double began;

    memset(buffers, 0, LARGE);
    reg.address = (uint64_t)(uintptr_t)buffers;
    if ((rc = io_uring_register_buf_ring(&ring, (void *)&reg, 0)) < 0)
        die("no such buffers", rc);
    for (unsigned i = 0; i < count; i++)
        give(buffers, base, size, i, count);
    for (int i = 0; i < PAIRS; i++)
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]) < 0)
            die("socketpair", errno);
    began = cpu_us();
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < PAIRS; i++) {
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

            io_uring_prep_recv(sqe, pairs[i][1], NULL, 0, 0);
            sqe->flags |= IOSQE_BUFFER_SELECT;
            sqe->buf_group = 1;
            sqe->user_data = 1;
            sqe = io_uring_get_sqe(&ring);
            io_uring_prep_send(sqe, pairs[i][0], data, MESSAGE, 0);
            sqe->user_data = 0;
        }
        io_uring_submit_and_wait(&ring, 1);
        for (unsigned left = 2 * PAIRS; left; left--) {
            struct io_uring_cqe *cqe;

            while (io_uring_wait_cqe(&ring, &cqe) < 0)
                ;
            if (cqe->res != MESSAGE)
                die("a message", cqe->res);
            if (cqe->user_data) {
                unsigned id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;

                memcpy(copy, base + (size_t)id * size + used[id], MESSAGE);
                if (pieces && cqe->flags & MORE_OF_IT) {
                    used[id] += MESSAGE;
                } else {
                    used[id] = 0;
                    give(buffers, base, size, id, count);
                }
            }
            io_uring_cqe_seen(&ring, cqe);
        }
    }
    began = (cpu_us() - began) / ROUNDS / PAIRS;
    io_uring_unregister_buf_ring(&ring, 1);
    for (int i = 0; i < PAIRS; i++) {
        close(pairs[i][0]);
        close(pairs[i][1]);
    }
    free(buffers);
    free(base);
    return began;
}

/* The sender and the receiver each on a processor of its own: where the scheduler puts them makes more of a difference than all else. */
static void stay_on(int cpu)
{
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) < 0)
        die("two processors are needed", errno);
}

static void *receive(void *socket_of)
{
    int fd = *(int *)socket_of;
    char *data = malloc(1 << 20);

    stay_on(1);
    while (recv(fd, data, 1 << 20, 0) > 0)
        ;
    free(data);
    return NULL;
}

/* Microseconds from one send to the next, its notification waited for, with both ends at work. Not of CPU time: on this interface the
 * copy that the send did not make is made in a soft interrupt, which is charged to neither. */
static double sends(int without_copy, size_t size)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), out = socket(AF_INET, SOCK_STREAM, 0), in;
    char *data = aligned_alloc(4096, size);
    unsigned count = (unsigned)((size < 65536 ? 32U << 20 : 128U << 20) / size);
    pthread_t thread;
    double began;

    memset(data, 3, size);
    if (bind(listener, (void *)&address, length) < 0 || listen(listener, 1) < 0 || getsockname(listener, (void *)&address, &length) < 0 ||
        connect(out, (void *)&address, length) < 0 || (in = accept(listener, NULL, NULL)) < 0)
        die("sockets", errno);
    pthread_create(&thread, NULL, receive, &in);
    began = us_of(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < count; i++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
        int more = 1;

        if (without_copy)
            io_uring_prep_send_zc(sqe, out, data, size, MSG_WAITALL, 0);
        else
            io_uring_prep_send(sqe, out, data, size, MSG_WAITALL);
        io_uring_submit_and_wait(&ring, 1);
        while (more) {
            struct io_uring_cqe *cqe;

            while (io_uring_wait_cqe(&ring, &cqe) < 0)
                ;
            if (!(cqe->flags & IORING_CQE_F_NOTIF) && cqe->res != (int)size)
                die("a send", cqe->res);
            more = !!(cqe->flags & IORING_CQE_F_MORE);
            io_uring_cqe_seen(&ring, cqe);
        }
    }
    began = (us_of(CLOCK_MONOTONIC) - began) / count;
    shutdown(out, SHUT_RDWR);
    pthread_join(thread, NULL);
    close(out);
    close(in);
    close(listener);
    free(data);
    return began;
}

/* CPU microseconds to learn which set-up flags there are. */
static double flags(int by_query)
{
    uint64_t told[8] = {0};
    struct {
        uint64_t next, data;
        uint32_t op, size;
        int32_t result;
        uint32_t reserved[3];
    } query = {0};
    double began = cpu_us();

    if (by_query) {
        query.data = (uint64_t)(uintptr_t)told;
        query.size = sizeof told;
        if (syscall(SYS_io_uring_register, -1, REGISTER_QUERY, &query, 0) < 0)
            die("no query", errno);
    } else {
        for (unsigned bit = 0; bit < 20; bit++) {
            struct io_uring_params p = {.flags = 1U << bit};
            long fd = syscall(SYS_io_uring_setup, 2, &p);

            if (fd >= 0)
                close((int)fd);
        }
    }
    return cpu_us() - began;
}

static int in_order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void tell(const char *what, double (*measure)(int, size_t), size_t size)
{
    double plain[TURNS], offered[TURNS], ratios[TURNS];

    for (int i = 0; i < TURNS; i++) {
        plain[i] = measure(0, size);
        offered[i] = measure(1, size);
        ratios[i] = offered[i] / plain[i];
    }
    qsort(plain, TURNS, sizeof *plain, in_order);
    qsort(offered, TURNS, sizeof *offered, in_order);
    qsort(ratios, TURNS, sizeof *ratios, in_order);
    printf("%-8s %8zu  %9.2f  %9.2f  %5.2f (%.2f to %.2f)\n", what, size, plain[TURNS / 2], offered[TURNS / 2], ratios[TURNS / 2], ratios[1],
           ratios[TURNS - 2]);
    fflush(stdout);
}

static double measure_messages(int offered, size_t size)
{
    (void)size;
    return messages(offered);
}

static double measure_flags(int offered, size_t size)
{
    (void)size;
    return flags(offered);
}

int main(void)
{
    int rc = io_uring_queue_init(512, &ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);

    if (rc < 0)
        die("no ring", rc);
    stay_on(0);
    printf("what        bytes   today us  offered us  ratio\n");
    tell("query", measure_flags, 0);
    tell("buffers", measure_messages, MESSAGE);
    for (size_t size = 4096; size <= 4U << 20; size *= 4)
        tell("sends", sends, size);
    return 0;
}
