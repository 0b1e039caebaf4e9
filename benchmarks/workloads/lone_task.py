"""One task that works alone and finds its data at hand: the calls of which an ordinary program makes one after the other."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from benchmarks.model import Case, Stage, Target, Workload

Once = Callable[[], Awaitable[object]]

_AT_MOST: dict[str, float] = {
    "checkpoint": 1.0,
    "send_recv": 1.0,
    "sendmsg_recvmsg": 1.0,
    "recv_into": 1.0,
    "sendto_recvfrom": 1.0,
    "recv_under_a_deadline": 1.0,
    "pipe": 1.0,
    "wait_readable": 1.0,
    "accept": 1.0,
}

WORKLOAD = Workload(
    name="lone_task",
    title="one task, its data at hand",
    job="lone_task",
    cases=tuple(
        Case(
            label=label,
            title=label.replace("_", " "),
            block=number,  # which it is
            targets=(Target(metric="cpu_us", at_most=bound, of="trio-epoll"),),
        )
        for number, (label, bound) in enumerate(_AT_MOST.items())
    ),
)


@asynccontextmanager
async def _prepared(label: str) -> AsyncIterator[Once]:
    message = b"x" * 100
    memory = bytearray(1024)
    left, right = trio.socket.socketpair()
    reader, writer = (trio.lowlevel.FdStream(fd) for fd in os.pipe())
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen()
    first, second = (trio.socket.socket(type=trio.socket.SOCK_DGRAM) for _ in range(2))
    for sock in first, second:
        await sock.bind(("127.0.0.1", 0))
    address = second.getsockname()

    async def send_recv() -> None:
        await left.send(message)
        await right.recv(1024)

    async def sendmsg_recvmsg() -> None:
        await left.sendmsg([message])
        await right.recvmsg(1024)

    async def recv_into() -> None:
        await left.send(message)
        await right.recv_into(memory)

    async def sendto_recvfrom() -> None:
        await first.sendto(message, address)
        await second.recvfrom(1024)

    async def recv_under_a_deadline() -> None:
        await left.send(message)
        with trio.fail_after(30):
            await right.recv(1024)

    async def pipe() -> None:
        await writer.send_all(message)
        await reader.receive_some(1024)

    async def wait_readable() -> None:
        await trio.lowlevel.wait_readable(right)

    async def accept() -> None:
        with trio.socket.socket() as client:
            await client.connect(listener.getsockname())
            accepted, _ = await listener.accept()
            accepted.close()

    calls: dict[str, Once] = {
        "checkpoint": trio.lowlevel.checkpoint,
        "send_recv": send_recv,
        "sendmsg_recvmsg": sendmsg_recvmsg,
        "recv_into": recv_into,
        "sendto_recvfrom": sendto_recvfrom,
        "recv_under_a_deadline": recv_under_a_deadline,
        "pipe": pipe,
        "wait_readable": wait_readable,
        "accept": accept,
    }
    if label == "wait_readable":
        await left.send(message)
    try:
        yield calls[label]
    finally:
        for stream in reader, writer:
            await stream.aclose()
        for sock in left, right, listener, first, second:
            sock.close()


async def main(stage: Stage) -> None:
    async with _prepared(tuple(_AT_MOST)[stage.block]) as once:
        for _ in stage.laps():
            await once()
