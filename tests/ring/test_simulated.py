"""What the simulated ring has beyond the kernel's: fates decided by a test or a seed, and checks of memory.

Knows `SimulatedRing` and its interface for tests.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import select
import socket
import weakref

import pytest

from trio_uring._ring.ring import (
    CQE_F_MORE,
    FIRST_USER_DATA,
    IOSQE_BUFFER_SELECT,
    NOP_INJECT_RESULT,
    OP_ACCEPT,
    OP_NOP,
    OP_READ,
    OP_RECV,
    OP_SEND,
    STRAY_DATA,
    ffi,
)
from trio_uring.testing import Pending, SimulatedRing

from .support import Completion, content, decode, memory, open_descriptors, reap, settle, user_datas

ONE = FIRST_USER_DATA
TWO = FIRST_USER_DATA + 1
CANCELED = -errno.ECANCELED

# ------------------------------------------------------------------ injected fates


def test_an_injected_result_replaces_the_operation(pipe: tuple[int, int]) -> None:
    ring = SimulatedRing()
    ring.inject(OP_READ, -errno.EIO)
    os.write(pipe[1], b"x")
    buffer = memory(1)
    ring.queue(OP_READ, ONE, pipe[0], buffer, 1)
    assert reap(ring, 1) == [(ONE, -errno.EIO, 0)]
    ring.queue(OP_READ, TWO, pipe[0], buffer, 1)
    assert reap(ring, 1) == [(TWO, 1, 0)]
    ring.close()


def test_an_injected_result_waits_for_its_turn() -> None:
    ring = SimulatedRing(seed=None)
    ring.inject(OP_NOP, 7, 8, nth=3)
    ring.inject(OP_READ, 9)
    for user_data in user_datas(4):
        ring.queue(OP_NOP, user_data)
    assert [c[1:] for c in reap(ring, 4)] == [(0, 0), (0, 0), (7, 8), (0, 0)]
    ring.close()


def test_a_late_completion_takes_its_rounds() -> None:
    ring = SimulatedRing(seed=None)
    ring.inject(OP_NOP, late=3)
    ring.queue(OP_NOP, ONE)
    assert [ring.wait(0) for _ in range(5)] == [[], [], [], [ONE, 0, 0], None]
    ring.close()


def test_a_late_completion_does_not_keep_a_wait_waiting() -> None:
    ring = SimulatedRing(seed=None)
    ring.inject(OP_NOP, late=50)
    ring.queue(OP_NOP, ONE)
    assert ring.wait(None) == [ONE, 0, 0]
    ring.close()


def test_a_lost_completion_is_leaked_at_the_end(pipe: tuple[int, int]) -> None:
    """F8: an entry that never ends: `close` gives up after its timeout, keeps the memory, and says so."""

    class Keep:
        buffer = memory(1)

    before = open_descriptors()
    ring = SimulatedRing()
    keep = Keep()
    alive = weakref.ref(keep)
    ring.inject(OP_READ, copies=0)
    ring.queue(OP_READ, ONE, pipe[0], keep.buffer, 1)
    os.write(pipe[1], b"x")
    ring.cancel(ONE)
    assert settle(ring) == []
    with pytest.raises(OSError, match="Timer expired"):
        ring.cancel_sync(user_data=ONE, timeout=0)
    with pytest.warns(ResourceWarning, match="1 operations did not end in time"):
        assert ring.close(timeout=0.01, keep=keep) == []
    del keep
    gc.collect()
    assert alive() is not None
    assert open_descriptors() == before


def test_a_doubled_completion_comes_twice_and_counts_once() -> None:
    ring = SimulatedRing()
    ring.inject(OP_NOP, copies=2)
    ring.queue(OP_NOP, ONE)
    assert reap(ring, 2) == [(ONE, 0, 0), (STRAY_DATA, ONE, 0)]
    assert ring.counters().completed == 1
    ring.close()


def test_a_refused_entry_is_not_queued(pipe: tuple[int, int]) -> None:
    """F3, F12: the caller learns that there is no room, and nothing runs later."""
    ring = SimulatedRing()
    ring.refuse(errno.EBUSY, times=2)
    with pytest.raises(OSError, match="busy"):
        ring.queue(OP_NOP, ONE)
    with pytest.raises(OSError, match="busy"):
        ring.poll(pipe[0], select.POLLIN, ONE)
    assert (ring.queued, ring.counters().submitted) == (0, 0)
    ring.queue(OP_NOP, TWO)
    assert reap(ring, 1) == [(TWO, 0, 0)]
    ring.close()


def test_a_nop_injects_the_result_that_it_names() -> None:
    """As with the kernel since 6.12."""
    ring = SimulatedRing()
    ring.queue(OP_NOP, ONE, length=(1 << 32) - errno.EIO, op_flags=NOP_INJECT_RESULT)
    assert reap(ring, 1) == [(ONE, -errno.EIO, 0)]
    ring.close()


# ------------------------------------------------------------------ the seed


def history(seed: int | None) -> list[Completion]:
    """What happens with a seed: no-operations, and receives cancelled while their data arrives."""
    ring = SimulatedRing(4, 8, seed=seed)
    ours, theirs = socket.socketpair()
    buffer = memory(1)
    happened = []
    for user_data in range(ONE, ONE + 60, 3):
        ring.queue(OP_RECV, user_data, ours.fileno(), buffer, 1)
        happened += settle(ring)
        theirs.send(b"x")
        ring.cancel(user_data)
        ring.queue(OP_NOP, user_data + 1)
        ring.queue(OP_NOP, user_data + 2)
    happened += settle(ring)
    happened += decode(ring.close())
    ours.close()
    theirs.close()
    return happened


def test_a_seed_decides_everything() -> None:
    assert history(5) == history(5)
    assert history(5) != history(6)
    assert history(None) == history(None)


def test_a_seed_lets_either_side_of_a_race_win() -> None:
    """F11: over some seeds, the data comes first and the cancel comes first."""
    results = {c.res for seed in range(3) for c in history(seed)}
    assert {1, CANCELED} <= results


def test_without_a_seed_data_that_is_there_comes_first() -> None:
    assert {c.res for c in history(None)} == {0, 1}


# ------------------------------------------------------------------ by hand


def test_by_hand_nothing_completes_by_itself(pipe: tuple[int, int]) -> None:
    ring = SimulatedRing(manual=True)
    ring.queue(OP_NOP, ONE)
    ring.poll(pipe[1], select.POLLOUT, TWO)
    assert ring.pending() == []
    assert settle(ring) == []
    assert ring.pending() == [Pending(ONE, OP_NOP, -1, False), Pending(TWO, 6, pipe[1], False)]
    ring.complete(TWO)
    assert reap(ring, 1) == [(TWO, select.POLLOUT, 0)]
    ring.complete(ONE, -errno.EIO, 4)
    assert reap(ring, 1) == [(ONE, -errno.EIO, 4)]
    with pytest.raises(KeyError):
        ring.complete(ONE)
    ring.close()


def test_by_hand_a_cancel_waits_for_its_target(pipe: tuple[int, int]) -> None:
    """Invariant 1: the test decides what the target says, long after the cancel."""
    ring = SimulatedRing(manual=True)
    buffer = memory(4)
    ring.queue(OP_READ, ONE, pipe[0], buffer, 4)
    ring.cancel(ONE)
    assert settle(ring) == []
    assert ring.pending() == [Pending(ONE, OP_READ, pipe[0], True)]
    ring.complete(ONE, 3)
    assert reap(ring, 1) == [(ONE, 3, 0)]
    ring.queue(OP_READ, TWO, pipe[0], buffer, 4)
    ring.cancel(TWO)
    ring.submit()
    ring.complete(TWO)
    assert reap(ring, 1) == [(TWO, CANCELED, 0)]
    ring.close()


def test_by_hand_what_would_block_says_so(pipe: tuple[int, int]) -> None:
    ring = SimulatedRing(manual=True)
    buffer = memory(4)
    ring.queue(OP_READ, ONE, pipe[0], buffer, 4)
    ring.submit()
    with pytest.raises(BlockingIOError):
        ring.complete(ONE)
    os.write(pipe[1], b"now")
    assert settle(ring) == []
    ring.complete(ONE)
    assert reap(ring, 1) == [(ONE, 3, 0)]
    assert content(buffer, 3) == b"now"
    ring.close()


def test_by_hand_a_close_is_a_close(pair: tuple[socket.socket, socket.socket]) -> None:
    """F18."""
    ring = SimulatedRing(manual=True)
    ours, theirs = pair
    buffer = memory(4)
    ring.queue(OP_RECV, ONE, ours.fileno(), buffer, 4)
    ring.cancel_fd(ours.fileno())
    assert ring.pending() == []
    ours.close()
    assert theirs.recv(1) == b""
    ring.queue(OP_NOP, TWO)
    assert sorted(decode([*(ring.wait(0) or []), *ring.close()])) == [(ONE, CANCELED, 0), (TWO, CANCELED, 0)]


@pytest.mark.parametrize("manual", [False, True])
def test_more_completions_of_one_entry(manual: bool, pair: tuple[socket.socket, socket.socket]) -> None:
    """F6, F16: with F_MORE the entry stays in flight until a completion without it."""
    ring = SimulatedRing(manual=manual)
    if not manual:
        ring.inject(OP_SEND, 5, CQE_F_MORE)
    text = ffi.new("char[]", b"hello")
    ring.queue(OP_SEND, ONE, pair[0].fileno(), text, 5)
    ring.submit()
    if manual:
        ring.complete(ONE, 5, CQE_F_MORE)
    assert reap(ring, 1) == [(ONE, 5, CQE_F_MORE)]
    assert settle(ring) == []
    assert ring.counters().inflight == 1
    ring.complete(ONE, 0, 8)
    assert reap(ring, 1) == [(ONE, 0, 8)]
    assert ring.counters().inflight == 0
    ring.close()


# ------------------------------------------------------------------ memory


def test_a_buffer_changed_before_its_completion_is_a_violation(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """F1, F7: whoever reuses a buffer that the kernel still sends from is found."""
    ring = SimulatedRing(manual=True)
    text = ffi.new("char[]", b"hello")
    ring.queue(OP_SEND, ONE, pair[0].fileno(), text, 5)
    ring.submit()
    text[0] = b"j"
    ring.complete(ONE)
    assert len(ring.violations) == 1
    assert f"user_data {ONE}" in ring.violations[0]
    assert "changed" in ring.violations[0]
    ring.close()


@pytest.mark.parametrize("poison", [False, True])
def test_memory_reused_while_a_cancelled_receive_is_late_is_a_violation(
    pair: tuple[socket.socket, socket.socket], poison: bool
) -> None:
    """F1: freed at the cancel, and not at the completion. Zeros in place of zeros are found by the poison."""
    ring = SimulatedRing(manual=True, poison=poison)
    buffer = memory(64)
    ring.queue(OP_RECV, ONE, pair[0].fileno(), buffer, 64)
    ring.cancel(ONE)
    ring.submit()
    ffi.buffer(buffer)[:64] = bytes(64)
    ring.complete(ONE, CANCELED)
    assert len(ring.violations) == poison
    ring.close()


@pytest.mark.parametrize("poison", [False, True])
def test_memory_unmapped_before_its_completion_is_a_violation(
    pair: tuple[socket.socket, socket.socket], poison: bool
) -> None:
    """F1: it is found and does not crash, and the operation fails as in the kernel."""
    ring = SimulatedRing(poison=poison)
    area = mmap.mmap(-1, 1 << 16)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    ring.queue(OP_RECV, ONE, pair[0].fileno(), ffi.cast("char *", address), 1 << 16)
    assert settle(ring) == []
    area.close()
    pair[1].send(b"late")
    assert reap(ring, 1) == [(ONE, -errno.EFAULT, 0)]
    assert len(ring.violations) == 1
    assert "was unmapped" in ring.violations[0]
    ring.close()


def test_the_memory_of_an_address_is_checked(pipe: tuple[int, int]) -> None:
    """F2: what accept writes its peer's address to, and the size of it."""
    ring = SimulatedRing(manual=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, size = memory(32), ffi.new("unsigned *", 32)
        ring.queue(OP_ACCEPT, ONE, listener.fileno(), address, offset=int(ffi.cast("uintptr_t", size)))
        ring.submit()
        address[5] = b"x"
        size[0] = 4
        ring.complete(ONE, CANCELED)
    assert len(ring.violations) == 2
    ring.close()


def test_poison_is_gone_when_the_completion_is_there(pair: tuple[socket.socket, socket.socket]) -> None:
    """A caller sees its own bytes where the operation wrote none."""
    ring = SimulatedRing(poison=True)
    buffer = ffi.new("char[]", b"0123456789")
    ring.queue(OP_RECV, ONE, pair[0].fileno(), buffer, 10)
    assert settle(ring) == []
    assert content(buffer, 10) == b"\xa5" * 10
    pair[1].send(b"abc")
    assert reap(ring, 1) == [(ONE, 3, 0)]
    assert content(buffer, 10) == b"abc3456789"
    ring.queue(OP_RECV, TWO, pair[0].fileno(), buffer, 10)
    ring.cancel(TWO)
    assert reap(ring, 1) == [(TWO, CANCELED, 0)]
    assert content(buffer, 10) == b"abc3456789"
    assert ring.violations == []
    ring.close()


def test_a_buffer_taken_after_the_next_wait_is_a_violation(pair: tuple[socket.socket, socket.socket]) -> None:
    """F36."""
    ring = SimulatedRing(poison=True)
    buffers = ring.make_buffers(2, 8)
    pair[1].send(b"data")
    ring.queue(OP_RECV, ONE, pair[0].fileno(), flags=IOSQE_BUFFER_SELECT)
    (completion,) = reap(ring, 1)
    assert buffers.take(completion.flags, 4) == b"data"
    assert ring.violations == []
    assert ring.wait(0) is None
    assert buffers.take(completion.flags, 4) == b"\xa5" * 4
    assert len(ring.violations) == 1
    ring.close()
