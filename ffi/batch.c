/*
 * Batches: many reads, of one descriptor or of the beginnings of many, started, continued and reaped here, with one completion
 * for the caller.
 *
 * Part of the shim: uring.c includes this file after its queue and before its waits. It knows the queues and the kernel;
 * it knows nothing of who waits for a batch, nor of Python's objects but through TU_DELIVER: memory comes as addresses,
 * results go to an array.
 *
 * A batch keeps at most `window` entries in flight. Their user_data have the top bit set, which no caller's has, so the
 * reaper hands them to batch_note() and not out: the place in `batches`, a tag that tells batches in one place apart, and
 * the slot of the window (invariant 5: a completion names one entry; a late one of another batch is dropped). What a
 * completion leaves to do, the next read of the batch or the rest of a short one, is queued by batch_fill(), which
 * tu_wait() calls before it enters the kernel. No completion is noted and no entry queued without the owner's call.
 *
 * The books are in entries, like everybody's. That of the first completion is put off until the batch is handed out:
 * a batch is in flight, for tu_idle() and for counters, as long as anybody waits for it.
 *
 * How an item ends: with its length, or fewer bytes where the file ends, or a negated errno. A short read goes on where
 * it stopped. An interruption that nobody asked for (F15, F28; a cancel by a duplicate of the descriptor) is queued
 * again, but for one that says that there was no worker. EAGAIN (F20) is tried once more, in a worker, and then is the item's error. A read with O_DIRECT that is short is
 * at the end of the file, and its rest may be answered with EINVAL, because the offset is no longer aligned.
 *
 * Direct I/O goes to a device, which idles while it has nothing to do, and which may answer a whole window at once. So its
 * next reads come before everything else, and a few at a time: it works on these while the others are prepared.
 * Direct I/O also wants memory that is aligned, which the memory of the results may not be. Then each slot reads into a piece
 * of `bounce`, and is delivered from there; there are two pieces for each read in flight, so that delivering can wait until
 * the device has its next reads.
 *
 * Cancelling, by the user_data of the batch, asks for every entry in flight and starts no other. The batch is over when
 * the last of them has completed: with the number of its items where all have ended (they happened, and are delivered),
 * else with -ECANCELED.
 */

#define MAX_BATCHES (1U << 14) /* the place has 14 bits, the tag 16, the slot 32 */
#define GROUP 4                 /* entries that a device is handed at a time */

struct tu_batch {
    uint64_t user_data;
    uint64_t skip; /* added to each address */
    const uint64_t *offsets, *addresses;
    const uint32_t *lengths;
    const int32_t *fds; /* NULL, or that of each item, whose offset is then 0 */
    char *bounce; /* NULL, or pieces of bounce_size bytes that are read into first */
    size_t bounce_size;
    uint64_t blocks;  /* where they are delivered to */
    int32_t *results; /* bytes so far, then bytes or negated errno */
    int fd, direct, cancelled, elsewhere;
    int booked, first_res; /* the completion whose booking is put off */
    unsigned count, next, ended, partial; /* partial: ended with less than asked for */
    unsigned pardons; /* how many a cancel by another descriptor may have hit */
    unsigned window, places, inflight, idle_len, again_len, full_len;
    uint16_t tag;
    struct {
        unsigned item;
        uint8_t busy, stubborn, again, missed;
    } *slots;
    unsigned *idle;  /* slots that hold no item */
    unsigned *again; /* slots whose item is to be queued again */
    unsigned *full;  /* slots whose item has ended and is to be delivered */
};

static int startable(const tu_batch *b)
{
    return !b->cancelled && b->inflight < b->window && (b->again_len || (b->next < b->count && b->idle_len));
}

static int batch_over(const tu_batch *b)
{
    return !b->inflight && !b->full_len && (b->ended == b->count || b->cancelled);
}

static uint64_t slot_data(const tu_ring *r, unsigned place, unsigned slot)
{
    return BATCH_DATA | (uint64_t)place << 48 | (uint64_t)r->batches[place]->tag << 32 | slot;
}

/* The batch that an entry in flight is of; NULL where none such is in flight. */
static tu_batch *batch_of(const tu_ring *r, uint64_t user_data)
{
    unsigned place = user_data >> 48 & (MAX_BATCHES - 1), slot = (unsigned)user_data;
    tu_batch *b = place < r->batch_places ? r->batches[place] : NULL;

    return b && b->tag == (uint16_t)(user_data >> 32) && slot < b->places && b->slots[slot].busy ? b : NULL;
}

static void batch_free(tu_batch *b)
{
    if (b) {
        free(b->slots);
        free(b->idle);
        free(b->again);
        free(b->full);
        free(b);
    }
}

static void batch_free_all(tu_ring *r)
{
    for (unsigned place = 0; place < r->batch_places; place++)
        batch_free(r->batches[place]);
    free(r->batches);
    r->batches = NULL;
    r->batch_places = r->batch_live = r->batch_over = r->batch_late = 0;
}

/* Where the rest of a slot's item goes. */
static char *target(const tu_batch *b, unsigned slot)
{
    unsigned item = b->slots[slot].item;
    char *start = b->bounce ? b->bounce + slot * b->bounce_size : (char *)(uintptr_t)(b->addresses[item] + b->skip);

    return start + (unsigned)b->results[item];
}

/* The next entry of a batch, in a free place of the submission queue. */
static void batch_queue(tu_ring *r, unsigned place, struct io_uring_sqe *sqe)
{
    tu_batch *b = r->batches[place];
    unsigned slot = b->again_len ? b->again[--b->again_len] : b->idle[--b->idle_len], item, done;
    uint64_t offset;

    if (!b->slots[slot].again) {
        b->slots[slot].item = b->next++;
        b->slots[slot].stubborn = 0;
    }
    b->slots[slot].again = 0;
    b->slots[slot].busy = 1;
    item = b->slots[slot].item;
    done = (unsigned)b->results[item];
    offset = b->fds ? done : b->offsets[item] + done;
    io_uring_prep_rw(IORING_OP_READ, sqe, b->fds ? b->fds[item] : b->fd, target(b, slot), b->lengths[item] - done, offset);
    sqe->flags = b->slots[slot].stubborn || b->elsewhere ? IOSQE_ASYNC : 0;
    sqe->user_data = slot_data(r, place, slot);
    b->inflight++;
    count(&r->stats.submitted, 1);
    count(&r->stats.inflight, 1);
    store(r->ring.sq.ktail, *r->ring.sq.ktail + 1);
}

/* Queues up to `most` entries, as far as there is room. Answers whether something is left that only lacked room. */
static int batch_fill(tu_ring *r, unsigned most)
{
    unsigned entries, room, mask;
    int starved = 0;

    if (!r->batch_live)
        return 0;
    entries = *r->ring.sq.kring_entries;
    mask = *r->ring.sq.kring_mask;
    room = entries - pending(r);
    if (room > most)
        room = most;
    r->batch_rotation++; /* another batch is the first each time, so that none starves */
    for (unsigned i = 0; i < r->batch_places; i++) {
        unsigned place = (r->batch_rotation + i) % r->batch_places;
        tu_batch *b = r->batches[place];

        if (!b)
            continue;
        for (; room && startable(b); room--) {
            struct io_uring_sqe *sqe = &r->ring.sq.sqes[*r->ring.sq.ktail & mask];

            memset(sqe, 0, sizeof *sqe);
            batch_queue(r, place, sqe);
        }
        starved |= startable(b);
    }
    return starved;
}

/* As INTERRUPTED in trio_uring/_loop/operation.py. */
static int interrupted(int res)
{
    return res == -ECANCELED || res == -EINTR || res == -512 || res == -513 || res == -514 || res == -516;
}

static void item_ends(tu_batch *b, unsigned slot, int32_t result)
{
    unsigned item = b->slots[slot].item;

    b->results[item] = result;
    b->ended++;
    b->partial += result < 0 || (unsigned)result < b->lengths[item];
    if (b->bounce && result >= 0)
        b->full[b->full_len++] = slot;
    else
        b->idle[b->idle_len++] = slot;
}

/* Hands on the data of all slots that are full. */
static void batch_deliver(tu_ring *r)
{
    for (unsigned place = 0; place < r->batch_places; place++) {
        tu_batch *b = r->batches[place];

        if (!b || !b->full_len)
            continue;
        while (b->full_len) {
            unsigned slot = b->full[--b->full_len], item = b->slots[slot].item;

            if (TU_DELIVER(b->blocks, item, b->bounce + slot * b->bounce_size, b->results[item]) < 0) {
                b->partial += (unsigned)b->results[item] == b->lengths[item];
                b->results[item] = -ENOMEM;
            }
            b->idle[b->idle_len++] = slot;
        }
        r->batch_over += batch_over(b);
    }
}

/* Queues and hands over what there is room for, a few entries at a time. Answers as batch_fill(). */
static int batch_push(tu_ring *r)
{
    int starved;

    if (r->polled) {
        starved = batch_fill(r, UINT_MAX);
        poller_wake(r);
        return starved;
    }
    do {
        starved = batch_fill(r, GROUP);
        if (pending(r))
            enter(r, pending(r), 0, 0, -1); /* what is refused stays for the enter that follows */
    } while (starved && !pending(r));
    return starved;
}

/* Gets all batches on, those of devices first. Answers as batch_fill(). */
static int batch_advance(tu_ring *r)
{
    int starved;

    if (!r->batch_late)
        return batch_fill(r, UINT_MAX);
    r->batch_late = 0;
    starved = batch_push(r);
    batch_deliver(r);
    return starved;
}

/* Books the completion of an entry of a batch, and decides what becomes of its item. */
static void batch_note(tu_ring *r, uint64_t user_data, int res)
{
    unsigned slot = (unsigned)user_data, done, length;
    tu_batch *b = batch_of(r, user_data);
    int was_over, ends = 1;

    if (!b)
        return; /* stale */
    r->missed -= b->slots[slot].missed;
    b->slots[slot].missed = 0;
    r->noted++;
    r->batch_late += (unsigned)b->direct;
    if (b->booked) {
        account(r, res, 0);
    } else {
        b->booked = 1;
        b->first_res = res;
    }
    was_over = batch_over(b);
    b->slots[slot].busy = 0;
    b->inflight--;
    done = (unsigned)b->results[b->slots[slot].item];
    length = b->lengths[b->slots[slot].item];
    if (res > 0 && b->fds && done + (unsigned)res == length - 1) {
        item_ends(b, slot, (int32_t)length - 1); /* a whole file, that has the size that was expected */
    } else if (res > 0 && done + (unsigned)res < length) {
        b->results[b->slots[slot].item] = (int32_t)(done + (unsigned)res);
        ends = 0;
    } else if (res > 0) {
        item_ends(b, slot, (int32_t)length);
    } else if (res == 0 || (res == -EINVAL && done)) {
        item_ends(b, slot, (int32_t)done);
    } else if (res == -EAGAIN && !b->slots[slot].stubborn) {
        b->slots[slot].stubborn = 1;
        ends = 0;
    } else if (interrupted(res)) {
        /* Or the kernel could make no worker for it (F40): for the caller to do, in a thread. */
        ends = res == -ECANCELED && !b->cancelled && !b->pardons;
        b->pardons -= res == -ECANCELED && b->pardons;
        if (ends)
            item_ends(b, slot, res);
    } else {
        item_ends(b, slot, res);
    }
    if (!ends) {
        b->slots[slot].again = 1;
        b->again[b->again_len++] = slot;
    }
    r->batch_over += batch_over(b) && !was_over;
}

/* Writes the completions of batches that are over. */
static unsigned batch_hand_out(tu_ring *r, int64_t *out, unsigned max)
{
    unsigned n = 0;

    for (unsigned place = 0; r->batch_over && n < max && place < r->batch_places; place++) {
        tu_batch *b = r->batches[place];

        if (!b || !batch_over(b))
            continue;
        account(r, b->first_res, 0);
        out[3 * n] = (int64_t)b->user_data;
        out[3 * n + 1] = b->ended == b->count ? (int64_t)b->count : -ECANCELED;
        out[3 * n + 2] = b->partial;
        n++;
        r->batches[place] = NULL;
        r->batch_live--;
        r->batch_over--;
        batch_free(b);
    }
    return n;
}

static int new_place(tu_ring *r)
{
    unsigned places = r->batch_places ? 2 * r->batch_places : 8;
    tu_batch **grown;

    if (r->batch_live < r->batch_places)
        for (unsigned place = 0; place < r->batch_places; place++)
            if (!r->batches[place])
                return (int)place;
    if (places > MAX_BATCHES)
        return -EBUSY;
    grown = realloc(r->batches, places * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    memset(grown + r->batch_places, 0, (places - r->batch_places) * sizeof *grown);
    r->batches = grown;
    r->batch_places = places;
    return (int)r->batch_live;
}

static int batch_start(tu_ring *r, int fd, const int32_t *fds, const uint64_t *offsets, const uint32_t *lengths,
                       const uint64_t *addresses, uint64_t skip, int32_t *results, unsigned count, unsigned window, char *bounce,
                       uint64_t bounce_size, uint64_t blocks, uint64_t user_data)
{
    struct io_uring_sqe *sqe;
    tu_batch *b;
    int rc, place;

    if (!count || !window)
        return -EINVAL;
    rc = next_sqe(r, &sqe); /* the first entry has to be queued, so that something wakes the owner */
    if (rc < 0)
        return rc;
    place = new_place(r);
    if (place < 0)
        return place;
    b = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    b->window = window;
    if (b->window > count)
        b->window = count;
    if (b->window > *r->ring.cq.kring_entries)
        b->window = *r->ring.cq.kring_entries;
    b->places = bounce ? 2 * b->window : b->window;
    b->slots = calloc(b->places, sizeof *b->slots);
    b->idle = calloc(b->places, sizeof *b->idle);
    b->again = calloc(b->places, sizeof *b->again);
    b->full = calloc(b->places, sizeof *b->full);
    if (!b->slots || !b->idle || !b->again || !b->full) {
        batch_free(b);
        return -ENOMEM;
    }
    b->user_data = user_data;
    b->offsets = offsets;
    b->lengths = lengths;
    b->addresses = addresses;
    b->skip = skip;
    b->bounce = bounce;
    b->bounce_size = bounce_size;
    b->blocks = blocks;
    b->results = results;
    b->fd = fd;
    b->fds = fds;
    if (!fds) {
        b->direct = bounce || (fcntl(fd, F_GETFL) & O_DIRECT);
        rc = tu_file(fd);
        b->elsewhere = rc > 0 && rc & TU_ELSEWHERE;
    }
    b->count = count;
    b->tag = r->batch_tag++;
    while (b->idle_len < b->places) {
        b->idle[b->idle_len] = b->places - 1 - b->idle_len;
        b->idle_len++;
    }
    memset(results, 0, count * sizeof *results);
    r->batches[place] = b;
    r->batch_live++;
    batch_queue(r, (unsigned)place, sqe);
    if (b->direct)
        batch_push(r);
    else
        batch_fill(r, UINT_MAX);
    /* As publish() does for one entry. */
    if (r->away && flush(r, 0, 0) < 0)
        tu_wake(r);
    return 0;
}

int tu_batch_read(tu_ring *r, int fd, const uint64_t *offsets, const uint32_t *lengths, const uint64_t *addresses,
                  uint64_t skip, int32_t *results, unsigned count, unsigned window, char *bounce, uint64_t bounce_size,
                  uint64_t blocks, uint64_t user_data)
{
    return batch_start(r, fd, NULL, offsets, lengths, addresses, skip, results, count, window, bounce, bounce_size, blocks,
                       user_data);
}

int tu_batch_read_files(tu_ring *r, const int32_t *fds, const uint32_t *lengths, const uint64_t *addresses, uint64_t skip,
                        int32_t *results, unsigned count, unsigned window, uint64_t user_data)
{
    return batch_start(r, -1, fds, NULL, lengths, addresses, skip, results, count, window, NULL, 0, 0, user_data);
}

static void batch_abort(tu_ring *r, tu_batch *b)
{
    int was_over = batch_over(b);

    b->cancelled = 1;
    r->batch_over += batch_over(b) && !was_over;
    if ((r->batch_over || r->batch_late) && r->away)
        tu_wake(r); /* there will be no completion to end a sleep in another thread */
}

/* The place of the batch that its caller knows by this user_data; as many as there are places, where there is none. */
static unsigned batch_with(const tu_ring *r, uint64_t user_data)
{
    unsigned place = 0;

    while (place < r->batch_places && (!r->batches[place] || r->batches[place]->user_data != user_data))
        place++;
    return place;
}

/* 1 where user_data names a batch, which has then been asked to end; 0 where not. */
static int batch_cancel(tu_ring *r, uint64_t user_data)
{
    unsigned place;
    tu_batch *b;

    if (!tu_is_owner(r))
        return 0; /* and the caller is refused */
    place = batch_with(r, user_data);
    if (place == r->batch_places)
        return 0;
    b = r->batches[place];
    batch_abort(r, b);
    for (unsigned slot = 0; slot < b->places; slot++) {
        int rc = b->slots[slot].busy ? queue_cancel_one(r, slot_data(r, place, slot)) : 0;

        if (rc < 0)
            return rc;
    }
    return 1;
}

/* What misses() does, for an entry of a batch. */
static void batch_misses(tu_ring *r, uint64_t user_data)
{
    unsigned slot = (unsigned)user_data;
    tu_batch *b = batch_of(r, user_data);

    if (b && !b->slots[slot].missed) {
        b->slots[slot].missed = 1;
        r->missed++;
    }
}

/* What recancel() does, for the entries of batches. */
static void batch_recancel(tu_ring *r)
{
    for (unsigned place = 0; place < r->batch_places; place++) {
        tu_batch *b = r->batches[place];

        for (unsigned slot = 0; b && slot < b->places; slot++)
            if (b->slots[slot].missed && queue_cancel_one(r, slot_data(r, place, slot)) >= 0) {
                r->missed -= b->slots[slot].missed; /* 0, where making room has brought its completion */
                b->slots[slot].missed = 0;
            }
    }
}

/* Before a cancel by descriptor, or with fd < 0 of everything: none of these starts another entry. */
static void batch_cancel_fd(tu_ring *r, int fd)
{
    if (!tu_is_owner(r))
        return;
    for (unsigned place = 0; place < r->batch_places; place++) {
        tu_batch *b = r->batches[place];

        if (b && (fd < 0 || b->fd == fd))
            batch_abort(r, b);
        else if (b)
            b->pardons += b->inflight;
    }
}
