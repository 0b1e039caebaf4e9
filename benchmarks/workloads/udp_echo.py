"""Echo of datagrams of 100 bytes by sendto and recvfrom. Clients and server are tasks of one process (trio#1595)."""

from __future__ import annotations

import trio

from benchmarks.model import Case, Stage, Workload
from benchmarks.workloads.churn import NOT_SLOWER

WORKLOAD = Workload(
    name="udp_echo",
    title="echo of datagrams of 100 bytes",
    job="udp_echo",
    cases=(
        Case(label="1", title="1 client", tasks=1, targets=NOT_SLOWER),
        Case(label="50", title="50 clients", tasks=50, targets=NOT_SLOWER, quick=False),
    ),
)


async def bound() -> trio.socket.SocketType:
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))
    return sock


async def _serve(sock: trio.socket.SocketType) -> None:
    while True:
        data, address = await sock.recvfrom(2048)
        await sock.sendto(data, address)


async def _client(address: tuple[str, int], stage: Stage) -> None:
    message = b"x" * 100
    with await bound() as sock:
        for _ in stage.laps():
            await sock.sendto(message, address)
            if (await sock.recvfrom(2048))[0] != message:
                raise RuntimeError("another answer")


async def main(stage: Stage) -> None:
    with await bound() as sock:
        async with trio.open_nursery() as server:
            server.start_soon(_serve, sock)
            async with trio.open_nursery() as clients:
                for _ in range(stage.tasks):
                    clients.start_soon(_client, sock.getsockname(), stage)
            server.cancel_scope.cancel()
