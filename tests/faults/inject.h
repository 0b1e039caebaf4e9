/*
 * Faults at the shim. shim_variants.py puts this file in front of ffi/uring.c and compiles the two as one; the
 * shim that is shipped has none of it.
 *
 * Every system call that the shim makes (but close and munmap, whose answers it does not ask) is a function of this file
 * here, and so is every entry that it prepares (TU_FAULT_SQE): each counts its calls by kind and fails those that
 * tf_arm() names. The completion queue that the shim reads is a shadow: after each enter the completions of the real one move
 * there, and on the way they are lost, held back, doubled or put off for want of room.
 *
 * What a fault does is what the kernel could do: an io_uring_enter(2) that fails has submitted nothing, one that submits
 * less than it was asked to does not wait, a completion for which there is no room sets IORING_SQ_CQ_OVERFLOW, and what is
 * done by half leaves the rest of a stream or file where it was.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "inject_api.h"

#define TF_RINGS 256
#define TF_WORKLESS 64

typedef struct {
    struct io_uring *ring; /* NULL: free */
    pthread_t owner;
    int registered;
    unsigned *real_head, *real_tail;
    struct io_uring_cqe *real_cqes;
    unsigned head, tail, entries;
    struct io_uring_cqe *cqes; /* the shadow */
    struct io_uring_cqe *late; /* held back until the next enter but `wait` */
    unsigned late_len, wait;
    int overflow; /* the flag is ours */
    uint64_t workless[TF_WORKLESS]; /* entries that are to be told that there is no worker */
    unsigned workless_len;
} tf_shadow;

static struct {
    atomic_uint calls;
    unsigned from, to; /* the calls that fail, both included; 0: none */
    int value;
    unsigned spared; /* of so many failing calls the last one succeeds; 0: none */
} tf_kinds[TF_KINDS];
static tf_shadow tf_rings[TF_RINGS];
static pthread_mutex_t tf_lock = PTHREAD_MUTEX_INITIALIZER;

void tf_arm(int kind, unsigned nth, unsigned times, int value)
{
    unsigned from = atomic_load(&tf_kinds[kind].calls) + nth;

    tf_kinds[kind].value = value;
    tf_kinds[kind].from = from;
    tf_kinds[kind].to = times ? from + times - 1 : UINT32_MAX;
}

void tf_spare(int kind, unsigned spared)
{
    tf_kinds[kind].spared = spared;
}

void tf_disarm(void)
{
    for (int kind = 0; kind < TF_KINDS; kind++)
        tf_kinds[kind].from = tf_kinds[kind].to = tf_kinds[kind].spared = 0;
}

unsigned tf_calls(int kind)
{
    return atomic_load(&tf_kinds[kind].calls);
}

/* Counts a call and answers whether it is one that fails. */
static int tf_hit(int kind)
{
    unsigned number = atomic_fetch_add(&tf_kinds[kind].calls, 1) + 1;

    if (!tf_kinds[kind].from || number < tf_kinds[kind].from || number > tf_kinds[kind].to)
        return 0;
    return !tf_kinds[kind].spared || (number - tf_kinds[kind].from + 1) % tf_kinds[kind].spared;
}

/* 0, or the negated errno that the call answers. */
static int tf_fault(int kind)
{
    return tf_hit(kind) ? -tf_kinds[kind].value : 0;
}

/* The same for functions that answer -1 and set errno. */
static int tf_fails(int kind)
{
    int rc = tf_fault(kind);

    if (rc)
        errno = -rc;
    return rc;
}

/* ---------------------------------------------------------------- the shadow */

static void tf_put(tf_shadow *s, const struct io_uring_cqe *cqe)
{
    s->cqes[s->tail & (s->entries - 1)] = *cqe;
    __atomic_store_n(&s->tail, s->tail + 1, __ATOMIC_RELEASE);
}

static unsigned tf_room(const tf_shadow *s)
{
    return s->entries - (s->tail - __atomic_load_n(&s->head, __ATOMIC_ACQUIRE));
}

static void tf_flag(tf_shadow *s)
{
    s->overflow = 1;
    __atomic_fetch_or(s->ring->sq.kflags, IORING_SQ_CQ_OVERFLOW, __ATOMIC_RELEASE);
}

/* Whether an entry found no worker; it is then forgotten. */
static int tf_is_workless(tf_shadow *s, uint64_t user_data)
{
    for (unsigned i = 0; i < s->workless_len; i++)
        if (s->workless[i] == user_data) {
            s->workless[i] = s->workless[--s->workless_len];
            return 1;
        }
    return 0;
}

static void tf_pull(tf_shadow *s)
{
    unsigned head = *s->real_head, tail = __atomic_load_n(s->real_tail, __ATOMIC_ACQUIRE);
    int full = tail - head == s->entries, cramped = 0;

    if (s->late_len && s->wait-- == 0) {
        unsigned n = 0;

        while (n < s->late_len && tf_room(s))
            tf_put(s, &s->late[n++]);
        memmove(s->late, s->late + n, (s->late_len - n) * sizeof *s->late);
        s->late_len -= n;
        s->wait = 0;
    }
    for (; head != tail; head++) {
        struct io_uring_cqe *cqe = &s->real_cqes[head & (s->entries - 1)];
        int of_the_shim = cqe->user_data < TF_FIRST_USER_DATA;

        if (tf_is_workless(s, cqe->user_data))
            cqe->res = -ECANCELED;

        if (!tf_room(s)) {
            cramped = 1;
            break;
        }
        if (!of_the_shim && tf_hit(TF_NO_ROOM)) {
            cramped = 1;
            break;
        }
        if (!of_the_shim && tf_hit(TF_LOSE))
            continue;
        if (!of_the_shim && s->late_len < s->entries && tf_hit(TF_LATE)) {
            s->wait = s->late_len ? s->wait : (unsigned)tf_kinds[TF_LATE].value;
            s->late[s->late_len++] = *cqe;
            continue;
        }
        tf_put(s, cqe);
        if (!of_the_shim && tf_room(s) && tf_hit(TF_DOUBLE))
            tf_put(s, cqe);
        if (!of_the_shim && s->late_len < s->entries && tf_hit(TF_AGAIN)) {
            s->wait = s->late_len ? s->wait : (unsigned)tf_kinds[TF_AGAIN].value;
            s->late[s->late_len++] = *cqe;
        }
    }
    __atomic_store_n(s->real_head, head, __ATOMIC_RELEASE);
    if (cramped) {
        tf_flag(s);
    } else if (s->overflow && !full) {
        /* Where the real queue was full the flag may be the kernel's as well, and the kernel clears it. */
        s->overflow = 0;
        __atomic_fetch_and(s->ring->sq.kflags, ~IORING_SQ_CQ_OVERFLOW, __ATOMIC_RELEASE);
    }
}

static tf_shadow *tf_find(unsigned fd, int registered)
{
    tf_shadow *found = NULL;

    pthread_mutex_lock(&tf_lock);
    for (int i = 0; i < TF_RINGS && !found; i++) {
        tf_shadow *s = &tf_rings[i];

        if (!s->ring)
            continue;
        if (registered ? s->registered == (int)fd && pthread_equal(s->owner, pthread_self())
                       : s->ring->ring_fd == (int)fd)
            found = s;
    }
    pthread_mutex_unlock(&tf_lock);
    return found;
}

static int tf_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p)
{
    int rc = tf_fault(TF_SETUP);
    tf_shadow *s = NULL;

    if (!rc)
        rc = io_uring_queue_init_params(entries, ring, p);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&tf_lock);
    for (int i = 0; i < TF_RINGS && !s; i++)
        if (!tf_rings[i].ring)
            s = &tf_rings[i];
    if (s)
        s->ring = ring;
    pthread_mutex_unlock(&tf_lock);
    if (!s)
        abort();
    s->owner = pthread_self();
    s->registered = -1;
    s->entries = *ring->cq.kring_entries;
    s->real_head = ring->cq.khead;
    s->real_tail = ring->cq.ktail;
    s->real_cqes = ring->cq.cqes;
    s->head = s->tail = s->late_len = s->wait = 0;
    s->overflow = 0;
    s->workless_len = 0;
    s->cqes = calloc(s->entries, sizeof *s->cqes);
    s->late = calloc(s->entries, sizeof *s->late);
    if (!s->cqes || !s->late)
        abort();
    ring->cq.khead = &s->head;
    ring->cq.ktail = &s->tail;
    ring->cq.cqes = s->cqes;
    return rc;
}

static void tf_queue_exit(struct io_uring *ring)
{
    tf_shadow *s = tf_find((unsigned)ring->ring_fd, 0);

    if (s) {
        ring->cq.khead = s->real_head;
        ring->cq.ktail = s->real_tail;
        ring->cq.cqes = s->real_cqes;
        free(s->cqes);
        free(s->late);
        pthread_mutex_lock(&tf_lock);
        s->ring = NULL;
        pthread_mutex_unlock(&tf_lock);
    }
    io_uring_queue_exit(ring);
}

/* ---------------------------------------------------------------- the system calls */

static int tf_setup(unsigned entries, struct io_uring_params *p)
{
    int rc = tf_fault(TF_SETUP);

    return rc ? rc : io_uring_setup(entries, p);
}

static int tf_register(unsigned fd, unsigned opcode, const void *arg, unsigned count)
{
    int rc = tf_fault(TF_REGISTER);
    tf_shadow *s = tf_find(fd, 0);

    if (rc)
        return rc;
    rc = io_uring_register(fd, opcode, arg, count);
    if (s && opcode == IORING_REGISTER_RING_FDS && rc == 1)
        s->registered = (int)((const struct io_uring_rsrc_update *)arg)->offset;
    if (s && opcode == IORING_REGISTER_SYNC_CANCEL)
        tf_pull(s);
    return rc;
}

/* What names no entry: the kernel's answer, ENOENT, is then its own. */
#define TF_NOBODY (1ULL << 61)

/* What a message that is to be done by half was before. */
typedef struct {
    struct msghdr *header;
    size_t buffers, size;
} tf_message;

static struct msghdr *tf_header(const struct io_uring_sqe *sqe)
{
    return (struct msghdr *)(uintptr_t)sqe->addr;
}

/* Whether the kernel might do a part of it: nobody splits a datagram. */
static int tf_splits(const struct io_uring_sqe *sqe)
{
    int type = SOCK_STREAM;
    socklen_t size = sizeof type;

    if (sqe->user_data < TF_FIRST_USER_DATA)
        return 0;
    switch (sqe->opcode) {
    case IORING_OP_READ:
    case IORING_OP_WRITE:
    case IORING_OP_WRITEV: /* half of the buffers */
    case IORING_OP_SPLICE:
        return sqe->len >= 2;
    case IORING_OP_SEND:
    case IORING_OP_RECV:
        if (sqe->len < 2)
            return 0;
        break;
    case IORING_OP_SENDMSG: /* half of the buffers, or of the only one */
    case IORING_OP_RECVMSG:
        if (!tf_header(sqe)->msg_iovlen || (tf_header(sqe)->msg_iovlen == 1 && tf_header(sqe)->msg_iov->iov_len < 2))
            return 0;
        break;
    default:
        return 0;
    }
    return getsockopt(sqe->fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type == SOCK_STREAM;
}

/* The kernel has read a message when it has taken the entry: then it is to be as it was, since it may be used again. */
static tf_message tf_halve_message(struct msghdr *header)
{
    tf_message whole = {header, header->msg_iovlen, header->msg_iov->iov_len};

    if (whole.buffers > 1)
        header->msg_iovlen /= 2;
    else
        header->msg_iov->iov_len /= 2;
    return whole;
}

static int tf_is(int fd, const char *path, mode_t kind)
{
    struct stat st;

    return (path ? stat(path, &st) : fstat(fd, &st)) == 0 && (st.st_mode & S_IFMT) == kind;
}

/* Whether the kernel might hand it to a worker. Not what waits for others there, which no thread could be called away from. */
static int tf_by_worker(const struct io_uring_sqe *sqe)
{
    if (sqe->user_data < TF_FIRST_USER_DATA)
        return 0;
    switch (sqe->opcode) {
    case IORING_OP_READ:
    case IORING_OP_WRITE:
    case IORING_OP_WRITEV:
        return tf_is(sqe->fd, NULL, S_IFREG);
    case IORING_OP_SPLICE:
        return tf_is(sqe->splice_fd_in, NULL, S_IFREG) ||
               (tf_is(sqe->fd, NULL, S_IFREG) && fcntl(sqe->splice_fd_in, F_GETFL) & O_NONBLOCK);
    case IORING_OP_OPENAT:
        return !tf_is(-1, (const char *)(uintptr_t)sqe->addr, S_IFIFO);
    case IORING_OP_STATX:
    case IORING_OP_MKDIRAT:
    case IORING_OP_RENAMEAT:
    case IORING_OP_UNLINKAT:
    case IORING_OP_SYMLINKAT:
    case IORING_OP_LINKAT:
    case IORING_OP_FSYNC:
    case IORING_OP_FALLOCATE:
    case IORING_OP_CLOSE:
    case 55: /* FTRUNCATE */
        return 1;
    default:
        return 0;
    }
}

/* Answers how many messages are to be made whole again. */
static unsigned tf_mislead(tf_shadow *s, unsigned count, tf_message *halved, unsigned most)
{
    struct io_uring *ring = s->ring;
    unsigned messages = 0;
    unsigned head = __atomic_load_n(ring->sq.khead, __ATOMIC_ACQUIRE), mask = *ring->sq.kring_mask;

    for (; count--; head++) {
        struct io_uring_sqe *sqe = &ring->sq.sqes[head & mask];

        if (sqe->opcode == IORING_OP_ASYNC_CANCEL && !sqe->cancel_flags && !(sqe->addr & TF_NOBODY) && tf_hit(TF_MISS))
            sqe->addr |= TF_NOBODY;
        if (s->workless_len < TF_WORKLESS && tf_by_worker(sqe) && tf_hit(TF_WORKER)) {
            uint64_t user_data = sqe->user_data;

            memset(sqe, 0, sizeof *sqe);
            sqe->opcode = IORING_OP_NOP;
            sqe->user_data = s->workless[s->workless_len++] = user_data;
        }
        if (messages == most || !tf_splits(sqe) || !tf_hit(TF_PART))
            continue;
        if (sqe->opcode == IORING_OP_SENDMSG || sqe->opcode == IORING_OP_RECVMSG)
            halved[messages++] = tf_halve_message(tf_header(sqe));
        else
            sqe->len = sqe->len % 1024 ? sqe->len / 2 : sqe->len / 1024 * 512; /* O_DIRECT wants whole sectors */
    }
    return messages;
}

static int tf_enter2(unsigned fd, unsigned to_submit, unsigned min_complete, unsigned flags, sigset_t *arg, size_t size)
{
    int rc = tf_fault(TF_ENTER);
    tf_shadow *s = tf_find(fd, flags & IORING_ENTER_REGISTERED_RING);
    tf_message halved[64];
    unsigned messages = 0;

    if (rc)
        return rc;
    if (to_submit && tf_hit(TF_SHORT)) {
        unsigned most = (unsigned)tf_kinds[TF_SHORT].value;

        if (!most)
            return 0;
        if (to_submit > most) {
            to_submit = most;
            flags &= ~IORING_ENTER_GETEVENTS;
            min_complete = 0;
        }
    }
    if (s && s->late_len)
        min_complete = 0;
    if (s)
        messages = tf_mislead(s, to_submit, halved, sizeof halved / sizeof *halved);
    rc = io_uring_enter2(fd, to_submit, min_complete, flags, arg, size);
    while (messages--) {
        halved[messages].header->msg_iovlen = halved[messages].buffers;
        halved[messages].header->msg_iov->iov_len = halved[messages].size;
    }
    if (s)
        tf_pull(s);
    if (s && (flags & IORING_ENTER_GETEVENTS) && tf_hit(TF_STALE))
        __atomic_fetch_or(s->ring->sq.kflags, IORING_SQ_TASKRUN, __ATOMIC_RELEASE);
    return rc;
}

static int tf_eventfd(unsigned initial, int flags)
{
    return tf_fails(TF_EVENTFD) ? -1 : eventfd(initial, flags);
}

static ssize_t tf_read(int fd, void *data, size_t size)
{
    return tf_fails(TF_READ) ? -1 : read(fd, data, size);
}

static ssize_t tf_write(int fd, const void *data, size_t size)
{
    return tf_fails(TF_WRITE) ? -1 : write(fd, data, size);
}

/* A sleeper in another thread. What is held back would come during its sleep. */
static int tf_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
    if (tf_fails(TF_POLL))
        return -1;
    for (int i = 0; i < TF_RINGS; i++)
        if (tf_rings[i].ring && tf_rings[i].late_len) {
            tf_flag(&tf_rings[i]);
            return 1;
        }
    return ppoll(fds, count, timeout, mask);
}

static void *tf_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    return tf_fails(TF_MMAP) ? MAP_FAILED : mmap(address, size, protection, flags, fd, offset);
}

static void *tf_calloc(size_t count, size_t size)
{
    return tf_fails(TF_ALLOC) ? NULL : calloc(count, size);
}

static void *tf_realloc(void *memory, size_t size)
{
    return tf_fails(TF_ALLOC) ? NULL : realloc(memory, size);
}

#define io_uring_queue_init_params tf_queue_init_params
#define io_uring_queue_exit tf_queue_exit
#define io_uring_setup tf_setup
#define io_uring_register tf_register
#define io_uring_enter2 tf_enter2
#define eventfd(initial, flags) tf_eventfd(initial, flags)
#define read(fd, data, size) tf_read(fd, data, size)
#define write(fd, data, size) tf_write(fd, data, size)
#define ppoll(fds, count, timeout, mask) tf_ppoll(fds, count, timeout, mask)
#define mmap(address, size, protection, flags, fd, offset) tf_mmap(address, size, protection, flags, fd, offset)
#define lseek(...) (tf_fails(TF_FILE) ? -1 : lseek(__VA_ARGS__))
#define fcntl(...) (tf_fails(TF_FILE) ? -1 : fcntl(__VA_ARGS__))
#define fstat(...) (tf_fails(TF_FILE) ? -1 : fstat(__VA_ARGS__))
#define fstatfs(...) (tf_fails(TF_FILE) ? -1 : fstatfs(__VA_ARGS__))
/* Transfers and renames are no questions about a file. */
#define TF_ASKS(number) ((number) != SYS_preadv2 && (number) != SYS_pwritev2 && (number) != SYS_renameat2)
#define syscall(number, ...) (TF_ASKS(number) && tf_fails(TF_FILE) ? -1 : syscall(number, __VA_ARGS__))
#define fallocate(...) (tf_fails(TF_FILE) ? -1 : fallocate(__VA_ARGS__))
#define calloc(count, size) tf_calloc(count, size)
#define realloc(memory, size) tf_realloc(memory, size)
#define TU_FAULT_SQE tf_fault(TF_SQE)
