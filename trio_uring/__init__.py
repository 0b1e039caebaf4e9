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
import os
from typing import TYPE_CHECKING

from ._entry import after_trio

if TYPE_CHECKING:
    from ._entry.seams import run, start_guest_run
    from ._files.whole_files import read_files
    from ._groups.shards import RemoteTraceback, Shard, ShardDiedError, run_shards, shards
    from ._loop.options import UringBackend
    from ._loop.statistics import UringStatistics
    from ._observe.dump_signal import dump_on_signal
    from ._observe.observe import OperationSnapshot, RingMonitor, RingRates, RingSnapshot, TaskSnapshot, dump, snapshot
    from ._positional.batches import read_many, readinto_many
    from ._positional.positional import (
        StatxResult,
        fallocate,
        fdatasync,
        fsync,
        read_at,
        readinto_at,
        statx,
        write_at,
        writev_at,
    )
    from ._positional.splice import copy_file, sendfile, splice
    from ._ring.availability import UringUnavailableError
    from ._ring.group import RingGroup
    from ._ring.pool import PooledRing, PoolReader, RingPool
    from ._ring.requests import aligned_buffer
    from ._version import __version__ as __version__

__all__ = [
    "OperationSnapshot",
    "PoolReader",
    "PooledRing",
    "RemoteTraceback",
    "RingGroup",
    "RingMonitor",
    "RingPool",
    "RingRates",
    "RingSnapshot",
    "Shard",
    "ShardDiedError",
    "StatxResult",
    "TaskSnapshot",
    "UringBackend",
    "UringStatistics",
    "UringUnavailableError",
    "__version__",
    "aligned_buffer",
    "copy_file",
    "dump",
    "dump_on_signal",
    "fallocate",
    "fdatasync",
    "fsync",
    "read_at",
    "read_files",
    "read_many",
    "readinto_at",
    "readinto_many",
    "run",
    "run_shards",
    "sendfile",
    "shards",
    "snapshot",
    "splice",
    "start_guest_run",
    "statx",
    "write_at",
    "writev_at",
]

_HOMES = {
    "__version__": "_version",
    "OperationSnapshot": "_observe.observe",
    "PoolReader": "_ring.pool",
    "PooledRing": "_ring.pool",
    "RemoteTraceback": "_groups.shards",
    "RingGroup": "_ring.group",
    "RingMonitor": "_observe.observe",
    "RingPool": "_ring.pool",
    "RingRates": "_observe.observe",
    "RingSnapshot": "_observe.observe",
    "Shard": "_groups.shards",
    "ShardDiedError": "_groups.shards",
    "StatxResult": "_positional.positional",
    "TaskSnapshot": "_observe.observe",
    "UringBackend": "_loop.options",
    "UringStatistics": "_loop.statistics",
    "UringUnavailableError": "_ring.availability",
    "aligned_buffer": "_ring.requests",
    "copy_file": "_positional.splice",
    "dump": "_observe.observe",
    "dump_on_signal": "_observe.dump_signal",
    "fallocate": "_positional.positional",
    "fdatasync": "_positional.positional",
    "fsync": "_positional.positional",
    "read_at": "_positional.positional",
    "read_files": "_files.whole_files",
    "read_many": "_positional.batches",
    "readinto_at": "_positional.positional",
    "readinto_many": "_positional.batches",
    "run": "_entry.seams",
    "run_shards": "_groups.shards",
    "sendfile": "_positional.splice",
    "shards": "_groups.shards",
    "snapshot": "_observe.observe",
    "splice": "_positional.splice",
    "start_guest_run": "_entry.seams",
    "statx": "_positional.positional",
    "write_at": "_positional.positional",
    "writev_at": "_positional.positional",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


after_trio.arrange()

if os.environ.get("TRIO_URING_DUMP"):
    from ._observe import dump_signal

    dump_signal.arm_from_environment()
