"""The contenders: each is one entry of `CONTENDERS`, with a few lines that run a workload its way.

Knows how each library is started and, for those that cannot run a Trio workload, how it does the workload's
job. Knows nothing of measuring. Libraries are imported where they are used: a process loads the one that it
plays.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from benchmarks.model import CANDIDATE, REFERENCE, Contender, Play, Stage

CHUNK = 65536
"""Bytes asked for in one receive, by every contender and workload that can choose."""

BACKLOG = 4096

# Trio: any workload, on the backend that is asked for. What the run says it runs on is checked, so that no
# figure is ever attributed to the wrong backend.


def _run_trio(expected: str, options: Mapping[str, Any], main: Any, *args: Any) -> None:
    import trio

    async def checked() -> None:
        backend = trio.lowlevel.current_statistics().io_statistics.backend
        if backend != expected:
            raise RuntimeError(f"the run is on backend {backend!r}, not on {expected!r}")
        await main(*args)

    run: Any = trio.run
    run(checked, **options)


async def _nothing() -> None:
    """The main function of a probe: it is enough that the run begins."""


def _epoll_play(workload: str, stage: Stage) -> None:
    _run_trio("epoll", {}, importlib.import_module(f"benchmarks.workloads.{workload}").main, stage)


def _epoll_probe() -> None:
    _run_trio("epoll", {}, _nothing)


def _uring_options(uring: Mapping[str, Any]) -> dict[str, Any]:
    backend: Any = importlib.import_module("trio_uring")
    return {"io_backend": backend.UringBackend(**uring) if uring else "uring"}


def _uring_play(uring: Mapping[str, Any], workload: str, stage: Stage) -> None:
    main = importlib.import_module(f"benchmarks.workloads.{workload}").main
    _run_trio("uring", _uring_options(uring), main, stage)


def _uring_probe(uring: Mapping[str, Any]) -> None:
    _run_trio("uring", _uring_options(uring), _nothing)


def _uring(name: str, title: str, *, by_default: bool = True, **uring: Any) -> Contender:
    """trio-uring with these options of `UringBackend`."""
    return Contender(
        name=name,
        title=title,
        distributions=("trio", "trio-uring"),
        probe=partial(_uring_probe, uring),
        any_workload=partial(_uring_play, uring),
        by_default=by_default,
    )


# asyncio and uvloop: the job "echo", as their users write it.


async def _stream_echo(stage: Stage) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=BACKLOG)
    stage.serving(server.sockets[0].getsockname()[1])
    await server.serve_forever()


class _EchoProtocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not derive from it

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def _protocol_echo(stage: Stage) -> None:
    server = await asyncio.get_running_loop().create_server(_EchoProtocol, "127.0.0.1", 0, backlog=BACKLOG)
    stage.serving(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _asyncio_streams(workload: str, stage: Stage) -> None:
    asyncio.run(_stream_echo(stage))


def _asyncio_probe() -> None:
    asyncio.run(_nothing())


def _uvloop_run(main: Any, *args: Any) -> None:
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main(*args))
    finally:
        loop.close()


def _uvloop_streams(workload: str, stage: Stage) -> None:
    _uvloop_run(_stream_echo, stage)


def _uvloop_protocol(workload: str, stage: Stage) -> None:
    _uvloop_run(_protocol_echo, stage)


def _uvloop_probe() -> None:
    _uvloop_run(_nothing)


# Trio's worker threads, as one would write it today for the job "read_4k": one hop to a thread for each read.


async def _thread_reads(stage: Stage) -> None:
    import trio

    from benchmarks.workloads.read_4k import BLOCK, check, file_of_blocks, offsets

    async def read(fd: int, seed: int) -> None:
        places = offsets(seed)
        for _ in stage.laps():
            place = next(places)
            check(place, await trio.to_thread.run_sync(os.pread, fd, BLOCK, place))

    with file_of_blocks() as file:
        async with trio.open_nursery() as nursery:
            for seed in range(stage.tasks):
                nursery.start_soon(read, file.fileno(), seed)


def _trio_threads(workload: str, stage: Stage) -> None:
    _run_trio("epoll", {}, _thread_reads, stage)


def _jobs(**jobs: Play) -> Mapping[str, Play]:
    return jobs


CONTENDERS: tuple[Contender, ...] = (
    Contender(
        name=REFERENCE,
        title="Trio on epoll",
        distributions=("trio",),
        probe=_epoll_probe,
        any_workload=_epoll_play,
    ),
    _uring(CANDIDATE, "trio-uring"),
    _uring("trio-uring-nospec", "trio-uring, speculate=False", by_default=False, speculate=False),
    _uring("trio-uring-spec", "trio-uring, speculate=True", by_default=False, speculate=True),
    Contender(
        name="asyncio-streams",
        title="asyncio streams",
        probe=_asyncio_probe,
        jobs=_jobs(echo=_asyncio_streams),
    ),
    Contender(
        name="uvloop-streams",
        title="uvloop streams",
        distributions=("uvloop",),
        probe=_uvloop_probe,
        jobs=_jobs(echo=_uvloop_streams),
    ),
    Contender(
        name="uvloop-protocol",
        title="uvloop protocol",
        distributions=("uvloop",),
        probe=_uvloop_probe,
        jobs=_jobs(echo=_uvloop_protocol),
    ),
    Contender(
        name="trio-threads",
        title="Trio, os.pread in threads",
        distributions=("trio",),
        probe=_epoll_probe,
        jobs=_jobs(read_4k=_trio_threads),
    ),
)


def contender_named(name: str) -> Contender:
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise ValueError(f"no contender {name!r}: there are {', '.join(c.name for c in CONTENDERS)}")
