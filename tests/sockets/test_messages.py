"""Messages: recvfrom, recvmsg, sendto, sendmsg and their _into forms, on the ring, on epoll and in the standard library.

Knows trio.socket, and the one function of Trio's through which all its own methods go, to see that none of them ran.
"""

from __future__ import annotations

import array
import contextlib
import errno
import itertools
import mmap
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from conftest import RINGS, descriptors
from socket_tools import Backend, Waiter, blocked, fill, manager, run, tcp_pair
from trio.socket import SocketType

from trio_uring import UringBackend
from trio_uring._loop.calls import address_of
from trio_uring._loop.manager import UringIOManager
from trio_uring._ring.ring import OP_RECVMSG, OP_SENDMSG, ffi
from trio_uring._sockets import messages as _messages

RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
ONE_FD = socket.CMSG_SPACE(4)

pytestmark = pytest.mark.usefixtures("descriptors_flat")


@pytest.fixture
def direct(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """On the ring Trio's own methods fail, so that nothing can go through them, and nothing is tried before the ring; answers
    the opcodes as they are queued.
    """
    codes: list[int] = []
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "epoll":
        return codes

    async def not_direct(*args: object, **kwargs: object) -> None:
        raise AssertionError("Trio's own method has been called")

    def noted(ring: object, opcode: int, *rest: object) -> int:
        codes.append(opcode)
        return tu_queue(ring, opcode, *rest)  # type: ignore[no-any-return]

    tu_queue = _messages.tu_queue
    monkeypatch.setattr(_messages, "tu_queue", noted)
    monkeypatch.setattr(_messages, "trying", lambda: False)
    monkeypatch.setattr("trio._socket._SocketType._nonblocking_helper", not_direct)
    return codes


# ------------------------------------------------------------------ pairs of sockets

Pair = tuple[socket.socket, socket.socket]


def tcp6() -> Pair:
    """Two ends of a connection over IPv6."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        a = socket.create_connection(listener.getsockname()[:2])
        return a, listener.accept()[0]


def udp(family: int, host: str) -> Pair:
    """Two datagram sockets, connected to none."""
    a, b = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_DGRAM)
    a.bind((host, 0))
    b.bind((host, 0))
    return a, b


_count = itertools.count()


def unix(abstract: bool) -> Pair:
    """Two UNIX datagram sockets with names."""
    a, b = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in a, b:
        name = f"trio-uring-{os.getpid()}-{next(_count)}"
        end.bind(f"\0{name}" if abstract else name)  # a path is in the test's own directory
    return a, b


CONNECTED: dict[str, Callable[[], Pair]] = {
    "tcp4": tcp_pair,
    "tcp6": tcp6,
    "unix-stream": socket.socketpair,
    "unix-dgram": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "unix-seqpacket": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
}
NAMED: dict[str, Callable[[], Pair]] = {
    "udp4": lambda: udp(socket.AF_INET, "127.0.0.1"),
    "udp6": lambda: udp(socket.AF_INET6, "::1"),
    "unix-path": lambda: unix(False),
    "unix-abstract": lambda: unix(True),
}


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of UNIX sockets are relative to it."""
    monkeypatch.chdir(tmp_path)


@contextlib.contextmanager
def opened(make: Callable[[], Pair]) -> Iterator[tuple[SocketType, SocketType]]:
    """The two as Trio's sockets, closed at the end."""
    a, b = (trio.socket.from_stdlib_socket(end) for end in make())
    with a, b:
        yield a, b


@contextlib.contextmanager
def pair(kind: str = "unix-stream") -> Iterator[tuple[SocketType, SocketType]]:
    """The same by name."""
    with opened({**CONNECTED, **NAMED}[kind]) as ends:
        yield ends


@contextlib.contextmanager
def plain(sock: SocketType) -> Iterator[socket.socket]:
    """The same open file as a blocking call of the standard library sees it."""
    with socket.socket(fileno=os.dup(sock.fileno())) as raw:
        raw.settimeout(None)
        os.set_blocking(raw.fileno(), False)
        yield raw


def rights(*fds: int) -> list[tuple[int, int, array.array[int]]]:
    """Ancillary data that passes descriptors."""
    return [(*RIGHTS, array.array("i", fds))]


def passed(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in ancillary data."""
    found = array.array("i")
    for level, kind, data in ancillary:
        assert (level, kind) == RIGHTS
        found.frombytes(data)
    return list(found)


async def each_receive(sock: SocketType, send: Callable[[], Any]) -> list[Any]:
    """What the four methods of `sock` make of the same message, with room to spare."""
    a, b, c = bytearray(10), bytearray(3), bytearray(10)
    found: list[Any] = []
    for receive in (
        lambda: sock.recvfrom(10),
        lambda: sock.recvfrom_into(a),
        lambda: sock.recvmsg(10, 64),
        lambda: sock.recvmsg_into([b, c], 64),
    ):
        send()
        result = receive()
        found.append(await result if hasattr(result, "__await__") else result)
    return [*found, a, b, c]


# ------------------------------------------------------------------ results


@pytest.mark.parametrize("kind", [*CONNECTED, *NAMED])
def test_every_receive_answers_what_the_standard_library_answers(
    backend: Backend, direct: list[int], kind: str
) -> None:
    async def main() -> None:
        with pair(kind) as (a, b), plain(b) as raw, plain(a) as sender:

            def send() -> None:
                if kind in NAMED:
                    sender.sendto(b"hello", b.getsockname())
                else:
                    sender.send(b"hello")

            assert await each_receive(b, send) == await each_receive(raw, send)  # type: ignore[arg-type]
            data, address = await given(b, send)
            assert data == b"hello"
            assert address == (a.getsockname() if kind in NAMED else None)

    async def given(sock: SocketType, send: Callable[[], Any]) -> tuple[bytes, Any]:
        send()
        return await sock.recvfrom(10)

    run(backend, main)
    if backend != "epoll":
        assert direct == [OP_RECVMSG] * 5


@pytest.mark.parametrize("kind", NAMED)
def test_every_send_reaches_the_address(backend: Backend, direct: list[int], kind: str) -> None:
    async def main() -> None:
        with pair(kind) as (a, b):
            there = b.getsockname()
            assert await a.sendto(b"one", there) == 3
            assert await a.sendto(bytearray(b"two"), 0, there) == 3
            assert await a.sendmsg([b"th", b"", memoryview(b"ree")], [], 0, there) == 5
            for expected in b"one", b"two", b"three":
                assert await b.recvfrom(100) == (expected, a.getsockname())
            with plain(a) as raw:
                raw.connect(there)
            assert await a.sendmsg((b"four",)) == 4
            assert await b.recvfrom(100) == (b"four", a.getsockname())

    run(backend, main)
    if backend != "epoll":
        assert direct.count(OP_SENDMSG) == 4


@pytest.mark.parametrize("kind", CONNECTED)
def test_sendmsg_gathers_and_recvmsg_into_scatters(backend: Backend, direct: list[int], kind: str) -> None:
    async def main() -> None:
        with pair(kind) as (a, b), mmap.mmap(-1, 4096) as mapped:
            mapped[:4] = b"1234"
            with memoryview(mapped) as view, view[:4] as four:
                assert await a.sendmsg([b"ab", array.array("H", [0x6463]), four]) == 8
            parts = bytearray(b"--"), array.array("i", [0]), bytearray(b"------")
            count, ancillary, _flags, address = await b.recvmsg_into(parts)
            assert (count, ancillary, address) == (8, [], None)
            assert [bytes(part) for part in parts] == [b"ab", b"cd12", b"34----"]

    run(backend, main)


def test_an_unnamed_sender_has_no_address(backend: Backend, direct: list[int]) -> None:
    async def main() -> None:
        with pair("unix-path") as (_, b), trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
            await nameless.sendto(b"x", b.getsockname())
            assert await b.recvfrom(10) == (b"x", None)
            await nameless.sendto(b"x", b.getsockname())
            assert await b.recvmsg(10) == (b"x", [], 0, None)

    run(backend, main)


@pytest.mark.parametrize("address", ["path", b"path", Path("path")], ids=["str", "bytes", "path"])
def test_paths_of_every_type(backend: Backend, direct: list[int], address: Any) -> None:
    async def main() -> None:
        with (
            trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as a,
            trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as b,
        ):
            await b.bind("path")
            await a.sendto(b"x", address)
            await a.sendmsg([b"y"], (), 0, address)
            assert [(await b.recvfrom(10))[0] for _ in range(2)] == [b"x", b"y"]

    run(backend, main)


def test_host_names_are_resolved(backend: Backend, direct: list[int]) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            port = b.getsockname()[1]
            assert await a.sendto(b"x", ("localhost", port)) == 1
            assert await a.sendmsg([b"y"], [], 0, ("localhost", str(port))) == 1
            assert [(await b.recvfrom(10))[0] for _ in range(2)] == [b"x", b"y"]

    run(backend, main)


def test_a_datagram_of_no_bytes(backend: Backend) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            for _ in range(2):
                assert await a.sendto(b"", b.getsockname()) == 0
                assert await a.sendmsg([], [], 0, b.getsockname()) == 0
                assert await b.recvfrom(10) == (b"", a.getsockname())
                assert await b.recvmsg(10) == (b"", [], 0, a.getsockname())

    run(backend, main)


@pytest.mark.parametrize("kind", ["tcp4", "unix-stream"])
def test_the_end_of_a_stream(backend: Backend, direct: list[int], kind: str) -> None:
    async def main() -> None:
        with pair(kind) as (a, b):
            a.close()
            with plain(b) as raw:
                assert await each_receive(b, lambda: None) == await each_receive(raw, lambda: None)  # type: ignore[arg-type]

    run(backend, main)


def test_a_datagram_larger_than_the_buffer_is_cut(backend: Backend, direct: list[int]) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            here, there = a.getsockname(), b.getsockname()
            for _ in range(4):
                await a.sendto(b"0123456789", there)
            assert await b.recvfrom(4) == (b"0123", here)
            memory = bytearray(8)
            assert await b.recvfrom_into(memory, 4) == (4, here)
            assert memory == b"0123\0\0\0\0"
            assert await b.recvmsg(4) == (b"0123", [], socket.MSG_TRUNC, here)
            parts = bytearray(2), bytearray(2)
            assert await b.recvmsg_into(parts) == (4, [], socket.MSG_TRUNC, here)
            assert [bytes(part) for part in parts] == [b"01", b"23"]

    run(backend, main)


def test_large_datagrams_and_buffers(backend: Backend) -> None:
    async def main() -> None:
        largest = os.urandom(65507)
        with pair("udp4") as (a, b):
            for size in 65535, 65536, 65537, 1 << 20:
                assert await a.sendto(largest, b.getsockname()) == len(largest)
                assert await b.recvfrom(size) == (largest, a.getsockname())

    run(backend, main)


def test_large_stream_messages(backend: Backend) -> None:
    async def main() -> None:
        blob = os.urandom(8 << 20)
        got = bytearray()

        async def sender(a: SocketType) -> None:
            sent = 0
            with memoryview(blob) as view:
                while sent < len(blob):
                    with view[sent : sent + (3 << 20)] as first, view[sent + (3 << 20) :] as second:
                        sent += await a.sendmsg([first, second])
            a.shutdown(socket.SHUT_WR)

        with pair("tcp4") as (a, b):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender, a)
                while data := (await b.recvmsg(1 << 20))[0]:
                    got += data
            assert got == blob

    run(backend, main)


def test_only_the_part_asked_for_is_written(backend: Backend, direct: list[int]) -> None:
    async def main() -> None:
        with pair("unix-stream") as (a, b):
            memory = bytearray(b"#" * 12)
            with memoryview(memory) as view, view[2:6] as one, view[8:10] as two:
                await a.sendmsg([b"123456789"])
                assert (await b.recvmsg_into([one, two]))[0] == 6
                assert memory == b"##1234##56##"
                assert await b.recvfrom_into(one, 1) == (1, None)
                assert await b.recvfrom_into(one) == (2, None)
                assert memory == b"##8934##56##"

    run(backend, main)


# ------------------------------------------------------------------ ancillary data


def test_descriptors_are_passed(backend: Backend, direct: list[int]) -> None:
    async def main() -> None:
        with pair() as (a, b), plain(b) as raw:
            r, w = os.pipe()
            try:
                found = []
                for receive in raw.recvmsg, b.recvmsg:
                    assert await a.sendmsg([b"here"], rights(r, w)) == 4
                    got: Any = receive(100, 2 * ONE_FD)
                    data, ancillary, flags, address = await got if hasattr(got, "__await__") else got
                    there = passed(ancillary)
                    found.append((data, flags, address, [os.get_inheritable(fd) for fd in there]))
                    assert [os.fstat(fd).st_ino for fd in there] == [os.fstat(fd).st_ino for fd in (r, w)]
                    for fd in there:
                        os.close(fd)
                assert found[0] == found[1]
                await a.sendmsg([b"here"], rights(r))
                _, ancillary, _, _ = await b.recvmsg_into([bytearray(10)], ONE_FD)
                (fd,) = passed(ancillary)
                os.close(fd)
            finally:
                os.close(r)
                os.close(w)

    run(backend, main)


@pytest.mark.parametrize("room", [0, 1, 8, 16, 19, 20, 23, 24, 25, 27, 28, 31, 32, 48])
def test_descriptors_without_room(backend: Backend, direct: list[int], room: int) -> None:
    async def main() -> None:
        with pair() as (a, b), plain(b) as raw:
            found = []
            for receive in raw.recvmsg, b.recvmsg:
                await a.sendmsg([b"x"], rights(0, 1, 2))
                got: Any = receive(10, room)
                data, ancillary, flags, address = await got if hasattr(got, "__await__") else got
                there = passed(ancillary)
                for fd in there:
                    os.close(fd)
                found.append((data, len(ancillary), len(there), flags, address))
            assert found[0] == found[1]

    run(backend, main)


@pytest.mark.parametrize("kind", ["udp4", "udp6"])
def test_control_messages_cut_at_every_size(backend: Backend, direct: list[int], kind: str) -> None:
    options = {
        "udp4": ((socket.IPPROTO_IP, socket.IP_RECVTOS), (socket.IPPROTO_IP, 12), (socket.IPPROTO_IP, 8)),
        "udp6": (
            (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS),
            (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT),
            (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
        ),
    }[kind]

    async def main() -> None:
        with pair(kind) as (a, b), plain(b) as raw:
            for option in options:
                b.setsockopt(*option, 1)
            most = 0
            for room in range(120):
                for _ in range(2):
                    await a.sendto(b"x", b.getsockname())
                expected = raw.recvmsg(10, room)
                assert await b.recvmsg(10, room) == expected
                most = max(most, len(expected[1]))
            assert most == 3

    run(backend, main)


def test_several_control_messages_are_sent(backend: Backend, direct: list[int]) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            b.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
            b.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            ttl = (socket.IPPROTO_IP, socket.IP_TTL, array.array("i", [33]))
            tos = (socket.IPPROTO_IP, socket.IP_TOS, b"\x20")
            await a.sendmsg([b"x"], [ttl, tos], 0, b.getsockname())
            _, ancillary, _, _ = await b.recvmsg(10, 100)
            assert {(kind, data[0]) for _, kind, data in ancillary} == {(socket.IP_TTL, 33), (socket.IP_TOS, 0x20)}

    run(backend, main)


# ------------------------------------------------------------------ what is left to CPython, and errors


def many(count: int) -> list[bytes]:
    """More buffers than the kernel takes at once, or not."""
    return [b"x"] * count


ODD: dict[str, Callable[[SocketType, SocketType], Any]] = {
    "recvfrom negative": lambda a, b: a.recvfrom(-1),
    "recvfrom str": lambda a, b: a.recvfrom("1"),  # type: ignore[arg-type]
    "recvfrom nothing": lambda a, b: a.recvfrom(),  # type: ignore[call-arg]
    "recvfrom keyword": lambda a, b: a.recvfrom(bufsize=1),  # type: ignore[call-arg]
    "recvfrom dontwait": lambda a, b: b.recvfrom(2, socket.MSG_DONTWAIT),
    "recvfrom peek": lambda a, b: b.recvfrom(2, socket.MSG_PEEK),
    "recvfrom zero": lambda a, b: b.recvfrom(0),
    "recvfrom bool": lambda a, b: b.recvfrom(True),
    "recvfrom_into readonly": lambda a, b: a.recvfrom_into(b"xxx"),
    "recvfrom_into short": lambda a, b: a.recvfrom_into(bytearray(3), 4),
    "recvfrom_into negative": lambda a, b: a.recvfrom_into(bytearray(3), -1),
    "recvfrom_into stride": lambda a, b: a.recvfrom_into(memoryview(bytearray(9))[::2]),
    "recvfrom_into keywords": lambda a, b: b.recvfrom_into(buffer=bytearray(3), nbytes=2),
    "recvfrom_into unknown": lambda a, b: b.recvfrom_into(bytearray(3), bytes=2),  # type: ignore[call-arg]
    "recvmsg negative": lambda a, b: a.recvmsg(-1),
    "recvmsg negative room": lambda a, b: a.recvmsg(1, -1),
    "recvmsg zero": lambda a, b: b.recvmsg(0),
    "recvmsg flags": lambda a, b: b.recvmsg(1, 0, socket.MSG_PEEK),
    "recvmsg too much": lambda a, b: b.recvmsg(1, 0, 0, 0),  # type: ignore[call-arg]
    "recvmsg huge room": lambda a, b: b.recvmsg(1, 1 << 20),
    "recvmsg_into no iterable": lambda a, b: a.recvmsg_into(3),  # type: ignore[arg-type]
    "recvmsg_into readonly": lambda a, b: a.recvmsg_into([bytearray(3), b"xx"]),
    "recvmsg_into many": lambda a, b: a.recvmsg_into([bytearray(1) for _ in range(1025)]),
    "recvmsg_into most": lambda a, b: b.recvmsg_into([bytearray(1) for _ in range(1024)]),
    "recvmsg_into stride": lambda a, b: a.recvmsg_into([memoryview(bytearray(9))[::2]]),
    "recvmsg_into str": lambda a, b: a.recvmsg_into("ab"),  # type: ignore[arg-type]
    "sendto str": lambda a, b: a.sendto("x", ("127.0.0.1", 1)),  # type: ignore[call-overload]
    "sendto stride": lambda a, b: a.sendto(memoryview(b"abcd")[::2], b.getsockname()),
    "sendto nothing": lambda a, b: a.sendto(b"x"),  # type: ignore[call-overload]
    "sendto bad address": lambda a, b: a.sendto(b"x", "127.0.0.1"),
    "sendto none": lambda a, b: a.sendto(b"x", None),  # type: ignore[call-overload]
    "sendto port": lambda a, b: a.sendto(b"x", ("127.0.0.1", 70000)),
    "sendto flags": lambda a, b: a.sendto(b"x", socket.MSG_DONTWAIT, b.getsockname()),
    "sendto bad flags": lambda a, b: a.sendto(b"x", "0", b.getsockname()),  # type: ignore[call-overload]
    "sendto too large": lambda a, b: a.sendto(bytes(70000), b.getsockname()),
    "sendto family": lambda a, b: a.sendto(b"x", ("::1", 1)),
    "sendto port zero": lambda a, b: a.sendto(b"x", ("127.0.0.1", 0)),
    "sendto broadcast": lambda a, b: a.sendto(b"x", ("<broadcast>", 1)),
    "sendmsg no iterable": lambda a, b: a.sendmsg(3),  # type: ignore[arg-type]
    "sendmsg str": lambda a, b: a.sendmsg(["x"], [], 0, b.getsockname()),  # type: ignore[list-item]
    "sendmsg no address": lambda a, b: a.sendmsg([b"x"]),
    "sendmsg many": lambda a, b: a.sendmsg(many(1025), [], 0, b.getsockname()),
    "sendmsg most": lambda a, b: a.sendmsg(many(1024), [], 0, b.getsockname()),
    "sendmsg flags": lambda a, b: a.sendmsg([b"x"], [], socket.MSG_DONTWAIT, b.getsockname()),
    "sendmsg keyword": lambda a, b: a.sendmsg([b"x"], flags=0),  # type: ignore[call-arg]
    "sendmsg ancillary short": lambda a, b: a.sendmsg([b"x"], [(1, 2)], 0, b.getsockname()),  # type: ignore[list-item]
    "sendmsg ancillary str": lambda a, b: a.sendmsg([b"x"], [(1, 2, "x")], 0, b.getsockname()),  # type: ignore[list-item]
    "sendmsg ancillary range": lambda a, b: a.sendmsg([b"x"], [(1, 1 << 31, b"")], 0, b.getsockname()),
    "sendmsg ancillary list": lambda a, b: a.sendmsg([b"x"], [[0, 2, b"\x01\0\0\0"]], 0, b.getsockname()),  # type: ignore[list-item]
    "sendmsg ancillary invalid": lambda a, b: a.sendmsg([b"x"], [(0, 77, b"x")], 0, b.getsockname()),
    "sendmsg ancillary rights": lambda a, b: a.sendmsg([b"x"], rights(0), 0, b.getsockname()),
    "sendmsg ancillary no iterable": lambda a, b: a.sendmsg([b"x"], 1, 0, b.getsockname()),  # type: ignore[arg-type]
    "sendmsg ancillary much": lambda a, b: a.sendmsg([b"x"], [(0, 2, bytes(70000))], 0, b.getsockname()),
}


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
@pytest.mark.parametrize("what", ODD)
def test_the_unusual_is_as_on_epoll(ring: Backend, what: str) -> None:
    async def main() -> Any:
        with pair("udp4") as (a, b):
            await a.sendto(b"12345", b.getsockname())
            try:
                result = await ODD[what](a, b)
            except Exception as error:
                result = type(error), str(error), getattr(error, "errno", None)
            left = await b.recvfrom(2000)
            return repr(result), left[0] if "send" in what else len(left)

    def anonymous(found: Any) -> Any:
        text, left = found
        return text.partition("('127.0.0.1'")[0], left

    # What is received is followed by another datagram, or the last line would wait for ever.
    if "recv" in what:
        observed = [run(each, received_and_more, what) for each in ("epoll", ring)]
        assert observed[0] == observed[1]
    else:
        assert anonymous(run("epoll", main)) == anonymous(run(ring, main))


async def received_and_more(what: str) -> Any:
    """What the call makes of the first of two datagrams, and what it leaves."""
    with pair("udp4") as (a, b):
        for data in b"12345", b"second":
            await a.sendto(data, b.getsockname())
        try:
            result = await ODD[what](a, b)
            result = [part for part in result if part != a.getsockname()]
        except Exception as error:
            result = type(error), str(error), getattr(error, "errno", None)
        return result, (await b.recvfrom(2000))[0]


@pytest.mark.parametrize("what", ["recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "sendto", "sendmsg"])
def test_a_closed_socket(backend: Backend, what: str) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            there = b.getsockname()
            a.close()
            calls: dict[str, Callable[[], Any]] = {
                "recvfrom": lambda: a.recvfrom(1),
                "recvfrom_into": lambda: a.recvfrom_into(bytearray(1)),
                "recvmsg": lambda: a.recvmsg(1),
                "recvmsg_into": lambda: a.recvmsg_into([bytearray(1)]),
                "sendto": lambda: a.sendto(b"x", there),
                "sendmsg": lambda: a.sendmsg([b"x"], [], 0, there),
            }
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                await calls[what]()
            assert caught.value.errno == errno.EBADF

    run(backend, main)


def test_what_nobody_received_is_an_error_for_the_sender(backend: Backend, direct: list[int]) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            with plain(a) as raw:
                raw.connect(b.getsockname())
            b.close()
            waiting = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.run, a.recvfrom, 10)
                await blocked()
                await a.sendmsg([b"x"])
            assert isinstance(waiting.error, ConnectionRefusedError)
            assert waiting.error.args == (errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    run(backend, main)


def test_ancillary_data_on_a_full_socket(backend: Backend) -> None:
    async def main() -> None:
        with pair() as (a, b):
            fill(a)
            waiting = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.run, a.sendmsg, [b"!"], rights(0))
                await blocked()
                assert not waiting.ended
                ancillary: list[Any] = []
                while not ancillary:
                    data, ancillary, _, _ = await b.recvmsg(1 << 20, ONE_FD)
                for fd in passed(ancillary):
                    os.close(fd)
                assert data.endswith(b"!")
            assert waiting.result == 1

    run(backend, main)


def test_a_receiver_with_a_full_queue(backend: Backend) -> None:
    """A UNIX datagram socket that is not connected is always writable, says poll(2), and sends say EAGAIN."""

    async def main() -> None:
        with pair("unix-path") as (a, b):
            there = b.getsockname()
            sent = 0
            with plain(a) as raw, contextlib.suppress(BlockingIOError):
                while True:
                    raw.sendto(b"x", there)
                    sent += 1
            with trio.move_on_after(0.05) as scope:
                await a.sendto(b"never", there)
            assert scope.cancelled_caught
            waiting = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.run, a.sendto, b"last", there)
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                assert not waiting.ended
                got = [(await b.recvfrom(10))[0] for _ in range(sent + 1)]
            assert got == [b"x"] * sent + [b"last"]
            assert waiting.result == 4

    run(backend, main)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=["dgram", "seqpacket"])
def test_a_peer_with_a_full_queue(backend: Backend, kind: int) -> None:
    """F11: the kernel must not repeat a send by itself that has copied its data before it said EAGAIN."""

    def connected_one_way() -> Pair:
        a, b = socket.socket(socket.AF_UNIX, kind), socket.socket(socket.AF_UNIX, kind)
        b.bind("full")
        if kind == socket.SOCK_SEQPACKET:
            b.listen(1)
        a.connect("full")
        if kind == socket.SOCK_SEQPACKET:
            with b:
                return a, b.accept()[0]
        return a, b

    async def main() -> None:
        with opened(connected_one_way) as (a, b):
            fill(a)
            waiting = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.run, a.sendmsg, [b"la", b"st"])
                await blocked()
                assert not waiting.ended
                while (data := (await b.recvfrom(4096))[0]) != b"last":
                    assert data.strip(b"\0") == b""
                    assert data
            assert waiting.result == 4

    run(backend, main)


# ------------------------------------------------------------------ checkpoints, cancels, closes


def test_every_call_is_a_checkpoint(backend: Backend, direct: list[int]) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            there = b.getsockname()
            for _ in range(2):
                sends: list[Callable[[], Any]] = [
                    lambda: a.sendto(b"x", there),
                    lambda: a.sendmsg([b"x"], [], 0, there),
                ]
                for send in sends:
                    with trio.testing.assert_checkpoints():
                        await send()
                    await send()
                for receive in (
                    lambda: b.recvfrom(1),
                    lambda: b.recvfrom_into(bytearray(1)),
                    lambda: b.recvmsg(1),
                    lambda: b.recvmsg_into([bytearray(1)]),
                ):
                    with trio.testing.assert_checkpoints():
                        await receive()

    run(backend, main)


def test_a_cancelled_scope_wins_over_data_and_room(backend: Backend) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            there = b.getsockname()
            await a.sendto(b"first", there)
            calls: list[Callable[[], Any]] = [
                lambda: b.recvfrom(10),
                lambda: b.recvfrom_into(bytearray(10)),
                lambda: b.recvmsg(10),
                lambda: b.recvmsg_into([bytearray(10)]),
                lambda: b.recvmsg_into(taken()),
                lambda: a.sendto(b"second", there),
                lambda: a.sendmsg([b"second"], [], 0, there),
            ]
            for call in calls:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await call()
                assert scope.cancelled_caught
            await a.sendto(b"third", there)
            assert [(await b.recvfrom(10))[0] for _ in range(2)] == [b"first", b"third"]

    def taken() -> Iterator[bytearray]:
        raise AssertionError("asked for a buffer, although cancelled")
        yield

    run(backend, main)


RECEIVES: dict[str, Callable[[SocketType], Any]] = {
    "recvfrom": lambda sock: sock.recvfrom(10),
    "recvfrom big": lambda sock: sock.recvfrom(1 << 20),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(10)),
    "recvmsg": lambda sock: sock.recvmsg(10),
    "recvmsg control": lambda sock: sock.recvmsg(10, 100),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(5), bytearray(5)]),
}


@pytest.mark.parametrize("what", RECEIVES)
def test_a_datagram_after_a_cancel_is_still_there(backend: Backend, what: str) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            for _ in range(3):
                waiting = Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiting.run, RECEIVES[what], b)
                    await blocked()
                    waiting.scope.cancel()
                assert waiting.cancelled
                await a.sendto(b"hello", b.getsockname())
                assert (await b.recvfrom(10))[0] == b"hello"

    run(backend, main)


@pytest.mark.parametrize("what", RECEIVES)
def test_a_datagram_and_a_cancel_at_once(backend: Backend, what: str) -> None:
    """F11: delivered, or still there; never lost and never doubled."""

    async def main() -> None:
        with pair("udp4") as (a, b), plain(a) as raw, plain(b) as raw_b:
            for first in "send", "cancel":
                waiting = Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiting.run, RECEIVES[what], b)
                    await blocked()
                    if first == "send":
                        raw.sendto(b"hello", b.getsockname())
                    waiting.scope.cancel()
                    if first == "cancel":
                        raw.sendto(b"hello", b.getsockname())
                left = 0
                with contextlib.suppress(BlockingIOError):
                    while raw_b.recv(10):
                        left += 1
                assert waiting.cancelled == (waiting.result is None)
                assert left == (1 if waiting.cancelled else 0)

    run(backend, main)


@pytest.mark.parametrize("what", RECEIVES)
def test_a_close_ends_a_receive_and_a_second_one_is_refused(backend: Backend, what: str) -> None:
    async def main() -> None:
        with pair("udp4") as (_, b):
            first, second = Waiter(), Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.run, RECEIVES[what], b)
                await blocked()
                nursery.start_soon(second.run, RECEIVES[what], b)
                await blocked()
                assert isinstance(second.error, trio.BusyResourceError)
                assert not first.ended
                b.close()
            assert isinstance(first.error, trio.ClosedResourceError)

    run(backend, main)


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("how", ["data", "cancel", "close"])
@pytest.mark.parametrize("what", ["recvfrom_into", "recvmsg_into"])
def test_a_buffer_cannot_be_resized_until_the_completion(ring: Backend, direct: list[int], what: str, how: str) -> None:
    async def main() -> None:
        with pair() as (a, b):
            memory = bytearray(10)
            waiting = Waiter()
            async with trio.open_nursery() as nursery:
                if what == "recvfrom_into":
                    nursery.start_soon(waiting.run, b.recvfrom_into, memory)
                else:
                    nursery.start_soon(waiting.run, b.recvmsg_into, [bytearray(0), memory])
                await blocked()
                with pytest.raises(BufferError):
                    memory.extend(b"more")
                if how == "data":
                    await a.sendmsg([b"x"])
                elif how == "cancel":
                    waiting.scope.cancel()
                else:
                    b.close()
            memory.extend(b"more")  # also while the error, with its traceback, is held
            assert waiting.ended

    run(ring, main)


@pytest.mark.parametrize("how", ["data", "cancel", "close"])
@pytest.mark.parametrize("what", ["one", "two"])
def test_data_cannot_be_resized_until_it_is_sent(ring: Backend, direct: list[int], what: str, how: str) -> None:
    async def main() -> None:
        with pair("unix-stream") as (a, b):
            fill(a)
            memory = bytearray(b"hello")
            waiting = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.run, a.sendmsg, [memory] if what == "one" else [memory, b"!"])
                await blocked()
                with pytest.raises(BufferError):
                    memory.extend(b"more")
                if how == "data":
                    with plain(b) as raw:
                        while not waiting.ended:
                            with contextlib.suppress(BlockingIOError):
                                raw.recv(8192)
                            await trio.lowlevel.checkpoint()
                elif how == "cancel":
                    waiting.scope.cancel()
                else:
                    a.close()
            memory.extend(b"more")
            assert waiting.ended

    run(ring, main)


def test_memory_comes_back_at_once_after_a_refusal(ring: Backend) -> None:
    async def main() -> None:
        with pair() as (_, b):
            memory = bytearray(4)
            with pytest.raises(TypeError) as held:
                await b.recvmsg_into([memory, memoryview(b"readonly")])
            memory.extend(b"more")
            assert held.value.__traceback__ is not None

    run(ring, main)


def test_buffers_from_a_generator_are_taken_once(ring: Backend, direct: list[int]) -> None:
    async def main() -> None:
        memory = bytearray(3), bytearray(3)
        with pair() as (a, b):
            waiting = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.run, b.recvmsg_into, (each for each in memory))
                await blocked()
                await a.sendmsg(each for each in (b"he", b"llo"))
            assert waiting.result is not None
            assert waiting.result[0] == 5
            assert [bytes(part) for part in memory] == [b"hel", b"lo\0"]

            def failing() -> Iterator[bytearray]:
                yield memory[0]
                raise LookupError

            for call in b.recvmsg_into, a.sendmsg:
                with trio.testing.assert_checkpoints(), contextlib.suppress(LookupError):
                    await call(failing())

    run(ring, main)


@pytest.mark.parametrize("what", ["recvfrom", "recvmsg"])
def test_without_provided_buffers(ring: Backend, what: str) -> None:
    def refuse(*sizes: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    async def main() -> None:
        vars(manager().ring)["make_buffers"] = refuse
        with pair("udp4") as (a, b):
            for _ in range(3):
                waiting = Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiting.run, getattr(b, what), 10)
                    await blocked()
                    await a.sendto(b"hello", b.getsockname())
                assert waiting.result is not None
                assert (waiting.result[0], waiting.result[-1]) == (b"hello", a.getsockname())

    run(ring, main)


def test_operations_are_used_again(ring: Backend, direct: list[int]) -> None:
    async def main() -> None:
        with pair("udp4") as (a, b):
            there = b.getsockname()
            before = 0
            for number in range(50):
                await a.sendto(b"%d" % number, there)
                assert await b.recvfrom(10) == (b"%d" % number, a.getsockname())
                if number == 1:
                    before = len(manager().operations)
            assert len(manager().operations) == before
            assert manager().statistics().submitted >= 100

    run(ring, main)


# ------------------------------------------------------------------ descriptors that nobody takes (F9)


def test_descriptors_of_an_abandoned_receive_are_closed(ring: Backend) -> None:
    async def main() -> None:
        with pair() as (a, b), plain(b) as raw:
            before = descriptors()
            await a.sendmsg([b"x"], rights(0, 1))
            operation = _messages._begin_receive(b._sock, 10, 4 * ONE_FD)  # type: ignore[attr-defined]
            assert operation is not None
            operation.unwind()  # its cancel is behind the entry, and the message is there: it comes too late
            await blocked()
            with pytest.raises(BlockingIOError):
                raw.recv(1)
            assert descriptors() == before

    run(ring, main)


def test_descriptors_are_closed_where_the_task_is_torn_down_after_the_completion(ring: Backend) -> None:
    async def main() -> None:
        with pair() as (a, b):
            before = descriptors()
            await a.sendmsg([b"x"], rights(0, 1))
            operation = _messages._begin_receive(b._sock, 10, 4 * ONE_FD)  # type: ignore[attr-defined]
            assert operation is not None
            await operation.trap
            assert len(descriptors()) == len(before) + 2
            operation.unwind()
            assert descriptors() == before

    run(ring, main)


def test_descriptors_that_come_as_a_run_ends_are_closed(ring: Backend) -> None:
    """A manager of its own, so that the entry is still queued as it closes; that the message is gone shows that it ran."""

    async def main() -> None:
        with pair() as (a, b), plain(b) as raw:
            before = descriptors()
            await a.sendmsg([b"x"], rights(0, 1))
            ended = UringIOManager(UringBackend())
            memory = bytearray(10)
            operation = _messages.Received(ended, 4 * ONE_FD, 1)
            operation.keep = pinned = ffi.from_buffer(memory)
            operation.describe(128, ((address_of(pinned), 10),))
            operation.queue(OP_RECVMSG, b.fileno())
            ended.close()
            assert memory[:1] == b"x"
            with pytest.raises(BlockingIOError):
                raw.recv(1)
            assert descriptors() == before

    run(ring, main)


# ------------------------------------------------------------------ audit

_audited: list[tuple[str, Any]] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _audited is not None and event in ("socket.sendto", "socket.sendmsg"):
        _audited.append((event, arguments[1]))


sys.addaudithook(_audit)  # for the rest of the process: there is no way to take one back


def test_audit_events_are_raised_once(backend: Backend, direct: list[int]) -> None:
    global _audited

    async def main() -> None:
        with pair("udp4") as (a, b):
            port = b.getsockname()[1]
            await a.sendto(b"x", ("localhost", port))
            await a.sendmsg([b"x"], [], 0, ("127.0.0.1", port))
            with plain(a) as raw:
                raw.connect(b.getsockname())
            await a.sendmsg([b"x"])
            assert _audited == [
                ("socket.sendto", ("127.0.0.1", port)),
                ("socket.sendmsg", ("127.0.0.1", port)),
                ("socket.sendmsg", None),
            ]

    _audited = []
    try:
        run(backend, main)
    finally:
        _audited = None
