"""What the tests of the I/O manager share: runs, descriptors in a known state, direct operations, a host for guest runs.

Knows Trio and the manager; knows nothing of the single promises.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import queue
import socket
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import outcome
import pytest
import trio
import trio.testing
from tools import Backend as Backend
from tools import blocked as blocked
from tools import empty as empty
from tools import fill as fill
from tools import manager as manager
from tools import processor_time_asleep as processor_time_asleep
from tools import run as run

import trio_uring
from trio_uring._ring.ring import OP_READ, ffi

T = TypeVar("T")
# Seconds after which something is taken to hang. Not a measure of speed: nothing here waits for it to expire.
PATIENCE = float(os.environ.get("TRIO_URING_TEST_SECONDS", "600")) / 3

WHERE_THE_STREAM_IS = 2**64 - 1  # the offset -1 of io_uring_enter(2)

LIBC = ctypes.CDLL(None, use_errno=True)


async def read(fd: int, memory: Any, length: int, keep: object = None) -> int:
    """A direct read of a stream into cffi memory."""
    m = manager()
    operation = m.operation(fd, memory if keep is None else keep, m.readers)
    return await operation.perform(OP_READ, memory, length, WHERE_THE_STREAM_IS)


def uncleared(size: int) -> Any:
    """cffi memory for a read."""
    return ffi.new("char[]", size)


@contextlib.contextmanager
def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected non-blocking stream sockets."""
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    with a, b:
        yield a, b


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """The read and the write end of a non-blocking pipe; either may be closed inside."""
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    files = [os.fstat(fd).st_ino for fd in ends]
    try:
        yield ends
    finally:
        for fd, inode in zip(ends, files, strict=True):
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_ino == inode:
                    os.close(fd)


class Waiter:
    """A task waiting for readiness, and how it ended: `ready`, `error`, or cancelled through `scope`."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.ready = False
        self.error: Exception | None = None

    async def run(self, wait: Callable[[Any], Awaitable[None]], fd: Any) -> None:
        """Wait, and note what came of it."""
        try:
            with self.scope:
                await wait(fd)
                self.ready = True
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()


class Host:
    """A host loop for guest runs, on the calling thread: a queue of callbacks."""

    def __init__(self) -> None:
        self.todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.result: outcome.Outcome[Any] | None = None

    def start(self, backend: Backend, main: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> None:
        """`trio.lowlevel.start_guest_run`."""
        trio_uring.start_guest_run(
            main,
            *args,
            run_sync_soon_threadsafe=self.todo.put,
            done_callback=self._done,
            io_backend=backend,
            **options,
        )

    def _done(self, result: outcome.Outcome[Any]) -> None:
        self.result = result

    def step(self) -> None:
        """Run one callback; waits for it."""
        self.todo.get(timeout=PATIENCE)()

    def until(self, condition: Callable[[], object]) -> None:
        """Run callbacks until a condition holds."""
        while not condition():
            self.step()

    def finish(self) -> Any:
        """Run callbacks until the guest run is over, and unwrap its result."""
        self.until(lambda: self.result is not None)
        assert self.result is not None
        return self.result.unwrap()

    def worker_asleep(self) -> bool:
        """Whether Trio waits for I/O in another thread, so that the host is free to do as it likes."""
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        return not runner.guest_tick_scheduled and self.todo.empty()


def crash(function: Callable[[], object]) -> None:
    """Call a function in which a run breaks down.

    The garbage collector then tears down the tasks of that run. Trio complains about that, and nothing of ours may.
    """
    complaints: list[sys.UnraisableHookArgs] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        patch.setattr(sys, "unraisablehook", complaints.append)
        function()
        gc.collect()
        told = ["".join(traceback.format_tb(complaint.exc_traceback)) for complaint in complaints]
        complaints.clear()
        gc.collect()
        told += ["".join(traceback.format_tb(complaint.exc_traceback)) for complaint in complaints]
        complaints.clear()
    assert not [text for text in told if "trio_uring" in text]


def in_child(program: str, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a process of its own, warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own."""
    results: list[outcome.Outcome[T]] = []
    thread = threading.Thread(target=lambda: results.append(outcome.capture(function)))
    thread.start()
    thread.join(PATIENCE)
    if not results:
        pytest.fail("the thread hangs")
    return results[0].unwrap()
