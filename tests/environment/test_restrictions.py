"""Rings that may not do everything (F56).

A container runtime or service manager restricts operations of a whole task (Linux 7.2), and the kernel then answers -EACCES where
its probe says yes. Here each ring is restricted as it is made (tests/faults/restrict.h), which every kernel can do.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "faults"))

from shim_variants import build  # noqa: E402

FILES = {
    "OPENAT": 18, "CLOSE": 19, "STATX": 21, "WRITE": 23, "FSYNC": 3, "FALLOCATE": 17, "FTRUNCATE": 55, "READV": 1, "WRITEV": 2,
    "SPLICE": 30,
}  # fmt: skip
PATHS = {"RENAMEAT": 35, "UNLINKAT": 36, "MKDIRAT": 37, "SYMLINKAT": 38, "LINKAT": 39}
SOCKETS = {"SEND": 26, "RECV": 27, "SENDMSG": 9, "RECVMSG": 10, "ACCEPT": 13, "CONNECT": 16, "SHUTDOWN": 34}
BUFFER_SELECT = 1 << 5


def program(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIO_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment, "PYTHONPATH": str(build(restrict=True)), **variables},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )


def answers(backend: str, **variables: str) -> dict[str, Any]:
    """What restricted.py prints; the directory of its files under a name of its own."""
    with tempfile.TemporaryDirectory() as directory:
        command = (sys.executable, str(HERE / "restricted.py"), backend, directory)
        done = program(str(HERE / "confined.py"), "--unprivileged", "--", *command, **variables)
        assert (done.returncode, done.stderr) == (0, ""), done
        told: dict[str, Any] = json.loads(done.stdout.replace(directory, "DIRECTORY"))
        return told


@functools.cache
def on_epoll() -> dict[str, Any]:
    return answers("epoll")


def numbers(operations: dict[str, int]) -> str:
    return ",".join(map(str, operations.values()))


@pytest.mark.parametrize(
    "refused",
    [{}, FILES, PATHS, SOCKETS, {**FILES, **PATHS, **SOCKETS}],
    ids=["none", "files", "paths", "sockets", "all but what a run needs"],
)
def test_f56_a_refused_operation_goes_trios_own_way(refused: dict[str, int]) -> None:
    """Each call answers what it does on epoll, its own EACCES included, and the run is on the ring."""
    assert answers("uring", TU_RESTRICT=numbers(refused)) == {**on_epoll(), "backend": "uring"}
    # Those of the file and of the socket were told apart: they are no answers of a ring's.
    assert on_epoll()["open locked"][:2] == ["PermissionError", 13]
    assert on_epoll()["sendto all"][:2] == ["PermissionError", 13]


def test_f56_a_refused_flag_or_registration_is_done_without() -> None:
    told = answers("uring", TU_RESTRICT_FLAGS=str(BUFFER_SELECT), TU_RESTRICT_REGISTER="20,21,22,23,24")
    assert told == {**on_epoll(), "backend": "uring"}


TRIES = """
import sys, trio, trio_uring
from trio_uring._ring.ring import FIRST_USER_DATA, Ring
ring = Ring(8)
ring.queue(int(sys.argv[1]), FIRST_USER_DATA)
print(ring.wait(5))
ring.close()
"""


@pytest.mark.parametrize("operation", [FILES["OPENAT"], PATHS["MKDIRAT"], SOCKETS["RECV"]])
def test_the_restriction_is_one(operation: int) -> None:
    """What the other tests stand on: the kernel refuses such an entry, with EACCES, and otherwise does not."""
    refused, allowed = (program("-c", TRIES, str(operation), TU_RESTRICT=value) for value in (str(operation), ""))
    assert refused.stdout == "[16, -13, 0]\n", refused
    assert "-13" not in allowed.stdout.replace("[16, ", "["), allowed


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("IORING_OP_READ", {"TU_RESTRICT": "22"}),
        ("IORING_OP_POLL_ADD", {"TU_RESTRICT": "6"}),
        ("IORING_OP_ASYNC_CANCEL", {"TU_RESTRICT": "14"}),
        ("IORING_OP_ASYNC_CANCEL", {"TU_RESTRICT_FLAGS": "64"}),  # CQE_SKIP_SUCCESS, which cancels have
        ("IORING_REGISTER_EVENTFD", {"TU_RESTRICT_REGISTER": "4"}),
    ],
)
@pytest.mark.parametrize("sizes", ["", "sq_entries=2,cq_entries=2"])
def test_f56_what_the_loop_needs_decides_at_the_start(name: str, variables: dict[str, str], sizes: str) -> None:
    """ "auto" is epoll then, and "uring" an error that says which and what to do."""
    sizes_given = {"TRIO_URING_OPTIONS": sizes} if sizes else {}
    look = (
        "import trio, trio_uring\nasync def main(): print(trio.lowlevel.current_statistics().io_statistics.backend)\n"
    )
    auto = program("-c", f"{look}trio.run(main, io_backend='auto')", **variables, **sizes_given)
    assert (auto.stdout, auto.stderr) == ("epoll\n", "")
    uring = program("-c", f"{look}trio.run(main, io_backend='uring')", **variables, **sizes_given)
    error = uring.stderr.splitlines()[-1]
    assert "UringUnavailableError" in error
    assert f"forbids {name} to its rings (EACCES)" in error
    assert "IORING_REGISTER_RESTRICTIONS" in error


def test_doctor_tries_what_it_claims() -> None:
    done = program("-m", "trio_uring", "doctor", "--json", TU_RESTRICT=numbers(PATHS))
    report = json.loads(done.stdout)
    assert report["restricted"] == sorted(PATHS, key=lambda name: PATHS[name])
    for name in PATHS:
        assert report["operations"][name]["available"] is False
        assert "restriction" in report["operations"][name]["effect"]
    assert report["operations"]["OPENAT"]["available"] is True
    assert report["usable"] is True  # a run works
    text = program("-m", "trio_uring", "doctor", TU_RESTRICT=numbers(PATHS)).stdout
    assert "no MKDIRAT: a restriction of this process forbids it; what uses it is done as on epoll" in text
    done = program("-m", "trio_uring", "doctor", "--json", TU_RESTRICT="6")
    report = json.loads(done.stdout)
    assert (done.returncode, report["usable"], report["errno"]) == (1, False, "EACCES")
    assert "IORING_OP_POLL_ADD" in report["cause"]
