"""Full load, and everything that can go wrong with it, for a while: python soak.py SECONDS [SEED]

Pairs of connections carry numbered streams while other tasks cancel their receives and sends, reset connections, half-close
them, take all descriptors away, and signals and wake-ups of other threads rain on the loop. Every byte is accounted for: a
receiver checks that the stream it gets is the sender's, from its beginning, without a gap or a repetition, and whoever
shut down in order was heard to the end. Afterwards, in one process that has run two such phases: memory flat from the first to
the second, descriptors as at the start, nothing in flight. Prints what it did as one line of JSON; exit status 0 if all is well.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import json
import os
import random
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio

import trio_uring

CONNECTIONS = 24
LIMIT = 1 << 20  # bytes a stream carries at most
# Bytes, from one phase to the next: arenas of the allocator, not a leak that goes on. AddressSanitizer keeps what is freed.
MEMORY_MAY_GROW = 512 << 20 if "TRIO_URING_SANITIZED" in os.environ else 8 << 20
PATTERN = bytes(random.Random(0).randbytes(1 << 16))
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


def pattern(start: int, size: int) -> bytes:
    """That part of the endless stream which every sender sends."""
    offset = start % len(PATTERN)
    repeated = PATTERN[offset:] + PATTERN * (size // len(PATTERN) + 1)
    return repeated[:size]


class Stream:
    """One direction of one connection, as both of its ends see it."""

    def __init__(self) -> None:
        self.sent = 0  # what send has answered for
        self.maybe = 0  # of a send that ended with an error: what it may have moved besides
        self.got = 0
        self.finished = False  # the sender shut down in order
        self.ended = False  # the receiver saw the end


class Load:
    """What is going on."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.until = time.monotonic() + seconds
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    @property
    def over(self) -> bool:
        """Whether it is time to stop."""
        return time.monotonic() >= self.until

    def cut(self) -> trio.CancelScope:
        """A scope that is cancelled at a random moment, or never."""
        if self.random.random() < 0.5:
            return trio.CancelScope()
        return trio.move_on_after(self.random.choice((0, 0, 1e-5, 1e-4, 1e-3)))

    async def sends(self, sock: trio.socket.SocketType, stream: Stream) -> None:
        """Send, cancelled now and then: what was cancelled has sent nothing."""
        while not self.over and stream.sent < LIMIT:
            data = pattern(stream.sent, self.random.choice((1, 100, 4096, 70_000)))
            with self.cut() as scope:
                stream.sent += await sock.send(data)
            self.done["cancelled sends" if scope.cancelled_caught else "sends"] += 1
        how = self.random.random()
        if how < 0.2:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            self.done["resets"] += 1
        else:
            sock.shutdown(socket.SHUT_WR)
            stream.finished = True
            self.done["half-closes"] += 1

    async def receives(self, sock: trio.socket.SocketType, stream: Stream) -> None:
        """Receive until the end, cancelled now and then: what was cancelled has taken nothing."""
        memory = bytearray(10_000)
        while True:
            data = None
            with self.cut() as scope:
                if self.random.random() < 0.5:
                    data = await sock.recv(self.random.choice((1, 1000, 65536, 100_000)))
                else:
                    data = bytes(memory[: await sock.recv_into(memory)])
            if data is None:
                assert scope.cancelled_caught
                self.done["cancelled receives"] += 1
                continue
            if not data:
                stream.ended = True
                return
            if data != pattern(stream.got, len(data)):
                self.wrong.append(f"{len(data)} bytes at {stream.got} are not what was sent there")
            stream.got += len(data)
            self.done["receives"] += 1

    async def end(self, name: str, call: Callable[..., Any], *args: Any) -> None:
        """A call that a reset may break."""
        try:
            await call(*args)
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno not in (
                errno.ECONNRESET, errno.EPIPE, errno.EBADF, errno.ENOTCONN,
            ):  # fmt: skip
                raise
            self.done[f"broken {name}"] += 1

    async def pair(self) -> tuple[trio.socket.SocketType, trio.socket.SocketType] | None:
        """Two ends of a TCP connection; None where there are no descriptors."""
        with contextlib.ExitStack() as ends:
            try:
                listener = ends.enter_context(trio.socket.socket())
                await listener.bind(("127.0.0.1", 0))
                listener.listen()
                client = ends.enter_context(trio.socket.socket())
                await client.connect(listener.getsockname())
                accepted, _ = await listener.accept()
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                self.done["no descriptor"] += 1
                return None
            ends.pop_all()
            listener.close()
        return client, accepted

    async def connection(self) -> None:
        """One after the other, both directions of each, until it is time."""
        while not self.over:
            pair = await self.pair()
            if pair is None:
                await trio.sleep(0.01)
                continue
            client, accepted = pair
            there, back = Stream(), Stream()
            with client, accepted:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.end, "send", self.sends, client, there)
                    nursery.start_soon(self.end, "receive", self.receives, accepted, there)
                    nursery.start_soon(self.end, "send", self.sends, accepted, back)
                    nursery.start_soon(self.end, "receive", self.receives, client, back)
            for stream in (there, back):
                if stream.got > stream.sent:
                    self.wrong.append(f"{stream.got} bytes came of {stream.sent}")
                if stream.ended and stream.finished and stream.got != stream.sent:
                    self.wrong.append(f"the end came after {stream.got} of {stream.sent} bytes")
                self.done["bytes"] += stream.got
            self.done["connections"] += 1

    async def without_descriptors(self) -> None:
        """Phases in which nobody gets a descriptor."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        while not self.over:
            await trio.sleep(0.2)
            taken = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(os.dup(0))
                await trio.sleep(0.02)
            finally:
                for fd in taken:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            self.done["phases without descriptors"] += 1

    async def polls(self) -> None:
        """Readiness, cancelled and closed under its waiter."""
        while not self.over:
            try:
                a, b = trio.socket.socketpair()
            except OSError:
                await trio.sleep(0.01)
                continue
            with a, b:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.end, "poll", trio.lowlevel.wait_readable, a)
                    for _ in range(2):
                        await trio.lowlevel.checkpoint()  # by the second one it waits
                    choice = self.random.randrange(3)
                    if choice == 0:
                        nursery.cancel_scope.cancel()
                    elif choice == 1:
                        a.close()
                    else:
                        await b.send(b"x")
            self.done["polls"] += 1

    async def threads(self) -> None:
        """Wake-ups."""
        while not self.over:
            await trio.to_thread.run_sync(time.sleep, 0)
            self.done["threads"] += 1

    async def main(self) -> None:
        """All of it at once."""
        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS):
                nursery.start_soon(self.connection)
            nursery.start_soon(self.without_descriptors)
            nursery.start_soon(self.polls)
            nursery.start_soon(self.threads)
        self.done["entries"] += self.statistics().submitted
        # Trio's own wait for its entry queue is what is left, and what has been cancelled in this tick.
        for _ in range(100):
            in_flight = self.statistics().operations_in_flight
            if in_flight <= 1:
                break
            await trio.sleep(0.01)
        else:
            self.wrong.append(f"{in_flight} operations in flight at the end")

    @staticmethod
    def statistics() -> Any:
        """The ring's."""
        return trio.lowlevel.current_statistics().io_statistics


@contextlib.contextmanager
def storm() -> Any:
    """A signal every millisecond, for this process."""
    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def descriptors() -> int:
    """How many this process has open."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def memory() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def phase(seconds: float, seed: int) -> Load:
    """One run."""
    print(f"soak: {seconds:.0f} s of full load, seed {seed}", file=sys.stderr, flush=True)
    load = Load(seconds, seed)
    with storm():
        trio_uring.run(load.main, io_backend=trio_uring.UringBackend(sq_entries=16, cq_entries=32))
    return load


def main() -> None:
    """See the module."""
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    faulthandler.dump_traceback_later(float(os.environ.get("SOAK_PATIENCE", seconds * 3 + 60)), exit=True)
    # Trio keeps its worker thread for a while, and its descriptors are those of the first run.
    trio_uring.run(trio.sleep, 0, io_backend="uring")
    before = descriptors()
    first = phase(seconds * 0.3, seed)
    size = memory()
    second = phase(seconds * 0.7, seed + 1)
    wrong = first.wrong + second.wrong
    grown = memory() - size
    if grown > MEMORY_MAY_GROW:
        wrong.append(f"memory grew by {grown} bytes from the first phase to the end of the second")
    if descriptors() != before:
        wrong.append(f"{descriptors()} descriptors, {before} at the start")
    from trio_uring._ring import ring as _ring

    if _ring._leaked:
        wrong.append("a ring leaked its memory")
    threads = [thread.name for thread in threading.enumerate() if "Trio" not in thread.name][1:]
    if threads:
        wrong.append(f"threads: {threads}")
    done = first.done + second.done
    print(json.dumps({"seed": seed, "grown": grown, "done": done, "wrong": wrong[:10]}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
