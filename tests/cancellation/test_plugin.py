"""`pytest -p trio_uring.cancellation`, as somebody else uses it, on a backend of their own. Needs trio-uring installed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

SOME = ("-k", "(recv or accept) and another and not recvmsg")

# Forgets what an operation has done where somebody wants to cancel it: what the suite is there to find.
FORGETFUL = """
import trio

run, start_guest_run = trio.run, trio.lowlevel.start_guest_run

async def recv(self, size):
    data = await recv.original(self, size)
    await trio.lowlevel.checkpoint()
    return data

recv.original = trio._socket._SocketType.recv
trio._socket._SocketType.recv = recv
"""


def suite(directory: Path, *options: str, some: tuple[str, ...] = SOME, **how: Any) -> tuple[int, str]:
    """Run some of the suite in a project of its own; the exit status and the output."""
    (directory / "test_of_the_project.py").write_text("def test_of_the_project(): raise AssertionError\n")
    (directory / "forgetful.py").write_text(FORGETFUL)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "trio_uring.cancellation", *options, *some],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **how,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("backend", ["uring", "epoll"])
def test_the_suite_is_a_plugin(tmp_path: Path, backend: str) -> None:
    """It runs the suite, and not the tests that happen to be there."""
    status, output = suite(tmp_path, f"--trio-io-backend={backend}", "--cancellation-runs=3")
    assert status == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) >= 12
    assert "test_of_the_project" not in output


def test_a_backend_of_ones_own_is_held_to_it(tmp_path: Path) -> None:
    """One that loses data at a cancel does not pass."""
    status, output = suite(tmp_path, "--cancellation-backend=forgetful")
    assert status == 1, output
    assert re.search(r"FAILED .*test_every_moment\[recv-scope cancelled by another task\]", output), output
    assert re.search(r"was sent, b'' received and .* is left in the socket", output), output


def test_started_in_the_background(tmp_path: Path) -> None:
    """Where SIGINT is ignored, as in a process that a shell starts with `&`, no KeyboardInterrupt is waited for in vain."""
    ignored = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    chosen = ("-k", "recv-KeyboardInterrupt")
    status, output = suite(
        tmp_path, "--trio-io-backend=uring", "--cancellation-runs=3", some=chosen, preexec_fn=ignored
    )
    assert status == 0, output
    assert re.search(r"[1-9]\d* passed", output), output


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--cancellation-backend=nobody.has", "No module named 'nobody'"),
        ("--cancellation-backend=forgetful:recv", "has no attribute 'run'"),
        ("--cancellation-backend=:run", "the functions run and start_guest_run"),
        ("--cancellation-runs=0", "give 1 or more"),
        ("--cancellation-seconds=0", "give more than 0"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, option: str, says: str) -> None:
    status, output = suite(tmp_path, option)
    assert status == pytest.ExitCode.USAGE_ERROR, output
    assert says in output
    assert "Traceback" not in output


def test_a_backend_that_hangs_ends_the_test_run(tmp_path: Path) -> None:
    """And shows where: nothing else could end it."""
    program = "import time, trio\nstart_guest_run = trio.lowlevel.start_guest_run\nnumber = iter(range(9))\n"
    program += "def run(*args, **options): return time.sleep(99) if next(number) else trio.run(*args, **options)\n"
    (tmp_path / "asleep_later.py").write_text(program)
    chosen = "trio_uring.cancellation.suite::test_race[recv-KeyboardInterrupt]"
    status, output = suite(
        tmp_path, "--cancellation-backend=asleep_later", "--cancellation-seconds=1", some=("--pyargs", chosen)
    )
    assert status == 1, output
    assert "Timeout (0:00:01)!" in output
    assert "in test_race" in output
