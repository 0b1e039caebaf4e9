"""Echo of 1 KiB messages over trio.SocketStream: what serve_tcp gives to an application."""

from __future__ import annotations

import trio

from benchmarks.contenders import CHUNK
from benchmarks.model import Case, Load, Stage, Target, Workload

_CPU = (
    Target(metric="cpu_us", at_most=0.42, of="trio-epoll"),
    Target(metric="cpu_us", at_most=1.0, of="uvloop-streams"),
)

WORKLOAD = Workload(
    name="echo_stream_1k",
    title="echo of 1 KiB over SocketStream",
    job="echo",
    cases=(
        Case(
            label="50",
            title="50 connections",
            load=Load(connections=50, size=1024),
            targets=(*_CPU, Target(metric="calls", at_most=0.10)),
        ),
        Case(label="500", title="500 connections", load=Load(connections=500, size=1024), quick=False, targets=_CPU),
    ),
)


async def _echo(stream: trio.SocketStream) -> None:
    while data := await stream.receive_some(CHUNK):
        await stream.send_all(data)


async def main(stage: Stage) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    stage.serving(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(_echo, listeners)
