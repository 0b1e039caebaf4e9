"""A page with a script, a style sheet and a picture, served to a headless browser by Hypercorn and Starlette on the ring.

The page (page/page.js) fetches, uploads, reads a stream and talks over a WebSocket, and writes into its DOM what it saw.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from browser import browser
from hosting import PROGRAMS, Server, entries, hypercorn, is_on_the_ring
from material import Certificates, content

pytest_plugins = ["serving_fixtures"]


def visit(server: Server, directory: Path, *, version: str, protocol: str) -> None:
    """Opens the page, and checks what it saw. `version` is HTTP's in ASGI's words, `protocol` in those of browsers."""
    shutil.copytree(PROGRAMS / "page", server.site, dirs_exist_ok=True)
    (server.site / "release").unlink(missing_ok=True)
    before = sum(map(entries, server.workers))
    with browser(directory) as page:
        page.open(server.url("/static/index.html"))
        seen = json.loads(page.text("seen"))
    upload = seen.pop("upload")
    held = seen.pop("held")
    assert seen == {
        "style": "rgb(1, 2, 3)",
        "picture": [32, 24],
        "backend": "uring",
        "greetings": [{"hello": str(number)} for number in range(20)],
        "file": hashlib.sha256(content("large")).hexdigest(),
        "streamed": 200 * 100 + 1,
        "conversations": [
            {"answers": ["gnir eht revo", "é" * 70_000], "clean": True, "code": 1000},
            {"answers": [version], "clean": True, "code": 1000},
        ],
        "protocols": [protocol],
    }
    assert (upload["name"], upload["note"], upload["same"]) == ("page.bin", "from a page", True)
    assert held[0] == "begun\n"
    assert "".join(held) == "begun\nended\n"
    assert server.process.poll() is None
    for pid in server.workers:
        is_on_the_ring(pid)
    assert sum(map(entries, server.workers)) > before
    assert "Traceback" not in server.errors.read_text()


def test_a_page_over_http_1(site: Path, tmp_path: Path) -> None:
    with hypercorn("command", "starlette_app:app", site, workers=0) as server:
        visit(server, tmp_path, version="1.1", protocol="http/1.1")


def test_a_page_over_tls_and_http_2(site: Path, tmp_path: Path, certificates: Certificates) -> None:
    """The WebSocket is a stream of the HTTP/2 connection (RFC 8441)."""
    tls = {"--certfile": str(certificates.chain), "--keyfile": str(certificates.key)}
    with hypercorn("variable", "starlette_app:app", site, workers=4, tls=tls) as server:
        visit(server, tmp_path, version="2", protocol="h2")
