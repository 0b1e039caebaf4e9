"""What the tests of faults share: Python programs that run on the shim that fails on demand.

Knows the variants and processes; knows nothing of the single faults.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import shim_variants

HERE = Path(__file__).parent
PATIENCE = float(os.environ.get("TRIO_URING_FAULT_SECONDS", "500"))  # after which a program is taken to hang


@functools.cache
def faulty() -> Path:
    """The directory of the variant with faults."""
    return shim_variants.build(faults=True, sanitize="TRIO_URING_SANITIZED" in os.environ)


def on_faulty(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments on the variant with faults."""
    path = os.pathsep.join([str(faulty()), str(HERE)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd="/",
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def program_on_faulty(program: str, *arguments: str) -> str:
    """Run a program on it, which has to succeed, and answer what it prints."""
    done = on_faulty("-c", textwrap.dedent(program), *arguments)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
    return done.stdout
