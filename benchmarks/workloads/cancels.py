"""What one cancelled receive costs beside others that wait: begin it, cancel it, again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from benchmarks.model import Case, Stage, Target, Workload
from benchmarks.workloads.udp_echo import bound

AT = (1, 10, 100, 1000, 10_000)


def cases(what: str, *targets: Target) -> tuple[Case, ...]:
    """One for each number of others; the number is the case's `tasks`."""
    return tuple(
        Case(
            label=str(number),
            title=f"{what} {number:,} in flight",
            tasks=number,
            at=number,
            quick=number in (1, 1000),
            count_calls=False,
            targets=targets,
        )
        for number in AT
    )


WORKLOAD = Workload(
    name="cancels",
    title="a receive begun and cancelled",
    job="cancels",
    axis="receives in flight",
    cases=cases("beside", Target(metric="cpu_us", at_most=1.3, of="trio-epoll")),
)


async def beside_others(stage: Stage, once: Callable[[], Awaitable[None]]) -> None:
    """Laps of `once` while as many tasks as the stage says wait for a datagram, each on a socket of its own."""
    async with trio.open_nursery() as waiting:
        for _ in range(stage.tasks):
            waiting.start_soon((await bound()).recv, 100)
        await trio.testing.wait_all_tasks_blocked()
        for _ in stage.laps():
            await once()
        waiting.cancel_scope.cancel()


async def main(stage: Stage) -> None:
    sock = await bound()

    async def once() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.recv, 100)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()  # the kernel has been told
            nursery.cancel_scope.cancel()

    await beside_others(stage, once)
