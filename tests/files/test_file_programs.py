"""F48: a file object that is read and written by turns, against the builtin; and what holds of it that no program of calls shows.

Programs by the thousand: python tests/files/file_programs.py 20000
"""

from __future__ import annotations

import io
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import trio
from conftest import RINGS, Backend
from file_programs import Program, difference, hunt

from trio_uring._files import ahead

run: Any = trio.run
open_file: Any = trio.open_file

UTF8: dict[str, Any] = {"encoding": "utf-8"}
ASCII: dict[str, Any] = {"encoding": "ascii"}
UTF16: dict[str, Any] = {"encoding": "utf-16"}
NO_TRANSLATION: dict[str, Any] = {"encoding": "utf-8", "newline": "\n"}


@pytest.fixture(params=sorted(RINGS))
def ring(request: pytest.FixtureRequest) -> Backend:
    return RINGS[request.param]


@pytest.mark.parametrize("part", range(4))
def test_f48_random_programs_cannot_tell_it_from_the_builtin(part: int) -> None:
    found = run(hunt, 150, 1_000_000 + 1000 * part, io_backend="uring")
    assert found == []


# (how, mode, options, content, calls); a call is the method and its arguments, "owner" before it where its owner makes it.
PROGRAMS: dict[str, tuple[str, str, dict[str, Any], bytes | None, list[tuple[Any, ...]]]] = {
    "a write behind lines": ("trio", "r+b", {}, b"\n\n", [("iter", 1), ("write", b"a"), ("read",)]),
    "readline(0) reads a chunk": ("trio", "r+", UTF8, b"a", [("readline", 0), ("write", "b")]),
    "and decodes it": ("trio", "r", ASCII, b"a\xff", [("readline", 0), ("position",)]),
    "truncate behind readline(0)": ("trio", "r+", UTF8, b"ab", [("readline", 0), ("truncate",)]),
    "the chunk that fails": ("trio", "r+", ASCII, b"\xff" + b"a" * 8192, [("readlines",), ("write", "X")]),
    "a write and then a read": ("trio", "r+", UTF8, b"abcdef", [("write", "X"), ("readline",)]),
    "read1 behind a write": ("trio", "r+b", {}, b"a", [("write", b"b"), ("read1", 1)]),
    "the owner has read": ("wrap", "r+", UTF8, b"aa", [("owner", "read", 1), ("write", "X")]),
    "the owner writes": ("wrap", "r+", UTF8, b"aa", [("read", 1), ("owner", "write", "X")]),
    "the owner cuts": ("trio", "r+", UTF8, b"\na", [("readline",), ("owner", "truncate")]),
    "the owner seeks": ("wrap", "r+", UTF8, b"aa", [("read", 1), ("owner", "seek", 0, 1), ("write", "X")]),
    "a cookie of a wrapped file": ("wrap", "r+", UTF8, b"\rab\n", [("readline",), ("tell", 0), ("back", 0), ("write", "X")]),
    "readlines of what cannot be read": ("trio", "w", UTF8, b"", [("readlines",), ("tell", 0)]),
    "the snapshot before an error": ("trio", "r+", NO_TRANSLATION, b"\xe6", [("readline",), ("seek", 0, 1), ("write", "a")]),
    "telling enabled again": ("trio", "r+", NO_TRANSLATION, b"a\na", [("readlines", 1), ("flush",), ("tell", 0)]),
    "the snapshot at the end": ("trio", "r", UTF8, b"\r", [("read", 2), ("tell", 0)]),
    "a cookie by the ratio": ("trio", "r", UTF8, b"a\r\xe6\xbc\xa2\xe6\xbc\xa2", [("read", 1), ("tell", 0)]),
    "newlines behind tell": ("trio", "r", UTF8, b"\ra\n", [("readline",), ("tell", 0), ("newlines",)]),
    "what a buffer has left": ("trio", "r", {}, b"a" * 20000, [("read", 9000), ("read1",)]),
    "append behind a seek": ("wrap", "ab", {}, b"", [("seek", 1), ("write", b"a"), ("tell", 0)]),
    "a refused write": ("wrap", "r", UTF8, b"\ra", [("owner", "readline"), ("write", ""), ("readline",)]),
    "no mark behind a flush": ("wrap", "r+", UTF16, "ab".encode("utf-16"), [("write", "X"), ("flush",), ("owner", "readline")]),
    "a cookie that is none": ("trio", "a", UTF8, b"", [("seek", 1 << 128)]),
    "cut under a reader": ("trio", "r", UTF8, b"y" * 9000, [("read", 1), ("cut", 4096), ("read",)]),
    "held back": ("path", "wb", {"buffering": 16}, b"", [("write", b"a"), ("disk",)]),
    "handed on by a refused read": ("trio", "w", {**UTF8, "buffering": 2}, b"", [("write", "aaa"), ("readline",), ("disk",)]),
    "mixed without a seek": ("trio", "r+", UTF8, b"one\ntwo\n" * 3000,
        [("readline",), ("write", "X"), ("iter", 3), ("write", "")]),
    "decoded text behind a write": ("trio", "r+", UTF8, b"a\nb\r\nc\r" * 3000, [("readlines", 1), ("write", "X"), ("read", 1)]),
    "and a line of it": ("trio", "r+", UTF16, ("a\nb\r\n" * 9000).encode("utf-16"),
        [("readlines", 1), ("write", "X"), ("readline",), ("iter", 5), ("write", "Y"), ("readlines", 1), ("tell", 0)]),
    "and more than there is of it": ("path", "r+", NO_TRANSLATION, b"a\nb\n" * 9000,
        [("readlines", 1), ("write", "X"), ("read", 30000), ("write", "Y"), ("readline",), ("read",)]),
    "a line longer than everything": ("trio", "r", UTF8, b"y" * 300_000 + b"\nend", [("readline",), ("tell", 0), ("readline",)]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_f48_a_program_that_once_could(name: str, tmp_path: Path) -> None:
    how, mode, options, content, calls = PROGRAMS[name]
    if not options.get("encoding") and "b" not in mode:
        mode += "b"
    made = [(0, True, *call[1:]) if call[0] == "owner" else (0, False, *call) for call in calls]
    program = Program(content, how, mode, options, 8192, 1, False, made)
    assert run(difference, program, tmp_path, io_backend="uring") is None


# ------------------------------------------------------------------ reading ahead


def test_f48_nothing_is_read_by_the_loop_itself(tmp_path: Path, ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the builtin object asks for is at hand, whatever it is: lines, characters, cookies, longer than it was foreseen."""

    def never(*_: object) -> None:
        raise AssertionError("read(2) in the loop's thread")

    path = tmp_path / "file"
    data = ("zwölf\n" * 3000 + "long" * 30_000 + "\r\n日本\r" * 2000).encode()
    path.write_bytes(data)
    monkeypatch.setattr(os, "readv", never)
    monkeypatch.setattr(os, "read", never)

    async def main() -> None:
        for newline in (None, "", "\n", "\r", "\r\n"):
            async with await open_file(path, encoding="utf-8", newline=newline) as file:
                with open(path, encoding="utf-8", newline=newline) as builtin:  # noqa: ASYNC230
                    for size in (1, 10, 9000, 20_000):
                        assert await file.read(size) == builtin.read(size)
                        assert await file.readline() == builtin.readline()
                        assert await file.readline(size) == builtin.readline(size)
                    place = await file.tell()
                    assert await file.readlines(5000) == builtin.readlines(5000)
                    await file.flush()
                    await file.seek(place)
                    builtin.seek(place)
                    assert [line async for line in file] == list(builtin)
        async with await open_file(path, "rb") as binary:
            assert await binary.read(5) + await binary.readline() + await binary.read(100_000) == data[:100_007]
            await binary.seek(0)
            assert b"".join([line async for line in binary]) == data

    run(main, io_backend=ring)


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_f48_bytes_that_were_kept_are_dropped_when_the_file_changes(
    mode: str, tmp_path: Path, ring: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file at rest more is read ahead than the builtin reads; nobody sees that."""
    monkeypatch.setattr(ahead, "SETTLED", -1 << 62)
    path = tmp_path / "file"
    path.write_bytes(b"old line\n" * 20_000)

    async def main() -> tuple[bytes, int]:
        async with await open_file(path, mode) as file:
            lines = [await file.readline() for _ in range(4000)]
            engine = next(value for name, value in vars(file).items() if name.endswith("engine"))
            held = engine.binary.ahead.held
            with path.open("r+b") as other:
                other.write(b"new line\n" * 20_001)  # and one byte longer, which any filesystem's clock tells
            lines += await file.readlines()
            return b"".join(line.encode() if isinstance(line, str) else line for line in lines), held

    got, held = run(main, io_backend=ring)
    assert held > 16384  # there was something to drop
    # What the builtin has in its buffer is old: a chunk of text, whatever the buffer's size, else the buffer itself.
    with open(path, mode) as builtin:
        size = getattr(builtin, "_CHUNK_SIZE", builtin.__sizeof__() - type(builtin).__basicsize__)
    old = -(-4000 * 9 // size) * size
    assert got == (b"old line\n" * 20_000)[:old] + (b"new line\n" * 20_001)[old:]


# ------------------------------------------------------------------ writes that fail, and owners who do not wait


@pytest.mark.parametrize(("encoding", "size"), [("utf-8", 5000), ("utf-16", 3000)])
def test_f48_what_was_reported_as_written_outlives_a_write_that_fails(
    encoding: str, size: int, tmp_path: Path, ring: Backend
) -> None:
    """The builtin drops what it had held back of earlier writes. The text of the write that fails is nobody's."""
    path = tmp_path / "file"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def main() -> None:
        file = await open_file(path, "w", encoding=encoding)
        await file.write("a" * size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(OSError, match="File too large") as caught:
            await file.write("b" * (io.DEFAULT_BUFFER_SIZE + 7000))
        assert not hasattr(caught.value, "characters_written")
        with pytest.raises(OSError, match="File too large"):
            await file.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await file.write("c")
        await file.aclose()

    try:
        run(main, io_backend=ring)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == ("a" * size + "c").encode(encoding)


def test_f48_an_owner_who_flushes_meanwhile_writes_nothing_twice(tmp_path: Path, ring: Backend) -> None:
    path = tmp_path / "file"

    async def main() -> None:
        with path.open("ab", buffering=16) as owned:
            file: Any = trio.wrap_file(owned)
            for number in range(20):
                await file.write(b"%010d" % number)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(file.write, b"x" * 10)  # which has to write the other out first
                    await trio.lowlevel.checkpoint()
                    owned.flush()
                owned.flush()

    run(main, io_backend=ring)
    assert path.read_bytes() == b"".join(b"%010d" % number + b"x" * 10 for number in range(20))


def test_f48_who_asks_the_descriptor_sees_the_builtins_position(tmp_path: Path, ring: Backend) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 5000)

    async def main() -> None:
        for mode in ("r", "rb", "r+", "r+b"):
            async with await open_file(path, mode) as file:
                with open(path, mode) as builtin:  # noqa: ASYNC230
                    for size in (1, 5000, 10_000):
                        assert await file.read(size) == builtin.read(size)
                        assert os.lseek(file._wrapped.fileno(), 0, 1) == os.lseek(builtin.fileno(), 0, 1)

    run(main, io_backend=ring)
