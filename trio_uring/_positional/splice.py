"""Layer 3, moving data between descriptors without a buffer in user space: splice, sendfile, copying a file.

Knows splice(2) and what stands around it; knows nothing of how a run came to be on the ring.

The kernel has no ring operation for sendfile(2) or copy_file_range(2): both go through a pipe of their own here, one
IORING_OP_SPLICE into it and one out of it, as sendfile(2) does inside the kernel. copy_file_range can share blocks where
the file system does that and needs a thread; in a run on another backend it is what `copy_file` uses.

A splice always runs in one of the kernel's workers, which looks up the source's descriptor when it gets to it. A close
meanwhile could have given the number to another file (F17), so the entry names a duplicate that nobody else closes.

What was moved is never in doubt. A call that is cancelled after a part of the data is at the target answers the number of
bytes that are there, and the next checkpoint raises Cancelled; Cancelled itself means none, and so does KeyboardInterrupt.
Offsets are explicit, so what was in the pipe then is in the source still.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from trio._socket import _SocketType

from .._loop.calls import MAX_RW_COUNT, ring_manager
from .._loop.manager import UringIOManager
from .._loop.operation import ENDING_EXCEPTIONS, Operation, close_descriptor, redeliver
from .._ring.requests import File, descriptor, kind, pinned, span, sqe_flags_of, whole_number
from .._ring.ring import OP_READ, OP_SPLICE, OP_WRITE, ffi
from .positional import transfer_whole

SPLICE_F_MOVE: Final = 1
SPLICE_F_NONBLOCK: Final = 2
SPLICE_F_MORE: Final = 4
_NO_OFFSET: Final = (1 << 64) - 1
_PIPE_SIZE: Final = 1 << 20  # what an unprivileged process may ask for (/proc/sys/fs/pipe-max-size)
_AT_A_TIME: Final = 256 << 10  # with a buffer
# What a file system says that does not splice, or of a target with O_APPEND.
_NO_SPLICE: Final = frozenset((errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS))
_NO_RANGE: Final = _NO_SPLICE | {errno.EXDEV, errno.EBADF, errno.ETXTBSY}


class Splice(Operation):
    """IORING_OP_SPLICE. The entry's file is the target; the source is a duplicate, closed when it is over."""

    needs_worker = True

    __slots__ = ("duplicate", "source")

    def __init__(self, manager: UringIOManager, source: int, target: int, waiters: dict[int, Any] | None) -> None:
        self.duplicate = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 0)
        self.source = source
        super().__init__(manager, target, None, waiters)

    async def splice(self, count: int, offset_source: int | None, offset_target: int | None, flags: int) -> int:
        """One splice, once; BlockingIOError where a descriptor is non-blocking and not ready."""
        where = ffi.cast("void *", _NO_OFFSET if offset_source is None else offset_source)
        # A close of the source has to end it as well.
        same_source = self.manager.concurrent.setdefault(self.source, set())
        same_source.add(self)
        try:
            return await self.perform(
                OP_SPLICE,
                where,
                min(count, MAX_RW_COUNT),
                _NO_OFFSET if offset_target is None else offset_target,
                flags,
                file_index=self.duplicate,
            )
        finally:
            if self.user_data not in self.manager.operations:
                self._over()

    def complete(self, result: int, flags: int) -> Any:
        """The completion has been reaped."""
        task = super().complete(result, flags)
        self._forget_source()
        return task

    def discard(self, result: int, flags: int) -> None:
        """Nobody waits any more."""
        super().discard(result, flags)
        self._over()

    def _over(self) -> None:
        self._forget_source()
        if self.duplicate >= 0:
            close_descriptor(self.duplicate)
            self.duplicate = -1

    def _forget_source(self) -> None:
        same_source = self.manager.concurrent.get(self.source)
        if same_source is not None:
            same_source.discard(self)
            if not same_source:
                del self.manager.concurrent[self.source]


# ------------------------------------------------------------------ splice


@trio.lowlevel.enable_ki_protection
async def splice(
    source: File,
    target: File,
    count: int,
    offset_source: int | None = None,
    offset_target: int | None = None,
    flags: int = 0,
) -> int:
    """Move at most `count` bytes between two descriptors, one of which is a pipe (splice(2)).

    Args:
      source, target: open files, pipes, sockets, or their descriptors.
      count: bytes.
      offset_source, offset_target: a position in a file; None for a pipe or socket, and for a file's own position, which moves.
      flags: SPLICE_F flags.

    Returns the bytes moved; 0 at the end of the source. It waits for non-blocking descriptors too.

    Raises as os.splice: EINVAL where neither is a pipe, or the file system does not splice.
    """
    fds = descriptor(source, "source"), descriptor(target, "target")
    count = whole_number(count, "count")
    if offset_source is not None:
        offset_source = whole_number(offset_source, "offset_source")
    if offset_target is not None:
        offset_target = whole_number(offset_target, "offset_target")
    flags = whole_number(flags, "flags", 0xF)
    manager = ring_manager()
    while True:
        try:
            if manager is None:
                return await trio.to_thread.run_sync(os.splice, *fds, count, offset_source, offset_target, flags)
            return await Splice(manager, *fds, None).splice(count, offset_source, offset_target, flags)
        except BlockingIOError:
            if flags & SPLICE_F_NONBLOCK:
                raise
        for fd, ready in zip(fds, (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable), strict=True):
            if not (stat.S_ISREG(os.fstat(fd).st_mode) or stat.S_ISBLK(os.fstat(fd).st_mode)):
                await ready(fd)


class _Pipe:
    """A pipe between two splices, as large as it may be."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.size = fcntl.fcntl(self.write, 1031, _PIPE_SIZE)  # F_SETPIPE_SZ, which the module has from 3.10 on
        except OSError:  # above what this user's pipes may take
            self.size = fcntl.fcntl(self.write, 1032)

    def close(self) -> None:
        """Both ends. An entry in flight has the pipe itself."""
        os.close(self.read)
        os.close(self.write)


async def _through_pipe(
    manager: UringIOManager,
    source: int,
    offset: int,
    count: int | None,
    move_on: Callable[[_Pipe, int, int], Awaitable[int]],
) -> int:
    """From a file into a pipe, and from there by `move_on(pipe, most, already)`, until `count` or the end of the file.

    Returns the bytes that arrived; see the module for what a cancel does.
    """
    done = 0
    pipe = _Pipe()
    try:
        while count is None or done < count:
            most = pipe.size if count is None else min(count - done, pipe.size)
            filled = await Splice(manager, source, pipe.write, None).splice(
                most, offset + done, None, SPLICE_F_MOVE | SPLICE_F_NONBLOCK
            )
            if not filled:
                break
            while filled:
                moved = await move_on(pipe, filled, done)
                filled -= moved
                done += moved
    except ENDING_EXCEPTIONS as error:
        if not done:
            raise
        redeliver(error)
    finally:
        pipe.close()
    return done


# ------------------------------------------------------------------ sendfile


def _socket_of(stream: Any) -> tuple[Any, Callable[[BaseException], BaseException] | None]:
    """Trio's socket, and what turns an exception into the stream's own; TypeError where there is no bare socket."""
    if isinstance(stream, _SocketType):
        return stream, None
    if isinstance(stream, trio.SocketStream):
        if isinstance(stream.socket, _SocketType):
            return stream.socket, _trios_error
    elif isinstance(stream, trio.SSLStream):
        raise TypeError(
            "sendfile cannot send through an SSLStream: the data has to be encrypted first; use send_all(await read_at(…))"
        )
    anyio: Any = sys.modules.get("anyio")
    if anyio is not None:
        if isinstance(stream, anyio.abc.SocketStream):
            return stream.extra(anyio.abc.SocketAttribute.raw_socket), _anyios_error
        tls = sys.modules.get("anyio.streams.tls")
        if tls is not None and isinstance(stream, tls.TLSStream):
            raise TypeError(
                "sendfile cannot send through a TLSStream: the data has to be encrypted first; use send(await read_at(…))"
            )
    raise TypeError(
        "sendfile sends to a trio.SocketStream, a socket of trio.socket or a SocketStream of AnyIO, "
        f"not to {type(stream).__name__}"
    )


def _trios_error(error: BaseException) -> BaseException:
    if isinstance(error, OSError):
        if error.errno == errno.EBADF:
            return trio.ClosedResourceError("this socket was already closed")
        return trio.BrokenResourceError(f"socket connection broken: {error}")
    return error


def _anyios_error(error: BaseException) -> BaseException:
    anyio: Any = sys.modules["anyio"]
    if isinstance(error, trio.ClosedResourceError) or (isinstance(error, OSError) and error.errno == errno.EBADF):
        return anyio.ClosedResourceError()  # type: ignore[no-any-return]
    if isinstance(error, trio.BusyResourceError):
        return anyio.BusyResourceError("writing to")  # type: ignore[no-any-return]
    if isinstance(error, OSError):
        return anyio.BrokenResourceError()  # type: ignore[no-any-return]
    return error


@trio.lowlevel.enable_ki_protection
async def sendfile(stream_or_socket: Any, file: File, offset: int, count: int) -> int:
    """Send `count` bytes of a file, from `offset` on, to a connection (sendfile(2)).

    Args:
      stream_or_socket: a `trio.SocketStream`, a socket of `trio.socket`, or a SocketStream of AnyIO on Trio.
      file: a regular file, open for reading; its own position does not move.
      offset, count: bytes.

    Returns the bytes sent: fewer than `count` only where the file ends, or where it was cancelled after a part had gone: then
    that part is the answer, and the next checkpoint raises Cancelled. Where an error ends it, a part may have gone.

    Raises:
      TypeError: an encrypted stream, or none at all.
      BrokenResourceError, ClosedResourceError, BusyResourceError: of the stream; a bare socket raises OSError.
      OSError: of the file.
    """
    sock, translated = _socket_of(stream_or_socket)
    fd = descriptor(file)
    count, offset = span(count, offset)
    detector = getattr(stream_or_socket, "_send_conflict_detector", None)
    if detector is not None:
        with detector:
            return await _sendfile(sock, fd, offset, count, translated)
    return await _sendfile(sock, fd, offset, count, translated)


async def _sendfile(
    sock: Any, fd: int, offset: int, count: int, translated: Callable[[BaseException], BaseException] | None
) -> int:
    kind(fd)
    await trio.lowlevel.checkpoint_if_cancelled()
    manager = ring_manager()

    async def to_socket(pipe: _Pipe, most: int, already: int) -> int:
        assert manager is not None
        # A segment that is not full waits for the next, unless this is the end of what was asked for.
        more = SPLICE_F_MORE if already + most < count else 0
        try:
            return await Splice(manager, pipe.read, _open(sock), manager.writers).splice(
                most, None, None, SPLICE_F_MOVE | SPLICE_F_NONBLOCK | more
            )
        except (OSError, trio.ClosedResourceError, trio.BusyResourceError) as error:
            if translated is None:
                raise
            better = translated(error)
            if better is error or isinstance(better, trio.ClosedResourceError):
                raise better from None
            raise better from error

    if not count:
        await trio.lowlevel.checkpoint()
        return 0
    if manager is not None:
        return await _through_pipe(manager, fd, offset, count, to_socket)
    return await _sendfile_on_epoll(sock, fd, offset, count, translated)


def _open(sock: Any) -> int:
    fd: int = sock.fileno()
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return fd


async def _sendfile_on_epoll(
    sock: Any, fd: int, offset: int, count: int, translated: Callable[[BaseException], BaseException] | None
) -> int:
    done = 0
    blocked = False
    out = -1  # for the thread: a number that nobody else closes (F17)
    try:
        while done < count:
            try:
                here = _open(sock)
                if out < 0:
                    out = os.dup(here)
                if blocked:
                    await trio.lowlevel.wait_writable(here)
                # In a thread, because the file may have to come from the device; the socket does not block.
                sent = await trio.to_thread.run_sync(os.sendfile, out, fd, offset + done, min(count - done, _PIPE_SIZE))
                blocked = False
            except BlockingIOError:
                blocked = True
                continue
            except OSError as error:
                if translated is None:
                    raise
                raise translated(error) from error
            if not sent:
                break
            done += sent
    except ENDING_EXCEPTIONS as error:
        if not done:
            raise
        redeliver(error)
    finally:
        if out >= 0:
            os.close(out)
    return done


# ------------------------------------------------------------------ copying


@trio.lowlevel.enable_ki_protection
async def copy_file(
    source: File, target: File, count: int | None = None, *, offset_source: int = 0, offset_target: int = 0
) -> int:
    """Copy from one open file to another inside the kernel, without a buffer of this process.

    Args:
      source, target: open for reading, and for writing; descriptors, or files of Python's, Trio's or AnyIO's.
      count: bytes; None for all up to the end of `source`.
      offset_source, offset_target: where to begin; the files' own positions do not move.

    Returns the bytes copied: fewer than `count` only where `source` ends, or where it was cancelled after a part was copied.
    Where an error ends it, a part may have been copied. Where file system or target (O_APPEND) cannot splice, a buffer serves.

    Raises OSError as reading and writing do: ENOSPC, EFBIG, EBADF, ESPIPE where one has no positions.
    """
    fds = descriptor(source, "source"), descriptor(target, "target")
    most, offset_source = span(0 if count is None else count, offset_source)
    _, offset_target = span(most, offset_target)
    for fd in fds:
        kind(fd)
    limit = None if count is None else most
    manager = ring_manager()
    if limit == 0:
        await trio.lowlevel.checkpoint()
        return 0
    if manager is None:
        return await _copy_on_epoll(fds, limit, offset_source, offset_target)
    here = manager

    async def to_file(pipe: _Pipe, filled: int, already: int) -> int:
        return await Splice(here, pipe.read, fds[1], None).splice(filled, None, offset_target + already, SPLICE_F_MOVE)

    try:
        return await _through_pipe(manager, fds[0], offset_source, limit, to_file)
    except OSError as error:
        if error.errno not in _NO_SPLICE:
            raise
    return await _copy_with_buffer(manager, fds, limit, offset_source, offset_target)


async def _copy_with_buffer(
    manager: UringIOManager, fds: tuple[int, int], limit: int | None, offset_source: int, offset_target: int
) -> int:
    memory = pinned(bytearray(_AT_A_TIME), "buffer", writable=True)
    reads, writes = (sqe_flags_of(kind(fd)) for fd in fds)
    done = 0
    try:
        while limit is None or done < limit:
            size = _AT_A_TIME if limit is None else min(_AT_A_TIME, limit - done)
            size = await transfer_whole(manager, OP_READ, fds[0], memory, size, offset_source + done, None, reads)
            if not size:
                break
            written = await transfer_whole(manager, OP_WRITE, fds[1], memory, size, offset_target + done, None, writes)
            done += written
            if written < size:
                break
    except ENDING_EXCEPTIONS as error:
        if not done:
            raise
        redeliver(error)
    return done


def _copy_some(fds: tuple[int, int], size: int, offset_source: int, offset_target: int) -> int:
    try:
        return os.copy_file_range(*fds, size, offset_source, offset_target)
    except OSError as error:
        if error.errno not in _NO_RANGE:
            raise
    data = os.pread(fds[0], min(size, _AT_A_TIME), offset_source)
    done = 0
    while done < len(data):
        done += os.pwrite(fds[1], data[done:], offset_target + done)
    return done


async def _copy_on_epoll(fds: tuple[int, int], limit: int | None, offset_source: int, offset_target: int) -> int:
    done = 0
    try:
        while limit is None or done < limit:
            size = 8 * _PIPE_SIZE if limit is None else min(8 * _PIPE_SIZE, limit - done)
            copied = await trio.to_thread.run_sync(_copy_some, fds, size, offset_source + done, offset_target + done)
            if not copied:
                break
            done += copied
    except ENDING_EXCEPTIONS as error:
        if not done:
            raise
        redeliver(error)
    return done
