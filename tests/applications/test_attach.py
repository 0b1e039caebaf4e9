"""A process asleep in the ring, in which nothing was prepared: `python -m trio_uring dump PID`, and CPython's own tools."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import IO

import pytest

from trio_uring._observe import attach

PROGRAM = """
import sys, trio

class Turns(trio.abc.Instrument):
    def after_io_wait(self, timeout):
        print("turn", flush=True)

async def waits_for_nobody():
    left, right = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.recv, 10)
        await trio.testing.wait_all_tasks_blocked()
        print("asleep", flush=True)

import trio.testing
trio.run(waits_for_nobody, instruments=[Turns()])
"""


@contextlib.contextmanager
def asleep(backend: str) -> Iterator[tuple[int, IO[str]]]:
    """A process whose run is about to sleep, or sleeps, for ever; its number and what it prints, a line for each turn."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIO_")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**environment, "TRIO_IO_BACKEND": backend},
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            while process.stdout.readline() != "asleep\n":
                assert process.poll() is None
            yield process.pid, process.stdout
        finally:
            process.kill()


@contextlib.contextmanager
def stranger() -> Iterator[int]:
    """A process without Trio and the ring, which runs Python code now and then; its number."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "print(flush=True); import time\nwhile True: time.sleep(0.01)"],
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.kill()


def dump(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trio_uring", "dump", *arguments], cwd="/", capture_output=True, text=True, timeout=60
    )


def test_a_wait_can_be_interrupted_from_outside() -> None:
    """What the dump stands on: a run that sleeps executes Python code again, and then sleeps on."""
    with asleep("uring") as (pid, turns):
        deadline = time.monotonic() + 30
        while not select.select([turns], [], [], 0.1)[0]:
            assert time.monotonic() < deadline
            attach.interrupt(pid)
        assert turns.readline() == "turn\n"


def test_a_process_that_cannot_be_interrupted_says_why() -> None:
    with pytest.raises(ProcessLookupError):
        attach.interrupt(gone())


def gone() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        return process.pid


def test_a_run_that_sleeps_in_the_ring_tells_what_it_waits_for() -> None:
    """With CPython 3.14 and newer; before that the command says what to do in place of it."""
    with asleep("uring") as (pid, _):
        done = dump(str(pid))
        if sys.version_info < (3, 14):
            assert (done.returncode, done.stdout) == (1, "")
            assert "attaching takes CPython 3.14 or newer" in done.stderr
            assert "TRIO_URING_DUMP=SIGUSR1" in done.stderr
            return
        assert (done.returncode, done.stderr) == (0, "")
        assert f"trio-uring dump: process {pid}, " in done.stdout
        assert "loop: thread MainThread, asleep in the kernel" in done.stdout
        assert "recv, waiting" in done.stdout
        (ring,) = json.loads(dump(str(pid), "--json").stdout)
        assert "recv" in [operation["kind"] for operation in ring["operations"]]
        assert dump(str(pid)).returncode == 0  # it goes on, and can be asked again
    with asleep("epoll") as (pid, _):
        said = dump(str(pid)).stdout
        assert said.startswith(f"trio-uring dump: process {pid}, ")
        assert said.endswith("\nno run on the ring\n")
        assert dump(str(pid), "--json").stdout == "[]\n"
    with stranger() as pid:
        assert dump(str(pid)).stdout == f"trio-uring dump: process {pid} has not imported trio_uring\n"
        assert dump(str(pid), "--json").stdout == "[]\n"
    done = dump(str(gone()))
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no process" in done.stderr
    assert not [name for name in os.listdir("/tmp") if name.startswith("trio-uring-dump-")]


def test_the_interpreters_own_profiler_sees_a_run_that_sleeps() -> None:
    """`python -m profiling.sampling attach PID` (CPython 3.15): it reads from outside and needs no turn of the loop."""
    command = [sys.executable, "-m", "profiling.sampling", "attach", "-d", "1", "--sort", "nsamples"]
    with asleep("uring") as (pid, _turns):
        done = subprocess.run([*command, str(pid)], cwd="/", capture_output=True, text=True, timeout=60, check=False)
    if sys.version_info < (3, 15):
        assert "No module named" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "Ring.wait" in done.stdout, done.stdout


def test_the_interpreters_own_debugger_sees_a_run_once_it_wakes() -> None:
    """`python -m pdb -p PID` (CPython 3.14) leaves word, which a run that sleeps reads when it has been stopped and goes on."""
    command = [sys.executable, "-m", "pdb", "-p"]
    with (
        asleep("uring") as (pid, _turns),
        subprocess.Popen(
            [*command, str(pid)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as debugger,
    ):
        deadline = time.monotonic() + 60
        while sys.version_info >= (3, 14) and not select.select([debugger.stdout], [], [], 0.1)[0]:
            assert time.monotonic() < deadline
            for number in (signal.SIGSTOP, signal.SIGCONT):
                os.kill(pid, number)
        told, _ = debugger.communicate("where\np type(self).__name__\nquit\n", timeout=60)
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None  # it goes on
    if sys.version_info < (3, 14):
        assert "option -p not recognized" in told
        return
    assert "_ring/ring.py(" in told, told  # the stack of the thread, from the program down to the wait
    assert "'Ring'" in told, told
