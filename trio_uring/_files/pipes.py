"""Layer 3, pipes: the methods of trio.lowlevel.FdStream as direct ring operations.

An FdStream holds a pipe, a FIFO, a terminal, or whatever else has a descriptor and no position: the standard streams of
a child process, in Trio and in AnyIO, are FdStreams. Knows what its methods promise; knows nothing of how they come to be in
Trio's class (the seams put them there) nor of when an operation is over (`operation`).

Each function here takes Trio's own method and answers the one that replaces it. What the replacement cannot serve exactly goes
to Trio's own, which works on the ring as well, through polls: a run on another backend, a closed stream, a stream or a
descriptor that is busy, arguments that are an error or are nothing. And a run in which somebody has put something in the place of
the manager's `wait_readable` or `wait_writable`, as Trio's own tests of FdStream do: they want the waiting to go
through it. `wait_send_all_might_not_block` is a poll and stays Trio's.

FdStream makes its descriptor non-blocking. A ring write of a pipe, a terminal, an eventfd waits nevertheless (F20),
since the kernel polls by itself and tries again; where it gives up and answers EAGAIN, `Operation.failed` takes the poll.
The offset -1 stands for the file's own position, which streams have not and odd files, such as a regular one, have.

A receive reads, waits in a poll and reads again, so that nothing that waits owns memory (F46). An IORING_OP_READ would have
to have its memory from the beginning, since a provided buffer is no way out: kernels before 6.17 name one in completions
of that operation that took none (F36), and giving it back twice would hand it to two receives.

Child processes
===============
`trio.Process.wait` waits until a pidfd is readable, which on the ring is a poll: no thread, no memory, an abort that takes
effect at once. IORING_OP_WAITID (kernel 6.7) would not make it better. Popen collects the exit status by itself, so the operation
could only wait (WNOWAIT), and the pidfd is open either way; a process number, unlike a pidfd, may be another process's
by then; its siginfo must outlive the request (F2), so that a cancelled wait would have to wait once more; and
its cancel has results of its own (F15). For 200 children killed at once both took 60 µs each (6.18).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Any, Final, NoReturn

import trio
from trio._unix_pipes import DEFAULT_RECEIVE_SIZE

from .._loop.calls import CURRENT_POSITION, MAX_RW_COUNT, NOT_NOW, AsyncMethod, attempt, replaces, ring_manager
from .._loop.manager import UringIOManager
from .._loop.operation import Operation, schedule_point
from .._ring.ring import OP_WRITE, ffi, lib

# Where an FdStream's holder of its descriptor keeps what `_has_position` has found.
HAS_POSITION: Final = "_trio_uring_has_position"

WAIT_READABLE: Final = UringIOManager.wait_readable
WAIT_WRITABLE: Final = UringIOManager.wait_writable


def _closed() -> trio.ClosedResourceError:
    return trio.ClosedResourceError("file was already closed")


def _translated(error: OSError) -> NoReturn:
    """What FdStream makes of an error of read(2) or write(2)."""
    if error.errno == errno.EBADF:
        raise _closed() from None
    raise trio.BrokenResourceError from error


def _has_position(holder: Any) -> bool:
    """Whether it is a regular file, at whose position read(2) and write(2) hold a lock and the ring does not (F42).

    For Trio's own method, then, which calls these on the spot, on epoll as well.
    """
    found: bool | None = holder.__dict__.get(HAS_POSITION)
    if found is None:
        where = lib.tu_where(holder.fd, ffi.NULL)
        found = holder.__dict__[HAS_POSITION] = where >= 0 and stat.S_ISREG(where)
    return found


def receive_some(original: AsyncMethod) -> AsyncMethod:
    """FdStream.receive_some."""

    @replaces(original)
    async def receive_some(self: trio.lowlevel.FdStream, max_bytes: int | None = None) -> bytes:
        manager = ring_manager()
        detector = self._receive_conflict_detector
        fd = self._fd_holder.fd
        most = DEFAULT_RECEIVE_SIZE if max_bytes is None else max_bytes
        if (
            manager is None
            or detector._held
            or fd < 0
            or fd in manager.readers
            or type(most) is not int
            or not 0 < most <= MAX_RW_COUNT
            or UringIOManager.wait_readable is not WAIT_READABLE
        ):
            return await original(self, max_bytes)  # type: ignore[no-any-return]
        detector._held = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                data = os.read(fd, most)
            except BlockingIOError:
                pass
            except OSError:
                await schedule_point()
                raise
            else:
                await schedule_point()
                return data
            while True:
                await manager.wait_ready(fd, manager.readers)
                with contextlib.suppress(BlockingIOError):  # somebody else has read it
                    return os.read(self._fd_holder.fd, most)
        except OSError as error:
            _translated(error)
        finally:
            detector._held = False

    return receive_some


def send_all(original: AsyncMethod) -> AsyncMethod:
    """FdStream.send_all: a write after the other until all is written, each as much as the kernel takes.

    The first is tried in place (`UringBackend.speculate`): there is nearly always room, and write(2) costs less than an entry.

    What was written when a cancel ended it stays written, as in Trio: a short write is a completion, and the cancel is seen
    before the next one is queued.
    """

    @replaces(original)
    async def send_all(self: trio.lowlevel.FdStream, data: bytes | bytearray | memoryview) -> None:
        manager = ring_manager()
        detector = self._send_conflict_detector
        fd = self._fd_holder.fd
        memory = None
        if (
            manager is not None
            and not detector._held
            and fd >= 0
            and fd not in manager.writers
            and not _has_position(self._fd_holder)
            and UringIOManager.wait_writable is WAIT_WRITABLE
        ):
            memory = _readable(data)
        if manager is None or memory is None:
            return await original(self, data)  # type: ignore[no-any-return]
        size = len(memory)
        sent = 0
        operation: Operation | None = None
        detector._held = True
        try:
            if manager.at_hand:
                now = await attempt(fd, True, os.write, fd, data)
                sent = 0 if now is NOT_NOW else now
            while sent < size:
                if self._fd_holder.closed:  # since the last write
                    raise _closed()
                operation = Operation(manager, fd, memory, manager.writers)
                sent += await operation.perform(
                    OP_WRITE, memory + sent, min(size - sent, MAX_RW_COUNT), CURRENT_POSITION
                )
        except OSError as error:
            _translated(error)
        finally:
            detector._held = False
            # Not left to the frames of a traceback: they would keep the caller's memory pinned.
            if operation is None or operation.user_data not in manager.operations:
                ffi.release(memory)
        return None

    return send_all


def _readable(data: Any) -> Any:
    """Pinned, contiguous memory that is not empty, or None."""
    try:
        memory = ffi.from_buffer(data)
    except (TypeError, BufferError, ValueError):
        return None
    return memory if len(memory) else None
