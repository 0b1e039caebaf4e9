/*
 * A ring whose submissions a kernel thread takes, on a processor of its own (IORING_SETUP_SQPOLL): the rings of a group.
 *
 * Part of the shim: uring.c includes this file after its queue. The poller reads the submission queue as soon as the tail moves
 * and posts completions without being asked, so that the owner enters the kernel only to sleep, to wake a poller that has gone to
 * sleep, and where the completion queue has overflowed. What that changes:
 *
 * - A tail that has moved is a promise, not a fact. Whether the poller looks is said by IORING_SQ_NEED_WAKEUP, which is read after a
 *   full barrier: the poller sets it, and looks at the tail once more, before it sleeps. While the flag is set, and the queue
 *   empty, the poller has done all that it was asked to and sleeps.
 * - Nothing is over when a call returns. settle() is what makes certain: a poll that waits for nothing is queued, and cancelled,
 *   behind everything else. The end of a cancelled poll goes through the poller's own list of work, in turn (on kernels before
 *   6.5, together with all that is in the list), and its completion therefore comes when every entry before it has been
 *   submitted and every consequence that it had at once has been dealt with.
 * - The poller lets go of a file after it has posted the completion (io_free_batch_list). So that close(2) is the end of a file,
 *   released() makes it take one more entry, or finds that it has: it does that with nothing else in hand.
 * - All of it is done with the credentials, and on the processor, of the poller, whoever the owner is by then.
 */

#define LOOK_NS 20000  /* the poller answers within a few microseconds, unless something else has its processor */

/* Whether entries lie there and the poller sleeps. */
static int poller_sleeps(tu_ring *r)
{
    if (!r->polled || !pending(r))
        return 0;
    atomic_thread_fence(memory_order_seq_cst);
    return !!(kernel_flags(r) & IORING_SQ_NEED_WAKEUP);
}

static int poller_wake(tu_ring *r)
{
    int rc = poller_sleeps(r) ? enter(r, 0, 0, 0, -1) : 0;

    return rc < 0 ? rc : 0;
}

/* Waits until the poller has taken an entry of a full queue, for about so many rounds of ROUND_NS. Other threads run meanwhile. */
static int poller_makes_room(tu_ring *r, unsigned rounds)
{
    unsigned entries = *r->ring.sq.kring_entries;
    int64_t began = now_ns();
    int rc = poller_wake(r);

    while (pending(r) == entries && now_ns() - began < LOOK_NS)
        RELAX();
    while (pending(r) == entries) {
        if (rc < 0 && !transient(rc))
            return rc;
        if (now_ns() - began > (int64_t)rounds * ROUND_NS)
            return -EBUSY;
        rc = enter(r, 0, 0, IORING_ENTER_SQ_WAIT, -1);
    }
    return 0;
}

/* Waits for the completions of all marks. What comes meanwhile goes to the stash. */
static int await_marks(tu_ring *r, unsigned rounds)
{
    int64_t began = now_ns();
    int rc = poller_wake(r);

    while (r->marks) {
        if (load(r->ring.cq.ktail) != *r->ring.cq.khead) {
            if (stash(r) == 0)
                return -ENOMEM;
        } else if (now_ns() - began < LOOK_NS) {
            RELAX();
        } else {
            if (rc < 0 && rc != -ETIME && !transient(rc))
                return rc;
            if (now_ns() - began > (int64_t)rounds * ROUND_NS)
                return -EBUSY;
            rc = enter(r, 0, 1, IORING_ENTER_GETEVENTS, ROUND_NS);
        }
    }
    return 0;
}

static int queue_mark(tu_ring *r, unsigned opcode)
{
    struct io_uring_sqe *sqe;
    int rc = next_sqe(r, &sqe);

    if (rc < 0)
        return rc;
    sqe->opcode = (uint8_t)opcode;
    sqe->fd = r->event_fd; /* of a poll: no event is asked for, and an eventfd has no errors */
    sqe->user_data = TU_MARK_DATA;
    r->marks++;
    return publish(r, sqe);
}

static int settle(tu_ring *r, unsigned rounds)
{
    struct io_uring_sqe *sqe;
    int rc;

    for (;;) {
        unsigned given_up = r->marks; /* because the poller was not back for so long: its completion tells nothing of today */

        if (!given_up && (rc = queue_mark(r, IORING_OP_POLL_ADD)) < 0)
            return rc;
        if ((rc = next_sqe(r, &sqe)) < 0)
            return rc;
        sqe->opcode = IORING_OP_ASYNC_CANCEL;
        sqe->fd = -1;
        sqe->addr = TU_MARK_DATA;
        sqe->user_data = TU_IGNORED_DATA;
        sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
        publish(r, sqe);
        rc = await_marks(r, rounds);
        if (rc < 0 || !given_up)
            return rc;
    }
}

/* Whether the poller has let go of the files of all completions that have been reaped. */
static int has_released(tu_ring *r)
{
    /* It says that it has taken entries when it has done with the completions of these. */
    if (load(r->ring.sq.khead) != r->reaped_at)
        return 1;
    return !pending(r) && (kernel_flags(r) & IORING_SQ_NEED_WAKEUP);
}

static int released(tu_ring *r)
{
    int rc;

    if (has_released(r))
        return 0;
    rc = queue_mark(r, IORING_OP_NOP);
    return rc < 0 ? rc : await_marks(r, PATIENCE);
}

int tu_release(tu_ring *r)
{
    if (r->state != OPEN)
        return refuse(r);
    if (!tu_is_owner(r))
        return -EEXIST;
    return r->polled ? released(r) : 0;
}

int tu_workers(tu_ring *r, unsigned cpu, unsigned bounded)
{
    unsigned counts[2] = {bounded, 0};
    unsigned long mask[8192 / (8 * sizeof(long))] = {0};
    int rc;

    if (r->state != OPEN)
        return refuse(r);
    if (!r->polled || cpu >= 8 * sizeof mask)
        return -EINVAL;
    mask[cpu / (8 * sizeof *mask)] = 1UL << cpu % (8 * sizeof *mask);
    rc = io_uring_register(r->ring.ring_fd, IORING_REGISTER_IOWQ_AFF, mask, sizeof mask);
    if (rc < 0 || !bounded)
        return rc < 0 ? rc : 0;
    rc = io_uring_register(r->ring.ring_fd, IORING_REGISTER_IOWQ_MAX_WORKERS, counts, 2);
    return rc < 0 ? rc : 0;
}
