#!/bin/bash
# A receive into provided buffers (IOSQE_BUFFER_SELECT) of a socket whose peer has closed: the answer is 0, the end. With no
# buffer left in the ring it is -ENOBUFS, though an end needs none, and again each time: the kernel takes a buffer before it
# asks the socket. A server that answers ENOBUFS by waiting until a buffer comes back, all of which are held for connections
# that wait for it, never hears that this peer has gone. The end of a stream has to be asked for without a buffer.
#
# Seen on Linux 6.18.44, x86-64, liburing 2.3:
#
#     at the end, no buffer left: No buffer space available
#     at the end, one buffer: 0
#     at the end, without provided buffers: 0
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

static int receive(struct io_uring *ring, int fd, int flags)
{
    static char memory[64];
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

    io_uring_prep_recv(sqe, fd, flags ? NULL : memory, sizeof memory, 0);
    sqe->flags |= flags;
    sqe->buf_group = 7;
    sqe->user_data = 1;
    io_uring_submit(ring);
    return result(ring, 1);
}

int main(void)
{
    struct io_uring ring;
    struct io_uring_buf_ring *buffers;
    struct io_uring_buf_reg reg = {.ring_entries = 1, .bgid = 7};
    static char memory[64];
    int pair[2], got;

    if (io_uring_queue_init(8, &ring, 0) < 0 || posix_memalign((void **)&buffers, 4096, 4096))
        return 1;
    reg.ring_addr = (uintptr_t)buffers;
    memset(buffers, 0, 4096);
    if (io_uring_register_buf_ring(&ring, &reg, 0) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        return 1;
    close(pair[1]);
    got = receive(&ring, pair[0], IOSQE_BUFFER_SELECT);
    printf("at the end, no buffer left: %s\n", got < 0 ? strerror(-got) : "0");
    io_uring_buf_ring_add(buffers, memory, sizeof memory, 0, 0, 0);
    io_uring_buf_ring_advance(buffers, 1);
    printf("at the end, one buffer: %d\n", receive(&ring, pair[0], IOSQE_BUFFER_SELECT));
    printf("at the end, without provided buffers: %d\n", receive(&ring, pair[0], 0));
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c -luring
timeout 60 ./find >seen
cat seen
diff seen - <<'SEEN'
at the end, no buffer left: No buffer space available
at the end, one buffer: 0
at the end, without provided buffers: 0
SEEN
