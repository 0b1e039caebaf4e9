"""Layer 2, the life of an operation: one entry in the ring, the memory it names, and the task that waits for it.

Everything that decides how an operation ends stands in this file. It knows Trio's scheduler and the ring; what a call
means to a user (a socket, a file) is for the layers above.

Theory of operation
===================
The kernel owns the memory of an entry from the moment it is queued until its last completion is reaped, whatever
happens to the task meanwhile. So the manager, not the task, holds the operation: `manager.inflight` maps the entry's
user_data to it, and only `complete` takes it out. user_data is a counter that never goes back, so a completion names
one operation for ever, and one that names none is stale and dropped.

The completion of the entry decides, never the cancel's (invariant 1). A cancel is a wish: it is queued behind its
target in the same queue, so it cannot overtake it, and its own result is ignored.

    state       event                          next        what happens
    ---------   ----------------------------   ---------   -------------------------------------------------------
    in flight   completion                     done        the task is rescheduled
    in flight   Trio aborts, Operation         cancelling  the cancel is queued, Abort.FAILED: the task sleeps on
    in flight   Trio aborts, Poll              abandoned   the cancel is queued, Abort.SUCCEEDED: a poll owns nothing
    in flight   notify_closing, Operation      closing     the requests on the file are cancelled at once
    in flight   notify_closing, Poll           abandoned   the same, and ClosedResourceError for the task
    in flight   the coroutine is torn down     abandoned   the cancel is queued, nobody is rescheduled
    cancelling  completion, result >= 0        done        delivered: the bytes have moved
    cancelling  completion, interrupted        done        Cancelled
    cancelling  completion, other error        done        the error is raised: it did happen
    closing     completion, result >= 0        done        delivered
    closing     completion, interrupted        done        ClosedResourceError
    in flight   completion, interrupted        in flight   queued again: nobody here asked (below)
    abandoned   completion                     done        forgotten

"Interrupted" is -ECANCELED, -EINTR or one of the kernel's internal restart codes, which escape from operations that
were blocked in a worker (F15, F28). One that nobody asked for has two innocent causes. A signal; and a cancel by
descriptor of another descriptor of the same open file, since the kernel compares files and not numbers.

KeyboardInterrupt: everything from taking a user_data to entering the operation in `inflight` runs under Trio's
protection (invariant 10), because `perform` and Trio's own wait_readable and wait_writable are marked with it.
"""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from ._ring import CQE_F_MORE, OP_POLL_ADD, POLL_ADD_MULTI

if TYPE_CHECKING:
    from ._manager import UringIOManager

# ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK: internal to the kernel, seen from io-wq (F15).
INTERRUPTED: Final = frozenset((-errno.ECANCELED, -errno.EINTR, -512, -513, -514, -516))

# What epoll(7) reports whether it was asked or not, and therefore wakes both directions.
ALWAYS_REPORTED: Final = select.POLLERR | select.POLLHUP

CLOSED_MESSAGE: Final = "another task closed this fd"


def os_error(result: int) -> OSError:
    """The exception for a negative completion result: class, errno and text as from the system call itself."""
    return OSError(-result, os.strerror(-result))


class Poll:
    """Readiness of one descriptor in one direction: owns no memory, so Trio may abort it at once.

    A POLL_ADD always reports POLLRDHUP, asked or not. For a writer whose peer has shut down its own sending side that
    is no news, yet a one-shot poll would complete with it again and again. Such a poll goes on as a multishot one: edge
    triggered, so it sleeps until something changes, and completions without a bit that was asked for are ignored.
    """

    __slots__ = ("events", "fd", "manager", "task", "user_data", "waiters")

    def __init__(self, manager: UringIOManager, fd: int, events: int, waiters: dict[int, Any], task: Task) -> None:
        self.manager = manager
        self.fd = fd
        self.events = events
        self.waiters = waiters
        self.task: Task | None = task
        self._queue()
        waiters[fd] = self

    def _queue(self, multishot: bool = False) -> None:
        user_data = self.manager.next_user_data()
        if multishot:
            self.manager.ring.queue(
                OP_POLL_ADD, user_data, self.fd, length=POLL_ADD_MULTI, op_flags=self.events
            )
        else:
            self.manager.ring.poll(self.fd, self.events, user_data)
        self.user_data = user_data
        self.manager.inflight[user_data] = self

    def abort(self, _raise_cancel: RaiseCancelT) -> Abort:
        """Trio's abort_fn."""
        self._abandon()
        self.manager.ring.cancel(self.user_data)
        return Abort.SUCCEEDED

    def close(self) -> None:
        """The descriptor is being closed and the ring's requests on it have been cancelled."""
        task = self.task
        self._abandon()
        assert task is not None
        trio.lowlevel.reschedule(task, outcome.Error(trio.ClosedResourceError(CLOSED_MESSAGE)))

    def _abandon(self) -> None:
        del self.waiters[self.fd]
        self.task = None
        abandoned = self.manager.abandoned
        abandoned[self.fd] = abandoned.get(self.fd, 0) + 1

    def complete(self, result: int, flags: int) -> None:
        """A completion has been reaped."""
        more = flags & CQE_F_MORE
        if not more:
            del self.manager.inflight[self.user_data]
        task = self.task
        if task is None:
            if not more:
                self._forget()
            return
        ended: outcome.Outcome[object] = outcome.Value(None)
        try:
            if result < 0 and result not in INTERRUPTED:
                raise os_error(result)
            if result < 0 or not result & (self.events | ALWAYS_REPORTED):
                if not more:
                    self._queue(multishot=result >= 0)
                return
        except OSError as error:
            ended = outcome.Error(error)
        if more:
            self._abandon()
            self.manager.ring.cancel(self.user_data)
        else:
            self.task = None
            del self.waiters[self.fd]
        trio.lowlevel.reschedule(task, ended)

    def _forget(self) -> None:
        abandoned = self.manager.abandoned
        left = abandoned[self.fd] - 1
        if left:
            abandoned[self.fd] = left
        else:
            del abandoned[self.fd]

    def discard(self, _result: int, _flags: int) -> None:
        """The run is over: the completion has been reaped and nobody wants it."""

    async def sleep(self) -> None:
        """Sleep until the descriptor is ready; raises as `trio.lowlevel.wait_readable` does."""
        try:
            await trio.lowlevel.wait_task_rescheduled(self.abort)
        except BaseException:
            # Thrown in from outside (a coroutine closed while it sleeps), unless the scheduler has been here already.
            if self.task is not None:
                self._abandon()
                self.manager.ring.cancel(self.user_data)
            raise


class Operation:
    """An entry whose memory the kernel reads or writes until its last completion.

    Attributes:
      keep: whatever must stay alive and unmoved for the kernel: buffers, addresses, headers, paths.
      result, flags: those of the completion, once there is one.
    """

    __slots__ = (
        "closing",
        "fd",
        "flags",
        "keep",
        "manager",
        "raise_cancel",
        "result",
        "task",
        "user_data",
        "waiters",
    )

    def __init__(self, manager: UringIOManager, fd: int, keep: object, waiters: dict[int, Any] | None) -> None:
        self.manager = manager
        self.fd = fd
        self.keep = keep
        self.waiters = waiters
        self.task: Task | None = None
        self.raise_cancel: RaiseCancelT | None = None
        self.closing = False
        self.result = 0
        self.flags = 0
        self.user_data = 0

    @trio.lowlevel.enable_ki_protection
    async def perform(
        self,
        opcode: int,
        addr: Any,
        length: int,
        offset: int = 0,
        op_flags: int = 0,
        sqe_flags: int = 0,
        ioprio: int = 0,
        buf_index: int = 0,
        file_index: int = 0,
    ) -> int:
        """Queue the entry, sleep until its completion, and answer its result, zero or more.

        A schedule point and a cancel point. The fields are those of `Ring.queue`.

        Raises:
          Cancelled: cancelled before it had any effect.
          BusyResourceError: another task is reading, or writing, this descriptor (where `waiters` says which).
          ClosedResourceError: `trio.lowlevel.notify_closing` ended it.
          OSError: what the kernel answered, as from the system call.
        """
        manager = self.manager
        waiters = self.waiters
        while True:
            if waiters is not None and self.fd in waiters:
                raise trio.BusyResourceError("another task is already reading / writing this fd")
            user_data = manager.next_user_data()
            manager.ring.queue(
                opcode, user_data, self.fd, addr, length, offset, op_flags, sqe_flags, ioprio, buf_index, file_index
            )
            self.user_data = user_data
            manager.inflight[user_data] = self
            if waiters is not None:
                waiters[self.fd] = self
            self.task = trio.lowlevel.current_task()
            try:
                await trio.lowlevel.wait_task_rescheduled(self.abort)
            except BaseException:
                # Thrown in from outside (a coroutine closed while it sleeps): the entry is still the kernel's.
                if self.task is not None:
                    self.task = None
                    manager.ring.cancel(user_data)
                raise
            result = self.result
            if result >= 0:
                return result
            if result not in INTERRUPTED:
                if result == -errno.EAGAIN and waiters is not None and self.raise_cancel is None:
                    # A non-blocking descriptor that the kernel handed to a worker (F20).
                    await manager.wait_ready(self.fd, waiters)
                    continue
                raise os_error(result)
            if self.raise_cancel is not None:
                self.raise_cancel()
            if self.closing:
                raise trio.ClosedResourceError(CLOSED_MESSAGE)

    def abort(self, raise_cancel: RaiseCancelT) -> Abort:
        """Trio's abort_fn: ask, and let the completion decide."""
        self.raise_cancel = raise_cancel
        self.manager.ring.cancel(self.user_data)
        return Abort.FAILED

    def close(self) -> None:
        """The descriptor is being closed and the ring's requests on it have been cancelled."""
        self.closing = True

    def complete(self, result: int, flags: int) -> None:
        """The last completion has been reaped: the memory is the task's again."""
        del self.manager.inflight[self.user_data]
        if self.waiters is not None:
            del self.waiters[self.fd]
        self.result = result
        self.flags = flags
        task = self.task
        if task is None:
            self.discard(result, flags)
        else:
            self.task = None
            trio.lowlevel.reschedule(task)

    def discard(self, result: int, flags: int) -> None:
        """Nobody will take the result. Operations whose result is a descriptor close it here (F9)."""
