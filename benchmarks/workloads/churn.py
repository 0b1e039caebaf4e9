"""Connection churn: connect, one echo, close, over and over. Clients and server are tasks of one process."""

from __future__ import annotations

import trio

from benchmarks.contenders import CHUNK
from benchmarks.model import Case, Stage, Target, Workload

NOT_SLOWER = (Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),)

WORKLOAD = Workload(
    name="churn",
    title="connect, one echo of 100 bytes, close",
    job="churn",
    cases=(
        Case(label="1", title="1 client", tasks=1, targets=NOT_SLOWER, quick=False),
        Case(label="50", title="50 clients", tasks=50, targets=NOT_SLOWER),
    ),
)


async def _echo(stream: trio.SocketStream) -> None:
    await stream.send_all(await stream.receive_some(CHUNK))


async def _client(address: tuple[str, int], stage: Stage) -> None:
    message = b"x" * 100
    for _ in stage.laps():
        with trio.socket.socket() as sock:
            await sock.connect(address)
            await sock.send(message)
            if await sock.recv(CHUNK) != message:
                raise RuntimeError("another answer")


async def main(stage: Stage) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()
    async with trio.open_nursery() as server:
        server.start_soon(trio.serve_listeners, _echo, listeners)
        async with trio.open_nursery() as clients:
            for _ in range(stage.tasks):
                clients.start_soon(_client, address, stage)
        server.cancel_scope.cancel()
