"""What shards run in the tests: functions that a spawned process can import. Knows Trio and the public interface."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import trio

from trio_uring import Shard


def mark(shard: Shard, marks: str, text: str) -> None:
    """Leave a file that says how far a shard is."""
    with open(os.path.join(marks, str(shard.index)), "w") as file:
        file.write(text)


async def about(shard: Shard) -> dict[str, Any]:
    """Who and where it is."""
    statistics = trio.lowlevel.current_statistics().io_statistics
    return {
        "index": shard.index,
        "count": shard.count,
        "cpus": sorted(os.sched_getaffinity(0)),
        "process": os.getpid(),
        "thread": threading.get_ident(),
        "backend": statistics.backend,
    }


async def ring_of_messages(shard: Shard, rounds: int) -> list[Any]:
    """Each sends to the next, and takes what the one before it sends; shard 0 all there is, until the others have ended."""
    taken = []

    async def take() -> None:
        async for message in shard:
            taken.append(message)
            if shard.index and len(taken) == rounds:
                break

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        for number in range(rounds):
            await shard.send((shard.index + 1) % shard.count, (shard.index, number))
    return taken


async def flood(shard: Shard, messages: int, size: int) -> int:
    """Shard 0 takes nothing until the others have had to wait; then it takes all."""
    if shard.index:
        sent = 0
        with trio.move_on_after(0.3):
            while sent < messages:
                await shard.send(0, bytes(size))
                sent += 1
        assert sent < messages, "nobody had to wait"
        for _ in range(sent, messages):
            await shard.send(0, bytes(size))
        return sent
    await trio.sleep(0.6)
    taken = 0
    async for message in shard:
        assert len(message) == size
        taken += 1
    return taken


async def fail(shard: Shard, which: int, marks: str) -> None:
    """One raises; the others wait for ever, and leave a mark when they are cancelled."""
    if shard.index == which:
        while len(os.listdir(marks)) < shard.count - 1:  # noqa: ASYNC110
            await trio.sleep(0.01)
        raise LookupError(f"shard {which} has lost it")
    await wait_for_ever(shard, marks)


async def wait_for_ever(shard: Shard, marks: str) -> None:
    """It leaves a mark as it begins and another when it is cancelled."""
    mark(shard, marks, "waiting")
    try:
        await trio.sleep_forever()
    finally:
        mark(shard, marks, "cancelled")


async def die(shard: Shard, marks: str) -> None:
    """One is killed."""
    if shard.index == 1:
        while len(os.listdir(marks)) < shard.count - 1:  # noqa: ASYNC110
            await trio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    await wait_for_ever(shard, marks)


async def leave(shard: Shard) -> None:
    """One ends its process by itself."""
    if shard.index == 0:
        os._exit(3)
    await trio.sleep_forever()


class Unpicklable(Exception):
    """It takes two arguments, and remembers one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


async def fail_unpicklable(shard: Shard) -> None:
    """An exception that no pickle can make again."""
    raise Unpicklable("what", "ever")


async def answer_unpicklable(shard: Shard) -> object:
    """A result that no pickle takes."""
    return threading.Lock()


async def serve(shard: Shard, port: int, marks: str) -> int:
    """Echo on a port that all share, until the client of shard 0 is content; how many connections came here."""
    served = 0
    listener = await shard.listen_tcp(port)

    async def echo(stream: trio.SocketStream) -> None:
        nonlocal served
        async with stream:
            while data := await stream.receive_some(100):
                await stream.send_all(data)
        served += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, echo, [listener])
        mark(shard, marks, "listening")
        if shard.index == 0:
            while len(os.listdir(marks)) < shard.count:  # noqa: ASYNC110
                await trio.sleep(0.01)
            for number in range(64):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(b"%d" % number)
                    assert await stream.receive_some(100) == b"%d" % number
            for other in range(1, shard.count):
                await shard.send(other, "enough")
        else:
            async for _ in shard:
                break
        nursery.cancel_scope.cancel()
    return served


async def bad_sends(shard: Shard) -> list[str]:
    """What is refused."""
    said = []
    for index in (-1, shard.count, shard.index):
        try:
            await shard.send(index, None)
        except (IndexError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said
