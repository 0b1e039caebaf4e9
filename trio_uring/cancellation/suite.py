"""The suite itself: one test for each operation and cause over all moments, one for their race, and what holds of each operation.

Knows the tables; the fixtures come from the plugin, or from whoever includes these tests. See the package's docstring.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from . import Backend
from ._causes import CAUSES, MOMENTS, PATIENCE, RACE, Attempts, Cause, Hooks
from ._operations import CANCELLED, OPERATIONS, RETURNED, Books, Ended, Operation, Subject, ended_by


def pairs(fits: Callable[[Operation, Cause], bool]) -> pytest.MarkDecorator:
    """The test takes each operation with each cause that fits it."""
    chosen = [
        pytest.param(operation, make, id=f"{operation.name}-{cause.name}")
        for operation in OPERATIONS
        for make, cause in ((make, make()) for make in CAUSES)
        if fits(operation, cause)
    ]
    return pytest.mark.parametrize(("operation", "cause"), chosen)


blocking = pytest.mark.parametrize(
    "operation", [each for each in OPERATIONS if each.blocks], ids=lambda operation: operation.name
)


@contextlib.contextmanager
def no_descriptor_leaked() -> Iterator[None]:
    """As many are open afterwards as before."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    if len(os.listdir("/proc/self/fd")) != before:
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors have leaked"


@pairs(lambda operation, cause: any(cause.fits(operation, moment) for moment in MOMENTS))
def test_every_moment(operation: Operation, cause: Callable[[], Cause], cancellation_backend: Backend) -> None:
    """One outcome, which is the one that the world shows; memory let go of; nothing in flight; in bounded time."""
    attempts = Attempts(operation, cause(), MOMENTS)
    with no_descriptor_leaked():
        attempts.run(cancellation_backend)
    assert sum(attempts.tally.values()) == len(attempts.moments)


@pairs(lambda operation, cause: cause.fits(operation, RACE))
def test_race(
    operation: Operation,
    cause: Callable[[], Cause],
    cancellation_backend: Backend,
    cancellation_runs: int,
    record_property: Callable[[str, object], None],
) -> None:
    """The same, with cause and completion at swept times in one thread and in two; --cancellation-runs of them."""
    attempts = Attempts(operation, cause(), races=cancellation_runs)
    with no_descriptor_leaked():
        attempts.run(cancellation_backend)
    record_property("outcomes", attempts.tally)
    assert sum(attempts.tally.values()) == cancellation_runs


async def called(subject: Subject) -> Ended:
    """Make the call; how it ended."""
    try:
        ended = Ended(RETURNED, await subject.call())
    except BaseException as error:
        ended = ended_by(error)
        subject.over(ended)
        if isinstance(error, trio.Cancelled):
            raise
    else:
        subject.over(ended)
    return ended


@blocking
@pytest.mark.parametrize("first", ["inner", "outer"])
def test_the_deadline_that_expires_first_wins(operation: Operation, first: str, cancellation_backend: Backend) -> None:
    """Of two nested scopes the one whose deadline it was catches, and the other is none the wiser."""
    clock = trio.testing.MockClock()
    books = Books()

    async def jump() -> None:
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(1)

    async def main() -> None:
        async with operation.set_up(books) as subject, trio.open_nursery() as nursery:
            nursery.start_soon(jump)
            inner_after, outer_after = (1, 2) if first == "inner" else (2, 1)
            with trio.CancelScope(deadline=trio.current_time() + outer_after) as outer:
                with trio.CancelScope(deadline=trio.current_time() + inner_after) as inner:
                    await called(subject)
                if first == "inner":
                    await trio.lowlevel.checkpoint()
            assert (inner.cancelled_caught, outer.cancelled_caught) == (first == "inner", first == "outer")
            with trio.CancelScope(shield=True):
                await subject.check(Ended(CANCELLED))

    with no_descriptor_leaked():
        cancellation_backend.run(main, clock=clock)


def kernel_entries() -> int:
    """System calls of the backend's ring, where it has one."""
    return int(getattr(trio.lowlevel.current_statistics().io_statistics, "kernel_entries", 0))


MOMENT_OF_SLEEP = 0.06  # seconds; a loop that does not sleep goes round thousands of times


@blocking
@pytest.mark.parametrize("cancelled", [False, True], ids=["waiting", "cancelled behind a shield"])
def test_no_busy_loop(operation: Operation, cancelled: bool, cancellation_backend: Backend) -> None:
    """While a call waits the loop sleeps, whether or not somebody would like to cancel it."""
    hooks = Hooks()
    books = Books()
    effort: dict[str, float] = {}

    async def watch(scope: trio.CancelScope, subject: Subject, over: trio.Event) -> None:
        await trio.testing.wait_all_tasks_blocked()
        if cancelled:
            scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        rounds, entries, processor = hooks.rounds, kernel_entries(), time.process_time()
        await trio.sleep(MOMENT_OF_SLEEP)
        effort["processor"] = time.process_time() - processor
        effort["rounds"] = hooks.rounds - rounds
        effort["entries"] = kernel_entries() - entries
        while operation.completes and not over.is_set():
            subject.complete()
            await trio.testing.wait_all_tasks_blocked(0.0005)
        if not operation.completes:
            scope.shield = False
            scope.cancel()

    async def main() -> None:
        over = trio.Event()
        async with operation.set_up(books) as subject, trio.open_nursery() as nursery:
            ended = Ended(CANCELLED)
            with trio.CancelScope() as outer, trio.CancelScope(shield=True) as inner:
                nursery.start_soon(watch, outer if operation.completes else inner, subject, over)
                ended = await called(subject)
            over.set()
            assert ended.kind == (RETURNED if operation.completes else CANCELLED)
            await subject.check(ended)

    with no_descriptor_leaked():
        cancellation_backend.run(main, instruments=[hooks])
    books.check()
    assert effort["rounds"] <= 20
    assert effort["entries"] <= 20
    assert effort["processor"] < MOMENT_OF_SLEEP / 2


MANY = 12  # more than a small submission queue holds, with their cancels


@blocking
@pytest.mark.parametrize("when", ["queued", "blocked"])
def test_many_at_once(operation: Operation, when: str, cancellation_backend: Backend) -> None:
    """Many calls cancelled in one tick: no cancel is lost (F12)."""
    books = Books()

    async def main() -> None:
        ends: list[Ended] = []

        async def one(subject: Subject) -> None:
            try:
                await called(subject)
            except trio.Cancelled:
                ends.append(Ended(CANCELLED, trio.Cancelled))
                raise

        async with contextlib.AsyncExitStack() as stack:
            subjects = [await stack.enter_async_context(operation.set_up(books)) for _ in range(MANY)]
            async with trio.open_nursery() as nursery:
                for subject in subjects:
                    nursery.start_soon(one, subject)
                await trio.lowlevel.checkpoint()
                if when == "blocked":
                    await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            for subject, ended in zip(subjects, ends, strict=True):
                await subject.check(ended)

    with no_descriptor_leaked():
        cancellation_backend.run(main)
    books.check()


class BreakingClock(trio.abc.Clock):
    """A clock that fails when it is told to, and the run's loop with it: before it waits, or after it has handed out what is
    ready.
    """

    def __init__(self) -> None:
        self.fails_before = self.fails_after = False

    def start_clock(self) -> None:
        """Nothing to do."""

    def current_time(self) -> float:
        """Seconds; what the loop asks when it is back."""
        if self.fails_after:
            raise ZeroDivisionError("the clock is broken")
        return time.monotonic()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Seconds; what the loop asks before it waits."""
        if self.fails_before:
            raise ZeroDivisionError("the clock is broken")
        return deadline - time.monotonic()


@contextlib.contextmanager
def collected_in_silence() -> Iterator[list[weakref.ref[trio.lowlevel.Task]]]:
    """What a run that broke down leaves behind is collected; Trio's complaints about it are expected.

    Yields a list, for tasks of the run: a thread that works for one of them keeps them until it is done.
    """
    tasks: list[weakref.ref[trio.lowlevel.Task]] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield tasks
            gc.collect()
            gc.collect()
            bound = time.monotonic() + PATIENCE
            while any(task() is not None for task in tasks) and time.monotonic() < bound:
                time.sleep(0.001)
                gc.collect()
    finally:
        sys.unraisablehook = before


@pytest.mark.parametrize(
    "operation", [each for each in OPERATIONS if each.blocks and each.closable], ids=lambda operation: operation.name
)
@pytest.mark.parametrize("state", ["waiting", "completing", "reaped"])
def test_the_run_breaks_down(operation: Operation, state: str, cancellation_backend: Backend) -> None:
    """The loop dies under a call that nobody will resume: the kernel has let go, and a descriptor that comes late is closed."""
    books = Books()
    clock = BreakingClock()
    subjects: list[Subject] = []

    async def main() -> None:
        subjects.append(operation.subject(books))
        tasks.append(weakref.ref(trio.lowlevel.spawn_system_task(subjects[0].call)))
        await trio.testing.wait_all_tasks_blocked()
        if state != "waiting":
            subjects[0].complete()
        if state == "reaped":
            clock.fails_after = True
        else:
            clock.fails_before = True
        await trio.lowlevel.checkpoint()

    async def afterwards() -> None:
        (subject,) = subjects
        if state == "waiting":
            subject.complete()
            await trio.lowlevel.checkpoint()
            subject.over(Ended(CANCELLED))
            await subject.check(Ended(CANCELLED, KeyboardInterrupt))
            books.check()
        await subject.clear()

    with no_descriptor_leaked():
        with collected_in_silence() as tasks, pytest.raises(trio.TrioInternalError):
            cancellation_backend.run(main, clock=clock)
        cancellation_backend.run(afterwards)
