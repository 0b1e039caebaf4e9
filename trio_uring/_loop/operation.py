"""Layer 2, the life of an operation: one entry in the ring, the memory it names, and the task that waits for it.

Everything that decides how an operation ends stands in this file. It knows Trio's scheduler and the ring; what a call
means to a user (a socket, a file) is for the layers above.

Theory of operation
===================
The kernel owns the memory of an entry from the moment it is queued until its last completion is reaped, whatever
happens to the task meanwhile. So the manager, not the task, holds the operation: `manager.operations` maps the entry's
user_data to it, and only `complete` takes it out. user_data is a counter that never goes back, so a completion names
one operation for ever, and one that names none is stale and dropped. Operations that are used again are out of the books between
two uses and have another user_data in each: neither a second completion of an earlier use nor a cancel can hit a later one (F13).

The completion of the entry decides, never the cancel's (invariant 1). A cancel is a wish: it is queued behind its
target in the same queue, so it cannot overtake it, and its own result is ignored.

    state       event                          next        what happens
    ---------   ----------------------------   ---------   -------------------------------------------------------
    in flight   completion                     done        the task is rescheduled
    in flight   Trio aborts, Operation         cancelling  the cancel is queued, Abort.FAILED: the task sleeps on;
                                                           the descriptor is free for another task
    in flight   Trio aborts, Poll              abandoned   the cancel is queued, Abort.SUCCEEDED: a poll owns nothing
    in flight   notify_closing, Operation      closing     the requests on the file are cancelled at once
    in flight   notify_closing, Poll           abandoned   the same, and ClosedResourceError for the task
    in flight   the coroutine is torn down     abandoned   the cancel is queued, nobody is rescheduled
    cancelling  completion, result >= 0        done        delivered: the bytes have moved
    cancelling  completion, interrupted        done        Cancelled
    cancelling  completion, other error        done        the error is raised: it did happen
    closing     completion, result >= 0        done        delivered
    closing     completion, interrupted        done        ClosedResourceError
    in flight   completion, interrupted        between     nobody here asked (below): the task decides
    requeueing  notify_closing                 done        ClosedResourceError: the number may be another file's by now
    in flight   completion, -EACCES            requeueing  the ring may not (F56), or the file says so: the task does it itself
    abandoned   completion                     done        forgotten

"Interrupted" is -ECANCELED, -EINTR or one of the kernel's internal restart codes, which escape from operations that
were blocked in a worker (F15, F28). One that nobody asked for, in the state "between", says one of these:

    -EINTR, a restart code     a signal                                                        queued again
    -ECANCELED, and a close    a cancel by descriptor of another descriptor of the same open   queued again
    has cancelled since it     file: the kernel compares files and not numbers
    was queued
    -ECANCELED otherwise, of   the kernel could make no worker: no thread may start (F40).     done by a thread of Trio's, or
    what needs a worker        It would say so each time, after 48 ms                          its RuntimeError (`refused`)
    -ECANCELED otherwise       the descriptor's own answer, of a timerfd say (F43)             raised

What needs a worker is asked of the descriptor: all that has no readiness to be polled. Paths have no descriptor.

KeyboardInterrupt: everything from taking a user_data to the sleep runs under Trio's protection (invariant 10), because
`perform` and Trio's own wait_readable and wait_writable are marked with it. Other signal handlers that raise (a watchdog's, say)
know no protection, and CPython calls them as a call returns, the one that queues the entry included. So the operation is in the
books before that call, and what comes out of it is taken for what it was by asking the ring (`Ring.in_flight`).
"""

from __future__ import annotations

import errno
import functools
import os
import select
import stat
import types
from collections.abc import Callable, Generator
from typing import Any, ClassVar, Final, NoReturn, Protocol

import outcome
import trio
from trio._core import _run, _traps
from trio.lowlevel import Abort, RaiseCancelT, Task

from .._ring.ring import CQE_F_BUFFER, CQE_F_MORE, OP_POLL_ADD, POLL_ADD_MULTI, BufferRing, Ring, ffi, lib
from .._ring.ring import os_error as os_error

# Trio's private names that this layer and the next one use. What they use of the objects behind them (a task's
# _next_send_fn and _abort_func, a runner's runq) is listed where it is checked, in `seams`.
GLOBAL_RUN_CONTEXT: Any = _run.GLOBAL_RUN_CONTEXT

# ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK: internal to the kernel, seen from io-wq (F15).
INTERRUPTED: Final = frozenset((-errno.ECANCELED, -errno.EINTR, -512, -513, -514, -516))

# What epoll(7) reports whether it was asked or not, and therefore wakes both directions.
ALWAYS_REPORTED: Final = select.POLLERR | select.POLLHUP

CLOSED_MESSAGE: Final = "another task closed this fd"


def busy() -> trio.BusyResourceError:
    """The exception for a second task in the same direction of a descriptor."""
    return trio.BusyResourceError("another task is already reading / writing this fd")


# What ends a call that has done a part of its work: it answers that part. The next checkpoint raises again.
ENDING_EXCEPTIONS: Final = (trio.Cancelled, trio.ClosedResourceError, KeyboardInterrupt)


def redeliver(error: BaseException) -> None:
    """For who answers a part in place of one of `ENDING_EXCEPTIONS`: what Trio would not raise again by itself, it does."""
    if isinstance(error, KeyboardInterrupt):
        GLOBAL_RUN_CONTEXT.runner.deliver_ki()


def has_readiness(fd: int) -> bool:
    """Whether a descriptor can be polled. Only what cannot, a regular file say, needs a worker for what waits."""
    with select.epoll(1) as epoll:
        try:
            epoll.register(fd, 0)
        except PermissionError:
            return False
        except OSError:
            pass  # closed: so it is the entry that has the answer
    return True


def close_descriptor(fd: int) -> None:
    """close(2) of what nobody will use: by a thread where it may have to ask somebody (NFS, FUSE), else on the spot."""
    where = lib.tu_where(fd, ffi.NULL)
    if where >= 0 and (where & lib.TU_LOCAL or not stat.S_ISREG(where)):
        os.close(fd)
        return
    try:
        trio.lowlevel.start_thread_soon(functools.partial(os.close, fd), lambda _: None)
    except RuntimeError:  # there is none to be had
        os.close(fd)


def raise_closed() -> NoReturn:
    """What `notify_closing` does to an operation that it ends."""
    raise trio.ClosedResourceError(CLOSED_MESSAGE)


class Manager(Protocol):
    """What an operation needs of the run's I/O manager (`manager.UringIOManager`, which says what each is)."""

    ring: Ring
    operations: dict[int, Any]
    readers: dict[int, Any]
    writers: dict[int, Any]
    cancelling: dict[int, set[Any]]
    concurrent: dict[int, set[Any]]
    requeueing: dict[int, set[Any]]
    buffers: BufferRing | None
    last_descriptor_cancel: int
    receives: list[Any]
    sends: list[Any]

    def next_user_data(self) -> int:
        """A number that no entry has had."""

    def follow_limiter(self) -> None:
        """See that there may be as many workers as threads."""

    def forget(self, operation: Any, where: dict[int, set[Any]]) -> None:
        """Take an operation out of `cancelling`, `concurrent` or `requeueing`."""

    async def wait_ready(self, fd: int, waiters: dict[int, Any]) -> None:
        """Poll a descriptor."""


@types.coroutine
def schedule_point() -> Generator[Any, Any, None]:
    """`trio.lowlevel.cancel_shielded_checkpoint`, without its two frames more."""
    yield _traps.CancelShieldedCheckpoint


class Trap(list[object]):
    """Awaiting it hands its one item, a message, to Trio's scheduler.

    In place of a generator: a list iterator yields the message and is exhausted when the task is resumed, so an operation
    makes its trap once, and a sleep runs no frame and allocates no generator. It takes resumption with None only. The
    reversed iterator, because that method is one that CPython calls without making a bound one first.
    """

    __slots__ = ()
    __await__: Any = list.__reversed__


class Poll:
    """Readiness of one descriptor in one direction: owns no memory, so Trio may abort it at once.

    A POLL_ADD always reports POLLRDHUP, asked or not. For a writer whose peer has shut down its own sending side that
    is no news, yet a one-shot poll would complete with it again and again. Such a poll goes on as a multishot one: edge
    triggered, so it sleeps until something changes, and completions without a bit that was asked for are ignored.
    """

    __slots__ = ("events", "fd", "manager", "task", "user_data", "waiters")

    def __init__(self, manager: Manager, fd: int, events: int, waiters: dict[int, Any], task: Task) -> None:
        self.manager = manager
        self.fd = fd
        self.events = events
        self.waiters = waiters
        self.task: Task | None = task
        self.user_data = 0

    def _queue(self, multishot: bool = False) -> None:
        manager = self.manager
        self.user_data = user_data = manager.next_user_data()
        manager.operations[user_data] = self
        try:
            if multishot:
                manager.ring.queue(OP_POLL_ADD, user_data, self.fd, length=POLL_ADD_MULTI, op_flags=self.events)
            else:
                manager.ring.poll(self.fd, self.events, user_data)
        except BaseException:
            if not manager.ring.in_flight(user_data):
                del manager.operations[user_data]
            raise

    def abort(self, _raise_cancel: RaiseCancelT) -> Abort:
        """Trio's abort_fn. After a crash of the run it may come when the coroutine has been torn down already."""
        if self.task is not None:
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
        self.manager.cancelling.setdefault(self.fd, set()).add(self)

    def _end(self) -> None:
        """Nobody waits any more; the kernel may, if it has the entry."""
        if self.user_data in self.manager.operations:
            self._abandon()
            self.manager.ring.cancel(self.user_data)
        else:
            self.task = None
            del self.waiters[self.fd]

    def complete(self, result: int, flags: int) -> Task | None:
        """A completion has been reaped."""
        more = flags & CQE_F_MORE
        if not more:
            del self.manager.operations[self.user_data]
        task = self.task
        if task is None:
            if not more:
                self.manager.forget(self, self.manager.cancelling)
            return None
        ended: outcome.Outcome[object] = outcome.Value(None)
        try:
            if result < 0 and result not in INTERRUPTED:
                raise os_error(result)
            if result < 0 or not result & (self.events | ALWAYS_REPORTED):
                if not more:
                    self._queue(multishot=result >= 0)
                return None
        except OSError as error:
            ended = outcome.Error(error)
        self._end()
        trio.lowlevel.reschedule(task, ended)
        return None

    def discard(self, _result: int, _flags: int) -> None:
        """The run is over: the completion has been reaped and nobody wants it."""

    async def sleep(self) -> None:
        """Sleep until the descriptor is ready; raises as `trio.lowlevel.wait_readable` does."""
        self.waiters[self.fd] = self
        try:
            self._queue()
            await trio.lowlevel.wait_task_rescheduled(self.abort)
        except BaseException:
            # Refused; or thrown in from outside (a signal handler as the entry is queued, a coroutine closed while it sleeps),
            # unless the scheduler has been here already.
            if self.task is not None:
                self._end()
            raise


class Operation:
    """An entry whose memory the kernel reads or writes until its last completion. Used for one `perform` at a time.

    Attributes:
      keep: whatever must stay alive and unmoved for the kernel: buffers, addresses, headers, paths. Let go at the
        completion, so that who asks for its memory back then does not depend on the garbage collector.
      raise_cancel: raises why the operation was asked to end, a cancel or a close; None as long as nobody asked.
      result, flags: those of the completion, once there is one.
      kinds: what it is called where no frame of its task has the opcode (`observe`): if it reads, and if it writes. None
        where that is the name of the class.
      needs_worker: the kernel always has a worker do it, whatever the descriptor is.
    """

    kinds: ClassVar[tuple[str, str] | None] = None
    needs_worker: ClassVar[bool] = False

    __slots__ = (
        "cancelling",
        "fd",
        "flags",
        "keep",
        "manager",
        "raise_cancel",
        "result",
        "task",
        "trap",
        "user_data",
        "waiters",
    )

    def __init__(self, manager: Manager, fd: int, keep: object, waiters: dict[int, Any] | None) -> None:
        self.manager = manager
        self.fd = fd
        self.keep = keep
        self.waiters = waiters
        self.task: Task | None = None
        self.raise_cancel: RaiseCancelT | None = None
        self.cancelling = False
        self.result = 0
        self.flags = 0
        self.user_data = 0
        self.trap = Trap([_traps.WaitTaskRescheduled(self.abort)])

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
        while True:
            # A scope that is cancelled already has to win, even over an entry that would complete at once.
            await trio.lowlevel.checkpoint_if_cancelled()
            if self.waiters is not None and self.fd in self.waiters:
                raise busy()
            if self.waiters is None:
                self.manager.follow_limiter()
            self.user_data = user_data = self.manager.next_user_data()
            await self.queue_and_wait(
                self.manager.ring.queue,
                opcode,
                user_data,
                self.fd,
                addr,
                length,
                offset,
                op_flags,
                sqe_flags,
                ioprio,
                buf_index,
                file_index,
            )
            if self.result >= 0:
                return self.result
            keep = self.keep
            if self.refused():
                return await self.by_system_call(keep, opcode, addr, length, offset, op_flags, file_index)
            await self.failed()

    def refused(self) -> bool:
        """After a negative result: whether the ring may not do this (F56) or cannot (F40), as far as the result tells.

        A restriction of the whole task answers -EACCES, as the file itself may, and the kernel -ECANCELED where it can make no
        worker. Whoever hears True does it without the ring, as Trio would: then it is known whose answer it was.
        """
        if self.raise_cancel is not None:
            return False
        if self.result == -errno.ECANCELED:
            if self._cancelled_with_another() or not self._goes_to_workers():
                return False
        elif self.result != -errno.EACCES:
            return False
        self.manager.forget(self, self.manager.requeueing)
        self.keep = None
        return True

    async def by_system_call(
        self, keep: object, opcode: int, addr: Any, length: int, offset: int, op_flags: int = 0, file_index: int = 0
    ) -> int:
        """What the entry was to do, by the system call of that name: its result, zero or more, or its error.

        On a socket or pipe when that is ready, else in a thread, which cannot be cancelled. `keep` is its memory.
        """
        fd = self.fd
        pointer = ffi.NULL if addr is None else addr

        def call(_keep: object = keep) -> int:
            return int(lib.tu_system_call(opcode, fd, pointer, length, offset, op_flags, file_index))

        if self.waiters is None:
            result = await trio.to_thread.run_sync(call)
        else:
            while (result := call()) == -errno.EAGAIN:
                await self.manager.wait_ready(fd, self.waiters)
        if result < 0:
            raise self.error(result)
        return result

    async def queue_and_wait(self, queue: Callable[..., object], *arguments: Any) -> None:
        """Have the entry of `user_data` queued, by `queue(*arguments)`, and sleep until its completion.

        The books come first: a signal handler may raise as `queue` returns, and by then the entry is the kernel's.
        """
        self.task = GLOBAL_RUN_CONTEXT.task
        try:
            manager = self.manager
            if self.waiters is not None:
                self.waiters[self.fd] = self
            elif self.fd >= 0:
                manager.concurrent.setdefault(self.fd, set()).add(self)
            manager.operations[self.user_data] = self
            queue(*arguments)
            await self.trap
        except BaseException:
            self.unwind()
            raise

    def unwind(self) -> None:
        """The entry was refused, or an exception was thrown in from outside: by a signal handler as the entry was queued, or into
        a coroutine that is closed while it sleeps. The entry is still the kernel's, or its result has come, and the task not
        run since.
        """
        if self.task is None:
            self._discard_once(self.result, self.flags)
        elif self.manager.ring.in_flight(self.user_data):
            self._begin_cancelling()
            self.task = None
            self.manager.ring.cancel(self.user_data)
        else:
            self._withdraw()
            self.manager.operations.pop(self.user_data, None)

    def _withdraw(self) -> None:
        """Out of the books, as it has not been queued."""
        if self.waiters is None:
            self.manager.forget(self, self.manager.concurrent)
        elif self.waiters.get(self.fd) is self:
            del self.waiters[self.fd]
        self.task = self.keep = None

    async def failed(self) -> None:
        """After a negative result: raise what it means, or return where the entry is to be queued again."""
        result = self.result
        if not self._without_effect(result):
            self.manager.forget(self, self.manager.requeueing)
            raise self.error(result)
        try:
            if result == -errno.EAGAIN and self.waiters is not None and self.raise_cancel is None:
                # A non-blocking descriptor that the kernel handed to a worker (F20).
                await self.manager.wait_ready(self.fd, self.waiters)
        finally:
            self.manager.forget(self, self.manager.requeueing)
        if self.raise_cancel is not None:
            self.raise_cancel()
        if result == -errno.ECANCELED and not self._cancelled_with_another():
            raise self.error(result)

    def _goes_to_workers(self) -> bool:
        return self.needs_worker or self.waiters is None or not has_readiness(self.fd)

    def _cancelled_with_another(self) -> bool:
        """Whether a close of another descriptor of the same file may have cancelled it."""
        return self.user_data <= self.manager.last_descriptor_cancel

    def error(self, result: int) -> OSError:
        """The exception for a negative result."""
        return os_error(result)

    def _without_effect(self, result: int) -> bool:
        return result in INTERRUPTED or (result == -errno.EAGAIN and self.waiters is not None)

    def abort(self, raise_cancel: RaiseCancelT) -> Abort:
        """Trio's abort_fn: ask, and let the completion decide."""
        if self.raise_cancel is None:
            self.raise_cancel = raise_cancel
        self._begin_cancelling()
        self.manager.ring.cancel(self.user_data)
        return Abort.FAILED

    def _begin_cancelling(self) -> None:
        # Another task may use the descriptor from now on, as it may when a poll is aborted: the cancel is queued before
        # whatever that task queues. But the file is still held, so a close must know. After a close the number may be
        # that of another file, whose readers and writers have nothing to do with this.
        if self.waiters is not None and not self.cancelling and self.task is not None:
            self.cancelling = True
            del self.waiters[self.fd]
            self.manager.cancelling.setdefault(self.fd, set()).add(self)

    def close(self) -> None:
        """The descriptor is being closed and the ring's requests on it have been cancelled."""
        if self.raise_cancel is None:
            self.raise_cancel = raise_closed
        self._begin_cancelling()

    def complete(self, result: int, flags: int) -> Task | None:
        """The last completion has been reaped: the memory is the task's again. Answers the task to be rescheduled.

        With None, and not with an Outcome: what the trap, a list iterator, can be resumed with.
        """
        self.result = result
        self.flags = flags
        del self.manager.operations[self.user_data]
        if self.cancelling:
            self.cancelling = False
            self.manager.forget(self, self.manager.cancelling)
        elif self.waiters is not None:
            del self.waiters[self.fd]
        elif self.fd >= 0:
            self.manager.forget(self, self.manager.concurrent)
        task = self.task
        self.task = None
        if task is None:
            self._discard_once(result, flags)
        elif (self._without_effect(result) or result == -errno.EACCES) and self.raise_cancel is None:
            # It will be queued again, or done without the ring, unless its descriptor is closed before its task has run.
            self.manager.requeueing.setdefault(self.fd, set()).add(self)
            return task
        self.keep = None
        return task

    def _discard_once(self, result: int, flags: int) -> None:
        # Whoever comes a second time finds none: a descriptor's number may be another file's by then.
        self.result = -errno.ECANCELED
        self.discard(result, flags)

    def discard(self, result: int, flags: int) -> None:
        """Nobody will take the result. Operations whose result is a descriptor close it here (F9)."""
        # Not left to the garbage collector, which may clear a memoryview before what pins it: CPython then crashes (3.11).
        self.keep = None


class NewDescriptor(Operation):
    """An operation whose result is a new descriptor: it is delivered or closed, never leaked (F9)."""

    __slots__ = ()

    def discard(self, result: int, flags: int) -> None:
        """Nobody will take the descriptor."""
        super().discard(result, flags)
        if result >= 0:
            close_descriptor(result)


class SocketTransfer(Operation):
    """IORING_OP_RECV into a provided buffer, or IORING_OP_SEND of `size` bytes of memory that `keep` pins.

    Used again, from `manager.receives` or `manager.sends`, as long as it moves data and nobody ever cancelled it. One class
    for both: the interpreter makes the code that handles completions fast for one class at a time (CPython 3.11).

    Attributes:
      data: what was received; None where the completion brought none.
      ring: what `tu_recv` and `tu_send` take.
    """

    kinds = ("recv", "send")

    __slots__ = ("data", "ring", "size")

    def __init__(self, manager: Manager, waiters: dict[int, Any]) -> None:
        super().__init__(manager, -1, None, waiters)
        self.ring = manager.ring.address
        self.data: bytes | None = None
        self.size = 0

    def _without_effect(self, result: int) -> bool:
        # No provided buffer was free, which the kernel asks for before it looks for data.
        return (result == -errno.ENOBUFS and self.waiters is self.manager.readers) or super()._without_effect(result)

    def complete(self, result: int, flags: int) -> Task | None:
        """The completion has been reaped. `UringIOManager.process_events` has the frequent case, data and nobody cancelled."""
        if result > 0 and flags & CQE_F_BUFFER:
            assert self.manager.buffers is not None
            self.data = self.manager.buffers.take(flags, result)  # before the buffer goes back
        return super().complete(result, flags)
