"""The tables of moments and causes, and one attempt: an operation that is ended at a moment by a cause.

Knows Trio's scheduler as its instruments show it; knows nothing of what the operations do.

How a moment is forced. Trio calls its instruments at fixed points of its loop, the same in every backend. A moment is a script:
at this point, do that. The points, in the order of a loop:

    "start"     the task is about to make its call
    "asleep"    the call has given control to the scheduler: its entry is queued, if there is one
    "before io" the loop is about to submit and to wait
    "after io"  what was ready has been handed out, and no task has run yet
    "resuming"  the task of the call is the next to run
    "blocked"   everything is asleep

What can be done: "fire" the cause, "complete" what the call waits for, cancel it by an "earlier" scope of its own.
"""

from __future__ import annotations

import contextlib
import math
import queue
import random
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio
import trio.testing

from ._operations import CANCELLED, CLOSED, RETURNED, Books, Ended, Operation, Subject, ended_by

if TYPE_CHECKING:
    from . import Backend

PATIENCE: Final = 30.0  # seconds, from the cause to the end of the call; not a measure of speed
LATER: Final = 0.0003  # seconds until a deadline in the future


class Moment(NamedTuple):
    """When: a script of points and actions, and what it means for the outcome.

    Attributes:
      meets: "before" the call, the call is "unfinished", cancel and completion are "racing", or the task is "resuming".
      earlier: whether the call is cancelled by another scope first.
    """

    name: str
    script: tuple[tuple[str, tuple[str, ...]], ...]
    meets: str
    earlier: bool = False


MOMENTS: Final[list[Moment]] = [
    Moment("before the call", (("start", ("fire",)),), "before"),
    Moment("before the call, and ready", (("start", ("complete", "fire")),), "before"),
    Moment("as it falls asleep", (("asleep", ("fire",)),), "unfinished"),
    Moment("queued, not submitted", (("asleep", ()), ("before io", ("fire",))), "unfinished"),
    Moment("queued, completing", (("asleep", ()), ("before io", ("complete", "fire"))), "racing"),
    Moment("submitted", (("asleep", ()), ("after io", ("fire",))), "unfinished"),
    Moment("submitted, completing", (("asleep", ()), ("after io", ("fire", "complete"))), "racing"),
    Moment("blocked", (("blocked", ("fire",)),), "unfinished"),
    Moment("completing, then cancelled in the same tick", (("blocked", ("complete", "fire")),), "racing"),
    Moment("cancelled, then completing in the same tick", (("blocked", ("fire", "complete")),), "racing"),
    Moment("completed, not yet reaped", (("blocked", ("complete",)), ("before io", ("fire",))), "racing"),
    Moment("reaped, task not yet resumed", (("blocked", ("complete",)), ("after io", ("fire",))), "racing"),
    Moment("resuming", (("blocked", ("complete",)), ("resuming", ("fire",))), "resuming"),
    Moment("queued, cancelled earlier", (("asleep", ("earlier",)), ("before io", ("fire",))), "unfinished", True),
    Moment("blocked, cancelled earlier", (("blocked", ("earlier", "fire")),), "unfinished", True),
    Moment("cancelled earlier, and completing", (("blocked", ("earlier", "complete", "fire")),), "racing", True),
    Moment(
        "cancelled earlier, reaped, not yet resumed",
        (("blocked", ("earlier",)), ("after io", ("complete", "fire"))),
        "racing",
        True,
    ),
]


class Hooks(trio.abc.Instrument):
    """Tells the current attempt where the loop is, and counts its rounds."""

    def __init__(self) -> None:
        self.attempt: Attempt | None = None
        self.rounds = 0

    def _reach(self, point: str, task: trio.lowlevel.Task | None = None) -> None:
        attempt = self.attempt
        if attempt is not None and attempt.under_way and task in (None, attempt.task):
            attempt.reach(point)

    def before_io_wait(self, timeout: float) -> None:
        self.rounds += 1
        self._reach("before io")

    def after_io_wait(self, timeout: float) -> None:
        self._reach("after io")

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._reach("resuming", task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._reach("asleep", task)


class Attempt:
    """One call, to be ended at a moment by a cause.

    Attributes:
      fire: the cause strikes; set by the cause.
      ended: how the call ended; None until then.
      under_way: the call has been made and has not ended.
      fired: whether the cause has struck.
    """

    def __init__(self, operation: Operation, subject: Subject, moment: Moment, cause: Cause) -> None:
        self.operation = operation
        self.subject = subject
        self.moment = moment
        self.cause = cause
        self.script = list(moment.script)
        self.fire: Callable[[], None] = lambda: None
        self.fired = False
        self.fired_at = math.inf
        self.ended: Ended | None = None
        self.ended_at = math.inf
        self.over = trio.Event()
        self.under_way = False
        self.task: trio.lowlevel.Task | None = None
        self.earlier = trio.CancelScope()
        self.lock = threading.Lock()
        self.error: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.operation.name}: {self.moment.name}, {self.cause.name}"

    def reach(self, point: str) -> None:
        """The loop is at this point: do what the script says."""
        if not self.script or self.script[0][0] != point:
            return
        _, actions = self.script.pop(0)
        for action in actions:
            self.do(action)
        if point == "before io":
            # The loop has settled how long to sleep: like a signal handler, whoever strikes here has to wake it.
            trio.lowlevel.current_trio_token().run_sync_soon(bool)

    def do(self, action: str) -> None:
        """One action. Instruments must not raise, so an error is kept, and the call is ended."""
        try:
            if action == "fire":
                self.strike()
            elif action == "complete":
                self.complete()
            else:
                self.earlier.cancel()
        except BaseException as error:
            self.error = error
            self.earlier.cancel()

    def complete(self) -> None:
        """Let the call complete, or go on; any thread, if the operation allows it."""
        with self.lock:
            self.subject.complete()

    def strike(self) -> None:
        """Let the cause strike, once."""
        if not self.fired:
            self.fired = True
            self.fired_at = time.monotonic()
            self.fire()

    @trio.lowlevel.enable_ki_protection
    async def perform(self) -> None:
        """Make the call in this task, and note how it ended; then wait for the cause, if it is one that cancels.

        Protected, so that a KeyboardInterrupt strikes where it may, in the call.
        """
        self.task = trio.lowlevel.current_task()
        self.reach("start")
        if self.fired:
            await self.cause.effective()
        with self.earlier:
            self.under_way = True
            try:
                self._end(Ended(RETURNED, await self.subject.call()))
            except BaseException as error:
                self._end(ended_by(error))
                if isinstance(error, (trio.Cancelled, KeyboardInterrupt)):
                    raise
        if self.cause.cancels:
            # The cause has not been forgotten: what it did not do to the call it does to whatever comes next.
            self.strike()
            await trio.sleep_forever()

    def _end(self, ended: Ended) -> None:
        self.under_way = False
        self.ended_at = time.monotonic()
        self.ended = ended
        self.subject.over(ended)
        self.over.set()

    async def control(self) -> None:
        """A task beside it: does what is to be done when everything sleeps, and lets complete what nobody cancels."""
        await trio.testing.wait_all_tasks_blocked()
        if self.under_way:
            self.reach("blocked")
        # A call that nobody cancels goes on to its end. So does one that has more to do before its task resumes.
        while self.ended is None and (self.cause.word is None or self.script):
            await trio.testing.wait_all_tasks_blocked(0.0005)
            self.do("complete")
        with trio.move_on_after(PATIENCE):
            await self.over.wait()
        if self.ended is None:
            # A backend that forgets a cancel fails, and does not hang, where a call can still be made to end.
            self.error = AssertionError(f"the call has not ended {PATIENCE:g} seconds after the cause")
        while self.ended is None:
            self.do("complete")
            await trio.testing.wait_all_tasks_blocked(0.0005)

    def allowed(self) -> frozenset[str]:
        """How it may end."""
        word = self.cause.word
        if self.moment.meets == "before":
            chosen = frozenset({CANCELLED})
        else:
            chosen = {
                "unfinished": self.operation.unfinished,
                "racing": self.operation.racing,
                "resuming": self.operation.resuming,
            }[self.moment.meets]
        if word is None:
            chosen = frozenset({RETURNED})
        elif word == CLOSED:  # at any time: where the call tries again after a wait, it finds the resource closed
            chosen = chosen - {CANCELLED} | {CLOSED}
        return chosen | {CANCELLED} if self.moment.earlier else chosen

    async def verify(self) -> None:
        """Whatever was promised was kept."""
        if self.error is not None:
            raise self.error
        assert self.ended is not None, "the call never ended"
        if self.ended.kind not in self.allowed():
            error = self.ended.value if isinstance(self.ended.value, BaseException) else None
            raise AssertionError(f"{self.ended} is none of {set(self.allowed())}") from error
        await self.subject.check(self.ended)
        assert self.ended_at - self.fired_at < PATIENCE, "it took too long"


# ------------------------------------------------------------------ causes


class Cause:
    """What ends a call.

    Attributes:
      name: in words.
      word: how a call ends that it ends: CANCELLED, CLOSED, or None where it must not end it.
      cancels: whether it cancels the task's next call, where the one under test is over already.
      moments: whether it can strike at a moment.
    """

    name = ""
    word: str | None = CANCELLED
    cancels = True

    def fits(self, operation: Operation, moment: Moment) -> bool:
        """Whether it can end this operation at this moment."""
        if not operation.completes:
            scripted = any("complete" in actions for _, actions in moment.script)
            return self.word is not None and not scripted
        return True

    async def surround(self, attempt: Attempt) -> None:
        """Set `attempt.fire`, perform the attempt in whatever surroundings the cause needs, and check these."""
        raise NotImplementedError

    async def effective(self) -> None:
        """Return when the cause, having struck, would end a call."""
        for _ in range(10_000):
            if trio.current_effective_deadline() == -math.inf:
                return
            await trio.lowlevel.cancel_shielded_checkpoint()
        raise AssertionError("the cause has no effect")

    def run(self, backend: Backend, attempts: Attempts) -> None:
        """Run attempts one after the other."""
        backend.run(attempts.main, instruments=[attempts.hooks])


class ByAnotherTask(Cause):
    """The scope is cancelled by somebody else."""

    name = "scope cancelled by another task"

    async def surround(self, attempt: Attempt) -> None:
        with trio.CancelScope() as scope:
            attempt.fire = scope.cancel
            await attempt.perform()
        assert scope.cancelled_caught


class ByItself(Cause):
    """The task cancels its own scope; it can do so before the call alone."""

    name = "scope cancelled by itself"

    def fits(self, operation: Operation, moment: Moment) -> bool:
        return moment.meets == "before" and super().fits(operation, moment)

    async def surround(self, attempt: Attempt) -> None:
        with trio.CancelScope() as scope:
            _, actions = attempt.script.pop()
            if "complete" in actions:
                attempt.do("complete")
            attempt.fired = True
            scope.cancel()
            await attempt.perform()
        assert scope.cancelled_caught


class Deadline(Cause):
    """The scope gets a deadline, relative to now in seconds."""

    def __init__(self, name: str, after: float) -> None:
        self.name = name
        self.after = after

    async def surround(self, attempt: Attempt) -> None:
        with trio.CancelScope() as scope:

            def fire() -> None:
                scope.deadline = trio.current_time() + self.after

            attempt.fire = fire
            await attempt.perform()
        assert scope.cancelled_caught


class SiblingFails(Cause):
    """Another task of the nursery fails."""

    name = "a sibling's failure"

    async def surround(self, attempt: Attempt) -> None:
        failing = trio.Event()
        failure = RuntimeError("the sibling has failed")

        async def sibling() -> None:
            await failing.wait()
            raise failure

        attempt.fire = failing.set
        caught: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sibling)
                await trio.lowlevel.cancel_shielded_checkpoint()
                await attempt.perform()
        except BaseException as error:
            caught = error
            if not hasattr(error, "exceptions") or error.exceptions != (failure,):
                raise
        assert caught is not None, "the sibling's failure was lost"


class Nested(Cause):
    """The outermost of three scopes is cancelled: it alone catches."""

    name = "outermost of nested scopes cancelled"

    async def surround(self, attempt: Attempt) -> None:
        with trio.CancelScope() as outer:
            attempt.fire = outer.cancel
            with trio.CancelScope() as middle, trio.CancelScope() as inner:
                await attempt.perform()
        assert (outer.cancelled_caught, middle.cancelled_caught, inner.cancelled_caught) == (True, False, False)


class Shielded(Cause):
    """A scope outside of a shield is cancelled: the call goes on to its end, and what follows the shield is cancelled."""

    name = "scope outside of a shield cancelled"
    word = None
    cancels = False

    async def effective(self) -> None:
        """At once: what it must not do is what matters."""

    async def surround(self, attempt: Attempt) -> None:
        with trio.CancelScope() as outer:
            attempt.fire = outer.cancel
            with trio.CancelScope(shield=True) as inner:
                await attempt.perform()
            attempt.strike()
            await trio.sleep_forever()
        assert outer.cancelled_caught
        assert not inner.cancelled_caught


class Unshielded(Cause):
    """A scope is cancelled before, outside of a shield, and the shield goes away."""

    name = "scope un-shielded late"

    async def surround(self, attempt: Attempt) -> None:
        with trio.CancelScope() as outer:
            outer.cancel()
            with trio.CancelScope(shield=True) as inner:

                def fire() -> None:
                    inner.shield = False

                attempt.fire = fire
                await attempt.perform()
        assert outer.cancelled_caught
        assert not inner.cancelled_caught


class BySameTick(Cause):
    """An Event is set, and the task that waits for it cancels the scope, in the tick in which others run too."""

    name = "an Event set in the same tick"

    async def surround(self, attempt: Attempt) -> None:
        event = trio.Event()

        async def waiter(scope: trio.CancelScope) -> None:
            await event.wait()
            scope.cancel()

        attempt.fire = event.set
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(waiter, scope)
                await trio.lowlevel.cancel_shielded_checkpoint()
                await attempt.perform()
            assert scope.cancelled_caught


class Interrupt(Cause):
    """KeyboardInterrupt: SIGINT, in the main task."""

    name = "KeyboardInterrupt"

    async def surround(self, attempt: Attempt) -> None:
        attempt.fire = interrupt
        interrupted = False
        try:
            await attempt.perform()
        except KeyboardInterrupt:
            interrupted = True
        assert interrupted, "the KeyboardInterrupt was lost"

    async def effective(self) -> None:
        """At once: it waits for the next checkpoint."""

    def run(self, backend: Backend, attempts: Attempts) -> None:
        """As Trio leaves SIGINT alone where Python does, in a process that was started to ignore it: not in this run."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            super().run(backend, attempts)
        finally:
            signal.signal(signal.SIGINT, before)


@trio.lowlevel.enable_ki_protection
def interrupt() -> None:
    """SIGINT to this process; its handler has run when this returns."""
    signal.raise_signal(signal.SIGINT)


class Close(Cause):
    """What the call is made on is closed under it."""

    name = "closing the resource"
    word = CLOSED
    cancels = False

    def fits(self, operation: Operation, moment: Moment) -> bool:
        # A call on what is closed already is not for this suite. And as it falls asleep it is still the current task, which
        # would count as closing its own descriptor.
        itself = any(point == "asleep" and "fire" in actions for point, actions in moment.script)
        return operation.closable and moment.meets != "before" and not itself and super().fits(operation, moment)

    async def surround(self, attempt: Attempt) -> None:
        attempt.fire = attempt.subject.close
        await attempt.perform()


class EndOfRun(Cause):
    """The main task returns, and the call is a system task's. One run for each attempt."""

    name = "the end of the run"

    async def surround(self, attempt: Attempt) -> None:
        await attempt.perform()

    def run(self, backend: Backend, attempts: Attempts) -> None:
        for make in attempts.each():
            backend.run(self._main, attempts, make, instruments=[attempts.hooks])
            attempts.books.check()
        attempts.finished()

    async def _main(self, attempts: Attempts, make: Callable[[Subject], Attempt]) -> None:
        await attempts.begin()
        over = trio.Event()
        made = trio.Event()
        controller = trio.CancelScope()

        async def system() -> None:
            async with attempts.operation.set_up(attempts.books) as subject:
                attempts.hooks.attempt = attempt = make(subject)
                attempt.fire = over.set
                made.set()
                try:
                    await self.surround(attempt)
                finally:
                    with trio.CancelScope(shield=True):
                        await attempts.settle(attempt)
                        await attempts.judge(attempt)

        async def control() -> None:
            await made.wait()
            assert attempts.hooks.attempt is not None
            with controller:
                await attempts.control(attempts.hooks.attempt)

        trio.lowlevel.spawn_system_task(system)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control)
            await over.wait()
            controller.cancel()


class Guest(Cause):
    """A callback of the host of a guest run cancels the scope, between two ticks."""

    name = "a guest-mode host callback"

    def __init__(self) -> None:
        self.todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

    async def surround(self, attempt: Attempt) -> None:
        with trio.CancelScope() as scope:
            attempt.fire = lambda: self.todo.put(scope.cancel)
            await attempt.perform()
        assert scope.cancelled_caught

    def run(self, backend: Backend, attempts: Attempts) -> None:
        ended: list[Any] = []
        backend.start_guest_run(
            attempts.main,
            run_sync_soon_threadsafe=self.todo.put,
            done_callback=ended.append,
            instruments=[attempts.hooks],
        )
        while not ended:
            self.todo.get(timeout=PATIENCE)()
        ended[0].unwrap()


CAUSES: Final[list[Callable[[], Cause]]] = [
    ByAnotherTask,
    ByItself,
    lambda: Deadline("a deadline in the past", -1),
    lambda: Deadline("a deadline in the future", LATER),
    SiblingFails,
    Nested,
    Shielded,
    Unshielded,
    BySameTick,
    Interrupt,
    Close,
    EndOfRun,
    Guest,
]


# ------------------------------------------------------------------ many attempts


class Helper:
    """A thread that does things at their time."""

    def __init__(self) -> None:
        self.todo: queue.SimpleQueue[tuple[float, Callable[[], None]] | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.todo.get()) is not None:
            due, action = job
            time.sleep(max(0.0, due - time.monotonic()))
            error: BaseException | None = None
            try:
                action()
            except BaseException as caught:
                error = caught
            self.done.put(error)

    def finish(self) -> None:
        """Wait until the job is done; raises what it raised."""
        error = self.done.get(timeout=PATIENCE)
        if error is not None:
            raise error

    def stop(self) -> None:
        """End the thread."""
        self.todo.put(None)
        self.thread.join(PATIENCE)


RACE: Final = Moment("in a race", (), "racing")

# Seconds. A call's own way through the kernel and Trio takes about 50 microseconds.
SWEEP: Final = (0.0, 0.00002, 0.00005, 0.0001, 0.0002)


class Attempts:
    """A series of attempts of one operation and one cause, one after the other.

    Args:
      moments: scripted ones.
      races: how many attempts to make besides in which cause and completion come at swept times, in one thread or in two.

    Attributes:
      tally: how often each outcome came.
      not_theirs: entries in flight that are not the attempts'.
    """

    def __init__(self, operation: Operation, cause: Cause, moments: Sequence[Moment] = (), races: int = 0) -> None:
        self.operation = operation
        self.cause = cause
        self.moments = [moment for moment in moments if cause.fits(operation, moment)]
        self.races = races
        self.chance = random.Random(races)
        self.books = Books()
        self.hooks = Hooks()
        self.tally: dict[str, int] = {}
        self.not_theirs = 0
        self.helper: Helper | None = Helper() if races and operation.threadsafe and operation.completes else None
        self.helped = False

    def each(self) -> Iterable[Callable[[Subject], Attempt]]:
        """What makes each attempt out of its subject."""
        moments = [*self.moments, *[RACE] * self.races]
        return [lambda subject, m=moment: Attempt(self.operation, subject, m, self.cause) for moment in moments]  # type: ignore[misc]

    async def main(self) -> None:
        """The main task of a run that makes them all."""
        await self.begin()
        for make in self.each():
            async with self.operation.set_up(self.books) as subject:
                attempt = make(subject)
                self.hooks.attempt = attempt
                async with self.controlled(attempt):
                    await self.cause.surround(attempt)
                await self.settle(attempt)
                await self.judge(attempt)
        self.finished()

    async def begin(self) -> None:
        """A run of attempts begins: what is in flight in it now is not theirs."""
        await trio.testing.wait_all_tasks_blocked()  # Trio's own tasks have begun to wait
        self.not_theirs = in_flight()

    @contextlib.asynccontextmanager
    async def controlled(self, attempt: Attempt) -> AsyncIterator[None]:
        """With the controlling task beside it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.control, attempt)
            yield
            nursery.cancel_scope.cancel()

    async def control(self, attempt: Attempt) -> None:
        """The controlling task."""
        if attempt.moment is RACE:
            await self.race(attempt)
        await attempt.control()

    async def race(self, attempt: Attempt) -> None:
        """Let complete and strike, each at a time of its own."""
        chance = self.chance
        if self.helper is not None and chance.random() < 0.6:
            self.helped = True
            self.helper.todo.put((time.monotonic() + chance.choice(SWEEP) * chance.random(), attempt.complete))
            if chance.random() < 0.8:
                await trio.sleep(chance.choice(SWEEP) * chance.random())
            attempt.do("fire")
            return
        turns = chance.randrange(5), chance.randrange(5)
        for turn in range(5):
            for number, action in enumerate(("complete", "fire")):
                if turn == turns[number] and (number or self.operation.completes):
                    attempt.do(action)
            await trio.lowlevel.checkpoint()

    async def settle(self, attempt: Attempt) -> None:
        """It is over: nothing of it stays in flight. Before anything is closed: a close would end what was forgotten."""
        self.hooks.attempt = None
        for turn in range(1000):
            if in_flight() == self.not_theirs:
                break
            # Most have ended after a checkpoint or two; what is slow gets a loop that sleeps, and time.
            await trio.sleep(0.001 if turn > 100 else 0)
        assert in_flight() == self.not_theirs, f"{attempt}: something is still in flight"

    async def judge(self, attempt: Attempt) -> None:
        """Look at everything."""
        try:
            if self.helped and self.helper is not None:
                self.helped = False
                self.helper.finish()
            await attempt.verify()
        except Exception as error:
            raise AssertionError(f"{attempt}: {error}") from error
        assert attempt.ended is not None
        self.tally[attempt.ended.kind] = self.tally.get(attempt.ended.kind, 0) + 1

    def finished(self) -> None:
        """All are over."""
        self.books.check()

    def run(self, backend: Backend) -> None:
        """Make them."""
        try:
            self.cause.run(backend, self)
        finally:
            if self.helper is not None:
                self.helper.stop()


def in_flight() -> int:
    """Entries that the kernel has not ended yet, where the backend has such a number."""
    return int(getattr(trio.lowlevel.current_statistics().io_statistics, "operations_in_flight", 0))
