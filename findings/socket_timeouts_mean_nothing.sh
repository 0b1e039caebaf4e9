#!/bin/bash
# SO_RCVTIMEO and SO_SNDTIMEO bound recv(2) and send(2), and bound nothing that goes through a ring: IORING_OP_RECV and IORING_OP_SEND of
# the same socket wait for as long as it takes, also where a kernel worker is asked for (IOSQE_ASYNC), which makes the very
# call. No error says that the bound is gone.
#
# Seen on Linux 6.18.44, x86-64, with both set to 100 ms, and looked at after half a second:
#
#     recv(2): EAGAIN after its time
#     send(2): EAGAIN after its time
#     IORING_OP_RECV: waits on
#     IORING_OP_SEND: waits on
#     IORING_OP_RECV by a worker: waits on
#     IORING_OP_SEND by a worker: waits on
#
# Needs gcc and liburing's headers (Debian: liburing-dev). Fails if it is otherwise.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >find.c <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static char text[4096];

/* 0: by the system call, 1: through a ring, 2: through a ring, by a worker. In a process of its own: what waits is left to wait. */
static int attempt(int how, int sending)
{
    struct __kernel_timespec half = {0, 500000000};
    struct timeval tenth = {0, 100000};
    struct io_uring_cqe *cqe;
    struct io_uring_sqe *sqe;
    struct io_uring ring;
    int ends[2];
    ssize_t n;

    alarm(30);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
        return 1;
    while (sending && send(ends[0], text, sizeof text, MSG_DONTWAIT) > 0)
        ; /* it is full */
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &tenth, sizeof tenth);
    setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &tenth, sizeof tenth);
    if (how == 0) {
        n = sending ? send(ends[0], text, sizeof text, 0) : recv(ends[0], text, sizeof text, 0);
        printf("%s(2): %s\n", sending ? "send" : "recv", n < 0 && errno == EAGAIN ? "EAGAIN after its time" : "?");
        return 0;
    }
    if (io_uring_queue_init(8, &ring, 0) < 0)
        return 1;
    sqe = io_uring_get_sqe(&ring);
    if (sending)
        io_uring_prep_send(sqe, ends[0], text, sizeof text, 0);
    else
        io_uring_prep_recv(sqe, ends[0], text, sizeof text, 0);
    sqe->flags |= how == 2 ? IOSQE_ASYNC : 0;
    io_uring_submit(&ring);
    printf("IORING_OP_%s%s: ", sending ? "SEND" : "RECV", how == 2 ? " by a worker" : "");
    if (io_uring_wait_cqe_timeout(&ring, &cqe, &half) == -ETIME)
        printf("waits on\n");
    else
        printf("%s\n", strerror(-cqe->res));
    return 0;
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    for (int how = 0; how < 3; how++)
        for (int sending = 0; sending < 2; sending++) {
            if (fork() == 0)
                _exit(attempt(how, sending));
            wait(NULL);
        }
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
recv(2): EAGAIN after its time
send(2): EAGAIN after its time
IORING_OP_RECV: waits on
IORING_OP_SEND: waits on
IORING_OP_RECV by a worker: waits on
IORING_OP_SEND by a worker: waits on
SEEN
