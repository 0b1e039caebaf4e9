#!/bin/bash
# A ring on which restrictions have been registered (IORING_REGISTER_RESTRICTIONS) refuses what they do not allow with -EACCES.
# Its own probe (IORING_REGISTER_PROBE), where restrictions allow to ask it, goes on saying that the refused operation is
# supported, so a library that decides by the probe chooses what cannot work. And EACCES is what a file may answer as well: of a
# refused open nobody can tell by the result whose answer it is. Since restrictions can be put on a whole task and are inherited
# (Linux 7.2), a program may find itself in such a ring without having asked for it.
#
# Seen on Linux 6.18.44, x86-64, liburing 2.3:
#
#     the probe says of OPENAT: supported
#     OPENAT of a file that all may read: Permission denied
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
    struct io_uring_probe *probe = calloc(1, sizeof *probe + 256 * sizeof probe->ops[0]);
    struct io_uring_restriction rules[2];

    memset(rules, 0, sizeof rules);
    rules[0].opcode = IORING_RESTRICTION_SQE_OP;
    rules[0].sqe_op = IORING_OP_NOP;
    rules[1].opcode = IORING_RESTRICTION_REGISTER_OP;
    rules[1].register_op = IORING_REGISTER_PROBE;
    if (io_uring_queue_init(8, &ring, IORING_SETUP_R_DISABLED) < 0 || syscall(SYS_io_uring_register, ring.ring_fd, IORING_REGISTER_RESTRICTIONS, rules, 2) < 0 ||
        syscall(SYS_io_uring_register, ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0 || io_uring_register_probe(&ring, probe, 256) < 0)
        return 1;
    printf("the probe says of OPENAT: %s\n", io_uring_opcode_supported(probe, IORING_OP_OPENAT) ? "supported" : "not supported");
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_openat(sqe, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
    sqe->user_data = 1;
    io_uring_submit(&ring);
    printf("OPENAT of a file that all may read: %s\n", strerror(-result(&ring, 1)));
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
the probe says of OPENAT: supported
OPENAT of a file that all may read: Permission denied
SEEN
