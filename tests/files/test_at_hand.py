"""What the kernel has at hand is answered on the spot: names in its cache, held against os.stat and os.lstat, and data in memory.

Knows the public interface, the counters of the ring and mounts of its own; that a file server or a daemon is never waited for is
in `test_elsewhere`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tools import manager, run

import trio_uring
from trio_uring._ring.ring import tu_stat_cached

HERE = Path(__file__).parent
PATIENCE = 60  # seconds, after which a program is taken to hang

# Every method of a path that asks for its status, and what os.path or pathlib says.
METHODS: dict[str, Callable[[Path], object]] = {
    "stat": os.stat,
    "lstat": os.lstat,
    "exists": os.path.exists,
    "is_dir": os.path.isdir,
    "is_file": os.path.isfile,
    "is_symlink": os.path.islink,
    "is_socket": Path.is_socket,
    "is_fifo": Path.is_fifo,
    "is_block_device": Path.is_block_device,
    "is_char_device": Path.is_char_device,
}


def told(method: Callable[[], object]) -> object:
    """A result, all of a status; or the error and what it carries."""
    try:
        result = method()
    except OSError as error:
        return type(error), error.errno, error.strerror, str(error.filename)
    return full(result)


def full(result: object) -> object:
    if isinstance(result, os.stat_result):
        return {name: getattr(result, name) for name in dir(result) if name.startswith("st_")}, tuple(result)
    return result


async def told_by(method: Callable[[], Awaitable[object]]) -> object:
    """The same of a method of trio.Path."""
    try:
        result = await method()
    except OSError as error:
        return type(error), error.errno, error.strerror, str(error.filename)
    return full(result)


def make_tree(top: Path) -> list[Path]:
    """One of each kind, known to the kernel; some of them are not there."""
    (top / "folder").mkdir()
    (top / "file").write_text("content")
    (top / "link").symlink_to("file")
    (top / "long").symlink_to("folder/" + "./" * 200 + "../file")  # too long to be kept with the inode
    (top / "dangling").symlink_to("nowhere")
    for name in ("link", "long", "dangling"):  # following a link that is new writes down when that was, and may wait
        os.utime(top / name, (time.time() + 10**6, time.time()), follow_symlinks=False)
    os.mkfifo(top / "fifo")
    names = ("folder", "file", "link", "long", "dangling", "fifo", "missing", "file/below", "missing/below", ".")
    paths = [top / name for name in names]
    for path in paths:
        os.path.exists(path), os.path.lexists(path)
    return paths


def in_the_cache(path: Path, follow: bool) -> bool:
    """Whether the kernel's cache of names knows what is there, or that nothing is: openat2(2) with RESOLVE_CACHED."""
    O_PATH, RESOLVE_CACHED = 0o10000000, 0x20
    how = struct.pack("=3Q", O_PATH | (0 if follow else os.O_NOFOLLOW) | os.O_CLOEXEC, 0, RESOLVE_CACHED)
    fd = ctypes.CDLL(None, use_errno=True).syscall(437, -100, os.fsencode(path), how, ctypes.c_size_t(len(how)))
    if fd >= 0:
        os.close(fd)
    return fd >= 0 or ctypes.get_errno() == errno.ENOENT


@pytest.mark.parametrize("method", METHODS)
def test_the_cache_of_names_answers_without_an_entry(method: str, tmp_path: Path) -> None:
    """Right values, no entry, a checkpoint each time, and nothing left open.

    An overlay's links are not in the cache, nor are in a tmpfs names that are not there.
    """
    paths = make_tree(tmp_path)
    asked = [path for path in paths if not in_the_cache(path, method not in ("lstat", "is_symlink"))]
    assert tmp_path / "file/below" in asked  # ENOTDIR is nothing that the cache tells
    assert not {tmp_path / "folder", tmp_path / "file", tmp_path / "fifo", tmp_path / "."} & set(asked)
    expected = [told(lambda path=path: METHODS[method](path)) for path in paths]  # type: ignore[misc]
    assert len({repr(each) for each in expected}) > 1 or method.endswith("device") or method == "is_socket"

    async def main() -> list[object]:
        await trio.testing.wait_all_tasks_blocked()  # Trio's own task has its poll
        answers = []
        descriptors = os.listdir("/proc/self/fd")
        before = manager().ring.counters().submitted
        for path in paths:
            with trio.testing.assert_checkpoints():
                answers.append(await told_by(getattr(trio.Path(path), method)))
        assert manager().ring.counters().submitted - before == len(asked)
        assert os.listdir("/proc/self/fd") == descriptors
        return answers

    assert run("uring", main) == expected


def test_nothing_is_answered_on_the_spot_where_that_is_off(tmp_path: Path) -> None:
    os.stat(tmp_path)

    async def main() -> int:
        await trio.testing.wait_all_tasks_blocked()  # Trio's own task has its poll
        before = manager().ring.counters().submitted
        await trio.Path(tmp_path).stat()
        return manager().ring.counters().submitted - before

    assert run(trio_uring.UringBackend(speculate=False), main) == 1


def test_a_cancelled_scope_wins(tmp_path: Path) -> None:
    os.stat(tmp_path)

    async def main() -> None:
        for method in METHODS:
            with trio.CancelScope() as scope:
                scope.cancel()
                await getattr(trio.Path(tmp_path), method)()
            assert scope.cancelled_caught

    run("uring", main)


def test_with_no_descriptor_left_the_ring_tells(tmp_path: Path) -> None:
    """statx(2) takes none, and so did the ring's."""
    paths = make_tree(tmp_path)
    expected = {(path, name): told(lambda: ask(path)) for path in paths for name, ask in METHODS.items()}  # noqa: B023

    async def main() -> dict[Any, object]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            return {(path, name): await told_by(getattr(trio.Path(path), name)) for path in paths for name in METHODS}
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert run("uring", main) == expected


CONFINED = """
import ctypes, errno, os, struct, sys
import trio, trio_uring
sys.path.insert(0, {confined!r})
import confined

async def main(path):
    found = await trio.Path(path).stat()
    missing = await trio.Path(path, "missing").exists()
    text = await trio.Path(path, "file").read_text()
    return tuple(found) == tuple(os.stat(path)), missing, text

path = {path!r}
os.path.exists(path + "/missing")
confined.refuse({{437: getattr(errno, {code!r})}})  # openat2
print(*trio.run(main, path, io_backend="uring"))
"""


@pytest.mark.parametrize("code", ["EPERM", "ENOSYS", "EACCES", "ENOENT"])
def test_a_sandbox_without_openat2_is_served_by_the_ring(code: str, tmp_path: Path) -> None:
    """Docker's profiles before 20.10 answer EPERM or ENOSYS. A filter that says ENOENT is beyond help, but not for open(2)."""
    (tmp_path / "file").write_text("content")
    confined = str(HERE.parent / "environment")
    program = CONFINED.format(confined=confined, path=str(tmp_path), code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    if code == "ENOENT":
        assert "FileNotFoundError" in done.stderr
    else:
        assert done.stdout.split() == ["True", "False", "content"], done.stderr


def test_on_other_file_systems(tmp_path: Path) -> None:
    """tmpfs and an overlay are answered on the spot; /proc, which has to compute, is not; and each as os.stat says."""
    program = f"""
        import os, sys
        sys.path.insert(0, {str(HERE)!r})
        import mounts, pathlib, trio, trio.testing, trio_uring
        mounts.private_mounts()
        top = pathlib.Path({str(tmp_path)!r})
        for name in ("memory", "layers"):
            (top / name).mkdir()
        mounts.mount("tmpfs", top / "memory")
        merged = mounts.overlay(top / "layers")
        (top / "layers" / "lower" / "file").write_text("below")
        (top / "memory" / "file").write_text("in memory")
        paths = [top / "memory" / "file", merged / "file", merged, pathlib.Path("/proc/self")]
        for path in paths:
            os.stat(path)

        async def main():
            await trio.testing.wait_all_tasks_blocked()
            counters = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager.ring.counters
            for path in paths:
                before = counters().submitted
                found = await trio.Path(path).stat()
                entries = counters().submitted - before
                print(tuple(found) == tuple(os.stat(path)), entries)

        trio.run(main, io_backend="uring")
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines() == ["True 0", "True 0", "True 0", "True 1"], done.stderr


READS = """
import errno, os, pathlib, sys
sys.path.insert(0, {here!r})
import mounts, trio, trio.testing, trio_uring
mounts.private_mounts()
top = pathlib.Path({top!r})
for name in ("memory", "layers"):
    (top / name).mkdir()
mounts.mount("tmpfs", top / "memory")
merged = mounts.overlay(top / "layers")
data = os.urandom(300_000)
below = top / "layers" / "lower" / "file"
for path in (top / "memory" / "file", below):
    path.write_bytes(data)

async def told(path, prepare=lambda fd: None):
    counters = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager.ring.counters
    fd = os.open(path, os.O_RDONLY)
    prepare(fd)
    entries = []
    for length, offset in ((4096, 0), (5000, 4000), (100_000, 250_000), (100, 300_000), (200_000, 1)):
        await trio.lowlevel.checkpoint()  # a new millisecond
        before = counters().submitted
        assert await trio_uring.read_at(fd, length, offset) == data[offset : offset + length]
        entries.append(counters().submitted - before)
        prepare(fd)
    os.close(fd)
    await trio.lowlevel.checkpoint()
    before = counters().submitted
    assert await trio.Path(path).read_bytes() == data
    entries.append(counters().submitted - before)
    return entries

def drop(_):
    with below.open("rb") as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

def dropped():
    drop(None)
    with below.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP  # a tmpfs, which is nowhere else
            return False

async def main():
    await trio.testing.wait_all_tasks_blocked()
    print(*await told(top / "memory" / "file"))
    print(*await told(merged / "file", lambda fd: os.pread(fd, len(data), 0)))
    lost = dropped()
    print(*[(entries > 0) == lost for entries in (await told(merged / "file", drop))[:3]])
    os.pread(os.open(merged / "file", os.O_RDONLY), len(data), 0)
    if os.getuid() == 0:
        os.chown(below, 1, 1)
        print(*[entries > 0 for entries in (await told(merged / "file"))[:3]])
    else:
        print("True True True")

trio.run(main, io_backend="uring")
"""


def test_what_is_in_memory_is_read_on_the_spot(tmp_path: Path) -> None:
    """Of tmpfs, and of an overlay what is in the page cache; a worker reads what is not, and where mincore(2) would not say."""
    program = READS.format(here=str(HERE), top=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    rows = done.stdout.splitlines()
    assert rows == ["0 0 0 0 0 0", "0 0 0 0 0 0", "True True True", "True True True"], done.stdout + done.stderr


def test_the_call_itself(tmp_path: Path) -> None:
    """Only what the cache of names is sure of is an answer."""
    path = os.fsencode(tmp_path)
    os.stat(path)
    assert tu_stat_cached(path, True, None) == 0o040000
    assert tuple(tu_stat_cached(path, True, os.fstat)) == tuple(os.stat(path))
    assert tu_stat_cached(b"/proc/self/fd", True, None) == -errno.EAGAIN
    assert tu_stat_cached(b"x" * 300, True, None) == -errno.EAGAIN  # ENAMETOOLONG, which the ring tells

    def fails(_fd: int) -> os.stat_result:
        raise KeyboardInterrupt

    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(KeyboardInterrupt):
        tu_stat_cached(path, True, fails)
    for wrong in ((path,), (str(path), True, None)):
        with pytest.raises(TypeError):
            tu_stat_cached(*wrong)
    assert os.listdir("/proc/self/fd") == descriptors
