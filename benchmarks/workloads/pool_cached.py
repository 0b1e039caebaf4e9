"""trio_uring.RingPool: 8 threads, lists of 64 reads of 4 KiB from the page cache, into buffers used again or into new bytes.

The floor is C with one ring for each thread, with memory as the contender's: used again, or from malloc for each block.
"""

from __future__ import annotations

import trio

from benchmarks.model import Case, Stage, Target, Workload
from benchmarks.pool import COUNT, by_prepared_list, into_buffers, play

TARGETS = (
    Target(metric="rate", at_least=0.85, of="c-floor"),
    Target(metric="rate", at_least=3.0, of="trio-threads"),
)
INTO = 1
WORKLOAD = Workload(
    name="pool_cached",
    title=f"a pool of rings, 8 threads, lists of {COUNT} reads of 4 KiB from the page cache",
    job="pool_cached",
    cases=(
        Case(label="into", title="into buffers", tasks=8, block=INTO, lap=COUNT, count_calls=False, targets=TARGETS),
        Case(label="bytes", title="into new bytes", tasks=8, lap=COUNT, count_calls=False, targets=TARGETS),
    ),
)


async def main(stage: Stage) -> None:
    await trio.to_thread.run_sync(play, stage, into_buffers if stage.block == INTO else by_prepared_list)
