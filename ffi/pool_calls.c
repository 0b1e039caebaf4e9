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

/* tu_pool_read(ring, turn, fd, requests, most, window, direct): the pairs of a list, as tu_pairs() takes them. `direct` is 0 where the
 * caller does not know whether O_DIRECT is set, or what offsets and lengths have to be a multiple of with it. Answers a list of bytes
 * and OSErrors; a negated errno for the whole; or None where nothing has been read, because of O_DIRECT with `direct` 0, or
 * because a request is not as plain as that, or not aligned. Raises OSError for a descriptor that is none, or has no positions. */
static PyObject *call_pool_read(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    tu_pool_ring *p;
    uint64_t turn, *offsets, *addresses;
    uint32_t *lengths, longest = 0;
    unsigned long long most, direct;
    PyObject *list = NULL, *answer = NULL;
    Py_ssize_t count;
    pool_job job;
    char *arrays;
    int rc, left;

    (void)module;
    if (given != 7 || !PyList_CheckExact(args[3]))
        return PyErr_Format(PyExc_TypeError, "tu_pool_read() takes ring, turn, fd, a list, most, window, direct");
    memset(&job, 0, sizeof job);
    p = PyLong_AsVoidPtr(args[0]);
    turn = PyLong_AsUnsignedLongLong(args[1]);
    job.fd = (int)PyLong_AsLong(args[2]);
    most = PyLong_AsUnsignedLong(args[4]);
    job.window = (unsigned)PyLong_AsUnsignedLong(args[5]);
    direct = PyLong_AsUnsignedLong(args[6]);
    count = PyList_Size(args[3]);
    if (PyErr_Occurred())
        return NULL;
    if (!direct && (rc = tu_file(job.fd))) {
        if (rc == TU_DIRECT)
            Py_RETURN_NONE;
        errno = -rc;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (count > INT_MAX)
        return PyErr_NoMemory();
    arrays = malloc((size_t)count * (2 * sizeof *offsets + sizeof *lengths + sizeof *job.results) + 1);
    if (!arrays)
        return PyErr_NoMemory();
    offsets = (uint64_t *)arrays;
    addresses = offsets + count;
    lengths = (uint32_t *)(addresses + count);
    job.results = (int32_t *)(lengths + count);
    job.count = (unsigned)count;
    job.offsets = offsets;
    job.addresses = addresses;
    job.lengths = lengths;
    job.opcode = IORING_OP_READ;
    list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *bytes;

        if (!plain_pair(PyList_GetItem(args[3], i), most, offsets + i, lengths + i) ||
            (direct && (offsets[i] | lengths[i]) % direct)) {
            Py_DECREF(list);
            free(arrays);
            Py_RETURN_NONE;
        }
        bytes = PyBytes_FromStringAndSize(NULL, lengths[i]);
        if (!bytes)
            goto out;
        addresses[i] = (uint64_t)(uintptr_t)PyBytes_AsString(bytes);
        PyList_SetItem(list, i, bytes);
        longest = lengths[i] > longest ? lengths[i] : longest;
    }
    if (!list)
        goto out;
    if (direct && longest)
        job.bounce = ((uint64_t)longest + POOL_PAGE - 1) / POOL_PAGE * POOL_PAGE;
    rc = run_to_the_end(p, turn, &job, &left);
    if (left)
        Py_INCREF(list); /* for good: better lost than written to by the kernel when it is somebody else's */
    if (rc < 0)
        answer = PyLong_FromLong(rc);
    else if (rc == 0 && (!job.partial || mend(list, &job) == 0)) {
        answer = list;
        list = NULL;
    }
out:
    Py_XDECREF(list);
    free(arrays);
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

/* tu_pool_buffers(ring, turn, opcode, fd, requests, most, window, address, direct): a list of pairs of an offset and a buffer, of at most
 * `most` bytes, that is read into or written. `address` and `direct` are 0, or with O_DIRECT what addresses, and offsets and
 * lengths, have to be a multiple of. Answers a list of numbers of bytes and OSErrors; otherwise as tu_pool_read(). */
static PyObject *call_pool_buffers(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    tu_pool_ring *p;
    uint64_t turn, *offsets, *addresses;
    uint32_t *lengths;
    unsigned long long most, address, direct, ones;
    PyObject *answer = NULL;
    Py_ssize_t count, pinned = 0;
    buffer_view *views;
    pool_job job;
    int rc, left = 0;

    (void)module;
    if (given != 9 || !PyList_CheckExact(args[4]))
        return PyErr_Format(PyExc_TypeError,
                            "tu_pool_buffers() takes ring, turn, opcode, fd, a list, most, window, address, direct");
    memset(&job, 0, sizeof job);
    p = PyLong_AsVoidPtr(args[0]);
    turn = PyLong_AsUnsignedLongLong(args[1]);
    job.opcode = (int)PyLong_AsLong(args[2]);
    job.fd = (int)PyLong_AsLong(args[3]);
    most = PyLong_AsUnsignedLong(args[5]);
    job.window = (unsigned)PyLong_AsUnsignedLong(args[6]);
    address = PyLong_AsUnsignedLong(args[7]);
    direct = PyLong_AsUnsignedLong(args[8]);
    count = PyList_Size(args[4]);
    if (PyErr_Occurred())
        return NULL;
    if (!direct && (rc = tu_file(job.fd))) {
        if (rc == TU_DIRECT)
            Py_RETURN_NONE;
        errno = -rc;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (count > INT_MAX)
        return PyErr_NoMemory();
    views = malloc((size_t)count * (sizeof *views + 2 * sizeof *offsets + sizeof *lengths + sizeof *job.results) + 1);
    if (!views)
        return PyErr_NoMemory();
    offsets = (uint64_t *)(views + count);
    addresses = offsets + count;
    lengths = (uint32_t *)(addresses + count);
    job.results = (int32_t *)(lengths + count);
    job.count = (unsigned)count;
    job.offsets = offsets;
    job.addresses = addresses;
    job.lengths = lengths;
    for (; pinned < count; pinned++) {
        PyObject *pair = PyList_GetItem(args[4], pinned);
        buffer_view *view = views + pinned;

        if (!PyTuple_CheckExact(pair) || PyTuple_Size(pair) != 2 || !PyLong_CheckExact(PyTuple_GetItem(pair, 0)))
            break;
        offsets[pinned] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(pair, 0));
        if (PyErr_Occurred() || offsets[pinned] > INT64_MAX - most)
            break;
        if (get_buffer(PyTuple_GetItem(pair, 1), view, job.opcode == IORING_OP_READ ? WRITABLE : CONTIGUOUS) < 0)
            break;
        addresses[pinned] = (uint64_t)(uintptr_t)view->memory;
        lengths[pinned] = (uint32_t)view->size;
        ones = direct ? (offsets[pinned] | lengths[pinned]) % direct | addresses[pinned] % address : 0;
        if ((unsigned long long)view->size > most || ones) {
            release_buffer(view);
            break;
        }
    }
    if (pinned < count || (job.opcode == IORING_OP_READ && overlapping(views, (size_t)count))) {
        PyErr_Clear(); /* the caller finds out what it is, and says so */
        answer = Py_None;
        Py_INCREF(answer);
        goto out;
    }
    rc = run_to_the_end(p, turn, &job, &left);
    if (rc < 0)
        answer = PyLong_FromLong(rc);
    else if (rc == 0)
        answer = PyList_New(count);
    for (Py_ssize_t i = 0; answer && rc == 0 && i < count; i++) {
        PyObject *item;

        if (i && job.results[i] == job.results[i - 1] && job.results[i] >= 0) {
            item = PyList_GetItem(answer, i - 1);
            Py_INCREF(item);
        } else {
            item = job.results[i] < 0 ? os_error_of(job.results[i]) : PyLong_FromLong(job.results[i]);
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
        free(views);
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
