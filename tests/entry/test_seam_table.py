"""The table of replaced names: what it replaces, what it checks, and what a Trio that does not fit brings."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from interpreter import answer
from loopback import used
from trio._core._io_epoll import EpollIOManager

from trio_uring._entry import seams as _seams
from trio_uring._loop.manager import UringIOManager

trios_run: Any = trio._core._run


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIO_IO_BACKEND", raising=False)
    monkeypatch.delenv("TRIO_URING_OPTIONS", raising=False)


async def backend() -> object:
    return used()["backend"]


def test_the_installed_trio_fits() -> None:
    assert _seams.mismatches() == []


@pytest.mark.parametrize("seam", [*_seams.SEAMS, *_seams.OPERATION_SEAMS], ids=lambda seam: seam.name)
def test_each_row_is_in_place_everywhere(seam: _seams.Seam) -> None:
    assert _run_on("uring") == "uring"

    def found(module: str) -> Any:
        value: Any = importlib.import_module(module)
        for name in seam.name.split("."):
            value = getattr(value, name)
        return value

    home, *others = (found(module) for module in seam.modules)
    assert all(other is home for other in others)
    home = getattr(home, "fget", home)
    code = home.__call__.__func__.__code__ if seam.name == "TheIOManager" else home.__code__
    assert Path(code.co_filename).is_relative_to(Path(_seams.__file__).parents[1])
    assert seam.why


def test_every_module_of_trio_that_holds_a_replaced_function_is_in_the_table() -> None:
    for seam in _seams.SEAMS:
        stale = inspect.unwrap(getattr(importlib.import_module(seam.modules[0]), seam.name))
        if inspect.isfunction(stale):
            for name in [name for name in sys.modules if name.partition(".")[0] == "trio"]:
                holds = vars(importlib.import_module(name)).values()
                assert not any(value is stale for value in holds), f"{name} holds Trio's own {seam.name}"


# Each breaks one thing that a row relies on, and leaves Trio working.
MISFITS = {
    "the manager is made elsewhere": """
        own = r.setup_runner
        r.setup_runner = lambda *arguments: own(*arguments)
        """,
    "a new method": """
        r.TheIOManager.wait_for_something = lambda self, fd: None
        """,
    "another parameter": """
        own = r.TheIOManager.get_events
        r.TheIOManager.get_events = lambda self, timeout, hint=None: own(self, timeout)
        """,
    "layers below that cannot be imported": """
        sys.modules["trio_uring._loop.manager"] = None
        """,
    "an operation that is called otherwise": """
        own = trio.SocketStream.send_all
        trio.SocketStream.send_all = lambda self, data: own(self, data)
        """,
    "no class": """
        own = r.TheIOManager
        r.TheIOManager = lambda: own()
        """,
    "a run that is set up elsewhere": """
        own = trio.run
        r.run = trio._core.run = trio.run = lambda async_fn, *args, **more: own(async_fn, *args, **more)
        """,
    "a run with a keyword of its own": """
        own = trio.run
        def run(async_fn, *args, io_backend=None, **more):
            return own(async_fn, *args, **more)
        r.run = trio._core.run = trio.run = run
        """,
    "no guest mode": """
        del r.start_guest_run, trio._core.start_guest_run
        trio.lowlevel.start_guest_run = None
        """,
}

PROGRAM = """
import json, logging, os, sys
import trio
import trio._core._run as r
from loopback import main
exec(sys.argv[1])
import trio_uring
from trio_uring._entry.seams import mismatches
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("trio_uring").addHandler(Keep())
logging.getLogger("trio_uring").setLevel("INFO")
found = {"mismatches": mismatches()}
for backend in ["", "epoll", "auto", "uring"]:
    os.environ["TRIO_IO_BACKEND"] = backend
    try:
        found[backend] = trio.run(main)["backend"]
    except trio_uring.UringUnavailableError as error:
        found[backend] = [error.cause, error.remedy]
print(json.dumps({**found, "lines": lines}))
"""


@pytest.mark.parametrize("breakage", MISFITS.values(), ids=MISFITS.keys())
def test_a_trio_that_does_not_fit(breakage: str) -> None:
    found = answer("-c", PROGRAM, inspect.cleandoc(breakage))
    assert found["mismatches"], "the breakage went unnoticed"
    assert (found[""], found["epoll"], found["auto"]) == ("epoll", "epoll", "epoll")
    cause, remedy = found["uring"]
    assert all(mismatch in cause for mismatch in found["mismatches"])
    assert f"Trio {trio.__version__} does not fit" in cause
    assert "0.31 to 0.35" in remedy
    (line,) = found["lines"]
    assert cause in line


def test_a_class_put_in_the_place_of_the_manager_is_used_and_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    class Mine(EpollIOManager):
        def close(self) -> None:
            made.append(self)
            super().close()

    with monkeypatch.context() as patch:
        patch.setattr(trio._core._run, "TheIOManager", Mine)
        assert trio.run(backend) == "epoll"
        assert _run_on("uring") == "epoll"
    assert len(made) == 2
    assert _run_on("uring") == "uring"
    assert trio.run(backend) == "epoll"
    assert len(made) == 2


def _run_on(io_backend: str) -> object:
    run: Any = trio.run
    return run(backend, io_backend=io_backend)


@pytest.mark.parametrize(
    ("variable", "used_class"),
    [("epoll", EpollIOManager), ("uring", UringIOManager), ("auto", UringIOManager)],
)
def test_reaching_through_the_name_reaches_the_class_that_runs_use(
    variable: str, used_class: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_IO_BACKEND", variable)
    manager = trios_run.TheIOManager
    assert manager.get_events is used_class.get_events  # type: ignore[attr-defined]
    own = manager.get_events
    calls = []

    def get_events(self: Any, timeout: float) -> Any:
        calls.append(timeout)
        return own(self, timeout)

    with monkeypatch.context() as patch:
        patch.setattr("trio._core._run.TheIOManager.get_events", get_events)
        trio.run(backend)
    assert calls
    assert used_class.get_events is own  # type: ignore[attr-defined]
    monkeypatch.setattr(manager, "colour", "red", raising=False)
    assert used_class.colour == "red"  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert not hasattr(used_class, "colour")


def test_managers_are_instances_of_the_name() -> None:
    async def manager() -> object:
        return trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager

    run: Any = trio.run
    for io_backend in ("uring", "epoll"):
        assert isinstance(run(manager, io_backend=io_backend), trios_run.TheIOManager)
    assert not isinstance(object(), trios_run.TheIOManager)
