"""Binary files from outside: what need not wait is done on the spot, by the builtin object's own calls (F42).

Knows the public interface, the builtin file as the oracle, and the name through which Trio's own methods reach a thread.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tools import run

import trio_uring
from trio_uring._files import engine

CONTENT = b"".join(b"line %06d of a file that is read in many ways\n" % number for number in range(4000))


class Threads:
    """Counts the calls that go to a thread, which wait for `free` if that is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.free: trio.Event | None = None
        own = trio.to_thread.run_sync

        async def run_sync(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.free is not None:
                await self.free.wait()
            return await own(*args, **kwargs)

        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in the page cache."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def unforked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had never forked, which other tests do."""
    monkeypatch.setattr(engine, "_forks", 0)


Call = tuple[str, tuple[Any, ...]]


def random_call(source: random.Random) -> Call:
    name = source.choice(("read", "read", "read1", "readline", "readinto", "peek", "seek", "tell", "readlines"))
    size = source.choice((0, 1, 10, 4095, 4096, 5000, 8192, 60_000, 70_000, -1))
    if name == "seek":
        return name, (source.choice((source.randrange(len(CONTENT) + 100), 0, len(CONTENT))),)
    if name == "readinto":
        return name, (bytearray(max(size, 0)),)
    if name == "readlines":
        return name, (source.choice((1, 5000)),)
    return name, () if name in ("tell", "peek") or size == -1 else (size,)


@pytest.mark.usefixtures("unforked")
@pytest.mark.parametrize("buffering", [-1, 0, 16, 10_000])
@pytest.mark.parametrize("seed", range(6))
def test_f42_any_order_of_calls_does_what_the_builtin_does(seed: int, buffering: int, file: Path) -> None:
    """Results and positions; a sharer of the open file sees the descriptor where the builtin would have it."""
    source = random.Random(f"{seed} {buffering}")

    async def main() -> None:
        with file.open("rb", buffering) as plain, file.open("rb", buffering) as real:
            wrapped: Any = trio.wrap_file(real)
            for _ in range(120):
                name, args = random_call(source)
                if buffering == 0 and name in ("peek", "read1"):
                    continue
                mine = tuple(bytearray(arg) if isinstance(arg, bytearray) else arg for arg in args)
                with trio.testing.assert_checkpoints():
                    found = await getattr(wrapped, name)(*mine)
                assert (found, mine) == (getattr(plain, name)(*args), args), (name, args)
                assert real.tell() == plain.tell()
                assert os.lseek(real.fileno(), 0, os.SEEK_CUR) == os.lseek(plain.fileno(), 0, os.SEEK_CUR)

    run("uring", main)


@pytest.mark.usefixtures("unforked")
def test_what_is_cached_takes_no_thread_and_what_is_not_does(file: Path, threads: Threads) -> None:
    async def main() -> None:
        with file.open("rb") as real:
            wrapped: Any = trio.wrap_file(real)
            assert await wrapped.read(5000) == CONTENT[:5000]
            assert await wrapped.seek(0) == 0
            assert await wrapped.readline() == CONTENT[:48]
            assert await wrapped.tell() == 48
            assert threads.calls == 0
            os.fsync(real.fileno())
            os.posix_fadvise(real.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            await wrapped.seek(100_000)
            assert await wrapped.read(5000) == CONTENT[100_000:105_000]
            assert threads.calls == 1

    run("uring", main)
    threads.calls = 0
    run(trio_uring.UringBackend(speculate=False), _reads_once, file)
    run("epoll", _reads_once, file)
    assert threads.calls == 2


async def _reads_once(path: Path) -> None:
    with path.open("rb") as real:
        assert await trio.wrap_file(real).read(10) == CONTENT[:10]


@pytest.mark.usefixtures("unforked")
def test_a_write_that_fits_the_buffer_takes_no_thread(tmp_path: Path, threads: Threads) -> None:
    path = tmp_path / "written"

    async def main() -> None:
        with path.open("wb", 1000) as real:
            wrapped: Any = trio.wrap_file(real)
            for number in range(10):
                with trio.testing.assert_checkpoints():
                    assert await wrapped.write(b"%090d" % number) == 90
            assert threads.calls == 0
            assert path.read_bytes() == b""
            await wrapped.write(b"x" * 500)
            assert threads.calls == 1
            await wrapped.flush()
            await wrapped.flush()
            assert threads.calls == 2
            assert path.read_bytes() == b"".join(b"%090d" % number for number in range(10)) + b"x" * 500
            await wrapped.write(b"y" * 5000)
            real.write(b"by its owner")
        assert path.read_bytes()[1400:] == b"y" * 5000 + b"by its owner"

    run("uring", main)


def made_of_a_descriptor(path: Path) -> Any:
    return open(os.open(path, os.O_RDONLY), "rb")


def made_to_be_inherited(path: Path) -> Any:
    file = path.open("rb")
    os.set_inheritable(file.fileno(), True)
    return file


def made_for_update(path: Path) -> Any:
    return path.open("r+b")


@pytest.mark.usefixtures("unforked")
@pytest.mark.parametrize("make", [made_of_a_descriptor, made_to_be_inherited, made_for_update])
def test_f42_what_others_may_be_at_goes_to_a_thread(make: Callable[[Path], Any], file: Path, threads: Threads) -> None:
    async def main() -> None:
        with make(file) as real:
            assert await trio.wrap_file(real).read(10) == CONTENT[:10]

    run("uring", main)
    assert threads.calls == 1


@pytest.mark.usefixtures("unforked")
def test_f42_after_a_fork_all_goes_to_a_thread(file: Path, threads: Threads) -> None:
    async def main() -> None:
        with file.open("rb") as real:
            wrapped: Any = trio.wrap_file(real)
            assert await wrapped.read(10) == CONTENT[:10]
            assert threads.calls == 0
            child = multiprocessing.get_context("fork").Process(target=int)
            child.start()
            child.join()
            assert await wrapped.read(10) == CONTENT[10:20]
            assert threads.calls == 1

    run("uring", main)


@pytest.mark.usefixtures("unforked")
def test_nobody_waits_for_a_thread_that_is_at_the_file(file: Path, threads: Threads) -> None:
    """The builtin object has a lock, which the loop must not wait for."""

    async def main() -> None:
        with file.open("rb") as real:
            wrapped: Any = trio.wrap_file(real)
            threads.free = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wrapped.read, 200_000)  # too much to be looked up
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(wrapped.read, 10)
                await trio.testing.wait_all_tasks_blocked()
                assert threads.calls == 2
                threads.free.set()
            threads.free = None
            await wrapped.seek(0)
            assert await wrapped.read(10) == CONTENT[:10]
            assert threads.calls == 2

    run("uring", main)


@pytest.mark.usefixtures("unforked")
def test_a_cancelled_scope_wins_and_errors_are_the_builtins(file: Path) -> None:
    async def main() -> None:
        with file.open("rb") as real:
            wrapped: Any = trio.wrap_file(real)
            with trio.CancelScope() as scope:
                scope.cancel()
                await wrapped.read(10)
            assert scope.cancelled_caught
            assert real.tell() == 0
            for name, args, error in (
                ("read", ("x",), TypeError),
                ("readinto", (), TypeError),
                ("readinto", (b"constant",), TypeError),
                ("seek", (-1,), OSError),
                ("read", (1, 2), TypeError),
            ):
                with pytest.raises(error), trio.testing.assert_checkpoints():
                    await getattr(wrapped, name)(*args)
        with pytest.raises(ValueError, match="closed file"):
            await wrapped.read(1)

    run("uring", main)
