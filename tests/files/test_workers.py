"""Workers of the kernel's: how many there may be (F41), what happens where there is none (F40), and the last one (F51)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from conftest import RINGS, Backend
from tools import blocked, manager, run

from trio_uring import UringBackend
from trio_uring._ring.ring import Ring

PATIENCE = 100  # seconds, after which a program is taken to hang

# ------------------------------------------------------------------ how many


def told() -> int:
    """How many a run says that there may be."""
    statistics: Any = trio.lowlevel.current_statistics().io_statistics
    return int(statistics.max_workers)


def allowed() -> int:
    """How many workers the kernel lets this thread have."""
    return manager().ring.max_workers(0)


SIZES: Any = [{}, {"sq_entries": 2, "cq_entries": 4}]


@pytest.mark.parametrize("sizes", SIZES, ids=RINGS)
@pytest.mark.parametrize("asked", [None, 1, 7, 300])
def test_f41_as_many_workers_as_threads_or_as_asked(asked: int | None, sizes: Any) -> None:
    async def main() -> None:
        expected = asked or 40
        assert allowed() == expected
        assert told() == expected

    run(UringBackend(max_workers=asked, **sizes), main)


def test_f41_whoever_allows_more_threads_gets_more_workers(ring: Backend, tmp_path: Path) -> None:
    """At the next call; and never fewer than Trio's limiter has at first."""

    async def main() -> None:
        limiter = trio.to_thread.current_default_thread_limiter()
        for tokens, expected in ((100, 100), (3, 40), (float("inf"), 32768)):
            limiter.total_tokens = tokens
            await trio.Path(tmp_path).touch(exist_ok=True)  # which takes an entry
            assert allowed() == expected

    run(ring, main)


def test_f50_the_thread_has_its_number_back_after_a_run() -> None:
    """The workers are the thread's, and it may have rings of its own."""
    own = Ring(8, 16)
    try:
        before = own.max_workers(0)
        assert own.max_workers(5) == before
        run(UringBackend(max_workers=77), trio.lowlevel.checkpoint)
        assert own.max_workers(0) == 5
    finally:
        own.close()


@pytest.mark.parametrize("mode", ["rb", "wb", "ab"])
@pytest.mark.parametrize("sizes", SIZES, ids=RINGS)
def test_f41_fifos_take_no_worker_of_the_others(mode: str, sizes: Any, tmp_path: Path) -> None:
    """One worker is all there may be, and sixty wait for the other ends of FIFOs; then these come, by the same way."""
    names = [tmp_path / str(i) for i in range(60)]
    for name in names:
        os.mkfifo(name)
    opened = []

    async def opens(name: Path, mode: str) -> None:
        file = await trio.open_file(name, mode, 0)
        opened.append(file)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(opens, name, mode)
            await blocked()
            assert told() == 61
            await trio.Path(tmp_path / "plain").write_bytes(b"x")
            await trio.Path(tmp_path / "plain").rename(tmp_path / "renamed")
            assert await trio.Path(tmp_path / "renamed").exists()
            assert not opened
            for name in names:
                nursery.start_soon(opens, name, "wb" if mode == "rb" else "rb")
        assert len(opened) == 120
        assert allowed() == 1
        for file in opened:
            await file.aclose()

    run(UringBackend(max_workers=1, **sizes), main)


def test_f8_an_open_of_a_fifo_that_is_collected_with_its_run_asks_nothing_of_the_ring(ring: Backend) -> None:
    """Finalizers of one collection run in no order: the ring's memory may have been freed before (found by AddressSanitizer)."""

    async def main() -> None:
        kernel = manager().ring
        before = allowed()
        waits: Any = manager().extra_worker()
        waits.__enter__()
        assert allowed() == before + 1
        calls: list[int] = []
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Ring, "max_workers", lambda ring, bounded: calls.append(bounded))
            waits.gen.close()  # what its finalizer does
        assert calls == []
        with manager().extra_worker():
            assert allowed() == before + 1, "it counts as one that waits still"
        assert kernel.max_workers(0) == before

    run(ring, main)


def test_f41_a_cancelled_open_of_a_fifo_gives_its_worker_back(ring: Backend, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    async def main() -> None:
        for _ in range(3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(trio.open_file, tmp_path / "fifo", "rb")
                    await blocked()
                    scope.cancel()
            assert scope.cancelled_caught
            assert allowed() == 40

    run(ring, main)


# ------------------------------------------------------------------ none to be had

# Everything that needs a worker, as a user without a right to another thread. What a program may do before that is in `before`.
NO_THREAD = """
import errno, os, resource, socket, sys, time
import trio, trio_uring
from trio_uring import UringBackend

backends = {"sq2cq4": UringBackend(sq_entries=2, cq_entries=4), "ring only": UringBackend(speculate=False)}
backend = backends.get(sys.argv[1], sys.argv[1])
top = sys.argv[2]
path = trio.Path(top)
trio.run(trio.sleep, 0, io_backend=backend)  # that everything is imported: the other user may not read it
trio_uring.read_many, trio_uring.read_files, trio_uring.copy_file, trio_uring.statx
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65501)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
fd = os.open(top + "/file", os.O_RDWR)
target = os.open(top + "/target", os.O_RDWR)
memory = os.memfd_create("memory")
os.write(memory, b"content")

async def closes():
    async with await trio.open_file(top + "/file", "r+b") as file:
        await file.write(b"HELLO")

async def shielded():
    with trio.CancelScope(shield=True):
        await path.joinpath("shielded").mkdir()

async def sends():
    a, b = socket.socketpair()
    a.setblocking(False)
    with b:
        with trio.socket.from_stdlib_socket(a) as sock:
            await trio_uring.sendfile(sock, fd, 0, 5)

CALLS = {
    "stat": path.joinpath("file").stat,
    "exists": path.joinpath("file").exists,
    "mkdir": path.joinpath("made").mkdir,
    "mkdir, parents": lambda: path.joinpath("a/b/c").mkdir(parents=True),
    "rename": lambda: path.joinpath("target").rename(top + "/other"),
    "unlink": path.joinpath("file").unlink,
    "write_text": lambda: path.joinpath("file").write_text("text"),
    "make": lambda: trio.open_file(top + "/opened", "w"),
    "close": closes,
    "shielded": shielded,
    "fsync": lambda: trio_uring.fsync(fd),
    "fallocate": lambda: trio_uring.fallocate(fd, 0, 100),
    "statx": lambda: trio_uring.statx(fd),
    "write_at": lambda: trio_uring.write_at(fd, b"x" * 10, 0),
    "writev_at": lambda: trio_uring.writev_at(fd, [b"x", b"y"], 0),
    "copy_file": lambda: trio_uring.copy_file(fd, target),
    "sendfile": sends,
    "read_at": lambda: trio_uring.read_at(memory, 5, 0),
    "readinto_at": lambda: trio_uring.readinto_at(memory, bytearray(5), 0),
    "read_many": lambda: trio_uring.read_many(memory, [(0, 3), (3, 2)]),
    "read_files": lambda: trio_uring.read_files(["/proc/self/comm"]),
    "readinto_many": lambda: trio_uring.readinto_many(memory, [(0, bytearray(3))]),
}

async def main():
    for name, call in CALLS.items():
        with trio.move_on_after(20) as scope:
            try:
                print(name, "|", await call())
            except RuntimeError as error:
                print(name, "|", error)
        if scope.cancelled_caught:
            print(name, "| ended by its deadline")

trio.run(main, io_backend=backend)
"""


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder that everybody may use."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        for name in ("file", "target"):
            (top / name).write_text("hello")
            os.chmod(top / name, 0o666)
        os.chmod(top, 0o777)
        yield top


@pytest.mark.parametrize("name", [*RINGS, "ring only"])
def test_f40_no_worker_and_no_thread_is_the_error_that_it_is_on_epoll(name: str, top: Path) -> None:
    """Within its time, under a shield too, and nothing has been done."""
    command = [sys.executable, "-c", NO_THREAD, name, str(top)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert len(told) == 22
    if name != "ring only":  # these are at hand, and need neither
        assert told.pop("exists") == "True"
        assert told.pop("stat").startswith("os.stat_result(")
        assert told.pop("read_at") == "b'conte'"
        assert told.pop("readinto_at") == "5"
    assert set(told.values()) == {"can't start new thread"}, told
    assert sorted(os.listdir(top)) == ["file", "target"]
    assert (top / "file").read_text() == "hello"


def test_f40_a_thread_that_is_there_already_does_it(top: Path) -> None:
    """Trio keeps its threads for a while: on epoll these calls would succeed as well."""
    program = NO_THREAD.replace(
        "async def main():\n",
        "async def main():\n"
        "    await trio.to_thread.run_sync(int)\n"
        "    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n",
    ).replace("resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\nfd", "fd", 1)
    command = [sys.executable, "-c", program, "uring", str(top)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "can't start" not in done.stdout
    told = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert told["read_many"] == "[b'con', b'te']"
    assert told["read_at"] == "b'conte'"
    assert told["exists"] == "True"
    assert (top / "made").exists()


# ------------------------------------------------------------------ the last one


def test_f51_the_last_worker_stays_with_the_ring_and_goes_with_it() -> None:
    """Up to the end of the run a process has two threads: os.fork warns (CPython 3.12), unshare(CLONE_NEWUSER) is EINVAL."""
    program = """
        import ctypes, errno, os, sys, time, trio, trio_uring
        libc = ctypes.CDLL(None, use_errno=True)

        async def main():
            before = len(os.listdir("/proc/self/task"))
            await trio_uring.statx("/")
            print(len(os.listdir("/proc/self/task")) - before)
            print(libc.unshare(0x10000000), ctypes.get_errno() == errno.EINVAL)
            return before

        before = trio.run(main, io_backend="uring")
        while len(os.listdir("/proc/self/task")) > before:
            time.sleep(0.001)
        print(libc.unshare(0x10000000))
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.split() == ["1", "-1", "True", "0"], done.stderr


# ------------------------------------------------------------------ none

WITHOUT_ANY = """
import errno, os, warnings

import trio

FILE = trio.Path(os.__file__)


def workers():
    names = [open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")]
    return [name for name in names if name.startswith("iou-")]


# Whether a read that may not wait has it all: tmpfs and overlayfs know no such reads, and a worker does theirs.
def cached():
    fd = os.open(FILE, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        os.read(fd, size)
        return os.preadv(fd, [bytearray(size)], 0, os.RWF_NOWAIT) == size
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        return False
    finally:
        os.close(fd)


async def main():
    left, right = trio.socket.socketpair()
    await left.send(b"x")
    assert await right.recv(1) == b"x"
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept)
        await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    reader, writer = os.pipe()
    async with trio.lowlevel.FdStream(writer) as sending, trio.lowlevel.FdStream(reader) as receiving:
        await sending.send_all(b"x")
        assert await receiving.receive_some(1) == b"x"
    await trio.sleep(0.001)
    if cached():
        async with await trio.open_file(FILE) as file:
            text = await file.read()
        assert (await FILE.read_bytes()).decode() == text
        assert await FILE.exists()
    warnings.simplefilter("error", DeprecationWarning)  # what it is from CPython 3.12 on
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    await trio.run_process(["true"])
    print(trio.lowlevel.current_statistics().io_statistics.backend, *workers())


trio.run(main)
"""


def test_f51_no_worker_is_made_where_none_is_needed(tmp_path: Path) -> None:
    """Sockets, pipes, processes, sleeps, and files that are in the page cache: no thread is made, and os.fork() warns of none."""
    program = tmp_path / "program.py"
    program.write_text(WITHOUT_ANY)
    environment = {**os.environ, "TRIO_IO_BACKEND": "uring"}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout, done.stderr) == ("uring\n", "")
