"""The pool of rings for threads: each promise of docs/pool.md as a test.

Knows trio_uring._ring.pool and its public names. What has to be in flight at a known moment is a read of an empty pipe: the
fixture `anything` makes the pool take descriptors that have no positions.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio

import trio_uring
from trio_uring import PoolReader, RingPool, aligned_buffer
from trio_uring._ring import pool as pool_module
from trio_uring._ring.ring import lib, tu_pool_buffers, tu_pool_read

from .support import PATIENCE, InThread, open_descriptors

BLOCK = 4096


@pytest.fixture
def content() -> bytes:
    return random.Random(1).randbytes(64 * BLOCK + 777)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    made = tmp_path / "file"
    made.write_bytes(content)
    return made


@pytest.fixture
def file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def direct(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Iterator[int]:
    """A descriptor with O_DIRECT, on the disk of the checkout: a tmpfs takes anything."""
    where = Path(__file__).parent / f"direct-{os.getpid()}"
    where.write_bytes(content)
    fd = os.open(where, os.O_RDONLY | os.O_DIRECT)
    where.unlink()
    yield fd
    os.close(fd)


def _read_anything(ring: int, turn: int, fd: int, requests: list[Any], most: int, window: int, direct: int) -> Any:
    return tu_pool_read(ring, turn, fd, requests, most, window, 1)


def _fill_anything(
    ring: int, turn: int, fd: int, requests: list[Any], most: int, window: int, direct: int, address: int, opcode: int
) -> Any:
    return tu_pool_buffers(ring, turn, fd, requests, most, window, 1, 1, opcode)


@pytest.fixture
def anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools that do not ask whether a descriptor has positions, nor what O_DIRECT wants."""
    monkeypatch.setattr(pool_module, "kind", lambda fd: 0)
    monkeypatch.setattr(pool_module, "tu_pool_read", _read_anything)
    monkeypatch.setattr(pool_module, "tu_pool_buffers", _fill_anything)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def until(true: Callable[[], object]) -> None:
    """Wait for another thread to get somewhere."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def in_flight(pool: RingPool) -> int:
    return sum(lib.tu_pool_left(record.c) for record in pool._records)


def blocked_read(pool: RingPool, fd: int, size: int = 1) -> InThread:
    """A thread in a read of an empty pipe."""

    def read() -> list[bytes | OSError]:
        with pool.acquire() as ring:
            return ring.read_many(fd, [(0, size)])

    before = in_flight(pool)
    thread = InThread(read)
    until(lambda: in_flight(pool) > before)
    return thread


def rings_open() -> int:
    found = [
        fd for fd in open_descriptors(collect=False) if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[io_uring]"
    ]
    return len(found)


# ------------------------------------------------------------------ what it reads and writes


def some_requests(content: bytes, count: int, seed: int = 0) -> list[tuple[int, int]]:
    pick = random.Random(seed)
    return [(pick.randrange(len(content) + 100), pick.randrange(3000)) for _ in range(count)]


@pytest.mark.parametrize(("entries", "count", "depth"), [(1, 10, None), (3, 100, None), (64, 64, None), (64, 1000, 5)])
def test_reads_are_whole_and_in_order(file: int, content: bytes, entries: int, count: int, depth: int | None) -> None:
    requests = some_requests(content, count)
    with RingPool(1, entries) as pool, pool.acquire() as ring:
        assert ring.read_many(file, requests, depth=depth) == [content[o : o + n] for o, n in requests]


def test_reads_into_the_callers_buffers(file: int, content: bytes) -> None:
    buffers = [bytearray(b"-" * 1000) for _ in range(70)]
    requests = [(i * 1000 - 900 if i else 0, buffer) for i, buffer in enumerate(buffers[:69])] + [
        (len(content) - 3, memoryview(buffers[69])[10:500])
    ]
    with RingPool(1) as pool, pool.acquire() as ring:
        assert ring.readinto_many(file, requests) == [1000] * 69 + [3]
        buffers[0].append(1)  # not pinned any more
    assert bytes(buffers[5]) == content[4100:5100]
    assert bytes(buffers[69]) == b"-" * 10 + content[-3:] + b"-" * 987


def test_writes_are_whole(file: int, content: bytes) -> None:
    with RingPool(1, 4) as pool, pool.acquire() as ring:
        assert ring.write_many(file, [(i * 10, bytes([i]) * 10) for i in range(100)]) == [10] * 100
        assert ring.write_many(file, [(5, b""), (len(content), bytearray(3))]) == [0, 3]
    assert os.pread(file, 2000, 0) == b"".join(bytes([i]) * 10 for i in range(100)) + content[1000:2000]
    assert os.fstat(file).st_size == len(content) + 3


def test_what_fails_is_told_of_in_its_place(file: int) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    reading = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    with RingPool(2) as pool, pool.acquire() as ring:
        error = ring.write_many(full, [(0, b"x"), (5, b"")])[0]
        assert isinstance(error, OSError)
        assert (error.errno, error.strerror) == (28, os.strerror(28))
        assert [type(r) for r in ring.write_many(reading, [(0, b"x")])] == [OSError]
        with pool.reader(full) as reader:
            assert reader.submit([(0, 3)])
            assert reader.wait()[0][1] == b"\0\0\0"
    os.close(full)
    os.close(reading)


def test_with_o_direct_as_without(direct: int, content: bytes) -> None:
    requests = [(i * BLOCK, BLOCK) for i in range(66)] + [(0, 16 * BLOCK), (512, 512)]
    expected = [content[o : o + n] for o, n in requests]
    room = aligned_buffer(4 * BLOCK)
    with RingPool(1, 8) as pool:
        with pool.acquire() as ring:
            assert ring.read_many(direct, requests) == expected
            assert ring.readinto_many(direct, [(0, room[: 2 * BLOCK]), (BLOCK, room[2 * BLOCK :])]) == [2 * BLOCK] * 2
        assert room[2 * BLOCK :] == content[BLOCK : 3 * BLOCK]
        with pool.reader(direct) as reader:
            ids = reader.submit(requests)
            found = dict(reader.wait(len(ids)))
            assert [found[number] for number in ids] == expected


BAD_REQUESTS = [
    5,
    [5],
    [(0,)],
    [(0, 1, 2)],
    [(0, 5), (-1, 5)],
    [(0, -5)],
    [(0.5, 5)],
    [(0, None)],
    [(1 << 63, 5)],
    [((1 << 63) - 2, 5)],
    [(0, 1 << 31)],
    [("a", 5)],
]


@pytest.mark.parametrize("requests", BAD_REQUESTS, ids=repr)
def test_the_same_errors_as_the_asynchronous_function(file: int, requests: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        trio.run(trio_uring.read_many, file, requests)
    with RingPool(1) as pool, pool.acquire() as ring:
        with pytest.raises(type(expected.value)) as found:
            ring.read_many(file, requests)
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("requests", [[(0, b"read-only")], [(0, 5)], [(0, None)], [(-1, bytearray(1))], "overlap"])
def test_the_same_errors_for_buffers(file: int, requests: Any) -> None:
    if requests == "overlap":
        arena = memoryview(bytearray(100))
        requests = [(0, arena[:60]), (5, arena[50:])]
    with pytest.raises((TypeError, ValueError)) as expected:
        trio.run(trio_uring.readinto_many, file, requests)
    with RingPool(1) as pool, pool.acquire() as ring:
        with pytest.raises(type(expected.value)) as found:
            ring.readinto_many(file, requests)
        assert str(found.value) == str(expected.value)


def test_descriptors_that_cannot_be_read_at_a_position(pipe: tuple[int, int]) -> None:
    with RingPool(1) as pool:
        with pool.acquire() as ring:
            calls: list[Callable[[int], Any]] = [
                lambda fd: ring.read_many(fd, [(0, 1)]),
                lambda fd: ring.readinto_many(fd, [(0, bytearray(1))]),
            ]
            for call in calls:
                for fd, number in ((pipe[0], 29), (1 << 20, 9)):
                    with pytest.raises(OSError, match=r"Illegal seek|Bad file") as found:
                        call(fd)
                    assert found.value.errno == number
                for number in (-1, 1 << 32):
                    with pytest.raises(ValueError, match="no valid file descriptor"):
                        call(number)
        with pytest.raises(OSError, match="Illegal seek"):
            pool.reader(pipe[0])
        assert len(pool._free) == 1


@pytest.mark.parametrize("unit", [512])
def test_f37_alignment_is_checked_at_submit_as_at_read(direct: int, unit: int) -> None:
    room = aligned_buffer(2 * BLOCK)
    with RingPool(1) as pool, pool.acquire() as ring:
        for ask in (ring.read_many, lambda fd, asked: pool_reader_submits(ring._pool, fd, asked)):
            with pytest.raises(ValueError, match=r"requests\[1\]: offset 515 .* 3 bytes past a multiple of 512"):
                ask(direct, [(0, BLOCK), (515, BLOCK)])
            with pytest.raises(ValueError, match=r"requests\[0\]: length 1000 .* 488 bytes past a multiple of 512"):
                ask(direct, [(0, 1000)])
        for ask_into in (ring.readinto_many, lambda fd, asked: pool_reader_submits(ring._pool, fd, asked)):
            with pytest.raises(ValueError, match=r"requests\[0\]: address .* 7 bytes past .*aligned_buffer"):
                ask_into(direct, [(0, room[7 : 7 + BLOCK])])


def pool_reader_submits(pool: RingPool, fd: int, requests: Any) -> None:
    with RingPool(1) as other, other.reader(fd) as reader:
        try:
            reader.submit(requests)
        finally:
            assert len(reader) == 0


# ------------------------------------------------------------------ sizes


def test_explicit_sizes_are_honoured(anything: None, pipe: tuple[int, int]) -> None:
    before = rings_open()
    with RingPool(rings=3, entries=5) as pool:
        assert (pool.rings, pool.entries) == (3, 5)
        assert rings_open() == before + 3
        leases = [pool.acquire() for _ in range(2)]
        with pool.reader(pipe[0]) as reader:
            with pytest.raises(TimeoutError):
                pool.acquire(timeout=0)
            reader.submit([(0, 1)] * 5)
            assert lib.tu_pool_left(reader._own().c) == 5
            assert reader.room == 0
        for lease in leases:
            lease.release()
    assert rings_open() == before


@pytest.mark.parametrize(
    ("rings", "entries"), [(0, 1), (1, 0), (-1, 1), (1, -1), (1, 32769), (1 << 31, 1), (1.0, 1), ("2", 1), (1, "2")]
)
def test_sizes_that_cannot_be_are_refused_at_the_call(rings: Any, entries: Any) -> None:
    before = rings_open()
    for make in (RingPool, RingPool.shared):
        with pytest.raises((TypeError, ValueError), match=r"rings|entries"):
            make(rings, entries)
    assert rings_open() == before


def test_more_rings_than_descriptors_is_an_error_that_says_what_to_do() -> None:
    program = """
        import resource, trio_uring
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        try:
            trio_uring.RingPool(100)
        except trio_uring.UringUnavailableError as error:
            print(error.errno, "RingPool(rings=" in str(error))
        with trio_uring.RingPool(20) as pool:  # those of the attempt are closed
            print(pool)
    """
    assert run_program(program) == "24 True\n<trio_uring RingPool rings=20 entries=64>\n"


@pytest.fixture
def no_shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pool_module, "_shared", None)
    yield
    if pool_module._shared is not None:
        pool_module._shared.close()


def test_f39_a_shared_pool_with_other_sizes_is_refused_and_both_are_said(no_shared: None) -> None:
    pool = RingPool.shared(rings=3, entries=16)
    assert RingPool.shared() is pool
    assert RingPool.shared(rings=3) is RingPool.shared(entries=16) is RingPool.shared(3, 16) is pool
    for sizes in ((4, None), (None, 17), (2, 16)):
        with pytest.raises(
            ValueError, match=r"3 rings of 16 entries already, and cannot have (4 of 16|3 of 17|2 of 16)"
        ):
            RingPool.shared(*sizes)


def test_f39_by_default_there_are_several_rings(no_shared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RingPool.shared().rings == max(2, len(os.sched_getaffinity(0)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    with RingPool() as pool:
        assert pool.rings == 2


# ------------------------------------------------------------------ borrowing


def test_who_waits_longest_is_served_first() -> None:
    with RingPool(1) as pool:
        order: list[int] = []
        lease = pool.acquire()

        def wait(number: int) -> None:
            with pool.acquire():
                order.append(number)

        threads = []
        for number in range(5):
            threads.append(InThread(partial(wait, number)))
            until(lambda: len(pool._waiting) == len(threads))
        lease.release()
        for thread in threads:
            thread.result()
        assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", True])
def test_timeouts_that_cannot_be_are_refused(timeout: Any) -> None:
    with RingPool(1) as pool, pytest.raises((TypeError, ValueError), match="timeout"):
        pool.acquire(timeout=timeout)


def test_misuse_after_release_is_an_error_and_never_anothers_ring(file: int) -> None:
    with RingPool(1) as pool:
        with pool.acquire() as first:
            record, turn = first._own(), first._turn
        reader = pool.reader(file)
        reader.release()
        with pool.acquire() as second:
            assert second._own() is record
            for call in (
                lambda: first.read_many(file, [(0, 1)]),
                lambda: first.readinto_many(file, [(0, bytearray(1))]),
                lambda: first.write_many(file, [(0, b"x")]),
                lambda: reader.submit([(0, 1)]),
                reader.poll,
                reader.wait,
                first.__enter__,
            ):
                with pytest.raises(RuntimeError, match="given back"):
                    call()
            # As a thread finds it that had looked before another gave the ring back.
            first._record, first._turn = record, turn
            with pytest.raises(RuntimeError, match="given back"):
                first.read_many(file, [(0, 1)])
            first.release()
            first.release()
            assert not pool._free
            assert second.read_many(file, [(0, 0)]) == [b""]
        assert len(pool._free) == 1


def test_two_threads_with_one_ring_is_an_error(anything: None, pipe: tuple[int, int]) -> None:
    with RingPool(1) as pool, pool.acquire() as ring:
        thread = InThread(lambda: ring.read_many(pipe[0], [(0, 1)]))
        until(lambda: in_flight(pool))
        with pytest.raises(RuntimeError, match="another thread"):
            ring.read_many(pipe[0], [(0, 1)])
        os.write(pipe[1], b"x")
        assert thread.result() == [b"x"]


def test_the_end_of_the_with_waits_for_another_threads_transfer(anything: None, pipe: tuple[int, int]) -> None:
    with RingPool(1) as pool:
        with pool.acquire() as ring:
            thread = InThread(lambda: ring.read_many(pipe[0], [(0, 1)]))
            until(lambda: in_flight(pool))
            writer = threading.Timer(0.05, os.write, (pipe[1], b"x"))
            writer.start()
        assert thread.result() == [b"x"]
        assert len(pool._free) == 1
        writer.join()


def test_a_hundred_threads_at_once(file: int, content: bytes) -> None:
    with RingPool(4, 16) as pool:
        ready = threading.Barrier(100)

        def read(seed: int) -> bool:
            ready.wait()
            good = True
            for turn in range(10):
                requests = some_requests(content, 20, seed * 10 + turn)
                expected = [content[o : o + n] for o, n in requests]
                if turn % 2:
                    with pool.acquire() as ring:
                        good &= ring.read_many(file, requests) == expected
                else:
                    with pool.reader(file) as reader:
                        ids = reader.submit(requests)
                        found = dict(reader.wait(len(ids)))
                        good &= [found[number] for number in ids] == expected
            return good

        threads = [InThread(partial(read, seed)) for seed in range(100)]
        assert all(thread.result() for thread in threads)
        assert len(pool._free) == 4


def test_one_slow_file_holds_nobody_else_up(anything: None, pipe: tuple[int, int], file: int, content: bytes) -> None:
    with RingPool(2) as pool:
        slow = blocked_read(pool, pipe[0])
        for _ in range(100):
            with pool.acquire(timeout=PATIENCE) as ring:
                assert ring.read_many(file, [(1, 5)]) == [content[1:6]]
        os.write(pipe[1], b"!")
        assert slow.result() == [b"!"]


# ------------------------------------------------------------------ a reader


def test_a_reader_tells_what_has_finished_in_any_order(anything: None, pipe: tuple[int, int]) -> None:
    with RingPool(1) as pool, pool.reader(pipe[0]) as reader:
        room = bytearray(1)
        first, second = reader.submit([(0, 1), (0, room)])
        assert len(reader) == 2
        assert reader.poll() == []
        os.write(pipe[1], b"a")
        told = reader.wait()
        assert told in ([(first, b"a")], [(second, 1)])
        assert len(reader) == 1
        os.write(pipe[1], b"b")
        told += reader.wait(min_count=50)  # no more than there are
        assert sorted(number for number, _ in told) == [first, second]
        assert {dict(told)[first], bytes(room)} == {b"a", b"b"}
        assert reader.wait() == reader.poll() == []


def test_a_short_read_of_a_reader_goes_on(anything: None, pipe: tuple[int, int]) -> None:
    with RingPool(1) as pool, pool.reader(pipe[0]) as reader:
        room = bytearray(5)
        (number,) = reader.submit([(0, memoryview(room)[1:4])])
        os.write(pipe[1], b"a")
        assert reader.wait(timeout=0.01) == []
        os.write(pipe[1], b"bcd")
        assert reader.wait() == [(number, 3)]
        assert room == b"\0abc\0"


def test_backpressure_and_no_unbounded_queue(anything: None, pipe: tuple[int, int]) -> None:
    with RingPool(1, 4) as pool, pool.reader(pipe[0]) as reader:
        thread = InThread(lambda: reader.submit([(0, 1)] * 7))
        until(lambda: in_flight(pool) == 4)
        os.write(pipe[1], b"123")
        ids = thread.result()
        assert in_flight(pool) == 4
        assert len(reader) == 7
        os.write(pipe[1], b"4567")
        found = reader.wait(7)
        assert sorted(number for number, _ in found) == ids
        assert sorted(data for _, data in found) == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]  # type: ignore[type-var]
        os.write(pipe[1], b"12345678")
        reader.submit([(0, 1)] * 8)
        with pytest.raises(BlockingIOError, match="results wait"):
            reader.submit([(0, 1)])
        assert len(reader.wait(8)) == 8
        assert reader.submit([]) == []


def test_a_wait_is_bounded_in_time_under_a_storm_of_signals(anything: None, pipe: tuple[int, int]) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with RingPool(1) as pool, pool.reader(pipe[0]) as reader:
            reader.submit([(0, 1)])
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            began = time.monotonic()
            assert reader.wait(timeout=0.3) == []
            with pytest.raises(TimeoutError):
                pool.acquire(timeout=0.1)
            assert time.monotonic() - began >= 0.39
            os.write(pipe[1], b"x")
            assert [data for _, data in reader.wait()] == [b"x"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_f38_short_reads_go_on_and_progress_is_no_retry(anything: None, pipe: tuple[int, int]) -> None:
    """A byte at a time, under a storm of signals: more parts than any patience would allow for tries."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)

    def feed() -> None:
        for i in range(3000):
            os.write(pipe[1], bytes([i % 251]))
            if i % 100 == 0:
                time.sleep(0.001)

    try:
        with RingPool(1) as pool, pool.acquire() as ring:
            thread = InThread(feed)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            assert ring.read_many(pipe[0], [(0, 3000)]) == [bytes(i % 251 for i in range(3000))]
            thread.result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------ what is at hand

MANY = 2_000_000  # reads of a byte, which take half a second


def enters(program: str, tmp_path: Path) -> int:
    """How often a program enters the ring, by strace(1)."""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=io_uring_enter", "-o", str(trace), sys.executable, "-c"]
    subprocess.run([*command, textwrap.dedent(program)], check=True, timeout=100)
    return trace.read_text().count("io_uring_enter(")


@pytest.mark.parametrize("flags", ["os.O_RDONLY", "os.O_RDONLY | os.O_DIRECT"])
def test_what_is_at_hand_takes_no_entry(flags: str, tmp_path: Path) -> None:
    where = Path(__file__).parent / f"at-hand-{os.getpid()}"  # on the disk of the checkout, as `direct`
    where.write_bytes(random.Random(1).randbytes(16 * BLOCK))
    program = f"""
        import os
        from trio_uring import RingPool, aligned_buffer
        content = open({str(where)!r}, "rb").read()
        fd = os.open({str(where)!r}, {flags})
        with RingPool(1) as pool, pool.acquire() as ring:
            for _ in range(10):
                assert b"".join(ring.read_many(fd, [(i * {BLOCK}, {BLOCK}) for i in range(17)])) == content
                buffers = [aligned_buffer({BLOCK}) for _ in range(16)]
                assert ring.readinto_many(fd, [(i * {BLOCK}, b) for i, b in enumerate(buffers)]) == [{BLOCK}] * 16
                assert b"".join(buffers) == content
    """
    try:
        found = enters(program, tmp_path)
    finally:
        where.unlink()
    assert found >= 20 if "DIRECT" in flags else not found


def test_what_is_partly_at_hand_is_whole(content: bytes) -> None:
    """From the first read that would wait on, the rest of the list is the ring's."""
    where = Path(__file__).parent / f"partly-{os.getpid()}"
    where.write_bytes(content)
    fd = os.open(where, os.O_RDONLY)
    where.unlink()
    os.fsync(fd)
    requests = some_requests(content, 200)
    for seed in range(20):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for place, size in some_requests(content, seed, seed):
            os.pread(fd, size, place)
        with RingPool(1, 8) as pool, pool.acquire() as ring:
            assert ring.read_many(fd, requests) == [content[place : place + size] for place, size in requests]
    os.close(fd)


def test_a_signal_handler_that_raises_ends_a_list_that_is_at_hand(file: int) -> None:
    def handler(_: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_name == "read_many":
            raise Unwelcome
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # too soon

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with RingPool(1) as pool, pool.acquire() as ring:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Unwelcome):
                ring.read_many(file, [(0, 1)] * MANY)
            assert not in_flight(pool)
            assert ring.read_many(file, [(0, 0)]) == [b""]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_closing_ends_a_list_that_is_at_hand(file: int) -> None:
    begun = threading.Event()

    def read() -> None:
        requests = [(0, 1)] * MANY
        with pool.acquire() as ring:
            begun.set()
            while True:
                ring.read_many(file, requests)

    pool = RingPool(1)
    thread = InThread(read)
    assert begun.wait(PATIENCE)
    pool.close(timeout=0)
    with pytest.raises(RuntimeError, match="closed"):
        thread.result()


# ------------------------------------------------------------------ ends


def test_waiting_acquirers_wake_with_an_error_when_the_pool_closes() -> None:
    pool = RingPool(1)
    lease = pool.acquire()
    threads = [InThread(pool.acquire), InThread(lambda: pool.acquire(timeout=PATIENCE))]
    until(lambda: len(pool._waiting) == 2)
    pool.close()
    for thread in threads:
        with pytest.raises(RuntimeError, match="closed while this waited"):
            thread.result()
    for call in (pool.acquire, lambda: lease.read_many(0, []), lambda: lease.read_many(0, [(0, 1)])):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    lease.release()
    pool.close()
    assert pool.closed


def test_f8_closing_waits_for_what_is_in_flight(anything: None, pipe: tuple[int, int]) -> None:
    pool = RingPool(2)
    reading = blocked_read(pool, pipe[0])
    closing = InThread(lambda: pool.close(timeout=PATIENCE))
    until(lambda: pool.closed)
    with pytest.raises(RuntimeError, match="closed"):
        pool.acquire()
    os.write(pipe[1], b"x")
    assert reading.result() == [b"x"]
    closing.result()
    assert not in_flight(pool)


def test_f8_closing_cancels_what_does_not_end(anything: None, pipe: tuple[int, int]) -> None:
    pool = RingPool(2)
    reading = blocked_read(pool, pipe[0])
    reader = pool.reader(pipe[0])
    room = bytearray(1)
    reader.submit([(0, room), (0, 1)])
    pool.close(timeout=0)
    with pytest.raises(RuntimeError, match="closed"):
        reading.result()
    with pytest.raises(RuntimeError, match="closed"):
        reader.poll()
    os.write(pipe[1], b"x")
    assert room == b"\0"  # nobody eats it any more
    assert os.read(pipe[0], 1) == b"x"
    reader.release()


class Unwelcome(Exception):
    """What nobody expects."""


def test_f8_an_exception_that_leaves_the_with_waits_for_what_is_in_flight(
    anything: None, pipe: tuple[int, int]
) -> None:
    room = bytearray(1)
    with RingPool(1) as pool:

        def leave() -> None:
            with pool.reader(pipe[0]) as reader:
                reader.submit([(0, room), (0, 1), (0, 2)])
                raise Unwelcome

        with pytest.raises(Unwelcome):
            leave()
        assert in_flight(pool) == 0
        os.write(pipe[1], b"x")
        assert os.read(pipe[0], 1) == b"x"
        assert room == b"\0"
        room.append(1)
        # Clean: the next one sees nothing of it.
        with pool.reader(pipe[0]) as reader:
            assert reader.poll() == []
            (number,) = reader.submit([(0, 1)])
            os.write(pipe[1], b"y")
            assert reader.wait() == [(number, b"y")]


def test_f8_a_signal_handler_that_raises_waits_for_what_is_in_flight(anything: None, pipe: tuple[int, int]) -> None:
    def handler(*_: object) -> None:
        if in_flight(pool):
            raise Unwelcome
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # too soon

    before = signal.signal(signal.SIGALRM, handler)
    room = bytearray(1)
    try:
        with RingPool(1) as pool, pool.acquire() as ring:
            for call in (
                lambda: ring.read_many(pipe[0], [(0, 1)] * 3),
                lambda: ring.readinto_many(pipe[0], [(0, room)]),
            ):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                with pytest.raises(Unwelcome):
                    call()
                assert in_flight(pool) == 0
            os.write(pipe[1], b"x")
            assert os.read(pipe[0], 1) == b"x"
            assert room == b"\0"
            room.append(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_f8_a_thread_that_dies_with_a_ring(anything: None, pipe: tuple[int, int]) -> None:
    with RingPool(1) as pool:

        def die() -> None:
            pool.reader(pipe[0]).submit([(0, 1)] * 5)

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            InThread(die).result()
            gc.collect()
        assert [str(w.message) for w in said] == ["a PoolReader was never given back to its pool"]
        assert in_flight(pool) == 0
        with pool.acquire(timeout=PATIENCE) as ring:
            os.write(pipe[1], b"x")
            assert ring.read_many(pipe[0], [(0, 1)]) == [b"x"]


def test_f8_a_thread_that_dies_while_its_reader_lives_on(anything: None, pipe: tuple[int, int], file: int) -> None:
    """The kernel cancels what a thread that ends has in flight (F30): that is done by hand then, in the thread that waits."""
    with RingPool(1) as pool, pool.reader(pipe[0]) as reader:
        ids = InThread(lambda: reader.submit([(0, 1)] * 3)).result()
        os.write(pipe[1], b"abc")
        found = reader.wait(3)
        assert sorted(number for number, _ in found) == ids
        assert sorted(data for _, data in found) == [b"a", b"b", b"c"]  # type: ignore[type-var]


class Stuck:
    """The shim, but that what is in flight does not answer its cancel."""

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def tu_pool_settle(self, *_: object) -> int:
        return 1


def test_a_dirty_ring_that_cannot_be_drained_is_replaced_and_its_memory_kept(
    anything: None, pipe: tuple[int, int], file: int, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaked = len(pool_module._leaked)
    room = bytearray(1)
    with RingPool(1) as pool:
        reader = pool.reader(pipe[0])
        reader.submit([(0, room)])
        dirty = reader._own()
        waiting = InThread(lambda: pool.acquire(timeout=PATIENCE))
        until(lambda: pool._waiting)
        with monkeypatch.context() as patched:
            patched.setattr(pool_module, "lib", Stuck())
            with pytest.warns(ResourceWarning, match="1 transfers of a pool's ring did not end"):
                reader.release()
        with waiting.result() as ring:
            assert ring._own() is not dirty
            assert ring.read_many(file, [(0, 5)]) == [content[:5]]
        with pytest.raises(BufferError):
            room.append(1)  # pinned for good
        assert pool_module._leaked[leaked][0] is dirty  # type: ignore[index]
        del pool_module._leaked[leaked:]
        assert lib.tu_pool_close(dirty.c, 10**9) == 0


def test_a_ring_that_cannot_be_replaced_is_made_when_it_can(
    anything: None, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Stuck):
        def tu_pool_open(self, *_: object) -> int:
            return -24

    with RingPool(1) as pool:
        reader = pool.reader(pipe[0])
        reader.submit([(0, 1)])
        dirty = reader._own()
        with monkeypatch.context() as patched:
            patched.setattr(pool_module, "lib", Broken())
            with pytest.warns(ResourceWarning, match="did not end"):
                reader.release()
            for _ in range(2):
                with pytest.raises(trio_uring.UringUnavailableError, match="fewer or smaller"):
                    pool.acquire(timeout=0)
        pool.acquire(timeout=0).release()
        pool_module._leaked.pop()
        assert lib.tu_pool_close(dirty.c, 10**9) == 0


def test_an_unclosed_pool_says_so_and_closes() -> None:
    before = rings_open()
    with pytest.warns(ResourceWarning, match="unclosed <trio_uring RingPool rings=2 entries=64>"):
        repr(RingPool(2))  # and it is garbage
    assert rings_open() == before


# ------------------------------------------------------------------ processes


def run_program(program: str, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, done.stderr
    assert not done.stderr
    return done.stdout


def test_it_loads_no_trio(path: Path) -> None:
    program = """
        import os, sys, trio_uring
        fd = os.open(sys.argv[1], os.O_RDONLY)
        with trio_uring.RingPool() as pool:
            with pool.acquire() as ring:
                assert ring.readinto_many(fd, [(0, trio_uring.aligned_buffer(5))]) == [5]
            with pool.reader(fd) as reader:
                reader.submit([(0, 5)])
                assert len(reader.wait()) == 1
        print(sorted(name for name in sys.modules if name in ("trio", "anyio", "outcome", "sniffio")))
    """
    assert run_program(program, str(path)) == "[]\n"


@pytest.mark.parametrize("close", [False, True], ids=["forgotten", "shared"])
def test_f8_the_interpreter_exits_with_transfers_in_flight(close: bool, path: Path) -> None:
    """In a thread that is a daemon, in a reader that is global, and in a ring that nobody gave back."""
    program = """
        import os, sys, threading, time
        from trio_uring import RingPool
        from trio_uring._ring import pool as module
        original = module.tu_pool_read
        module.kind = lambda fd: 0
        module.tu_pool_read = lambda *given: original(*given[:-1], 1)
        pool = RingPool.shared(4) if sys.argv[1] == "True" else RingPool(4)
        r, w = os.pipe()
        room = bytearray(10)
        reader = pool.reader(r)
        reader.submit([(0, room), (0, 5), (0, 7)])
        held = pool.acquire()
        def read():
            with pool.acquire() as ring:
                try:
                    ring.read_many(r, [(0, 1)] * 10)
                except RuntimeError as error:
                    os.write(1, str(error).encode() + b"\\n")
        threading.Thread(target=read, daemon=True).start()
        while not any(module.lib.tu_pool_left(record.c) == 10 for record in pool._records):
            time.sleep(0.001)
    """
    # The thread may be told before the interpreter is gone, or not.
    assert run_program(program, str(close)) in ("the pool is closed\n", "")


def test_a_forked_child_goes_on_with_rings_of_its_own_and_leaves_the_parents_alone(path: Path) -> None:
    program = """
        import os, sys, threading, warnings
        from trio_uring import RingPool
        from trio_uring._ring import pool as module
        warnings.simplefilter("ignore", DeprecationWarning)
        fd = os.open(sys.argv[1], os.O_RDONLY)
        pool = RingPool(2, 4)
        shared = RingPool.shared(3)
        lease = pool.acquire()
        reader = pool.reader(fd)
        ids = reader.submit([(i, 1) for i in range(3)])
        locked = threading.Event(); go = threading.Event()
        def hold():
            with pool._lock, module._shared_lock:
                locked.set(); go.wait()
        thread = threading.Thread(target=hold); thread.start(); locked.wait()
        child = os.fork()
        if not child:
            for call in (lambda: lease.read_many(fd, [(0, 1)]), reader.poll, lambda: reader.submit([(0, 1)])):
                try:
                    call()
                    print("no error")
                except RuntimeError as error:
                    assert "parent" in str(error), error
            lease.release(); reader.release()
            leases = [pool.acquire(timeout=0) for _ in range(2)]
            assert len(leases[0].read_many(fd, [(0, 100)] * 9)) == 9
            for one in leases:
                one.release()
            assert RingPool.shared() is shared and shared.rings == 3
            with shared.acquire() as ring:
                assert len(ring.read_many(fd, [(0, 100)])) == 1
            pool.close()
            os._exit(42)
        go.set(); thread.join()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(sorted(dict(reader.wait(3))) == ids, len(lease.read_many(fd, [(0, 100)])))
        lease.release(); reader.release()
        pool.close()
    """
    assert run_program(program, str(path)) == "42\nTrue 1\n"


def test_every_public_name_is_typed_and_there() -> None:
    assert {"RingPool", "PooledRing", "PoolReader"} <= set(trio_uring.__all__)
    assert isinstance(PoolReader.room, property)
