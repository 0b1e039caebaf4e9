"""Fixtures: rings of each kind and size, and descriptors that close themselves."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from trio_uring._ring.ring import Ring
from trio_uring.testing import SimulatedRing

from .support import KINDS, SIZES, make_ring, open_descriptors

MakeRing = Callable[..., Ring]
NoDescriptors = Callable[..., contextlib.AbstractContextManager[None]]


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
    """Makes rings, and closes them; what the simulated ones have found is an error."""
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
        with contextlib.suppress(OSError):  # the test did
            os.close(fd)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def no_descriptors() -> NoDescriptors:
    """A context in which this process can open `spare` descriptors and no more."""

    @contextlib.contextmanager
    def limited(spare: int = 0) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 8, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            for _ in range(spare):
                os.close(taken.pop())
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)

    return limited
