"""Web servers that are not ours, on the ring: Hypercorn's trio worker with Starlette, FastAPI and Quart-Trio.

Each server is started unchanged in one of the two ways, asked by a real client, and looked at from outside: no process that
serves has an epoll instance.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio_websocket
from hosting import SECONDS, Server, curl, entries, hypercorn, is_on_the_ring, kinds, until
from material import SIZES, Certificates, content

import trio_uring

pytest_plugins = ["serving_fixtures"]

# One worker each, but for "workers"; "smallest" has queues so small that everything fills them.
KINDS = ("command", "smallest", "workers")


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, site: Path, certificates: Certificates) -> Iterator[Server]:
    """Starlette under Hypercorn: one worker in plain text; one with TLS, by the variable; four with TLS, by the command."""
    tls = {"--certfile": str(certificates.chain), "--keyfile": str(certificates.key)}
    app = "starlette_app:app"
    if request.param == "command":
        with hypercorn("command", app, site, workers=1) as server:
            yield server
    elif request.param == "smallest":
        options = "sq_entries=2,cq_entries=4"
        with hypercorn("variable", app, site, workers=1, tls=tls, TRIO_URING_OPTIONS=options) as server:
            yield server
    else:
        with hypercorn("command", app, site, workers=4, tls=tls) as server:
            yield server


@pytest.fixture(autouse=True)
def served_by_the_ring(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: every process that serves is on the ring, and its ring has been given work."""
    server: Server = request.getfixturevalue("server")
    before = sum(map(entries, server.workers))
    yield
    assert server.process.poll() is None
    for pid in server.workers:
        is_on_the_ring(pid)
    assert sum(map(entries, server.workers)) > before
    assert "Traceback" not in server.errors.read_text()


VERSIONS = {"1.1": "--http1.1", "2": "--http2"}


@pytest.fixture(params=VERSIONS)
def fetch(request: pytest.FixtureRequest, server: Server, certificates: Certificates) -> Any:
    """Asks for a path with curl, in both versions of HTTP; checks that the version was used."""
    version = VERSIONS[request.param]
    if request.param == "2" and server.scheme == "http":
        version = "--http2-prior-knowledge"

    def fetch(path: str, *options: str) -> bytes:
        found = curl(
            *(version, "--cacert", str(certificates.ca), "--write-out", "%{http_version}", *options, server.url(path))
        )
        body, used = found[: -len(request.param)], found[-len(request.param) :]
        assert used.decode() == request.param
        return body

    return fetch


def test_it_says_so_itself(server: Server, fetch: Any) -> None:
    """Each connection may come to another worker; the kernel wakes whom it likes."""
    said = [json.loads(fetch("/backend")) for _ in range(4)]
    assert {facts["backend"] for facts in said} == {"uring"}
    assert {facts["pid"] for facts in said} <= set(server.workers)


def test_json(fetch: Any) -> None:
    assert json.loads(fetch("/greet?name=ring")) == {"hello": "ring"}


def test_streaming(fetch: Any) -> None:
    assert fetch("/stream") == b"".join(b"%d\n" % number * 100 for number in range(200))


@pytest.mark.parametrize("name", SIZES)
def test_files(name: str, fetch: Any) -> None:
    assert fetch(f"/static/{name}") == content(name)
    assert fetch(f"/file/{name}") == content(name)
    if SIZES[name] > 2000:
        assert fetch(f"/file/{name}", "--range", "1000-1999") == content(name)[1000:2000]


def test_headers_of_a_file(server: Server, fetch: Any) -> None:
    headers = fetch("/static/small", "--head").decode()
    assert "content-length: 1024" in headers
    etag = re.search(r"etag: (.*?)\r", headers)
    assert etag is not None
    # 304 has no body, and no --fail.
    assert fetch("/static/small", "--header", f"If-None-Match: {etag[1]}") == b""


def test_a_file_that_is_not_there(server: Server, certificates: Certificates) -> None:
    done = subprocess.run(
        ["curl", "-s", "-w", "%{http_code}", "--cacert", str(certificates.ca), server.url("/static/nothing")],
        capture_output=True,
        timeout=SECONDS,
    )
    assert done.stdout == b"Not Found404"


def test_upload_of_a_form(site: Path, fetch: Any) -> None:
    found = json.loads(fetch("/upload", "--form", f"file=@{site / 'large'}", "--form", "note=a note"))
    assert found == {"name": "large", "note": "a note", "digest": hashlib.sha256(content("large")).hexdigest()}


def test_upload_of_a_body_into_a_file(site: Path, fetch: Any) -> None:
    assert fetch("/store/stored", "--upload-file", str(site / "large")).decode() == (
        hashlib.sha256(content("large")).hexdigest()
    )
    assert (site / "stored").read_bytes() == content("large")


def trusting(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates.ca))


def test_websocket(server: Server, certificates: Certificates) -> None:
    """By trio-websocket, which is on the ring as well."""
    address = server.url("/echo", scheme="wss" if server.scheme == "https" else "ws")
    context = trusting(certificates) if server.scheme == "https" else None

    async def main() -> None:
        async with trio_websocket.open_websocket_url(address, ssl_context=context) as socket:
            for size in (1, 125, 126, 65_535, 65_536, 300_000):
                await socket.send_message("".join(chr(97 + number % 26) for number in range(size)))
                found = await socket.get_message()
                assert found == "".join(chr(97 + number % 26) for number in reversed(range(size)))

    trio_uring.run(main, io_backend="uring")


def test_many_streams_of_one_http2_connection(server: Server, certificates: Certificates) -> None:
    async def main() -> None:
        found: dict[int, Any] = {}
        async with httpx.AsyncClient(http1=False, http2=True, verify=trusting(certificates), timeout=SECONDS) as client:

            async def one(number: int) -> None:
                response = await client.get(server.url(f"/greet?name={number}"))
                assert response.http_version == "HTTP/2"
                found[number] = response.json()
                response = await client.get(server.url("/static/large"))
                assert response.content == content("large")

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(one, number)
        assert found == {number: {"hello": str(number)} for number in range(8)}

    trio_uring.run(main, io_backend="uring")


def test_load(server: Server) -> None:
    """By wrk, which checks no certificate: nothing but 200 and whole answers."""
    answered = 0
    while answered <= 16:  # at once, where the machine has time
        done = subprocess.run(
            ["wrk", "-t1", "-c16", "-d1s", "--timeout", f"{SECONDS:.0f}s", server.url("/static/small")],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        assert "Non-2xx" not in done.stdout
        assert "Socket errors" not in done.stdout
        found = re.search(r"(\d+) requests in", done.stdout)
        assert found is not None
        answered += int(found[1])


def test_clients_that_go_away(server: Server, certificates: Certificates) -> None:
    """In the middle of an answer, of a request, of nothing, by a reset: nothing of them stays in the server.

    But not straight after the handshake of TLS: Hypercorn 0.18 keeps some of these connections, on epoll as on the ring.
    """
    quiet = [len(kinds(pid)) for pid in server.workers]
    context = trusting(certificates)
    requests = (
        b"GET /static/large HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PUT /store/gone HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nonly this",
        b"" if server.scheme == "http" else b"GET /static/small HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    for number in range(40):
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
        client = context.wrap_socket(plain, server_hostname="localhost") if server.scheme == "https" else plain
        with client:
            if number % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(requests[number % len(requests)])
            if requests[number % len(requests)].startswith(b"GET"):
                assert client.recv(10).startswith(b"HTTP/1.1")
    until(
        lambda: all(len(kinds(pid)) <= before + 1 for pid, before in zip(server.workers, quiet, strict=True)),
        "descriptors of clients that went away are open",
    )
    assert curl("--cacert", str(certificates.ca), server.url("/static/small")) == content("small")
