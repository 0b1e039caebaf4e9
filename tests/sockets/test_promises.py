"""What the socket layer promises, one test for each promise, named after the fault (F..) or the sentence it guards.

Knows Trio's public interface, /proc, and for some the manager's books. Where a promise is Trio's own, epoll is held to it
as well.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import gc
import inspect
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing
import trustme
from socket_tools import (
    PAIRS,
    Backend,
    Waiter,
    blocked,
    close_all,
    empty,
    fill,
    in_flight,
    manager,
    run,
    sees_end,
    tcp_pair,
    trio_pair,
    unix_pair,
)

from trio_uring._loop import manager as _manager

pytestmark = pytest.mark.usefixtures("descriptors_flat")

Sock = trio.socket.SocketType


def streams(pair: tuple[Sock, Sock]) -> tuple[trio.SocketStream, trio.SocketStream]:
    """Streams over two sockets."""
    return trio.SocketStream(pair[0]), trio.SocketStream(pair[1])


class BeforeTheSubmit(trio.abc.Instrument):
    """Does something once: after all tasks of a tick have run, before its entries are handed to the kernel."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action
        trio.lowlevel.add_instrument(self)

    def before_io_wait(self, timeout: float) -> None:
        if self.action is not None and trio.lowlevel.current_statistics().tasks_runnable == 0:
            action, self.action = self.action, None
            trio.lowlevel.remove_instrument(self)
            action()


# ------------------------------------------------------------------ F1, F4: memory is pinned until the completion


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("how", ["cancel", "close", "teardown"])
def test_f1_memory_outlives_a_call_that_was_ended(ring: Backend, kind: str, how: str) -> None:
    """What is freed by the caller stays allocated, and what is reused is not written to, until the kernel has let go."""

    async def main() -> None:
        with trio_pair(kind) as (a, b):
            memory = bytearray(b"\xcc" * 64)
            waiter = Waiter()
            if how == "teardown":
                coroutine: Any = a.recv_into(memory)
                await pump_once(coroutine)
                coroutine.close()
                # It is the kernel's still, so nobody may move it.
                with pytest.raises(BufferError):
                    memory.append(0)
                await blocked()
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.run, a.recv_into, memory)
                    await blocked()
                    with pytest.raises(BufferError):
                        memory.append(0)
                    if how == "cancel":
                        waiter.scope.cancel()
                    else:
                        a.close()
                assert waiter.outcome == ("cancelled" if how == "cancel" else trio.ClosedResourceError)
            memory.append(0)
            if how == "close":
                return
            await b.send(b"late")
            await blocked()
            assert memory == b"\xcc" * 64 + b"\0"
            assert await a.recv(10) == b"late"

    run(ring, main)


async def pump_once(coroutine: Any) -> None:
    """Run a coroutine inside this task up to its first trap that sleeps, and leave it there."""
    assert coroutine.send(None) is not None


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("method", ["send", "send_all", "sendmsg"])
def test_f1_what_is_being_sent_is_pinned(ring: Backend, kind: str, method: str) -> None:
    """Whoever resizes it gets BufferError, until the call is over."""

    async def main() -> None:
        with trio_pair(kind, 4608) as (a, _):
            fill(a)
            data = bytearray(b"x" * 30_000)
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "send": lambda: a.send(data),
                "send_all": lambda: trio.SocketStream(a).send_all(data),
                "sendmsg": lambda: a.sendmsg([data]),
            }
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, calls[method])
                await blocked()
                assert waiter.outcome == "blocked"
                with pytest.raises(BufferError):
                    data.append(0)
                waiter.scope.cancel()
            assert waiter.cancelled
            data.append(0)

    run(ring, main)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("method", ["send", "send_all", "sendmsg"])
@pytest.mark.parametrize("room", [True, False], ids=["room", "full"])
def test_f1_what_was_being_sent_by_a_coroutine_that_is_gone(ring: Backend, kind: str, method: str, room: bool) -> None:
    """Its entry is not even submitted when the coroutine, and with it the last reference to the data, goes away."""

    async def main() -> None:
        with trio_pair(kind, None if room else 4608) as (a, b):
            if not room:
                fill(a)
            for _ in range(20):
                data = b"x" * 50_000
                calls: dict[str, Callable[[Any], Awaitable[Any]]] = {
                    "send": a.send,
                    "send_all": trio.SocketStream(a).send_all,
                    "sendmsg": lambda data: a.sendmsg([data]),
                }
                coroutine: Any = calls[method](data)
                await pump_once(coroutine)
                coroutine.close()
                del coroutine, calls, data
                # Takes the place of what was freed.
                others = [b"y" * 50_000 for _ in range(20)]
                await blocked()
                received = empty(b)
                assert set(received) <= {0, ord("x")}, others

    run(ring, main)


@pytest.mark.parametrize("kind", PAIRS)
def test_f4_half_close_while_a_send_is_in_flight(backend: Backend, kind: str) -> None:
    """send_eof waits its turn (BusyResourceError); a shutdown of the socket ends the send; neither frees its memory."""

    async def main() -> None:
        with trio_pair(kind, 4608) as pair:
            left, right = streams(pair)
            fill(pair[0])
            data = bytearray(b"x" * 50_000)
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, left.send_all, data)
                await blocked()
                with pytest.raises(trio.BusyResourceError):
                    await left.send_eof()
                assert waiter.outcome == "blocked"
                pair[0].shutdown(socket.SHUT_WR)
                # On epoll a UNIX socket does not wake its writer for that, but when there is room.
                received = empty(pair[1])
            assert waiter.outcome is trio.BrokenResourceError
            assert str(waiter.error) == "socket connection broken: [Errno 32] Broken pipe"
            data.append(0)
            data[:] = b"y" * len(data)
            assert set(received) <= {0, ord("x")}
            assert await right.receive_some() == b""

    run(backend, main)


# ------------------------------------------------------------------ F9: an accept against its cancel


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_f9_accept_against_its_cancel(pure_ring: Backend, kind: str, tmp_path: Path) -> None:
    """A connection is delivered, or it is still in the queue; it is never swallowed by an accept that says Cancelled."""
    total = 10_000

    async def main() -> None:
        raw = socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX)
        raw.bind(("127.0.0.1", 0) if kind == "tcp" else str(tmp_path / "l"))
        raw.listen(128)
        outcomes: Counter[str] = Counter()
        with trio.socket.from_stdlib_socket(raw) as listener:
            for round_ in range(total // 20):
                clients = []
                taken = 0
                for turn in range(20):
                    connect_first = (round_ + turn) % 3 == 0
                    before = taken
                    client = socket.socket(raw.family)
                    clients.append(client)
                    if connect_first:
                        client.connect(raw.getsockname())
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as nursery:
                            order = round_ % 4
                            if order == 3:  # the connection is there, and the cancel is queued behind the accept
                                if not connect_first:
                                    client.connect(raw.getsockname())
                                BeforeTheSubmit(scope.cancel)
                            else:
                                other = None if connect_first else client
                                nursery.start_soon(meddle, scope, (round_ + turn) % 5, order, other, raw)
                            accepted, _ = await listener.accept()
                            taken += 1
                            accepted.close()
                            outcomes["the cancel was late"] += order == 3 and scope.cancel_called
                    outcomes["delivered" if taken > before else "cancelled"] += 1
                    assert client in connected([client])
                # What was not delivered is there.
                while taken < len(clients):
                    with trio.fail_after(60):
                        accepted, _ = await listener.accept()
                    accepted.close()
                    taken += 1
                assert not listener.is_readable()
                for client in clients:
                    # Every one of them has been accepted and closed, so sees the end.
                    assert client.recv(1) == b""
                    client.close()
        assert len(outcomes) == 3
        assert min(outcomes.values()) >= total // 50, outcomes

    run(pure_ring, main)


def connected(clients: list[socket.socket]) -> list[socket.socket]:
    """Those that have a peer."""
    found = []
    for client in clients:
        try:
            client.getpeername()
        except OSError:
            continue
        found.append(client)
    return found


async def meddle(
    scope: trio.CancelScope, turns: int, order: int, client: socket.socket | None, raw: socket.socket
) -> None:
    """Connect and cancel in the same tick or the next one, after some turns of the scheduler."""
    with trio.CancelScope(shield=True):
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        if order:
            scope.cancel()
        if order == 2:
            await trio.lowlevel.checkpoint()
        if client is not None:
            client.connect(raw.getsockname())
        scope.cancel()


def test_f9_an_accept_that_nobody_waits_for_closes_its_connection(ring: Backend) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as raw:
            listener = trio.socket.from_stdlib_socket(raw.dup())
            with listener, socket.create_connection(raw.getsockname()) as client:
                await pump_and_close(listener.accept())
                await blocked()
                # Closed by the ring, or taken back by it and still in the queue.
                if listener.is_readable():
                    accepted, _ = await listener.accept()
                    accepted.close()
                assert client.recv(1) == b""

    run(ring, main)


async def pump_and_close(coroutine: Any) -> None:
    """Run a coroutine up to its first sleep and close it."""
    await pump_once(coroutine)
    coroutine.close()


# ------------------------------------------------------------------ F10, F16: provided buffers


def test_f10_no_provided_buffer_is_lost(ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two buffers in all, hundreds of receives that end in each possible way leave two."""
    monkeypatch.setattr(_manager, "BUFFER_COUNT", 2)

    async def main() -> None:
        seen: Counter[str] = Counter()
        with trio_pair() as (a, b):
            for turn in range(600):
                waiter = Waiter()
                async with trio.open_nursery() as nursery:
                    if turn % 3 == 0:  # the data is there, and the cancel comes behind
                        os.write(b.fileno(), b"x")
                    nursery.start_soon(waiter.run, a.recv, 100)
                    if turn % 3 == 1:  # it waits, data and the cancel come together
                        await blocked()
                        os.write(b.fileno(), b"x")
                    elif turn % 3 == 2:
                        await blocked()
                    if turn % 2:
                        BeforeTheSubmit(waiter.scope.cancel)
                    else:
                        waiter.scope.cancel()
                seen["cancelled" if waiter.cancelled else "data"] += 1
                empty(a)
            assert min(seen["data"], seen["cancelled"]) >= 20, seen
            # Both are there: two receives at once are each answered out of one.
            with trio_pair() as (c, d):
                for _ in range(3):
                    before = manager().statistics().submitted
                    async with trio.open_nursery() as nursery:
                        waiters = [Waiter(), Waiter()]
                        for waiter, sock in zip(waiters, (a, c), strict=True):
                            nursery.start_soon(waiter.run, sock.recv, 10)
                        await blocked()
                        for sock in b, d:
                            os.write(sock.fileno(), b"x")
                    assert [waiter.outcome for waiter in waiters] == [b"x", b"x"]
                    # One that finds no buffer is queued again.
                    assert manager().statistics().submitted - before == 2

    run(ring, main)


@pytest.mark.parametrize("count", [1, 2, 256])
def test_f16_more_receives_are_ready_than_there_are_buffers(
    ring: Backend, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 400 receives that become ready at once is answered with its own data, although the buffers run out."""
    monkeypatch.setattr(_manager, "BUFFER_COUNT", count)

    async def main() -> None:
        pairs = [unix_pair() for _ in range(400)]
        socks = [trio.socket.from_stdlib_socket(a) for a, _ in pairs]
        try:
            for _ in range(3):
                waiters = [Waiter() for _ in pairs]
                async with trio.open_nursery() as nursery:
                    for waiter, sock in zip(waiters, socks, strict=True):
                        nursery.start_soon(waiter.run, sock.recv, 65536)
                    await blocked()
                    for number, (_, b) in enumerate(pairs):
                        b.send(b"%d" % number * 50)
                assert [waiter.outcome for waiter in waiters] == [b"%d" % n * 50 for n in range(400)]
        finally:
            close_all(*socks, *(b for _, b in pairs))

    run(ring, main)


def test_f16_closed_where_no_buffer_was_free(ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notify_closing that comes in the same tick as ENOBUFS is not forgotten: the receive is not started again."""
    monkeypatch.setattr(_manager, "BUFFER_COUNT", 1)

    async def main() -> None:
        pairs = [unix_pair() for _ in range(3)]
        socks = [trio.socket.from_stdlib_socket(a) for a, _ in pairs]
        try:
            waiters = [Waiter() for _ in pairs]
            async with trio.open_nursery() as nursery:
                for waiter, sock in zip(waiters, socks, strict=True):
                    nursery.start_soon(waiter.run, sock.recv, 10)
                await blocked()
                for _, b in pairs:
                    b.send(b"x")
                for sock in socks:
                    trio.lowlevel.notify_closing(sock)
                    empty(sock)
                await blocked()
                assert all(waiter.outcome in (b"x", trio.ClosedResourceError) for waiter in waiters), [
                    waiter.outcome for waiter in waiters
                ]
                nursery.cancel_scope.cancel()
        finally:
            close_all(*socks, *(b for _, b in pairs))

    run(ring, main)


# ------------------------------------------------------------------ F11: data that comes with a cancel


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("method", ["recv", "recv_into", "recvmsg", "receive_some"])
def test_f11_data_in_the_tick_of_the_cancel(backend: Backend, kind: str, method: str) -> None:
    """Either the call answers with it or it is in the socket still."""

    async def main() -> None:
        seen = Counter[str]()
        with trio_pair(kind) as (a, b):
            stream = trio.SocketStream(a)
            for turn in range(300):
                data = b"%d;" % turn
                memory = bytearray(20)
                waiter = Waiter()
                argument = memory if method == "recv_into" else 20
                if turn % 3 == 0:
                    os.write(b.fileno(), data)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.run, getattr(stream if method == "receive_some" else a, method), argument)
                    if turn % 3 == 0:  # the cancel is queued behind the call
                        BeforeTheSubmit(waiter.scope.cancel)
                    else:
                        await blocked()
                        if turn % 3 == 1:
                            waiter.scope.cancel()
                        os.write(b.fileno(), data)
                        waiter.scope.cancel()
                if waiter.cancelled:
                    assert memory == bytes(20)
                    assert await a.recv(20) == data
                else:
                    got = waiter.outcome[0] if method == "recvmsg" else waiter.outcome
                    assert (memory[:got] if method == "recv_into" else got) == data
                seen[str(waiter.cancelled)] += 1
            assert not a.is_readable()
        assert seen

    run(backend, main)


def test_f11_an_operation_that_lost_its_race_is_not_used_again_as_cancelled(ring: Backend) -> None:
    """A receive that was cancelled and had data all the same; the next one on that ring does not remember the cancel."""

    async def main() -> None:
        lost = 0
        with trio_pair() as (a, b), trio_pair() as (c, d):
            for _ in range(200):
                waiter, sender = Waiter(), Waiter()
                os.write(b.fileno(), b"x")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.run, a.recv, 10)
                    nursery.start_soon(sender.run, d.send, b"z")
                    BeforeTheSubmit(waiter.scope.cancel)
                    BeforeTheSubmit(sender.scope.cancel)
                lost += (waiter.outcome, sender.outcome) == (b"x", 1)
                empty(a)
                assert empty(c) == (b"z" if sender.outcome == 1 else b"")
                # A task that is not cancelled and whose receive is interrupted by nobody must not be told Cancelled.
                innocent = Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(innocent.run, c.recv, 10)
                    await blocked()
                    assert all(each.raise_cancel is None for each in manager().receives + manager().sends)
                    await d.send(b"y")
                assert innocent.outcome == b"y"
        assert lost > 20

    run(ring, main)


# ------------------------------------------------------------------ F17, F18: a close is a close


METHODS: dict[str, Callable[[Sock], Awaitable[Any]]] = {
    "recv": lambda sock: sock.recv(10),
    "recv large": lambda sock: sock.recv(100_000),
    "recv_into": lambda sock: sock.recv_into(bytearray(10)),
    "recvfrom": lambda sock: sock.recvfrom(10),
    "recvmsg": lambda sock: sock.recvmsg(10),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(10)]),
    "receive_some": lambda sock: trio.SocketStream(sock).receive_some(),
    "send": lambda sock: sock.send(b"old"),
    "sendmsg": lambda sock: sock.sendmsg([b"o", b"ld"]),
    "send_all": lambda sock: trio.SocketStream(sock).send_all(b"old"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", PAIRS)
def test_f17_no_entry_outlives_its_descriptor(pure_ring: Backend, kind: str, method: str) -> None:
    """Queued, closed, and the number reused before the submit: nothing happens to the new socket."""

    async def main() -> None:
        old, old_peer = PAIRS[kind]()
        new, new_peer = PAIRS[kind]()
        with old, old_peer, new, new_peer:
            sock = trio.socket.from_stdlib_socket(socket.socket(fileno=old.detach()))
            number = sock.fileno()
            new.setblocking(False)
            new_peer.setblocking(False)
            new_peer.send(b"new")

            def close_and_reuse() -> None:
                sock.close()
                os.dup2(new.fileno(), number)

            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, METHODS[method], sock)
                BeforeTheSubmit(close_and_reuse)
            try:
                if method.startswith("rec"):
                    assert waiter.outcome is trio.ClosedResourceError
                else:
                    # On the file that it was meant for, or not at all.
                    assert empty(old_peer) == (b"" if waiter.error else b"old")
                assert new.recv(10) == b"new"
                assert empty(new_peer) == b""
                assert old_peer.recv(10) == b""
                # And whoever uses the number now is not disturbed.
                again = trio.socket.from_stdlib_socket(socket.socket(fileno=number))
                new_peer.send(b"newer")
                assert await again.recv(10) == b"newer"
                again.detach()
            finally:
                os.close(number)

    run(pure_ring, main)


@pytest.mark.parametrize("method", [name for name in METHODS if name.startswith("rec")])
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("cancelled", [False, True], ids=["waiting", "cancelled"])
def test_f18_the_peer_sees_the_end_at_once(backend: Backend, kind: str, method: str, cancelled: bool) -> None:
    """As soon as close has returned, with a receive in flight, or one whose cancel is in the same tick."""

    async def main() -> None:
        a, b = PAIRS[kind]()
        with b:
            b.setblocking(False)
            sock = trio.socket.from_stdlib_socket(a)
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, METHODS[method], sock)
                await blocked()
                if cancelled:
                    waiter.scope.cancel()
                sock.close()
                assert sees_end(b)
                assert b.recv(1) == b""
            assert waiter.outcome == ("cancelled" if cancelled else trio.ClosedResourceError)

    run(backend, main)


@pytest.mark.parametrize("kind", PAIRS)
def test_f18_close_with_a_send_in_flight(backend: Backend, kind: str) -> None:
    """The send is over, what went out before is all that went out, and the peer sees the end behind it."""

    async def main() -> None:
        a, b = PAIRS[kind](4608)
        with b:
            b.setblocking(False)
            sock = trio.socket.from_stdlib_socket(a)
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.SocketStream(sock).send_all, b"x" * 200_000)
                await blocked()
                sock.close()
            assert waiter.outcome is trio.ClosedResourceError
            # Which task closed it, and not just that it is closed: as on epoll, also after a part has gone out.
            assert str(waiter.error) == "another task closed this fd"
            b.setblocking(True)
            received = 0
            while data := b.recv(100_000):
                assert set(data) == {ord("x")}
                received += len(data)
            assert 0 < received < 200_000

    run(backend, main)


def test_notify_closing_alone_ends_a_send_half_way(backend: Backend) -> None:
    """The descriptor stays open, but the call is over."""

    async def main() -> None:
        with trio_pair("unix", 4608) as (a, b):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.SocketStream(a).send_all, b"x" * 200_000)
                await blocked()
                trio.lowlevel.notify_closing(a)
                await blocked()
                assert waiter.outcome is trio.ClosedResourceError
                before = empty(b)
                assert before
                await blocked()
                assert empty(b) == b""

    run(backend, main)


def test_a_descriptor_of_the_same_socket_is_closed(ring: Backend) -> None:
    """The kernel cancels by file, not by number: calls on another descriptor of that file go on, and lose nothing."""

    async def main() -> None:
        with trio_pair() as (a, b):
            for _ in range(20):
                other = a.dup()
                waiters = [Waiter() for _ in range(3)]
                memory = bytearray(10)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiters[0].run, a.recv, 10)
                    nursery.start_soon(waiters[1].run, other.recv_into, memory)
                    await blocked()
                    other.close()
                    await blocked()
                    assert waiters[1].outcome is trio.ClosedResourceError
                    assert waiters[0].outcome == "blocked"
                    await b.send(b"x")
                assert waiters[0].outcome == b"x"

    run(ring, main)


def test_a_connect_goes_on_when_another_descriptor_of_the_socket_is_closed(backend: Backend) -> None:
    async def main() -> None:
        with socket.socket() as raw, socket.socket() as first:
            raw.bind(("127.0.0.1", 0))
            raw.listen(0)
            first.connect(raw.getsockname())
            with trio.socket.socket() as waits:
                # The queue is full with the first: the kernel drops what comes, and tries again after a second.
                waiter, reader = Waiter(), Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.run, waits.connect, raw.getsockname())
                    await blocked()
                    assert waiter.outcome == "blocked"
                    other = waits.dup()
                    nursery.start_soon(reader.run, trio.lowlevel.wait_writable, other)
                    await blocked()
                    other.close()
                    await blocked()
                    assert reader.outcome is trio.ClosedResourceError
                    assert waiter.outcome == "blocked", (waiter.result, waiter.error)
                    raw.accept()[0].close()
                assert waiter.error is None
                assert waits.getpeername() == raw.getsockname()

    run(backend, main)


def test_connect_to_a_unix_listener_whose_queue_is_full(backend: Backend, tmp_path: Path) -> None:
    """EAGAIN, which no poll can wait for. Trio takes the connect for done and the socket is not connected; a busy loop
    would be worse."""

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as raw, socket.socket(socket.AF_UNIX) as first:
            raw.bind(str(tmp_path / "l"))
            raw.listen(0)
            first.connect(raw.getsockname())
            with trio.socket.socket(socket.AF_UNIX) as sock:
                await sock.connect(raw.getsockname())
                with pytest.raises(OSError, match="not connected"):
                    sock.getpeername()
                # And once there is room.
                raw.accept()[0].close()
                await sock.connect(raw.getsockname())
                assert sock.getpeername() == raw.getsockname()

    run(backend, main)


@pytest.mark.parametrize("how", ["listening", "nobody"])
def test_connect_goes_on_with_what_was_begun_before(backend: Backend, how: str) -> None:
    """A connect that the socket's maker began without blocking: wait for how it ends."""

    async def main() -> None:
        with socket.socket() as raw, socket.socket() as first, socket.socket() as mine:
            raw.bind(("127.0.0.1", 0))
            raw.listen(0)
            first.connect(raw.getsockname())
            mine.setblocking(False)
            assert mine.connect_ex(raw.getsockname()) == errno.EINPROGRESS
            sock = trio.socket.from_stdlib_socket(mine)
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, sock.connect, raw.getsockname())
                await blocked()
                assert waiter.outcome == "blocked", waiter.error
                if how == "listening":
                    raw.accept()[0].close()
                else:
                    raw.close()
            if how == "listening":
                assert waiter.error is None
            else:
                assert isinstance(waiter.error, ConnectionRefusedError)
                assert str(waiter.error).startswith("[Errno 111] Error connecting to ('127.0.0.1', ")

    run(backend, main)


def test_f17_the_end_of_a_with_block_is_a_close(ring: Backend) -> None:
    """F17: what another task has queued in the same tick runs on no other file of that number, and the peer sees the end."""

    async def main() -> None:
        for _ in range(4):
            near, theirs = socket.socketpair()
            ours = trio.socket.from_stdlib_socket(near)
            sender, receiver = Waiter(), Waiter()
            with theirs:
                async with trio.open_nursery() as nursery:
                    with ours:
                        nursery.start_soon(receiver.run, ours.recv, 1)
                        await blocked()
                        nursery.start_soon(sender.run, ours.send, b"for the old peer")
                        await trio.lowlevel.checkpoint()
                        number = ours.fileno()
                    new_ours, new_theirs = socket.socketpair()
                    with new_ours, new_theirs:
                        assert number in (new_ours.fileno(), new_theirs.fileno())
                        await blocked(0.001)
                        assert empty(new_ours) == empty(new_theirs) == b""
                assert receiver.outcome is trio.ClosedResourceError
                assert sender.outcome in (16, trio.ClosedResourceError, OSError)  # the last: it had not begun
                assert empty(theirs) == (b"for the old peer" if sender.outcome == 16 else b"")
                assert sees_end(theirs)

    run(ring, main)


# ------------------------------------------------------------------ F20: descriptors that do not block


@pytest.mark.parametrize("kind", PAIRS)
def test_f20_non_blocking_descriptors_wait(backend: Backend, kind: str) -> None:
    async def main() -> None:
        with trio_pair(kind, 4608) as (a, b):
            assert not os.get_blocking(a.fileno())
            while fill(a):  # noqa: ASYNC110 - TCP moves data on in its own time, and then has room again
                await trio.sleep(0.2)  # an acknowledgement may be delayed so long
            waiters = [Waiter() for _ in range(2)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiters[0].run, a.recv, 10)
                nursery.start_soon(waiters[1].run, a.send, b"last")
                await blocked()
                assert [waiter.outcome for waiter in waiters] == ["blocked"] * 2
                await b.send(b"x")
                while not waiters[1].ended:
                    empty(b)
                    await blocked()
            assert [waiter.outcome for waiter in waiters] == [b"x", 4]

    run(backend, main)


# ------------------------------------------------------------------ F35: no more descriptors


def test_f35_emfile_while_accepting(backend: Backend) -> None:
    """The acceptor is told, as on epoll; the run goes on; the connection is still there once there is room."""

    async def main() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.create_server(("127.0.0.1", 0)) as raw, socket.socket() as client:
            listener = trio.socket.from_stdlib_socket(raw.dup())
            with listener, trio_pair() as (a, b):
                waiter = Waiter()
                lowest = os.dup(0)
                os.close(lowest)
                try:
                    async with trio.open_nursery() as nursery:
                        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
                        nursery.start_soon(waiter.run, listener.accept)
                        await blocked()
                        assert waiter.outcome == "blocked"
                        assert os.dup(0) == lowest
                        client.connect(raw.getsockname())
                        await blocked()
                        assert isinstance(waiter.error, OSError)
                        assert waiter.error.errno == errno.EMFILE
                        assert str(waiter.error) == "[Errno 24] Too many open files"
                        for _ in range(50):
                            with pytest.raises(OSError, match="Too many open files"):
                                await listener.accept()
                        # The loop lives.
                        await a.send(b"x")
                        assert await b.recv(1) == b"x"
                finally:
                    os.close(lowest)
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                accepted, address = await listener.accept()
                assert address == client.getsockname()
                accepted.close()

    run(backend, main)


# ------------------------------------------------------------------ where sockets come from, and how many runs they see


def test_a_socket_from_before_the_run_used_in_several_runs(backend: Backend) -> None:
    a, b = tcp_pair()
    with a, b:
        mine, peer = [], []

        async def first() -> None:
            mine.append(trio.socket.from_stdlib_socket(a))
            peer.append(trio.socket.from_stdlib_socket(b))
            await mine[0].send(b"one")
            assert await peer[0].recv(10) == b"one"
            # Over with a receive in flight, which must not take what comes in the next run.
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(peer[0].recv, 10)
                    await blocked()
                    scope.cancel()

        async def later() -> None:
            await mine[0].send(b"two")
            assert await peer[0].recv(10) == b"two"

        run(backend, first)
        for other in (backend, "epoll", backend, "uring", "epoll", backend):
            run(other, later)


def test_a_socket_in_two_runs_at_once(backend: Backend) -> None:
    """One thread receives and the other sends, each in a run of its own, on the same object."""
    a, b = tcp_pair()
    rounds = 300
    socks: list[Sock] = []
    failures: list[BaseException] = []

    async def wrap() -> None:
        socks.extend((trio.socket.from_stdlib_socket(a), trio.socket.from_stdlib_socket(b)))

    async def echo() -> None:
        got = 0
        while got < rounds:
            data = await socks[1].recv(100)
            got += len(data)
            await socks[1].send(data)

    async def ask() -> None:
        for _ in range(rounds):
            await socks[0].send(b"x")
            assert await socks[0].recv(100) == b"x"

    async def both_read() -> None:
        # And both runs receive on the same descriptor: each byte arrives once.
        with trio.move_on_after(60):
            received.append(await socks[1].recv(1))

    def threads(*functions: Callable[[], Awaitable[None]]) -> list[threading.Thread]:
        def target(function: Callable[[], Awaitable[None]]) -> None:
            try:
                run(backend, function)
            except BaseException as error:
                failures.append(error)

        started = [threading.Thread(target=target, args=(function,)) for function in functions]
        for thread in started:
            thread.start()
        return started

    with a, b:
        run(backend, wrap)
        for thread in threads(echo, ask):
            thread.join()
        assert not failures, failures
        received: list[bytes] = []
        readers = threads(both_read, both_read)
        a.send(b"p")
        a.send(b"q")
        for thread in readers:
            thread.join()
        assert not failures
        assert sorted(received) == [b"p", b"q"]


def test_epoll_and_ring_at_the_same_time() -> None:
    """The methods are replaced for the whole process; a run on epoll beside one on the ring uses its own."""
    kinds: list[str] = []

    async def talk() -> None:
        kinds.append(trio.lowlevel.current_statistics().io_statistics.backend)
        with trio_pair("tcp") as pair:
            left, right = streams(pair)
            for _ in range(100):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(left.send_all, b"x" * 100_000)
                    got = 0
                    while got < 100_000:
                        got += len(await right.receive_some())
            memory = bytearray(4)
            await pair[0].send(memoryview(b"abcd"))
            assert await pair[1].recv_into(memory) == 4
            assert memory == b"abcd"

    threads = [threading.Thread(target=run, args=(each, talk)) for each in ("epoll", "uring", "epoll", "uring")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kinds) == ["epoll", "epoll", "uring", "uring"]


def test_detach_with_a_blocked_recv(ring: Backend) -> None:
    """Difference: the receive is on the file, so it gets the data. On epoll it would raise EBADF. Nothing is lost."""

    async def main() -> None:
        with trio_pair() as (a, b):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, a.recv, 10)
                await blocked()
                fd = a.detach()
                await b.send(b"x")
            again = trio.socket.from_stdlib_socket(socket.socket(fileno=fd))
            with again:
                assert waiter.outcome == b"x"
                await b.send(b"y")
                assert await again.recv(10) == b"y"

    run(ring, main)


# ------------------------------------------------------------------ cancellation


CALLS: dict[str, Callable[[Sock], Awaitable[Any]]] = {
    **METHODS,
    "sendto": lambda sock: sock.sendto(b"old", "/nowhere"),
    "accept": lambda sock: sock.accept(),
    "connect": lambda sock: sock.connect("/nowhere"),
    "recv, a flag": lambda sock: sock.recv(10, socket.MSG_PEEK),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(10)),
}


@pytest.mark.parametrize("how", ["cancelled", "past"])
@pytest.mark.parametrize("method", CALLS)
def test_a_scope_that_is_cancelled_wins_before_anything_is_touched(backend: Backend, method: str, how: str) -> None:
    """Even over a call that would be an error, or would complete at once. (A cancelled connect closes its socket.)"""

    async def main() -> None:
        with trio_pair() as (a, b):
            await b.send(b"data")
            scope = trio.CancelScope()
            if how == "cancelled":
                scope.cancel()
            else:
                scope.deadline = trio.current_time() - 1
            with scope:
                await CALLS[method](a)
            assert scope.cancelled_caught
            if method == "connect":
                assert a.fileno() == -1
            else:
                assert empty(b) == b""
                assert await a.recv(10) == b"data"

    run(backend, main)


@pytest.mark.parametrize("method", ["send", "sendmsg", "send_all"])
def test_a_scope_that_is_cancelled_in_the_same_tick(ring: Backend, method: str) -> None:
    """Queued and cancelled before the submit: sent and told so, or cancelled and not sent."""

    async def main() -> None:
        with trio_pair() as (a, b):
            for _ in range(100):
                waiter = Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.run, METHODS[method], a)
                    BeforeTheSubmit(waiter.scope.cancel)
                assert empty(b) == (b"" if waiter.cancelled else b"old")

    run(ring, main)


# ------------------------------------------------------------------ Ctrl-C


@pytest.mark.parametrize("seed", range(3))
def test_ctrl_c_in_the_middle_of_loops(ring: Backend, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it hits: KeyboardInterrupt, no lost byte, and the next run works on the same sockets."""
    a, b = unix_pair(4608)
    socks: list[Sock] = []
    sent: list[int] = [0]
    got: list[int] = [0]
    # CPython drops what is raised in a callback of the garbage collector's or of a weak reference's: Ctrl-C is pressed again.
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.exc_type))
    presses = 0

    def press(after: float, ended: threading.Event) -> None:
        nonlocal presses
        while not ended.wait(after):
            presses += 1
            signal.raise_signal(signal.SIGINT)
            after = 10

    @trio.lowlevel.enable_ki_protection
    def start_to_press(after: float, ended: threading.Event) -> None:
        # CPython's own locks do not bear a KeyboardInterrupt: Thread.start would end in "release unlocked lock" in its place.
        threading.Thread(target=press, args=(after, ended)).start()

    async def wrap() -> None:
        socks.extend((trio.socket.from_stdlib_socket(a), trio.socket.from_stdlib_socket(b)))

    async def sender() -> None:
        while True:
            sent[0] += await socks[0].send(b"x" * 700)

    async def main(after: float, ended: threading.Event) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender)
                start_to_press(after, ended)
                while True:
                    got[0] += len(await socks[1].recv(500))
        finally:
            ended.set()

    with a, b:
        run(ring, wrap)
        for turn in range(15):
            with pytest.raises(BaseException, match="Exceptions from Trio nursery") as caught:
                run(ring, main, (turn * 7 + seed * 3) % 11 * 0.0007, threading.Event())
            assert caught.group_contains(KeyboardInterrupt)
            # An interrupt between the answer and the addition may lose the count of one call, of ours, not bytes.
            left = len(empty(b))
            slack = sent[0] - got[0] - left
            assert -700 <= slack <= 500, slack
            got[0] = sent[0]
    assert presses == 15 + len(dropped), "a KeyboardInterrupt was lost"
    assert set(dropped) <= {KeyboardInterrupt}


# ------------------------------------------------------------------ idle connections


def rss() -> int:
    """Bytes of memory of this process, less what the allocator only keeps for the next to ask."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Mallinfo(ctypes.Structure):
    """struct mallinfo2 of mallinfo(3) (glibc 2.33)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def held() -> int:
    """Bytes that malloc has handed out in this process: its heap and its mappings."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def test_idle_connections_hold_no_receive_memory(ring: Backend) -> None:
    """10,000 tasks in a receive of 64 KiB, each of which has received 16 KiB before.

    Held is what the allocator has handed out and not got back: next to nothing for each. What the process has of the machine's
    memory is more: the pool, which is shared, and pages that are free and that the allocator cannot give back. Kernel 6.1
    leaves many of these: it hands out the completions of all 10,000 at once, so most receives find no buffer and take memory
    of their own. 6.18 hands out some twenty at a time, and their buffers are back before the next.
    """
    total = 10_000
    each = 16384
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < total + 1000:
        pytest.fail(f"needs {total + 1000} descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def reader(sock: Sock) -> None:
        while await sock.recv(65536):
            pass

    async def main() -> None:
        pairs = [unix_pair() for _ in range(total // 2)]
        socks = [trio.socket.from_stdlib_socket(each) for pair in pairs for each in pair]
        raws = [socket.socket(fileno=sock.fileno()) for sock in socks]
        try:
            async with trio.open_nursery() as nursery:
                for sock in socks:
                    nursery.start_soon(reader, sock)
                await blocked()
                before = held()
                idle = rss()
                data = b"x" * each
                # A few at a time, so that each is answered out of a provided buffer; then all of them at once.
                for first in range(0, total, 200):
                    for raw in raws[first : first + 200]:
                        raw.send(data)
                    await blocked()
                for raw in raws:
                    raw.send(data)
                await blocked()
                kept = held() - before
                assert kept < total * 512, f"{kept:,} bytes for {total:,} connections"
                grown = rss() - idle
                assert grown < total * each // 2, f"{grown:,} bytes for {total:,} connections"
                nursery.cancel_scope.cancel()
        finally:
            for raw in raws:
                raw.detach()
            close_all(*socks)

    try:
        run(ring, main)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ------------------------------------------------------------------ what stands on sockets


def test_ssl_over_socket_stream(backend: Backend) -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.org").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    data = os.urandom(300_000)

    async def main() -> None:
        with trio_pair("tcp") as pair:
            left, right = streams(pair)
            client = trio.SSLStream(left, client_context, server_hostname="example.org")
            server = trio.SSLStream(right, server_context, server_side=True)
            received = bytearray()

            async def serve() -> None:
                async for some in server:
                    received.extend(some)
                    await server.send_all(some)
                await server.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                nursery.start_soon(client.send_all, data)
                back = bytearray()
                while len(back) < len(data):
                    back += await client.receive_some()
                with trio.move_on_after(0) as scope:
                    await client.receive_some()
                assert scope.cancelled_caught
                await client.aclose()
            assert received == back == data

    run(backend, main)


def test_serve_tcp_and_open_tcp_stream(backend: Backend) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            async for some in stream:
                await stream.send_all(some)

    async def ask(port: int, number: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"%d" % number * 1000)
            await stream.send_eof()
            received = bytearray()
            async for some in stream:
                received += some
            assert received == b"%d" % number * 1000

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(functools.partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            async with trio.open_nursery() as clients:
                for number in range(60):
                    clients.start_soon(ask, port, number)
            nursery.cancel_scope.cancel()

    run(backend, main)


def anyio_run(backend: Backend, main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main, backend="trio", backend_options={"io_backend": backend})


def test_anyio_tcp_and_udp(backend: Backend) -> None:
    async def main() -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:

            async def echo(stream: Any) -> None:
                async with stream:
                    async for some in stream:
                        await stream.send(some)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, echo)
                port = listener.extra(anyio.abc.SocketAttribute.local_port)
                async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                    await stream.send(b"hello")
                    assert await stream.receive() == b"hello"
                    await stream.send_eof()
                    with pytest.raises(anyio.EndOfStream):
                        await stream.receive()
                tasks.cancel_scope.cancel()
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as udp:
            here = udp.extra(anyio.abc.SocketAttribute.local_address)
            async with await anyio.create_connected_udp_socket(*here) as other:
                await other.send(b"ping")
                data, address = await udp.receive()
                assert data == b"ping"
                await udp.sendto(b"pong", *address)
                assert await other.receive() == b"pong"
                with anyio.move_on_after(0.01) as scope:
                    await other.receive()
                assert scope.cancelled_caught

    anyio_run(backend, main)


def test_anyio_unix_and_descriptors(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    (tmp_path / "file").write_text("passed")

    async def main() -> None:
        async with await anyio.create_unix_listener(path) as listener:

            async def serve(stream: Any) -> None:
                async with stream:
                    assert await stream.receive() == b"hello"
                    with (tmp_path / "file").open() as file:
                        await stream.send_fds(b"fds", [file, file.fileno()])
                    await stream.receive()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, serve)
                async with await anyio.connect_unix(path) as stream:
                    await stream.send(b"hello")
                    data, fds = await stream.receive_fds(10, 2)
                    assert data == b"fds"
                    assert [os.read(fd, 10) for fd in fds] == [b"passed", b""]
                    for fd in fds:
                        os.close(fd)
                    await stream.send(b"done")
                tasks.cancel_scope.cancel()
        one_path, two_path = tmp_path / "one", tmp_path / "two"
        async with (
            await anyio.create_unix_datagram_socket(local_path=one_path) as one,
            await anyio.create_connected_unix_datagram_socket(one_path, local_path=two_path) as two,
        ):
            await two.send(b"ping")
            data, address = await one.receive()
            assert data == b"ping"
            await one.sendto(b"pong", address)
            assert await two.receive() == b"pong"

    anyio_run(backend, main)


# ------------------------------------------------------------------ what introspection sees


def test_methods_look_as_before() -> None:
    """Names, signatures and documentation are Trio's own; and what is replaced is reachable."""
    program = """
        import inspect, sys, trio
        def signature(member):
            try:
                return str(inspect.signature(member))
            except ValueError:  # it follows __wrapped__ to a method of CPython's
                return None
        def look():
            for cls in trio._socket._SocketType, trio.SocketStream, trio.SocketListener:
                for name, member in sorted(vars(cls).items()):
                    if inspect.isfunction(member):
                        yield (cls.__name__, name, member.__name__, member.__qualname__, member.__module__,
                               signature(member), member.__doc__, inspect.iscoroutinefunction(member))
        before = list(look())
        import trio_uring
        assert list(look()) == before
        async def main(): pass
        trio_uring.run(main, io_backend="uring")
        replaced = [name for name, member in vars(trio._socket._SocketType).items()
                    if getattr(member, "__module__", "") and hasattr(member, "__wrapped__")]
        assert {"recv", "send", "accept", "connect"} <= set(replaced), replaced
        for was, now in zip(before, look(), strict=True):
            assert was == now, (was, now)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert inspect.iscoroutinefunction(trio.SocketStream.send_all)


def test_called_outside_of_a_run() -> None:
    """A coroutine driven by something else gets Trio's own words."""

    async def nothing() -> None:
        pass

    run("uring", nothing)
    a, b = unix_pair()
    with a, b:

        async def wrap() -> None:
            socks.extend(trio.socket.from_stdlib_socket(each) for each in (a, b))

        socks: list[Sock] = []
        run("uring", wrap)
        stream = trio.SocketStream(socks[0])
        calls: list[Any] = [stream.receive_some(), stream.send_all(b"x"), socks[0].recv(1), socks[0].send(b"x")]
        for coroutine in calls:
            with pytest.raises(RuntimeError, match="must be called from async context"):
                coroutine.send(None)


def test_a_subclass_of_trios_socket_is_asked(ring: Backend) -> None:
    """A stream over a socket type of the application's own calls that type's methods."""
    calls: list[str] = []

    class Mine(trio.socket.SocketType):
        def __init__(self, sock: Sock) -> None:
            self.inner = sock

        def __getattribute__(self, name: str) -> Any:
            if name in ("inner", "__class__"):
                return object.__getattribute__(self, name)
            calls.append(name)
            return getattr(self.inner, name)

    async def main() -> None:
        with trio_pair() as (a, b):
            stream = trio.SocketStream(Mine(a))
            await stream.send_all(b"x")
            await b.send(b"y")
            assert await stream.receive_some(1) == b"y"
            assert {"send", "recv"} <= set(calls)

    run(ring, main)


def test_nothing_is_left_in_the_books(ring: Backend) -> None:
    """After many calls that ended in every way: no waiter, no leaving descriptor, nothing in flight."""

    async def main() -> None:
        await blocked()
        books = manager()
        # Trio's own task waits for signals.
        before = [dict(books.readers), in_flight()]
        for turn in range(100):
            a, b = (trio.socket.from_stdlib_socket(each) for each in unix_pair(4608))
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    calls: list[tuple[Callable[..., Awaitable[Any]], Any]] = [
                        (a.recv, 10),
                        (b.recv_into, bytearray(10)),
                        (trio.SocketStream(a).send_all, bytes(100_000)),
                        (b.send, b""),
                    ]
                    for call, argument in calls:
                        nursery.start_soon(Waiter().run, call, argument)
                    for _ in range(turn % 6):
                        await trio.lowlevel.checkpoint()
                    if turn % 3 == 0:
                        scope.cancel()
                    elif turn % 3 == 1:
                        a.close()
                    b.close()
                    a.close()
        await blocked()
        assert [books.readers, in_flight()] == before
        assert not books.writers
        assert not books.cancelling
        assert not books.requeueing
        at_rest = books.receives + books.sends
        assert set(books.operations.values()) == {*books.readers.values(), *at_rest}

    run(ring, main)
