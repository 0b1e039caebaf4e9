/*
 * The shim's half of a pool of rings, without Python: threads that lend rings to each other, read lists of blocks, and call on purpose
 * with turns that are over and into calls of others. For ThreadSanitizer, which sees whether the turn alone keeps them apart.
 *
 *   ./stress FILE THREADS RINGS LISTS     FILE: blocks of 512 bytes that say their number in every eight bytes
 *
 * Prints how many lists have been read, and how many calls have been refused. Ends with 1 where a block is another's.
 */
#define TU_DELIVER(list, item, data, size) 0 /* batches are not used here */
#include "uring.c"
#include "pool.c"
#include <pthread.h>
#include <stdio.h>

#define BLOCK 512
#define MOST 32

static int fd, rings, lists;
static unsigned blocks;
static struct {
    tu_pool_ring *p;
    uint64_t turn;
    int lent;
} pool[MOST];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t given_back = PTHREAD_COND_INITIALIZER;
static atomic_long done, refused;

static int acquire(uint64_t *turn)
{
    pthread_mutex_lock(&lock);
    for (;;) {
        for (int i = 0; i < rings; i++)
            if (!pool[i].lent) {
                pool[i].lent = 1;
                *turn = pool[i].turn;
                pthread_mutex_unlock(&lock);
                return i;
            }
        pthread_cond_wait(&given_back, &lock);
    }
}

static void give_back(int i, uint64_t turn)
{
    int left;

    while ((left = tu_pool_release(pool[i].p, turn)) == -EBUSY)
        sched_yield(); /* one that should not be here */
    if (left != 0)
        abort();
    pthread_mutex_lock(&lock);
    pool[i].turn = turn + 1;
    pool[i].lent = 0;
    pthread_cond_signal(&given_back);
    pthread_mutex_unlock(&lock);
}

static int read_list(tu_pool_ring *p, uint64_t turn, pool_job *job)
{
    int rc;

    while ((rc = pool_begin_transfer(p, turn)) == -EBUSY)
        sched_yield();
    if (rc < 0)
        return rc;
    rc = prepare_job(p, job);
    while (rc == 0 && job->ended < job->count)
        if ((rc = run_job(p, job)) == -EINTR)
            rc = 0;
    if (finish_job(p, 1000000000))
        abort();
    pool_end(p, turn);
    return rc;
}

static void *work(void *number)
{
    unsigned seed = (unsigned)(uintptr_t)number;
    static _Thread_local char memory[MOST][BLOCK];
    uint64_t offsets[MOST], addresses[MOST];
    uint32_t lengths[MOST];
    int32_t results[MOST];

    for (int n = 0; n < lists; n++) {
        pool_job job = {offsets, addresses, lengths, results, MOST, 8, n % 3 ? 0 : 4096, IORING_OP_READ, fd, n % 4 != 1, 0, 0, 0};
        uint64_t turn;
        int i;

        for (int k = 0; k < MOST; k++) {
            offsets[k] = (uint64_t)(rand_r(&seed) % blocks) * BLOCK;
            addresses[k] = (uint64_t)(uintptr_t)memory[k];
            lengths[k] = BLOCK;
        }
        i = acquire(&turn);
        if (read_list(pool[i].p, turn, &job) != 0)
            abort();
        give_back(i, turn);
        for (int k = 0; k < MOST; k++)
            for (int at = 0; at < BLOCK; at += 8) {
                uint64_t said;

                memcpy(&said, memory[k] + at, sizeof said);
                if (results[k] != BLOCK || said != offsets[k] / BLOCK)
                    exit(1);
            }
        atomic_fetch_add(&done, 1);
        /* Misuse: the turn is over, and somebody else may have the ring. */
        job.next = job.ended = 0;
        i = pool_begin_transfer(pool[i].p, turn);
        if (i != -ESTALE && i != -EBUSY)
            abort();
        atomic_fetch_add(&refused, 1);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[64];
    struct stat st;
    int count;

    if (argc != 5 || (fd = open(argv[1], O_RDONLY)) < 0 || fstat(fd, &st) < 0)
        return 2;
    count = atoi(argv[2]);
    rings = atoi(argv[3]);
    lists = atoi(argv[4]);
    blocks = (unsigned)(st.st_size / BLOCK);
    for (int i = 0; i < rings; i++)
        if (!(pool[i].p = tu_pool_new()) || tu_pool_open(pool[i].p, 16) < 0)
            return 2;
    for (int i = 0; i < count; i++)
        pthread_create(threads + i, NULL, work, (void *)(uintptr_t)(i + 1));
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < rings; i++) {
        if (tu_pool_close(pool[i].p, 1000000000) != 0)
            return 3;
        tu_pool_free(pool[i].p);
    }
    printf("%ld %ld\n", atomic_load(&done), atomic_load(&refused));
    return 0;
}
