"""The hold of each test on the machine's sysctls: some tests forbid io_uring to everybody for a moment, where that is allowed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

DISABLED = Path("/proc/sys/kernel/io_uring_disabled")
GROUP = Path("/proc/sys/kernel/io_uring_group")

# Sets each FILE=VALUE, says "set", and puts the old values back when its standard input ends.
KEEPER = """
trap '' HUP INT TERM
before=
for each in "$@"; do file=${each%=*}; before="$before $file=$(cat "$file")"; done
said=set
for each in "$@"; do echo "${each#*=}" > "${each%=*}" || said=failed; done
echo $said
read line
for each in $before; do echo "${each#*=}" > "${each%=*}"; done
"""


def may_set_sysctls() -> bool:
    """Whether a test may change them: root's to say, since they bind every program on the machine (`make faults` does)."""
    return bool(os.environ.get("TRIO_URING_TEST_SYSCTL")) and os.access(DISABLED, os.W_OK)


class Sysctls:
    """The sysctls as a test sees them: constant, but for the test that sets them."""

    def __init__(self, lock: IO[bytes]) -> None:
        self._lock = lock

    @contextlib.contextmanager
    def set(self, values: dict[Path, int]) -> Iterator[None]:
        """Sets sysctls, for as short as possible, while no other test that has this fixture is running.

        They bind the whole machine, so a process of their own puts the old values back: also where this one
        is killed, because its end of the pipe closes.
        """
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        before = {file: file.read_text() for file in values}
        with subprocess.Popen(
            ["sh", "-c", KEEPER, "sh", *(f"{file}={value}" for file, value in values.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as keeper:
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == "set\n"
            yield
        assert {file: file.read_text() for file in values} == before


@pytest.fixture(autouse=True)
def sysctls() -> Iterator[Sysctls]:
    """Keeps kernel.io_uring_* as they are while the test runs, by a lock (flock(2)) on the sysctl's file."""
    # Kernels before 6.6 have no such file, and nothing that a test could set.
    with open(DISABLED if DISABLED.exists() else "/proc/self/status", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield Sysctls(lock)
