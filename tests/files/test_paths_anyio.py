"""anyio.Path on the ring against anyio.Path on epoll, its own code: results, errors, what is left on the disk, no thread.

Knows AnyIO's public interface, and the name through which its methods reach a thread.
"""

from __future__ import annotations

import inspect
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio._core._fileio
import pytest
import trio
from path_tools import CALLS, Call, Twins, failure, inside, names_for, outcome, tree

import trio_uring
from trio_uring._entry.seams import PATH_METHODS


def run(main: Callable[..., Any], *args: Any, io_backend: str = "uring") -> Any:
    """`anyio.run` on Trio, on the ring."""
    return anyio.run(main, *args, backend="trio", backend_options={"io_backend": io_backend})


async def made(call: Call, name: str) -> object:
    """What AnyIO does."""
    try:
        result = await getattr(anyio.Path(name), call.method)(*call.args, **call.kwargs)
    except Exception as error:
        return failure(error)
    if isinstance(result, anyio.Path):
        return anyio.Path, str(result)
    if isinstance(result, os.stat_result):  # of another file than in the other tree
        return result.st_mode, result.st_size
    return outcome(result)


@pytest.mark.parametrize("method", PATH_METHODS)
def test_does_what_anyio_does_on_epoll(method: str, tmp_path: pathlib.Path) -> None:
    """Result, error with its names, and what is on the disk afterwards, for every kind of name and of arguments."""
    calls = [call for call in (*CALLS, Call("stat"), Call("lstat")) if call.method == method]
    calls += [Call(method, tuple(map(anyio.Path, call.args))) for call in calls if "missing/new" in call.args]

    async def main(top: pathlib.Path) -> list[object]:
        found: list[object] = []
        twins = Twins(top)
        for call in calls:
            for name in names_for(call):
                with inside(twins.first):
                    found.append((call, name, await made(call, name), after := tree()))
                if after != twins.built:
                    twins.renew()
        return found

    for top in "epoll", "ring":
        (tmp_path / top).mkdir()
    expected = run(main, tmp_path / "epoll", io_backend="epoll")
    for ours, theirs in zip(run(main, tmp_path / "ring"), expected, strict=True):
        assert ours == theirs


class Limiter:
    """Counts the threads that AnyIO's own methods ask for."""

    def __init__(self) -> None:
        self.asked = 0


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Limiter:
    """Counts the threads that AnyIO's own methods ask for."""
    trio_uring.run(trio.lowlevel.checkpoint, io_backend="uring")  # what is in place stays in place
    found = Limiter()
    module: Any = anyio._core._fileio
    original = module.to_thread.run_sync

    async def run_sync(*args: Any, **kwargs: Any) -> Any:
        found.asked += 1
        return await original(*args, **kwargs)

    monkeypatch.setattr(module.to_thread, "run_sync", run_sync)
    return found


def test_no_thread_has_a_part(tmp_path: pathlib.Path, threads: Limiter) -> None:
    """Every served method; with a limiter as well, which limits threads, and is kept by what a rename answers."""
    running = threading.active_count()

    async def main() -> None:
        for limiter in None, anyio.CapacityLimiter(1):
            options = {"limiter": limiter} if hasattr(anyio.Path, "limiter") else {}
            top = anyio.Path(tmp_path, **options)
            await (top / "a" / "b").mkdir(parents=True)
            file = top / "file"
            await file.touch()
            assert await file.write_text("text") == 4
            assert await file.read_bytes() == b"text"
            assert (await file.stat()).st_size == (await file.lstat()).st_size == 4
            assert [await file.is_file(), await file.is_dir(), await file.exists()] == [True, False, True]
            moved = await file.rename(top / "moved")
            assert moved == top / "moved"
            assert moved.__class__ is anyio.Path
            assert getattr(moved, "limiter", None) is (limiter if options else None)
            assert (await moved.replace(str(file))) == file
            await moved.symlink_to(file)
            await (top / "hard").hardlink_to(file)
            assert await moved.samefile(top / "hard")
            for path in file, moved, top / "hard":
                await path.unlink()
            await moved.unlink(missing_ok=True)
            await (top / "a" / "b").rmdir()
            await (top / "a").rmdir()

    run(main)
    assert not threads.asked
    assert threading.active_count() <= running  # one that idled may have gone


def test_asyncio_is_untouched(tmp_path: pathlib.Path, threads: Limiter) -> None:
    """AnyIO on asyncio, after a run on the ring."""

    async def main() -> None:
        path = anyio.Path(tmp_path / "file")
        await path.write_bytes(b"data")
        assert await path.read_bytes() == b"data"

    anyio.run(main, backend="asyncio")
    assert threads.asked == 2


def test_a_subclass_stays_one(tmp_path: pathlib.Path) -> None:
    """Its own methods go first, and what a rename answers is of it."""

    class Mine(anyio.Path):
        async def exists(self, *, follow_symlinks: bool = True) -> bool:
            return True

    async def main() -> None:
        assert await Mine("no such file").exists()
        await Mine(tmp_path / "file").touch()
        assert isinstance(await Mine(tmp_path / "file").rename(tmp_path / "other"), Mine)

    run(main)


@pytest.mark.parametrize("name", PATH_METHODS)
def test_the_method_looks_like_anyios(name: str) -> None:
    """Name, signature and kind."""
    trio_uring.run(trio.lowlevel.checkpoint, io_backend="uring")
    method = getattr(anyio.Path, name)
    own = inspect.unwrap(method)
    assert own is not method
    assert inspect.iscoroutinefunction(method)
    assert (method.__name__, method.__qualname__) == (name, f"Path.{name}")
    assert inspect.signature(method) == inspect.signature(own)


@pytest.mark.parametrize("cls", [trio.Path, anyio.Path], ids=["trio", "anyio"])
def test_what_stays_in_threads_is_listed(cls: type) -> None:
    """docs/files.md names every method that is served, or that is not."""
    page = pathlib.Path(__file__).parents[2].joinpath("docs", "files.md").read_text("utf-8")
    served, _, threads = page.partition("## What stays in threads")
    methods = {
        name
        for name in dir(cls)
        if not name.startswith("_")
        and (inspect.iscoroutinefunction(getattr(cls, name)) or inspect.isasyncgenfunction(getattr(cls, name)))
    }
    for name in methods - {"open"}:
        assert f"`{name}`" in (served if name in PATH_METHODS else threads), name
    assert set(PATH_METHODS) <= methods
