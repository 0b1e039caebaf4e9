"""splice, sendfile and copy_file: what arrives is what the result says, on the ring and on epoll."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.streams.tls
import pytest
import trio
from tools import Backend, blocked, run

import trio_uring
from trio_uring._loop.manager import UringIOManager
from trio_uring._loop.operation import GLOBAL_RUN_CONTEXT

CONTENT = random.Random(9).randbytes(3_000_001)


def nothing_in_flight() -> bool:
    manager = GLOBAL_RUN_CONTEXT.runner.io_manager
    if not isinstance(manager, UringIOManager):
        return True
    statistics = manager.statistics()
    return not manager.concurrent and statistics.operations_in_flight == statistics.tasks_waiting_read


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file with CONTENT."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    number = os.open(path, os.O_RDWR)
    yield number
    os.close(number)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[int]:
    """An empty file."""
    number = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe: to read, to write."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


async def everything(sock: Any, into: bytearray) -> None:
    """Receive until the peer ends."""
    while data := await sock.recv(1 << 20):
        into += data


async def connected(kind: str) -> tuple[Any, Any]:
    """What `sendfile` takes, and the peer as a socket of trio."""
    if kind == "anyio":
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        peer = trio.socket.socket()
        await peer.connect(("127.0.0.1", port))
        accepted = await listener.listeners[0].accept()  # type: ignore[attr-defined]
        await listener.aclose()
        return accepted, peer
    ours, peer = trio.socket.socketpair()
    return (trio.SocketStream(ours) if kind == "stream" else ours), peer


async def close(connection: Any) -> None:
    if hasattr(connection, "aclose"):
        await connection.aclose()
    else:
        connection.close()


KINDS = pytest.mark.parametrize("kind", ["stream", "socket", "anyio"])
BROKEN: dict[str, Any] = {"stream": trio.BrokenResourceError, "socket": OSError, "anyio": anyio.BrokenResourceError}
CLOSED: dict[str, Any] = {"stream": trio.ClosedResourceError, "socket": OSError, "anyio": anyio.ClosedResourceError}


# ------------------------------------------------------------------ sendfile


@KINDS
@pytest.mark.parametrize(
    ("offset", "count"), [(0, 1), (0, 3_000_001), (123_457, 2_000_000), (2_999_999, 50), (10**9, 5), (7, 0)]
)
def test_sendfile_sends_what_it_says(backend: Backend, fd: int, kind: str, offset: int, count: int) -> None:
    async def main() -> bytes:
        connection, peer = await connected(kind)
        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(everything, peer, got)
            assert await trio_uring.sendfile(connection, fd, offset, count) == len(CONTENT[offset : offset + count])
            await close(connection)
        peer.close()
        return bytes(got)

    assert run(backend, main) == CONTENT[offset : offset + count]


@KINDS
def test_sendfile_to_a_peer_that_has_gone(backend: Backend, fd: int, kind: str) -> None:
    async def main() -> None:
        connection, peer = await connected(kind)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def leave() -> None:
                await peer.recv(10)
                peer.close()

            async def send_on() -> None:
                for _ in range(100):
                    await trio_uring.sendfile(connection, fd, 0, 3_000_000)

            with pytest.raises(BROKEN[kind]) as caught:
                await send_on()
            if kind == "socket":
                assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)
        await close(connection)
        assert nothing_in_flight()

    run(backend, main)


@KINDS
def test_sendfile_on_a_closed_connection(backend: Backend, fd: int, kind: str) -> None:
    async def main() -> None:
        connection, peer = await connected(kind)
        await close(connection)
        with pytest.raises(CLOSED[kind]) as caught:
            await trio_uring.sendfile(connection, fd, 0, 10)
        if kind == "socket":
            assert caught.value.errno == errno.EBADF
        peer.close()

    run(backend, main)


@KINDS
def test_a_cancelled_sendfile_answers_what_the_peer_gets(backend: Backend, fd: int, kind: str) -> None:
    """Invariant 1: with Cancelled nothing went; else the count is what the peer receives."""

    async def main() -> None:
        connection, peer = await connected(kind)
        counts: list[int] = []
        got = bytearray()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send() -> None:
                    while sum(counts) < 3_000_000:
                        counts.append(await trio_uring.sendfile(connection, fd, sum(counts), 3_000_000 - sum(counts)))

                await blocked()
                got += await peer.recv(100_000)
                await blocked()
                scope.cancel()
        assert scope.cancelled_caught or sum(counts) == 3_000_000
        assert nothing_in_flight()
        await close(connection)
        await everything(peer, got)
        peer.close()
        assert len(got) == sum(counts) > 0
        assert got == CONTENT[: len(got)]

    run(backend, main)


def test_sendfile_once_at_a_time(backend: Backend, fd: int) -> None:
    async def main() -> None:
        stream, peer = await connected("stream")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.sendfile, stream, fd, 0, 3_000_000)
            await blocked()
            with pytest.raises(trio.BusyResourceError):
                await trio_uring.sendfile(stream, fd, 0, 10)
            with pytest.raises(trio.BusyResourceError):
                await stream.send_all(b"x")
            got = bytearray()
            while len(got) < 3_000_000:
                got += await peer.recv(1 << 20)
        assert got == CONTENT[:3_000_000]
        await stream.aclose()
        peer.close()

    run(backend, main)


def test_a_stream_closed_by_another_task(ring: Backend, fd: int) -> None:
    """F18: the peer sees the end, and no bytes after it."""

    async def main() -> None:
        stream, peer = await connected("stream")
        results: list[object] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                try:
                    results.append(await trio_uring.sendfile(stream, fd, 0, 3_000_000))
                except trio.ClosedResourceError as error:
                    results.append(error)

            got = bytearray(await peer.recv(1000))
            await blocked()
            await stream.aclose()
        await everything(peer, got)
        assert results == [len(got)]
        assert got == CONTENT[: len(got)]
        peer.close()
        assert nothing_in_flight()

    run(ring, main)


def test_encrypted_streams_are_refused(backend: Backend, fd: int) -> None:
    async def main() -> None:
        stream, peer = await connected("stream")
        secure = trio.SSLStream(stream, ssl.create_default_context(), server_hostname="localhost")
        with pytest.raises(TypeError, match=r"SSLStream: the data has to be encrypted first; use send_all"):
            await trio_uring.sendfile(secure, fd, 0, 10)
        await stream.aclose()
        peer.close()
        ours, peer = await connected("anyio")
        wrapped = anyio.streams.tls.TLSStream(ours, True, None, None, None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"TLSStream: the data has to be encrypted first; use send\("):
            await trio_uring.sendfile(wrapped, fd, 0, 10)
        with socket.socket() as plain, pytest.raises(TypeError, match="not to socket"):
            await trio_uring.sendfile(plain, fd, 0, 10)
        await ours.aclose()
        peer.close()

    run(backend, main)


# ------------------------------------------------------------------ copy_file


@pytest.mark.parametrize(
    ("count", "source", "target"),
    [(None, 0, 0), (None, 2_999_999, 5), (1_500_000, 1, 70_000), (10**8, 5, 0), (0, 0, 0), (None, 10**8, 0)],
)
def test_copy_file(backend: Backend, fd: int, out: int, count: int | None, source: int, target: int) -> None:
    expected = CONTENT[source:] if count is None else CONTENT[source : source + count]
    copied = run(backend, lambda: trio_uring.copy_file(fd, out, count, offset_source=source, offset_target=target))
    assert copied == len(expected)
    assert os.pread(out, len(CONTENT) + target, 0) == (bytes(target) + expected if expected else b"")
    assert os.lseek(fd, 0, os.SEEK_CUR) == os.lseek(out, 0, os.SEEK_CUR) == 0


def test_copy_file_where_nothing_can_be_spliced(backend: Backend, fd: int, tmp_path: Path) -> None:
    appending = os.open(tmp_path / "appending", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        assert run(backend, trio_uring.copy_file, fd, appending) == len(CONTENT)
        assert os.pread(appending, len(CONTENT) + 1, 0) == CONTENT
    finally:
        os.close(appending)


def test_copy_file_reports_the_target_s_error(backend: Backend, fd: int, tmp_path: Path, pipe: tuple[int, int]) -> None:
    read_only = os.open(tmp_path / "file", os.O_RDONLY)
    full = os.open("/dev/full", os.O_RDWR)
    try:
        for target, error in ((read_only, errno.EBADF), (full, errno.ENOSPC), (pipe[1], errno.ESPIPE)):
            with pytest.raises(OSError, match=os.strerror(error)):
                run(backend, trio_uring.copy_file, fd, target)
    finally:
        os.close(read_only)
        os.close(full)


def test_a_cancelled_copy_answers_what_is_there(ring: Backend, fd: int, out: int) -> None:
    async def main(tick: int) -> None:
        os.ftruncate(out, 0)
        copied = 0
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def canceller() -> None:
                    for _ in range(tick):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                copied = await trio_uring.copy_file(fd, out)
                nursery.cancel_scope.cancel()
        assert os.fstat(out).st_size == copied
        assert os.pread(out, len(CONTENT), 0) == CONTENT[:copied]
        assert nothing_in_flight()

    for tick in (0, 1, 2, 3, 5, 9, 17, 100_000):
        run(ring, main, tick)


# ------------------------------------------------------------------ splice


def test_splice_between_files_and_pipes(backend: Backend, fd: int, out: int, pipe: tuple[int, int]) -> None:
    async def main() -> None:
        assert await trio_uring.splice(fd, pipe[1], 5000, offset_source=100) == 5000
        assert await trio_uring.splice(pipe[0], out, 9000, offset_target=50) == 5000
        assert os.pread(out, 9000, 50) == CONTENT[100:5100]
        assert await trio_uring.splice(fd, pipe[1], 10) == 10  # from the file's own position
        assert os.lseek(fd, 0, os.SEEK_CUR) == 10
        assert await trio_uring.splice(fd, pipe[1], 10, offset_source=10**9) == 0

    run(backend, main)
    assert os.read(pipe[0], 100) == CONTENT[:10]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_splice_waits_and_can_be_cancelled(ring: Backend, out: int, pipe: tuple[int, int], blocking: bool) -> None:
    """F15, F20: it blocks in a worker of the kernel, or answers EAGAIN."""
    for end in pipe:
        os.set_blocking(end, blocking)

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio_uring.splice, pipe[0], out, 100)
                await blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert nothing_in_flight()
        os.write(pipe[1], b"for the next")
        assert await trio_uring.splice(pipe[0], out, 3) == 3
        async with trio.open_nursery() as nursery:
            os.read(pipe[0], 100)
            nursery.start_soon(trio_uring.splice, pipe[0], out, 100)
            await blocked()
            os.write(pipe[1], b" late")
        assert nothing_in_flight()

    run(ring, main)
    assert os.pread(out, 100, 0) == b"for late"


@pytest.mark.parametrize("end", ["source", "target"])
def test_f17_closing_either_end_of_a_splice(ring: Backend, out: int, pipe: tuple[int, int], end: str) -> None:
    reader, writer = pipe

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def moving() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await trio_uring.splice(reader, out, 100)

            await blocked()
            trio.lowlevel.notify_closing(reader if end == "source" else out)
        assert nothing_in_flight()
        os.write(writer, b"still there")
        assert os.read(reader, 100) == b"still there"

    run(ring, main)
    assert os.fstat(out).st_size == 0
