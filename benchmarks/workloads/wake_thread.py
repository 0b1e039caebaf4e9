"""A wake-up from another thread, there and back: the loop asks a thread through a queue, and the thread wakes the loop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import trio

from benchmarks.model import Case, Stage, Target, Workload

WORKLOAD = Workload(
    name="wake_thread",
    title="a wake-up from another thread, there and back",
    job="wake_thread",
    cases=(Case(title="one thread", targets=(Target(metric="p50_us", at_most=1.0, of="trio-epoll"),)),),
)


async def main(stage: Stage) -> None:
    token = trio.lowlevel.current_trio_token()
    asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def answer() -> None:
        while (wake := asked.get()) is not None:
            token.run_sync_soon(wake)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        for _ in stage.laps():
            event = trio.Event()
            asked.put(event.set)
            await event.wait()
    finally:
        asked.put(None)
        thread.join()
