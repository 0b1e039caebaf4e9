#!/bin/bash
# A FIFO that nobody else has open: open(2) waits for the other end, as fifo(7) says. IORING_OP_OPENAT with the same flags does
# not: for reading it opens at once, for writing it fails with ENXIO, as if O_NONBLOCK had been given, and the descriptor has no
# O_NONBLOCK afterwards. With IOSQE_ASYNC it waits.
#
# The kernel tries the open with O_NONBLOCK in the submission, so as not to block there, and takes the FIFO's answer to that for
# the answer. A program that moves its opens to io_uring loses the meeting of the two ends that FIFOs are used for.
#
# Seen on Linux 6.18.44, x86-64, liburing 2.3:
#
#     O_RDONLY: opened at once, O_NONBLOCK not set
#     O_WRONLY: No such device or address
#     O_RDONLY, IOSQE_ASYNC: waits
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
    struct __kernel_timespec second = {.tv_sec = 1};
    struct io_uring_cqe *cqe;
    int fd;

    if (mkfifo("fifo", 0600) < 0 || io_uring_queue_init(8, &ring, 0) < 0)
        return 1;
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_openat(sqe, AT_FDCWD, "fifo", O_RDONLY, 0);
    sqe->user_data = 1;
    io_uring_submit(&ring);
    fd = result(&ring, 1);
    printf("O_RDONLY: %s, O_NONBLOCK %s\n", fd >= 0 ? "opened at once" : strerror(-fd), fcntl(fd, F_GETFL) & O_NONBLOCK ? "set" : "not set");
    close(fd);
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_openat(sqe, AT_FDCWD, "fifo", O_WRONLY, 0);
    sqe->user_data = 2;
    io_uring_submit(&ring);
    printf("O_WRONLY: %s\n", strerror(-result(&ring, 2)));
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_openat(sqe, AT_FDCWD, "fifo", O_RDONLY, 0);
    sqe->flags |= IOSQE_ASYNC;
    io_uring_submit(&ring);
    printf("O_RDONLY, IOSQE_ASYNC: %s\n", io_uring_wait_cqe_timeout(&ring, &cqe, &second) == -ETIME ? "waits" : "done");
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
O_RDONLY: opened at once, O_NONBLOCK not set
O_WRONLY: No such device or address
O_RDONLY, IOSQE_ASYNC: waits
SEEN
