"""`pytest --trio-io-backend=uring` on a suite that knows nothing of it. Needs trio-uring installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from interpreter import PROGRAMS, python

SUITE = """
import json, subprocess, sys
import anyio, pytest, trio
from trio import run
from loopback import main

def expect(found):
    backend = {backend!r}
    assert found["backend"] == backend, found
    assert (found["eventpolls"], found["rings"]) == ((0, 1) if backend == "uring" else (1, 0)), found

@pytest.mark.trio
async def test_pytest_trio():
    expect(await main())

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_anyio(anyio_backend):
    expect(await main())

def test_run():
    expect(run(main))
    expect(anyio.run(main, backend="trio"))

def test_spawned_process():
    expect(json.loads(subprocess.check_output([sys.executable, "-m", "loopback"])))
"""


def suite(directory: Path, backend: str) -> Path:
    (directory / "test_suite.py").write_text(SUITE.format(backend=backend))
    # What the tests import has been imported before the option is looked at: the option still holds.
    (directory / "conftest.py").write_text("import trio\nfrom trio import run\n")
    return directory


def run_pytest(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables.setdefault("PYTHONPATH", str(PROGRAMS))
    return python("-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *arguments, cwd=directory, **variables)


def check_suite(directory: Path, backend: str, *options: str, variable: str = "") -> str:
    done = run_pytest(suite(directory, backend), *options, TRIO_IO_BACKEND=variable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("value", "variable", "backend"),
    [("uring", "", "uring"), ("auto", "", "uring"), ("epoll", "uring", "epoll"), ("uring", "epoll", "uring")],
)
def test_the_option_decides(value: str, variable: str, backend: str, tmp_path: Path) -> None:
    output = check_suite(tmp_path, backend, f"--trio-io-backend={value}", variable=variable)
    assert f"\ntrio io_backend: {value}\n" in output


def test_the_option_reaches_the_workers_of_xdist(tmp_path: Path) -> None:
    check_suite(tmp_path, "uring", "-n", "2", "--trio-io-backend", "uring")


@pytest.mark.parametrize(("variable", "backend"), [("", "epoll"), ("uring", "uring")])
def test_without_the_option_the_variable_decides(variable: str, backend: str, tmp_path: Path) -> None:
    assert "io_backend" not in check_suite(tmp_path, backend, variable=variable)


def test_another_value_is_a_usage_error(tmp_path: Path) -> None:
    done = run_pytest(suite(tmp_path, "uring"), "--trio-io-backend=iocp")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--trio-io-backend: invalid choice: 'iocp'" in done.stderr
    assert all(name in done.stderr for name in ("uring", "auto", "epoll"))


def test_without_the_option_nothing_is_imported(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n"
        "def test_nothing():\n"
        "    assert 'trio_uring_pytest' in sys.modules\n"
        "    assert not [name for name in sys.modules if name.partition('.')[0] in ('trio', 'trio_uring')]\n"
    )
    plugins = ("-p", "no:trio", "-p", "no:anyio", "-p", "no:hypothesispytest")
    done = run_pytest(tmp_path, *plugins)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("before", [None, "auto"])
def test_the_variable_is_put_back(before: str | None, tmp_path: Path) -> None:
    program = """
import os, pytest
code = pytest.main(["--trio-io-backend=uring", "-p", "no:cacheprovider"])
print("afterwards", int(code), os.environ.get("TRIO_IO_BACKEND"))
"""
    variables = {} if before is None else {"TRIO_IO_BACKEND": before}
    done = python("-c", program, cwd=suite(tmp_path, "uring"), PYTHONPATH=str(PROGRAMS), **variables)
    assert done.stdout.endswith(f"afterwards 0 {before}\n"), done.stdout


def test_it_is_listed_with_a_line_of_help(tmp_path: Path) -> None:
    assert "--trio-io-backend={uring,auto,epoll}" in run_pytest(tmp_path, "--help").stdout
