"""Layer 3, positional files: reads, writes and facts of an open file that take the offset with them.

Knows what each call means to a user and which entry says it; knows nothing of how a run came to be on the ring. Trio and
AnyIO have no such calls, so these are public names. A file here is anything with a descriptor: an int, a builtin file, an
async file of Trio or AnyIO. Only its descriptor is used: bytes that a buffered file has taken and not flushed are not
in the file yet, and its own position never moves.

In a run on another backend every function serves through Trio's worker threads, so a library can call it without asking.
There a transfer that has begun is not cancelled. On the ring it is, by the rule of the whole project: the cancel is
asked for, the kernel's answer decides, and memory stays pinned until that answer.

Reads and writes are whole: a short transfer goes on where it stopped, so that fewer bytes mean the end of the file. A
write that is cancelled after a part has gone to the file answers that number, and the next checkpoint raises Cancelled.

Direct I/O (O_DIRECT). Reads that make their own memory make it aligned; what is off is refused before anything is queued
(../_ring/requests.py).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

import attrs
import trio

from .._loop.calls import MAX_RW_COUNT, WORKER_THRESHOLD, address_of, ring_manager
from .._loop.manager import UringIOManager
from .._loop.operation import (
    ENDING_EXCEPTIONS,
    GLOBAL_RUN_CONTEXT,
    Operation,
    close_descriptor,
    os_error,
    redeliver,
)
from .._loop.transfers import Transfer, enter
from .._ring.requests import (
    INT_MAX,
    LAST,
    PAGE,
    TU_DIRECT,
    File,
    aligned_buffer,
    alignment_of,
    check_aligned,
    descriptor,
    kind,
    pinned,
    span,
    sqe_flags_of,
    whole_number,
)
from .._ring.ring import OP_FALLOCATE, OP_FSYNC, OP_READ, OP_STATX, OP_WRITE, OP_WRITEV, ffi, lib, tu_read_cached

Path: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"

_IOV_MAX: Final = 1024
_KEPT_ALIGNED: Final = 1 << 20  # bytes of each size that a run keeps for the next direct reads
_DATASYNC: Final = 1  # IORING_FSYNC_DATASYNC
_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_EMPTY_PATH: Final = 0x1000
_STATX_SIZE: Final = 256
_STATX_DIOALIGN: Final = 0x2000
_STATX_ASKED: Final = 0x7FF | 0x800 | 0x1000 | _STATX_DIOALIGN  # basic, birth time, mount, direct I/O
tu_read = lib.tu_read
tu_rw = lib.tu_rw


# ------------------------------------------------------------------ transfers


@trio.lowlevel.enable_ki_protection
async def transfer_whole(
    manager: UringIOManager,
    opcode: int,
    fd: int,
    memory: Any,
    length: int,
    offset: int,
    ended: Transfer | None = None,
    sqe_flags: int = 0,
    at_hand: bool = True,
) -> int:
    """Read or write all of it. A cancel point; a schedule point as `read_at`, or without `at_hand` each time.

    Args:
      opcode: OP_READ or OP_WRITE.
      memory: bytes, or a cffi array; kept until the last completion.
      ended: the first transfer of it, if that has been made already.
      sqe_flags: `sqe_flags_of` the descriptor.
      at_hand: whether it may be in the page cache.

    Returns the bytes moved: fewer than asked at the end of a file, and for a write that was cancelled, or whose descriptor
    was closed, after a part of it was in the file.
    """
    task = GLOBAL_RUN_CONTEXT.task
    if ended is None and (task._cancel_status.effectively_cancelled or task._runner.ki_pending):
        await trio.lowlevel.checkpoint_if_cancelled()
    if at_hand and ended is None and opcode == OP_READ and manager.at_hand and length <= WORKER_THRESHOLD:
        got: int = lib.tu_pread_cached(
            manager.at_hand,
            fd,
            ffi.from_buffer("char[]", memory) if memory.__class__ is bytes else memory,
            length,
            offset,
        )
        if got >= 0:
            return got
    done = 0
    address = memory
    while True:
        if ended is not None:
            transfer, ended = ended, None
        else:
            transfer = manager.transfers.pop() if manager.transfers else Transfer(manager)
            size = min(length - done, MAX_RW_COUNT)
            enter(transfer, fd, memory, task)
            try:
                rc = tu_rw(transfer.ring, opcode, fd, address, size, offset + done, sqe_flags, transfer.user_data)
                if not rc:
                    await transfer.trap
            except BaseException:
                transfer.unwind()
                raise
            if rc:
                transfer.unwind()
                manager.ring._fail(rc)
        result = transfer.result
        if result >= 0:
            raise_cancel = transfer.raise_cancel
            if raise_cancel is None:
                manager.transfers.append(transfer)
            done += result
            if done == length or result == 0:
                return done
            if raise_cancel is not None:
                if opcode == OP_WRITE:
                    return done
                raise_cancel()
        elif result == -errno.EINVAL and done and opcode == OP_READ:
            return done  # direct I/O: the file ends between two blocks, and the next read would begin there
        else:
            try:
                if transfer.refused():
                    pointer = ffi.from_buffer("char[]", address) if address.__class__ is bytes else address
                    left = min(length - done, MAX_RW_COUNT)
                    moved = await transfer.by_system_call(memory, opcode, pointer, left, offset + done)
                    done += moved
                    if done == length or moved == 0:
                        return done
                else:
                    await transfer.failed()
            except ENDING_EXCEPTIONS as error:
                if not done or opcode == OP_READ:
                    raise
                redeliver(error)
                return done
            finally:
                transfer.keep = None
        if done:
            address = (ffi.from_buffer("char[]", memory) if memory.__class__ is bytes else memory) + done


async def _transfer_pinned(
    manager: UringIOManager, opcode: int, fd: int, memory: Any, length: int, offset: int, found: int
) -> int:
    """`transfer_whole`, and the memory is let go as soon as the kernel has done so.

    Not left to the frames of a traceback: they would keep the caller's buffer from being resized.
    """
    try:
        done = await transfer_whole(
            manager, opcode, fd, memory, length, offset, None, sqe_flags_of(found), not found & TU_DIRECT
        )
    except BaseException:
        if not any(operation.keep is memory for operation in manager.concurrent.get(fd, ())):
            ffi.release(memory)
        raise
    ffi.release(memory)
    return done


# Of a run, by size: memory for direct reads that is free.
_free_aligned: trio.lowlevel.RunVar[dict[int, list[Any]]] = trio.lowlevel.RunVar(
    "trio_uring free memory of direct reads"
)
# The descriptor that was last read with O_DIRECT, whose next read is not tried in the page cache: a hint, since its number may be
# another file's by now, or another run's.
_last_direct = -1


def _aligned(length: int) -> tuple[list[Any], Any]:
    """Memory for a direct read of so many bytes, page by page; and where it is kept when it is free again.

    A mapping is shared between a process and what it forks: private, its pages might become the child's under the device.
    """
    size = max(PAGE, 1 << (length - 1).bit_length())
    try:
        by_size = _free_aligned.get()
    except LookupError:
        by_size = {}
        _free_aligned.set(by_size)
    free = by_size.setdefault(size, [])
    return free, free.pop() if free else ffi.from_buffer("char[]", aligned_buffer(size))


async def _read_direct(manager: UringIOManager, fd: int, length: int, offset: int, found: int) -> bytes:
    """A read with O_DIRECT that makes its own memory, which has to be aligned; a bytes object's is not."""
    free, memory = _aligned(length)
    done = await transfer_whole(manager, OP_READ, fd, memory, length, offset, None, sqe_flags_of(found), False)
    data: bytes = ffi.buffer(memory, done)[:]
    # After an error it is not kept: the kernel may still have it.
    if (len(free) + 1) * len(memory) <= _KEPT_ALIGNED:
        free.append(memory)
    return data


def _pread(fd: int, length: int, offset: int, direct: int) -> bytes:
    if direct and length:
        memory = aligned_buffer(length)
        return bytes(memory[: _preadv(fd, memory, offset)])
    data = os.pread(fd, length, offset)
    while 0 < len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _preadv(fd: int, memory: memoryview, offset: int) -> int:
    done = 0
    while done < len(memory):
        try:
            more = os.preadv(fd, [memory[done : done + MAX_RW_COUNT]], offset + done)
        except OSError as error:
            if error.errno == errno.EINVAL and done:
                return done
            raise
        if not more:
            return done
        done += more
    return done


def _pwrite(fd: int, memory: memoryview, offset: int) -> int:
    done = os.pwrite(fd, memory[:MAX_RW_COUNT], offset)
    while done < len(memory):
        done += os.pwrite(fd, memory[done : done + MAX_RW_COUNT], offset + done)
    return done


@trio.lowlevel.enable_ki_protection
async def read_at(file: File, length: int, offset: int) -> bytes:
    """Read `length` bytes at `offset`; fewer only where the file ends (pread(2)).

    Args:
      file: a descriptor, or an open file of Python's, Trio's or AnyIO's; its own position does not move.
      length: bytes, at most 2,147,479,552.
      offset: bytes from the beginning of the file.

    Any number of tasks may read one descriptor at a time. A cancel point always. What is in the page cache is answered on the
    spot, by preadv2(2) with RWF_NOWAIT where the file system has it (ext4, XFS, Btrfs), for a millisecond in a row: a schedule
    point at least as often, and whenever there is something to wait for (`UringBackend.speculate`).

    Raises:
      ValueError, TypeError: an argument that cannot be meant; with O_DIRECT an offset or length that is not aligned.
      ClosedResourceError: `trio.lowlevel.notify_closing` was called for the descriptor meanwhile.
      OSError: what the system call raises: EBADF, ESPIPE for what has no positions, EISDIR, EIO.
    """
    global _last_direct
    plain: Any = file
    if (
        plain.__class__ is length.__class__ is offset.__class__ is int
        and 0 <= plain <= INT_MAX
        and 0 <= length <= MAX_RW_COUNT
    ):
        # What follows, and `transfer_whole`, for the plain case in a row: a read from the page cache takes the kernel less
        # time than the calls in between would.
        try:
            task = GLOBAL_RUN_CONTEXT.task
            manager = task._runner.io_manager
            transfers = manager.transfers  # no other manager has that
            free = not (task._cancel_status.effectively_cancelled or task._runner.ki_pending)
        except AttributeError:
            free = False
        if free and 0 <= offset <= LAST - MAX_RW_COUNT and plain != _last_direct:
            if manager.at_hand and length <= WORKER_THRESHOLD:
                at_hand = tu_read_cached(manager.at_hand, plain, length, offset)
                if at_hand is not None:
                    return at_hand
            # Nobody else has seen these bytes yet, so the kernel may write them: no second copy.
            data = bytes(length)
            transfer = transfers.pop() if transfers else Transfer(manager)
            enter(transfer, plain, data, task)
            try:
                other = tu_read(transfer.ring, plain, data, length, offset, transfer.user_data)
                if not other:
                    await transfer.trap
            except BaseException:
                transfer.unwind()
                raise
            if other:
                transfer._withdraw()
                del manager.operations[transfer.user_data]
                transfer.fd = -1
                transfers.append(transfer)
            else:
                if transfer.result == length and transfer.raise_cancel is None:
                    transfers.append(transfer)
                    return data
                done = await transfer_whole(manager, OP_READ, plain, data, length, offset, transfer)
                return data if done == length else data[:done]
    fd = descriptor(file)
    length, offset = span(length, offset)
    found = kind(fd)
    direct = found & TU_DIRECT
    if direct:
        check_aligned(alignment_of(fd), length, offset)
    manager = ring_manager()
    if manager is None:
        return await trio.to_thread.run_sync(_pread, fd, length, offset, direct)
    _last_direct = fd if direct else -1
    if direct and length:
        return await _read_direct(manager, fd, length, offset, found)
    data = bytes(length)
    done = await transfer_whole(manager, OP_READ, fd, data, length, offset, None, sqe_flags_of(found))
    return data if done == length else data[:done]


@trio.lowlevel.enable_ki_protection
async def _whole(
    opcode: int, in_thread: Callable[[int, memoryview, int], int], file: File, buffer: Any, name: str, offset: int
) -> int:
    """A whole buffer of the caller's, who calls it `name`, read into or written: `readinto_at` and `write_at`."""
    fd = descriptor(file)
    memory = pinned(buffer, name, writable=opcode == OP_READ)
    try:
        length, offset = span(len(memory), offset)
        found = kind(fd)
        if found & TU_DIRECT:
            check_aligned(alignment_of(fd), length, offset, address_of(memory))
        manager = ring_manager()
        if manager is None:
            with memoryview(buffer) as view, view.cast("B") as flat:
                return await trio.to_thread.run_sync(in_thread, fd, flat, offset)
    except BaseException:
        ffi.release(memory)
        raise
    return await _transfer_pinned(manager, opcode, fd, memory, length, offset, found)


@trio.lowlevel.enable_ki_protection
async def readinto_at(file: File, buffer: Any, offset: int) -> int:
    """Fill a writable buffer from `offset` on, and answer the number of bytes; fewer only where the file ends.

    Args:
      file, offset: as for `read_at`.
      buffer: writable memory in one piece: a bytearray, memoryview, array, mmap.

    The buffer is pinned until the kernel has let go of it: whoever resizes it meanwhile gets BufferError. Raises as
    `read_at`; with O_DIRECT also ValueError for an address that is not aligned (`aligned_buffer`).
    """
    return await _whole(OP_READ, _preadv, file, buffer, "buffer", offset)


@trio.lowlevel.enable_ki_protection
async def write_at(file: File, data: Any, offset: int) -> int:
    """Write all of `data` at `offset`, and answer the number of bytes written (pwrite(2)).

    Args:
      file, offset: as for `read_at`; the file is open for writing.
      data: anything that is bytes in one piece; it is pinned until the kernel has let go of it.

    That is fewer than `data` has in one case: it was cancelled, or its descriptor announced as closing, when a part was in
    the file already; the answer is that part, and the next checkpoint raises Cancelled. Where an error ends it, what was
    written before stays in the file. With O_APPEND Linux writes at the end of the file whatever the offset.

    Raises as `readinto_at`, and OSError with ENOSPC, EDQUOT, EFBIG.
    """
    return await _whole(OP_WRITE, _pwrite, file, data, "data", offset)


@trio.lowlevel.enable_ki_protection
async def writev_at(file: File, buffers: Iterable[Any], offset: int) -> int:
    """Write several buffers one after the other at `offset`, as one, and answer the number of bytes (pwritev(2)).

    Args:
      file, offset: as for `write_at`.
      buffers: each as the `data` of `write_at`; taken once, so an iterator serves.

    Where a part is the answer, and what it raises: as `write_at`.
    """
    fd = descriptor(file)
    memory = [pinned(buffer, f"buffers[{i}]", writable=False) for i, buffer in enumerate(buffers)]
    try:
        total, offset = span(sum(map(len, memory)), offset)
        found = kind(fd)
        if found & TU_DIRECT:
            want = alignment_of(fd)
            for i, part in enumerate(memory):
                check_aligned(want, len(part), offset, address_of(part), f"buffers[{i}]: ")
    except BaseException:
        for part in memory:
            ffi.release(part)
        raise
    manager = ring_manager()
    done = 0
    while True:
        try:
            if manager is None:
                result = await _writev_in_thread(fd, memory, done, offset + done)
            else:
                result = await _writev(manager, fd, memory, done, offset + done, sqe_flags_of(found))
        except ENDING_EXCEPTIONS as error:
            if not done:
                raise
            redeliver(error)
            break
        done += result
        if done == total or not result:
            break
    for part in memory:
        ffi.release(part)
    return done


def _vector(memory: Sequence[Any], skip: int) -> list[tuple[Any, int]]:
    """Address and size of what is left after the first `skip` bytes; at most as much as one call takes."""
    vector: list[tuple[Any, int]] = []
    room = MAX_RW_COUNT
    for part in memory:
        if skip >= len(part):
            skip -= len(part)
            continue
        size = min(len(part) - skip, room)
        vector.append((part + skip, size))
        room -= size
        skip = 0
        if not room or len(vector) == _IOV_MAX:
            break
    return vector


async def _writev_in_thread(fd: int, memory: Sequence[Any], skip: int, offset: int) -> int:
    views = [ffi.buffer(start, size) for start, size in _vector(memory, skip)]
    try:
        return await trio.to_thread.run_sync(os.pwritev, fd, views, offset)
    except BaseException:
        for part in memory:
            ffi.release(part)
        raise


async def _writev(
    manager: UringIOManager, fd: int, memory: Sequence[Any], skip: int, offset: int, sqe_flags: int
) -> int:
    vector = _vector(memory, skip)
    iovecs = ffi.new("uintptr_t[]", [int(word) for start, size in vector for word in (address_of(start), size)] or 2)
    operation = Operation(manager, fd, (memory, iovecs), None)
    try:
        return await operation.perform(OP_WRITEV, ffi.cast("void *", iovecs), len(vector), offset, sqe_flags=sqe_flags)
    except BaseException:
        # As in `_transfer_pinned`.
        if operation.user_data not in manager.operations:
            for part in memory:
                ffi.release(part)
        raise


# ------------------------------------------------------------------ the file as a whole


async def fsync(file: File) -> None:
    """Return when the data and metadata of an open file are on the device (fsync(2)).

    What a buffered `file` of Python's holds back is not among it: flush it before. Raises OSError as the system call: EIO,
    ENOSPC, EBADF, EINVAL for what cannot be synchronised.
    """
    await _sync(descriptor(file), 0, os.fsync)


async def fdatasync(file: File) -> None:
    """Return when the data of an open `file` is on the device, and of its metadata what reading it needs (fdatasync(2)).

    Otherwise as `fsync`.
    """
    await _sync(descriptor(file), _DATASYNC, os.fdatasync)


async def _sync(fd: int, flags: int, in_thread: Any) -> None:
    manager = ring_manager()
    if manager is None:
        await trio.to_thread.run_sync(in_thread, fd)
    else:
        await Operation(manager, fd, None, None).perform(OP_FSYNC, None, 0, op_flags=flags)


async def fallocate(file: File, offset: int, length: int, mode: int = 0) -> None:
    """Reserve, punch, zero or collapse a range of a file (fallocate(2)).

    Args:
      file: open for writing.
      offset, length: of the range, in bytes; a length of at least 1.
      mode: FALLOC_FL flags of linux/falloc.h; 0 reserves, and makes the file longer where it ends before the range does.

    Raises OSError as the system call: ENOSPC, EOPNOTSUPP where the file system has no such thing, EBADF where the file
    is not open for writing.
    """
    fd = descriptor(file)
    length, offset = span(length, offset)
    mode = whole_number(mode, "mode", INT_MAX)
    if not length:
        raise ValueError("length must be at least 1")
    manager = ring_manager()
    if manager is None:
        result = await trio.to_thread.run_sync(lib.tu_fallocate, fd, mode, offset, length)
        if result < 0:
            raise os_error(result)
    else:
        where = ffi.cast("void *", length)  # the entry has the length where others have an address
        await Operation(manager, fd, None, None).perform(OP_FALLOCATE, where, mode, offset)


@attrs.frozen
class StatxResult:
    """What statx(2) tells of a file. Times are integers, nanoseconds since 1970-01-01 UTC.

    Named as in os.statx_result (CPython 3.15), without ``stx_``.

    Attributes:
      mask: STATX flags of the fields that the file system filled in.
      blksize: preferred block for I/O, in bytes; blocks: 512-byte blocks that it occupies.
      attributes, attributes_mask: STATX_ATTR flags, and which of them the file system knows.
      btime_ns: when it was made; None where the file system does not keep it.
      dev, rdev: as in os.stat_result.
      mnt_id: of the mount (kernel 5.8).
      dio_mem_align, dio_offset_align: what direct I/O wants of addresses, and of offsets and lengths, in bytes (kernel 6.1);
        None where that is not known, 0 where the file has no direct I/O.
    """

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime_ns: int
    btime_ns: int | None
    ctime_ns: int
    mtime_ns: int
    rdev: int
    dev: int
    mnt_id: int
    dio_mem_align: int | None
    dio_offset_align: int | None

    @classmethod
    def _unpack(cls, raw: bytes) -> StatxResult:
        (
            mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask,
            *times, rdev_major, rdev_minor, dev_major, dev_minor, mnt_id, mem_align, offset_align,
        ) = struct.unpack_from("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQII", raw)  # fmt: skip
        atime, btime, ctime, mtime = (s * 1_000_000_000 + ns for s, ns in zip(times[::2], times[1::2], strict=True))
        direct = mask & _STATX_DIOALIGN
        return cls(
            mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask,
            atime, btime if mask & 0x800 else None, ctime, mtime,
            os.makedev(rdev_major, rdev_minor), os.makedev(dev_major, dev_minor), mnt_id,
            mem_align if direct else None, offset_align if direct else None,
        )  # fmt: skip


class Duplicate(Operation):
    """An operation whose entry names a descriptor that the kernel looks up late, in a worker, or not as the entry's file.

    A close meanwhile could give that number to another file (F17). So the entry names a duplicate, which nobody else
    closes, and which is closed when the operation is over.
    """

    __slots__ = ("duplicate",)

    def __init__(self, manager: UringIOManager, keep: object, of: int) -> None:
        self.duplicate = os.dup(of)
        super().__init__(manager, self.duplicate, keep, None)

    def over(self) -> None:
        """For the task's `finally`: if the entry is still the kernel's, `discard` closes."""
        if self.user_data not in self.manager.operations:
            self._close()

    def _close(self) -> None:
        if self.duplicate >= 0:
            close_descriptor(self.duplicate)
            self.duplicate = -1

    def discard(self, result: int, flags: int) -> None:
        """Nobody waits any more."""
        super().discard(result, flags)
        self._close()


class _OfPath:
    """For who looks at the operation from outside: what it is on, besides a descriptor."""

    __slots__ = ()

    @property
    def names(self: Any) -> tuple[str, ...]:
        """The path, as long as the kernel has it; none of an open file."""
        return () if self.keep is None else (os.fsdecode(ffi.string(self.keep[0])),)


class Statx(_OfPath, Operation):
    """IORING_OP_STATX of a path from the working directory, or from the root."""

    __slots__ = ()


class StatxAt(_OfPath, Duplicate):
    """IORING_OP_STATX of a path from a directory that is open, or of an open file."""

    __slots__ = ()


def _statx_in_thread(dirfd: int, path: bytes, flags: int) -> StatxResult:
    out = ffi.new("char[]", _STATX_SIZE)
    result = lib.tu_statx(dirfd, path, flags, _STATX_ASKED, out)
    if result < 0:
        raise os_error(result)
    return StatxResult._unpack(bytes(ffi.buffer(out)))


@trio.lowlevel.enable_ki_protection
async def statx(file: File | Path, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> StatxResult:
    """The facts of a file (statx(2), kernel 4.11).

    Args:
      file: a path, or an open file.
      dir_fd: the directory that a relative path starts from, in place of the working directory.
      follow_symlinks: False tells of a link itself.

    Raises OSError with the path as `filename`, as os.stat does.
    """
    flags = 0 if follow_symlinks else _AT_SYMLINK_NOFOLLOW
    of = -1
    named: Any = None
    if isinstance(file, (str, bytes, os.PathLike)):
        named = os.fspath(file)
        path = os.fsencode(named)
        if b"\0" in path:
            raise ValueError("embedded null byte")
        if dir_fd is not None:
            of = descriptor(dir_fd, "dir_fd")
    else:
        if dir_fd is not None:
            raise ValueError("dir_fd is for a path, and file is not one")
        path, flags, of = b"", _AT_EMPTY_PATH, descriptor(file)
    manager = ring_manager()
    try:
        if manager is None:
            return await trio.to_thread.run_sync(_statx_in_thread, of if of >= 0 else _AT_FDCWD, path, flags)
        return await _statx(manager, of, path, flags)
    except OSError as error:
        if named is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, named) from None


async def _statx(manager: UringIOManager, of: int, path: bytes, flags: int) -> StatxResult:
    where = ffi.from_buffer("char[]", path + b"\0")
    out = ffi.new("char[]", _STATX_SIZE)
    keep = (where, out)
    if of < 0:
        operation = Statx(manager, _AT_FDCWD, keep, None)
        await operation.perform(OP_STATX, where, _STATX_ASKED, address_of(out), flags)
    else:
        duplicate = StatxAt(manager, keep, of)
        try:
            await duplicate.perform(OP_STATX, where, _STATX_ASKED, address_of(out), flags)
        finally:
            duplicate.over()
    return StatxResult._unpack(bytes(ffi.buffer(out)))
