"""A Redis client that is written for AnyIO (coredis): commands, a pipeline, publish and subscribe, a blocking pop.

The argument is the port of a Redis server on 127.0.0.1. It knows nothing of trio-uring.
"""

from __future__ import annotations

import json
import sys

import anyio
import coredis
from served import used


async def main(port: int) -> dict[str, object]:
    client = coredis.Redis(host="127.0.0.1", port=port, decode_responses=True)
    async with client:
        await client.flushdb()
        assert await client.set("one", "1")
        assert await client.get("one") == "1"
        large = "x" * 2_000_000
        await client.set("large", large)
        assert await client.get("large") == large

        async def add(number: int) -> None:
            for _ in range(20):
                await client.incrby("sum", number)

        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(add, number)
        assert await client.get("sum") == str(20 * sum(range(10)))

        async with client.pipeline(transaction=True) as pipeline:
            first = pipeline.set("a", "1")
            second = pipeline.incr("a")
        assert (await first, await second) == (True, 2)

        popped: list[object] = []

        async def pop() -> None:
            popped.append(await client.blpop(["queue"], timeout=30))

        async with anyio.create_task_group() as group:
            group.start_soon(pop)
            await client.rpush("queue", ["value"])
        assert popped == [["queue", "value"]]

        with anyio.move_on_after(0.05) as scope:
            await client.blpop(["nothing"], timeout=30)
        assert scope.cancelled_caught
        assert await client.get("one") == "1"

        async with client.pubsub(channels=["news"]) as subscription:
            await client.publish("news", "hello")
            async for message in subscription:
                if message["type"] == "message":
                    assert message["data"] == "hello"
                    break
    return used()


if __name__ == "__main__":
    print(json.dumps(anyio.run(main, int(sys.argv[1]), backend="trio")))
