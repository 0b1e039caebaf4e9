"""An idle tick: one task that gives up its turn. Nothing is queued and nothing is pending: there is nothing to ask the kernel."""

from __future__ import annotations

import trio

from benchmarks.model import Case, Stage, Target, Workload

TICKS = 100

WORKLOAD = Workload(
    name="idle_tick",
    title="an idle tick",
    job="idle_tick",
    cases=(
        Case(
            title="checkpoint()",
            lap=TICKS,
            targets=(
                Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),
                Target(metric="calls", at_most=0.001),
            ),
        ),
    ),
)


async def main(stage: Stage) -> None:
    for _ in stage.laps():
        for _ in range(TICKS):
            await trio.lowlevel.checkpoint()
