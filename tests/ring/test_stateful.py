"""Any sequence of calls, against a model: each entry completes exactly once, with a result that it may have.

Knows the interface of layer 1; what the model says is what a caller may rely on.
"""

from __future__ import annotations

import errno
import os
import select
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trio_uring._ring.ring import FIRST_USER_DATA, OP_NOP, OP_READ, Ring
from trio_uring.testing import SimulatedRing

from .conftest import MakeRing
from .support import PATIENCE, InThread, content, decode, memory

PIPES = 3
CANCELED = -errno.ECANCELED

pipes = st.integers(0, PIPES - 1)


class Model(RuleBasedStateMachine):
    """Reads of one byte, polls and no-operations on three pipes."""

    def __init__(self, ring: Ring) -> None:
        super().__init__()
        self.ring = ring
        self.pipes = [os.pipe() for _ in range(PIPES)]
        self.bytes: list[list[int]] = [[] for _ in range(PIPES)]  # written and not read yet
        self.written = 0
        self.open: dict[int, tuple[int, int]] = {}  # user_data -> opcode, pipe
        self.buffers: dict[int, Any] = {}
        self.cancelled: set[int] = set()
        self.woken = False
        self.away = False  # the last wait found nothing
        self.last = FIRST_USER_DATA - 1

    def next(self, opcode: int, pipe: int = 0) -> int:
        self.last += 1
        self.open[self.last] = (opcode, pipe)
        return self.last

    @rule()
    def nop(self) -> None:
        self.ring.queue(OP_NOP, self.next(OP_NOP))

    @rule(pipe=pipes)
    def read(self, pipe: int) -> None:
        user_data = self.next(OP_READ, pipe)
        self.buffers[user_data] = memory(1)
        self.ring.queue(OP_READ, user_data, self.pipes[pipe][0], self.buffers[user_data], 1)

    @rule(pipe=pipes)
    def poll(self, pipe: int) -> None:
        self.ring.poll(self.pipes[pipe][0], select.POLLIN, self.next(-1, pipe))

    @rule(pipe=pipes)
    def write(self, pipe: int) -> None:
        self.written = (self.written + 1) % 256
        self.bytes[pipe].append(self.written)
        os.write(self.pipes[pipe][1], bytes([self.written]))

    @rule(back=st.integers(0, 20))
    def cancel(self, back: int) -> None:
        user_data = max(FIRST_USER_DATA, self.last - back)
        self.cancelled |= {user_data} & set(self.open)
        self.ring.cancel(user_data)

    @rule(pipe=pipes)
    def cancel_fd(self, pipe: int) -> None:
        on_it = {u for u, (opcode, where) in self.open.items() if where == pipe and opcode != OP_NOP}
        self.cancelled |= on_it
        self.ring.cancel_fd(self.pipes[pipe][0])
        assert self.ring.queued == 0
        while on_it & set(self.open):
            assert self.wait(0) is not None, "cancel_fd has left something in flight"

    @rule()
    def submit(self) -> None:
        self.ring.submit()
        assert self.ring.queued == 0

    @rule()
    def owner_back(self) -> None:
        self.away = False
        self.ring.owner_back()

    @rule()
    def wake(self) -> None:
        self.woken = True
        self.ring.wake()

    @rule()
    def look(self) -> None:
        if self.wait(0) is None:
            assert not self.woken

    def due(self) -> bool:
        """Whether something must happen without any further call."""
        return self.woken or any(
            opcode == OP_NOP or self.bytes[pipe] or user_data in self.cancelled
            for user_data, (opcode, pipe) in self.open.items()
        )

    @precondition(due)
    @rule()
    def sleep(self) -> None:
        assert self.wait(PATIENCE) is not None

    @precondition(lambda self: self.away and self.due())
    @rule()
    def sleep_elsewhere(self) -> None:
        assert InThread(lambda: self.ring.wait(PATIENCE)).result() == []

    def wait(self, timeout: float) -> list[int] | None:
        flat = self.ring.wait(timeout)
        assert self.ring.queued == 0
        self.away = flat is None
        if flat is not None:
            self.woken = False
            self.check(flat)
        return flat

    def check(self, flat: list[int]) -> None:
        for completion in decode(flat):
            opcode, pipe = self.open.pop(completion.user_data)  # KeyError: it was doubled
            assert completion.flags == 0
            if completion.res == CANCELED:
                assert completion.user_data in self.cancelled
            elif opcode == OP_NOP:
                assert completion.res == 0
            elif opcode == OP_READ:
                assert completion.res == 1
                (byte,) = content(self.buffers[completion.user_data], 1)
                self.bytes[pipe].remove(byte)
            else:
                assert completion.res == select.POLLIN

    @invariant()
    def counters_equal_the_model(self) -> None:
        counters = self.ring.counters()
        assert counters.inflight == len(self.open)
        assert counters.submitted == self.last - FIRST_USER_DATA + 1
        assert counters.completed + counters.inflight == counters.submitted
        assert self.ring.queued <= self.ring.sq_entries

    def teardown(self) -> None:
        try:
            self.cancelled |= set(self.open)
            self.check(self.ring.close())
            assert not self.open, "close has lost entries"
            for (reader, writer), left in zip(self.pipes, self.bytes, strict=True):
                os.close(writer)
                assert os.read(reader, 1 << 16) == bytes(left)
            if isinstance(self.ring, SimulatedRing):
                assert self.ring.violations == []
        finally:
            for reader, _ in self.pipes:
                os.close(reader)


def test_each_entry_completes_once_whatever_is_called(new_ring: MakeRing, sizes: tuple[int, int | None]) -> None:
    class OnThisRing(Model):
        def __init__(self) -> None:
            super().__init__(new_ring(*sizes))

    run_state_machine_as_test(
        OnThisRing,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # a lost completion costs PATIENCE, and shrinking would pay it many times
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
