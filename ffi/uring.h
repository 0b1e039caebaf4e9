/*
 * Layer 0, the shim: one io_uring instance with a single owner thread.
 *
 * This header is read twice: by the C compiler, and by cffi (ffi/build.py), so it keeps to plain declarations.
 * Every function returns 0 or a count on success and a negated errno on failure, as the kernel does.
 *
 * Threads: everything belongs to the thread that called tu_open(), but for tu_wake() and tu_stats() (any thread, any signal
 * handler) and tu_wait(), which another thread may call to sleep until the owner has something to do.
 */

/* user_data values below TU_FIRST_USER_DATA, and from 1 << 62 on, are the shim's own; their completions are never handed out. */
#define TU_WAKE_DATA 0
#define TU_IGNORED_DATA 1
/* Handed out, with the user_data that it came with as its res: a completion of an entry that is not in flight (any more). */
#define TU_STRAY_DATA 2
#define TU_FIRST_USER_DATA 16

typedef struct {
    uint64_t submitted;    /* entries taken by the kernel, the shim's own left out */
    uint64_t completed;    /* completions reaped that were the last of their entry */
    uint64_t cancelled;    /* of these, with the result -ECANCELED */
    uint64_t enters;       /* io_uring_enter(2) calls */
    uint64_t sq_flushes;   /* submissions forced because the submission queue was full */
    uint64_t cq_overflows; /* times IORING_SQ_CQ_OVERFLOW was seen */
    uint64_t inflight;     /* queued or submitted, last completion not yet reaped */
} tu_counters;

typedef struct tu_ring tu_ring;

/* Life. tu_new() allocates without any system call; tu_open() makes the ring (on failure *step names the failed
 * system call: 1 setup, 2 eventfd, 3 enter, 4 register; with -EACCES also TU_STEP_OPERATION plus the opcode of an entry that a
 * restriction forbids and no run can do without). tu_close() unmaps and closes; it does not wait, see Ring.close(). */
#define TU_STEP_OPERATION 256
tu_ring *tu_new(void);
/* With cpu >= 0 a kernel thread on that processor takes the submissions, until it has had none for idle_ms milliseconds (0: 1000):
 * a new thread, or that of the ring with the descriptor attach_to, whose processor it then is. */
int tu_open(tu_ring *r, unsigned sq_entries, unsigned cq_entries, int cpu, unsigned idle_ms, int attach_to, int *step);
void tu_close(tu_ring *r);
void tu_free(tu_ring *r);
void tu_forked(tu_ring *r); /* in a forked child: lets go of the descriptors, every later call answers -EOWNERDEAD */

int tu_fd(tu_ring *r);
unsigned tu_sq_entries(tu_ring *r);
unsigned tu_cq_entries(tu_ring *r);
void tu_stats(tu_ring *r, tu_counters *out); /* any thread; each counter whole, all of them of no one moment */
int tu_is_owner(tu_ring *r);
/* The most workers for bounded work, which is that of files, of the calling thread; answers what it was before. 0 only asks. */
int tu_max_workers(tu_ring *r, unsigned bounded);

/* Queueing. A full submission queue is flushed, in order. While the owner is away from the ring (set by a
 * tu_wait() that found nothing, cleared by tu_owner_back()) entries are submitted at once. */
int tu_queue(tu_ring *r, unsigned opcode, int fd, void *addr, unsigned len, uint64_t off, unsigned op_flags,
             uint64_t user_data, unsigned flags, unsigned ioprio, unsigned buf_index, int file_index);
int tu_poll(tu_ring *r, int fd, unsigned events, uint64_t user_data);
/* The two that a busy server makes most. They take the ring as a number, which the binding converts in a fraction of the time. */
int tu_recv(uint64_t ring, int fd, unsigned len, uint64_t user_data); /* into a provided buffer */
int tu_send(uint64_t ring, int fd, const char *data, unsigned len, unsigned msg_flags, uint64_t user_data);
/* tu_read() is tu_rw() after a tu_file() that answered 0; else it answers 1 and queues nothing. */
int tu_read(uint64_t ring, int fd, const char *memory, unsigned len, uint64_t off, uint64_t user_data);
int tu_rw(uint64_t ring, unsigned opcode, int fd, const char *memory, unsigned len, uint64_t off, unsigned flags,
          uint64_t user_data);
/* Whether such an entry or batch is queued or in flight, its last completion not handed out yet. 1 of a ring that has gone. */
int tu_in_flight(tu_ring *r, uint64_t user_data);
int tu_cancel(tu_ring *r, uint64_t user_data);
void tu_try_submit(uint64_t ring); /* hands over what is queued, if the kernel takes it now; the rest goes with the next wait */
void tu_owner_back(tu_ring *r);
unsigned tu_queued(tu_ring *r);

/* Entering. tu_wait() submits everything and waits for timeout_ns (negative: for ever); it writes up to `max`
 * completions to out as user_data, res, flags and answers their number; 0 means woken with nothing to hand out,
 * -ETIME that the timeout expired. From a thread that is not the owner it only sleeps until the ring has work, and the
 * first such call answers 0 at once: the owner's next tu_wait() then makes what sleepers wait for. */
int tu_submit(tu_ring *r);
int tu_wait(tu_ring *r, int64_t timeout_ns, int64_t *out, unsigned max);
int tu_peek(tu_ring *r, int64_t *out, unsigned max); /* tu_wait() with 0, which with a poller does not wait for that either */
int tu_wake(tu_ring *r);
void tu_spin(tu_ring *r, int64_t ns); /* how long tu_wait() may look for completions before it sleeps; at first 0 */

/* Ends requests on fd, queued ones included, and lets the kernel drop its references to the file: those of the user_data in
 * `entries`, or where there are none, every one on the file; 1 where it was by the file in the end. */
int tu_cancel_fd(tu_ring *r, int fd, const uint64_t *entries, unsigned count);
int tu_cancel_all(tu_ring *r);
int tu_workers(tu_ring *r, unsigned cpu, unsigned bounded); /* of a ring with a poller: pins its workers; 0: as many as before */
int tu_release(tu_ring *r); /* no file of a completion that has been handed out is held any more; only a poller would */
int tu_cancel_sync(tu_ring *r, uint64_t user_data, int fd, unsigned flags, int64_t timeout_ns);
int tu_idle(tu_ring *r); /* nothing of the owner's nor of the shim's own is in flight */

/* Batches of reads (batch.c): `count` reads of fd, each of lengths[i] bytes (at most INT_MAX) at offsets[i] into
 * addresses[i] + skip, at most `window` of them in flight, and one completion of user_data when all are over. Its res is
 * `count`, or -ECANCELED where tu_cancel(user_data), or the end of the descriptor or of the ring, left some undone; its
 * flags are the number of those with less than asked for. results[i] is the number of bytes, fewer than asked for
 * only at the end of the file, or a negated errno. All memory stays the caller's to keep until that completion.
 * With a `bounce` of 2 * window pieces of bounce_size bytes the kernel reads there, and nobody looks at the addresses: an
 * item that has not failed is then a new bytes object in `blocks`, which is the id() of a list of Python's. */
int tu_batch_read(tu_ring *r, int fd, const uint64_t *offsets, const uint32_t *lengths, const uint64_t *addresses,
                  uint64_t skip, int32_t *results, unsigned count, unsigned window, char *bounce, uint64_t bounce_size,
                  uint64_t blocks, uint64_t user_data);
/* The same of many files, each from its beginning on: regular ones, of file systems that ask nobody, opened without O_DIRECT. With a
 * length of one byte more than the file has, one read tells that this is all. */
int tu_batch_read_files(tu_ring *r, const int32_t *fds, const uint32_t *lengths, const uint64_t *addresses, uint64_t skip,
                        int32_t *results, unsigned count, unsigned window, uint64_t user_data);

/* System calls without a ring, for any thread (files.c). tu_file() tells what a positional transfer has to know of a descriptor:
 * TU_DIRECT (O_DIRECT is set) and TU_ELSEWHERE (a regular file whose file system may have to ask somebody), -ESPIPE where it has
 * no positions, or -EBADF. */
#define TU_DIRECT 1
#define TU_ELSEWHERE 2
int tu_file(int fd);
/* What an entry with these fields asks for, as the system call of that name: its result, or -EACCES where there is none. For a
 * ring that may not do it. Of sockets it answers -EAGAIN in place of waiting. */
int64_t tu_system_call(unsigned opcode, int fd, void *addr, unsigned len, uint64_t off, unsigned op_flags, int file_index);
/* pread(2) of what is in the page cache, if there is all of it or what there is up to the end of the file: never waits, and never
 * asks another process or machine (RWF_NOWAIT is refused by file systems that might). On overlays and in memory, which have no
 * RWF_NOWAIT, it is looked up first (resident() in files.c); what is dropped from the cache in that very moment is waited for.
 * A negated errno otherwise: go by the ring. Also where the loop has not turned for a millisecond of such answers. */
int64_t tu_pread_cached(uint64_t ring, int fd, char *memory, uint64_t length, int64_t offset);
int tu_statx(int dirfd, const char *path, int flags, unsigned mask, char *out); /* out: 256 bytes */
int tu_fallocate(int fd, int mode, int64_t offset, int64_t length);
/* Where a descriptor, or with fd < 0 a path, is, without asking its file system: the type (S_IFMT) with TU_LOCAL where that has its
 * data at hand in this machine, TU_COPIES_UP where opening for writing copies a file first (an overlay), and TU_MEMORY where there
 * is no disk behind it; -EAGAIN for a path that is not in the kernel's cache, or another error. */
#define TU_LOCAL 1
#define TU_COPIES_UP 2
#define TU_MEMORY 4
int tu_where(int fd, const char *path);
/* open(2) of a regular file whose name is in the kernel's cache and whose file system has its data at hand, neither made nor cut nor
 * copied by that: it never waits. -EAGAIN of anything else, and of every error: go by the ring, which tells it. */
int tu_open_cached(const char *path, int flags);
int64_t tu_remaining(int fd); /* bytes between the file's position and its end, negative behind the end, or an error */
/* A regular file: its position and size in bytes, its ctime and the time now in nanoseconds of CLOCK_REALTIME. */
typedef struct {
    int64_t position, size, changed, now;
} tu_file_state;
int tu_file_facts(int fd, tu_file_state *state);
/* 1 after moving the position on by `count`; 0 where it is not `position`, or, unless size is negative, the file's size or ctime is
 * another. */
int tu_advance(int fd, int64_t position, int64_t count, int64_t size, int64_t changed);

/* Provided buffers, one set for a ring: `entries` (a power of two, 1 to 32768) of `size` bytes each, at base; group id
 * `group`. The buffers named by completions of one tu_wait() are the kernel's again at the next: copy out before. */
int tu_buffers_new(tu_ring *r, unsigned entries, unsigned size, unsigned group, char *base);
void tu_recycle_buffers(tu_ring *r); /* those of the last tu_wait(), before the next one */
int tu_buffers_free(tu_ring *r);

/* Probing. */
int tu_try_setup(unsigned flags, unsigned entries);
int tu_features(void); /* IORING_FEAT_* of a ring made now */
int tu_probe_ops(unsigned char *supported, unsigned n);
int tu_probe_register(unsigned opcode); /* 1 where io_uring_register(2) knows the opcode, 0 where not */
const char *tu_liburing_version(void);
