"""What a request costs beside others: echo of 1 KiB, from one connection to ten thousand."""

from __future__ import annotations

from benchmarks.model import Case, Load, Workload
from benchmarks.workloads.echo_stream_1k import main

__all__ = ["WORKLOAD", "main"]

WORKLOAD = Workload(
    name="connections",
    title="echo of 1 KiB over SocketStream",
    job="echo",
    axis="busy connections",
    cases=tuple(
        Case(
            label=str(number),
            title=f"{number:,} connections",
            load=Load(connections=number, size=1024),
            at=number,
            quick=False,
            count_calls=False,
        )
        for number in (1, 10, 100, 1000, 10_000)
    ),
)
