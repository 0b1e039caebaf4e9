"""A program that starts, runs Trio once and ends: processor time from the interpreter's start to its end.

The program is one of its own, on the backend of the run that starts it. It asks for that as a user does, by TRIO_IO_BACKEND.
"""

from __future__ import annotations

import os
import sys
import time

import trio

from benchmarks.model import Case, Stage, Target, Workload

WORKLOAD = Workload(
    name="first_run",
    title="a process with one run",
    job="first_run",
    cases=(
        Case(
            title="python -c 'import trio; trio.run(main)'",
            count_calls=False,
            targets=(Target(metric="cpu_us", at_most=1.2, of="trio-epoll"),),
        ),
    ),
)

PROGRAM = "import trio\nasync def main(): pass\ntrio.run(main)"


def once(environment: dict[str, str]) -> tuple[float, float]:
    """The program's wall and processor time, in seconds."""
    began = time.perf_counter()
    _, status, used = os.wait4(os.posix_spawn(sys.executable, [sys.executable, "-c", PROGRAM], environment), 0)
    if status:
        raise RuntimeError("the program failed")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


async def main(stage: Stage) -> None:
    backend = getattr(trio.lowlevel.current_statistics().io_statistics, "backend", "epoll")
    environment = {**os.environ, "TRIO_IO_BACKEND": backend}
    began = time.perf_counter()
    times = [once(environment)]
    while time.perf_counter() - began < stage.seconds:
        times.append(once(environment))
    seconds = time.perf_counter() - began
    walls, spent = zip(*times, strict=True)
    in_order = [wall * 1e6 for wall in sorted(walls)]
    stage.measured(len(times), seconds, sum(spent), in_order[len(times) // 2], in_order[len(times) * 99 // 100])
