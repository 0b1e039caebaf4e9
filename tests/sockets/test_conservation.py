"""Conservation of bytes under cancellation (invariants 1 to 3; F1, F7, F10, F11).

What one side was told it sent is what the other side received and what is left in the socket, byte for byte and in order,
however many of the calls on both sides are cancelled. Around every buffer that the kernel may write lie canaries, and
each one is poisoned as soon as its call is over, so that a late write shows; each buffer that was sent is overwritten
as soon as its call is over, so that a late read shows.

Knows Trio's public interface; the same on epoll shows that the tests themselves are right.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from socket_tools import PAIRS, Backend, empty, run, trio_pair

pytestmark = pytest.mark.usefixtures("descriptors_flat")

SMALL = 4608  # bytes of buffer on each side, so that senders block
CALLS = 1500  # on each side of one connection

# A period that no size of a call or of a buffer divides: data of another place does not pass for the right one.
PERIOD = 65521
TABLE = random.Random(3).randbytes(PERIOD) * 7


def stream(start: int, size: int) -> bytes:
    """The bytes at a place of an endless stream that both sides know."""
    start %= PERIOD
    return TABLE[start : start + size]


async def interrupted(chance: random.Random, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Make a call that may be cancelled after some time, or after some turns of the scheduler; None if it was."""
    how = chance.randrange(4)
    with trio.CancelScope() as scope:
        if how == 0:
            return await call(*args)
        if how == 1:
            scope.deadline = trio.current_time() + chance.choice((0, 1e-6, 2e-5, 1e-4, 1e-3)) * chance.random()
            return await call(*args)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_after, scope, chance.randrange(6))
            result = await call(*args)
            nursery.cancel_scope.cancel()
        return result
    return None


async def cancel_after(scope: trio.CancelScope, turns: int) -> None:
    """Cancel after some turns of the scheduler."""
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


class Poisoned:
    """Memory that calls have finished with, which nobody may write to any more."""

    def __init__(self) -> None:
        self.buffers: list[bytearray] = []

    def add(self, buffer: bytearray) -> None:
        """It must stay as it is from now on. It can be resized, so it is not pinned."""
        buffer.append(0)
        buffer[:] = b"\xdd" * len(buffer)
        self.buffers.append(buffer)
        if len(self.buffers) == 200:
            self.check(self.buffers[:100])
            del self.buffers[:100]

    def check(self, buffers: list[bytearray]) -> None:
        """It has."""
        assert all(buffer.count(b"\xdd") == len(buffer) for buffer in buffers)


class Sender:
    """Sends the stream, from memory that it overwrites at once."""

    def __init__(self, sock: trio.socket.SocketType, seed: int) -> None:
        self.sock = sock
        self.chance = random.Random(seed)
        self.told = 0  # bytes that its calls said they sent
        self.seen: Counter[str] = Counter()
        self.done = False

    async def run(self) -> None:
        for _ in range(CALLS):
            size = self.chance.choice((1, 10, 1000, 5000, 20000))
            data = stream(self.told, size)
            method = self.chance.choice(("plain", "mutable", "view", "sendmsg"))
            sent = await getattr(self, method)(data)
            self.told += sent or 0
            self.seen["cancelled" if sent is None else "whole" if sent == size else "part"] += 1
            if self.chance.random() < 0.3:  # so that the receiver waits, too
                for _ in range(8):
                    await trio.lowlevel.checkpoint()
        self.done = True
        self.sock.shutdown(trio.socket.SHUT_WR)  # for a receiver that has everything and waits for more

    async def plain(self, data: bytes) -> Any:
        return await interrupted(self.chance, self.sock.send, data)

    async def mutable(self, data: bytes) -> Any:
        memory = bytearray(data)
        sent = await interrupted(self.chance, self.sock.send, memory)
        memory[:] = b"\xee" * len(memory)
        memory += b"more"
        return sent

    async def view(self, data: bytes) -> Any:
        memory = bytearray(b"\xcc" * 8 + data + b"\xcc" * 8)
        with memoryview(memory) as whole, whole[8:-8] as view:
            sent = await interrupted(self.chance, self.sock.send, view)
            whole[:] = b"\xee" * len(whole)
        memory += b"more"
        return sent

    async def sendmsg(self, data: bytes) -> Any:
        memory = [bytearray(data[:7]), bytearray(data[7:])]
        sent = await interrupted(self.chance, self.sock.sendmsg, memory)
        for each in memory:
            each[:] = b"\xee" * len(each)
            each += b"more"
        return sent


class Receiver:
    """Receives the stream and compares."""

    def __init__(self, sock: trio.socket.SocketType, seed: int) -> None:
        self.sock = sock
        self.chance = random.Random(seed)
        self.got = 0
        self.seen: Counter[str] = Counter()
        self.poisoned = Poisoned()

    def take(self, data: bytes) -> None:
        """The next bytes of the stream."""
        assert data == stream(self.got, len(data))
        self.got += len(data)

    async def run(self, sender: Sender) -> None:
        while not (sender.done and self.got == sender.told):
            size = self.chance.choice((1, 10, 1000, 5000, 70000))
            method = self.chance.choice(("recv", "recvfrom", "recv_into", "recvfrom_into", "recvmsg", "recvmsg_into"))
            before = self.got
            if method.endswith("into"):
                received = await self.into(method, size)
            else:
                received = await interrupted(self.chance, getattr(self.sock, method), size)
                if received is not None:
                    self.take(received if method == "recv" else received[0])
            self.seen["cancelled" if received is None else "received"] += 1
            if received is not None and self.got == before:
                assert sender.done
                break
            if sender.done and received is None:
                # Whatever is left is there to be received without waiting, or was never sent.
                self.take(empty(self.sock))
                assert self.got == sender.told
        self.poisoned.check(self.poisoned.buffers)

    async def into(self, method: str, size: int) -> Any:
        """Receive into the middle of something larger, or into two such."""
        count = 2 if method == "recvmsg_into" else 1
        memory = [bytearray(b"\xcc" * (size + 32)) for _ in range(count)]
        views = [memoryview(each)[16:-16] for each in memory]
        result = await interrupted(
            self.chance, getattr(self.sock, method), views if count == 2 else views[0]
        )  # fmt: skip
        received = result[0] if isinstance(result, tuple) else result
        left = received or 0
        for each, view in zip(memory, views, strict=True):
            here = min(left, size)
            self.take(bytes(view[:here]))
            left -= here
            # Before, behind, and what was not received: untouched.
            assert each[:16] == b"\xcc" * 16
            assert each[16 + here :] == b"\xcc" * (size - here + 16)
            view.release()
            self.poisoned.add(each)
        return received


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("seed", [1, 2])
def test_bytes_told_are_bytes_received(backend: Backend, kind: str, seed: int) -> None:
    async def main() -> None:
        with trio_pair(kind, SMALL) as (a, b):
            sender, receiver = Sender(a, seed), Receiver(b, seed + 100)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receiver.run, sender)
                nursery.start_soon(sender.run)
            assert receiver.got == sender.told
            assert empty(b) == b""
            # Not a check that cannot fail: all of it happened.
            for seen in sender.seen, receiver.seen:
                assert len(seen) >= 2
                assert min(seen.values()) >= 20, seen
            assert sender.told > 100_000

    run(backend, main)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_cancelled_send_all_has_sent_a_prefix(backend: Backend, kind: str) -> None:
    """Trio's contract: how long it is nobody knows, but it is one. One that returned has sent everything."""
    chance = random.Random(5)
    seen: Counter[bool] = Counter()

    async def once() -> None:
        size = chance.choice((1000, 20_000, 200_000))
        data = stream(chance.randrange(PERIOD), size)
        memory = bytearray(data)
        received = bytearray()

        async def send(stream: trio.SocketStream) -> bool:
            await stream.send_all(memory)
            return True

        with trio_pair(kind, SMALL) as (a, b):
            left, right = trio.SocketStream(a), trio.SocketStream(b)

            async def drain() -> None:
                while True:
                    some = await interrupted(chance, right.receive_some, chance.choice((100, 10_000, None)))
                    if some == b"":
                        return
                    received.extend(some or b"")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain)
                completed = await interrupted(chance, send, left)
                memory[:] = b"\xee" * size
                memory.append(0)
                await left.send_eof()
        assert received == data[: len(received)]
        if completed:
            assert len(received) == size
        seen[bool(completed)] += 1

    async def main() -> None:
        for _ in range(150):
            await once()
        assert min(seen[True], seen[False]) >= 20, seen

    run(backend, main)
