"""anyio.Path.iterdir, glob and rglob against pathlib: the same paths, in the same order, with the same errors, in few trips."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import anyio
import anyio._core._fileio as anyio_files
import pytest
import trio
import trio.testing
from conftest import Backend
from tools import run

from trio_uring._files import listing


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    for i in range(1500):
        (tmp_path / f"e{i}").touch()
    for i in range(12):
        (tmp_path / f"d{i}").mkdir()
        (tmp_path / f"d{i}" / "below").touch()
    (tmp_path / "link").symlink_to("d0")
    (tmp_path / os.fsdecode(b"\xff")).touch()
    return tmp_path


def test_what_pathlib_finds_and_in_its_order(backend: Backend, tree: pathlib.Path) -> None:
    expected = [list(tree.iterdir()), *map(list, map(tree.glob, ("e1*", "none*"))), list(tree.rglob("b*w"))]

    async def main() -> None:
        path = anyio.Path(tree)
        for found, wanted in zip(
            (path.iterdir(), path.glob("e1*"), path.glob("none*"), path.rglob("b*w")), expected, strict=True
        ):
            paths = [entry async for entry in found]
            assert {type(entry) for entry in paths} <= {anyio.Path}
            assert [str(entry) for entry in paths] == [str(entry) for entry in wanted]

    run(backend, main)


@pytest.mark.parametrize("name", ["e1", "none", "e1/none"])
def test_what_cannot_be_listed_is_the_same_error(backend: Backend, tree: pathlib.Path, name: str) -> None:
    with pytest.raises(OSError, match="directory") as expected:
        list((tree / name).iterdir())

    async def main() -> None:
        with pytest.raises(OSError, match="directory") as found:
            [entry async for entry in anyio.Path(tree / name).iterdir()]
        assert (type(found.value), found.value.errno, str(found.value.filename)) == (
            type(expected.value),
            expected.value.errno,
            str(expected.value.filename),
        )

    run(backend, main)


def iterator_of(paths: Iterator[Any]) -> Any:
    return anyio_files._PathIterator(paths, None, anyio.Path)


def test_an_error_comes_after_what_was_found_before_it(backend: Backend) -> None:
    def broken() -> Iterator[pathlib.Path]:
        for i in range(20):
            yield pathlib.Path(str(i))
        raise PermissionError("no further")

    async def main() -> None:
        iterator, found = iterator_of(broken()), []
        for _ in range(20):
            found.append(await iterator.__anext__())
        with pytest.raises(PermissionError, match="no further"):
            await iterator.__anext__()
        assert [str(path) for path in found] == [str(i) for i in range(20)]
        for _ in range(2):  # as a generator that has raised
            with pytest.raises(StopAsyncIteration):
                await iterator.__anext__()

    run(backend, main)


def test_many_paths_in_one_trip_and_few_ahead(
    ring: Backend, tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_SECONDS", 60.0)
    trips = taken = 0
    fetch = listing._Ahead.fetch

    def counted(ahead: listing._Ahead, iterator: Iterator[Any]) -> None:
        nonlocal trips
        trips += 1
        fetch(ahead, iterator)

    monkeypatch.setattr(listing._Ahead, "fetch", counted)

    def tells() -> Iterator[pathlib.Path]:
        nonlocal taken
        for path in tree.iterdir():
            taken += 1
            yield path

    async def main() -> None:
        first = iterator_of(tells())
        await first.__anext__()
        assert taken == 8
        count = 1
        async for _ in first:
            count += 1
        assert count == taken == 1514
        assert 3 <= trips <= 8

    run(ring, main)


def test_a_slow_source_brings_each_path_when_it_is_found(ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_SECONDS", -1.0)  # as if each took longer
    taken: list[int] = []

    def slow() -> Iterator[pathlib.Path]:
        for i in range(5):
            taken.append(i)
            yield pathlib.Path(str(i))

    async def main() -> None:
        i = 0
        async for _ in iterator_of(slow()):
            i += 1
            assert len(taken) == i

    run(ring, main)


def test_kinds_are_those_of_the_time_of_the_question(backend: Backend, tree: pathlib.Path) -> None:
    """A folder that has become a file since it was listed, and a file that has gone."""

    async def main() -> None:
        listed = {path.name: path async for path in anyio.Path(tree).iterdir()}
        assert await listed["d5"].is_dir()
        (tree / "d5" / "below").unlink()
        (tree / "d5").rmdir()
        (tree / "d5").touch()
        (tree / "e5").unlink()
        assert not await listed["d5"].is_dir()
        assert await listed["d5"].is_file()
        assert not await listed["e5"].exists()
        assert await listed["link"].is_dir()
        assert await listed["link"].is_symlink()

    run(backend, main)


def test_a_cancel_point_always_and_others_run_meanwhile(backend: Backend, tree: pathlib.Path) -> None:
    paths = tree.iterdir()

    async def main() -> None:
        iterator = iterator_of(paths)
        with trio.testing.assert_checkpoints():
            await iterator.__anext__()
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await iterator.__anext__()
            assert scope.cancelled_caught
        rest = [path async for path in iterator]
        assert len(rest) == 1513  # what was found before a cancel comes after it

    run(backend, main)
