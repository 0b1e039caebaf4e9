"""`Ring.spin`: looking for completions before sleeping, where that has been paying. Only in a ring that was told to."""

from __future__ import annotations

import os
import threading
import time

from trio_uring._ring.ring import FIRST_USER_DATA, OP_NOP, OP_TIMEOUT, Ring, ffi

MANY_CPUS = os.sysconf("SC_NPROCESSORS_ONLN") > 1
SECOND = 1_000_000_000


def enters_of_a_short_wait(ring: Ring, after: int = 20_000) -> int:
    """Wait for a timeout of that many nanoseconds; the kernel entries that took."""
    when = ffi.new("int64_t[2]", [0, after])
    before = ring.counters().enters
    ring.queue(OP_TIMEOUT, FIRST_USER_DATA, addr=when, length=1)
    completions = ring.wait(10)
    assert completions is not None
    while not completions:
        completions = ring.wait(10) or []
    assert completions[0] == FIRST_USER_DATA
    return ring.counters().enters - before


def make_it_spin(ring: Ring) -> None:
    """Waits that are over at once, because what they wait for is done as soon as it is submitted."""
    for _ in range(10):
        ring.queue(OP_NOP, FIRST_USER_DATA)
        assert ring.wait(10)


def test_short_sleeps_make_it_spin_and_a_long_one_ends_that() -> None:
    ring = Ring(8)
    try:
        ring.spin(SECOND // 1000)

        def spins() -> bool:
            """Handing over what is queued and waiting are two entries then. Where it does, this very sleep ends it."""
            return enters_of_a_short_wait(ring, after=20_000_000) > 1

        def spins_after_short_sleeps() -> bool:
            make_it_spin(ring)
            return spins()

        # On a busy machine one of the short sleeps may be a long one.
        assert any(spins_after_short_sleeps() for _ in range(50)) == MANY_CPUS
        # There a look may also last until the long sleep is over, which then is none.
        assert not all(spins() for _ in range(50))
    finally:
        ring.close()


def test_it_never_spins_unless_told_to() -> None:
    ring = Ring(8)
    try:
        # The kernel may end a wait for nothing (seen on 6.1); spinning takes two entries every time.
        assert sum(enters_of_a_short_wait(ring) == 1 for _ in range(200)) > 100
    finally:
        ring.close()


def test_the_timeout_counts_while_it_spins() -> None:
    ring = Ring(8)
    try:
        ring.spin(10 * SECOND)
        make_it_spin(ring)
        began = time.monotonic()
        assert ring.wait(0.01) is None
        assert 0.01 <= time.monotonic() - began < 60
    finally:
        ring.close()


def test_a_timeout_that_expires_as_the_spin_ends_is_no_wait_for_ever() -> None:
    """What is left of the timeout is worked out once: it was below zero where the clock went on in between."""
    ring = Ring(8)
    rescue = threading.Timer(60, ring.wake)
    rescue.start()
    try:
        spin = 2_000  # nanoseconds
        ring.spin(spin)
        for _ in range(15):
            for more in range(0, 1000, 5):
                make_it_spin(ring)
                assert ring.wait((spin + more) / SECOND) is None
    finally:
        rescue.cancel()
        ring.close()


def test_a_wake_up_of_another_thread_ends_a_spin_and_the_thread_can_run() -> None:
    ring = Ring(8)
    try:
        ring.spin(100 * SECOND)
        make_it_spin(ring)
        waker = threading.Timer(0.02, ring.wake)
        waker.start()
        began = time.monotonic()
        assert ring.wait(100) == []
        assert time.monotonic() - began < 60
        waker.join()
    finally:
        ring.close()
