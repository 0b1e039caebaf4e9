"""A pytest plugin that says of each test what it had done: ring operations on files, and calls that went to worker threads.

Knows the one method that queues entries, and the names through which Trio and AnyIO reach a thread; knows nothing of the tests.
With --audited=FILE it writes there, in JSON: name of the test -> [operations, calls in threads].
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio._file_io
import trio._path

from trio_uring._ring import ring as _ring

FILE_OPERATIONS = frozenset(
    number
    for name, number in vars(_ring).items()
    if name.startswith("OP_") and name not in ("OP_NOP", "OP_POLL_ADD", "OP_ASYNC_CANCEL", "OP_TIMEOUT")
)
found: dict[str, list[int]] = {}
counted = [0, 0]


def _counting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def run_sync(*args: Any, **kwargs: Any) -> Any:
        counted[1] += 1
        return await original(*args, **kwargs)

    return run_sync


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption("--audited", required=True)


def pytest_configure() -> None:
    """Counts from now on."""
    original = _ring.Ring.queue

    def queue(self: _ring.Ring, opcode: int, *args: Any, **kwargs: Any) -> None:
        # The wake-up's read is not queued through this, and a signal's is a poll.
        counted[0] += opcode in FILE_OPERATIONS
        original(self, opcode, *args, **kwargs)

    setattr(_ring.Ring, "queue", queue)  # noqa: B010 - type checkers forbid the plain way
    for module in (trio.to_thread, trio._path):
        setattr(module, "run_sync", _counting(vars(module)["run_sync"]))  # noqa: B010


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """One test."""
    counted[:] = [0, 0]
    result = yield
    found[item.name] = list(counted)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """All of them."""
    with open(session.config.getoption("--audited"), "w") as file:
        json.dump(found, file)
