"""Tail latency under mixed load (trio#604): small exchanges, each of which is measured, beside streams that never pause."""

from __future__ import annotations

import trio

from benchmarks.model import Case, Stage, Target, Workload

SMALL = 8
PART = bytes(64 * 1024)
TARGETS = (Target(metric="p99_us", at_most=1.0, of="trio-epoll"),)

WORKLOAD = Workload(
    name="mixed",
    title="small exchanges beside bulk streams",
    job="mixed",
    axis="bulk streams",
    plotted="p99_us",
    cases=tuple(
        Case(
            label=str(bulk),
            title=f"{SMALL} small ones beside {bulk}",
            tasks=bulk,
            at=bulk,
            quick=bulk == 16,
            count_calls=False,
            targets=TARGETS if bulk == 16 else (),
        )
        for bulk in (1, 4, 16, 64)
    ),
)


async def _send(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(PART)


async def _receive(stream: trio.SocketStream) -> None:
    while await stream.receive_some(len(PART)):
        pass


async def _echo(stream: trio.SocketStream) -> None:
    while data := await stream.receive_some(1024):
        await stream.send_all(data)


async def _small(stream: trio.SocketStream, stage: Stage) -> None:
    for _ in stage.laps():
        await stream.send_all(b"x" * 100)
        await stream.receive_some(1024)


async def main(stage: Stage) -> None:
    def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
        left, right = trio.socket.socketpair()
        return trio.SocketStream(left), trio.SocketStream(right)

    async with trio.open_nursery() as others:
        for _ in range(stage.tasks):
            left, right = pair()
            others.start_soon(_send, left)
            others.start_soon(_receive, right)
        async with trio.open_nursery() as small:
            for _ in range(SMALL):
                left, right = pair()
                others.start_soon(_echo, right)
                small.start_soon(_small, left, stage)
        others.cancel_scope.cancel()
