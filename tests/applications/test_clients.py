"""HTTP and WebSocket clients that are not ours, on the ring: httpx and httpcore on Trio and on AnyIO, trio-websocket.

On epoll too, which is the oracle. The server is Hypercorn on the ring.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpcore
import httpx
import pytest
import trio
import trio.testing
import trio_websocket
from hosting import SECONDS, Server, hypercorn
from material import Certificates, content
from served import used
from test_programs import expected

import trio_uring

pytest_plugins = ["serving_fixtures"]


@pytest.fixture(scope="module", params=["http", "https"])
def server(request: pytest.FixtureRequest, site: Path, certificates: Certificates) -> Iterator[Server]:
    tls = {"--certfile": str(certificates.chain), "--keyfile": str(certificates.key)}
    with hypercorn(
        "command", "starlette_app:app", site, workers=0, tls=tls if request.param == "https" else None
    ) as server:
        yield server


def on_trio(main: Any, backend: Any) -> None:
    trio_uring.run(main, io_backend=backend)


def on_anyio(main: Any, backend: Any) -> None:
    anyio.run(main, backend="trio", backend_options={"io_backend": backend})


@pytest.fixture
def trusting(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates.ca))


@pytest.mark.parametrize("run", [on_trio, on_anyio])
@pytest.mark.parametrize("http2", [False, True], ids=["HTTP 1.1", "HTTP 2"])
def test_httpx(run: Any, http2: bool, backend: Any, server: Server, trusting: ssl.SSLContext) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(content("large")), 50_000):
            yield content("large")[start : start + 50_000]

    async def main() -> None:
        async with httpx.AsyncClient(
            http1=not http2, http2=http2, verify=trusting, base_url=server.url(""), timeout=SECONDS
        ) as client:
            response = await client.get("/greet", params={"name": "ring"})
            assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert response.json() == {"hello": "ring"}
            async with client.stream("GET", "/static/large") as answer:
                received = b"".join([part async for part in answer.aiter_bytes()])
            assert received == content("large")
            stored = await client.put("/store/httpx", content=parts())
            assert stored.text == hashlib.sha256(content("large")).hexdigest()
            form = await client.post("/upload", files={"file": ("it", content("middle"))}, data={"note": "n"})
            assert form.json()["digest"] == hashlib.sha256(content("middle")).hexdigest()
            # The answer goes on for ever: a time-out in its middle, and the client can still be used.
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/hold", timeout=httpx.Timeout(SECONDS, read=0.1))
            # Not before it has begun: httpcore leaves a socket open whose TLS handshake is cancelled.
            async with client.stream("GET", "/hold") as answer:
                lines = answer.aiter_lines()
                assert await anext(lines) == "begun"
                with anyio.move_on_after(0.1) as scope:
                    await anext(lines)
                assert scope.cancelled_caught
            assert (await client.get("/static/small")).content == content("small")
            assert used() == expected(backend)

    run(main, backend)


@pytest.mark.parametrize("network", [httpcore.TrioBackend, httpcore.AnyIOBackend], ids=["trio", "anyio"])
def test_httpcore(network: Any, backend: Any, server: Server, trusting: ssl.SSLContext) -> None:
    async def main() -> None:
        async with httpcore.AsyncConnectionPool(
            ssl_context=trusting, max_connections=3, network_backend=network()
        ) as pool:

            async def one(number: int) -> None:
                response = await pool.request("GET", server.url(f"/greet?name={number}"))
                assert response.content == b'{"hello":"%d"}' % number

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(one, number)
            assert len(pool.connections) <= 3
            assert (await pool.request("GET", server.url("/static/large"))).content == content("large")
            assert used() == expected(backend)

    trio_uring.run(main, io_backend=backend)


def test_trio_websocket_is_client_and_server(backend: Any) -> None:
    """A hundred thousand bytes each way, a ping, a close with its code, a client that is cancelled."""

    reasons: list[object] = []

    async def serve(request: trio_websocket.WebSocketRequest) -> None:
        socket = await request.accept()
        while True:
            try:
                await socket.send_message(await socket.get_message())
            except trio_websocket.ConnectionClosed as closed:
                reasons.append(closed.reason and (closed.reason.code, closed.reason.reason))
                return

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(trio_websocket.serve_websocket, serve, "127.0.0.1", 0, None)

            async def client(number: int) -> None:
                async with trio_websocket.open_websocket("127.0.0.1", server.port, "/", use_ssl=False) as socket:
                    message = bytes([number]) * 100_000
                    await socket.send_message(message)
                    assert await socket.get_message() == message
                    await socket.ping(b"are you there")
                    with trio.move_on_after(0.01) as scope:
                        await socket.get_message()
                    assert scope.cancelled_caught
                    await socket.aclose(4000, "enough")

            async with trio.open_nursery() as clients:
                for number in range(10):
                    clients.start_soon(client, number)
            while len(reasons) < 10:  # noqa: ASYNC110 - the last thing that a server does
                await trio.sleep(0.001)
            assert reasons == [(4000, "enough")] * 10
            assert used() == expected(backend)
            nursery.cancel_scope.cancel()

    trio_uring.run(main, io_backend=backend)
