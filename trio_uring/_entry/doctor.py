"""Layer 5, `python -m trio_uring doctor`: what this machine and sandbox allow, and what to change.

Knows the ring's set-up flags, operations and features by name, the installed packages, and how a run is
started; knows nothing of how the shim or the manager work. Everything it reports it has tried: flags by
making rings, operations by the kernel's own probe and by an entry of each, on nothing, since a restriction of the
task refuses what the probe says is there; the verdict by a NOP through the ring that a run makes and then by a run.

The numbers and names are those of include/uapi/linux/io_uring.h; the kernel versions those of
io_uring_setup(2), io_uring_enter(2) and io_uring_register(2) (WAITID came with 6.7, with the futex
operations).
"""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import attrs
import trio

from .._loop.options import UringBackend
from .._ring import availability
from .._ring.availability import Facts, UringUnavailableError
from .._ring.group import RingGroup
from .._ring.ring import FIRST_USER_DATA, OP_NOP, STRAY_DATA, Ring, ffi
from .._version import __version__
from . import seams
from .profiles import PROFILES

_NEEDED: Final = 'io_backend="uring" does not start, or fails at the first use'
_REPORT: Final = "report it, with the output of `python -m trio_uring doctor --json`"
_PATIENCE: Final = 0.3  # seconds; see _Patience
_COMPLETION: Final = 5.0  # seconds until a NOP counts as lost


@attrs.frozen
class Capability:
    """One thing that a kernel has or has not.

    Attributes:
      name: the kernel's, without its prefix.
      number: the flag's bit, or the operation's number; of features the number in io_uring_register(2), or the bit of what
        io_uring_setup(2) tells.
      since: the kernel that brought it.
      without: what is lost without it; None where nothing runs without it.
      trial: for a set-up flag, the flags without which the kernel would refuse it for another reason.
    """

    name: str
    number: int
    since: str
    without: str | None = None
    trial: int = 0


_IOPOLL: Final = 1 << 0
_COOP_TASKRUN: Final = 1 << 8
_SINGLE_ISSUER: Final = 1 << 12
_NO_MMAP: Final = 1 << 14
_NO_SQARRAY: Final = 1 << 16

FLAGS: Final = (
    Capability("SINGLE_ISSUER", _SINGLE_ISSUER, "6.0"),
    Capability("DEFER_TASKRUN", 1 << 13, "6.1", trial=_SINGLE_ISSUER),
    Capability("TASKRUN_FLAG", 1 << 9, "5.19", trial=_COOP_TASKRUN),
    Capability("SUBMIT_ALL", 1 << 7, "5.18"),
    Capability("CQSIZE", 1 << 3, "5.5"),
    Capability("COOP_TASKRUN", _COOP_TASKRUN, "5.19", "none for a run, which uses DEFER_TASKRUN"),
    Capability("R_DISABLED", 1 << 6, "5.10", "a ring cannot be made in one thread for another"),
    Capability("CLAMP", 1 << 4, "5.6", "too large sizes are refused, not reduced"),
    # The trial names no ring to attach to, which is the answer where the flag is known.
    Capability("ATTACH_WQ", 1 << 5, "5.6", "rings cannot share one pool of kernel workers"),
    Capability("SQPOLL", 1 << 1, "5.1", "no kernel thread submits in the application's place"),
    Capability("IOPOLL", _IOPOLL, "5.1", "no polled completions of O_DIRECT storage"),
    Capability("HYBRID_IOPOLL", 1 << 17, "6.13", "polled completions cost a whole CPU", _IOPOLL),
    Capability("NO_MMAP", _NO_MMAP, "6.5", "a ring cannot lie in memory of the caller (huge pages)"),
    Capability("REGISTERED_FD_ONLY", 1 << 15, "6.5", "every ring takes a file descriptor", _NO_MMAP),
    Capability("NO_SQARRAY", _NO_SQARRAY, "6.6", "one more array in each ring, of 4 bytes for each entry"),
    Capability("SQE128", 1 << 10, "5.19", "no pass-through commands to NVMe"),
    Capability("CQE32", 1 << 11, "5.19", "no long results of pass-through commands"),
    Capability("CQE_MIXED", 1 << 18, "6.18", "long completions only where all are long"),
    Capability("SQE_MIXED", 1 << 19, "6.19", "long entries only where all are long"),
    Capability("SQ_REWIND", 1 << 20, "7.0", "the submission queue stays a ring", _NO_SQARRAY),
)

_LAST_REGISTER: Final = 255  # of the numbers in io_uring_register(2); what is greater is a bit
_THREAD: Final = "goes through a worker thread, as on epoll"

OPERATIONS: Final = (
    Capability("NOP", 0, "5.1"),
    Capability("READV", 1, "5.1"),
    Capability("WRITEV", 2, "5.1"),
    Capability("FSYNC", 3, "5.1"),
    Capability("POLL_ADD", 6, "5.1"),
    Capability("SENDMSG", 9, "5.3"),
    Capability("RECVMSG", 10, "5.3"),
    Capability("TIMEOUT", 11, "5.4"),
    Capability("ACCEPT", 13, "5.5"),
    Capability("ASYNC_CANCEL", 14, "5.5"),
    Capability("CONNECT", 16, "5.5"),
    Capability("FALLOCATE", 17, "5.6"),
    Capability("OPENAT", 18, "5.6"),
    Capability("CLOSE", 19, "5.6"),
    Capability("STATX", 21, "5.6"),
    Capability("READ", 22, "5.6"),
    Capability("WRITE", 23, "5.6"),
    Capability("SEND", 26, "5.6"),
    Capability("RECV", 27, "5.6"),
    Capability("SPLICE", 30, "5.7"),
    Capability("SHUTDOWN", 34, "5.11"),
    Capability("RENAMEAT", 35, "5.11"),
    Capability("UNLINKAT", 36, "5.11"),
    Capability("MKDIRAT", 37, "5.15"),
    Capability("SYMLINKAT", 38, "5.15"),
    Capability("LINKAT", 39, "5.15"),
    Capability("READ_FIXED", 4, "5.1", "reads cannot use registered buffers"),
    Capability("WRITE_FIXED", 5, "5.1", "writes cannot use registered buffers"),
    Capability("POLL_REMOVE", 7, "5.1", "a poll cannot be changed, only cancelled and made again"),
    Capability("SYNC_FILE_RANGE", 8, "5.2", f"sync_file_range {_THREAD}"),
    Capability("LINK_TIMEOUT", 15, "5.5", "no deadlines inside the kernel, Trio's own are used"),
    Capability("FADVISE", 24, "5.6", f"posix_fadvise {_THREAD}"),
    Capability("OPENAT2", 28, "5.6", "no RESOLVE flags at an open"),
    Capability("TEE", 33, "5.8", f"tee {_THREAD}"),
    Capability("MSG_RING", 40, "5.18", "one ring cannot post a completion to another; the eventfd wakes it"),
    Capability("SOCKET", 45, "5.19", "sockets are made by socket(2)"),
    Capability("URING_CMD", 46, "5.19", "no commands to drivers and no socket options through the ring"),
    Capability("SEND_ZC", 47, "6.0", "sends copy their data"),
    Capability("SENDMSG_ZC", 48, "6.1", "sends of several buffers copy their data"),
    Capability("READ_MULTISHOT", 49, "6.7", "each read of a pipe or terminal is an entry of its own"),
    Capability("WAITID", 50, "6.7", "child processes are waited for as on epoll"),
    Capability("FUTEX_WAIT", 51, "6.7", "no waiting for a futex on the ring"),
    Capability("FUTEX_WAKE", 52, "6.7", "no waking of a futex from the ring"),
    Capability("FUTEX_WAITV", 53, "6.7", "no waiting for several futexes on the ring"),
    Capability("FIXED_FD_INSTALL", 54, "6.8", "a registered descriptor cannot become an ordinary one"),
    Capability("FTRUNCATE", 55, "6.9", f"ftruncate {_THREAD}"),
    Capability("BIND", 56, "6.11", "bind(2) is called directly, as on epoll"),
    Capability("LISTEN", 57, "6.11", "listen(2) is called directly, as on epoll"),
    Capability("RECV_ZC", 58, "6.15", "receives copy their data"),
    Capability("EPOLL_WAIT", 59, "6.15", "an epoll set is waited for by a poll"),
    Capability("READV_FIXED", 60, "6.15", "vectored reads cannot use registered buffers"),
    Capability("WRITEV_FIXED", 61, "6.15", "vectored writes cannot use registered buffers"),
    Capability("PIPE", 62, "6.16", "pipes are made by pipe2(2)"),
)

FEATURES: Final = (
    Capability("PROBE", 8, "5.6"),
    Capability("PBUF_RING", 22, "5.19"),
    Capability("SYNC_CANCEL", 24, "6.0"),
    Capability("RING_FDS", 20, "5.18", "each kernel entry looks the ring's descriptor up"),
    Capability("NO_IOWAIT", 1 << 17, "6.15", "monitors take an idle run for one that waits for a disk"),
)


@attrs.frozen
class Verdict:
    """Whether `io_backend="uring"` works; if not, why and what to do, as in `UringUnavailableError`."""

    cause: str | None = None
    remedy: str | None = None
    code: int | None = None
    sizes: tuple[int, int] | None = None
    workers: int | None = None

    @property
    def usable(self) -> bool:
        """Whether it works."""
        return self.cause is None

    def sentence(self) -> str:
        """For people, in one line."""
        if self.cause is not None:
            return f"io_uring cannot be used: {self.cause}. To change that: {self.remedy}."
        sq, cq = self.sizes or (0, 0)
        return f'io_uring works: a run with io_backend="uring" used a ring, sq_entries={sq}, cq_entries={cq}.'


@attrs.frozen
class Report:
    """All that was found. Each capability comes with yes, no, or None where the kernel gave no answer."""

    facts: Facts
    versions: dict[str, str | None]
    flags: list[tuple[Capability, bool | None]]
    operations: list[tuple[Capability, bool | None]]
    features: list[tuple[Capability, bool | None]]
    mismatches: list[str]
    groups: Verdict
    verdict: Verdict
    restricted: frozenset[int] = frozenset()  # operations that are there and that a restriction forbids


# ---------------------------------------------------------------- asking

_Answer = TypeVar("_Answer", int, Verdict)


class _Patience:
    """Makes rings one after the other where there is memory for few.

    The memory of a dropped ring counts against RLIMIT_MEMLOCK until the kernel has cleaned up behind it (F34;
    measured on 6.18: about 20 ms). So whoever hears ENOMEM asks again, within a time that all share.
    """

    def __init__(self) -> None:
        self._deadline = time.monotonic() + _PATIENCE

    def ask(self, call: Callable[[], _Answer]) -> _Answer:
        """Calls until the answer, a verdict or a negated errno, is something else than ENOMEM."""
        while True:
            answer = call()
            code = answer.code if isinstance(answer, Verdict) else -answer
            if code != errno.ENOMEM or time.monotonic() >= self._deadline:
                return answer
            time.sleep(0.005)


class _Prober:
    """Asks the kernel about one capability after the other."""

    def __init__(self, patience: _Patience) -> None:
        self._patience = patience
        self._lib: Any = None
        self._operations: frozenset[int] | None = None
        self.restricted: frozenset[int] = frozenset()
        try:
            shim = _shim()
        except ImportError:
            return
        if patience.ask(lambda: shim.lib.tu_try_setup(0, 2)) != 0:
            return
        self._lib = shim.lib
        supported = shim.ffi.new("unsigned char[256]")
        if patience.ask(lambda: shim.lib.tu_probe_ops(supported, 256)) >= 0:
            self._operations = frozenset(number for number in range(256) if supported[number])

    def flag(self, flag: Capability) -> bool | None:
        if self._lib is None:
            return None
        code: int = self._patience.ask(lambda: self._lib.tu_try_setup(flag.number | flag.trial, 2))
        # A flag that is known, and lacks its memory or the ring to attach to, says EFAULT or ENXIO.
        return {0: True, -errno.EFAULT: True, -errno.ENXIO: True, -errno.EINVAL: False}.get(code)

    def operation(self, operation: Capability) -> bool | None:
        if self._operations is None:
            return None
        return operation.number in self._operations and operation.number not in self.restricted

    def try_operations(self, options: UringBackend) -> None:
        """Ask for each operation that is there, on no file and with no memory: where it may not be used it fails with EACCES."""
        try:
            ring = Ring(options.sq_entries, options.cq_entries)
        except OSError:
            return  # the verdict says why
        try:
            tried = {FIRST_USER_DATA + each.number: each for each in OPERATIONS if self.operation(each)}
            left = len(tried)
            for user_data, operation in tried.items():
                # The address of a cancel is the user_data of its target: none that is in flight.
                ring.queue(operation.number, user_data, addr=ffi.cast("void *", STRAY_DATA))
            deadline = time.monotonic() + _COMPLETION
            refused = set()
            while left and time.monotonic() < deadline:
                each = iter(ring.wait(_COMPLETION) or ())
                for user_data, result, _flags in zip(each, each, each, strict=True):
                    left -= 1
                    if result == -errno.EACCES and user_data in tried:
                        refused.add(tried[user_data].number)
            self.restricted = frozenset(refused)
        except OSError:
            return
        finally:
            ring.close()

    def feature(self, feature: Capability) -> bool | None:
        # Where io_uring_register(2) is forbidden the operations are unknown too, and its errno is no answer.
        if self._operations is None:
            return None
        code: int
        if feature.number > _LAST_REGISTER:
            code = self._patience.ask(lambda: self._lib.tu_features())
            return None if code < 0 else bool(code & feature.number)
        code = self._patience.ask(lambda: self._lib.tu_probe_register(feature.number))
        return None if code < 0 else bool(code)


def _shim() -> Any:
    return importlib.import_module("trio_uring._ffi")


def _refused(error: OSError, step: str) -> Verdict:
    if not isinstance(error, UringUnavailableError):
        error = availability.unavailable(error, step)
    return Verdict(error.cause, error.remedy, error.errno)


def _try_groups() -> Verdict:
    """Makes a ring in a group whose I/O processor is the last of this process's."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return Verdict(
            f"this process may run on processor {cpus[0]} only, and a group needs one for the loop and one for its I/O",
            "allow it more, with taskset(1), cpuset(7) or the limits of its container",
        )
    try:
        return _try_ring(UringBackend(sq_entries=8, group=RingGroup(cpus[-1:])))
    except ValueError as error:
        return Verdict(str(error), "name I/O processors that the process may use")


def _try_ring(options: UringBackend) -> Verdict:
    """Makes the ring that a run makes and sends a NOP through it."""
    make_ring = Ring if options.group is None else options.group._make_ring
    try:
        ring = make_ring(options.sq_entries, options.cq_entries)
    except OSError as error:
        return _refused(error, "setup")
    try:
        ring.queue(OP_NOP, FIRST_USER_DATA)
        deadline = time.monotonic() + _COMPLETION
        while time.monotonic() < deadline:
            if ring.wait(_COMPLETION):
                return Verdict(sizes=(ring.sq_entries, ring.cq_entries))
    except OSError as error:
        return _refused(error, "enter")
    finally:
        ring.close()
    return Verdict(f"a NOP on the ring did not complete within {_COMPLETION} seconds", _REPORT, errno.ETIME)


def _try_run() -> Verdict:
    """Does what the user will do."""

    workers: int | None = None

    async def backend() -> object:
        nonlocal workers
        statistics = trio.lowlevel.current_statistics().io_statistics
        workers = getattr(statistics, "max_workers", None) or None
        return getattr(statistics, "backend", None)

    try:
        used = seams.run(backend, io_backend="uring")
    except OSError as error:
        return _refused(error, "run")
    except Exception as error:
        return Verdict(f'trio.run(..., io_backend="uring") raised {type(error).__name__}: {error}', _REPORT)
    return (
        Verdict(workers=workers) if used == "uring" else Verdict(f"the run used {used!r} in place of the ring", _REPORT)
    )


def examine() -> Report:
    """Tries everything once. Raises nothing that has to do with io_uring."""
    patience = _Patience()
    facts = availability.gather()
    try:
        options = seams.choose("uring").ring or UringBackend()
    except ValueError as error:
        verdict = Verdict(str(error), "correct or unset TRIO_URING_OPTIONS")
    except UringUnavailableError as error:
        verdict = Verdict(error.cause, error.remedy, error.errno)
    else:
        verdict = patience.ask(lambda: _try_ring(options))
    prober = _Prober(patience)
    if verdict.usable:
        prober.try_operations(options)
    flags = [(flag, prober.flag(flag)) for flag in FLAGS]
    operations = [(operation, prober.operation(operation)) for operation in OPERATIONS]
    features = [(feature, prober.feature(feature)) for feature in FEATURES]
    mismatches = seams.mismatches()
    if verdict.usable:
        allowed = [row for row in operations if row[0].number not in prober.restricted]
        lacking = [c.name for c, there in [*allowed, *features] if there is False and c.without is None]
        if lacking:
            cause = f"the kernel, {facts.release}, lacks {', '.join(lacking)}"
            verdict = Verdict(cause, "boot an unmodified Linux 6.1 or newer", sizes=verdict.sizes)
        else:
            verdict = attrs.evolve(patience.ask(_try_run), sizes=verdict.sizes)
    groups = patience.ask(_try_groups) if verdict.usable else verdict
    return Report(facts, _versions(), flags, operations, features, mismatches, groups, verdict, prober.restricted)


def _versions() -> dict[str, str | None]:
    def installed(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    try:
        liburing = _shim().ffi.string(_shim().lib.tu_liburing_version()).decode()
    except ImportError:
        liburing = None
    return {
        "trio_uring": __version__,
        "python": platform.python_version(),
        "trio": installed("trio"),
        "anyio": installed("anyio"),
        "liburing": liburing,
        "kernel": platform.release(),
    }


# ---------------------------------------------------------------- telling


def _consequences(capability: Capability, restricted: bool) -> tuple[str, str]:
    """What is lost without it, and what to do."""
    if restricted:
        return (
            "a restriction of this process forbids it; what uses it is done as on epoll",
            "allow it where the restriction is made (container runtime, service manager)",
        )
    return capability.without or _NEEDED, f"boot Linux {capability.since} or newer"


def as_json(report: Report) -> dict[str, Any]:
    """The report in the form that `main` documents."""

    def entry(capability: Capability, available: bool | None, restricted: frozenset[int]) -> dict[str, Any]:
        effect, remedy = _consequences(capability, capability.number in restricted)
        return {
            "available": available,
            "needed": capability.without is None,
            "since": capability.since,
            "number": capability.number,
            "effect": effect if available is False else None,
            "remedy": remedy if available is False else None,
        }

    def table(rows: list[tuple[Capability, bool | None]], restricted: frozenset[int] = frozenset()) -> dict[str, Any]:
        return {capability.name: entry(capability, available, restricted) for capability, available in rows}

    facts, verdict = report.facts, report.verdict
    return {
        "usable": verdict.usable,
        "verdict": verdict.sentence(),
        "cause": verdict.cause,
        "remedy": verdict.remedy,
        "errno": None if verdict.code is None else errno.errorcode.get(verdict.code, str(verdict.code)),
        "ring": verdict.sizes and dict(zip(("sq_entries", "cq_entries"), verdict.sizes, strict=True)),
        "versions": report.versions,
        "limits": {
            "memlock": list(facts.memlock),
            "memlock_charged": facts.memlock_charged(),
            "nofile": list(facts.nofile),
            "open_files": facts.open_files,
            "max_workers": verdict.workers,
            "io_uring_disabled": facts.disabled,
            "io_uring_group": facts.group,
            "sysctl_forbids": facts.sysctl_forbids(),
            "seccomp": _seccomp(facts),
        },
        "setup_flags": table(report.flags),
        "operations": table(report.operations, report.restricted),
        "restricted": [each.name for each in OPERATIONS if each.number in report.restricted],
        "features": table(report.features),
        "seams": report.mismatches,
        "groups": {"usable": report.groups.usable, "cause": report.groups.cause, "remedy": report.groups.remedy},
    }


def _seccomp(facts: Facts) -> str | None:
    return None if facts.seccomp is None else ("none", "strict", "filter")[facts.seccomp]


def as_text(report: Report, colour: bool = False) -> Iterator[str]:
    """The report in lines; the last one is the verdict."""

    def answer(available: bool | None, width: int = 0) -> str:
        word, code = {True: ("yes", 32), False: ("no", 31), None: ("?", 33)}[available]
        padded = f"{word:<{width}}"
        return f"\x1b[{code}m{padded}\x1b[0m" if colour else padded

    yield "versions"
    for name, version in report.versions.items():
        yield f"  {name:<26}{version or 'not found'}"
    yield ""
    yield "limits"
    for name, text in _limits(report.facts, report.verdict.workers):
        yield f"  {name:<26}{text}"
    for title, rows in (
        ("set-up flags", report.flags),
        ("operations", report.operations),
        ("features", report.features),
    ):
        for kind in ("needed", "optional"):
            part = [(c, available) for c, available in rows if (c.without is None) == (kind == "needed")]
            yield ""
            yield f"{title}, {kind}"
            if all(available is None for _, available in part):
                yield "  unknown: the kernel gave no answer, see the last line"
                continue
            for start in range(0, len(part), 4):
                cells = (f"{answer(available, 4)}{c.name:<20}" for c, available in part[start : start + 4])
                yield "  " + "".join(cells).rstrip()
            for capability, available in part:
                if available is False:
                    restricted = title == "operations" and capability.number in report.restricted
                    effect, remedy = _consequences(capability, restricted)
                    yield f"  no {capability.name}: {effect}; {remedy}"
    yield ""
    yield "seams (the names of Trio and AnyIO that are replaced)"
    yield from (f"  {mismatch}" for mismatch in report.mismatches or ["all fit"])
    yield ""
    yield "ring groups (I/O on processors of its own)"
    groups = report.groups
    yield f"  {answer(groups.usable)}" + (
        "" if groups.usable else f": {groups.cause}. To change that: {groups.remedy}."
    )
    yield ""
    yield f"{answer(report.verdict.usable)}: {report.verdict.sentence()}"


def _limits(facts: Facts, workers: int | None) -> Iterator[tuple[str, str]]:
    def size(value: int | None) -> str:
        return "unlimited" if value is None else f"{value // 1024} KiB"

    def count(value: int | None) -> str:
        return "unlimited" if value is None else str(value)

    charged = "count" if facts.memlock_charged() else "do not count"
    soft, hard = facts.memlock
    yield "RLIMIT_MEMLOCK", f"{size(soft)} (at most {size(hard)}); rings of this process {charged}"
    soft, hard = facts.nofile
    used = "an unknown number" if facts.open_files is None else facts.open_files
    yield "RLIMIT_NOFILE", f"{count(soft)} (at most {count(hard)}); {used} open"
    allowed = "unknown" if workers is None else f"{workers} at a time, for what files and paths have to wait for"
    yield "kernel workers", allowed
    if facts.disabled is None:
        yield "kernel.io_uring_disabled", "not in this kernel or sandbox"
    else:
        verb = "forbids" if facts.sysctl_forbids() else "allows"
        yield "kernel.io_uring_disabled", f"{facts.disabled}: {verb} io_uring to this process"
        yield "kernel.io_uring_group", "unset" if facts.group in (None, -1) else str(facts.group)
    yield "seccomp", _seccomp(facts) or "unknown"


def main(argv: Sequence[str]) -> int:
    """`python -m trio_uring doctor [--json | --profile docker|podman|systemd]`; prints the report to standard output.

    Args:
      argv: the arguments after "doctor".

    Returns the exit code: 0 if and only if `trio.run(..., io_backend="uring")` works here, with the options
    of TRIO_URING_OPTIONS; 1 if it does not. Wrong arguments end the process with code 2 (argparse).

    `--profile` prints what to add to the confinement of a container or service, and is always 0.

    `--json` prints one object. Its keys, which later versions keep:
      usable: bool.
      verdict: str, one line for people.
      cause, remedy: str, as in `UringUnavailableError`; null if usable.
      errno: str, such as "EPERM"; null if there is none.
      ring: {sq_entries, cq_entries}, the sizes that the kernel made; null if it made none.
      versions: {trio_uring, python, trio, anyio, liburing, kernel}: str; null if not installed.
      limits: {memlock: [soft, hard] in bytes, memlock_charged: bool, whether rings of this process count,
        nofile: [soft, hard], open_files: int, max_workers: int, the kernel's that a run may have, io_uring_disabled: int,
        io_uring_group: int, sysctl_forbids: bool, seccomp: "none", "strict" or "filter"}; null for no limit and for not readable.
      setup_flags, operations, features: {NAME: {available: bool, null if the kernel gave no answer;
        needed: bool; since: str, a kernel version; number: int; effect, remedy: str, null unless
        available is false}}.
      restricted: list of str, the operations that the kernel has and that a restriction of this process forbids.
      seams: list of str, what of the installed Trio and AnyIO does not fit.
      groups: {usable: bool, whether a `RingGroup` works here; cause, remedy: as above}.
    """
    parser = argparse.ArgumentParser(
        prog="python -m trio_uring doctor",
        description="Tells whether io_uring can be used here, and what to change if not.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--profile", choices=sorted(PROFILES), help="print what to add there to allow io_uring, and try nothing"
    )
    arguments = parser.parse_args(argv)
    if arguments.profile:
        print(PROFILES[arguments.profile], end="")
        return 0
    report = examine()
    if arguments.json:
        print(json.dumps(as_json(report), indent=2))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(*as_text(report, colour), sep="\n")
    return 0 if report.verdict.usable else 1
