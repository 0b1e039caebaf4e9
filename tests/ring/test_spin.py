"""`Ring.spin`: looking for completions before sleeping, where that has been paying. Only in a ring that was told to."""

from __future__ import annotations

import os
import threading
import time

from trio_uring._ring import FIRST_USER_DATA, OP_TIMEOUT, Ring, ffi

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


def make_it_spin(ring: Ring) -> bool:
    """Short sleeps until the ring spins: handing over what is queued and waiting are two entries then, or more."""
    return any(enters_of_a_short_wait(ring) > 1 for _ in range(2000))


def test_short_sleeps_make_it_spin_and_a_long_one_ends_that() -> None:
    ring = Ring(8)
    try:
        ring.spin(SECOND // 1000)
        assert make_it_spin(ring) == MANY_CPUS
        # A look in vain counts four times as much as a success: at the most two of them, and the long sleeps that follow.
        for _ in range(3):
            enters_of_a_short_wait(ring, after=20_000_000)
        assert enters_of_a_short_wait(ring, after=20_000_000) == 1
    finally:
        ring.close()


def test_it_never_spins_unless_told_to() -> None:
    ring = Ring(8)
    try:
        assert all(enters_of_a_short_wait(ring) == 1 for _ in range(200))
    finally:
        ring.close()


def test_the_timeout_counts_while_it_spins() -> None:
    ring = Ring(8)
    try:
        ring.spin(10 * SECOND)
        make_it_spin(ring)
        began = time.monotonic()
        assert ring.wait(0.01) is None
        assert 0.01 <= time.monotonic() - began < 5
    finally:
        ring.close()


def test_a_wake_up_of_another_thread_ends_a_spin_and_the_thread_can_run() -> None:
    ring = Ring(8)
    try:
        ring.spin(100 * SECOND)
        make_it_spin(ring)
        waker = threading.Timer(0.02, ring.wake)
        waker.start()
        began = time.monotonic()
        assert ring.wait(60) == []
        assert time.monotonic() - began < 30
        waker.join()
    finally:
        ring.close()
