"""Holds the test suites of other projects against the ring: `python tests/applications/suites.py [PROJECT…]`.

Each project's released source is taken from the package index, and its own tests run unedited in an environment of their own:
on epoll, which says what passes here at all, and on the ring, where no run may be on epoll (tests/entry/no_epoll.py). None may
fail on the ring alone, and none be missing. Exit code 1 where one does or is.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

import attrs
from hosting import command_line

ROOT = Path(__file__).parent.parent.parent
SECONDS = 600  # for one run of tests, which takes a few


@attrs.frozen
class Suite:
    """One project's tests.

    Attributes:
      version: of the release; tests/applications uses the same or a newer one.
      arguments: for pytest, which runs in the directory of the source.
      needs: what its tests import, beside the project.
      options: lines for pytest's configuration.
    """

    version: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    options: str = ""


SUITES = {
    "httpcore": Suite("1.0.9", ("tests",), ("httpcore[asyncio,trio,http2,socks]", "pytest-httpbin")),
    "httpx": Suite(
        "0.28.1", ("-k", "trio", "tests"), ("httpx[http2,socks,zstd,brotli,cli]", "uvicorn", "chardet", "trustme")
    ),
    "hypercorn": Suite("0.18.0", ("tests/trio", "tests/e2e"), ("httpx[http2]", "trio")),
    "quart-trio": Suite("0.12.0", ("tests",)),
    "starlette": Suite(
        "1.10.0",
        ("-k", "trio", "tests", "--ignore", "tests/middleware/test_opentelemetry.py"),
        ("starlette[full]", "httpx2"),
    ),
    "trio-asyncio": Suite(
        "0.16.0",
        ("tests", "--ignore", "tests/python", "--ignore", "tests/test_deprecate.py"),
    ),
    "trio-websocket": Suite("0.12.2", ("tests",), ("trustme",), "trio_mode = true\n"),
}


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    _, environment = command_line("command")
    environment.pop("PYTHONPATH")
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )


def step(text: str) -> None:
    """Says what goes on, to standard error; the results alone are standard output."""
    print(f"… {text}", file=sys.stderr, flush=True)


def check(done: subprocess.CompletedProcess[str]) -> None:
    """Ends the script with what was printed, if the command failed."""
    if done.returncode:
        sys.exit(f"{' '.join(done.args)}\n{done.stdout}")


def play(python: Path, source: Path, suite: Suite, *arguments: str) -> tuple[set[str], set[str], str]:
    """Runs the tests; answers the names of those that passed and that failed, and what was printed."""
    report, config = source.parent / "report.xml", source.parent / "pytest.ini"
    report.unlink(missing_ok=True)
    config.write_text(f"[pytest]\n{suite.options}")
    done = run(
        *(
            python,
            "-m",
            "pytest",
            "-q",
            "-c",
            config,
            "--rootdir",
            source,
            "-p",
            "no:cacheprovider",
            "-p",
            "no:asyncio",
        ),
        *(f"--junit-xml={report}", *arguments, *suite.arguments),
        cwd=source,
        PYTHONPATH=str(ROOT / "tests" / "entry"),
    )
    passed: set[str] = set()
    failed: set[str] = set()
    for case in xml.etree.ElementTree.parse(report).iter("testcase") if report.exists() else ():
        outcomes = {child.tag for child in case}
        name = f"{case.get('classname')}::{case.get('name')}"
        if outcomes & {"failure", "error"}:
            failed.add(name)
        elif "skipped" not in outcomes:
            passed.add(name)
    return passed - failed, failed, done.stdout


def hold(project: str, suite: Suite, wheel: Path, directory: Path) -> bool:
    """Whether a project's tests are on the ring as they are on epoll; prints a line that says so, and what is not."""
    began = time.monotonic()
    pip = (sys.executable, "-m", "pip", "--python", directory / "venv" / "bin" / "python")
    check(run(sys.executable, "-m", "venv", directory / "venv", cwd=directory))
    release = f"{project}=={suite.version}"
    step(f"{release}: an environment of its own")
    check(run(*pip, "install", "-q", release, wheel, "pytest", "pytest-trio", *suite.needs, cwd=directory))
    check(run(*pip, "download", "-q", "--no-deps", "--no-binary", project, release, cwd=directory))
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    source = directory / archive.name.removesuffix(".tar.gz")
    python = directory / "venv" / "bin" / "python"
    step(f"{release}: its tests on epoll")
    epoll, epoll_failed, said = play(python, source, suite)
    step(f"{release}: {len(epoll)} passed; its tests on the ring")
    ring, ring_failed, output = play(python, source, suite, "-p", "no_epoll", "--trio-io-backend=uring")
    worse = (ring_failed - epoll_failed) | (epoll - ring - ring_failed)
    good = bool(ring) and not worse
    print(
        f"{project} {suite.version}: {'ok' if good else 'FAILED'}; {len(ring)} passed on the ring, {len(epoll)} on epoll, "
        f"{len(ring_failed & epoll_failed)} fail on both; {time.monotonic() - began:.0f} s",
        flush=True,
    )
    if not good:
        print(*sorted(worse), output if worse else said, sep="\n")
    return good


def main(projects: list[str]) -> int:
    """Holds these projects, or all; answers the exit code."""
    if unknown := set(projects) - SUITES.keys():
        sys.exit(f"no suite of {', '.join(sorted(unknown))}: there are {', '.join(SUITES)}")
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        check(run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", base, ROOT, cwd=base))
        (wheel,) = base.glob("*.whl")
        results = []
        for project in projects or SUITES:
            (directory := base / project).mkdir()
            results.append(hold(project, SUITES[project], wheel, directory))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
