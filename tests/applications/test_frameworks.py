"""FastAPI and Quart-Trio under Hypercorn's trio worker, on the ring."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio_websocket
from hosting import SECONDS, WAYS, hypercorn, is_on_the_ring, until

import trio_uring

pytest_plugins = ["serving_fixtures"]


@pytest.mark.parametrize("way", WAYS)
def test_fastapi(way: str, site: Path) -> None:
    with (
        hypercorn(way, "fastapi_app:app", site, workers=0) as server,
        httpx.Client(base_url=server.url(""), timeout=SECONDS) as client,
    ):
        assert client.get("/backend").json() == {"backend": "uring", "pid": server.process.pid}
        assert client.post("/items", json={"name": "ring", "price": 2}).json() == {"name": "RING", "price": 4.0}
        assert until(lambda: client.get("/done").json(), "no background task") == ["ring"]
        assert client.post("/items", json={"name": "ring"}).status_code == 422
        assert client.get("/thread").json() is True
        assert client.get("/sum?more=4").json() == 10
        assert client.get("/sum?more=-4").status_code == 418
        assert client.post("/size", files={"file": bytes(2_000_000)}).json() == 2_000_000
        assert "/items" in client.get("/openapi.json").json()["paths"]
        is_on_the_ring(server.process.pid)


@pytest.mark.parametrize("way", WAYS)
def test_quart_trio(way: str, site: Path) -> None:
    with hypercorn(way, "quart_app:app", site, workers=0) as server:
        with httpx.Client(base_url=server.url(""), timeout=SECONDS) as client:
            assert client.get("/backend").json() == {"backend": "uring", "pid": server.process.pid}
            assert client.post("/reverse", json={"text": "ring"}).json() == {"reversed": "gnir"}
            assert client.get("/stream").text.split() == [str(number) for number in range(100)]
            assert client.get("/together").json() == list(range(10))

        async def main() -> None:
            async with trio_websocket.open_websocket_url(server.url("/echo", scheme="ws")) as socket:
                await socket.send_message("over the ring")
                assert await socket.get_message() == "over the ring"

        trio_uring.run(main, io_backend="uring")
        is_on_the_ring(server.process.pid)
