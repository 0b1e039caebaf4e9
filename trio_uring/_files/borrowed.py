"""Layer 3, files from outside: what a builtin binary file can do without a wait is done on the spot, all else in a thread.

Knows what BufferedReader, BufferedWriter and FileIO ask of a descriptor for a call; knows nothing of entries.

Such a file may share its open file with anybody, and its position with that: only read(2), write(2) and lseek(2) themselves may
move it (F42). So these are what is called, by the builtin object as always, and only the place differs: where all that a call can
ask for is in the page cache, which is looked up first, it is made by the loop's own thread. A write is made there as far as it
goes into the object's buffer, without a system call.

Not where it might wait for somebody who is at the position, because that one waits for a disk: a file that this process has not
opened itself, by its name and not to be inherited, and anything once the process has forked.
"""

from __future__ import annotations

import io
import os
import stat
import weakref
from collections.abc import Callable
from typing import Any, Final

from .._loop.calls import AsyncMethod, replaces, ring_manager
from .._loop.operation import GLOBAL_RUN_CONTEXT, schedule_point
from .._ring.ring import ffi, lib, tu_read_cached
from .ahead import InPlace
from .binary import Blocked, RawWrites, size_of
from .opening import is_local

MOVES: Final = frozenset(("seek", "tell"))
METHODS: Final[dict[type, frozenset[str]]] = {
    io.FileIO: MOVES | {"read", "readall", "readinto"},
    io.BufferedReader: MOVES | {"peek", "read", "read1", "readinto", "readinto1", "readline"},
    io.BufferedWriter: frozenset(("flush", "write")),
}

# Bytes of a read that is looked up first: to look up more takes longer than a thread.
MOST: Final = 1 << 16

_files: weakref.WeakKeyDictionary[Any, Borrowed] = weakref.WeakKeyDictionary()


class Borrowed:
    """What is known of one builtin object.

    Attributes:
      busy: calls that threads are making.
      size: bytes of its buffer.
    """

    __slots__ = ("busy", "fd", "place", "reads", "size", "writes")

    def __init__(self, real: Any) -> None:
        raw: Any = real if type(real) is io.FileIO else real.raw
        self.busy = 0
        self.fd: int = raw.fileno()
        self.reads = type(real) is not io.BufferedWriter
        self.size: int = 0 if raw is real else real.__sizeof__() - type(real).__basicsize__ or io.DEFAULT_BUFFER_SIZE
        self.writes = RawWrites(self.fd, self.size)
        self.place = InPlace(raw, {"write": self.writes.write, "truncate": self.writes.truncate})

    def wanted(self, name: str, args: tuple[Any, ...]) -> int:
        """How many bytes a read can ask for from the file's position on; negative where nobody knows, or they are too many."""
        if name in MOVES:
            return 0
        if name in ("readinto", "readinto1"):
            try:
                size = memoryview(args[0]).nbytes
            except (IndexError, TypeError):
                return -1
        elif name in ("peek", "readline"):
            size = self.size
        else:
            given = size_of(args[0]) if args else -1
            if given is None:
                return -1
            size = given
            if size < 0 and name == "read1":
                size = self.size
            elif size < 0:
                size = max(os.fstat(self.fd).st_size - os.lseek(self.fd, 0, os.SEEK_CUR), 0)
        return size + self.size if size <= MOST else -1


def _opened_here(real: Any) -> bool:
    """Whether this process has opened it, by its name, and no program that it starts gets it."""
    raw = real if type(real) is io.FileIO else real.raw
    return (
        type(raw) is io.FileIO
        and not raw.closed
        and raw.closefd
        and isinstance(raw.name, (str, bytes))
        and not os.get_inheritable(raw.fileno())
    )


def borrowed(real: Any, name: str) -> Borrowed | None:
    """What is known of a file whose method of that name may be called on the spot; else None."""
    if name not in METHODS.get(type(real), ()):
        return None
    try:
        known = _files.get(real)
        if known is None:
            if not _opened_here(real) or (type(real) is io.FileIO and real.writable()):
                return None
            where = int(lib.tu_where(real.fileno(), ffi.NULL))
            if not (is_local(where) and stat.S_ISREG(where)):
                return None
            known = _files[real] = Borrowed(real)
    except (OSError, ValueError, AttributeError):  # closed or detached
        return None
    return known


def _is_open(real: Any) -> bool:
    try:
        return not real.closed
    except ValueError:  # detached
        return False


def method(known: Borrowed, real: Any, in_thread: AsyncMethod, forked: Callable[[], bool]) -> AsyncMethod:
    """`in_thread`, Trio's own method of the file, but made on the spot where that need not wait."""
    name = in_thread.__name__
    call = getattr(real, name)

    def on_the_spot(at_hand: int, args: tuple[Any, ...]) -> Any:
        """The answer; raises Blocked where it has to wait."""
        if not known.reads:
            with known.place:
                return call(*args)
        wanted = known.wanted(name, args)
        if wanted > 0:
            data = tu_read_cached(at_hand, known.fd, wanted, os.lseek(known.fd, 0, os.SEEK_CUR))
            if data is None or (name == "readline" and len(data) == wanted and b"\n" not in data[: known.size]):
                raise Blocked(None)
        elif wanted < 0:
            raise Blocked(None)
        return call(*args)

    @replaces(in_thread)
    async def either(*args: Any, **kwargs: Any) -> Any:
        manager = ring_manager()
        if manager is not None and manager.at_hand and not (kwargs or known.busy or forked()) and _is_open(real):
            task = GLOBAL_RUN_CONTEXT.task
            if not (task._cancel_status.effectively_cancelled or task._runner.ki_pending):
                try:
                    answer = on_the_spot(manager.at_hand, args)
                except Blocked:
                    pass
                except BaseException:
                    task._cancel_points += 1
                    await schedule_point()
                    raise
                else:
                    task._cancel_points += 1  # trio.lowlevel.checkpoint, flattened
                    await schedule_point()
                    return answer
        known.busy += 1
        try:
            return await in_thread(*args, **kwargs)
        finally:
            known.busy -= 1

    return either
