"""trio_uring.RingPool: 8 threads, lists of 1,024 reads of 4 KiB with O_DIRECT, 32 in flight in each; fio: 8 jobs, depth 32."""

from __future__ import annotations

import os

import trio

from benchmarks.model import Case, Stage, Target, Workload
from benchmarks.pool import into_buffers, play

DEPTH = 32
COUNT = 1024

WORKLOAD = Workload(
    name="pool_direct",
    title=f"a pool of rings, 8 threads, {DEPTH} reads of 4 KiB with O_DIRECT in flight in each",
    job="pool_direct",
    cases=(
        Case(
            title="8 threads",
            tasks=8,
            lap=COUNT,
            count_calls=False,
            targets=(Target(metric="rate", at_least=0.9, of="fio"),),
        ),
    ),
)


async def main(stage: Stage) -> None:
    await trio.to_thread.run_sync(play, stage, into_buffers, os.O_DIRECT, COUNT, DEPTH)
