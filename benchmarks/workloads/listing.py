"""anyio.Path.iterdir with is_dir of each, and rglob, over a thousand entries."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio

from benchmarks.files import DATA
from benchmarks.model import Case, Stage, Target, Workload

ENTRIES = 1000
TITLES = {"is_dir": "iterdir, and is_dir of each", "iterdir": "iterdir", "rglob": "rglob"}

WORKLOAD = Workload(
    name="listing",
    title="an entry of a directory, by anyio.Path",
    job="listing",
    cases=tuple(
        Case(
            label=label,
            title=title,
            block=number,
            lap=ENTRIES,
            quick=label == "is_dir",
            count_calls=False,
            targets=(Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),),
        )
        for number, (label, title) in enumerate(TITLES.items())
    ),
)


async def main(stage: Stage) -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA) as name:
        for number in range(ENTRIES):
            Path(name, f"{number}").touch()  # noqa: ASYNC240 - nothing is measured yet
        directory = anyio.Path(name)
        for _ in stage.laps():
            found = 0
            async for path in directory.rglob("*") if stage.block == 2 else directory.iterdir():
                found += 1
                if stage.block == 0 and await path.is_dir():
                    raise RuntimeError(f"{path} is no directory")
            if found != ENTRIES:
                raise RuntimeError(f"{found} entries of {ENTRIES}")
