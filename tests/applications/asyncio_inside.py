"""Code written for asyncio inside a Trio program, by trio-asyncio. It knows nothing of trio-uring."""

from __future__ import annotations

import asyncio
import json
import sys

import trio
import trio_asyncio
from served import used


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def converse() -> list[bytes]:
    """All of it asyncio: a server, ten clients, a child process, a timeout, an executor."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def client(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"line %d\n" % number)
        found = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return found

    found = await asyncio.gather(*map(client, range(10)))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.wait_for(reader.readline(), 0.01)
        raise AssertionError("nobody has written")
    except asyncio.TimeoutError:
        pass
    writer.close()
    assert await asyncio.get_running_loop().run_in_executor(None, sum, (1, 2)) == 3
    server.close()
    return list(found)


async def main() -> dict[str, object]:
    async with trio_asyncio.open_loop():
        found = await trio_asyncio.aio_as_trio(converse)()
        assert found == [b"LINE %d\n" % number for number in range(10)]
        # And Trio inside asyncio inside Trio.
        process = await trio.run_process([sys.executable, "-c", "print(1 + 1)"], capture_stdout=True)
        assert process.stdout == b"2\n"
        return used()


if __name__ == "__main__":
    print(json.dumps(trio_asyncio.run(main)))
