"""A web application on Quart-Trio. It knows nothing of trio-uring."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
from quart import request, websocket
from quart_trio import QuartTrio
from served import facts

app = QuartTrio(__name__)


@app.get("/backend")
async def backend() -> dict[str, object]:
    return facts()


@app.post("/reverse")
async def reverse() -> dict[str, str]:
    return {"reversed": (await request.get_json())["text"][::-1]}


@app.get("/stream")
async def stream() -> AsyncIterator[bytes]:
    async def numbers() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d\n" % number
            await trio.lowlevel.checkpoint()

    return numbers()


@app.get("/together")
async def together() -> list[int]:
    """Ten tasks of a nursery, each with a connection of its own."""
    found: list[int] = []

    async def one(number: int) -> None:
        left, right = trio.socket.socketpair()
        with left, right:
            await left.send(bytes([number]))
            found.append((await right.recv(1))[0])

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(one, number)
    return sorted(found)


@app.websocket("/echo")
async def echo() -> None:
    while True:
        await websocket.send(await websocket.receive())
