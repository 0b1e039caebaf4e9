"""How many system calls a wait makes, counted by strace(1), which must be installed.

Knows the interface of layer 1; asks the kernel and not the ring's own counters.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trio_uring._ring import ring

MARKER = "getppid"
# IORING_ENTER_REGISTERED_RING, by name or as a number by a strace that does not know it.
REGISTERED = re.compile(r"REGISTERED_RING|0x[0-9a-f]*[13579bdf][0-9a-f]\b")
# IORING_ENTER_NO_IOWAIT, likewise.
NO_IOWAIT = re.compile(r"NO_IOWAIT|0x[0-9a-f]*[89a-f][0-9a-f]\b")
# What an allocator may do at any time; and a look at the clock, which is no system call but on machines that are emulated.
OF_THE_INTERPRETER = {"brk", "mmap", "munmap", "mremap", "madvise", "mprotect", "clock_gettime"}

PREPARE = """
import os
from trio_uring._ring.ring import OP_NOP, Ring, ffi

ring = Ring({sizes})
reader, writer = os.pipe()
ring.poll(reader, 1, 16)  # something is in flight, and nothing comes of it
for _ in range(3):
    ring.wait(0)
"""


def traced(tmp_path: Path, program: str, sizes: str = "512, None") -> list[str]:
    """The system calls of a program between its two calls of getppid(2), by name."""
    trace = tmp_path / "trace"
    script = PREPARE.format(sizes=sizes) + "os.getppid()\n" + program + "\nos.getppid()\nring.close()\n"
    subprocess.run(
        ["strace", "-f", "-e", "trace=all", "-o", str(trace), sys.executable, "-c", script],
        check=True,
        timeout=100,
        cwd=tmp_path,
    )
    calls = re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", trace.read_text(), re.MULTILINE)
    assert calls.count(MARKER) == 2, "strace shows no markers"
    first = calls.index(MARKER)
    return calls[first + 1 : calls.index(MARKER, first + 1)]


def test_an_idle_wait_makes_no_system_call(tmp_path: Path) -> None:
    calls = traced(
        tmp_path,
        "for _ in range(10_000):\n    assert ring.wait(0) is None",
    )
    assert "io_uring_enter" not in calls
    assert set(calls) <= OF_THE_INTERPRETER


def test_a_wait_that_submits_makes_one(tmp_path: Path) -> None:
    calls = traced(
        tmp_path,
        "for number in range(100):\n"
        "    ring.owner_back()\n"
        "    for each in range(5):\n"
        "        ring.queue(OP_NOP, 100 + 5 * number + each)\n"
        "    assert len(ring.wait(0)) == 15",
    )
    assert calls.count("io_uring_enter") == 100
    assert set(calls) <= OF_THE_INTERPRETER | {"io_uring_enter"}


def test_a_wait_that_sleeps_makes_one(tmp_path: Path) -> None:
    calls = traced(
        tmp_path,
        "for number in range(20):\n"
        "    ring.owner_back()\n"
        "    ring.queue(OP_NOP, 100 + number)\n"
        "    assert len(ring.wait(None)) == 3\n"
        "    assert ring.wait(0.001) is None",
    )
    assert calls.count("io_uring_enter") == 40
    assert set(calls) <= OF_THE_INTERPRETER | {"io_uring_enter"}


def test_a_wait_that_finds_deferred_work_makes_one(tmp_path: Path) -> None:
    calls = traced(
        tmp_path,
        "os.write(writer, b'x')\n"
        "assert ring.wait(0) == [16, 1, 0]\n"
        "for _ in range(100):\n"
        "    assert ring.wait(0) is None",
    )
    assert calls.count("io_uring_enter") == 1
    assert set(calls) <= OF_THE_INTERPRETER | {"io_uring_enter", "write"}


def test_a_batch_of_a_small_ring_makes_one_for_each_two_entries(tmp_path: Path) -> None:
    """A full queue is flushed, not more often than it is full."""
    calls = traced(
        tmp_path,
        "ring.owner_back()\n"
        "for number in range(100):\n"
        "    ring.queue(OP_NOP, 100 + number)\n"
        "seen = 0\n"
        "while seen < 300:\n"
        "    seen += len(ring.wait(0))",
        sizes="2, 4",
    )
    assert 50 <= calls.count("io_uring_enter") <= 50 + 2 * 25 + 1


def test_the_ring_descriptor_stays_registered(tmp_path: Path) -> None:
    """A thread has sixteen places for registered rings: each ring gives its own back when it is closed."""
    trace = tmp_path / "trace"
    script = (
        "from trio_uring._ring.ring import OP_NOP, Ring\n"
        "for _ in range(40):\n"
        "    ring = Ring(2, 4)\n"
        "    ring.queue(OP_NOP, 16)\n"
        "    ring.wait(None)\n"
        "    ring.close()\n"
    )
    command = ["strace", "-f", "-e", "trace=io_uring_enter", "-o", str(trace), sys.executable, "-c", script]
    subprocess.run(command, check=True, timeout=100, cwd=tmp_path)
    enters = [line for line in trace.read_text().splitlines() if "io_uring_enter(" in line]
    assert len(enters) >= 40
    assert all(REGISTERED.search(line) for line in enters)


@pytest.mark.parametrize("timeout", [None, 0.001])
def test_no_wait_counts_as_one_for_a_disk(timeout: float | None, tmp_path: Path) -> None:
    """A loop that sleeps in the ring is no "procs_blocked", no "iowait" and no pressure, where the kernel can tell (6.15)."""
    trace = tmp_path / "trace"
    script = (
        "from trio_uring._ring.ring import OP_NOP, Ring\n"
        "ring = Ring(2, 4)\n"
        "for _ in range(10):\n"
        f"    ring.wait({timeout}) if {timeout} else (ring.queue(OP_NOP, 16), ring.wait(None))\n"
    )
    command = ["strace", "-f", "-e", "trace=io_uring_enter", "-o", str(trace), sys.executable, "-c", script]
    subprocess.run(command, check=True, timeout=100, cwd=tmp_path)
    waits = [line for line in trace.read_text().splitlines() if re.search(r"enter\(\d+, \d+, [1-9].*GETEVENTS", line)]
    assert len(waits) >= 10
    told = bool(ring.lib.tu_features() & 1 << 17)  # IORING_FEAT_NO_IOWAIT
    assert {bool(NO_IOWAIT.search(line)) for line in waits} == {told}
