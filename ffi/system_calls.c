/*
 * What an entry asks for, as the system call of the same name: for a ring that may not do it (F56). Part of the shim: uring.c includes
 * this file. It knows the fields of an entry (io_uring_enter(2)) and no ring. Operations on sockets never wait here; whoever may
 * wait (files, paths) lets go of the interpreter's lock meanwhile.
 */
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

static int64_t transfer(unsigned opcode, int fd, const struct iovec *vector, unsigned count, uint64_t off, int flags)
{
    int reads = opcode == IORING_OP_READ || opcode == IORING_OP_READV;
    int64_t done = reads ? read_vector(fd, vector, count, (int64_t)off, flags)
                         : write_vector(fd, vector, count, (int64_t)off, flags);

    /* A pipe or a socket, of which the ring does not read the offset. */
    if (done < 0 && errno == ESPIPE && off != UINT64_MAX)
        done = reads ? read_vector(fd, vector, count, -1, flags) : write_vector(fd, vector, count, -1, flags);
    return done;
}

static int64_t splice_entry(int fd, uint64_t off_in, unsigned len, uint64_t off_out, unsigned flags, int fd_in)
{
    loff_t in = (loff_t)off_in, out = (loff_t)off_out;

    return splice(fd_in, in == -1 ? NULL : &in, fd, out == -1 ? NULL : &out, len, flags);
}

static int64_t once(unsigned opcode, int fd, char *addr, unsigned len, uint64_t off, unsigned op_flags, int file_index)
{
    struct iovec one = {addr, len};
    char *second = (char *)(uintptr_t)off;
    int flags = (int)op_flags;

    switch (opcode) {
    case IORING_OP_READ:
    case IORING_OP_WRITE:
        return transfer(opcode, fd, &one, 1, off, flags);
    case IORING_OP_READV:
    case IORING_OP_WRITEV:
        return transfer(opcode, fd, (struct iovec *)addr, len, off, flags);
    case IORING_OP_RECV:
        return recv(fd, addr, len, flags | MSG_DONTWAIT);
    case IORING_OP_SEND:
        return send(fd, addr, len, flags | MSG_DONTWAIT);
    case IORING_OP_RECVMSG:
        return recvmsg(fd, (struct msghdr *)addr, flags | MSG_DONTWAIT);
    case IORING_OP_SENDMSG:
        return sendmsg(fd, (struct msghdr *)addr, flags | MSG_DONTWAIT);
    case IORING_OP_ACCEPT:
        return accept4(fd, (struct sockaddr *)addr, (socklen_t *)second, flags);
    case IORING_OP_CONNECT:
        return connect(fd, (struct sockaddr *)addr, (socklen_t)off);
    case IORING_OP_SHUTDOWN:
        return shutdown(fd, (int)len);
    case IORING_OP_OPENAT:
        return openat(fd, addr, flags, len);
    case IORING_OP_CLOSE:
        return close(fd);
    case IORING_OP_STATX:
        return syscall(SYS_statx, fd, addr, flags, len, second);
    case IORING_OP_FSYNC:
        return op_flags & IORING_FSYNC_DATASYNC ? fdatasync(fd) : fsync(fd);
    case IORING_OP_FALLOCATE:
        return fallocate(fd, (int)len, (off_t)off, (off_t)(uintptr_t)addr);
    case TU_OP_FTRUNCATE:
        return ftruncate(fd, (off_t)off);
    case IORING_OP_SPLICE:
        return splice_entry(fd, (uint64_t)(uintptr_t)addr, len, off, op_flags, file_index);
    case IORING_OP_RENAMEAT:
        return syscall(SYS_renameat2, fd, addr, len, second, op_flags);
    case IORING_OP_UNLINKAT:
        return unlinkat(fd, addr, flags);
    case IORING_OP_MKDIRAT:
        return mkdirat(fd, addr, len);
    case IORING_OP_SYMLINKAT:
        return symlinkat(addr, fd, second);
    case IORING_OP_LINKAT:
        return linkat(fd, addr, (int)len, second, flags);
    default:
        errno = EACCES;
        return -1;
    }
}

int64_t tu_system_call(unsigned opcode, int fd, void *addr, unsigned len, uint64_t off, unsigned op_flags, int file_index)
{
    int64_t done;

    TU_LET_GO;
    do
        done = once(opcode, fd, addr, len, off, op_flags, file_index);
    while (done < 0 && errno == EINTR && opcode != IORING_OP_CLOSE && opcode != IORING_OP_CONNECT);
    if (done < 0)
        done = -errno;
    TU_TAKE_BACK;
    return done;
}
