"""Fails every call of the shim in turn, under programs that use it; run by test_fault_sweep.py in a process of its own.

    python fault_sweep.py SCENARIO [STRIDE]             every STRIDE-th single fault
    python fault_sweep.py SCENARIO random COUNT SEED    COUNT times a few faults at once

Needs the variant of the shim with faults first on PYTHONPATH. Each scenario runs once to count the calls of each kind, and
then once for each call and each way in which it may fail, in a forked child of its own. Whatever fails, a scenario
ends in one of two ways: with its right result, or with an error that says which fault it was; and with nothing left open,
nothing in flight, nobody asleep. Prints one line of JSON for each child that ended otherwise, and a last one with the counts.
"""

from __future__ import annotations

import errno
import faulthandler
import functools
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fault_scenarios
import trio

from trio_uring import _ring

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
}
HARD = ("ENOMEM", "EPERM", "EBADR")  # those that may go on for ever
# Faults that no program may notice: the kernel may do all this on a good day.
HARMLESS = {"SHORT": (0, 1), "LATE": (0, 3), "NO_ROOM": (0,)}
HARMLESS_ERRNOS = {("ENTER", "EINTR"), ("ENTER", "EAGAIN"), ("ENTER", "EBUSY"), ("READ", "EAGAIN"), ("WRITE", "EAGAIN")}
CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE = 100  # seconds; nothing but a hang waits for them to expire


class Fault(NamedTuple):
    """The `nth` call of a kind and `times` - 1 more (0: all later ones) fail with a value."""

    kind: str
    nth: int
    times: int
    value: int
    name: str

    @property
    def harmless(self) -> bool:
        """Whether a program must not notice."""
        return self.kind in HARMLESS or (self.kind, self.name) in HARMLESS_ERRNOS

    def arm(self) -> None:
        """From now on."""
        lib.tf_arm(getattr(lib, f"TF_{self.kind}"), self.nth, self.times, self.value)


def faults(counts: dict[str, int], stride: int) -> Iterator[Fault]:
    """Every fault worth trying on a program that makes so many calls of each kind."""
    number = 0
    for kind, values in [*ERRNOS.items(), *HARMLESS.items()]:
        for nth in range(1, counts[kind] + 1):
            for value in values:
                name = value if isinstance(value, str) else str(value)
                amount: int = getattr(errno, value) if isinstance(value, str) else value  # type: ignore[assignment]
                for times in (1, 3, 0) if kind == "ENTER" and value in HARD else (1, 3):
                    number += 1
                    if number % stride == 0:
                        yield Fault(kind, nth, times, amount, name)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The causes at the bottom of groups and of Trio's internal errors."""
    if hasattr(error, "exceptions"):
        for inner in error.exceptions:
            yield from leaves(inner)
    elif isinstance(error, trio.TrioInternalError) and error.__cause__ is not None:
        yield from leaves(error.__cause__)
    else:
        yield error


def some(counts: dict[str, int], number: int, seed: int) -> Iterator[tuple[Fault, ...]]:
    """Faults together, at random."""
    choose = random.Random(seed)
    every = [fault for fault in faults(counts, 1) if fault.times]
    for _ in range(number):
        chosen = {fault.kind: fault for fault in choose.choices(every, k=choose.randint(2, 5))}
        yield tuple(chosen.values())


def tells(error: BaseException, tried: tuple[Fault, ...]) -> bool:
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


def descriptors() -> dict[str, str]:
    """The open descriptors of this process."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the one that the listing itself used
    return found


def attempt(scenario: fault_scenarios.Scenario, tried: tuple[Fault, ...]) -> list[str]:
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
        try:
            scenario()
        except BaseException as raised:
            error = raised
        lib.tf_disarm()
        if error is not None:
            if all(fault.harmless for fault in tried) or not tells(error, tried):
                wrong.append("raised " + "".join(traceback.format_exception(error))[-3000:])
            for leaf in leaves(error):
                traceback.clear_frames(leaf.__traceback__)
        hard = error is not None  # then Trio and the program may complain of what they had to leave behind
        error = None
        for _ in range(3):
            gc.collect()
    deadline = time.monotonic() + PATIENCE / 3
    while (after := descriptors()) != before and time.monotonic() < deadline:
        time.sleep(0.01)  # a worker thread of Trio's has one open
    if after != before:
        wrong.append(
            f"left open: {sorted(set(after.items()) - set(before.items()))}, {sorted(set(before) - set(after))}"
        )
    # A kernel that refuses for ever does not let go, and then memory is leaked on purpose.
    lets_go = all(fault.times for fault in tried)
    if _ring._leaked and lets_go:
        wrong.append(f"{len(_ring._leaked)} rings leaked their memory")
    complaints = [f"unraisable: {text}" for text in unraisable]
    complaints += [f"warned: {w.message}" for w in warned if issubclass(w.category, ResourceWarning)]
    # A program that is torn down when its run has gone cannot use Trio any more, whose own files complain of that as well.
    complaints = [text for text in complaints if "must be called from async context" not in text]
    # The package is named in them; so may be the folder that all this is in.
    wrong += [text for text in complaints if not hard or ("uring" in text.replace(str(CHECKOUT), "") and lets_go)]
    return wrong


def in_child(function: Callable[[], list[str]]) -> list[str]:
    """What a function answers in a forked child; a child that crashes or hangs is wrong too."""
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(PATIENCE, exit=True, file=said.fileno())
            try:
                answer = json.dumps(function()).encode()
            except BaseException:
                answer = json.dumps([traceback.format_exc()]).encode()
            faulthandler.cancel_dump_traceback_later()
            os.write(said.fileno(), answer)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    if status:
        how = f"killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "hung"
        return [f"{how}: {text[-3000:]}"]
    answer_list: list[str] = json.loads(text)
    return answer_list


def count(scenario: fault_scenarios.Scenario) -> dict[str, int]:
    """How many calls of each kind a scenario makes without any fault."""
    kinds = [*ERRNOS, *HARMLESS]
    # Completions are counted by kinds that never fail here.
    before = {kind: lib.tf_calls(getattr(lib, f"TF_{kind}")) for kind in kinds}
    scenario()
    return {kind: lib.tf_calls(getattr(lib, f"TF_{kind}")) - before[kind] for kind in kinds}


def main() -> None:
    """See the module."""
    name = sys.argv[1]
    scenario = fault_scenarios.ALL[name]
    began = time.monotonic()
    trio.run(trio.lowlevel.checkpoint)  # what Trio makes once and keeps
    counts: dict[str, int] = {}

    def counted() -> list[str]:
        return [json.dumps(count(scenario))]

    first = in_child(counted)
    counts = json.loads(first[0])
    clean = in_child(functools.partial(attempt, scenario, ()))
    if clean:
        print(json.dumps({"faults": [], "wrong": clean}))
        sys.exit(1)
    every: Iterator[tuple[Fault, ...]]
    if sys.argv[2:3] == ["random"]:
        every = some(counts, int(sys.argv[3]), int(sys.argv[4]))
    else:
        every = ((fault,) for fault in faults(counts, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
    tried = bad = 0
    for together in every:
        if {fault.kind for fault in together} & set(fault_scenarios.NOT_HERE.get(name, ())):
            continue
        tried += 1
        wrong = in_child(functools.partial(attempt, scenario, together))
        if wrong:
            bad += 1
            print(json.dumps({"faults": together, "wrong": wrong}), flush=True)
    print(json.dumps({"tried": tried, "wrong": bad, "counts": counts, "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
