"""Child processes on the ring: waiting for them without a thread, and their pipes.

Knows Trio's and AnyIO's public interfaces, /proc, and the manager's counters. The same on epoll shows that the promises
are Trio's. The children are `cat`, `sleep` and `sh`, which start at once.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from pipe_tools import Backend, Caller, blocked, manager, outcome_of, run, statistics
from trio.lowlevel import open_process

from trio_uring._loop.operation import Poll
from trio_uring._ring.ring import OP_WRITE

pytestmark = pytest.mark.usefixtures("descriptors_flat")

LONG = ["sleep", "1000"]


@pytest.fixture
def no_thread_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a child in a thread fails; starting one in a thread is as it was."""

    def refuse(*args: object) -> None:
        raise AssertionError("waited with waitid(2)")

    monkeypatch.setattr(os, "waitid", refuse)
    monkeypatch.setattr("trio._subprocess.wait_child_exiting", refuse)


def polls() -> list[Poll]:
    """The polls of the run that is going on, Trio's own wait for wake-ups left out."""
    found = manager()
    wakeup = trio._core._run.GLOBAL_RUN_CONTEXT.runner.entry_queue.wakeup.wakeup_sock.fileno()
    return [each for each in found.operations.values() if isinstance(each, Poll) and each.fd != wakeup]


def collected(process: trio.Process) -> bool:
    """Whether nothing is left of a child: a zombie would still be there."""
    return not os.path.exists(f"/proc/{process.pid}")


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


@pytest.mark.usefixtures("no_thread_waits")
def test_waiting_is_one_poll_and_no_thread(ring: Backend) -> None:
    async def main() -> None:
        process = await open_process(LONG)
        threads = threading.active_count()
        caller = Caller()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.run, process.wait)
            await blocked()
            (poll,) = polls()
            assert "pidfd" in os.readlink(f"/proc/self/fd/{poll.fd}")
            assert threading.active_count() <= threads
            process.kill()
        assert caller.outcome == -signal.SIGKILL == process.returncode
        assert not polls()

    run(ring, main)


@pytest.mark.usefixtures("no_thread_waits")
@pytest.mark.parametrize("end", ["exit 0", "exit 7", "kill -TERM $$"])
def test_the_status_is_that_of_the_child(backend: Backend, end: str) -> None:
    async def main() -> None:
        process = await open_process(["sh", "-c", end])
        status = await process.wait()
        assert status == {"exit 0": 0, "exit 7": 7, "kill -TERM $$": -signal.SIGTERM}[end]
        assert (process.returncode, process.poll(), await process.wait()) == (status, status, status)
        assert collected(process)

    run(backend, main)


@pytest.mark.usefixtures("no_thread_waits")
def test_a_child_that_has_ended_already(backend: Backend) -> None:
    async def main() -> None:
        for seen in (False, True):
            process = await open_process(["true"])
            while _state(process.pid) != "Z":
                os.sched_yield()
            if seen:
                assert process.returncode == 0
            with trio.testing.assert_checkpoints():
                assert await process.wait() == 0
            assert collected(process)

    run(backend, main)


@pytest.mark.usefixtures("no_thread_waits")
def test_a_cancelled_wait_takes_nothing_away(backend: Backend) -> None:
    async def main() -> None:
        process = await open_process(LONG)
        for _ in range(3):
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, process.wait)
                await blocked()
                caller.scope.cancel()
            assert caller.outcome == "cancelled"
            assert process.returncode is None
        with trio.CancelScope() as scope:
            scope.cancel()
            await process.wait()
        assert scope.cancelled_caught
        process.terminate()
        assert await process.wait() == -signal.SIGTERM
        assert collected(process)

    run(backend, main)


def test_a_wait_that_is_cancelled_as_the_child_ends(ring: Backend) -> None:
    """The end of the child is seen by this wait, or by the next."""

    async def main() -> None:
        for turn in range(30):
            process = await open_process(["cat"], stdin=subprocess.PIPE)
            assert process.stdin is not None
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, process.wait)
                await blocked()
                await process.stdin.aclose()
                for _ in range(turn % 4):
                    await trio.lowlevel.checkpoint()
                caller.scope.cancel()
            assert caller.outcome in ("cancelled", 0)
            assert await process.wait() == 0
            assert not polls()

    run(ring, main)


def test_many_tasks_wait_for_one_child_and_one_of_them_is_cancelled(backend: Backend) -> None:
    async def main() -> None:
        process = await open_process(LONG)
        callers = [Caller() for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(caller.run, process.wait)
                await blocked()
            callers[0].scope.cancel()
            callers[3].scope.cancel()
            await blocked()
            process.kill()
        assert [caller.outcome for caller in callers] == ["cancelled", -9, -9, "cancelled", -9]

    run(backend, main)


def test_somebody_else_asks_while_a_task_waits(backend: Backend) -> None:
    """`poll` collects the child and closes the pidfd that the task waits on."""

    async def main() -> None:
        process = await open_process(LONG)
        caller = Caller()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.run, process.wait)
            await blocked()
            process.kill()
            while process.poll() is None:
                os.sched_yield()
            assert caller.outcome == "blocked"
        assert caller.outcome == -signal.SIGKILL

    run(backend, main)


@pytest.mark.usefixtures("no_thread_waits")
def test_many_children_at_once(backend: Backend) -> None:
    count = 40

    async def main() -> None:
        processes = [await open_process(["sh", "-c", f"read x; exit {n}"], stdin=subprocess.PIPE) for n in range(count)]
        callers = [Caller() for _ in processes]
        async with trio.open_nursery() as nursery:
            for process, caller in zip(processes, callers, strict=True):
                nursery.start_soon(caller.run, process.wait)
            await blocked()
            if backend != "epoll":
                assert len(polls()) == count
            for process in reversed(processes):
                assert process.stdin is not None
                await process.stdin.send_all(b"\n")
        assert [caller.outcome for caller in callers] == list(range(count))
        assert all(map(collected, processes))
        for process in processes:
            assert process.stdin is not None
            await process.stdin.aclose()

    run(backend, main)


def test_a_child_is_killed_when_run_process_is_cancelled(backend: Backend) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(trio.run_process, LONG)
            nursery.cancel_scope.cancel()
        assert process.returncode in (-signal.SIGTERM, -signal.SIGKILL)
        assert collected(process)

    run(backend, main)


# ------------------------------------------------------------------ pipes to and from a child


def test_more_than_the_pipes_hold_goes_through_a_child(pure_ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both directions at once. What is written is written by the ring: a write(2) of ours would fail."""
    data = bytes(range(256)) * 12_000
    pipes: set[int] = set()

    async def main() -> None:
        before = statistics()
        done = await trio.run_process(["cat"], stdin=data, capture_stdout=True)
        assert done.stdout == data
        assert statistics().submitted - before.submitted >= len(data) // 65536

        queued: list[int] = []
        queue = manager().ring.queue

        def noted(opcode: int, user_data: int, fd: int = -1, *args: Any) -> None:
            if opcode == OP_WRITE:
                assert fd in pipes
                queued.append(opcode)
            queue(opcode, user_data, fd, *args)

        monkeypatch.setattr(manager().ring, "queue", noted)
        process = await open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdio is not None
        pipes.update((process.stdin.fileno(), process.stdout.fileno()))  # type: ignore[union-attr]
        monkeypatch.setattr(os, "write", None)
        await process.stdio.send_all(b"there and back")
        assert await process.stdio.receive_some() == b"there and back"
        assert queued == [OP_WRITE]
        await process.stdio.aclose()
        assert await process.wait() == 0

    run(pure_ring, main)


def test_output_and_errors_of_a_child(backend: Backend) -> None:
    async def main() -> None:
        done = await trio.run_process(
            ["sh", "-c", "cat; echo oops >&2; exit 3"],
            stdin=b"in",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"oops\n")
        with pytest.raises(subprocess.CalledProcessError) as raised:
            await trio.run_process(["sh", "-c", "echo oops >&2; exit 3"], capture_stderr=True)
        assert raised.value.stderr == b"oops\n"

    run(backend, main)


def test_a_child_that_does_not_read_its_input(backend: Backend) -> None:
    """EPIPE: run_process takes it for what it is, a stream tells it."""

    async def main() -> None:
        done = await trio.run_process(["true"], stdin=bytes(1_000_000))
        assert done.returncode == 0
        process = await open_process(["true"], stdin=subprocess.PIPE)
        await process.wait()
        assert process.stdin is not None
        error = await outcome_of(process.stdin.send_all, bytes(1_000_000))
        assert error[0] is trio.BrokenResourceError
        assert error[3][2] == errno.EPIPE
        await process.stdin.aclose()

    run(backend, main)


def test_the_child_gets_descriptors_that_block(backend: Backend) -> None:
    """FdStream makes our end non-blocking, which must not show at the other."""

    async def main() -> None:
        flags = "import os; print(os.get_blocking(0), os.get_blocking(1))"
        done = await trio.run_process([sys.executable, "-c", flags], stdin=b"x", capture_stdout=True)
        assert done.stdout == b"True True\n"

    run(backend, main)


@pytest.mark.usefixtures("no_thread_waits")
def test_anyios_processes(backend: Backend) -> None:
    async def main() -> None:
        done = await anyio.run_process(["cat"], input=b"through anyio" * 10_000)
        assert done.stdout == b"through anyio" * 10_000
        async with await anyio.open_process(["cat"]) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send(b"one")
            assert await process.stdout.receive() == b"one"
            with anyio.move_on_after(0.01) as scope:
                await process.stdout.receive()
            assert scope.cancelled_caught
            await process.stdin.send(b"two")
            assert await process.stdout.receive(2) == b"tw"
            assert await process.stdout.receive() == b"o"
            with anyio.move_on_after(0.01) as scope:
                await process.wait()
            assert scope.cancelled_caught
            await process.stdin.aclose()
            with pytest.raises(anyio.EndOfStream):
                await process.stdout.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await process.stdin.send(b"closed")
            assert await process.wait() == 0

    run(backend, main)


def test_signals_reach_the_child(backend: Backend) -> None:
    async def main() -> None:
        sends: list[Callable[[trio.Process], None]] = [
            trio.Process.terminate,
            trio.Process.kill,
            lambda process: process.send_signal(signal.SIGUSR1),
        ]
        ends = []
        for send in sends:
            process = await open_process(LONG)
            send(process)
            ends.append(await process.wait())
        assert ends == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGUSR1]

    run(backend, main)
