"""What the commands that take long say meanwhile: progress, and plain lines where nobody looks at a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BENCHMARKS = """
from benchmarks.__main__ import Progress

progress = Progress(2)
progress.step("echo round 1")
progress.step("echo round 2")
progress.clear()
"""


def on_a_terminal(*command: str, **environment: str) -> bytes:
    """What a program writes to standard error, which is a terminal."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(theirs, "rb", buffering=0) as other:
        subprocess.run(command, stderr=other, env={**os.environ, **environment}, check=True, timeout=120)
        os.write(theirs, b"the end")
        said = b""
        while not said.endswith(b"the end"):
            said += terminal.read(1000)
    return said


def test_benchmarks_say_how_far_they_are() -> None:
    command = (sys.executable, "-c", BENCHMARKS)
    piped = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=120
    )
    first, second = piped.stderr.splitlines()
    assert first.startswith("[1/2, ")
    assert first.endswith(" s left] echo round 1")
    assert second.endswith("] echo round 2")
    assert "\x1b" not in piped.stderr
    assert b"\r\x1b[K[2/2, " in on_a_terminal(*command, PYTHONPATH=str(ROOT))


@pytest.mark.parametrize("script", ["tests/applications/suites.py", "tests/entry/trio_versions.py"])
def test_scripts_that_hold_other_suites_say_what_they_do(script: str) -> None:
    """To standard error, so that what they found can be kept; the same on a terminal."""
    program = f"import runpy; runpy.run_path({str(ROOT / script)!r})['step']('this or that')"
    piped = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str((ROOT / script).parent)},
        check=True,
        timeout=120,
    )
    assert (piped.stdout, piped.stderr) == ("", "… this or that\n")
