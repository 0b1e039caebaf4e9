"""Timeouts that do not expire: each receive has a deadline of its own, as every well-behaved server's has."""

from __future__ import annotations

import trio

from benchmarks.model import Case, Stage, Workload
from benchmarks.workloads.churn import NOT_SLOWER

WORKLOAD = Workload(
    name="timeouts",
    title="a message there and back, each receive under a deadline",
    job="timeouts",
    cases=(
        Case(label="1", title="1 pair of sockets", tasks=1, targets=NOT_SLOWER),
        Case(label="50", title="50 pairs of sockets", tasks=50, targets=NOT_SLOWER, quick=False),
    ),
)


async def _echo(sock: trio.socket.SocketType) -> None:
    while True:
        with trio.fail_after(30):
            data = await sock.recv(1024)
        await sock.send(data)


async def _client(sock: trio.socket.SocketType, stage: Stage) -> None:
    for _ in stage.laps():
        await sock.send(b"x" * 100)
        with trio.fail_after(30):
            await sock.recv(1024)


async def main(stage: Stage) -> None:
    async with trio.open_nursery() as servers:
        async with trio.open_nursery() as clients:
            for _ in range(stage.tasks):
                left, right = trio.socket.socketpair()
                servers.start_soon(_echo, right)
                clients.start_soon(_client, left, stage)
        servers.cancel_scope.cancel()
