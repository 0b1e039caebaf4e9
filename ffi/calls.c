/*
 * The calls that a busy server makes most, as CPython functions of the binding's module, under the same names. cffi makes a
 * tuple of the arguments and converts each through a table, which takes three times as long as queueing the entry
 * (benchmarks, echo_stream_1k). And what takes Python's objects apart by the thousand. In the stable ABI of CPython 3.10.
 */
static PyObject *call_recv(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    uint64_t ring, user_data;
    unsigned long length;
    long fd;

    (void)module;
    if (given != 4)
        return PyErr_Format(PyExc_TypeError, "tu_recv() takes ring, fd, length, user_data");
    ring = PyLong_AsUnsignedLongLong(args[0]);
    fd = PyLong_AsLong(args[1]);
    length = PyLong_AsUnsignedLong(args[2]);
    user_data = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    return PyLong_FromLong(tu_recv(ring, (int)fd, (unsigned)length, user_data));
}

/* data: bytes, or the address of memory as an int. */
static PyObject *call_send(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    uint64_t ring, user_data;
    const char *data;
    unsigned long length;
    long fd, msg_flags;

    (void)module;
    if (given != 6)
        return PyErr_Format(PyExc_TypeError, "tu_send() takes ring, fd, data, length, msg_flags, user_data");
    ring = PyLong_AsUnsignedLongLong(args[0]);
    fd = PyLong_AsLong(args[1]);
    data = PyBytes_Check(args[2]) ? PyBytes_AsString(args[2]) : PyLong_AsVoidPtr(args[2]);
    length = PyLong_AsUnsignedLong(args[3]);
    msg_flags = PyLong_AsLong(args[4]);
    user_data = PyLong_AsUnsignedLongLong(args[5]);
    if (PyErr_Occurred())
        return NULL;
    return PyLong_FromLong(tu_send(ring, (int)fd, data, (unsigned)length, (unsigned)msg_flags, user_data));
}

/* tu_read_cached(ring, fd, length, offset): new bytes, as pread(2) would have read them; None where they are not at hand. */
static PyObject *call_read_cached(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    uint64_t ring;
    int64_t offset, got;
    Py_ssize_t length;
    PyObject *data, *result;
    long fd;

    (void)module;
    if (given != 4)
        return PyErr_Format(PyExc_TypeError, "tu_read_cached() takes ring, fd, length, offset");
    ring = PyLong_AsUnsignedLongLong(args[0]);
    fd = PyLong_AsLong(args[1]);
    length = PyLong_AsSsize_t(args[2]);
    offset = PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred() || !(data = PyBytes_FromStringAndSize(NULL, length)))
        return NULL;
    got = tu_pread_cached(ring, (int)fd, PyBytes_AsString(data), (uint64_t)length, offset);
    if (got == length)
        return data;
    /* Less than that: the end of the file, or nothing at hand. A copy, since _PyBytes_Resize() is not in the stable ABI. */
    result = got >= 0 ? PyBytes_FromStringAndSize(PyBytes_AsString(data), (Py_ssize_t)got) : NULL;
    Py_DECREF(data);
    if (result || PyErr_Occurred())
        return result;
    Py_RETURN_NONE;
}

/* New bytes, those of a file from `at` up to its end, if they are in the page cache and no more than `most`; NULL without an error
 * set where they are not. */
static PyObject *cached_from(uint64_t ring, int fd, int64_t at, int64_t most)
{
    struct stat st;
    PyObject *data, *part;
    int64_t got, size;

    if (at < 0 || file_status(fd, &st) < 0 || (size = st.st_size > at ? st.st_size - at : 0) > most)
        return NULL;
    if (!(data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size)) || !size)
        return data;
    got = tu_pread_cached(ring, fd, PyBytes_AsString(data), (uint64_t)size, at);
    if (got == size)
        return data;
    part = got >= 0 ? PyBytes_FromStringAndSize(PyBytes_AsString(data), (Py_ssize_t)got) : NULL; /* it has been cut */
    Py_DECREF(data);
    return part;
}

/* tu_read_rest(ring, fd, most): what read(2) would read from a file's position up to its end, which moves there; None where that is
 * not in the page cache, or more than `most` bytes. */
static PyObject *call_read_rest(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    uint64_t ring;
    int64_t at, most;
    PyObject *data;
    int fd;

    (void)module;
    if (given != 3)
        return PyErr_Format(PyExc_TypeError, "tu_read_rest() takes ring, fd, most");
    ring = PyLong_AsUnsignedLongLong(args[0]);
    fd = (int)PyLong_AsLong(args[1]);
    most = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    at = lseek(fd, 0, SEEK_CUR);
    data = cached_from(ring, fd, at, most);
    if (data && (!PyBytes_Size(data) || lseek(fd, at + PyBytes_Size(data), SEEK_SET) >= 0))
        return data;
    Py_XDECREF(data);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* tu_read_whole(ring, path, most): all bytes of a regular file that is at hand by its name, as tu_open_cached() has it, and by its
 * contents. Where only the contents are not, or are none or more than `most` bytes, its descriptor, opened for reading; else
 * negated EAGAIN. */
static PyObject *call_read_whole(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    uint64_t ring;
    int64_t most;
    PyObject *data;
    char *path;
    int fd;

    (void)module;
    if (given != 3)
        return PyErr_Format(PyExc_TypeError, "tu_read_whole() takes ring, path, most");
    ring = PyLong_AsUnsignedLongLong(args[0]);
    path = PyBytes_AsString(args[1]);
    most = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    fd = open_cached(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return PyLong_FromLong(-EAGAIN);
    data = cached_from(ring, fd, 0, most);
    if (data && PyBytes_Size(data)) {
        close(fd);
        return data;
    }
    Py_XDECREF(data);
    if (!PyErr_Occurred() && fcntl(fd, F_SETFL, 0) == 0)
        return PyLong_FromLong(fd);
    close(fd);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(-EAGAIN);
}

/* tu_stat_cached(path, follow, fstat): os.stat(path), with follow False os.lstat(path), without asking a file system that may have to
 * ask somebody, where the cache of names leads to it; with None in place of os.fstat its st_mode's type alone. A negated errno
 * otherwise: ENOENT where that cache knows it, EAGAIN of all else, which the ring can tell. */
static PyObject *call_stat_cached(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    PyObject *number, *result;
    char *path;
    int fd, follow, where;

    (void)module;
    if (given != 3)
        return PyErr_Format(PyExc_TypeError, "tu_stat_cached() takes path, follow, fstat");
    path = PyBytes_AsString(args[0]);
    follow = PyObject_IsTrue(args[1]);
    if (!path || follow < 0)
        return NULL;
    fd = name_cached(path, follow ? 0 : O_NOFOLLOW);
    if (fd < 0)
        return PyLong_FromLong(fd == -ENOENT ? fd : -EAGAIN);
    where = flags_of(fd);
    if (where < 0 || !(where & TU_LOCAL)) {
        result = PyLong_FromLong(-EAGAIN);
    } else if (args[2] == Py_None) {
        result = PyLong_FromLong(where & S_IFMT);
    } else {
        number = PyLong_FromLong(fd);
        result = number ? PyObject_CallFunctionObjArgs(args[2], number, NULL) : NULL;
        Py_XDECREF(number);
        if (!result && PyErr_ExceptionMatches(PyExc_OSError)) {
            PyErr_Clear();
            result = PyLong_FromLong(-EAGAIN);
        }
    }
    close(fd);
    return result;
}

/* Whether it is a tuple of two ints, an offset and a length of at most `most`, whose offset's sum with `most` is a position of a file. */
static int plain_pair(PyObject *pair, unsigned long long most, uint64_t *offset, uint32_t *length)
{
    unsigned long long from, size;

    if (!PyTuple_CheckExact(pair) || PyTuple_Size(pair) != 2 || !PyLong_CheckExact(PyTuple_GetItem(pair, 0)) ||
        !PyLong_CheckExact(PyTuple_GetItem(pair, 1)))
        return 0;
    from = PyLong_AsUnsignedLongLong(PyTuple_GetItem(pair, 0));
    size = PyLong_AsUnsignedLongLong(PyTuple_GetItem(pair, 1));
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    *offset = from;
    *length = (uint32_t)size;
    return size <= most && from <= INT64_MAX - most;
}

/* tu_wait_events(ring, timeout, out, max): tu_wait() with a timeout in seconds, or None for ever, and its completions as one list; None
 * where the timeout expired, an int where the kernel refused. */
static PyObject *call_wait_events(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    uint64_t ring;
    int64_t ns = -1, *out;
    double timeout;
    unsigned long max;
    PyObject *list;
    int n;

    (void)module;
    if (given != 4)
        return PyErr_Format(PyExc_TypeError, "tu_wait_events() takes ring, timeout, out, max");
    ring = PyLong_AsUnsignedLongLong(args[0]);
    if (args[1] != Py_None) {
        timeout = PyFloat_AsDouble(args[1]);
        ns = !(timeout > 0) ? 0 : timeout < 9e9 ? (int64_t)(timeout * 1e9) : INT64_MAX; /* never negative, which is for ever */
    }
    out = PyLong_AsVoidPtr(args[2]);
    max = PyLong_AsUnsignedLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    n = tu_wait((tu_ring *)(uintptr_t)ring, ns, out, (unsigned)max);
    if (n == -ETIME)
        Py_RETURN_NONE;
    if (n < 0)
        return PyLong_FromLong(n);
    list = PyList_New(3 * (Py_ssize_t)n);
    for (Py_ssize_t i = 0; list && i < 3 * (Py_ssize_t)n; i++) {
        PyObject *value = PyLong_FromLongLong(out[i]);

        if (!value || PyList_SetItem(list, i, value) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

static PyObject *call_owner_back(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    uint64_t ring;

    (void)module;
    if (given != 1)
        return PyErr_Format(PyExc_TypeError, "tu_owner_back() takes ring");
    ring = PyLong_AsUnsignedLongLong(args[0]);
    if (PyErr_Occurred())
        return NULL;
    tu_owner_back((tu_ring *)(uintptr_t)ring);
    Py_RETURN_NONE;
}

/* tu_ready(fd, events): whether poll(2) has something to report of a descriptor now. No system call that waits. */
static PyObject *call_ready(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    struct pollfd pfd = {-1, 0, 0};

    (void)module;
    if (given != 2)
        return PyErr_Format(PyExc_TypeError, "tu_ready() takes fd, events");
    pfd.fd = (int)PyLong_AsLong(args[0]);
    pfd.events = (short)PyLong_AsLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(poll(&pfd, 1, 0) == 1 && !(pfd.revents & POLLNVAL));
}

/* What reads of a batch are asked for, as arrays: tu_pairs(pairs, offsets, lengths, most) with a list of pairs of an offset and a
 * length, and the addresses of arrays as long as that, of uint64_t and uint32_t. Answers the longest length and all offsets and
 * lengths ORed; or None where something else is in the list than tuples of two ints, lengths of at most `most`, and offsets
 * whose sum with `most` is a position of a file. */
static PyObject *call_pairs(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    unsigned long long most, longest = 0, bits = 0;
    uint64_t *offsets;
    uint32_t *lengths;
    Py_ssize_t count;

    (void)module;
    if (given != 4 || !PyList_CheckExact(args[0]))
        return PyErr_Format(PyExc_TypeError, "tu_pairs() takes a list, offsets, lengths, most");
    offsets = PyLong_AsVoidPtr(args[1]);
    lengths = PyLong_AsVoidPtr(args[2]);
    most = PyLong_AsUnsignedLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    count = PyList_Size(args[0]);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!plain_pair(PyList_GetItem(args[0], i), most, offsets + i, lengths + i))
            Py_RETURN_NONE;
        longest = lengths[i] > longest ? lengths[i] : longest;
        bits |= offsets[i] | lengths[i];
    }
    return Py_BuildValue("(KK)", longest, bits);
}

#include "pool_calls.c"
#include "whole_files.c"

static PyMethodDef calls[] = {
    {"tu_recv", (PyCFunction)(void (*)(void))call_recv, METH_FASTCALL, NULL},
    {"tu_send", (PyCFunction)(void (*)(void))call_send, METH_FASTCALL, NULL},
    {"tu_read_cached", (PyCFunction)(void (*)(void))call_read_cached, METH_FASTCALL, NULL},
    {"tu_read_rest", (PyCFunction)(void (*)(void))call_read_rest, METH_FASTCALL, NULL},
    {"tu_read_whole", (PyCFunction)(void (*)(void))call_read_whole, METH_FASTCALL, NULL},
    {"tu_stat_cached", (PyCFunction)(void (*)(void))call_stat_cached, METH_FASTCALL, NULL},
    {"tu_wait_events", (PyCFunction)(void (*)(void))call_wait_events, METH_FASTCALL, NULL},
    {"tu_owner_back", (PyCFunction)(void (*)(void))call_owner_back, METH_FASTCALL, NULL},
    {"tu_ready", (PyCFunction)(void (*)(void))call_ready, METH_FASTCALL, NULL},
    {"tu_pairs", (PyCFunction)(void (*)(void))call_pairs, METH_FASTCALL, NULL},
    {"tu_read_files", (PyCFunction)(void (*)(void))call_read_files, METH_FASTCALL, NULL},
    {"tu_pool_read", (PyCFunction)(void (*)(void))call_pool_read, METH_FASTCALL, NULL},
    {"tu_pool_buffers", (PyCFunction)(void (*)(void))call_pool_buffers, METH_FASTCALL, NULL},
    {"tu_pool_add", (PyCFunction)(void (*)(void))call_pool_add, METH_FASTCALL, NULL},
    {"tu_pool_take", (PyCFunction)(void (*)(void))call_pool_take, METH_FASTCALL, NULL},
    {"tu_pool_give", (PyCFunction)(void (*)(void))call_pool_give, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

/* Puts them into the module; 0, or -1 with nothing there. */
static int tu_add_calls(const char *name)
{
    PyObject *module = PyImport_AddModule(name);

    if (module && PyModule_AddFunctions(module, calls) == 0)
        return 0;
    PyErr_Clear();
    return -1;
}
