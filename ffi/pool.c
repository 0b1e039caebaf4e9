/*
 * Rings that threads share; see pool.h. Part of the shim, after uring.c. Knows the kernel's queues; knows nothing of Python's objects,
 * nor of who waits for a ring.
 *
 * Set up without SINGLE_ISSUER, because a ring moves between threads, and with COOP_TASKRUN and TASKRUN_FLAG: what a
 * device has completed is put into the queue when its submitter is in the kernel anyway, and nobody is interrupted for it. The
 * other way, a ring for each thread with SINGLE_ISSUER and DEFER_TASKRUN, was measured and gains nothing here (docs/pool.md).
 *
 * An entry for each slot. A slot holds one transfer from its first entry to its result, and has at most one entry queued or in
 * flight. The submission queue has room for all slots and the completion queue for twice as many, so neither is ever full: there is
 * no overflow to look after, and an entry that the kernel has refused stays in the queue until the next enter (F22).
 *
 * How a transfer ends, as in batch.c: with its length, with less at the end of the file, or with a negated errno. A short one
 * goes on where it stopped. EAGAIN (F20) is tried once more, in a worker. An interruption that nobody asked for (F15, F28) is
 * tried again, and where it comes three times in a row, as where no worker can be made (F40), by a plain system call in the
 * caller's thread, which may block.
 *
 * Waits. None is longer than SLICE_NS at a time: a thread that closes the pool does not enter a ring that is in use, whose
 * lock may be held by a submission that waits (F53), so who uses it looks up now and then. What bounds a wait is the clock and
 * not a number of tries (F38): patience with a kernel that refuses begins anew with every entry that it takes and every completion.
 */

#include "pool.h"

#define SLICE_NS 100000000LL
#define CHECK_NS 50000000LL /* after which a job goes back to its caller for signals */
#define LOOK_UP 16         /* reads of what is at hand between two looks at the clock */
#define MOST_REFUSALS 2000  /* of 1 ms, with nothing in flight and no progress */
#define MOST_INTERRUPTIONS 3
#define POOL_PAGE 4096         /* alignment of bounced memory; no file system or device wants more */
#define BOUNCED_MOST (32 << 20) /* bytes of it in flight */
#define BOUNCED_KEPT (4 << 20)  /* and between two jobs */

typedef struct {
    char *memory;
    uint64_t offset, id;
    uint32_t length, done, tag;
    unsigned piece; /* of the bounce */
    int32_t result;
    int fd;
    uint8_t opcode, busy, stubborn, interrupted;
} pool_slot;

struct tu_pool_ring {
    struct io_uring ring;
    _Atomic uint64_t turn; /* twice the number of the turn, and 1 where a thread is in a call */
    atomic_int closing;
    int state;
    unsigned entries, inflight;
    pool_slot *slots;
    unsigned *idle, idle_len;   /* slots that hold nothing */
    unsigned *again, again_len; /* whose transfer is to be queued again */
    unsigned *ended, ended_len; /* whose transfer has ended, and its result has not been handed out */
    char *bounce; /* aligned memory that a job reads into first */
    size_t bounce_size;
    unsigned *pieces, pieces_len; /* of it that are free */
    unsigned refusals;
    int cancelling;
    uint64_t last_id; /* of a reader's transfers */
};

/* A list of transfers. results[i] is as in tu_pool_take(). */
typedef struct {
    const uint64_t *offsets, *addresses;
    const uint32_t *lengths;
    int32_t *results;
    unsigned count, window; /* at most `window` in flight, nor more than the ring has entries */
    uint64_t bounce;        /* 0, or how many bytes of aligned memory each read goes to first, to be copied from there */
    int opcode, fd;
    int waits;                     /* what has not been read goes to the ring: it is not at hand, not a read, or with O_DIRECT */
    unsigned next, ended, partial; /* partial: ended with less than asked for, or failed */
} pool_job;

/* ---------------------------------------------------------------- life */

tu_pool_ring *tu_pool_new(void)
{
    return calloc(1, sizeof(tu_pool_ring));
}

int tu_pool_open(tu_pool_ring *p, unsigned entries)
{
    struct io_uring_params params;
    int rc;

    p->slots = calloc(entries, sizeof *p->slots);
    p->idle = calloc(entries, sizeof *p->idle);
    p->again = calloc(entries, sizeof *p->again);
    p->ended = calloc(entries, sizeof *p->ended);
    p->pieces = calloc(entries, sizeof *p->pieces);
    if (!p->slots || !p->idle || !p->again || !p->ended || !p->pieces)
        return -ENOMEM;
    memset(&params, 0, sizeof params);
    params.flags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL;
    rc = io_uring_queue_init_params(entries, &p->ring, &params);
    if (rc < 0)
        return rc;
    if (!(params.flags & TU_SETUP_NO_SQARRAY))
        for (unsigned i = 0; i < params.sq_entries; i++)
            p->ring.sq.array[i] = i;
    p->entries = entries;
    while (p->idle_len < entries) {
        p->idle[p->idle_len] = entries - 1 - p->idle_len;
        p->idle_len++;
    }
    p->state = OPEN;
    return 0;
}

static void pool_unmap(tu_pool_ring *p, int state)
{
    if (p->state == OPEN) {
        p->state = state;
        io_uring_queue_exit(&p->ring);
    }
}

void tu_pool_free(tu_pool_ring *p)
{
    if (!p)
        return;
    pool_unmap(p, CLOSED);
    if (!p->inflight)
        free(p->bounce); /* else the kernel may write there still */
    free(p->slots);
    free(p->idle);
    free(p->again);
    free(p->ended);
    free(p->pieces);
    free(p);
}

unsigned tu_pool_left(tu_pool_ring *p)
{
    return p->inflight;
}

void tu_pool_closing(tu_pool_ring *p, int how)
{
    atomic_store(&p->closing, how);
}

void tu_pool_forked(tu_pool_ring *p)
{
    pool_unmap(p, FORKED); /* only our copies: what is in flight writes to the parent's memory */
    atomic_fetch_and(&p->turn, ~1ULL);
}

/* Takes the ring for one call. */
static int pool_begin(tu_pool_ring *p, uint64_t turn)
{
    uint64_t found = 2 * turn;

    if (!atomic_compare_exchange_strong_explicit(&p->turn, &found, 2 * turn + 1, memory_order_acquire, memory_order_relaxed))
        return found == 2 * turn + 1 ? -EBUSY : -ESTALE;
    if (p->state == OPEN)
        return 0;
    atomic_store_explicit(&p->turn, 2 * turn, memory_order_release);
    return p->state == FORKED ? -EOWNERDEAD : -ESHUTDOWN;
}

/* The same for a call that transfers something. */
static int pool_begin_transfer(tu_pool_ring *p, uint64_t turn)
{
    int rc = pool_begin(p, turn);

    if ((rc && rc != -EBUSY) || !atomic_load_explicit(&p->closing, memory_order_relaxed))
        return rc;
    if (!rc)
        atomic_store_explicit(&p->turn, 2 * turn, memory_order_release);
    return -ESHUTDOWN; /* also where the one who is in a call is who closes it */
}

static void pool_end(tu_pool_ring *p, uint64_t turn)
{
    atomic_store_explicit(&p->turn, 2 * turn, memory_order_release);
}

int tu_pool_release(tu_pool_ring *p, uint64_t turn)
{
    int rc = pool_begin(p, turn), left;

    if (rc < 0)
        return rc;
    left = (int)p->inflight;
    if (!left) {
        while (p->ended_len) /* results that nobody took */
            p->idle[p->idle_len++] = p->ended[--p->ended_len];
        turn++;
    }
    pool_end(p, turn);
    return left;
}

/* ---------------------------------------------------------------- the queues */

static unsigned pool_pending(const tu_pool_ring *p)
{
    return *p->ring.sq.ktail - load(p->ring.sq.khead);
}

static unsigned pool_flags(const tu_pool_ring *p)
{
    return load(p->ring.sq.kflags);
}

/* Hands over all that is queued, and waits for `min` completions and timeout_ns at most. */
static int pool_enter(tu_pool_ring *p, unsigned min, int64_t timeout_ns)
{
    struct io_uring_getevents_arg arg;
    struct __kernel_timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    unsigned flags = 0;

    if (min) {
        memset(&arg, 0, sizeof arg);
        arg.ts = (uint64_t)(uintptr_t)&ts;
        flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
        return io_uring_enter2((unsigned)p->ring.ring_fd, pool_pending(p), min, flags, (void *)&arg, sizeof arg);
    }
    if (pool_flags(p) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
        flags = IORING_ENTER_GETEVENTS;
    if (!flags && !pool_pending(p))
        return 0;
    return io_uring_enter2((unsigned)p->ring.ring_fd, pool_pending(p), 0, flags, NULL, 0);
}

static void pool_note(tu_pool_ring *p, unsigned slot, int res);

/* The rest of a slot's transfer as a system call of this thread's. */
static void by_hand(tu_pool_ring *p, unsigned slot)
{
    pool_slot *s = &p->slots[slot];
    size_t length = s->length - s->done;
    off_t offset = (off_t)(s->offset + s->done);
    ssize_t n = s->opcode == IORING_OP_READ ? pread(s->fd, s->memory + s->done, length, offset)
                                            : pwrite(s->fd, s->memory + s->done, length, offset);

    p->inflight++;
    s->busy = 1;
    pool_note(p, slot, n < 0 ? -errno : (int)n);
}

static void pool_queue(tu_pool_ring *p, unsigned slot)
{
    pool_slot *s = &p->slots[slot];
    unsigned tail = *p->ring.sq.ktail;
    struct io_uring_sqe *sqe = &p->ring.sq.sqes[tail & *p->ring.sq.kring_mask];

    memset(sqe, 0, sizeof *sqe);
    io_uring_prep_rw(s->opcode, sqe, s->fd, s->memory + s->done, s->length - s->done, s->offset + s->done);
    sqe->flags = s->stubborn ? IOSQE_ASYNC : 0;
    sqe->user_data = (uint64_t)++s->tag << 32 | slot;
    s->busy = 1;
    p->inflight++;
    store(p->ring.sq.ktail, tail + 1);
}

static pool_slot *pool_start(tu_pool_ring *p, int opcode, int fd, uint64_t offset, uint32_t length, char *memory, uint64_t id)
{
    unsigned slot = p->idle[--p->idle_len];
    pool_slot *s = &p->slots[slot];

    s->opcode = (uint8_t)opcode;
    s->fd = fd;
    s->offset = offset;
    s->length = length;
    s->memory = memory;
    s->id = id;
    s->done = 0;
    s->stubborn = s->interrupted = 0;
    pool_queue(p, slot);
    return s;
}

static void pool_restart(tu_pool_ring *p)
{
    for (unsigned left = p->again_len; left; left--) { /* by_hand() may put some back */
        unsigned slot = p->again[0];

        memmove(p->again, p->again + 1, --p->again_len * sizeof *p->again);
        if (p->slots[slot].interrupted >= MOST_INTERRUPTIONS)
            by_hand(p, slot);
        else
            pool_queue(p, slot);
    }
}

/* Decides what becomes of a slot's transfer whose entry has completed. */
static void pool_note(tu_pool_ring *p, unsigned slot, int res)
{
    pool_slot *s = &p->slots[slot];
    int ends = 1;

    s->busy = 0;
    p->inflight--;
    p->refusals = 0;
    if (res > 0) {
        s->done += (uint32_t)res;
        s->interrupted = 0;
        s->result = (int32_t)s->done;
        ends = s->done >= s->length;
    } else if (res == 0 || (res == -EINVAL && s->done && s->opcode == IORING_OP_READ)) {
        s->result = (int32_t)s->done; /* the end of the file; with O_DIRECT it may lie between two blocks */
    } else if (res == -EAGAIN && !s->stubborn) {
        s->stubborn = 1;
        ends = 0;
    } else if (interrupted(res) && !p->cancelling) {
        s->interrupted += s->interrupted < MOST_INTERRUPTIONS;
        ends = 0;
    } else {
        s->result = res;
    }
    if (ends)
        p->ended[p->ended_len++] = slot;
    else
        p->again[p->again_len++] = slot;
}

/* Takes all completions out of the queue; answers how many there were. */
static unsigned pool_reap(tu_pool_ring *p)
{
    struct io_uring_cq *cq = &p->ring.cq;
    unsigned head = *cq->khead, tail = load(cq->ktail), mask = *cq->kring_mask, from = head;

    for (; head != tail; head++) {
        const struct io_uring_cqe *cqe = &cq->cqes[head & mask];
        unsigned slot = (unsigned)cqe->user_data;

        /* Anything else is stale, or has come twice (F13). */
        if (slot < p->entries && p->slots[slot].busy && p->slots[slot].tag == cqe->user_data >> 32)
            pool_note(p, slot, cqe->res);
    }
    store(cq->khead, head);
    return head - from;
}

/* One enter, and what it brings. Answers 1 where something has got on, 0 where the time is over, -EINTR where a signal may have
 * come, or what the kernel refuses for good. */
static int pool_step(tu_pool_ring *p, unsigned min, int64_t timeout_ns)
{
    unsigned before = pool_pending(p), got;
    int rc = pool_enter(p, min, timeout_ns);

    got = pool_reap(p);
    if (before != pool_pending(p))
        p->refusals = 0;
    if (rc == -EINTR || (rc >= 0 && !got && min && before == pool_pending(p)))
        return -EINTR;
    if (rc < 0 && rc != -ETIME && !transient(rc))
        return rc;
    if (got || before != pool_pending(p))
        return 1;
    if (transient(rc)) {
        struct timespec ms = {0, 1000000};

        if (p->refusals++ == MOST_REFUSALS)
            return rc;
        nanosleep(&ms, NULL);
    }
    return 0;
}

/* The last `n` entries that have been queued, as far as the kernel has not taken them, are ours again: it reads the queue in enters
 * only, and this is the one thread in it (F3). Answers how many. */
static unsigned pool_take_back(tu_pool_ring *p, unsigned n)
{
    unsigned tail = *p->ring.sq.ktail, mask = *p->ring.sq.kring_mask, taken = 0;

    for (; taken < n && tail != load(p->ring.sq.khead); taken++) {
        unsigned slot = (unsigned)p->ring.sq.sqes[--tail & mask].user_data;

        p->slots[slot].busy = 0;
        p->inflight--;
        p->idle[p->idle_len++] = slot;
    }
    store(p->ring.sq.ktail, tail);
    return taken;
}

/* Drops everything that the kernel does not have. */
static void pool_forget(tu_pool_ring *p)
{
    pool_take_back(p, p->entries);
    while (p->again_len)
        p->idle[p->idle_len++] = p->again[--p->again_len];
    while (p->ended_len)
        p->idle[p->idle_len++] = p->ended[--p->ended_len];
}

static int pool_settle(tu_pool_ring *p, int64_t timeout_ns)
{
    int64_t deadline = now_ns() + timeout_ns, left, slice;

    p->cancelling = 1; /* an interruption is what is asked for now */
    pool_forget(p);
    while (p->inflight) {
        struct io_uring_sync_cancel_reg reg;

        left = deadline - now_ns();
        slice = left < SLICE_NS / 2 ? left : SLICE_NS / 2;
        if (slice < 0)
            slice = 0;
        memset(&reg, 0, sizeof reg);
        reg.fd = -1;
        reg.flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL;
        reg.timeout.tv_nsec = 1000000; /* a device that is at work cannot be stopped; its completion is waited for below */
        io_uring_register((unsigned)p->ring.ring_fd, IORING_REGISTER_SYNC_CANCEL, &reg, 1);
        pool_enter(p, p->inflight, slice);
        pool_reap(p);
        pool_forget(p);
        if (left <= 0)
            break;
    }
    p->cancelling = 0;
    return (int)p->inflight;
}

int tu_pool_settle(tu_pool_ring *p, uint64_t turn, int64_t timeout_ns)
{
    int rc = pool_begin(p, turn);

    if (rc < 0)
        return rc;
    {
        TU_LET_GO;
        rc = pool_settle(p, timeout_ns);
        TU_TAKE_BACK;
    }
    pool_end(p, turn);
    return rc;
}

int tu_pool_close(tu_pool_ring *p, int64_t timeout_ns)
{
    uint64_t turn = atomic_load(&p->turn) / 2;
    int rc = pool_begin(p, turn);

    if (rc < 0)
        return rc == -ESTALE || rc == -EBUSY ? -EBUSY : 0;
    {
        TU_LET_GO;
        rc = pool_settle(p, timeout_ns);
        pool_unmap(p, CLOSED);
        TU_TAKE_BACK;
    }
    pool_end(p, turn);
    return rc;
}

/* ---------------------------------------------------------------- jobs */

static int make_bounce(tu_pool_ring *p, uint64_t piece, unsigned window)
{
    size_t size = piece * window;
    void *memory;

    p->pieces_len = 0;
    while (p->pieces_len < window) {
        p->pieces[p->pieces_len] = p->pieces_len;
        p->pieces_len++;
    }
    if (size <= p->bounce_size)
        return 0;
    if (posix_memalign(&memory, POOL_PAGE, size))
        return -ENOMEM;
    free(p->bounce);
    p->bounce = memory;
    p->bounce_size = size;
    return 0;
}

/* Hands the results of what has ended to the job. */
static void job_collect(tu_pool_ring *p, pool_job *job)
{
    while (p->ended_len) {
        unsigned slot = p->ended[--p->ended_len], item;
        pool_slot *s = &p->slots[slot];

        item = (unsigned)s->id;
        if (job->bounce) {
            if (s->result > 0)
                memcpy((char *)(uintptr_t)job->addresses[item], s->memory, (size_t)s->result);
            p->pieces[p->pieces_len++] = s->piece;
        }
        job->results[item] = s->result;
        job->partial += s->result < 0 || (uint32_t)s->result < s->length;
        job->ended++;
        p->idle[p->idle_len++] = slot;
    }
}

static void job_start(tu_pool_ring *p, pool_job *job)
{
    unsigned item = job->next++, piece = 0;
    char *memory = (char *)(uintptr_t)job->addresses[item];

    if (job->bounce) {
        piece = p->pieces[--p->pieces_len];
        memory = p->bounce + piece * job->bounce;
    }
    pool_start(p, job->opcode, job->fd, job->offsets[item], job->lengths[item], memory, item)->piece = piece;
}

/* What the page cache has is read by calls that cannot wait, which cost less than an entry each. From the first that would have to wait
 * all that is left goes to the ring. Answers as run_job() does, but for 0, which only says that this is over. */
static int read_at_hand(const tu_pool_ring *p, pool_job *job, int64_t until)
{
    while (job->next < job->count) {
        unsigned item = job->next;
        char *memory = (char *)(uintptr_t)job->addresses[item];
        int64_t got = pread_nowait(job->fd, memory, job->lengths[item], (int64_t)job->offsets[item]);

        if (got < 0) {
            job->waits = 1;
            return 0;
        }
        job->results[item] = (int32_t)got;
        job->partial += got < job->lengths[item];
        job->next++;
        job->ended++;
        if (job->next % LOOK_UP)
            continue;
        if (atomic_load_explicit(&p->closing, memory_order_relaxed) == TU_POOL_ABORT)
            return -ESHUTDOWN;
        if (now_ns() > until)
            return -EINTR;
    }
    return 0;
}

/* Goes on with a job until all have ended; -EINTR asks the caller to look at signals and to call again. */
static int run_job(tu_pool_ring *p, pool_job *job)
{
    int64_t until = now_ns() + CHECK_NS;
    int rc = job->waits ? 0 : read_at_hand(p, job, until);

    if (rc < 0)
        return rc;
    for (;;) {
        pool_restart(p);
        job_collect(p, job);
        while (job->next < job->count && p->inflight < job->window)
            job_start(p, job);
        if (job->ended == job->count)
            return 0;
        if (atomic_load_explicit(&p->closing, memory_order_relaxed) == TU_POOL_ABORT)
            return -ESHUTDOWN;
        if (!p->again_len) {
            /* All at once where nothing waits for a place; else one, so that a device never has less to do than it may have. */
            rc = pool_step(p, job->next == job->count ? p->inflight : 1, SLICE_NS);

            if (rc < 0)
                return rc;
        }
        if (p->ended_len + job->ended < job->count && now_ns() > until)
            return -EINTR;
    }
}

static int prepare_job(tu_pool_ring *p, pool_job *job)
{
    if (job->window > p->entries)
        job->window = p->entries;
    if (!job->bounce)
        return 0;
    if (job->window > BOUNCED_MOST / job->bounce)
        job->window = job->bounce < BOUNCED_MOST ? (unsigned)(BOUNCED_MOST / job->bounce) : 1;
    return make_bounce(p, job->bounce, job->window);
}

/* What is in flight is ended; answers what would not end. */
static int finish_job(tu_pool_ring *p, int64_t timeout_ns)
{
    int left = p->inflight || p->again_len || p->ended_len ? pool_settle(p, timeout_ns) : 0;

    if (!left && p->bounce_size > BOUNCED_KEPT) {
        free(p->bounce);
        p->bounce = NULL;
        p->bounce_size = 0;
    }
    return left;
}

/* ---------------------------------------------------------------- a reader */

/* Until `min` have ended, or a slice is over. Answers 0, or why it came back sooner. */
static int await_some(tu_pool_ring *p, unsigned min, int64_t timeout_ns)
{
    int64_t deadline = now_ns() + (timeout_ns < SLICE_NS ? timeout_ns : SLICE_NS), left;

    for (;;) {
        unsigned there;
        int rc;

        pool_restart(p);
        rc = pool_step(p, 0, 0);
        if (rc < 0)
            return rc;
        if (atomic_load_explicit(&p->closing, memory_order_relaxed))
            return -ESHUTDOWN;
        there = p->ended_len + p->inflight + p->again_len;
        if (min > there)
            min = there;
        left = deadline - now_ns();
        if (left <= 0 || (p->ended_len >= min && !p->again_len))
            return 0;
        if (p->again_len)
            continue;
        rc = pool_step(p, min - p->ended_len, left);
        if (rc < 0)
            return rc;
    }
}
