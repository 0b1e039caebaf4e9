"""The load of a web server: wrk, or h2load over HTTP/2, fetches one page over and over. Started by the harness instead of load.c.

Knows their command lines and what they print, and the messages of load.c, which it speaks. CPU time is that of the whole server
process, its threads and the kernel's workers for it included (clock_getcpuclockid(3)).
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from benchmarks.stage import say

_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


def _microseconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if found is None:
        raise ValueError(f"wrk wrote {text!r} where a time was expected")
    return float(found[1]) * _UNITS[found[2]]


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"wrk wrote nothing like {pattern!r}: {text.strip()!r}")
    return found[1]


def _cpu_ns(pid: int) -> int:
    return time.clock_gettime_ns((~pid << 3) | 2)  # the CPU clock of another process


def _waited_ns(pid: int) -> int:
    """Time that the server's first thread could have run and did not."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[1])


def _wrk(options: argparse.Namespace, seconds: float) -> str:
    command = [
        "wrk",
        "-t1",
        f"-c{options.connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "10s",
        "--latency",
    ]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{options.port}{options.page}"], capture_output=True, text=True, check=False
    )
    if done.returncode or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise ValueError(f"wrk: {(done.stderr or done.stdout).strip()!r}")
    return done.stdout


class Told(NamedTuple):
    """What a load generator says of a run: times are of a request, in microseconds."""

    requests: int
    p50: float
    p99: float


def _by_wrk(options: argparse.Namespace, seconds: float) -> Told:
    said = _wrk(options, seconds)
    middle, slow = (_microseconds(_found(rf"(?m)^\s+{percent}%\s+(\S+)", said)) for percent in (50, 99))
    return Told(int(_found(r"(\d+) requests in", said)), middle, slow)


def _by_h2load(options: argparse.Namespace, seconds: float) -> Told:
    """As many requests as the server answers in that time, found out with a few.

    Not until the time is over: h2load would leave in the middle of answers, and Hypercorn 0.18 then ends with an error of its
    own, on epoll too ("another task is currently sending data").
    """
    few = 2 * options.connections * options.streams
    began = time.perf_counter()
    _h2load(options, few)
    told = _h2load(options, max(few, round(few * seconds / (time.perf_counter() - began))))
    return told._replace(requests=few + told.requests)


def _h2load(options: argparse.Namespace, requests: int) -> Told:
    with tempfile.NamedTemporaryFile("r") as log:
        command = ["h2load", "-t1", f"-n{requests}", f"-c{options.connections}", f"-m{options.streams}"]
        url = f"http://127.0.0.1:{options.port}{options.page}"
        done = subprocess.run(
            [*command, f"--log-file={log.name}", url], capture_output=True, text=True, check=False, timeout=100
        )
        times = sorted(int(line.split()[2]) for line in log if line.split()[1] == "200")
    if done.returncode or len(times) != requests or "Application protocol: h2c" not in done.stdout:
        raise ValueError(f"h2load: {(done.stderr or done.stdout).strip()!r}")
    return Told(requests, times[requests // 2], times[requests * 99 // 100])


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.web_load", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--size", type=int, required=True, help="bytes of the page")
    parser.add_argument("--page", required=True)
    parser.add_argument("--streams", type=int, default=0, help="requests at once on a connection, over HTTP/2")
    parser.add_argument("--warmup", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    program, load = ("h2load", _by_h2load) if options.streams else ("wrk", _by_wrk)
    if shutil.which(program) is None:
        sys.exit(f"web servers are loaded with {program}, which is not installed")
    try:
        load(options, options.warmup)
        began, cpu, waited = time.perf_counter(), _cpu_ns(options.pid), _waited_ns(options.pid)
        told = load(options, options.seconds)
        seconds = time.perf_counter() - began
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        phase = {
            "seconds": seconds,
            "requests": told.requests,
            "cpu_ns": _cpu_ns(options.pid) - cpu,
            "load_cpu_ns": int((own.ru_utime + own.ru_stime) * 1e9),
            "waited_ns": _waited_ns(options.pid) - waited,
            "p50_us": told.p50,
            "p99_us": told.p99,
        }
        if told.requests == 0:
            raise ValueError("the server answered no request")
    except (OSError, ValueError) as error:
        say({"error": str(error)})
        return
    say({"phases": [phase], "resident_kib": [0, 0]})


if __name__ == "__main__":
    main()
