#!/bin/bash
# A thread that waits in io_uring_enter(2) while anything of its rings is in flight, were it a poll of a socket that nobody writes to,
# counts as one that waits for a disk: "procs_blocked" and "iowait" in /proc/stat go up, and so does the pressure in
# /proc/pressure/io, by which systemd-oomd and orchestrators decide. An idle server on a ring is a machine under pressure for a disk, and
# the same server on epoll is none. IORING_ENTER_NO_IOWAIT (Linux 6.15) ends that, for who asks for it; liburing's own waits ask only
# after io_uring_set_iowait(3).
#
# Seen on Linux 6.18.44, x86-64, in two seconds of each:
#
#     waiting in epoll_wait: not blocked, no pressure
#     waiting in a ring: blocked, pressure
#     waiting in a ring, NO_IOWAIT: not blocked, no pressure
#
# Needs gcc, liburing's headers (Debian: liburing-dev), CONFIG_PSI, and a machine on which nothing else waits for a disk. Fails if it is
# otherwise.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >find.c <<'C'
#define _GNU_SOURCE
#include <liburing.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NO_IOWAIT (1U << 7) /* newer than liburing 2.3's header */

static void wait_there(int how)
{
    struct io_uring ring;
    struct epoll_event event = {.events = EPOLLIN};
    int pipes[2], epoll = epoll_create1(0);

    if (pipe(pipes) < 0)
        return;
    if (how == 0) {
        epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event);
        epoll_wait(epoll, &event, 1, -1);
    }
    io_uring_queue_init(8, &ring, 0);
    io_uring_prep_poll_add(io_uring_get_sqe(&ring), pipes[0], POLLIN);
    io_uring_submit(&ring);
    syscall(SYS_io_uring_enter, ring.ring_fd, 0, 1, IORING_ENTER_GETEVENTS | (how == 2 ? NO_IOWAIT : 0), NULL, 0);
}

static long number(const char *file, const char *before)
{
    char text[65536], *at;
    FILE *f = fopen(file, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    long found = -1;

    text[n] = 0;
    if ((at = strstr(text, before)))
        sscanf(at + strlen(before), "%ld", &found);
    fclose(f);
    return found;
}

int main(void)
{
    static const char *names[] = {"epoll_wait", "a ring", "a ring, NO_IOWAIT"};
    struct timespec a_little = {0, 100000000};

    for (int how = 0; how < 3; how++) {
        pid_t child = fork();
        long before, blocked = 0, pressure;

        if (child == 0) {
            wait_there(how);
            _exit(1);
        }
        nanosleep(&a_little, NULL);
        before = number("/proc/pressure/io", "total=");
        for (int i = 0; i < 20; i++) {
            nanosleep(&a_little, NULL);
            blocked += number("/proc/stat", "procs_blocked ") > 0;
        }
        pressure = number("/proc/pressure/io", "total=") - before; /* microseconds */
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        fprintf(stderr, "%s: blocked in %ld of 20 looks, %ld us of pressure\n", names[how], blocked, pressure);
        printf("waiting in %s: %s, %s\n", names[how], blocked > 15 ? "blocked" : blocked < 10 ? "not blocked" : "?",
               pressure > 500000 ? "pressure" : pressure < 200000 ? "no pressure" : "?");
    }
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
waiting in epoll_wait: not blocked, no pressure
waiting in a ring: blocked, pressure
waiting in a ring, NO_IOWAIT: not blocked, no pressure
SEEN
