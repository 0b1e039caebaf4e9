"""`run_shards` and `shards`: N loops as one call, as processes and as threads, by the same tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shard_programs
import trio
from group_tools import ALLOWED, IO_CPU, LOOP_CPUS, PATIENCE, io_group

import trio_uring
from trio_uring import RemoteTraceback, ShardDiedError, run_shards

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

HERE = Path(__file__).parent


@pytest.fixture(params=["processes", "threads"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The spawned processes import the functions by name. And whatever a test starts is gone after it."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    yield
    assert sorted(os.sched_getaffinity(0)) == ALLOWED
    # multiprocessing keeps one process of its own.
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert all("resource_tracker" in Path(f"/proc/{pid}/cmdline").read_text() for pid in children)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_each_has_its_index_its_processor_and_its_ring(kind: Any) -> None:
    found = run_shards(shard_programs.about, shards=3, cpus=ALLOWED[:2], kind=kind, io_backend="uring")
    assert [each["index"] for each in found] == [0, 1, 2]
    assert {each["count"] for each in found} == {3}
    assert [each["cpus"] for each in found] == [[ALLOWED[0]], [ALLOWED[1]], [ALLOWED[0]]]
    assert {each["backend"] for each in found} == {"uring"}
    # A thread that is done may be the next shard's, too.
    assert len({each["process"] for each in found}) == (1 if kind == "threads" else 3)
    assert threading.get_ident() not in {each["thread"] for each in found if kind == "threads"}


def test_in_a_group(kind: Any) -> None:
    found = run_shards(shard_programs.about, shards=2, group=io_group(), kind=kind)
    assert [each["cpus"] for each in found] == [[min(LOOP_CPUS)], sorted(LOOP_CPUS)[1 % len(LOOP_CPUS) :][:1]]
    assert {each["backend"] for each in found} == {"uring"}


def test_messages_arrive_in_order_and_then_comes_the_end(kind: Any) -> None:
    found = run_shards(shard_programs.ring_of_messages, 200, shards=3, kind=kind)
    assert found == [[((index - 1) % 3, number) for number in range(200)] for index in range(3)]


def test_who_sends_more_than_is_taken_waits_and_nothing_is_lost(kind: Any) -> None:
    found = run_shards(shard_programs.flood, 300, 100_000, shards=2, kind=kind)
    assert found[0] == 300
    assert found[1] < 300


def test_bad_sends(kind: Any) -> None:
    (said,) = run_shards(shard_programs.bad_sends, shards=1, kind=kind)
    assert said == [
        "IndexError: there is no shard -1: there are 0 to 0",
        "IndexError: there is no shard 1: there are 0 to 0",
        "ValueError: shard 0 cannot send to itself",
    ]


def test_an_exception_cancels_the_others_and_comes_out_with_its_traceback(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run_shards(shard_programs.fail, 1, str(tmp_path), shards=3, kind=kind)
    (error,) = caught.value.exceptions
    assert isinstance(error, LookupError)
    assert str(error) == "shard 1 has lost it"
    if kind == "processes":
        assert isinstance(error.__cause__, RemoteTraceback)
        assert 'raise LookupError(f"shard {which} has lost it")' in str(error.__cause__)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "cancelled", "2": "cancelled"}


def test_a_shard_that_is_killed_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run_shards(shard_programs.die, str(tmp_path), shards=3, kind="processes")
    (error,) = caught.value.exceptions
    assert isinstance(error, ShardDiedError)
    assert (error.index, error.exitcode, str(error)) == (1, -9, "shard 1 was killed by SIGKILL")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "cancelled", "2": "cancelled"}


def test_a_process_that_leaves_by_itself() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run_shards(shard_programs.leave, shards=2, kind="processes")
    assert [str(error) for error in caught.value.exceptions] == [
        "shard 0 ended with exit code 3 before its function returned"
    ]


def test_what_cannot_be_pickled_is_told_all_the_same() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run_shards(shard_programs.fail_unpicklable, shards=1, kind="processes")
    (error,) = caught.value.exceptions
    assert str(error) == "the shard raised Unpicklable: what"
    assert "raise Unpicklable(" in str(error.__cause__)
    with pytest.raises(ExceptionGroup) as caught:
        run_shards(shard_programs.answer_unpicklable, shards=1, kind="processes")
    (error,) = caught.value.exceptions
    assert isinstance(error, TypeError)
    assert "what the shard's function returned cannot be pickled" in str(error)


def test_cancelling_the_caller_cancels_all(kind: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while len(os.listdir(tmp_path)) < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    async def run() -> None:
        await trio_uring.shards(shard_programs.wait_for_ever, str(tmp_path), shards=2, kind=kind)

    trio_uring.run(main, io_backend="uring")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["cancelled", "cancelled"]


def test_one_port_for_all(kind: Any, tmp_path: Path) -> None:
    served = run_shards(shard_programs.serve, free_port(), str(tmp_path), shards=2, kind=kind)
    assert min(served) > 0
    assert sum(served) <= 64


PROGRAM = """
    import sys
    import shard_programs, trio_uring

    if __name__ == "__main__":
        try:
            trio_uring.run_shards(shard_programs.wait_for_ever, sys.argv[1], shards=2, kind=sys.argv[2])
        except KeyboardInterrupt:
            print("interrupted")
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_signals(how: signal.Signals, kind: Any, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole foreground; whatever ends the parent ends the shards."""
    script, marks = tmp_path / "program.py", tmp_path / "marks"
    marks.mkdir()
    script.write_text(textwrap.dedent(PROGRAM))
    with subprocess.Popen(
        [sys.executable, str(script), str(marks), kind], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until = time.monotonic() + PATIENCE
        while len(list(marks.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        assert process.stdout is not None
        said = process.stdout.read()  # its end: no process of it is left that has it open
        process.wait(PATIENCE)
    if how == signal.SIGINT:
        assert (said, process.returncode) == ("interrupted\n", 0)
    else:
        assert process.returncode == -how
    if how == signal.SIGINT or kind == "processes":
        assert [path.read_text() for path in marks.iterdir()] == ["cancelled", "cancelled"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shards": 0}, ValueError, "shards must be at least 1"),
        ({"shards": 1.0}, TypeError, "shards must be an int"),
        ({"shards": 1, "kind": "fibres"}, ValueError, "kind must be 'auto', 'processes' or 'threads'"),
        ({"shards": 1, "cpus": [100_000]}, ValueError, "processor 100000 is outside the affinity"),
        ({"shards": 1, "cpus": []}, ValueError, "no processor is left for the shards"),
        ({"shards": 1, "group": 1}, TypeError, "group must be a trio_uring.RingGroup"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run_shards(shard_programs.about, **options)


def test_a_shard_on_an_io_processor_is_refused() -> None:
    with pytest.raises(ValueError, match="is one of the group's"):
        run_shards(shard_programs.about, shards=1, cpus=[IO_CPU], group=io_group())
    with pytest.raises(ValueError, match="io_backend must be left out beside a group"):
        run_shards(shard_programs.about, shards=1, group=io_group(), io_backend="epoll")
