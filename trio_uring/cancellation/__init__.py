"""The cancellation suite: what structured concurrency promises about cancelled I/O, as tests for any backend of Trio.

    python -m pytest -p trio_uring.cancellation                                  # Trio as it is installed
    python -m pytest -p trio_uring.cancellation --trio-io-backend=uring          # on the ring
    python -m pytest -p trio_uring.cancellation --cancellation-backend=package.module
    python -m pytest -p trio_uring.cancellation --cancellation-runs=10000 -v     # the slow proof

It is a table of operations x moments x causes. `OPERATIONS` says of each call how to set it up, how to let it complete,
what it does to the world and which outcomes are allowed; `MOMENTS` when it is cancelled; `CAUSES` by what. Each triple is
forced through Trio's instruments, and each pair of operation and cause is raced with swept delays besides.

A backend of one's own is a module or an object with the functions `run` and `start_guest_run`, signatures as Trio's.
Another operation is another row: append an `Operation` to `OPERATIONS`. Where `io_statistics` has `operations_in_flight` or
`kernel_entries`, as the ring's does, these are held to account too.

Knows Trio's public interface, pytest and /proc; knows nothing of rings.

PYTEST_DONT_REWRITE: it is a plugin, and the package is imported before it.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from ._causes import CAUSES as CAUSES
from ._causes import MOMENTS as MOMENTS
from ._causes import Cause as Cause
from ._causes import Moment as Moment
from ._operations import CANCELLED as CANCELLED
from ._operations import CLOSED as CLOSED
from ._operations import OPERATIONS as OPERATIONS
from ._operations import RETURNED as RETURNED
from ._operations import Ended as Ended
from ._operations import Operation as Operation
from ._operations import Subject as Subject

SHORT_RUNS = 24  # of each pair, where nobody asks for more
SECONDS = 900.0  # after which a test is taken to hang

REAL_STDERR = pytest.StashKey[int]()


class Backend(NamedTuple):
    """What the suite is run on: functions like `trio.run` and `trio.lowlevel.start_guest_run`."""

    run: Callable[..., Any]
    start_guest_run: Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("cancellation", "the cancellation suite")
    group.addoption(
        "--cancellation-runs",
        type=int,
        default=SHORT_RUNS,
        help=f"how often each pair of operation and cause is raced (default {SHORT_RUNS})",
    )
    group.addoption(
        "--cancellation-backend",
        metavar="MODULE[:OBJECT]",
        help="what has functions run and start_guest_run, as Trio's (default: Trio's)",
    )
    group.addoption(
        "--cancellation-seconds",
        type=float,
        default=SECONDS,
        help=f"after which a test is taken to hang: it shows where, and ends the test run (default {SECONDS:.0f})",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The suite is what is run, where the command line names no tests. What the options name has to be there."""
    if config.getoption("--cancellation-runs") < 1:
        raise pytest.UsageError("--cancellation-runs: each pair is raced once at least, so give 1 or more")
    if config.getoption("--cancellation-seconds") <= 0:
        raise pytest.UsageError("--cancellation-seconds: a test takes some time, so give more than 0")
    _backend(config)
    config.stash[REAL_STDERR] = os.dup(2)  # nothing is captured yet
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = [str(Path(__file__).with_name("suite.py"))]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close what the plugin has open."""
    if REAL_STDERR in config.stash:
        os.close(config.stash[REAL_STDERR])


def keep_what_applies(
    config: pytest.Config, items: list[pytest.Item], on_a_ring: Callable[[pytest.Item], bool]
) -> None:
    """Deselect rows that are for rings alone, where the backend of an item is none."""

    def applies(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        operation = callspec.params.get("operation") if callspec is not None else None
        return not isinstance(operation, Operation) or not operation.ring or on_a_ring(item)

    left_out = [item for item in items if not applies(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Rows that are for rings alone are for backends whose statistics say that they are the ring."""

    async def name() -> object:
        return getattr(trio.lowlevel.current_statistics().io_statistics, "backend", None)

    on_a_ring = _backend(config).run(name) == "uring"
    keep_what_applies(config, items, lambda _: on_a_ring)


@pytest.fixture(scope="session")
def cancellation_backend(request: pytest.FixtureRequest) -> Backend:
    """The backend that is held to the suite."""
    return _backend(request.config)


@pytest.fixture(autouse=True)
def bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    """A backend that hangs is one test's failure where the suite can end the call, and else the end of the test run."""
    seconds = request.config.getoption("--cancellation-seconds")
    faulthandler.dump_traceback_later(seconds, exit=True, file=request.config.stash[REAL_STDERR])
    yield
    faulthandler.cancel_dump_traceback_later()


def _backend(config: pytest.Config) -> Backend:
    named = config.getoption("--cancellation-backend", None)
    if named is None:
        return Backend(trio.run, trio.lowlevel.start_guest_run)
    module, _, name = str(named).partition(":")
    try:
        found: Any = importlib.import_module(module)
        found = getattr(found, name) if name else found
        return Backend(found.run, found.start_guest_run)
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(
            f"--cancellation-backend={named}: {error}. It names a module (MODULE) or something in one (MODULE:OBJECT) that has "
            "the functions run and start_guest_run; one in the current directory is found by `python -m pytest`"
        ) from error


@pytest.fixture(scope="session")
def cancellation_runs(request: pytest.FixtureRequest) -> int:
    """How often each pair is raced."""
    return int(request.config.getoption("--cancellation-runs", SHORT_RUNS))
