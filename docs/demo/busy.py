"""A busy program on AnyIO, which knows nothing of trio-uring: fifty connections that are answered, and files that are read.

Prints what it did in a second of each kind.
"""

import itertools
import tempfile
import time
from pathlib import Path

import anyio
from anyio.abc import ByteStream, SocketAttribute

SECONDS = 0.9
CONNECTIONS = 50
FILES = 200
MESSAGE = bytes(1024)


async def answer(stream: ByteStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def ask(port: int, until: float) -> int:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        for asked in itertools.count():
            if time.monotonic() > until:
                return asked
            await stream.send(MESSAGE)
            got = 0
            while got < len(MESSAGE):
                got += len(await stream.receive())
    raise AssertionError


async def requests() -> float:
    """Requests a second, over all connections."""
    asked = 0

    async def count(port: int, until: float) -> None:
        nonlocal asked
        mine = await ask(port, until)
        asked += mine

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as server:
        server.start_soon(listener.serve, answer)
        port = listener.extra(SocketAttribute.local_port)
        began = time.monotonic()
        async with anyio.create_task_group() as clients:
            for _ in range(CONNECTIONS):
                clients.start_soon(count, port, began + SECONDS)
        server.cancel_scope.cancel()
    return asked / (time.monotonic() - began)


async def files(directory: Path) -> float:
    """Files a second, each opened, read and closed."""
    paths = [directory / str(number) for number in range(FILES)]
    for path in paths:
        path.write_bytes(bytes(4096))
    began = time.monotonic()
    for done, path in enumerate(itertools.cycle(paths)):  # noqa: B007 - the last one counts
        if time.monotonic() > began + SECONDS:
            break
        async with await anyio.open_file(path, "rb") as file:
            assert len(await file.read()) == 4096
    return done / (time.monotonic() - began)


async def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as directory:
        print(await requests(), await files(Path(directory)))


anyio.run(main, backend="trio")
