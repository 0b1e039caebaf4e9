/*
 * Whole lists of transfers on a ring of pool.h, as CPython functions of the binding's module; see calls.c for why. Everything that a
 * list needs is held here until the kernel has let go of it, so no exception, signal or other thread can free it sooner.
 */

#define SETTLE_NS 2000000000LL

/* Runs a job to its end with the interpreter's lock let go. Answers 0, or a negated errno; or 1 with an exception set, which a signal
 * handler raised. Nothing is in flight then, but for what is in *left: the memory of that must never be freed (F8). */
static int run_to_the_end(tu_pool_ring *p, uint64_t turn, pool_job *job, int *left)
{
    int rc = pool_begin_transfer(p, turn);

    *left = 0;
    if (rc < 0)
        return rc;
    rc = prepare_job(p, job);
    while (rc == 0 && job->ended < job->count) {
        {
            TU_LET_GO;
            rc = run_job(p, job);
            if (rc != -EINTR)
                *left = finish_job(p, SETTLE_NS);
            TU_TAKE_BACK;
        }
        if (rc == -EINTR && (rc = PyErr_CheckSignals() ? 1 : 0)) {
            TU_LET_GO;
            *left = finish_job(p, SETTLE_NS);
            TU_TAKE_BACK;
        }
    }
    pool_end(p, turn);
    return rc;
}

/* An OSError, not raised. */
static PyObject *os_error_of(int result)
{
    return PyObject_CallFunction(PyExc_OSError, "is", -result, strerror(-result));
}

/* What is less than asked for: a shorter object, or an error, in its place in the list. */
static int mend(PyObject *list, const pool_job *job)
{
    for (unsigned i = 0; i < job->count; i++) {
        PyObject *item;

        if (job->results[i] == (int32_t)job->lengths[i])
            continue;
        item = job->results[i] < 0
                   ? os_error_of(job->results[i])
                   : PyBytes_FromStringAndSize(PyBytes_AsString(PyList_GetItem(list, i)), job->results[i]);
        if (!item || PyList_SetItem(list, i, item) < 0)
            return -1;
    }
    return 0;
}

/* What tu_pool_read() and tu_pool_buffers() are given, and a job of as many transfers as there are requests. */
typedef struct {
    tu_pool_ring *ring;
    uint64_t turn;
    PyObject *requests;
    unsigned long long most, direct;
    pool_job job;
    char *memory; /* room of the caller's, `each` bytes for each request, and behind it the arrays, which are the job's */
    uint64_t *offsets, *addresses;
    uint32_t *lengths;
} pool_list;

/* Takes ring, turn, fd, requests, most, window, direct. Answers 0; 1 where O_DIRECT is set and `direct` does not say so; or -1 with an
 * exception set. */
static int take_list(pool_list *all, PyObject *const *args, size_t each)
{
    const size_t item = sizeof *all->offsets + sizeof *all->addresses + sizeof *all->lengths + sizeof *all->job.results;
    Py_ssize_t count = PyList_Size(args[3]);
    int rc;

    memset(all, 0, sizeof *all);
    all->ring = PyLong_AsVoidPtr(args[0]);
    all->turn = PyLong_AsUnsignedLongLong(args[1]);
    all->job.fd = (int)PyLong_AsLong(args[2]);
    all->requests = args[3];
    all->most = PyLong_AsUnsignedLong(args[4]);
    all->job.window = (unsigned)PyLong_AsUnsignedLong(args[5]);
    all->direct = PyLong_AsUnsignedLong(args[6]);
    if (PyErr_Occurred())
        return -1;
    if (!all->direct && (rc = tu_file(all->job.fd))) {
        if (rc == TU_DIRECT)
            return 1;
        errno = -rc;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    all->memory = count > INT_MAX ? NULL : malloc((size_t)count * (each + item) + 1);
    if (!all->memory) {
        PyErr_NoMemory();
        return -1;
    }
    all->offsets = (uint64_t *)(all->memory + (size_t)count * each);
    all->addresses = all->offsets + count;
    all->lengths = (uint32_t *)(all->addresses + count);
    all->job.results = (int32_t *)(all->lengths + count);
    all->job.count = (unsigned)count;
    all->job.offsets = all->offsets;
    all->job.addresses = all->addresses;
    all->job.lengths = all->lengths;
    return 0;
}

/* tu_pool_read(ring, turn, fd, requests, most, window, direct): the pairs of a list, as tu_pairs() takes them. `direct` is 0 where the
 * caller does not know whether O_DIRECT is set, or what offsets and lengths have to be a multiple of with it. Answers a list of bytes
 * and OSErrors; a negated errno for the whole; or None where nothing has been read, because of O_DIRECT with `direct` 0, or
 * because a request is not as plain as that, or not aligned. Raises OSError for a descriptor that is none, or has no positions. */
static PyObject *call_pool_read(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    PyObject *list, *answer = NULL;
    uint32_t longest = 0;
    pool_list all;
    int rc, left;

    (void)module;
    if (given != 7 || !PyList_CheckExact(args[3]))
        return PyErr_Format(PyExc_TypeError, "tu_pool_read() takes ring, turn, fd, a list, most, window, direct");
    rc = take_list(&all, args, 0);
    if (rc < 0)
        return NULL;
    if (rc)
        Py_RETURN_NONE;
    all.job.opcode = IORING_OP_READ;
    all.job.waits = all.direct != 0;
    list = PyList_New(all.job.count);
    for (unsigned i = 0; list && i < all.job.count; i++) {
        PyObject *bytes;

        if (!plain_pair(PyList_GetItem(all.requests, i), all.most, all.offsets + i, all.lengths + i) ||
            (all.direct && (all.offsets[i] | all.lengths[i]) % all.direct)) {
            answer = Py_None;
            Py_INCREF(answer);
            goto out;
        }
        bytes = PyBytes_FromStringAndSize(NULL, all.lengths[i]);
        if (!bytes)
            goto out;
        all.addresses[i] = (uint64_t)(uintptr_t)PyBytes_AsString(bytes);
        PyList_SetItem(list, i, bytes);
        longest = all.lengths[i] > longest ? all.lengths[i] : longest;
    }
    if (!list)
        goto out;
    if (all.direct && longest)
        all.job.bounce = ((uint64_t)longest + POOL_PAGE - 1) / POOL_PAGE * POOL_PAGE;
    rc = run_to_the_end(all.ring, all.turn, &all.job, &left);
    if (left)
        Py_INCREF(list); /* for good: better lost than written to by the kernel when it is somebody else's */
    if (rc < 0)
        answer = PyLong_FromLong(rc);
    else if (rc == 0 && (!all.job.partial || mend(list, &all.job) == 0)) {
        answer = list;
        list = NULL;
    }
out:
    Py_XDECREF(list);
    free(all.memory);
    return answer;
}

/* Py_buffer, and the functions that fill and release it. Of the stable ABI since 3.11, and the same in 3.10, whose headers keep them
 * back: so they are declared here, under names that meet no other declaration. (dlsym(3) would find them too; but it is another
 * symbol since glibc 2.34, and the wheel would ask for that.) */
typedef struct {
    void *memory;
    PyObject *owner;
    Py_ssize_t size, item_size;
    int readonly, dimensions;
    char *format;
    Py_ssize_t *shape, *strides, *suboffsets;
    void *internal;
} buffer_view;

#define CONTIGUOUS 0 /* PyBUF_SIMPLE */
#define WRITABLE 1   /* PyBUF_WRITABLE */

extern int get_buffer(PyObject *object, buffer_view *view, int flags) __asm__("PyObject_GetBuffer");
extern void release_buffer(buffer_view *view) __asm__("PyBuffer_Release");

static int by_address(const void *a, const void *b)
{
    const char *x = (*(const buffer_view *const *)a)->memory, *y = (*(const buffer_view *const *)b)->memory;

    return (x > y) - (x < y);
}

/* Whether two of them share a byte; -1 where that cannot be told for want of memory. */
static int overlapping(const buffer_view *views, size_t count)
{
    const buffer_view **order;
    const char *end = NULL;
    size_t i;
    int found = 0;

    for (i = 1; i < count && (char *)views[i - 1].memory + views[i - 1].size <= (char *)views[i].memory; i++)
        ;
    if (i >= count)
        return 0; /* in order already */
    order = malloc(count * sizeof *order);
    if (!order)
        return -1;
    for (i = 0; i < count; i++)
        order[i] = views + i;
    qsort(order, count, sizeof *order, by_address);
    for (i = 0; i < count && !found; i++)
        if (order[i]->size) {
            found = (const char *)order[i]->memory < end;
            end = (const char *)order[i]->memory + order[i]->size;
        }
    free(order);
    return found;
}

/* tu_pool_buffers(ring, turn, fd, requests, most, window, direct, address, opcode): a list of pairs of an offset and a buffer, of at most
 * `most` bytes, that is read into or written. `direct` and `address` are 0, or with O_DIRECT what offsets and lengths, and
 * addresses, have to be a multiple of. Answers a list of numbers of bytes and OSErrors; otherwise as tu_pool_read(). */
static PyObject *call_pool_buffers(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    unsigned long long address, ones;
    PyObject *answer = NULL;
    unsigned pinned = 0;
    buffer_view *views;
    pool_list all;
    int rc, left = 0;

    (void)module;
    if (given != 9 || !PyList_CheckExact(args[3]))
        return PyErr_Format(PyExc_TypeError,
                            "tu_pool_buffers() takes ring, turn, fd, a list, most, window, direct, address, opcode");
    rc = take_list(&all, args, sizeof *views);
    if (rc < 0)
        return NULL;
    if (rc)
        Py_RETURN_NONE;
    views = (buffer_view *)all.memory;
    address = PyLong_AsUnsignedLong(args[7]);
    all.job.opcode = (int)PyLong_AsLong(args[8]);
    all.job.waits = all.direct || all.job.opcode != IORING_OP_READ;
    if (PyErr_Occurred())
        goto out;
    for (; pinned < all.job.count; pinned++) {
        PyObject *pair = PyList_GetItem(all.requests, pinned);
        buffer_view *view = views + pinned;

        if (!PyTuple_CheckExact(pair) || PyTuple_Size(pair) != 2 || !PyLong_CheckExact(PyTuple_GetItem(pair, 0)))
            break;
        all.offsets[pinned] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(pair, 0));
        if (all.offsets[pinned] > INT64_MAX - all.most) /* or no such number: all ones, with an exception */
            break;
        if (get_buffer(PyTuple_GetItem(pair, 1), view, all.job.opcode == IORING_OP_READ ? WRITABLE : CONTIGUOUS) < 0)
            break;
        all.addresses[pinned] = (uint64_t)(uintptr_t)view->memory;
        all.lengths[pinned] = (uint32_t)view->size;
        ones = all.direct ? (all.offsets[pinned] | all.lengths[pinned]) % all.direct | all.addresses[pinned] % address : 0;
        if ((unsigned long long)view->size > all.most || ones) {
            release_buffer(view);
            break;
        }
    }
    if (pinned < all.job.count || (all.job.opcode == IORING_OP_READ && overlapping(views, pinned))) {
        PyErr_Clear(); /* the caller finds out what it is, and says so */
        answer = Py_None;
        Py_INCREF(answer);
        goto out;
    }
    rc = run_to_the_end(all.ring, all.turn, &all.job, &left);
    if (rc < 0)
        answer = PyLong_FromLong(rc);
    else if (rc == 0)
        answer = PyList_New(all.job.count);
    for (unsigned i = 0; answer && rc == 0 && i < all.job.count; i++) {
        PyObject *item;

        if (i && all.job.results[i] == all.job.results[i - 1] && all.job.results[i] >= 0) {
            item = PyList_GetItem(answer, i - 1);
            Py_INCREF(item);
        } else {
            item = all.job.results[i] < 0 ? os_error_of(all.job.results[i]) : PyLong_FromLong(all.job.results[i]);
        }
        if (!item)
            Py_CLEAR(answer);
        else
            PyList_SetItem(answer, i, item);
    }
out:
    while (!left && pinned)
        release_buffer(views + --pinned);
    if (!left)
        free(all.memory);
    return answer;
}

/* tu_pool_add(ring, turn, fd, offsets, lengths, addresses, objects, ids, memory): starts reads from number len(ids) of the arrays on, as
 * many as there are free slots. Of each, ids gets its id and memory, a dict, what is in objects. Answers how many, or a negated errno. */
static PyObject *call_pool_add(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    const uint64_t *offsets, *addresses;
    const uint32_t *lengths;
    tu_pool_ring *p;
    Py_ssize_t at, count;
    unsigned started = 0;
    uint64_t turn;
    int fd, rc;

    (void)module;
    if (given != 9)
        return PyErr_Format(PyExc_TypeError, "tu_pool_add() takes 9 arguments");
    p = PyLong_AsVoidPtr(args[0]);
    turn = PyLong_AsUnsignedLongLong(args[1]);
    fd = (int)PyLong_AsLong(args[2]);
    offsets = PyLong_AsVoidPtr(args[3]);
    lengths = PyLong_AsVoidPtr(args[4]);
    addresses = PyLong_AsVoidPtr(args[5]);
    count = PyList_Size(args[6]);
    at = PyList_Size(args[7]);
    if (PyErr_Occurred())
        return NULL;
    rc = pool_begin_transfer(p, turn);
    if (rc < 0)
        return PyLong_FromLong(rc);
    for (; at < count && p->idle_len; at++) {
        PyObject *id = PyLong_FromUnsignedLongLong(p->last_id + 1);
        int failed = !id || PyDict_SetItem(args[8], id, PyList_GetItem(args[6], at)) < 0;

        if (!failed && PyList_Append(args[7], id) < 0) {
            PyDict_DelItem(args[8], id);
            failed = 1;
        }
        Py_XDECREF(id);
        if (failed) {
            rc = 1;
            break;
        }
        pool_start(p, IORING_OP_READ, fd, offsets[at], lengths[at], (char *)(uintptr_t)addresses[at], ++p->last_id);
        started++;
    }
    if (started) {
        int refused;
        {
            TU_LET_GO;
            refused = pool_enter(p, 0, 0); /* what is refused for now goes with the next enter */
            TU_TAKE_BACK;
        }
        if (refused < 0 && !transient(refused)) {
            unsigned undone = pool_take_back(p, started);

            at = PyList_Size(args[7]);
            for (unsigned i = 1; i <= undone; i++)
                PyDict_DelItem(args[8], PyList_GetItem(args[7], at - i));
            PyList_SetSlice(args[7], at - undone, at, NULL);
            started -= undone;
            if (!started && !PyErr_Occurred())
                rc = refused; /* for good, and the kernel has none of them */
        }
    }
    pool_end(p, turn);
    return rc > 0 ? NULL : PyLong_FromLong(rc < 0 ? rc : (long)started);
}

/* The result of a read that has ended, for what `memory` has of it: bytes; a tuple of memory and an address in it, for bytes that are to
 * be made from there; or else the caller's buffer. */
static PyObject *result_of(PyObject *held, int32_t result)
{
    if (result < 0)
        return os_error_of(result);
    if (PyBytes_CheckExact(held)) {
        if (PyBytes_Size(held) != result)
            return PyBytes_FromStringAndSize(PyBytes_AsString(held), result);
        Py_INCREF(held);
        return held;
    }
    if (PyTuple_CheckExact(held))
        return PyBytes_FromStringAndSize(PyLong_AsVoidPtr(PyTuple_GetItem(held, 1)), result);
    return PyLong_FromLong(result);
}

/* tu_pool_take(ring, turn, min, timeout_ns, memory, results): waits until `min` have ended, for timeout_ns at most and never for longer
 * than a tenth of a second, so that its caller sees to signals. Of each that has ended, results, a list, gets a pair of id and
 * result, and memory loses its entry. Answers 0, or a negated errno. */
static PyObject *call_pool_take(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    tu_pool_ring *p;
    uint64_t turn;
    unsigned min;
    int64_t timeout_ns;
    int rc;

    (void)module;
    if (given != 6)
        return PyErr_Format(PyExc_TypeError, "tu_pool_take() takes 6 arguments");
    p = PyLong_AsVoidPtr(args[0]);
    turn = PyLong_AsUnsignedLongLong(args[1]);
    min = (unsigned)PyLong_AsUnsignedLong(args[2]);
    timeout_ns = PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    rc = pool_begin_transfer(p, turn);
    if (rc < 0)
        return PyLong_FromLong(rc);
    {
        TU_LET_GO;
        rc = await_some(p, min, timeout_ns);
        TU_TAKE_BACK;
    }
    while (p->ended_len) {
        const pool_slot *s = &p->slots[p->ended[p->ended_len - 1]];
        PyObject *id = PyLong_FromUnsignedLongLong(s->id), *held = id ? PyDict_GetItemWithError(args[4], id) : NULL;
        PyObject *result = held ? result_of(held, s->result) : NULL, *pair = result ? PyTuple_Pack(2, id, result) : NULL;
        int failed = !pair || PyList_Append(args[5], pair) < 0 || PyDict_DelItem(args[4], id) < 0;

        Py_XDECREF(pair);
        Py_XDECREF(result);
        Py_XDECREF(id);
        if (failed) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_KeyError, "a read of this ring that its reader does not know");
            rc = 1;
            break;
        }
        p->idle[p->idle_len++] = p->ended[--p->ended_len];
    }
    pool_end(p, turn);
    return rc > 0 ? NULL : PyLong_FromLong(rc == -EINTR ? 0 : rc);
}

/* tu_pool_give(ring, turn) is tu_pool_release(). */
static PyObject *call_pool_give(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    tu_pool_ring *p;
    uint64_t turn;

    (void)module;
    if (given != 2)
        return PyErr_Format(PyExc_TypeError, "tu_pool_give() takes ring, turn");
    p = PyLong_AsVoidPtr(args[0]);
    turn = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    return PyLong_FromLong(tu_pool_release(p, turn));
}
