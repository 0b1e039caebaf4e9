"""The suite of trio_uring.cancellation, held against what this project has: the ring in two sizes, and Trio's epoll.

Knows the plugin's interface. Trio's own epoll has to pass, too: that checks the suite.
"""

from __future__ import annotations

import functools

import pytest
from conftest import RINGS

import trio_uring
from trio_uring.cancellation import Backend, keep_what_applies

BACKENDS = {**RINGS, "epoll": "epoll"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """As the plugin's; the backend is a parameter here."""

    def on_a_ring(item: pytest.Item) -> bool:
        assert isinstance(item, pytest.Function)
        return item.callspec.params.get("cancellation_backend") != "epoll"

    keep_what_applies(config, items, on_a_ring)


@pytest.fixture(scope="session", params=list(BACKENDS.values()), ids=list(BACKENDS))
def cancellation_backend(request: pytest.FixtureRequest) -> Backend:
    """In place of the plugin's."""
    return Backend(
        functools.partial(trio_uring.run, io_backend=request.param),
        functools.partial(trio_uring.start_guest_run, io_backend=request.param),
    )


@pytest.fixture(scope="session")
def cancellation_runs(request: pytest.FixtureRequest) -> int:
    """In place of the plugin's, which may or may not be there. Few: `make cancellation` makes many."""
    return int(request.config.getoption("--cancellation-runs", 12))
