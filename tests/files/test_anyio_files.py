"""AnyIO's files where AnyIO runs on Trio on the ring: AsyncFile, open_file, wrap_file, Path.open, streams, temporary files.

Knows AnyIO's and Trio's public interfaces and the table of replaced names. AnyIO on Trio on epoll is the oracle; asyncio
is what must not notice.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import os
import random
import subprocess
import sys
import textwrap
import types
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.streams.file
import pytest
import sniffio
import trio
from anyio.streams.file import FileReadStream, FileStreamAttribute, FileWriteStream
from pipe_tools import Backend, outcome_of, run, statistics

import trio_uring
from trio_uring._entry import seams as _seams

pytestmark = pytest.mark.usefixtures("descriptors_flat")

TEXT = "first line\nzweite Zeile, ä\r\nthird\n\nlast without an end"
ThreadCache: Any = trio._core._thread_cache.ThreadCache


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What worker threads have been asked to do, from now on."""
    asked: list[str] = []
    start = ThreadCache.start_thread_soon

    def noted(self: Any, fn: Any, *args: Any, **options: Any) -> None:
        asked.append(repr(fn))
        start(self, fn, *args, **options)

    monkeypatch.setattr(ThreadCache, "start_thread_soon", noted)
    return asked


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with some text."""
    path = tmp_path / "file"
    reset(path)
    return path


def reset(path: Path) -> None:
    """The text of `file`."""
    path.write_bytes(TEXT.encode())


def remove(path: Path) -> None:
    """It need not be there."""
    path.unlink(missing_ok=True)


def contents(path: Path) -> bytes:
    """What is in a file now."""
    return path.read_bytes()


# With arguments of any type.
open_file: Any = anyio.open_file
wrap_file: Any = anyio.wrap_file


# ------------------------------------------------------------------ every method, against epoll


Step = tuple[str, tuple[Any, ...]]

READING: list[Step] = [
    ("read", (3,)),
    ("tell", ()),
    ("readline", ()),
    ("read1", (4,)),
    ("read1", ()),
    ("tell", ()),
    ("seek", (2,)),
    ("readinto", (bytearray(5),)),
    ("readinto1", (bytearray(7),)),
    ("seek", (0, os.SEEK_END)),
    ("read", ()),
    ("readline", ()),
    ("seek", (6, os.SEEK_SET)),
    ("readlines", ()),
    ("readlines", ()),
    ("seek", (0, None)),
    ("seek", ("x",)),
    ("seek", (-1,)),
    ("read", ("x",)),
    ("read", (2.5,)),
    ("readinto", (b"constant",)),
    ("seek", (0,)),
    ("read", (None,)),
]
WRITING: list[Step] = [
    ("write", ("one",)),
    ("write", (b"one",)),
    ("tell", ()),
    ("writelines", (["two", "three\n"],)),
    ("writelines", ([b"two", b"three\n"],)),
    ("writelines", ([1],)),
    ("write", (5,)),
    ("flush", ()),
    ("seek", (1,)),
    ("write", ("ö",)),
    ("write", (memoryview(b"view"),)),
    ("truncate", ()),
    ("tell", ()),
    ("truncate", (2,)),
    ("truncate", ("x",)),
    ("seek", (0, os.SEEK_END)),
    ("write", ("end",)),
    ("write", (b"end",)),
    ("flush", ()),
]
MODES = ["r", "rb", "w", "wb", "a", "ab", "r+", "rb+", "w+", "wb+", "a+", "ab+", "x", "xb+"]


async def told_of(f: anyio.AsyncFile[Any], program: list[Step]) -> list[Any]:
    """What the calls of a program answer; memory that they fill is answered, too."""
    seen: list[Any] = []
    for name, arguments in program:
        given = tuple(bytearray(each) if isinstance(each, bytearray) else each for each in arguments)
        seen.append(
            (name, await outcome_of(getattr(f, name), *given), given[:1] if name.startswith("readinto") else None)
        )
    return seen


@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "raw"])
@pytest.mark.parametrize("mode", MODES)
def test_every_method_answers_as_on_epoll_and_without_a_thread(
    ring: Backend, file: Path, threads: list[str], mode: str, buffering: int
) -> None:
    async def main() -> Any:
        if mode.startswith("x"):
            remove(file)
        else:
            reset(file)
        try:
            f = await open_file(file, mode, buffering)
        except ValueError as error:
            return str(error)
        async with f:
            seen = [f.name, f.mode, f.closed, f.readable(), f.writable(), f.seekable(), f.isatty()]
            seen += [getattr(f, name, None) for name in ("encoding", "errors", "line_buffering", "closefd")]
            programs = WRITING + READING if "+" in mode or mode[0] != "r" else READING + WRITING
            seen += await told_of(f, programs)
            await f.seek(0)
            seen.append(await outcome_of(lines_of, f))
        seen += [f.closed, await outcome_of(f.read), await outcome_of(f.write, b""), await outcome_of(f.flush)]
        await f.aclose()
        return seen, contents(file)

    expected = run("epoll", main)
    threads.clear()
    assert run(ring, main) == expected
    assert threads == []


async def lines_of(f: anyio.AsyncFile[Any]) -> list[Any]:
    return [line async for line in f]


def test_keywords_and_wrong_numbers_of_arguments(ring: Backend, file: Path) -> None:
    calls: list[Callable[[Any], Awaitable[Any]]] = [
        lambda f: f.read(size=4),
        lambda f: f.seek(offset=1),
        lambda f: f.seek(offset=0, whence=os.SEEK_END),
        lambda f: f.truncate(size=3),
        lambda f: f.readinto(b=bytearray(2)),
        lambda f: f.write(b=b"x"),
        lambda f: f.writelines(lines=[b"y"]),
        lambda f: f.read(1, 2),
        lambda f: f.readline(1),
        lambda f: f.read(amount=1),
        lambda f: f.write(),
    ]

    async def main() -> Any:
        reset(file)
        async with await open_file(file, "rb+") as f:
            return [await outcome_of(call, f) for call in calls], await f.tell()

    assert run(ring, main) == run("epoll", main)


@pytest.mark.parametrize(
    "arguments",
    [
        ("missing",),
        (".",),
        ("file", "xb"),
        ("file", "q"),
        ("file", "rb", 1, "utf-8"),
        ("file", "r", 0),
        ("file", "r", -1, "no-such-encoding"),
        ("file", "r", -1, None, None, "x"),
        ("nul\0byte",),
        ("missing/file", "w"),
        (None,),
        (12345,),
        ("file", "rb", -1, None, None, None, False),
    ],
    ids=repr,
)
def test_what_open_refuses_is_refused_in_the_same_words(ring: Backend, file: Path, arguments: tuple[Any, ...]) -> None:
    first, *others = arguments
    name = str(file.parent / first) if isinstance(first, str) else first

    async def main() -> Any:
        path = anyio.Path(file.parent) / first if isinstance(first, str) else None
        return (
            await outcome_of(anyio.open_file, name, *others),
            await outcome_of(path.open, *others) if path is not None and len(others) < 6 else None,
        )

    found = run(ring, main)
    assert found == run("epoll", main)
    assert isinstance(found[0], tuple)  # an exception


def test_descriptors_openers_and_closefd(ring: Backend, file: Path, threads: list[str]) -> None:
    async def main() -> None:
        with open(file, "rb") as outside:  # noqa: ASYNC230
            async with await open_file(outside.fileno(), "rb", closefd=False) as f:
                assert await f.read(5) == b"first"
            assert os.lseek(outside.fileno(), 0, os.SEEK_CUR) >= 5
        opened: list[str] = []

        def opener(path: str, flags: int) -> int:
            opened.append(path)
            return os.open(path, flags)

        async with await open_file(file, "r", encoding="utf-8", opener=opener) as f:
            assert await f.read() == TEXT.replace("\r\n", "\n")
        assert opened == [str(file)]
        async with await open_file(os.open(file, os.O_RDONLY), "rb") as f:
            assert await f.readline() == b"first line\n"
            fd = f.fileno()
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)

    run(ring, main)


# ------------------------------------------------------------------ what a user holds


def test_the_object_is_anyios_and_its_attributes_are_the_files(
    pure_ring: Backend, file: Path, threads: list[str]
) -> None:
    async def main() -> None:
        before = statistics().submitted
        async with await open_file(file, encoding="utf-8", newline="") as f:
            assert type(f) is anyio.AsyncFile
            assert (f.name, f.mode, f.encoding, f.errors, f.closed) == (str(file), "r", "utf-8", "strict", False)
            assert f.limiter is None
            with pytest.raises(AttributeError, match="'_io\\.TextIOWrapper' object has no attribute 'nothing'"):
                _ = f.nothing
            assert f.newlines is None
            assert await f.readline() == "first line\n"
            assert f.newlines == ("\n", "\r\n")  # as of the builtin: of what is decoded
            assert await f.readline() == "zweite Zeile, ä\r\n"
            with pytest.raises(AttributeError, match="'_io\\.TextIOWrapper' object has no attribute 'read1'"):
                await f.read1()
        assert statistics().submitted - before >= 2  # openat, read
        assert threads == []

    run(pure_ring, main)


@pytest.mark.parametrize("touch", ["wrapped", "buffer", "raw", "peek"])
def test_who_reaches_for_the_builtin_file_finds_its_position(backend: Backend, file: Path, touch: str) -> None:
    async def main() -> None:
        mode = "rb" if touch in ("raw", "peek") else "r"
        f = await open_file(file, mode, newline=None if "b" in mode else "")
        assert len(await f.readline()) == 11
        if touch == "peek":
            assert f.peek().startswith(b"zweite")
        else:
            assert getattr(f, touch) is not None
        real = f.wrapped
        assert real.tell() == 11
        assert real.read(6) in ("zweite", b"zweite")
        assert len(await f.read(1)) == 1
        assert real.tell() == 18
        assert f.wrapped is real
        await f.aclose()
        assert f.closed

    run(backend, main)


def test_a_text_file_is_detached(backend: Backend, file: Path) -> None:
    async def main() -> None:
        f = await open_file(file, "r+", encoding="utf-8")
        await f.write("FIRST")
        binary = f.detach()
        assert type(binary) is io.BufferedRandom
        assert binary.tell() == 5
        binary.close()
        with pytest.raises(ValueError, match="detached"):
            await f.read()

    run(backend, main)
    assert contents(file).startswith(b"FIRST line")


def test_what_was_written_is_in_the_builtin_file_that_is_handed_over(
    backend: Backend, file: Path, threads: list[str]
) -> None:
    async def main() -> None:
        async with await open_file(file, "wb+") as f:
            await f.write(b"not flushed")
            real = f.wrapped
            assert real.tell() == 11
            real.write(b", by hand")
            await f.write(b", by AnyIO")
            await f.flush()
            assert contents(file) == b"not flushed, by hand, by AnyIO"
            await f.seek(0)
            assert real.read(3) == b"not"

    run(backend, main)
    assert threads  # from then on it is served as today


def test_a_file_that_was_wrapped_is_shared_with_its_owner(backend: Backend, file: Path, threads: list[str]) -> None:
    async def main() -> None:
        with open(file, "rb+") as real:  # noqa: ASYNC230
            f = wrap_file(real)
            assert f.wrapped is real
            assert real.read(1) == b"f"
            assert await f.read(4) == b"irst"
            assert real.tell() == 5
            assert real.readline() == b" line\n"
            assert await f.readline() == "zweite Zeile, ä\r\n".encode()
            await f.seek(0)
            await f.write(b"FIRST")
            assert real.tell() == 5
            real.write(b"!")
            assert await f.tell() == 6
            assert await f.read(4) == b"line"
            await f.aclose()
            assert real.closed

    run(backend, main)
    assert contents(file).startswith(b"FIRST!line")


def test_what_the_ring_cannot_serve_goes_to_a_thread(backend: Backend, file: Path, threads: list[str]) -> None:
    class Own(io.FileIO):
        pass

    async def main() -> None:
        async with wrap_file(io.BytesIO(b"in memory")) as f:
            assert await f.read(2) == b"in"
        text = wrap_file(io.StringIO("one\ntwo\n"))
        assert [line async for line in text] == ["one\n", "two\n"]
        async with wrap_file(Own(file)) as own:
            assert await own.read(5) == b"first"
        async with await open_file("/proc/self/comm") as comm:
            assert await comm.read()
        async with await open_file("/dev/full", "wb", 0) as full:
            with pytest.raises(OSError, match="No space left"):
                await full.write(b"x")

    run(backend, main)
    assert threads


def test_a_limiter_limits_threads_and_there_are_none(ring: Backend, file: Path) -> None:
    async def main() -> None:
        limiter = anyio.CapacityLimiter(1)
        async with limiter, await open_file(file, "rb", limiter=limiter) as f:  # all of it is taken
            assert f.limiter is limiter
            assert await f.read(5) == b"first"
            await f.seek(0)
            assert len([line async for line in f]) == 5
        with pytest.raises(TypeError, match="limiter must be a CapacityLimiter"):
            wrap_file(io.BytesIO(), limiter=5)

    run(ring, main)


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_file_goes_from_run_to_run_and_from_backend_to_backend(file: Path, how: str) -> None:
    """What one run has read ahead, or not written yet, the next one finds, be it on the ring, on epoll, or asyncio's."""

    async def begin() -> Any:
        f: Any = await open_file(file, "rb" if how == "read" else "wb")
        await step(f)
        return f

    async def step(f: Any) -> None:
        if how == "read":
            lines.append(await f.readline())
        else:
            await f.write(b"line %d\n" % len(lines))
            lines.append(b"")

    lines: list[bytes] = []
    orders: tuple[tuple[Literal["uring", "epoll", "asyncio"], ...], ...]
    orders = ("uring", "epoll", "uring"), ("epoll", "uring", "asyncio"), ("uring", "asyncio", "uring")
    for then in orders:
        reset(file)
        lines.clear()
        f: Any = None
        for backend in then:
            if backend == "asyncio":
                anyio.run(step, f, backend="asyncio")
            elif f is None:
                f = run(backend, begin)
            else:
                run(backend, step, f)
        anyio.run(f.aclose, backend="asyncio")
        if how == "read":
            assert lines == TEXT.encode().splitlines(keepends=True)[:3]
        else:
            assert contents(file) == b"line 0\nline 1\nline 2\n"


def test_a_file_that_nobody_closes_is_written_and_closed_all_the_same(backend: Backend, file: Path) -> None:
    async def main() -> None:
        f = await open_file(file, "wb")
        await f.write(b"nobody flushed this")
        fd = f.fileno()
        del f
        gc.collect()
        assert contents(file) == b"nobody flushed this"
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the builtin file's own
        run(backend, main)


# ------------------------------------------------------------------ cancellation and checkpoints


def test_every_call_is_a_schedule_point_and_a_cancel_point(backend: Backend, file: Path) -> None:
    async def main() -> None:
        async with await open_file(file, "rb+") as f:
            calls: list[tuple[Any, ...]] = [
                (f.read, 3),
                (f.tell,),
                (f.readline,),
                (f.seek, 0),
                (f.write, b"x"),
                (f.flush,),
            ]
            for call, *arguments in calls:
                with trio.testing.assert_checkpoints():
                    await call(*arguments)
                position = await f.tell()
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await call(*arguments)
                assert scope.cancelled_caught
                assert await f.tell() == position
            await f.seek(0)
            async with contextlib.aclosing(aiter(f)) as lines:
                with trio.testing.assert_checkpoints():
                    assert await anext(lines)
                scope = trio.CancelScope()
                with scope:
                    scope.cancel()
                    await anext(lines)
                assert scope.cancelled_caught

    run(backend, main)


def test_a_file_is_closed_and_written_even_in_a_scope_that_is_cancelled(backend: Backend, file: Path) -> None:
    async def main() -> None:
        f = await open_file(file, "wb")
        await f.write(b"written")
        with trio.CancelScope() as scope:
            scope.cancel()
            await f.aclose()
        assert f.closed
        s = await FileWriteStream.from_path(file, append=True)
        await s.send(b" and sent")
        with trio.CancelScope() as scope:
            scope.cancel()
            await s.aclose()
        assert scope.cancelled_caught
        assert contents(file) == b"written and sent"

    run(backend, main)


def test_reads_that_are_cancelled_at_any_moment_lose_nothing(ring: Backend, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(random.Random(5).randbytes(1_000_000))

    async def main() -> None:
        caught = attempts = 0
        received = bytearray()
        async with await open_file(file, "rb") as f:
            while len(received) < 1_000_000:
                attempts += 1
                with anyio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        if attempts % 4:
                            nursery.start_soon(cancel_after, scope, attempts % 4)
                        else:
                            scope.cancel()
                        received += await f.read(7919)
                        nursery.cancel_scope.cancel()
                caught += scope.cancelled_caught
        assert received == contents(file)
        assert attempts // 4 <= caught < attempts

    async def cancel_after(scope: anyio.CancelScope, turns: int) -> None:
        for _ in range(turns - 1):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    run(ring, main)


# ------------------------------------------------------------------ streams


def test_file_streams_answer_as_on_epoll_and_without_a_thread(ring: Backend, file: Path, threads: list[str]) -> None:
    async def main() -> Any:
        reset(file)
        seen: list[Any] = []
        stream = await FileReadStream.from_path(file)
        seen.append(await stream.receive(5))
        seen.append(await stream.tell())
        seen.append(await outcome_of(stream.receive, 0))
        seen.append(stream.extra(FileStreamAttribute.path) == file)
        seen.append(await stream.seek(-4, os.SEEK_END))
        seen.append(await stream.receive())
        seen.append(await outcome_of(stream.receive))
        seen.append(await outcome_of(stream.seek, -1))
        await stream.seek(0)
        seen.append([chunk async for chunk in stream])
        await stream.aclose()
        seen.append(await outcome_of(stream.receive))
        seen.append(await outcome_of(stream.tell))
        for append in (False, True):
            async with await FileWriteStream.from_path(file, append) as sender:
                await sender.send(b"some")
                await sender.send(b"thing")
            seen.append(contents(file))
        seen.append(await outcome_of(sender.send, b"closed"))
        seen.append(await outcome_of(FileReadStream.from_path, file / "missing"))
        async with FileWriteStream(await anyio.to_thread.run_sync(open, file, "rb")) as wrong:
            seen.append(await outcome_of(wrong.send, b"x"))
        return seen

    expected = run("epoll", main)
    threads.clear()
    assert run(ring, main) == expected
    assert len(threads) == 3  # the one that the test asks for, and those of the file that it opens there


def test_the_file_attribute_of_a_stream_hands_the_file_over(backend: Backend, file: Path) -> None:
    async def main() -> None:
        async with await FileReadStream.from_path(file) as stream:
            assert await stream.receive(6) == b"first "
            real = stream.extra(FileStreamAttribute.file)
            assert real.tell() == 6
            assert real.read(4) == b"line"
            assert await stream.receive(1) == b"\n"
        async with await FileWriteStream.from_path(file) as sender:
            await sender.send(b"one")
            sender.extra(FileStreamAttribute.file).write(b", two")
            await sender.send(b", three")
        assert contents(file) == b"one, two, three"

    run(backend, main)


def test_temporary_files(ring: Backend) -> None:
    async def main() -> Any:
        seen: list[Any] = []
        async with anyio.TemporaryFile("w+", encoding="utf-8") as f:
            await f.write(TEXT)
            await f.seek(0)
            seen.append(await f.read())
        async with anyio.NamedTemporaryFile("wb+") as named:
            await named.write(b"named")
            await named.seek(1)
            seen.append(await named.read())
        async with anyio.SpooledTemporaryFile(max_size=10) as spooled:
            for part in (b"in memory", b" and", b" then in a file"):
                await spooled.write(part)
            await spooled.seek(3)
            seen.append(await spooled.read())
            seen.append(await spooled.tell())
        return seen

    assert run(ring, main) == run("epoll", main)


# ------------------------------------------------------------------ other backends, other orders of import


def test_asyncio_goes_its_own_way(ring: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a ring, beside one in another thread, and in the host of a guest run."""
    own: list[str] = []
    to_thread = anyio.to_thread.run_sync

    async def noted(func: Any, *args: Any, **options: Any) -> Any:
        own.append(sniffio.current_async_library())
        return await to_thread(func, *args, **options)

    async def use() -> bytes:
        async with await open_file(file, "rb") as f:
            return bytes(await f.read(5))

    async def on_ring() -> bytes:
        await use()
        return await trio.to_thread.run_sync(anyio.run, use)

    monkeypatch.setattr(anyio.to_thread, "run_sync", noted)
    assert run(ring, on_ring) == b"first"
    assert own == ["asyncio"] * 3
    own.clear()

    async def host() -> bytes:
        from asyncio import get_running_loop

        loop = get_running_loop()
        over = loop.create_future()
        trio_uring.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=over.set_result,
            io_backend=ring,
        )
        for _ in range(3):
            assert await use() == b"first"
        return (await over).unwrap()  # type: ignore[no-any-return]

    async def guest() -> bytes:
        for _ in range(20):
            found = await use()
        return found

    assert anyio.run(host) == b"first"
    assert own == ["asyncio"] * 9


def test_asyncio_tasks_inside_a_task_of_trio_go_their_own_way(
    ring: Backend, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with trio-asyncio, which tells sniffio what it is running."""
    own: list[object] = []

    async def noted(func: Any, *args: Any, **options: Any) -> Any:
        own.append(func)

    async def main() -> None:
        monkeypatch.setattr(anyio.to_thread, "run_sync", noted)
        # Not by monkeypatch, which would put it back after the run has.
        sniffio.thread_local.name = "asyncio"
        try:
            await open_file(file)
        finally:
            sniffio.thread_local.name = "trio"

    run(ring, main)
    assert own == [open]


def in_child(program: str, *arguments: object) -> None:
    """Run a program in a process of its own, on the installed package, with worker threads forbidden."""
    prelude = """
        import sys
        import trio

        def no_threads():
            def refuse(*args, **options):
                raise AssertionError("a worker thread was asked for")

            trio._core._thread_cache.ThreadCache.start_thread_soon = refuse
    """
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            textwrap.dedent(prelude) + textwrap.dedent(program),
            *map(str, arguments),
        ],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert not done.stderr
    assert not done.returncode


def test_names_that_were_bound_before_there_was_a_ring_are_served(file: Path) -> None:
    in_child(
        """
        from anyio import AsyncFile, Path, open_file, wrap_file
        from anyio.streams.file import FileReadStream
        import trio_uring

        async def main(path):
            no_threads()
            async with await open_file(path) as f:
                assert await f.readline() == "first line\\n"
            async with await Path(path).open("rb") as f:
                assert await f.read(5) == b"first"
            with open(path, "ab", 0) as real:
                assert await AsyncFile(real).write(b"last") == 4
            async with await FileReadStream.from_path(path) as stream:
                assert await stream.receive(5) == b"first"

        trio.run(main, sys.argv[1], io_backend="uring")
        """,
        file,
    )


def test_anyio_that_is_imported_when_a_ring_is_there_is_served(file: Path) -> None:
    in_child(
        """
        import trio_uring

        async def first(path):
            import anyio

            no_threads()
            async with await anyio.open_file(path) as f:
                assert await f.readline() == "first line\\n"

        async def second(path):
            from anyio.streams.file import FileReadStream

            async with await FileReadStream.from_path(path) as stream:
                assert await stream.receive(5) == b"first"

        before = list(sys.meta_path)
        trio.run(first, sys.argv[1], io_backend="uring")
        trio.run(second, sys.argv[1], io_backend="uring")
        assert sys.meta_path == before
        """,
        file,
    )


def test_nothing_imports_anyio(file: Path) -> None:
    in_child(
        """
        import trio_uring

        async def main(path):
            async with await trio.open_file(path) as f:
                assert await f.readline() == "first line\\n"
            await trio.Path(path).stat()
            assert (await trio.run_process(["cat"], stdin=b"x", capture_stdout=True)).stdout == b"x"

        trio.run(main, sys.argv[1], io_backend="uring")
        assert not [name for name in sys.modules if name.partition(".")[0] == "anyio"]
        """,
        file,
    )


# ------------------------------------------------------------------ the table


ROWS = [row for rows in _seams.ANYIO_SEAMS for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.modules[0]}.{row.name}")
def test_each_row_is_in_place(row: _seams.Seam) -> None:
    run("uring", trio.lowlevel.checkpoint)
    (module,) = row.modules
    found: Any = sys.modules[module]
    for name in row.name.split("."):
        found = inspect.getattr_static(found, name)
    found = getattr(found, "fget", found)
    home = found.__class__.run_sync if row.name == "to_thread" else found
    assert Path(home.__code__.co_filename).parents[1] == Path(_seams.__file__).parents[1]
    assert row.why
    assert module in _seams.ANYIO_MODULES


def test_an_anyio_that_does_more_with_a_file_than_we_know_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        class AsyncFile:
            def __init__(self, fp): self._fp = fp
            async def read(self): return await to_thread.run_sync(self._fp.read)
            {more}
    """
    check = next(row for row in ROWS if row.modules == ("anyio._core._fileio",) and row.name == "to_thread").check
    for more, complaints in (
        ("pass", []),
        ("def fileno(self): return self._fp.fileno()", ["is not what AsyncFile.fileno calls"]),
    ):
        module = types.ModuleType("anyio._core._fileio")
        exec(textwrap.dedent(source.format(more=more)), vars(module))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        assert list(check(anyio.to_thread)) == complaints
    assert list(check(types.SimpleNamespace())) == ["has no run_sync"]
