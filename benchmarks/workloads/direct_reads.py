"""Reads of 4 KiB at random places with O_DIRECT, and of a file that has been dropped from the page cache: trio_uring.read_at.

What is at hand is tried first, in vain here: this is what the attempt costs where a device has to be waited for anyway.
"""

from __future__ import annotations

import os

import trio

import trio_uring
from benchmarks.files import BLOCK, BLOCKS, check, file_of_blocks, offsets
from benchmarks.model import Case, Stage, Target, Workload

TASKS = {"direct_1": 1, "direct_32": 32, "cold_1": 1, "cold_32": 32}

WORKLOAD = Workload(
    name="direct_reads",
    title="positional reads of 4 KiB that wait for the device",
    job="direct_reads",
    cases=tuple(
        Case(
            label=label,
            title=f"{label.partition('_')[0]}, {tasks} task{'s' * (tasks > 1)}",
            tasks=tasks,
            block=int(label.startswith("cold")),
            count_calls=False,
            targets=(Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),),
        )
        for label, tasks in TASKS.items()
    ),
)


async def _read(fd: int, stage: Stage, seed: int) -> None:
    places = offsets(seed)
    for lap, _ in enumerate(stage.laps()):
        if stage.block and not lap % 256:
            os.posix_fadvise(fd, 0, BLOCKS * BLOCK, os.POSIX_FADV_DONTNEED)
        place = next(places)
        check(place, await trio_uring.read_at(fd, BLOCK, place))


async def main(stage: Stage) -> None:
    fd = os.open(file_of_blocks(), os.O_RDONLY | (0 if stage.block else os.O_DIRECT))
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # what is read ahead would be at hand
        async with trio.open_nursery() as nursery:
            for seed in range(stage.tasks):
                nursery.start_soon(_read, fd, stage, seed)
    finally:
        os.close(fd)
