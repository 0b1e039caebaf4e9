"""Threads that read lists of blocks: what the workloads of the pool share.

Knows the pool and C's floor; knows nothing of the harness but its stage.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.files import BLOCK, DATA, cached, check, file_of_blocks, offsets
from benchmarks.model import Stage

COUNT = 64
LISTS = 64
WARM = 0.2

Round = Callable[[list[int]], None]
"""Reads one list of offsets."""


def floor() -> str:
    """pool_floor.c as a program, beside the data of the benchmarks."""
    source = Path(__file__).with_name("pool_floor.c")
    DATA.mkdir(parents=True, exist_ok=True)
    program = DATA / f"pool-floor-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if not program.exists():
        made = f"{program}.{os.getpid()}"
        command = [os.environ.get("CC", "cc"), "-O2", "-o", made, str(source), "-luring", "-lpthread"]
        subprocess.run(command, check=True)
        os.replace(made, program)
    return str(program)


def in_c(*options: str, seconds: float, threads: int = 8, count: int = COUNT) -> tuple[int, float, float]:
    """Blocks, seconds and CPU seconds of the floor."""
    words = [f"threads={threads}", f"count={count}", f"seconds={seconds}", *options]
    said = subprocess.run([floor(), str(cached(file_of_blocks())), *words], check=True, capture_output=True, text=True)
    blocks, wall, cpu = (float(word.partition("=")[2]) for word in said.stdout.split())
    return int(blocks), wall, cpu


def in_threads(
    make: Callable[[int], Round], seconds: float, threads: int = 8, count: int = COUNT
) -> tuple[int, float, float]:
    """The same of threads of this process, each with a `Round` of its own, made for a descriptor.

    A thread's rate is from the end of one of its lists to the end of another, so that long lists make no error.
    """
    ready, begun, over = threading.Barrier(threads + 1), threading.Event(), threading.Event()
    rates: list[float] = []
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            places = offsets(number + 1)
            lists = [[next(places) for _ in range(count)] for _ in range(LISTS)]
            read = make(number)
            ready.wait()
            turn = first = 0
            since = until = 0.0
            while True:
                read(lists[turn % LISTS])
                turn += 1
                if over.is_set():
                    break
                if begun.is_set():
                    until = time.monotonic()
                    if not since:
                        first, since = turn, until
            if until > since:
                rates.append((turn - 1 - first) * count / (until - since))
        except BaseException as error:
            failed.append(error)
            ready.abort()

    started = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    ready.wait()
    time.sleep(WARM)
    begun.set()
    wall, cpu = time.monotonic(), time.process_time()
    time.sleep(seconds)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    over.set()
    for thread in started:
        thread.join()
    if failed:
        raise failed[0]
    return round(sum(rates) * wall), wall, cpu


def by_prepared_list(pool: Any, fd: int) -> Callable[[int], Round]:
    """`read_many` of a ring that is borrowed for each list, the requests made before, as C's offsets are."""

    def make(_: int) -> Round:
        made: dict[int, list[tuple[int, int]]] = {}

        def read(places: list[int]) -> None:
            requests = made.get(id(places))
            if requests is None:
                requests = made[id(places)] = [(place, BLOCK) for place in places]
            with pool.acquire() as ring:
                check(places[-1], ring.read_many(fd, requests)[-1])

        return read

    return make


def into_buffers(pool: Any, fd: int) -> Callable[[int], Round]:
    """`readinto_many` into the rows of one buffer, used again, at addresses that O_DIRECT takes."""
    import trio_uring

    def make(_: int) -> Round:
        made: dict[int, list[tuple[int, memoryview]]] = {}
        rows: list[memoryview] = []
        whole: list[int] = []

        def read(places: list[int]) -> None:
            requests = made.get(id(places))
            fresh = requests is None
            if requests is None:
                if len(rows) < len(places):
                    room = trio_uring.aligned_buffer(len(places) * BLOCK)
                    rows[:] = [room[at : at + BLOCK] for at in range(0, len(room), BLOCK)]
                    whole[:] = [BLOCK] * len(places)
                requests = made[id(places)] = list(zip(places, rows, strict=False))
            with pool.acquire() as ring:
                if ring.readinto_many(fd, requests) != whole:
                    raise RuntimeError("a short read")
            if fresh:
                check(places[-1], bytes(rows[len(places) - 1]))

        return read

    return make


def by_preadv(fd: int) -> Callable[[int], Round]:
    """`os.preadv` into buffers that are used again, one call for each block."""

    def make(_: int) -> Round:
        buffers: list[list[bytearray]] = []

        def read(places: list[int]) -> None:
            while len(buffers) < len(places):
                buffers.append([bytearray(BLOCK)])
            for place, buffer in zip(places, buffers, strict=False):
                os.preadv(fd, buffer, place)
            check(places[-1], bytes(buffers[len(places) - 1][0]))

        return read

    return make


def play(
    stage: Stage,
    how: Callable[[Any, int], Callable[[int], Round]],
    flags: int = 0,
    count: int = COUNT,
    entries: int = COUNT,
) -> None:
    """One measurement of the pool."""
    import trio_uring

    path = file_of_blocks() if flags else cached(file_of_blocks())
    fd = os.open(path, os.O_RDONLY | flags)
    with trio_uring.RingPool(min(stage.tasks, 8), entries) as pool:
        tell(stage, *in_threads(how(pool, fd), stage.seconds, stage.tasks, count), count)
    os.close(fd)


def tell(stage: Stage, blocks: int, wall: float, cpu: float, count: int = COUNT) -> None:
    """What has been measured, a lap being a list."""
    lap = wall * stage.tasks * count / blocks * 1e6
    stage.measured(blocks, wall, cpu, lap, lap)
