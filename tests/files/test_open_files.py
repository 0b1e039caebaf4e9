"""Open files on the ring: what goes through it, what does not, who sees what when, and who gets the file afterwards.

Knows the public interface of trio and the counters of the ring; what the calls answer is test_files_oracle.py's.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
import trio.testing

import trio_uring

run: Any = trio.run


def on_ring(main: Callable[[], Awaitable[Any]], speculate: bool | Literal["auto"] = "auto") -> Any:
    return run(main, io_backend=trio_uring.UringBackend(speculate=speculate))


def submitted() -> int:
    statistics: Any = trio.lowlevel.current_statistics().io_statistics
    return int(statistics.submitted)


class Threads:
    """Counts the worker threads that Trio is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[Any] = []
        own = trio.to_thread.run_sync

        async def run_sync(sync_fn: Any, *args: Any, **kwargs: Any) -> Any:
            self.jobs.append(sync_fn)
            return await own(sync_fn, *args, **kwargs)

        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
        monkeypatch.setattr("trio._path.run_sync", run_sync)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


async def use_everything(file: Any) -> None:
    """All that a file can do."""
    if file.writable():
        await file.write("x\n" if hasattr(file, "encoding") else b"x\n")
        await file.writelines(["y\n", "z"] if hasattr(file, "encoding") else [b"y\n", b"z"])
        await file.flush()
        await file.truncate()
    await file.tell()
    await file.seek(0)
    if file.readable():
        await file.readline()
        await file.readlines()
        await file.seek(0)
        await file.read(1)
        await file.read()
        await file.seek(0)
        assert [line async for line in file]
        for name in ("read1", "readall", "peek"):
            if hasattr(file, name):
                await getattr(file, name)()
        for name in ("readinto", "readinto1"):
            if hasattr(file, name):
                await getattr(file, name)(bytearray(5))
    dir(file)
    assert file.name
    await file.aclose()
    assert file.closed


@pytest.mark.parametrize("mode", ["r", "rb", "w", "wb", "a", "ab", "r+", "r+b", "w+", "w+b", "a+", "a+b"])
@pytest.mark.parametrize("how", ["open_file", "Path.open", "unbuffered"])
@pytest.mark.parametrize("speculate", ["auto", False])
def test_no_worker_thread_is_started(
    mode: str, how: str, speculate: bool | Literal["auto"], tmp_path: Path, threads: Threads
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\n" * 3)

    async def main() -> None:
        before = submitted()
        if how == "open_file":
            file: Any = await trio.open_file(path, mode)
        elif how == "Path.open":
            file = await trio.Path(path).open(mode)
        else:
            file = await trio.open_file(path, mode, 0 if "b" in mode else 1)
        await use_everything(file)
        assert speculate or submitted() > before + 1

    running = threading.active_count()
    on_ring(main, speculate)
    assert threads.jobs == []
    assert threading.active_count() <= running  # one that idled may have gone


def test_a_name_bound_after_the_import_is_served(tmp_path: Path, threads: Threads) -> None:
    program = (
        "import trio_uring, trio, sys\n"
        "from trio import open_file\n"
        "async def main():\n"
        "    before = trio.lowlevel.current_statistics().io_statistics.submitted\n"
        "    async with await open_file(sys.argv[1]) as file:\n"
        "        assert await file.read() == 'text'\n"
        "    assert trio.lowlevel.current_statistics().io_statistics.submitted >= before + 2\n"
        "trio.run(main, io_backend=trio_uring.UringBackend(speculate=False))\n"
    )
    path = tmp_path / "file"
    path.write_text("text")
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=200)


def test_the_object_is_trios(tmp_path: Path) -> None:
    async def main() -> None:
        async with await trio.open_file(tmp_path / "file", "w+") as file:
            assert type(file) is trio._file_io.AsyncIOWrapper
            assert file.read is file.read
            assert file.read.__qualname__ == "AsyncIOWrapper.read"
            assert "TextIOWrapper.read" in (file.read.__doc__ or "")
            assert not [name for name in dir(file) if "uring" in name]
            assert {"read", "write", "name", "encoding", "buffer"} <= set(dir(file))
            assert not hasattr(file, "getvalue")
            assert not hasattr(file, "readall")
            with pytest.raises(AttributeError):
                file.unknown  # type: ignore[attr-defined] # noqa: B018
            await file.write("still served")
            assert (tmp_path / "file").read_text() == ""

    on_ring(main)


def test_every_call_is_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def checked(call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        with trio.testing.assert_checkpoints():
            result = await call(*args)
        with trio.CancelScope() as scope:
            scope.cancel()
            await call(*args)
        assert scope.cancelled_caught
        return result

    async def main() -> None:
        with trio.testing.assert_checkpoints():
            file: Any = await trio.open_file(path, "w+b")
        await checked(file.write, b"1\n" * 100)
        await checked(file.flush)
        for name in ("tell", "peek", "readline", "read1", "readlines", "truncate", "read"):
            await checked(file.seek, 0)
            await checked(getattr(file, name))
        await checked(file.readinto, bytearray(3))
        await checked(file.readinto1, bytearray(3))
        with trio.testing.assert_checkpoints():
            await file.aclose()
        with trio.testing.assert_checkpoints():
            await file.aclose()

    on_ring(main)
    assert path.read_bytes() == b""


def test_closing_is_shielded_and_then_a_cancel_point(tmp_path: Path) -> None:
    async def main() -> None:
        file = await trio.open_file(tmp_path / "file", "w")
        await file.write("held back")
        with trio.CancelScope() as scope:
            scope.cancel()
            await file.aclose()
        assert scope.cancelled_caught
        assert file.closed
        with pytest.raises(ValueError, match="closed file"):
            await file.write("more")

    on_ring(main)
    assert (tmp_path / "file").read_text() == "held back"


# ------------------------------------------------------------------ lines


def test_lines_are_cancel_points_and_let_others_run(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("line\n" * 20000)

    async def main() -> None:
        for mode in ("r", "rb"):
            file: Any
            async with await trio.open_file(path, mode) as file:
                turns = seen = 0

                async def other() -> None:
                    nonlocal turns
                    while True:
                        turns += 1
                        await trio.lowlevel.checkpoint()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(other)
                    started = time.thread_time()  # in which others do not count
                    async for _ in file:
                        seen += 1
                    took = time.thread_time() - started
                    nursery.cancel_scope.cancel()
                assert seen == 20000
                assert turns >= min(10, took / 0.05)
                await file.seek(0)
                with trio.CancelScope() as scope:
                    async for _ in file:
                        seen += 1
                        if seen == 20010:
                            scope.cancel()
                assert scope.cancelled_caught
                assert seen == 20010
                # The line that was not handed out is the next one.
                assert len(await file.read()) == (20000 - 10) * 5

    on_ring(main)


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_positions_within_async_for_are_those_of_readline(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("ligne é\n".encode() * 3000)

    async def main() -> None:
        told: dict[int, Any] = {}
        async with await trio.open_file(path, mode, encoding=None if mode == "rb" else "utf-8") as file:
            number = 0
            async for _ in file:
                number += 1
                if number % 500 == 0:
                    told[number] = await file.tell()
            for number, place in told.items():
                assert place == number * 9
                await file.seek(place)
                assert len(await file.readlines()) == 3000 - number

    on_ring(main)


def test_a_wrapped_file_that_its_owner_closes_meanwhile(tmp_path: Path) -> None:
    """F17: the number is another file's at once, and what was queued must not reach that."""
    (tmp_path / "file").write_bytes(b"x" * 100_000)

    async def main() -> None:
        for mode, call in (("rb", "read"), ("r+b", "write")):
            owned = (tmp_path / "file").open(mode)
            file: Any = trio.wrap_file(owned)
            outcomes: list[object] = []

            async def use(file: Any = file, call: str = call, outcomes: list[object] = outcomes) -> None:
                try:
                    outcomes.append(await getattr(file, call)(*((b"y" * 50_000,) if call == "write" else (70_000,))))
                except ValueError as error:
                    outcomes.append(str(error))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(use)
                await trio.lowlevel.checkpoint()
                owned.close()
                with (tmp_path / "other").open("w+b") as other:
                    other.write(b"other")
                    other.flush()
                    await trio.testing.wait_all_tasks_blocked()
                    assert other.tell() == 5
            assert outcomes
            assert (tmp_path / "other").read_bytes() == b"other"

    on_ring(main)


def test_a_slow_reader_of_lines_lets_others_run_each_millisecond(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("line\n" * 100)

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            async with await trio.open_file(path) as file:
                await file.readline()
                before = turns
                async for _ in file:
                    time.sleep(0.0011)  # noqa: ASYNC251
                assert turns - before >= 90
            nursery.cancel_scope.cancel()

    on_ring(main)


# ------------------------------------------------------------------ handing over


@pytest.mark.parametrize("reach", ["wrapped", "buffer", "raw", "detach"])
def test_who_reaches_for_the_builtin_object_gets_all_of_it(reach: str, tmp_path: Path, threads: Threads) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 3000)

    async def main() -> None:
        mode = "r+b" if reach == "raw" else "r+"
        file: Any = await trio.open_file(path, mode)
        assert len(await file.read(5)) == 5
        await file.seek(10)
        await file.write("abc" if mode == "r+" else b"abc")
        assert threads.jobs == []
        if reach in ("buffer", "raw"):  # what is above it is held back there, as it is by the builtin
            await file.flush()
        inner = (await file.detach()).wrapped if reach == "detach" else getattr(file, reach)
        inner.flush()
        assert path.read_bytes()[8:15] == b"89abc34"
        assert inner.tell() == 13
        assert inner.read(2) in ("34", b"34")
        if reach == "wrapped":
            # From now on it is served as Trio does it.
            del threads.jobs[:]
            assert await file.read(2) == "56"
            assert len(threads.jobs) == 1
            await file.aclose()
        inner.close()

    on_ring(main)


def test_reaching_for_it_while_the_kernel_is_at_work_hands_over_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 3000)

    async def main() -> None:
        async with await trio.open_file(path, "rb") as file, trio.open_nursery() as nursery:
            found = []

            async def read() -> None:
                found.append(await file.read(7))

            for _ in range(3):
                nursery.start_soon(read)
            await trio.lowlevel.checkpoint()
            real = file.wrapped
            nursery.start_soon(read)  # waits for the kernel, too
        assert sorted(found) == [b"0123456", b"1234567", b"4567890", b"7890123"]
        assert real.closed

    on_ring(main)


def test_a_file_that_goes_on_in_another_kind_of_run_is_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one\ntwo\nthree\nfour\n")

    async def first() -> Any:
        file: Any = await trio.open_file(path, "r+")
        assert await file.readline() == "one\n"
        return file

    async def second(file: Any) -> None:
        assert await file.readline() == "two\n"
        async for line in file:
            assert line == "three\n"
            break

    file = on_ring(first)
    run(second, file)

    async def third() -> None:
        assert await file.readline() == "four\n"
        await file.write("five\n")
        await file.aclose()

    on_ring(third)
    assert path.read_text().endswith("four\nfive\n")


def test_runs_on_both_backends_at_once(tmp_path: Path) -> None:
    async def work(name: str, thread: int) -> None:
        for number in range(20):
            async with await trio.open_file(tmp_path / str(thread), "w+") as file:
                await file.write(f"{name} {number}\n" * 100)
                await file.seek(0)
                assert [line async for line in file] == [f"{name} {number}\n"] * 100

    failures: list[BaseException] = []

    def in_thread(backend: str, thread: int) -> None:
        try:
            run(work, backend, thread, io_backend=backend)
        except BaseException as error:
            failures.append(error)

    backends = ("uring", "epoll", "uring", "epoll")
    running = [threading.Thread(target=in_thread, args=(each, number)) for number, each in enumerate(backends)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert failures == []


def test_two_wrappers_of_one_file_take_turns(tmp_path: Path, threads: Threads) -> None:
    path = tmp_path / "file"

    async def main() -> None:
        with path.open("ab") as real:
            first, second = trio.wrap_file(real), trio.wrap_file(real)

            async def write(file: Any, byte: bytes) -> None:
                for _ in range(50):
                    await file.write(byte * 100)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, first, b"a")
                nursery.start_soon(write, second, b"b")

    on_ring(main)
    pieces = path.read_bytes()
    assert len(pieces) == 10000
    assert all(len(set(pieces[at : at + 100])) == 1 for at in range(0, 10000, 100))
    assert threads.jobs == []


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_who_only_writes_moves_nobodys_position(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output in a file, shared with child processes: each writes where the other has ended."""
    moves: list[tuple[int, int]] = []
    own = os.lseek

    def lseek(fd: int, offset: int, whence: int) -> int:
        moves.append((offset, whence))
        return own(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", lseek)

    async def main() -> None:
        with (tmp_path / "file").open(mode.replace("w", "a")) as owned:
            file: Any = trio.wrap_file(owned)
            child = os.dup(owned.fileno())
            for letter in "abc":
                await file.write(letter if mode == "w" else letter.encode())
                await file.flush()
                os.write(child, b"-")
                owned.write("." if mode == "w" else b".")
                owned.flush()
            os.close(child)
        opened: Any = await trio.open_file(tmp_path / "other", mode)
        for letter in "abc":
            await opened.write(letter if mode == "w" else letter.encode())
        opened.wrapped.close()

    on_ring(main)
    assert (tmp_path / "file").read_text() == "a-.b-.c-."
    assert (tmp_path / "other").read_text() == "abc"
    assert set(moves) <= {(0, os.SEEK_CUR)}


def test_calls_are_served_in_the_order_of_asking(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))

    async def main() -> None:
        found: list[tuple[int, bytes]] = []
        async with await trio.open_file(path, "rb") as file, trio.open_nursery() as nursery:

            async def read(number: int) -> None:
                found.append((number, await file.read(10)))

            for number in range(10):
                nursery.start_soon(read, number)
                await trio.lowlevel.checkpoint()
            while len(found) < 10:
                await trio.lowlevel.checkpoint()
        assert dict(found) == {number: bytes(range(10 * number, 10 * number + 10)) for number in range(10)}

    on_ring(main)


# ------------------------------------------------------------------ the end without a close


@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize("cycle", [False, True], ids=["dropped", "in a cycle"])
def test_a_file_dropped_without_close_is_written_and_warned_of(mode: str, cycle: bool, tmp_path: Path) -> None:
    async def main() -> None:
        file: Any = await trio.open_file(tmp_path / "file", mode)
        await file.write("data" if mode == "w" else b"data")
        if cycle:
            file.itself = file
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            del file
            gc.collect()
        assert ["unclosed file" in str(each.message) for each in found] == [True]

    on_ring(main)
    assert (tmp_path / "file").read_bytes() == b"data"


def test_a_file_left_open_at_exit_is_written(tmp_path: Path) -> None:
    program = (
        "import sys, trio, trio_uring\n"
        "async def main():\n"
        "    global file\n"
        "    file = await trio.open_file(sys.argv[1], 'w')\n"
        "    await file.write('data')\n"
        "trio.run(main, io_backend='uring')\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "file"], check=True, timeout=200)
    assert (tmp_path / "file").read_text() == "data"


@pytest.mark.parametrize("promise", ["flush", "aclose"])
def test_what_was_flushed_survives_the_death_of_the_process(promise: str, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, trio, trio_uring\n"
        "async def main():\n"
        "    file = await trio.open_file(sys.argv[1], 'w')\n"
        "    await file.write('data' * 1000)\n"
        f"    await file.{promise}()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(main, io_backend='uring')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "file"], timeout=200)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "data" * 1000


# ------------------------------------------------------------------ what is not served


class Mine(io.FileIO):
    """A user's own file class."""


def test_what_is_not_an_ordinary_file_goes_as_it_goes_today(tmp_path: Path, threads: Threads) -> None:
    (tmp_path / "file").write_bytes(b"x")

    async def main() -> None:
        reading, writing = os.pipe()
        with (
            open("/proc/self/status", "rb") as proc,  # noqa: ASYNC230
            open("/dev/null", "r+b", 0) as device,  # noqa: ASYNC230
            Mine(tmp_path / "file") as mine,
            open(reading, "rb") as pipe,  # noqa: ASYNC230
            open(writing, "wb", 0) as other_end,  # noqa: ASYNC230
            io.BytesIO(b"x") as memory,
        ):
            os.write(writing, b"x")
            for real in (proc, device, mine, pipe, other_end, memory):
                jobs = len(threads.jobs)
                file: Any = trio.wrap_file(real)
                await (file.write(b"x") if real is other_end else file.read(1))
                assert len(threads.jobs) == jobs + 1, real
        async with await trio.open_file("/proc/self/status") as status:
            assert "Name:" in await status.read()

    on_ring(main)


def test_an_opener_a_descriptor_and_a_warning_go_trios_way(tmp_path: Path, threads: Threads) -> None:
    """The descriptor may be somebody else's as well, who is at its position (F42)."""
    path = tmp_path / "file"
    path.write_text("a\r\nb")
    asked = []

    def opener(path: str, flags: int) -> int:
        asked.append(flags)
        return os.open(path, flags)

    async def main() -> None:
        async with await trio.open_file(path, newline="\r\n", opener=opener) as file:
            assert asked
            del threads.jobs[:]
            assert await file.readline() == "a\r\n"
            assert len(threads.jobs) == 1
        fd = os.open(path, os.O_RDONLY)
        async with await trio.open_file(fd, "rb", closefd=False) as file:
            assert str(file.name) == str(fd)
            assert await file.read() == b"a\r\nb"
        os.close(fd)
        with pytest.warns(RuntimeWarning, match="line buffering"):
            async with await trio.open_file(path, "rb", 1):
                pass

    on_ring(main)


def test_outside_a_run_and_in_asyncio(tmp_path: Path) -> None:
    async def opened() -> Any:
        return await trio.open_file(tmp_path / "file", "w")

    file = on_ring(opened)
    with pytest.raises(RuntimeError):
        file.write("x").send(None)
    with pytest.raises(RuntimeError):
        asyncio.run(file.write("x"))
    file.wrapped.close()


# ------------------------------------------------------------------ audit


def test_an_audit_hook_prevents_the_opening(tmp_path: Path) -> None:
    program = (
        "import sys, trio, trio_uring\n"
        "def hook(event, arguments):\n"
        "    if event == 'open' and arguments[0] == sys.argv[1]:\n"
        "        raise PermissionError('not this one')\n"
        "async def main():\n"
        "    try:\n"
        "        await trio.open_file(sys.argv[1], 'w')\n"
        "    except PermissionError as error:\n"
        "        print(error)\n"
        "sys.addaudithook(hook)\n"
        "trio.run(main, io_backend='uring')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "file"], timeout=200, capture_output=True, text=True
    )
    assert done.stdout == "not this one\n"
    assert not (tmp_path / "file").exists()


# ------------------------------------------------------------------ opened on the spot


@pytest.mark.parametrize("mode", ["r", "rb", "r+", "r+b"])
def test_what_is_at_hand_is_opened_without_an_entry(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")

    async def main() -> None:
        await trio.testing.wait_all_tasks_blocked()  # Trio's own task has its poll
        before = submitted()
        with trio.testing.assert_checkpoints():
            file = await trio.open_file(path, mode)
        assert submitted() == before
        assert os.get_blocking(file.fileno())
        assert fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND) == 0
        await file.aclose()
        descriptors = os.listdir("/proc/self/fd")
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.open_file(path, mode)
        assert scope.cancelled_caught
        assert os.listdir("/proc/self/fd") == descriptors

    on_ring(main)


def test_what_has_to_wait_for_a_lease_is_not_opened_on_the_spot(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    held = os.open(path, os.O_RDWR)
    fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    opened = []

    async def opens() -> None:
        async with await trio.open_file(path, "rb") as file:
            opened.append(await file.read())

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens)
            await trio.testing.wait_all_tasks_blocked()
            assert not opened
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    try:
        on_ring(main)
    finally:
        os.close(held)
        signal.signal(signal.SIGIO, before)
    assert opened == [b"text"]
