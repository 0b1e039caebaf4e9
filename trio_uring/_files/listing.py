"""Layer 3, listing: anyio.Path.iterdir, glob and rglob, where AnyIO runs on Trio.

Knows how AnyIO asks a worker thread for one path after the other; knows nothing of how the replacement comes to be there (the
seams put it there) nor of what the paths are asked. AnyIO is never imported here.

AnyIO makes one trip to a thread for each path. Here one trip brings many: as many as pathlib finds in a millisecond, a few at
first and at most `_MOST`. The iterator is pathlib's own, so what it finds, in which order and with which error is the same;
only that it is found up to so many paths before it is asked for, as pathlib itself lists a whole folder before it tells the
first name.

What a directory entry says of its kind is not kept for `is_dir` and the like. They are asked anew each time, because the answer
has to be that of the time of the question, as on epoll; the kernel's cache of names has it for less than the rest of such a
call costs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import trio

from .._loop.calls import AsyncMethod, replaces
from .._loop.operation import GLOBAL_RUN_CONTEXT
from .anyio_files import manager_on_trio

_FIRST: Final = 8  # paths
_MOST: Final = 512
_SECONDS: Final = 0.001  # of one trip, after which it brings what it has; and between two schedule points

AHEAD: Final = "_trio_uring_ahead"  # where AnyIO's iterator keeps an `_Ahead`


class _Ahead:
    """What has been found and not been asked for yet.

    Attributes:
      error: what the iterator has raised; it comes after what it had found.
      size: of the next trip.
      until: when a schedule point is due.
    """

    __slots__ = ("error", "found", "size", "until")

    def __init__(self) -> None:
        self.found: deque[Any] = deque()
        self.error: BaseException | None = None
        self.size = _FIRST
        self.until = 0.0

    def fetch(self, iterator: Iterator[Any]) -> None:
        """A trip, in a thread."""
        until = time.monotonic() + _SECONDS
        found = []
        try:
            for path in iterator:
                found.append(path)
                if len(found) == self.size or time.monotonic() > until:
                    break
        except BaseException as error:
            self.error = error
        self.size = min(4 * self.size, _MOST)
        self.found.extend(found)


def iterator_next(original: AsyncMethod) -> AsyncMethod:
    """_PathIterator.__anext__."""
    module: dict[str, Any] = original.__globals__
    monotonic: Callable[[], float] = time.monotonic

    @replaces(original)
    async def __anext__(self: Any) -> Any:
        ahead: _Ahead | None = self.__dict__.get(AHEAD)
        if ahead is None:
            if manager_on_trio() is None:
                return await original(self)
            ahead = self.__dict__[AHEAD] = _Ahead()
        found = ahead.found
        if not found and ahead.error is None:
            await module["to_thread"].run_sync(ahead.fetch, self.iterator, abandon_on_cancel=True, limiter=self.limiter)
            ahead.until = monotonic() + _SECONDS
        elif manager_on_trio() is not None:
            task: Any = GLOBAL_RUN_CONTEXT.task
            if monotonic() >= ahead.until or task._cancel_status.effectively_cancelled or task._runner.ki_pending:
                await trio.lowlevel.checkpoint()
                ahead.until = monotonic() + _SECONDS
        if found:
            return self.path_cls(found.popleft(), limiter=self.limiter)
        if ahead.error is not None:
            error, ahead.error = ahead.error, None
            raise error
        raise StopAsyncIteration

    return __anext__
