"""Layer 5, observing: what every ring of this process is doing, and how fast. Knows all layers below, and changes none.

A snapshot must come out of a process that hangs, so it takes nothing from it: it may be taken by any thread and in a signal
handler, holds no lock, never enters the ring and reads only memory: the books of the managers, the counters, the frames
of the tasks. In another thread than the run's it is a best effort, as the run goes on meanwhile.

Costs
=====
Nothing here costs a run anything unless asked for. An operation does not know when it began nor, where its class does not say,
what it is: that would be paid for by all of them. Both are found out afterwards:

- The kind stands in the frame of the task, as the variable `opcode` of the function of ours that it sleeps in.
- The age comes from a `RingMonitor`, which looks once in each interval which operations are in flight. A task that still
  sleeps in the same operation, with as many schedule points behind it, has slept since the look that first saw it. Ages
  are therefore lower bounds, too low by an interval at most, and start when the monitor does.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import os
import platform
import select
import socket
import sys
import threading
import time
import traceback
import types
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Final, TextIO

import attrs
import trio
from trio._core import _run

from .._loop.manager import UringIOManager
from .._loop.operation import GLOBAL_RUN_CONTEXT, Poll, raise_closed
from .._ring import ring as _ring
from .._version import __version__

_PACKAGE: Final = "trio_uring"
_log = logging.getLogger(_PACKAGE)
_OPCODES: Final = {value: name[3:].lower() for name, value in vars(_ring).items() if name.startswith("OP_")}
_COUNTERS: Final = ("submitted", "completed", "cancelled", "inflight", "enters", "sq_flushes", "cq_overflows")
_SHOWN: Final = 10  # descriptors of one group that the text says more of than the number


@attrs.frozen
class OperationSnapshot:
    """One operation in flight.

    Attributes:
      kind: what the kernel was asked for: "recv", "send", "accept", "read", "statx", "poll in", "poll out" and so on.
      state: "waiting"; "cancelling", where Trio has asked for it to end; "closing", where its descriptor is being closed;
        "abandoned", where no task waits for it any more. In the last three the kernel still holds it.
      fd: the descriptor; None where the operation names none (a path).
      target: what the descriptor is, with its addresses if it is a socket; for an operation on paths, these, from the directory
        of the descriptor if they name one; else None.
      age: seconds that it has been in flight, at least; None where no `RingMonitor` watches the run or it began just now.
      task: the name of the task that waits for it; None where none does.
      stack: where that task is, outermost first, a line for each frame.
    """

    kind: str
    state: str
    fd: int | None
    target: str | None
    age: float | None
    task: str | None
    stack: tuple[str, ...]


@attrs.frozen
class TaskSnapshot:
    """A task that waits for something else than the ring: a lock, a channel, a thread, another task, a deadline.

    Attributes:
      name: its name.
      stack: as in `OperationSnapshot`.
      running: whether it is the task that runs now.
    """

    name: str
    stack: tuple[str, ...]
    running: bool


@attrs.frozen
class RingSnapshot:
    """One run on the ring.

    Attributes:
      ring: the ring's descriptor.
      thread: the name of the thread that the run is in.
      waiting: whether the run's loop is asleep in the kernel; if not, some task is running.
      since: seconds for which that has been so; None where no `RingMonitor` watches the run.
      loop: the stack of what the loop is running; empty if it is asleep.
      counters: "submitted", "completed", "cancelled", "inflight", "enters", "sq_flushes", "cq_overflows" (`UringStatistics`).
      operations: the operations in flight.
      tasks: the tasks that wait for something else.
    """

    ring: int
    thread: str
    waiting: bool
    since: float | None
    loop: tuple[str, ...]
    counters: Mapping[str, int]
    operations: tuple[OperationSnapshot, ...]
    tasks: tuple[TaskSnapshot, ...]


@attrs.frozen
class RingRates:
    """What a ring did in an interval.

    Attributes:
      seconds: how long the interval was.
      submitted, completed, cancelled: operations per second.
      kernel_entries: io_uring_enter(2) calls per second.
      ticks: turns of Trio's loop per second.
      busy: the share of the interval, 0 to 1, that the loop's thread did not sleep in the kernel.
      in_flight: operations in flight at the end, by kind; see `OperationSnapshot.kind`.
    """

    seconds: float
    submitted: float
    completed: float
    cancelled: float
    kernel_entries: float
    ticks: float
    busy: float
    in_flight: Mapping[str, int]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.in_flight.items())) or "none"
        return (
            f"{self.submitted:,.0f} submitted/s, {self.completed:,.0f} completed/s, {self.cancelled:,.0f} cancelled/s, "
            f"{self.kernel_entries:,.0f} kernel entries/s, {self.ticks:,.0f} ticks/s, {self.busy:.0%} busy; in flight: {kinds}"
        )


# ------------------------------------------------------------------ the monitor

_monitors: weakref.WeakSet[RingMonitor] = weakref.WeakSet()


class RingMonitor(trio.abc.Instrument):
    """An instrument that knows how fast a run's ring works, and for how long its operations have been in flight.

    One for each run: `trio.run(main, instruments=[monitor])`, or `trio.lowlevel.add_instrument(monitor)` in the run. In
    a run that is not on the ring it does nothing. ::

        async for rates in monitor:
            print(rates)

    Args:
      interval: seconds between two looks at what is in flight, and between two `RingRates`. A look costs about a microsecond for
        each operation in flight; a turn of Trio's loop costs two readings of the clock.

    Raises:
      ValueError: an interval that is not more than 0.
    """

    def __init__(self, interval: float = 1.0) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be more than 0 seconds, not {interval}")
        self.interval = interval
        self._manager: UringIOManager | None = None
        self._due = -math.inf
        self._ticks = 0
        self._slept = 0.0
        self._asleep = False
        self._last_transition = 0.0  # when the loop last went to sleep or woke
        self._overflows = 0
        # What is in flight -> when it was first seen there.
        self._seen: dict[tuple[int, int, int], float] = {}
        _monitors.add(self)

    def before_run(self) -> None:
        """`trio.abc.Instrument`."""
        self._attach()

    def before_io_wait(self, timeout: float) -> None:
        """`trio.abc.Instrument`."""
        self._last_transition = time.monotonic()
        self._asleep = True

    def after_io_wait(self, timeout: float) -> None:
        """`trio.abc.Instrument`."""
        now = time.monotonic()
        if self._asleep:  # else it was made an instrument in the tick that ends here
            self._slept += now - self._last_transition
            if now >= self._due:
                self._due = now + self.interval
                self._look(began=self._last_transition)
            self._asleep = False
        self._last_transition = now
        self._ticks += 1

    def after_run(self) -> None:
        """`trio.abc.Instrument`."""
        self._manager = None
        self._seen = {}
        self._due = -math.inf

    def _attach(self) -> None:
        manager = GLOBAL_RUN_CONTEXT.runner.io_manager
        if isinstance(manager, UringIOManager):
            self._manager = manager

    def _look(self, began: float) -> None:
        """What is in flight now, after a sleep, was so when the sleep began, or before."""
        if self._manager is None:
            self._attach()
        if self._manager is None:
            return
        self._seen = {mark: self._seen.get(mark, began) for mark in map(_mark, _in_flight(self._manager))}
        overflows = self._manager.ring.counters().cq_overflows
        if overflows != self._overflows:
            _log.debug(
                "ring %d: the completion queue has overflowed %d times; nothing is lost, and larger cq_entries are faster",
                self._manager.ring.fileno(),
                overflows,
            )
            self._overflows = overflows

    def watches(self, manager: UringIOManager) -> bool:
        """Whether this is the run that it is an instrument of."""
        return self._manager is manager

    def age(self, operation: Any, now: float) -> float | None:
        """Seconds, at least, that an operation has been in flight; `now` is time.monotonic()."""
        began = self._seen.get(_mark(operation))
        if began is None and self._asleep:
            began = self._last_transition  # nothing can have begun since then
        return None if began is None else max(0.0, now - began)

    def since(self, now: float) -> float:
        """Seconds for which the loop has been asleep, or awake."""
        return max(0.0, now - self._last_transition)

    def __aiter__(self) -> AsyncIterator[RingRates]:
        """The rates of each interval, when it is over. To be used in the run that it is an instrument of.

        Raises:
          RuntimeError: the run is not on the ring, or the monitor is not an instrument of it.
        """
        return _Rates(self)

    def reading(self) -> dict[str, float]:
        """The counters of the ring and of the loop, the time that the loop has slept, and the time, in seconds."""
        manager = GLOBAL_RUN_CONTEXT.runner.io_manager
        if not isinstance(manager, UringIOManager):
            raise RuntimeError("this run is not on the ring: run it with io_backend='uring'")
        if self not in GLOBAL_RUN_CONTEXT.runner.instruments.get("before_io_wait", ()):
            raise RuntimeError(
                "this RingMonitor is not an instrument of this run: trio.lowlevel.add_instrument(monitor)"
            )
        self._manager = manager
        return {**_counters(manager.ring), "time": time.monotonic(), "ticks": self._ticks, "slept": self._slept}


class _Rates:
    """The iterator of a `RingMonitor`. No asynchronous generator: leaving the loop early leaves nothing behind."""

    def __init__(self, monitor: RingMonitor) -> None:
        self._monitor = monitor
        self._before = monitor.reading()

    def __aiter__(self) -> _Rates:
        return self

    async def __anext__(self) -> RingRates:
        await trio.sleep(self._monitor.interval)
        now = self._monitor.reading()
        seconds = now["time"] - self._before["time"]
        change = {name: (now[name] - self._before[name]) / seconds for name in now}
        self._before = now
        operations = _in_flight(GLOBAL_RUN_CONTEXT.runner.io_manager)
        return RingRates(
            seconds=seconds,
            submitted=change["submitted"],
            completed=change["completed"],
            cancelled=change["cancelled"],
            kernel_entries=change["enters"],
            ticks=change["ticks"],
            busy=min(max(1 - change["slept"], 0.0), 1.0),
            in_flight=dict(Counter(_kind(operation, _frames(operation.task)) for operation in operations)),
        )


def _mark(operation: Any) -> tuple[int, int, int]:
    """Equal for two looks if and only if the operation is still the same flight: a task sleeps once in each."""
    task = operation.task
    return (
        (operation.user_data, task._counter, task._schedule_points) if task is not None else (operation.user_data, 0, 0)
    )


# ------------------------------------------------------------------ the snapshot


def _counters(ring: _ring.Ring) -> dict[str, int]:
    counters = ring.counters()
    return {name: getattr(counters, name) for name in _COUNTERS}


def _in_flight(manager: UringIOManager) -> list[Any]:
    """The operations in the books."""
    return list(manager.operations.values())


def _frames(task: Any) -> list[tuple[Any, int]]:
    """The frames of a task with their lines, outermost first; empty for none."""
    return [] if task is None else list(task.iter_await_frames())


def _kind(operation: Any, frames: Iterable[tuple[Any, int]]) -> str:
    if isinstance(operation, Poll):
        return "poll in" if operation.events & select.POLLIN else "poll out"
    for frame, _ in reversed(list(frames)):
        if not _is_ours(frame):
            break
        opcode = frame.f_locals.get("opcode")
        if opcode is not None:
            return _OPCODES.get(opcode, f"opcode {opcode}")
    if operation.kinds is None:
        return type(operation).__name__.lower()
    kind: str = operation.kinds[operation.waiters is operation.manager.writers]
    return kind


def _state(operation: Any) -> str:
    if operation.task is None:
        return "abandoned"
    reason = None if isinstance(operation, Poll) else operation.raise_cancel
    if reason is None:
        return "waiting"
    return "closing" if reason is raise_closed else "cancelling"


def _stack(frames: Iterable[tuple[Any, int]]) -> tuple[str, ...]:
    """A line for each frame; without the last ones, ours and Trio's traps, which only say that the task sleeps."""
    kept = list(frames)
    while kept and _is_inside(kept[-1][0]):
        kept.pop()
    return tuple(
        f"{entry.filename}:{entry.lineno} in {entry.name}" + (f": {entry.line}" if entry.line else "")
        for entry in traceback.StackSummary.extract(iter(kept))
    )


def _is_running(task: Any) -> bool:
    return task is not None and getattr(task.coro, "cr_running", False)


def _is_ours(frame: types.FrameType) -> bool:
    """Whether it is the code of one of the layers."""
    return str(frame.f_globals.get("__package__")).startswith(f"{_PACKAGE}._")


def _is_inside(frame: types.FrameType) -> bool:
    return _is_ours(frame) or frame.f_globals.get("__name__") == "trio._core._traps"


def _target(operation: Any) -> str | None:
    """What an operation is on."""
    path = " to ".join(filter(None, getattr(operation, "names", ())))
    if operation.fd >= 0:
        return os.path.join(_descriptor(operation.fd), path) if path else _descriptor(operation.fd)
    return path or None


def _descriptor(fd: int) -> str:
    """What a descriptor is."""
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
        if not target.startswith("socket:"):
            return target
        # A duplicate: closing that of a file could let go of its locks, closing that of a socket does nothing.
        with socket.socket(fileno=os.dup(fd)) as duplicate:
            kind = socket.SocketKind(duplicate.type).name.removeprefix("SOCK_").lower()
            family = socket.AddressFamily(duplicate.family).name.removeprefix("AF_")
            addresses = [duplicate.getsockname()]
            with contextlib.suppress(OSError):  # not connected
                addresses.append(duplicate.getpeername())
            return " ".join(
                [family, kind, "socket", " to ".join(map(_address, addresses)) if any(addresses) else ""]
            ).rstrip()
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def _address(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address) if address else "unnamed"


def _rings() -> list[_ring.Ring]:
    while True:
        try:
            return sorted((ring for ring in list(_ring._rings) if not ring.closed), key=_ring.Ring.fileno)
        except RuntimeError:  # another thread has just made or closed one
            continue


def _loop(manager: UringIOManager) -> tuple[bool, tuple[str, ...]]:
    """Whether a run's loop is asleep, and if not, the stack of what it runs.

    Found by the functions in the stacks of the threads: nothing keeps note of it. The variables of Trio's own loop are not
    looked at, because before CPython 3.13 a frame keeps what it has once shown, and with it a task that is over.
    """
    threads = sys._current_frames()
    for top in threads.values():  # as a guest it sleeps in another thread than the run's
        for frame, _ in traceback.walk_stack(top):
            if frame.f_code is UringIOManager.get_events.__code__ and frame.f_locals.get("self") is manager:
                return True, ()
    frames = list(traceback.walk_stack(threads.get(manager.thread)))
    for index, (frame, _) in enumerate(frames):
        if frame.f_code is _run.unrolled_run.__code__:
            return False, _stack(reversed(_without_observer(frames[:index])))
    return False, ()


def _without_observer(frames: list[tuple[types.FrameType, int]]) -> list[tuple[types.FrameType, int]]:
    """Frames, innermost first, without this very look and the signal handler that it comes from."""
    modules = (__name__, f"{_PACKAGE}._observe.dump_signal")
    ours = [index for index, (frame, _) in enumerate(frames) if frame.f_globals.get("__name__") in modules]
    return frames[ours[-1] + 1 :] if ours else frames


def _snapshot(manager: UringIOManager) -> RingSnapshot:
    now = time.monotonic()
    waiting, loop = _loop(manager)
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    monitor = next((monitor for monitor in list(_monitors) if monitor.watches(manager)), None)
    operations = []
    occupied = set()
    runner = None

    def stack_of(task: Any) -> tuple[str, ...]:
        return loop if _is_running(task) else _stack(_frames(task))

    for operation in _in_flight(manager):
        task = operation.task
        if task is not None:
            occupied.add(task)
            runner = task._runner
        operations.append(
            OperationSnapshot(
                kind=_kind(operation, _frames(task)),
                state=_state(operation),
                fd=operation.fd if operation.fd >= 0 else None,
                target=_target(operation),
                age=None if monitor is None else monitor.age(operation, now),
                task=None if task is None else task.name,
                stack=stack_of(task),
            )
        )
    tasks = []
    for task in [] if runner is None else sorted(set(runner.tasks) - occupied, key=lambda task: task._counter):
        tasks.append(TaskSnapshot(task.name, stack_of(task), _is_running(task)))
    return RingSnapshot(
        ring=manager.ring.fileno(),
        thread=names.get(manager.thread, str(manager.thread)),
        waiting=waiting,
        since=None if monitor is None else monitor.since(now),
        loop=loop,
        counters=_counters(manager.ring),
        operations=tuple(operations),
        tasks=tuple(tasks),
    )


def snapshot() -> list[RingSnapshot]:
    """What every run on the ring in this process is doing. Any thread; a signal handler.

    `attrs.asdict` makes of each what json.dumps takes.
    """
    found: list[RingSnapshot] = []
    runner = getattr(GLOBAL_RUN_CONTEXT, "runner", None)
    for ring in _rings():
        # The books of a run are empty only until its first task has run.
        books = ring.keep if isinstance(ring.keep, dict) else {}
        managers = [operation.manager for operation in list(books.values())[:1]]
        if runner is not None and getattr(runner.io_manager, "ring", None) is ring:
            managers = [runner.io_manager]
        found += map(_snapshot, managers)
    return found


# ------------------------------------------------------------------ the text


def dump(file: TextIO | None = None, *, as_json: bool = False) -> None:
    """Write what every run on the ring in this process is doing: its operations in flight, and its tasks.

    For a program that hangs; see docs/observing.md. Any thread; a signal handler.

    Args:
      file: where to; None for standard error.
      as_json: as one line of JSON, the list of `snapshot`, in place of text for people.
    """
    out = sys.stderr if file is None else file
    out.write(json.dumps([attrs.asdict(each) for each in snapshot()]) + "\n" if as_json else text())
    out.flush()


def text() -> str:
    """What `dump` writes for people. Operations and tasks that are alike stand together."""
    now = datetime.datetime.now().isoformat(" ", "seconds")
    lines = [
        f"trio-uring dump: process {os.getpid()}, {now}, {platform.python_implementation()} "
        f"{platform.python_version()}, trio {trio.__version__}, trio-uring {__version__}"
    ]
    snapshots = snapshot()
    if not snapshots:
        lines.append("no run on the ring")
    for each in snapshots:
        lines += _described(each)
    return "\n".join(lines) + "\n"


def _described(ring: RingSnapshot) -> Iterator[str]:
    counters = ", ".join(f"{name} {count}" for name, count in ring.counters.items())
    yield f"ring {ring.ring}: {len(ring.operations)} operations in flight ({counters})"
    state = "asleep in the kernel" if ring.waiting else "running" if ring.loop else "between two tasks"
    since = "" if ring.since is None else f" for {ring.since:.1f} s"
    yield f"  loop: thread {ring.thread}, {state}{since}"
    yield from (f"      {line}" for line in ring.loop)
    groups: dict[tuple[str, str, str | None, tuple[str, ...]], list[OperationSnapshot]] = {}
    for each in ring.operations:
        groups.setdefault((each.kind, each.state, each.task, each.stack), []).append(each)
    for (kind, state, task, stack), alike in groups.items():
        yield f"  {kind}, {state}{'' if len(alike) == 1 else f': {len(alike)} operations'}{_ages(alike)}"
        for each in alike[:_SHOWN]:
            if each.fd is not None or each.target is not None:
                yield f"    {'path' if each.fd is None else f'fd {each.fd}'}: {each.target}"
        more = [each.target if each.fd is None else f"fd {each.fd}" for each in alike[_SHOWN:]]
        if any(more):
            yield f"    and {', '.join(filter(None, more))}"
        yield f"    task {task or 'none'}"
        yield from (f"      {line}" for line in stack)
    waiting: Counter[TaskSnapshot] = Counter(ring.tasks)
    for found, count in waiting.items():
        number = "" if count == 1 else f": {count} tasks"
        yield f"  {'running' if found.running else 'not waiting for the ring'}{number}"
        yield f"    task {found.name}"
        yield from (f"      {line}" for line in found.stack)


def _ages(alike: list[OperationSnapshot]) -> str:
    known = [each.age for each in alike if each.age is not None]
    if not known:
        return ", age unknown"
    least, most = min(known), max(known)
    return f", for at least {most:.1f} s" if len(alike) == 1 else f", for at least {least:.1f} to {most:.1f} s"
