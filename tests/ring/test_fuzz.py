"""Random operations with random fates on the simulated ring: nothing lost, doubled or touched by accident.

Knows `SimulatedRing`. Reproducible: the examples come from hypothesis without randomness of its own.
"""

from __future__ import annotations

import errno
import select
import socket
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_uring._ring.ring import (
    CQE_F_BUFFER,
    CQE_F_MORE,
    FIRST_USER_DATA,
    IOSQE_BUFFER_SELECT,
    OP_NOP,
    OP_POLL_ADD,
    OP_READ,
    OP_RECV,
    OP_SEND,
    POLL_ADD_MULTI,
    STRAY_DATA,
)
from trio_uring.testing import SimulatedBufferRing, SimulatedRing

from .support import Completion, content, decode, memory, open_descriptors

CANCELED = -errno.ECANCELED
PAIRS = 3

pairs = st.integers(0, PAIRS - 1)
opcodes = st.sampled_from([OP_NOP, OP_POLL_ADD, OP_READ, OP_RECV, OP_SEND])
results = st.sampled_from([-errno.EIO, -errno.EINTR, -512, -errno.ENOBUFS, -errno.EAGAIN, 0])
fates = st.fixed_dictionaries(
    {"opcode": opcodes, "res": st.none() | results, "nth": st.integers(1, 3)},
    optional={"late": st.integers(0, 6), "copies": st.sampled_from([1, 1, 1, 2, 0])},
)
steps = st.one_of(
    st.tuples(st.just("send"), pairs, st.integers(1, 200)),
    st.tuples(st.just("receive"), pairs, st.integers(1, 200)),
    st.tuples(st.just("receive_provided"), pairs, st.just(0)),
    st.tuples(st.just("poll"), pairs, st.integers(0, 1)),
    st.tuples(st.just("nop"), st.just(0), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 8), st.just(0)),
    st.tuples(st.just("cancel_fd"), pairs, st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 4), st.just(0)),
    st.tuples(st.just("wake"), st.just(0), st.just(0)),
    st.tuples(st.just("owner_back"), st.just(0), st.just(0)),
)


class Play:
    """One example: the ring, three socket pairs with traffic one way, and what is known of each entry."""

    def __init__(self, ring: SimulatedRing, buffers: SimulatedBufferRing, ends: list[tuple[Any, Any]]) -> None:
        self.ring = ring
        self.buffers = buffers
        self.ends = ends
        self.sent = [0] * PAIRS
        self.received = [0] * PAIRS
        self.entries: dict[int, tuple[str, int, int, Any]] = {}
        self.finished: Counter[int] = Counter()
        self.cancelled: set[int] = set()
        self.last = FIRST_USER_DATA - 1

    def entry(self, what: str, pair: int, size: int, keep: Any = None) -> int:
        self.last += 1
        self.entries[self.last] = (what, pair, size, keep)
        return self.last

    def send(self, pair: int, size: int) -> None:
        data = memory(size)
        number = self.entry("send", pair, size, data)
        self.ring.queue(OP_SEND, number, self.ends[pair][0].fileno(), data, size)

    def receive(self, pair: int, size: int) -> None:
        data = memory(size)
        number = self.entry("receive", pair, size, data)
        opcode = OP_READ if size % 2 else OP_RECV
        self.ring.queue(opcode, number, self.ends[pair][1].fileno(), data, size)

    def receive_provided(self, pair: int, _: int) -> None:
        number = self.entry("receive", pair, self.buffers.size)
        self.ring.queue(OP_RECV, number, self.ends[pair][1].fileno(), flags=IOSQE_BUFFER_SELECT)

    def poll(self, pair: int, multishot: int) -> None:
        length = POLL_ADD_MULTI * multishot
        number = self.entry("poll", pair, 0)
        fd = self.ends[pair][1].fileno()
        self.ring.queue(OP_POLL_ADD, number, fd, length=length, op_flags=select.POLLIN)

    def nop(self, *_: int) -> None:
        self.ring.queue(OP_NOP, self.entry("nop", 0, 0))

    def cancel(self, back: int, _: int) -> None:
        self.cancelled.add(self.last - back)
        self.ring.cancel(self.last - back)

    def cancel_fd(self, pair: int, _: int) -> None:
        self.cancelled |= {u for u, (what, where, *_) in self.entries.items() if where == pair}
        self.ring.cancel_fd(self.ends[pair][1].fileno())

    def wake(self, *_: int) -> None:
        self.ring.wake()
        assert self.wait(1, 0), "a wake-up was lost"

    def owner_back(self, *_: int) -> None:
        self.ring.owner_back()

    def wait(self, times: int, _: int) -> bool:
        ended = False
        for _ in range(times):
            flat = self.ring.wait(0)
            ended |= flat is not None
            self.check(flat or [])
        return ended

    def check(self, flat: list[int]) -> None:
        for completion in decode(flat):
            if completion.user_data == STRAY_DATA:  # a doubled one
                assert self.finished[completion.res] == 1
                self.finished[completion.res] += 1
            else:
                self.check_one(completion, *self.entries[completion.user_data])

    def check_one(self, completion: Completion, what: str, pair: int, size: int, data: Any) -> None:
        user_data, res, flags = completion
        if not flags & CQE_F_MORE:
            self.finished[user_data] += 1
        if flags & CQE_F_BUFFER:
            assert what == "receive"
            assert data is None
            assert len(self.buffers.take(flags, res)) == res
        if res == CANCELED:
            assert user_data in self.cancelled
        if res <= 0:
            return
        if what == "poll":
            assert res & ~(select.POLLIN | select.POLLRDHUP) == 0
            return
        assert not flags & CQE_F_MORE
        assert res <= size
        if what == "send":
            self.sent[pair] += res
        else:
            self.received[pair] += res
            if data is not None:
                assert content(data, size) == bytes(size)


@contextmanager
def playing(sq_entries: int, cq_entries: int, seed: int) -> Iterator[Play]:
    """A ring and its sockets; afterwards no descriptor is left."""
    before = open_descriptors()
    ring = SimulatedRing(sq_entries, cq_entries, seed=seed, poison=True)
    ends = [socket.socketpair() for _ in range(PAIRS)]
    try:
        yield Play(ring, ring.make_buffers(2, 64), ends)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            ring.close(timeout=0)
        for both in ends:
            for end in both:
                end.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("sizes", [(2, 4), (64, 512)], ids=["sq2cq4", "sq64"])
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 1 << 32), decided=st.lists(fates, max_size=4), script=st.lists(steps, max_size=60))
def test_every_entry_meets_its_fate_once(
    sizes: tuple[int, int],
    seed: int,
    decided: list[dict[str, Any]],
    script: list[tuple[str, int, int]],
) -> None:
    with playing(*sizes, seed) as play:
        ring = play.ring
        for fate in decided:
            ring.inject(**fate)
        for step, first, second in script:
            getattr(play, step)(first, second)
            counters = ring.counters()
            assert counters.inflight + counters.completed == counters.submitted == len(play.entries)
        for user_data in play.entries:
            play.cancel(play.last - user_data, 0)
        play.wait(12 + 2 * len(play.entries), 0)
        lost = {entry.user_data for entry in ring.pending()}
        assert len(lost) <= sum(fate.get("copies") == 0 for fate in decided)
        doubled = {user_data for user_data, times in play.finished.items() if times == 2}
        assert len(doubled) <= sum(fate.get("copies") == 2 for fate in decided)
        assert max(play.finished.values(), default=0) <= 2
        assert set(play.finished) | lost == set(play.entries)
        assert not set(play.finished) & lost
        assert ring.counters().inflight == len(lost)
        assert ring.violations == []
        for sent, received, (_, reader) in zip(play.sent, play.received, play.ends, strict=True):
            left = 0
            with suppress(BlockingIOError):
                left = len(reader.recv(1 << 20, socket.MSG_DONTWAIT))
            assert received + left == sent
