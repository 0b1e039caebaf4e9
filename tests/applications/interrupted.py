"""Waits for Ctrl-C, asleep or busy, and cleans up. It knows nothing of trio-uring."""

import sys

import trio
from served import facts


async def main() -> None:
    left, right = trio.socket.socketpair()
    with left, right:
        try:
            print(facts()["backend"], flush=True)
            if sys.argv[1] == "in a receive":
                await left.recv(1)
            while True:
                pass
        finally:
            print("cleaned up", flush=True)


trio.run(main)
