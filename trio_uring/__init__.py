"""The io_uring backend for Trio, and through Trio for AnyIO.

Importing this package teaches `trio.run` and `trio.lowlevel.start_guest_run` the keyword `io_backend`:
"uring", "auto", "epoll" or a `UringBackend`. Without the keyword the environment variable TRIO_IO_BACKEND
decides, and without that it is epoll.

    import trio, trio_uring

    trio.run(main, io_backend="uring")

`trio_uring.run` and `trio_uring.start_guest_run` are the same two functions, with a signature that type
checkers can read.

This module knows where each public name lives and loads it when it is first used: Trio is not imported on
its account, so that the ring serves programs without Trio, and the command line starts at once.

PYTEST_DONT_REWRITE: because this distribution has a plugin, pytest wants to rewrite the asserts of all its
modules, and warns of this one where the start-up hook has imported it earlier.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import _after_trio
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from ._availability import UringUnavailableError
    from ._manager import UringStatistics
    from ._options import UringBackend
    from ._seams import run, start_guest_run

__all__ = [
    "UringBackend",
    "UringStatistics",
    "UringUnavailableError",
    "__version__",
    "run",
    "start_guest_run",
]

_HOMES = {
    "UringBackend": "_options",
    "UringStatistics": "_manager",
    "UringUnavailableError": "_availability",
    "run": "_seams",
    "start_guest_run": "_seams",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_after_trio.arrange()
