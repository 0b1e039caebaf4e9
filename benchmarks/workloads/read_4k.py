"""Reads of 4 KiB at random places of a file that is in the page cache, through trio.open_file.

Trio has no positional read: on a file object it is a seek and a read. The contender trio-threads does the
same job in one hop to a worker thread (os.pread), which is the least that Trio's threads can take; targets
are held against it.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import trio

from benchmarks.model import Case, Stage, Target, Workload

BLOCK = 4096
_BLOCKS = 4096

WORKLOAD = Workload(
    name="read_4k",
    title="positional reads of 4 KiB from the page cache",
    job="read_4k",
    cases=(
        Case(
            label="1",
            title="1 task",
            tasks=1,
            targets=(Target(metric="rate", at_least=12.0, of="trio-threads"),),
        ),
        Case(
            label="32",
            title="32 tasks",
            tasks=32,
            targets=(
                Target(metric="rate", at_least=10.0, of="trio-threads"),
                Target(metric="cpu_us", at_most=10.0),
            ),
        ),
    ),
)


@contextmanager
def file_of_blocks() -> Iterator[IO[bytes]]:
    """A file in the page cache whose every block begins with its offset, so that a read can be checked."""
    with tempfile.NamedTemporaryFile() as file:
        for place in range(0, _BLOCKS * BLOCK, BLOCK):
            file.write(place.to_bytes(8, "little").ljust(BLOCK, b"."))
        file.flush()
        yield file


def offsets(seed: int) -> Iterator[int]:
    """Offsets of blocks, the same for every contender."""
    source = random.Random(seed)
    places = [source.randrange(_BLOCKS) * BLOCK for _ in range(4096)]
    while True:
        yield from places


def check(place: int, data: bytes) -> None:
    """RuntimeError unless `data` is the block at offset `place`."""
    if len(data) != BLOCK or int.from_bytes(data[:8], "little") != place:
        raise RuntimeError(f"the read at {place} brought {len(data)} bytes of another place")


async def _read(path: str, stage: Stage, seed: int) -> None:
    places = offsets(seed)
    async with await trio.open_file(path, "rb", buffering=0) as file:
        for _ in stage.laps():
            place = next(places)
            await file.seek(place)
            check(place, await file.read(BLOCK))


async def main(stage: Stage) -> None:
    with file_of_blocks() as file:
        async with trio.open_nursery() as nursery:
            for seed in range(stage.tasks):
                nursery.start_soon(_read, file.name, stage, seed)
