"""`trio.run(..., io_backend=)` and `trio.lowlevel.start_guest_run(..., io_backend=)`, in one process."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from loopback import descriptors, main, used

import trio_uring
from trio_uring import UringBackend, UringUnavailableError

# Type checkers read Trio's own source, which has no io_backend; for them there is trio_uring.run.
trio_run: Any = trio.run
trio_start_guest_run: Any = trio.lowlevel.start_guest_run


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIO_IO_BACKEND", raising=False)
    monkeypatch.delenv("TRIO_URING_OPTIONS", raising=False)


async def backend() -> object:
    return used()["backend"]


def guest_run(async_fn: Callable[..., Any], *args: object, **options: Any) -> Any:
    """Runs a guest to its end on a host loop that is a queue of callbacks."""
    callbacks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    results: list[outcome.Outcome[Any]] = []
    trio_start_guest_run(
        async_fn, *args, run_sync_soon_threadsafe=callbacks.put, done_callback=results.append, **options
    )
    while not results:
        callbacks.get(timeout=200)()
    return results[0].unwrap()


both = pytest.mark.parametrize("run", [trio_run, guest_run], ids=["run", "guest"])


def test_it_is_one_function_under_all_its_names() -> None:
    cores: list[Any] = [trio._core, trio._core._run]
    assert trio.run is cores[0].run is cores[1].run is trio_uring.run
    assert trio.lowlevel.start_guest_run is trio._core._run.start_guest_run is trio_uring.start_guest_run


@both
@pytest.mark.parametrize(
    ("io_backend", "name", "rings", "eventpolls"),
    [
        ("uring", "uring", 1, 0),
        ("auto", "uring", 1, 0),
        (UringBackend(sq_entries=2, cq_entries=4), "uring", 1, 0),
        ("epoll", "epoll", 0, 1),
        (None, "epoll", 0, 1),
    ],
)
def test_what_each_value_brings(run: Any, io_backend: object, name: str, rings: int, eventpolls: int) -> None:
    before = descriptors()
    found = run(main, io_backend=io_backend)
    assert found == {
        "backend": name,
        "rings": rings + before.count("anon_inode:[io_uring]"),
        "eventpolls": eventpolls + before.count("anon_inode:[eventpoll]"),
    }


@both
def test_a_call_wins_over_the_environment(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_IO_BACKEND", "uring")
    assert [run(backend), run(backend, io_backend="epoll")] == ["uring", "epoll"]
    monkeypatch.setenv("TRIO_IO_BACKEND", "epoll")
    assert [run(backend), run(backend, io_backend="uring")] == ["epoll", "uring"]


def test_the_sizes_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sizes() -> tuple[int, int]:
        manager: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
        return manager.ring.sq_entries, manager.ring.cq_entries

    assert trio_run(sizes, io_backend=UringBackend(sq_entries=4, cq_entries=32)) == (4, 32)
    monkeypatch.setenv("TRIO_URING_OPTIONS", "sq_entries=2,cq_entries=4")
    assert trio_run(sizes, io_backend="uring") == (2, 4)
    assert trio_run(sizes, io_backend=UringBackend(sq_entries=8)) == (8, 64)


@both
@pytest.mark.parametrize("io_backend", ["iocp", "", True, 3])
def test_another_value_is_refused_and_leaves_nothing(run: Any, io_backend: object) -> None:
    before = descriptors()
    with pytest.raises(ValueError, match=r"^io_backend must be 'uring', 'auto', 'epoll' or a trio_uring\.Ur"):
        run(backend, io_backend=io_backend)
    assert descriptors() == before
    assert run(backend) == "epoll"


@both
def test_a_bad_variable_is_refused_and_leaves_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setenv("TRIO_IO_BACKEND", "ring")
    with pytest.raises(ValueError, match=r"^TRIO_IO_BACKEND must be 'uring', 'auto', 'epoll', not 'ring'$"):
        run(backend)
    monkeypatch.setenv("TRIO_IO_BACKEND", "uring")
    monkeypatch.setenv("TRIO_URING_OPTIONS", "sq_entries=2,turbo=1")
    with pytest.raises(ValueError, match=r"^TRIO_URING_OPTIONS: unknown option 'turbo=1'; the options are sq_"):
        run(backend)
    assert descriptors() == before
    monkeypatch.delenv("TRIO_URING_OPTIONS")
    assert run(backend) == "uring"


def test_a_run_inside_a_run_is_refused_and_chooses_nothing_for_the_next() -> None:
    async def outer() -> None:
        with pytest.raises(RuntimeError, match="from inside"):
            trio_run(backend, io_backend="uring")

    trio_run(outer)
    # A run that does not pass through our function would take up a choice that was left behind.
    assert inspect.unwrap(trio.run)(backend) == "epoll"


def test_a_name_from_before_the_import_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    trios_own: Any = inspect.unwrap(trio.run)
    assert trios_own is not trio.run
    assert trios_own(backend) == "epoll"
    monkeypatch.setenv("TRIO_IO_BACKEND", "uring")
    assert trios_own(backend) == "uring"
    with pytest.raises(TypeError, match="io_backend"):
        trios_own(backend, io_backend="epoll")


def test_each_thread_has_its_own_choice() -> None:
    wanted = ["uring", "epoll", "auto", "uring", "epoll"]
    found: list[object] = [None] * len(wanted)
    together = threading.Barrier(len(wanted), timeout=200)

    async def meet() -> object:
        await trio.to_thread.run_sync(together.wait)
        return used()["backend"]

    def one(index: int) -> None:
        together.wait()
        found[index] = trio_run(meet, io_backend=wanted[index])

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["uring", "epoll", "uring", "uring", "epoll"]


def test_other_arguments_pass_through() -> None:
    class Started(trio.abc.Instrument):
        count = 0

        def before_run(self) -> None:
            self.count += 1

    async def sleep(*args: int) -> tuple[float, tuple[int, ...]]:
        start = trio.current_time()
        await trio.sleep(1000)
        return trio.current_time() - start, args

    instrument = Started()
    clock = trio.testing.MockClock(autojump_threshold=0)
    found = trio_run(sleep, 1, 2, io_backend="uring", clock=clock, instruments=[instrument])
    assert found == (1000, (1, 2))
    assert instrument.count == 1
    assert trio_run(async_fn=backend, io_backend="uring") == "uring"
    with pytest.raises(TypeError, match=r"^run\(\) got an unexpected keyword argument 'colour'$"):
        trio_run(backend, colour="red")
    with pytest.raises(TypeError, match=r"run\(\) missing 1 required positional argument: 'async_fn'$"):
        trio_run(io_backend="uring")


@both
def test_without_io_uring(run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(self: object, options: UringBackend) -> None:
        raise UringUnavailableError(1, "a test forbids it", "end the test")

    monkeypatch.setattr("trio_uring._loop.manager.UringIOManager.__init__", refuse)
    caplog.set_level(logging.DEBUG, "trio_uring")
    with pytest.raises(UringUnavailableError, match=r"a test forbids it.*end the test") as caught:
        run(backend, io_backend="uring")
    assert (caught.value.errno, caught.value.cause, caught.value.remedy) == (
        1,
        "a test forbids it",
        "end the test",
    )
    assert caplog.records == []
    assert run(backend, io_backend="auto") == "epoll"
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("trio_uring", logging.INFO)
    assert "a test forbids it" in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("function", [trio.run, trio.lowlevel.start_guest_run])
def test_it_looks_like_the_function_that_it_replaces(function: Any) -> None:
    trios_own = inspect.unwrap(function)
    parameters = list(inspect.signature(function).parameters.values())
    assert parameters[:-1] == list(inspect.signature(trios_own, follow_wrapped=False).parameters.values())
    assert str(parameters[-1]).startswith("io_backend: ")
    assert (parameters[-1].kind, parameters[-1].default) == (inspect.Parameter.KEYWORD_ONLY, None)
    assert (function.__name__, function.__qualname__, function.__module__) == (
        trios_own.__name__,
        trios_own.__qualname__,
        trios_own.__module__,
    )
    said = inspect.getdoc(function) or ""
    assert said.startswith((inspect.getdoc(trios_own) or "").rstrip())
    assert "io_backend" in function.__doc__
    assert inspect.getsource(function) == inspect.getsource(trios_own)
    assert pickle.loads(pickle.dumps(function)) is function


async def fail() -> None:
    raise LookupError


def entries(run: Any, **options: Any) -> list[tuple[str, str]]:
    """The traceback of a failed run, as (file, function)."""
    with pytest.raises(LookupError) as caught:
        run(fail, **options)
    return [(entry.filename, entry.name) for entry in traceback.extract_tb(caught.value.__traceback__)]


@pytest.mark.parametrize("io_backend", ["uring", "epoll", None])
def test_tracebacks_show_trio_and_not_us(io_backend: str | None) -> None:
    expected = entries(inspect.unwrap(trio.run))
    if sys.version_info < (3, 11):
        expected.insert(1, (trio_uring._entry.seams.__file__, "run"))
    assert entries(trio_run, io_backend=io_backend) == expected


@pytest.mark.parametrize("io_backend", ["uring", "epoll"])
def test_ctrl_c_while_the_run_is_being_set_up(io_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("SIGINT was held back")

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr("trio._core._run.TheIOManager", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trio_run(backend, io_backend=io_backend)
    assert descriptors() == before
    assert inspect.unwrap(trio.run)(backend) == "epoll"


@pytest.mark.parametrize("io_backend", ["uring", "epoll"])
@pytest.mark.parametrize("at_checkpoints_only", [False, True])
def test_ctrl_c_in_the_run(io_backend: str, at_checkpoints_only: bool) -> None:
    reached = []

    async def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append("the next line")
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio_run(
            interrupted,
            io_backend=io_backend,
            restrict_keyboard_interrupt_to_checkpoints=at_checkpoints_only,
        )
    assert reached == (["the next line"] if at_checkpoints_only else [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_reaches_a_run_that_waits() -> None:
    async def interrupt() -> None:
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(os.kill, os.getpid(), signal.SIGINT)

    async def wait() -> None:
        trio.lowlevel.spawn_system_task(interrupt)
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio_run(wait, io_backend="uring")


def test_type_checkers_know_the_keyword() -> None:
    """Checked by mypy, where an unneeded `type: ignore` is an error."""
    name: object = trio_uring.run(backend, io_backend="auto")
    assert name == "uring"
    with pytest.raises(ValueError, match="io_backend"):
        trio_uring.run(backend, io_backend="iocp")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="colour"):
        trio_uring.run(backend, colour="red")  # type: ignore[call-arg]
