"""`trio_uring._files.text` over a binary file that never suspends: against the builtin, and where its calls are interrupted."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from text_tools import (
    CODECS,
    HUNT,
    NEWLINES,
    Ours,
    Program,
    Step,
    compare,
    finish,
    open_builtin,
    open_ours,
    outcome_of,
    programs,
)

from trio_uring._files.text import Cookie, TextFile


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def cancelled() -> trio.Cancelled:
    """A real one."""
    caught: list[trio.Cancelled] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                caught.append(error)
                raise

    trio.run(main)
    return caught[0]


def memory(data: bytes, **options: Any) -> Ours:
    """Ours over bytes, for reading."""
    return Ours(io.BufferedReader(io.BytesIO(data)), **options)


# ------------------------------------------------------------------ programs


@HUNT
@given(program=programs())
def test_a_program_observes_what_it_observes_with_the_builtin(program: Program, room: Path) -> None:
    here, there = room / "ours", room / "builtin"
    here.write_bytes(program.data)
    there.write_bytes(program.data)
    builtin = open_builtin(there, program.mode, program.chunk_size, **program.options())
    ours = open_ours(
        here,
        program.mode,
        program.encoding,
        program.errors,
        newline=program.newline,
        line_buffering=program.line_buffering,
        chunk_size=program.chunk_size,
        read_ahead=program.read_ahead,
    )
    try:
        finish(compare(builtin, ours.call, lambda: ours.newlines, program))
    finally:
        builtin.close()
        ours.close()
    assert here.read_bytes() == there.read_bytes()


@pytest.mark.parametrize(
    ("mode", "encoding", "newline", "chunk_size", "data", "steps"),
    [
        # At the end of an empty file `readline` forgets the decoder's state and `read` does not, and so does the cookie.
        ("w+", "utf-16", None, 8192, b"", [("readline",), ("back",), ("write", "a")]),
        ("w+", "utf-16", None, 8192, b"", [("read", 2), ("back",), ("write", "a")]),
        # A limit is looked at only behind the second half of a possible line end, and writes go where reading has stopped.
        ("r+", "ascii", "\r\n", 3, b"ab\rcdefgh", [("readline", 3), ("write", "x")]),
        ("r+", "ascii", "\n", 3, b"ab\rcdefgh", [("readline", 3), ("write", "x")]),
        # A write forgets the first byte of a character whose others are not read yet.
        ("r+", "utf-8", None, 4, "日日日日".encode(), [("read", 1), ("write", "x"), ("flush",), ("read", -1)]),
        # Line ends are written as they are asked for, and read as well.
        ("w+", "utf-8", "\r", 8192, b"", [("write", "a\nb\n"), ("seek", 0), ("readlines", -1), ("tell",)]),
        # The file has shrunk to less than has been read of it.
        ("r+", "ascii", None, 4, b"one\ntwo\nthree\n", [("readline",), ("truncate", 2), ("readline",), ("tell",)]),
    ],
)
def test_a_sequence_ends_as_with_the_builtin(
    mode: str, encoding: str, newline: str | None, chunk_size: int, data: bytes, steps: list[Step], room: Path
) -> None:
    ends: list[Any] = []
    for name, opener in (("builtin", open_builtin), ("ours", open_ours)):
        path = room / f"sequence-{name}"
        path.write_bytes(data)
        file: Any = opener(path, mode, chunk_size=chunk_size, encoding=encoding, newline=newline)
        answers = []
        for called, *args in steps:
            if called == "back":
                file.seek(file.tell())
            else:
                answers.append(outcome_of(getattr(file, called), *args))
        file.close()
        ends.append((answers, path.read_bytes()))
    assert ends[1] == ends[0]


# ------------------------------------------------------------------ positions


def sample(encoding: str) -> str:
    words = "".join(CODECS[next(codec for codec in CODECS if codec[0] == encoding)])
    return f"{words}ab\r\n\r\r\n{words}"


@pytest.mark.parametrize("newline", NEWLINES)
@pytest.mark.parametrize("encoding", sorted({encoding for encoding, _ in CODECS}))
@pytest.mark.parametrize("chunk_size", [1, 3, 8192])
def test_every_position_can_be_told_and_sought_also_by_the_builtin(
    encoding: str, newline: str | None, chunk_size: int
) -> None:
    data = sample(encoding).encode(encoding)
    whole = io.TextIOWrapper(io.BytesIO(data), encoding=encoding, newline=newline).read()
    ours = memory(data, encoding=encoding, newline=newline, chunk_size=chunk_size)
    again = memory(data, encoding=encoding, newline=newline)
    builtin = io.TextIOWrapper(io.BytesIO(data), encoding=encoding, newline=newline)
    builtin._CHUNK_SIZE = chunk_size  # type: ignore[attr-defined]
    for position in range(len(whole) + 1):
        cookie = ours.tell()
        assert ours.seek(cookie) == cookie
        assert again.seek(cookie) == cookie
        assert again.read() == whole[position:]
        if encoding != "iso2022_jp" or cookie >> 64:  # see the module
            assert builtin.seek(cookie) == cookie
            assert builtin.read() == whole[position:]
            builtin.seek(cookie)
            told = builtin.tell()
            assert again.seek(told) == told
            assert again.read() == whole[position:]
        assert ours.read(1) == whole[position : position + 1]
    assert ours.read() == ""


@pytest.mark.parametrize("chunk_size", [1, 5, 8192])
@pytest.mark.parametrize("newline", [None, ""])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "utf-16-le", "shift_jis"])
def test_a_cookie_is_the_plain_offset_where_that_says_all(encoding: str, newline: str | None, chunk_size: int) -> None:
    text = "one\nzwei\ntrois\r"  # which the decoder holds back, since "\n" may follow
    file = memory(text.encode(encoding), encoding=encoding, newline=newline, chunk_size=chunk_size)
    for size in range(len(text)):
        file.seek(0)
        file.read(size)
        assert file.tell() == len(text[:size].encode(encoding))


def test_cookies_have_the_layout_of_the_builtin_in_c() -> None:
    cookie = Cookie(start=5, flags=2, feed=7, skip=3, eof=1)
    assert cookie.pack() == 5 | 2 << 64 | 7 << 96 | 3 << 128 | 1 << 160
    assert Cookie.unpack(cookie.pack()) == cookie
    data = b"+AGEAYgBj-\n"
    builtin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-7")
    assert builtin.read(1) == "a"
    ours = memory(data, encoding="utf-7")
    assert ours.read(1) == "a"
    assert ours.tell() == builtin.tell() == Cookie(start=0, feed=10, skip=1).pack()


def test_a_place_that_only_the_end_of_the_file_decodes() -> None:
    data = b"a\xe3\x81"
    file = memory(data, encoding="utf-8", errors="surrogateescape")
    assert file.read(2) == "a\udce3"
    cookie = file.tell()
    assert cookie == Cookie(start=1, feed=2, skip=1, eof=1).pack()
    assert file.seek(cookie) == cookie
    assert file.read() == "\udc81"
    builtin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
    builtin.seek(cookie)
    assert builtin.read() == "\udc81"


@pytest.mark.parametrize("cookie", [Cookie(start=3, feed=4, skip=9).pack(), Cookie(start=10, feed=1, skip=1).pack()])
def test_a_cookie_of_another_file_is_an_error(cookie: int) -> None:
    file = memory(b"0123456789", encoding="utf-8")
    with pytest.raises(OSError, match="can't restore logical file position"):
        file.seek(cookie)


def test_a_position_within_an_iteration_is_told() -> None:
    """As `async for` has it, with lines at hand in `ready`, which are not lost by it."""
    text = "".join(f"{number}\n" for number in range(40))
    file = memory(text.encode(), encoding="utf-8", chunk_size=16, read_ahead=64)
    done = ""
    while line := file.next():
        done += line
        assert file.tell() == len(done)
    assert done == text
    assert file.tell() == len(text)


def test_a_position_behind_some_readlines_is_not_told_but_known() -> None:
    file = memory(b"one\ntwo\nthree\n", encoding="utf-8")
    assert file.readlines(1) == ["one\n"]
    with pytest.raises(OSError, match=r"telling position disabled by next\(\) call"):
        file.tell()
    # As it is for who takes over the binary file.
    assert file.text.cookie(file.file.tell()) == 4
    assert file.readlines() == ["two\n", "three\n"]
    assert file.tell() == 14


def test_lines_at_hand_do_not_move_when_the_position_is_told() -> None:
    file = memory(b"one\ntwo\nthree\n", encoding="utf-8")
    assert [file.readline(), file.tell(), file.readline(), file.tell()] == ["one\n", 4, "two\n", 8]


def test_a_plain_offset_in_iso_2022_means_the_initial_state() -> None:
    """CPython gives the decoder a state of 0, which it then crashes with."""
    data = "日本\nabc\n".encode("iso2022_jp")
    file = memory(data, encoding="iso2022_jp")
    file.seek(data.index(b"abc"))
    assert file.read() == "abc\n"


def test_a_long_line_is_joined_once() -> None:
    """3 MB in pieces of 16 bytes: with a join for each piece this would take minutes."""
    file = memory(b"x" * 3_000_000 + b"\nlast", encoding="utf-8", chunk_size=16)
    assert len(file.readline()) == 3_000_001
    assert file.readline() == "last"


# ------------------------------------------------------------------ newlines


@pytest.mark.parametrize(
    ("newline", "lines", "seen"),
    [
        (None, ["a\n", "b\n", "c\n", "\n", "d"], ("\r", "\n", "\r\n")),
        ("", ["a\n", "b\r", "c\r\n", "\r", "d"], ("\r", "\n", "\r\n")),
        ("\n", ["a\n", "b\rc\r\n", "\rd"], None),
        ("\r", ["a\nb\r", "c\r", "\n\r", "d"], None),
        ("\r\n", ["a\nb\rc\r\n", "\rd"], None),
    ],
)
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 8192])
@pytest.mark.parametrize("how", ["readline", "next", "readlines", "some"])
def test_where_lines_end(newline: str | None, lines: list[str], seen: Any, chunk_size: int, how: str) -> None:
    file = memory(b"a\nb\rc\r\n\rd", encoding="ascii", newline=newline, chunk_size=chunk_size)
    assert file.newlines is None
    if how == "readlines":
        assert file.readlines() == lines
    elif how == "some":
        got = []
        while part := file.readlines(1):
            got += part
        assert got == lines
    else:
        assert [getattr(file, how)() for _ in lines] == lines
        assert getattr(file, how)() == ""
    assert file.newlines == seen


@pytest.mark.parametrize(
    ("newline", "written"),
    [
        (None, b"a\nb\r\nc\r"),
        ("", b"a\nb\r\nc\r"),
        ("\n", b"a\nb\r\nc\r"),
        ("\r", b"a\rb\r\rc\r"),
        ("\r\n", b"a\r\nb\r\r\nc\r"),
    ],
)
def test_what_a_line_end_is_written_as(newline: str | None, written: bytes) -> None:
    out = io.BytesIO()
    file = Ours(io.BufferedWriter(out), encoding="ascii", newline=newline)
    assert file.write("a\nb\r\nc\r") == 7
    file.flush()
    assert out.getvalue() == written


@pytest.mark.parametrize("end", ["\n", "\r", "a\r\nb"])
def test_line_buffering_flushes_at_a_line_end(end: str) -> None:
    out = io.BytesIO()
    file = Ours(io.BufferedWriter(out), encoding="ascii", line_buffering=True)
    file.write("text")
    assert out.getvalue() == b""
    file.write(end)
    assert out.getvalue() == b"text" + end.encode()


def test_write_through_leaves_nothing_in_the_text_layer() -> None:
    out = io.BytesIO()
    file = Ours(io.BufferedWriter(out), encoding="ascii", write_through=True)
    file.write("text")
    assert file.text.take_pending() == b""
    file.file.flush()
    assert out.getvalue() == b"text"


# ------------------------------------------------------------------ byte order marks


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
class TestByteOrderMark:
    """At the start of a file and nowhere else; as the builtin has it, so it is asked as well."""

    def both(self, room: Path, mode: str, encoding: str, before: bytes) -> list[Any]:
        files: list[Any] = []
        for name, opener in (("builtin", open_builtin), ("ours", open_ours)):
            path = room / f"mark-{name}"
            path.write_bytes(before)
            files.append((path, opener(path, mode, encoding=encoding)))
        return files

    def test_is_written_once(self, encoding: str, room: Path) -> None:
        for path, file in self.both(room, "w", encoding, b""):
            file.write("a")
            file.flush()
            file.write("b")
            file.close()
            assert path.read_bytes() == "ab".encode(encoding)

    def test_is_not_written_when_appending(self, encoding: str, room: Path) -> None:
        for path, file in self.both(room, "a", encoding, "a".encode(encoding)):
            file.write("b")
            file.close()
            assert path.read_bytes() == "ab".encode(encoding)

    def test_is_written_when_appending_to_nothing(self, encoding: str, room: Path) -> None:
        for path, file in self.both(room, "a", encoding, b""):
            file.write("b")
            file.close()
            assert path.read_bytes() == "b".encode(encoding)

    def test_is_not_written_away_from_the_start(self, encoding: str, room: Path) -> None:
        for path, file in self.both(room, "r+", encoding, "ab".encode(encoding)):
            file.read(1)
            file.seek(file.tell())
            file.write("c")
            file.close()
            assert path.read_bytes() == "ac".encode(encoding)

    def test_is_written_again_at_the_start(self, encoding: str, room: Path) -> None:
        for path, file in self.both(room, "w", encoding, b""):
            file.write("abc")
            file.seek(0)
            file.write("d")
            file.seek(0, 2)
            file.write("e")
            file.close()
            assert path.read_bytes() == "dbce".encode(encoding)

    def test_is_not_text(self, encoding: str, room: Path) -> None:
        for _, file in self.both(room, "r", encoding, "ab".encode(encoding)):
            assert file.read(1) == "a"
            file.seek(0)
            assert file.read() == "ab"
            file.close()


# ------------------------------------------------------------------ what can go wrong

CALLS: list[Step] = [
    ("read", "x"),
    ("read", 1.5),
    ("read", None),
    ("readline", None),
    ("readline", "x"),
    ("readlines", "x"),
    ("write", b"x"),
    ("write", None),
    ("writelines", 1),
    ("writelines", ["x", 1]),
    ("seek", -1),
    ("seek", "x"),
    ("seek", None),
    ("seek", 1 << 200),
    ("seek", 1, 1),
    ("seek", 1, 2),
    ("seek", -1, 2),
    ("seek", 0, 3),
    ("seek", 0, "x"),
    ("tell",),
    ("flush",),
    ("truncate", "x"),
    ("truncate", -1),
]


@pytest.mark.parametrize("state", ["r", "w", "r+", "closed"])
@pytest.mark.parametrize("call", CALLS, ids=repr)
def test_errors_are_worded_as_the_builtins(state: str, call: Step, room: Path) -> None:
    path = room / "errors"
    path.write_bytes(b"text\n")
    mode = "r+" if state == "closed" else state
    builtin, ours = open_builtin(path, mode, encoding="utf-8"), open_ours(path, mode, "utf-8")
    if state == "closed":
        builtin.close()
        ours.close()
    name, *args = call
    assert outcome_of(getattr(ours, name), *args) == outcome_of(getattr(builtin, name), *args)
    builtin.close()
    ours.close()


def test_what_has_no_position_has_no_cookies() -> None:
    reading, writing = os.pipe()
    with open(writing, "wb") as source:
        source.write("日本\nzwei\n".encode())
    with open(reading, "rb") as buffered:
        file = Ours(buffered, encoding="utf-8", chunk_size=4)
        assert file.readline() == "日本\n"
        for call in (("tell",), ("seek", 0)):
            with pytest.raises(io.UnsupportedOperation, match="underlying stream is not seekable"):
                getattr(file, call[0])(*call[1:])
        assert file.read() == "zwei\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "shift_jis", "utf-16-le"])
@pytest.mark.parametrize("how", ["next", "readline", "readlines", "read"])
def test_a_byte_that_cannot_be_decoded_is_met_where_the_builtin_meets_it(how: str, encoding: str, room: Path) -> None:
    """The lines of earlier pieces come first, the position in the message is within the same piece, and so it goes on."""
    path = room / "undecodable"
    bad = b"\x00\xdc" if encoding == "utf-16-le" else b"\xff"
    good = "日本0123\n".encode(encoding) * 3000
    path.write_bytes(good + bad + good + bad + good)
    told = []
    for file in (open_builtin(path, "r", encoding=encoding), open_ours(path, "r", encoding)):
        answers: list[Any] = []
        while True:
            answers.append(outcome_of(getattr(file, how)))
            if how == "next" and isinstance(answers[-1], tuple):
                break  # what the builtin's iterator does after that is not defined
            if not answers[-1] or len(answers) > 20_000:
                break
        told.append(answers)
        file.close()
    assert told[0] == told[1]
    assert UnicodeDecodeError in [answer[0] for answer in told[0] if isinstance(answer, tuple)]


def test_what_cannot_be_encoded_is_not_written(room: Path) -> None:
    path = room / "unencodable"
    file = open_ours(path, "w", "ascii")
    file.write("a")
    with pytest.raises(UnicodeEncodeError):
        file.write("é")
    file.write("b")
    file.close()
    assert path.read_bytes() == b"ab"


# ------------------------------------------------------------------ interrupted calls


class Fault:
    """Raises `error` at the buffer call number `at`."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at = at
        self.error = error
        self.calls = 0

    def __call__(self, name: str) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


READING: list[Step] = [
    ("readline", -1),
    ("next",),
    ("next",),
    ("readline", 2),
    ("seek", 0),
    ("read", 7),
    ("tell",),
    ("read", 30),
    ("tell",),
    ("readlines", 12),
    ("seek", 0),
    ("read", 3),
    ("next",),
    ("flush",),
    ("readlines", 20),
    ("readlines", -1),
    ("seek", 0),
    ("readline", -1),
    ("read", -1),
    ("tell",),
]
WRITING: list[Step] = [
    ("write", "日本 one\n"),
    ("write", "x"),
    ("writelines", ["some longer text, more than a chunk", "é\n"]),
    ("tell",),
    ("seek", 0),
    ("write", "two"),
    ("flush",),
    ("read", 2),
    ("seek", 0, 2),
    ("write", "at the end"),
    ("truncate", None),
    ("seek", 0),
    ("readline", -1),
]


def run_interrupted(path: Path, mode: str, steps: list[Step], fault: Fault, **options: Any) -> list[Any]:
    """What each step answers, where a step that was interrupted is asked for again."""
    file = open_ours(path, mode, before=fault, **options)
    answers: list[Any] = []
    try:
        for name, *args in steps:
            if name == "writelines":  # each line is a write, and only that is whole or not at all
                calls: list[Step] = [("write", line) for line in args[0]]
            else:
                calls = [(name, *args)]
            for called, *values in calls:
                try:
                    answers.append(getattr(file, called)(*values))
                except BaseException as error:
                    if error is not fault.error:
                        raise
                    answers.append(getattr(file, called)(*values))
        return answers
    finally:
        fault.at = 0
        file.close()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "iso2022_jp"])
@pytest.mark.parametrize("newline", [None, "", "\r\n"])
@pytest.mark.parametrize(
    ("mode", "kind"),
    # With line buffering an error of the flush comes from a write whose text has been taken, as with the builtin.
    [("r", "cancelled"), ("r", "error"), ("w+", "cancelled"), ("w+", "error"), ("line", "cancelled")],
)
def test_an_interrupted_call_loses_nothing_and_does_nothing_twice(
    mode: str, newline: str | None, encoding: str, kind: str, cancelled: trio.Cancelled, room: Path
) -> None:
    """Every await of the buffer in turn raises: asked again, every call answers what it does undisturbed."""
    path = room / "interrupted"
    line_buffering = mode == "line"
    options: dict[str, Any] = {
        "encoding": encoding,
        "newline": newline,
        "chunk_size": 8,
        "read_ahead": 24,
        "line_buffering": line_buffering,
    }
    steps = READING if mode == "r" else WRITING
    data = "日本 eins\r\nzwei\nthree, drei\r\nvier\rfünf".replace("ü", "" if encoding == "iso2022_jp" else "ü").encode(
        encoding
    )
    if encoding == "iso2022_jp":
        steps = [tuple(arg.replace("é", "e") if isinstance(arg, str) else arg for arg in step) for step in steps]
        steps = [
            ("writelines", ["some longer text, more than a chunk", "e\n"]) if s[0] == "writelines" else s for s in steps
        ]
    at = 0
    expected: list[Any] | None = None
    while True:
        path.write_bytes(data)
        fault = Fault(at, cancelled if kind == "cancelled" else OSError("injected"))
        answers = run_interrupted(path, "r" if mode == "r" else "w+", steps, fault, **options)
        if expected is None:
            expected, contents = answers, path.read_bytes()
        assert answers == expected, at
        assert path.read_bytes() == contents, at
        if fault.calls < at:
            break
        at += 1
    assert at > 20


@pytest.mark.parametrize("then", ["read", "tell", "write", "truncate", "seek"])
@pytest.mark.parametrize("kind", ["cancelled", "error"])
def test_a_seek_that_was_interrupted_halfway_is_completed_by_the_next_call(
    kind: str, then: str, cancelled: trio.Cancelled, room: Path
) -> None:
    """To a place within the text of some bytes: the file is there, and the bytes have not been read."""
    path = room / "halfway"
    data = b"+AGEAYgBj-tail, long enough"
    cookie = Cookie(start=0, feed=10, skip=2).pack()
    ends: list[Any] = []
    for at in (0, 1):
        path.write_bytes(data)
        error = cancelled if kind == "cancelled" else OSError("injected")
        reads = 0

        def before(name: str, at: int = at, error: BaseException = error) -> None:
            nonlocal reads
            reads += name == "read"
            if name == "read" and reads == at:
                raise error

        file = open_ours(path, "r+", "utf-7", before=before)
        if at and kind == "error":
            with pytest.raises(OSError, match="injected"):
                file.seek(cookie)
        else:
            assert file.seek(cookie) == cookie
        end = [file.text.cookie(0)] if at else [cookie]
        calls: dict[str, list[Step]] = {
            "read": [("read", 3)],
            "tell": [("tell",), ("read", -1)],
            "write": [("write", "x")],
            "truncate": [("truncate", None)],
            "seek": [("seek", 0), ("read", 1)],
        }
        for called, *args in calls[then]:
            end.append(getattr(file, called)(*args))
        file.close()
        ends.append((end, path.read_bytes()))
    assert ends[1] == ends[0]


def test_a_line_is_written_though_its_flush_was_cancelled(cancelled: trio.Cancelled, room: Path) -> None:
    """The text has been taken and cannot be given back: the write succeeds, and the next flush does the rest."""
    path = room / "line-flush"
    names: list[str] = []

    def before(name: str) -> None:
        names.append(name)
        if name == "flush" and names.count("flush") == 1:
            raise cancelled

    file = open_ours(path, "w", "utf-8", line_buffering=True, before=before)
    assert file.write("line\n") == 5
    assert path.read_bytes() == b""
    file.flush()
    assert path.read_bytes() == b"line\n"
    file.close()


def test_what_a_failed_write_wrote_is_not_written_again(room: Path) -> None:
    """ENOSPC after some bytes of what had been collected: the rest follows once there is space."""
    path = room / "partly"
    file = open_ours(path, "w", "utf-8")
    ours: Any = file.text.buffer
    whole = ours.write

    async def some(data: bytes) -> int:
        await whole(data[:5])
        error: Any = OSError(errno.ENOSPC, "No space left on device")
        error.characters_written = 5
        raise error

    file.write("0123456789")
    ours.write = some
    with pytest.raises(OSError, match="No space left on device"):
        file.flush()
    ours.write = whole
    file.write("abc")
    file.close()
    assert path.read_bytes() == b"0123456789abc"


def test_what_is_pending_can_be_taken_over(room: Path) -> None:
    file = open_ours(room / "pending", "w", "utf-16-le")
    file.write("ab")
    assert file.text.take_pending() == "ab".encode("utf-16-le")
    file.close()
    assert (room / "pending").read_bytes() == b""


def test_a_coroutine_that_is_dropped_before_it_began_does_nothing(room: Path) -> None:
    path = room / "dropped"
    file = open_ours(path, "w", "utf-8")
    text: TextFile = file.text
    text.write("never").close()
    finish(text.write("once"))
    file.close()
    assert path.read_bytes() == b"once"
