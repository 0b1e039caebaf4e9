"""Layer 3, binary files: the methods of a builtin binary file, raw or buffered, as reads and writes of its descriptor.

Knows what BufferedReader, BufferedWriter, BufferedRandom and FileIO do with a buffer and a position; knows nothing of who calls
(`engine`), nor of text.
"""

from __future__ import annotations

import functools
import io
import operator
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

import trio

from .._loop.calls import CURRENT_POSITION, MAX_RW_COUNT, WORKER_THRESHOLD, Pinned
from .._loop.manager import UringIOManager
from .._loop.operation import Operation, redeliver
from .._ring.ring import IOSQE_ASYNC, OP_FTRUNCATE, OP_READ, OP_WRITE, ffi, lib, supported_operations

# What is read ahead grows to so many bytes while a file is read in order.
MAX_READ_AHEAD: Final = 64 * 1024

BUFFERED: Final = (io.BufferedReader, io.BufferedWriter, io.BufferedRandom)
BINARY: Final = (io.FileIO, *BUFFERED)

NO_LINES: Final[Iterator[Any]] = iter(())


class Refused(Exception):
    """The builtin object would not do this: ask it, so that it says so."""


def _size(value: Any) -> int:
    """An argument as the builtin takes it: an integer, or None for -1."""
    return -1 if value is None else integer(value)


def integer(value: Any) -> int:
    """An argument as the builtin takes it: an integer."""
    try:
        number: int = operator.index(value)
    except TypeError:
        raise Refused from None
    if not -sys.maxsize <= number <= sys.maxsize:
        raise Refused
    return number


def _new_bytes(size: int) -> bytes:
    """A new bytes object for the kernel to fill, before anybody else sees it; never one of the interpreter's shared ones."""
    return bytes(size if size > 1 else 2)


class SubmittedAtOnce(Operation):
    """Submitted at once: before the tick ends a wrapped file's owner may close it, and the number be another file's (F17)."""

    __slots__ = ()

    async def queue_and_wait(self, queue: Callable[..., object], *arguments: Any) -> None:
        """As for every operation."""

        def submitted() -> None:
            queue(*arguments)
            self.manager.ring.submit()

        await super().queue_and_wait(submitted)


class BinaryFile:
    """The methods of a builtin binary file, raw or buffered, over its descriptor.

    One call at a time, and `manager` is that of the run. Arguments are as a user gave them. A method that raises, a cancel
    included, has had no effect of its own: what was read stays to be read, and of data to write, what is not held back and
    has not reached the file is not taken.
    """

    redeliver = staticmethod(redeliver)

    def __init__(self, real: Any, shared: bool = False) -> None:
        self.real = real
        self.shared = shared
        raw = real if type(real) is io.FileIO else real.raw
        self.fd: int = raw.fileno()
        self.manager: UringIOManager = None  # type: ignore[assignment]  # set for each call
        self.buffered = real is not raw
        # CPython counts the buffer in, and has no other word for it.
        self.size = (real.__sizeof__() - type(real).__basicsize__ if self.buffered else 0) or io.DEFAULT_BUFFER_SIZE
        self._can_read: bool = raw.readable()
        self._can_write: bool = raw.writable()
        self._appends = "a" in raw.mode
        # Read ahead: _data[_start:_end]. The file's position is at its end.
        self._data = b""
        self._start = 0
        self._end = 0
        self._ahead = self.size
        # Of these bytes, the lines that `async for` takes are already split off; see `_unsplit`.
        self._lines: list[bytes] = []
        self.ready = NO_LINES
        # To be written. The file's position is at its beginning. Never both.
        self.pending = bytearray()
        self.newlines = None

    @property
    def closed(self) -> bool:
        """Whether the builtin object is closed."""
        return bool(self.real.closed)

    def readable(self) -> bool:
        """As of the builtin object."""
        return self._can_read

    def writable(self) -> bool:
        """As of the builtin object."""
        return self._can_write

    def seekable(self) -> bool:
        """It is a regular file."""
        return True

    # ------------------------------------------------------------------ position

    def position(self) -> int:
        """Where the next read or write begins, in bytes."""
        self._unsplit()
        return os.lseek(self.fd, 0, os.SEEK_CUR) - (self._end - self._start) + len(self.pending)

    def rewind(self) -> None:
        """Forget what was read ahead: the file's position is that of the user."""
        self._unsplit()
        if self._end > self._start:
            os.lseek(self.fd, self._start - self._end, os.SEEK_CUR)
        self._keep(b"", 0)

    def _keep(self, data: bytes, end: int) -> None:
        self._data = data
        self._start = 0
        self._end = end

    def _take(self, size: int) -> bytes:
        """At most `size` of the bytes read ahead."""
        start = self._start
        self._start = stop = min(start + size, self._end)
        return self._data[start:stop]

    def _unsplit(self) -> None:
        """The lines that `async for` has not taken are bytes again."""
        if self._lines:
            left = operator.length_hint(self.ready)
            if left:
                self._start -= sum(map(len, self._lines[-left:]))
            self._lines = []
        self.ready = NO_LINES

    # ------------------------------------------------------------------ the operations

    async def _transfer(self, opcode: int, keep: Any, address: Any, size: int) -> int:
        """One read or write at the file's position; the number of bytes."""
        if self.shared and self.closed:
            raise ValueError("I/O operation on closed file.")
        before = os.lseek(self.fd, 0, os.SEEK_CUR)
        done = await (SubmittedAtOnce if self.shared else Operation)(self.manager, self.fd, keep, None).perform(
            opcode,
            address,
            min(size, MAX_RW_COUNT),
            CURRENT_POSITION,
            sqe_flags=IOSQE_ASYNC if size > WORKER_THRESHOLD else 0,
        )
        if done < size and not self.closed:
            # The kernel tried for the rest. Where that was an error, it does not move the position (6.18).
            if opcode == OP_WRITE and self._appends:
                os.lseek(self.fd, 0, os.SEEK_END)
            else:
                os.lseek(self.fd, before + done, os.SEEK_SET)
        return done

    def _read(self, address: Any, size: int) -> Awaitable[int]:
        return self._transfer(OP_READ, address, address, size)

    def _write(self, data: Any, start: int = 0) -> Awaitable[int]:
        """One write(2) of bytes, or of a cffi array, from `start` on; the number of bytes written."""
        address = ffi.from_buffer(data) if type(data) is bytes else data
        return self._transfer(OP_WRITE, (data, address), address + start, len(data) - start)

    async def _more(self, size: int) -> bool:
        """Read at most `size` bytes behind those that were read ahead; false at the end of the file.

        The end is where the file's size says, as for read(2): no operation for nothing. Where the file does not tell, the
        read does, and as much is tried for as is held, so that what is copied to join them stays in proportion.
        """
        remaining = lib.tu_remaining(self.fd)
        if remaining <= 0:
            if remaining == 0:
                return False
            remaining = max(self._end - self._start, MAX_READ_AHEAD)
        size = min(size, remaining, MAX_RW_COUNT)
        memory = _new_bytes(size)
        got = await self._read(ffi.from_buffer(memory), size)
        if self._end > self._start:
            memory = self._data[self._start : self._end] + memory[:got]
        self._keep(memory, self._end - self._start + got)
        return got > 0

    async def _hold(self, size: int) -> None:
        """Read ahead at least `size` bytes, or all there are."""
        while (missing := size - (self._end - self._start)) > 0:
            if missing < self._ahead:
                missing = self._ahead
                self._ahead = min(2 * missing, max(MAX_READ_AHEAD, self.size))
            if not await self._more(missing):
                break

    async def _before_reading(self) -> None:
        if not self._can_read:
            raise Refused
        if self.pending:
            await self._write_out()
        if self._lines:
            self._unsplit()

    def _before_writing(self) -> None:
        if not self._can_write:
            raise Refused
        if self._end > self._start:
            self.rewind()

    async def _write_out(self) -> None:
        pending = self.pending
        while pending:
            del pending[: await self._write(bytes(pending))]

    # ------------------------------------------------------------------ reading

    async def read(self, size: Any = -1) -> bytes:
        """Buffered: `size` bytes, fewer only at the end. Raw: what one read(2) gives."""
        size = _size(size)
        if size < 0:
            if size < -1 and self.buffered:
                raise Refused
            return await self.readall()
        if size == 0 and self._can_read:
            return b""
        await self._before_reading()
        if not self.buffered:
            return await self.read1(size)
        if size > self._end - self._start:
            await self._hold(size)
        return self._take(size)

    async def readall(self) -> bytes:
        """All that is left."""
        await self._before_reading()
        try:
            # Nobody knows the end but the file; after the last read the size is asked for once more.
            while await self._more(sys.maxsize):
                pass
        except BaseException:
            if not self.buffered:
                self.rewind()
            raise
        data = self._data[self._start : self._end]
        self._keep(b"", 0)
        return data

    async def read1(self, size: Any = -1) -> bytes:
        """At most `size` bytes: those read ahead, or what one read(2) gives."""
        size = integer(size)
        await self._before_reading()
        if size < 0:
            size = self.size
        if self._end > self._start:
            return self._take(size)
        remaining = lib.tu_remaining(self.fd)
        size = min(size, MAX_RW_COUNT, remaining) if remaining >= 0 else min(size, MAX_RW_COUNT)
        if size == 0:
            return b""
        memory = _new_bytes(size)
        return memory[: await self._read(ffi.from_buffer(memory), size)]

    async def readinto(self, buffer: Any) -> int:
        """As `read`, into the caller's memory."""
        with Pinned(self._writable(buffer)) as address:
            return await self._fill(address)

    async def _fill(self, address: Any) -> int:
        size = len(address)
        await self._before_reading()
        if not self.buffered:
            return await self._read(address, size) if size else 0
        if size < self._ahead or self._end > self._start:
            await self._hold(size)
            return self._copy_to(address, size)
        done = 0
        try:
            while done < size and lib.tu_remaining(self.fd) != 0:
                got = await self._read(address + done, size - done)
                if not got:
                    break
                done += got
        except BaseException:
            self._keep(ffi.buffer(address, done)[:], done)
            raise
        return done

    async def readinto1(self, buffer: Any) -> int:
        """As `read1`, into the caller's memory."""
        with Pinned(self._writable(buffer)) as address:
            size = len(address)
            await self._before_reading()
            if self._end == self._start:
                return await self._read(address, size) if size else 0
            return self._copy_to(address, size)

    def _copy_to(self, address: Any, size: int) -> int:
        data = self._take(size)
        ffi.memmove(address, data, len(data))
        return len(data)

    @staticmethod
    def _writable(buffer: Any) -> Any:
        try:
            return ffi.from_buffer(buffer, require_writable=True)
        except (TypeError, ValueError, BufferError):
            raise Refused from None

    async def peek(self, size: Any = 0) -> bytes:
        """What is read ahead, at most one buffer; at least one byte except at the end."""
        integer(size)
        await self._before_reading()
        await self._hold(1)
        return self._data[self._start : min(self._end, self._start + self.size)]

    async def readline(self, size: Any = -1) -> bytes:
        """Up to and with the next line end, at most `size` bytes; b"" at the end."""
        limit = _size(size)
        await self._before_reading()
        try:
            return await self._line(limit)
        finally:
            if not self.buffered:
                self.rewind()

    async def _line(self, limit: int) -> bytes:
        searched = 0
        while True:
            have = self._end - self._start
            most = have if limit < 0 else min(have, limit)
            at = self._data.find(b"\n", self._start + searched, self._start + most)
            if at >= 0:
                return self._take(at + 1 - self._start)
            if most == limit:
                return self._take(limit)
            searched = have
            # Twice as much each time: what is held is copied each time.
            self._ahead = max(self._ahead, have)
            await self._hold(have + 1)
            if self._end - self._start == have:
                return self._take(have)

    async def next_line(self) -> bytes:
        """The next line, for `async for`, and those after it that are at hand in `ready`; b"" at the end."""
        line: bytes
        for line in self.ready:
            return line
        line = await self.readline()
        last = self._data.rfind(b"\n", self._start, self._end) + 1
        if last:
            self._lines = io.BytesIO(self._data[self._start : last]).readlines()
            self.ready = iter(self._lines)
            self._start = last
        return line

    async def readlines(self, hint: Any = -1) -> list[bytes]:
        """The lines that are left, or the first ones with more than `hint` bytes together."""
        most = _size(hint)
        if most <= 0:
            return io.BytesIO(await self.readall()).readlines()
        await self._before_reading()
        lines: list[bytes] = []
        total = 0
        try:
            while total <= most and (line := await self._line(-1)):
                lines.append(line)
                total += len(line)
        except BaseException:
            held = b"".join((*lines, self._data[self._start : self._end]))
            self._keep(held, len(held))
            raise
        finally:
            if not self.buffered:
                self.rewind()
        return lines

    # ------------------------------------------------------------------ writing

    async def write(self, data: Any) -> int:
        """Buffered: all of it, into the buffer if it fits there. Raw: what one write(2) takes."""
        self._before_writing()
        if type(data) is bytes:
            return await self._put(data)
        try:
            memory = ffi.from_buffer(data)
        except (TypeError, ValueError, BufferError):
            raise Refused from None
        with Pinned(memory):
            return await self._put(memory)

    async def _put(self, data: Any) -> int:
        size = len(data)
        if not self.buffered:
            return await self._write(data)
        pending = self.pending
        done = 0
        if len(pending) + size > self.size:
            await self._write_out()
            if size > self.size:
                done = await self._write_most(data, size)
        pending += data[done:] if type(data) is bytes else ffi.buffer(data)[done:]
        return size

    async def _write_most(self, data: Any, size: int) -> int:
        """Write until what is left fits into the buffer; the number of bytes written."""
        done = await self._write(data)
        if size - done > self.size:
            # Some of it is in the file: a cancel can no longer undo that, so it waits.
            interrupt: KeyboardInterrupt | None = None
            try:
                with trio.CancelScope(shield=True):
                    while size - done > self.size:
                        try:
                            done += await self._write(data, done)
                        except KeyboardInterrupt as error:
                            interrupt = error
            except OSError as error:
                error.characters_written = done  # type: ignore[attr-defined]  # for TextFile
                raise
            finally:
                if interrupt is not None:
                    redeliver(interrupt)
        return done

    async def writelines(self, lines: Iterable[Any]) -> None:
        """`write` for each."""
        for line in lines:
            try:
                await self.write(line)
            except Refused:
                self.real.write(line)

    async def flush(self) -> None:
        """What was written is in the file, as far as the kernel is concerned."""
        if self.pending:
            await self._write_out()
        if self._can_write:
            self.rewind()

    async def truncate(self, size: Any = None) -> int:
        """Cut or extend the file to `size` bytes, by default to the position, which stays."""
        if not self._can_write:
            raise Refused
        await self.flush()
        return await self.cut(self.position() if size is None else integer(size))

    async def cut(self, length: int) -> int:
        """ftruncate(2)."""
        if length < 0 or not self._can_write:
            raise Refused
        if _truncates():
            await Operation(self.manager, self.fd, None, None).perform(OP_FTRUNCATE, None, 0, length)
        else:
            await trio.to_thread.run_sync(os.ftruncate, self.fd, length)
        return length

    # ------------------------------------------------------------------ moving

    async def seek(self, target: Any, whence: Any = 0) -> int:
        """Go there: from the beginning (0), from here (1), from the end (2); the new position."""
        to = integer(target)
        whence = integer(whence)
        if not 0 <= whence <= 4:
            raise Refused
        if self.pending:
            await self._write_out()
        self._unsplit()
        if whence <= 1 and self._end > self._start:
            here = self.position()
            there = to if whence == 0 else here + to
            if -self._start <= there - here <= self._end - self._start:
                self._start += there - here
                return there
            to, whence = there, 0
        position = os.lseek(self.fd, to, whence)
        self._keep(b"", 0)
        self._ahead = self.size
        return position

    async def tell(self) -> int:
        """The position."""
        return self.position()

    # ------------------------------------------------------------------ giving and taking

    def sync_to_builtin(self) -> None:
        """The builtin object has everything: see the module."""
        self.rewind()
        self.real.tell()
        if self.pending:
            self.real.write(bytes(self.pending))
            self.pending.clear()

    def sync_from_builtin(self) -> None:
        """The builtin object's buffer is empty and its position is the file's."""
        if self._can_read and self.buffered:
            position = self.real.tell()
            self.real.seek(0, os.SEEK_END)
            os.lseek(self.fd, position, os.SEEK_SET)
        elif self.buffered:
            self.real.flush()


@functools.cache
def _truncates() -> bool:
    return OP_FTRUNCATE in supported_operations()
