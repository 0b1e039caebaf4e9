/*
 * The shim of uring.h.
 *
 * What liburing does well it does here: set-up, mapping, tear-down, the probe and the raw system calls. The two queues
 * are driven by hand, because the rules that this library lives by are rules about them:
 *
 * - The submission queue's index array is the identity for ever, so publishing an entry is one store to the tail. The
 *   kernel reads entries only inside io_uring_enter(2), on this same thread; a poller does at once (poller.c).
 * - Whatever a short or refused submit leaves behind stays between head and tail, and the next enter takes it (F22).
 * - A refusal (EBUSY, EAGAIN) is answered by reaping into a stash, never by trying again in place (F23).
 * - Under DEFER_TASKRUN completions appear only inside an enter with GETEVENTS. IORING_SQ_TASKRUN tells when there are
 *   any, so a tick with nothing to do makes no system call; IORING_SQ_CQ_OVERFLOW, and not cq.koverflow, tells of an
 *   overflowed completion queue (F24).
 * - io_uring_enter(2) answers the number of entries submitted in preference to the fate of the wait (F28), so the clock
 *   decides whether a wait that returned nothing timed out.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <liburing.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "uring.h"

/* Newer than liburing 2.3's header. */
#define TU_SETUP_NO_SQARRAY (1U << 16)
#define TU_FEAT_NO_IOWAIT (1U << 17)
#define TU_ENTER_NO_IOWAIT (1U << 7)
#define TU_OP_FTRUNCATE 55

#ifndef TU_LIBURING_VERSION
#define TU_LIBURING_VERSION "unknown"
#endif

/* 0, or the error that preparing an entry answers: a build for tests has faults here (tests/faults/inject.h). */
#ifndef TU_FAULT_SQE
#define TU_FAULT_SQE 0
#endif

/* The binding keeps the interpreter's lock over each call (ffi/build.py); what may block lets go of it between these two. */
#ifndef TU_LET_GO
#define TU_LET_GO
#define TU_TAKE_BACK
#endif

enum { CLOSED, OPEN, FORKED };

typedef struct {
    int64_t user_data;
    int64_t res;
    int64_t flags;
} completion;

typedef struct tu_batch tu_batch; /* batch.c */

typedef struct {
    struct io_uring_buf_ring *ring;
    size_t ring_size;
    char *base;
    unsigned size, mask, group;
    uint16_t *consumed; /* ids named by the completions that the last tu_wait() handed out */
} tu_buffers;

struct tu_ring {
    struct io_uring ring;
    int state;
    int registered; /* index of the registered ring descriptor, or -1 */
    int away;
    int wake_armed; /* the read of the eventfd is queued or in flight */
    unsigned woken; /* its completion was put aside: the next tu_wait() ends with that */
    int closing;    /* no new read of the eventfd */
    int polled;     /* a kernel thread takes the submissions, see poller.c */
    unsigned marks; /* entries of poller.c that have not completed */
    unsigned reaped_at; /* where the poller was in the queue when completions were last taken off theirs */
    uint64_t owner;
    int notify_fd;          /* signalled by the kernel when the owner has work; for sleepers in other threads */
    atomic_int want_notify; /* a sleeper asks the owner to make it */
    int event_fd;
    uint64_t event_value; /* the kernel writes here */
    atomic_int wakers;    /* threads inside tu_wake(), plus CLOSING_WAKERS once closing */
    tu_counters stats;
    completion *stash; /* completions taken off a full queue, oldest first */
    unsigned stash_len, stash_cap;
    uint64_t *owed; /* cancels that there was no room for */
    unsigned owed_len, owed_cap;
    tu_buffers *buffers;
    unsigned consumed; /* how many of buffers->consumed are in the caller's hands */
    uint64_t *tracked; /* user_data of the caller's entries in flight, with CANCEL_DATA where a cancel has missed */
    unsigned tracked_len, tracked_cap, tracked_shift;
    unsigned missed; /* entries in flight, those of batches too, that a cancel has missed */
    int64_t retry_at, retry_ns;
    int64_t spin_ns;
    int spin_credit; /* above 0 it spins */
    unsigned handed; /* completions that the last tu_wait() handed out */
    tu_batch **batches;
    unsigned batch_places, batch_live, batch_over; /* over: all completions are there, and nobody has been told */
    unsigned batch_rotation;
    unsigned turns, served_turn; /* calls of tu_wait(), and the one since which tu_may_serve() counts */
    int64_t served_since;
    unsigned noted; /* completions, of batches and of cancels, that nobody is told of */
    unsigned batch_late; /* completions of devices that batch_advance() has not seen yet */
    uint16_t batch_tag;
};

/* What the queues need to know of batches. The bit is in the user_data of their entries, and of no others. */
#define BATCH_DATA (1ULL << 63)
static void batch_note(tu_ring *r, uint64_t user_data, int res);
static void batch_misses(tu_ring *r, uint64_t user_data);
static unsigned batch_with(const tu_ring *r, uint64_t user_data);
static int batch_cancel(tu_ring *r, uint64_t user_data);
static void batch_cancel_fd(tu_ring *r, int fd);
static void batch_free_all(tu_ring *r);

/* The bit is in the user_data of a cancel, beside its target's, and in that of no other entry. */
#define CANCEL_DATA (1ULL << 62)
#define RETRY_NS 1000000
#define MOST_RETRY_NS 50000000

#define CLOSING_WAKERS (1 << 30)

/* user_data of the entries that are tried when a ring is made; below TU_FIRST_USER_DATA. */
#define FIRST_TRIAL_DATA 4
/* What the queues need to know of pollers. */
#define TU_MARK_DATA 3 /* an entry that the shim waits for, to know how far the poller is */
static int poller_sleeps(tu_ring *r);
static int poller_wake(tu_ring *r);
static int poller_makes_room(tu_ring *r, unsigned rounds);

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield" ::: "memory")
#else
#define RELAX() atomic_signal_fence(memory_order_seq_cst)
#endif

static unsigned load(const unsigned *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static void store(unsigned *p, unsigned value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

/* The owner alone counts; others may look (tu_stats). No faster way to add is needed than a load and a store. */
static void count(uint64_t *counter, int64_t by)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + (uint64_t)by, __ATOMIC_RELAXED);
}

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Calls past the C library, which would shut out older systems: its fstat(3) is a symbol of glibc 2.33, and preadv2(3),
 * pwritev2(3) and renameat2(3) are not in musl before 1.2.5. The kernel's struct stat is the C library's on 64-bit systems. */
static int file_status(int fd, struct stat *st)
{
#if defined(SYS_fstat) && defined(__LP64__)
    return (int)syscall(SYS_fstat, fd, st);
#else
    return fstat(fd, st);
#endif
}

static ssize_t read_vector(int fd, const struct iovec *vector, unsigned count, int64_t offset, int flags)
{
    return syscall(SYS_preadv2, fd, vector, count, (long)offset, (long)(offset >> 32), flags);
}

static ssize_t write_vector(int fd, const struct iovec *vector, unsigned count, int64_t offset, int flags)
{
    return syscall(SYS_pwritev2, fd, vector, count, (long)offset, (long)(offset >> 32), flags);
}

/* A number that no other thread of this process has or will have, unlike pthread_self() and gettid(). */
static uint64_t this_thread(void)
{
    static atomic_uint_fast64_t last;
    static _Thread_local uint64_t mine;

    if (!mine)
        mine = atomic_fetch_add(&last, 1) + 1;
    return mine;
}

/* ---------------------------------------------------------------- system calls */

static int transient(int rc)
{
    return rc == -EINTR || rc == -EBUSY || rc == -EAGAIN;
}

static unsigned pending(tu_ring *r)
{
    return *r->ring.sq.ktail - load(r->ring.sq.khead);
}

/* Entries that the kernel has to be entered for. */
static unsigned unsent(tu_ring *r)
{
    return r->polled ? 0 : pending(r);
}

/* What the flags tell of is to be seen by whoever has seen them, also on processors that keep no such order by themselves. */
static unsigned kernel_flags(tu_ring *r)
{
    return load(r->ring.sq.kflags);
}

/* timeout_ns < 0: no timeout. Answers what io_uring_enter(2) answers. A poller that has to be woken is.
 *
 * IORING_SQ_TASKRUN is cleared before the work is run, and set again where the kernel did not get to it. The kernel clears
 * it only where there is work: one of its workers adds work first and sets the flag then, and when we have run the work in
 * between the flag stays, with nothing to do, until more work comes (measured on 6.18: io_req_local_work_add and
 * io_cqring_wait; a close that waited for the flag to go hung for ever). What arrives later, or is left over, sets it anew. */
static int enter(tu_ring *r, unsigned to_submit, unsigned min_complete, unsigned flags, int64_t timeout_ns)
{
    struct io_uring_getevents_arg arg;
    struct __kernel_timespec ts;
    void *argp = NULL;
    size_t size = 0;
    int fd = r->ring.ring_fd, told = 0, rc;

    if ((flags & IORING_ENTER_GETEVENTS) && (kernel_flags(r) & IORING_SQ_TASKRUN)) {
        told = 1;
        __atomic_fetch_and(r->ring.sq.kflags, ~IORING_SQ_TASKRUN, __ATOMIC_ACQ_REL);
    }
    if (poller_sleeps(r))
        flags |= IORING_ENTER_SQ_WAKEUP;
    if (r->registered >= 0) {
        fd = r->registered;
        flags |= IORING_ENTER_REGISTERED_RING;
    }
    /* Else a loop that waits for its sockets counts as one that waits for a disk: "procs_blocked" and "iowait" in /proc/stat, and
     * what systemd-oomd and others read in /proc/pressure/io. */
    if (r->ring.features & TU_FEAT_NO_IOWAIT && flags & IORING_ENTER_GETEVENTS)
        flags |= TU_ENTER_NO_IOWAIT;
    if (timeout_ns >= 0) {
        ts.tv_sec = timeout_ns / 1000000000;
        ts.tv_nsec = timeout_ns % 1000000000;
        memset(&arg, 0, sizeof arg);
        arg.ts = (uint64_t)(uintptr_t)&ts;
        argp = &arg;
        size = sizeof arg;
        flags |= IORING_ENTER_EXT_ARG;
    }
    count(&r->stats.enters, 1);
    {
        TU_LET_GO;
        rc = io_uring_enter2(fd, to_submit, min_complete, flags, argp, size);
        TU_TAKE_BACK;
    }
    if (told && (rc < 0 ? rc != -ETIME : (unsigned)rc < to_submit))
        __atomic_fetch_or(r->ring.sq.kflags, IORING_SQ_TASKRUN, __ATOMIC_ACQ_REL);
    return rc;
}

/* ---------------------------------------------------------------- life */

tu_ring *tu_new(void)
{
    tu_ring *r = calloc(1, sizeof *r);

    if (r) {
        r->registered = r->event_fd = r->notify_fd = r->ring.ring_fd = -1;
        atomic_init(&r->wakers, CLOSING_WAKERS);
    }
    return r;
}

static void register_ring_fd(tu_ring *r)
{
    struct io_uring_rsrc_update up;

    memset(&up, 0, sizeof up);
    up.offset = -1U;
    up.data = r->ring.ring_fd;
    /* At most 16 for each thread: going without costs a little speed and nothing else. */
    r->registered = io_uring_register(r->ring.ring_fd, IORING_REGISTER_RING_FDS, &up, 1) == 1 ? (int)up.offset : -1;
}

static void unregister_ring_fd(tu_ring *r)
{
    struct io_uring_rsrc_update up;

    if (r->registered < 0)
        return;
    memset(&up, 0, sizeof up);
    up.offset = r->registered;
    io_uring_register(r->ring.ring_fd, IORING_UNREGISTER_RING_FDS, &up, 1);
    r->registered = -1;
}

/* Restrictions of the whole task (7.2) refuse operations with -EACCES, whatever the probe says (F56). Most have a substitute; these
 * have none, so the opener has to hear of them. Each is tried with the flags that it will have and on nothing: where it is
 * allowed it fails otherwise, at once. */
static int try_essentials(tu_ring *r, int *step)
{
    static const unsigned char opcodes[] = {IORING_OP_READ, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL};
    struct io_uring_cq *cq = &r->ring.cq;
    unsigned tried = 0;
    int rc = io_uring_register(r->ring.ring_fd, IORING_REGISTER_EVENTFD, NULL, 0); /* EINVAL where it is allowed */

    if (rc == -EACCES) {
        *step = 4;
        return rc;
    }
    while (tried < sizeof opcodes) {
        unsigned n;

        for (n = 0; n < *r->ring.sq.kring_entries && tried < sizeof opcodes; n++, tried++) {
            struct io_uring_sqe *sqe = &r->ring.sq.sqes[*r->ring.sq.ktail & *r->ring.sq.kring_mask];

            memset(sqe, 0, sizeof *sqe);
            sqe->opcode = opcodes[tried];
            sqe->fd = -1;
            sqe->user_data = FIRST_TRIAL_DATA + tried;
            if (sqe->opcode == IORING_OP_ASYNC_CANCEL) {
                sqe->addr = FIRST_TRIAL_DATA;
                sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
            }
            store(r->ring.sq.ktail, *r->ring.sq.ktail + 1);
        }
        rc = r->polled ? enter(r, 0, n, IORING_ENTER_GETEVENTS, 10000000000)
                       : enter(r, pending(r), 0, IORING_ENTER_GETEVENTS, -1);
        if (rc < 0)
            return rc; /* what is transient leaves the rest of them to the first wait, which ignores their results */
        for (unsigned head = *cq->khead; head != load(cq->ktail); head++) {
            const struct io_uring_cqe *cqe = &cq->cqes[head & *cq->kring_mask];

            if (cqe->res == -EACCES) {
                *step = TU_STEP_OPERATION + opcodes[cqe->user_data - FIRST_TRIAL_DATA];
                return -EACCES;
            }
            store(cq->khead, head + 1);
        }
        if (unsent(r))
            return 0; /* not taken (F3): to the first wait, too. Another round would overwrite them. */
    }
    return 0;
}

int tu_open(tu_ring *r, unsigned sq_entries, unsigned cq_entries, int cpu, unsigned idle_ms, int attach_to, int *step)
{
    struct io_uring_params p;
    int rc;

    memset(&p, 0, sizeof p);
    p.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE;
    if (cpu < 0) {
        p.flags |= IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    } else {
        p.flags |= IORING_SETUP_SQPOLL | IORING_SETUP_SQ_AFF;
        p.sq_thread_cpu = (unsigned)cpu;
        p.sq_thread_idle = idle_ms;
        if (attach_to >= 0) {
            p.flags |= IORING_SETUP_ATTACH_WQ;
            p.wq_fd = (unsigned)attach_to;
        }
    }
    p.cq_entries = cq_entries;
    *step = 1;
    rc = io_uring_queue_init_params(sq_entries, &r->ring, &p);
    if (rc < 0) {
        r->ring.ring_fd = -1;
        return rc;
    }
    *step = 2;
    r->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->event_fd < 0) {
        rc = -errno;
        io_uring_queue_exit(&r->ring);
        r->ring.ring_fd = -1;
        return rc;
    }
    if (!(p.flags & TU_SETUP_NO_SQARRAY))
        for (unsigned i = 0; i < p.sq_entries; i++)
            r->ring.sq.array[i] = i;
    r->owner = this_thread();
    r->state = OPEN;
    r->away = r->wake_armed = r->closing = 0;
    r->woken = r->owed_len = r->marks = r->reaped_at = 0;
    r->polled = cpu >= 0;
    memset(&r->stats, 0, sizeof r->stats);
    register_ring_fd(r);
    atomic_store(&r->wakers, 0);
    /* A seccomp filter may allow the set-up and forbid the rest: that is for the opener to hear, not for the first wait. */
    *step = 3;
    rc = try_essentials(r, step);
    count(&r->stats.enters, -(int64_t)r->stats.enters);
    if (rc >= 0 || transient(rc))
        return 0;
    tu_close(r);
    return rc;
}

void tu_close(tu_ring *r)
{
    if (r->state != OPEN)
        return;
    r->state = CLOSED;
    /* A waker that got in writes to the eventfd while it is still ours; later ones are turned away (F19). */
    atomic_fetch_add(&r->wakers, CLOSING_WAKERS);
    while (atomic_load(&r->wakers) != CLOSING_WAKERS)
        sched_yield();
    close(r->event_fd);
    if (r->notify_fd >= 0)
        close(r->notify_fd);
    r->event_fd = r->notify_fd = -1;
    /* The index is the owner's: in another thread it may name another ring. */
    if (tu_is_owner(r))
        unregister_ring_fd(r);
    io_uring_queue_exit(&r->ring);
    r->ring.ring_fd = -1;
}

void tu_free(tu_ring *r)
{
    if (!r)
        return;
    tu_close(r);
    free(r->stash);
    free(r->owed);
    free(r->tracked);
    batch_free_all(r);
    free(r);
}

void tu_forked(tu_ring *r)
{
    if (r->state != OPEN)
        return;
    r->state = FORKED;
    atomic_store(&r->wakers, CLOSING_WAKERS);
    /* Registered descriptors belong to the parent's thread, and so does what is queued: only our copies go. */
    r->registered = -1;
    close(r->event_fd);
    if (r->notify_fd >= 0)
        close(r->notify_fd);
    io_uring_queue_exit(&r->ring);
    r->event_fd = r->notify_fd = r->ring.ring_fd = -1;
    free(r->stash);
    r->stash = NULL;
    r->stash_len = r->stash_cap = 0;
}

static int refuse(const tu_ring *r)
{
    return r->state == FORKED ? -EOWNERDEAD : -EBADF;
}

int tu_fd(tu_ring *r)
{
    return r->ring.ring_fd;
}

unsigned tu_sq_entries(tu_ring *r)
{
    return r->state == OPEN ? *r->ring.sq.kring_entries : 0;
}

unsigned tu_cq_entries(tu_ring *r)
{
    return r->state == OPEN ? *r->ring.cq.kring_entries : 0;
}

void tu_stats(tu_ring *r, tu_counters *out)
{
    const uint64_t *from = (const uint64_t *)&r->stats;

    for (size_t i = 0; i < sizeof *out / sizeof *from; i++)
        ((uint64_t *)out)[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

int tu_is_owner(tu_ring *r)
{
    return r->owner == this_thread();
}

int tu_max_workers(tu_ring *r, unsigned bounded)
{
    unsigned most[2] = {bounded, 0}; /* 0 leaves the number, here of those for what is not bounded, such as sockets */
    int rc;

    if (r->state != OPEN)
        return refuse(r);
    rc = io_uring_register(r->ring.ring_fd, IORING_REGISTER_IOWQ_MAX_WORKERS, most, 2);
    return rc < 0 ? rc : (int)most[0];
}

/* ---------------------------------------------------------------- what is in flight */

/* By name and not only by number: a completion that came twice would otherwise be booked as that of some other entry, whose
 * memory would then be freed under the kernel. A hash table with open addressing, at most half full; zero is no caller's. */
static unsigned home(const tu_ring *r, uint64_t user_data)
{
    return (unsigned)((user_data & ~CANCEL_DATA) * 0x9E3779B97F4A7C15ULL >> r->tracked_shift);
}

static void place_tracked(tu_ring *r, uint64_t user_data)
{
    unsigned mask = r->tracked_cap - 1, i = home(r, user_data);

    while (r->tracked[i])
        i = (i + 1) & mask;
    r->tracked[i] = user_data;
}

static int track(tu_ring *r, uint64_t user_data)
{
    if (2 * (r->tracked_len + 1) > r->tracked_cap) {
        unsigned before = r->tracked_cap, cap = before ? 2 * before : 64;
        uint64_t *old = r->tracked, *grown = calloc(cap, sizeof *grown);

        if (!grown)
            return -ENOMEM;
        r->tracked = grown;
        r->tracked_cap = cap;
        r->tracked_shift = 64 - (unsigned)__builtin_ctz(cap);
        for (unsigned i = 0; i < before; i++)
            if (old[i])
                place_tracked(r, old[i]);
        free(old);
    }
    place_tracked(r, user_data);
    r->tracked_len++;
    return 0;
}

/* Where it is in the table, if it is. */
static int find_tracked(const tu_ring *r, uint64_t user_data, unsigned *at)
{
    unsigned mask = r->tracked_cap - 1;

    if (!r->tracked_len)
        return 0;
    for (*at = home(r, user_data); (r->tracked[*at] & ~CANCEL_DATA) != user_data; *at = (*at + 1) & mask)
        if (!r->tracked[*at])
            return 0;
    return 1;
}

/* Whether it was in flight; it is not any more. */
static int untrack(tu_ring *r, uint64_t user_data)
{
    unsigned mask = r->tracked_cap - 1, gap, i;

    if (!find_tracked(r, user_data, &gap))
        return 0;
    r->missed -= !!(r->tracked[gap] & CANCEL_DATA);
    /* What follows moves up, but for what stands between its home and the gap. */
    for (i = (gap + 1) & mask; r->tracked[i]; i = (i + 1) & mask)
        if (((i - home(r, r->tracked[i])) & mask) >= ((i - gap) & mask)) {
            r->tracked[gap] = r->tracked[i];
            gap = i;
        }
    r->tracked[gap] = 0;
    r->tracked_len--;
    return 1;
}

/* A cancel has failed: with ENOENT where its target had ended, and also where that was under way from one place in the kernel to
 * another, such as from a poll to a worker (measured on 6.1, blocking pipes); with EALREADY where a worker was at it, which may
 * give it back to a poll. What is in flight still is therefore cancelled again, after a while, which doubles: a device
 * that is at work cannot be stopped, whoever asks. */
static void misses(tu_ring *r, uint64_t target)
{
    unsigned mask = r->tracked_cap - 1, before = r->missed;
    int64_t now;

    r->noted++;
    if (target & BATCH_DATA) {
        batch_misses(r, target);
    } else if (r->tracked_len) {
        for (unsigned i = home(r, target); r->tracked[i]; i = (i + 1) & mask)
            if (r->tracked[i] == target) {
                r->tracked[i] |= CANCEL_DATA;
                r->missed++;
                break;
            }
    }
    if (before || !r->missed || (now = now_ns()) < r->retry_at)
        return;
    if (now - r->retry_at > MOST_RETRY_NS)
        r->retry_ns = RETRY_NS; /* not what was missed last time */
    r->retry_at = now + r->retry_ns;
}

/* ---------------------------------------------------------------- reaping */

/* Whether a completion is the shim's own, which ends here. */
static int own(tu_ring *r, const struct io_uring_cqe *cqe)
{
    if (cqe->user_data & CANCEL_DATA) {
        misses(r, cqe->user_data & ~CANCEL_DATA);
        return 1;
    }
    if (cqe->user_data & BATCH_DATA) {
        batch_note(r, cqe->user_data, cqe->res);
        return 1;
    }
    if (cqe->user_data == TU_WAKE_DATA)
        r->wake_armed = 0;
    else if (cqe->user_data == TU_MARK_DATA)
        r->marks -= r->marks > 0;
    return cqe->user_data < TU_FIRST_USER_DATA;
}

/* Books a completion as it is handed out, and not before: what waits in the stash is still in flight for everybody. */
static void account(tu_ring *r, int res, unsigned flags)
{
    if (flags & IORING_CQE_F_MORE)
        return;
    count(&r->stats.completed, 1);
    count(&r->stats.inflight, -1);
    if (res == -ECANCELED)
        count(&r->stats.cancelled, 1);
}

static int stash_one(tu_ring *r, const struct io_uring_cqe *cqe)
{
    if (r->stash_len == r->stash_cap) {
        unsigned cap = r->stash_cap ? 2 * r->stash_cap : 64;
        completion *grown = realloc(r->stash, cap * sizeof *grown);

        if (!grown)
            return -ENOMEM;
        r->stash = grown;
        r->stash_cap = cap;
    }
    r->stash[r->stash_len++] = (completion){(int64_t)cqe->user_data, cqe->res, cqe->flags};
    return 0;
}

/* Moves what is in the completion queue to the stash, to make room. Answers how many entries left the queue. */
static int stash(tu_ring *r)
{
    struct io_uring_cq *cq = &r->ring.cq;
    unsigned head = *cq->khead, mask = *cq->kring_mask, tail = load(cq->ktail), from = head;

    r->reaped_at = load(r->ring.sq.khead);
    for (; head != tail; head++) {
        const struct io_uring_cqe *cqe = &cq->cqes[head & mask];

        if (own(r, cqe))
            store(&r->woken, r->woken | (cqe->user_data == TU_WAKE_DATA));
        else if (stash_one(r, cqe) < 0)
            break;
    }
    store(cq->khead, head);
    return (int)(head - from);
}

static void provide_buffer(tu_buffers *b, unsigned id)
{
    struct io_uring_buf *buf = &b->ring->bufs[b->ring->tail & b->mask];

    buf->addr = (uint64_t)(uintptr_t)(b->base + (size_t)id * b->size);
    buf->len = b->size;
    buf->bid = (uint16_t)id;
    __atomic_store_n(&b->ring->tail, (uint16_t)(b->ring->tail + 1), __ATOMIC_RELEASE);
}

/* Buffers go back here and nowhere else, whatever became of the completions that named them (F10). */
static void recycle_buffers(tu_ring *r)
{
    while (r->consumed)
        provide_buffer(r->buffers, r->buffers->consumed[--r->consumed]);
}

static void consume_buffer(tu_ring *r, unsigned flags)
{
    if (flags & IORING_CQE_F_BUFFER && r->buffers && r->consumed <= r->buffers->mask)
        r->buffers->consumed[r->consumed++] = (uint16_t)(flags >> IORING_CQE_BUFFER_SHIFT);
}

/* Writes one completion to out, books it and lends its buffer: but a stray one changes nothing. */
static void hand_out(tu_ring *r, int64_t *out, uint64_t user_data, int res, unsigned flags)
{
    if (flags & IORING_CQE_F_MORE || untrack(r, user_data)) {
        account(r, res, flags);
        consume_buffer(r, flags);
        out[0] = (int64_t)user_data;
        out[1] = res;
    } else {
        out[0] = TU_STRAY_DATA;
        out[1] = (int64_t)user_data;
    }
    out[2] = flags;
}

/* Writes completions to out, the stashed ones first. *seen counts everything taken, the shim's own included. */
static unsigned reap(tu_ring *r, int64_t *out, unsigned max, unsigned *seen)
{
    struct io_uring_cq *cq = &r->ring.cq;
    unsigned n = 0, head, tail, mask;

    if (r->stash_len) {
        n = r->stash_len < max ? r->stash_len : max;
        for (unsigned i = 0; i < n; i++)
            hand_out(r, out + 3 * i, (uint64_t)r->stash[i].user_data, (int)r->stash[i].res, (unsigned)r->stash[i].flags);
        memmove(r->stash, r->stash + n, (r->stash_len - n) * sizeof *r->stash);
        r->stash_len -= n;
        *seen += n;
    }
    head = *cq->khead;
    mask = *cq->kring_mask;
    tail = load(cq->ktail);
    r->reaped_at = load(r->ring.sq.khead); /* after the tail: see has_released() */
    for (; head != tail && n < max; head++) {
        const struct io_uring_cqe *cqe = &cq->cqes[head & mask];

        ++*seen;
        if (!own(r, cqe))
            hand_out(r, out + 3 * n++, cqe->user_data, cqe->res, cqe->flags);
    }
    store(cq->khead, head);
    return n;
}

static unsigned ready(tu_ring *r)
{
    return r->stash_len + r->batch_over + (load(r->ring.cq.ktail) - *r->ring.cq.khead);
}

/* ---------------------------------------------------------------- queueing */

#define ROUND_NS 10000000
#define PATIENCE 200 /* rounds, about two seconds */

/* Hands entries to the kernel until at most `leave` are left. Answers 0, or why the kernel takes no more. `rounds`
 * bounds the rounds of ROUND_NS without any progress, not the work (F38). */
static int flush(tu_ring *r, unsigned leave, unsigned rounds)
{
    unsigned left = rounds;

    if (r->polled) /* what lies there has been handed over */
        return leave ? poller_makes_room(r, rounds) : poller_wake(r);
    while (pending(r) > leave) {
        unsigned before = pending(r);
        int rc = enter(r, before, 0, 0, -1);

        if (pending(r) != before) {
            left = rounds;
            continue;
        }
        if (rc < 0 && !transient(rc))
            return rc;
        /* The kernel has no room: make some, then wait for what is in flight to give some back. */
        if (stash(r) == 0) {
            if (left-- == 0)
                return rc < 0 ? rc : -EBUSY;
            enter(r, 0, 1, IORING_ENTER_GETEVENTS, ROUND_NS);
            stash(r);
        }
    }
    return 0;
}

static int next_sqe(tu_ring *r, struct io_uring_sqe **out)
{
    unsigned entries, tail;
    int rc = TU_FAULT_SQE;

    if (rc < 0)
        return rc;
    if (r->state != OPEN)
        return refuse(r);
    if (!tu_is_owner(r))
        return -EEXIST;
    entries = *r->ring.sq.kring_entries;
    if (pending(r) == entries) {
        count(&r->stats.sq_flushes, 1);
        rc = flush(r, entries - 1, PATIENCE);
        if (rc < 0)
            return rc;
    }
    tail = *r->ring.sq.ktail;
    *out = &r->ring.sq.sqes[tail & *r->ring.sq.kring_mask];
    memset(*out, 0, sizeof **out);
    return 0;
}

static int publish(tu_ring *r, const struct io_uring_sqe *sqe)
{
    if (sqe->user_data - TU_FIRST_USER_DATA < CANCEL_DATA - TU_FIRST_USER_DATA) { /* a caller's */
        int rc = track(r, sqe->user_data);

        if (rc < 0)
            return rc;
        count(&r->stats.submitted, 1);
        count(&r->stats.inflight, 1);
    }
    store(r->ring.sq.ktail, *r->ring.sq.ktail + 1);
    /* Away: somebody may be asleep (guest mode), so the entry goes now. If the kernel will not have it, the sleeper is
     * woken and the next tick tries again. */
    if (r->away && flush(r, 0, 0) < 0)
        tu_wake(r);
    return 0;
}

int tu_queue(tu_ring *r, unsigned opcode, int fd, void *addr, unsigned len, uint64_t off, unsigned op_flags,
             uint64_t user_data, unsigned flags, unsigned ioprio, unsigned buf_index, int file_index)
{
    struct io_uring_sqe *sqe;
    int rc = next_sqe(r, &sqe);

    if (rc < 0)
        return rc;
    io_uring_prep_rw((int)opcode, sqe, fd, addr, len, off);
    sqe->flags = (uint8_t)flags;
    sqe->ioprio = (uint16_t)ioprio;
    sqe->rw_flags = (int)op_flags;
    sqe->user_data = user_data;
    sqe->buf_index = (uint16_t)buf_index;
    sqe->splice_fd_in = file_index;
    return publish(r, sqe);
}

int tu_poll(tu_ring *r, int fd, unsigned events, uint64_t user_data)
{
    struct io_uring_sqe *sqe;
    int rc = next_sqe(r, &sqe);

    if (rc < 0)
        return rc;
    io_uring_prep_poll_add(sqe, fd, events);
    sqe->user_data = user_data;
    return publish(r, sqe);
}

int tu_recv(uint64_t ring, int fd, unsigned len, uint64_t user_data)
{
    tu_ring *r = (tu_ring *)(uintptr_t)ring;
    struct io_uring_sqe *sqe;
    int rc = next_sqe(r, &sqe);

    if (rc < 0)
        return rc;
    io_uring_prep_rw(IORING_OP_RECV, sqe, fd, NULL, len, 0);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = r->buffers ? (uint16_t)r->buffers->group : 0; /* none: the kernel answers -ENOBUFS */
    sqe->user_data = user_data;
    return publish(r, sqe);
}

int tu_send(uint64_t ring, int fd, const char *data, unsigned len, unsigned msg_flags, uint64_t user_data)
{
    tu_ring *r = (tu_ring *)(uintptr_t)ring;
    struct io_uring_sqe *sqe;
    int rc = next_sqe(r, &sqe);

    if (rc < 0)
        return rc;
    io_uring_prep_rw(IORING_OP_SEND, sqe, fd, data, len, 0);
    sqe->msg_flags = msg_flags;
    sqe->user_data = user_data;
    return publish(r, sqe);
}

int tu_read(uint64_t ring, int fd, const char *memory, unsigned len, uint64_t off, uint64_t user_data)
{
    return tu_file(fd) ? 1 : tu_rw(ring, IORING_OP_READ, fd, memory, len, off, 0, user_data);
}

int tu_rw(uint64_t ring, unsigned opcode, int fd, const char *memory, unsigned len, uint64_t off, unsigned flags,
          uint64_t user_data)
{
    tu_ring *r = (tu_ring *)(uintptr_t)ring;
    struct io_uring_sqe *sqe;
    int rc = next_sqe(r, &sqe);

    if (rc < 0)
        return rc;
    io_uring_prep_rw((int)opcode, sqe, fd, memory, len, off);
    sqe->flags = (uint8_t)flags;
    sqe->user_data = user_data;
    return publish(r, sqe);
}

void tu_try_submit(uint64_t ring)
{
    tu_ring *r = (tu_ring *)(uintptr_t)ring;

    if (r->state == OPEN && tu_is_owner(r))
        flush(r, 0, 0);
}

/* A cancel that was dropped would leave its waiter asleep for ever (F12): the next tu_wait() queues it. */
static int owe_cancel(tu_ring *r, uint64_t user_data)
{
    if (r->owed_len == r->owed_cap) {
        unsigned cap = r->owed_cap ? 2 * r->owed_cap : 16;
        uint64_t *grown = realloc(r->owed, cap * sizeof *grown);

        if (!grown)
            return -ENOMEM;
        r->owed = grown;
        r->owed_cap = cap;
    }
    r->owed[r->owed_len++] = user_data;
    return r->away ? tu_wake(r) : 0;
}

static void prepare_cancel(struct io_uring_sqe *sqe, uint64_t user_data)
{
    sqe->opcode = IORING_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->addr = user_data;
    sqe->user_data = CANCEL_DATA | user_data;
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
}

int tu_in_flight(tu_ring *r, uint64_t user_data)
{
    unsigned at;

    return r->state != OPEN || find_tracked(r, user_data, &at) || batch_with(r, user_data) < r->batch_places;
}

static int queue_cancel_one(tu_ring *r, uint64_t user_data)
{
    struct io_uring_sqe *sqe;
    int rc;

    /* Where the last one found no room there is none for this one: many need no more patience than one (F12, F23). */
    if (r->owed_len && r->state == OPEN && tu_is_owner(r) && owe_cancel(r, user_data) >= 0)
        return 0;
    rc = next_sqe(r, &sqe);
    if (rc < 0)
        return r->state == OPEN && tu_is_owner(r) ? owe_cancel(r, user_data) : rc;
    prepare_cancel(sqe, user_data);
    return publish(r, sqe);
}

int tu_cancel(tu_ring *r, uint64_t user_data)
{
    int rc = r->batch_live ? batch_cancel(r, user_data) : 0;

    return rc ? (rc < 0 ? rc : 0) : queue_cancel_one(r, user_data);
}

static int queue_cancel(tu_ring *r, int fd, unsigned flags)
{
    struct io_uring_sqe *sqe;
    int rc = next_sqe(r, &sqe);

    if (rc < 0)
        return rc;
    sqe->opcode = IORING_OP_ASYNC_CANCEL;
    sqe->fd = fd;
    sqe->cancel_flags = flags;
    sqe->user_data = TU_IGNORED_DATA;
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    return publish(r, sqe);
}

void tu_owner_back(tu_ring *r)
{
    r->away = 0;
}

unsigned tu_queued(tu_ring *r)
{
    return r->state == OPEN ? pending(r) : 0;
}

/* ---------------------------------------------------------------- pollers */

#include "poller.c"

/* ---------------------------------------------------------------- batches */

#include "batch.c"

/* ---------------------------------------------------------------- entering */

int tu_submit(tu_ring *r)
{
    if (r->state != OPEN)
        return refuse(r);
    if (!tu_is_owner(r))
        return -EEXIST;
    return flush(r, 0, PATIENCE);
}

/* Without it nobody could end a wait, so where there is no room for it no wait may begin (F26). */
static int arm_wake(tu_ring *r)
{
    struct io_uring_sqe *sqe;
    int rc;

    if (r->wake_armed || r->closing)
        return 0;
    if ((rc = next_sqe(r, &sqe)) < 0)
        return rc;
    io_uring_prep_rw(IORING_OP_READ, sqe, r->event_fd, &r->event_value, sizeof r->event_value, 0);
    sqe->user_data = TU_WAKE_DATA;
    r->wake_armed = 1;
    return publish(r, sqe);
}

static int queue_owed(tu_ring *r)
{
    struct io_uring_sqe *sqe;

    while (r->owed_len) {
        int rc = next_sqe(r, &sqe);

        if (rc < 0)
            return rc;
        prepare_cancel(sqe, r->owed[--r->owed_len]);
        publish(r, sqe);
    }
    return 0;
}

/* Cancels again what cancels have missed, if it is time. Answers the ns until it is, or -1 where there is nothing to wait for. */
static int64_t recancel(tu_ring *r)
{
    int64_t now = now_ns();

    if (now >= r->retry_at) {
        for (unsigned i = 0; i < r->tracked_cap; i++)
            if (r->tracked[i] & CANCEL_DATA && queue_cancel_one(r, r->tracked[i] & ~CANCEL_DATA) >= 0) {
                r->tracked[i] &= ~CANCEL_DATA;
                r->missed--;
            }
        batch_recancel(r);
        r->retry_ns = 2 * r->retry_ns < MOST_RETRY_NS ? 2 * r->retry_ns : MOST_RETRY_NS;
        r->retry_at = now + r->retry_ns;
    }
    return r->missed ? r->retry_at - now : -1;
}

/* Sleeping in another thread than the owner's (guest mode).
 *
 * Under DEFER_TASKRUN the ring's own descriptor is no good for that: poll(2) on it reports pending work, but work that
 * arrives while the poller sleeps does not wake it (measured on 6.18: io_req_local_work_add signals the registered
 * eventfd and nothing else); poll(2) tells of it when its timeout is over and it looks once more. So the sleeper waits
 * for an eventfd registered with IORING_REGISTER_EVENTFD. Only the owner may register it, hence the first sleeper is
 * sent back at once, and runs that never sleep elsewhere do not pay.
 *
 * The sleeper empties the eventfd and then looks for work. The kernel publishes work first and signals second, so a
 * signal that was emptied away had its work visible, and a later one ends the poll. */
static int sleep_elsewhere(tu_ring *r, int64_t timeout_ns)
{
    struct pollfd pfd = {__atomic_load_n(&r->notify_fd, __ATOMIC_ACQUIRE), POLLIN, 0};
    struct timespec ts;
    uint64_t emptied;
    int64_t again = __atomic_load_n(&r->retry_ns, __ATOMIC_RELAXED);
    int rc, early = load(&r->missed) && (timeout_ns < 0 || timeout_ns > again); /* the owner has to cancel again */

    if (early)
        timeout_ns = again;
    ts = (struct timespec){timeout_ns / 1000000000, timeout_ns % 1000000000};
    if (pfd.fd < 0) {
        atomic_store(&r->want_notify, 1);
        return 0;
    }
    if (read(pfd.fd, &emptied, sizeof emptied) < 0 && errno != EAGAIN)
        return -errno;
    if (load(r->ring.cq.ktail) != load(r->ring.cq.khead) || load(&r->stash_len) || load(&r->woken) || load(&r->batch_over) ||
        load(&r->batch_late) || (kernel_flags(r) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)))
        return 0;
    {
        TU_LET_GO;
        rc = ppoll(&pfd, 1, timeout_ns < 0 ? NULL : &ts, NULL);
        TU_TAKE_BACK;
    }
    if (rc == 0)
        return early ? 0 : -ETIME;
    return rc < 0 && errno != EINTR ? -errno : 0;
}

static int make_notify(tu_ring *r)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), rc;

    if (fd < 0)
        return -errno;
    rc = io_uring_register(r->ring.ring_fd, IORING_REGISTER_EVENTFD, &fd, 1);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    __atomic_store_n(&r->notify_fd, fd, __ATOMIC_RELEASE);
    atomic_store(&r->want_notify, 0);
    return 0;
}

/* Registers the eventfd of the sleepers afresh, before each of their sleeps. A signal that is raised inside a write to an
 * eventfd that the ring polls is put off by the kernel, under a bit that it then never clears: all later ones of that
 * kind are lost (measured on 6.18: io_eventfd_do_signal). A new registration has the bit clear, and one signal is all
 * that a sleep needs. Work that came in between shows in the flags, which a sleeper reads before it sleeps. */
static int renew_notify(tu_ring *r)
{
    int rc;

    if (r->notify_fd < 0)
        return 0;
    rc = io_uring_register(r->ring.ring_fd, IORING_UNREGISTER_EVENTFD, NULL, 0);
    /* -ENXIO: the last registration failed. */
    return rc < 0 && rc != -ENXIO ? rc : io_uring_register(r->ring.ring_fd, IORING_REGISTER_EVENTFD, &r->notify_fd, 1);
}

/* Completions held back by a full queue: each GETEVENTS moves in as many as there is room for. */
static unsigned drain_overflow(tu_ring *r, int64_t *out, unsigned max, unsigned n, unsigned *seen)
{
    while (n < max && (kernel_flags(r) & IORING_SQ_CQ_OVERFLOW)) {
        count(&r->stats.cq_overflows, 1);
        if (enter(r, 0, 0, IORING_ENTER_GETEVENTS, -1) < 0 && !ready(r))
            break;
        n += reap(r, out + 3 * n, max - n, seen);
    }
    return n;
}

#define SPIN_MAX_COMPLETIONS 2               /* completions at a time that make it worth while not to sleep */
#define SHORT_SLEEP 100000  /* ns */
#define MAX_CREDIT 8

void tu_spin(tu_ring *r, int64_t ns)
{
    r->spin_ns = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? ns : 0;
}

/* Whether the kernel has something for us before `until`. Deferred work announces itself in memory, so this enters nothing. */
static int spin_until(tu_ring *r, int64_t until)
{
    int rc;

    TU_LET_GO;
    while (!(rc = (kernel_flags(r) & IORING_SQ_TASKRUN) || ready(r)) && now_ns() < until)
        RELAX();
    TU_TAKE_BACK;
    return rc;
}

/* The sleep of tu_wait(). Where one peer answers at once, halting the processor and waking it takes longer than the answer
 * does, and twice the processor time of everything else (benchmarks, latency). So it first looks for a while, as long as
 * that has been paying: each success and each short sleep counts for it, a look in vain four times against, a long sleep
 * ends it. With more than a few completions at a time the next wait has a batch to collect, and sleeps. */
static int spin_or_sleep(tu_ring *r, int64_t left)
{
    int64_t began;
    int rc;

    if (!r->spin_ns || r->handed > SPIN_MAX_COMPLETIONS || r->batch_live)
        return enter(r, unsent(r), 1, IORING_ENTER_GETEVENTS, left);
    began = now_ns();
    if (r->spin_credit > 0) {
        int64_t patience = left >= 0 && left < r->spin_ns ? left : r->spin_ns;

        rc = r->polled ? poller_wake(r) : enter(r, pending(r), 0, IORING_ENTER_GETEVENTS, -1);
        if (rc < 0 || unsent(r) || ready(r))
            return rc;
        if (spin_until(r, began + patience)) {
            if (r->spin_credit < MAX_CREDIT)
                r->spin_credit++;
            return r->polled ? 0 : enter(r, 0, 0, IORING_ENTER_GETEVENTS, -1);
        }
        r->spin_credit -= 4;
        if (left >= 0 && (left -= now_ns() - began) < 0)
            left = 0; /* not the word for ever */
    }
    rc = enter(r, unsent(r), 1, IORING_ENTER_GETEVENTS, left);
    if (now_ns() - began > SHORT_SLEEP)
        r->spin_credit = r->spin_credit < 0 ? r->spin_credit : 0;
    else if (r->spin_credit < MAX_CREDIT)
        r->spin_credit++;
    return rc;
}

/* `certain`: that the timeout expired is told of a ring with a poller only when that is done with all that it was given. */
static int wait_for(tu_ring *r, int64_t timeout_ns, int64_t *out, unsigned max, int certain)
{
    unsigned n, noted, seen = 0;
    int64_t started = 0, left = timeout_ns, due;
    int sleeping, starved, awake, rc, early, went;

    if (r->state != OPEN)
        return refuse(r);
    if (!tu_is_owner(r))
        return sleep_elsewhere(r, timeout_ns);
    /* Without it (EMFILE) sleepers go on being sent back at once: slow, but alive (F35). */
    if (atomic_load_explicit(&r->want_notify, memory_order_relaxed))
        make_notify(r);
    r->away = 0;
    r->turns++;
    recycle_buffers(r);
    if ((rc = arm_wake(r)) == 0)
        rc = queue_owed(r);
    if (rc < 0 && !transient(rc))
        return rc;
    awake = rc < 0;
again:
    rc = 0;
    due = r->missed ? recancel(r) : -1;
    early = due >= 0 && (left < 0 || due < left);
    awake |= r->woken != 0;
    r->woken = 0;
    noted = r->noted;
    starved = batch_advance(r);
    if (kernel_flags(r) & IORING_SQ_CQ_OVERFLOW)
        count(&r->stats.cq_overflows, 1);
    sleeping = left != 0 && !starved && !awake && !ready(r);
    if (timeout_ns > 0 && !started && (sleeping || r->batch_live))
        started = now_ns();
    if (sleeping) {
        rc = spin_or_sleep(r, early ? due : left);
    } else if (starved && r->polled) {
        rc = poller_makes_room(r, PATIENCE);
    } else if (unsent(r) || poller_sleeps(r) || (kernel_flags(r) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))) {
        rc = enter(r, unsent(r), 0, IORING_ENTER_GETEVENTS, -1);
    }
    n = reap(r, out, max, &seen);
    n = drain_overflow(r, out, max, n, &seen);
    n += batch_hand_out(r, out + 3 * n, max - n);
    r->handed = n;
    if (unsent(r)) {
        /* The kernel took only a part, or nothing (F22, F23): make room and try again before anybody sleeps on it. */
        int refused = flush(r, 0, 1);

        if (refused < 0 && !transient(refused) && !n)
            return refused;
        return (int)n; /* the next one tells of the refusal: what has been reaped must not be lost */
    }
    /* Batches get on, and cancels are sent again, without anybody being told. But for the end of the timeout, a wake-up, a
     * signal, and a refusal, which only batches that lack room sit out here. */
    went = rc >= 0 || rc == -ETIME || (starved && transient(rc) && rc != -EINTR);
    if (!n && !awake && r->wake_armed && went && (starved || early || r->noted != noted)) {
        if (started && (left = timeout_ns - (now_ns() - started)) < 0)
            left = 0;
        if (starved || left) {
            seen = 0;
            goto again;
        }
    }
    if (n)
        return (int)n;
    if (rc < 0 && rc != -ETIME && !transient(rc))
        return rc;
    if (seen || awake)
        return 0;
    if (sleeping && rc != -ETIME && (timeout_ns < 0 || now_ns() - started < timeout_ns))
        return 0; /* a signal, or the wake-up of a cancelled entry */
    if (rc == -EINTR)
        return 0;
    if (r->polled && certain) {
        if ((rc = settle(r, 10)) < 0 && !transient(rc))
            return rc;
        if (ready(r) || r->woken || r->noted != noted) {
            left = 0;
            goto again;
        }
    }
    if ((rc = renew_notify(r)) < 0)
        return rc;
    if ((kernel_flags(r) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) || ready(r) || r->woken)
        return 0; /* came without a signal, while nothing was registered */
    r->away = 1;
    return -ETIME;
}

int tu_wait(tu_ring *r, int64_t timeout_ns, int64_t *out, unsigned max)
{
    return wait_for(r, timeout_ns, out, max, 1);
}

int tu_peek(tu_ring *r, int64_t *out, unsigned max)
{
    return wait_for(r, 0, out, max, 0);
}

int tu_wake(tu_ring *r)
{
    uint64_t one = 1;
    int rc = 0, saved = errno;

    if (atomic_fetch_add(&r->wakers, 1) < CLOSING_WAKERS) {
        int notify = __atomic_load_n(&r->notify_fd, __ATOMIC_ACQUIRE);

        /* EAGAIN: the counter is full, so a wake-up is pending already. */
        if (write(r->event_fd, &one, sizeof one) < 0 && errno != EAGAIN)
            rc = -errno;
        /* The kernel's own signal for a read of an eventfd comes milliseconds late, see renew_notify(). */
        if (notify >= 0 && write(notify, &one, sizeof one) < 0 && errno != EAGAIN)
            rc = -errno;
    } else {
        rc = -EBADF;
    }
    atomic_fetch_sub(&r->wakers, 1);
    errno = saved;
    return rc;
}

/* Submits, and runs deferred work until none is left: it is what drops the references to files of cancelled requests (F18). About
 * twenty pieces run per enter (F25). The completion queue may fill up meanwhile, hence the stash. */
static int run_deferred(tu_ring *r)
{
    unsigned left = PATIENCE;

    if (r->polled) {
        int rc = settle(r, PATIENCE);

        return rc < 0 ? rc : released(r);
    }
    for (;;) {
        int rc = enter(r, pending(r), 0, IORING_ENTER_GETEVENTS, -1);

        if (pending(r)) { /* a short or refused submit runs no work (F22, F23) */
            if ((rc = flush(r, 0, PATIENCE)) < 0)
                return rc;
            continue;
        }
        if (rc < 0 && (!transient(rc) || left-- == 0))
            return rc;
        if ((kernel_flags(r) & IORING_SQ_CQ_OVERFLOW) && stash(r) == 0 && rc >= 0)
            return 0;
        if (rc >= 0 && !(kernel_flags(r) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)))
            return 0;
    }
}

/* Whether an entry's last completion has been posted: it waits to be handed out, or has been. */
static int has_ended(const tu_ring *r, uint64_t user_data)
{
    const struct io_uring_cq *cq = &r->ring.cq;
    unsigned at, mask = *cq->kring_mask, tail = load(cq->ktail);

    if (!find_tracked(r, user_data, &at))
        return 1;
    for (unsigned i = 0; i < r->stash_len; i++)
        if ((uint64_t)r->stash[i].user_data == user_data && !(r->stash[i].flags & IORING_CQE_F_MORE))
            return 1;
    for (unsigned head = *cq->khead; head != tail; head++)
        if (cq->cqes[head & mask].user_data == user_data && !(cq->cqes[head & mask].flags & IORING_CQE_F_MORE))
            return 1;
    return 0;
}

/* Whether a cancel has failed since the completion queue ended at `tail` and `noted` was what had been noted. It has not
 * necessarily missed: its target may have ended before. */
static int cancel_failed(const tu_ring *r, unsigned tail, unsigned noted)
{
    const struct io_uring_cq *cq = &r->ring.cq;
    unsigned end = load(cq->ktail), mask = *cq->kring_mask;

    if (r->noted != noted) /* some were put aside */
        return 1;
    for (; tail != end; tail++)
        if (cq->cqes[tail & mask].user_data & CANCEL_DATA)
            return 1;
    return 0;
}

static int walk_fd(tu_ring *r, int fd)
{
    int rc = queue_cancel(r, fd, IORING_ASYNC_CANCEL_FD | IORING_ASYNC_CANCEL_ALL);

    return rc < 0 ? rc : run_deferred(r);
}

/* By name the kernel finds an entry in a hash table; by descriptor it walks through all that wait (F45). So it does that only where
 * the entries are not known, or one of them has not been found where it should be (`misses`). */
int tu_cancel_fd(tu_ring *r, int fd, const uint64_t *entries, unsigned count)
{
    unsigned tail, noted = r->noted;
    int rc = 0, walked = !count;

    if (r->state != OPEN)
        return refuse(r);
    if (!tu_is_owner(r))
        return -EEXIST;
    batch_cancel_fd(r, fd);
    if (count) {
        tail = load(r->ring.cq.ktail);
        for (unsigned i = 0; i < count && rc == 0; i++)
            rc = tu_cancel(r, entries[i]);
        if (rc == 0)
            rc = run_deferred(r);
        if (rc == 0 && (r->owed_len || cancel_failed(r, tail, noted)))
            for (unsigned i = 0; i < count; i++)
                if (!has_ended(r, entries[i])) {
                    rc = walk_fd(r, fd);
                    walked = 1;
                    break;
                }
    } else {
        rc = walk_fd(r, fd);
    }
    /* Whoever sleeps elsewhere may not have been told of what has ended here, in this thread's own call (seen on 6.1). */
    if (r->away)
        tu_wake(r);
    return rc < 0 ? rc : walked;
}

int tu_cancel_all(tu_ring *r)
{
    int rc;

    r->closing = 1;
    batch_cancel_fd(r, -1);
    rc = queue_cancel(r, -1, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    return rc < 0 ? rc : run_deferred(r);
}

int tu_cancel_sync(tu_ring *r, uint64_t user_data, int fd, unsigned flags, int64_t timeout_ns)
{
    struct io_uring_sync_cancel_reg reg;
    int rc;

    if (r->state != OPEN)
        return refuse(r);
    if (!tu_is_owner(r))
        return -EEXIST;
    rc = r->polled ? settle(r, PATIENCE) : flush(r, 0, PATIENCE);
    if (rc < 0)
        return rc;
    memset(&reg, 0, sizeof reg);
    reg.addr = user_data;
    reg.fd = fd;
    reg.flags = flags;
    reg.timeout.tv_sec = timeout_ns < 0 ? -1 : timeout_ns / 1000000000;
    reg.timeout.tv_nsec = timeout_ns < 0 ? -1 : timeout_ns % 1000000000;
    {
        TU_LET_GO;
        rc = io_uring_register(r->ring.ring_fd, IORING_REGISTER_SYNC_CANCEL, &reg, 1);
        TU_TAKE_BACK;
    }
    return rc;
}

int tu_idle(tu_ring *r)
{
    return r->stats.inflight == 0 && !r->wake_armed;
}

/* ---------------------------------------------------------------- provided buffers */

int tu_buffers_new(tu_ring *r, unsigned entries, unsigned size, unsigned group, char *base)
{
    struct io_uring_buf_reg reg;
    tu_buffers *b;
    int rc;

    if (r->state != OPEN)
        return refuse(r);
    if (r->buffers)
        return -EEXIST;
    b = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    b->consumed = calloc(entries, sizeof *b->consumed);
    b->ring_size = entries * sizeof(struct io_uring_buf);
    b->ring = mmap(NULL, b->ring_size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    if (!b->consumed || b->ring == MAP_FAILED) {
        rc = -ENOMEM;
        goto failed;
    }
    memset(&reg, 0, sizeof reg);
    reg.ring_addr = (uint64_t)(uintptr_t)b->ring;
    reg.ring_entries = entries;
    reg.bgid = (uint16_t)group;
    rc = io_uring_register(r->ring.ring_fd, IORING_REGISTER_PBUF_RING, &reg, 1);
    if (rc < 0)
        goto failed;
    b->base = base;
    b->size = size;
    b->mask = entries - 1;
    b->group = group;
    b->ring->tail = 0;
    for (unsigned id = 0; id < entries; id++)
        provide_buffer(b, id);
    r->buffers = b;
    return 0;

failed:
    if (b->ring != MAP_FAILED)
        munmap(b->ring, b->ring_size);
    free(b->consumed);
    free(b);
    return rc;
}

void tu_recycle_buffers(tu_ring *r)
{
    if (r->state == OPEN && tu_is_owner(r))
        recycle_buffers(r);
}

int tu_buffers_free(tu_ring *r)
{
    struct io_uring_buf_reg reg;
    tu_buffers *b = r->buffers;
    int rc = 0;

    if (!b)
        return 0;
    if (r->state == OPEN) {
        memset(&reg, 0, sizeof reg);
        reg.bgid = (uint16_t)b->group;
        rc = io_uring_register(r->ring.ring_fd, IORING_UNREGISTER_PBUF_RING, &reg, 1);
    }
    r->buffers = NULL;
    r->consumed = 0;
    munmap(b->ring, b->ring_size);
    free(b->consumed);
    free(b);
    return rc;
}

/* ---------------------------------------------------------------- without a ring */

#include "system_calls.c"
#include "files.c"

#define SERVE_NS 1000000
#define LET_GO_BYTES 65536 /* copying more than these takes longer than giving the interpreter's lock away */

/* Whether what is at hand may be answered without a turn of the loop: for SERVE_NS from the first such answer of a turn on. */
static int may_serve(tu_ring *r)
{
    int64_t now;

    if (r->state != OPEN)
        return 0;
    now = now_ns();
    if (r->served_turn != r->turns) {
        r->served_turn = r->turns;
        r->served_since = now;
    }
    return now - r->served_since < SERVE_NS;
}

static int64_t pread_nowait(int fd, char *memory, uint64_t length, int64_t offset)
{
    struct iovec part = {memory, length};
    ssize_t got = read_vector(fd, &part, 1, offset, RWF_NOWAIT);

    if (got < 0 && errno == EOPNOTSUPP && resident(fd, length, offset)) {
        got = read_vector(fd, &part, 1, offset, 0);
        return got < 0 ? -errno : got;
    }
    if (got > 0 && (uint64_t)got < length) { /* the end of the file, or of what is cached? */
        part = (struct iovec){memory + got, length - (uint64_t)got};
        if (read_vector(fd, &part, 1, offset + got, RWF_NOWAIT) != 0)
            return -EAGAIN;
    }
    return got < 0 ? -errno : got;
}

int64_t tu_pread_cached(uint64_t ring, int fd, char *memory, uint64_t length, int64_t offset)
{
    int64_t got;
    int flags;

    if (!may_serve((tu_ring *)(uintptr_t)ring))
        return -EAGAIN;
    flags = fcntl(fd, F_GETFL);
    if (flags < 0 || flags & O_DIRECT) /* a device is waited for, RWF_NOWAIT or not */
        return -EAGAIN;
    if (length > LET_GO_BYTES) {
        TU_LET_GO;
        got = pread_nowait(fd, memory, length, offset);
        TU_TAKE_BACK;
    } else {
        got = pread_nowait(fd, memory, length, offset);
    }
    return got;
}


/* ---------------------------------------------------------------- probing */

int tu_try_setup(unsigned flags, unsigned entries)
{
    struct io_uring_params p;
    int fd;

    memset(&p, 0, sizeof p);
    p.flags = flags;
    p.wq_fd = -1U; /* ATTACH_WQ answers ENXIO where it is known */
    if (flags & IORING_SETUP_CQSIZE)
        p.cq_entries = 2 * entries;
    fd = io_uring_setup(entries, &p);
    if (fd < 0)
        return fd;
    close(fd);
    return 0;
}

int tu_features(void)
{
    struct io_uring_params p;
    int fd;

    memset(&p, 0, sizeof p);
    fd = io_uring_setup(2, &p);
    if (fd < 0)
        return fd;
    close(fd);
    return (int)p.features;
}

int tu_probe_ops(unsigned char *supported, unsigned n)
{
    struct io_uring_params p;
    struct io_uring_probe *probe;
    int fd, rc;

    memset(&p, 0, sizeof p);
    memset(supported, 0, n);
    fd = io_uring_setup(2, &p);
    if (fd < 0)
        return fd;
    probe = calloc(1, sizeof *probe + 256 * sizeof probe->ops[0]);
    if (!probe) {
        close(fd);
        return -ENOMEM;
    }
    rc = io_uring_register(fd, IORING_REGISTER_PROBE, probe, 256);
    if (rc >= 0) {
        for (unsigned i = 0; i < probe->ops_len && i < n; i++)
            supported[i] = !!(probe->ops[i].flags & IO_URING_OP_SUPPORTED);
        rc = probe->ops_len;
    }
    free(probe);
    close(fd);
    return rc;
}

int tu_probe_register(unsigned opcode)
{
    struct io_uring_params p;
    int fd, rc;

    memset(&p, 0, sizeof p);
    fd = io_uring_setup(2, &p);
    if (fd < 0)
        return fd;
    /* Every opcode that exists reads its argument; one that does not is EINVAL before anything is read. */
    rc = io_uring_register(fd, opcode, (void *)1, 1);
    close(fd);
    return rc != -EINVAL;
}

const char *tu_liburing_version(void)
{
    return TU_LIBURING_VERSION;
}
