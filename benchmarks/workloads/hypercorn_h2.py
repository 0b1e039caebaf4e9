"""A small JSON answer by Hypercorn's trio worker over HTTP/2 without TLS, fetched by h2load, ten at once on each connection."""

from __future__ import annotations

from benchmarks.model import Case, Load, Stage, Target, Workload

from .hypercorn_json import BODY, answer, serve

WORKLOAD = Workload(
    name="hypercorn_h2",
    title="a JSON answer under Hypercorn over HTTP/2",
    job="hypercorn_h2",
    cases=(
        Case(
            title="10 connections, 10 streams",
            load=Load(connections=10, size=len(BODY), page="/json", streams=10),
            count_calls=False,  # h2load is not asked for the number that the harness counts in
            targets=(Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),),
        ),
    ),
)


async def main(stage: Stage) -> None:
    await serve(answer, stage)
