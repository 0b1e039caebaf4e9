"""Echo of 1 KiB over trio.SSLStream on TCP, both ends in one process: most of it is OpenSSL's and Trio's own."""

from __future__ import annotations

import importlib
import ssl
from typing import Any

import trio

from benchmarks.contenders import CHUNK
from benchmarks.model import Case, Stage, Workload
from benchmarks.workloads.churn import NOT_SLOWER

WORKLOAD = Workload(
    name="tls_echo",
    title="echo of 1 KiB over TLS",
    job="tls_echo",
    cases=(Case(title="20 connections", tasks=20, targets=NOT_SLOWER),),
)


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For the server and for the client, who trusts it."""
    trustme: Any = importlib.import_module("trustme")
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def _echo(stream: Any) -> None:
    async with stream:
        while data := await stream.receive_some(CHUNK):
            await stream.send_all(data)


async def _client(port: int, context: ssl.SSLContext, stage: Stage) -> None:
    message = b"x" * 1024
    async with await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context) as stream:
        for _ in stage.laps():
            await stream.send_all(message)
            got = 0
            while got < len(message):
                got += len(await stream.receive_some(CHUNK))


async def main(stage: Stage) -> None:
    server, client = contexts()
    tcp = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = tcp[0].socket.getsockname()[1]
    listeners = [trio.SSLListener(listener, server) for listener in tcp]
    async with trio.open_nursery() as serving:
        serving.start_soon(trio.serve_listeners, _echo, listeners)
        async with trio.open_nursery() as clients:
            for _ in range(stage.tasks):
                clients.start_soon(_client, port, client, stage)
        serving.cancel_scope.cancel()
