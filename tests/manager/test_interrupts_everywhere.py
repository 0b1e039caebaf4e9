"""Ctrl-C anywhere is safe (invariant 10): SIGINT at each line of the package that a call comes through, one line after the other.

Knows how Trio delivers SIGINT, and calls of every kind; knows nothing of how they are made.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import pytest
import trio
from manager_tools import Backend, blocked, empty, manager, read, run, socket_pair, uncleared

import trio_uring
from trio_uring._loop.operation import Poll
from trio_uring._ring.ring import ffi

PACKAGE = os.path.dirname(trio_uring.__file__) + os.sep
NEVER = 0
# More lines than any of the calls has, so that what never ends does not go on for ever.
MOST = 1000


@pytest.fixture(autouse=True)
def sigint_raises() -> Iterator[None]:
    """Trio takes SIGINT over where Python's own handler is in place, and there alone."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Struck:
    """`async with Struck(n)`: SIGINT as the n-th line inside is about to run, of all those that are in the package.

    It has to arrive as KeyboardInterrupt, in what stands inside or at the checkpoint after it, and goes no further.

    Attributes:
      where: file and line that it struck at; empty where there were fewer lines.
      inside: it came out of what stands inside.
    """

    def __init__(self, line: int) -> None:
        self.left = line
        self.where = ""
        self.inside = False
        self.in_flight = 0
        self.before: Any = None

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "call":
            return self._trace if frame.f_code.co_filename.startswith(PACKAGE) else None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return self._trace

    async def __aenter__(self) -> None:
        await blocked()  # the run's own entries are in the ring
        self.in_flight = manager().statistics().operations_in_flight
        self.before = sys.gettrace()
        # What the garbage collector runs is no part of the call: its lines are never the same, an exception there is lost, and
        # CPython 3.11 crashes where the trace function goes away as a frame is made for it.
        gc.disable()
        sys.settrace(self._trace)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        sys.settrace(self.before)
        gc.enable()
        self.inside = kind is KeyboardInterrupt
        if error is not None and not self.inside:
            return False
        if self.where and not self.inside:
            with pytest.raises(KeyboardInterrupt):
                await trio.lowlevel.checkpoint()
        for _turn in range(200):  # the kernel may take its time over a cancel
            if manager().statistics().operations_in_flight == self.in_flight:
                break
            await trio.sleep(0.001)
        assert manager().statistics().operations_in_flight == self.in_flight
        # And every operation is back where the next call takes it from; Trio itself polls.
        m = manager()
        idle = {*m.receives, *m.free_received, *m.sends, *m.free_sent, *m.transfers}
        assert [each for each in m.operations.values() if each not in idle and each.__class__ is not Poll] == []
        return self.inside


async def recv(struck: Struck) -> None:
    with socket_pair() as (a, b):
        b.send(b"hello")
        got = b""
        async with struck:
            got = await trio.socket.from_stdlib_socket(a).recv(5)
        assert got + empty(a.fileno()) == b"hello"


async def recv_into(struck: Struck) -> None:
    with socket_pair() as (a, b):
        b.send(b"hello")
        memory, count = bytearray(5), 0
        async with struck:
            count = await trio.socket.from_stdlib_socket(a).recv_into(memory)
        assert memory[:count] + empty(a.fileno()) == b"hello"
        memory.append(0)  # not pinned any more


async def recvmsg(struck: Struck) -> None:
    with socket_pair() as (a, b):
        b.send(b"hello")
        got = b""
        async with struck:
            got, *_ = await trio.socket.from_stdlib_socket(a).recvmsg(5)
        assert got + empty(a.fileno()) == b"hello"


async def send(struck: Struck) -> None:
    with socket_pair() as (a, b):
        data, count = bytearray(b"hello"), 0
        async with struck:
            count = await trio.socket.from_stdlib_socket(a).send(data)
        assert empty(b.fileno()) == data[:count]
        data.append(0)


async def accept(struck: Struck) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setblocking(False)
        client.connect(listener.getsockname())
        accepted = None
        async with struck:
            accepted, _ = await trio.socket.from_stdlib_socket(listener).accept()
        if accepted is None:
            accepted = trio.socket.from_stdlib_socket(listener.accept()[0])
        with accepted:
            assert accepted.getpeername() == client.getsockname()


async def wait_readable(struck: Struck) -> None:
    with socket_pair() as (a, b):
        b.send(b"hello")
        async with struck:
            await trio.lowlevel.wait_readable(a)
        assert empty(a.fileno()) == b"hello"


async def perform(struck: Struck) -> None:
    """By itself: what calls it is not protected."""
    with socket_pair() as (a, b):
        b.send(b"hello")
        memory, count = uncleared(5), 0
        async with struck:
            count = await read(a.fileno(), memory, 5)
        assert ffi.buffer(memory, count)[:] + empty(a.fileno()) == b"hello"


async def read_at(struck: Struck) -> None:
    fd, got = os.open("file", os.O_RDONLY), b""
    try:
        async with struck:
            got = await trio_uring.read_at(fd, 5, 0)
    finally:
        os.close(fd)
    assert got == (b"" if struck.inside else b"hello")


async def read_bytes(struck: Struck) -> None:
    got = b""
    async with struck:
        got = await trio.Path("file").read_bytes()
    assert got == (b"" if struck.inside else b"hello")


@pytest.mark.parametrize("earlier", [0, 1], ids=["first", "again"])
@pytest.mark.parametrize("call", [recv, recv_into, recvmsg, send, accept, wait_readable, perform, read_at, read_bytes])
def test_ctrl_c_at_every_line(
    call: Callable[[Struck], Awaitable[None]],
    earlier: int,
    ring: Backend,
    tmp_path: os.PathLike[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not lost, nothing in flight, no byte and no descriptor lost, nothing pinned, and the next call is none the worse.

    In the first call of a run, which makes what it needs, and in a later one, which finds it made.
    """
    monkeypatch.chdir(tmp_path)
    with open("file", "wb") as file:
        file.write(b"hello")

    async def main() -> None:
        for _ in range(earlier):
            await call(Struck(NEVER))
        await call(struck)
        await call(Struck(NEVER))

    run(ring, trio.lowlevel.checkpoint)  # which loads and replaces what no run has needed so far
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    inside = 0
    for line in range(1, MOST):
        struck = Struck(line)
        try:
            run(ring, main)
            assert len(os.listdir("/proc/self/fd")) == descriptors
        except BaseException as error:
            raise AssertionError(f"after SIGINT at {struck.where}, line {line} of the call: {error!r}") from error
        if not struck.where:
            break
        inside += struck.inside
    assert line < MOST - 1
    assert 0 < inside < line - 1  # some come too late to end the call
