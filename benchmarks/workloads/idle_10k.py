"""10,000 idle connections beside 50 busy ones: do the idle ones cost time, and how much memory each."""

from __future__ import annotations

from benchmarks.model import Case, Load, Target, Workload
from benchmarks.workloads.echo_stream_1k import main

__all__ = ["WORKLOAD", "main"]

WORKLOAD = Workload(
    name="idle_10k",
    title="echo of 1 KiB over SocketStream",
    job="echo",
    cases=(
        Case(
            title="50 connections beside 10,000 idle ones",
            load=Load(connections=50, size=1024, idle=10_000),
            quick=False,
            count_calls=False,  # the two phases of this load cannot be told apart from outside
            targets=(
                Target(metric="kept", at_least=0.9),
                Target(metric="idle_kib", at_most=1.0, of="trio-epoll"),
            ),
        ),
    ),
)
