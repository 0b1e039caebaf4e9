"""Trio's own tests of files and paths, unedited, on the ring, and audited: what they do went through it.

Needs trio-uring installed. That they pass says only that nothing observable has changed; `make acceptance` runs all of
Trio's and AnyIO's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

# What has no entry to be had, and goes to a thread as ever.
IN_THREADS = {
    "test_async_methods_wrap": "a mock, of no builtin class",
    "test_async_iter": "io.StringIO",
    "test_detach_rewraps_asynciobase": "detach() hands the file over",
    "test_async_methods_rewrap": "absolute() and resolve()",
    "test_path_wraps_path": "absolute() or resolve()",
    "test_path_rewraps_path": "absolute() or resolve()",
    "test_globmethods": "glob() and rglob()",
    "test_as_uri": "absolute() or resolve()",
    "test_iterdir": "iterdir()",
    "test_classmethods": "home() and cwd()",
    "test_expanduser": "expanduser()",
}
ON_THE_RING = {
    "test_open",
    "test_open_context_manager",
    "test_aclose_cancelled",
    "test_open_is_async_context_manager",
    "test_compare_async_stat_methods[is_dir]",
    "test_compare_async_stat_methods[is_file]",
    "test_open_file_can_open_path",
}


def test_trios_own_tests_go_through_the_ring(tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "audited", f"--audited={told}"]
    command += ["-p", "trio._tests.pytest_plugin", "--trio-io-backend=uring", "--pyargs"]
    done = subprocess.run(
        [*command, "trio._tests.test_file_io", "trio._tests.test_path"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE), "TRIO_URING_OPTIONS": "speculate=0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[int]] = json.loads(told.read_text())
    assert {name.partition("[")[0] for name, (_, threads) in found.items() if threads} <= set(IN_THREADS)
    assert {name: found[name] for name in ON_THE_RING if not found[name][0] or found[name][1]} == {}
