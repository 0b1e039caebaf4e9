"""Layer 1, groups of rings: loops compute on their processors, the kernel works for them on others. Knows rings and
processors; knows nothing of Trio.

A ring of a group is set up with IORING_SETUP_SQPOLL in place of DEFER_TASKRUN: a kernel thread, the poller, pinned to one of the
group's processors, takes what the loop queues and posts what has come of it, and the loop enters the kernel only to sleep. All
rings on one processor share one poller (IORING_SETUP_ATTACH_WQ) and through it one pool of workers, pinned to the same
processor. The poller is a thread of this process and lives as long as one of its rings.

What the kernel does not share, and does not check (kernel 6.18):

- Processes share no poller, whatever they inherit: each has its own, and several may be on one processor.
- The processor and the idle time of a second ring are not read: a poller spins for the longest idle time of its rings.
- The process's affinity is not asked; it is here.
- A poller works with the credentials that the process had when the ring was made. A program that gives up privileges must do so
  before its run begins.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import socket
import threading
import weakref
from collections.abc import Iterable, Set
from typing import Final

from .ring import Poller, Ring, lib

DEFAULT_IDLE: Final = 0.01
_MAX_IDLE: Final = 60.0


def parse_cpus(text: str) -> frozenset[int]:
    """The processors in a list as the kernel writes it: "6,8-11"; raises ValueError for anything else."""
    cpus: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part, re.ASCII)
        if not found or (found[2] and int(found[2]) < int(found[1])):
            raise ValueError(f"{text!r} is not a list of processors such as 6,8-11")
        cpus.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return frozenset(cpus)


def format_cpus(cpus: Iterable[int]) -> str:
    """The reverse of `parse_cpus`."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _listed(path: str) -> frozenset[int] | None:
    try:
        with open(path, encoding="ascii") as file:
            return parse_cpus(file.read())
    except (OSError, ValueError):
        return None


def _cpuset() -> frozenset[int] | None:
    """Where the cgroup lets this process run at all, its affinity left out; None where that cannot be told."""
    return _listed("/sys/fs/cgroup/cpuset.cpus.effective")


class RingGroup:
    """Processors that do the I/O of this process's loops: `trio.run(main, io_backend=UringBackend(group=RingGroup([6, 7])))`.

    Loops are dealt to the processors in turn, so that min(loops, processors) of them are in use; processes started by the same
    parent are dealt likewise. The thread of a loop is kept off all of the group's processors while its run lasts, and with it the
    threads and processes that it starts meanwhile.

    Args:
      cpus: the processors' numbers.
      idle: seconds, 0.001 to 60, for which a poller that has nothing to do keeps looking, at the full cost of its processor,
        before it sleeps; the kernel rounds up to its clock ticks (1 to 10 ms). A loop that finds it asleep wakes it with one
        system call.
      workers: the most kernel threads per processor that work on files at the same time (IORING_REGISTER_IOWQ_MAX_WORKERS,
        bounded); None for the kernel's own limit.

    Raises:
      TypeError: something else than ints in `cpus`, than a number as `idle`, than an int as `workers`.
      ValueError: no processors; one that does not exist, is offline, or is outside this process's affinity (sched_setaffinity(2))
        or cpuset (cpuset(7)); `idle` or `workers` out of range.

    Attributes:
      cpus: the processors (frozenset).
      idle, workers: as given.
    """

    _asks_affinity = True

    def __init__(self, cpus: Iterable[int], *, idle: float = DEFAULT_IDLE, workers: int | None = None) -> None:
        self.cpus: frozenset[int] = frozenset(cpus)
        if not all(isinstance(cpu, int) and not isinstance(cpu, bool) for cpu in self.cpus):
            raise TypeError(f"cpus must be ints, not {sorted(self.cpus, key=str)!r}")
        if not self.cpus:
            raise ValueError("cpus is empty: a group needs at least one processor for its I/O")
        _check_cpus(self.cpus, os.sched_getaffinity(0) if self._asks_affinity else self.cpus)
        if isinstance(idle, bool) or not isinstance(idle, (int, float)):
            raise TypeError(f"idle must be a number of seconds, not {idle!r}")
        if not 0.001 <= idle <= _MAX_IDLE:
            raise ValueError(f"idle must be 0.001 to {_MAX_IDLE:g} seconds, not {idle!r}")
        if workers is not None:
            if isinstance(workers, bool) or not isinstance(workers, int):
                raise TypeError(f"workers must be an int or None, not {workers!r}")
            if not 1 <= workers <= 65535:
                raise ValueError(f"workers must be 1 to 65535, not {workers}")
        self.idle: float = idle
        self.workers: int | None = workers
        self._forget()
        _groups.add(self)

    def __repr__(self) -> str:
        return f"RingGroup([{format_cpus(self.cpus)}], idle={self.idle!r}, workers={self.workers!r})"

    def _forget(self) -> None:
        """No ring yet; also in a forked child, to which none of them belongs."""
        self._lock = threading.Lock()
        # processor -> the descriptors of its rings
        self._rings: dict[int, list[int]] = {cpu: [] for cpu in sorted(self.cpus)}
        self._number: socket.socket | None = None
        self._first = 0

    def loops(self) -> dict[int, int]:
        """How many rings of this process each processor serves, by its number."""
        return {cpu: len(rings) for cpu, rings in self._rings.items()}

    def _make_ring(self, sq_entries: int = 512, cq_entries: int | None = None) -> GroupRing:
        """A ring of the group for the calling thread, which is kept off the group's processors until the ring is closed.

        Raises:
          ValueError: the thread may run on the group's processors only (sched_setaffinity(2)).
          UringUnavailableError: as `Ring`; also where a processor has gone offline or out of the cpuset since.
        """
        allowed = os.sched_getaffinity(0)
        if not allowed - self.cpus:
            raise ValueError(
                f"this thread may run on processors {format_cpus(allowed)} only, which are the I/O processors of its ring group: "
                "give the loop a processor of its own (taskset(1), os.sched_setaffinity), or the group fewer"
            )
        with self._lock:
            cpu = self._next_cpu()
            others = self._rings[cpu]
            poller = Poller(cpu, round(self.idle * 1000), others[0] if others else -1)
            ring = GroupRing(self, sq_entries, cq_entries, poller)
            others.append(ring.fileno())
        try:
            ring.limit_workers(cpu, self.workers)
            if allowed & self.cpus:
                os.sched_setaffinity(0, allowed - self.cpus)
                ring.affinity = allowed
        except BaseException:
            ring.close()
            raise
        return ring

    def _next_cpu(self) -> int:
        """The processor with the fewest loops; of several the one whose turn it is."""
        cpus = list(self._rings)
        if len(cpus) > 1 and not any(self._rings.values()):
            self._number, self._first = _process_number(self.cpus)
        turn = cpus[self._first % len(cpus) :] + cpus[: self._first % len(cpus)]
        return min(turn, key=lambda cpu: len(self._rings[cpu]))

    def _left(self, ring: GroupRing) -> None:
        """The ring is about to be closed: nothing is attached to it any more."""
        with self._lock:
            self._rings[ring.cpu].remove(ring.fileno())
            if self._number is not None and not any(self._rings.values()):
                self._number.close()
                self._number = None

    def _after_fork(self) -> None:
        if self._number is not None:
            self._number.close()
        self._forget()


_groups: weakref.WeakSet[RingGroup] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for group in list(_groups):
        group._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


class GroupRing(Ring):
    """A ring that a group has made.

    Attributes:
      group: which.
      cpu: the processor of its poller and workers.
      affinity: where the thread may run once the ring is closed; None for where it is.
    """

    affinity: set[int] | None = None

    def __init__(self, group: RingGroup, sq_entries: int, cq_entries: int | None, poller: Poller) -> None:
        super().__init__(sq_entries, cq_entries, poller)
        self.group = group
        self.cpu = poller.cpu

    def close(self, timeout: float = 2.0, keep: object = None) -> list[int]:
        """As `Ring.close`; the thread may then run where it could before."""
        if self.closed:
            return []
        self.group._left(self)
        try:
            return super().close(timeout, keep)
        finally:
            if self.affinity is not None and lib.tu_is_owner(self._r):
                affinity, self.affinity = self.affinity, None
                with contextlib.suppress(OSError):  # the cpuset has changed, and the kernel moved us
                    os.sched_setaffinity(0, affinity)


def _check_cpus(cpus: frozenset[int], affinity: Set[int]) -> None:
    present = _listed("/sys/devices/system/cpu/present")
    online = _listed("/sys/devices/system/cpu/online")
    cpuset = _cpuset()
    for cpu in sorted(cpus):
        if cpu < 0 or (present is not None and cpu not in present):
            has = f"it has {format_cpus(present)}" if present else "a number is 0 or more"
            raise ValueError(f"processor {cpu} does not exist on this machine: {has}")
        if online is not None and cpu not in online:
            raise ValueError(f"processor {cpu} is offline: this machine has {format_cpus(online)} online")
        if cpuset is not None and cpu not in cpuset:
            raise ValueError(
                f"processor {cpu} is outside the cpuset of this process, which is {format_cpus(cpuset)} (cpuset(7))"
            )
        if cpu not in affinity:
            raise ValueError(
                f"processor {cpu} is outside the affinity of this thread, which is {format_cpus(affinity)} "
                "(taskset(1), os.sched_setaffinity)"
            )


def _process_number(cpus: frozenset[int]) -> tuple[socket.socket | None, int]:
    """A number that none of the processes of the same parent has that use the same processors, and what holds it.

    The name of a UNIX socket that is in no file system: only one process can have it, and it is free again when that ends.
    """
    for number in range(4096):
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(f"\0trio-uring/{os.getuid()}/{os.getppid()}/{format_cpus(cpus)[:60]}/{number}")
        except OSError as error:
            holder.close()
            if error.errno != errno.EADDRINUSE:
                break
        else:
            return holder, number
    return None, os.getpid()


class InheritedGroup(RingGroup):
    """A group that a process was started with, by its environment or as a shard.

    A loop passes it on to the processes that it starts, together with an affinity that leaves its processors out: so that is not
    asked.
    """

    _asks_affinity = False


@functools.cache
def shared_group(cpus: frozenset[int]) -> RingGroup:
    """The group that TRIO_URING_OPTIONS means: one for all runs of this process."""
    return InheritedGroup(cpus)
