"""Sequential writes through trio.open_file: 1 GiB, from the beginning again at the end."""

from __future__ import annotations

import tempfile

import trio

from benchmarks.files import DATA
from benchmarks.model import Stage, Workload
from benchmarks.workloads.sequential_read import CASES, SHORT_SIZE, SIZE

WORKLOAD = Workload(
    name="sequential_write",
    title="sequential writes of 1 GiB",
    job="sequential_write",
    cases=CASES,
)


async def main(stage: Stage) -> None:
    data = bytes(stage.block)
    size = SHORT_SIZE if stage.short else SIZE
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=DATA) as made:
        unnamed = await trio.open_file(made.name, "wb")  # and the name goes: nobody may be left to remove it at the end
    async with unnamed as file:
        written = 0
        for _ in stage.laps():
            await file.write(data)
            written += len(data)
            if written >= size:
                await file.seek(0)
                written = 0
