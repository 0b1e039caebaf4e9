"""A program that hangs, in the way that its first argument says, until it is told to end. It knows nothing of trio-uring."""

from __future__ import annotations

import sys

import trio
import trio.testing
from served import facts


async def wait_for_an_answer(socket: trio.socket.SocketType) -> None:
    print("hanging", facts()["backend"], flush=True)
    await socket.recv(100)


def work_for_ever() -> None:
    print("hanging", facts()["backend"], flush=True)
    sys.stdin.readline()


async def main() -> None:
    left, right = trio.socket.socketpair()
    with left, right:
        async with trio.open_nursery() as nursery:
            if sys.argv[1] == "asleep":
                nursery.start_soon(wait_for_an_answer, left)
                await trio.to_thread.run_sync(sys.stdin.readline)
                await right.send(b"the answer")
            else:
                nursery.start_soon(left.recv, 100)
                await trio.testing.wait_all_tasks_blocked()
                work_for_ever()
                await right.send(b"the answer")
    print("over", flush=True)


trio.run(main)
