"""Each operation that a ring performs, on the kernel and in simulation, with the memory addresses given.

Knows the interface of layer 1 and the C layout of what entries point to.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from trio_uring._ring.ring import (
    FIRST_USER_DATA,
    OP_CLOSE,
    OP_CONNECT,
    OP_FALLOCATE,
    OP_FSYNC,
    OP_OPENAT,
    OP_READ,
    OP_READV,
    OP_RECV,
    OP_RECVMSG,
    OP_SENDMSG,
    OP_SHUTDOWN,
    OP_STATX,
    OP_TIMEOUT,
    OP_WRITE,
    OP_WRITEV,
    Ring,
    ffi,
)

from .support import content, memory, open_descriptors, reap, settle

ONE = FIRST_USER_DATA
TWO = FIRST_USER_DATA + 1
AT_FDCWD = -100
CURRENT_POSITION = (1 << 64) - 1


def address(pointer: Any) -> int:
    """Where a cffi pointer points."""
    return int(ffi.cast("uintptr_t", pointer))


def structure(layout: str, *fields: int) -> Any:
    """A C structure in memory of its own."""
    return ffi.new("char[]", struct.pack(layout, *fields))


def vector(buffers: Iterable[tuple[Any, int]]) -> Any:
    """An array of struct iovec."""
    return ffi.new("char[]", b"".join(struct.pack("PN", address(buffer), size) for buffer, size in buffers))


def perform(ring: Ring, opcode: int, *fields: Any, **more: Any) -> int:
    """Queue one entry and answer its result."""
    ring.queue(opcode, ONE, *fields, **more)
    (completion,) = reap(ring, 1)
    assert completion[::2] == (ONE, 0)
    return completion.res


def test_vectors(ring: Ring, pipe: tuple[int, int]) -> None:
    head, tail = ffi.new("char[]", b"head"), ffi.new("char[]", b"tail")
    out = vector([(head, 4), (tail, 4)])
    assert perform(ring, OP_WRITEV, pipe[1], out, 2) == 8
    first, second = memory(5), memory(5)
    into = vector([(first, 5), (second, 5)])
    assert perform(ring, OP_READV, pipe[0], into, 2) == 8
    assert content(first, 5) + content(second, 3) == b"headtail"


def test_messages_with_an_address(ring: Ring) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
    ):
        ours.bind(("127.0.0.1", 0))
        theirs.bind(("127.0.0.1", 0))
        port = theirs.getsockname()[1]
        name = ffi.new("char[]", struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), b"\x7f\0\0\1"))
        text = ffi.new("char[]", b"datagram")
        parts = vector([(text, 8)])
        header = structure("PIPNPNi", address(name), 16, address(parts), 1, 0, 0, 0)
        assert perform(ring, OP_SENDMSG, ours.fileno(), header, 1) == 8
        assert theirs.recvfrom(64) == (b"datagram", ours.getsockname())

        sender, buffer = memory(128), memory(64)
        into = vector([(buffer, 64)])
        header = structure("PIPNPNi", address(sender), 128, address(into), 1, 0, 0, 0)
        ring.queue(OP_RECVMSG, ONE, ours.fileno(), header, 1)
        assert settle(ring) == []
        theirs.sendto(b"answer", ours.getsockname())
        assert reap(ring, 1) == [(ONE, 6, 0)]
        assert content(buffer, 6) == b"answer"
        size = struct.unpack("PI", content(header, 12))[1]
        assert size == 16
        assert struct.unpack("=HH", content(sender, 4)) == (socket.AF_INET, socket.htons(port))


def test_connect(ring: Ring) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        port = listener.getsockname()[1]
        name = ffi.new("char[]", struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), b"\x7f\0\0\1"))
        assert perform(ring, OP_CONNECT, client.fileno(), name, offset=16) == 0
        assert client.getpeername() == listener.getsockname()
        assert client.getblocking()


def test_connect_to_nobody(ring: Ring) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    name = ffi.new("char[]", struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), b"\x7f\0\0\1"))
    with socket.socket() as client:
        assert perform(ring, OP_CONNECT, client.fileno(), name, offset=16) == -errno.ECONNREFUSED


def test_shutdown(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert perform(ring, OP_SHUTDOWN, ours.fileno(), length=socket.SHUT_WR) == 0
    assert theirs.recv(1) == b""
    theirs.send(b"x")
    assert perform(ring, OP_RECV, ours.fileno(), memory(4), 4) == 1


def test_open_write_read_stat_close(ring: Ring, tmp_path: Path) -> None:
    settle(ring)  # what a first wait opens is the ring's
    before = open_descriptors()
    path = ffi.new("char[]", bytes(tmp_path / "file"))
    fd = perform(ring, OP_OPENAT, AT_FDCWD, path, 0o640, op_flags=os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    assert fd >= 0
    assert not os.get_inheritable(fd)
    assert perform(ring, OP_WRITE, fd, ffi.new("char[]", b"0123456789"), 10, CURRENT_POSITION) == 10
    assert perform(ring, OP_WRITE, fd, ffi.new("char[]", b"ab"), 2, 4) == 2
    assert perform(ring, OP_FSYNC, fd) == 0
    buffer = memory(16)
    assert perform(ring, OP_READ, fd, buffer, 16, 2) == 8
    assert content(buffer, 8) == b"23ab6789"
    assert perform(ring, OP_READ, fd, buffer, 16, CURRENT_POSITION) == 0
    assert perform(ring, OP_FALLOCATE, fd, ffi.cast("void *", 100), 0, 0) == 0
    status = memory(256)
    basic = 0x7FF
    assert perform(ring, OP_STATX, AT_FDCWD, path, basic, address(status)) == 0
    assert struct.unpack_from("Q", content(status, 256), 40) == (100,)
    assert perform(ring, OP_CLOSE, fd) == 0
    assert open_descriptors() == before
    assert (tmp_path / "file").read_bytes() == b"0123ab6789" + bytes(90)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_open_of_what_is_not_there(ring: Ring, tmp_path: Path) -> None:
    path = ffi.new("char[]", bytes(tmp_path / "nothing"))
    assert perform(ring, OP_OPENAT, AT_FDCWD, path, 0, op_flags=os.O_RDONLY) == -errno.ENOENT


def test_an_open_and_its_cancel_in_one_batch(ring: Ring, tmp_path: Path) -> None:
    """F9: either there is a descriptor, and it is delivered, or there is none."""
    settle(ring)  # what a first wait opens is the ring's
    before = open_descriptors()
    path = ffi.new("char[]", bytes(tmp_path / "file"))
    for user_data in range(ONE, ONE + 40):
        ring.queue(OP_OPENAT, user_data, AT_FDCWD, path, 0o600, op_flags=os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        ring.cancel(user_data)
        (completion,) = reap(ring, 1)
        if completion.res == -errno.ECANCELED:
            assert open_descriptors(collect=False) == before
        else:
            assert open_descriptors(collect=False) == before | {completion.res}
            os.close(completion.res)


@pytest.mark.parametrize("nanoseconds", [0, 1, 20_000_000])
def test_timeout(ring: Ring, nanoseconds: int) -> None:
    when = structure("qq", 0, nanoseconds)
    started = time.monotonic_ns()
    assert perform(ring, OP_TIMEOUT, -1, when, 1) == -errno.ETIME
    assert time.monotonic_ns() - started >= nanoseconds


def test_timeout_at_a_time(ring: Ring) -> None:
    at = time.monotonic_ns() + 20_000_000
    when = structure("qq", *divmod(at, 1_000_000_000))
    assert perform(ring, OP_TIMEOUT, -1, when, 1, op_flags=1) == -errno.ETIME
    assert time.monotonic_ns() >= at


def test_cancel_of_a_timeout(ring: Ring) -> None:
    when = structure("qq", 3600, 0)
    ring.queue(OP_TIMEOUT, TWO, -1, when, 1)
    assert settle(ring) == []
    ring.cancel(TWO)
    assert reap(ring, 1) == [(TWO, -errno.ECANCELED, 0)]


def test_errors_are_those_of_the_system_calls(ring: Ring, pipe: tuple[int, int]) -> None:
    buffer = memory(4)
    assert perform(ring, OP_RECV, pipe[0], buffer, 4) == -errno.ENOTSOCK
    assert perform(ring, OP_WRITE, pipe[0], buffer, 4) == -errno.EBADF
    os.close(pipe[0])
    assert perform(ring, OP_WRITE, pipe[1], buffer, 4) == -errno.EPIPE
