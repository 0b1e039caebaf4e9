"""Layer 3, whole files: many small files, one await.

Knows what may stand at a path, and who has to be waited for to read all of it; knows nothing of how a read gets on
(ffi/batch.c, for many files at a time) nor of a file that is at hand (ffi/whole_files.c).

Three ways, each for what the one before leaves over:

- What is at hand is opened, read and closed on the spot, in C, for a millisecond between two schedule points: names in the
  kernel's cache, contents in the page cache, on a file system that asks nobody.
- Contents that are not at hand, of files that could be opened so, are read by one batch of the ring. That includes all of
  overlayfs, which cannot tell what is cached.
- The rest takes a task each: a name that has to be looked up, a file over a network, of /proc, a FIFO, a device.

Measured with 10,000 cached files of 4 KiB in C (kernel 6.18, CPU for each, with memory of its own for each result): open, read
and close 4.3 µs; on the spot, with openat2(2) relative to the folder, fstat(2) and preadv2(2), 4.6; asking each file where it is
before that, 5.5; a chain of linked entries, OPENAT into a direct descriptor, READ and CLOSE, 4.5, without knowing where
anything is, what or how large, which costs another 1.1. So the chain brings nothing where things are at hand, and where they
are not, the reads are what takes time.

Every descriptor of ours has one owner, which closes it whatever ends it: the list of results as the shim has left it there, the
batch, or the task.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import trio

from .._loop.calls import ring_manager
from .._loop.manager import UringIOManager
from .._loop.operation import Operation, close_descriptor, os_error
from .._ring.requests import BYTES_STORAGE, whole_number
from .._ring.ring import ffi, lib, tu_read_files
from .opening import is_elsewhere, is_local, open_fd, where_is, where_of
from .paths import READING, _contents, _to_the_end

Path: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"

_LIMIT: Final = 64
_CHECKED: Final = 4096  # paths, between two schedule points
_IN_ONE_THREAD_CALL: Final = 64  # files; between two such calls a cancel counts
_IN_FLIGHT: Final = 2 << 20  # bytes: as `batches`
_BATCHED: Final = 1 << 18  # bytes: a larger file is read by a task of its own
_WORD: Final = 4

# Waits for nobody: neither for the other end of a FIFO nor for a device.
_AT_ONCE: Final = READING | os.O_NONBLOCK

tu_batch_read_files = lib.tu_batch_read_files


class FilesBatch(Operation):
    """A batch of the shim, of descriptors that are closed when it is over."""

    kinds = ("batch of files", "batch of files")

    __slots__ = ("fds",)

    def __init__(self, manager: UringIOManager, keep: object, fds: Sequence[int]) -> None:
        super().__init__(manager, -1, keep, None)
        self.fds = fds

    def over(self) -> None:
        """For the task's `finally`: if entries are still the kernel's, `discard` closes."""
        if self.user_data not in self.manager.operations:
            self._close()

    def _close(self) -> None:
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)  # of this machine: it asks nobody

    def discard(self, result: int, flags: int) -> None:
        """Nobody waits any more."""
        super().discard(result, flags)
        self._close()


class _Descriptors:
    """Those of all calls of a run. Who gets none, EMFILE, waits until another has let go of one.

    Attributes:
      held: how many are open, or being opened.
      closed: how many have been closed so far.
    """

    def __init__(self) -> None:
        self.held = 0
        self.closed = 0
        self.changed = trio.lowlevel.ParkingLot()

    def gone(self, count: int = 1) -> None:
        """So many are closed."""
        self.held -= count
        self.closed += count
        self.changed.unpark_all()

    def close(self, fd: int) -> None:
        """Close one, without waiting for anybody."""
        close_descriptor(fd)
        self.gone()

    async def open(self, manager: UringIOManager | None, path: str | bytes) -> int:
        """A new one, with `_open`. Where others of ours may have been in its way, once more when one of these is gone."""
        while True:
            before = self.closed
            self.held += 1
            try:
                return await _open(manager, path)
            except BaseException as error:
                self.held -= 1
                self.changed.unpark_all()  # one fewer to wait for
                if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                if self.closed == before:
                    if not self.held:
                        raise
                    await self.changed.park()


_descriptors: trio.lowlevel.RunVar[_Descriptors] = trio.lowlevel.RunVar("trio_uring.read_files")


def _descriptors_of_run() -> _Descriptors:
    try:
        return _descriptors.get()
    except LookupError:
        descriptors = _Descriptors()
        _descriptors.set(descriptors)
        return descriptors


# ------------------------------------------------------------------ one file


async def _read_fifo(fd: int) -> bytes:
    """From when somebody has opened the other end until nobody has it open any more. O_NONBLOCK is set."""
    pieces: list[bytes] = []
    while True:
        # Until there has been a writer poll(2) has nothing to report, as an open without O_NONBLOCK would wait.
        await trio.lowlevel.wait_readable(fd)
        try:
            piece = os.read(fd, 1 << 16)
        except BlockingIOError:
            continue
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def _read_all(fd: int) -> bytes:
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return file.readall()


async def _read_opened(manager: UringIOManager | None, fd: int) -> bytes:
    """All that is in what was opened with `_AT_ONCE`."""
    where = where_of(fd)
    if stat.S_ISFIFO(where):
        return await _read_fifo(fd)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    if manager is None:
        return await trio.to_thread.run_sync(_read_all, fd)
    if stat.S_ISREG(where) and is_local(where):
        return await _contents(manager, fd, max(lib.tu_remaining(fd), 0))
    if stat.S_ISDIR(where):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    elsewhere = stat.S_ISREG(where)
    return await _to_the_end(manager, fd, [], 0 if elsewhere else None, elsewhere)


async def _open(manager: UringIOManager | None, path: str | bytes) -> int:
    if manager is None:
        return await trio.to_thread.run_sync(_open_in_thread, path)
    where = where_is(path)
    try:
        return await open_fd(manager, path, _AT_ONCE, where=where)
    except BlockingIOError:  # somebody has a lease on a file, and is to give it up first
        return await open_fd(manager, path, READING)


def _open_in_thread(path: str | bytes) -> int:
    try:
        return os.open(path, _AT_ONCE)
    except BlockingIOError:
        return os.open(path, READING)


def _close_in_thread(fd: int) -> None:
    with contextlib.suppress(OSError):  # closed it is all the same, and nothing was written
        os.close(fd)


def _read_in_thread(path: str | bytes) -> bytes | tuple[int, int]:
    """All that is in a regular file, or the descriptor of what is none and may have to be waited for."""
    fd = _open_in_thread(path)
    waits = False
    try:
        mode = os.fstat(fd).st_mode
        waits = not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        return (fd, -1) if waits else _read_all(fd)
    finally:
        if not waits:
            os.close(fd)


# ------------------------------------------------------------------ many


def _names(paths: Sequence[Path], start: int) -> tuple[list[str | bytes], list[bytes]]:
    """As `os.fspath` answers them, and as the kernel takes them."""
    names: list[str | bytes] = []
    encoded: list[bytes] = []
    for i, path in enumerate(paths, start):
        try:
            name = os.fspath(path)
        except TypeError:
            raise TypeError(f"paths[{i}] must be str, bytes or os.PathLike, not {type(path).__name__}") from None
        whole = os.fsencode(name)
        if b"\0" in whole:
            raise ValueError(f"paths[{i}]: embedded null byte")
        sys.audit("open", name, "r", READING)
        names.append(name)
        encoded.append(whole)
    return names, encoded


class _Reader:
    """One call of `read_files`.

    Its tasks are Trio's system tasks, which it waits for whatever ends it. In place of a nursery: what that raises is a group,
    and it cannot be torn down when the run has broken down.

    Attributes:
      results: bytes or OSError; before that what `tu_read_files` leaves there.
      free: how many files more may be open.
      scopes: of the tasks.
      failure: what ended a task, if it was no OSError.
    """

    def __init__(self, names: list[str | bytes], encoded: list[bytes], limit: int) -> None:
        self.names = names
        self.encoded = encoded
        self.results: list[Any] = [None] * len(names)
        self.limit = self.free = limit
        self.manager = ring_manager()
        self.descriptors = _descriptors_of_run()
        self.changed = trio.lowlevel.ParkingLot()
        self.scopes: set[trio.CancelScope] = set()
        self.failure: Exception | None = None

    async def read(self) -> None:
        """Fill in the results."""
        try:
            start = 0
            while start < len(self.names):
                start = await self._some(start)
            await self._until_free(self.limit)
        except GeneratorExit:
            raise
        except BaseException:
            await self._end_tasks()
            raise
        finally:
            for i, result in enumerate(self.results):
                if result.__class__ is tuple:
                    self.results[i] = None
                    self.descriptors.close(result[0])

    async def _until_free(self, count: int) -> None:
        while self.free < count and self.failure is None:
            await self.changed.park()
        if self.failure is not None:
            raise self.failure

    async def _end_tasks(self) -> None:
        interrupt: KeyboardInterrupt | None = None
        for scope in self.scopes:
            scope.cancel()
        with trio.CancelScope(shield=True):
            while self.scopes:
                try:
                    await self.changed.park()
                except KeyboardInterrupt as error:
                    interrupt = error
        if interrupt is not None:
            raise interrupt

    async def _some(self, start: int) -> int:
        """Read those of the next files that can be read now, and have tasks read the others. Answers which one comes next."""
        await self._until_free(1)
        room, results, manager = self.free, self.results, self.manager
        if manager is None:
            stop = min(start + room, start + _IN_ONE_THREAD_CALL, len(results))
            self.descriptors.held += 1
            try:
                results[start:stop] = await trio.to_thread.run_sync(self._in_thread, start, stop)
            finally:
                self.descriptors.gone()
        elif manager.at_hand:
            stop = tu_read_files(self.encoded, results, start, room)
        else:
            stop = min(start + room, len(results))
        opened: list[int] = []
        others: list[int] = []
        for i in range(start, stop):
            result = results[i]
            if result.__class__ is bytes:
                continue
            if result.__class__ is int:
                results[i] = self._error(i, os_error(result))
            elif result is None:
                others.append(i)
            elif result.__class__ is tuple:
                self.descriptors.held += 1
                if 0 <= result[1] < _BATCHED:
                    self.free -= 1
                    opened.append(i)
                else:
                    self._start(i)
        if opened:
            await self._batch(opened)
        else:
            await trio.lowlevel.checkpoint()
        await self._leave(others)
        return stop

    async def _leave(self, numbers: list[int]) -> None:
        for i in numbers:
            await self._until_free(1)
            self._start(i)

    def _start(self, i: int) -> None:
        scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._alone, i, scope, name="trio_uring.read_files")
        self.scopes.add(scope)
        self.free -= 1

    def _error(self, i: int, error: OSError) -> OSError:
        """As the builtin's, and with the name always."""
        return OSError(error.errno, error.strerror, self.names[i])

    def _in_thread(self, start: int, stop: int) -> list[Any]:
        found: list[Any] = []
        try:
            for i in range(start, stop):
                try:
                    found.append(_read_in_thread(self.names[i]))
                except OSError as error:
                    exhausted = error.errno in (errno.EMFILE, errno.ENFILE)
                    found.append(None if exhausted else self._error(i, error))
        except BaseException:
            for result in found:
                if result.__class__ is tuple:
                    os.close(result[0])
            raise
        return found

    async def _alone(self, i: int, scope: trio.CancelScope) -> None:
        """A task: one file, opened already or not."""
        result, self.results[i] = self.results[i], None
        fd: int = -1 if result is None else result[0]
        with scope:
            try:
                if fd < 0:
                    fd = await self.descriptors.open(self.manager, self.names[i])
                try:
                    self.results[i] = await _read_opened(self.manager, fd)
                except OSError as error:
                    self.results[i] = self._error(i, error)
                if is_elsewhere(where_of(fd)):  # then it may take its time
                    await trio.to_thread.run_sync(_close_in_thread, fd)
                    fd = -1
                    self.descriptors.gone()
            except OSError as error:
                self.results[i] = self._error(i, error)
            except Exception as error:  # for the caller, and not for the run
                self.failure = error
            finally:
                if fd >= 0:
                    self.descriptors.close(fd)
                self.scopes.discard(scope)
                self.free += 1
                self.changed.unpark_all()

    async def _batch(self, numbers: list[int]) -> None:
        """Files that are regular, of this machine, and open."""
        manager, results = self.manager, self.results
        assert manager is not None
        sizes = [results[i][1] for i in numbers]
        lengths = array("I", [size + 1 for size in sizes])  # one byte more tells whether it has grown
        blocks: list[Any] = list(map(bytes, lengths))
        ended = array("i", bytes(_WORD * len(numbers)))
        window = max(1, min(len(numbers), _IN_FLIGHT // max(lengths)))
        fds = array("i", [results[i][0] for i in numbers])
        memory = (
            ffi.from_buffer("int32_t[]", fds),
            ffi.from_buffer("uint32_t[]", lengths),
            ffi.from_buffer("uint64_t[]", array("Q", map(id, blocks))),
            ffi.from_buffer("int32_t[]", ended),
        )
        operation = FilesBatch(manager, None, fds)
        for i in numbers:
            results[i] = None

        def queue() -> None:
            rc = tu_batch_read_files(
                manager.ring._r, *memory[:3], BYTES_STORAGE, memory[3], len(numbers), window, operation.user_data
            )
            if rc:
                manager.ring._fail(rc)

        try:
            while True:
                await trio.lowlevel.checkpoint_if_cancelled()
                operation.user_data = manager.next_user_data()
                operation.keep = memory, blocks
                await operation.queue_and_wait(queue)
                if operation.result >= 0:
                    break
                await operation.failed()  # or interrupted, and nobody asked for it: from the beginning
        finally:
            operation.over()
            self.descriptors.gone(len(numbers))
            self.free += len(numbers)
        again = []
        for i, size, got, block in zip(numbers, sizes, ended, blocks, strict=True):
            if got == size:
                results[i] = block[:size]
            elif got == -errno.ECANCELED or got >= 0:
                again.append(i)  # no worker (F40); or it has grown, or been cut, meanwhile
            else:
                results[i] = self._error(i, os_error(got))
        await self._leave(again)


@trio.lowlevel.enable_ki_protection
async def read_files(paths: Iterable[Path], *, limit: int = _LIMIT) -> list[bytes | OSError]:
    """Read many files, each whole, with one await.

    Args:
      paths: str, bytes or os.PathLike, relative to the working directory where they are not absolute.
      limit: the most files that are open at a time, 1 to 32,768. Beside the results that bounds the memory: less than 256 KiB for
        each, or the size of the file where it has more.

    Returns one result for each path, in their order: all that is in the file, as bytes; or the OSError that `open` or reading
    would raise, not raised, and always with the path as `filename`. (`[r for r in results if isinstance(r, OSError)]` are the
    failures.)

    Made for small files by the thousand. A large one comes whole as well, and so does a file of /proc, or one that grows
    meanwhile. A FIFO is read until its writers have closed it, which may take for ever; it takes one of `limit`, and the
    others go on.

    Files that are in the kernel's caches are read on the spot, for a millisecond between two schedule points
    (`UringBackend.speculate`). Cancelled as a whole: when Cancelled comes out nothing is in flight any more, every descriptor is
    closed (one of a file over a network is being closed, by a thread), and what was read is forgotten. Where calls of this
    function have all the descriptors that there may be (EMFILE), it waits for one of these.

    Raises:
      TypeError: `paths` is one path, or something in it is none, before anything is read.
      ValueError: a null byte in a path; a `limit` out of range.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise TypeError("paths must be an iterable of paths, not one path")
    limit = whole_number(limit, "limit", 32768)
    if not limit:
        raise ValueError("limit must be at least 1")
    paths = list(paths)
    names: list[str | bytes] = []
    encoded: list[bytes] = []
    for start in range(0, len(paths), _CHECKED):
        if start:
            await trio.lowlevel.checkpoint()
        some = _names(paths[start : start + _CHECKED], start)
        names += some[0]
        encoded += some[1]
    if not names:
        await trio.lowlevel.checkpoint()
        return []
    reader = _Reader(names, encoded, limit)
    await reader.read()
    return reader.results
