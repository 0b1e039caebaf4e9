"""Faults that real use of sockets found, each named after its number in docs/faults.md: the right value, on the ring as on epoll.

Knows Trio's public interface, Linux's sockets and, where a number has to be made small, the manager's sizes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from socket_tools import Backend, Waiter, blocked, close_all, empty, fill, manager, run, tcp_pair, trio_pair, unix_pair

from trio_uring._loop import manager as _manager
from trio_uring._sockets import sockets as _sockets

pytestmark = pytest.mark.usefixtures("descriptors_flat")

Sock = trio.socket.SocketType

RECEIVES: dict[str, Callable[[Sock, int], Awaitable[Any]]] = {
    "recv": lambda sock, most: sock.recv(most),
    "recv_into": lambda sock, most: sock.recv_into(bytearray(most)),
    "recvfrom": lambda sock, most: sock.recvfrom(most),
    "recvfrom_into": lambda sock, most: sock.recvfrom_into(bytearray(most)),
    "recvmsg": lambda sock, most: sock.recvmsg(most, 64),
    "recvmsg_into": lambda sock, most: sock.recvmsg_into([bytearray(most)], 64),
}


# ------------------------------------------------------------------ F43: an errno that has two meanings


NETLINK_USERSOCK = 2


@contextlib.contextmanager
def overrun() -> Iterator[Sock]:
    """A netlink listener that has lost messages, and has some left."""
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind((0, 1))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK) as sender:
        for _ in range(50):
            with contextlib.suppress(ConnectionRefusedError):
                sender.sendto(b"x" * 512, (0, 1))
    sock = trio.socket.from_stdlib_socket(listener)
    try:
        yield sock
    finally:
        sock.close()


@pytest.mark.parametrize("most", [1000, 65536, 100_000])
@pytest.mark.parametrize("method", RECEIVES)
def test_f43_a_netlink_listener_that_falls_behind_is_told_once(backend: Backend, method: str, most: int) -> None:
    async def main() -> None:
        with overrun() as sock, trio.fail_after(20):
            with pytest.raises(OSError, match="No buffer space available") as caught:
                await RECEIVES[method](sock, most)
            assert caught.value.errno == errno.ENOBUFS
            assert await sock.recv(most) == b"x" * 512  # what was not lost

    run(backend, main)


def test_f43_a_listener_that_waits_is_told(backend: Backend) -> None:
    """It waits when the first message comes, and is woken when many have been lost."""

    async def main() -> None:
        with overrun() as sock:
            with pytest.raises(OSError, match="No buffer space available"):
                await sock.recv(1000)
            empty(sock)
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, sock.recv, 1000)
                await blocked()
                with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK) as sender:
                    for _ in range(50):
                        with contextlib.suppress(ConnectionRefusedError):
                            sender.sendto(b"y" * 512, (0, 1))
            assert isinstance(waiter.error, OSError)
            assert waiter.error.errno == errno.ENOBUFS

    run(backend, main)


# ------------------------------------------------------------------ F47: no buffer is free at the end of a stream


STREAM_RECEIVES: dict[str, Callable[[Sock], Awaitable[Any]]] = {
    "recv": lambda sock: sock.recv(10),
    "receive_some": lambda sock: trio.SocketStream(sock).receive_some(10),
    "recvfrom": lambda sock: sock.recvfrom(10),
    "recvmsg": lambda sock: sock.recvmsg(10),
}


@pytest.mark.parametrize("end", ["end", "reset", "data"])
@pytest.mark.parametrize("method", STREAM_RECEIVES)
def test_f47_more_streams_end_at_once_than_there_are_buffers(
    backend: Backend, method: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One buffer, and five connections that have something for it in one tick: each is told its own."""
    monkeypatch.setattr(_manager, "BUFFER_COUNT", 1)
    data: Any = {"recv": b"x", "receive_some": b"x", "recvfrom": (b"x", None), "recvmsg": (b"x", [], 0, None)}[method]
    nothing: Any = b"" if isinstance(data, bytes) else (b"", *data[1:])
    reset: Any = trio.BrokenResourceError if method == "receive_some" else ConnectionResetError

    async def main() -> None:
        pairs = [tcp_pair() for _ in range(5)]
        socks = [trio.socket.from_stdlib_socket(ours) for ours, _ in pairs]
        waiters = [Waiter() for _ in pairs]
        try:
            async with trio.open_nursery() as nursery:
                for waiter, sock in zip(waiters, socks, strict=True):
                    nursery.start_soon(waiter.run, STREAM_RECEIVES[method], sock)
                await blocked()
                for number, (_, peer) in enumerate(pairs):
                    if number == 0 or end == "data":
                        peer.send(b"x")
                    elif end == "end":
                        peer.shutdown(socket.SHUT_WR)
                    else:
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        peer.close()
            others = {"data": data, "end": nothing, "reset": reset}[end]
            outcomes = [waiter.outcome for waiter in waiters]
            assert outcomes == [data, *[others] * 4] or (outcomes[0][0] == b"x" and outcomes[1:] == [others] * 4)
        finally:
            close_all(*socks, *(peer for _, peer in pairs))

    run(backend, main)


# ------------------------------------------------------------------ F44: the error of a send of which a part has gone


@pytest.mark.parametrize("how", ["timeout", "reset"])
@pytest.mark.parametrize("method", ["send_all", "send"])
def test_f44_a_connection_breaks_while_a_send_is_under_way(backend: Backend, method: str, how: str) -> None:
    """The cause is the connection's, and not the EPIPE of whoever asks next."""
    number = errno.ETIMEDOUT if how == "timeout" else errno.ECONNRESET

    async def main() -> None:
        ours, peer = tcp_pair(4608)
        sock = trio.socket.from_stdlib_socket(ours)
        data = b"x" * 2_000_000
        if how == "timeout":
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
        waiter = Waiter()

        async def send_until_it_breaks() -> None:
            while True:
                await sock.send(data)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                if method == "send_all":
                    nursery.start_soon(waiter.run, trio.SocketStream(sock).send_all, data)
                else:
                    nursery.start_soon(waiter.run, send_until_it_breaks)
                await blocked()
                assert waiter.outcome == "blocked"
                if how == "reset":
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    peer.close()
        error = waiter.error
        if method == "send_all":
            assert isinstance(error, trio.BrokenResourceError)
            assert str(error) == f"socket connection broken: [Errno {number}] {os.strerror(number)}"
            error = error.__cause__
        assert isinstance(error, OSError)
        assert (type(error), error.errno) == (type(OSError(number, "")), number)
        close_all(sock, peer)

    run(backend, main)


# ------------------------------------------------------------------ F55: kernel TLS


def test_f55_send_all_asks_for_nothing_that_kernel_tls_refuses(ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket with kernel TLS answers EOPNOTSUPP to flags that it does not know, MSG_WAITALL among them (tls_sw_sendmsg)."""
    asked: list[int] = []
    tu_send = vars(_sockets)["tu_send"]

    def as_kernel_tls(ring: int, fd: int, data: Any, length: int, msg_flags: int, user_data: int) -> int:
        asked.append(msg_flags)
        return int(tu_send(ring, fd, data, length, msg_flags, user_data))

    monkeypatch.setattr(_sockets, "tu_send", as_kernel_tls)

    async def main() -> None:
        with trio_pair("tcp", 4608) as (a, b):
            received = bytearray()

            async def receive() -> None:
                while len(received) < 300_000:
                    received.extend(await b.recv(65536))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await trio.SocketStream(a).send_all(b"x" * 300_000)
            assert received == b"x" * 300_000
        assert len(asked) > 1
        assert not any(flags & ~(socket.MSG_MORE | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) for flags in asked)

    run(ring, main)


# ------------------------------------------------------------------ F45: what a close costs


def test_f45_a_close_costs_the_same_however_many_connections_are_idle(ring: Backend) -> None:
    """The kernel's walk through all that wait is 45 ns for each: 180 us beside 4,000, where the rest of a close is 10."""

    async def main() -> None:
        least: dict[int, float] = {}
        for idle in 250, 4000:
            socks = [
                trio.socket.from_stdlib_socket(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(idle)
            ]
            for sock in socks:
                await sock.bind(("127.0.0.1", 0))
            waiters = [Waiter() for _ in socks]
            async with trio.open_nursery() as nursery:
                for waiter, sock in zip(waiters, socks, strict=True):
                    nursery.start_soon(waiter.run, sock.recv, 10)
                await blocked()
                for batch in range(5):
                    began = time.thread_time()
                    for sock in socks[batch * 40 : batch * 40 + 40]:
                        sock.close()
                    took = (time.thread_time() - began) / 40
                    least[idle] = min(took, least.get(idle, took))
                    await blocked()
                assert [waiter.outcome for waiter in waiters] == [trio.ClosedResourceError] * 200 + ["blocked"] * (
                    idle - 200
                )
                nursery.cancel_scope.cancel()
            close_all(*socks)
        assert least[4000] < 2 * least[250] + 40e-6, least

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(limits[1], 5000)), limits[1]))
    try:
        run(ring, main)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("direction", ["reader", "writer", "both"])
@pytest.mark.parametrize("state", ["waiting", "cancelled"])
def test_f45_the_entries_of_a_close_are_known_by_name(ring: Backend, state: str, direction: str) -> None:
    """Every one, cancelled ones as well: when the close returns, the peer sees the end and no entry of the socket is left."""

    async def main() -> None:
        ours, peer = unix_pair(4608)
        sock = trio.socket.from_stdlib_socket(ours)
        fill(sock)
        asked: list[list[int]] = []
        shim: Any = manager().ring
        cancel_fd = shim.cancel_fd

        def noted(fd: int, entries: Any = ()) -> None:
            asked.append(list(entries))
            cancel_fd(fd, entries)

        vars(shim)["cancel_fd"] = noted
        waiters = [Waiter() for _ in range(2)]
        async with trio.open_nursery() as nursery:
            if direction != "writer":
                nursery.start_soon(waiters[0].run, sock.recv, 10)
            if direction != "reader":
                nursery.start_soon(waiters[1].run, sock.send, b"x" * 100_000)
            await blocked()
            if state == "cancelled":
                for waiter in waiters:
                    waiter.scope.cancel()
            sock.close()
            peer.setblocking(False)
            while peer.recv(65536):  # not BlockingIOError
                pass
        expected = "cancelled" if state == "cancelled" else trio.ClosedResourceError
        used = {"reader": waiters[:1], "writer": waiters[1:], "both": waiters}[direction]
        assert [waiter.outcome for waiter in used] == [expected] * len(used)
        assert [len(entries) for entries in asked] == [len(used)]
        peer.close()

    run(ring, main)


# ------------------------------------------------------------------ F46: what waits owns no memory


LARGE: dict[str, Callable[[Sock], Awaitable[Any]]] = {
    "recv": lambda sock: sock.recv(1 << 20),
    "receive_some": lambda sock: trio.SocketStream(sock).receive_some(1 << 20),
    "recvfrom": lambda sock: sock.recvfrom(1 << 20),
    "recvmsg": lambda sock: sock.recvmsg(1 << 20),
    "recvmsg with room for control messages": lambda sock: sock.recvmsg(10, 1 << 20),
}


@pytest.mark.parametrize("method", LARGE)
def test_f46_a_receive_that_waits_owns_no_memory(backend: Backend, method: str) -> None:
    """Of 300 that wait, each for a mebibyte, and each gets what comes."""

    def address_space() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    async def main() -> None:
        pairs = [unix_pair() for _ in range(300)]
        socks = [trio.socket.from_stdlib_socket(ours) for ours, _ in pairs]
        try:
            before = address_space()
            for _ in range(2):
                waiters = [Waiter() for _ in pairs]
                async with trio.open_nursery() as nursery:
                    for waiter, sock in zip(waiters, socks, strict=True):
                        nursery.start_soon(waiter.run, LARGE[method], sock)
                    await blocked()
                    assert address_space() - before < 100 << 20
                    for _, peer in pairs:
                        peer.send(b"x" * 10)
                for waiter in waiters:
                    assert waiter.error is None
                    assert waiter.result == b"x" * 10 or waiter.result[0] == b"x" * 10
                del waiters
        finally:
            close_all(*socks, *(peer for _, peer in pairs))

    run(backend, main)


# ------------------------------------------------------------------ SIGPIPE


SENDS: dict[str, Callable[[Sock], Awaitable[Any]]] = {
    "send": lambda sock: sock.send(b"x"),
    "send_all": lambda sock: trio.SocketStream(sock).send_all(b"x"),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
}


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("method", SENDS)
def test_a_send_to_a_peer_that_has_gone_raises_sigpipe(backend: Backend, method: str, kind: str) -> None:
    """A handler is called as by the system call: io_uring's own sends raise no signal."""
    called: list[int] = []

    async def main() -> None:
        with trio_pair(kind) as (a, b):
            a.shutdown(socket.SHUT_WR)
            with pytest.raises((BrokenPipeError, trio.BrokenResourceError, trio.ClosedResourceError)) as caught:
                await SENDS[method](a)
            if method == "send_all":
                assert isinstance(caught.value, trio.ClosedResourceError)  # Trio looks at its own shutdown first
            assert len(called) == (method != "send_all")
            if kind == "unix":
                b.close()
                async with contextlib.AsyncExitStack() as stack:
                    c, d = unix_pair()
                    d.close()
                    sock = trio.socket.from_stdlib_socket(c)
                    stack.callback(sock.close)
                    called.clear()
                    with pytest.raises((BrokenPipeError, trio.BrokenResourceError)):
                        await SENDS[method](sock)
                    assert len(called) == 1

    before = signal.signal(signal.SIGPIPE, lambda number, _frame: called.append(number))
    try:
        run(backend, main)
    finally:
        signal.signal(signal.SIGPIPE, before)


@pytest.mark.parametrize("method", SENDS)
@pytest.mark.parametrize("backend", ["uring", "epoll"])
def test_a_send_to_a_peer_that_has_gone_kills_who_has_asked_for_that(method: str, backend: str) -> None:
    """A command line tool gives SIGPIPE its default back, so as to end with its reader."""
    sends = {
        "send": "await sock.send(b'x')",
        "send_all": "await trio.SocketStream(sock).send_all(b'x')",
        "sendmsg": "await sock.sendmsg([b'x'])",
    }
    program = textwrap.dedent(f"""
        import signal, socket, sys, trio, trio_uring

        async def main():
            ours, peer = socket.socketpair()
            peer.close()
            sock = trio.socket.from_stdlib_socket(ours)
            {sends[method]}

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        trio.run(main, io_backend={backend!r})
        """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGPIPE, b"", b"")
