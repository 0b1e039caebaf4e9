"""Layer 3, text: what `io.TextIOWrapper` does, as coroutines over an asynchronous binary file.

Knows encodings, newlines and position cookies; knows nothing of rings, descriptors or how the bytes come and go. The
binary file below is whatever has the methods of `Buffer`, so all of this is tested over one that never suspends.

Theory of operation
===================
Bytes become text in pieces, as large as the builtin's, so that a byte that cannot be decoded is reported after the same
text as there; or in larger ones where every byte can be decoded. What has been decoded and not been handed out is in
exactly one of two forms:

    unsplit      `_text` from `_at` on, then `_parts`
    split        the lines left in the iterator `_lines`, then `_carry`: the parts of a line whose end has not been seen

A piece is split into lines once, by code in C, and handed out from an iterator. Every other operation folds the lines
that are left into `_text` first.

A position of a text file is a cookie: a byte offset where the decoder held nothing back, the decoder's flags there, and
how much to decode and to skip from there. `_segments` therefore keeps the bytes of each piece of which text is still to be
handed out, with the state of the decoder before it. The cookie is sought only when somebody asks; the layout is the one of
CPython's implementation in C, so the builtin takes our cookies and we take the builtin's.

Nothing is lost where an await raises: text is taken out of this state only when nothing can fail any more, text to
write is taken in only when it will be written, and one that was taken in reports success.

One call at a time, save for the plain attributes: who owns the object sees to that.
"""

from __future__ import annotations

import codecs
import io
import operator
import os
from _multibytecodec import MultibyteIncrementalDecoder
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, NoReturn, Protocol, cast

import trio

# The builtin's, for pieces of text and for writes it collects. A file that is read and written has to keep to it for
# reads as well: a write follows what has been read of the binary file, not what has been handed out as text.
CHUNK_SIZE: Final = 8192

# Bytes decoded at once for `async for`: lines enough to forget what a piece costs, within a fraction of a millisecond.
AT_ONCE: Final = 64 * 1024

# Bytes asked for at once where only reading is possible.
READ_AHEAD: Final = 128 * 1024

CLOSED_MESSAGE: Final = "I/O operation on closed file."

# Encodings whose encoder has no state and writes no byte order mark: `str.encode` does it.
STATELESS: Final = frozenset(
    ("ascii", "iso8859-1", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"),
)

# A cookie's parts: an offset of 64 bits, three ints of 32 and a flag of 8, little-endian.
COOKIE_BYTES: Final = 21
FLAGS_SHIFT: Final = 64
FEED_SHIFT: Final = 96
SKIP_SHIFT: Final = 128
EOF_SHIFT: Final = 160


class Buffer(Protocol):
    """The binary file below, as far as text needs it.

    A method that raises, a cancel included, has had no effect: what a read had got stays to be read, and of the data of
    a write nothing was taken; or, where an OSError has the attribute `characters_written`, so many bytes.
    """

    @property
    def closed(self) -> bool: ...
    def readable(self) -> bool: ...
    def writable(self) -> bool: ...
    def seekable(self) -> bool: ...

    async def read(self, size: int = -1, /) -> bytes:
        """`size` bytes, fewer only at the end; everything if it is negative."""

    async def read1(self, size: int, /) -> bytes:
        """At most `size` bytes from at most one read of the file; b"" at its end."""

    async def write(self, data: bytes, /) -> int:
        """Buffers or writes everything."""

    async def flush(self) -> None: ...
    async def seek(self, position: int, whence: int = 0, /) -> int: ...
    async def tell(self) -> int: ...
    async def truncate(self, size: int | None = None, /) -> int: ...

    def redeliver(self, error: BaseException, /) -> None:
        """A call that has happened returns in place of this `Cancelled` or KeyboardInterrupt; the next checkpoint raises."""


class Cookie(NamedTuple):
    """A position: go to `start`, set the decoder to `flags`, decode `feed` bytes, drop the first `skip` characters."""

    start: int
    flags: int = 0
    feed: int = 0
    skip: int = 0
    eof: int = 0

    def pack(self) -> int:
        """The int that `tell` answers; just `start` where that is all."""
        return (
            self.start
            | (self.flags & 0xFFFFFFFF) << FLAGS_SHIFT
            | self.feed << FEED_SHIFT
            | self.skip << SKIP_SHIFT
            | self.eof << EOF_SHIFT
        )

    @classmethod
    def unpack(cls, cookie: int) -> Cookie:
        """Raises OverflowError, as the builtin, for what no cookie can be."""
        parts = cookie.to_bytes(COOKIE_BYTES, "little")
        return cls(
            int.from_bytes(parts[0:8], "little", signed=True),
            int.from_bytes(parts[8:12], "little", signed=True),
            int.from_bytes(parts[12:16], "little", signed=True),
            int.from_bytes(parts[16:20], "little", signed=True),
            parts[20],
        )


class Segment(NamedTuple):
    """What one piece of text came from: the decoder's flags and held-back bytes before it, and the bytes fed."""

    characters: int
    flags: int
    held: bytes
    chunk: bytes


def _split_lf(text: str, newline: str = "\n") -> list[str]:
    lines: list[str] = []
    at = 0
    while at < len(text):
        # In passages: StringIO takes four bytes for a character.
        end = text.find("\n", at + CHUNK_SIZE) + 1 or len(text)
        lines += io.StringIO(text[at:end], newline=newline).readlines()
        at = end
    return lines


def _split_universal(text: str) -> list[str]:
    return _split_lf(text, "")


def _split_at(end: str) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        lines = text.split(end)
        last = lines.pop()
        lines = [line + end for line in lines]
        if last:
            lines.append(last)
        return lines

    return split


def _integer_or_none(value: object) -> int:
    """-1 for None."""
    try:
        return -1 if value is None else operator.index(cast(int, value))
    except TypeError:
        raise TypeError(f"argument should be integer or None, not '{type(value).__name__}'") from None


def _unsupported(message: str) -> NoReturn:
    raise io.UnsupportedOperation(message)


NO_LINES: Final[Iterator[str]] = iter(())


class TextFile:
    """A text file over `buffer`, an open binary file; the methods are those of `io.TextIOWrapper`, as coroutines.

    Arguments:
      encoding, errors, newline, line_buffering, write_through: as of the builtin, which has checked them already.
      at_start: the file's position is 0: the encoder writes its byte order mark, if it has one.
      chunk_size, read_ahead: bytes decoded, and read, at once.

    Attributes:
      ready: an iterator over the lines that `async for` can have without waiting: take from it, and at its end await
        `next_line`.
    """

    def __init__(
        self,
        buffer: Buffer,
        *,
        encoding: str,
        errors: str = "strict",
        newline: str | None = None,
        line_buffering: bool = False,
        write_through: bool = False,
        at_start: bool = True,
        chunk_size: int = CHUNK_SIZE,
        read_ahead: int = READ_AHEAD,
    ) -> None:
        self.buffer = buffer
        self.encoding = encoding
        self.errors = errors
        self.line_buffering = line_buffering
        self.write_through = write_through
        self._newline = newline
        self._chunk_size = chunk_size
        self._seekable = buffer.seekable()
        self._telling = self._seekable

        self._codec = codecs.lookup(encoding)
        self._multibyte = issubclass(cast(type, self._codec.incrementaldecoder), MultibyteIncrementalDecoder)
        self._decoder: Any = None
        self._probe: Any = None
        self._read_ahead = 0 if buffer.writable() else read_ahead
        if buffer.readable():
            self._decoder = self._new_decoder()
        self._split = (
            _split_universal if newline == "" else _split_lf if newline in (None, "\n") else _split_at(newline)
        )
        self._raw = b""  # read and not yet decoded, from _raw_at on
        self._raw_at = 0
        self._segments: deque[Segment] = deque()
        self._characters = 0  # of all segments
        self._bytes_per_character = 0.0
        self._text = ""
        self._at = 0
        self._parts: list[str] = []
        self._list: list[str] = []
        self._lines = NO_LINES
        self._carry: list[str] = []
        self.ready = NO_LINES
        self._owed: Cookie | None = None  # a seek's second half, if it could not be done yet

        self._encoder: Any = None
        self._encode: Callable[[str], bytes] | None = None
        if buffer.writable():
            if self._codec.name in STATELESS:
                self._encode = self._encode_stateless
            else:
                assert self._codec.incrementalencoder is not None
                self._encoder = self._codec.incrementalencoder(errors)
                self._encode = self._encoder.encode
                if not at_start:
                    self._encoder.setstate(0)
        # "" means no translation, and "\n" is what a line ends with anyway.
        end = os.linesep if newline is None else newline
        self._line_end = "" if end == "\n" else end
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    # ------------------------------------------------------------------ attributes

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The line ends seen so far, where they are looked for at all."""
        newlines: str | tuple[str, ...] | None = getattr(self._decoder, "newlines", None)
        return newlines

    def _new_decoder(self) -> Any:
        assert self._codec.incrementaldecoder is not None
        decoder: Any = self._codec.incrementaldecoder(self.errors)
        if not self._newline:
            decoder = io.IncrementalNewlineDecoder(decoder, translate=self._newline is None)
        return decoder

    def _check_open(self) -> None:
        if self.buffer.closed:
            raise ValueError(CLOSED_MESSAGE)

    # ------------------------------------------------------------------ decoded text

    def _lines_left(self) -> list[str]:
        left = operator.length_hint(self._lines)
        return self._list[len(self._list) - left :] if left else []

    def _unread(self) -> int:
        """Characters decoded and not handed out."""
        parts = (*self._lines_left(), *self._carry, *self._parts)
        return sum(map(len, parts)) + len(self._text) - self._at

    def _fold(self) -> str:
        """All the decoded text, unsplit from now on."""
        parts = [*self._lines_left(), *self._carry, self._text[self._at :], *self._parts]
        text = "".join(parts)
        self._put(text)
        return text

    def _put(self, text: str, at: int = 0) -> None:
        """This is all the decoded text there is."""
        self._text = text
        self._at = at
        self._parts.clear()
        self._carry.clear()
        self._list = []
        self._lines = self.ready = NO_LINES

    def _put_lines(self, piece: str) -> None:
        """More text, where there are no lines left and no unsplit text."""
        carry = self._carry
        if carry and self._newline == "\r\n" and carry[-1].endswith("\r"):
            piece = carry.pop() + piece
        lines = self._split(piece)
        rest = ""
        if lines and not self._is_whole(lines[-1]):
            rest = lines.pop()
        if lines and carry:
            lines[0] = "".join(carry) + lines[0]
            carry.clear()
        if rest:
            carry.append(rest)
        self._list = lines
        self._lines = iter(lines)

    def _is_whole(self, line: str) -> bool:
        return line.endswith(self._newline or ("\n" if self._newline is None else ("\n", "\r")))

    def _forget(self) -> None:
        """No decoded text, and nothing known of where it came from."""
        self._put("")
        self._raw = b""
        self._raw_at = 0
        self._segments.clear()
        self._characters = 0

    def _trim(self) -> None:
        """Drop the segments whose text has all been handed out; the last stays, for the decoder's state at its end."""
        segments = self._segments
        if len(segments) > 1:
            unread = self._unread()
            while len(segments) > 1 and self._characters - segments[0].characters >= unread:
                self._characters -= segments.popleft().characters

    async def _more(self, hint: int = 0, at_once: int = 0) -> str | None:
        """The next piece of text, maybe empty; None at the end. The caller keeps it where nothing can lose it.

        Arguments:
          hint: characters wanted, if it is more than one piece has.
          at_once: decode so many bytes, if they have been read already and can be decoded.
        """
        size = max(self._chunk_size, int(hint * max(self._bytes_per_character, 1.0)))
        if self._raw_at == len(self._raw):
            self._raw = await self.buffer.read1(max(size, self._read_ahead))
            self._raw_at = 0
        if size < at_once and size < len(self._raw) - self._raw_at:
            state = self._decoder.getstate()
            try:
                return self._decode(at_once)
            except UnicodeError:
                self._decoder.setstate(state)
        try:
            return self._decode(size)
        except Exception:
            # As the builtin: the bytes are gone, and so is what this call had so far.
            self._raw_at = min(self._raw_at + size, len(self._raw))
            self._put("")
            self._segments.clear()
            self._characters = 0
            raise

    def _decode(self, size: int) -> str | None:
        """At most `size` of the bytes read, as text."""
        decoder = self._decoder
        chunk = self._raw[self._raw_at : self._raw_at + size]
        held, flags = decoder.getstate() if self._seekable else (b"", 0)
        text: str = decoder.decode(chunk, not chunk)
        self._raw_at += len(chunk)
        if self._seekable and (chunk or text or not self._segments):
            self._segments.append(Segment(len(text), flags, held, chunk))
            self._characters += len(text)
        self._bytes_per_character = len(chunk) / len(text) if text else 0.0
        return text if chunk or text else None

    async def _before_reading(self) -> None:
        self._check_open()
        if self._decoder is None:
            _unsupported("not readable")
        if self._owed is not None:
            await self._settle()
        if self._pending:
            await self._drain()
        self._trim()

    # ------------------------------------------------------------------ reading

    async def read(self, size: int | None = -1) -> str:
        """At most `size` characters, fewer only at the end; everything if it is negative or None."""
        size = _integer_or_none(size)
        await self._before_reading()
        if size < 0:
            data = await self._rest()
            self._raw = b""
            self._raw_at = 0
            return self._all_and(self._decoder.decode(data, True))
        if self._lines is not NO_LINES or self._carry or self._parts:
            self._fold()
        end = self._at + size
        if end > len(self._text):
            await self._gather(size)
            end = size
        start, self._at = self._at, min(end, len(self._text))
        return self._text[start:end]

    async def _rest(self) -> bytes:
        """All the bytes that have not been decoded."""
        data = await self.buffer.read()
        return self._raw[self._raw_at :] + data if self._raw_at < len(self._raw) else data

    def _all_and(self, text: str) -> str:
        """All that was decoded before, and this, the end of the file."""
        before = self._fold()
        self._forget()
        return before + text if before else text

    async def _gather(self, size: int) -> None:
        """Have `size` characters unsplit, or all there are."""
        have = len(self._fold())
        while have < size:
            piece = await self._more(size - have)
            if piece is None:
                break
            self._parts.append(piece)
            have += len(piece)
        self._fold()

    async def readline(self, size: int = -1, /) -> str:
        """One line, or its first `size` characters; "" at the end."""
        limit = operator.index(size)
        await self._before_reading()
        if limit >= 0:
            return await self._line_within(limit)
        line = await self._line()
        if not self._is_whole(line):
            self._forget()  # it was the end of the file, so the position is the binary file's
        return line

    async def _line(self, at_once: int = 0) -> str:
        """A line, without an end only at the end of the file."""
        for line in self._lines:
            return line
        if self._at < len(self._text) or self._parts:
            text = self._fold()
            self._put("")
            self._put_lines(text)
        while True:
            for line in self._lines:
                return line
            piece = await self._more(0, at_once)
            if piece is None:
                line = "".join(self._carry)
                self._carry.clear()
                return line
            self._put_lines(piece)

    async def _line_within(self, limit: int) -> str:
        text = self._fold()
        self._put("")
        self._put_lines(text)
        while True:
            line = next(self._lines, None)
            if line is None:
                # As the builtin, which looks behind a "\r" for the rest of a line end before it looks at the limit.
                half = self._newline == "\r\n" and "".join(self._carry[-1:]).endswith("\r")
                if sum(map(len, self._carry)) - half < limit:
                    piece = await self._more()
                    if piece is not None:
                        self._put_lines(piece)
                        continue
                    line = "".join(self._carry)
                    self._forget()
                    return line
                line = self._fold()
                self._put("")
            if len(line) > limit:
                self._put(line[limit:] + self._fold())
            return line[:limit]

    async def next_line(self) -> str:
        """`readline`, with more lines in `ready`: the next one for `async for`, once `ready` has come to its end.

        The builtin's iterator disables `tell`; the `async for` of Trio and of AnyIO does not, since it calls `readline`.
        """
        await self._before_reading()
        line = await self._line(AT_ONCE)
        if self._is_whole(line):
            self.ready = self._lines
        else:
            self._forget()
        return line

    async def readlines(self, hint: int | None = -1, /) -> list[str]:
        """All the lines that are left, or the first ones with more than `hint` characters together."""
        most = _integer_or_none(hint)
        await self._before_reading()
        if most <= 0:
            self._raw = await self._rest()
            self._raw_at = 0
            state = self._decoder.getstate()
            try:
                text = self._decoder.decode(self._raw, True)
            except UnicodeError:
                # Piece by piece, below, it is the builtin's error, with the builtin's position in it.
                self._decoder.setstate(state)
            else:
                self._telling = self._seekable
                return self._split(self._all_and(text))
        self._telling = False
        lines: list[str] = []
        total = 0
        try:
            while line := await self._line():
                lines.append(line)
                total += len(line)
                if 0 < most < total:
                    return lines
        except UnicodeError:
            raise  # `_more` has dropped what was there
        except BaseException:
            self._put("".join(lines) + self._fold())
            raise
        self._forget()
        self._telling = self._seekable
        return lines

    # ------------------------------------------------------------------ writing

    def _encode_stateless(self, text: str) -> bytes:
        return text.encode(self.encoding, self.errors)

    async def write(self, text: str, /) -> int:
        """Writes all of `text`, now or at the next flush; the number of characters."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {'None' if text is None else type(text).__name__}")
        self._check_open()
        encode = self._encode
        if encode is None:
            _unsupported("not writable")
        flush = self.line_buffering and ("\n" in text or "\r" in text)
        state = self._encoder.getstate() if self._encoder is not None else 0
        data = encode(text.replace("\n", self._line_end) if self._line_end else text)
        taken = False
        try:
            if self._owed is not None:
                await self._settle()
            if self._pending and self._pending_bytes + len(data) > self._chunk_size:
                await self._drain()
            self._pending.append(data)
            self._pending_bytes += len(data)
            taken = True
            if self.write_through or flush or self._pending_bytes >= self._chunk_size:
                await self._drain()
        except BaseException:
            if taken:
                # Of this text, nothing is written any more; what of it is in the file can only be told by an error.
                rest = self.take_pending()
                self._put_pending(rest[: max(0, len(rest) - len(data))])
            if self._encoder is not None:
                self._encoder.setstate(state)
            raise
        if self._decoder is not None:
            self._forget()
            self._decoder.reset()
        if flush:
            try:
                await self.buffer.flush()
            except (trio.Cancelled, KeyboardInterrupt) as error:
                # The text has been taken and cannot be given back, so this write did happen: say so. It is in the
                # file at the next flush; the cancel is seen at the next checkpoint.
                self.buffer.redeliver(error)
                return len(text)
        return len(text)

    async def writelines(self, lines: Iterable[str], /) -> None:
        """`write` for each, without line ends added."""
        self._check_open()
        for line in lines:
            await self.write(line)

    async def _drain(self) -> None:
        """Hand what `write` has collected to the buffer."""
        if self._pending:
            data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
            try:
                await self.buffer.write(data)
            except OSError as error:
                if taken := getattr(error, "characters_written", 0):
                    self._put_pending(data[taken:])
                raise
            self._put_pending(b"")

    def _put_pending(self, data: bytes) -> None:
        """This is all that is pending."""
        self._pending = [data] if data else []
        self._pending_bytes = len(data)

    def take_pending(self) -> bytes:
        """What `write` has collected: whoever calls this writes it, before anything else."""
        data = b"".join(self._pending)
        self._put_pending(b"")
        return data

    async def flush(self) -> None:
        """Everything written is in the file."""
        self._check_open()
        self._telling = self._seekable
        await self._drain()
        await self.buffer.flush()

    async def truncate(self, size: int | None = None, /) -> int:
        """As the builtin: `size` in bytes, by default the position of the binary file, not that of the text."""
        await self.flush()
        if self._owed is not None:
            await self._settle()
        return await self.buffer.truncate(size)

    # ------------------------------------------------------------------ positions

    async def tell(self) -> int:
        """A cookie for `seek`.

        Raises:
          UnsupportedOperation: the file has no position.
          OSError: after a `readlines` that has left lines, as with the builtin, which iterates there.
        """
        self._check_open()
        if not self._seekable:
            _unsupported("underlying stream is not seekable")
        if not self._telling:
            raise OSError("telling position disabled by next() call")
        if self._owed is not None:
            await self._settle()
        await self._drain()
        await self.buffer.flush()
        return self.cookie(await self.buffer.tell())

    def cookie(self, position: int) -> int:
        """The cookie of where the text stands, given the binary file's position; with nothing pending."""
        if self._owed is not None:
            return self._owed.pack()
        position -= len(self._raw) - self._raw_at
        segments = self._segments
        if not segments:
            return position
        self._trim()
        first = segments[0]
        skip = self._characters - self._unread()
        start = position - sum(len(segment.chunk) for segment in segments) - len(first.held)
        if skip == 0:
            return Cookie(start, first.flags).pack()
        held, flags = self._decoder.getstate()
        if skip == self._characters and flags == first.flags:
            return Cookie(position - len(held), flags).pack()
        return self._search(start, first, skip).pack()

    def _search(self, start: int, segment: Segment, skip: int) -> Cookie:
        """The cookie of the place `skip` characters, at least one, into the segment's text."""
        if self._probe is None:
            self._probe = self._new_decoder()
        probe = self._probe
        data = segment.held + segment.chunk

        def decode(size: int) -> int:
            probe.setstate((b"", segment.flags))
            return len(probe.decode(data[:size]))

        # The least number of bytes that give `skip` characters, between `low` and `high`. Guess that what is between
        # has the same number of bytes for each character; every other time take the middle, since that ends.
        low, low_characters = 0, 0
        high, high_characters = len(data), decode(len(data))
        if high_characters < skip:
            low, low_characters = high, high_characters
        halve = False
        while high - low > 1:
            if halve:
                size = (low + high) // 2
            else:
                size = low + (skip - low_characters) * (high - low) // (high_characters - low_characters)
                size = min(max(size, low + 1), high - 1)
            characters = decode(size)
            if characters < skip:
                halve = not halve and size != high - 1
                low, low_characters = size, characters
            else:
                halve = not halve and characters != skip
                high, high_characters = size, characters
        if high_characters == skip:
            low, low_characters = high, high_characters
        decode(low)
        held, flags = probe.getstate()
        place = low - len(held)
        if low_characters == skip:
            return Cookie(start + place, flags)
        eof = high_characters < skip
        feed = (len(data) if eof else high) - place
        return Cookie(start + place, flags, feed, skip - low_characters, int(eof))

    async def seek(self, cookie: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to what `tell` answered, to the beginning (0) or to the end (0, os.SEEK_END); the new position."""
        whence = operator.index(whence)
        self._check_open()
        if not self._seekable:
            _unsupported("underlying stream is not seekable")
        if whence == os.SEEK_CUR:
            if cookie != 0:
                _unsupported("can't do nonzero cur-relative seeks")
            cookie = await self.tell()
        elif whence == os.SEEK_END:
            if cookie != 0:
                _unsupported("can't do nonzero end-relative seeks")
            await self.flush()
            position = await self.buffer.seek(0, os.SEEK_END)
            self._arrive(Cookie(position))
            if self._decoder is not None:
                self._decoder.reset()
            return position
        elif whence != os.SEEK_SET:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if cookie < 0:
            raise ValueError(f"negative seek position {cookie!r}")
        await self.flush()
        place = Cookie.unpack(int(cookie))
        await self.buffer.seek(place.start)
        self._arrive(place)
        if place.skip:
            self._owed = place
            try:
                await self._settle()
            except (trio.Cancelled, KeyboardInterrupt) as error:
                # The file is there already, and the next call does the rest: this one has happened.
                self.buffer.redeliver(error)
                return cookie
        return cookie

    def _arrive(self, place: Cookie) -> None:
        """The binary file is at `place.start`: set the codec to it."""
        fresh = place.start == 0 and place.flags == 0
        self._forget()
        self._owed = None
        if self._decoder is not None:
            # A plain offset means the initial state. A multibyte decoder takes 0 literally, and ISO-2022's then crashes.
            if fresh or (place.flags == 0 and self._multibyte):
                self._decoder.reset()
            else:
                self._decoder.setstate((b"", place.flags))
                self._segments.append(Segment(0, place.flags, b"", b""))
        if self._encoder is not None:
            if fresh:
                self._encoder.reset()
            else:
                self._encoder.setstate(0)

    async def _settle(self) -> None:
        """The second half of a seek: decode up to a place within the text of some bytes."""
        place = self._owed
        assert place is not None
        if self._decoder is None:
            _unsupported("not readable")
        chunk = await self.buffer.read(place.feed)
        self._owed = None
        self._segments.clear()
        text = self._decoder.decode(chunk, bool(place.eof))
        if len(text) < place.skip:
            raise OSError("can't restore logical file position")
        self._segments.append(Segment(len(text), place.flags, b"", chunk))
        self._characters = len(text)
        self._put(text, place.skip)
