"""Reads, writes and facts of a file by position, against the system calls as oracle, on the ring and on epoll.

Where something has to be in flight at a known moment, the file is a pipe: `streams_too` takes away the check that refuses one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import random
import re
import resource
import signal
import sys
import tempfile
import termios
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import attrs
import pytest
import trio
from conftest import Backend
from hypothesis import given, settings
from hypothesis import strategies as st

import trio_uring
from trio_uring._loop.calls import address_of
from trio_uring._loop.manager import UringIOManager
from trio_uring._loop.operation import GLOBAL_RUN_CONTEXT
from trio_uring._positional import positional as _positional
from trio_uring._ring import requests as _requests
from trio_uring._ring.ring import ffi

T = TypeVar("T")
SMALLEST = trio_uring.UringBackend(sq_entries=2, cq_entries=4)
CONTENT = random.Random(7).randbytes(40_001)
CANARY = b"\xa7" * 64


def run(backend: Backend, main: Callable[..., Awaitable[T]], *args: Any) -> T:
    return trio_uring.run(main, *args, io_backend=backend)


def manager() -> UringIOManager:
    found = GLOBAL_RUN_CONTEXT.runner.io_manager
    assert isinstance(found, UringIOManager)
    return found


def nothing_in_flight() -> bool:
    """But for the polls of tasks, Trio's own for signals among them."""
    statistics = manager().statistics()
    return statistics.operations_in_flight == statistics.tasks_waiting_read


async def blocked() -> None:
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with CONTENT."""
    where = tmp_path / "file"
    where.write_bytes(CONTENT)
    return where


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    """The same, open for reading and writing."""
    number = os.open(path, os.O_RDWR)
    yield number
    with contextlib.suppress(OSError):  # the test did
        os.close(number)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe: to read, to write."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture
def streams_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let positional calls have pipes, which block for as long as a test likes."""
    monkeypatch.setattr(_positional, "kind", lambda fd: 0)
    monkeypatch.setattr(
        _positional, "tu_read", lambda ring, *entry: _positional.tu_rw(ring, 22, *entry[:-1], 0, entry[-1])
    )


def what_it_raises(call: Callable[[], object]) -> OSError:
    """The error of a system call that has to fail."""
    try:
        call()
    except OSError as error:
        return error
    raise AssertionError("the oracle did not fail")


def direct_file(tmp_path: Path, content: bytes) -> int:
    """A file opened with O_DIRECT, which not every file system for temporary files allows."""
    for folder in (tmp_path, Path(__file__).parent):
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(content)
            file.flush()
            with contextlib.suppress(OSError):
                return os.open(file.name, os.O_RDWR | os.O_DIRECT)
    raise AssertionError("no file system here takes O_DIRECT")


# ------------------------------------------------------------------ the oracle

OFFSETS = st.integers(0, 3000)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), OFFSETS, st.integers(0, 3000)),
        st.tuples(st.just("readinto"), OFFSETS, st.integers(0, 3000)),
        st.tuples(st.just("write"), OFFSETS, st.binary(max_size=600)),
        st.tuples(st.just("writev"), OFFSETS, st.lists(st.binary(max_size=100), max_size=5)),
        st.tuples(st.just("truncate"), OFFSETS, st.none()),
        st.tuples(st.just("many"), OFFSETS, st.lists(st.tuples(OFFSETS, st.integers(0, 400)), max_size=20)),
        st.tuples(st.just("into many"), OFFSETS, st.lists(st.tuples(OFFSETS, st.integers(0, 400)), max_size=20)),
    ),
    max_size=12,
)


async def check_steps(fd: int, steps: list[Any]) -> None:
    for step, offset, what in steps:
        if step == "read":
            assert await trio_uring.read_at(fd, what, offset) == os.pread(fd, what, offset)
        elif step == "readinto":
            buffer = bytearray(CANARY * 2) + bytearray(what)
            with memoryview(buffer)[len(CANARY) : len(CANARY) + what] as view:
                count = await trio_uring.readinto_at(fd, view, offset)
            expected = os.pread(fd, what, offset)
            assert count == len(expected)
            assert buffer[len(CANARY) :][:count] == expected
            assert buffer.startswith(CANARY)
        elif step == "write":
            assert await trio_uring.write_at(fd, what, offset) == len(what)
            assert os.pread(fd, len(what), offset) == what
        elif step == "writev":
            assert await trio_uring.writev_at(fd, what, offset) == sum(map(len, what))
            assert os.pread(fd, 1000, offset).startswith(b"".join(what))
        elif step == "truncate":
            os.ftruncate(fd, offset)
        elif step == "many":
            expected_many = [os.pread(fd, length, at) for at, length in what]
            assert await trio_uring.read_many(fd, what) == expected_many
        else:
            buffers = [bytearray(length) for _, length in what]
            requests = [(at, buffer) for (at, _), buffer in zip(what, buffers, strict=True)]
            counts = await trio_uring.readinto_many(fd, requests)
            assert not [count for count in counts if isinstance(count, OSError)]
            data = [bytes(buffer[: int(count)]) for buffer, count in zip(buffers, counts, strict=True)]  # type: ignore[arg-type]
            assert data == [os.pread(fd, length, at) for at, length in what]


@pytest.mark.parametrize("backend", ["uring", SMALLEST, "epoll"], ids=["uring", "sq2cq4", "epoll"])
@given(steps=STEPS)
@settings(max_examples=40, deadline=None)
def test_as_the_system_calls_do(backend: Backend, steps: list[Any]) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT[:2500])
        file.flush()
        run(backend, check_steps, file.fileno(), steps)
        assert file.tell() == 2500  # its own position does not move


@pytest.mark.parametrize("open_it", ["int", "builtin", "trio", "anyio"])
def test_a_file_is_anything_with_a_descriptor(backend: Backend, path: Path, open_it: str) -> None:
    async def main() -> None:
        file: Any
        if open_it == "trio":
            file = await trio.open_file(path, "rb")
        elif open_it == "anyio":
            file = await anyio.open_file(path, "rb")
        else:
            file = path.open("rb") if open_it == "builtin" else os.open(path, os.O_RDONLY)
        try:
            assert await trio_uring.read_at(file, 100, 50) == CONTENT[50:150]
            assert await trio_uring.read_many(file, [(0, 10), (40_000, 10)]) == [CONTENT[:10], CONTENT[40_000:]]
            assert (await trio_uring.statx(file)).size == len(CONTENT)
        finally:
            if open_it == "int":
                os.close(file)
            elif open_it == "builtin":
                file.close()
            else:
                await file.aclose()

    run(backend, main)


def test_a_single_byte_is_not_somebody_elses(ring: Backend, fd: int) -> None:
    """The kernel writes into a bytes object; CPython shares those of one byte and of none."""

    async def main() -> None:
        for at in range(300):
            assert await trio_uring.read_at(fd, 1, at) == CONTENT[at : at + 1]
        assert await trio_uring.read_at(fd, 0, 0) == b""
        assert await trio_uring.read_many(fd, [(at, 1) for at in range(300)]) == [
            CONTENT[i : i + 1] for i in range(300)
        ]

    run(ring, main)
    assert [bytes([i]) for i in range(256)] == [i.to_bytes(1, "big") for i in range(256)]
    assert (bytes(1), bytes(0)) == (b"\0", b"")


def test_no_worker_thread(ring: Backend, fd: int, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*args: object, **options: object) -> None:
        raise AssertionError("a worker thread was asked for")

    monkeypatch.setattr(trio.to_thread, "run_sync", refused)
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)

    async def main() -> None:
        threads = threading.active_count()
        await trio_uring.read_at(fd, 10, 0)
        await trio_uring.readinto_at(fd, bytearray(10), 0)
        await trio_uring.write_at(out, b"12345", 0)
        await trio_uring.writev_at(out, [b"12", b"345"], 5)
        await trio_uring.read_many(fd, [(0, 10)] * 10)
        await trio_uring.readinto_many(fd, [(0, bytearray(10))])
        await trio_uring.fsync(out)
        await trio_uring.fdatasync(out)
        await trio_uring.fallocate(out, 0, 4096)
        await trio_uring.statx(path)
        await trio_uring.statx(fd)
        await trio_uring.copy_file(fd, out, offset_target=10)
        assert threading.active_count() <= threads  # one that idled may have gone

    try:
        run(ring, main)
        assert os.pread(out, 10, 0) == b"1234512345"
    finally:
        os.close(out)


# ------------------------------------------------------------------ what is refused

BAD: list[tuple[str, type[Exception], str]] = [
    ("read_at(fd, -1, 0)", ValueError, "length must not be negative (-1)"),
    ("read_at(fd, 1, -2)", ValueError, "offset must not be negative (-2)"),
    ("read_at(fd, 1.5, 0)", TypeError, "length must be an int, not float"),
    ("read_at(fd, 1, '0')", TypeError, "offset must be an int, not str"),
    ("read_at(fd, 1, 2**63)", ValueError, "offset is too large"),
    ("read_at(fd, 100, 2**63 - 50)", ValueError, "offset + length is too large"),
    ("read_at('file', 1, 0)", TypeError, "file must be a file descriptor or have fileno(), not str"),
    ("read_at(True, 1, 0)", TypeError, "not bool"),
    ("read_at(-1, 1, 0)", ValueError, "file has no valid file descriptor (-1)"),
    ("read_at(2**40, 1, 0)", ValueError, "no valid file descriptor"),
    (
        "readinto_at(fd, b'abc', 0)",
        TypeError,
        "buffer must be a writable, contiguous bytes-like object, not a read-only",
    ),
    ("readinto_at(fd, memoryview(bytearray(9))[::2], 0)", TypeError, "a memoryview with gaps"),
    ("write_at(fd, 'text', 0)", TypeError, "data must be a contiguous bytes-like object, not str"),
    ("writev_at(fd, [b'a', 7], 0)", TypeError, "buffers[1] must be a contiguous bytes-like object, not int"),
    ("read_many(fd, [(0, 1), (5, -1)])", ValueError, "requests[1]: length must not be negative (-1)"),
    ("read_many(fd, [(0, 1)] * 2000 + [(0, 2**31)])", ValueError, "requests[2000]: length is too large"),
    ("read_many(fd, [(0, 1), (1, 2, 3)])", TypeError, "requests[1] must be a pair"),
    ("read_many(fd, [(0, 1), 5])", TypeError, "requests[1] must be a pair"),
    ("read_many(fd, [('0', 1)])", TypeError, "requests[0]: offset must be an int, not str"),
    ("read_many(fd, [(2**63 - 1, 1)])", ValueError, "requests[0]: offset + length is too large"),
    ("read_many(fd, [(0, 1)], depth=0)", ValueError, "depth must be at least 1"),
    ("readinto_many(fd, [(0, bytearray(4)), (0, b'1')])", TypeError, "requests[1]: the buffer must be a writable"),
    ("fallocate(fd, 0, 0)", ValueError, "length must be at least 1"),
    ("splice(fd, fd, -1)", ValueError, "count must not be negative"),
    ("sendfile(fd, fd, 0, 1)", TypeError, "not to int"),
    ("copy_file(fd, 'x')", TypeError, "target must be a file descriptor"),
    ("statx(1.5)", TypeError, "not float"),
    ("statx(fd, dir_fd=3)", ValueError, "dir_fd is for a path"),
    ("statx('a\\0b')", ValueError, "embedded null byte"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[call for call, _, _ in BAD])
def test_what_cannot_be_meant_is_refused(
    backend: Backend, fd: int, call: str, error: type[Exception], message: str
) -> None:
    async def main() -> None:
        with pytest.raises(error) as caught:
            await eval(f"tu.{call}", {"tu": trio_uring, "fd": fd})
        assert message in str(caught.value)

    run(backend, main)
    assert os.pread(fd, len(CONTENT) + 1, 0) == CONTENT


@pytest.mark.parametrize(
    "call",
    [
        "readinto_at(pipe, memory, 0)",
        "readinto_at(fd, memory, -1)",
        "write_at(pipe, memory, 0)",
        "write_at(fd, memory, -1)",
        "writev_at(pipe, [memory], 0)",
        "writev_at(fd, [memory, memory], -1)",
        "writev_at(fd, [memory, 7], 0)",
        "readinto_many(pipe, [(0, memory)])",
        "readinto_many(fd, [(-1, memory)])",
        "readinto_many(fd, [(0, memory), (0, 7)])",
    ],
)
def test_a_call_that_is_refused_lets_go_of_its_buffers(
    backend: Backend, fd: int, pipe: tuple[int, int], call: str
) -> None:
    """Whoever has the error, with all the frames of its traceback, does not keep them from being resized."""

    async def main() -> None:
        memory = bytearray(8)
        with pytest.raises((OSError, TypeError, ValueError)) as caught:
            await eval(f"tu.{call}", {"tu": trio_uring, "fd": fd, "pipe": pipe[0], "memory": memory})
        memory.append(0)
        assert caught.value.__traceback__ is not None

    run(backend, main)


def test_aligned_buffer() -> None:
    for size, alignment in ((1, 512), (5000, 4096), (4096, 1), (3, 1 << 16), (10_000, 2 << 20)):
        buffer = trio_uring.aligned_buffer(size, alignment)
        assert (len(buffer), buffer.readonly, set(bytes(buffer))) == (size, False, {0})
        assert address_of(ffi.from_buffer(buffer)) % alignment == 0
        buffer[-1] = 7
    for bad, message in (
        ((0,), "at least 1"),
        ((-1,), "negative"),
        ((10, 3), "power of two"),
        ((10, 0), "power of two"),
    ):
        with pytest.raises(ValueError, match=message):
            trio_uring.aligned_buffer(*bad)


# ------------------------------------------------------------------ errors of the kernel


def test_f21_errors_are_those_of_the_system_call(
    backend: Backend, tmp_path: Path, fd: int, pipe: tuple[int, int]
) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    write_only = os.open(tmp_path / "file", os.O_WRONLY)
    read_only = os.open(tmp_path / "file", os.O_RDONLY)
    full = os.open("/dev/full", os.O_RDWR)
    gone = os.dup(fd)
    os.close(gone)
    cases: list[tuple[Callable[[], Any], Callable[[], Any]]] = []

    def case(ours: Callable[[], Any], oracle: Callable[[], Any]) -> None:
        cases.append((ours, oracle))

    for bad in (folder, write_only, gone, pipe[0]):
        case(partial(trio_uring.read_at, bad, 10, 0), partial(os.pread, bad, 10, 0))
        case(partial(trio_uring.readinto_at, bad, bytearray(9), 0), partial(os.pread, bad, 10, 0))
    for bad in (folder, read_only, gone, pipe[1], full):
        case(partial(trio_uring.write_at, bad, b"x", 0), partial(os.pwrite, bad, b"x", 0))
        case(partial(trio_uring.writev_at, bad, [b"x", b"y"], 0), partial(os.pwritev, bad, [b"x"], 0))
    case(lambda: trio_uring.fsync(gone), lambda: os.fsync(gone))
    case(lambda: trio_uring.fsync(pipe[0]), lambda: os.fsync(pipe[0]))
    case(lambda: trio_uring.fdatasync(gone), lambda: os.fdatasync(gone))
    case(lambda: trio_uring.fallocate(read_only, 0, 10), lambda: os.posix_fallocate(read_only, 0, 10))
    case(lambda: trio_uring.statx(tmp_path / "none"), lambda: os.stat(tmp_path / "none"))
    case(lambda: trio_uring.statx("/dev/null/x"), lambda: os.stat("/dev/null/x"))
    case(lambda: trio_uring.splice(fd, fd, 10), lambda: os.splice(fd, fd, 10))

    async def main() -> None:
        for ours, oracle in cases:
            expected = what_it_raises(oracle)
            with pytest.raises(OSError, match=f"^{re.escape(str(expected))}$") as found:
                await ours()
            assert type(found.value) is type(expected)

    try:
        run(backend, main)
    finally:
        for number in (folder, write_only, read_only, full):
            os.close(number)


def test_efbig_leaves_what_was_written(backend: Backend, fd: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def main() -> None:
        os.ftruncate(fd, 0)
        assert await trio_uring.write_at(fd, b"x" * 4000, 0) == 4000
        with pytest.raises(OSError, match="File too large") as caught:
            await trio_uring.write_at(fd, b"y" * 4000, 4000)
        assert caught.value.errno == errno.EFBIG

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        run(backend, main)
        assert os.pread(fd, 9000, 0) == b"x" * 4000 + b"y" * 2000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_partial_failure_is_told_for_each_item(backend: Backend, tmp_path: Path, fd: int) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)

    async def main() -> None:
        results = await trio_uring.read_many(folder, [(0, 10)] * 5)
        for result in [*results, *await trio_uring.readinto_many(folder, [(0, bytearray(5))])]:
            assert isinstance(result, IsADirectoryError)
            assert (result.errno, str(result)) == (errno.EISDIR, "[Errno 21] Is a directory")
            assert result.__traceback__ is None
        beyond = await trio_uring.read_many(fd, [(39_999, 10), (40_001, 10), (2**62, 10), (0, 3)])
        assert beyond == [CONTENT[-2:], b"", b"", CONTENT[:3]]
        assert await trio_uring.read_many(fd, []) == []
        assert await trio_uring.readinto_many(fd, []) == []

    try:
        run(backend, main)
    finally:
        os.close(folder)


def test_a_descriptor_closed_in_between(ring: Backend, fd: int) -> None:
    """Closed without a word to Trio: what was read is right, and the rest is EBADF, item by item or as a whole."""

    async def main() -> list[bytes | OSError]:
        results: list[bytes | OSError] = []

        async def reader() -> None:
            try:
                results.extend(await trio_uring.read_many(fd, [(i, 5) for i in range(5000)], depth=2))
            except OSError as error:
                results.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            for _ in range(4):
                await trio.lowlevel.checkpoint()
            os.close(fd)
        return results

    results = run(ring, main)
    assert results
    for i, result in enumerate(results):
        assert result == CONTENT[i : i + 5] if isinstance(result, bytes) else result.errno == errno.EBADF


def test_a_file_truncated_while_it_is_read(backend: Backend, fd: int) -> None:
    requests = [(i * 13 % 40_000, 100) for i in range(4000)]

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def reader() -> None:
                results = await trio_uring.read_many(fd, requests, depth=4)
                for (offset, length), result in zip(requests, results, strict=True):
                    assert isinstance(result, bytes)
                    assert CONTENT[offset : offset + length].startswith(result)

            for size in (30_000, 20_000, 500, 0):
                await trio.lowlevel.checkpoint()
                os.ftruncate(fd, size)

    run(backend, main)


# ------------------------------------------------------------------ batches


def test_many_batches_of_many_tasks(backend: Backend, fd: int) -> None:
    async def one(seed: int) -> None:
        pick = random.Random(seed)
        for _ in range(3):
            requests = [(pick.randrange(41_000), pick.randrange(200)) for _ in range(pick.randrange(1, 200))]
            results = await trio_uring.read_many(fd, requests, depth=pick.randrange(1, 40))
            assert results == [CONTENT[at : at + n] for at, n in requests]
            at = pick.randrange(40_000)
            assert await trio_uring.read_at(fd, 100, at) == CONTENT[at : at + 100]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for seed in range(20):
                nursery.start_soon(one, seed)

    run(backend, main)


def test_requests_of_every_kind(backend: Backend, fd: int) -> None:
    """Pairs of any kind, integers of any kind, and more than one piece of them."""

    class Place:
        def __init__(self, place: int) -> None:
            self.place = place

        def __index__(self) -> int:
            return self.place

    plain = [(i * 3, i % 50) for i in range(2500)]
    kinds: list[Callable[[int, int], Any]] = [
        lambda at, n: (at, n),
        lambda at, n: [at, n],
        lambda at, n: (Place(at), Place(n)),
    ]
    expected = [CONTENT[at : at + n] for at, n in plain]

    async def main() -> None:
        for kind in kinds:
            requests = (kind(at, n) if i > 1500 else (at, n) for i, (at, n) in enumerate(plain))
            assert await trio_uring.read_many(fd, requests) == expected
        assert await trio_uring.read_many(fd, [(True, True)]) == [CONTENT[1:2]]
        buffers = [bytearray(n) for _, n in plain]
        places: list[Any] = [[Place(at), buffer] for (at, _), buffer in zip(plain, buffers, strict=True)]
        assert await trio_uring.readinto_many(fd, places) == [n for _, n in plain]
        assert buffers == expected

    run(backend, main)


def test_in_as_few_entries_as_the_ring_allows(fd: int) -> None:
    async def main() -> None:
        await blocked()
        statistics = manager().statistics()
        await trio_uring.read_many(fd, [(i, 10) for i in range(3000)], depth=500)
        after = manager().statistics()
        assert after.submitted - statistics.submitted == 3000
        assert after.kernel_entries - statistics.kernel_entries <= 3000 / 500 + 12
        assert nothing_in_flight()

    run("uring", main)


def test_others_run_meanwhile(ring: Backend, fd: int) -> None:
    """A schedule point at least for every thousand reads, and while they are checked."""
    ticks = 0

    async def main() -> None:
        nonlocal ticks
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def ticker() -> None:
                nonlocal ticks
                while True:
                    await trio.lowlevel.checkpoint()
                    ticks += 1

            results = await trio_uring.read_many(fd, [(i % 40_000, 1) for i in range(60_000)])
            assert results == [CONTENT[i % 40_000 : i % 40_000 + 1] for i in range(60_000)]
            nursery.cancel_scope.cancel()

    run(ring, main)
    assert ticks >= 60


def test_large_reads_go_in_bounded_pieces(ring: Backend, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from trio_uring._positional import batches as _batches

    largest: list[int] = []
    through = _batches._read_batch

    async def watched(manager: Any, fd: int, columns: Any, *rest: Any) -> Any:
        largest.append(sum(columns[1]))
        return await through(manager, fd, columns, *rest)

    monkeypatch.setattr(_batches, "_read_batch", watched)
    monkeypatch.setattr(_batches, "_CHUNK_BYTES", 50_000)
    requests = [(i, 9000 + i) for i in range(40)] + [(0, 60_000), (1, 2)]
    assert run(ring, trio_uring.read_many, fd, requests) == [CONTENT[at : at + n] for at, n in requests]
    assert max(largest) == 60_000
    assert sorted(largest)[-2] <= 50_000


def test_f36_no_buffer_is_filled_twice_at_a_time(backend: Backend, fd: int) -> None:
    memory = bytearray(100)
    view = memoryview(memory)

    async def main() -> None:
        for first, second in (((0, 10), (0, 10)), ((0, 10), (9, 20)), ((50, 60), (40, 51))):
            requests = [(0, bytearray(5)), (0, view[slice(*first)]), (7, view[slice(*second)])]
            with pytest.raises(ValueError, match=r"requests\[[12]\] and requests\[[12]\] overlap"):
                await trio_uring.readinto_many(fd, requests)
        beside = [(i * 10, view[i * 10 : i * 10 + 10 - i]) for i in range(10)] + [(0, view[5:5])]
        assert await trio_uring.readinto_many(fd, beside) == [10 - i for i in range(10)] + [0]

    run(backend, main)
    assert all(memory[i * 10 : i * 10 + 10 - i] == CONTENT[i * 10 : i * 10 + 10 - i] for i in range(10))
    view.release()
    memory.append(0)  # nothing pins it any more


# ------------------------------------------------------------------ cancellation


@pytest.mark.usefixtures("streams_too")
def test_cancelled_reads_have_no_effect(ring: Backend, pipe: tuple[int, int]) -> None:
    """Invariants 1 to 3: the pipe's next bytes are the next reader's, and no memory is touched."""
    reader, writer = pipe
    arena = bytearray(CANARY * 3)
    inside = memoryview(arena)[len(CANARY) : 2 * len(CANARY)]
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: trio_uring.read_at(reader, 100, 0),
        lambda: trio_uring.readinto_at(reader, inside, 0),
    ]

    async def main() -> None:
        for call in calls:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call)
                    await blocked()
                    assert manager().concurrent
                    scope.cancel()
            assert scope.cancelled_caught
            assert not manager().concurrent
            assert nothing_in_flight()
            os.write(writer, b"next")
            assert os.read(reader, 10) == b"next"
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio_uring.read_at(reader, 100, 0)
        assert scope.cancelled_caught

    run(ring, main)
    assert arena == CANARY * 3


@pytest.fixture
def batches_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    from trio_uring._positional import batches as _batches

    monkeypatch.setattr(_batches, "kind", lambda fd: 0)


@pytest.mark.usefixtures("batches_of_streams")
@pytest.mark.parametrize("ready", [0, 1, 5, 29])
def test_a_batch_is_cancelled_as_a_whole(ring: Backend, pipe: tuple[int, int], ready: int) -> None:
    reader, writer = pipe
    arena = bytearray(CANARY * 30)
    views = [memoryview(arena)[i * 64 + 10 : i * 64 + 12] for i in range(30)]

    async def main() -> None:
        for call in (
            lambda: trio_uring.read_many(reader, [(0, 2)] * 30, depth=7),
            lambda: trio_uring.readinto_many(reader, [(0, view) for view in views], depth=7),
        ):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call)
                    await blocked()
                    os.write(writer, b"ab" * ready)
                    # 6.1 reads a pipe in its workers, which take their time.
                    while any(fcntl.ioctl(reader, termios.FIONREAD, bytes(4))):  # noqa: ASYNC110
                        await trio.sleep(0.001)
                    scope.cancel()
            assert scope.cancelled_caught
            assert not manager().concurrent
            assert nothing_in_flight()
            os.write(writer, b"next")
            assert os.read(reader, 10) == b"next"

    run(ring, main)
    outside = bytes(byte for i, byte in enumerate(arena) if not 10 <= i % 64 < 12)
    assert outside == CANARY[:1] * len(outside)
    for view in views:
        view.release()
    arena.append(0)  # nothing pins it any more


@pytest.mark.usefixtures("batches_of_streams")
def test_a_batch_that_completed_before_its_cancel_is_delivered(ring: Backend, pipe: tuple[int, int]) -> None:
    async def main() -> None:
        results: list[object] = []
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def reader() -> None:
                    results.extend(await trio_uring.read_many(pipe[0], [(0, 2)] * 2))

                await blocked()
                os.write(pipe[1], b"abcd")
                scope.cancel()
        assert sorted(results) == [b"ab", b"cd"] or (not results and os.read(pipe[0], 9) == b"abcd")  # type: ignore[type-var]

    run(ring, main)


def test_cancelled_at_every_tick(ring: Backend, fd: int) -> None:
    """Whatever moment the cancel hits: all results, or Cancelled with nothing in flight."""
    requests = [(i * 7, 20) for i in range(2500)]
    outcomes = set()

    async def main(tick: int) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def canceller() -> None:
                    for _ in range(tick):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                results = await trio_uring.read_many(fd, requests, depth=16)
                assert results == [CONTENT[at : at + n] for at, n in requests]
                outcomes.add("delivered")
                assert not manager().concurrent
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            outcomes.add("cancelled")
        assert not manager().concurrent
        assert nothing_in_flight()

    for tick in (*range(12), 20, sys.maxsize):
        run(ring, main, tick)
    assert outcomes == {"delivered", "cancelled"}


@pytest.mark.usefixtures("streams_too")
@pytest.mark.parametrize("how", ["write_at", "writev_at"])
def test_a_cancelled_write_answers_what_went(ring: Backend, pipe: tuple[int, int], how: str) -> None:
    """F11: and Cancelled itself means that nothing did."""
    reader, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    room = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            room += os.write(writer, b"x" * 4096)
    fcntl.fcntl(writer, fcntl.F_SETFL, 0)
    data = bytes(range(256)) * 64

    async def main() -> tuple[list[int], bool]:
        counts: list[int] = []
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def write() -> None:
                    if how == "write_at":
                        counts.append(await trio_uring.write_at(writer, data, 0))
                    else:
                        counts.append(await trio_uring.writev_at(writer, [data[:100], data[100:]], 0))

                await blocked()
                assert len(os.read(reader, 4096)) == 4096
                await blocked()
                scope.cancel()
        return counts, scope.cancelled_caught

    counts, cancelled = run(ring, main)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK)
    left = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(reader, 65536):
            left += more
    went = left[room - 4096 :]
    assert went == data[: sum(counts)]
    assert bool(counts) == bool(went)
    assert counts or cancelled


@pytest.mark.usefixtures("streams_too")
def test_f7_what_a_write_names_cannot_change_meanwhile(ring: Backend, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    fcntl.fcntl(writer, fcntl.F_SETFL, 0)
    parts = [bytearray(b"a" * 3000), bytearray(b"b" * 3000)]
    first = parts[0]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.writev_at, writer, parts, 0)
            await blocked()
            with pytest.raises(BufferError):
                first.append(0)
            del parts[:]
            while not (tail := os.read(reader, 65536)).endswith(b"b" * 3000):
                await blocked()
            assert b"a" * 3000 + b"b" * 3000 in tail

    run(ring, main)
    first.append(0)


@pytest.mark.usefixtures("streams_too", "batches_of_streams")
def test_f17_f18_closing_the_descriptor_ends_what_is_on_it(ring: Backend, pipe: tuple[int, int]) -> None:
    reader = pipe[0]
    ended: list[BaseException] = []

    async def reading(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            await call()
        ended.append(caught.value)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading, lambda: trio_uring.read_at(reader, 10, 0))
            nursery.start_soon(reading, lambda: trio_uring.readinto_at(reader, bytearray(10), 0))
            nursery.start_soon(reading, lambda: trio_uring.read_many(reader, [(0, 1)] * 50, depth=8))
            await blocked()
            trio.lowlevel.notify_closing(reader)
            other, other_writer = os.pipe()
            os.dup2(other, reader)
            os.write(other_writer, b"not yours")
            os.close(other_writer)
            await blocked()
            assert os.read(other, 100) == b"not yours"
            os.close(other)
        assert not manager().concurrent
        assert not manager().requeueing

    run(ring, main)
    assert len(ended) == 3


class _BreaksDown(UringIOManager):
    """A manager whose next tick raises what no run survives."""

    __slots__ = ()

    def process_events(self, events: object) -> None:
        self.__class__ = UringIOManager  # type: ignore[assignment]
        raise ArithmeticError("the end")


@pytest.mark.usefixtures("batches_of_streams")
def test_f8_the_end_of_a_run_waits_for_its_batches(
    ring: Backend, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = bytearray(CANARY * 4)
    views = [memoryview(arena)[i * 64 : i * 64 + 8] for i in range(4)]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.readinto_many, pipe[0], [(0, view) for view in views])
            nursery.start_soon(trio_uring.read_many, pipe[0], [(0, 8)] * 30)
            await blocked()
            manager().__class__ = _BreaksDown
            await trio.lowlevel.checkpoint()

    with warnings.catch_warnings(), monkeypatch.context() as patch:
        # Trio complains of tasks that a broken run has left to the garbage collector.
        warnings.simplefilter("ignore", RuntimeWarning)
        patch.setattr(sys, "unraisablehook", lambda complaint: None)
        with pytest.raises(trio.TrioInternalError):
            run(ring, main)
        gc.collect()
        gc.collect()
    os.write(pipe[1], b"after the end")
    assert os.read(pipe[0], 100) == b"after the end"
    assert arena == CANARY * 4


@pytest.mark.usefixtures("batches_of_streams")
def test_memory_of_a_task_that_was_torn_down_stays_until_the_completion(ring: Backend, pipe: tuple[int, int]) -> None:
    """Invariant 2: the coroutine is closed from outside while its batch is in flight."""
    arena = bytearray(64)

    async def main() -> None:
        inner = trio_uring.readinto_many(pipe[0], [(0, memoryview(arena)[:32])])
        done = trio.Event()

        async def sleeper() -> None:
            message = inner.send(None)
            inner.close()
            assert message is not None
            with pytest.raises(BufferError):
                arena.append(0)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeper)
            await done.wait()
            while not nothing_in_flight():
                await trio.lowlevel.checkpoint()
        assert not manager().concurrent

    run(ring, main)
    arena.append(0)


@pytest.fixture
def as_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every file as one with O_DIRECT: batches go by way of aligned pieces."""
    from trio_uring._positional import batches as _batches

    monkeypatch.setattr(_batches, "kind", lambda fd: 1)
    monkeypatch.setattr(_requests, "alignment_of", lambda fd: (1, 1))


@pytest.mark.parametrize("device", [False, True], ids=["", "device"])
def test_guest_mode(fd: int, device: bool, request: pytest.FixtureRequest) -> None:
    """The worker thread sleeps while batches go on; their entries are the host thread's alone."""
    import queue

    if device:
        request.getfixturevalue("as_devices")
    todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    ended: list[Any] = []

    async def main() -> None:
        for depth in (1, 16, 500):
            requests = [(i, 10) for i in range(1500)]
            assert await trio_uring.read_many(fd, requests, depth=depth) == [CONTENT[i : i + 10] for i in range(1500)]
            await trio.sleep(0.001)
            assert await trio_uring.read_at(fd, 10, 5) == CONTENT[5:15]

    for backend in ("uring", SMALLEST):
        trio_uring.start_guest_run(
            main, run_sync_soon_threadsafe=todo.put, done_callback=ended.append, io_backend=backend
        )
        while not ended:
            todo.get(timeout=200)()
        ended.pop().unwrap()


# ------------------------------------------------------------------ direct I/O


def test_direct_io(backend: Backend, tmp_path: Path) -> None:
    content = random.Random(3).randbytes(8 * 4096 + 1000)
    fd = direct_file(tmp_path, content)
    buffers = [trio_uring.aligned_buffer(4096) for _ in range(4)]

    async def main() -> None:
        assert await trio_uring.read_at(fd, 8192, 4096) == content[4096:12288]
        assert await trio_uring.read_at(fd, 16 * 4096, 0) == content  # the file ends inside a block
        requests = [(i * 4096, 4096 * (1 + i % 2)) for i in range(9)] * 30
        assert await trio_uring.read_many(fd, requests, depth=8) == [content[at : at + n] for at, n in requests]
        assert await trio_uring.readinto_many(fd, [(i * 4096, b) for i, b in enumerate(buffers)]) == [4096] * 4
        assert b"".join(buffers) == content[: 4 * 4096]
        buffers[0][:] = b"w" * 4096
        assert await trio_uring.write_at(fd, buffers[0], 4096) == 4096
        assert await trio_uring.writev_at(fd, buffers[:2], 8192) == 8192
        assert await trio_uring.read_at(fd, 4096, 8192) == b"w" * 4096

    try:
        run(backend, main)
    finally:
        os.close(fd)


@pytest.mark.usefixtures("as_devices")
@pytest.mark.parametrize("depth", [1, 2, 5, 64])
def test_by_way_of_aligned_pieces(ring: Backend, fd: int, depth: int) -> None:
    pick = random.Random(depth)
    requests = [(pick.randrange(41_000), pick.randrange(500)) for _ in range(301)]

    async def main() -> None:
        for _ in range(3):
            assert await trio_uring.read_many(fd, requests, depth=depth) == [CONTENT[at : at + n] for at, n in requests]
        assert nothing_in_flight()
        assert not manager().concurrent

    run(ring, main)


@pytest.mark.usefixtures("as_devices")
@pytest.mark.parametrize("end", ["cancel", "close"])
@pytest.mark.parametrize("stuck", [False, True], ids=["file", "pipe"])
def test_the_end_of_a_batch_of_a_device(ring: Backend, fd: int, pipe: tuple[int, int], end: str, stuck: bool) -> None:
    """At every tick of it: results, or nothing in flight and what was asked for is raised."""
    source = pipe[0] if stuck else fd
    requests = [(i, 2) for i in range(30)]
    outcomes: set[str] = set()

    async def main(tick: int, last: bool) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def reader() -> None:
                    try:
                        results = await trio_uring.read_many(source, requests, depth=4)
                    except trio.ClosedResourceError:
                        outcomes.add("closed")
                    else:
                        assert results == [CONTENT[at : at + n] for at, n in requests]
                        outcomes.add("delivered")

                for _ in range(tick):
                    await trio.lowlevel.checkpoint()
                while last and "delivered" not in outcomes:
                    await trio.lowlevel.checkpoint()
                if end == "cancel":
                    scope.cancel()
                else:
                    trio.lowlevel.notify_closing(source)
        if scope.cancelled_caught:
            outcomes.add("cancelled")
        assert nothing_in_flight()
        assert not manager().concurrent
        assert not manager().requeueing

    for tick in range(1 if end == "close" else 0, 16):
        if stuck and end == "close" and tick < 2:
            continue  # the read has not begun: nobody would end it
        run(ring, main, tick, False)
    if not stuck:
        run(ring, main, 0, True)
    expected = "cancelled" if end == "cancel" else "closed"
    assert outcomes == {expected} if stuck else "delivered" in outcomes
    if stuck:
        os.write(pipe[1], b"for others")
        assert os.read(pipe[0], 100) == b"for others"


def test_direct_reads_take_memory_again_only_when_it_is_free(ring: Backend, tmp_path: Path) -> None:
    """Results are the reader's own, also of many reads at once and one after the other; a cancelled read's memory is dropped."""
    blocks = [bytes([n]) * 4096 for n in range(8)]
    fd = direct_file(tmp_path, b"".join(blocks))
    found: dict[tuple[int, int], bytes] = {}

    async def read(turn: int, n: int) -> None:
        found[turn, n] = await trio_uring.read_at(fd, 4096, n * 4096)

    async def main() -> None:
        for turn in range(3):
            async with trio.open_nursery() as nursery:
                for n in range(8):
                    nursery.start_soon(read, turn, n)
        free = _positional._free_aligned.get()
        kept = {id(memory) for memory in free[4096]}
        assert len(kept) == 8
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio_uring.read_at(fd, 4096, 0)
        assert scope.cancelled_caught
        assert {id(memory) for memory in free[4096]} <= kept
        # At the end of the file, over several pages, and over more than the run keeps.
        assert await trio_uring.read_at(fd, 3 * 4096, 6 * 4096) == blocks[6] + blocks[7]
        assert await trio_uring.read_at(fd, 8 << 20, 0) == b"".join(blocks)
        assert not free[8 << 20]

    run(ring, main)
    os.close(fd)
    assert found == {(turn, n): block for turn in range(3) for n, block in enumerate(blocks)}


def test_a_descriptor_number_of_a_direct_file_that_is_another_files_now(ring: Backend, tmp_path: Path) -> None:
    """The hint that a number is a file's with O_DIRECT is only a hint."""
    fd = direct_file(tmp_path, b"d" * 4096)
    plain = tmp_path / "plain"
    plain.write_bytes(b"plain")

    async def main() -> None:
        assert await trio_uring.read_at(fd, 4096, 0) == b"d" * 4096
        other = os.open(plain, os.O_RDONLY)
        os.dup2(other, fd)
        os.close(other)
        assert await trio_uring.read_at(fd, 3, 1) == b"lai"
        assert await trio_uring.read_at(fd, 3, 1) == b"lai"

    run(ring, main)
    os.close(fd)


def test_f37_misaligned_direct_io_says_what_and_by_how_much(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_positional, _requests):
        monkeypatch.setattr(module, "alignment_of", lambda fd: (512, 4096))
    fd = direct_file(tmp_path, bytes(3 * 4096))
    buffer = trio_uring.aligned_buffer(8192)
    off = memoryview(buffer)[8 : 8 + 4096]
    cases: list[tuple[Callable[[], Awaitable[object]], str]] = [
        (
            lambda: trio_uring.read_at(fd, 4096, 512),
            "^offset 512 is not aligned .*: 512 bytes past a multiple of 4096$",
        ),
        (lambda: trio_uring.read_at(fd, 4100, 0), "^length 4100 .*: 4 bytes past a multiple of 4096$"),
        (lambda: trio_uring.readinto_at(fd, off, 0), "^address 0x.*: 8 bytes past a multiple of 512; .*aligned_buffer"),
        (lambda: trio_uring.write_at(fd, off, 0), "^address 0x.*: 8 bytes past a multiple of 512; .*aligned_buffer"),
        (lambda: trio_uring.writev_at(fd, [buffer[:4096], buffer[:100]], 0), r"^buffers\[1\]: length 100 .*100 bytes"),
        (lambda: trio_uring.read_many(fd, [(0, 4096), (4096, 4096), (1, 4096)]), r"^requests\[2\]: offset 1 .*1 bytes"),
        (
            lambda: trio_uring.readinto_many(fd, [(0, buffer[:4096]), (0, off)]),
            r"^requests\[1\]: address .* 8 bytes past",
        ),
    ]

    async def main() -> None:
        for call, message in cases:
            with pytest.raises(ValueError, match=message):
                await call()

    try:
        run(backend, main)
    finally:
        os.close(fd)


# ------------------------------------------------------------------ the file as a whole


def test_statx_agrees_with_stat(backend: Backend, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("file")
    folder = os.open(tmp_path, os.O_RDONLY)

    async def main() -> None:
        for found, expected in (
            (await trio_uring.statx(path), os.stat(path)),
            (await trio_uring.statx(os.fspath(path).encode()), os.stat(path)),
            (await trio_uring.statx(link), os.stat(link)),
            (await trio_uring.statx(link, follow_symlinks=False), os.lstat(link)),
            (await trio_uring.statx("file", dir_fd=folder), os.stat(path)),
            (await trio_uring.statx(folder), os.stat(tmp_path)),
            (await trio_uring.statx("/dev/null"), os.stat("/dev/null")),
        ):
            for name in ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "rdev", "blocks", "blksize"):
                assert getattr(found, name) == getattr(expected, f"st_{name}"), name
            for name in ("mtime_ns", "ctime_ns"):
                assert getattr(found, name) == getattr(expected, f"st_{name}"), name
        with pytest.raises(FileNotFoundError) as caught:
            await trio_uring.statx(tmp_path / "none")
        assert caught.value.filename == str(tmp_path / "none")

    try:
        run(backend, main)
    finally:
        os.close(folder)


# Of CPython 3.15's os.statx_result, without "stx_"; of times those in nanoseconds, of devices those that are whole.
NAMES = (
    "mask blksize attributes nlink uid gid mode ino size blocks attributes_mask atime_ns btime_ns ctime_ns mtime_ns rdev dev "
    "mnt_id dio_mem_align dio_offset_align"
)


def test_statx_has_the_names_of_the_standard_library(backend: Backend, path: Path) -> None:
    """os.statx (CPython 3.15): the same names, and the same values."""
    assert [field.name for field in attrs.fields(trio_uring.StatxResult)] == NAMES.split()
    found = run(backend, partial(trio_uring.statx, path))
    if sys.version_info < (3, 15):
        assert not hasattr(os, "statx")
        return
    theirs: Any = os.statx(path, os.STATX_BASIC_STATS | os.STATX_BTIME | os.STATX_MNT_ID | os.STATX_DIOALIGN)
    known = {name.removeprefix("stx_") for name in dir(theirs) if name.startswith("stx_")}
    taken = {name for name in known if not name.endswith(("_major", "_minor", "time"))}
    assert set(NAMES.split()) <= known
    for name in (taken & set(NAMES.split())) - {"mask"}:  # which tells more where more is asked for
        assert getattr(found, name) == getattr(theirs, f"stx_{name}"), name


def test_fallocate(backend: Backend, fd: int) -> None:
    async def main() -> None:
        await trio_uring.fallocate(fd, 50_000, 10_000)
        assert os.fstat(fd).st_size == 60_000
        await trio_uring.fallocate(fd, 100_000, 10, mode=1)  # FALLOC_FL_KEEP_SIZE
        assert os.fstat(fd).st_size == 60_000
        await trio_uring.fsync(fd)
        await trio_uring.fdatasync(fd)

    run(backend, main)
    assert os.pread(fd, 100_000, 0) == CONTENT.ljust(60_000, b"\0")


READS: dict[str, Callable[[int], Awaitable[Any]]] = {
    "read_at": lambda fd: trio_uring.read_at(fd, 100, 8),
    "readinto_at": lambda fd: trio_uring.readinto_at(fd, bytearray(100), 8),
}


@pytest.mark.parametrize("name", READS)
def test_what_is_at_hand_takes_no_turn_and_no_entry(fd: int, name: str) -> None:
    """A whole read, a read at the end and one behind it, of a file that has just been written; not so with speculate=False."""
    os.pread(fd, len(CONTENT), 0)

    async def main() -> int:
        await trio.lowlevel.checkpoint()
        before = manager().statistics().submitted
        assert await READS[name](fd) in (100, CONTENT[8:108])
        assert await trio_uring.read_at(fd, 100, len(CONTENT) - 30) == CONTENT[-30:]
        assert await trio_uring.read_at(fd, 100, len(CONTENT) + 5) == b""
        assert await trio_uring.read_at(fd, 0, 5) == b""
        return manager().statistics().submitted - before

    assert run("uring", main) == 0
    assert run(trio_uring.UringBackend(speculate=False), main) >= 4


@pytest.mark.parametrize("name", READS)
def test_what_is_at_hand_is_a_cancel_point_and_a_schedule_point_each_millisecond(fd: int, name: str) -> None:
    os.pread(fd, len(CONTENT), 0)

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await READS[name](fd)
        assert scope.cancelled_caught
        turns = others = 0
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                nonlocal others
                while True:
                    await trio.lowlevel.checkpoint()
                    others += 1

            nursery.start_soon(other)
            while not others:
                await trio.lowlevel.checkpoint()
            for _ in range(5):
                begun, seen = time.perf_counter(), others
                while others == seen:
                    await READS[name](fd)
                    # A millisecond after the first answer of the turn, which came after `begun`, the next read is a turn. Within
                    # two turns the other has run, whoever is the first in each.
                    if time.perf_counter() - begun > 0.002:
                        await READS[name](fd)
                        await READS[name](fd)
                        begun = time.perf_counter()
                        while time.perf_counter() - begun < 0.002:
                            await READS[name](fd)
                        await READS[name](fd)
                        assert others > seen
                turns += 1
            nursery.cancel_scope.cancel()
        assert turns == 5

    run("uring", main)


def test_what_is_not_at_hand_goes_to_the_ring(tmp_path: Path, fd: int) -> None:
    """O_DIRECT, a pipe, a closed descriptor, memory that has been dropped from the cache: as ever."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    direct = direct_file(tmp_path, CONTENT[:8192])

    async def main() -> None:
        assert await trio_uring.read_at(fd, 100, 8) == CONTENT[8:108]
        before = manager().statistics().submitted
        assert await trio_uring.read_at(direct, 4096, 4096) == CONTENT[4096:8192]
        assert manager().statistics().submitted > before

    try:
        run("uring", main)
    finally:
        os.close(direct)


def test_every_public_name_is_there() -> None:
    for name in trio_uring.__all__:
        assert getattr(trio_uring, name) is not None
