"""Shared by every room of tests: what a test must leave as it found it, and the backends that a promise is held against.

Knows the public interface and /proc; knows nothing of what is tested.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import time
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import pytest
import trio

from trio_uring import UringBackend

Backend: TypeAlias = "Literal['uring', 'epoll'] | UringBackend"

REAL_STDERR = pytest.StashKey[int]()

# With TRIO_URING_TEST_GROUP=1 every ring is in a group, with its I/O on processor 1.
GROUP_CPUS = os.environ.get("TRIO_URING_TEST_GROUP")
if GROUP_CPUS:
    os.environ["TRIO_URING_OPTIONS"] = f"async_workers_cpuset={GROUP_CPUS}"
GROUP = UringBackend.from_text(os.environ["TRIO_URING_OPTIONS"]).group if GROUP_CPUS else None


def handed_over(ring: Any) -> bool:
    """Whether nothing is queued that the kernel has not been handed; a poller comes for it by itself, and soon."""
    until = time.monotonic() + 200
    while ring.polled and ring.queued and time.monotonic() < until:
        time.sleep(0)
    return bool(ring.queued == 0)


RINGS: dict[str, Backend] = {
    "uring": "uring",
    "sq2cq4": UringBackend(sq_entries=2, cq_entries=4, speculate=False, group=GROUP),
}


def pytest_configure(config: pytest.Config) -> None:
    """What is forgotten (a descriptor, a ring, an exception in a finalizer) fails the test that forgot it."""
    config.addinivalue_line("filterwarnings", "error::ResourceWarning")
    config.addinivalue_line("filterwarnings", "error::pytest.PytestUnraisableExceptionWarning")
    config.stash[REAL_STDERR] = os.dup(2)  # nothing is captured yet
    signals_as_at_login()


def signals_as_at_login() -> None:
    """No signal is ignored or blocked, here and in every program that is started here, however the tests themselves were started.

    A shell starts what shall run in the background with SIGINT ignored, nohup(1) with SIGHUP, some services with more.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python itself ignores these
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[REAL_STDERR])


def pytest_collection_finish() -> None:
    """What is imported and collected by now takes no part when a test collects the garbage, to see what it has left open.

    There are a million objects by then, and half of all tests collect it twice. Before that comes a run, in which
    hypothesis looks for the holder of Trio's random numbers: it would not find one that is frozen.
    """
    import hypothesis  # noqa: F401

    trio.run(trio.lowlevel.checkpoint)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def away_from_the_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that the tests start with `python -m` find the installed package, not the unbuilt one beside the tests."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("away"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that hangs ends the whole test run, and shows which and where. Not a measure of speed."""
    seconds = float(os.environ.get("TRIO_URING_TEST_SECONDS", "600"))
    faulthandler.dump_traceback_later(seconds, exit=True, file=request.config.stash[REAL_STDERR])
    yield
    faulthandler.cancel_dump_traceback_later()


def descriptors() -> dict[str, str]:
    """The open descriptors of this process, and what each is."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that the listing itself used
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


@pytest.fixture
def descriptors_flat() -> Iterator[None]:
    """Fails a test that leaves other descriptors open than it found."""
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert descriptors() == before


@pytest.fixture(params=list(RINGS.values()), ids=list(RINGS))
def ring(request: pytest.FixtureRequest) -> Backend:
    """An `io_backend` on the ring: as it comes; and with queues that everything fills, and nothing tried before the ring."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[UringBackend(speculate=False), RINGS["sq2cq4"]], ids=list(RINGS))
def pure_ring(request: pytest.FixtureRequest) -> Backend:
    """A ring on which nothing is answered on the spot: what a test wants in flight is."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[*RINGS.values(), "epoll"], ids=[*RINGS, "epoll"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """The same and Trio's own epoll, which is the oracle: what a user sees is equal, or in docs/differences.md."""
    return request.param  # type: ignore[no-any-return]
