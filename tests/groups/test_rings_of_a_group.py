"""Rings of a group, without Trio: who shares what, and every promise of a ring that a poller makes harder to keep (F49, F50)."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest
from group_tools import ALLOWED, IO_CPU, LOOP_CPUS, gone, io_group, pollers, sleeping, threads, ticks_of

from trio_uring import RingGroup
from trio_uring._ring.group import GroupRing
from trio_uring._ring.ring import (
    FIRST_USER_DATA,
    IOSQE_ASYNC,
    OP_NOP,
    OP_OPENAT,
    OP_READ,
    OP_RECV,
    OP_SEND,
    OP_STATX,
    Ring,
    ffi,
)

ONE = FIRST_USER_DATA


@pytest.fixture(autouse=True)
def no_pollers_of_other_tests() -> None:
    """The kernel takes a closed ring apart a little later, and its poller then."""
    assert gone("iou-")


CANCELED = -125


@contextlib.contextmanager
def ring_of(group: RingGroup, *sizes: int) -> Iterator[GroupRing]:
    ring = group._make_ring(*sizes)
    try:
        yield ring
    finally:
        ring.close()


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def completions(ring: Ring, count: int) -> list[tuple[int, int]]:
    """That many completions: user_data and result."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        flat = ring.wait(200) or []
        found += zip(flat[::3], flat[1::3], strict=True)
    return found


# ------------------------------------------------------------------ who shares what


def test_poller_and_workers_are_on_the_io_processor_and_the_loop_is_not() -> None:
    before = os.sched_getaffinity(0)
    with ring_of(io_group()) as ring:
        buffer = ffi.new("char[256]")
        path = ffi.new("char[]", b"/")
        ring.queue(OP_STATX, ONE, -100, path, 0x7FF, int(ffi.cast("uintptr_t", buffer)))
        assert completions(ring, 1) == [(ONE, 0)]
        pollers()
        assert list(threads("iou-sqp").values()) == [{IO_CPU}]
        assert list(threads("iou-wrk").values()) == [{IO_CPU}]
        assert os.sched_getaffinity(0) == before - {IO_CPU}
    assert os.sched_getaffinity(0) == before
    assert gone("iou-")


def test_rings_on_one_processor_share_a_poller_and_any_of_them_may_go_first() -> None:
    group = io_group()
    first = group._make_ring()
    second = group._make_ring()
    try:
        pollers()
        assert group.loops() == {IO_CPU: 2}
        first.close()
        with ring_of(group) as third:
            pollers()
            for ring in (second, third):
                ring.queue(OP_NOP, ONE)
                assert completions(ring, 1) == [(ONE, 0)]
    finally:
        first.close()
        second.close()
    assert group.loops() == {IO_CPU: 0}
    assert gone("iou-sqp")


def test_loops_are_dealt_in_turn() -> None:
    """min(loops, I/O processors) of them are in use. The loops themselves stand on the processor that is left."""
    group = RingGroup([IO_CPU])
    group.cpus = frozenset()  # as if the loop had processors of its own: there may be only two here
    group._rings = {cpu: [] for cpu in ALLOWED[:2]}
    rings = [group._make_ring(8) for _ in range(2)]
    assert sorted(group.loops().values()) == [1, 1]
    rings += [group._make_ring(8) for _ in range(3)]
    assert sorted(group.loops().values()) == [2, 3]
    rings.pop(0).close()
    rings.append(group._make_ring(8))
    assert sorted(group.loops().values()) == [2, 3]
    pollers(2)
    for ring in rings:
        ring.close()
    assert group._number is None


def test_a_ring_of_another_thread_joins() -> None:
    group = io_group()
    results: list[object] = []

    def other() -> None:
        with ring_of(group) as ring:
            ring.queue(OP_NOP, ONE)
            results.extend(completions(ring, 1))
            results.append(os.sched_getaffinity(0))

    with ring_of(group):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert results == [(ONE, 0), LOOP_CPUS]


def test_a_forked_child_makes_a_poller_of_its_own() -> None:
    group = io_group()
    with ring_of(group) as ring:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = b"?"
            try:
                os.sched_setaffinity(0, ALLOWED)
                with ring_of(group) as own:
                    own.queue(OP_NOP, ONE)
                    said = repr((completions(own, 1), len(pollers()), group.loops())).encode()
            finally:
                os.write(writer, said)
                os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(reader, 1000) == repr(([(ONE, 0)], 1, {IO_CPU: 1})).encode()
        os.close(reader)
        os.close(writer)
        ring.queue(OP_NOP, ONE)
        assert completions(ring, 1) == [(ONE, 0)]


# ------------------------------------------------------------------ sleeping and waking


def test_an_idle_poller_sleeps_and_burns_nothing_and_is_woken() -> None:
    with ring_of(io_group(idle=0.001)) as ring:
        for number in range(20):
            (poller,) = pollers()
            assert sleeping(poller)
            ring.queue(OP_NOP, ONE + number)
            assert completions(ring, 1) == [(ONE + number, 0)]
        assert sleeping(poller)
        before = ticks_of(poller)
        time.sleep(0.3)
        assert ticks_of(poller) == before


def test_a_poller_that_falls_asleep_at_the_wrong_moment_is_woken() -> None:
    """NEED_WAKEUP is read after the tail is written, with a full barrier between: else an entry now and then waits for ever."""
    with ring_of(io_group(idle=0.001)) as ring:
        until = time.monotonic() + 1.0
        number = ONE
        while time.monotonic() < until:
            pause = time.perf_counter() + (number % 97) * 60e-6  # on both sides of the idle time
            while time.perf_counter() < pause:
                pass
            ring.queue(OP_NOP, number)
            flat = ring.wait(10)
            while flat == []:
                flat = ring.wait(10)
            assert flat is not None
            number += 1


def test_a_busy_ring_makes_next_to_no_system_call() -> None:
    with ring_of(io_group(idle=1.0)) as ring:
        ring.queue(OP_NOP, ONE)
        completions(ring, 1)
        before = ring.counters().enters
        for number in range(10_000):
            ring.queue(OP_NOP, ONE + number)
            ring.peek()
        while ring.counters().inflight:
            ring.wait(200)
        assert ring.counters().enters - before < 1000


def test_nothing_is_told_of_a_timeout_before_the_poller_is_done() -> None:
    """What completes at once has completed when a wait says that there was nothing: Trio takes that for an idle run."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring_of(io_group(idle=0.001)) as ring:
        buffer = ffi.new("char[8]")
        for number in range(300):
            ring.queue(OP_RECV, ONE + 2 * number, ours.fileno(), buffer, 8)
            assert not ring.wait(0)
            # The receive is woken by the send, in the poller.
            ring.queue(OP_SEND, ONE + 2 * number + 1, theirs.fileno(), ffi.from_buffer(b"8 bytes."), 8)
            flat: list[int] = []
            while more := ring.wait(0):
                flat += more
            assert sorted(flat[::3]) == [ONE + 2 * number, ONE + 2 * number + 1]
            if number % 50 == 0:
                (poller,) = pollers()
                assert sleeping(poller)


# ------------------------------------------------------------------ a close is a close


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_f49_f18_a_close_ends_what_the_poller_may_not_have_seen(asleep: bool, seen: bool) -> None:
    with ring_of(io_group(idle=0.001 if asleep else 1.0)) as ring:
        buffer = ffi.new("char[8]")
        for number in range(100):
            with tcp_pair() as (ours, theirs):
                if asleep and number % 10 == 0:
                    (poller,) = pollers()
                    assert sleeping(poller)
                ring.queue(OP_RECV, ONE + number, ours.fileno(), buffer, 8)
                if seen:
                    ring.wait(0)
                ring.cancel_fd(ours.fileno())
                ours.close()
                assert theirs.recv(1) == b""  # not BlockingIOError: the file is closed, now
                assert completions(ring, 1) == [(ONE + number, CANCELED)]


def test_f49_many_requests_on_a_descriptor_all_let_go() -> None:
    with ring_of(io_group(), 8, 16) as ring:
        buffer = ffi.new("char[8]")
        for round_ in range(5):
            with tcp_pair() as (ours, theirs):
                numbers = range(ONE + 1000 * round_, ONE + 1000 * round_ + 200)
                for number in numbers:
                    ring.queue(OP_RECV, number, ours.fileno(), buffer, 8)
                ring.cancel_fd(ours.fileno())
                ours.close()
                assert theirs.recv(1) == b""
                assert sorted(completions(ring, 200)) == [(number, CANCELED) for number in numbers]


@pytest.mark.parametrize("operation", ["receive", "read", "poll"])
def test_f49_a_file_whose_requests_have_completed_is_let_go(operation: str) -> None:
    """The poller lets go of a file after it has posted the completion: `release` is what a close asks for then."""
    with ring_of(io_group(idle=1.0)) as ring:
        buffer = ffi.new("char[8]")
        for number in range(300):
            with tcp_pair() as (ours, theirs):
                if operation == "poll":
                    ring.poll(ours.fileno(), 1, ONE + number)
                else:
                    opcode = OP_RECV if operation == "receive" else OP_READ
                    ring.queue(opcode, ONE + number, ours.fileno(), buffer, 8)
                theirs.send(b"x")
                assert completions(ring, 1) == [(ONE + number, 1)]
                ring.release()
                ours.setblocking(False)
                ours.close()
                with contextlib.suppress(ConnectionResetError):  # of a poll: the byte has not been read
                    assert theirs.recv(1) == b""


def test_f49_the_poller_works_with_the_credentials_of_the_set_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    """F31: so a program gives up its privileges before its run begins, as docs/asymmetric.md says."""
    if os.geteuid():
        pytest.fail("run the tests as root: this one gives up privileges")
    group = io_group()
    with tempfile.NamedTemporaryFile() as secret, ring_of(group) as ring:
        os.chmod(secret.name, 0o600)
        path = ffi.new("char[]", secret.name.encode())
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                os.open(secret.name, os.O_RDONLY)
            ring.queue(OP_OPENAT, ONE, -100, path)
            ((_, descriptor),) = completions(ring, 1)
            with ring_of(group) as later:
                later.queue(OP_OPENAT, ONE, -100, path)
                assert completions(later, 1) == [(ONE, -13)]
        finally:
            os.seteuid(0)
        assert descriptor >= 0
        os.close(descriptor)


# ------------------------------------------------------------------ full queues, the end


def test_full_queues_lose_nothing() -> None:
    with ring_of(io_group(), 2, 4) as ring:
        numbers = list(range(ONE, ONE + 3000))
        for number in numbers:
            ring.queue(OP_NOP, number)
        assert [number for number, _ in completions(ring, 3000)] == numbers
        assert ring.counters().cq_overflows > 0
        assert ring.counters().inflight == 0


def test_the_limit_of_workers_holds(tmp_path: pathlib.Path) -> None:
    """F50: it is the poller's pool that is limited, whoever asks. Each open waits for the FIFO's other end and holds a worker."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = ffi.new("char[]", os.fsencode(fifo))
    with ring_of(io_group(workers=2)) as ring:
        for number in range(10):
            ring.queue(OP_OPENAT, ONE + number, -100, path, flags=IOSQE_ASYNC)
        busy: set[int] = set()
        deadline = time.monotonic() + 10
        while len(busy) < 2 and time.monotonic() < deadline:
            ring.wait(0.01)
            busy = set(threads("iou-wrk"))
        writer = os.open(fifo, os.O_WRONLY)
        opened = []
        while ring.counters().inflight:
            busy |= set(threads("iou-wrk"))
            opened += [result for _, result in completions(ring, 1)]
        for descriptor in [writer, *opened]:
            os.close(descriptor)
    assert len(opened) == 10
    assert len(busy) == 2


def test_a_ring_that_is_closed_with_work_in_flight_drains() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(20):
            ring = io_group()._make_ring(8)
            buffer = ffi.new("char[8]")
            for number in range(20):
                ring.queue(OP_RECV, ONE + number, ours.fileno(), buffer, 8)
            reaped = ring.close()
            assert sorted(reaped[::3]) == list(range(ONE, ONE + 20))
            assert set(reaped[1::3]) == {CANCELED}
