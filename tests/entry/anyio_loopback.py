"""An unchanged AnyIO program: echoes a message over loopback TCP and prints what its run used, as JSON.

Knows AnyIO; knows nothing of trio-uring.
"""

import json

import anyio
import anyio.abc
from loopback import MESSAGE, used


async def _echo(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def main() -> dict[str, object]:
    """Serves one connection and answers `used()`."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, _echo)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(MESSAGE)
                received = b""
                while len(received) < len(MESSAGE):
                    received += await stream.receive()
            assert received == MESSAGE
            group.cancel_scope.cancel()
    return used()


if __name__ == "__main__":
    print(json.dumps(anyio.run(main, backend="trio")))
