/*
 * The shim from several threads at once, to be run under ThreadSanitizer: what uring.h allows to other threads than the owner, with
 * nothing around it that an interpreter's lock would add. Rings are made, used and closed while
 *
 * - wakers end waits from outside (tu_wake), some of them as the ring closes under them;
 * - a sleeper waits in the owner's place when that is idle (guest mode: tu_wait);
 * - a watcher reads the counters, as `trio_uring.snapshot` does.
 *
 * Every entry completes once; every wait that has nothing to wait for is ended by a waker. threads SECONDS; 0 if all held.
 */
#define TU_DELIVER(list, item, data, size) (-1) /* no batches here */
#include "uring.c"

#include <pthread.h>
#include <stdio.h>

enum { WAKERS = 3, BATCH = 8 };

static struct {
    tu_ring *ring;
    atomic_int stop, idle; /* idle: the owner has given the wait to the sleeper */
    atomic_ulong wakes, sleeps, looks;
} shared;

static void *waker(void *unused)
{
    (void)unused;
    while (!atomic_load(&shared.stop)) {
        if (tu_wake(shared.ring) == 0)
            atomic_fetch_add(&shared.wakes, 1);
        sched_yield();
    }
    /* The ring is closing, or closed: turned away, and no descriptor of somebody else's is written to. */
    for (int i = 0; i < 100; i++)
        tu_wake(shared.ring);
    return NULL;
}

static void *sleeper(void *unused)
{
    int64_t none[3];

    (void)unused;
    while (!atomic_load(&shared.stop)) {
        if (atomic_load(&shared.idle)) {
            tu_wait(shared.ring, 1000000, none, 1);
            atomic_fetch_add(&shared.sleeps, 1);
            atomic_store(&shared.idle, 0);
        }
        sched_yield();
    }
    return NULL;
}

static void *watcher(void *unused)
{
    volatile uint64_t seen = 0;

    (void)unused;
    while (!atomic_load(&shared.stop)) {
        tu_counters counters;

        tu_stats(shared.ring, &counters);
        seen += counters.submitted - counters.completed;
        atomic_fetch_add(&shared.looks, 1);
        sched_yield();
    }
    return NULL;
}

#define CHECK(true_thing)                                                                    \
    do {                                                                                     \
        if (!(true_thing)) {                                                                 \
            fprintf(stderr, "threads.c:%d: not so: %s\n", __LINE__, #true_thing);            \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

static void one_ring(unsigned long *completed)
{
    pthread_t threads[WAKERS + 2];
    int64_t out[3 * 64];
    uint64_t next = TU_FIRST_USER_DATA;
    unsigned inflight = 0;
    int step, rc;

    CHECK((rc = tu_open(shared.ring, 8, 64, -1, 0, -1, &step)) == 0);
    atomic_store(&shared.stop, 0);
    for (int i = 0; i < WAKERS + 2; i++)
        CHECK(pthread_create(&threads[i], NULL, i < WAKERS ? waker : i == WAKERS ? sleeper : watcher, NULL) == 0);
    for (int round = 0; round < 300; round++) {
        for (int i = 0; i < BATCH; i++, inflight++)
            CHECK(tu_queue(shared.ring, IORING_OP_NOP, -1, NULL, 0, 0, 0, next++, 0, 0, 0, 0) == 0);
        while (inflight) {
            CHECK((rc = tu_wait(shared.ring, 5000000000, out, 64)) >= 0);
            for (int i = 0; i < rc; i++, inflight--, ++*completed)
                CHECK(out[3 * i] >= TU_FIRST_USER_DATA && out[3 * i + 1] == 0);
        }
        /* Idle: with nothing left to reap the next wait is the sleeper's. */
        if (round % 4 == 0 && tu_wait(shared.ring, 0, out, 64) == -ETIME) {
            atomic_store(&shared.idle, 1);
            /* Meanwhile callbacks of the host queue and cancel: a poll of a descriptor that is never ready, and entries. */
            CHECK(tu_poll(shared.ring, tu_fd(shared.ring), POLLERR, next) == 0);
            CHECK(tu_cancel(shared.ring, next++) == 0);
            for (inflight++; inflight < BATCH; inflight++)
                CHECK(tu_queue(shared.ring, IORING_OP_NOP, -1, NULL, 0, 0, 0, next++, 0, 0, 0, 0) == 0);
            while (atomic_load(&shared.idle))
                sched_yield();
            tu_owner_back(shared.ring);
            while (inflight) {
                CHECK((rc = tu_wait(shared.ring, 5000000000, out, 64)) >= 0);
                inflight -= (unsigned)rc;
                *completed += (unsigned)rc;
            }
        }
        /* Nothing in flight: only a waker ends this. */
        while ((rc = tu_wait(shared.ring, -1, out, 64)) != 0)
            CHECK(rc == 0);
    }
    atomic_store(&shared.stop, 1);
    tu_cancel_all(shared.ring);
    tu_close(shared.ring);
    for (int i = 0; i < WAKERS + 2; i++)
        pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
    int64_t until = now_ns() + (argc > 1 ? atoi(argv[1]) : 5) * 1000000000LL;
    unsigned long completed = 0, rings = 0;

    for (; now_ns() < until || !rings; rings++) {
        CHECK((shared.ring = tu_new()) != NULL);
        one_ring(&completed);
        tu_free(shared.ring);
    }
    printf("%lu rings, %lu completions, %lu wakes, %lu sleeps, %lu looks\n", rings, completed, atomic_load(&shared.wakes),
           atomic_load(&shared.sleeps), atomic_load(&shared.looks));
    CHECK(atomic_load(&shared.wakes) && atomic_load(&shared.sleeps) && atomic_load(&shared.looks));
    return 0;
}
