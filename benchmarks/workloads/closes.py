"""What the close of a socket with a receive in flight costs beside idle connections: make it, wait on it, close it, again."""

from __future__ import annotations

import contextlib

import trio

from benchmarks.model import Stage, Target, Workload
from benchmarks.workloads.cancels import beside_others, cases
from benchmarks.workloads.udp_echo import bound

WORKLOAD = Workload(
    name="closes",
    title="a socket closed under its receive",
    job="closes",
    axis="idle connections",
    cases=cases("beside", Target(metric="cpu_us", at_most=1.3, of="trio-epoll")),
)


async def _receive_until_closed(sock: trio.socket.SocketType) -> None:
    with contextlib.suppress(trio.ClosedResourceError):
        await sock.recv(100)
        raise RuntimeError("nobody sent anything")


async def main(stage: Stage) -> None:
    async def once() -> None:
        sock = await bound()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receive_until_closed, sock)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            sock.close()

    await beside_others(stage, once)
