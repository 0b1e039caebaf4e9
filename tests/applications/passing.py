"""Descriptors that travel over UNIX sockets, by AnyIO and by Trio. It knows nothing of trio-uring."""

from __future__ import annotations

import array
import json
import os
import socket
import tempfile

import anyio
import anyio.abc
import trio
from served import used


async def by_anyio() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"

        async def give(stream: anyio.abc.SocketStream) -> None:
            assert isinstance(stream, anyio.abc.UNIXSocketStream)
            async with stream:
                with tempfile.TemporaryFile() as file:
                    file.write(b"by descriptor")
                    file.flush()
                    await stream.send_fds(b"take it", [file])

        async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, give)
            for _ in range(3):
                async with await anyio.connect_unix(path) as stream:
                    message, fds = await stream.receive_fds(100, 1)
                    assert message == b"take it"
                    with os.fdopen(fds[0], "rb") as file:
                        file.seek(0)
                        assert file.read() == b"by descriptor"
            group.cancel_scope.cancel()

        async with (
            await anyio.create_unix_datagram_socket(local_path=f"{directory}/one") as one,
            await anyio.create_connected_unix_datagram_socket(f"{directory}/one", local_path=f"{directory}/two") as two,
        ):
            await two.send(b"to one")
            assert await one.receive() == (b"to one", f"{directory}/two")
            await one.sendto(b"to two", f"{directory}/two")
            assert await two.receive() == b"to two"


async def by_trio() -> None:
    left, right = trio.socket.socketpair()
    with left, right:
        reading, writing = os.pipe()
        fds = array.array("i", [writing])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.sendmsg, [b"a pipe"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            data, ancillary, _, _ = await right.recvmsg(100, socket.CMSG_SPACE(fds.itemsize))
        assert data == b"a pipe"
        os.close(writing)
        (received,) = array.array("i", ancillary[0][2])
        async with trio.lowlevel.FdStream(received) as sender, trio.lowlevel.FdStream(reading) as receiver:
            await sender.send_all(b"through it")
            assert await receiver.receive_some(100) == b"through it"


async def main() -> dict[str, object]:
    await by_anyio()
    await by_trio()
    return used()


if __name__ == "__main__":
    print(json.dumps(anyio.run(main, backend="trio")))
