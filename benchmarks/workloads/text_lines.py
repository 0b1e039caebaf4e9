"""`async for line in file` over 100 MB of UTF-8, in the page cache. A lap is a thousand lines; the harness counts lines."""

from __future__ import annotations

import trio

from benchmarks.files import text_file
from benchmarks.model import Case, Stage, Target, Workload

LINES = 1000

WORKLOAD = Workload(
    name="text_lines",
    title="lines of a text file of 100 MB",
    job="text_lines",
    cases=(
        Case(
            title="async for",
            lap=LINES,
            count_calls=False,
            targets=(
                Target(metric="rate", at_least=50.0, of="trio-epoll"),
                Target(metric="rate", at_least=0.12, of="synchronous"),
                Target(metric="threads", at_most=0),
            ),
        ),
    ),
)


async def main(stage: Stage) -> None:
    path = text_file()
    laps = iter(stage.laps())
    next(laps)
    while True:
        async with await trio.open_file(path, encoding="utf-8") as file:
            left = LINES
            async for _line in file:
                left -= 1
                if not left:
                    left = LINES
                    if next(laps, "over") == "over":
                        return
