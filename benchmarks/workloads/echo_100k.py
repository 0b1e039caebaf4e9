"""Echo of 100 KiB messages over trio.SocketStream: each takes more than one receive."""

from __future__ import annotations

from benchmarks.model import Case, Load, Target, Workload
from benchmarks.workloads.echo_stream_1k import main

__all__ = ["WORKLOAD", "main"]

WORKLOAD = Workload(
    name="echo_100k",
    title="echo of 100 KiB over SocketStream",
    job="echo",
    cases=(
        Case(
            title="50 connections",
            load=Load(connections=50, size=100 * 1024),
            quick=False,
            targets=(
                Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),
                Target(metric="rate", at_least=1.0, of="trio-epoll"),
            ),
        ),
    ),
)
