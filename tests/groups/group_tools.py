"""What the tests of groups share: an I/O processor, and what /proc says of the threads on it. Knows no Trio."""

from __future__ import annotations

import os
import time
from pathlib import Path

from trio_uring import RingGroup

# Without a second processor, or where this process may use only one, poller and loop would share it, which a group refuses.
ALLOWED = sorted(os.sched_getaffinity(0))
assert len(ALLOWED) > 1, "these tests need two processors"
IO_CPU = ALLOWED[-1]
LOOP_CPUS = set(ALLOWED[:-1])
PATIENCE = 200.0


def io_group(idle: float = 0.01, workers: int | None = None) -> RingGroup:
    """A group on the I/O processor."""
    return RingGroup([IO_CPU], idle=idle, workers=workers)


def threads(prefix: str) -> dict[int, set[int]]:
    """The threads of this process whose names begin so, and where each may run. The names of rings' threads begin with "iou-"."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            allowed = os.sched_getaffinity(int(task.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if name.startswith(prefix):
            found[int(task.name)] = allowed
    return found


def pollers(count: int = 1) -> list[int]:
    """That many pollers, as soon as there are; each gives itself its name when it begins to run."""
    until = time.monotonic() + PATIENCE
    while len(threads("iou-sqp")) != count and time.monotonic() < until:
        time.sleep(0.001)
    found = list(threads("iou-sqp"))
    assert len(found) == count
    return found


def gone(prefix: str) -> bool:
    """Whether no thread of that name is left, or will be in a moment."""
    until = time.monotonic() + PATIENCE
    while threads(prefix) and time.monotonic() < until:
        time.sleep(0.001)
    return not threads(prefix)


def ticks_of(thread: int) -> int:
    """The processor time that a thread of this process has taken, in clock ticks (proc_pid_stat(5): utime and stime)."""
    fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def sleeping(thread: int) -> bool:
    """Whether a thread goes to sleep within the time of patience."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] == "S":
            return True
        time.sleep(0.001)
    return False
