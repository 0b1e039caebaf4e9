"""Sequential reads through trio.open_file: 1 GiB from the page cache, from the beginning again at the end."""

from __future__ import annotations

import trio

from benchmarks.files import large_file
from benchmarks.model import Case, Stage, Target, Workload

SIZE = 1 << 30
SHORT_SIZE = 64 << 20  # with short windows, because making the file would take longer than measuring

TARGETS = (
    Target(metric="rate", at_least=1.0, of="trio-epoll"),
    Target(metric="threads", at_most=0),
)
CASES = (
    Case(label="4k", title="blocks of 4 KiB", block=4 << 10, quick=False, targets=TARGETS),
    Case(label="64k", title="blocks of 64 KiB", block=64 << 10, targets=TARGETS),
    Case(label="1m", title="blocks of 1 MiB", block=1 << 20, quick=False, targets=TARGETS),
)

WORKLOAD = Workload(
    name="sequential_read",
    title="sequential reads of 1 GiB",
    job="sequential_read",
    cases=CASES,
)


async def main(stage: Stage) -> None:
    async with await trio.open_file(large_file(SHORT_SIZE if stage.short else SIZE), "rb") as file:
        for _ in stage.laps():
            if not await file.read(stage.block):
                await file.seek(0)
