"""Speaks over sockets with kernel TLS, on each backend: a program of `make kernels`, whose machine has that module.

Keys are set by hand (Documentation/networking/tls.rst), so that no handshake is needed. Prints one line for each backend; exits
with 1 where an answer is not the right one. The right ones are those of the sockets: what was sent arrives, whole and in order,
and a record that is no data ends a plain receive with EIO.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Literal

import pytest
import trio

import trio_uring

TCP_ULP = 31
SOL_TLS, TLS_TX, TLS_RX, TLS_SET_RECORD_TYPE = 282, 1, 2, 1
TLS_1_2, AES_GCM_128 = 0x0303, 51
ALERT = 21


def keys(which: int) -> bytes:
    """struct tls12_crypto_info_aes_gcm_128 of <linux/tls.h>."""
    return struct.pack("=HH8s16s4s8s", TLS_1_2, AES_GCM_128, bytes(8), bytes([which]) * 16, bytes(4), bytes(8))


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that the kernel encrypts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = socket.create_connection(listener.getsockname()), listener.accept()[0]
    for number, end in enumerate(ends):
        end.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        end.setsockopt(SOL_TLS, TLS_TX, keys(number))
        end.setsockopt(SOL_TLS, TLS_RX, keys(1 - number))
    return ends


async def main() -> None:
    one, other = (trio.socket.from_stdlib_socket(end) for end in connected())
    left, right = trio.SocketStream(one), trio.SocketStream(other)
    sent = os.urandom(3_000_001)
    received = bytearray()

    async def send() -> None:
        await left.send_all(sent[:1_000_000])
        rest = memoryview(sent)[1_000_000:]
        while rest:
            rest = rest[await one.send(rest[:50_000]) :]

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for size in (1, 100, 16_384, 1_000_000):  # more than a record, and less
                received += await right.receive_some(size)
            into = bytearray(70_000)
            while len(received) < len(sent) - 100_000:
                received += into[: await other.recv_into(into)]
            while len(received) < len(sent):
                received += (await other.recvmsg(30_000))[0]
        assert received == sent, "not what was sent"
        await right.send_all(b"and back")
        assert await left.receive_some() == b"and back"
        await one.sendmsg([b"\1\0"], [(SOL_TLS, TLS_SET_RECORD_TYPE, bytes([ALERT]))])
        with pytest.raises(OSError, match="Input/output error"):
            await other.recv(100)
        await left.aclose()
        await right.aclose()


BACKENDS: tuple[Literal["epoll", "uring"], ...] = ("epoll", "uring")
for backend in BACKENDS:
    trio_uring.run(main, io_backend=backend)
    print(f"trio-uring-ktls {backend}: every byte, and an alert is EIO", flush=True)
