"""A web server's files: Starlette's StaticFiles under Hypercorn's trio worker, fetched by wrk over 16 connections.

Neither is ours. Of what a request takes, most is theirs: HTTP in Python, and one call in a worker thread, in which
StaticFiles looks the path up. What the ring can take over is the rest: opening, reading and closing the file, each a
thread on epoll, and the socket. Two cases say what is theirs: "no_file" has the same answer without any file, and "in_place" has
StaticFiles do all it does with the file at once, which stops the loop for it, but costs the least that there is.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from benchmarks.model import Case, Load, Stage, Target, Workload
from benchmarks.workloads.hypercorn_json import serve

SIZES = {"1k": 1024, "16k": 16 * 1024, "64k": 64 * 1024, "256k": 256 * 1024, "1m": 1024 * 1024}


def _case(label: str, size: int, rate: float) -> Case:
    return Case(
        label=label,
        title=f"a file of {size // 1024} KiB",
        load=Load(connections=16, size=size, page=f"/files/{label}"),
        quick=label == "1k",
        count_calls=False,  # wrk cannot be told how many requests to make
        targets=(Target(metric="rate", at_least=rate, of="trio-epoll"),),
    )


WORKLOAD = Workload(
    name="static_files",
    title="Starlette's StaticFiles under Hypercorn",
    job="static_files",
    cases=(
        Case(
            label="no_file",
            title="1 KiB from memory",
            load=Load(connections=16, size=1024, page="/no_file"),
            quick=False,
            count_calls=False,
        ),
        Case(
            label="in_place",
            title="a file of 1 KiB, in place",
            load=Load(connections=16, size=1024, page="/in_place/1k"),
            quick=False,
            count_calls=False,
        ),
        _case("1k", SIZES["1k"], 2.0),
        _case("16k", SIZES["16k"], 2.0),
        _case("64k", SIZES["64k"], 2.0),
        _case("256k", SIZES["256k"], 1.0),
        _case("1m", SIZES["1m"], 1.0),
    ),
)


async def main(stage: Stage) -> None:
    # Not needed by the other workloads, so not loaded with this module.
    starlette: Any = importlib.import_module("starlette.applications")
    responses: Any = importlib.import_module("starlette.responses")
    routing: Any = importlib.import_module("starlette.routing")
    files: Any = importlib.import_module("starlette.staticfiles")

    async def no_file(_request: object) -> Any:
        return responses.Response(bytes(SIZES["1k"]))

    class AtOnce:
        """A file whose calls are made in place."""

        def __init__(self, path: Any) -> None:
            self._file = open(path, "rb")  # noqa: SIM115

        async def read(self, size: int) -> bytes:
            return self._file.read(size)

        def close(self) -> None:
            self._file.close()

    class InPlaceResponse(responses.FileResponse):  # type: ignore[misc]
        @contextlib.asynccontextmanager
        async def _open_file(self) -> AsyncIterator[AtOnce]:
            with contextlib.closing(AtOnce(self.path)) as file:
                yield file

    class InPlace(files.StaticFiles):  # type: ignore[misc]
        async def get_response(self, path: str, scope: Any) -> Any:
            full_path, status = self.lookup_path(path)
            return InPlaceResponse(full_path, stat_result=status)

    with tempfile.TemporaryDirectory() as directory:
        for label, size in SIZES.items():
            Path(directory, label).write_bytes(bytes(size))  # noqa: ASYNC240 - nothing is measured yet
        app = starlette.Starlette(
            routes=[
                routing.Mount("/files", files.StaticFiles(directory=directory)),
                routing.Mount("/in_place", InPlace(directory=directory)),
                routing.Route("/no_file", no_file),
            ]
        )
        await serve(app, stage)
