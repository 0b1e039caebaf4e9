"""What the tests of every room share: a run on a backend, a look at it from inside, descriptors that are full or empty.

Knows Trio, the public interface and the manager; knows nothing of what is tested.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
import trio.testing
from conftest import Backend as Backend

import trio_uring
from trio_uring._loop.manager import UringIOManager

T = TypeVar("T")


def run(backend: Backend, main: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
    """`trio.run` on a backend."""
    return trio_uring.run(main, *args, io_backend=backend, **options)


def manager() -> UringIOManager:
    """The I/O manager of the run that the caller is in."""
    found = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
    assert isinstance(found, UringIOManager)
    return found


async def processor_time_asleep(seconds: float, repeats: int = 10) -> float:
    """The least processor time, in seconds, that this thread has spent in a sleep of `seconds` with all else blocked.

    One sleep says nothing: a collection of garbage, or a machine that is busy with others, may fall into it. A loop that is busy
    is so in every sleep, and spends nearly all of it.
    """
    least = seconds
    for _ in range(repeats):
        before = time.thread_time()
        await trio.sleep(seconds)
        least = min(least, time.thread_time() - before)
        if least < seconds / 4:
            break
    return least


async def blocked(cushion: float = 0.0) -> None:
    """Return when every other task has been blocked for `cushion` seconds."""
    await trio.testing.wait_all_tasks_blocked(cushion)


def fill(fd: int) -> int:
    """Write to a non-blocking descriptor until it takes no more; the number of bytes."""
    count = 0
    for size in (65536, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                count += os.write(fd, bytes(size))
    return count


def empty(fd: int) -> bytes:
    """Read a non-blocking descriptor until nothing is left; what came."""
    data = bytearray()
    with contextlib.suppress(BlockingIOError):
        while some := os.read(fd, 1 << 20):
            data += some
    return bytes(data)
