"""One connection, one request at a time: how long a single echo takes when nothing else goes on."""

from __future__ import annotations

from benchmarks.model import Case, Load, Target, Workload
from benchmarks.workloads.echo_stream_1k import main

__all__ = ["WORKLOAD", "main"]

WORKLOAD = Workload(
    name="latency",
    title="echo of 1 KiB over SocketStream",
    job="echo",
    cases=(
        Case(
            title="1 connection",
            load=Load(connections=1, size=1024),
            targets=(Target(metric="p50_us", at_most=1.0, of="trio-epoll"),),
        ),
    ),
)
