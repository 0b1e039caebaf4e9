"""A thousand cached files of 4 KiB, whole: trio_uring.read_files, and trio.Path.read_bytes from 32 tasks."""

from __future__ import annotations

from collections.abc import Iterator

import trio

import trio_uring
from benchmarks.files import BLOCK, FILES, small_files
from benchmarks.model import Case, Stage, Target, Workload

TASKS = 32

WORKLOAD = Workload(
    name="whole_files",
    title="a thousand cached files of 4 KiB",
    job="whole_files",
    cases=(
        Case(
            label="read_files",
            title="by read_files",
            block=0,
            lap=FILES,
            count_calls=False,
            targets=(Target(metric="cpu_us", at_most=1.67, of="c-floor"),),
        ),
        Case(label="read_bytes", title=f"by Path.read_bytes from {TASKS} tasks", block=1, lap=FILES, count_calls=False),
    ),
)


async def main(stage: Stage) -> None:
    paths = small_files()

    async def read_bytes(left: Iterator[str]) -> None:
        for path in left:
            if len(await trio.Path(path).read_bytes()) != BLOCK:
                raise RuntimeError(f"{path} came short")

    for _ in stage.laps():
        if stage.block == 0:
            for contents in await trio_uring.read_files(paths):
                if isinstance(contents, OSError):
                    raise contents
                if len(contents) != BLOCK:
                    raise RuntimeError("a file came short")
        else:
            left = iter(paths)
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(read_bytes, left)
