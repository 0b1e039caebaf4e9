"""Batches of reads in the shim, driven without Trio: one completion for many entries, whatever becomes of them.

Knows the interface of ffi/batch.c. Where something has to be in flight at a known moment, the reads are of an empty pipe.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from trio_uring._ring.ring import FIRST_USER_DATA, OP_NOP, OP_READ, Ring, ffi, lib

from .support import PATIENCE, SIZES, InThread, memory, reap

BATCH = FIRST_USER_DATA
OTHER = FIRST_USER_DATA + 1
CANARY = 0xA7
GAP = 16


class Batch:
    """A batch: its memory lies in one arena, with canaries between the pieces. With `bounce` as for a device: by way of pieces
    for so many reads in flight, and into bytes objects."""

    def __init__(self, requests: Sequence[tuple[int, int]], skip: int = 0, bounce: int = 0) -> None:
        self.requests = requests
        self.offsets = array("Q", [offset for offset, _ in requests])
        self.lengths = array("I", [length for _, length in requests])
        self.results = array("i", [-999] * len(requests))
        self.arena = bytearray([CANARY]) * (GAP + sum(length + GAP for _, length in requests))
        self._pin = ffi.from_buffer("char[]", self.arena)
        base = int(ffi.cast("uintptr_t", self._pin))
        self.places = []
        place = GAP
        for _, length in requests:
            self.places.append(place)
            place += length + GAP
        self.skip = skip
        self.addresses = array("Q", [base + place - skip for place in self.places])
        self.bounce = memory(2 * bounce * max(self.lengths)) if bounce else ffi.NULL
        self.blocks: list[Any] = [None] * len(requests)

    def start(self, ring: Ring, fd: int, window: int, user_data: int = BATCH) -> int:
        """Hand it to the ring."""
        return int(
            lib.tu_batch_read(
                ring._r,
                fd,
                ffi.from_buffer("uint64_t[]", self.offsets),
                ffi.from_buffer("uint32_t[]", self.lengths),
                ffi.from_buffer("uint64_t[]", self.addresses),
                self.skip,
                ffi.from_buffer("int32_t[]", self.results),
                len(self.requests),
                window,
                self.bounce,
                max(self.lengths),
                id(self.blocks),
                user_data,
            )
        )

    def data(self, i: int) -> bytes:
        """What item i has read."""
        if self.bounce:
            return bytes(self.blocks[i])
        return bytes(self.arena[self.places[i] : self.places[i] + max(self.results[i], 0)])

    def untouched(self) -> bool:
        """Whether all canaries live, those behind short reads too."""
        expected = bytearray([CANARY]) * len(self.arena)
        for place, result in zip(self.places, self.results, strict=True):
            if not self.bounce:
                expected[place : place + max(result, 0)] = self.arena[place : place + max(result, 0)]
        return expected == self.arena


@pytest.fixture(params=SIZES, ids=["sq2cq4", "default"])
def ring(request: pytest.FixtureRequest) -> Iterator[Ring]:
    """The kernel's ring: the simulated one has no batches."""
    made = Ring(*request.param)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """An open file, and what is in it."""
    content = random.Random(4).randbytes(50_001)
    path = tmp_path / "file"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    yield fd, content
    os.close(fd)


def settled(ring: Ring) -> bool:
    """Whether the books are balanced and nothing is in flight."""
    counters = ring.counters()
    return bool(lib.tu_idle(ring._r) or not counters.inflight) and counters.submitted == counters.completed


BOTH_WAYS = pytest.mark.parametrize("bounce", [False, True], ids=["", "device"])


@BOTH_WAYS
@pytest.mark.parametrize(("count", "window"), [(1, 1), (1, 64), (7, 3), (1000, 64), (5000, 100)])
def test_one_completion_for_many_reads(
    ring: Ring, file: tuple[int, bytes], count: int, window: int, bounce: bool
) -> None:
    fd, content = file
    pick = random.Random(count)
    requests = [(pick.randrange(60_000), pick.randrange(300)) for _ in range(count - 1)] + [(0, 100)]
    batch = Batch(requests, skip=32, bounce=window if bounce else 0)
    assert batch.start(ring, fd, window) == 0
    partial = sum(len(content[offset : offset + length]) < length for offset, length in requests)
    assert reap(ring, 1) == [(BATCH, count, partial)]
    assert [batch.data(i) for i in range(count)] == [content[o : o + n] for o, n in requests]
    assert batch.untouched()
    assert settled(ring)


def test_as_few_entries_and_system_calls_as_the_queues_allow(file: tuple[int, bytes]) -> None:
    fd, _ = file
    ring = Ring(64)
    try:
        batch = Batch([(i * 40, 40) for i in range(1024)])
        ring.wait(0)  # queues the read of the eventfd
        before = ring.counters()
        assert batch.start(ring, fd, 64) == 0
        assert ring.wait(PATIENCE) == [BATCH, 1024, 0]  # and the caller is not told of what is between
        after = ring.counters()
        assert after.submitted - before.submitted == 1024
        assert after.enters - before.enters <= 1024 // 64 + 1
    finally:
        ring.close()


def test_in_flight_until_it_is_handed_out(ring: Ring, pipe: tuple[int, int]) -> None:
    batch = Batch([(0, 1)] * 3)
    assert batch.start(ring, pipe[0], 3) == 0
    assert ring.wait(0) in (None, [])
    assert ring.counters().inflight
    os.write(pipe[1], b"abc")
    assert reap(ring, 1) == [(BATCH, 3, 0)]
    assert sorted(batch.data(i) for i in range(3)) == [b"a", b"b", b"c"]
    assert settled(ring)


@BOTH_WAYS
def test_a_short_read_goes_on_where_it_stopped(ring: Ring, pipe: tuple[int, int], bounce: bool) -> None:
    batch = Batch([(0, 10)], bounce=bounce)
    assert batch.start(ring, pipe[0], 1) == 0
    for part in (b"0123", b"45", b"6789"):
        assert ring.wait(0) in (None, [])
        os.write(pipe[1], part)
    assert reap(ring, 1) == [(BATCH, 1, 0)]
    assert batch.data(0) == b"0123456789"
    assert batch.untouched()


@BOTH_WAYS
def test_the_end_of_the_file_ends_a_short_read(ring: Ring, pipe: tuple[int, int], bounce: bool) -> None:
    batch = Batch([(0, 10), (0, 10)], bounce=bounce)
    assert batch.start(ring, pipe[0], 1) == 0
    os.write(pipe[1], b"012")
    os.close(pipe[1])
    assert reap(ring, 1) == [(BATCH, 2, 2)]
    assert (list(batch.results), batch.data(0)) == ([3, 0], b"012")


@BOTH_WAYS
def test_every_item_has_its_own_error(ring: Ring, tmp_path: Path, file: tuple[int, bytes], bounce: bool) -> None:
    fd, content = file
    batch = Batch([(0, 10), (2**63 - 5, 4), (10, 10)], bounce=2 * bounce)
    assert batch.start(ring, fd, 2) == 0
    assert reap(ring, 1)[0].res == 3
    assert (batch.data(0), batch.data(2)) == (content[:10], content[10:20])
    assert batch.results[1] in (0, -errno.EINVAL)
    for path, error in ((tmp_path, errno.EISDIR), (None, errno.EBADF)):
        bad = os.open(path, os.O_RDONLY) if path else os.open(tmp_path / "file", os.O_WRONLY)
        try:
            batch = Batch([(0, 10)] * 5, bounce=2 * bounce)
            assert batch.start(ring, bad, 2) == 0
            assert reap(ring, 1) == [(BATCH, 5, 5)]
            assert list(batch.results) == [-error] * 5
        finally:
            os.close(bad)
    assert batch.untouched()
    assert settled(ring)


@BOTH_WAYS
def test_a_cancel_ends_all_of_it_and_starts_no_more(ring: Ring, pipe: tuple[int, int], bounce: bool) -> None:
    batch = Batch([(0, 1)] * 10, bounce=4 * bounce)
    assert batch.start(ring, pipe[0], 4) == 0
    os.write(pipe[1], b"ab")
    assert ring.wait(0) in (None, [])
    ring.cancel(BATCH)
    assert reap(ring, 1) == [(BATCH, -errno.ECANCELED, 0)]
    assert sum(result == 1 for result in batch.results) == 2
    assert settled(ring)
    # F18: no orphan of it eats what comes next.
    os.write(pipe[1], b"xyz")
    assert ring.wait(0) in (None, [])
    assert os.read(pipe[0], 10) == b"xyz"
    assert batch.untouched()


@BOTH_WAYS
def test_a_cancel_that_finds_everything_done_changes_nothing(ring: Ring, file: tuple[int, bytes], bounce: bool) -> None:
    fd, content = file
    batch = Batch([(0, 10), (10, 10)], bounce=2 * bounce)
    assert batch.start(ring, fd, 2) == 0
    ring.submit()  # they complete in the call
    ring.cancel(BATCH)
    completion = reap(ring, 1)[0]
    assert completion.res in (2, -errno.ECANCELED)
    if completion.res == 2:
        assert batch.data(0) + batch.data(1) == content[:20]
    assert settled(ring)


@BOTH_WAYS
def test_an_interruption_that_nobody_asked_for_is_queued_again(ring: Ring, pipe: tuple[int, int], bounce: bool) -> None:
    """F15, F28: the kernel cancels by file, not by number."""
    duplicate = os.dup(pipe[0])
    try:
        batch = Batch([(0, 3)] * 3, bounce=2 * bounce)
        assert batch.start(ring, pipe[0], 2) == 0
        assert ring.wait(0) in (None, [])
        ring.cancel_fd(duplicate)
        assert ring.wait(0) in (None, [])
        os.write(pipe[1], b"abcdefghi")
        assert reap(ring, 1) == [(BATCH, 3, 0)]
        assert sorted(batch.data(i) for i in range(3)) == [b"abc", b"def", b"ghi"]
    finally:
        os.close(duplicate)


@BOTH_WAYS
def test_a_cancel_by_descriptor_leaves_no_entry_of_it(ring: Ring, pipe: tuple[int, int], bounce: bool) -> None:
    """F17, F18: the next file with that number is not read."""
    batch = Batch([(0, 1)] * 10, bounce=4 * bounce)
    assert batch.start(ring, pipe[0], 4) == 0
    assert ring.wait(0) in (None, [])
    ring.cancel_fd(pipe[0])
    reader, writer = os.pipe()
    try:
        saved = os.dup(pipe[0])
        os.dup2(reader, pipe[0])
        os.write(writer, b"not yours")
        assert reap(ring, 1) == [(BATCH, -errno.ECANCELED, 0)]
        assert os.read(reader, 100) == b"not yours"
        assert not any(batch.results)
        os.dup2(saved, pipe[0])
        os.close(saved)
    finally:
        os.close(reader)
        os.close(writer)


@BOTH_WAYS
def test_closing_the_ring_waits_for_its_entries(pipe: tuple[int, int], bounce: bool) -> None:
    """F8."""
    ring = Ring(4)
    batch = Batch([(0, 1)] * 10, bounce=4 * bounce)
    assert batch.start(ring, pipe[0], 4) == 0
    os.write(pipe[1], b"ab")
    assert ring.wait(0) in (None, [])
    closing = ring.close()
    assert closing == [BATCH, -errno.ECANCELED, 0]
    os.write(pipe[1], b"later")
    assert os.read(pipe[0], 10) == b"later"
    assert batch.untouched()


def test_a_wake_up_ends_a_wait_that_a_batch_keeps_busy(ring: Ring, pipe: tuple[int, int]) -> None:
    batch = Batch([(0, 1)] * 3)
    assert batch.start(ring, pipe[0], 3) == 0
    waker = InThread(ring.wake)
    assert ring.wait(PATIENCE) == []
    waker.result()
    assert ring.wait(0.001) is None
    ring.cancel(BATCH)
    assert reap(ring, 1) == [(BATCH, -errno.ECANCELED, 0)]


def test_others_are_handed_out_while_a_batch_goes_on(
    ring: Ring, pipe: tuple[int, int], file: tuple[int, bytes]
) -> None:
    fd, _ = file
    one = memory(1)
    batch = Batch([(i, 1) for i in range(300)])
    ring.queue(OP_READ, OTHER, pipe[0], one, 1, 2**64 - 1)
    assert batch.start(ring, fd, 8) == 0
    os.write(pipe[1], b"!")
    both = reap(ring, 2)
    assert {completion.user_data: completion.res for completion in both} == {OTHER: 1, BATCH: 300}


def test_without_time_to_wait_it_gets_on_by_a_window_at_a_time(file: tuple[int, bytes]) -> None:
    """A tick of a busy loop is bounded by the window, however many reads there are."""
    fd, _ = file
    ring = Ring(8)
    try:
        batch = Batch([(i, 1) for i in range(64)])
        assert batch.start(ring, fd, 8) == 0
        waits = 0
        while not (done := ring.wait(0)):
            assert done == []  # not a timeout: a run with a batch is not idle
            waits += 1
            assert waits <= 64
        assert waits >= 64 // 8 - 1
    finally:
        ring.close()


def test_full_queues_lose_nothing(ring: Ring, file: tuple[int, bytes]) -> None:
    """F12, F22, F24: more batches than entries, and other entries between them."""
    fd, content = file
    batches = [Batch([(i * 100 + j, 3) for j in range(i + 1)], bounce=i % 3 and 1 + i % 5) for i in range(40)]
    for i, batch in enumerate(batches):
        ring.queue(OP_NOP, 10_000 + i)
        assert batch.start(ring, fd, 1 + i % 5, 1000 + i) == 0
    found = {completion.user_data: completion.res for completion in reap(ring, 80)}
    for i, batch in enumerate(batches):
        assert found[1000 + i] == i + 1
        assert found[10_000 + i] == 0
        assert [batch.data(j) for j in range(i + 1)] == [content[i * 100 + j :][:3] for j in range(i + 1)]
    assert settled(ring)


def test_f26_a_batch_that_found_no_room_does_not_wait_for_others(
    pipe: tuple[int, int], file: tuple[int, bytes]
) -> None:
    """All that is in flight when its next entries find the queue full are reads that nobody will satisfy."""
    fd, _ = file
    ring = Ring(2, 64)
    try:
        ring.wait(0)  # queues the read of the eventfd
        ring.wait(0)
        batch = Batch([(i, 1) for i in range(20)])
        ring.queue(OP_NOP, OTHER)
        assert batch.start(ring, fd, 1) == 0
        assert reap(ring, 1) == [(OTHER, 0, 0)]
        places = [memory(1) for _ in range(2)]
        for i, place in enumerate(places):
            ring.queue(OP_READ, OTHER + i, pipe[0], place, 1, 2**64 - 1)
        assert ring.queued == ring.sq_entries
        assert ring.wait(PATIENCE) == [BATCH, 20, 0]
    finally:
        ring.close()


def test_f1_f8_a_cancelled_batch_is_over_when_its_last_entry_is(ring: Ring, tmp_path: Path) -> None:
    """A device does not give back what it has begun: where O_DIRECT is to be had, these reads end later than their cancel."""
    path = tmp_path / "blocks"
    path.write_bytes(bytes(1 << 20))
    os.sync()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # a file system without
        fd = os.open(path, os.O_RDONLY)
    try:
        for _ in range(20):
            batch = Batch([(i * 4096, 4096) for i in range(64)])
            arena = mmap.mmap(-1, 64 * 4096)
            base = int(ffi.cast("uintptr_t", ffi.from_buffer(arena)))
            batch.addresses[:] = array("Q", [base + i * 4096 for i in range(64)])
            assert batch.start(ring, fd, 16) == 0
            ring.submit()
            ring.cancel(BATCH)
            reap(ring, 1)
            assert settled(ring)
    finally:
        os.close(fd)


def test_while_the_owner_is_away_entries_go_at_once(ring: Ring, pipe: tuple[int, int]) -> None:
    """Guest mode: nobody else would submit them before the sleeper wakes."""
    while ring.wait(0) is not None:
        pass
    batch = Batch([(0, 1)] * 2)
    assert batch.start(ring, pipe[0], 2) == 0
    assert ring.queued == 0
    os.write(pipe[1], b"ab")
    assert reap(ring, 1) == [(BATCH, 2, 0)]


@pytest.mark.parametrize("change", ["no items", "no window", "closed ring"])
def test_what_cannot_be_started_is_refused(change: str, file: tuple[int, bytes]) -> None:
    ring = Ring(4)
    batch: Any = Batch([(0, 1)])
    if change == "no items":
        batch.requests = []
    if change == "closed ring":
        ring.close()
    assert batch.start(ring, file[0], 0 if change == "no window" else 1) == (
        -errno.EBADF if change == "closed ring" else -errno.EINVAL
    )
    assert ring.counters().inflight == 0
    ring.close()


def test_a_device_has_its_next_reads_before_what_it_answered_is_delivered(pipe: tuple[int, int]) -> None:
    """And while one is delivered, no entry waits to be handed over."""
    ring = Ring(64)
    seen: list[tuple[int, int]] = []

    class Seat:
        """Sits where a result will be, and looks around when it has to go."""

        def __del__(self) -> None:
            seen.append((ring.queued, ring.counters().submitted - before))

    try:
        batch = Batch([(0, 1)] * 20, bounce=8)
        batch.blocks[:] = [Seat() for _ in range(20)]
        before = ring.counters().submitted
        assert batch.start(ring, pipe[0], 8) == 0
        os.write(pipe[1], b"abcdefgh")
        assert ring.wait(0) in (None, [])
        assert seen == []
        assert ring.wait(0) in (None, [])
        assert seen == [(0, 16)] * 8
        os.write(pipe[1], b"ijklmnopqrst")
        assert reap(ring, 1) == [(BATCH, 20, 0)]
        assert sorted(batch.data(i) for i in range(20)) == [bytes([letter]) for letter in b"abcdefghijklmnopqrst"]
        assert settled(ring)
    finally:
        ring.close()


@BOTH_WAYS
def test_a_device_is_handed_a_few_reads_at_a_time(tmp_path: Path, bounce: bool) -> None:
    """It can begin with these. Without O_DIRECT they are handed over together, with the wait."""
    path = tmp_path / "blocks"
    path.write_bytes(bytes(1 << 16))
    fd = os.open(path, os.O_RDONLY)
    ring = Ring(64)
    try:
        batch = Batch([(i, 1) for i in range(32)], bounce=32 * bounce)
        before = ring.counters().enters
        assert batch.start(ring, fd, 32) == 0
        assert ring.queued == (0 if bounce else 32)
        assert ring.counters().enters - before == (32 // 4 if bounce else 0)
        assert reap(ring, 1) == [(BATCH, 32, 0)]
    finally:
        ring.close()
        os.close(fd)


def test_what_is_delivered_is_the_lists_alone(ring: Ring, file: tuple[int, bytes]) -> None:
    fd, content = file
    batch = Batch([(i * 100, 100) for i in range(50)], bounce=8)
    assert batch.start(ring, fd, 8) == 0
    assert reap(ring, 1) == [(BATCH, 50, 0)]
    others = [content[i * 100 : i * 100 + 100] for i in range(50)]
    assert batch.blocks == others
    assert list(map(sys.getrefcount, batch.blocks)) == list(map(sys.getrefcount, others))


def test_without_memory_for_it_an_item_fails_alone(ring: Ring, file: tuple[int, bytes]) -> None:
    """Here, without a place for it."""
    fd, content = file
    batch = Batch([(0, 10), (60_000, 10), (20, 10)], bounce=1)
    del batch.blocks[2]
    assert batch.start(ring, fd, 1) == 0
    assert reap(ring, 1) == [(BATCH, 3, 2)]
    assert (batch.blocks, list(batch.results)) == ([content[:10], b""], [10, 0, -errno.ENOMEM])


def test_f30_another_thread_changes_no_batch(ring: Ring, pipe: tuple[int, int]) -> None:
    batch = Batch([(0, 1)] * 3)
    assert batch.start(ring, pipe[0], 3) == 0
    for forbidden in (lambda: ring.cancel(BATCH), lambda: ring.cancel_fd(pipe[0])):
        with pytest.raises(RuntimeError, match="belongs to another thread"):
            InThread(forbidden).result()
    assert InThread(lambda: batch.start(ring, pipe[0], 3, OTHER)).result() == -errno.EEXIST
    os.write(pipe[1], b"abc")
    assert reap(ring, 1) == [(BATCH, 3, 0)]


def test_f29_in_a_forked_child_a_batch_is_the_parents(pipe: tuple[int, int]) -> None:
    ring = Ring(4)
    batch = Batch([(0, 1)] * 3)
    assert batch.start(ring, pipe[0], 3) == 0
    assert ring.wait(0) in (None, [])
    child = os.fork()
    if child == 0:
        refused = batch.start(ring, pipe[0], 3, OTHER) == -errno.EOWNERDEAD
        ring.cancel(BATCH)
        os._exit(0 if refused else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.write(pipe[1], b"abc")
    assert reap(ring, 1) == [(BATCH, 3, 0)]
    ring.close()
