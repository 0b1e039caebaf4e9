"""Layer 3, files: what trio.open_file, trio.wrap_file and trio.Path.open answer, as ring operations.

Knows the builtin file objects (FileIO, BufferedReader, BufferedWriter, BufferedRandom, TextIOWrapper) and which entry does
the work of which method; knows nothing of how the replacements come to be in Trio's classes (the seams put them there).

Theory of operation
===================
The builtin object always exists, is what a user sees as `wrapped`, and keeps its state and decides as it always does; only what
it reads and writes goes another way. Three objects stand beside it:

    Engine        one call at a time in the order of asking, cancel and schedule points, sharing with others
    TextFile      (`text`) the methods of a text file; only over a builtin TextIOWrapper
    BinaryFile    (`binary`) the methods of a binary file, and the reads and writes themselves

So there is nothing to hand over when somebody reaches for the builtin object (`wrapped`, `buffer`, `raw`, `detach`): it is where
the builtin would be.

Who else has the open file
--------------------------
read(2), write(2) and lseek(2) hold a lock on the position of an open file while they use it; entries of the ring do not (F42).
Two that use one position at once, a parent and the child that has its standard output, would write to the same place, or read
the same. So an engine serves what nobody else uses the position of:

    - A file that `open_file` made. It is released (`release_to_builtin`) when somebody else may come to know of it: who reaches
      for the builtin object or for the descriptor (`fileno`), and at a fork. The same in a run that is not on the ring. From then
      on Trio's own way serves it, which takes the lock in a thread, where it may wait.
    - What came from outside (`wrap_file`, a descriptor) and only appends (O_APPEND, not for reading): the kernel then writes at
      the end, whole, whatever the position. Its owner may use it between any two calls: what stands in place of its raw object's
      methods is there only during a call; and may close it, so entries are submitted at once.

What is served
--------------
Objects of exactly the builtin types, over a regular file of a filesystem whose data is at hand in this machine
(`tu_where`). All else, users' classes, pipes, terminals, /proc, files over a network, goes Trio's own way.

That choice also permits to close on the spot. close(2) waits only where the file has a flush operation (NFS, FUSE, CIFS),
and IORING_OP_CLOSE runs in the submitting thread for files without one: it would be the same call, later. What can
take time, writing out what is buffered, has been done by ring operations before.

For other modules
-----------------
`open_builtin`  the builtin `open`, with that openat.
`own`           the engine of a builtin file that only the caller holds; keep it beside the file.
`served`        the engine of a builtin file that others may hold as well; one for each file, however many ask.
`release_to_builtin`     call it before the builtin object is shown to anybody or used by other means.
`PASSIVE_ATTRIBUTES`     attributes of the builtin object that may be read without that.

An engine has the builtin's own methods as coroutines, each a checkpoint, and `aclose`. They may be called anywhere in
Trio: where the ring is not there they hand over and go through a worker thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import operator
import os
import stat
import sys
import time
import types
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import trio
from trio import _file_io
from trio._file_io import AsyncIOWrapper
from trio._util import async_wraps
from trio.lowlevel import Task

from .._loop.calls import replaces, ring_manager
from .._loop.manager import UringIOManager
from .._loop.operation import GLOBAL_RUN_CONTEXT, close_descriptor, schedule_point
from .._ring.requests import ENGINE
from .._ring.ring import ffi, lib
from .ahead import InPlace, in_place_works
from .binary import BINARY, BUFFERED, BinaryFile, completed
from .borrowed import borrowed
from .borrowed import method as borrowed_method
from .opening import BY_WORKER, is_elsewhere, is_local, open_fd, where_is
from .text import UNKNOWN_NEWLINE, TextFile, line_ends

# Seconds that `async for` may go on without a schedule point.
SCHEDULE_PERIOD: Final = 0.001

PASSIVE_ATTRIBUTES: Final = frozenset(
    (
        "closed", "closefd", "encoding", "errors", "isatty", "line_buffering", "mode", "name", "readable",
        "seekable", "writable", "write_through",
    )
)  # fmt: skip

builtin_open: Final[Callable[..., Any]] = open


class Engine:
    """What serves one builtin file object: `core`, a TextFile or a BinaryFile, with the manners of an asynchronous file.

    Its coroutine methods, made below, are those of the builtin object (`METHODS`), and take and answer the same.

    Args:
      real: the builtin file object.
      shared: it came from outside, and only appends; its owner may use it between two calls.
      newline: as given to `open`; only for text.

    Attributes:
      released: it has been handed over for good.
      busy: a call is being served.
      ahead, plain_readline: what knows whether a line is at hand, and what answers it.
      reader, until: the task that may have a line that is at hand without asking for its turn, and until when.
    """

    def __init__(self, real: Any, shared: bool, newline: str | None) -> None:
        self.real = real
        self.released = False
        self.busy = False
        self.reader: Task | None = None
        self.until = 0.0
        self.iterated = False
        self.shared = shared
        self._sync_later = False
        self._forks = _forks
        self._queue: trio.lowlevel.ParkingLot | None = None
        self._dropped: Any = None
        self.core: BinaryFile | TextFile
        if type(real) is io.TextIOWrapper:
            self.binary = BinaryFile(real.buffer, shared, line_ends(real.encoding, newline))
            self.core = TextFile(real, self.binary, newline)
        else:
            self.core = self.binary = BinaryFile(real, shared)
        self.ahead = self.binary.ahead
        self.plain_readline: Callable[[], Any] = real.readline
        if not shared and self.binary.buffered:
            self.binary.reading.__enter__()

    # ------------------------------------------------------------------ one at a time

    async def turn(self) -> None:
        """Wait behind those who asked before. A cancel point."""
        if self._queue is None:
            self._queue = trio.lowlevel.ParkingLot()
        await self._queue.park()

    def release(self) -> None:
        try:
            if self._sync_later:
                self._sync_later = False
                self._sync()
        finally:
            if self._queue:
                self._queue.unpark()
            else:
                self.busy = False

    # ------------------------------------------------------------------ the end

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Write out and close, whatever is cancelled; a schedule point. The builtin object is closed in any case, but for a
        KeyboardInterrupt that is there before.
        """
        manager = self.manager()
        if manager is None or (self.released and not self.busy):
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.real.close)
            return
        if self.busy or self.binary.writable():
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint_if_cancelled()  # which can only be by an interrupt
                await self._write_out_and_close(manager)
        else:
            self.reader = None
            self.real.close()
        await schedule_point()

    async def _write_out_and_close(self, manager: UringIOManager) -> None:
        if self.busy:
            await self.turn()
        self.busy = True
        self.reader = None
        try:
            if self.released:
                await trio.to_thread.run_sync(self.real.close)
                return
            self.binary.begin(manager)
            try:
                if not _is_closed(self.real):
                    # Now it would be data that is lost. The thread that Trio would use goes on to its end as well.
                    await completed(self.core.flush)
            except BaseException as error:
                self._close_unwritten(error)
                raise
            finally:
                if self._dropped is not None:
                    self._dropped.detach()
            self.real.close()
        finally:
            self.release()

    def _close_unwritten(self, error: BaseException) -> None:
        """Close after a flush that failed: what could not be written is lost, and nobody tries again."""

        def fail(_: object) -> None:
            raise error

        if isinstance(self.core, TextFile):
            self.core.forget()
        with contextlib.suppress(type(error)), InPlace(self.binary.raw, {"write": fail}):
            self.real.close()

    def manager(self) -> UringIOManager | None:
        """Of the run that the caller is in; where it is not on the ring, the file is handed over."""
        manager = ring_manager()
        if manager is None or (self._forks != _forks and not self.shared):
            self.release_to_builtin()
        return manager

    @trio.lowlevel.enable_ki_protection
    def release_to_builtin(self) -> None:
        """The builtin object has everything, and Trio's own way serves it from now on."""
        if not self.released:
            self.released = True
            self.reader = None
            _handed_over.add(self.real)
            if self.busy:
                self._sync_later = True  # the kernel is at work
            else:
                self._sync()

    def share(self) -> None:
        """Somebody gets to know the descriptor, and may use it or hand it to a child."""
        if not self.shared:
            self.release_to_builtin()

    def _watch(self) -> None:
        """The builtin object outlives the engine: if nobody closes the file, it writes what it holds back as it ends.

        In a cycle of garbage, its raw object might be closed before.
        """
        self._dropped = weakref.finalize(self, operator.methodcaller("sync"), self.core)

    def _sync(self) -> None:
        """The builtin object has everything, and reads and writes by itself."""
        if self._dropped is not None:
            self._dropped.detach()
        if not self.shared:
            self.binary.reading.__exit__()
        self.core.sync()

    # ------------------------------------------------------------------ sharing

    async def call_shared(self, name: str, args: tuple[Any, ...]) -> Any:
        """One method of an object that others use as well, with its own methods in place when it is over.

        What is not for the end of the file may wait for whoever is at its position.
        """
        if name not in APPENDS:
            return await trio.to_thread.run_sync(functools.partial(getattr(self.real, name), *args))
        if not self.binary.buffered:
            return await getattr(self.core, name)(*args)
        with self.binary.reading:
            return await getattr(self.core, name)(*args)


def _is_closed(real: Any) -> bool:
    try:
        return bool(real.closed)
    except ValueError:  # detached
        return True


# ------------------------------------------------------------------ the methods


# The builtin's, and the least and greatest number of their arguments.
METHODS: Final = {
    "flush": (0, 0),
    "peek": (0, 1),
    "read": (0, 1),
    "read1": (0, 1),
    "readall": (0, 0),
    "readinto": (1, 1),
    "readinto1": (1, 1),
    "readline": (0, 1),
    "readlines": (0, 1),
    "seek": (1, 2),
    "tell": (0, 0),
    "truncate": (0, 1),
    "write": (1, 1),
    "writelines": (1, 1),
}


WRITES: Final = ("write", "writelines")
APPENDS: Final = (*WRITES, "flush")


def _method(name: str, ours: str, least: int, most: int) -> Callable[..., Awaitable[Any]]:
    """The builtin's method of that name, as a coroutine method of Engine; `ours` is its name in `core`."""
    iterates = name != ours
    reads_line = name == "readline"
    called = name

    async def method(self: Engine, *args: Any, **kwargs: Any) -> Any:
        manager = self.manager()
        if manager is None or (self.released and not self.busy):
            return await trio.to_thread.run_sync(functools.partial(getattr(self.real, name), *args, **kwargs))
        task = GLOBAL_RUN_CONTEXT.task
        points = task._schedule_points
        # trio.lowlevel.checkpoint_if_cancelled, flattened.
        task._cancel_points += 1
        if task._cancel_status.effectively_cancelled or task._runner.ki_pending:
            await trio.lowlevel.checkpoint_if_cancelled()
        if self.busy:
            await self.turn()
        self.busy = True
        self.reader = None
        try:
            if self.released:
                return await trio.to_thread.run_sync(functools.partial(getattr(self.real, name), *args, **kwargs))
            self.binary.begin(manager)
            if kwargs or not least <= len(args) <= most or _is_closed(self.real):
                result = getattr(self.real, name)(*args, **kwargs)
            elif self.shared:
                result = await self.call_shared(called, args)
            else:
                result = await getattr(self.core, called)(*args)
                if name in WRITES and self._dropped is None:
                    self._watch()
        finally:
            if not reads_line:
                self.binary.ready = ()
            self.release()
        if task._schedule_points == points:
            await schedule_point()
        if iterates and not self.busy and not self.shared:
            if not self.iterated:
                self.iterated = True
                _iterated.add(self)
            self.reader = task
            self.until = time.monotonic() + SCHEDULE_PERIOD
        return result

    method.__name__ = ours
    method.__qualname__ = f"Engine.{ours}"
    return trio.lowlevel.enable_ki_protection(method)


for _name, (_least, _most) in METHODS.items():
    setattr(Engine, _name, _method(_name, _name, _least, _most))
# For `async for`: a line as `readline` answers it.
Engine.next_line = _method("readline", "next_line", 0, 0)  # type: ignore[attr-defined]


# ------------------------------------------------------------------ which files


# id of the builtin object -> its engine, which keeps the object alive.
_engines: weakref.WeakValueDictionary[int, Engine] = weakref.WeakValueDictionary()
_handed_over: weakref.WeakSet[Any] = weakref.WeakSet()
# How often this process has forked: from then on a child has the same open files, so at the next call their engines are released.
_forks = 0
# Engines that have had a reader, which makes no call.
_iterated: weakref.WeakSet[Engine] = weakref.WeakSet()


def _before_fork() -> None:
    global _forks
    _forks += 1
    for engine in list(_iterated):
        engine.reader = None


os.register_at_fork(before=_before_fork)


def _servable(real: Any) -> bool:
    kind = type(real)
    binary = real
    if kind is io.TextIOWrapper:
        if _is_closed(real) or type(real.buffer) not in BUFFERED:
            return False
        binary = real.buffer
    elif kind not in BINARY:
        return False
    if _is_closed(binary) or not METHODS.keys().isdisjoint(real.__dict__):
        return False
    raw = binary if type(binary) is io.FileIO else binary.raw
    if type(raw) is not io.FileIO or not in_place_works():
        return False
    where = lib.tu_where(raw.fileno(), ffi.NULL)
    return is_local(where) and stat.S_ISREG(where)


def _only_appends(real: Any) -> bool:
    return not real.readable() and bool(fcntl.fcntl(real.fileno(), fcntl.F_GETFL) & os.O_APPEND)


def own(real: Any, newline: str | None = None, at_hand: bool = False) -> Engine | None:
    """The engine of a builtin file that only the caller holds, and shows to nobody without `release_to_builtin`; or None.

    Args:
      newline: as it was given to `open`.
      at_hand: `open_builtin` has just made it, on the spot.
    """
    if in_place_works() if at_hand else _servable(real):
        return Engine(real, False, newline)
    return None


def served(real: Any) -> Engine | None:
    """The engine of a file object, whoever else may hold it; None where Trio's own way serves it."""
    engine = _engines.get(id(real))
    if engine is None:
        try:
            if real in _handed_over or not _servable(real) or not _only_appends(real):
                return None
            engine = Engine(real, True, UNKNOWN_NEWLINE)
        except (OSError, TypeError, ValueError):  # not hashable; detached
            return None
        _engines[id(real)] = engine
    return None if engine.released else engine


def release_to_builtin(real: Any) -> None:
    """Whoever serves this file through `served` is to stop: see `Engine.release_to_builtin`."""
    engine = _engines.get(id(real))
    if engine is not None:
        engine.release_to_builtin()


# ------------------------------------------------------------------ opening


class _Flags(Exception):
    """The builtin `open` has found nothing wrong and would open the file now, with these flags."""


_flags_of: dict[tuple[object, ...], int] = {}


def _checked_flags(path: str | bytes, *arguments: Any) -> int:
    """The flags of open(2) that the builtin `open` uses, or what it raises before it opens anything."""
    mode, buffering, encoding, errors, newline = arguments
    key = mode, buffering == 0, encoding is None, errors is None, newline is None
    flags = _flags_of.get(key)
    if flags is None:

        def stop(_path: Any, flags: int) -> int:
            raise _Flags(flags)

        try:
            builtin_open(path, *arguments, True, stop).close()
        except _Flags as found:
            _flags_of[key] = flags = found.args[0]
        assert flags is not None
    return flags


async def open_builtin(
    manager: UringIOManager,
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> tuple[Any, bool] | None:
    """The builtin `open`, with its arguments, results and errors; the opening itself is a ring operation, or on the spot.

    Answers the file, and whether it was opened on the spot, which is then a regular file of this machine. None where it must be
    opened in another way: `file` is a descriptor, or is where somebody may have to be asked (FUSE, NFS), or an argument is none
    that the annotations allow.
    """
    if isinstance(file, int) or type(mode) is not str or type(buffering) is not int:
        return None
    if buffering == 1 and "b" in mode:  # a warning that would come twice
        return None
    for text in (encoding, errors, newline):
        if text is not None and type(text) is not str:
            return None
    try:
        path = os.fspath(file)
    except TypeError:
        return None
    flags = _checked_flags(path, mode, buffering, encoding, errors, newline)
    if manager.at_hand and not flags & BY_WORKER:
        sys.audit("open", path, mode, flags)  # before the opening, which it may prevent
        name = os.fsencode(path)
        task = GLOBAL_RUN_CONTEXT.task
        if not (b"\0" in name or task._cancel_status.effectively_cancelled or task._runner.ki_pending):
            fd = lib.tu_open_cached(name, flags)
            if fd >= 0:
                task._cancel_points += 1  # trio.lowlevel.checkpoint, flattened
                try:
                    await schedule_point()
                except BaseException:  # the coroutine is closed
                    os.close(fd)
                    raise
                real = builtin_open(fd, mode, buffering, encoding, errors, newline)
                raw = real.buffer if "b" not in mode else real
                (raw if buffering == 0 else raw.raw).name = path
                return real, True
        where = where_is(path)
        if is_elsewhere(where):
            return None  # the file object itself asks fstat(2) as it is made
    else:
        where = where_is(path)
        if is_elsewhere(where):
            return None
        sys.audit("open", path, mode, flags)

    def opener(_path: Any, _flags: int) -> int:
        return descriptor

    descriptor = await open_fd(manager, path, flags, where=where)
    make = functools.partial(builtin_open, path, mode, buffering, encoding, errors, newline, True, opener)
    if is_local(lib.tu_where(descriptor, ffi.NULL)):
        return make(), False
    try:
        with trio.CancelScope(shield=True):
            real = await trio.to_thread.run_sync(make)
    except RuntimeError:  # no thread can be started
        close_descriptor(descriptor)
        raise
    return real, False


# ------------------------------------------------------------------ what Trio's names become


def _wrapper_of(real: Any, at_hand: bool, newline: str | None) -> AsyncIOWrapper[Any]:
    wrapper = AsyncIOWrapper(real)
    engine = own(real, newline, at_hand)
    if engine is not None:
        wrapper.__dict__[ENGINE] = engine
    return wrapper


def _engine_of(wrapper: AsyncIOWrapper[Any]) -> Engine | None:
    """The engine of a wrapper; found or made at the first use on the ring."""
    attributes = wrapper.__dict__
    engine: Engine | None = attributes.get(ENGINE)
    if engine is None and "_wrapped" in attributes and ring_manager() is not None:
        engine = served(attributes["_wrapped"])
        if engine is not None:
            attributes[ENGINE] = engine
    return engine


def _release_wrapped(wrapper: AsyncIOWrapper[Any]) -> None:
    engine: Engine | None = wrapper.__dict__.get(ENGINE)
    if engine is not None:
        engine.release_to_builtin()


@functools.cache
def _as_trios(kind: Any, name: str) -> Callable[..., Awaitable[Any]]:
    """A method of Engine with the names and the documentation that Trio's own has."""
    method = getattr(Engine, name)
    copy = types.FunctionType(method.__code__, method.__globals__, name, None, method.__closure__)
    return async_wraps(AsyncIOWrapper, kind, name)(copy)


@trio.lowlevel.enable_ki_protection
async def open_file(
    original: Callable[..., Awaitable[AsyncIOWrapper[Any]]], /, file: Any, *args: Any, **kwargs: Any
) -> AsyncIOWrapper[Any]:
    """trio.open_file."""
    manager = ring_manager()
    if manager is None:
        return await original(file, *args, **kwargs)
    try:
        mode, buffering, encoding, errors, newline, closefd, opener = _open_arguments(*args, **kwargs)
    except TypeError:
        return await original(file, *args, **kwargs)
    if opener is None and closefd:
        opened = await open_builtin(manager, file, mode, buffering, encoding, errors, newline)
        if opened is not None:
            return _wrapper_of(*opened, newline)
    return await original(file, *args, **kwargs)


def _open_arguments(
    mode: Any = "r",
    buffering: Any = -1,
    encoding: Any = None,
    errors: Any = None,
    newline: Any = None,
    closefd: Any = True,
    opener: Any = None,
) -> tuple[Any, ...]:
    return mode, buffering, encoding, errors, newline, closefd, opener


def path_open(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """trio.Path.open."""

    @replaces(original)
    async def open(self: Any, *args: Any, **kwargs: Any) -> Any:
        manager = ring_manager()
        if manager is not None:
            try:
                mode, buffering, encoding, errors, newline, *_ = _open_arguments(*args, **kwargs)
            except TypeError:
                return await original(self, *args, **kwargs)
            if len(args) <= 5 and kwargs.keys().isdisjoint(("closefd", "opener")):
                opened = await open_builtin(manager, self, mode, buffering, encoding, errors, newline)
                if opened is not None:
                    return _wrapper_of(*opened, newline)
        return await original(self, *args, **kwargs)

    return open


def wrapper_getattr(original: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """AsyncIOWrapper.__getattr__."""

    @functools.wraps(original)
    def __getattr__(self: AsyncIOWrapper[Any], name: str) -> Any:
        if name in METHODS and name in _file_io._FILE_ASYNC_METHODS:
            engine = _engine_of(self)
            if engine is not None:
                getattr(engine.real, name)  # there must be one
                kind: Any = type(engine.real)
                method = types.MethodType(_as_trios(kind, name), engine)
                setattr(self, name, method)  # as Trio's own
                return method
            real = self.__dict__.get("_wrapped")
            known = None if ring_manager() is None else borrowed(real, name)
            if known is not None:
                either = borrowed_method(known, real, original(self, name), lambda: _forks > 0)
                setattr(self, name, either)
                return either
        elif name == "newlines" and isinstance(engine := self.__dict__.get(ENGINE), Engine):
            return engine.real.newlines
        elif name == "fileno":
            if isinstance(engine := self.__dict__.get(ENGINE), Engine):
                engine.share()
        elif name not in PASSIVE_ATTRIBUTES and name in _file_io._FILE_SYNC_ATTRS:
            _release_wrapped(self)
        return original(self, name)

    return __getattr__


def wrapper_wrapped(original: property) -> property:
    """AsyncIOWrapper.wrapped."""
    get = original.fget
    assert get is not None

    @functools.wraps(get)
    def wrapped(self: AsyncIOWrapper[Any]) -> Any:
        _release_wrapped(self)
        return get(self)

    return property(wrapped, doc=original.__doc__)


def wrapper_dir(original: Callable[[Any], Iterable[str]]) -> Callable[[Any], Iterable[str]]:
    """AsyncIOWrapper.__dir__, which reaches for the builtin object just to look."""

    @functools.wraps(original)
    def __dir__(self: AsyncIOWrapper[Any]) -> Iterable[str]:
        engine = self.__dict__.get(ENGINE)
        if engine is None:
            return original(self)
        names = _file_io._FILE_SYNC_ATTRS | _file_io._FILE_ASYNC_METHODS
        return {*object.__dir__(self), *(name for name in names if hasattr(engine.real, name))} - {ENGINE}

    return __dir__


def wrapper_detach(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """AsyncIOWrapper.detach."""

    @replaces(original)
    async def detach(self: AsyncIOWrapper[Any]) -> Any:
        _release_wrapped(self)
        return await original(self)

    return detach


def wrapper_aclose(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """AsyncIOWrapper.aclose."""

    @replaces(original)
    async def aclose(self: AsyncIOWrapper[Any]) -> None:
        engine = _engine_of(self)
        if engine is None:
            await original(self)
            return
        await engine.aclose()
        task = GLOBAL_RUN_CONTEXT.task
        task._cancel_points += 1  # trio.lowlevel.checkpoint_if_cancelled, flattened
        if task._cancel_status.effectively_cancelled or task._runner.ki_pending:
            await trio.lowlevel.checkpoint_if_cancelled()

    return aclose


def wrapper_anext(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """AsyncIOWrapper.__anext__: a line that is at hand is answered on the spot, for at most SCHEDULE_PERIOD seconds in a row."""
    monotonic = time.monotonic

    @replaces(original)
    async def __anext__(self: AsyncIOWrapper[Any]) -> Any:
        engine: Engine | None = self.__dict__.get(ENGINE) or _engine_of(self)
        if engine is None or engine.released:
            return await original(self)
        try:
            task: Task = GLOBAL_RUN_CONTEXT.task
        except AttributeError:
            return await original(self)
        if (
            task is engine.reader
            and monotonic() < engine.until
            and not task._cancel_status.effectively_cancelled
            and not task._runner.ki_pending
        ):
            if engine.ahead.line_at_hand and (line := engine.plain_readline()):
                return line
            for line in engine.binary.ready:
                return line
            if engine.binary.has_line() and (line := engine.binary.line_of(engine.plain_readline)):
                return line
        line = await engine.next_line()  # type: ignore[attr-defined]
        if line:
            return line
        raise StopAsyncIteration

    return __anext__
