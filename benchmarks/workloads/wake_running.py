"""A wake-up of a loop that does not sleep: a call that the loop's own thread asks for, and waits for."""

from __future__ import annotations

import trio

from benchmarks.model import Case, Stage, Target, Workload

WORKLOAD = Workload(
    name="wake_running",
    title="a wake-up of a loop that does not sleep",
    job="wake_running",
    cases=(Case(title="run_sync_soon", targets=(Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),)),),
)


async def main(stage: Stage) -> None:
    token = trio.lowlevel.current_trio_token()
    for _ in stage.laps():
        event = trio.Event()
        token.run_sync_soon(event.set)
        await event.wait()
