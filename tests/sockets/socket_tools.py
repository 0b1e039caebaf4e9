"""What the tests of the socket layer share: runs, the books of a run, pairs of sockets in a known state.

Knows Trio, the public interface and the manager's books; knows nothing of the single promises.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import trio
import trio.testing
from tools import Backend as Backend
from tools import blocked as blocked
from tools import manager as manager
from tools import run as run

T = TypeVar("T")


def in_flight() -> int:
    """Entries that the kernel has not ended yet."""
    return manager().statistics().operations_in_flight


def tcp_pair(buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback; `buffer` is the size of each of their buffers in bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        a = socket.socket()
        if buffer is not None:
            a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        a.connect(listener.getsockname())
        b, _ = listener.accept()
    for end in a, b:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return a, b


def unix_pair(buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two connected UNIX stream sockets."""
    a, b = socket.socketpair()
    if buffer is not None:
        for end in a, b:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    return a, b


PAIRS = {"tcp": tcp_pair, "unix": unix_pair}


@contextlib.contextmanager
def trio_pair(
    kind: str = "unix", buffer: int | None = None
) -> Iterator[tuple[trio.socket.SocketType, trio.socket.SocketType]]:
    """The same as Trio's sockets, closed at the end whatever happened."""
    a, b = (trio.socket.from_stdlib_socket(end) for end in PAIRS[kind](buffer))
    try:
        yield a, b
    finally:
        a.close()
        b.close()


def close_all(*socks: Any) -> None:
    """Close them."""
    for sock in socks:
        sock.close()


def fill(sock: Any) -> int:
    """Send on a non-blocking socket until it takes no more; the number of bytes."""
    count = 0
    fd = sock.fileno()
    with socket.socket(fileno=fd) as raw:
        raw.setblocking(False)
        try:
            for size in (4096, 1):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        count += raw.send(bytes(size))
        finally:
            raw.detach()
    return count


def empty(sock: Any) -> bytes:
    """Receive on a socket until nothing is left; what came."""
    data = bytearray()
    with socket.socket(fileno=sock.fileno()) as raw:
        raw.setblocking(False)
        try:
            with contextlib.suppress(BlockingIOError):
                while some := raw.recv(1 << 20):
                    data += some
        finally:
            raw.detach()
    return bytes(data)


def sees_end(sock: socket.socket) -> bool:
    """Whether an end of file (or a reset) is there to be read now."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


class Waiter:
    """A task in one call: how it ended is `result`, `error`, or `cancelled`, the last through `scope` only."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.result: Any = None
        self.error: BaseException | None = None
        self.cancelled = False
        self.ended = False

    async def run(self, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Make the call, and note what came of it."""
        try:
            with self.scope:
                self.result = await call(*args)
        except Exception as error:
            self.error = error
        self.cancelled = self.scope.cancelled_caught
        self.ended = True

    @property
    def outcome(self) -> Any:
        """In one word, the result or the class of the error."""
        if not self.ended:
            return "blocked"
        if self.cancelled:
            return "cancelled"
        return self.result if self.error is None else type(self.error)
