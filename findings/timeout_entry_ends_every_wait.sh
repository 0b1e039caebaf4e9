#!/bin/bash
# A wait for four completions (io_uring_enter(2) with min_complete 4) on a ring that also has an IORING_OP_TIMEOUT in flight:
# when that expires the wait ends, with one completion, the timeout's, and the kernel reports success. Who asked for a batch
# gets the batch of one, at the moment of whatever timer another part of the program keeps in the same ring.
#
# Seen on Linux 6.18.44, x86-64, liburing 2.3:
#
#     submit 5 and wait for 4: answers 5, completions 1
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
    struct __kernel_timespec moment = {.tv_nsec = 100000000};
    struct io_uring_sqe *sqe;
    int ends[2], rc;
    char bytes[4];

    if (io_uring_queue_init(8, &ring, 0) < 0 || pipe(ends) < 0)
        return 1;
    for (int i = 0; i < 4; i++) {
        sqe = io_uring_get_sqe(&ring);
        io_uring_prep_read(sqe, ends[0], bytes + i, 1, 0);
    }
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_timeout(sqe, &moment, 0, 0);
    rc = io_uring_submit_and_wait(&ring, 4);
    printf("submit 5 and wait for 4: answers %d, completions %u\n", rc, io_uring_cq_ready(&ring));
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
submit 5 and wait for 4: answers 5, completions 1
SEEN
