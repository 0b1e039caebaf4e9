#!/bin/bash
# IORING_OP_SEND_ZC on a UNIX socket, which has no zero copy: the send fails with EOPNOTSUPP and has moved nothing, and its
# completion has IORING_CQE_F_MORE all the same, with a second one, the notification, to follow. Who takes an error for the end
# of the operation uses its buffer, and its user_data, one completion too early.
#
# Seen on Linux 6.18.44, x86-64, liburing 2.3:
#
#     result: Operation not supported, more to come
#     notification: 0
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

int main(void)
{
    struct io_uring ring;
    struct io_uring_sqe *sqe;
    struct io_uring_cqe *cqe;
    int pair[2];

    if (io_uring_queue_init(8, &ring, 0) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        return 1;
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_rw(IORING_OP_SEND_ZC, sqe, pair[0], "data", 4, 0);
    io_uring_submit(&ring);
    do {
        if (io_uring_wait_cqe(&ring, &cqe) < 0)
            return 1;
        printf("%s: %s%s\n", cqe->flags & IORING_CQE_F_NOTIF ? "notification" : "result", cqe->res < 0 ? strerror(-cqe->res) : "0",
               cqe->flags & IORING_CQE_F_MORE ? ", more to come" : "");
        sqe = cqe->flags & IORING_CQE_F_MORE ? sqe : NULL;
        io_uring_cqe_seen(&ring, cqe);
    } while (sqe);
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
result: Operation not supported, more to come
notification: 0
SEEN
