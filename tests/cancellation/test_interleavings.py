"""Completion and cancel in every order, for each operation of the suite, on a ring that does as it is told.

On the kernel the suite forces moments of Trio's loop; who wins the race inside the kernel it can only leave to chance. Here both
ways to win are forced, and so the outcome is known: where the kernel has performed the operation its result is delivered,
whatever was asked meanwhile (invariant 1; F9, F11); where the cancel was first nothing has happened (F15).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable

import pytest
import trio
import trio.testing
from tools import processor_time_asleep

import trio_uring
from trio_uring.cancellation import (
    CANCELLED,
    CAUSES,
    CLOSED,
    OPERATIONS,
    RETURNED,
    Backend,
    Cause,
    Moment,
    Operation,
    Subject,
)
from trio_uring.cancellation._causes import Attempt, Attempts, EndOfRun, Guest, Interrupt
from trio_uring.cancellation._operations import Send
from trio_uring.cancellation.suite import no_descriptor_leaked

from .held import HeldRing, held_runs

# The letters of a script.
#   w  the world lets the operation complete      x  the cause strikes
#   c  the kernel performs the operation          e, i, r  it ends by the cancel: -ECANCELED, -EINTR, -ERESTARTSYS
#   .  Trio's loop goes round once                |  until everything sleeps
ENDS = {"e": -errno.ECANCELED, "i": -errno.EINTR, "r": -512}

GAPS = ("", ".", "|")
WON = [a + g + b + h + c for a, b, c in ("wxc", "xwc", "wcx") for g, h in itertools.product(GAPS, GAPS)]
LOST = [before + end for before in ("x", "wx", "xw") for end in ENDS]
# The same for what waits for nothing in the world.
WON_AT_ONCE = [first + gap + then for first, then in ("xc", "cx") for gap in GAPS]
LOST_AT_ONCE = ["x" + end for end in ENDS]

# Those with one entry and one completion: that decides alone. The others take several steps, or none in the ring, or are
# polls, which own nothing, so that a cancel may end them although they have completed.
DECIDED_BY_ONE = frozenset(
    {"recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"}
    | {"SocketStream.receive_some", "send", "sendto", "sendmsg", "accept"}
    | {"file.read", "file.readinto", "file.write", "file.truncate", "file.flush"}
    | {"Path.stat", "Path.exists", "Path.unlink", "Path.mkdir", "Path.rmdir", "Path.rename", "Path.touch"}
    | {"Path.symlink_to", "Path.hardlink_to", "read_at", "readinto_at", "write_at", "writev_at", "read_many"}
    | {"readinto_many", "fsync", "fdatasync", "fallocate", "statx", "open_file"}
)

# Nobody cancels what these have begun.
SHIELDED = frozenset({"file.aclose"})


class Interleaved(Attempts):
    """Attempts whose moments are scripts in the letters above."""

    def __init__(self, operation: Operation, cause: Cause, scripts: Iterable[str], rings: list[HeldRing]) -> None:
        super().__init__(operation, cause)
        self.moments = [Moment(script, (), "racing") for script in scripts]
        self.rings = rings

    @property
    def ring(self) -> HeldRing:
        """Of this run."""
        return self.rings[-1]

    @contextlib.asynccontextmanager
    async def controlled(self, attempt: Attempt) -> AsyncIterator[None]:
        """The ring holds what the call under test submits, and nothing else."""
        self.ring.holding = True
        async with super().controlled(attempt):
            yield
        self.ring.holding = False

    async def control(self, attempt: Attempt) -> None:
        """Play the script; then whatever is still in flight goes its way."""
        await trio.testing.wait_all_tasks_blocked()
        for letter in attempt.moment.name:
            await self.play(letter, attempt)
        while attempt.ended is None:
            attempt.do("complete")
            self.ring.lose()
            self.ring.win()
            await trio.testing.wait_all_tasks_blocked(0.0005)

    async def play(self, letter: str, attempt: Attempt) -> None:
        """One letter."""
        if letter == "w":
            attempt.do("complete")
        elif letter == "x":
            attempt.do("fire")
        elif letter == "c":
            self.ring.win()
        elif letter == ".":
            await trio.lowlevel.checkpoint()
        elif letter == "|":
            await trio.testing.wait_all_tasks_blocked()
        else:
            # The cancel has to be there first; some causes take their time.
            shielded = attempt.operation.name in SHIELDED and not isinstance(self.cause, Interrupt)
            while not self.cancelled() and attempt.ended is None and not shielded:
                await trio.testing.wait_all_tasks_blocked(0.0001)
            self.ring.lose(ENDS[letter])

    def cancelled(self) -> bool:
        """Whether all that is held is to end."""
        return all(pending.cancelled for pending in self.ring.held())

    async def judge(self, attempt: Attempt) -> None:
        """As always, and it ended as the script says."""
        self.ring.holding = False
        await super().judge(attempt)
        assert attempt.ended is not None
        if attempt.operation.name in DECIDED_BY_ONE:
            script = attempt.moment.name
            performed = "c" in script and (self.cause.word != CLOSED or script.index("c") < script.index("x"))
            expected = RETURNED if performed else self.cause.word
            assert attempt.ended.kind == expected, f"{attempt}: {attempt.ended}, and not {expected}"


def fitting() -> Iterable[object]:
    """Operations that the ring can hold, with causes that strike in a plain run."""
    for operation in OPERATIONS:
        if operation.name == "open_file of a FIFO":
            continue  # this ring's openat(2) would wait for the other end, and everybody with it
        for make in CAUSES:
            cause = make()
            if isinstance(cause, (Guest, EndOfRun)) or not cause.fits(operation, Moment("", (), "racing")):
                continue
            yield pytest.param(operation, make, id=f"{operation.name}-{cause.name}")


@pytest.mark.parametrize(("operation", "cause"), list(fitting()))
def test_every_interleaving(operation: Operation, cause: Callable[[], Cause]) -> None:
    struck = cause()
    # A call that nobody cancels, or whose descriptor is closed under it, has no cancel of its own to lose against.
    won, lost = (WON, LOST) if operation.blocks else (WON_AT_ONCE, LOST_AT_ONCE)
    scripts = won if struck.word != CANCELLED else won + lost
    with no_descriptor_leaked(), held_runs() as rings:
        attempts = Interleaved(operation, struck, scripts, rings)
        attempts.run(Backend(trio_uring.run, trio_uring.start_guest_run))
    assert sum(attempts.tally.values()) == len(scripts)


def memory_of(subject: Subject) -> list[Callable[[], object]]:
    """What cannot be done while the kernel may touch the memory of the caller."""
    if isinstance(subject, Send):
        return [lambda: subject.payload.append(0)]
    memory = getattr(subject, "memory", [])
    return [each.view.release for each in (memory if isinstance(memory, list) else [memory])]


ASLEEP = 0.06  # seconds
# What a sleep of so long may take: rounds of Trio's loop, kernel entries, seconds of processor time.
MOST_EFFORT = {"rounds": 20, "entries": 20, "processor": ASLEEP / 2}


def effort_of_waiting(operation: Operation) -> dict[str, float]:
    """What it takes to wait for an operation that has been cancelled and that the kernel does not end."""
    effort: dict[str, float] = {}

    class Slow(Interleaved):
        async def control(self, attempt: Attempt) -> None:
            await trio.testing.wait_all_tasks_blocked()
            attempt.do("fire")
            await trio.testing.wait_all_tasks_blocked()
            try:
                assert [pending.cancelled for pending in self.ring.held()] == [True]
                for resize in memory_of(attempt.subject):
                    with pytest.raises(BufferError):
                        resize()
                rounds, submitted = self.hooks.rounds, self.ring.counters().enters
                await trio.sleep(ASLEEP)
                effort["rounds"] = self.hooks.rounds - rounds
                effort["entries"] = self.ring.counters().enters - submitted
                effort["processor"] = await processor_time_asleep(ASLEEP)
                assert attempt.ended is None
            finally:
                self.ring.lose()  # or a failure would be a hang
                self.ring.win()

    with held_runs() as rings:
        Slow(operation, CAUSES[0](), [""], rings).run(Backend(trio_uring.run, trio_uring.start_guest_run))
    return effort


def too_much(effort: dict[str, float]) -> set[str]:
    """What there is more of than in a sleep."""
    return {name for name, most in MOST_EFFORT.items() if effort[name] > most}


@pytest.mark.parametrize(
    "operation", [each for each in OPERATIONS if each.name in DECIDED_BY_ONE], ids=lambda o: o.name
)
def test_no_busy_loop_while_the_kernel_takes_its_time(operation: Operation) -> None:
    """A cancel is asked for once, and its answer is slept for; the memory stays pinned (invariant 2)."""
    assert not too_much(effort_of_waiting(operation))


TURNS = itertools.count(1)


def goes_round(wait: Callable[..., object], ring: HeldRing, timeout: float) -> object:
    """Answers that there may be something, without having waited."""
    return [] if next(TURNS) % 50 else wait(ring, timeout)


def enters(wait: Callable[..., object], ring: HeldRing, timeout: float) -> object:
    """Asks the kernel again and again before it waits."""
    for _ in range(50):
        found = wait(ring, 1e-6)
        if found is not None:
            return found
    return wait(ring, timeout)


def spins(wait: Callable[..., object], ring: HeldRing, timeout: float) -> object:
    """Looks for completions in place of a sleep."""
    began = time.thread_time()
    while time.thread_time() - began < timeout:
        pass
    return wait(ring, 0)


@pytest.mark.parametrize(("busy", "seen"), [(goes_round, "rounds"), (enters, "entries"), (spins, "processor")])
def test_a_busy_loop_is_seen_by_what_it_does(
    busy: Callable[..., object], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each kind, where the sleep should be: so the test above can fail, and by each of its limits."""
    wait = HeldRing.wait

    def waits(ring: HeldRing, timeout: float | None) -> object:
        # A sleep of one of the measurements; others are as they are.
        asleep = timeout is not None and 0 < timeout <= ASLEEP and bool(ring.held())
        return busy(wait, ring, timeout) if asleep else wait(ring, timeout)

    monkeypatch.setattr(HeldRing, "wait", waits)
    (recv,) = [each for each in OPERATIONS if each.name == "recv"]
    assert seen in too_much(effort_of_waiting(recv))
