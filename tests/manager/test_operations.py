"""Direct operations: one outcome each (invariant 1), memory pinned until the completion (2), abort waits (3).

Knows the manager, the kernel's descriptors, and the simulated ring, which completes when and as the test says.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import signal
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from manager_tools import (
    WHERE_THE_STREAM_IS,
    Backend,
    Waiter,
    blocked,
    crash,
    empty,
    fill,
    in_thread,
    manager,
    pipe,
    read,
    run,
    socket_pair,
    uncleared,
)

from trio_uring import UringBackend
from trio_uring._loop.manager import UringIOManager
from trio_uring._loop.operation import Operation
from trio_uring._ring.ring import CQE_F_MORE, OP_POLL_ADD, OP_READ, OP_WRITE, ffi
from trio_uring.testing import SimulatedRing

pytestmark = pytest.mark.usefixtures("descriptors_flat")

CANARY = b"\xa5" * 32

# -ECANCELED, -EINTR, and ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK of the kernel's inside.
INTERRUPTED = [-errno.ECANCELED, -errno.EINTR, -512, -513, -514, -516]


class Ended:
    """A direct read of up to 32 bytes between two canaries, and how it ended."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.data: bytes | None = None
        self.error: Exception | None = None
        self.memory = uncleared(96)
        ffi.buffer(self.memory)[:] = CANARY * 3

    async def run(self, fd: int) -> None:
        """Read."""
        try:
            with self.scope:
                count = await read(fd, self.memory + 32, 32, self.memory)
                self.data = bytes(ffi.buffer(self.memory + 32, count))
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()

    def check(self) -> None:
        """Nothing but the bytes that were reported is different."""
        whole = bytes(ffi.buffer(self.memory))
        count = len(self.data or b"")
        assert whole[:32] == CANARY
        assert whole[32 : 32 + count] == (self.data or b"")
        assert whole[32 + count :] == (CANARY * 3)[32 + count :]


@contextlib.contextmanager
def simulated(**options: Any) -> Iterator[list[SimulatedRing]]:
    """Runs on a simulated ring: the rings that are made are appended to the list."""
    rings: list[SimulatedRing] = []

    def make_ring(sq_entries: int, cq_entries: int | None) -> SimulatedRing:
        rings.append(ByHand(sq_entries, cq_entries, **options))
        return rings[-1]

    with pytest.MonkeyPatch.context() as patch:
        made = lambda: UringIOManager(UringBackend(), make_ring)  # noqa: E731
        patch.setattr(trio._core._run, "TheIOManager", made)
        yield rings
    for ring in rings:
        assert not ring.violations


class ByHand(SimulatedRing):
    """With `manual`, completes Trio's own poll by itself, and at its end does not wait for what the test holds back."""

    def __init__(self, sq_entries: int, cq_entries: int | None, **options: Any) -> None:
        self.names: set[int] = set()
        super().__init__(sq_entries, cq_entries, **options)

    def queue(self, opcode: int, user_data: int, *args: Any, **fields: Any) -> None:
        self._name(user_data)
        super().queue(opcode, user_data, *args, **fields)

    def poll(self, fd: int, events: int, user_data: int) -> None:
        self._name(user_data)
        super().poll(fd, events, user_data)

    def _name(self, user_data: int) -> None:
        # Invariant 5. Polls and operations of one `perform` each are never called by the name of another.
        assert user_data not in self.names
        self.names.add(user_data)

    def _controlled(self, entry: Any) -> bool:
        wakeup = trio._core._run.GLOBAL_RUN_CONTEXT.runner.entry_queue.wakeup
        return super()._controlled(entry) and entry.fd != wakeup.wakeup_sock.fileno()

    def close(self, timeout: float = 0.0, keep: object = None) -> list[int]:
        return super().close(timeout, keep)


def only(ring: SimulatedRing, opcode: int = OP_READ) -> int:
    """The user_data of the only request of an opcode in flight."""
    (found,) = [p.user_data for p in ring.pending() if p.opcode == opcode]
    return found


# ------------------------------------------------------------------ bytes and memory


@pytest.mark.parametrize("kind", ["pipe", "blocking pipe", "socket"])
def test_f1_bytes_arrive_between_the_canaries(ring: Backend, kind: str) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            if kind == "socket":
                a, b = stack.enter_context(socket_pair())
                fd, peer = a.fileno(), b.fileno()
            else:
                fd, peer = stack.enter_context(pipe())
                os.set_blocking(fd, kind == "blocking pipe")
            for size in (1, 31, 32):
                reader = Ended()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reader.run, fd)
                    await blocked()
                    reader.check()
                    os.write(peer, bytes(range(size)))
                assert reader.data == bytes(range(size))
                reader.check()
                # Without waiting, too.
                os.write(peer, b"at once")
                reader = Ended()
                await reader.run(fd)
                assert reader.data == b"at once"
                reader.check()

    run(ring, main)


def test_an_operation_is_a_checkpoint(ring: Backend) -> None:
    """Cancelled before: Cancelled, no effect, nothing queued. Complete at once: a schedule point all the same."""

    async def main() -> None:
        with pipe() as (r, w):
            os.write(w, b"stays")
            await blocked()
            before = manager().statistics().submitted
            reader = Ended()
            reader.scope.cancel()
            await reader.run(r)
            assert reader.scope.cancelled_caught
            assert manager().statistics().submitted == before
            reader = Ended()
            with trio.testing.assert_checkpoints():
                await reader.run(r)
            assert reader.data == b"stays"

    run(ring, main)


def test_busy_in_every_mixture(ring: Backend) -> None:
    async def main() -> None:
        with socket_pair() as (a, b):
            kinds: list[Callable[[Any], Awaitable[Any]]] = [trio.lowlevel.wait_readable, lambda fd: Ended().run(fd)]
            for first in kinds:
                waiter = Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.run, first, a.fileno())
                    await blocked()
                    with pytest.raises(trio.BusyResourceError):
                        await trio.lowlevel.wait_readable(a)
                    with pytest.raises(trio.BusyResourceError):
                        await read(a.fileno(), uncleared(1), 1)
                    await trio.lowlevel.wait_writable(a)  # the other direction is free
                    b.send(b"x")
                assert waiter.ready
                empty(a.fileno())

    run(ring, main)


def test_errors_are_those_of_the_system_call(ring: Backend) -> None:
    async def main() -> None:
        with pipe() as (r, w):
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                await read(w, uncleared(1), 1)  # the write end
            assert caught.value.errno == errno.EBADF
            os.close(r)
            m = manager()
            with pytest.raises(BrokenPipeError):
                await m.operation(w, None, m.writers).perform(OP_WRITE, ffi.new("char[]", b"x"), 1)
            with pytest.raises(OSError, match="Bad file descriptor"):
                await read(r, uncleared(1), 1)
            assert len(m.readers) <= 1
            assert not m.writers

    run(ring, main)


@pytest.mark.parametrize("result", [-errno.ECONNRESET, -errno.EPIPE, -errno.EIO, -errno.ETIMEDOUT, -errno.ENOENT])
def test_every_result_is_the_exception_of_its_errno(result: int) -> None:
    async def main() -> None:
        with pipe() as (r, _):
            rings[0].inject(OP_READ, result)
            with pytest.raises(OSError, match=os.strerror(-result)) as caught:
                await read(r, uncleared(1), 1)
            assert type(caught.value) is type(OSError(-result, ""))

    with simulated(seed=None) as rings:
        trio.run(main)


# ------------------------------------------------------------------ cancelling


def test_f1_cancelled_means_completed(ring: Backend) -> None:
    """What a user may do after Cancelled is to use the memory for something else."""

    async def main() -> None:
        with pipe() as (r, w):
            for _ in range(20):
                reader = Ended()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reader.run, r)
                    await blocked()
                    reader.scope.cancel()
                assert reader.scope.cancelled_caught
                assert manager().statistics().operations_in_flight == 1  # Trio's own
                os.write(w, b"late")
                await blocked()
                reader.check()
                assert os.read(r, 10) == b"late"

    run(ring, main)


def test_f1_cancelled_waits_for_the_completion() -> None:
    """Abort answers FAILED: the task sleeps on until the kernel has let go."""

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, _):
            reader = Ended()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, r)
                await blocked()
                reader.scope.cancel()
                await blocked()
                assert not reader.ended.is_set()
                assert [p.cancelled for p in ring.pending() if p.opcode == OP_READ] == [True]
                ring.complete(only(ring), -errno.ECANCELED)
                await reader.ended.wait()
            assert reader.scope.cancelled_caught

    with simulated(manual=True) as rings:
        trio.run(main)


def test_f11_data_that_came_with_the_cancel_is_delivered() -> None:
    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            reader = Ended()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, r)
                await blocked()
                reader.scope.cancel()
                os.write(w, b"data")
                ring.complete(only(ring))
            assert reader.data == b"data"
            assert not reader.scope.cancelled_caught
            reader.check()

    with simulated(manual=True) as rings:
        trio.run(main)


def test_f11_nothing_is_lost_at_a_timeout(ring: Backend) -> None:
    """The kernel's own race: written and cancelled in one tick. Delivered, or still in the pipe, and never both."""

    async def main() -> None:
        with pipe() as (r, w):
            for number in range(100):
                reader = Ended()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reader.run, r)
                    await blocked()
                    if number % 2:
                        reader.scope.cancel()
                    os.write(w, b"%d" % number)
                    reader.scope.cancel()
                if reader.scope.cancelled_caught:
                    assert reader.data is None
                    assert os.read(r, 32) == b"%d" % number
                else:
                    assert reader.data == b"%d" % number
                    with pytest.raises(BlockingIOError):
                        os.read(r, 1)
                reader.check()

    run(ring, main)


def test_an_error_that_came_with_the_cancel_is_raised() -> None:
    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, _):
            reader = Ended()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, r)
                await blocked()
                reader.scope.cancel()
                await blocked()
                ring.complete(only(ring), -errno.EIO)
            assert isinstance(reader.error, OSError)
            assert reader.error.errno == errno.EIO

    with simulated(manual=True) as rings:
        trio.run(main)


@pytest.mark.parametrize("result", [*INTERRUPTED, -errno.EAGAIN])
@pytest.mark.parametrize("asked", ["cancel", "close"])
def test_f15_all_the_ways_to_say_cancelled(result: int, asked: str) -> None:
    """Also -EAGAIN: it had no effect, and somebody asked for its end."""

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, _):
            reader = Ended()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, r)
                await blocked()
                if asked == "cancel":
                    reader.scope.cancel()
                else:
                    ring.cancel_fd = lambda fd, entries=(): False  # type: ignore[method-assign]
                    trio.lowlevel.notify_closing(r)
                await blocked()
                ring.complete(only(ring), result)
            if asked == "cancel":
                assert reader.scope.cancelled_caught
            else:
                assert isinstance(reader.error, trio.ClosedResourceError)
            assert not manager().cancelling
            assert not manager().requeueing

    with simulated(manual=True) as rings:
        trio.run(main)


def test_data_that_came_with_the_close_is_delivered() -> None:
    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            reader = Ended()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, r)
                await blocked()
                ring.cancel_fd = lambda fd, entries=(): False  # type: ignore[method-assign]
                trio.lowlevel.notify_closing(r)
                os.write(w, b"data")
                ring.complete(only(ring))
            assert reader.data == b"data"

    with simulated(manual=True) as rings:
        trio.run(main)


def test_cancelled_and_closed() -> None:
    """The first of the two is what the task learns, whatever the order; and nothing is booked twice."""

    async def main() -> None:
        (ring,) = rings
        for first in ("cancel", "close"):
            with pipe() as (r, _):
                reader = Ended()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reader.run, r)
                    await blocked()
                    if first == "cancel":
                        reader.scope.cancel()
                        trio.lowlevel.notify_closing(r)
                    else:
                        trio.lowlevel.notify_closing(r)
                        reader.scope.cancel()
                if first == "cancel":
                    assert reader.scope.cancelled_caught
                else:
                    assert isinstance(reader.error, trio.ClosedResourceError)
                assert not manager().cancelling
        assert ring.counters().inflight == 1

    with simulated(manual=True) as rings:
        trio.run(main)


# ------------------------------------------------------------------ again, when nobody asked


@pytest.mark.parametrize("result", INTERRUPTED)
def test_f28_an_interruption_that_nobody_asked_for(result: int) -> None:
    """-ECANCELED is one where a close may have cancelled what is on another descriptor of the same file."""

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            for nth in (1, 2, 3):
                ring.inject(OP_READ, result, nth=nth)
            manager().last_descriptor_cancel = 1 << 60
            reader = Ended()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, r)
                await blocked()
                assert not reader.ended.is_set()
                os.write(w, b"x")
            assert reader.data == b"x"
            assert ring.counters().submitted >= 4
            assert not manager().requeueing

    with simulated(seed=None) as rings:
        trio.run(main)


def test_f43_an_answer_of_the_descriptors_own_is_told() -> None:
    """Once: it is used up by the read that has it. A timerfd answers ECANCELED when the clock is changed."""

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            ring.inject(OP_READ, -errno.ECANCELED)
            reader = Ended()
            await reader.run(r)
            assert isinstance(reader.error, OSError)
            assert reader.error.errno == errno.ECANCELED
            os.write(w, b"x")
            reader = Ended()
            await reader.run(r)
            assert reader.data == b"x"
            assert not manager().requeueing

    with simulated(seed=None) as rings:
        trio.run(main)


def test_f43_a_close_that_cancels_beside_what_it_closes() -> None:
    """What was queued before it is queued again, what was queued after it has its own answer."""

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, _), pipe() as (other, _):
            reader = Ended()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, r)
                await blocked()
                waiter = Waiter()
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, other)
                await blocked()
                ring.cancel_fd = lambda fd, entries=(): True  # type: ignore[method-assign]
                trio.lowlevel.notify_closing(other)
                ring.complete(only(ring), -errno.ECANCELED)
                await blocked()
                assert not reader.ended.is_set()
                ring.complete(only(ring), -errno.ECANCELED)
            assert isinstance(reader.error, OSError)
            assert reader.error.errno == errno.ECANCELED
            assert isinstance(waiter.error, trio.ClosedResourceError)
            assert not manager().requeueing

    with simulated(manual=True) as rings:
        trio.run(main)


@pytest.mark.parametrize("result", INTERRUPTED)
def test_f28_a_poll_that_is_interrupted(result: int) -> None:
    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            ring.inject(OP_POLL_ADD, result)
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, r)
                await blocked()
                assert not waiter.ended.is_set()
                os.write(w, b"x")
            assert waiter.ready

    with simulated(seed=None) as rings:
        trio.run(main)


@pytest.mark.parametrize("ends_by", ["data", "cancel", "close"])
def test_f20_eagain_polls_and_tries_again(ends_by: str) -> None:
    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            await blocked()
            ring.inject(OP_READ, -errno.EAGAIN)
            reader = Ended()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, r)
                await blocked()
                assert not reader.ended.is_set()
                assert (OP_POLL_ADD, r) in [(p.opcode, p.fd) for p in ring.pending()]
                with pytest.raises(trio.BusyResourceError):
                    await trio.lowlevel.wait_readable(r)
                if ends_by == "data":
                    os.write(w, b"data")
                elif ends_by == "cancel":
                    reader.scope.cancel()
                else:
                    trio.lowlevel.notify_closing(r)
            if ends_by == "data":
                assert reader.data == b"data"
            elif ends_by == "cancel":
                assert reader.scope.cancelled_caught
            else:
                assert isinstance(reader.error, trio.ClosedResourceError)
            assert not manager().requeueing
            assert not manager().cancelling

    with simulated(seed=None) as rings:
        trio.run(main)


@pytest.mark.parametrize("result", [-errno.ECANCELED, -errno.EAGAIN])
@pytest.mark.parametrize("stage", ["after the read", "after the poll"])
def test_f17_closed_between_two_attempts(result: int, stage: str) -> None:
    """The completion has been processed, the task has not run, and the descriptor is closed: no further attempt."""
    if stage == "after the poll" and result != -errno.EAGAIN:
        result = -errno.EAGAIN

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            await blocked()
            reads: list[object] = []

            class AfterTheCompletion(trio.abc.Instrument):
                """After completions have been processed and before any task runs."""

                def after_io_wait(self, timeout: float) -> None:
                    if armed and manager().requeueing and (stage == "after the read" or r not in manager().readers):
                        trio.lowlevel.notify_closing(r)
                        closed.append(True)

            class Counting(trio.abc.Instrument):
                def before_io_wait(self, timeout: float) -> None:
                    reads[:] = [p for p in ring.pending() if p.opcode == OP_READ]

            armed = stage == "after the read"
            closed: list[bool] = []
            trio.lowlevel.add_instrument(AfterTheCompletion())
            ring.inject(OP_READ, result)
            reader = Ended()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, r)
                if stage == "after the poll":
                    await blocked()
                    armed = True
                    os.write(w, b"not for a closed reader")
            trio.lowlevel.add_instrument(Counting())
            assert closed
            assert isinstance(reader.error, trio.ClosedResourceError)
            await blocked()
            assert not reads
            assert not manager().requeueing
            if stage == "after the poll":
                assert os.read(r, 100) == b"not for a closed reader"

    with simulated(seed=None) as rings:
        trio.run(main)


def test_eagain_where_nobody_waits_in_turn_is_an_error() -> None:
    """Without `waiters` (positional reads) there is no readiness to wait for."""

    async def main() -> None:
        with pipe() as (r, _):
            rings[0].inject(OP_READ, -errno.EAGAIN)
            memory = uncleared(1)
            with pytest.raises(BlockingIOError):
                await manager().operation(r, memory).perform(OP_READ, memory, 1, WHERE_THE_STREAM_IS)

    with simulated(seed=None) as rings:
        trio.run(main)


def test_a_refused_entry_leaves_nothing_behind() -> None:
    """F3: the entry was never queued, so nobody may wait for it."""

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            await blocked()
            before = ring.counters().submitted
            for wait in (trio.lowlevel.wait_readable, lambda fd: read(fd, uncleared(1), 1)):
                ring.refuse(errno.EBUSY)
                with pytest.raises(OSError, match="busy"):
                    await wait(r)
                assert ring.counters().submitted == before
                assert r not in manager().readers
            os.write(w, b"x")
            await trio.lowlevel.wait_readable(r)
            assert await read(r, uncleared(1), 1) == 1

    with simulated(seed=None) as rings:
        trio.run(main)


# ------------------------------------------------------------------ what stays alive


class Memory:
    """Something that a weak reference can watch."""


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """What is freed in time is freed without the garbage collector's help."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def watched(references: list[weakref.ref[Memory]]) -> Memory:
    """Memory that only its receiver holds."""
    memory = Memory()
    references.append(weakref.ref(memory))
    return memory


def test_f1_memory_lives_until_the_completion_of_a_cancelled_read() -> None:
    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, _):
            alive: list[weakref.ref[Memory]] = []
            scope = trio.CancelScope()

            async def reads() -> None:
                operation = manager().operation(r, watched(alive), manager().readers)
                with scope:
                    await operation.perform(OP_READ, uncleared(1), 1, WHERE_THE_STREAM_IS)
                # Not with the operation, nor when the garbage collector finds the time.
                assert operation.result == -errno.ECANCELED
                assert alive[0]() is None

            with without_collector():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reads)
                    await blocked()
                    scope.cancel()
                    await blocked()
                    gc.collect()
                    assert alive[0]() is not None
                    ring.complete(only(ring), -errno.ECANCELED)

    with simulated(manual=True) as rings:
        trio.run(main)


def test_memory_is_let_go_at_the_completion(ring: Backend) -> None:
    """Not when the garbage collector finds the time: a bytearray can be resized as soon as its read is over."""

    async def main() -> None:
        with pipe() as (r, w), without_collector():
            for ends_by in ("data", "cancel", "close"):
                target = bytearray(32)
                scope = trio.CancelScope()

                async def reads() -> None:
                    memory = ffi.from_buffer("char[]", target, require_writable=True)  # noqa: B023
                    with scope, contextlib.suppress(trio.ClosedResourceError):  # noqa: B023
                        await read(r, memory, len(memory))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reads)
                    await blocked()
                    with pytest.raises(BufferError):
                        target.append(0)
                    if ends_by == "data":
                        os.write(w, b"data")
                    elif ends_by == "cancel":
                        scope.cancel()
                    else:
                        trio.lowlevel.notify_closing(r)
                if ends_by != "data":
                    # The frames of an exception that was caught may hold it; nothing else does.
                    gc.collect()
                else:
                    assert target.startswith(b"data")
                target.append(0)
                assert len(target) == 33

    run(ring, main)


class Discarding(Operation):
    """Tells what nobody took."""

    __slots__ = ("discarded",)

    def __init__(self, fd: int, keep: object) -> None:
        super().__init__(manager(), fd, keep, manager().readers)
        self.discarded: list[int] = []

    def discard(self, result: int, flags: int) -> None:
        """Note it."""
        self.discarded.append(result)


def test_f1_memory_lives_on_when_the_coroutine_is_closed() -> None:
    """GeneratorExit: the entry is cancelled, the memory stays, the late result is discarded (F9) and nobody is woken."""

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, _):
            memory = uncleared(8)
            keep = Memory()
            alive = weakref.ref(keep)
            operation = Discarding(r, keep)
            discarded = operation.discarded
            coroutine = operation.perform(OP_READ, memory, 8, WHERE_THE_STREAM_IS)
            coroutine.send(None)
            coroutine.close()
            del operation, coroutine, keep
            await blocked()
            gc.collect()
            assert alive() is not None
            assert [p.cancelled for p in ring.pending() if p.opcode == OP_READ] == [True]
            # The direction is free for others, and the file is still held: a close must know.
            assert r not in manager().readers
            assert [(fd, len(each)) for fd, each in manager().cancelling.items()] == [(r, 1)]
            ring.complete(only(ring), 1)
            await blocked()
            gc.collect()
            assert alive() is None
            assert discarded == [1]
            assert not manager().cancelling

    with simulated(manual=True) as rings:
        trio.run(main)


def test_a_closed_coroutine_of_a_poll() -> None:
    async def main() -> None:
        with pipe() as (r, w):
            coroutine = manager().wait_readable(r)
            coroutine.send(None)
            coroutine.close()
            assert r not in manager().readers
            await blocked()
            assert not manager().cancelling
            os.write(w, b"x")
            await trio.lowlevel.wait_readable(r)

    run("uring", main)


def test_f1_keyboard_interrupt_waits_for_the_completion() -> None:
    """The main task is in a read when Ctrl-C comes: what a cancel does, this does."""

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            keep = Memory()
            alive = weakref.ref(keep)

            @trio.lowlevel.enable_ki_protection
            async def interrupts() -> None:
                await blocked()
                signal.raise_signal(signal.SIGINT)
                try:
                    await blocked()
                    gc.collect()
                    assert alive() is not None
                    assert [p.cancelled for p in ring.pending() if p.opcode == OP_READ] == [True]
                finally:  # else the run would wait for ever, and the failure not be seen
                    ring.complete(only(ring), -errno.ECANCELED)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(interrupts)
                try:
                    await read(r, uncleared(1), 1, keep)
                except KeyboardInterrupt:
                    os.write(w, b"kept")
                del keep
            assert os.read(r, 10) == b"kept"

    with simulated(manual=True) as rings:
        trio.run(main)


def break_down(next_tick: Callable[[], object]) -> None:
    """Make the current run end in a TrioInternalError."""

    class Crashing(UringIOManager):
        """A loop that breaks down."""

        __slots__ = ()

        def process_events(self, events: Any) -> None:
            """Break down."""
            next_tick()
            raise ZeroDivisionError

    manager().__class__ = Crashing


def breaks_down(backend: Backend, main: Callable[[], Awaitable[object]]) -> None:
    """A run that ends so."""
    with pytest.raises(trio.TrioInternalError):
        run(backend, main)


def test_f8_a_crash_drains_the_ring(ring: Backend) -> None:
    """Reads in flight when the loop breaks down: the kernel has let go before trio.run raises."""
    with pipe() as (r, w), socket_pair() as (a, b):
        memories = []

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                for fd in (r, a.fileno()):
                    reader = Ended()
                    memories.append(reader.memory)
                    nursery.start_soon(reader.run, fd)
                await blocked()
                break_down(lambda: None)
                await trio.lowlevel.checkpoint()

        crash(lambda: breaks_down(ring, main))
        os.write(w, b"later")
        b.send(b"later")
        assert os.read(r, 10) == a.recv(10) == b"later"
        for memory in memories:
            assert bytes(ffi.buffer(memory)) == CANARY * 3


def test_after_a_crash_the_tasks_are_collected_in_silence(ring: Backend) -> None:
    """Their coroutines are closed when the ring has gone already: nothing is left to be cancelled, and nothing is raised."""
    with pipe() as (r, _), socket_pair() as (a, _b):

        async def main() -> None:
            trio.lowlevel.spawn_system_task(trio.lowlevel.wait_readable, a)
            trio.lowlevel.spawn_system_task(Ended().run, r)
            await blocked()
            break_down(lambda: None)
            await trio.lowlevel.checkpoint()

        crash(lambda: breaks_down(ring, main))


def test_a_crash_discards_what_completes_in_the_drain() -> None:
    """F9: a descriptor that arrives when the run is over is closed, not leaked."""
    discarded: list[int] = []
    with pipe() as (r, w):

        async def main() -> None:
            memory = uncleared(8)
            operation = Discarding(r, memory)
            operation.discarded = discarded
            async with trio.open_nursery() as nursery:
                nursery.start_soon(operation.perform, OP_READ, memory, 8, WHERE_THE_STREAM_IS)
                await blocked()
                break_down(lambda: os.write(w, b"x"))
                await trio.lowlevel.checkpoint()

        crash(lambda: breaks_down("uring", main))
        assert len(discarded) == 1
        # Either way exactly one outcome.
        if discarded == [1]:
            with pytest.raises(BlockingIOError):
                os.read(r, 1)
        else:
            assert os.read(r, 1) == b"x"


def test_f8_memory_that_the_kernel_will_not_let_go_of_is_kept() -> None:
    """A completion that never comes: the run ends all the same, says so, and never frees what may be written to."""
    keep = Memory()
    alive = weakref.ref(keep)

    async def main(keep: Memory) -> None:
        rings[0].inject(OP_READ, copies=0)
        coroutine = manager().operation(r, keep, manager().readers).perform(OP_READ, uncleared(1), 1)
        coroutine.send(None)
        coroutine.close()

    with simulated(seed=None) as rings, pipe() as (r, _), pytest.warns(ResourceWarning, match="their memory is kept"):
        trio.run(main, keep)
    del keep
    gc.collect()
    assert alive() is not None


def test_f8_memory_of_a_manager_that_nobody_closed() -> None:
    """Found by the garbage collector in another thread than its owner's, where nobody may wait for the kernel."""
    forgotten: list[UringIOManager] = []

    def begin() -> None:
        m = UringIOManager(UringBackend())
        memory = uncleared(8)
        m.operations[1000] = (memory, Memory())
        m.ring.queue(OP_READ, 1000, r, memory, 8, WHERE_THE_STREAM_IS)
        m.ring.submit()
        forgotten.append(m)

    def memories() -> int:
        return sum(type(each) is Memory for each in gc.get_objects())

    before = memories()
    with pipe() as (r, _):
        in_thread(begin)
        with pytest.warns(ResourceWarning, match="unclosed|their memory is kept"):
            forgotten.clear()
        gc.collect()
    assert memories() == before + 1


# ------------------------------------------------------------------ at random


async def conserve(seed: int) -> None:
    """Readers with random deadlines on pipes that are written at random: no byte is lost, doubled or misplaced."""
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(pipe()) for _ in range(8)]
        written = [b""] * len(pipes)
        got = [b""] * len(pipes)

        async def consume(number: int) -> None:
            for _ in range(20):
                reader = Ended()
                if chance.random() < 0.6:
                    cancels.append(reader.scope)
                await reader.run(pipes[number][0])
                reader.check()
                if reader.data is None:
                    assert reader.scope.cancelled_caught
                got[number] += reader.data or b""
                if sum(map(len, got)) > 1000:
                    return

        cancels: list[trio.CancelScope] = []
        async with trio.open_nursery() as nursery:
            for number in range(len(pipes)):
                nursery.start_soon(consume, number)
            for _ in range(200):
                for number, (_, w) in enumerate(pipes):
                    if chance.random() < 0.2:
                        piece = bytes(chance.choices(range(256), k=chance.randrange(1, 40)))
                        written[number] += piece[: os.write(w, piece)]
                while cancels and chance.random() < 0.7:
                    cancels.pop(chance.randrange(len(cancels))).cancel()
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        for number, (r, _) in enumerate(pipes):
            with contextlib.suppress(BlockingIOError):
                got[number] += os.read(r, 1 << 20)
        assert got == written
        await blocked()
        assert not manager().cancelling
        assert not manager().requeueing
        assert manager().statistics().operations_in_flight == 1


@pytest.mark.parametrize("seed", range(5))
def test_conservation_under_random_cancels(ring: Backend, seed: int) -> None:
    run(ring, conserve, seed)


@pytest.mark.parametrize("seed", range(20))
def test_conservation_on_the_simulated_ring(seed: int) -> None:
    """Completions late, out of order, and in the worst moment; memory looked after by the ring."""
    with simulated(seed=seed, poison=True):
        trio.run(conserve, seed)


@pytest.mark.parametrize("seed", range(20))
def test_readiness_on_the_simulated_ring(seed: int) -> None:
    """Cancels that the kernel is slow to process do not disturb the waits that follow on the same descriptor."""

    async def main() -> None:
        with socket_pair() as (a, b):
            for _ in range(10):
                fill(a.fileno())
                cancelled, ready, writer = Waiter(), Waiter(), Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancelled.run, trio.lowlevel.wait_readable, a)
                    nursery.start_soon(writer.run, trio.lowlevel.wait_writable, a)
                    await blocked()
                    cancelled.scope.cancel()
                    nursery.start_soon(ready.run, trio.lowlevel.wait_readable, a)
                    await blocked()
                    assert not ready.ended.is_set()
                    assert not writer.ended.is_set()
                    b.send(b"x")
                    await ready.ended.wait()
                    assert not writer.ended.is_set()
                    while not writer.ended.is_set():
                        with contextlib.suppress(BlockingIOError):
                            b.recv(1 << 20)
                        await blocked()
                assert ready.ready
                assert writer.ready
                assert cancelled.scope.cancelled_caught
                a.recv(10)
            await blocked()
            assert not manager().cancelling

    with simulated(seed=seed):
        trio.run(main)


def test_a_late_completion_of_a_cancelled_poll_is_nobodys() -> None:
    """Invariant 5, by hand: the old poll completes as ready when a new one waits on the same descriptor."""

    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, _):
            old, new = Waiter(), Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(old.run, trio.lowlevel.wait_readable, r)
                await blocked()
                (first,) = [p.user_data for p in ring.pending() if p.fd == r]
                old.scope.cancel()
                nursery.start_soon(new.run, trio.lowlevel.wait_readable, r)
                await blocked()
                ring.complete(first, 1)
                await blocked()
                assert not new.ended.is_set()
                assert not manager().cancelling
                (second,) = [p.user_data for p in ring.pending() if p.fd == r]
                ring.complete(second, 1)
            assert new.ready
            assert old.scope.cancelled_caught

    with simulated(manual=True) as rings:
        trio.run(main)


def test_a_doubled_completion_is_dropped() -> None:
    async def main() -> None:
        (ring,) = rings
        with pipe() as (r, w):
            os.write(w, b"x")
            ring.inject(OP_READ, copies=2)
            assert await read(r, uncleared(1), 1) == 1
            ring.inject(OP_POLL_ADD, 1, copies=2)
            await trio.lowlevel.wait_readable(r)
            await blocked()
            assert not manager().cancelling

    with simulated(seed=None) as rings:
        trio.run(main)


def test_f16_a_multishot_poll_that_ends_is_armed_again() -> None:
    """The writer whose peer is half-closed: its poll goes on as multishot, and the kernel may end that at any time."""

    async def main() -> None:
        (ring,) = rings
        rdhup = 0x2000
        with socket_pair() as (a, _):
            writer = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.run, trio.lowlevel.wait_writable, a)
                await blocked()
                for flags in (0, CQE_F_MORE, CQE_F_MORE, 0, 0):
                    (poll,) = [p.user_data for p in ring.pending() if p.fd == a.fileno()]
                    ring.complete(poll, rdhup, flags)
                    await blocked()
                    assert not writer.ended.is_set()
                (poll,) = [p.user_data for p in ring.pending() if p.fd == a.fileno()]
                ring.complete(poll, 4, CQE_F_MORE)
                await writer.ended.wait()
                assert writer.ready
                # It was ready, so it is cancelled, and that it still was the kernel's is in the books.
                assert [(fd, len(each)) for fd, each in manager().cancelling.items()] == [(a.fileno(), 1)]
                await blocked()
                ring.complete(poll, -errno.ECANCELED)
            await blocked()
            assert not manager().cancelling

    with simulated(manual=True) as rings:
        trio.run(main)
