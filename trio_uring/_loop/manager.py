"""Layer 2, the I/O manager: Trio's contract for a backend (trio._core._io_epoll has its twin), kept by a ring.

Knows Trio's scheduler and the ring; knows nothing of sockets or files, nor of how a run came to use it.

The tick
========
Trio calls `get_events(timeout)` and then `process_events` with what it answered. Between two ticks every task queues
entries; `get_events` submits them all and waits, in one io_uring_enter(2), or in none when nothing is queued and nothing
pending. Its answer is falsy if and only if the timeout expired: Trio decides by it whether the run is idle, so a signal
or a wake-up with no completion answers _WOKEN.

Guest mode
==========
Trio runs on the host's thread and calls `get_events(0)` there, which submits and reaps. Only if that answers nothing is
`get_events(timeout)` called, in a worker thread, where a single-issuer ring may not be entered: there it only sleeps
until there is work and answers _WOKEN, and `process_events`, back on the host's thread, does the reaping. Meanwhile callbacks of
the host may queue entries (a cancel, a notify_closing): the ring submits those at once, because nobody would before the
worker wakes. Callbacks may also cancel an operation whose completion has been reaped and not yet processed: it is still
in `operations`, its completion is processed next, and the cancel finds nothing (F32).

Closing a descriptor
====================
close(2) ends no request: the ring's requests hold the file, so the peer would see no end of file, and one still queued
would run on whatever file gets the number next. `notify_closing` therefore ends them in the kernel before it returns,
if there are any: waiting ones, and cancelled ones that the kernel has not ended yet. The books know each by its name. Those
of another descriptor of the same open file are not asked: they go on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from .._ring.ring import CQE_BUFFER_SHIFT, CQE_F_BUFFER, FIRST_USER_DATA, BufferRing, HasFileno, Ring, tu_ready
from .operation import (
    GLOBAL_RUN_CONTEXT,
    Operation,
    Poll,
    SocketTransfer,
    busy,
    schedule_point,
)
from .options import UringBackend

if TYPE_CHECKING:
    from .statistics import UringStatistics

_log = logging.getLogger("trio_uring")

# One default receive of Trio's and AnyIO's (65,536 bytes) fits one provided buffer.
BUFFER_SIZE: Final = 65536
BUFFER_COUNT: Final = 256
BUFFER_GROUP: Final = 0
# What Trio's default thread limiter has at first; more than the kernel counts at once are none.
MIN_WORKERS: Final = 40
MAX_WORKERS: Final = 32768

_MOST_LEFT_OUT: Final = 63  # attempts, between two in vain

Events = Sequence[int]

_NOTHING: Final[Events] = ()
# Truthy: the wait ended before its timeout, and what there is to reap is still in the ring.
_WOKEN: Final[Events] = (0, 0, 0)


def _descriptor(fd: int | HasFileno) -> int:
    if not isinstance(fd, int):
        fd = fd.fileno()
    return fd


def _discard(operations: dict[int, Any], handed_out: list[Events], events: Events) -> None:
    """The run is over: nobody takes these results, and those that are descriptors have to be closed.

    Nor those that Trio's loop was handed and has not come back with: a guest run whose host has stopped may end there.
    """
    events = [*handed_out[0], *events]
    handed_out[0] = _NOTHING
    each = iter(events)
    for user_data, result, flags in zip(each, each, each, strict=True):
        operation = operations.get(user_data)
        if operation is not None:
            operation.discard(result, flags)


class UringIOManager:
    """A Trio I/O manager on one ring, made, used and closed by the thread of the run.

    Args:
      backend: sizes of the ring.
      make_ring: what makes it, for tests: (sq_entries, cq_entries) -> an object with the methods of `Ring`.

    Raises:
      UringUnavailableError: the kernel refuses a ring; nothing is left open.
    """

    # Slots: `sockets` reads these for every operation.
    __slots__ = (
        "_kernels_workers",
        "_waiting",
        "_wanted_workers",
        "adaptive",
        "at_hand",
        "buffers",
        "cancelling",
        "concurrent",
        "free_received",
        "free_sent",
        "handed_out",
        "last_descriptor_cancel",
        "last_user_data",
        "limiter",
        "lone_completion",
        "max_workers",
        "operations",
        "polled",
        "readers",
        "receives",
        "requeueing",
        "ring",
        "sends",
        "thread",
        "tokens",
        "transfers",
        "try_first",
        "vain",
        "writers",
    )

    def __init__(self, backend: UringBackend, make_ring: Callable[[int, int | None], Any] | None = None) -> None:
        if make_ring is None:
            make_ring = backend.group._make_ring if backend.group is not None else Ring
        self.ring: Ring = make_ring(backend.sq_entries, backend.cq_entries)
        self.polled = self.ring.polled
        # user_data -> Poll or Operation: what a completion may name, and whose memory the kernel may still touch.
        self.operations: dict[int, Any] = {}
        self.ring.keep = self.operations
        self.ring.spin(backend.spin * 1000)
        self.handed_out: list[Events] = [_NOTHING]  # by the last `get_events`, if `process_events` has not had it yet
        self.ring.abandoned = functools.partial(_discard, self.operations, self.handed_out)
        # fd -> the Poll or Operation that a task is waiting in.
        self.readers: dict[int, Any] = {}
        self.writers: dict[int, Any] = {}
        # fd -> entries on it that are cancelled or abandoned, and that the kernel has not ended yet.
        self.cancelling: dict[int, set[Any]] = {}
        # fd -> operations in flight of which a descriptor may have many at once (positional reads): a close ends them too.
        self.concurrent: dict[int, set[Any]] = {}
        # fd -> operations that were interrupted and whose tasks have not queued them again yet.
        self.requeueing: dict[int, set[Any]] = {}
        self.buffers: BufferRing | None = None
        # Operations ready for use again.
        self.receives: list[Any] = []
        self.free_received: list[Any] = []
        self.free_sent: list[Any] = []
        # Whether calls first try their system call in place, in this tick. "auto": where one task has the tick for itself, so
        # that there is no batch for its entry to go with.
        self.adaptive = backend.speculate == "auto" and self.ring.address != 0 and not self.polled
        self.try_first = backend.speculate is True
        # fd -> attempts to receive that are to be left out, and how many were the last time: the last one was in vain.
        # For polls, the same of ~fd.
        self.vain: dict[int, list[int]] = {}
        # The ring's address where what is at hand may be answered on the spot, else 0.
        self.at_hand: int = self.ring.address if backend.speculate and not self.polled else 0
        # Whose run it is; for who looks at it from outside.
        self.thread = threading.get_ident()
        # The tick handed out one completion: there is no batch that a send could wait for.
        self.lone_completion = False
        self.sends: list[Any] = []
        self.transfers: list[Any] = []
        self.last_user_data = FIRST_USER_DATA
        # Trio's default limiter of threads, and how many tokens it has had: so many workers may there be at least.
        self.limiter: trio.CapacityLimiter | None = None
        self.tokens: float = MIN_WORKERS
        # For bounded work: as the kernel has it by itself, as asked for, and as it is; entries that have one beside.
        # In a group they are the poller's, and the group's to count.
        self._kernels_workers = self.ring.max_workers(0) if backend.group is None else 0
        self._wanted_workers = backend.max_workers
        self.max_workers = 0
        self._waiting = 0
        self._set_workers()
        # Entries up to this one may have been cancelled by a close of another descriptor of their file.
        self.last_descriptor_cancel = 0

    def next_user_data(self) -> int:
        """A number that no entry of this ring has had."""
        self.last_user_data += 1
        return self.last_user_data

    # -------------------------------------------------------------- workers of the kernel's

    def _set_workers(self) -> None:
        """Tell the kernel how many there may be. They belong to this thread, whatever the ring (F50)."""
        if self._kernels_workers:  # else there is no such call
            wanted = self._wanted_workers
            if wanted is None:
                wanted = max(self._kernels_workers, int(min(self.tokens, MAX_WORKERS)))
            self.ring.max_workers(wanted + self._waiting)
            self.max_workers = wanted

    def follow_limiter(self) -> None:
        """Whoever allows more threads, by Trio's default limiter, expects as much to go on at once here."""
        if self.limiter is None:
            self.limiter = trio.to_thread.current_default_thread_limiter()
        tokens = self.limiter.total_tokens
        if tokens != self.tokens:
            self.tokens = max(tokens, MIN_WORKERS)
            self._set_workers()

    @contextlib.contextmanager
    def extra_worker(self) -> Iterator[None]:
        """A worker more for the time of an entry that waits for somebody: it takes none of those that others wait for (F41)."""
        self._waiting += 1
        self._set_workers()
        collected = False
        try:
            yield
        except GeneratorExit:
            collected = True  # with all of a run that was abandoned: the memory of its ring may have gone before
            raise
        finally:
            self._waiting -= 1
            if not collected and not self.ring.closed:
                self._set_workers()

    def make_buffers(self) -> None:
        """Make the provided buffers that receives share, unless they are there; pages that no data has touched take no memory.

        Where the kernel will not have them, a receive that asks for one is answered with ENOBUFS.
        """
        if self.buffers is None:
            # A poller goes on receiving while the loop is busy: with no more it finds none left at 500 connections
            # (benchmarks.asymmetric: the loop's time for an echo 9.4 and not 5.8 µs).
            count = 4 * BUFFER_COUNT if self.polled else BUFFER_COUNT
            try:
                self.buffers = self.ring.make_buffers(count, BUFFER_SIZE, BUFFER_GROUP)
            except (OSError, ImportError) as error:  # no memory, or no descriptor to load what maps it with
                _log.debug("no provided buffers, each receive takes memory of its own: %s", error)

    def forget(self, operation: Any, where: dict[int, set[Any]]) -> None:
        """Take an operation out of `cancelling`, `concurrent` or `requeueing`, if it is there."""
        same_fd = where.get(operation.fd)
        if same_fd is not None:
            same_fd.discard(operation)
            if not same_fd:
                del where[operation.fd]

    def promising(self, key: int) -> bool:
        """Whether an attempt is to be made: not soon after one in vain, and the later the more of them were in a row.

        Args:
          key: the descriptor, for a receive; its complement, for a poll.
        """
        found = self.vain.get(key)
        if found is None:
            return True
        found[0] -= 1
        return found[0] < 0

    def was_in_vain(self, key: int) -> None:
        """After an attempt."""
        found = self.vain.setdefault(key, [0, 0])
        found[0] = found[1] = min(2 * found[1] + 1, _MOST_LEFT_OUT)

    # -------------------------------------------------------------- what Trio's loop calls

    def get_events(self, timeout: float) -> Events:
        """Submit, wait, reap. Falsy if and only if the timeout (seconds) expired."""
        # With work at hand nobody takes this for an idle run, so what a poller is at can wait.
        ring = self.ring
        events = ring.peek() if self.polled and not timeout and self._has_work() else ring.wait(timeout)
        if events is None:
            return _NOTHING
        if events:
            self.handed_out[0] = events
            return events
        return _WOKEN

    @staticmethod
    def _has_work() -> bool:
        """Whether tasks are ready to run. In guest mode also asked by the thread that sleeps, when none is."""
        runner = getattr(GLOBAL_RUN_CONTEXT, "runner", None)
        return runner is not None and bool(runner.runq)

    def process_events(self, events: Events) -> None:
        """Hand the completions to their operations. Always on the run's own thread."""
        ring = self.ring
        self.handed_out[0] = _NOTHING
        if events is _WOKEN:
            events = ring.peek() or _NOTHING
        if not events:
            ring.owner_back()
            if self.adaptive:
                self.try_first = len(GLOBAL_RUN_CONTEXT.runner.runq) == 1
            return
        self.lone_completion = len(events) == 3
        operations = self.operations
        runner = GLOBAL_RUN_CONTEXT.runner
        runq = runner.runq
        observed = "task_scheduled" in runner.instruments
        memory = self.buffers.memory if self.buffers else b""
        each = iter(events)
        for user_data, result, flags in zip(each, each, each, strict=True):
            try:
                operation = operations[user_data]
            except KeyError:  # STRAY_DATA, and whose it claims to be
                _log.warning("io_uring: a completion of entry %d, which is not in flight, has been ignored", result)
                continue
            if (
                operation.__class__ is SocketTransfer
                and result > 0
                and operation.raise_cancel is None
                and operation.task is not None
            ):
                # SocketTransfer.complete and BufferRing.take flattened (benchmarks, echo_stream_1k).
                if flags & CQE_F_BUFFER:
                    start = (flags >> CQE_BUFFER_SHIFT) * BUFFER_SIZE
                    operation.data = memory[start : start + result]
                operation.result = result
                del operations[user_data]
                task = operation.task
                operation.task = operation.keep = None
                del operation.waiters[operation.fd]  # type: ignore[union-attr]
            else:
                task = operation.complete(result, flags)
                if task is None:
                    continue
            if observed:
                runner.reschedule(task, None)
            else:
                # Runner.reschedule flattened: it is a quarter of what an echo costs here (benchmarks, echo_stream_1k).
                # Left out is what cannot be: an abort function that still counts, a guest tick to be forced.
                task._next_send_fn = task.coro.send
                task._abort_func = None
                runq.append(task)
        if self.polled:
            ring.recycle_buffers()
        if self.adaptive:
            self.try_first = len(runq) == 1

    def force_wakeup(self) -> None:
        """End the current or next `get_events`: any thread, any signal handler."""
        self.ring.wake()

    def statistics(self) -> UringStatistics:
        """See `UringStatistics`."""
        counters = self.ring.counters()
        found = {
            "tasks_waiting_read": len(self.readers),
            "tasks_waiting_write": len(self.writers),
            "operations_in_flight": counters.inflight,
            "submitted": counters.submitted,
            "completed": counters.completed,
            "cancelled": counters.cancelled,
            "kernel_entries": counters.enters,
            "sq_full_flushes": counters.sq_flushes,
            "cq_overflows": counters.cq_overflows,
            "max_workers": self.max_workers + self._waiting if self.max_workers else 0,
        }
        try:
            from .statistics import UringStatistics
        except (ImportError, OSError):  # no descriptor is left to load it with (F35)
            return types.SimpleNamespace(**found, backend="uring")  # type: ignore[return-value]
        return UringStatistics(**found)

    def close(self) -> None:
        """Cancel everything, wait until the kernel has let go, and close the ring.

        Memory that it will not let go of is kept for the rest of the process, with a ResourceWarning.
        """
        if self._kernels_workers:
            self.ring.max_workers(self._kernels_workers)  # the thread may have other rings
        _discard(self.operations, self.handed_out, self.ring.close(keep=self.operations))
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("ring closed: %s", self.statistics())

    # -------------------------------------------------------------- what trio.lowlevel exports

    async def wait_readable(self, fd: int | HasFileno) -> None:
        """`trio.lowlevel.wait_readable`."""
        await self.wait_ready(fd, self.readers)

    async def wait_writable(self, fd: int | HasFileno) -> None:
        """`trio.lowlevel.wait_writable`."""
        await self.wait_ready(fd, self.writers)

    async def wait_ready(self, fd: int | HasFileno, waiters: dict[int, Any]) -> None:
        """Poll a descriptor: for reading where `waiters` is `readers`, for writing where it is `writers`."""
        fd = _descriptor(fd)
        if fd < 0:
            raise ValueError(f"file descriptor cannot be a negative integer ({fd})")
        if fd in waiters:
            raise busy()
        events = select.POLLIN if waiters is self.readers else select.POLLOUT
        if self.try_first and self.promising(~fd):
            task = GLOBAL_RUN_CONTEXT.task
            if not (task._cancel_status.effectively_cancelled or task._runner.ki_pending):
                if tu_ready(fd, events):
                    self.vain.pop(~fd, None)
                    task._cancel_points += 1
                    return await schedule_point()
                self.was_in_vain(~fd)
        await Poll(self, fd, events, waiters, trio.lowlevel.current_task()).sleep()

    def notify_closing(self, fd: int | HasFileno) -> None:
        """`trio.lowlevel.notify_closing`: when it returns, no request of the ring holds the file or names the number."""
        fd = _descriptor(fd)
        waiting = [waiters[fd] for waiters in (self.readers, self.writers) if fd in waiters]
        waiting += self.concurrent.get(fd, ())
        if waiting or fd in self.cancelling:
            # In a forked child the ring has gone and there is nothing to cancel; the waiters' tasks are the parent's.
            if not self.ring.closed:
                # By name, which takes the same time however many wait elsewhere (F45). And Trio allows to close first and to
                # notify then, when the number names no file.
                entries = [each.user_data for each in (*waiting, *self.cancelling.get(fd, ()))]
                by_file = self.ring.cancel_fd(fd, entries)
                if by_file:
                    self.last_descriptor_cancel = self.last_user_data
            for operation in waiting:
                operation.close()
        elif self.polled and not self.ring.closed:
            self.ring.release()
        for operation in tuple(self.requeueing.get(fd, ())):
            operation.close()

    # -------------------------------------------------------------- for the layers above

    def operation(self, fd: int, keep: object, waiters: dict[int, Any] | None = None) -> Operation:
        """A direct operation to `perform`; `waiters` is `readers`, `writers`, or None where many may run at once."""
        return Operation(self, fd, keep, waiters)
