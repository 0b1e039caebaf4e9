"""Open files that others may have as well: read(2) and write(2) hold a lock on the position, and so nothing is lost (F42).

The oracle is the lock itself: every line of everybody is in the file, every block is read once.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from anyio.streams.file import FileReadStream, FileStreamAttribute
from conftest import Backend
from tools import run

import trio_uring
from trio_uring._files import engine
from trio_uring._ring.requests import ENGINE

LINES = 400
# What a child writes, or reads, line by line with system calls.
WRITER = f"import os\nfor i in range({LINES}): os.write(1, (f'c{{i:06}}' + '.' * 4088 + chr(10)).encode())"


@pytest.fixture(params=["disk", "memory"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the file system of the temporary files, and one in memory, where lines are lost most often."""
    if request.param == "disk":
        yield tmp_path
        return
    folder = Path("/dev/shm") / f"trio-uring-{os.getpid()}"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def lines_of(path: Path, letter: bytes) -> int:
    """How many different whole lines of a writer a file has."""
    return len({line for line in path.read_bytes().split(b"\n") if line[:1] == letter and len(line) == 4095})


@pytest.mark.parametrize("mode", ["w", "wb", "a", "ab"])
@pytest.mark.parametrize("how", ["wrap_file", "descriptor", "AsyncFile", "fileno"])
def test_f42_a_parent_and_its_child_lose_no_line(mode: str, how: str, room: Path, ring: Backend) -> None:
    path = room / f"log-{mode}-{how}"

    async def main() -> None:
        flags = os.O_APPEND if "a" in mode else 0
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags)
        file: Any
        if how == "wrap_file":
            file = trio.wrap_file(os.fdopen(os.dup(fd), mode))
        elif how == "AsyncFile":
            file = anyio.wrap_file(os.fdopen(os.dup(fd), mode))
        elif how == "descriptor":
            file = await trio.open_file(os.dup(fd), mode)
        else:
            os.close(fd)
            file = await trio.open_file(path, mode)
            fd = os.dup(file.fileno())
        with subprocess.Popen([sys.executable, "-c", WRITER], stdout=fd) as child:  # noqa: ASYNC220
            for i in range(LINES):
                line = f"p{i:06}" + "." * 4088 + "\n"
                await file.write(line if mode in "wa" else line.encode())
            await file.flush()
            await trio.to_thread.run_sync(child.wait)
        await file.aclose()
        os.close(fd)

    run(ring, main)
    assert (lines_of(path, b"p"), lines_of(path, b"c")) == (LINES, LINES)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not cached"])
def test_f42_streams_on_one_open_file_get_each_block_once(cached: bool, tmp_path: Path, backend: Backend) -> None:
    path = tmp_path / "blocks"
    blocks = [bytes([i]) * 4096 for i in range(32)]
    path.write_bytes(b"".join(blocks))
    fd = os.open(path, os.O_RDONLY)
    if not cached:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    async def main() -> list[bytes]:
        found: list[bytes] = []

        async def reads(stream: trio.lowlevel.FdStream) -> None:
            async with stream:
                while block := await stream.receive_some(4096):
                    found.append(block)
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(reads, trio.lowlevel.FdStream(os.dup(fd)))
        return found

    assert sorted(run(backend, main)) == blocks
    os.close(fd)


def test_f42_streams_on_one_open_file_write_all_they_have(room: Path, backend: Backend) -> None:
    path = room / "written"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    async def main() -> None:
        async def writes(number: int) -> None:
            async with trio.lowlevel.FdStream(os.dup(fd)) as stream:
                for _ in range(16):
                    await stream.send_all(bytes([number]) * 65536)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(writes, number)

    run(backend, main)
    os.close(fd)
    data = path.read_bytes()
    assert len(data) == 8 * 16 * 65536
    assert sorted(data[at] for at in range(0, len(data), 65536)) == sorted(list(range(8)) * 16)


# ------------------------------------------------------------------ who may know of a file


def engine_of(file: Any) -> engine.Engine | None:
    """What serves a file, unless it has been released."""
    found: engine.Engine | None = file.__dict__.get(ENGINE)
    return None if found is None or found.released else found


@pytest.mark.parametrize("mode", ["r", "rb", "r+", "r+b", "w", "wb", "w+b", "a+", "a+b"])
def test_f42_what_came_from_outside_goes_trios_way(mode: str, tmp_path: Path, ring: Backend) -> None:
    path = tmp_path / "file"
    path.write_text("one\ntwo\n")

    async def main() -> None:
        with path.open(mode) as real:
            wrapped: Any = trio.wrap_file(real)
            assert await wrapped.tell() == real.tell()
            assert engine_of(wrapped) is None
        opened: Any = await trio.open_file(
            os.open(path, os.O_RDWR), mode.replace("w", "r+") if "+" not in mode else "r+b"
        )
        async with opened:
            await opened.tell()
            assert engine_of(opened) is None

    run(ring, main)


@pytest.mark.parametrize("show", ["fileno", "wrapped", "fork", "fork elsewhere"])
def test_f42_a_file_that_others_may_know_of_is_released(show: str, tmp_path: Path, ring: Backend) -> None:
    """And goes on where its user is."""
    path = tmp_path / "file"
    path.write_bytes(b"abcdefgh" * 1000)

    async def main() -> None:
        async with await trio.open_file(path, "r+b") as file:
            assert await file.read(3) == b"abc"
            assert engine_of(file) is not None
            if show == "fileno":
                assert file.fileno() >= 0
                assert await file.read(5) == b"defgh"
            elif show == "wrapped":
                assert file.wrapped.read(5) == b"defgh"
            else:
                child = multiprocessing.get_context("fork").Process(target=int)
                await (trio.to_thread.run_sync if show == "fork elsewhere" else _call)(child.start)
                await trio.to_thread.run_sync(child.join)
                assert await file.read(5) == b"defgh"
            assert engine_of(file) is None
            assert await file.read(2) == b"ab"
            await file.seek(0)
            await file.write(b"ABC")
        assert path.read_bytes()[:5] == b"ABCde"

    run(ring, main)


async def _call(function: Any) -> None:
    function()


def test_f42_positional_calls_show_no_descriptor(tmp_path: Path, ring: Backend) -> None:
    """`trio_uring.fsync(file)` and its like: the file is served as before."""
    path = tmp_path / "file"
    path.write_bytes(b"content")

    async def main() -> None:
        async with await trio.open_file(path, "r+b") as file:
            assert await trio_uring.read_at(file, 3, 1) == b"ont"
            await trio_uring.fsync(file)
            assert engine_of(file) is not None
        other: Any
        async with await anyio.open_file(path, "rb") as other:
            assert await trio_uring.read_at(other, 3, 1) == b"ont"
            assert engine_of(other) is not None
            assert other.fileno() >= 0
            assert engine_of(other) is None
        async with await FileReadStream.from_path(path) as stream:
            assert stream.extra(FileStreamAttribute.path) == path
            assert engine_of(stream) is not None
            assert stream.extra(FileStreamAttribute.fileno) >= 0
            assert engine_of(stream) is None
            assert await stream.receive() == b"content"

    run(ring, main)


@pytest.mark.parametrize("mode", ["a", "ab"])
def test_f42_what_only_appends_is_served_by_the_ring(mode: str, tmp_path: Path, ring: Backend) -> None:
    path = tmp_path / "log"

    async def main() -> None:
        with path.open(mode) as real:
            file: Any = trio.wrap_file(real)
            line: Any = "one\n" if mode == "a" else b"one\n"
            await file.write(line)
            await file.flush()
            assert engine_of(file) is not None
            assert path.read_text() == "one\n"
            real.write(line)  # which the builtin object keeps
            await file.write(line)
            await file.flush()
            assert path.read_text() == "one\n" * 3
            assert await file.tell() == 12
            await file.flush()
            assert engine_of(file) is not None
            await file.truncate(4)
        assert path.read_text() == "one\n"

    run(ring, main)
