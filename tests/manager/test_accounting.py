"""What a run costs in system calls, and what `current_statistics().io_statistics` says of it.

Counts kernel entries by the manager's own counter and, for the truth of that counter, by strace.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from conftest import GROUP
from manager_tools import (
    PATIENCE,
    Backend,
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

from trio_uring import UringBackend, UringStatistics

pytestmark = pytest.mark.usefixtures("descriptors_flat")

TINY = UringBackend(sq_entries=2, cq_entries=4)


def statistics() -> UringStatistics:
    """Of the current run, by the public way."""
    found = trio.lowlevel.current_statistics().io_statistics
    assert isinstance(found, UringStatistics)
    return found


class Ticks(trio.abc.Instrument):
    """Kernel entries of each tick, from one wait for I/O to the next."""

    def __init__(self) -> None:
        self.entries: list[int] = []
        self._before = 0

    def before_io_wait(self, timeout: float) -> None:
        """A tick begins with its wait."""
        self._before = statistics().kernel_entries

    def after_io_wait(self, timeout: float) -> None:
        """And the wait is over."""
        self.entries.append(statistics().kernel_entries - self._before)


# ------------------------------------------------------------------ system calls


def test_one_enter_per_tick() -> None:
    """However many tasks queued something in it: a hundred waits here."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(socket_pair()) for _ in range(100)]
            ticks = Ticks()

            async def player(number: int) -> None:
                a, b = pairs[number]
                for _ in range(10):
                    b.send(b"x")
                    await trio.lowlevel.wait_readable(a)
                    a.recv(1)

            async with trio.open_nursery() as nursery:
                for number in range(len(pairs)):
                    nursery.start_soon(player, number)
                trio.lowlevel.add_instrument(ticks)
            trio.lowlevel.remove_instrument(ticks)
            assert max(ticks.entries) == 1
            # A thousand waits in few entries: completions that arrived together are reaped together.
            assert sum(ticks.entries) < 100

    run("uring", main)


def test_an_idle_tick_makes_no_system_call(ring: Backend) -> None:
    """Tasks that only give way to each other: nothing queued, nothing pending, no kernel."""

    async def main() -> None:
        with pipe() as (r, _):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, r)
                await blocked()
                before = statistics().kernel_entries
                for _ in range(1000):
                    await trio.lowlevel.checkpoint()
                assert statistics().kernel_entries == before
                nursery.cancel_scope.cancel()

    run(ring, main)


def test_a_tick_that_sleeps_enters_once(ring: Backend) -> None:
    async def main() -> None:
        ticks = Ticks()
        trio.lowlevel.add_instrument(ticks)
        for _ in range(10):
            await trio.sleep(0.001)
        # On a busy machine each of these may be over before it has begun.
        while not any(ticks.entries):  # noqa: ASYNC110
            await trio.sleep(0.01)
        trio.lowlevel.remove_instrument(ticks)
        # In a group the end of a timeout may be told once more: when the poller is known to be done.
        assert max(ticks.entries) == 1 or GROUP is not None

    run(ring, main)


@pytest.mark.parametrize("options", ["uring", "sq2cq4"])
def test_strace_agrees(options: str, tmp_path: Path) -> None:
    """The counter counts io_uring_enter(2), and nothing else of the loop makes system calls."""
    strace = shutil.which("strace")
    assert strace is not None, "install strace"
    program = """
        import os, sys, trio, trio.testing, trio_uring

        def entries():
            return trio.lowlevel.current_statistics().io_statistics.kernel_entries

        async def main():
            os.path.exists("/start")
            before = entries()
            r, w = os.pipe()
            for _ in range(100):
                os.write(w, b"x")
                await trio.lowlevel.wait_readable(r)
                os.read(r, 1)
            await trio.testing.wait_all_tasks_blocked()
            print(entries() - before)
            os.path.exists("/begin")
            for _ in range(1000):
                await trio.lowlevel.checkpoint()
            os.path.exists("/end")

        trio.run(main, io_backend=trio_uring.UringBackend(**eval(sys.argv[1])))
        """
    trace = tmp_path / "trace"
    sizes = f"dict(speculate=False{', sq_entries=2, cq_entries=4' if options == 'sq2cq4' else ''})"
    done = subprocess.run(
        [strace, "-f", "-o", str(trace), sys.executable, "-c", textwrap.dedent(program), sizes],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    text = trace.read_text()
    before = text[text.index('"/start"') : text.index('"/begin"')]
    assert len(re.findall(r"io_uring_enter\(", before)) == int(done.stdout)
    # One for each of a hundred waits, and a few for the start and for wait_all_tasks_blocked.
    assert 100 <= int(done.stdout) <= 110
    between = text[text.index('"/begin"') : text.index('"/end"')]
    assert len(between.splitlines()) == 2, between  # the rest of the one stat, the beginning of the other


# ------------------------------------------------------------------ statistics


def test_statistics_of_waiting_and_in_flight(ring: Backend) -> None:
    async def main() -> None:
        await blocked()
        idle = statistics()
        assert idle.backend == "uring"
        assert (idle.tasks_waiting_read, idle.tasks_waiting_write) == (1, 0)  # Trio's own wake-up socket
        assert idle.operations_in_flight == 1
        with socket_pair() as (a, b), pipe() as (r, _):
            fill(a.fileno())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, a)
                nursery.start_soon(trio.lowlevel.wait_writable, a)
                nursery.start_soon(trio.lowlevel.wait_readable, b)
                nursery.start_soon(read, r, uncleared(1), 1)
                await blocked()
                now = statistics()
                b.recv(1)
                assert now.tasks_waiting_read >= 3
                assert now.tasks_waiting_write == 1
                assert now.submitted - now.completed == now.operations_in_flight
                assert now.operations_in_flight == now.tasks_waiting_read + now.tasks_waiting_write
                nursery.cancel_scope.cancel()
            await blocked()
            now = statistics()
            assert (now.tasks_waiting_read, now.tasks_waiting_write, now.operations_in_flight) == (1, 0, 1)

    run(ring, main)


def test_statistics_of_what_was_done(pure_ring: Backend) -> None:
    async def main() -> None:
        with socket_pair() as (a, b):
            await blocked()
            start = statistics()
            for _ in range(10):
                b.send(b"x")
                await trio.lowlevel.wait_readable(a)
                a.recv(1)
            ready = statistics()
            assert ready.submitted - start.submitted == 10
            assert ready.completed - start.completed == 10
            assert ready.cancelled == start.cancelled
            for _ in range(7):
                waiter = Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                    await blocked()
                    waiter.scope.cancel()
            await blocked()
            cancelled = statistics()
            assert cancelled.submitted - ready.submitted == 7  # cancels themselves are not operations
            assert cancelled.completed - ready.completed == 7
            assert cancelled.cancelled - ready.cancelled == 7
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                await blocked()
                trio.lowlevel.notify_closing(a)
            await blocked()
            assert statistics().cancelled - cancelled.cancelled == 1

    run(pure_ring, main)


def test_statistics_of_full_queues() -> None:
    """Flushes and overflows happen where they must, and are counted; with queues that are large enough they are not."""
    count = 50

    async def main() -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            pipes = [stack.enter_context(pipe()) for _ in range(count)]
            waiters = [Waiter() for _ in pipes]
            async with trio.open_nursery() as nursery:
                for waiter, (r, _) in zip(waiters, pipes, strict=True):
                    nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, r)
                await blocked()
                for _, w in pipes:
                    os.write(w, b"x")
            assert all(waiter.ready for waiter in waiters)
        return attrs.asdict(statistics())

    small, large = run(TINY, main), run("uring", main)
    assert small["sq_full_flushes"] >= count // 2 - 1  # two entries for each flush
    assert small["cq_overflows"] >= 1
    assert large["sq_full_flushes"] == large["cq_overflows"] == 0
    assert small["submitted"] == large["submitted"]
    assert small["completed"] == large["completed"]


def test_statistics_fields_are_those_of_epoll_and_more() -> None:
    async def main() -> Any:
        return trio.lowlevel.current_statistics().io_statistics

    uring, epoll = run("uring", main), run("epoll", main)
    theirs = {field.name for field in attrs.fields(type(epoll))}
    assert theirs <= {field.name for field in attrs.fields(UringStatistics)}
    assert (uring.backend, epoll.backend) == ("uring", "epoll")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        uring.submitted = 5


def test_statistics_outlive_their_run() -> None:
    """A snapshot, and a manager that is closed still answers."""

    async def main() -> Any:
        await blocked()
        return manager(), statistics()

    m, snapshot = run("uring", main)
    assert snapshot.operations_in_flight == 1
    assert m.statistics().operations_in_flight == 0
