# ruff: noqa: ASYNC110, ASYNC230, ASYNC240 - the oracle is blocking, and so is looking at what is left on the disk
"""trio.Path on the ring against pathlib: results, errors, what is left on the disk, and that no thread had a part in it.

Knows the public interface, pathlib as the oracle, and the name through which Trio's own methods reach a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import inspect
import io
import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar, TypeAlias

import hypothesis
import pytest
import trio
import trio._path
import trio.testing
from hypothesis import strategies as st
from path_tools import CALLS, NAMES, Call, Twins, build, endless, failure, inside, names_for, oracle, outcome, tree

import trio_uring
from trio_uring._entry.seams import PATH_METHODS
from trio_uring._files import opening as _opening
from trio_uring._files import paths as _paths
from trio_uring._loop.manager import UringIOManager

trio.run(trio.lowlevel.checkpoint)  # hypothesis looks for the holder of Trio's random numbers


Backend: TypeAlias = "str | trio_uring.UringBackend"


def run(main: Callable[..., Any], *args: Any, io_backend: Backend = "uring") -> Any:
    """`trio.run` on the ring."""
    return trio_uring.run(main, *args, io_backend=io_backend)  # type: ignore[arg-type]


def ring_manager() -> UringIOManager:
    """The I/O manager of the run that the caller is in."""
    found = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
    assert isinstance(found, UringIOManager)
    return found


class Threads:
    """How often Trio's own methods asked for a thread."""

    def __init__(self) -> None:
        self.asked = 0

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def run_sync(*args: Any, **kwargs: Any) -> Any:
            self.asked += 1
            return await original(*args, **kwargs)

        return run_sync


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """Counts the threads that Trio's own methods ask for."""
    found = Threads()
    monkeypatch.setattr(trio._path, "run_sync", found.wrap(trio._path.run_sync))  # type: ignore[attr-defined]
    return found


@pytest.fixture
def here(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty directory, and the current one."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


# ------------------------------------------------------------------ the oracle


async def served(call: Call, name: str) -> object:
    """What Trio does."""
    try:
        result = await getattr(trio.Path(name), call.method)(*call.args, **call.kwargs)
    except Exception as error:
        return failure(error)
    assert not isinstance(result, pathlib.PurePath) or result.__class__ is trio.PosixPath
    return outcome(result)


@pytest.mark.parametrize("call", CALLS, ids=[f"{number}-{call.method}" for number, call in enumerate(CALLS)])
def test_does_what_pathlib_does(call: Call, tmp_path: pathlib.Path) -> None:
    """Invariant 1 and the issue: result, error with its names, and what is on the disk afterwards, for every kind of name."""

    async def main() -> None:
        twins = Twins(tmp_path)
        for name in names_for(call):
            with inside(twins.first):
                expected = oracle(call, name), tree()
            with inside(twins.second):
                assert (await served(call, name), tree()) == expected, name
            if expected[1] != twins.built:
                twins.renew()

    run(main)


@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    steps=st.lists(
        st.tuples(
            st.integers(0, len(CALLS) - 1).map(CALLS.__getitem__),
            st.sampled_from([name for name in NAMES if len(name) < 100]),
        ),
        min_size=2,
        max_size=12,
    )
)
def test_sequences_do_what_pathlib_does(
    steps: list[tuple[Call, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same for what one call leaves to the next."""
    steps = [(call, name) for call, name in steps if not endless(call, name)]
    top = tmp_path_factory.mktemp("sequence")

    async def main() -> list[object]:
        return [(await served(call, name), tree()) for call, name in steps]

    twins = Twins(top)
    with inside(twins.first):
        os.unlink("fifo")
        expected = [(oracle(call, name), tree()) for call, name in steps]
    with inside(twins.second):
        os.unlink("fifo")
        assert run(main) == expected


FIELDS = [name for name in dir(os.stat_result) if name.startswith("st_")]


def test_every_field_of_a_status(here: pathlib.Path) -> None:
    """Every field of os.stat's result, its types, its repr and its pickle; F2: taken from memory of the operation's own."""
    build(here)
    for name, times in {
        "old": (-5, -1),
        "odd": (1, 999_999_999),
        "late": (2**33 * 10**9 + 7, 2**34 * 10**9 - 1),
    }.items():
        pathlib.Path(name).touch()
        os.utime(name, ns=times)
    with open("sparse", "wb") as file:
        file.truncate(1 << 41)
    names = ("old", "odd", "late", "sparse", "file", "dir", "link", "fifo", "socket", "loop", "dangling", "/", ".")
    everywhere = (*names, "/dev/null", "/dev/full", "/dev/tty", "/proc/self/status", "/sys", "/dev/shm")

    def seen(status: os.stat_result) -> object:
        fields = {name: (getattr(status, name).__class__, getattr(status, name)) for name in FIELDS}
        return fields, tuple(status), repr(status), len(pickle.dumps(status))

    async def main() -> None:
        for name in everywhere:
            path = trio.Path(name)
            if name not in ("loop", "dangling"):
                assert seen(await path.stat()) == seen(os.stat(name)), name
                assert seen(await path.stat(follow_symlinks=True)) == seen(os.stat(name)), name
            assert seen(await path.lstat()) == seen(os.lstat(name)), name
            assert seen(await path.stat(follow_symlinks=False)) == seen(os.lstat(name)), name

    run(main)
    assert "st_atime_ns" in FIELDS


@pytest.mark.parametrize(
    "method", ["stat", "lstat", "exists", "is_file", "mkdir", "unlink", "read_bytes", "rmdir", "touch"]
)
def test_without_permission(method: str) -> None:
    """EACCES, also for a root that has put its rights away: requests carry the credentials of the moment they are submitted."""

    async def main(path: str) -> object:
        return await served(Call(method), path)

    with tempfile.TemporaryDirectory() as top:  # pytest's own are closed to everybody else
        os.chmod(top, 0o755)
        closed = pathlib.Path(top, "closed")
        closed.mkdir()
        (closed / "file").touch()
        closed.chmod(0)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65534)
            expected = oracle(Call(method), str(closed / "file"))
            assert run(main, str(closed / "file")) == expected
        finally:
            if root:
                os.seteuid(0)
            closed.chmod(0o700)
    if sys.version_info < (3, 14) or method not in ("exists", "is_file"):
        assert expected[0] is PermissionError  # type: ignore[index]


# ------------------------------------------------------------------ the ring has it, and no thread


def test_no_thread_has_a_part(here: pathlib.Path, threads: Threads, pure_ring: Backend) -> None:
    """Every served method, its result or its error: entries went to the kernel, and no thread was asked for."""
    build(here)
    running = threading.active_count()

    async def main() -> None:
        counters = ring_manager().ring.counters
        arguments: dict[str, tuple[Any, ...]] = {
            **dict.fromkeys(("rename", "replace", "symlink_to", "hardlink_to"), ("moved",)),
            "samefile": ("file",),
            "write_bytes": (b"data",),
            "write_text": ("data", "utf-8"),
        }
        for name in ("missing", "file", "dir", "loop", "file/below", "häß/below"):
            for method in PATH_METHODS:
                if method == "touch":
                    continue
                before = counters().submitted
                await served(Call(method, arguments.get(method, ())), name)
                assert counters().submitted > before, (method, name)
                assert not threads.asked, (method, name)
                for leftover in ("moved", "file", "dir"):
                    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                        os.unlink(leftover)
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        os.rmdir(leftover)
                pathlib.Path("file").write_bytes(b"data")
                pathlib.Path("dir").mkdir()
        await trio.Path("made/with/parents").mkdir(parents=True)
        await trio.Path("made/with/parents").mkdir(parents=True, exist_ok=True)
        await trio.Path("made/new").touch()
        await trio.Path("no such file").unlink(missing_ok=True)

    run(main, io_backend=pure_ring)
    assert not threads.asked
    assert threading.active_count() <= running  # one that idled may have gone


@pytest.mark.parametrize("method", ["stat", "exists", "mkdir", "read_text", "samefile"])
def test_what_is_not_served_goes_to_a_thread(method: str, here: pathlib.Path, threads: Threads) -> None:
    """A name that cannot be encoded: the original words the error, once."""
    args = ("x",) if method == "samefile" else ()

    async def main() -> object:
        return await served(Call(method, args), "nul\0name")

    assert run(main) == oracle(Call(method, args), "nul\0name")
    assert threads.asked == 1


def test_epoll_is_untouched(here: pathlib.Path, threads: Threads) -> None:
    """A run on epoll after a run on the ring goes through Trio's own methods alone."""
    run(trio.lowlevel.checkpoint)

    async def main() -> None:
        await trio.Path("file").write_text("text")
        assert await trio.Path("file").read_text() == "text"
        assert await trio.Path("file").exists()
        assert (await trio.Path("file").rename("other")).name == "other"

    run(main, io_backend="epoll")
    assert threads.asked == 4


def test_a_class_with_methods_of_its_own(here: pathlib.Path, threads: Threads) -> None:
    """`_wrapped_cls` of a subclass decides, as in Trio."""

    class Loud(pathlib.PosixPath):
        def open(self, *_args: object, **_options: object) -> Any:
            return io.BytesIO(b"loud")

    class LoudPath(trio.Path, pathlib.PurePosixPath):
        _wrapped_cls: ClassVar[type[pathlib.Path]] = Loud

    async def main() -> None:
        assert await LoudPath("missing").read_bytes() == b"loud"

    run(main)
    assert threads.asked == 1


@pytest.mark.parametrize("name", PATH_METHODS)
def test_the_method_looks_like_trios(name: str) -> None:
    """Name, signature, documentation and kind."""
    run(trio.lowlevel.checkpoint)
    method, pathlibs = getattr(trio.Path, name), getattr(pathlib.Path, name)
    assert inspect.iscoroutinefunction(method)
    assert (method.__name__, method.__qualname__) == (name, pathlibs.__qualname__)
    assert inspect.signature(method) == inspect.signature(pathlibs)
    assert inspect.unwrap(method) is pathlibs
    assert "but async" in method.__doc__


_audited: list[object] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _audited is not None and (event == "open" or event.startswith("os.")):
        names = (str(arg) if isinstance(arg, pathlib.PurePath) else arg for arg in args)
        _audited.append((event, *names))


def test_audit_events(here: pathlib.Path) -> None:
    """Whoever watches by sys.addaudithook sees the events that pathlib raises."""
    global _audited
    sys.addaudithook(_hook)
    build(here)
    calls = (
        *(Call("mkdir"), Call("rmdir"), Call("write_bytes", (b"x",)), Call("write_text", ("x", "utf-8"))),
        *(Call("read_bytes"), Call("read_text", ("utf-8",)), Call("hardlink_to", ("file",)), Call("unlink")),
        *(
            Call("touch", (0o600, False)),
            Call("rename", ("new",)),
            Call("symlink_to", ("x",)),
            Call("replace", ("new",)),
        ),
    )

    async def main() -> list[object]:
        global _audited
        events: list[object] = []
        _audited = events
        for call in calls:
            await served(call, "subject")
        _audited = None
        return events

    expected: list[object] = []
    _audited = expected
    for call in calls:
        oracle(call, "subject")
    _audited = None
    os.unlink("new")
    assert run(main) == expected
    assert len(expected) >= len(calls)


# ------------------------------------------------------------------ whole files


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, (1 << 20) + 17, 3 << 20])
def test_sizes(size: int, here: pathlib.Path, threads: Threads, ring: Backend) -> None:
    """Around every boundary at which reading or writing takes another way."""
    data = bytes(range(251)) * (size // 251) + bytes(range(size % 251))

    async def main() -> None:
        path = trio.Path("file")
        assert await path.write_bytes(data) == size
        assert (here / "file").read_bytes() == data
        assert await path.read_bytes() == data
        assert await path.write_text(data.decode("latin-1"), "latin-1", newline="") == size
        assert (here / "file").read_bytes() == data

    run(main, io_backend=ring)
    assert not threads.asked


@pytest.mark.parametrize("real", [0, 5, 70_000, 200_000])
@pytest.mark.parametrize("believed", [0, 4, 5, 69_999, 70_000, 70_001, 300_000])
def test_a_file_that_changes_its_size(real: int, believed: int, here: pathlib.Path) -> None:
    """Truncated or grown between its status and its end: what is read is what is there."""
    data = os.urandom(real)
    (here / "file").write_bytes(data)

    async def main() -> bytes:
        with open("file", "rb") as file:
            return await _paths._contents(ring_manager(), file.fileno(), believed)

    result = run(main)
    assert data.startswith(result)
    assert len(result) >= min(real, believed)
    assert believed == len(result) or result == data


def test_files_that_do_not_say_their_size(threads: Threads) -> None:
    """F21: /proc answers a size of 0 and has contents; a thread reads them, as today."""

    async def main() -> None:
        for name in ("/proc/version", "/proc/self/cmdline"):
            assert await trio.Path(name).read_bytes() == pathlib.Path(name).read_bytes() != b""

    run(main)
    assert threads.asked == 2


def test_a_device_is_read_by_a_thread(threads: Threads) -> None:
    """F21: what is neither a file nor a FIFO goes the way it goes today."""

    async def main() -> bytes:
        return await trio.Path("/dev/null").read_bytes()

    assert run(main) == b""
    assert threads.asked == 1


def test_no_space(threads: Threads) -> None:
    """ENOSPC is raised as pathlib raises it, without a name."""

    async def main() -> object:
        return await served(Call("write_bytes", (b"data",)), "/dev/full")

    assert run(main) == oracle(Call("write_bytes", (b"data",)), "/dev/full")
    assert not threads.asked


@pytest.mark.parametrize("size", [20_000, 3_000_000])
def test_a_limit_on_the_size_of_files(size: int, here: pathlib.Path, threads: Threads) -> None:
    """EFBIG in the middle of a write: the same error, and as much of it in the file."""
    call = Call("write_bytes", (os.urandom(size),))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def main() -> object:
        return await served(call, "ring")

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        expected, result = oracle(call, "pathlib"), run(main)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result == expected
    assert pathlib.Path("ring").read_bytes() == pathlib.Path("pathlib").read_bytes() == call.args[0][:10_000]
    assert not threads.asked


WARNS_OF_ENCODINGS = """
import sys, warnings
import trio, trio_uring

async def main():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await trio.Path("warned").write_text("text")
        await trio.Path("warned").read_text()
        await trio.Path("warned").read_text("utf-8")
    print([(one.category.__name__, str(one.message), one.lineno) for one in caught])

trio_uring.run(main, io_backend=sys.argv[1])
"""


def test_a_default_encoding_is_warned_of(here: pathlib.Path) -> None:
    """`python -X warn_default_encoding`: the same warnings, pointing to the same lines."""
    told = [
        subprocess.run(
            [sys.executable, "-X", "warn_default_encoding", "-c", WARNS_OF_ENCODINGS, backend],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for backend in ("epoll", "uring")
    ]
    assert told[0] == told[1]
    assert told[1].count("EncodingWarning") == 2


@pytest.mark.usefixtures("descriptors_flat")
def test_a_fifo_is_read_from_its_first_writer_to_its_last(here: pathlib.Path, threads: Threads) -> None:
    """The open entry does not wait for a writer; the method does, and then reads to the end."""
    os.mkfifo("fifo")
    result = b""

    async def reader() -> None:
        nonlocal result
        result = await trio.Path("fifo").read_bytes()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            writer = -1
            while writer < 0:
                with contextlib.suppress(OSError):  # ENXIO, as long as nobody has opened it
                    writer = os.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
                await trio.testing.wait_all_tasks_blocked()
            os.write(writer, b"first ")
            await trio.testing.wait_all_tasks_blocked()
            os.write(writer, b"last")
            os.close(writer)

    run(main)
    assert result == b"first last"
    assert not threads.asked


@pytest.mark.usefixtures("descriptors_flat")
def test_a_fifo_is_written_to_its_reader(here: pathlib.Path, threads: Threads) -> None:
    """Opening waits in the kernel for a reader, and more than the pipe holds is written."""
    os.mkfifo("fifo")
    data = os.urandom(300_000)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.Path("fifo").write_bytes, data)
            await trio.testing.wait_all_tasks_blocked()
            assert await trio.Path("fifo").read_bytes() == data

    run(main)
    assert not threads.asked


# ------------------------------------------------------------------ cancellation

EVERY = [
    *(
        Call(name)
        for name in ("stat", "lstat", "exists", "is_dir", "is_file", "read_bytes", "read_text", "mkdir", "touch")
    ),
    *(Call(name, ("file",)) for name in ("samefile", "rename", "replace", "symlink_to", "hardlink_to")),
    *(Call("write_bytes", (b"data",)), Call("write_text", ("data",)), Call("unlink"), Call("rmdir")),
]


@pytest.mark.parametrize("call", EVERY, ids=[call.method for call in EVERY])
def test_a_cancelled_scope_wins_before_anything_is_touched(call: Call, here: pathlib.Path) -> None:
    """Every call is a cancel point: in a scope that is cancelled already it has no effect."""
    build(here)
    before = tree()

    async def main() -> None:
        for name in ("file", "missing", "dir"):
            with trio.CancelScope() as scope:
                scope.cancel()
                await getattr(trio.Path(name), call.method)(*call.args)
            assert scope.cancelled_caught

    run(main)
    assert tree() == before


@pytest.mark.parametrize("call", EVERY, ids=[call.method for call in EVERY])
def test_every_call_is_a_schedule_point(call: Call, here: pathlib.Path, ring: Backend) -> None:
    """With a result and with an error."""
    build(here)

    async def main() -> None:
        for name in ("file", "missing"):
            with trio.testing.assert_checkpoints():
                await served(call, name)

    run(main, io_backend=ring)


async def ticks(count: int, scope: trio.CancelScope) -> None:
    """Cancel a scope after so many turns of the loop."""
    for _ in range(count):
        await trio.lowlevel.cancel_shielded_checkpoint()
    scope.cancel()


@pytest.mark.usefixtures("descriptors_flat")
@pytest.mark.parametrize("name", ["file", "missing", "fifo"])
def test_reading_is_cancelled_anywhere(name: str, here: pathlib.Path, ring: Backend) -> None:
    """F9, F14: a descriptor that the open entry delivers in spite of its cancel is closed; a result is whole."""
    build(here)
    (here / "file").write_bytes(b"x" * 3_000_000)

    async def main() -> None:
        for count in (*range(8), *range(8)):
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(ticks, count, scope)
                    try:
                        assert len(await trio.Path(name).read_bytes()) == 3_000_000
                    except FileNotFoundError:
                        assert name == "missing"
                assert scope.cancelled_caught or name != "fifo"

    run(main, io_backend=ring)


@pytest.mark.usefixtures("descriptors_flat")
@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_writing_is_whole_or_has_not_begun(size: int, here: pathlib.Path, ring: Backend) -> None:
    """Invariant 1: cancelled at any turn, the file has its old contents and Cancelled is raised, or it has the new ones."""
    old, new = b"old contents", b"n" * size

    async def main() -> None:
        for count in (*range(8), *range(8)):
            (here / "file").write_bytes(old)
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(ticks, count, scope)
                    assert await trio.Path("file").write_bytes(new) == size
                assert (here / "file").read_bytes() == (old if scope.cancelled_caught else new)

    run(main, io_backend=ring)


@trio.lowlevel.enable_ki_protection
async def interrupt_when(reached: Callable[[], bool]) -> None:
    """Ctrl-C in the first turn of the loop in which that is so."""
    while not reached():
        await trio.lowlevel.cancel_shielded_checkpoint()
    signal.raise_signal(signal.SIGINT)


def interrupted(reached: Callable[[], bool], call: Callable[[], Awaitable[object]], io_backend: Backend) -> bool:
    """Whether the interrupt came out of the call; else the call returned, and it came afterwards."""
    out_of_the_call = False

    async def main() -> None:
        nonlocal out_of_the_call
        trio.lowlevel.spawn_system_task(interrupt_when, reached)
        try:
            await call()
        except KeyboardInterrupt:
            out_of_the_call = True
            raise
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run(main, io_backend=io_backend)
    return out_of_the_call


@pytest.mark.usefixtures("descriptors_flat")
@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("method", ["write_bytes", "write_text"])
def test_an_interrupt_does_not_leave_a_file_without_its_contents(
    method: str, size: int, here: pathlib.Path, ring: Backend
) -> None:
    """In the turn in which the file has lost its old contents, and no write has reached the kernel: a shield is none against
    KeyboardInterrupt, but the thread that Trio would have used goes on to its end.
    """
    path, new = here / "file", b"n" * size
    path.write_bytes(b"old contents")
    data = new if method == "write_bytes" else new.decode()
    assert not interrupted(lambda: not path.stat().st_size, lambda: getattr(trio.Path(path), method)(data), ring)
    assert path.read_bytes() == new


def after(turns: int) -> Callable[[], bool]:
    """So many turns of the loop later."""
    left = iter(range(turns))
    return lambda: next(left, None) is None


@pytest.mark.usefixtures("descriptors_flat")
@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_an_interrupt_at_any_turn_leaves_the_old_contents_or_the_new(
    size: int, here: pathlib.Path, ring: Backend
) -> None:
    """Invariants 1 and 10: it comes out of a call that has not begun, or after one that is whole."""
    path, new = here / "file", b"n" * size
    for turns in (*range(8), *range(8)):
        path.write_bytes(b"old contents")
        early = interrupted(after(turns), lambda: trio.Path(path).write_bytes(new), ring)
        assert path.read_bytes() == (b"old contents" if early else new), turns


@pytest.mark.usefixtures("descriptors_flat")
def test_an_interrupt_after_a_pipe_has_had_a_part(here: pathlib.Path, ring: Backend) -> None:
    """The rest follows."""
    os.mkfifo("fifo")
    data = os.urandom(300_000)
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    got = b""

    def has_come() -> bool:
        return bool(fcntl.ioctl(reader, termios.FIONREAD, b"\0\0\0\0").strip(b"\0"))

    async def rest() -> None:
        nonlocal got
        await trio.testing.wait_all_tasks_blocked()  # the interrupt has come
        while len(got) < len(data):
            await trio.lowlevel.wait_readable(reader)
            got += os.read(reader, 1 << 16)

    async def write() -> None:
        trio.lowlevel.spawn_system_task(rest)
        await trio.Path("fifo").write_bytes(data)

    assert not interrupted(has_come, write, ring)
    os.close(reader)
    assert got == data


@pytest.mark.usefixtures("descriptors_flat")
@pytest.mark.parametrize("method", ["read_bytes", "open"])
def test_an_interrupt_of_a_fifo_that_nobody_writes_is_no_group(method: str, here: pathlib.Path, ring: Backend) -> None:
    """It comes out as what it is, although two operations wait there for the one call."""
    os.mkfifo("fifo")
    assert interrupted(after(5), getattr(trio.Path("fifo"), method), ring)


@pytest.mark.usefixtures("descriptors_flat")
def test_a_cancel_of_a_fifo_that_nobody_writes_is_no_group(here: pathlib.Path, ring: Backend) -> None:
    """The same."""
    os.mkfifo("fifo")

    async def main() -> None:
        for turns in range(6):
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(ticks, turns, scope)
                    with pytest.raises(trio.Cancelled) as caught:
                        await trio.Path("fifo").read_bytes()
                    raise caught.value

    run(main, io_backend=ring)


def test_an_interrupt_between_parents_leaves_all_of_them(here: pathlib.Path, ring: Backend) -> None:
    """In the turn in which the first is there."""
    assert not interrupted(
        lambda: os.path.exists("a"), lambda: trio.Path("a/b/c/d").mkdir(parents=True, exist_ok=True), ring
    )
    assert os.path.isdir("a/b/c/d")


def test_parents_are_all_made_or_none(here: pathlib.Path, ring: Backend) -> None:
    """Invariant 1, where a call takes several entries."""

    async def main() -> None:
        for count in (*range(12), *range(12)):
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(ticks, count, scope)
                    await trio.Path("a/b/c/d").mkdir(parents=True)
                assert os.path.isdir("a/b/c/d") is not scope.cancelled_caught
                assert os.path.exists("a") is not scope.cancelled_caught
            with contextlib.suppress(FileNotFoundError):
                os.removedirs("a/b/c/d")

    keep = here / "keep"  # os.removedirs leaves a directory that is not empty
    keep.touch()
    run(main, io_backend=ring)


@pytest.mark.parametrize("method", ["mkdir", "rename", "unlink"])
def test_a_name_operation_reports_what_happened(method: str, here: pathlib.Path, ring: Backend) -> None:
    """Invariant 1: cancelled in the turn that submits it, and some turns later."""

    async def main() -> None:
        for count in (*range(4), *range(4)):
            if method != "mkdir":
                (here / "name").touch()
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(ticks, count, scope)
                    await getattr(trio.Path("name"), method)(*(("other",) if method == "rename" else ()))
                assert os.path.exists("name") is (scope.cancelled_caught is not (method == "mkdir"))
            for name, remove in ("name", os.rmdir if method == "mkdir" else os.unlink), ("other", os.unlink):
                with contextlib.suppress(FileNotFoundError):
                    remove(name)

    run(main, io_backend=ring)


@pytest.mark.usefixtures("descriptors_flat")
def test_an_open_that_blocks_is_cancelled(here: pathlib.Path, threads: Threads, ring: Backend) -> None:
    """A FIFO that nobody reads or writes: the request ends in the kernel, and nothing stays open. Today's threads cannot."""
    os.mkfifo("fifo")

    async def main() -> None:
        await trio.testing.wait_all_tasks_blocked()  # the run's own wait for signals is one of them
        before = ring_manager().statistics().operations_in_flight
        for call in (Call("write_bytes", (b"data",)), Call("read_bytes")):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served, call, "fifo")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert ring_manager().statistics().operations_in_flight == before

    run(main, io_backend=ring)
    assert not threads.asked


@pytest.mark.usefixtures("descriptors_flat")
@pytest.mark.parametrize("method", ["read_bytes", "write_bytes", "stat"])
def test_a_call_torn_down_while_it_sleeps(method: str, here: pathlib.Path) -> None:
    """F2, F9: its memory stays until the completion, and a descriptor that comes then is closed."""
    (here / "file").write_bytes(b"data")

    async def main() -> None:
        await trio.testing.wait_all_tasks_blocked()  # the run's own wait for signals is one of them
        before = ring_manager().statistics().operations_in_flight
        call = getattr(trio.Path("file"), method)(*((b"new",) if method == "write_bytes" else ()))
        operations = ring_manager().operations
        for _ in range(5):
            call.send(None)
            found = [each for each in operations.values() if isinstance(each, (_paths.PathOperation, _opening.Open))]
            if found:
                break
        (operation,) = found
        memory = [weakref.ref(each) for each in (operation.keep if type(operation.keep) is tuple else [operation.keep])]
        found.clear()
        call.close()
        del call
        gc.collect()
        assert operation.user_data in operations  # no tick since: the entry has not even been submitted
        assert None not in [each() for each in memory]
        while ring_manager().statistics().operations_in_flight > before:
            await trio.sleep(0.001)
        assert operation.user_data not in operations
        assert [each() for each in memory] == [None] * len(memory)

    run(main, io_backend=trio_uring.UringBackend(speculate=False))


@pytest.mark.usefixtures("descriptors_flat")
def test_the_memory_of_a_large_read_outlives_the_call(here: pathlib.Path) -> None:
    """F1: torn down in the middle; what holds the memory is the operation."""
    (here / "file").write_bytes(bytes(3_000_000))

    async def main() -> None:
        operations = ring_manager().operations
        with open("file", "rb") as file:
            call = _paths._contents(ring_manager(), file.fileno(), 3_000_000)
            call.send(None)
            (read,) = (found for found in operations.values() if getattr(found, "fd", None) == file.fileno())
            call.close()
            assert len(read.keep) == 3_000_000
            while read.user_data in operations:
                await trio.sleep(0.001)

    run(main)
