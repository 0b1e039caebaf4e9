#!/bin/bash
# A write that fails sends its caller a signal: SIGPIPE where nobody reads, SIGXFSZ beyond RLIMIT_FSIZE. Through a ring the caller is who
# makes the write. Of the same entry, to the same pipe, a process is killed by SIGPIPE or gets EPIPE, by whether it is done while
# it is submitted or by a kernel worker, to whom a signal is nothing: which of the two it is, the kernel decides, unless asked.
# IORING_OP_SEND never sends one, as if MSG_NOSIGNAL had been given. A file grows by a worker on ext4, so that there is no SIGXFSZ.
#
# Seen on Linux 6.18.44, x86-64, ext4:
#
#     a pipe that nobody reads, write(2): SIGPIPE
#     a pipe that nobody reads, through a ring: SIGPIPE
#     a pipe that nobody reads, through a ring, by a worker: EPIPE
#     a socket that nobody reads, send(2): SIGPIPE
#     a socket that nobody reads, through a ring: EPIPE
#     beyond RLIMIT_FSIZE, write(2): SIGXFSZ
#     beyond RLIMIT_FSIZE, through a ring: EFBIG
#
# Needs gcc, liburing's headers (Debian: liburing-dev), and ext4 below TMPDIR. Fails if it is otherwise.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >find.c <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *what[] = {"a pipe that nobody reads", "a socket that nobody reads", "beyond RLIMIT_FSIZE"};

static int attempt(int kind, int how)
{
    struct rlimit limit = {4096, 4096};
    struct io_uring_cqe *cqe;
    struct io_uring_sqe *sqe;
    struct io_uring ring;
    int ends[2], fd;

    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    if (kind == 0 ? pipe(ends) : socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
        return 255;
    close(ends[0]);
    fd = kind == 2 ? open("file", O_WRONLY | O_CREAT, 0600) : ends[1];
    setrlimit(RLIMIT_FSIZE, &limit);
    if (how == 0)
        return (kind == 1 ? send(fd, "x", 1, 0) : kind == 0 ? write(fd, "x", 1) : pwrite(fd, "x", 1, 8192)) < 0 ? errno : 0;
    if (io_uring_queue_init(8, &ring, 0) < 0)
        return 255;
    sqe = io_uring_get_sqe(&ring);
    if (kind == 1)
        io_uring_prep_send(sqe, fd, "x", 1, 0);
    else
        io_uring_prep_write(sqe, fd, "x", 1, kind == 0 ? -1 : 8192);
    sqe->flags |= how == 2 ? IOSQE_ASYNC : 0;
    io_uring_submit(&ring);
    if (io_uring_wait_cqe(&ring, &cqe) < 0)
        return 255;
    return -cqe->res;
}

int main(void)
{
    static const char *ways[] = {"", "through a ring", "through a ring, by a worker"};

    for (int kind = 0; kind < 3; kind++)
        for (int how = 0; how < (kind == 0 ? 3 : 2); how++) {
            int status;

            if (fork() == 0)
                _exit(attempt(kind, how));
            wait(&status);
            printf("%s, %s: %s\n", what[kind], how ? ways[how] : kind == 1 ? "send(2)" : "write(2)",
                   WIFSIGNALED(status) ? (WTERMSIG(status) == SIGPIPE ? "SIGPIPE" : WTERMSIG(status) == SIGXFSZ ? "SIGXFSZ" : "?")
                   : WEXITSTATUS(status) == EPIPE ? "EPIPE" : WEXITSTATUS(status) == EFBIG ? "EFBIG" : "?");
        }
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
a pipe that nobody reads, write(2): SIGPIPE
a pipe that nobody reads, through a ring: SIGPIPE
a pipe that nobody reads, through a ring, by a worker: EPIPE
a socket that nobody reads, send(2): SIGPIPE
a socket that nobody reads, through a ring: EPIPE
beyond RLIMIT_FSIZE, write(2): SIGXFSZ
beyond RLIMIT_FSIZE, through a ring: EFBIG
SEEN
