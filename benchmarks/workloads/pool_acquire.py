"""trio_uring.RingPool: a ring is borrowed and given back, in one thread."""

from __future__ import annotations

import trio

from benchmarks.model import Case, Stage, Target, Workload

LAP = 1000

WORKLOAD = Workload(
    name="pool_acquire",
    title="a ring of a pool is acquired and released",
    job="pool_acquire",
    cases=(
        Case(
            title="one thread",
            lap=LAP,
            count_calls=False,
            targets=(Target(metric="cpu_us", at_most=2.0),),
        ),
    ),
)


def borrow(stage: Stage) -> None:
    import trio_uring

    with trio_uring.RingPool(2) as pool:
        for _ in stage.laps():
            for _ in range(LAP):
                with pool.acquire():
                    pass


async def main(stage: Stage) -> None:
    await trio.to_thread.run_sync(borrow, stage)
