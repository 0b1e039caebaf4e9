"""Layer 3, what has been read of a file before its builtin object asks for it.

Knows a descriptor and what lines may end with; knows nothing of who reads ahead (`binary`), nor of text.

The builtin object reads a file by `readinto` and `readall` of its raw object. Those of a `ReadAhead` stand in their place
(`InPlace`), and answer from memory what was read from the file's position on. The position moves as if it were read now.

Bytes that are kept from one call to the next must still be those of the file when they are handed out, because the builtin would
read them only then. They are, where the file's size and ctime are still the ones that it had before they were read, and the
ctime was at least `SETTLED` old then: whatever changes the file gives it another one, however coarse the filesystem's clock
(two seconds on VFAT). Of a file that has changed a moment ago nothing is kept. Who writes to a file through a mapping need
not change its ctime: that is seen later, by up to `MAX_READ_AHEAD` bytes.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from typing import Any, Final

from .._ring.ring import ffi, lib

# Nanoseconds for which a file must not have changed if bytes of it are to be kept.
SETTLED: Final = 3_000_000_000

# Bytes that are read at once, at most, where nobody has asked for so many yet.
MAX_READ_AHEAD: Final = 128 * 1024


class ReadAhead:
    """Bytes read from a descriptor's position on.

    Args:
      fd: the descriptor, of a regular file whose position nobody else moves.
      chunk: the bytes that the builtin object asks for at a time.
      ends: what a line may end with, the likeliest first.

    Attributes:
      state: what the file tells of itself; `seen` of it: size, ctime, and whether it has settled, when `wanted` was last called.
      offset: from where on to read what is `wanted`.
      kept: the bytes at hand may be handed out by later calls.
      known: false if the file did not tell where its position and its end are.
      line_at_hand: where lines are what is read at present, one can be had without waiting: its end, or that of the file, is
        among bytes that are kept.
      buffered: the builtin object keeps what it does not answer of the bytes that it is handed.
      counts_lines: and only reads, and "\n" in those is the end of a line whatever stands before it.
      lines: then, where lines are what is read at present, how many ends of lines were in what it was last handed of bytes that
        are not kept.
    """

    __slots__ = (
        "_ascii", "_by_lines", "_changed", "_data", "_end", "_last", "_last_line", "_offset", "_size", "_start", "_to_the_end",
        "buffered", "chunk", "counts_lines", "ends", "fd", "kept", "known", "line_at_hand", "lines", "offset", "seen", "state",
    )  # fmt: skip

    def __init__(self, fd: int, chunk: int, ends: tuple[bytes, ...]) -> None:
        self.fd = fd
        self.chunk = chunk
        self.ends = ends
        self.state: Any = None  # until it is asked
        self.buffered = self.counts_lines = False
        self.lines = 0
        self._by_lines = False
        self.offset = self._last = 0
        self.seen = (0, 0, False)
        self.forget()

    def forget(self) -> None:
        """Nothing is at hand."""
        self._data = b""
        self._start = self._end = 0  # of the bytes at hand, in _data
        self._offset = -1  # of the first of them, in the file
        self._ascii: bool | None = None  # all of _data, if anybody has asked
        self._last_line = -1  # where one begins in _data, at the latest, if it is to be at hand; -1 where nobody knows
        self._to_the_end = False
        self.kept = self.line_at_hand = False
        self.known = True
        self._size, self._changed = -1, 0  # of the file, where bytes are kept

    def by_lines(self, reading: bool) -> None:
        """Lines are what is read from now on, or are not."""
        if reading is not self._by_lines:
            self._by_lines = reading
            if reading:
                self._find_line()
            else:
                self.line_at_hand = False
                self.lines = 0

    def begin(self) -> None:
        """A call begins: what is not to be kept is forgotten."""
        if not self.kept:
            self.forget()

    # ------------------------------------------------------------------ what is there

    @property
    def held(self) -> int:
        """How many bytes are at hand."""
        return self._end - self._start

    def has(self, size: int) -> bool:
        """Whether `size` bytes are at hand, or all up to the end of the file."""
        return self._to_the_end or self._end - self._start >= size

    def has_line(self, least: int = 0) -> bool:
        """Whether everything is at hand that the builtin object asks for until it sees a line end behind `least` bytes."""
        if self._to_the_end:
            return True
        for end in self.ends:
            found = self._data.find(end, self._start + least, self._end)
            if found >= 0:
                # It asks for whole chunks; and if one ends with a "\r", it looks for the "\n" of a "\r\n" in the next.
                size = found + len(end) - self._start
                beyond = -size % self.chunk
                if beyond == 0 and end.strip(b"\0") == b"\r":
                    beyond = self.chunk
                return size + beyond <= self._end - self._start
        return False

    def is_ascii(self) -> bool:
        """Whether all the bytes at hand are."""
        if self._ascii is None:
            self._ascii = self._data.isascii()  # bytes behind the last one, of a read that was cut short, are zero
        return self._ascii or self._data[self._start : self._end].isascii()

    def _find_line(self) -> None:
        """Whether a line is at hand, and up to where that will be so."""
        self._last_line = -1
        if not self.kept or not self.buffered:
            self.line_at_hand = False
        elif self._to_the_end:
            self.line_at_hand = True
            self._last_line = len(self._data)
        else:
            self.line_at_hand = self.has_line()
            end = self.ends[0]
            if self.line_at_hand and not end.startswith(b"\r"):
                whole = self._end - (self._end - self._start) % self.chunk
                self._last_line = self._data.rfind(end, self._start, whole)

    # ------------------------------------------------------------------ reading ahead

    def wanted(self, size: int, position: int | None) -> int:
        """How many bytes to read, from `offset` on, to have `size` from the position on; 0 where they are at hand, or there are
        none.

        As many as are wanted, and more if a file that does not change is read in order.
        """
        state = self.state
        if state is None:
            state = self.state = ffi.new("tu_file_state *")
        if lib.tu_file_facts(self.fd, state) < 0:
            self.forget()
            self._to_the_end = True
            self.known = False
            return 0
        if position is None:
            position = int(state.position)
        end, changed = int(state.size), int(state.changed)
        if self.kept and (self._size != end or self._changed != changed):
            self.forget()
        in_order = self._offset == position
        if in_order and self.has(size):
            return 0
        settled = bool(state.now - changed > SETTLED)
        self.seen = end, changed, settled
        if end <= position:
            self.put(b"", 0, 0, position)
            return 0
        if in_order and settled and size < MAX_READ_AHEAD // 2:
            size = max(size, min(4 * self._last, MAX_READ_AHEAD))
        self.offset = position
        return min(size, end - position)

    def put(self, data: bytes, got: int, asked: int, offset: int) -> None:
        """What was read as `wanted` said: `data[:got]` from `offset` on, fewer bytes than were asked for where the file ended."""
        end, changed, settled = self.seen
        self._data = data
        self._start = 0
        self._end = self._last = got
        self._offset = offset
        self._to_the_end = got < asked or offset + got >= end
        self.kept = settled
        self._size = end if settled else -1
        self._changed = changed
        self._ascii = None
        if self._by_lines:
            self._find_line()

    # ------------------------------------------------------------------ handing out

    def _advance(self, size: int) -> int:
        """How many of the bytes at hand read(2) of `size` bytes would answer now; -1 if that is not known."""
        count = self._end - self._start
        if count > size:
            count = size
        elif count < size and not self._to_the_end:
            return -1
        if lib.tu_advance(self.fd, self._offset, count, self._size, self._changed) != 1:
            self.forget()
            return -1
        if self._by_lines and self.counts_lines and not self.kept:  # of bytes that are kept it is known without
            self.lines = self._data.count(b"\n", self._start, self._start + count)
        self._start += count
        self._offset += count
        if self._start == self._end:
            self._data = b""
            self._start = self._end = 0
            self._last_line = -1
        if self._by_lines and (self._start > self._last_line or count % self.chunk):
            self._find_line()
        return count

    def peek(self) -> bytes:
        """All the bytes at hand."""
        return self._data[self._start : self._end]

    def take(self, size: int) -> bytes | None:
        """What read(2) of `size` bytes would answer; None if that is not known. The file's position moves."""
        data, start = self._data, self._start
        count = self._advance(size)
        if count < 0:
            return None
        return data if count == len(data) else data[start : start + count]

    def readinto(self, memory: Any) -> int:
        """In place of FileIO.readinto."""
        data, start = self._data, self._start
        count = self._advance(memory.nbytes)
        if count >= 0:
            memory[:count] = memoryview(data)[start : start + count]
            return count
        if lib.tu_remaining(self.fd) == 0:
            return 0
        # More than was foreseen, or the file has changed in this moment: a read that the loop waits for.
        return os.readv(self.fd, (memory,))

    def readall(self) -> bytes:
        """In place of FileIO.readall."""
        data = self.take(self._end - self._start) if self._to_the_end else None
        if data is not None:
            return data
        parts = []
        while part := os.read(self.fd, max(lib.tu_remaining(self.fd), 0) + 1):
            parts.append(part)
        return b"".join(parts)


class InPlace:
    """`with InPlace(owner, {name: function})`: what stands in place of methods of a builtin object meanwhile.

    Its own code, in C, finds them there as well, because a method is no data descriptor.
    """

    __slots__ = ("_attributes", "_functions")

    def __init__(self, owner: Any, functions: dict[str, Callable[..., Any]]) -> None:
        self._attributes: dict[str, Any] = owner.__dict__
        self._functions = functions

    def __enter__(self) -> None:
        self._attributes.update(self._functions)

    def __exit__(self, *_: object) -> None:
        for name in self._functions:
            self._attributes.pop(name, None)


@functools.cache
def in_place_works() -> bool:
    """Whether this interpreter's buffered objects look for the methods of their raw object as they do in CPython 3.10 to 3.15."""
    called = []

    def readinto(memory: Any) -> int:
        called.append("readinto")
        return 0

    def read1(size: int) -> bytes:
        called.append("read1")
        return b"x"

    with open(os.devnull, "rb") as file:
        assert type(file.raw) is io.FileIO
        with InPlace(file.raw, {"readinto": readinto}):
            file.read(1)
        text = io.TextIOWrapper(file, "utf-8")  # whose codec is always there
        with InPlace(file, {"read1": read1}):
            text.read(1)
        text.detach()
    return called == ["readinto", "read1"]
