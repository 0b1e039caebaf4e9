/*
 * Whole files that are at hand: opened, read and closed on the spot, one after the other, as far as no call of these can wait.
 *
 * Part of the binding: calls.c includes this file, which makes Python's objects. It knows system calls and file systems, by files.c; it
 * knows nothing of rings.
 *
 * Where a file is has to be known before it is opened, for the open may ask somebody (F53). Asked of each file, that takes three
 * system calls more. So it is asked of the folder, once for all its files that follow each other, and openat2(2) with RESOLVE_NO_XDEV
 * then opens what is on the same mount, or nothing.
 *
 * Opened is with O_NONBLOCK, which waits for nobody: neither for the other end of a FIFO nor for a device nor for the end of
 * a lease. What is no regular file keeps the flag, and it is for the caller to wait; nothing is opened twice, since a FIFO's
 * writer or a device would notice.
 */
#include <sys/vfs.h>

#define TU_RESOLVE_NO_XDEV 0x01
#define WHOLE_NS 1000000    /* as SERVE_NS, of one call */
#define WHOLE_BYTES 262144  /* a larger file is for the ring: copying it would take the loop 50 us and more */

/* A folder that has files of this machine; fd is -1 of any other. */
struct folder {
    char name[PATH_MAX];
    size_t length;
    int fd, is_memory;
};

static void folder_open(struct folder *folder, const char *name, size_t length)
{
    struct {
        uint64_t flags, mode, resolve;
    } how = {O_PATH | O_DIRECTORY | O_CLOEXEC, 0, TU_RESOLVE_CACHED};
    struct statfs about;
    int where;

    if (folder->length == length && !memcmp(folder->name, name, length))
        return;
    if (folder->fd >= 0)
        close(folder->fd);
    folder->fd = -1;
    folder->length = length;
    memcpy(folder->name, name, length);
    folder->name[length] = 0;
    folder->fd = (int)syscall(SYS_openat2, AT_FDCWD, length ? folder->name : ".", &how, sizeof how);
    if (folder->fd < 0)
        return;
    where = flags_of(folder->fd);
    if (where < 0 || !(where & TU_LOCAL) || fstatfs(folder->fd, &about) < 0) { /* local: nobody is asked */
        close(folder->fd);
        folder->fd = -1;
        return;
    }
    folder->is_memory = about.f_type == 0x01021994 || about.f_type == 0x858458f6; /* tmpfs, ramfs: it knows no RWF_NOWAIT */
}

/* What a regular file of `size` bytes contains, or NULL where it is not at hand or has another size by now. */
static PyObject *contents_at_hand(int fd, off_t size, int is_memory)
{
    char more; /* one byte more tells that it has grown */
    struct iovec parts[2] = {{NULL, (size_t)size}, {&more, 1}};
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);

    if (!data) {
        PyErr_Clear(); /* the caller will meet it again */
        return NULL;
    }
    parts[0].iov_base = PyBytes_AsString(data);
    if (read_vector(fd, parts, 2, 0, is_memory ? 0 : RWF_NOWAIT) == size)
        return data;
    Py_DECREF(data);
    return NULL;
}

/* A result of call_read_files(). */
static PyObject *file_at_hand(struct folder *folder, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    struct {
        uint64_t flags, mode, resolve;
    } how = {O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0, TU_RESOLVE_CACHED | TU_RESOLVE_NO_XDEV};
    struct stat st;
    PyObject *data;
    int fd;

    if (!*name || name - path >= PATH_MAX)
        Py_RETURN_NONE;
    folder_open(folder, path, (size_t)(name - path));
    if (folder->fd < 0)
        Py_RETURN_NONE;
    fd = (int)syscall(SYS_openat2, folder->fd, name, &how, sizeof how);
    if (fd < 0) {
        if (errno == ENOENT || errno == EACCES)
            return PyLong_FromLong(-errno); /* of a name in the cache, on a file system that asks nobody */
        Py_RETURN_NONE;
    }
    if (file_status(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return Py_BuildValue("(ii)", fd, -1);
    data = st.st_size <= WHOLE_BYTES ? contents_at_hand(fd, st.st_size, folder->is_memory) : NULL;
    if (data) {
        close(fd);
        return data;
    }
    if (fcntl(fd, F_SETFL, 0) < 0) /* with O_NONBLOCK the ring would wait in place */
        return Py_BuildValue("(ii)", fd, -1);
    return Py_BuildValue("(iL)", fd, (long long)st.st_size);
}

/* tu_read_files(paths, results, first, most): reads the files of a list of bytes, from number `first` on, into another list, of None:
 * until a millisecond is over, or `most` of them are left open. Answers the number that comes next. A result is
 * - bytes, all that is in the file;
 * - an int, a negated errno: there is none, or none for us;
 * - a tuple of a descriptor, which is the caller's to close, and the size of the regular file, or -1 of what may be none and
 *   then has O_NONBLOCK set;
 * - None, as it was: somebody would have to be waited for. */
static PyObject *call_read_files(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    struct folder folder = {.length = SIZE_MAX, .fd = -1};
    int64_t until;
    Py_ssize_t i, count, most;

    (void)module;
    if (given != 4 || !PyList_CheckExact(args[0]) || !PyList_CheckExact(args[1]) ||
        PyList_Size(args[0]) != PyList_Size(args[1]))
        return PyErr_Format(PyExc_TypeError, "tu_read_files() takes a list of paths, one of results, first, most");
    i = PyLong_AsSsize_t(args[2]);
    most = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred())
        return NULL;
    count = PyList_Size(args[0]);
    until = now_ns() + WHOLE_NS;
    while (i < count && most > 0) {
        const char *path = PyBytes_AsString(PyList_GetItem(args[0], i));
        PyObject *result = path ? file_at_hand(&folder, path) : NULL;

        if (!result || PyTuple_CheckExact(result))
            most--;
        if (!result || PyList_SetItem(args[1], i, result) < 0)
            break;
        i++;
        if (now_ns() >= until)
            break;
    }
    if (folder.fd >= 0)
        close(folder.fd);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(i);
}
