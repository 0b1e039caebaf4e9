"""What a close under a receive costs beside 1, 9,000 and 30,000 sockets that wait: a program of `make kernels`.

In its machine a process may have that many descriptors. The backends take turns in processes of their own; the figures are
processor time, medians of nine rounds. It exits with 1 where the ring costs more than 1.2 times what epoll does (F45).
"""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import subprocess
import sys
import time

import trio
import trio.testing

import trio_uring

IDLE = (1, 9_000, 30_000)
CLOSES = 200  # of one round
AT_MOST = 1.2


def datagrams() -> trio.socket.SocketType:
    """A socket to which nobody sends."""
    return trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))


async def receive_until_closed(sock: trio.socket.SocketType) -> None:
    with contextlib.suppress(trio.ClosedResourceError):
        await sock.recv(100)


async def close_one() -> None:
    sock = datagrams()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_until_closed, sock)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        sock.close()


async def closes(idle: int) -> float:
    """Microseconds of processor time that one costs."""
    rounds = []
    async with trio.open_nursery() as waiting:
        for _ in range(idle):
            waiting.start_soon(datagrams().recv, 100)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            before = time.process_time()
            for _ in range(CLOSES):
                await close_one()
            rounds.append((time.process_time() - before) / CLOSES * 1e6)
        waiting.cancel_scope.cancel()
    return statistics.median(rounds)


def main() -> int:
    too_much = False
    for idle in IDLE:
        costs: dict[str, list[float]] = {"epoll": [], "uring": []}
        for _ in range(3):
            for backend, found in costs.items():
                told = subprocess.run([sys.executable, __file__, backend, str(idle)], check=True, capture_output=True)
                found.append(float(told.stdout))
        epoll, ring = (statistics.median(found) for found in costs.values())
        print(
            f"trio-uring-closes beside {idle}: epoll {epoll:.0f} us, uring {ring:.0f} us, {ring / epoll:.2f}",
            flush=True,
        )
        too_much |= ring > AT_MOST * epoll
    return too_much


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(trio_uring.run(closes, int(sys.argv[2]), io_backend="uring" if sys.argv[1] == "uring" else "epoll"))
