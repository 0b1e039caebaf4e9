"""Text files that trio.open_file opens on the ring, against the builtin: programs of calls, and each promise by itself.

Knows the public interface; and of what serves a file, its name, for chunks small enough to have borders everywhere, and
for the time that an iteration may take.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from conftest import RINGS, Backend
from text_tools import CODECS, NEWLINES, outcome_of

from trio_uring._files import ahead
from trio_uring._files import engine as _files

run: Any = trio.run
open_file: Any = trio.open_file  # whose annotations have no modes that are not constants

TEXT = "".join(f"{number} zwölf 日本\r\n\n" for number in range(400))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(params=sorted(RINGS))
def ring(request: pytest.FixtureRequest) -> Backend:
    return RINGS[request.param]


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks for a worker thread fails."""

    async def refuse(function: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a thread for {function}")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)


def caller(file: Any) -> Callable[..., Awaitable[Any]]:
    """Calls a method; "next" is what `async for` does."""

    async def call(name: str, *args: Any) -> Any:
        if name != "next":
            return await getattr(file, name)(*args)
        try:
            return await file.__anext__()
        except StopAsyncIteration:
            return ""

    return call


# ------------------------------------------------------------------ handing over


@pytest.mark.parametrize("newline", NEWLINES)
@pytest.mark.parametrize("encoding", sorted({encoding for encoding, _ in CODECS}))
@pytest.mark.parametrize("how", ["read", "lines"])
def test_whoever_takes_the_builtin_object_goes_on_where_we_are(
    how: str, encoding: str, newline: str | None, room: Path
) -> None:
    words = "".join(CODECS[next(codec for codec in CODECS if codec[0] == encoding)])
    path = room / "handed-over"
    path.write_bytes(f"{words}ab\r\n\r\r\n{words}".encode(encoding))
    with open(path, encoding=encoding, newline=newline) as oracle:
        whole = oracle.read()

    async def main() -> None:
        for count in range(len(whole)):
            async with await open_file(path, encoding=encoding, newline=newline) as file:
                done = ""
                if how == "read":
                    done = await file.read(count)
                elif count:
                    async for line in file:
                        done += line
                        if len(done) >= count:
                            break
                assert done + file.wrapped.read() == whole

    run(main, io_backend="uring")


def test_what_is_pending_is_handed_over_before_what_the_owner_writes(ring: Backend, room: Path) -> None:
    path = room / "pending"

    async def main() -> None:
        async with await open_file(path, "w", encoding="utf-16") as file:
            await file.write("ours, ")
            file.wrapped.write("the owner's, ")
            await file.write("a thread's")

    run(main, io_backend=ring)
    assert path.read_bytes() == "ours, the owner's, a thread's".encode("utf-16")


def test_detach_gives_the_binary_file(ring: Backend, room: Path) -> None:
    path = room / "detached"
    path.write_text("one\ntwo\n")

    async def main() -> None:
        file = await open_file(path, "r+")
        await file.write("ONE")
        buffer = await file.detach()
        assert type(buffer) is trio._file_io.AsyncIOWrapper
        assert type(buffer.wrapped) is io.BufferedRandom
        assert await buffer.read() == b"\ntwo\n"
        with pytest.raises(ValueError, match="underlying buffer has been detached"):
            await file.read()
        await buffer.aclose()

    run(main, io_backend=ring)
    assert path.read_text() == "ONE\ntwo\n"


def test_the_buffer_is_where_the_builtins_is(ring: Backend, room: Path) -> None:
    path = room / "buffer"
    path.write_text("one\ntwo\n")

    async def main() -> None:
        async with await open_file(path) as file:
            assert await file.readline() == "one\n"
            assert file.buffer.read() == b""  # the text object has read it all

    run(main, io_backend=ring)


def test_f42_a_wrapped_file_and_its_owner_take_turns(backend: Backend, room: Path) -> None:
    path = room / "shared"
    path.write_text("one\ntwo\nthree\nfour\nfive\n")

    async def main() -> None:
        with open(path, "r+", newline="") as owned:  # noqa: ASYNC230
            file = trio.wrap_file(owned)
            lines = [await file.readline(), owned.readline(), await file.readline(), owned.readline()]
            assert "".join(lines) == "one\ntwo\nthree\nfour\n"
            await file.seek(0)
            await file.write("ONE\n")
            await file.flush()  # which BufferedRandom.read1 does by itself from CPython 3.12.2 on
            assert owned.readline() == "two\n"

    run(main, io_backend=backend)
    assert path.read_text() == "ONE\ntwo\nthree\nfour\nfive\n"


# ------------------------------------------------------------------ ways to open


def test_every_way_to_open_and_no_thread(ring: Backend, room: Path, no_threads: None) -> None:
    path = room / "opened"

    async def main() -> None:
        async with await open_file(path, "w", newline="\r\n") as file:
            assert await file.write("one\n") == 4
            await file.writelines(["two\n", "three\n"])
            assert (file.mode, file.encoding.upper(), os.fspath(file.name)) == (
                "w",
                "UTF-8",
                str(path),
            )  # 3.15: "utf-8"
        async with await trio.Path(path).open(encoding="utf-8") as file:
            assert file.newlines is None
            assert await file.read(3) == "one"
            assert file.newlines == "\r\n"
            assert [line async for line in file] == ["\n", "two\n", "three\n"]
        async with await open_file(path, "a+") as file:
            await file.write("four")
            assert await file.seek(0) == 0
            assert await file.readlines() == ["one\n", "two\n", "three\n", "four"]
        with pytest.raises(FileExistsError):
            await open_file(path, "x")

    run(main, io_backend=ring)
    assert path.read_bytes() == b"one\r\ntwo\r\nthree\r\nfour"


def test_a_descriptor_stays_open_with_closefd_false(ring: Backend, room: Path) -> None:
    path = room / "descriptor"
    path.write_bytes("\ufeffone\ntwo\n".encode())

    async def main() -> None:
        fd = os.open(path, os.O_RDWR)
        async with await open_file(fd, encoding="utf-8-sig", closefd=False) as file:
            assert file.name == fd
            assert await file.readline() == "one\n"
            assert await file.tell() == 7
        async with await open_file(fd, "r+") as file:
            # Where the first one left it: behind all it had read.
            assert await file.read() == ""
            await file.write("three\n")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    run(main, io_backend=ring)
    assert path.read_bytes() == "\ufeffone\ntwo\nthree\n".encode()


def test_an_opener_opens(ring: Backend, room: Path) -> None:
    asked: list[tuple[str, int]] = []

    def opener(name: str, flags: int) -> int:
        asked.append((name, flags & os.O_ACCMODE))
        return os.open(room / name, flags, 0o600)

    async def main() -> None:
        async with await open_file("elsewhere", "w", opener=opener) as file:
            await file.write("text")
        async with await open_file("elsewhere", opener=opener) as file:
            assert await file.read() == "text"

    run(main, io_backend=ring)
    assert asked == [("elsewhere", os.O_WRONLY), ("elsewhere", os.O_RDONLY)]


def test_a_line_is_in_the_file_when_its_write_returns(ring: Backend, room: Path) -> None:
    path = room / "line-buffered"

    async def main() -> None:
        async with await open_file(path, "w", buffering=1) as file:
            assert file.line_buffering
            await file.write("one\ntw")
            assert path.read_text() == "one\ntw"
            await file.write("o")
            assert path.read_text() == "one\ntw"
            await file.write("\n")
            assert path.read_text() == "one\ntwo\n"

    run(main, io_backend=ring)


def test_what_flush_promised_outlives_the_process(room: Path) -> None:
    path = room / "killed"
    program = """
import os, signal, sys, trio, trio_uring
async def main():
    file = await trio.open_file(sys.argv[1], "w", encoding="utf-16")
    await file.write("promised")
    await file.flush()
    await file.write("not promised")
    os.kill(os.getpid(), signal.SIGKILL)
trio.run(main, io_backend="uring")
"""
    root = str(Path(_files.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], env={**os.environ, "PYTHONPATH": root}, timeout=200, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == "promised".encode("utf-16")


# ------------------------------------------------------------------ iterating


def test_every_line_is_a_cancel_point(ring: Backend, room: Path) -> None:
    path = room / "cancel-points"
    path.write_text("line\n" * 3000)

    async def main() -> None:
        async with await open_file(path) as file:
            count = 0
            while count < 3000:
                with trio.CancelScope() as scope:
                    before = count
                    async for _ in file:
                        count += 1
                        if count == before + 1 + before % 7:
                            scope.cancel()
                # No line came after the cancel, and none was lost to it.
                assert count == before + 1 + before % 7 or count == 3000

    run(main, io_backend=ring)


def test_others_run_at_every_refill_and_every_millisecond(ring: Backend, room: Path) -> None:
    path = room / "schedule-points"
    path.write_text("a line of text\n" * 100_000)
    size = path.stat().st_size

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery, await open_file(path) as file:
            nursery.start_soon(other)
            await trio.lowlevel.checkpoint()
            before = turns
            async for _ in file:
                pass
            assert turns - before >= size // ahead.MAX_READ_AHEAD
            await file.seek(0)
            before = turns
            count = 0
            async for _ in file:
                # Whoever takes long over a line.
                until = time.monotonic() + 1.1 * _files.SCHEDULE_PERIOD
                while time.monotonic() < until:
                    pass
                count += 1
                if count == 20:
                    break
            # Two tasks that take turns may run in either order each time.
            assert turns - before >= count // 2
            nursery.cancel_scope.cancel()

    run(main, io_backend=ring)


def test_a_position_is_told_within_an_iteration(ring: Backend, room: Path) -> None:
    """As in Trio and AnyIO, whose `async for` calls `readline`; the builtin's disables `tell`."""
    path = room / "telling"
    path.write_text("one\ntwo\n" * 100)

    async def main() -> None:
        async with await open_file(path) as file:
            done = 0
            async for line in file:
                done += len(line)
                assert await file.tell() == done
            assert await file.tell() == done == 800

    run(main, io_backend=ring)


def test_two_tasks_share_the_lines_of_a_file(ring: Backend, room: Path) -> None:
    path = room / "two-tasks"
    path.write_text("".join(f"{number}\n" for number in range(20_000)))

    async def main() -> None:
        seen: list[int] = []

        async def take(file: Any) -> None:
            async for line in file:
                seen.append(int(line))

        async with await open_file(path) as file, trio.open_nursery() as nursery:
            nursery.start_soon(take, file)
            nursery.start_soon(take, file)
        assert sorted(seen) == list(range(20_000))

    run(main, io_backend=ring)


# ------------------------------------------------------------------ cancelled


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_cancelled_read_loses_nothing(encoding: str, ring: Backend, room: Path) -> None:
    """Each call is made in a task that another cancels: before it begins, in the same tick, or a tick later."""
    path = room / "cancelled-reads"
    path.write_bytes(TEXT.encode(encoding))
    calls = ("read", 7), ("readline",), ("next",), ("readlines", 50), ("read", 900), ("readline", 5)

    async def main() -> None:
        parts: list[str] = []
        cancelled = 0
        async with await open_file(path, encoding=encoding, newline="") as file:
            file._wrapped._CHUNK_SIZE = 50
            call = caller(file)
            number = 0
            while sum(map(len, parts)) < len(TEXT):
                name, *args = calls[number % len(calls)]
                with trio.CancelScope() as scope:

                    async def attempt(scope: trio.CancelScope, name: Any, *args: Any) -> None:
                        with scope:
                            parts.append("".join(await call(name, *args)))

                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(attempt, scope := trio.CancelScope(), name, *args)
                        for _ in range(number % 4):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
                cancelled += scope.cancelled_caught
                number += 1
        assert "".join(parts) == TEXT
        assert cancelled

    run(main, io_backend=ring)


@pytest.mark.parametrize("buffering", [-1, 1])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso2022_jp"])
def test_the_file_has_what_the_writes_report(encoding: str, buffering: int, ring: Backend, room: Path) -> None:
    path = room / "cancelled-writes"
    asked = 0

    async def main() -> str:
        nonlocal asked
        reported = ""
        async with await open_file(path, "w", buffering, encoding=encoding) as file:
            for number in range(150):
                text = f"{number} 日本\n" * (1 + number % 90 * number % 50)
                asked += len(text)

                async def attempt(scope: trio.CancelScope, text: str) -> None:
                    nonlocal reported
                    with scope:
                        assert await file.write(text) == len(text)
                        reported += text

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(attempt, scope := trio.CancelScope(), text)
                    for _ in range(number % 4):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        return reported

    reported = run(main, io_backend=ring)
    assert path.read_bytes() == reported.encode(encoding)
    assert 1_000 < len(reported) < asked


# ------------------------------------------------------------------ what can go wrong


@pytest.mark.parametrize("mode", ["r", "w", "r+"])
def test_errors_are_worded_as_the_builtins(mode: str, ring: Backend, room: Path) -> None:
    path = room / "errors"
    path.write_text("text\n")
    calls: list[tuple[Any, ...]] = [
        ("read", "x"), ("read", 1, 2), ("readline", None), ("write", b"x"), ("write",), ("writelines", [1]),
        ("seek", -1), ("seek", 1, 1), ("seek", 0, 3), ("seek", 1 << 200), ("seek", "x"), ("truncate", -1), ("tell", 1),
    ]  # fmt: skip

    async def main() -> None:
        with open(path, mode, encoding="ascii") as builtin:  # noqa: ASYNC230
            async with await open_file(path, mode, encoding="ascii") as file:
                for name, *args in [*calls, ("close",), *calls]:
                    if name == "close":
                        builtin.close()
                        await file.aclose()
                        continue
                    with pytest.raises(Exception) as expected:  # noqa: PT011, PT012
                        getattr(builtin, name)(*args)
                        raise LookupError
                    with pytest.raises(Exception) as got:  # noqa: PT011, PT012
                        await getattr(file, name)(*args)
                        raise LookupError
                    assert (type(got.value), str(got.value)) == (type(expected.value), str(expected.value)), (
                        name,
                        args,
                    )

    run(main, io_backend=ring)


def test_a_file_that_may_not_grow_is_as_large_as_the_builtins(ring: Backend, room: Path, no_threads: None) -> None:
    """RLIMIT_FSIZE: the same calls fail, with the same error, and the same is in the file."""
    here, there = room / "limited-here", room / "limited-there"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def main() -> None:
        builtin = open(there, "w")  # noqa: SIM115, ASYNC230
        file = await open_file(here, "w")
        for size in (100, 9_000, 20, 20_000, 5):
            text = str(size)[-1] * size
            expected = outcome_of(builtin.write, text)
            try:
                got: Any = await file.write(text)
            except OSError as error:
                got = type(error), str(error)
            assert got == expected
        assert there.read_bytes() == here.read_bytes()
        expected = outcome_of(builtin.close)
        try:
            got = await file.aclose()
        except OSError as error:
            got = type(error), str(error)
        assert got == expected
        assert file.closed

    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, before[1]))
    try:
        run(main, io_backend=ring)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert here.stat().st_size == there.stat().st_size == 15_000
