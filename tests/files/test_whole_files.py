"""read_files against the builtin open as oracle: whatever stands at a path, from whichever cache, file system and backend."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Backend
from test_elsewhere import HERE, on_fuse, printed
from tools import blocked, run

import trio_uring
from trio_uring import UringBackend
from trio_uring._files import whole_files
from trio_uring._ring.ring import lib, tu_read_files

pytestmark = pytest.mark.usefixtures("descriptors_flat")

SIZES = (0, 1, 100, 4095, 4096, 4097, 65535, 65536, 65537, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3_000_000)


def builtin(path: Any) -> bytes | OSError:
    """What `open` and `read` make of a path."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        return error


def check(results: list[bytes | OSError], paths: list[Any]) -> None:
    """Results are the builtin's: bytes, or class, number, text and name of the error."""
    assert len(results) == len(paths)
    for result, path in zip(results, paths, strict=True):
        expected = builtin(path)
        if isinstance(expected, bytes):
            assert result == expected, path
        else:
            assert isinstance(result, OSError), path
            assert type(result) is type(expected)
            assert (result.errno, result.strerror) == (expected.errno, expected.strerror)
            assert result.filename == os.fspath(path)
            assert type(result.filename) is type(os.fspath(path))


@pytest.fixture
def tree(tmp_path: Path) -> list[Any]:
    """Paths of one of everything that does not wait."""
    pick = random.Random(3)
    paths: list[Any] = []
    for size in SIZES:
        (tmp_path / f"of {size}").write_bytes(pick.randbytes(size))
        paths.append(tmp_path / f"of {size}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "below").write_bytes(b"below")
    (tmp_path / "link").symlink_to("of 100")
    (tmp_path / "to proc").symlink_to("/proc/version")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    names = (
        "folder",
        "folder/below",
        "folder/../of 1",
        "folder/",
        "of 1/",
        "of 1/x",
        "link",
        "to proc",
        "dangling",
        "loop",
    )
    paths += [
        tmp_path / "folder" / "below",
        str(tmp_path / "of 4096"),
        os.fsencode(tmp_path / "of 1"),
        "missing",
        "",
        ".",
    ]
    paths += [f"{tmp_path}/{name}" for name in (*names, "socket", "x" * 300, "missing/x", "of 1/../of 100")]
    paths += [
        "/proc/version",
        "/proc/self/status/x",
        "/proc/self/mem",
        "/dev/null",
        "/",
        "/sys/kernel/mm",
        os.fsencode(tmp_path),
    ]
    paths += [f"{tmp_path}{'/.' * 3000}/of 1"]
    return paths


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_whatever_stands_at_a_path(backend: Backend, tree: list[Any], limit: int) -> None:
    paths = random.Random(limit).sample(tree * 3, 3 * len(tree))
    check(run(backend, functools.partial(trio_uring.read_files, limit=limit), paths), paths)


def test_relative_paths_and_any_iterable(backend: Backend, tree: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree[0].parent)
    paths = ["of 1", "./of 4096", "folder/below", "missing", "folder", b"of 100"]
    check(run(backend, trio_uring.read_files, iter(paths)), paths)
    assert run(backend, trio_uring.read_files, []) == []


def test_a_thousand_in_the_order_asked(backend: Backend, tmp_path: Path) -> None:
    paths = []
    for i in range(1000):
        paths.append(tmp_path / str(i % 7) / str(i))
        paths[-1].parent.mkdir(exist_ok=True)
        paths[-1].write_text(f"file {i}" * (i % 9))
    assert run(backend, trio_uring.read_files, paths) == [f"file {i}".encode() * (i % 9) for i in range(1000)]


@pytest.mark.parametrize("size", [0, 1, 100, 4096])
def test_files_of_proc_and_sys(backend: Backend, size: int) -> None:
    """Their size is 0 or a page, whatever is in them."""
    paths = [
        "/proc/version",
        "/proc/filesystems",
        "/proc/self/mountinfo",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ]
    paths = [path for path in paths if os.path.exists(path)]
    check(
        run(backend, trio_uring.read_files, paths * (size + 1 if size < 10 else 2)),
        paths * (size + 1 if size < 10 else 2),
    )


# ------------------------------------------------------------------ what the shim does on the spot


def at_hand(paths: list[str], most: int = 64) -> list[Any]:
    """Results of `tu_read_files`, whose descriptors are closed."""
    results: list[Any] = [None] * len(paths)
    start = 0
    while start < len(paths):
        found = tu_read_files(list(map(os.fsencode, paths)), results, start, most)
        assert found > start
        start = found
    for result in results:
        if isinstance(result, tuple):
            os.close(result[0])
    return results


def test_on_the_spot_is_what_is_at_hand_and_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(bytes((1 << 18) + 1))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "out").symlink_to("/proc/version")
    (tmp_path / "in").symlink_to("file")
    for path in tmp_path.iterdir():
        path.stat()
    names = ["file", "empty", "large", "fifo", "out", "in", "none"]
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "none").stat()
    file, empty, large, fifo, out, inside, none = at_hand([f"{tmp_path}/{name}" for name in names])
    assert (file, empty, inside) == (b"here", b"", b"here")
    assert large[1] == (1 << 18) + 1
    assert fifo[1] == -1
    assert out is None  # another mount: nobody is asked
    assert none == -errno.ENOENT
    assert at_hand(["/proc/version", f"{tmp_path}/file/", ""]) == [None, None, None]


def test_no_more_are_left_open_than_asked(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(300_000))
    paths = [os.fsencode(tmp_path / "large")] * 10
    results: list[Any] = [None] * 10
    assert tu_read_files(paths, results, 0, 3) == 3
    assert tu_read_files(paths, results, 3, 0) == 3
    for fd, size in results[:3]:
        assert size == 300_000
        assert not os.get_inheritable(fd)
        assert os.get_blocking(fd)
        os.close(fd)
    assert results[3:] == [None] * 7
    for wrong in (((), results, 0, 1), (paths, results[:3], 0, 1), ([1], [None], 0, 1), (paths, results, "0", 1)):
        with pytest.raises(TypeError):
            tu_read_files(*wrong)


def test_other_tasks_run_meanwhile(ring: Backend, tmp_path: Path) -> None:
    """Each millisecond on the spot; so also a task that reads for ever starves nobody."""
    for i in range(2000):
        (tmp_path / str(i)).write_bytes(bytes(4096))
    paths = [tmp_path / str(i) for i in range(2000)]

    async def main() -> None:
        turns = 0

        async def counts() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(counts)
            await trio_uring.read_files(paths)
            nursery.cancel_scope.cancel()
        assert turns > 3

    run(ring, main)


def test_a_schedule_point_and_a_cancel_point_always(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")

    async def main() -> None:
        for paths in ([], [tmp_path / "file"], [tmp_path / "none"], [tmp_path]):
            with trio.testing.assert_checkpoints():
                await trio_uring.read_files(paths)
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio_uring.read_files(paths)
            assert scope.cancelled_caught

    run(backend, main)


# ------------------------------------------------------------------ files that change, caches that are cold


def test_a_file_that_has_grown_or_been_cut_after_its_size_was_known(ring: Backend, tmp_path: Path) -> None:
    """In the batch the size is that of a moment before."""
    contents = [b"a" * 5000, b"b" * 5000, b"c" * 5000, b"", b"d" * 70_000]
    paths = [tmp_path / str(i) for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    said = [4000, 6000, 5000, 10, 70_000]

    def opened(_encoded: list[bytes], results: list[Any], first: int, _most: int) -> int:
        for i, path in enumerate(paths):
            results[i] = (os.open(path, os.O_RDONLY), said[i])
        return len(results)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_files, "tu_read_files", opened)
        results = trio_uring.run(trio_uring.read_files, paths, io_backend="uring")
    assert results == contents


def test_what_is_not_in_the_page_cache(ring: Backend, tmp_path: Path) -> None:
    pick = random.Random(5)
    paths, contents = (
        [tmp_path / str(i) for i in range(300)],
        [pick.randbytes(pick.randrange(9000)) for _ in range(300)],
    )
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert run(ring, functools.partial(trio_uring.read_files, limit=20), paths) == contents


IN_A_NAMESPACE = """
import os, pathlib, random, sys, trio, trio_uring
sys.path.insert(0, {here!r})
import mounts
from trio_uring import UringBackend
backend = {{"sq2cq4": UringBackend(sq_entries=2, cq_entries=4)}}.get(sys.argv[1], sys.argv[1])
top = pathlib.Path(sys.argv[2])
mounts.private_mounts()
{body}
pick = random.Random(1)
contents = [pick.randbytes(pick.randrange(10000)) for _ in range(500)]
paths = [folder / str(i) for i in range(500)]
for path, content in zip(paths, contents):
    path.write_bytes(content)
open_before = len(os.listdir("/proc/self/fd"))  # from 3.15 on ctypes keeps one open
assert trio.run(trio_uring.read_files, paths, io_backend=backend) == contents
async def cancelled():
    with trio.move_on_after(0.001):
        await trio_uring.read_files(paths * 20)
trio.run(cancelled, io_backend=backend)
assert len(os.listdir("/proc/self/fd")) == open_before
print("read")
"""


@pytest.mark.parametrize("named", ["uring", "sq2cq4", "epoll"])
@pytest.mark.parametrize(
    "body",
    [
        "folder = mounts.overlay(top)",
        'mounts.mount("tmpfs", top); folder = top',
    ],
    ids=["overlayfs", "tmpfs"],
)
def test_file_systems_that_know_no_rwf_nowait(tmp_path: Path, body: str, named: str) -> None:
    assert printed("-c", IN_A_NAMESPACE.format(here=str(HERE), body=body), named, str(tmp_path)) == "read\n"


@pytest.mark.parametrize("backend", ["uring", "sq2cq4", "epoll"])
def test_f53_files_of_a_daemon_are_waited_for_outside_of_the_loop(backend: str, tmp_path: Path) -> None:
    """The daemon's answers come from a task of the same run; whatever else was asked for is there meanwhile."""
    told = on_fuse(
        backend,
        tmp_path,
        """
        async def main():
            await trio.to_thread.run_sync(os.stat, top / "file")
            found = await trio_uring.read_files([top / "file", "/proc/version", top / "none", top / "file", top])
            assert found[0] == found[3] == CONTENT
            assert found[1] == open("/proc/version", "rb").read()
            assert found[2].errno == errno.ENOENT and found[4].errno == errno.EISDIR
            print("goes on")
        """,
    )
    assert told == "goes on\n"


# ------------------------------------------------------------------ what waits


def test_fifos_are_read_to_the_end_each_with_the_first_writer(backend: Backend, tmp_path: Path) -> None:
    """However late it comes, and in pieces; the files beside them are not waited for."""
    fifos = [tmp_path / str(i) for i in range(5)]
    for fifo in fifos:
        os.mkfifo(fifo)
    (tmp_path / "file").write_bytes(b"beside")

    async def main() -> None:
        results: list[Any] = []

        async def reads() -> None:
            results.extend(await trio_uring.read_files([*fifos, tmp_path / "file"]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reads)
            await blocked(0.01)
            # Backwards, so that each waits for another one.
            for i, fifo in reversed(list(enumerate(fifos))):
                writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)
                await blocked(0.001)
                for piece in (b"first", bytes(100_000), b"last"):
                    await trio.to_thread.run_sync(os.write, writer, piece)
                    await trio.lowlevel.checkpoint()
                assert not results
                os.close(writer)
                del i
        whole = b"first" + bytes(100_000) + b"last"
        assert results == [whole] * 5 + [b"beside"]

    run(backend, main)


def test_a_fifo_whose_writer_writes_nothing(backend: Backend, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: os.close(os.open(tmp_path / "fifo", os.O_WRONLY)))
            assert await trio_uring.read_files([tmp_path / "fifo"]) == [b""]

    run(backend, main)


@pytest.mark.parametrize("limit", [1, 2, 64])
def test_a_fifo_without_a_writer_ends_with_a_cancel_or_a_deadline(backend: Backend, tmp_path: Path, limit: int) -> None:
    for i in range(4):
        os.mkfifo(tmp_path / str(i))
    (tmp_path / "file").write_bytes(b"x")
    paths = [tmp_path / "file", *(tmp_path / str(i) for i in range(4)), tmp_path / "file", tmp_path / "none"] * 3

    async def main() -> None:
        with trio.move_on_after(0.01) as scope:
            await trio_uring.read_files(paths, limit=limit)
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(trio_uring.read_files, limit=limit), paths)
            await blocked()
            nursery.cancel_scope.cancel()
        # Nobody has one open any more.
        with pytest.raises(OSError, match="No such device"):
            os.open(tmp_path / "0", os.O_WRONLY | os.O_NONBLOCK)

    run(backend, main)


def test_ctrl_c_is_keyboard_interrupt_and_no_group(backend: Backend, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x")

    async def main() -> None:
        @trio.lowlevel.enable_ki_protection
        async def strikes() -> None:
            await blocked(0.01)
            signal.raise_signal(signal.SIGINT)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(strikes)
            with pytest.raises(KeyboardInterrupt):
                await trio_uring.read_files([tmp_path / "file", tmp_path / "fifo"])

    run(backend, main)


def test_a_lease_is_waited_for(backend: Backend, tmp_path: Path) -> None:
    """Whoever has one gives it up before somebody else opens the file; with O_NONBLOCK open(2) is refused meanwhile."""
    (tmp_path / "file").write_bytes(b"leased")
    program = f"""
    import fcntl, os, signal, sys
    fd = os.open({str(tmp_path / "file")!r}, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    print("leased", flush=True)
    signal.sigwait([signal.SIGUSR1])
    os.write(fd, b"LEASED")
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "leased\n"
        assert run(backend, trio_uring.read_files, [tmp_path / "file", tmp_path / "none"])[0] == b"LEASED"
    assert holder.returncode == 0


# ------------------------------------------------------------------ descriptors


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Only so many more can be opened, from here on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        top = max(map(int, os.listdir("/proc/self/fd"))) + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(count):
            os.close(held.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


def test_emfile_of_our_own_making_is_waited_out(backend: Backend, tmp_path: Path) -> None:
    """Two calls, and each wants more than there are; and files that take a descriptor for a while."""
    paths = [tmp_path / str(i) for i in range(60)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes(i) * (10_000 if i % 3 else 1))
    expected = [path.read_bytes() for path in paths]

    async def main() -> None:
        found: dict[int, Any] = {}

        async def reads(number: int) -> None:
            found[number] = await trio_uring.read_files([*paths, "/proc/version"])

        await trio_uring.read_files(paths)  # threads and workers are there
        with descriptors_left(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reads, 0)
                nursery.start_soon(reads, 1)
        version = builtin("/proc/version")
        assert found == {0: [*expected, version], 1: [*expected, version]}

    run(backend, main)


def test_emfile_of_others_is_the_error_of_each_file(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")

    async def main() -> None:
        await trio_uring.read_files([tmp_path / "file"])
        with descriptors_left(0):
            found = await trio_uring.read_files([tmp_path / "file", tmp_path / "file"])
        assert [(error.errno, error.filename) for error in found if isinstance(error, OSError)] == [
            (errno.EMFILE, str(tmp_path / "file"))
        ] * 2

    run(backend, main)


# ------------------------------------------------------------------ what cannot be meant


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda f: f("file"), TypeError, r"^paths must be an iterable of paths, not one path$"),
        (lambda f: f(b"file"), TypeError, r"^paths must be an iterable of paths, not one path$"),
        (lambda f: f(Path("file")), TypeError, r"^paths must be an iterable of paths, not one path$"),
        (lambda f: f(5), TypeError, r"not iterable"),
        (lambda f: f(["a", 5]), TypeError, r"^paths\[1\] must be str, bytes or os.PathLike, not int$"),
        (
            lambda f: f(["a"] * 5000 + [None]),
            TypeError,
            r"^paths\[5000\] must be str, bytes or os.PathLike, not NoneType$",
        ),
        (lambda f: f(["a", "b\0c"]), ValueError, r"^paths\[1\]: embedded null byte$"),
        (lambda f: f(["lone\ud800"]), UnicodeEncodeError, r"surrogates not allowed"),
        (lambda f: f([], limit=0), ValueError, r"^limit must be at least 1$"),
        (lambda f: f([], limit=-1), ValueError, r"^limit must not be negative \(-1\)$"),
        (lambda f: f([], limit=32769), ValueError, r"^limit is too large"),
        (lambda f: f([], limit="1"), TypeError, r"^limit must be an int, not str$"),
    ],
)
def test_what_cannot_be_meant(backend: Backend, call: Callable[[Any], Any], kind: type[Exception], text: str) -> None:
    async def main() -> None:
        with pytest.raises(kind, match=text):
            await call(trio_uring.read_files)

    run(backend, main)


def test_audited_as_the_builtin_is(backend: Backend, tmp_path: Path) -> None:
    """Before anything is read: a hook that refuses one refuses the call."""
    program = f"""
    import sys, trio, trio_uring
    top = {str(tmp_path)!r}
    open(top + "/a", "wb").close()
    seen = []
    def hook(event, arguments):
        if event == "open" and str(arguments[0]).startswith(top):
            seen.append(arguments)
            if arguments[0].endswith("no"):
                raise RuntimeError("refused")
    sys.addaudithook(hook)
    async def main():
        with open(top + "/a", "rb"):
            pass
        await trio_uring.read_files([top + "/a"])
        try:
            await trio_uring.read_files([top + "/a", top + "/no"])
        except RuntimeError as error:
            print(error, len(seen), seen[0] == seen[1] == seen[2])
    trio.run(main, io_backend={"epoll" if backend == "epoll" else "uring"!r})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    expected = "refused 5 False" if backend == "epoll" else "refused 4 True"
    assert (done.stdout.strip(), done.stderr) == (expected, "")


# ------------------------------------------------------------------ signals, threads


def test_f40_a_read_without_a_worker_is_done_by_a_thread(ring: Backend, tmp_path: Path) -> None:
    """Of a batch: what the kernel has ended with -ECANCELED because it could make no worker."""
    paths = [tmp_path / str(i) for i in range(9)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 9000)

    def opened(_encoded: list[bytes], results: list[Any], first: int, _most: int) -> int:
        results[:] = [(os.open(path, os.O_RDONLY), 9000) for path in paths]
        return len(results)

    def no_worker(*arguments: Any) -> int:
        done = lib.tu_batch_read_files(*arguments)
        arguments[5][3] = -errno.ECANCELED
        return int(done)

    async def main() -> None:
        results = await trio_uring.read_files(paths)
        assert results == [bytes([i]) * 9000 for i in range(9)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_files, "tu_read_files", opened)
        patch.setattr(whole_files, "tu_batch_read_files", no_worker)
        trio_uring.run(main, io_backend=UringBackend(speculate=True))
