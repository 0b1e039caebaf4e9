"""The contenders: each is one entry of `CONTENDERS`, with a few lines that run a workload its way.

Knows how each library is started and, for those that cannot run a Trio workload, how it does the workload's
job. Knows nothing of measuring. Libraries are imported where they are used: a process loads the one that it
plays.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from benchmarks import pool, vectors
from benchmarks.files import BLOCK, DATA, FILES, cached, check, file_of_blocks, offsets, small_files, text_file
from benchmarks.model import CANDIDATE, REFERENCE, Contender, Play, Stage

CHUNK = 65536
"""Bytes asked for in one receive, by every contender and workload that can choose."""

BACKLOG = 4096

BEFORE = "TRIO_URING_BEFORE"
PEERS = "PEERS_PYTHON"
"""Environment variables that name an interpreter: one that has another version of trio-uring, to compare with; and one that has
the other file libraries (turbofile and urio want CPython 3.12)."""

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


def _uring(name: str, title: str, *, by_default: bool = True, python: str = "", **uring: Any) -> Contender:
    """trio-uring with these options of `UringBackend`."""
    return Contender(
        name=name,
        title=title,
        distributions=("trio", "trio-uring"),
        probe=partial(_uring_probe, uring),
        any_workload=partial(_uring_play, uring),
        by_default=by_default,
        python=python,
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

    async def read(fd: int, seed: int) -> None:
        places = offsets(seed)
        for _ in stage.laps():
            place = next(places)
            check(place, await trio.to_thread.run_sync(os.pread, fd, BLOCK, place))

    fd = os.open(cached(file_of_blocks()), os.O_RDONLY)
    async with trio.open_nursery() as nursery:
        for seed in range(stage.tasks):
            nursery.start_soon(read, fd, seed)


def _trio_threads(workload: str, stage: Stage) -> None:
    _run_trio("epoll", {}, _thread_reads, stage)


# asyncio's ways to files: aiofiles is a pool of threads, aiofile is caio, which takes the kernel's own queues where it can.


async def _aiofiles_reads(stage: Stage) -> None:
    library: Any = importlib.import_module("aiofiles")

    async def read(seed: int) -> None:
        places = offsets(seed)
        async with library.open(path, "rb", buffering=0) as file:
            for _ in stage.laps():
                place = next(places)
                await file.seek(place)
                check(place, await file.read(BLOCK))

    path = cached(file_of_blocks())
    await asyncio.gather(*(read(seed) for seed in range(stage.tasks)))


async def _aiofiles_opens(stage: Stage) -> None:
    library: Any = importlib.import_module("aiofiles")
    paths = itertools.cycle(small_files())
    for _ in stage.laps():
        async with library.open(next(paths), "rb") as file:
            await file.read()


async def _aiofile_reads(stage: Stage) -> None:
    library: Any = importlib.import_module("aiofile")

    async def read(seed: int) -> None:
        places = offsets(seed)
        for _ in stage.laps():
            place = next(places)
            check(place, await file.read(BLOCK, place))

    async with library.AIOFile(str(cached(file_of_blocks())), "rb") as file:
        await asyncio.gather(*(read(seed) for seed in range(stage.tasks)))


async def _aiofile_opens(stage: Stage) -> None:
    library: Any = importlib.import_module("aiofile")
    paths = itertools.cycle(small_files())
    for _ in stage.laps():
        async with library.async_open(next(paths), "rb") as file:
            await file.read()


# turbofile and urio have the methods of aiofiles, over rings of their own.


async def _like_aiofiles_reads(library: Any, stage: Stage) -> None:
    async def read(seed: int) -> None:
        places = offsets(seed)
        async with library.open(path, "rb", **unbuffered) as file:
            for _ in stage.laps():
                place = next(places)
                await file.seek(place)
                check(place, await file.read(BLOCK))

    unbuffered = {"buffering": 0} if library.__name__ == "turbofile" else {}  # urio has no such option
    path = str(cached(file_of_blocks()))
    await asyncio.gather(*(read(seed) for seed in range(stage.tasks)))


async def _like_aiofiles_opens(library: Any, stage: Stage) -> None:
    paths = itertools.cycle(small_files())
    for _ in stage.laps():
        async with library.open(next(paths), "rb") as file:
            await file.read()


def _like_aiofiles(name: str) -> Contender:
    def play(main: Any, workload: str, stage: Stage) -> None:
        asyncio.run(main(importlib.import_module(name), stage))

    return Contender(
        name=name,
        title=name,
        distributions=(name,),
        probe=lambda: _imports(name),
        jobs=_jobs(read_4k=partial(play, _like_aiofiles_reads), open_files=partial(play, _like_aiofiles_opens)),
        python=PEERS,
    )


def _imports(name: str) -> None:
    importlib.import_module(name)


async def _asyncfiles_opens(stage: Stage) -> None:
    library: Any = importlib.import_module("asyncfiles")
    paths = itertools.cycle(small_files())
    for _ in stage.laps():
        async with library.open(next(paths), "rb") as file:
            await file.read()


def _asyncfiles_probe() -> None:
    importlib.import_module("asyncfiles")


def _asyncfiles(workload: str, stage: Stage) -> None:
    _uvloop_run(_asyncfiles_opens, stage)


def _aiofiles_probe() -> None:
    importlib.import_module("aiofiles")


def _aiofile_probe() -> None:
    importlib.import_module("aiofile")


def _in_asyncio(main: Callable[[Stage], Any]) -> Play:
    return lambda _workload, stage: asyncio.run(main(stage))


# No event loop at all: what the job costs by itself.


def _synchronous_lines(workload: str, stage: Stage) -> None:
    lines = importlib.import_module("benchmarks.workloads.text_lines").LINES
    path = text_file()
    laps = iter(stage.laps())
    next(laps)
    while True:
        with open(path, encoding="utf-8") as file:
            left = lines
            for _line in file:
                left -= 1
                if not left:
                    left = lines
                    if next(laps, "over") == "over":
                        return


# Programs: they measure themselves, for as long as the window of the others.


def _fio(workload: str, stage: Stage, *more: str) -> None:
    seconds = max(1, round(stage.seconds))  # it counts whole ones
    depth = stage.tasks if workload == "read_depth" else 32
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run(
        [
            *("fio", "--name=read", f"--filename={file_of_blocks()}", "--readonly", "--rw=randread", f"--bs={BLOCK}"),
            *("--direct=1", "--ioengine=io_uring", f"--iodepth={depth}", "--thread", "--output-format=json"),
            *("--time_based", f"--runtime={seconds}"),
            *more,
        ],
        check=True,
        capture_output=True,
    ).stdout
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    read = json.loads(said)["jobs"][0]["read"]
    spent = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
    percentile = read["clat_ns"]["percentile"]
    stage.measured(
        read["total_ios"], read["runtime"] / 1e3, spent, percentile["50.000000"] / 1e3, percentile["99.000000"] / 1e3
    )


def _fio_jobs(workload: str, stage: Stage) -> None:
    _fio(workload, stage, f"--numjobs={stage.tasks}", "--group_reporting")


def _fio_probe() -> None:
    if shutil.which("fio") is None:
        raise RuntimeError("fio is not installed")


def _floor(name: str = "floor.c") -> str:
    """That file as a program, in the cache of this checkout's build directory."""
    source = Path(__file__).with_name(name)
    DATA.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = DATA / f"{source.stem}-{mark}"
    if not program.exists():
        made = f"{program}.{os.getpid()}"
        command = [os.environ.get("CC", "cc"), "-O2", "-o", made, str(source), "-luring"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} does not compile: {done.stderr.strip().splitlines()[-1]}")
        os.replace(made, program)
    return str(program)


def _floor_reads(workload: str, stage: Stage) -> None:
    reads = importlib.import_module("benchmarks.workloads.read_many_cached")
    rounds = max(10, round(stage.seconds * 1000))
    command = [_floor(), str(cached(file_of_blocks())), "kept", f"depth={reads.DEPTH}", f"count={reads.BATCH}"]
    said = subprocess.run([*command, f"rounds={rounds}"], check=True, capture_output=True, text=True).stdout
    found = {name: float(value) for name, value in (word.split("=") for word in said.split())}
    cpu, wall = found["median_cpu_ns"] / 1e9, found["median_wall_ns"] / 1e9
    count = rounds * reads.BATCH
    lap_us = wall * reads.BATCH * 1e6
    stage.measured(count, count * wall, count * cpu, lap_us, lap_us)


def _floor_whole_files(workload: str, stage: Stage) -> None:
    rounds = max(10, round(stage.seconds * 100))
    with tempfile.NamedTemporaryFile("w") as names:
        names.writelines(f"{path}\n" for path in small_files())
        names.flush()
        command = [_floor("whole_files_floor.c"), names.name, str(rounds)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    cpu, wall = (float(word.partition("=")[2]) / 1e9 for word in said.split())
    count = rounds * FILES
    stage.measured(count, count * wall, count * cpu, wall * FILES * 1e6, wall * FILES * 1e6)


def _pool_floor(workload: str, stage: Stage, *more: str) -> None:
    """Of `pool_direct` as many lists as reads are in flight, which end before others begin."""
    if workload == "pool_direct":
        options, count = ["direct"], importlib.import_module("benchmarks.workloads.pool_direct").DEPTH
    else:
        options, count = [] if stage.block else ["kept"], pool.COUNT
    found = pool.in_c(*options, *more, seconds=stage.seconds, threads=stage.tasks, count=count)
    pool.tell(stage, *found, count)


def _pool_floor_moving(workload: str, stage: Stage) -> None:
    _pool_floor(workload, stage, "coop")


def _preadv_in_threads(workload: str, stage: Stage) -> None:
    fd = os.open(cached(file_of_blocks()), os.O_RDONLY)
    pool.tell(stage, *pool.in_threads(pool.by_preadv(fd), stage.seconds, stage.tasks))


def _floor_probe() -> None:
    _floor()
    pool.floor()
    _floor("whole_files_floor.c")


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
    _uring("trio-uring-before", "trio-uring before", by_default=False, python=BEFORE),
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
        title="os.pread in threads",
        distributions=("trio",),
        probe=_epoll_probe,
        jobs=_jobs(read_4k=_trio_threads, pool_cached=_preadv_in_threads, nearest=vectors.play("pread")),
    ),
    Contender(
        name="pool",
        title="a pool in threads",
        distributions=("trio-uring",),
        probe=lambda: None,
        jobs=_jobs(nearest=vectors.play("pool")),
    ),
    Contender(
        name="mmap",
        title="mmap in threads",
        probe=lambda: None,
        jobs=_jobs(nearest=vectors.play("mmap")),
    ),
    Contender(
        name="aiofiles",
        title="aiofiles",
        distributions=("aiofiles",),
        probe=_aiofiles_probe,
        jobs=_jobs(read_4k=_in_asyncio(_aiofiles_reads), open_files=_in_asyncio(_aiofiles_opens)),
        python=PEERS,
    ),
    Contender(
        name="aiofile",
        title="aiofile on caio",
        distributions=("aiofile", "caio"),
        probe=_aiofile_probe,
        jobs=_jobs(read_4k=_in_asyncio(_aiofile_reads), open_files=_in_asyncio(_aiofile_opens)),
        python=PEERS,
    ),
    Contender(
        name="asyncfiles",
        title="py-asyncfiles on uvloop",
        distributions=("py-asyncfiles", "uvloop"),
        probe=_asyncfiles_probe,
        jobs=_jobs(open_files=_asyncfiles),
        python=PEERS,
    ),
    _like_aiofiles("turbofile"),
    _like_aiofiles("urio"),
    Contender(
        name="synchronous",
        title="a plain for loop",
        probe=lambda: None,
        jobs=_jobs(text_lines=_synchronous_lines),
    ),
    Contender(
        name="fio",
        title="fio, io_uring",
        probe=_fio_probe,
        jobs=_jobs(read_many_direct=_fio, read_depth=_fio, pool_direct=_fio_jobs),
    ),
    Contender(
        name="c-floor",
        title="C with liburing (floor.c)",
        probe=_floor_probe,
        jobs=_jobs(
            read_many_cached=_floor_reads,
            pool_cached=_pool_floor,
            pool_direct=_pool_floor,
            whole_files=_floor_whole_files,
        ),
    ),
    Contender(
        name="c-moving",
        title="C, rings that may move",
        probe=_floor_probe,
        jobs=_jobs(pool_cached=_pool_floor_moving, pool_direct=_pool_floor_moving),
        by_default=False,
    ),
)


def contender_named(name: str) -> Contender:
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise ValueError(f"no contender {name!r}: there are {', '.join(c.name for c in CONTENDERS)}")
