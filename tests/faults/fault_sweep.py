"""Fails every call of the shim in turn, under programs that use it; run by test_sweep.py in a process of its own.

    python fault_sweep.py SCENARIO [STRIDE]             every STRIDE-th single fault
    python fault_sweep.py SCENARIO random COUNT SEED    COUNT times a few faults at once
    python fault_sweep.py SCENARIO KIND NTH TIMES NAME  one fault, as a line of output names it
    python fault_sweep.py suite STRIDE FIRST LAST       the same under the cancellation suite's pairs FIRST to LAST - 1; a tenth
                                                        of that of those that hit several calls

Needs the variant of the shim with faults first on PYTHONPATH. Each scenario runs once to count the calls of each kind, and
then once for each call and each way in which it may fail, in forked children. Whatever fails, a scenario
ends in one of two ways: with its right result, or with an error that says which fault it was; and with nothing left open,
nothing in flight, nobody asleep. Prints one line of JSON for each child that ended otherwise, and a last one with the counts.

The pairs come in rounds, each of which has every operation once, with another cause (`fault_scenarios.SUITE`); each of their
moments is a scenario. Each pair begins to count its faults elsewhere, so that between them all kinds are tried at all calls
whatever the stride.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import functools
import gc
import importlib
import itertools
import json
import os
import pkgutil
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fault_scenarios
import trio

import trio_uring
from trio_uring._ring import ring as _ring

lib: Any = _ring.lib

# Errors that each call may answer, from its manual page and from what seccomp filters answer.
ERRNOS = {
    "SETUP": ("ENOMEM", "EMFILE", "EPERM", "EINVAL"),
    "REGISTER": ("ENOMEM", "EINVAL", "EPERM", "EBUSY"),
    "ENTER": ("EINTR", "EAGAIN", "EBUSY", "ENOMEM", "EPERM", "EBADR"),
    "EVENTFD": ("EMFILE", "ENOMEM"),
    "READ": ("EAGAIN", "EINTR", "EIO"),
    "WRITE": ("EAGAIN", "EINTR", "EIO"),
    "POLL": ("EINTR", "ENOMEM"),
    "MMAP": ("ENOMEM",),
    "ALLOC": ("ENOMEM",),
    "SQE": ("EBUSY", "EAGAIN", "ENOMEM"),
    "FILE": ("EIO",),
}
HARD = ("ENOMEM", "EPERM", "EBADR")  # those that may go on for ever
# Faults that no program may notice: the kernel may do all this on a good day.
HARMLESS = {
    "SHORT": (0, 1),
    "LATE": (0, 3),
    "DOUBLE": (0,),
    "AGAIN": (0, 1),
    "NO_ROOM": (0,),
    "MISS": (0,),
    "PART": (0,),
    "STALE": (0,),
    "WORKER": (0,),
}
HARMLESS_ERRNOS = {("ENTER", "EINTR"), ("ENTER", "EAGAIN"), ("ENTER", "EBUSY"), ("READ", "EAGAIN"), ("WRITE", "EAGAIN")}
# What no program can tell from a slow one. Whoever waits for it waits on; the run is ended after so many seconds by a kernel that
# refuses everything, which may happen at any time, and then has to end as it does otherwise.
LOST = {"LOSE": (0,)}
WAITED = 0.5
KINDS = (*ERRNOS, *HARMLESS, *LOST)
CHECKOUT = Path(__file__).resolve().parents[2]
EVERY = dict(fault_scenarios.ALL)
for _moments in fault_scenarios.SUITE.values():
    EVERY |= _moments
OFFSET = 7919  # from pair to pair; a prime number, so that the strides have no factor in common with it
TRANSLATED = (trio.TrioInternalError, trio.BrokenResourceError)
PATIENCE = 100  # seconds; nothing but a hang waits for them to expire
RARELY = 10  # under the pairs: how much more seldom than others those are tried that hit several calls
IN_A_ROW = 64  # attempts in one child
AT_ONCE = 16  # children that wait


class Fault(NamedTuple):
    """The `nth` call of a kind and `times` - 1 more (0: all later ones) fail with a value."""

    kind: str
    nth: int
    times: int
    value: int
    name: str

    @property
    def lasting(self) -> bool:
        """Whether no other can be tried in the process: memory may be kept, or the kernel refuses everything at the end."""
        return self.times == 0 or self.kind in LOST

    @property
    def harmless(self) -> bool:
        """Whether a program must not notice."""
        return self.kind in HARMLESS or (self.kind, self.name) in HARMLESS_ERRNOS

    def arm(self) -> None:
        """From now on."""
        lib.tf_arm(getattr(lib, f"TF_{self.kind}"), self.nth, self.times, self.value)


Span = tuple[int, int]  # the calls of a kind after the first number, and up to the second


def faults(calls: dict[str, Span]) -> Iterator[Fault]:
    """Every fault worth trying at these calls of each kind."""
    for kind, values in [*ERRNOS.items(), *HARMLESS.items(), *LOST.items()]:
        for nth in range(calls[kind][0] + 1, calls[kind][1] + 1):
            for value in values:
                name = value if isinstance(value, str) else str(value)
                amount: int = getattr(errno, value) if isinstance(value, str) else value  # type: ignore[assignment]
                for times in (1, 3, 0) if kind == "ENTER" and value in HARD else (1, 3):
                    yield Fault(kind, nth, times, amount, name)


Together = tuple[Fault, ...]  # in one run
Case = tuple[str, Together]  # in one of a scenario
Counted = dict[str, dict[str, Span]]  # by scenario
REFUSAL = Fault("ENTER", 1, 0, errno.EPERM, "EPERM")


def refuse(*_: object) -> None:
    """From now on the kernel refuses everything; a handler of signals."""
    REFUSAL.arm()
    for ring in list(_ring._rings):
        ring.wake()


def spare_entry_queue() -> None:
    """Let Trio's task for calls from threads and signal handlers try its wait again when a fault has hit that.

    Where the wait fails, Trio breaks down and cancels every task. One that is shielded waits on, and never hears that its thread
    has ended, or gets what a cancelled task was to send. That is so on epoll as well. Rows of the suite shield, or ask a
    thread; wakeups does.
    """
    wakeup = trio._core._wakeup_socketpair.WakeupSocketpair
    wait_woken = wakeup.wait_woken

    async def patient(self: Any) -> None:
        for _ in range(10):  # no fault that it can meet goes on for longer
            with contextlib.suppress(OSError, MemoryError):
                return await wait_woken(self)
        await wait_woken(self)

    wakeup.wait_woken = patient  # type: ignore[method-assign]


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What is at the bottom of groups, and of errors that Trio and the cancellation suite make of others."""
    if hasattr(error, "exceptions"):
        for inner in error.exceptions:
            yield from leaves(inner)
    elif isinstance(error, (*TRANSLATED, AssertionError)) and error.__cause__ is not None:
        yield from leaves(error.__cause__)
    else:
        yield error


def some(counted: Counted, number: int, seed: int) -> Iterator[Case]:
    """Faults together, at random."""
    choose = random.Random(seed)
    for name, calls in counted.items():
        every = [fault for fault in faults(calls) if fault.times]
        for _ in range(number):
            chosen = {fault.kind: fault for fault in choose.choices(every, k=choose.randint(2, 5))}
            yield name, tuple(chosen.values())


def tells(error: BaseException, tried: Together) -> bool:
    """Whether an error tells of a fault; others may come with it, from the peers of what failed."""
    told = others = False
    for leaf in leaves(error):
        if isinstance(leaf, MemoryError) and any(fault.kind == "ALLOC" for fault in tried):
            told = True
        elif not isinstance(leaf, (OSError, trio.BrokenResourceError, trio.ClosedResourceError)):
            others = True
        elif isinstance(leaf, OSError) and any(leaf.errno == fault.value for fault in tried):
            told = True
    # Where the fault hit a task of Trio's own, Trio breaks down, and its own assertions with it.
    return told and (not others or isinstance(error, trio.TrioInternalError))


def judge(error: BaseException, tried: Together) -> list[str]:
    """What is wrong about an error that faults have led to; its frames let go of what they have."""
    wrong = []
    for each in error.errors if isinstance(error, fault_scenarios.CallsFailed) else [error]:
        if all(fault.harmless for fault in tried) or not tells(each, tried):
            wrong.append("raised " + "".join(traceback.format_exception(each))[-3000:])
        for leaf in leaves(each):
            traceback.clear_frames(leaf.__traceback__)
    return wrong


def descriptors() -> dict[str, str]:
    """The open descriptors of this process."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the one that the listing itself used
    return found


def attempt(scenario: fault_scenarios.Scenario, tried: Together) -> list[str]:
    """Run a scenario under faults, and say what was wrong about it."""
    wrong: list[str] = []
    unraisable: list[str] = []
    sys.unraisablehook = lambda args: unraisable.append(
        f"{args.exc_value!r} in {args.object!r}: {''.join(traceback.format_tb(args.exc_traceback))}"
    )
    gc.collect()
    before = descriptors()
    error: BaseException | None = None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        for fault in tried:
            fault.arm()
        if any(fault.kind in LOST for fault in tried):
            tried = (*tried, REFUSAL)
            signal.signal(signal.SIGALRM, refuse)
            signal.setitimer(signal.ITIMER_REAL, WAITED)
        try:
            scenario()
        except BaseException as raised:
            error = raised
        signal.setitimer(signal.ITIMER_REAL, 0)
        lib.tf_disarm()
        # Where it ended the run, Trio and the program may complain of what they had to leave behind.
        hard = error is not None and not isinstance(error, fault_scenarios.CallsFailed)
        if error is not None:
            wrong += judge(error, tried)
        error = None
        # A kernel that refuses for ever does not let go: memory is leaked on purpose, and so are the tasks that it belongs to,
        # with what they have open. Nobody learns of files that the kernel has opened since.
        lets_go = all(fault.times for fault in tried)
        for _ in range(3):
            gc.collect()
        fault_scenarios.clear_up()
        gc.collect()  # what that had kept
        deadline = time.monotonic() + PATIENCE / 3
        while changed := {
            (fd, what)
            for fd, what in descriptors().items() ^ before.items()
            if lets_go or what.startswith("anon_inode:")
        }:
            if time.monotonic() > deadline:
                wrong.append(f"left open, or closed: {sorted(changed)}")
                break
            # A worker thread of Trio's has one open, and keeps the task that it works for until it is done.
            time.sleep(0.01)
            gc.collect()
    if _ring._leaked and lets_go:
        wrong.append(f"{len(_ring._leaked)} rings leaked their memory")
    complaints = [f"unraisable: {text}" for text in unraisable]
    complaints += [f"warned: {w.message}" for w in warned if issubclass(w.category, ResourceWarning)]
    # A program that is torn down when its run has gone cannot use Trio any more, whose own files complain of that as well.
    complaints = [text for text in complaints if "must be called from async context" not in text]
    # And what is leaked on purpose is told.
    complaints = [text for text in complaints if lets_go or "their memory is kept" not in text]
    # The package is named in them; so may be the folder that all this is in, and the suite is a program like others.
    named = [text.replace(str(CHECKOUT), "").replace("trio_uring/cancellation", "") for text in complaints]
    wrong += [
        text for text, without in zip(complaints, named, strict=True) if not hard or ("uring" in without and lets_go)
    ]
    return wrong


def in_children(rows: Sequence[Sequence[Callable[[], list[str]]]]) -> list[list[list[str]]]:
    """What rows of functions answer, each row in a forked child, all at once; a crash or a hang of it is the one thing wrong.

    A row ends early where a function answers anything, or leaves tasks behind: another thread may have them when a run breaks
    down under it.
    """
    children = []
    for row in rows:
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        pid = os.fork()
        if pid == 0:
            gc.freeze()  # they look for garbage often, and all that there is now is none
            done: list[list[str]] = []
            for function in row:
                faulthandler.dump_traceback_later(PATIENCE, exit=True, file=said.fileno())
                try:
                    done.append(function())
                except BaseException:
                    done.append([traceback.format_exc()])
                if done[-1] or any(isinstance(thing, trio.lowlevel.Task) for thing in gc.get_objects()):
                    break
            faulthandler.cancel_dump_traceback_later()
            os.write(said.fileno(), json.dumps(done).encode())
            os._exit(0)
        children.append((pid, said))
    answers = []
    for pid, said in children:
        _, status = os.waitpid(pid, 0)
        with said:
            said.seek(0)
            text = said.read().decode(errors="replace")
        if status:
            how = f"killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "hung"
            answers.append([[f"{how}: {text[-3000:]}"]])
        else:
            answers.append(json.loads(text))
    return answers


def count(scenario: fault_scenarios.Scenario) -> list[str]:
    """The calls of each kind that a scenario is about, as JSON, counted without a fault; and what is wrong about it even so."""

    def calls() -> dict[str, int]:
        return {kind: lib.tf_calls(getattr(lib, f"TF_{kind}")) for kind in KINDS}

    # Completions are counted by kinds that never fail here.
    start = first = calls()
    last: dict[str, int] = {}

    def listen(begins: bool) -> None:
        nonlocal first, last
        if begins:
            first = calls()
        else:
            last = calls()

    fault_scenarios.listeners[:] = [listen]
    wrong = attempt(scenario, ())
    last = last or calls()
    return [json.dumps({kind: (first[kind] - start[kind], last[kind] - start[kind]) for kind in KINDS}), *wrong]


def tell(cases: Sequence[Case], wrong: Sequence[str]) -> None:
    """What went wrong, as a line."""
    print(json.dumps({"cases": cases, "wrong": wrong}), flush=True)


def sweep(names: Sequence[str], choose: Callable[[Counted], Iterator[Case]]) -> tuple[int, int, dict[str, int]]:
    """Run scenarios under each of the faults that are chosen once their calls are counted; how many, how many ended wrong."""
    counted: Counted = {}
    counts = in_children([[functools.partial(count, EVERY[name])] for name in names])
    for name, [[calls, *wrong]] in zip(names, counts, strict=True):
        if wrong or not calls.startswith("{"):
            tell([(name, ())], wrong or [calls])
            return 0, 1, {}
        counted[name] = json.loads(calls)
    chosen = list(choose(counted))
    lasting: list[Case] = []
    passing: list[Case] = []
    for case in chosen:
        (lasting if any(fault.lasting for fault in case[1]) else passing).append(case)

    def tries(taken: Sequence[Case]) -> list[Callable[[], list[str]]]:
        return [functools.partial(attempt, EVERY[name], together) for name, together in taken]

    def apart(taken: Sequence[Case]) -> int:
        bad = 0
        for case, [wrong] in zip(taken, in_children([tries([case]) for case in taken]), strict=True):
            if wrong:
                bad += 1
                tell([case], wrong)
        return bad

    bad = first = 0
    # One child for many is half the work, and what goes wrong there is tried again apart. To do so only in a row is wrong too.
    while first < len(passing):
        taken = passing[first : first + IN_A_ROW]
        [answers] = in_children([tries(taken)])
        if any(answers):
            again = apart(taken)
            if not again:
                tell(taken, list(itertools.chain(*answers)))
            bad += again or 1
        else:
            taken = taken[: len(answers)]
        first += len(taken)
    # These do little but wait.
    for first in range(0, len(lasting), AT_ONCE):
        bad += apart(lasting[first : first + AT_ONCE])
    totals = {kind: sum(last - first for first, last in (calls[kind] for calls in counted.values())) for kind in KINDS}
    return len(chosen), bad, totals


def every_so_many(stride: int, offset: int = 0, rarely: int = 1) -> Callable[[Counted], Iterator[Case]]:
    """One fault at a time, and one at least; those that hit several calls are taken `rarely` times more seldom."""

    def choose(counted: Counted) -> Iterator[Case]:
        every = [(name, fault) for name, calls in counted.items() for fault in faults(calls)]
        once = [case for case in every if case[1].times == 1]
        several = [case for case in every if case[1].times != 1]
        for cases, step in (once, stride), (several, stride * rarely):
            yield from ((name, (fault,)) for name, fault in cases[offset % min(step, len(cases)) :: step])

    return choose


def main() -> None:
    """See the module."""
    name, *rest = sys.argv[1:]
    began = time.monotonic()
    trio.run(trio.lowlevel.checkpoint)  # what Trio makes once and keeps
    for module in pkgutil.walk_packages(trio_uring.__path__, "trio_uring."):
        if module.name.startswith("trio_uring._") and module.name != "trio_uring.__main__":
            importlib.import_module(module.name)  # what a run loads when it first needs it
    gc.collect()
    if name == "wakeups" or name not in fault_scenarios.ALL:
        spare_entry_queue()
    if name == "suite":
        stride, first, last = map(int, rest)
        pairs = list(fault_scenarios.SUITE.values())[first:last]
        swept = [
            sweep(list(moments), every_so_many(stride, number * OFFSET, RARELY))
            for number, moments in enumerate(pairs, first)
        ]
    elif rest[:1] == ["random"]:
        swept = [sweep([name], lambda counted: some(counted, int(rest[1]), int(rest[2])))]
    elif len(rest) == 4:
        kind, nth, times, value = rest
        one = Fault(kind, int(nth), int(times), int(value) if value.isdigit() else getattr(errno, value), value)
        swept = [sweep([name], lambda _: iter([(name, (one,))]))]
    else:
        swept = [sweep([name], every_so_many(int(rest[0]) if rest else 1))]
    tried, bad, counts = map(list, zip(*swept, strict=True))
    calls = {kind: sum(each.get(kind, 0) for each in counts) for kind in KINDS}
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"tried": sum(tried), "wrong": sum(bad), "counts": calls, "seconds": seconds}))


if __name__ == "__main__":
    main()
