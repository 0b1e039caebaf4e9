#!/bin/bash
# min_wait_usec of io_uring_enter(2) (Linux 6.12) is told to be the time after which one completion is enough. With none there it is more
# than that: without a timeout beside it the wait ends with ETIME when it is over, where one would take it to go on for ever; and
# with a timeout that is shorter the wait goes on until min_wait is over.
#
# Seen on Linux 6.18.44, x86-64, with nothing that would complete:
#
#     min_wait 100 ms, no timeout: Timer expired, after min_wait
#     min_wait 300 ms, timeout 50 ms: Timer expired, after min_wait
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
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static struct io_uring ring;

static void ask(unsigned min_wait_ms, unsigned timeout_ms)
{
    /* struct io_uring_getevents_arg, whose last member but one has no name in liburing 2.3's header. */
    struct { uint64_t sigmask; uint32_t sigmask_sz, min_wait_usec; uint64_t ts; } arg = {0, 0, min_wait_ms * 1000, 0};
    struct __kernel_timespec limit = {0, timeout_ms * 1000000LL};
    struct timespec a, b;
    long rc, ms;

    arg.ts = timeout_ms ? (uint64_t)(uintptr_t)&limit : 0;
    clock_gettime(CLOCK_MONOTONIC, &a);
    rc = syscall(SYS_io_uring_enter, ring.ring_fd, 0, 4, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof arg);
    clock_gettime(CLOCK_MONOTONIC, &b);
    ms = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
    printf("min_wait %u ms, ", min_wait_ms);
    timeout_ms ? printf("timeout %u ms: ", timeout_ms) : printf("no timeout: ");
    printf("%s, after %s\n", rc < 0 ? strerror(errno) : "completions", ms >= min_wait_ms ? "min_wait" : "less than min_wait");
}

int main(void)
{
    int pipes[2];

    alarm(30); /* where a wait has no end */
    if (pipe(pipes) < 0 || io_uring_queue_init(8, &ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN) < 0)
        return 1;
    io_uring_prep_poll_add(io_uring_get_sqe(&ring), pipes[0], POLLIN);
    io_uring_submit(&ring);
    ask(100, 0);
    ask(300, 50);
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
./find >seen
cat seen
diff seen - <<'SEEN'
min_wait 100 ms, no timeout: Timer expired, after min_wait
min_wait 300 ms, timeout 50 ms: Timer expired, after min_wait
SEEN
