"""Layer 3, binary files: the methods of a builtin binary file, raw or buffered, whose reads and writes are ring operations.

Knows what FileIO, BufferedReader, BufferedWriter and BufferedRandom ask of a descriptor, and when; knows nothing of who calls
(`engine`), nor of text.

Theory of operation
===================
The builtin object keeps its state, and decides everything: what is in its buffer, how much it reads at a time, when it writes
out, what `tell` answers, what it raises. Only what may wait, the calls to its raw object, never comes to the kernel by its hand:

    reading     What it may ask for is read before, by entries with an offset, which move nothing (`ahead`). Then its method
                runs, in one go, and finds it in place of FileIO.readinto and FileIO.readall.
    writing     Its method runs. In place of FileIO.write it finds `Blocked`, which ends it as an error of write(2) would: nothing
                that it had to write is lost. The ring does that write, the method runs again, is told what write(2) would have
                answered, and goes on. The same for FileIO.truncate.

So a read that is cancelled has taken nothing, a write that is cancelled leaves in the object what was there before, and whoever
uses the object between two calls, or looks at the file, sees what the builtin shows.
"""

from __future__ import annotations

import functools
import io
import itertools
import operator
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import trio

from .._loop.calls import CURRENT_POSITION, MAX_RW_COUNT, WORKER_THRESHOLD, Pinned
from .._loop.manager import UringIOManager
from .._loop.operation import Operation, redeliver
from .._loop.transfers import transfer
from .._ring.ring import (
    IOSQE_ASYNC,
    OP_FTRUNCATE,
    OP_READ,
    OP_WRITE,
    ffi,
    lib,
    supported_operations,
    tu_read_cached,
    tu_read_rest,
)
from .ahead import InPlace, ReadAhead

BUFFERED: Final = (io.BufferedReader, io.BufferedWriter, io.BufferedRandom)
BINARY: Final = (io.FileIO, *BUFFERED)


class Blocked(BaseException):
    """A method of the builtin object has come to where it has to wait: to write `data`, None for what it was given past its
    buffer; or to cut the file to `length`.
    """

    def __init__(self, data: bytes | None, length: int = -1) -> None:
        self.data = data
        self.length = length


class RawWrites:
    """What stands in place of FileIO.write and FileIO.truncate. No reference to who makes it: files end when they are dropped.

    Attributes:
      answer: what the next call answers; it is `Blocked` if there is none.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size  # of the buffer
        self.answer: int | None = None

    def write(self, memory: Any) -> int:
        answer, self.answer = self.answer, None
        if answer is not None:
            return answer
        raise Blocked(bytes(memory) if memory.nbytes <= self.size else None)

    def truncate(self, size: Any = None) -> int:
        answer, self.answer = self.answer, None
        if answer is not None:
            return answer
        length = os.lseek(self.fd, 0, os.SEEK_CUR) if size is None else operator.index(size)
        if not 0 <= length <= sys.maxsize:
            os.ftruncate(self.fd, length)  # which says no
        raise Blocked(None, length)


def size_of(value: Any) -> int | None:
    """How much a read is asked for, -1 for everything; None where the builtin object is not going to take that value."""
    try:
        size = -1 if value is None else operator.index(value)
    except TypeError:
        return None
    return max(size, -1) if size <= sys.maxsize else None


def _new_bytes(size: int) -> bytes:
    """A new bytes object for the kernel to fill, before anybody else sees it; never one of the interpreter's shared ones."""
    return bytes(size if size > 1 else 2)


async def completed(call: Callable[[], Awaitable[Any]]) -> Any:
    """What `call()` comes to, whatever is cancelled: with it would go what has been taken from somebody before.

    An interrupt is seen at the next checkpoint.
    """
    interrupt: KeyboardInterrupt | None = None
    try:
        with trio.CancelScope(shield=True):
            while True:
                try:
                    return await call()
                except KeyboardInterrupt as error:
                    interrupt = error
    finally:
        if interrupt is not None:
            redeliver(interrupt)


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
    """The methods of a builtin binary file, as coroutines.

    One call at a time, each after `begin`. Arguments are as a user gave them.

    Args:
      real: the builtin object.
      shared: others may use it between two calls, and while one of them waits.
      ends: what a line may end with.

    Attributes:
      ahead: what has been read of the file.
      reading: `with` it, the builtin object reads from `ahead`.
      written: of the last write that failed, the bytes that are in the file.
      ready: lines that the builtin object holds in its own buffer, and answers without another read, as long as lines are what is
        read. An iterator, or an empty tuple: `for line in file.ready: return line` takes the next one.
    """

    def __init__(self, real: Any, shared: bool = False, ends: tuple[bytes, ...] = (b"\n",)) -> None:
        self.real = real
        self.shared = shared
        self.buffered = type(real) is not io.FileIO
        self.raw: Any = real.raw if self.buffered else real
        self.fd: int = self.raw.fileno()
        self.manager: UringIOManager = None  # type: ignore[assignment]  # of the run, set by `begin`
        # CPython counts the buffer in, and has no other word for it.
        self.size: int = (
            real.__sizeof__() - type(real).__basicsize__ if self.buffered else 0
        ) or io.DEFAULT_BUFFER_SIZE
        self._can_read: bool = self.raw.readable()
        self._can_write: bool = self.raw.writable()
        self.ahead = ReadAhead(self.fd, self.size, ends)
        self.ahead.buffered = self.buffered
        self.ahead.counts_lines = self.buffered and not self._can_write
        self.reading = InPlace(self.raw, {"readinto": self.ahead.readinto, "readall": self.ahead.readall})
        # Until there is something to write: what stands in place of the raw object's methods meanwhile.
        self._writes: RawWrites | None = None
        self._blocking_writes: InPlace | None = None
        # Nothing is in the object's buffer, and only its idea of the position may be an old one.
        self._clear = not shared
        self.written = 0
        self.ready: Iterable[Any] = ()

    def begin(self, manager: UringIOManager) -> None:
        """A call begins, in a run with that manager."""
        self.manager = manager
        self.ahead.begin()

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

    def sync(self) -> None:
        """The builtin object has everything."""
        if self._clear and self.buffered and not self.closed:
            self.real.tell()

    # ------------------------------------------------------------------ the operations

    async def _transfer(self, opcode: int, keep: Any, address: Any, size: int) -> int:
        """One read or write at the file's position; the number of bytes."""
        if self.shared and self.closed:
            raise ValueError("I/O operation on closed file.")
        # lseek(2) waits for whoever shares the position. What is shared only appends, and has no use for one.
        aside, most = IOSQE_ASYNC if size > WORKER_THRESHOLD else 0, min(size, MAX_RW_COUNT)
        if self.shared:
            operation = SubmittedAtOnce(self.manager, self.fd, keep, None)
            return await operation.perform(opcode, address, most, CURRENT_POSITION, sqe_flags=aside)
        before = os.lseek(self.fd, 0, os.SEEK_CUR)
        done = await transfer(self.manager, opcode, self.fd, keep, address, most, CURRENT_POSITION, aside)
        if done < size and not self.closed:
            # The kernel tried for the rest. Where that was an error, it does not move the position (6.18).
            if opcode == OP_WRITE and "a" in self.raw.mode:
                os.lseek(self.fd, 0, os.SEEK_END)
            else:
                os.lseek(self.fd, before + done, os.SEEK_SET)
        return done

    def _write(self, data: Any, start: int = 0) -> Awaitable[int]:
        """One write(2) of bytes, or of a cffi array, from `start` on; the number of bytes written."""
        if type(data) is bytes and not start and not self.shared:
            return self._transfer(OP_WRITE, data, data, len(data))
        address = ffi.from_buffer(data) if type(data) is bytes else data
        return self._transfer(OP_WRITE, (data, address), address + start, len(data) - start)

    async def _read_at(self, address: Any, size: int, offset: int, once: bool = False) -> int:
        """Read at an offset until there are `size` bytes or the file ends, or `once`; the number of bytes."""
        done = 0
        while done < size:
            part = min(size - done, MAX_RW_COUNT)
            aside = IOSQE_ASYNC if part > WORKER_THRESHOLD else 0
            got = await transfer(self.manager, OP_READ, self.fd, address, address + done, part, offset + done, aside)
            done += got
            if got == 0 or once:
                break
        return done

    # ------------------------------------------------------------------ reading ahead

    async def have(self, size: int, position: int | None = None) -> None:
        """Have the next `size` bytes, or all up to the file's end, at hand; from the file's position on, or from that one."""
        size = self.ahead.wanted(size, position)
        if size:
            offset = self.ahead.offset
            at_hand = self.manager.at_hand
            if at_hand and size <= WORKER_THRESHOLD:
                data = tu_read_cached(at_hand, self.fd, size, offset)
                if data is not None:
                    self.ahead.put(data, len(data), size, offset)
                    return
            memory = _new_bytes(size)
            got = await self._read_at(ffi.from_buffer(memory), size, offset)
            self.ahead.put(memory, got, size, offset)

    async def have_line(self, least: int = 0, most: int = sys.maxsize) -> None:
        """Have everything at hand that is asked for until a line ends behind `least` bytes; at most about `most` bytes."""
        ahead = self.ahead
        ahead.by_lines(True)
        size = least + ahead.chunk
        size += -size % ahead.chunk
        while True:
            await self.have(size)
            if size >= most or ahead.has_line(least):
                return
            # Read from the same place on, twice as much each time.
            size = max(2 * size, 2 * ahead.held)

    def has_line(self) -> bool:
        """Whether a line of a file that is only read can be had without waiting: what is missing may be in the page cache."""
        ahead = self.ahead
        if ahead.line_at_hand and not self._can_write:
            return True
        at_hand = self.manager.at_hand
        if not at_hand or self._can_write or not self.buffered:
            return False
        self._clear = False  # the object will be asked
        ahead.begin()
        ahead.by_lines(True)
        size = ahead.wanted(ahead.chunk, None)
        if size:
            data = tu_read_cached(at_hand, self.fd, size, ahead.offset)
            if data is None:
                return False
            ahead.put(data, len(data), size, ahead.offset)
        return ahead.known and ahead.has_line()

    def next_lines(self, count: int) -> Iterable[Any]:
        """An iterator over the next lines of the builtin object."""
        return itertools.islice(self.real, count)

    def line_of(self, readline: Callable[..., Any], *size: Any) -> Any:
        """A line that the builtin object answers. What it holds then beyond that is ready."""
        self.ready = ()
        self.ahead.lines = 0
        line = readline(*size)
        if self.ahead.lines > 1:
            self.ready = self.next_lines(self.ahead.lines - 1)
        return line

    async def have_all(self) -> None:
        """Have everything up to the end of the file at hand."""
        await self.have(sys.maxsize)
        while 0 < self.ahead.held < lib.tu_remaining(self.fd):  # it has grown meanwhile
            self.ahead.forget()
            await self.have(sys.maxsize)

    def held(self) -> int:
        """The bytes that the builtin object has read ahead; negative: that it has to write."""
        self._clear = False  # whoever asks goes on with the object
        return os.lseek(self.fd, 0, os.SEEK_CUR) - int(self.real.tell())

    async def _head(self, held: int) -> bytes:
        """For what reads more than the `held` bytes: these, and what is to be written is in the file after that.

        The object drops its buffer by that. Whatever else has to be waited for is to be at hand already.
        """
        if held <= 0 or not self._can_write:
            return b""
        head: bytes = self.real.read(held)
        await completed(self.flush)
        return head

    # ------------------------------------------------------------------ reading

    async def read(self, size: Any = -1) -> Any:
        """Buffered: `size` bytes, fewer only at the end. Raw: what one read(2) gives."""
        real = self.real
        self.ahead.by_lines(False)
        if size == -1 and self._can_read:
            return await self.readall()
        count = size_of(size)
        if count is None or count == 0 or not self._can_read:
            return real.read(size)
        if count < 0:
            return real.read(size) if self.buffered and size not in (None, -1) else await self.readall()
        if not self.buffered:
            await self.have(count)
            data = self.ahead.take(count)
            return real.read(size) if data is None else data
        held = 0 if self._clear else self.held()
        if count <= held:
            return real.read(count)
        missing = count - max(held, 0)
        # The last part of a block is filled up to one.
        whole = missing + -missing % self.size
        if not self._can_write:
            await self.have(whole)
            if held == 0 and whole == missing:
                # Not through its buffer, and without a copy where it is much.
                data = self.ahead.take(count)
                if data is not None:
                    self._clear = not self.shared
                    return data
            self.held()
            return real.read(count)
        if held <= 0:
            await self.flush()
        await self.have(whole)
        head = await self._head(held)
        return head + real.read(count - len(head)) if head else real.read(count)

    async def readall(self) -> Any:
        """All that is left."""
        real = self.real
        if not self._can_read:
            return real.readall()
        if not self.buffered or (self._clear and not self._can_write):
            if self.manager.at_hand:
                data = tu_read_rest(self.manager.at_hand, self.fd, WORKER_THRESHOLD)
                if data is not None:
                    self.ahead.forget()
                    return data
            await self.have_all()
            return self.ahead.readall()
        held = self.held()
        if held <= 0 and self._can_write:
            await self.flush()
        await self.have_all()
        head = await self._head(held)
        return head + real.read() if head else real.read()

    async def read1(self, size: Any = -1) -> Any:
        """At most `size` bytes: those in the buffer, or what one read(2) gives."""
        real = self.real
        count = size_of(size)
        if size is None or count is None or count == 0 or not self._can_read or self.held() > 0:
            return real.read1(size)
        if self._can_write:
            await self.flush()  # also before CPython 3.12.2, which reads past it (gh-115059)
        await self.have(self.size if count < 0 else count)
        return real.read1(size)

    async def readinto(self, buffer: Any) -> Any:
        """As `read`, into the caller's memory. Buffered and cancelled, what had been read into that is undefined."""
        real = self.real
        try:
            memory = ffi.from_buffer(buffer, require_writable=True)
        except (TypeError, ValueError, BufferError):
            return real.readinto(buffer)
        with Pinned(memory):
            size = len(memory)
            if not self._can_read or size == 0:
                return real.readinto(buffer)
            held = self.held() if self.buffered else 0
            if size <= held:
                return real.readinto(buffer)
            if self.buffered and (held > 0 or size <= self.size):
                return await self._readinto(real.readinto, buffer, size, held)
            if self._can_write and self.buffered:
                await self.flush()
            position = os.lseek(self.fd, 0, os.SEEK_CUR)
            if lib.tu_remaining(self.fd) == 0:
                return 0
            # Raw: a second read that is cancelled would leave in the caller's memory what the first has read, and nobody told.
            done = await self._read_at(memory, size, position, once=not self.buffered)
            os.lseek(self.fd, position + done, os.SEEK_SET)
            if self.buffered:
                with InPlace(self.raw, {"readinto": lambda _: 0}):
                    real.read(1)  # its buffer is empty, and at this position
                real.tell()
            return done

    async def readinto1(self, buffer: Any) -> Any:
        """As `read1`, into the caller's memory."""
        real = self.real
        try:
            size = memoryview(buffer).nbytes
        except TypeError:
            return real.readinto1(buffer)
        held = self.held()
        if not self._can_read or size <= held:
            return real.readinto1(buffer)
        return await self._readinto(real.readinto1, buffer, size, held)

    async def _readinto(self, method: Callable[[Any], int], buffer: Any, size: int, held: int) -> int:
        if held <= 0 and self._can_write:
            await self.flush()
        await self.have(max(size, self.size))
        head = await self._head(held)
        if not head:
            return method(buffer)
        with memoryview(buffer) as memory, memory.cast("B") as view:
            view[: len(head)] = head
            if method.__name__ == "readinto1" and size - len(head) <= self.size:
                return len(head)  # one that has something to answer fills no buffer
            with view[len(head) :] as rest:
                return len(head) + method(rest)

    async def peek(self, size: Any = 0) -> Any:
        """What is in the buffer, and if nothing is, what one read(2) gives."""
        if self._can_read:
            if self._can_write:
                await self.flush()
            if self.held() <= 0:
                await self.have(self.size)
        return self.real.peek(size)

    async def readline(self, size: Any = -1) -> Any:
        """Up to and with the next line end, at most `size` bytes; b"" at the end."""
        real = self.real
        if size == -1:
            for line in self.ready:
                return line
            if self.has_line():
                return self.line_of(real.readline)
        limit = size_of(size)
        if limit is None or limit == 0 or not self._can_read:
            return real.readline(size)
        if not self.buffered:
            await self.have_line(most=limit if limit >= 0 else sys.maxsize)
            return self._raw_line(limit) if self.ahead.known else real.readline(size)
        held = self.held()
        if 0 <= limit <= held or (held > 0 and not (self._can_write or self.ahead.kept) and b"\n" in real.peek()):
            return self.line_of(real.readline, size)
        if held <= 0 and self._can_write:
            await self.flush()
        await self.have_line(most=limit if limit >= 0 else sys.maxsize)
        return await self._line(limit, held) if self._can_write else self.line_of(real.readline, size)

    async def _line(self, limit: int, held: int) -> bytes:
        """A line of a file that is written as well, with what is missing of it at hand."""
        real = self.real
        head: bytes = b""
        if held > 0:
            head = real.readline(held if limit < 0 else min(limit, held))
            if head.endswith(b"\n") or len(head) == limit:
                return head
            await completed(self.flush)
        return head + bytes(real.readline(limit if limit < 0 else limit - len(head)))

    def _raw_line(self, limit: int) -> bytes:
        """A line of what is at hand, by a raw file, which stands behind it then."""
        data = self.ahead.peek()
        end = data.find(b"\n", 0, len(data) if limit < 0 else limit) + 1
        line = self.ahead.take(end or (len(data) if limit < 0 else min(limit, len(data))))
        return bytes(self.real.readline(limit)) if line is None else line

    async def readlines(self, hint: Any = -1) -> Any:
        """The lines that are left, or the first ones with more than `hint` bytes together."""
        real = self.real
        most = size_of(hint)
        if most is None or not self._can_read:
            return real.readlines(hint)
        held = self.held() if self.buffered else 0
        if held <= 0 and self._can_write and self.buffered:
            await self.flush()
        if most <= 0:
            await self.have_all()
        else:
            await self.have_line(most)
        if (self.buffered and not self._can_write) or not self.ahead.known:
            return real.readlines(hint)
        lines: list[bytes] = []
        total = 0
        while True:
            if self.buffered:
                line = await self._line(-1, self.held())
            else:
                line = self._raw_line(-1)
            if not line:
                return lines
            lines.append(line)
            total += len(line)
            if 0 < most < total:
                return lines

    # ------------------------------------------------------------------ writing

    def _prepare(self) -> tuple[RawWrites, InPlace]:
        """For a method that may write: what it finds in place of the raw object's, and what puts that there."""
        writes, place = self._writes, self._blocking_writes
        if writes is None or place is None:
            writes = self._writes = RawWrites(self.fd, self.size)
            place = self._blocking_writes = InPlace(self.raw, {"write": writes.write, "truncate": writes.truncate})
        return writes, place

    async def _blocking(self, method: Callable[..., Any], *args: Any) -> Any:
        """A method of the builtin object that may write or truncate. What is written past its buffer is the first argument."""
        writes, place = self._prepare()
        try:
            while True:
                try:
                    self._clear = False
                    with place:
                        return method(*args)
                except Blocked as blocked:
                    data, length = blocked.data, blocked.length
                if length >= 0:
                    writes.answer = await self._cut(length)
                elif data is None:
                    writes.answer = await self._write_most(args[0])
                else:
                    writes.answer = await (self._write_shared if self.shared else self._write)(data)
        finally:
            writes.answer = None

    async def _write_shared(self, data: bytes) -> int | None:
        """`_write`, but the owner of the object may flush it meanwhile, and is not to write the same again: None where he did."""
        claimed = False

        def write(memory: Any) -> int:
            nonlocal claimed
            if not claimed and memory[: len(data)] == data:
                claimed = True
                return len(data)
            return self.raw.__class__.write(self.raw, memory)  # type: ignore[no-any-return]

        with InPlace(self.raw, {"write": write}):
            done = await self._write(data)
            while claimed and done < len(data):
                done += await completed(functools.partial(self._write, data, done))
        return None if claimed else done

    async def _write_most(self, source: Any) -> int:
        """Write until the rest fits into the buffer; the number of bytes written."""
        done = 0
        with Pinned(ffi.from_buffer(source)) as memory:
            data = source if type(source) is bytes else memory
            size = len(memory)
            try:
                done = await self._write(data)
                while size - done > self.size:
                    # Some of it is in the file: a cancel can no longer undo that, so it waits.
                    done += await completed(functools.partial(self._write, data, done))
            except OSError:
                self.written = done
                self.real.tell()  # its idea of the position has to follow
                raise
        return done

    async def write(self, data: Any) -> Any:
        """Buffered: all of it, into the buffer if it fits there. Raw: what one write(2) takes."""
        self.written = 0
        if self.buffered:
            return await self._blocking(self.real.write, data)
        if not self._can_write:
            return self.real.write(data)
        if type(data) is bytes:
            return await self._write(data)
        try:
            memory = ffi.from_buffer(data)
        except (TypeError, ValueError, BufferError):
            return self.real.write(data)
        with Pinned(memory):
            return await self._write(memory)

    async def writelines(self, lines: Iterable[Any]) -> None:
        """`write` for each."""
        for line in lines:
            await self.write(line)

    async def flush(self) -> None:
        """What was written is in the file, as far as the kernel is concerned."""
        await self._blocking(self.real.flush)

    def try_flush(self) -> None:
        """`flush`, or `Blocked` where that has to wait."""
        _, place = self._prepare()
        with place:
            type(self.real).flush(self.real)

    async def truncate(self, size: Any = None) -> Any:
        """Cut or extend the file to `size` bytes, by default to the position, which stays."""
        if self.buffered or not self._can_write:
            return await self._blocking(self.real.truncate, size)
        return await self._blocking(self._prepare()[0].truncate, size)

    async def _cut(self, length: int) -> int:
        """ftruncate(2)."""
        if _truncates():
            await Operation(self.manager, self.fd, None, None).perform(OP_FTRUNCATE, None, 0, length)
        else:
            await trio.to_thread.run_sync(os.ftruncate, self.fd, length)
        return length

    # ------------------------------------------------------------------ moving

    async def seek(self, target: Any, whence: Any = 0) -> Any:
        """Go there: from the beginning (0), from here (1), from the end (2); the new position."""
        if not self._can_write:
            self._clear = False
            return self.real.seek(target, whence)
        return await self._blocking(self.real.seek, target, whence)

    async def tell(self) -> Any:
        """The position."""
        return self.real.tell()


@functools.cache
def _truncates() -> bool:
    return OP_FTRUNCATE in supported_operations()
