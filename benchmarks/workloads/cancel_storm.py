"""A cancellation storm: a thousand receives begun, and cancelled with their scope. A lap is a storm; figures are for one."""

from __future__ import annotations

import trio
import trio.testing

from benchmarks.model import Case, Stage, Target, Workload
from benchmarks.workloads.udp_echo import bound

STORM = 1000

WORKLOAD = Workload(
    name="cancel_storm",
    title="receives begun, and cancelled all at once",
    job="cancel_storm",
    cases=(
        Case(
            title=f"{STORM:,} receives",
            lap=STORM,
            count_calls=False,
            targets=(Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),),
        ),
    ),
)


async def main(stage: Stage) -> None:
    sockets = [await bound() for _ in range(STORM)]
    for _ in stage.laps():
        async with trio.open_nursery() as nursery:
            for sock in sockets:
                nursery.start_soon(sock.recv, 100)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
