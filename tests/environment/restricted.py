"""Does a little of everything on the ring, and prints as JSON how each thing ended: for test_restrictions.

Each answer is compared with that of the same program on epoll, so nothing in it may depend on time or chance.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import trio
import trio.testing

import trio_uring

TOLD: dict[str, Any] = {}


async def told(name: str, call: Callable[[], Awaitable[Any]]) -> None:
    """Note what a call answers, or its error."""
    try:
        answer = await call()
        TOLD[name] = answer if isinstance(answer, (int, str, type(None))) else repr(answer)
    except OSError as error:
        TOLD[name] = [type(error).__name__, error.errno, error.filename]


async def sockets() -> None:
    left, right = trio.socket.socketpair()
    with left, right:
        buffer = bytearray(8)
        await told("send", lambda: left.send(b"one"))
        await told("recv", lambda: right.recv(8))
        await told("sendmsg", lambda: left.sendmsg([b"tw", b"o"]))
        await told("recvmsg", lambda: right.recvmsg(8))
        await told("send again", lambda: left.send(bytearray(b"three")))
        await told("recv_into", lambda: right.recv_into(buffer))
        TOLD["received"] = buffer.decode()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(told, "recv that waits", lambda: right.recv(100_000))
            await trio.testing.wait_all_tasks_blocked()
            await left.send(b"late")
        with trio.move_on_after(0) as scope:
            await right.recv(8)
        TOLD["recv cancelled"] = scope.cancelled_caught
    datagrams = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with datagrams:
        await datagrams.bind(("127.0.0.1", 0))
        address = datagrams.getsockname()
        await told("sendto", lambda: datagrams.sendto(b"datagram", address))
        received, sender = await datagrams.recvfrom(100)
        TOLD["recvfrom"] = [received.decode(), sender == address]
        # The kernel's own answer, and no restriction: this socket may not broadcast.
        await told("sendto all", lambda: datagrams.sendto(b"all", ("255.255.255.255", 9)))
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with await listener.accept() as served:
                await served.send_all(bytes(1_000_000))

        nursery.start_soon(serve)
        async with await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as client:
            TOLD["stream"] = sum([len(data) async for data in client])
    await listener.aclose()
    with trio.socket.socket() as refused:
        port = listener_that_has_gone()
        await told("connect", lambda: refused.connect(("127.0.0.1", port)))


def listener_that_has_gone() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def files(directory: Path) -> None:
    path = trio.Path(directory, "file")
    await told("open none", functools.partial(trio.open_file, path))
    async with await trio.open_file(path, "wb") as file:
        await told("write", lambda: file.write(bytes(range(256)) * 1000))
        await told("truncate", lambda: file.truncate(200_000))
    async with await trio.open_file(path, "r+b") as file:
        await told("read", lambda: file.read(5))
        await told("write_at", lambda: trio_uring.write_at(file, b"at", 100))
        await told("writev_at", lambda: trio_uring.writev_at(file, [b"v", b"ector"], 200))
        await told("read_at", lambda: trio_uring.read_at(file, 8, 99))
        await told("read_many", lambda: trio_uring.read_many(file, [(0, 3), (100, 2)]))
        await told("read_files", lambda: whole([path, directory / "none", "/proc/self/comm"]))
        await told("fsync", lambda: trio_uring.fsync(file))
        await told("fallocate", lambda: trio_uring.fallocate(file, 0, 4096))
        TOLD["statx"] = (await trio_uring.statx(file)).size
    async with await trio.open_file(path, "rb") as source, await trio.open_file(directory / "copy", "wb") as target:
        await told("copy_file", lambda: trio_uring.copy_file(source, target))
    async with await trio.open_file(directory / "text", "w", encoding="utf-8") as text:
        await text.write("lines\nand \u00e4\n")
    async with await anyio.open_file(directory / "text", encoding="utf-8") as lines:
        TOLD["lines"] = [line async for line in lines]
    await told("stat", lambda: size_of(path))
    await told("exists", path.exists)
    await told("is_dir", trio.Path(directory).is_dir)
    await told("mkdir", lambda: trio.Path(directory, "made").mkdir())
    await told("mkdir again", lambda: trio.Path(directory, "made").mkdir())
    await told("symlink", lambda: trio.Path(directory, "link").symlink_to("file"))
    await told("hardlink", lambda: trio.Path(directory, "hard").hardlink_to(path))
    await told("rename", lambda: trio.Path(directory, "hard").rename(directory / "moved"))
    await told("rmdir", lambda: trio.Path(directory, "made").rmdir())
    await told("unlink", lambda: trio.Path(directory, "link").unlink())
    await told("read_text", lambda: trio.Path(directory, "text").read_text(encoding="utf-8"))
    # A file's own EACCES: the test has taken root's capabilities away.
    locked = directory / "locked"
    locked.mkdir(mode=0)
    await told("open locked", functools.partial(trio.open_file, locked / "file"))
    await told("stat locked", lambda: trio.Path(locked, "file").stat())
    TOLD["names"] = sorted(os.listdir(directory))


async def whole(paths: list[Any]) -> list[Any]:
    found = await trio_uring.read_files(paths)
    return [len(data) if isinstance(data, bytes) else [data.errno, data.filename] for data in found]


async def size_of(path: trio.Path) -> int:
    return (await path.stat()).st_size


async def pipes() -> None:
    done = await trio.run_process(["cat"], stdin=b"through a process" * 10_000, capture_stdout=True)
    TOLD["process"] = len(done.stdout)


async def main() -> None:
    TOLD["backend"] = getattr(trio.lowlevel.current_statistics().io_statistics, "backend", "epoll")
    await sockets()
    await files(Path(sys.argv[2]))
    await pipes()


trio_uring.run(main, io_backend="epoll" if sys.argv[1] == "epoll" else "uring")
print(json.dumps(TOLD))
