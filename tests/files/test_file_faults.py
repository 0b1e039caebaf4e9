"""Files when something goes wrong: errors as the builtin's, cancels at any moment, and a file that is what the results say.

Knows the public interface of trio, and what a kernel answers to a full, foreign or vanishing file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trio_uring
from trio_uring._files import binary as _binary
from trio_uring._files import opening as _opening
from trio_uring._files import paths as _paths
from trio_uring._loop.calls import ring_manager
from trio_uring._ring.ring import OP_CLOSE, Ring

run: Any = trio.run

pytestmark = pytest.mark.usefixtures("descriptors_flat")


def on_ring(main: Callable[[], Awaitable[Any]]) -> Any:
    return run(main, io_backend="uring")


def described(error: OSError) -> tuple[object, ...]:
    return type(error), error.errno, error.strerror, error.filename, str(error)


# ------------------------------------------------------------------ closing


@pytest.mark.parametrize(
    "call", [("write_bytes", b"some"), ("write_text", "some"), ("touch",)], ids=lambda call: call[0]
)
def test_a_close_that_is_not_taken_leaves_no_descriptor(
    call: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file may have to ask somebody, close(2) is an entry, and an entry may be refused."""
    queue = Ring.queue

    def refusing(ring: Ring, opcode: int, *arguments: Any) -> None:
        if opcode == OP_CLOSE:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        queue(ring, opcode, *arguments)

    monkeypatch.setattr(Ring, "queue", refusing)
    monkeypatch.setattr(_paths, "is_local", lambda where: False)

    async def main() -> None:
        name, *arguments = call
        with pytest.raises(OSError, match="Cannot allocate memory"):
            await getattr(trio.Path(tmp_path / "file"), name)(*arguments)

    on_ring(main)


# ------------------------------------------------------------------ opening


def hopeless(folder: Path) -> Iterator[tuple[Any, ...]]:
    """Arguments of `open` that fail."""
    yield folder, "rb"
    yield folder, "r"
    yield folder, "w"
    yield folder / "missing", "rb"
    yield folder / "missing" / "below", "wb"
    yield folder / "file" / "below", "rb"
    yield folder / "file", "xb"
    yield folder / "dangling", "r"
    yield folder / "itself", "r"
    yield folder / ("x" * 300), "w"
    yield os.fsencode(folder / "missing"), "rb"
    yield "", "rb"
    yield "with\0null", "rb"
    yield folder / "file", "rz"
    yield folder / "file", "rw"
    yield folder / "file", ""
    yield folder / "file", 5
    yield folder / "new", "w", 0
    yield folder / "new", "wb", "0"
    yield folder / "new", "wb", -1, "utf-8"
    yield folder / "new", "wb", -1, None, "strict"
    yield folder / "new", "wb", -1, None, None, "\n"
    yield folder / "new", "w", -1, 5
    yield folder / "new", "w", -1, "no such encoding"
    yield folder / "new", "w", -1, "utf-8", None, "\t"
    yield folder / "new", "w", -1, "utf-8", None, None, False
    yield 5.0, "r"
    yield None, "r"
    yield (folder / "new",) * 12


def test_what_cannot_be_opened_fails_as_with_the_builtin(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "itself").symlink_to("itself")

    async def main() -> None:
        for arguments in hopeless(tmp_path):
            with pytest.raises(Exception) as theirs:  # noqa: PT011
                builtin(*arguments)
            made = (tmp_path / "new").exists()
            (tmp_path / "new").unlink(missing_ok=True)
            with pytest.raises(type(theirs.value)) as ours:
                await trio.open_file(*arguments)
            if isinstance(theirs.value, OSError):
                assert described(ours.value) == described(theirs.value)  # type: ignore[arg-type]
            elif len(arguments) < 12:
                assert str(ours.value) == str(theirs.value)
            assert (tmp_path / "new").exists() == made, arguments
            (tmp_path / "new").unlink(missing_ok=True)
        dangling = tmp_path / "dangling"
        async with await trio.open_file(dangling, "w"):
            pass
        assert (tmp_path / "nowhere").exists()

    on_ring(main)


def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0)
    program = (
        "import os, sys, trio, trio_uring, trio_uring._files.engine\n"
        "if os.geteuid() == 0:\n"
        "    os.setuid(65534)\n"
        "async def main():\n"
        "    try:\n"
        "        await trio.open_file(sys.argv[1])\n"
        "    except PermissionError as error:\n"
        "        print(error)\n"
        "trio.run(main, io_backend='uring')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=200
    )
    assert done.stdout == f"[Errno 13] Permission denied: {str(path)!r}\n"


def test_the_creation_mode_is_left_to_the_umask(tmp_path: Path) -> None:
    async def main() -> None:
        async with await trio.open_file(tmp_path / "file", "w") as file:
            assert not os.get_inheritable(file.fileno())
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640

    before = os.umask(0o027)
    try:
        on_ring(main)
    finally:
        os.umask(before)


def test_an_open_that_is_cancelled_late_is_delivered_or_closed(tmp_path: Path) -> None:
    """F9. A FIFO keeps the kernel waiting in openat(2) until somebody opens its other end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "file").touch()

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.open_file, fifo, "rb")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        # Queued together with its cancel: the file is opened, or it is not; but no descriptor is left over.
        for path, mode in ((tmp_path / "file", "rb"), (tmp_path / "made", "w"), (fifo, "rb")):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def opened(path: Path = path, mode: str = mode) -> None:
                        file = await trio.open_file(path, mode)
                        await file.aclose()

                    nursery.start_soon(opened)
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    scope.cancel()

    on_ring(main)


def test_a_fifo_is_open_when_its_other_end_is(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def main() -> None:
        opened = trio.Event()

        async def read() -> None:
            async with await trio.open_file(fifo, "rb") as file:
                opened.set()
                assert await file.read() == b"through"

        for early in (True, False):
            opened = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                assert not opened.is_set()
                async with await trio.open_file(fifo, "wb", 0) as file:
                    if not early:
                        await opened.wait()
                    await file.write(b"through")

    on_ring(main)


def test_an_open_whose_task_is_torn_down_leaves_no_descriptor(tmp_path: Path) -> None:
    """F9, when a coroutine is closed between the completion and its task's turn."""
    (tmp_path / "file").touch()

    async def main() -> None:
        manager = ring_manager()
        assert manager is not None

        async def torn() -> None:
            opening = _opening.open_fd(manager, str(tmp_path / "file"), os.O_RDONLY)
            opening.send(None)
            opening.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(torn)
        await trio.testing.wait_all_tasks_blocked()

    on_ring(main)


# ------------------------------------------------------------------ no space


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """RLIMIT_FSIZE: a write that would begin behind it is EFBIG, one that would cross it is short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("buffering", [-1, 0, 100])
@pytest.mark.parametrize("size", [50, 5000, 50000])
def test_a_file_that_grows_too_large_ends_as_with_the_builtin(buffering: int, size: int, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"

    async def main() -> None:
        with no_file_larger_than(9000):
            oracle = builtin(theirs, "wb", buffering)
            file: Any = await trio.open_file(ours, "wb", buffering)
            for number in range(12000 // size + 2):
                piece = bytes([number % 256]) * size
                assert await outcome(file.write, piece) == outcome_now(oracle.write, piece)
            assert await outcome(file.flush) == outcome_now(oracle.flush)
            assert await outcome(file.tell) == outcome_now(oracle.tell)
            assert await outcome(file.aclose) == outcome_now(oracle.close)
            assert file.closed
        assert ours.read_bytes() == theirs.read_bytes()

    on_ring(main)


def outcome_now(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except OSError as error:
        return type(error), error.errno, str(error)


def builtin(*arguments: Any) -> Any:
    return open(*arguments)


async def outcome(call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    try:
        return await call(*args)
    except OSError as error:
        return type(error), error.errno, str(error)


@contextlib.contextmanager
def full_after(size: int, folder: Path) -> Iterator[tuple[object, ...]]:
    """A filesystem of that size, where one can be mounted, else a limit for files; the outcome of a write that does not fit."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield OSError, errno.ENOSPC, "[Errno 28] No space left on device"
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        with no_file_larger_than(size):
            yield OSError, errno.EFBIG, "[Errno 27] File too large"


def test_a_full_filesystem(tmp_path: Path) -> None:
    async def main() -> None:
        with full_after(65536, tmp_path) as no_space:
            file = await trio.open_file(tmp_path / "file", "wb")
            assert await outcome(file.write, b"x" * (io.DEFAULT_BUFFER_SIZE + 100_000)) == no_space
            await file.aclose()
            assert (tmp_path / "file").stat().st_size == 65536
            text = await trio.open_file(tmp_path / "file", "a")
            await text.write("held back")
            assert await outcome(text.flush) == no_space
            assert await outcome(text.aclose) == no_space
            assert text.closed

    on_ring(main)


@pytest.mark.parametrize("mode", ["wb", "w"])
@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_device_that_is_full_is_as_with_the_builtin(mode: str, buffering: int) -> None:
    """ENOSPC of /dev/full, which a thread serves."""
    if mode == "w" and not buffering:
        buffering = 1
    lines = io.DEFAULT_BUFFER_SIZE // 2  # more than the buffer holds
    data: Any = "line\n" * lines if mode == "w" else b"line\n" * lines

    async def main() -> None:
        oracle = builtin("/dev/full", mode, buffering)
        file: Any = await trio.open_file("/dev/full", mode, buffering)
        for _ in range(2):
            theirs = outcome_now(oracle.write, data)
            assert await outcome(file.write, data) == theirs
            assert await outcome(file.flush) == outcome_now(oracle.flush)
        assert await outcome(file.aclose) == outcome_now(oracle.close)
        assert theirs == (OSError, errno.ENOSPC, "[Errno 28] No space left on device")

    on_ring(main)


# ------------------------------------------------------------------ what the device cannot give


BLOCK = 4096


@contextlib.contextmanager
def damaged(folder: Path) -> Iterator[tuple[Path, int]]:
    """A file of which the device has lost a part, and where that begins: EIO for who reads there.

    Where root may mount one: ext4 on a loop device whose backing file is cut short, read as a regular file by the ring. Else this
    process's own memory, which has nothing at its first page.
    """
    image, mounted = folder / "image", folder / "mounted"
    image.write_bytes(b"")
    os.truncate(image, 16 << 20)
    mounted.mkdir()
    make = ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,nodiscard", str(image)]
    mount = ["mount", "-o", "loop", str(image), str(mounted)]
    if (
        os.geteuid()
        or shutil.which("mkfs.ext4") is None
        or any(subprocess.run(command, capture_output=True).returncode for command in (make, mount))
    ):
        yield Path("/proc/self/mem"), 0
        return
    try:
        path = mounted / "file"
        path.write_bytes(b"x" * (4 << 20))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the page cache would know it still
        os.truncate(image, BLOCK)
        yield path, 3 << 20
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_eio_is_as_with_the_builtin(tmp_path: Path) -> None:
    """A block that the device has lost: each way to read it fails alike, and leaves the position where the builtin leaves it."""

    async def main() -> None:
        with damaged(tmp_path) as (path, place):
            with builtin(path, "rb", 0) as oracle:
                oracle.seek(place)
                theirs = outcome_now(oracle.read, BLOCK)
                assert theirs == (OSError, errno.EIO, "[Errno 5] Input/output error")
                position = oracle.tell()
            for buffering in (0, -1):
                file: Any
                async with await trio.open_file(path, "rb", buffering) as file:
                    await file.seek(place)
                    assert await outcome(file.read, BLOCK) == theirs
                    assert await outcome(file.readinto, bytearray(BLOCK)) == theirs
                    assert await file.tell() == position
                    assert await outcome(trio_uring.read_at, file, BLOCK, place) == theirs
                    found = await trio_uring.read_many(file, [(place, BLOCK), (place + BLOCK, BLOCK)])
                    assert [(type(one), getattr(one, "errno", None)) for one in found] == [theirs[:2]] * 2
            if path.name == "file":
                assert await outcome(trio.Path(path).read_bytes) == outcome_now(path.read_bytes) == theirs
                async with await trio.open_file(path, "r") as text:
                    with pytest.raises(OSError, match="Input/output error"):
                        async for _ in text:
                            pass

    on_ring(main)


def test_a_terminal_whose_other_end_has_gone(tmp_path: Path) -> None:
    """EIO, as with the builtin: for who opens it, and for who writes."""
    master, slave = os.openpty()
    name = os.ttyname(slave)

    async def main() -> None:
        async with await trio.open_file(slave, "wb", 0, closefd=False) as file:
            os.close(master)
            theirs = outcome_now(os.write, slave, b"x")
            assert await outcome(file.write, b"x") == theirs
            assert theirs[:2] == (OSError, errno.EIO)
        with pytest.raises(OSError) as expected:  # noqa: PT011
            builtin(name, "wb", 0)
        with pytest.raises(OSError) as found:  # noqa: PT011
            await trio.open_file(name, "wb", 0)
        assert described(found.value) == described(expected.value)

    on_ring(main)
    os.close(slave)


# ------------------------------------------------------------------ files that change


def test_a_file_truncated_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def main() -> None:
        path.write_bytes(b"x" * 500_000)
        async with await trio.open_file(path, "rb") as file:
            assert len(await file.read(1000)) == 1000
            os.truncate(path, 400_000)
            assert len(await file.read(300_000)) == 300_000
            os.truncate(path, 10)
            assert len(await file.read()) <= 150_000
            assert await file.read() == b""
            os.truncate(path, 600_000)
            assert len(await file.read()) >= 600_000 - 500_000

    on_ring(main)


def test_a_file_that_grows_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "log"

    async def main() -> None:
        path.write_bytes(b"")
        with path.open("ab", 0) as writer:
            for mode in ("rb", "r"):
                async with await trio.open_file(path, mode) as file:
                    await file.seek(0, 2)
                    for number in range(3):
                        assert not await file.readline()
                        writer.write(b"line %d\n" % number)
                        assert await file.readline() in (b"line %d\n" % number, f"line {number}\n")

    on_ring(main)


# ------------------------------------------------------------------ cancellation


async def sometimes_cancelled(chance: random.Random, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """The result, or None if the call was cancelled: before it, when it is queued, or a few turns later."""
    result = None
    with trio.CancelScope() as scope:

        async def cancel(turns: int) -> None:
            for _ in range(turns):
                await trio.lowlevel.cancel_shielded_checkpoint()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            if chance.random() < 0.6:
                nursery.start_soon(cancel, chance.choice((0, 0, 0, 1, 2)))
            result = await call(*args)
            nursery.cancel_scope.cancel()
    return result


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("buffering", [-1, 0, 64])
def test_reads_cancelled_at_random_lose_nothing(
    seed: int, buffering: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    content = chance.randbytes(60_000)
    (tmp_path / "file").write_bytes(content)
    if seed % 2:
        monkeypatch.setattr(_binary, "WORKER_THRESHOLD", 1)  # everything goes to a worker: cancels find it there

    async def main() -> None:
        file: Any
        async with await trio.open_file(tmp_path / "file", "rb", buffering) as file:
            found = bytearray()
            while len(found) < len(content):
                size = chance.choice((1, 50, 3000, 20_000))
                name = chance.choice(("read", "readline", "readinto", *(("read1",) if buffering else ())))
                if name == "readinto":
                    memory = bytearray(size)
                    got = await sometimes_cancelled(chance, file.readinto, memory)
                    if got is not None:
                        found += memory[:got]
                else:
                    found += await sometimes_cancelled(chance, getattr(file, name), size) or b""
                assert await file.tell() == len(found)
                assert content.startswith(found)
            assert await file.read() == b""

    on_ring(main)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("buffering", [-1, 0, 64])
@pytest.mark.parametrize("mode", ["wb", "ab", "w+b"])
def test_writes_cancelled_at_random_leave_what_they_reported(
    seed: int, buffering: int, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    if seed % 2:
        monkeypatch.setattr(_binary, "WORKER_THRESHOLD", 1)

    async def main() -> None:
        expected = bytearray()
        async with await trio.open_file(tmp_path / "file", mode, buffering) as file:
            for number in range(60):
                data = bytes([number]) * chance.choice((1, 60, 3000, 9000))
                if chance.random() < 0.2:
                    await sometimes_cancelled(chance, file.flush)
                written = await sometimes_cancelled(chance, file.write, data)
                if written is not None:
                    assert written == len(data)
                    expected += data
                assert await file.tell() == len(expected)
        assert (tmp_path / "file").read_bytes() == expected

    on_ring(main)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("how", ["w", "a", "w+", "wrapped"])
def test_text_writes_cancelled_at_random_leave_what_they_reported(
    seed: int, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    if seed % 2:
        monkeypatch.setattr(_binary, "WORKER_THRESHOLD", 1)

    async def main() -> None:
        path, encoding = tmp_path / "file", chance.choice(("utf-8", "utf-16", "utf-8-sig"))
        expected = ""
        file: Any
        if how == "wrapped":
            file = trio.wrap_file(builtin(path, "w", -1, encoding))
        else:
            file = await trio.open_file(path, how, encoding=encoding)
        async with file:
            for number in range(60):
                text = f"{number}\u00e9\n" * chance.choice((1, 10, 300, 3000))
                if chance.random() < 0.2:
                    await sometimes_cancelled(chance, file.flush)
                written = await sometimes_cancelled(chance, file.write, text)
                if written is not None:
                    assert written == len(text)
                    expected += text
        assert path.read_text(encoding) == expected

    on_ring(main)


@pytest.mark.parametrize("seed", range(6))
def test_lines_cancelled_at_random_lose_nothing(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    lines = [f"{number} " + "x" * chance.randrange(100) + "\n" for number in range(3000)]
    (tmp_path / "file").write_text("".join(lines))

    async def main() -> None:
        async with await trio.open_file(tmp_path / "file", chance.choice(("r", "r+"))) as file:
            found: list[str] = []

            async def some() -> None:
                async for line in file:
                    found.append(line)
                    if chance.random() < 0.01:
                        return

            while len(found) < len(lines):
                await sometimes_cancelled(chance, some)
                assert found == lines[: len(found)]

    on_ring(main)


def test_a_wrapped_file_stays_with_its_owner_through_cancels(tmp_path: Path) -> None:
    chance = random.Random(1)
    content = chance.randbytes(60_000)
    (tmp_path / "file").write_bytes(content)

    async def main() -> None:
        with (tmp_path / "file").open("rb") as owned:
            file = trio.wrap_file(owned)
            found = bytearray()
            while len(found) < len(content):
                found += await sometimes_cancelled(chance, file.read, chance.choice((1, 100, 9000))) or b""
                assert owned.tell() == len(found)
                found += owned.read(10)
            assert found == content

    on_ring(main)


def test_an_interrupt_in_the_middle_of_writing_leaves_the_file_whole(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, trio, trio_uring\n"
        "written = 0\n"
        "async def main():\n"
        "    global written\n"
        "    file = await trio.open_file(sys.argv[1], 'wb', 100)\n"
        "    try:\n"
        "        for number in range(100000):\n"
        "            if number == 500:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "            written += await file.write(b'0123456789')\n"
        "    finally:\n"
        "        with trio.CancelScope(shield=True):\n"
        "            await file.aclose()\n"
        "try:\n"
        "    trio.run(main, io_backend='uring')\n"
        "except KeyboardInterrupt:\n"
        "    print(written)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "file"], timeout=200, capture_output=True, text=True, check=True
    )
    assert (tmp_path / "file").read_bytes() == b"0123456789" * (int(done.stdout) // 10)
