"""AnyIO on Trio on the ring: `backend_options`, the environment, the command, and AnyIO's own test runner."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.pytest_plugin
import pytest
from anyio_loopback import main
from interpreter import answer
from loopback import ON_EPOLL, ON_THE_RING, used

import trio_uring


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIO_IO_BACKEND", raising=False)
    monkeypatch.delenv("TRIO_URING_OPTIONS", raising=False)


async def backend() -> object:
    return used()["backend"]


SMALL = trio_uring.UringBackend(sq_entries=2, cq_entries=4)


def as_program(function: Any, **options: Any) -> Any:
    return anyio.run(function, backend="trio", backend_options=options)


def as_test(function: Any, **options: Any) -> Any:
    """As AnyIO's pytest plugin runs a test: a guest on a host of its own."""
    with anyio.pytest_plugin.get_runner("trio", options) as runner:
        runner.run_test(function, {})


async def is_served(expected: object) -> None:
    found = await main()
    assert found["backend"] == expected


def test_anyio_brings_its_options_to_trio() -> None:
    for io_backend, expected in [("uring", "uring"), ("auto", "uring"), (SMALL, "uring"), ("epoll", "epoll")]:
        assert as_program(main, io_backend=io_backend)["backend"] == expected
    assert as_program(main)["backend"] == "epoll"


@pytest.mark.parametrize("io_backend", ["uring", "auto", SMALL, "epoll"])
def test_anyios_test_runner_brings_its_options_to_trio(io_backend: object) -> None:
    found = []

    async def test() -> None:
        found.append(await main())

    as_test(test, io_backend=io_backend)
    assert [result["backend"] for result in found] == ["epoll" if io_backend == "epoll" else "uring"]


@pytest.mark.parametrize("start", [as_program, as_test])
def test_a_bad_value_is_refused(start: Any) -> None:
    with pytest.raises(ValueError, match=r"^io_backend must be 'uring', 'auto', 'epoll' or "):
        start(backend, io_backend="iocp")
    assert as_program(backend) == "epoll"


@pytest.mark.parametrize("start", [as_program, as_test])
def test_a_bad_variable_is_refused(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_IO_BACKEND", "iocp")
    with pytest.raises(ValueError, match="TRIO_IO_BACKEND"):
        start(backend)
    monkeypatch.delenv("TRIO_IO_BACKEND")
    assert as_program(backend) == "epoll"


def test_an_unchanged_program_under_the_variable_and_under_the_command() -> None:
    assert answer("anyio_loopback.py", TRIO_IO_BACKEND="uring") == ON_THE_RING
    assert answer("-m", "trio_uring", "run", "anyio_loopback.py") == ON_THE_RING
    assert answer("anyio_loopback.py") == ON_EPOLL
