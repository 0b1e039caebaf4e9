"""Holds every supported Trio against the ring: `python tests/entry/trio_versions.py [VERSION…]`.

Each version gets an environment of its own, with this project's wheel in it. There Trio's own tests of its
core, sockets, pipes, processes and signals run on epoll and on the ring (where no run may be on epoll, see
no_epoll.py), and none may fail on the ring alone, but for the one that names Trio's own backends. Then come
the tests of the ways in. Exit code 1 where anything failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

from interpreter import environment

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
VERSIONS = ("0.31", "0.32", "0.33", "0.34", "0.35")
SECONDS = 900  # for one run of tests, which takes some twenty

TRIOS_TESTS = (
    "trio._core._tests",
    "trio._tests.test_socket",
    "trio._tests.test_highlevel_socket",
    "trio._tests.test_highlevel_open_tcp_listeners",
    "trio._tests.test_highlevel_open_tcp_stream",
    "trio._tests.test_highlevel_serve_listeners",
    "trio._tests.test_subprocess",
    "trio._tests.test_unix_pipes",
    "trio._tests.test_signals",
    "trio._tests.test_threads",
)
NAMES_TRIOS_BACKENDS = "test_io_manager_statistics"
WAYS_IN = ("test_io_backend_keyword.py", "test_seam_table.py", "test_startup_hook.py", "test_anyio_entry.py")
NEEDS = ("pytest", "pytest-trio", "hypothesis", "anyio", "trustme", "pyopenssl", "async_generator", "astor", "attrs")


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end in a directory where nothing can be imported from."""
    with tempfile.TemporaryDirectory() as empty:
        return subprocess.run(
            list(map(str, command)),
            cwd=empty,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )


def check(done: subprocess.CompletedProcess[str]) -> None:
    """Ends the script with what was printed, if the command failed."""
    if done.returncode:
        sys.exit(f"{' '.join(done.args)}\n{done.stdout}")


class Tests:
    """A run of tests: what it printed, and the names of those that passed and that did not."""

    def __init__(self, python: Path, directory: Path, *arguments: str, **variables: str) -> None:
        report = directory / "report.xml"
        report.unlink(missing_ok=True)
        done = run(
            *(python, "-m", "pytest", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=120"),
            *(f"--junit-xml={report}", *arguments),
            **variables,
        )
        self.output = done.stdout
        self.passed: set[str] = set()
        self.failed: set[str] = set()
        if not report.exists():
            self.failed.add("pytest did not run")
            return
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            outcomes = {child.tag for child in case}
            if outcomes & {"failure", "error"}:
                self.failed.add(name)
            elif "skipped" not in outcomes:
                self.passed.add(name)


def step(text: str) -> None:
    """Says what goes on, to standard error; the results alone are standard output."""
    print(f"… {text}", file=sys.stderr, flush=True)


def hold(version: str, wheel: Path, directory: Path) -> bool:
    """Whether one version of Trio works; prints a line that says so, and what failed."""
    began = time.monotonic()
    step(f"trio {version}: an environment of its own")
    check(run(sys.executable, "-m", "venv", directory / "venv"))
    python = directory / "venv" / "bin" / "python"
    check(run(python, "-m", "pip", "install", "-q", f"trio=={version}.*", wheel, *NEEDS))
    trios = ("-p", "trio._tests.pytest_plugin", "--pyargs", *TRIOS_TESTS)
    step(f"trio {version}: its tests on epoll")
    epoll = Tests(python, directory, *trios)
    step(f"trio {version}: {len(epoll.passed)} passed; its tests on the ring, and the ways in")
    ring = Tests(*(python, directory, "-p", "no_epoll", "--trio-io-backend=uring", *trios), PYTHONPATH=str(HERE))
    ways_in = Tests(python, directory, "--rootdir", str(HERE), *(str(HERE / name) for name in WAYS_IN))
    worse = {name for name in ring.failed - epoll.failed if not name.endswith(f"::{NAMES_TRIOS_BACKENDS}")}
    missing = epoll.passed - ring.passed - ring.failed
    installed = run(python, "-c", "import trio; print(trio.__version__)").stdout.strip()
    good = not (worse or missing or ways_in.failed) and bool(ring.passed and ways_in.passed)
    print(
        f"trio {installed}: {'ok' if good else 'FAILED'}; "
        f"its own tests: {len(ring.passed)} passed on the ring, {len(epoll.passed)} on epoll, "
        f"{len(worse)} worse, {len(missing)} missing; "
        f"ways in: {len(ways_in.passed)} passed, {len(ways_in.failed)} failed; "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    if worse or missing:
        print(*sorted(worse | missing), ring.output, sep="\n")
    if ways_in.failed:
        print(*sorted(ways_in.failed), ways_in.output, sep="\n")
    return good


def main(versions: list[str]) -> int:
    """Holds these versions, or all that are supported; answers the exit code."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        check(run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", base, ROOT))
        (wheel,) = base.glob("*.whl")
        results = []
        for version in versions or VERSIONS:
            (directory := base / version).mkdir()
            results.append(hold(version, wheel, directory))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
