"""1,000 different files of 4 KiB, in the page cache, one after the other: anyio.open_file, read, close."""

from __future__ import annotations

import itertools

import anyio

from benchmarks.files import BLOCK, small_files
from benchmarks.model import Case, Stage, Target, Workload

WORKLOAD = Workload(
    name="open_anyio",
    title="1,000 files of 4 KiB from the page cache",
    job="open_files",
    cases=(
        Case(
            title="anyio.open_file, read, close",
            quick=False,
            targets=(
                Target(metric="rate", at_least=6.0, of="trio-epoll"),
                Target(metric="threads", at_most=0),
            ),
        ),
    ),
)


async def main(stage: Stage) -> None:
    paths = itertools.cycle(small_files())
    for _ in stage.laps():
        async with await anyio.open_file(next(paths), "rb") as file:
            if len(await file.read()) != BLOCK:
                raise RuntimeError("a file was not read to its end")
