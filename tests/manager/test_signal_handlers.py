"""A signal handler that raises, a watchdog's say, as the call that queues an entry returns.

Trio protects its own KeyboardInterrupt from striking there. Other handlers strike anywhere, and CPython calls them as a call
returns: by then the entry is the kernel's. It has to be in the books all the same (invariants 2 and 4).

Knows by which functions entries are queued; knows nothing of what the calls promise besides.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from manager_tools import Backend, blocked, manager, run, socket_pair

import trio_uring
from trio_uring._files import whole_files as _whole_files
from trio_uring._positional import batches as _batches
from trio_uring._positional import positional as _positional
from trio_uring._ring.ring import Ring
from trio_uring._sockets import messages as _messages
from trio_uring._sockets import sockets as _sockets

# Everything that queues an entry.
QUEUEING = [
    (Ring, "queue"),
    (Ring, "poll"),
    (_sockets, "tu_recv"),
    (_sockets, "tu_send"),
    (_messages, "tu_queue"),
    (_positional, "tu_rw"),
    (_positional, "tu_read"),
    (_batches, "tu_batch_read"),
    (_whole_files, "tu_batch_read_files"),
]


class Watchdog(Exception):
    """What the handler raises."""


class Handler:
    """Strikes as the next call that queues an entry returns, if it is armed."""

    def __init__(self) -> None:
        self.armed = False

    def wrap(self, queue: Callable[..., Any]) -> Callable[..., Any]:
        def queued(*args: Any, **kwargs: Any) -> Any:
            result = queue(*args, **kwargs)
            if self.armed:
                self.armed = False
                signal.raise_signal(signal.SIGALRM)
            return result

        return queued

    def __call__(self, *_: object) -> None:
        raise Watchdog


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Handler]:
    found = Handler()
    for where, name in QUEUEING:
        monkeypatch.setattr(where, name, found.wrap(getattr(where, name)))
    before = signal.signal(signal.SIGALRM, found)
    yield found
    signal.signal(signal.SIGALRM, before)


async def settled(before: int) -> None:
    """Nothing is in flight, or known, that was not before."""
    for _ in range(2000):
        if manager().statistics().operations_in_flight == before:
            break
        await trio.sleep(0.001)
    assert manager().statistics().operations_in_flight == before
    assert not manager().readers.keys() - {
        trio._core._run.GLOBAL_RUN_CONTEXT.runner.entry_queue.wakeup.wakeup_sock.fileno()
    }
    assert not manager().writers
    assert not manager().concurrent
    assert not manager().cancelling


def forget_and_reuse() -> list[bytes]:
    """What nobody holds any more is freed, and somebody else has it."""
    gc.collect()
    return [b"secret" * 25 + bytes([i]) for i in range(100)]


async def struck_in(handler: Handler, call: Callable[[], Awaitable[Any]]) -> None:
    """Make a call under which the handler strikes, and let the ring come to rest."""
    await blocked()
    before = manager().statistics().operations_in_flight
    handler.armed = True
    with pytest.raises(Watchdog):
        await call()
    assert not handler.armed
    others = forget_and_reuse()
    await settled(before)
    assert others == [b"secret" * 25 + bytes([i]) for i in range(100)]


RECEIVES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "recv": lambda s: s.recv(4),
    "recv larger than a buffer": lambda s: s.recv(1 << 17),
    "recv_into": lambda s: s.recv_into(bytearray(4)),
    "recvfrom": lambda s: s.recvfrom(4),
    "recvmsg": lambda s: s.recvmsg(4),
    "recvmsg_into": lambda s: s.recvmsg_into([bytearray(4)]),
    "receive_some": lambda s: trio.SocketStream(s).receive_some(4),
    "wait_readable": trio.lowlevel.wait_readable,
}


@pytest.mark.parametrize("name", RECEIVES)
def test_nobody_else_takes_what_comes_next(name: str, pure_ring: Backend, handler: Handler) -> None:
    """F11: the receive has gone with its caller; what the peer sends then is there for the next."""

    async def main() -> None:
        with socket_pair() as (a, b):
            sock = trio.socket.from_stdlib_socket(a)
            for _ in range(3):
                await struck_in(handler, lambda: RECEIVES[name](sock))
                b.send(b"next")
                assert await sock.recv(100) == b"next"

    run(pure_ring, main)


SENDS: dict[str, Callable[[Any, bytearray], Awaitable[Any]]] = {
    "send": lambda s, data: s.send(data),
    "send of bytes": lambda s, data: s.send(bytes(data)),
    "sendmsg": lambda s, data: s.sendmsg([data]),
    "send_all": lambda s, data: trio.SocketStream(s).send_all(data),
}


@pytest.mark.parametrize("name", SENDS)
def test_the_peer_sees_what_was_sent_or_nothing(name: str, pure_ring: Backend, handler: Handler) -> None:
    """F1: never memory that is somebody else's by then."""

    async def main() -> None:
        with socket_pair() as (a, b):
            sock = trio.socket.from_stdlib_socket(a)
            for _ in range(3):
                await struck_in(handler, lambda: SENDS[name](sock, bytearray(b"A") * 150))
                assert await sock.send(b"|") == 1
                assert b.recv(1000) in (b"|", b"A" * 150 + b"|")

    run(pure_ring, main)


def test_a_descriptor_that_is_closed_right_after(ring: Backend, handler: Handler) -> None:
    """F17: what was queued does not run on the next file of that number."""

    async def main() -> None:
        for _ in range(10):
            ours, theirs = socket.socketpair()
            with theirs:
                await blocked()
                sock = trio.socket.from_stdlib_socket(ours)
                handler.armed = True
                with pytest.raises(Watchdog):
                    await sock.send(b"for the old peer")
                number = sock.fileno()
                sock.close()
                new_ours, new_theirs = socket.socketpair()
                with new_ours, new_theirs:
                    assert number in (new_ours.fileno(), new_theirs.fileno())
                    await trio.sleep(0.001)
                    for end in (new_ours, new_theirs):
                        end.setblocking(False)
                        with pytest.raises(BlockingIOError):
                            end.recv(100)

    run(ring, main)


def test_a_connection_that_comes_later_is_accepted(pure_ring: Backend, handler: Handler) -> None:
    """F9."""

    async def main() -> None:
        with trio.socket.socket() as listener, socket.socket() as client:
            await listener.bind(("127.0.0.1", 0))
            listener.listen()
            await struck_in(handler, listener.accept)
            client.connect(listener.getsockname())
            with trio.fail_after(30):
                accepted, _ = await listener.accept()
            accepted.close()

    run(pure_ring, main)


@pytest.mark.usefixtures("descriptors_flat")
def test_files(pure_ring: Backend, handler: Handler, tmp_path: Path) -> None:
    """Reads, batches and paths: memory is let go of, and no descriptor is lost."""
    path = tmp_path / "file"
    path.write_bytes(b"contents" * 1000)

    async def main() -> None:
        memory = bytearray(100)
        with path.open("r+b", 0) as file:
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: trio_uring.read_at(file, 100, 8),
                lambda: trio_uring.readinto_at(file, memory, 8),
                lambda: trio_uring.write_at(file, memoryview(b"contents" * 10), 0),
                lambda: trio_uring.read_many(file, [(0, 8)] * 30),
                lambda: trio_uring.readinto_many(file, [(0, memory)]),
                lambda: trio_uring.fsync(file),
                lambda: trio_uring.read_files([path, path]),
                trio.Path(path).stat,
                trio.Path(path).read_bytes,
                partial(trio.open_file, path),
            ]
            for call in calls:
                await struck_in(handler, call)
                memory.append(0)
                del memory[-1]
            assert await trio_uring.read_at(file, 16, 0) == b"contents" * 2
            assert os.fstat(file.fileno()).st_size == 8000

    run(pure_ring, main)


@pytest.mark.usefixtures("descriptors_flat")
def test_pipes(pure_ring: Backend, handler: Handler) -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        async with trio.lowlevel.FdStream(reader) as receiver, trio.lowlevel.FdStream(writer) as sender:
            await struck_in(handler, lambda: receiver.receive_some(40))
            await sender.send_all(b"K" * 40)
            assert await receiver.receive_some(100) == b"K" * 40
            await struck_in(handler, lambda: sender.send_all(bytearray(b"A") * 40))
            await sender.send_all(b"|")
            assert await receiver.receive_some(100) in (b"|", b"A" * 40 + b"|")

    run(pure_ring, main)
