"""Layer 3, text: the methods of `io.TextIOWrapper`, over a binary file whose reads and writes are ring operations.

Knows encodings and line ends only as far as it takes to know how much has to be read; everything else the builtin object decides
by itself, as the binary one does (`binary`): where its decoder stands, what a cookie is, when telling is disabled, when a
byte order mark is written. Its methods run in one go. What they read from the buffered object is at hand before; what they
hand to it is collected, and handed over after them.

What was collected and could not be written, because the disk is full, stays here and is tried again first by whatever comes next.
The builtin object would drop it: that is data of writes that have been reported as done. The text of the write that
fails is not kept, since it reports that.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

import trio

from .ahead import InPlace
from .binary import BinaryFile, Blocked, completed, size_of

# Encodings in which a text has the same bytes wherever it stands.
STATELESS: Final = frozenset(
    ("ascii", "iso8859-1", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"),
)

# Those that differ from one of them by the byte order mark at the beginning.
MARKED: Final = {"utf-8-sig": "utf-8", "utf-16": f"utf-16-{sys.byteorder[0]}e", "utf-32": f"utf-32-{sys.byteorder[0]}e"}

# The `newline` of a file that somebody else has opened.
UNKNOWN_NEWLINE: Final = "unknown"

# Bytes of a character, at most, where it is not one. Of an encoding with more, more is read than foreseen.
MOST_BYTES: Final = 4

# Of a cookie: how many bytes to decode from its offset on to get to its place; and the characters to drop, zero for none.
OFFSET_BITS: Final = 64
FEED_SHIFT: Final = 96
FEED_BITS: Final = 32


def _plain(encoding: str) -> str:
    name = codecs.lookup(encoding).name
    return MARKED.get(name, name)


@functools.cache
def line_ends(encoding: str, newline: str | None) -> tuple[bytes, ...]:
    """What the bytes of a line may end with, the likeliest first, for a file that `open` was given these arguments for."""
    ends = []
    for end in ("\n", "\r") if newline in (None, "", UNKNOWN_NEWLINE) else (str(newline),):
        try:
            ends.append(end.encode(_plain(encoding)))
        except (LookupError, UnicodeError):
            ends.append(end.encode())
    return tuple(ends)


@functools.cache
def counts_lines(encoding: str, newline: str | None) -> bool:
    """Whether each byte of a "\\n" ends a line. In some encodings it is a part of another character, or of none."""
    return newline in (None, "", "\n") and _plain(encoding) in ("ascii", "iso8859-1", "utf-8")


def read1(buffer: io.BufferedRandom, size: int = -1) -> bytes:
    """As the buffered object's from CPython 3.12.2 on, which writes out before it reads from the file (gh-115059)."""
    if size and os.lseek(buffer.fileno(), 0, os.SEEK_CUR) <= buffer.tell():
        buffer.flush()
    return io.BufferedRandom.read1(buffer, size)


class Collector:
    """What stands in place of the buffered object's `write` and `flush`. No reference to who makes it: files end when dropped.

    Attributes:
      data: what the text object has handed on.
      flush_due: it has flushed that, too.
    """

    __slots__ = ("binary", "data", "flush_due")

    def __init__(self, binary: BinaryFile) -> None:
        self.binary = binary
        self.data: list[bytes] = []
        self.flush_due = False

    def write(self, data: bytes) -> int:
        self.data.append(data)
        return len(data)

    def flush_later(self) -> None:
        """Where nothing follows that depends on it."""
        self.flush_due = True

    def flush_now(self) -> None:
        """Where something does: if it has to wait, the call is to be made again after that."""
        if self.data:
            raise Blocked(None)
        self.binary.try_flush()


class TextFile:
    """The methods of a builtin text file, as coroutines.

    One call at a time. Arguments are as a user gave them.

    Args:
      real: the builtin object.
      binary: the file of its buffered object.
      newline: as it was given to `open`; or `UNKNOWN_NEWLINE`.
    """

    def __init__(self, real: io.TextIOWrapper, binary: BinaryFile, newline: str | None) -> None:
        self.real = real
        self.binary = binary
        self._newline = newline
        self._can_read = binary.readable()
        self._can_write = binary.writable()
        # The builtin object may hold decoded text behind a write: CPython 3.13 drops it only where `tell` could tell of it.
        self._keeps_decoded = False
        # Not the object itself as the iterator: that would disable `tell`.
        binary.next_lines = lambda count: map(real.readline, itertools.repeat(-1, count))  # type: ignore[method-assign]
        binary.ahead.counts_lines = not self._can_write and counts_lines(real.encoding, newline)
        self._buffer: Any = real.buffer
        self._collector = collector = Collector(binary)
        self._collected = collector.data
        self._collecting = InPlace(self._buffer, {"write": collector.write, "flush": collector.flush_later})
        self._asking = InPlace(self._buffer, {"write": collector.write, "flush": collector.flush_now})

    @property
    def closed(self) -> bool:
        """Whether the builtin object is closed."""
        return bool(self.real.closed)

    # ------------------------------------------------------------------ writing

    async def _hand_over(self) -> None:
        """What was collected is the buffered object's; and flushed, if that is due."""
        collected = self._collected
        while collected:
            try:
                await completed(functools.partial(self.binary.write, collected[0]))
            except OSError:
                collected[0] = collected[0][self.binary.written :]
                self._collector.flush_due = False
                raise
            del collected[0]
        if self._collector.flush_due:
            self._collector.flush_due = False
            await self.binary.flush()

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        """A method that may write, before anything else that it does."""
        if self._collected:
            await self._hand_over()
        try:
            with self._collecting:
                return method(*args)
        finally:
            if self._collected or self._collector.flush_due:
                await self._hand_over()

    async def _call_flushed(self, method: Callable[..., Any], *args: Any) -> Any:
        """A method that flushes before it does anything else, and needs to know where the file is then."""
        if not self._can_write:
            return method(*args)
        while True:
            if self._collected:
                await self._hand_over()
            try:
                with self._asking:
                    return method(*args)
            except Blocked:
                pass
            await self._hand_over()
            await self.binary.flush()

    async def write(self, text: Any) -> Any:
        """Writes all of `text`, now or at the next flush; the number of characters."""
        if self._collected:
            await self._hand_over()
        with self._collecting:
            count = self.real.write(text)
        if self._collected or self._collector.flush_due:
            try:
                # It is taken, and cannot be given back: this write has happened.
                await completed(self._hand_over)
            except OSError:
                self._drop(text)
                raise
        return count

    def _drop(self, text: str) -> None:
        """The file could not take this text, nor what was collected before it, which alone is kept."""
        with self._collecting:
            self.real.flush()  # a part of it may be held back still
        self._collector.flush_due = False
        data = b"".join(self._collected)
        self._collected.clear()
        plain = _plain(self.real.encoding)
        if plain not in STATELESS or self._newline == UNKNOWN_NEWLINE:
            return  # it cannot be told where it begins: as the builtin
        if self._newline not in (None, "", "\n"):
            text = text.replace("\n", str(self._newline))
        kept = data[: max(0, len(data) - len(text.encode(plain, self.real.errors or "strict")))]
        if kept:
            self._collected.append(kept)

    def forget(self) -> None:
        """What could not be written is lost."""
        self._collected.clear()

    def sync(self) -> None:
        """The builtin object has everything: what could not be written, too, as far as it takes it."""
        if self._collected and not self._buffer.closed:
            data = b"".join(self._collected)
            self._collected.clear()
            with contextlib.suppress(OSError):
                self._buffer.write(data)

    async def writelines(self, lines: Iterable[Any]) -> None:
        """`write` for each, without line ends added."""
        for line in lines:
            await self.write(line)

    async def flush(self) -> None:
        """Everything written is in the file."""
        if self._can_write:
            await self._call(self.real.flush)
        else:
            self.real.flush()

    async def truncate(self, size: Any = None) -> Any:
        """As the builtin: `size` in bytes, by default the position of the binary file, not that of the text."""
        await self.flush()
        return await self.binary.truncate(size)

    # ------------------------------------------------------------------ positions

    async def tell(self) -> Any:
        """A cookie for `seek`."""
        return await self._call_flushed(self.real.tell)

    async def seek(self, cookie: Any, whence: Any = os.SEEK_SET) -> Any:
        """Go to what `tell` answered, to the beginning (0) or to the end (0, os.SEEK_END); the new position."""
        if whence == os.SEEK_CUR and type(whence) is int and type(cookie) is int and cookie == 0:
            cookie, whence = await self.tell(), os.SEEK_SET
        if type(cookie) is int and cookie >> OFFSET_BITS > 0 and whence == os.SEEK_SET:
            if self._can_write:
                await self._call_flushed(self.real.flush)
            feed = cookie >> FEED_SHIFT & ((1 << FEED_BITS) - 1)
            start = cookie & ((1 << OFFSET_BITS) - 1)
            if feed and start < 1 << (OFFSET_BITS - 1):
                await self.binary.have(feed + -feed % self.binary.size, start)
        return await self._call_flushed(self.real.seek, cookie, whence)

    # ------------------------------------------------------------------ reading

    async def _before_reading(self) -> bool:
        """What was written is in the file, where what is read next is read from it.

        False where that depends on how much decoded text the object holds, which only itself can tell: see `_by_thread`.
        """
        ahead = self.binary.ahead
        ahead.chunk = self.real._CHUNK_SIZE  # type: ignore[attr-defined]
        ahead.by_lines(False)
        if self._can_write:
            await self._call(self.real.read, 0)
            if self.binary.held() <= 0:
                if not self._keeps_decoded:
                    await self.binary.flush()
                else:
                    try:
                        self.binary.try_flush()
                    except Blocked:
                        return False
        return True

    async def _by_thread(self, method: Callable[..., Any], *args: Any) -> Any:
        """A method that reads, and writes out what the buffered object holds back if it gets to read from the file."""
        self.binary.ahead.forget()
        with InPlace(self._buffer, {"read1": functools.partial(read1, self._buffer)}):
            return await trio.to_thread.run_sync(functools.partial(method, *args))

    async def read(self, size: Any = -1) -> Any:
        """At most `size` characters, fewer only at the end; everything if it is negative or None."""
        count = size_of(size)
        if count is None or count == 0 or not self._can_read:
            return await self._call(self.real.read, size) if self._can_write else self.real.read(size)
        if not await self._before_reading():
            return await self._by_thread(self.real.read, size)
        if count < 0:
            await self.binary.have_all()
        else:
            await self._have_characters(count)
        return self.real.read(size)

    async def _have_characters(self, count: int) -> None:
        """Have as many bytes at hand as so many characters can be."""
        ahead = self.binary.ahead
        size = min(count + 2 * ahead.chunk, sys.maxsize)
        await self.binary.have(size)
        if not ahead.is_ascii():
            await self.binary.have(min(MOST_BYTES * count + 2 * ahead.chunk, sys.maxsize))

    async def readline(self, size: Any = -1) -> Any:
        """One line, or its first `size` characters; "" at the end."""
        ahead = self.binary.ahead
        ahead.chunk = self.real._CHUNK_SIZE  # type: ignore[attr-defined]
        if size == -1:
            for line in self.binary.ready:
                return line
            if self.binary.has_line():
                return self.binary.line_of(self.real.readline)
        limit = size_of(size)
        if size is None or limit is None or not self._can_read:
            return await self._call(self.real.readline, size) if self._can_write else self.real.readline(size)
        if not await self._before_reading():
            return await self._by_thread(self.real.readline, size)
        await self.binary.have_line(most=MOST_BYTES * limit + ahead.chunk if limit >= 0 else sys.maxsize)
        return self.binary.line_of(self.real.readline, size)

    async def readlines(self, hint: Any = -1) -> Any:
        """All the lines that are left, or the first ones with more than `hint` characters together."""
        most = size_of(hint)
        if most is None or not self._can_read:
            return await self._call(self.real.readlines, hint) if self._can_write else self.real.readlines(hint)
        known = await self._before_reading()
        self._keeps_decoded = self._can_write  # it disables telling, and may end in the middle
        if not known:
            return await self._by_thread(self.real.readlines, hint)
        if most <= 0:
            await self.binary.have_all()
        else:
            await self._have_characters(most)
            await self.binary.have_line(most if self.binary.ahead.is_ascii() else MOST_BYTES * most)
        return self.real.readlines(hint)
