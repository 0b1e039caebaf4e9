"""Fixtures: rings of each kind and size, and descriptors that close themselves."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from trio_uring._ring import Ring
from trio_uring.testing import SimulatedRing

from .support import KINDS, SIZES, make_ring

MakeRing = Callable[..., Ring]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which ring: the kernel's, or a simulated one."""
    return str(request.param)


@pytest.fixture(params=SIZES, ids=["sq2cq4", "default"])
def sizes(request: pytest.FixtureRequest) -> tuple[int, int | None]:
    """Queue sizes: the smallest, and the default."""
    size: tuple[int, int | None] = request.param
    return size


@pytest.fixture
def new_ring(kind: str) -> Iterator[MakeRing]:
    """Makes rings, and closes them; a ring must then be empty, and the memory it was given untouched by others."""
    made: list[Ring] = []

    def new(sq_entries: int = 512, cq_entries: int | None = None) -> Ring:
        made.append(make_ring(kind, sq_entries, cq_entries))
        return made[-1]

    yield new
    for ring in made:
        ring.close()
        if isinstance(ring, SimulatedRing):
            assert ring.violations == []


@pytest.fixture
def ring(new_ring: MakeRing, sizes: tuple[int, int | None]) -> Ring:
    """A ring of each kind in each size."""
    return new_ring(*sizes)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe: to read, to write."""
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass  # the test did


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs
