"""1,000 different files of 4 KiB, in the page cache, one after the other: trio.Path.read_bytes."""

from __future__ import annotations

import itertools

import trio

from benchmarks.files import BLOCK, small_files
from benchmarks.model import Case, Stage, Target, Workload

WORKLOAD = Workload(
    name="open_path",
    title="1,000 files of 4 KiB from the page cache",
    job="open_files",
    cases=(
        Case(
            title="trio.Path.read_bytes",
            targets=(
                Target(metric="rate", at_least=6.0, of="trio-epoll"),
                Target(metric="threads", at_most=0),
            ),
        ),
    ),
)


async def main(stage: Stage) -> None:
    paths = itertools.cycle([trio.Path(path) for path in small_files()])
    for _ in stage.laps():
        if len(await next(paths).read_bytes()) != BLOCK:
            raise RuntimeError("a file was not read to its end")
