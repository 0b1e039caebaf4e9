#!/bin/bash
# IORING_REGISTER_IOWQ_AFF with a mask of processors that this machine does not have, as a configuration written for a larger
# one gives it: sched_setaffinity(2) calls such a mask EINVAL. The ring answers 0, and the workers that were pinned before run
# on every processor again. Seen by the affinity of a worker, which is a thread of the process.
#
# Seen on Linux 6.18.44, x86-64, liburing 2.3:
#
#     sched_setaffinity(2) with that mask: Invalid argument
#     one processor: answers 0, the worker may use 1
#     one that is not there: answers 0, the worker may use all
#
# Needs gcc and liburing's headers (Debian: liburing-dev). Fails if it is otherwise.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >find.c <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int result(struct io_uring *ring, unsigned long long want)
{
    struct io_uring_cqe *cqe;
    int res;

    for (;;) {
        if (io_uring_wait_cqe(ring, &cqe) < 0)
            exit(1);
        res = cqe->res;
        if (cqe->user_data == want) {
            io_uring_cqe_seen(ring, cqe);
            return res;
        }
        io_uring_cqe_seen(ring, cqe);
    }
}

#include <dirent.h>
#include <sched.h>

static int processors_of_the_worker(struct io_uring *ring, int fd)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    DIR *tasks;
    struct dirent *each;
    cpu_set_t set;
    int count = -1;

    io_uring_prep_fsync(sqe, fd, 0);
    sqe->user_data = 1;
    io_uring_submit(ring);
    result(ring, 1);
    tasks = opendir("/proc/self/task");
    while ((each = readdir(tasks)))
        if (atoi(each->d_name) > 0 && atoi(each->d_name) != getpid() && sched_getaffinity(atoi(each->d_name), sizeof set, &set) == 0)
            count = CPU_COUNT(&set);
    closedir(tasks);
    return count;
}

int main(void)
{
    struct io_uring ring;
    cpu_set_t first, none, all;
    int fd = open("file", O_CREAT | O_RDWR, 0600);

    sched_getaffinity(0, sizeof all, &all);
    if (CPU_COUNT(&all) < 2)
        return 1; /* one processor tells nothing */
    CPU_ZERO(&first);
    for (int cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&first); cpu++)
        if (CPU_ISSET(cpu, &all))
            CPU_SET(cpu, &first);
    CPU_ZERO(&none);
    CPU_SET(CPU_SETSIZE - 1, &none);
    if (io_uring_queue_init(8, &ring, 0) < 0)
        return 1;
    printf("sched_setaffinity(2) with that mask: %s\n", sched_setaffinity(0, sizeof none, &none) < 0 ? strerror(errno) : "done");
    printf("one processor: answers %d", io_uring_register_iowq_aff(&ring, sizeof first, &first));
    printf(", the worker may use %d\n", processors_of_the_worker(&ring, fd));
    io_uring_queue_exit(&ring);
    usleep(300000);
    if (io_uring_queue_init(8, &ring, 0) < 0)
        return 1;
    io_uring_register_iowq_aff(&ring, sizeof first, &first);
    printf("one that is not there: answers %d", io_uring_register_iowq_aff(&ring, sizeof none, &none));
    printf(", the worker may use %s\n", processors_of_the_worker(&ring, fd) == CPU_COUNT(&all) ? "all" : "not all");
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
sched_setaffinity(2) with that mask: Invalid argument
one processor: answers 0, the worker may use 1
one that is not there: answers 0, the worker may use all
SEEN
