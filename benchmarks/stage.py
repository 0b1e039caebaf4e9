"""The stage on which a contender plays: how the code under measurement talks to the harness.

Knows the protocol between the harness and the process it measures (JSON lines on standard output, a word on
standard input), and clocks. Knows no event loop: it is called from any of them, and never waits except
where the harness asked it to hold.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


def say(message: dict[str, object]) -> None:
    """One JSON line to the harness."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def threads() -> int:
    """Threads of this process beside the main one, whoever started them, without the kernel's own workers."""
    found = 0
    for task in os.listdir("/proc/self/task"):
        found += not Path(f"/proc/self/task/{task}/comm").read_text().startswith("iou-")
    return found - 1


@dataclass
class ProcessStage:
    """The stage of one process that plays one case.

    For code that performs its requests itself, `laps` does what load.c does for a server: a warm-up, then a
    window of `seconds` seconds or `requests` requests, over all tasks together. CPU time is that of the
    whole process (all threads, and the kernel's workers for it). With `hold` it says that it is ready
    before the window and waits for a word, and after the window waits for the end of its input; both block
    the process on purpose.
    """

    tasks: int
    warmup: float
    seconds: float
    requests: int
    hold: bool
    block: int = 0
    lap: int = 1
    _latencies: list[int] = field(default_factory=list)
    _warm_until: int | None = None
    _opened: tuple[int, int] | None = None
    _over: bool = False

    @property
    def short(self) -> bool:
        return self.seconds < 1

    def measured(self, requests: int, seconds: float, cpu_seconds: float, p50_us: float, p99_us: float) -> None:
        phase = {
            "seconds": seconds,
            "requests": requests,
            "cpu_ns": cpu_seconds * 1e9,
            "p50_us": p50_us,
            "p99_us": p99_us,
        }
        say({"phases": [{**phase, "load_cpu_ns": 0, "waited_ns": 0}], "resident_kib": [0, 0]})

    def serving(self, port: int) -> None:
        say({"port": port})

    def laps(self) -> Iterator[None]:
        clock = time.perf_counter_ns
        began = clock()
        if self._warm_until is None:
            self._warm_until = began + int(self.warmup * 1e9)
        while not self._over:
            yield
            ended = clock()
            if self._opened is None:
                if ended >= self._warm_until:
                    self._open()
                    ended = clock()
            elif not self._over:
                self._latencies.append(ended - began)  # whatever ends in the window counts, as in load.c
                if self.requests:
                    if len(self._latencies) >= self.requests:
                        self._close()
                elif ended - self._opened[0] >= self.seconds * 1e9:
                    self._close()
            began = ended

    def _open(self) -> None:
        if self.hold:
            say({"ready": True})
            sys.stdin.readline()
        self._opened = (time.perf_counter_ns(), time.process_time_ns())

    def _close(self) -> None:
        assert self._opened is not None
        cpu, now = time.process_time_ns(), time.perf_counter_ns()
        self._over = True
        latencies = sorted(self._latencies)
        if not latencies:
            raise RuntimeError("no request was performed in the measured window")
        phase = {
            "seconds": (now - self._opened[0]) / 1e9,
            "requests": len(latencies) * self.lap,
            "cpu_ns": cpu - self._opened[1],
            "load_cpu_ns": 0,
            "waited_ns": 0,
            "threads": threads(),
            "p50_us": latencies[len(latencies) // 2] / 1e3,
            "p99_us": latencies[len(latencies) * 99 // 100] / 1e3,
            "max_us": latencies[-1] / 1e3,
        }
        say({"phases": [phase], "resident_kib": [0, 0]})
        if self.hold:
            sys.stdin.read()
