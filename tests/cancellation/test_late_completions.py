"""What a cancel comes to that the kernel answers late, where one completion is not all: a write in several steps, two deadlines.

On a ring that does as it is told. Knows what the calls promise to a user.
"""

from __future__ import annotations

import io
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trio_uring

from .held import HeldRing, held_runs

LARGE = io.DEFAULT_BUFFER_SIZE + 100_000  # bytes; the default is 16 times as much since CPython 3.14


def perform_a_part(ring: HeldRing, size: int) -> None:
    """The kernel writes this much of what is held, and answers so."""
    (pending,) = ring.held()
    (entry,) = (each for each in ring._flight if each.user_data == pending.user_data)
    entry.length = size
    ring.win()


async def perform_the_rest(ring: HeldRing) -> None:
    """The kernel ends what it was asked to end, and performs all else, until nothing is left; from then on at once."""
    while ring.held():
        ring.lose()
        ring.win()
        await trio.testing.wait_all_tasks_blocked()
    ring.holding = False


@pytest.mark.parametrize("memory", [bytes, bytearray])
def test_f11_a_large_write_to_a_file_goes_on_once_a_part_is_in_it(memory: type[bytes], tmp_path: Path) -> None:
    """More than the file's buffer holds, of which the kernel takes a part at first. Cancelled then, it is nevertheless whole."""
    data = os.urandom(LARGE)
    counts: list[int] = []

    async def main() -> None:
        file = await trio.open_file(tmp_path / "file", "wb")

        async def write() -> None:
            with scope:
                counts.append(await file.write(memory(data)))
                await trio.sleep_forever()  # which the cancel ends

        scope = trio.CancelScope()
        ring = rings[-1]
        async with trio.open_nursery() as nursery:
            ring.holding = True
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            perform_a_part(ring, 40_000)
            await trio.testing.wait_all_tasks_blocked()
            assert ring.held()  # the rest
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            await perform_the_rest(ring)
        assert scope.cancelled_caught
        await file.aclose()

    with held_runs() as rings:
        trio_uring.run(main)
    assert counts == [len(data)]
    assert (tmp_path / "file").read_bytes() == data


async def large(path: Path) -> tuple[Any, Any]:
    return await trio.open_file(path, "wb"), os.urandom(LARGE)


async def lines(path: Path) -> tuple[Any, Any]:
    return await trio.open_file(path, "w", 1), "a line\n"


@pytest.mark.parametrize("make", [large, lines])
def test_f11_ctrl_c_when_data_has_been_taken(
    make: Callable[[Path], Awaitable[tuple[Any, Any]]], tmp_path: Path
) -> None:
    """A write that cannot be undone any more returns, all of it, and the next checkpoint raises: no shield holds against that."""
    counts: list[int] = []
    written: list[Any] = []

    async def main() -> None:
        ring = rings[-1]
        file, data = await make(tmp_path / "file")

        @trio.lowlevel.enable_ki_protection
        async def kernel() -> None:
            await trio.testing.wait_all_tasks_blocked()
            if make is large:
                perform_a_part(ring, 40_000)
                await trio.testing.wait_all_tasks_blocked()
            assert ring.held()
            signal.raise_signal(signal.SIGINT)
            await trio.testing.wait_all_tasks_blocked()
            await perform_the_rest(ring)

        ring.holding = True
        trio.lowlevel.spawn_system_task(kernel)
        counts.append(await file.write(data))
        with pytest.raises(KeyboardInterrupt):
            await trio.lowlevel.checkpoint()
        await file.aclose()
        written.append(data)

    with held_runs() as rings:
        trio_uring.run(main)
    (data,) = written
    assert counts == [len(data)]
    assert (tmp_path / "file").read_bytes() == (data.encode() if isinstance(data, str) else data)


@pytest.mark.parametrize(("late", "catching"), [(False, "inner"), (True, "outer")], ids=["between", "after both"])
def test_the_outermost_scope_whose_deadline_is_over_catches(late: bool, catching: str) -> None:
    """Over when the kernel answers, which is when the operation ends; not when it was asked to (docs/cancellation.md).

    Trio's own polls end as they are asked: there it is always the scope whose deadline came first.
    """
    clock = trio.testing.MockClock()
    caught: dict[str, bool] = {}

    async def main() -> None:
        async def receive() -> None:
            now = clock.current_time()
            with trio.CancelScope(deadline=now + 2) as outer, trio.CancelScope(deadline=now + 1) as inner:
                await trio.socket.from_stdlib_socket(a).recv(5)
            caught.update(inner=inner.cancelled_caught, outer=outer.cancelled_caught)

        ring = rings[-1]
        async with trio.open_nursery() as nursery:
            ring.holding = True
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            for _deadline in range(1 + late):
                clock.jump(1)
                await trio.testing.wait_all_tasks_blocked()
            assert [pending.cancelled for pending in ring.held()] == [True]
            assert not caught
            ring.lose()
            await trio.testing.wait_all_tasks_blocked()
            assert caught
            ring.holding = False

    a, b = socket.socketpair()
    a.setblocking(False)
    with a, b, held_runs() as rings:
        trio_uring.run(main, clock=clock)
    assert caught == {"inner": catching == "inner", "outer": catching == "outer"}
