"""The tests end the same however they were started: in the background, by nohup(1), by a service with signals blocked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

STARTED = {
    "ignored": "for number in signal.valid_signals() - {9, 19}: signal.signal(number, signal.SIG_IGN)",
    "blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "without a terminal": "os.closerange(0, 1); os.open(os.devnull, os.O_RDONLY); os.setsid()",
}


@pytest.mark.parametrize("started", STARTED)
def test_signals_reach_the_programs_that_a_test_starts(started: str) -> None:
    program = f"import os, signal, sys\n{STARTED[started]}\nos.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    what = [
        f"{TESTS}/entry/test_run_command.py::test_ctrl_c[trio]",
        f"{TESTS}/manager/test_interrupts.py::test_the_process_ends_as_on_epoll[trio.sleep_forever()]",
    ]
    pytest_of_its_own = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *what]
    done = subprocess.run(
        [sys.executable, "-c", program, *pytest_of_its_own],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
