#!/bin/bash
# A program of one thread that has had one fsync done by io_uring is no program of one thread any more: the kernel's worker
# counts as a thread of the process for as long as the ring lives, idle or not (other workers end after five seconds, the last
# one does not). unshare(CLONE_NEWUSER), which is for processes with one thread, then fails with EINVAL. Whoever builds a
# sandbox after the first use of a ring cannot. It works again when the ring has been closed.
#
# Seen on Linux 6.18.44, x86-64, liburing 2.3:
#
#     threads before: 1
#     threads 7 s after one fsync: 2
#     unshare(CLONE_NEWUSER): Invalid argument
#     threads without the ring: 1
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

#include <sched.h>

static int threads(void)
{
    char line[200];
    int n = 0;
    FILE *status = fopen("/proc/self/status", "r");

    while (fgets(line, sizeof line, status))
        sscanf(line, "Threads: %d", &n);
    fclose(status);
    return n;
}

int main(void)
{
    struct io_uring ring;
    struct io_uring_sqe *sqe;
    int fd = open("file", O_CREAT | O_RDWR, 0600);

    printf("threads before: %d\n", threads());
    if (io_uring_queue_init(8, &ring, 0) < 0)
        return 1;
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_fsync(sqe, fd, 0);
    sqe->user_data = 1;
    io_uring_submit(&ring);
    result(&ring, 1);
    sleep(7);
    printf("threads 7 s after one fsync: %d\n", threads());
    printf("unshare(CLONE_NEWUSER): %s\n", unshare(CLONE_NEWUSER) < 0 ? strerror(errno) : "done");
    io_uring_queue_exit(&ring);
    for (int i = 0; i < 100 && threads() > 1; i++)
        usleep(50000);
    printf("threads without the ring: %d\n", threads());
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
threads before: 1
threads 7 s after one fsync: 2
unshare(CLONE_NEWUSER): Invalid argument
threads without the ring: 1
SEEN
