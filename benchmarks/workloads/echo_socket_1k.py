"""Echo of 1 KiB messages over trio.socket: accept, recv and send, with no stream in between."""

from __future__ import annotations

import trio

from benchmarks.contenders import BACKLOG, CHUNK
from benchmarks.model import Case, Load, Stage, Target, Workload

WORKLOAD = Workload(
    name="echo_socket_1k",
    title="echo of 1 KiB over trio.socket",
    job="echo",
    cases=(
        Case(
            label="50",
            title="50 connections",
            load=Load(connections=50, size=1024),
            targets=(
                Target(metric="cpu_us", at_most=0.62, of="trio-epoll"),
                Target(metric="calls", at_most=0.10),
            ),
        ),
    ),
)


async def _echo(connection: trio.socket.SocketType) -> None:
    with connection:
        while data := await connection.recv(CHUNK):
            sent = await connection.send(data)
            while sent < len(data):
                sent += await connection.send(memoryview(data)[sent:])


async def main(stage: Stage) -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)
        stage.serving(listener.getsockname()[1])
        async with trio.open_nursery() as nursery:
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(_echo, connection)
