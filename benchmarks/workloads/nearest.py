"""Exact nearest neighbours over a file of vectors (docs/howto/vectors.md): 1 GB, 256 queries, about a thousand records each."""

from __future__ import annotations

from benchmarks.model import Case, Stage, Workload
from benchmarks.vectors import COLD, Search

WORKLOAD = Workload(
    name="nearest",
    title="exact nearest neighbours on disk, one record",
    job="nearest",
    cases=(
        Case(label="cold", title="cold cache", tasks=8, block=COLD, count_calls=False, quick=False),
        Case(label="warm", title="warm cache", tasks=8, count_calls=False, quick=False),
    ),
)


async def main(stage: Stage) -> None:
    search = Search(stage)
    search.begin()
    search.over(await search.nearest.by_read_many(search.fd, search.index, search.queries))
