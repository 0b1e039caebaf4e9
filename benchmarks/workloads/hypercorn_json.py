"""A small JSON answer by Hypercorn's trio worker, fetched by wrk. Most of a request is the server's own."""

from __future__ import annotations

import importlib
import socket
from functools import partial
from typing import Any

import trio

from benchmarks.model import Case, Load, Stage, Target, Workload

BODY = b'{"message": "Hello, World!"}'

WORKLOAD = Workload(
    name="hypercorn_json",
    title="a JSON answer under Hypercorn",
    job="hypercorn_json",
    cases=(
        Case(
            title="50 connections",
            load=Load(connections=50, size=len(BODY), page="/json"),
            count_calls=False,  # wrk cannot be told how many requests to make
            targets=(Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),),
        ),
    ),
)


async def answer(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def serve(app: Any, stage: Stage) -> None:
    """An ASGI application under Hypercorn in this run, until the harness ends it."""
    config_module: Any = importlib.import_module("hypercorn.config")
    hypercorn: Any = importlib.import_module("hypercorn.trio")
    listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
    port = listener.getsockname()[1]
    config = config_module.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(hypercorn.serve, app, config, mode="asgi"))
        stage.serving(port)


async def main(stage: Stage) -> None:
    await serve(answer, stage)
