"""What a read costs by how many are in flight: read_many with O_DIRECT, 4 KiB at random places, depth 1 to 256."""

from __future__ import annotations

import os

import trio_uring
from benchmarks.files import BLOCK, check, file_of_blocks, offsets
from benchmarks.model import Case, Stage, Workload

BATCH = 1024

WORKLOAD = Workload(
    name="read_depth",
    title="batches of 1,024 reads of 4 KiB with O_DIRECT",
    job="read_depth",
    axis="reads in flight",
    cases=tuple(
        Case(label=str(depth), title=f"depth {depth}", tasks=depth, lap=BATCH, at=depth, quick=False, count_calls=False)
        for depth in (1, 4, 16, 64, 256)
    ),
)


async def main(stage: Stage) -> None:
    places = offsets(1)
    fd = os.open(file_of_blocks(), os.O_RDONLY | os.O_DIRECT)
    try:
        for _ in stage.laps():
            batch = [(next(places), BLOCK) for _ in range(BATCH)]
            data = (await trio_uring.read_many(fd, batch, depth=stage.tasks))[-1]
            if isinstance(data, Exception):
                raise data
            check(batch[-1][0], data)
    finally:
        os.close(fd)
