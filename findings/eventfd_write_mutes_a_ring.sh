#!/bin/bash
# A ring has an eventfd registered (IORING_REGISTER_EVENTFD), by which others learn of its completions, and polls another eventfd, by which
# others wake it. A write(2) to the second completes the poll, and the kernel, being inside an eventfd's wake-up, puts off the
# signal to the first (io_eventfd_do_signal, by RCU), under a bit that nothing clears: of all later completions of that kind
# none is signalled, not by a later write and not after any time. A registration that is made afresh has the bit clear.
#
# Seen on Linux 6.18.44, x86-64, liburing 2.3:
#
#     write 1: signalled
#     write 2: not signalled in a second
#     write 3, registered afresh: signalled
#
# Needs gcc and liburing's headers (Debian: liburing-dev). Fails if it is otherwise.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >find.c <<'C'
#define _GNU_SOURCE
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct io_uring ring;
static int told, wake;

static void *write_it(void *unused)
{
    uint64_t one = 1;

    (void)unused;
    usleep(100000); /* the ring's owner polls */
    if (write(wake, &one, sizeof one) < 0)
        _exit(1);
    return NULL;
}

static void round_of(const char *name)
{
    struct pollfd pfd = {told, POLLIN, 0};
    struct io_uring_cqe *cqe;
    pthread_t thread;
    uint64_t value;

    while (read(told, &value, sizeof value) > 0)
        ;
    io_uring_prep_poll_add(io_uring_get_sqe(&ring), wake, POLLIN);
    io_uring_submit(&ring);
    pthread_create(&thread, NULL, write_it, NULL);
    printf("%s: %s\n", name, poll(&pfd, 1, 1100) > 0 ? "signalled" : "not signalled in a second");
    pthread_join(thread, NULL);
    io_uring_wait_cqe(&ring, &cqe); /* the completion is there */
    io_uring_cqe_seen(&ring, cqe);
    if (read(wake, &value, sizeof value) < 0)
        _exit(1);
}

int main(void)
{
    alarm(30);
    told = eventfd(0, EFD_NONBLOCK);
    wake = eventfd(0, EFD_NONBLOCK);
    if (io_uring_queue_init(8, &ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN) < 0 || io_uring_register_eventfd(&ring, told) < 0)
        return 1;
    round_of("write 1");
    round_of("write 2");
    io_uring_unregister_eventfd(&ring);
    io_uring_register_eventfd(&ring, told);
    round_of("write 3, registered afresh");
    return 0;
}
C
gcc -std=gnu11 -Wall -pthread -o find find.c -luring
./find >seen
cat seen
diff seen - <<'SEEN'
write 1: signalled
write 2: not signalled in a second
write 3, registered afresh: signalled
SEEN
