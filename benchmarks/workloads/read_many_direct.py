"""trio_uring.read_many: batches of 1,024 reads of 4 KiB at random places, 32 in flight, with O_DIRECT."""

from __future__ import annotations

import os

from benchmarks.files import file_of_blocks
from benchmarks.model import Case, Stage, Target, Workload
from benchmarks.workloads.read_many_cached import BATCH, DEPTH, read

WORKLOAD = Workload(
    name="read_many_direct",
    title="batches of 1,024 reads of 4 KiB with O_DIRECT",
    job="read_many_direct",
    cases=(
        Case(
            title=f"depth {DEPTH}",
            lap=BATCH,
            count_calls=False,
            targets=(
                Target(metric="rate", at_least=0.85, of="fio"),
                Target(metric="threads", at_most=0),
            ),
        ),
    ),
)


async def main(stage: Stage) -> None:
    await read(stage, file_of_blocks(), os.O_DIRECT)
