"""trio_uring.read_many: batches of 1,024 reads of 4 KiB at random places, from the page cache."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import trio_uring
from benchmarks.files import BLOCK, cached, check, file_of_blocks, offsets
from benchmarks.model import Case, Stage, Target, Workload

BATCH = 1024
DEPTH = 32

WORKLOAD = Workload(
    name="read_many_cached",
    title="batches of 1,024 reads of 4 KiB from the page cache",
    job="read_many_cached",
    cases=(
        Case(
            title=f"depth {DEPTH}",
            lap=BATCH,
            count_calls=False,
            targets=(
                Target(metric="cpu_us", at_most=1.35, of="c-floor"),
                Target(metric="threads", at_most=0),
            ),
        ),
    ),
)


async def read(stage: Stage, path: Path, flags: int = 0) -> None:
    """Batches until the window is over; the last block of each is checked, since checking all would be measured too."""
    places = offsets(1)
    batches = itertools.cycle([[(next(places), BLOCK) for _ in range(BATCH)] for _ in range(4)])
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        for _ in stage.laps():
            batch = next(batches)
            results = await trio_uring.read_many(fd, batch, depth=DEPTH)
            data = results[-1]
            if isinstance(data, Exception):
                raise data
            check(batch[-1][0], data)
    finally:
        os.close(fd)


async def main(stage: Stage) -> None:
    await read(stage, cached(file_of_blocks()))
