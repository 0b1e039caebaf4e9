"""A close is a close (invariant 4), and a completion names one operation for ever (invariant 5).

Knows the manager's books; the kernel's side is seen through what the peer of a descriptor sees.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from conftest import GROUP
from manager_tools import (
    WHERE_THE_STREAM_IS,
    Backend,
    Host,
    Waiter,
    blocked,
    fill,
    manager,
    pipe,
    read,
    run,
    socket_pair,
    uncleared,
)

from trio_uring._ring.ring import OP_READ

pytestmark = pytest.mark.usefixtures("descriptors_flat")

Wait = Callable[..., Awaitable[None]]
WAITS = {"read": trio.lowlevel.wait_readable, "write": trio.lowlevel.wait_writable}


def reuse(fd: int) -> tuple[socket.socket, socket.socket]:
    """Close a descriptor and give its number to another file, one end of a socket pair."""
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    os.dup2(a.fileno(), fd)
    a.close()
    return socket.socket(fileno=fd), b


# ------------------------------------------------------------------ who gets ClosedResourceError


def test_from_a_task(backend: Backend) -> None:
    async def main() -> None:
        with socket_pair() as (a, _):
            fill(a.fileno())
            waiters = [Waiter(), Waiter()]
            async with trio.open_nursery() as nursery:
                for waiter, wait in zip(waiters, WAITS.values(), strict=True):
                    nursery.start_soon(waiter.run, wait, a)
                await blocked()
                trio.lowlevel.notify_closing(a)
            for waiter in waiters:
                assert isinstance(waiter.error, trio.ClosedResourceError)
                assert str(waiter.error) == "another task closed this fd"
            # It is still open, so it can still be used; and again be closed.
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                await blocked()
                trio.lowlevel.notify_closing(a)
            assert isinstance(waiter.error, trio.ClosedResourceError)

    run(backend, main)


def test_nobody_waits(backend: Backend) -> None:
    async def main() -> None:
        with socket_pair() as (a, b):
            trio.lowlevel.notify_closing(a)
            trio.lowlevel.notify_closing(b.fileno())

    run(backend, main)


def test_from_run_sync_soon(backend: Backend) -> None:
    async def main() -> None:
        with socket_pair() as (a, _):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                await blocked()
                trio.lowlevel.current_trio_token().run_sync_soon(trio.lowlevel.notify_closing, a)
            assert isinstance(waiter.error, trio.ClosedResourceError)

    run(backend, main)


def test_from_a_guest_host_while_the_worker_sleeps(backend: Backend) -> None:
    """F32."""
    waiter = Waiter()

    with socket_pair() as (a, b):

        async def main() -> None:
            await waiter.run(trio.lowlevel.wait_readable, a)

        host = Host()
        host.start(backend, main)
        host.until(lambda: waiter_is_blocked(host))
        trio.lowlevel.notify_closing(a)
        a.close()
        # Not only when the guest runs again: the close is one at once.
        assert b.recv(1) == b""
        host.finish()
        assert isinstance(waiter.error, trio.ClosedResourceError)


def waiter_is_blocked(host: Host) -> bool:
    """Whether a guest run has nothing left to do but wait."""
    return host.worker_asleep() and trio.lowlevel.current_statistics().tasks_runnable == 0


def test_the_wait_is_over_although_it_was_ready(backend: Backend) -> None:
    """Ready and closed in one tick: the close is the later of the two, and what the task learns."""

    async def main() -> None:
        with socket_pair() as (a, b):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                await blocked()
                b.send(b"x")
                trio.lowlevel.notify_closing(a)
            assert isinstance(waiter.error, trio.ClosedResourceError)

    run(backend, main)


@pytest.mark.parametrize("kind", ["poll", "operation"])
def test_close_then_notify(ring: Backend, kind: str) -> None:
    """Trio's documentation allows the other order, if there is no checkpoint between."""

    async def main() -> None:
        with socket_pair() as (a, b):
            fd = a.fileno()
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable if kind == "poll" else reads_forever, fd)
                await blocked()
                a.close()
                trio.lowlevel.notify_closing(fd)
                # The peer, too, sees the end.
                assert b.recv(1) == b""
            assert isinstance(waiter.error, trio.ClosedResourceError)
            await blocked()
            assert not manager().cancelling
            assert manager().statistics().operations_in_flight == 1

    run(ring, main)


def test_close_then_notify_on_epoll() -> None:
    async def main() -> None:
        with socket_pair() as (a, b):
            fd = a.fileno()
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, fd)
                await blocked()
                a.close()
                trio.lowlevel.notify_closing(fd)
                assert b.recv(1) == b""
            assert isinstance(waiter.error, trio.ClosedResourceError)

    run("epoll", main)


async def reads_forever(fd: int) -> None:
    """A direct read that nothing but a close or a cancel ends."""
    await read(fd, uncleared(10), 10)


# ------------------------------------------------------------------ F17: no entry outlives its number


@pytest.mark.parametrize("direction", WAITS)
def test_f17_a_poll_not_yet_submitted(backend: Backend, direction: str) -> None:
    """Queued, closed, and the number reused in one tick: the waiter is told, and the new file is left alone."""

    async def main() -> None:
        with pipe() as (r, w):
            fd = r if direction == "read" else w
            if direction == "write":
                fill(w)
            waiter, newcomer = Waiter(), Waiter()
            new: list[socket.socket] = []

            class BeforeTheSubmit(trio.abc.Instrument):
                """After all tasks of a tick, before its entries are handed to the kernel."""

                def before_io_wait(self, timeout: float) -> None:
                    if waiting and not new:
                        trio.lowlevel.notify_closing(fd)
                        new.extend(reuse(fd))

            waiting = False

            async def wait() -> None:
                nonlocal waiting
                waiting = True
                await waiter.run(WAITS[direction], fd)

            trio.lowlevel.add_instrument(BeforeTheSubmit())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                while not new:  # so that the loop does not go to sleep: it has decided for how long before it is told
                    await trio.lowlevel.checkpoint()
            assert isinstance(waiter.error, trio.ClosedResourceError)
            a, b = new
            with a, b:
                fill(a.fileno())
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(newcomer.run, WAITS[direction], fd)
                    await blocked()
                    assert not newcomer.ended.is_set()
                    if direction == "read":
                        b.send(b"x")
                    else:
                        b.recv(1 << 20)
                assert newcomer.ready

    run(backend, main)


def test_f17_a_read_not_yet_submitted(ring: Backend) -> None:
    """The same for a read: the new file keeps its bytes."""

    async def main() -> None:
        with pipe() as (r, _):
            waiter = Waiter()

            new: list[socket.socket] = []

            class BeforeTheSubmit(trio.abc.Instrument):
                """After all tasks of a tick, before its entries are handed to the kernel."""

                def before_io_wait(self, timeout: float) -> None:
                    if r in manager().readers and not new:
                        assert manager().ring.queued or GROUP is not None
                        trio.lowlevel.notify_closing(r)
                        new.extend(reuse(r))
                        new[1].send(b"for the new file")

            trio.lowlevel.add_instrument(BeforeTheSubmit())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, reads_forever, r)
            assert isinstance(waiter.error, trio.ClosedResourceError)
            with new[0], new[1]:
                await blocked()
                assert new[0].recv(100) == b"for the new file"

    run(ring, main)


@pytest.mark.parametrize("kind", ["poll", "operation"])
def test_f17_the_number_is_free_in_the_same_tick(ring: Backend, kind: str) -> None:
    """A wait on the new file with the same number is not refused because of the old one's operation."""

    async def main() -> None:
        with pipe() as (r, _):
            waiter, newcomer = Waiter(), Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable if kind == "poll" else reads_forever, r)
                await blocked()
                trio.lowlevel.notify_closing(r)
                a, b = reuse(r)
                with a, b:
                    # From this very task, so that no tick is between.
                    b.send(b"x")
                    await newcomer.run(trio.lowlevel.wait_readable, a)
                    assert newcomer.error is None
                    assert newcomer.ready
            assert isinstance(waiter.error, trio.ClosedResourceError)
            await blocked()
            assert not manager().cancelling

    run(ring, main)


# ------------------------------------------------------------------ F18: the file is let go


@pytest.mark.parametrize("direction", WAITS)
def test_f18_the_peer_sees_the_end_at_once(backend: Backend, direction: str) -> None:
    """Waiting, notified, closed: the peer sees it before the closing task gives way."""

    async def main() -> None:
        with socket_pair() as (a, b):
            waiter = Waiter()
            if direction == "write":
                fill(a.fileno())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, WAITS[direction], a)
                await blocked()
                trio.lowlevel.notify_closing(a)
                a.close()
                while data := b.recv(1 << 20):
                    assert direction == "write", data
            assert isinstance(waiter.error, trio.ClosedResourceError)

    run(backend, main)


@pytest.mark.parametrize("direction", WAITS)
def test_f18_after_a_cancelled_wait(backend: Backend, direction: str) -> None:
    """Cancelled, notified and closed in one tick."""

    async def main() -> None:
        with socket_pair() as (a, b):
            waiter = Waiter()
            if direction == "write":
                fill(a.fileno())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, WAITS[direction], a)
                await blocked()
                waiter.scope.cancel()
                trio.lowlevel.notify_closing(a)
                a.close()
                while data := b.recv(1 << 20):
                    assert direction == "write", data
            assert waiter.scope.cancelled_caught

    run(backend, main)


def test_f18_after_a_cancelled_operation(ring: Backend) -> None:
    async def main() -> None:
        with socket_pair() as (a, b):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, reads_forever, a.fileno())
                await blocked()
                waiter.scope.cancel()
                trio.lowlevel.notify_closing(a)
                a.close()
                assert b.recv(1) == b""
            assert waiter.scope.cancelled_caught
            await blocked()
            assert not manager().cancelling

    run(ring, main)


@pytest.mark.parametrize("cancelled", [False, True], ids=["waiting", "cancelled"])
def test_f18_operations_of_which_there_may_be_many(ring: Backend, cancelled: bool) -> None:
    """Without `waiters`, as for positional reads: no turn to wait for, and a close is a close all the same."""

    async def main() -> None:
        with socket_pair() as (a, b):

            async def reads_too(fd: int) -> None:
                memory = uncleared(10)
                await manager().operation(fd, memory).perform(OP_READ, memory, 10, WHERE_THE_STREAM_IS)

            waiters = [Waiter(), Waiter(), Waiter()]
            async with trio.open_nursery() as nursery:
                for waiter in waiters:
                    nursery.start_soon(waiter.run, reads_too, a.fileno())
                await blocked()
                if cancelled:
                    for waiter in waiters:
                        waiter.scope.cancel()
                trio.lowlevel.notify_closing(a)
                a.close()
                assert b.recv(1) == b""
            for waiter in waiters:
                if cancelled:
                    assert waiter.scope.cancelled_caught
                else:
                    assert isinstance(waiter.error, trio.ClosedResourceError)
            # An end by data leaves nothing in the books either.
        with pipe() as (r, w):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, reads_too, r)
                await blocked()
                os.write(w, b"x")
            assert waiter.ready
            assert not manager().concurrent

    run(ring, main)


def test_f18_after_a_cancelled_wait_and_a_close_without_notice(ring: Backend) -> None:
    """The cancel is on its way, so the next tick is the latest; in a group, when the poller is done."""

    async def main() -> None:
        with socket_pair() as (a, b):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                await blocked()
                waiter.scope.cancel()
                a.close()
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                if GROUP is not None:
                    await blocked()
                    manager().ring.release()
                assert b.recv(1) == b""

    run(ring, main)


def test_f18_a_read_cut_short_leaves_the_next_byte_alone(ring: Backend) -> None:
    """No orphan eats what comes after the close: here on the other descriptor of the same file."""

    async def main() -> None:
        with pipe() as (r, w):
            other = os.dup(r)
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, reads_forever, r)
                await blocked()
                trio.lowlevel.notify_closing(r)
                os.close(r)
                os.write(w, b"next")
                assert os.read(other, 10) == b"next"
            os.close(other)
            assert isinstance(waiter.error, trio.ClosedResourceError)

    run(ring, main)


def test_f18_many_cancelled_waits_end_in_one_close(ring: Backend) -> None:
    """F25: the kernel runs about twenty pieces of deferred work for each entry; a close waits for all of them."""
    count = 100

    async def main() -> None:
        with socket_pair() as (a, b):
            fd = a.fileno()

            async def wait() -> None:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await trio.lowlevel.wait_readable(fd)

            class BeforeTheSubmit(trio.abc.Instrument):
                """After all tasks of a tick, before its entries are handed to the kernel."""

                def before_io_wait(self, timeout: float) -> None:
                    if len(manager().cancelling.get(fd, ())) == count:
                        trio.lowlevel.notify_closing(fd)
                        a.close()
                        told.append(b.recv(1))

            told: list[bytes] = []
            trio.lowlevel.add_instrument(BeforeTheSubmit())
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(wait)
            assert told == [b""]
            await blocked()
            assert not manager().cancelling

    run(ring, main)


def test_f18_a_close_gets_its_turn_behind_the_work_of_others(ring: Backend) -> None:
    """The same with a hundred other descriptors that became ready just before: their work is in front."""

    async def main() -> None:
        with socket_pair() as (a, b), contextlib.ExitStack() as stack:
            pipes = [stack.enter_context(pipe()) for _ in range(100)]
            others, waiter = [Waiter() for _ in pipes], Waiter()
            async with trio.open_nursery() as nursery:
                for other, (r, _) in zip(others, pipes, strict=True):
                    nursery.start_soon(other.run, trio.lowlevel.wait_readable, r)
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                await blocked()
                for _, w in pipes:
                    os.write(w, b"x")
                trio.lowlevel.notify_closing(a)
                a.close()
                assert b.recv(1) == b""
            assert all(other.ready for other in others)
            assert isinstance(waiter.error, trio.ClosedResourceError)

    run(ring, main)


# ------------------------------------------------------------------ descriptors of one file


@pytest.mark.parametrize("kind", ["poll", "operation"])
def test_closing_one_descriptor_does_not_end_waits_on_its_duplicate(backend: Backend, kind: str) -> None:
    """IORING_ASYNC_CANCEL_FD matches the file and not the number; the waiter on the other number goes on."""
    if kind == "operation" and backend == "epoll":
        kind = "poll"

    async def main() -> None:
        with pipe() as (r, w):
            other = os.dup(r)
            try:
                closing, staying = Waiter(), Waiter()
                async with trio.open_nursery() as nursery:
                    wait: Wait = trio.lowlevel.wait_readable if kind == "poll" else reads_forever
                    nursery.start_soon(closing.run, wait, r)
                    nursery.start_soon(staying.run, wait, other)
                    await blocked()
                    for _ in range(3):
                        trio.lowlevel.notify_closing(r)
                        await closing.ended.wait()
                        await blocked()
                        assert not staying.ended.is_set()
                        closing = Waiter()
                        nursery.start_soon(closing.run, wait, r)
                        await blocked()
                    trio.lowlevel.notify_closing(r)
                    await closing.ended.wait()
                    assert isinstance(closing.error, trio.ClosedResourceError)
                    os.write(w, b"x")
                assert staying.ready
            finally:
                os.close(other)

    run(backend, main)


def test_f17_a_read_that_a_duplicate_interrupted_is_not_taken_up_on_a_reused_number(ring: Backend) -> None:
    """The kernel cancels a read because a duplicate is closed. Before its task runs, its own descriptor is closed, too.

    Closed means closed: to queue the read again would run it on whatever file has the number now.
    """

    async def main() -> None:
        with pipe() as (r, _):
            duplicate = os.dup(r)
            closing, victim = Waiter(), Waiter()
            new: list[socket.socket] = []

            class InTheTickOfTheCompletion(trio.abc.Instrument):
                """After completions have been processed and before any task runs: no task order to hope for."""

                def after_io_wait(self, timeout: float) -> None:
                    if armed and not new:
                        trio.lowlevel.notify_closing(r)
                        new.extend(reuse(r))
                        new[1].send(b"for the new file")

            armed = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(closing.run, reads_forever, duplicate)
                nursery.start_soon(victim.run, reads_forever, r)
                await blocked()
                trio.lowlevel.add_instrument(InTheTickOfTheCompletion())
                trio.lowlevel.notify_closing(duplicate)
                os.close(duplicate)
                armed = True
            with new[0], new[1]:
                assert isinstance(victim.error, trio.ClosedResourceError)
                await blocked()
                assert new[0].recv(100) == b"for the new file"

    run(ring, main)


# ------------------------------------------------------------------ stale completions


def test_stale_completion_on_a_reused_number(backend: Backend) -> None:
    """A cancelled poll that completes late does not wake who waits on the new file with the same number."""

    async def main() -> None:
        with pipe() as (r, _):
            waiter, newcomer = Waiter(), Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, r)
                await blocked()
                waiter.scope.cancel()
                a, b = reuse(r)  # without notice: the poll on the old file is still the kernel's
                with a, b:
                    nursery.start_soon(newcomer.run, trio.lowlevel.wait_readable, a)
                    await blocked()
                    assert not newcomer.ended.is_set()
                    b.send(b"x")
                    await newcomer.ended.wait()
                    assert newcomer.ready

    run(backend, main)


def test_stale_completion_of_a_ready_poll(ring: Backend) -> None:
    """Ready, then cancelled, then the number reused, all before the completion is processed."""

    async def main() -> None:
        with pipe() as (r, w):
            waiter, newcomer = Waiter(), Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, r)
                await blocked()
                os.write(w, b"x")  # the poll completes
                waiter.scope.cancel()
                trio.lowlevel.notify_closing(r)
                a, b = reuse(r)
                with a, b:
                    nursery.start_soon(newcomer.run, trio.lowlevel.wait_readable, a)
                    await blocked()
                    assert not newcomer.ended.is_set()
                    newcomer.scope.cancel()
                    await newcomer.ended.wait()
            await blocked()
            assert not manager().cancelling

    run(ring, main)


def test_books_are_empty_after_all_kinds_of_ends(ring: Backend) -> None:
    """`cancelling`, `readers`, `writers` and `inflight` hold what the kernel holds, and nothing else."""

    async def main() -> None:
        await blocked()
        m = manager()
        with socket_pair() as (a, b):
            for _ in range(20):
                cancelled, ready, closed = Waiter(), Waiter(), Waiter()
                async with trio.open_nursery() as nursery:
                    for waiter in (cancelled, ready, closed):
                        nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                        await blocked()
                        if waiter is cancelled:
                            waiter.scope.cancel()
                        elif waiter is ready:
                            b.send(b"x")
                        else:
                            trio.lowlevel.notify_closing(a)
                        await waiter.ended.wait()
                        if waiter is ready:
                            a.recv(1)
                assert cancelled.scope.cancelled_caught
                assert ready.ready
                assert isinstance(closed.error, trio.ClosedResourceError)
        await blocked()
        assert m.statistics().operations_in_flight == 1  # Trio's own wake-up socket
        assert not m.requeueing
        assert len(m.readers) == 1
        assert not m.writers
        assert not m.cancelling

    run(ring, main)


# ------------------------------------------------------------------ closed without notice


def test_a_close_without_notice_lets_the_wait_go_on(ring: Backend) -> None:
    """docs/differences.md: the poll holds the file, so the wait still sees it, and the peer sees no end until then."""

    async def main() -> None:
        with socket_pair() as (a, b):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                await blocked()
                a.close()
                await blocked()
                assert not waiter.ended.is_set()
                with pytest.raises(BlockingIOError):
                    b.recv(1)
                b.send(b"x")
            assert waiter.ready
            with pytest.raises(ConnectionResetError):
                b.recv(1)

    run(ring, main)


def test_a_close_without_notice_on_epoll() -> None:
    """The other half of that difference: the kernel forgets the descriptor, the peer sees the end, the wait never ends."""

    async def main() -> None:
        with socket_pair() as (a, b):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                await blocked()
                a.close()
                assert b.recv(1) == b""
                await blocked()
                assert not waiter.ended.is_set()
                waiter.scope.cancel()

    run("epoll", main)
