"""Programs and libraries that are not ours, on the ring.

Each program runs in this process on the ring, on one with the smallest queues, and on epoll, which is the oracle of the test
itself; then as a program, in the two ways of switching the ring on.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cached
import encrypted
import passing
import processes
import pytest
from hosting import WAYS, answer, until
from material import Certificates

import trio_uring

pytest_plugins = ["serving_fixtures"]

ON_THE_RING = {"backend": "uring", "eventpolls": 0, "rings": 1}
ON_EPOLL = {"backend": "epoll", "eventpolls": 1, "rings": 0}


def expected(backend: object) -> dict[str, object]:
    return ON_EPOLL if backend == "epoll" else ON_THE_RING


def asyncio_inside(way: str, found: dict[str, object], **variables: str) -> None:
    """Runs what is never run in this process: importing trio_asyncio changes what asyncio.run does in all of it."""
    if sys.version_info < (3, 14):
        assert answer(way, "asyncio_inside.py", **variables) == found
    else:  # whoever reads this because a new trio-asyncio can be imported there: docs/applications.md says that it cannot
        with pytest.raises(AssertionError, match="no attribute 'BaseDefaultEventLoopPolicy'"):
            answer(way, "asyncio_inside.py", **variables)


@pytest.mark.parametrize("options", ["", "sq_entries=2,cq_entries=4"])
def test_trio_asyncio(options: str) -> None:
    asyncio_inside("variable", ON_THE_RING, TRIO_URING_OPTIONS=options)


def test_trio_asyncio_on_epoll() -> None:
    asyncio_inside("variable", ON_EPOLL, TRIO_IO_BACKEND="epoll")


@pytest.mark.parametrize("way", WAYS)
def test_trio_asyncio_as_a_program(way: str) -> None:
    asyncio_inside(way, ON_THE_RING)


def test_processes(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(processes.__file__).parent))
    found = trio_uring.run(processes.main, io_backend=backend)
    assert found == {"here": expected(backend), "worker": ON_EPOLL}  # the environment says nothing


@pytest.mark.parametrize("way", WAYS)
def test_processes_as_a_program(way: str) -> None:
    assert answer(way, "processes.py") == {"here": ON_THE_RING, "worker": ON_THE_RING}


def test_descriptors_that_travel(backend: Any) -> None:
    assert trio_uring.run(passing.main, io_backend=backend) == expected(backend)


@pytest.mark.parametrize("way", WAYS)
def test_descriptors_that_travel_as_a_program(way: str) -> None:
    assert answer(way, "passing.py") == ON_THE_RING


def test_tls_and_names(backend: Any, certificates: Certificates) -> None:
    files = str(certificates.ca), str(certificates.chain), str(certificates.key)
    assert trio_uring.run(encrypted.main, *files, io_backend=backend) == expected(backend)


@pytest.mark.parametrize("way", WAYS)
def test_tls_and_names_as_a_program(way: str, certificates: Certificates) -> None:
    files = map(str, (certificates.ca, certificates.chain, certificates.key))
    assert answer(way, "encrypted.py", *files) == ON_THE_RING


# ------------------------------------------------------------------ a cache


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis server of this module's own; its port."""
    directory = tmp_path_factory.mktemp("redis")
    socket_path = directory / "socket"
    # Redis cannot be handed a socket nor choose a port itself, so a free one may be gone when it starts: then another.
    for _ in range(5):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
        with subprocess.Popen(
            [*command, "--unixsocket", str(socket_path), "--daemonize", "no"], stdout=subprocess.DEVNULL
        ) as server:
            try:
                until(lambda: socket_path.exists() or server.poll() is not None, "redis-server did not start")
                if server.poll() is None:
                    yield port
                    return
            finally:
                server.terminate()
    raise RuntimeError("redis-server does not start")


def test_redis(backend: Any, redis: int) -> None:
    assert trio_uring.run(cached.main, redis, io_backend=backend) == expected(backend)


@pytest.mark.parametrize("way", WAYS)
def test_redis_as_a_program(way: str, redis: int) -> None:
    assert answer(way, "cached.py", str(redis)) == ON_THE_RING
