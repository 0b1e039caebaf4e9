"""For the tests of text files: programs of calls, the builtin that they are compared with, a binary file that never suspends.

What the builtin does is the expectation: hypothesis makes programs, and both must answer the same. Left out of them is what
the builtin itself gets wrong or leaves to chance:
  - a position told after `flush` behind a `readlines` that has left lines, when the builtin keeps no snapshot;
  - a read that follows a write without a flush (BufferedRandom.read1 does not see the write);
  - `newlines` after `tell`, which clears it, and after a read that took more pieces than its answer needed;
  - positions in ISO-2022, where the builtin's plain offsets crash the interpreter;
  - anything after an error in decoding, of which the builtin's `tell` knows nothing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from trio_uring._files.text import TextFile

T = TypeVar("T")
Call = Callable[..., Awaitable[Any]]

# More of them, and other ones each time, for who hunts: TRIO_URING_EXAMPLES=5000 pytest tests/files/test_text_layer.py
EXAMPLES = os.environ.get("TRIO_URING_EXAMPLES")
HUNT = settings(
    max_examples=int(EXAMPLES or 250),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    report_multiple_bugs=False,
)

NEWLINES = (None, "", "\n", "\r", "\r\n")
CHUNK_SIZES = (1, 2, 3, 4, 5, 7, 16, 64, 8192)
WIDE = ("a", "é", "日", "𝄞", "b\n", "\r", "\r\n", "\n", "\u2028", "\x85", "xyz ")
JAPANESE = ("a", "日", "本\n", "\r", "\r\n", "\n", "xyz ", "カ")
PLAIN = ("a", "b\n", "\r", "\r\n", "\n", "\x0b", "xyz ")
CODECS: dict[tuple[str, str], tuple[str, ...]] = {
    ("utf-8", "strict"): WIDE,
    ("utf-8", "replace"): WIDE,
    ("utf-8-sig", "strict"): WIDE,
    ("utf-16", "strict"): WIDE,
    ("utf-16-le", "strict"): WIDE,
    ("utf-32", "strict"): WIDE,
    ("utf-7", "strict"): WIDE,
    ("gb18030", "strict"): WIDE,
    ("latin-1", "strict"): ("a", "é", "b\n", "\r", "\r\n", "\n", "\x85", "xyz "),
    ("ascii", "replace"): PLAIN,
    ("ascii", "surrogateescape"): PLAIN,
    ("ascii", "backslashreplace"): PLAIN,
    ("shift_jis", "replace"): JAPANESE,
    ("iso2022_jp", "strict"): JAPANESE,
}

Step = tuple[Any, ...]
ERRORS = (OSError, ValueError, TypeError, OverflowError)


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it suspended")


class Buffer:
    """`trio_uring._files.text.Buffer` over a binary file of the standard library; `before` is called with each method's name."""

    def __init__(self, file: Any, before: Callable[[str], None] = lambda name: None) -> None:
        self.file = file
        self.before = before

    @property
    def closed(self) -> bool:
        return bool(self.file.closed)

    def readable(self) -> bool:
        return bool(self.file.readable())

    def writable(self) -> bool:
        return bool(self.file.writable())

    def seekable(self) -> bool:
        return bool(self.file.seekable())

    async def read(self, size: int = -1, /) -> bytes:
        self.before("read")
        return bytes(self.file.read(size))

    async def read1(self, size: int, /) -> bytes:
        self.before("read1")
        return bytes(self.file.read1(size))

    async def write(self, data: bytes, /) -> int:
        self.before("write")
        return int(self.file.write(data))

    def redeliver(self, error: BaseException) -> None:
        """Whoever drives this one has seen the error."""

    async def flush(self) -> None:
        self.before("flush")
        self.file.flush()

    async def seek(self, position: int, whence: int = 0, /) -> int:
        self.before("seek")
        return int(self.file.seek(position, whence))

    async def tell(self) -> int:
        self.before("tell")
        return int(self.file.tell())

    async def truncate(self, size: int | None = None, /) -> int:
        self.before("truncate")
        return int(self.file.truncate(size))


class Ours:
    """A `TextFile` driven by plain calls."""

    def __init__(
        self,
        file: Any,
        chunk_size: int = 8192,
        read_ahead: int = 128 * 1024,
        before: Callable[[str], None] = lambda name: None,
        **options: Any,
    ) -> None:
        self.file = file
        at_start = not file.seekable() or file.tell() == 0
        self.text = TextFile(
            Buffer(file, before), at_start=at_start, chunk_size=chunk_size, read_ahead=read_ahead, **options
        )

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.text, name)
        return (lambda *args: finish(value(*args))) if callable(value) else value

    def next(self) -> str:
        line: str = finish(self.call("next"))
        return line

    async def call(self, name: str, *args: Any) -> Any:
        """A method; "next" is what `async for` does."""
        if name != "next":
            return await getattr(self.text, name)(*args)
        for line in self.text.ready:
            return line
        return await self.text.next_line()

    def close(self) -> None:
        if not self.file.closed:
            self.flush()
            self.file.close()


class Builtin:
    """The builtin, with the same names."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def next(self) -> str:
        """What the `async for` of Trio and of AnyIO calls."""
        return self.file.readline()


def open_builtin(path: Path, mode: str, chunk_size: int = 8192, **options: Any) -> Builtin:
    file = open(path, mode, **options)  # noqa: SIM115
    assert isinstance(file, io.TextIOWrapper)
    file._CHUNK_SIZE = chunk_size  # type: ignore[attr-defined]
    return Builtin(file)


def open_ours(path: Path, mode: str, encoding: str, errors: str = "strict", **options: Any) -> Ours:
    file: IO[bytes] = open(path, mode + "b")  # noqa: SIM115
    return Ours(file, encoding=encoding, errors=errors, **options)


def outcome_of(function: Callable[..., Any], *args: Any) -> Any:
    """What it returns, or the class and text of what it raises."""
    try:
        return function(*args)
    except ERRORS as error:
        return type(error), str(error)


# ------------------------------------------------------------------ programs


class Program(NamedTuple):
    """A file, how it is opened, and what is called."""

    encoding: str
    errors: str
    newline: str | None
    mode: str
    chunk_size: int
    read_ahead: int
    line_buffering: bool
    data: bytes
    steps: list[Step]

    def options(self) -> dict[str, Any]:
        """Those of `open`."""
        return {
            "encoding": self.encoding,
            "errors": self.errors,
            "newline": self.newline,
            "buffering": 1 if self.line_buffering else -1,
        }


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Of calls that make sense for the mode and the codec."""
    codec = draw(st.sampled_from(sorted(CODECS)))
    newline = draw(st.sampled_from(NEWLINES))
    mode = draw(st.sampled_from(("r", "r", "r+", "w+", "a+", "w")))
    stateful = codec[0] == "iso2022_jp"
    if stateful and mode == "a+":
        mode = "r"
    chunk_size = draw(st.sampled_from(CHUNK_SIZES))
    read_ahead = chunk_size * draw(st.sampled_from((0, 1, 3, 1000)))
    line_buffering = draw(st.booleans())
    texts = st.lists(st.sampled_from(CODECS[codec]), max_size=6).map("".join)
    data = "".join(draw(st.lists(st.sampled_from(CODECS[codec]), max_size=40))).encode(codec[0])
    if codec[1] != "strict":
        data = data.replace(b"x", b"\xe3")
    if draw(st.integers(0, 4)) == 0:
        data = data[:-1]
    steps: list[st.SearchStrategy[Step]] = [
        st.tuples(st.just("read"), st.sampled_from((-1, None, 0, 1, 2, 5, 20))),
        st.tuples(st.just("readline"), st.sampled_from((-1, -1, 1, 3))),
        st.tuples(st.just("write"), texts),
        st.tuples(st.just("writelines"), st.lists(texts, max_size=3)),
        st.just(("flush",)),
    ]
    if mode != "w":
        steps += [st.just(("next",)), st.tuples(st.just("readlines"), st.sampled_from((-1, None, 3, 10)))]
    if not stateful:
        steps += [
            st.just(("tell",)),
            st.tuples(st.just("back"), st.integers(0, 5), st.booleans()),
            st.sampled_from((("seek", 0), ("seek", 0, 2), ("seek", 0, 1))),
            st.tuples(st.just("truncate"), st.sampled_from((None, 0, 4, 10))),
        ]
    program = draw(st.lists(st.one_of(steps), min_size=1, max_size=14))
    return Program(*codec, newline, mode, chunk_size, read_ahead, line_buffering, data, program)


async def compare(builtin: Builtin, call: Call, newlines: Callable[[], Any], program: Program) -> None:
    """Run the program on both; `call` and `newlines` are those of the file that is tested."""

    async def got_from(name: str, *args: Any) -> Any:
        try:
            return await call(name, *args)
        except ERRORS as error:
            return type(error), str(error)

    cookies: list[tuple[int, int]] = []
    iterating = wrote = False
    newlines_told = True
    for step in program.steps:
        name, *args = step
        if name == "back":
            if cookies:
                # Ours takes the builtin's and the builtin takes ours, or each its own.
                theirs, own = cookies[args[0] % len(cookies)]
                if args[1]:
                    theirs, own = own, theirs
                expected, got = outcome_of(builtin.seek, theirs), await got_from("seek", own)
                assert isinstance(expected, tuple) == isinstance(got, tuple)
                iterating = newlines_told = False
                if isinstance(expected, tuple):
                    return
            continue
        if iterating and name in ("flush", "truncate", "seek"):
            continue
        if wrote and name in ("read", "readline", "readlines", "next"):
            if iterating:
                continue
            builtin.flush()
            await call("flush")
            wrote = False
        expected, got = outcome_of(getattr(builtin, name), *args), await got_from(name, *args)
        if name == "tell" and isinstance(expected, int) and isinstance(got, int):
            cookies.append((expected, got))
            newlines_told = False
        elif step == ("seek", 0, 1) and isinstance(expected, int) and isinstance(got, int):
            newlines_told = False
        else:
            assert got == expected, step
        failed = isinstance(expected, tuple)
        if failed and issubclass(expected[0], (UnicodeError, OverflowError)):
            return
        if name == "seek":
            if failed:
                return  # what it did before it failed is nobody's business
            iterating = newlines_told = False
        if name in ("write", "writelines") and not failed:
            wrote = True
            cookies.clear()
        if name == "truncate":
            cookies.clear()
        if name == "readlines":
            iterating = args[0] not in (-1, None)
        if program.read_ahead > program.chunk_size and (
            name == "next" or (name == "read" and args[0] not in (-1, None))
        ):
            newlines_told = False
        if newlines_told and name != "readlines":
            assert newlines() == builtin.newlines, step
