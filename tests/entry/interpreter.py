"""Starts interpreters for the tests in this directory.

Knows the command line; knows nothing of what is tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent
# What of trio-uring is in every process: CPython 3.15 imports the start-up hook (PEP 829), an older one evaluates a line.
ALWAYS_LOADED = ["trio_uring_startup"] if sys.version_info >= (3, 15) else []
SECONDS = 120  # after which a program counts as hung


def environment(**variables: str) -> dict[str, str]:
    """The environment of this process with `variables`, and without what the tests must decide themselves."""
    left_out = (
        "TRIO_IO_BACKEND",
        "TRIO_URING_OPTIONS",
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "FORCE_COLOR",
        "PYTEST_ADDOPTS",
        "PYTEST_PLUGINS",
    )
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PYTHON_COLORS": "0", **variables}


def python(
    *arguments: str, cwd: Path | str = PROGRAMS, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs an interpreter to its end, in `cwd`, and answers its exit code and what it wrote."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        input=stdin,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def answer(*arguments: str, cwd: Path | str = PROGRAMS, stdin: str = "", **variables: str) -> Any:
    """What an interpreter that must succeed, and write nothing to standard error, printed: one JSON value."""
    done = python(*arguments, cwd=cwd, stdin=stdin, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done
    return json.loads(done.stdout)
