"""An unchanged Trio program: echoes a message over loopback TCP and prints what its run used, as JSON.

Knows Trio and /proc; knows nothing of trio-uring.
"""

import json
import os
import sys

import trio
import trio.testing

MESSAGE = bytes(range(256)) * 16


def descriptors() -> list[str]:
    """What each open descriptor of this process is."""
    kinds = []
    for number in os.listdir("/proc/self/fd"):
        try:
            kinds.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the descriptor that listed the directory
            continue
    return sorted(kinds)


def used() -> dict[str, object]:
    """What the current run is on: its backend, and how many rings and epoll instances the process has."""
    kinds = descriptors()
    return {
        "backend": getattr(trio.lowlevel.current_statistics().io_statistics, "backend", None),
        "eventpolls": kinds.count("anon_inode:[eventpoll]"),
        "rings": kinds.count("anon_inode:[io_uring]"),
    }


ON_THE_RING = {"backend": "uring", "eventpolls": 0, "rings": 1}
ON_EPOLL = {"backend": "epoll", "eventpolls": 1, "rings": 0}


async def _echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def main() -> dict[str, object]:
    """Serves one connection and answers `used()`."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, _echo, listeners)
        async with await trio.testing.open_stream_to_socket_listener(listeners[0]) as stream:
            await stream.send_all(MESSAGE)
            received = b""
            while len(received) < len(MESSAGE):
                received += await stream.receive_some()
        assert received == MESSAGE
        nursery.cancel_scope.cancel()
    return used()


if __name__ == "__main__":
    print(json.dumps({**trio.run(main), "arguments": sys.argv[1:]}))
