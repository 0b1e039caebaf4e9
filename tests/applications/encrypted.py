"""TLS by Trio and by AnyIO, and names looked up in threads. It knows nothing of trio-uring."""

from __future__ import annotations

import functools
import json
import socket
import ssl
import sys

import anyio
import anyio.abc
import anyio.streams.tls
import trio
from served import used

LARGE = bytes(range(256)) * 8192


async def by_trio(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    async def echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    listeners = await trio.open_ssl_over_tcp_listeners(0, server, host="127.0.0.1")
    transport = listeners[0].transport_listener
    assert isinstance(transport, trio.SocketListener)
    port = transport.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        async with await trio.open_ssl_over_tcp_stream("localhost", port, ssl_context=client) as stream:
            received = bytearray()

            async def receive() -> None:
                while len(received) < len(LARGE):
                    received.extend(await stream.receive_some())

            async with trio.open_nursery() as both:
                both.start_soon(receive)
                await stream.send_all(LARGE)
            assert received == LARGE
            with trio.move_on_after(0.01) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught
            await stream.send_all(b"still")
            assert await stream.receive_some() == b"still"
        async with await trio.open_ssl_over_tcp_stream("localhost", port) as stream:
            try:
                await stream.do_handshake()
                raise AssertionError("nobody signed for this certificate")
            except trio.BrokenResourceError as error:
                cause = error.__cause__
        assert isinstance(cause, ssl.SSLCertVerificationError)
        nursery.cancel_scope.cancel()


async def by_anyio(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    async def echo(stream: anyio.streams.tls.TLSStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send(data)

    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = tcp.extra(anyio.abc.SocketAttribute.local_port)
    async with anyio.streams.tls.TLSListener(tcp, server) as listener, anyio.create_task_group() as group:
        group.start_soon(functools.partial(listener.serve, echo))
        async with await anyio.connect_tcp("localhost", port, ssl_context=client) as stream:
            assert stream.extra(anyio.streams.tls.TLSAttribute.tls_version) == "TLSv1.3"
            for message in (b"one", b"two" * 30_000):
                await stream.send(message)
                received = b""
                while len(received) < len(message):
                    received += await stream.receive()
                assert received == message
        try:
            await anyio.connect_tcp("localhost", port, ssl_context=ssl.create_default_context())
            raise AssertionError("nobody signed for this certificate")
        except ssl.SSLCertVerificationError:
            pass
        group.cancel_scope.cancel()


async def names() -> None:
    """Many look-ups at once, each in a thread; one for a port of which only the name is known."""
    found: list[object] = []

    async def look_up(port: int) -> None:
        answers = await trio.socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)
        found.append({address[-1][1] for address in answers})

    async with trio.open_nursery() as nursery:
        for port in range(1000, 1040):
            nursery.start_soon(look_up, port)
    assert sorted(map(repr, found)) == [repr({port}) for port in range(1000, 1040)]
    assert (await anyio.getaddrinfo("127.0.0.1", 80))[0][-1] == ("127.0.0.1", 80)
    try:
        await trio.socket.getaddrinfo("name.invalid", 80, flags=socket.AI_NUMERICHOST)
        raise AssertionError("that is no number")
    except socket.gaierror:
        pass


async def main(ca: str, chain: str, key: str) -> dict[str, object]:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(chain, key)
    client = ssl.create_default_context(cafile=ca)
    await by_trio(server, client)
    await by_anyio(server, client)
    await names()
    return used()


if __name__ == "__main__":
    print(json.dumps(trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])))
