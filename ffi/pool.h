/*
 * Layer 0, rings that threads share: a ring that is lent to one thread after the other, for transfers at positions of files.
 *
 * Read by the C compiler and by cffi, as uring.h is. Functions answer 0 or a count, and a negated errno on failure. Transfers
 * themselves go through pool_calls.c, which holds what they need and sees to signals.
 *
 * Who may call what. A ring is lent for a `turn`, a number that goes up each time it comes back. A call that names a turn has
 * the ring for itself while it lasts: -ESTALE where the ring has been given back since, -EBUSY where another thread is in a call,
 * -ESHUTDOWN once the ring is closing or closed, -EOWNERDEAD in a forked child. None of this needs the interpreter's lock.
 */
typedef struct tu_pool_ring tu_pool_ring;

tu_pool_ring *tu_pool_new(void);
int tu_pool_open(tu_pool_ring *p, unsigned entries);
void tu_pool_free(tu_pool_ring *p);
void tu_pool_forked(tu_pool_ring *p); /* in a forked child: lets go of the descriptor */
unsigned tu_pool_left(tu_pool_ring *p); /* how many transfers are in flight; for whoever lends it, or was in the last call */

/* Gives the ring back: the turn is over. Answers how many transfers are in flight still; above 0 it is not over. */
int tu_pool_release(tu_pool_ring *p, uint64_t turn);

/* Cancels what is in flight, waits for it for timeout_ns at most, and forgets the results. Answers how many have not ended. */
int tu_pool_settle(tu_pool_ring *p, uint64_t turn, int64_t timeout_ns);

/* Any thread. TU_POOL_LAST: no call begins any more. TU_POOL_ABORT: and who is in one cancels what is in flight and comes back. */
#define TU_POOL_LAST 1
#define TU_POOL_ABORT 2
void tu_pool_closing(tu_pool_ring *p, int how);

/* Settles, unmaps and closes it, whatever turn it is, also where some have not ended; -EBUSY where somebody is in a call. */
int tu_pool_close(tu_pool_ring *p, int64_t timeout_ns);
