#!/bin/bash
# An IORING_OP_OPENAT that waits in a worker for the other end of a FIFO and is cancelled: the cancel says EALREADY, which the
# manual page calls "too late", and the open ends all the same, with the result -512. That is ERESTARTSYS, an errno internal to
# the kernel that no header for programs has: strerror(3) does not know it, and a program that treats EALREADY as "it will go
# on" waits for nothing.
#
# Seen on Linux 6.18.44, x86-64, liburing 2.3:
#
#     cancel: Operation already in progress
#     open: -512, Unknown error 512
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

int main(void)
{
    struct io_uring ring;
    struct io_uring_sqe *sqe;
    struct io_uring_cqe *cqe;
    int of_open = 0, of_cancel = 0;

    if (mkfifo("fifo", 0600) < 0 || io_uring_queue_init(8, &ring, 0) < 0)
        return 1;
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_openat(sqe, AT_FDCWD, "fifo", O_RDONLY, 0);
    sqe->flags |= IOSQE_ASYNC;
    sqe->user_data = 1;
    io_uring_submit(&ring);
    usleep(300000); /* a worker is at it */
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_rw(IORING_OP_ASYNC_CANCEL, sqe, -1, NULL, 0, 0);
    sqe->addr = 1;
    sqe->user_data = 2;
    io_uring_submit(&ring);
    for (int i = 0; i < 2; i++) {
        if (io_uring_wait_cqe(&ring, &cqe) < 0)
            return 1;
        *(cqe->user_data == 1 ? &of_open : &of_cancel) = cqe->res;
        io_uring_cqe_seen(&ring, cqe);
    }
    (void)result;
    printf("cancel: %s\n", strerror(-of_cancel));
    printf("open: %d, %s\n", of_open, strerror(-of_open));
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
cancel: Operation already in progress
open: -512, Unknown error 512
SEEN
