"""Reads of 4 KiB at random places of a file that is in the page cache: trio_uring.read_at.

On epoll that is a thread; the contender trio-threads does the same job as one writes it with Trio alone, which is the least that
Trio's threads can take, and targets are held against it.
"""

from __future__ import annotations

import os

import trio

import trio_uring
from benchmarks.files import BLOCK, cached, check, file_of_blocks, offsets
from benchmarks.model import Case, Stage, Target, Workload

WORKLOAD = Workload(
    name="read_4k",
    title="positional reads of 4 KiB from the page cache",
    job="read_4k",
    cases=(
        Case(
            label="1",
            title="1 task",
            tasks=1,
            targets=(
                Target(metric="rate", at_least=12.0, of="trio-threads"),
                Target(metric="threads", at_most=0),
            ),
        ),
        Case(
            label="32",
            title="32 tasks",
            tasks=32,
            targets=(
                Target(metric="rate", at_least=10.0, of="trio-threads"),
                Target(metric="cpu_us", at_most=10.0),
                Target(metric="threads", at_most=0),
            ),
        ),
    ),
)


async def _read(fd: int, stage: Stage, seed: int) -> None:
    places = offsets(seed)
    for _ in stage.laps():
        place = next(places)
        check(place, await trio_uring.read_at(fd, BLOCK, place))


async def main(stage: Stage) -> None:
    fd = os.open(cached(file_of_blocks()), os.O_RDONLY)
    try:
        async with trio.open_nursery() as nursery:
            for seed in range(stage.tasks):
                nursery.start_soon(_read, fd, stage, seed)
    finally:
        os.close(fd)
