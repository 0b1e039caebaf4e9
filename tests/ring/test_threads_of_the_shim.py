"""The shim from several threads, without an interpreter and so without its lock: what a free-threaded Python may do to it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension

ROOT = Path(__file__).parent.parent.parent
SECONDS = "1"


def test_nothing_races_under_the_thread_sanitizer(tmp_path: Path) -> None:
    """tests/faults/threads.c: wakers, a sleeper in the owner's place and a watcher, while rings come and go."""
    built = runpy.run_path(str(ROOT / "ffi" / "build.py"))
    extension = Extension("threads", [])
    built["configure"](extension)
    program = tmp_path / "threads"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    subprocess.run(
        [
            *(compiler, "-std=gnu11", "-O1", "-g", "-fsanitize=thread", "-pthread", "-Wno-unused-function"),
            *(f"-I{path}" for path in extension.include_dirs),
            str(ROOT / "tests" / "faults" / "threads.c"),
            *extension.extra_objects,
            *(f"-L{path}" for path in extension.library_dirs),
            *(f"-l{name}" for name in extension.libraries),
            *("-o", str(program)),
        ],
        check=True,
    )
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run([program, SECONDS], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rings" in done.stdout
