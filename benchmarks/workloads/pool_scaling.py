"""trio_uring.RingPool by the number of threads: lists of 64 reads of 4 KiB from the page cache, into buffers used again.

As many rings as threads, 8 at most.
"""

from __future__ import annotations

import trio

from benchmarks.model import Case, Stage, Workload
from benchmarks.pool import COUNT, into_buffers, play

WORKLOAD = Workload(
    name="pool_scaling",
    title=f"a pool of rings, lists of {COUNT} reads of 4 KiB from the page cache",
    job="pool_cached",
    axis="threads",
    plotted="rate",
    cases=tuple(
        Case(label=str(n), title=f"{n} threads", tasks=n, block=1, lap=COUNT, at=n, quick=False, count_calls=False)
        for n in (1, 2, 4, 8, 16, 32, 64)
    ),
)


async def main(stage: Stage) -> None:
    await trio.to_thread.run_sync(play, stage, into_buffers)
