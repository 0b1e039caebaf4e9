"""What the tests of pipes and processes share: runs, ends of a pipe, tasks whose outcome is noted.

Knows Trio, the public interface and the manager's counters; knows nothing of the single promises.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import trio
import trio.testing
from tools import Backend as Backend
from tools import blocked as blocked
from tools import empty as empty
from tools import fill as fill
from tools import manager as manager
from tools import run as run
from trio.lowlevel import FdStream

from trio_uring._loop.statistics import UringStatistics

T = TypeVar("T")


def statistics() -> UringStatistics:
    """The counters of the run that the caller is in."""
    return manager().statistics()


@contextlib.contextmanager
def streams(size: int | None = None) -> Iterator[tuple[FdStream, FdStream]]:
    """The read and the write end of a pipe of `size` bytes, closed at the end whatever happened."""
    reader, writer = os.pipe()
    if size is not None:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
    ends = FdStream(reader), FdStream(writer)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


@contextlib.contextmanager
def stream_and_fd(direction: str) -> Iterator[tuple[FdStream, int]]:
    """A stream on one end of a pipe ("receive" or "send"), and the descriptor of the other, non-blocking."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    ours, theirs = (reader, writer) if direction == "receive" else (writer, reader)
    stream = FdStream(ours)
    pipe = os.fstat(theirs).st_ino
    try:
        yield stream, theirs
    finally:
        stream.close()
        with contextlib.suppress(OSError):  # a test may have closed it to make an end
            if os.fstat(theirs).st_ino == pipe:
                os.close(theirs)


class Caller:
    """A task in one call, and how the call ended: `outcome`."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.outcome: Any = "blocked"

    async def run(self, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Make the call and note what came of it."""
        try:
            with self.scope:
                self.outcome = await call(*args)
        except Exception as error:
            self.outcome = told(error)
        if self.scope.cancelled_caught:
            self.outcome = "cancelled"


def told(error: BaseException | None) -> Any:
    """An exception as a user sees it, to be compared: class, text, number, and that of its cause."""
    if error is None:
        return None
    return type(error), str(error), getattr(error, "errno", None), told(error.__cause__)


async def outcome_of(call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """The result of a call, or its exception as `told` has it."""
    try:
        return await call(*args)
    except Exception as error:
        return told(error)
