"""The methods of trio.Path, each by itself, on the file system of the checkout."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from benchmarks.files import BLOCK, DATA
from benchmarks.model import Case, Stage, Target, Workload

TITLES = {
    "stat": "stat",
    "missing": "exists of what is not there",
    "rename": "rename",
    "touch": "touch of a new file, and unlink",
    "symlink": "symlink_to, and unlink",
    "mkdir": "mkdir, and rmdir",
    "write": "write_bytes of 4 KiB over an old file",
}

WORKLOAD = Workload(
    name="paths",
    title="methods of trio.Path",
    job="paths",
    cases=tuple(
        Case(
            label=label,
            title=title,
            block=number,
            quick=label in ("stat", "mkdir"),
            count_calls=False,
            targets=(Target(metric="cpu_us", at_most=1.0, of="trio-epoll"),),
        )
        for number, (label, title) in enumerate(TITLES.items())
    ),
)


def methods(directory: trio.Path) -> dict[str, Callable[[], Awaitable[object]]]:
    old, new, missing = directory / "old", directory / "new", directory / "missing"
    names = [old, new]
    data = b"x" * BLOCK

    async def rename() -> None:
        await names[0].rename(names[1])
        names.reverse()

    async def touch() -> None:
        await missing.touch()
        await missing.unlink()

    async def symlink() -> None:
        await missing.symlink_to(old)
        await missing.unlink()

    async def mkdir() -> None:
        await missing.mkdir()
        await missing.rmdir()

    async def write() -> None:
        await old.write_bytes(data)

    return dict(zip(TITLES, (old.stat, missing.exists, rename, touch, symlink, mkdir, write), strict=True))


async def main(stage: Stage) -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA) as name:
        Path(name, "old").write_bytes(b"x" * BLOCK)  # noqa: ASYNC240 - nothing is measured yet
        method = list(methods(trio.Path(name)).values())[stage.block]
        for _ in stage.laps():
            await method()
