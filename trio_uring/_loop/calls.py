"""Layer 2, what every operation needs, whatever it is on: the manager of the caller's run, memory, limits, and the form of a
replacement of one of Trio's methods.

Knows the scheduler's context and the binding; knows nothing of sockets nor of files.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from .._ring.ring import MAX_RW_COUNT as MAX_RW_COUNT
from .._ring.ring import address_of as address_of
from .._ring.ring import ffi
from .manager import UringIOManager
from .operation import GLOBAL_RUN_CONTEXT, schedule_point

AT_FDCWD: Final = -100
CURRENT_POSITION: Final = (1 << 64) - 1  # offset -1: at the file's position, which moves (IORING_FEAT_RW_CUR_POS)

# A transfer of more bytes than these is copied by a worker of the kernel's, so that others run meanwhile.
WORKER_THRESHOLD: Final = 1 << 20

# Memory for a receive: not cleared first, since only what the kernel wrote is read.
new_uninitialized = ffi.new_allocator(should_clear_after_alloc=False)

AsyncMethod = Callable[..., Awaitable[Any]]


def ring_manager() -> UringIOManager | None:
    """The manager of the run that the caller is in, if it is on the ring."""
    try:
        manager = GLOBAL_RUN_CONTEXT.runner.io_manager
    except AttributeError:
        return None
    return manager if manager.__class__ is UringIOManager else None


def replaces(original: AsyncMethod) -> Callable[[AsyncMethod], AsyncMethod]:
    """The replacement looks like the original and is protected from KeyboardInterrupt (invariant 10)."""

    def finish(replacement: AsyncMethod) -> AsyncMethod:
        replacement = functools.update_wrapper(replacement, original)
        return trio.lowlevel.enable_ki_protection(replacement)  # type: ignore[type-var]

    return finish


NOT_NOW: Final = object()


def trying() -> bool:
    """Whether a call of the caller's is first to be tried in place (`UringBackend.speculate`)."""
    manager = ring_manager()
    return manager is not None and manager.try_first


async def attempt(fd: int, sending: bool, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`call(*args, **kwargs)`, a system call that does not wait, with the checkpoint of a call that has not waited.

    NOT_NOW where it would have to wait, or where it is not to be made: in a scope that is cancelled, on a descriptor that another
    task uses in that direction, and for a receive also where those before it found nothing.
    """
    task = GLOBAL_RUN_CONTEXT.task
    runner = task._runner
    manager: UringIOManager = runner.io_manager
    if (
        task._cancel_status.effectively_cancelled
        or runner.ki_pending
        or fd < 0
        or fd in (manager.writers if sending else manager.readers)
        or not (sending or manager.promising(fd))
    ):
        return NOT_NOW
    task._cancel_points += 1
    try:
        result = call(*args, **kwargs)
    except BlockingIOError:
        if not sending:
            manager.was_in_vain(fd)
        return NOT_NOW
    except BaseException:
        await schedule_point()
        raise
    if not sending and manager.vain:
        manager.vain.pop(fd, None)
    await schedule_point()
    return result


class Pinned:
    """`with Pinned(ffi.from_buffer(data)) as memory`: memory of the caller's for the time of a call.

    It is let go when the call is over. The frames of a traceback would keep it pinned; and where the garbage collector finds
    them together with a memoryview that was passed, CPython 3.11 crashes. A coroutine that is closed while it sleeps leaves
    the memory to the kernel, that is to its operation.
    """

    __slots__ = ("memory",)

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __enter__(self) -> Any:
        return self.memory

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not GeneratorExit:
            ffi.release(self.memory)
