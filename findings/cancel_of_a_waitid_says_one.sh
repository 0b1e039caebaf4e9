#!/bin/bash
# The result of a cancel is 0 where it cancelled something, -ENOENT and -EALREADY where it did not: that of an IORING_OP_WAITID is 1.
# Without IORING_ASYNC_CANCEL_ALL, of which 1 would be the number that it found. Who asks for 0 takes it for a failure, and who asks
# for a negative number never sees one of the others here.
#
# Seen on Linux 6.18.44, x86-64:
#
#     a receive: the cancel says 0, the receive ECANCELED
#     a poll: the cancel says 0, the poll ECANCELED
#     a waitid: the cancel says 1, the waitid ECANCELED
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
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define WAITID 50 /* IORING_OP_WAITID, newer than liburing 2.3 */

int main(void)
{
    static const char *names[] = {"receive", "poll", "waitid"};
    struct io_uring ring;
    siginfo_t info;
    char text[16];
    int ends[2];
    pid_t child = fork();

    if (child == 0) {
        pause();
        _exit(0);
    }
    alarm(30);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0 || io_uring_queue_init(8, &ring, 0) < 0)
        return 1;
    for (int kind = 0; kind < 3; kind++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
        int results[3] = {0};

        if (kind == 0) {
            io_uring_prep_recv(sqe, ends[0], text, sizeof text, 0);
        } else if (kind == 1) {
            io_uring_prep_poll_add(sqe, ends[0], POLLIN);
        } else {
            io_uring_prep_rw(WAITID, sqe, child, NULL, P_PID, (uintptr_t)&info);
            sqe->file_index = WEXITED;
        }
        io_uring_sqe_set_data64(sqe, 1);
        io_uring_submit(&ring);
        sqe = io_uring_get_sqe(&ring);
        io_uring_prep_cancel64(sqe, 1, 0);
        io_uring_sqe_set_data64(sqe, 2);
        io_uring_submit(&ring);
        for (int i = 0; i < 2; i++) {
            struct io_uring_cqe *cqe;

            io_uring_wait_cqe(&ring, &cqe);
            results[io_uring_cqe_get_data64(cqe)] = cqe->res;
            io_uring_cqe_seen(&ring, cqe);
        }
        printf("a %s: the cancel says %d, the %s %s\n", names[kind], results[2], names[kind], results[1] == -ECANCELED ? "ECANCELED" : "?");
    }
    kill(child, SIGKILL);
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
a receive: the cancel says 0, the receive ECANCELED
a poll: the cancel says 0, the poll ECANCELED
a waitid: the cancel says 1, the waitid ECANCELED
SEEN
