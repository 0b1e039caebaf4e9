"""Layer 3, AnyIO's files: anyio.open_file, AsyncFile, Path.open and anyio.streams.file, where AnyIO runs on Trio.

Knows how AnyIO's modules call for a worker thread; knows nothing of how the replacements come to be there (the seams put
them there) nor of how a file is served (`engine`). AnyIO is never imported here.

All that AnyIO does with a file it does in one way: `to_thread.run_sync(self._fp.read, size)`, a method of the builtin file
object to be called in a thread. So what is replaced is `to_thread`, as the modules with the files see it and nobody else: where
the method is one of a file that has an engine, the engine's coroutine is awaited in its place. Arguments, errors, the
shield around closing, what a stream makes of an exception: all that stays AnyIO's own code. What is not for the ring goes
to AnyIO's own thread: another backend, a Trio run on epoll, a user's own file class. A limiter limits threads, and so
nothing where there is none.

A file that AnyIO has opened itself is known to its AsyncFile or stream only, which makes it faster (see `engine`). From opening
it to the making of that object nothing else runs, so the engine waits in one place, `_opened.engine`, for its
holder to come. The holder lets the builtin file be seen in few places, and each of them hands the file over first.

Whether the caller runs on Trio is asked of sniffio, as AnyIO itself asks: in guest mode and with trio-asyncio there are tasks
of asyncio in the thread of a run.
"""

from __future__ import annotations

import functools
import io
import pathlib
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import sniffio
import trio

from .._loop.calls import replaces, ring_manager
from .._loop.manager import UringIOManager
from .._loop.operation import GLOBAL_RUN_CONTEXT
from .._ring.requests import ENGINE
from .binary import BINARY
from .engine import METHODS, PASSIVE_ATTRIBUTES, Engine, open_builtin, own, served

FILES: Final = (*BINARY, io.TextIOWrapper)

# id of a builtin file that AnyIO has opened -> its engine, which keeps the file alive.
_owned: weakref.WeakValueDictionary[int, Engine] = weakref.WeakValueDictionary()


class _Opened(threading.local):
    """The engine of the file that a thread opened last, until the object that AnyIO makes for the file takes it."""

    engine: Engine | None = None


_opened: Final = _Opened()


def manager_on_trio() -> UringIOManager | None:
    """The manager of the run that the caller is in, if it is a task of Trio's and on the ring."""
    return ring_manager() if sniffio.thread_local.name == "trio" else None


def _hold(holder: Any, real: Any) -> None:
    """`holder` is the AsyncFile or stream of a file: it keeps its engine."""
    engine, _opened.engine = _opened.engine, None
    if engine is None or engine.real is not real:
        engine = served(real) if type(real) in FILES and manager_on_trio() is not None else None
    if engine is not None:
        holder.__dict__[ENGINE] = engine


def _sync_to_builtin(holder: Any) -> None:
    """Somebody is about to see the builtin file."""
    engine: Engine | None = holder.__dict__.get(ENGINE)
    if engine is not None:
        engine.release_to_builtin()


# ------------------------------------------------------------------ in place of a thread


class to_thread:
    """anyio.to_thread, as AnyIO's modules with files see it."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    @trio.lowlevel.enable_ki_protection
    async def run_sync(self, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`func(*args)`, by the ring or in a thread; `options` are for the thread."""
        real = getattr(func, "__self__", None)
        manager = manager_on_trio()
        if manager is None:
            engine = _owned.get(id(real))
            if engine is not None:
                engine.release_to_builtin()
        elif type(real) in FILES:
            engine = _owned.get(id(real)) or served(real)
            if engine is not None and not engine.released:
                name = func.__name__
                if name == "close":
                    return await engine.aclose()
                if name in METHODS:
                    return await getattr(engine, name)(*args)
                engine.release_to_builtin()
        elif func is open or (type(real) is pathlib.PosixPath and func.__name__ == "open"):
            return await self._open(manager, func, args, options)
        return await self._original.run_sync(func, *args, **options)

    async def _open(self, manager: UringIOManager, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = args if func is open else (func.__self__, *args)
        whole: list[Any] = [*given, *_DEFAULTS[len(given) :]]
        file, mode, buffering, encoding, errors, newline, closefd, opener = whole
        opened = None
        if closefd and opener is None:
            opened = await open_builtin(manager, file, mode, buffering, encoding, errors, newline)
        if opened is None:
            return await self._original.run_sync(func, *args, **options)
        real, at_hand = opened
        engine = _opened.engine = own(real, newline, at_hand)
        if engine is not None:
            _owned[id(real)] = engine
        return real


_DEFAULTS: Final = (None, "r", -1, None, None, None, True, None)  # of the builtin open


# ------------------------------------------------------------------ AsyncFile


def file_init(original: Callable[..., None]) -> Callable[..., None]:
    """AsyncFile.__init__."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _hold(self, self._fp)

    return __init__


def file_wrapped(original: property) -> property:
    """AsyncFile.wrapped."""
    get = original.fget
    assert get is not None

    @functools.wraps(get)
    def wrapped(self: Any) -> Any:
        _sync_to_builtin(self)
        return get(self)

    return property(wrapped, doc=original.__doc__)


def file_getattr(original: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """AsyncFile.__getattr__, which passes on to the builtin file."""

    @functools.wraps(original)
    def __getattr__(self: Any, name: str) -> Any:
        engine: Engine | None = self.__dict__.get(ENGINE)
        if engine is not None and name not in PASSIVE_ATTRIBUTES:
            if name == "newlines" and type(engine.real) is io.TextIOWrapper:
                return engine.real.newlines
            if name == "fileno":
                engine.share()
            elif hasattr(engine.real, name):
                engine.release_to_builtin()
        return original(self, name)

    return __getattr__


def file_aclose(original: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """AsyncFile.aclose, without AnyIO's scope: `Engine.aclose` is shielded as it is. A sixth of open, read and close."""

    @replaces(original)
    async def aclose(self: Any) -> None:
        engine: Engine | None = self.__dict__.get(ENGINE)
        if engine is None or engine.released or engine.real is not self._fp or manager_on_trio() is None:
            await original(self)
        else:
            await engine.aclose()

    return aclose


def file_aiter(original: Callable[[Any], AsyncIterator[Any]]) -> Callable[[Any], AsyncIterator[Any]]:
    """AsyncFile.__aiter__: a line that is at hand is answered on the spot, for at most a millisecond in a row (`engine`)."""
    monotonic = time.monotonic

    @functools.wraps(original)
    @trio.lowlevel.enable_ki_protection
    async def __aiter__(self: Any) -> AsyncIterator[Any]:
        engine: Engine | None = self.__dict__.get(ENGINE)
        while True:
            line = None
            if engine is not None:
                # It has a reader only as long as AnyIO's object is the only one to hold the file, and on the ring.
                task: Any = engine.reader
                running: Any = getattr(GLOBAL_RUN_CONTEXT, "task", None)
                if (
                    task is not None
                    and task is running
                    and monotonic() < engine.until
                    and not task._cancel_status.effectively_cancelled
                    and not task._runner.ki_pending
                ):
                    line = next(iter(engine.binary.ready), None)
                    if line is None and engine.binary.has_line():
                        line = engine.binary.line_of(engine.plain_readline)
                if line is None and engine.real is self._fp and not engine.released and manager_on_trio() is not None:
                    line = await engine.next_line()  # type: ignore[attr-defined]
            if line is None:
                line = await self.readline()
            if not line:
                return
            yield line

    return __aiter__


# ------------------------------------------------------------------ anyio.streams.file


def stream_init(original: Callable[..., None]) -> Callable[..., None]:
    """_BaseFileStream.__init__."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _hold(self, self._file)

    return __init__


def stream_attributes(original: property) -> property:
    """_BaseFileStream.extra_attributes, which has the builtin file and its descriptor."""
    get = original.fget
    assert get is not None

    names = get.__globals__["FileStreamAttribute"]

    @functools.wraps(get)
    def extra_attributes(self: Any) -> Mapping[Any, Callable[[], Any]]:
        def file() -> Any:
            _sync_to_builtin(self)
            return self._file

        def fileno() -> int:
            engine: Engine | None = self.__dict__.get(ENGINE)
            if engine is not None:
                engine.share()
            return int(self._file.fileno())

        attributes = get(self)
        replaced = {names.file: file, names.fileno: fileno}
        return {name: replaced.get(name, value) for name, value in attributes.items()}

    return property(extra_attributes, doc=original.__doc__)
