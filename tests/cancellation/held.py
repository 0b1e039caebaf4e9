"""A ring that completes when it is told to, for the suite's own operations: the simulated ring, reached as the shim is.

Knows how the operations queue their entries; knows nothing of what is tested.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import trio

import trio_uring
from trio_uring import UringBackend, testing
from trio_uring._loop import transfers as _transfers
from trio_uring._loop.manager import BUFFER_GROUP, UringIOManager
from trio_uring._positional import batches as _batches
from trio_uring._positional import positional as _positional
from trio_uring._ring.ring import IOSQE_BUFFER_SELECT, OP_RECV, OP_SEND, ffi
from trio_uring._sockets import messages as _messages
from trio_uring._sockets import sockets as _sockets
from trio_uring.testing import Pending, SimulatedRing

# A batch of reads, which is one entry to whoever waits for it, with one user_data, one completion and one cancel. That its
# reads may end one by one is the shim's affair (tests/ring/test_batch.py); here a cancelled one has done the first half of them.
OP_BATCH = 1000


class HeldRing(SimulatedRing):
    """While `holding`, a request that is submitted stays in flight until `win` or `lose`."""

    def __init__(self, sq_entries: int, cq_entries: int | None) -> None:
        self.holding = False
        super().__init__(sq_entries, cq_entries, seed=None, manual=True, poison=True)
        self.batches: dict[int, tuple[list[tuple[int, int, int]], Any]] = {}
        self._r = self  # what the shim's functions take in place of a pointer
        self.address = id(self)

    def _controlled(self, entry: Any) -> bool:
        wakeup = trio._core._run.GLOBAL_RUN_CONTEXT.runner.entry_queue.wakeup
        return self.holding and super()._controlled(entry) and entry.fd != wakeup.wakeup_sock.fileno()

    def held(self) -> list[Pending]:
        """The requests that wait to be told."""
        flight = {entry.user_data: entry for entry in self._flight}
        return [pending for pending in self.pending() if self._controlled(flight[pending.user_data])]

    def win(self) -> None:
        """The kernel performs what is held, whether or not a cancel has reached it; what would block goes on waiting."""
        for pending in self.held():
            (entry,) = (each for each in self._flight if each.user_data == pending.user_data)
            entry.cancelled = False
            try:
                self.complete(pending.user_data)
            except BlockingIOError:
                entry.cancelled = pending.cancelled

    def lose(self, result: int = -errno.ECANCELED) -> None:
        """The cancel comes first: what is held and cancelled ends by it, with one of the results that say so (F15)."""
        for pending in self.held():
            if pending.cancelled:
                if pending.opcode == OP_BATCH:
                    reads, results = self.batches[pending.user_data]
                    self.read(pending.fd, reads[: len(reads) // 2], results)
                self.complete(pending.user_data, result)

    def batch(self, fd: int, reads: list[tuple[int, int, int]], results: Any, user_data: int) -> None:
        """Queue a batch: (offset, length, address) of each read."""
        self.batches[user_data] = reads, results
        self.queue(OP_BATCH, user_data, fd)

    @staticmethod
    def read(fd: int, reads: list[tuple[int, int, int]], results: Any) -> int:
        """Do some reads, of which each is as long as it was asked to be."""
        for number, (offset, length, address) in enumerate(reads):
            results[number] = testing._call("pread", fd, address, length, offset)
            assert results[number] == length
        return len(reads)

    def _perform(self, entry: Any) -> tuple[int, int]:
        if entry.opcode == OP_BATCH:
            return self.read(entry.file, *self.batches[entry.user_data]), 0
        return super()._perform(entry)

    def close(self, timeout: float = 0.0, keep: object = None) -> list[int]:
        self.holding = False
        return super().close(timeout, keep)


def _reached_through(rings: dict[int, HeldRing]) -> Iterator[tuple[ModuleType, str, Any]]:
    """The shim's functions that operations call by themselves, and what does the same on these rings."""

    def recv(ring: int, fd: int, length: int, user_data: int) -> int:
        rings[ring].queue(OP_RECV, user_data, fd, None, length, flags=IOSQE_BUFFER_SELECT, buf_index=BUFFER_GROUP)
        return 0

    def send(ring: int, fd: int, data: Any, length: int, msg_flags: int, user_data: int) -> int:
        rings[ring].queue(OP_SEND, user_data, fd, _pointer(data), length, op_flags=msg_flags)
        return 0

    def queue(
        ring: HeldRing,
        opcode: int,
        fd: int,
        addr: Any,
        length: int,
        offset: int,
        op_flags: int,
        user_data: int,
        *rest: int,
    ) -> int:
        ring.queue(opcode, user_data, fd, addr, length, offset, op_flags, *rest)
        return 0

    def rw(ring: int, opcode: int, fd: int, memory: Any, length: int, offset: int, flags: int, user_data: int) -> int:
        rings[ring].queue(opcode, user_data, fd, _pointer(memory), length, offset, flags=flags)
        return 0

    def batch_read(
        ring: HeldRing,
        fd: int,
        offsets: Any,
        lengths: Any,
        addresses: Any,
        skip: int,
        results: Any,
        count: int,
        *window: Any,
    ) -> int:
        *_, user_data = window
        ring.batch(fd, [(offsets[i], lengths[i], addresses[i] + skip) for i in range(count)], results, user_data)
        return 0

    yield _batches, "tu_batch_read", batch_read
    yield _positional, "tu_rw", rw
    yield _transfers, "tu_rw", rw
    yield _positional, "tu_read", lambda *_: 1  # not this way: then it is tu_rw
    yield _sockets, "tu_recv", recv
    yield _sockets, "tu_send", send
    yield _sockets, "tu_try_submit", lambda ring: None
    yield _messages, "tu_queue", queue


def _pointer(data: Any) -> Any:
    return ffi.from_buffer("char[]", data) if isinstance(data, bytes) else data


@contextlib.contextmanager
def held_runs() -> Iterator[list[HeldRing]]:
    """Runs in here are on a `HeldRing`; the rings that are made are appended to the list."""
    rings: list[HeldRing] = []
    by_address: dict[int, HeldRing] = {}
    trio_uring.run(trio.lowlevel.checkpoint, io_backend="uring")  # after which Trio's methods are replaced

    def make_ring(sq_entries: int, cq_entries: int | None) -> HeldRing:
        ring = HeldRing(sq_entries, cq_entries)
        rings.append(ring)
        by_address[ring.address] = ring
        return ring

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio._core._run, "TheIOManager", lambda: UringIOManager(UringBackend(speculate=False), make_ring))
        patch.setitem(testing._OPERATIONS, OP_BATCH, testing._Operation(lambda entry: -errno.EINVAL))
        for module, name, function in _reached_through(by_address):
            patch.setattr(module, name, function)
        yield rings
    for ring in rings:
        assert not ring.violations
