"""The load of a web server: wrk fetches one page over and over. Started by the harness, in place of load.c.

Knows wrk's command line and what it prints, and the messages of load.c, which it speaks. CPU time is that of the whole server
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
import time

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.web_load", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--size", type=int, required=True, help="bytes of the page")
    parser.add_argument("--page", required=True)
    parser.add_argument("--warmup", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    if shutil.which("wrk") is None:
        sys.exit("web servers are loaded with wrk, which is not installed")
    try:
        _wrk(options, options.warmup)
        began, cpu, waited = time.perf_counter(), _cpu_ns(options.pid), _waited_ns(options.pid)
        said = _wrk(options, options.seconds)
        seconds = time.perf_counter() - began
        requests = int(_found(r"(\d+) requests in", said))
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        phase = {
            "seconds": seconds,
            "requests": requests,
            "cpu_ns": _cpu_ns(options.pid) - cpu,
            "load_cpu_ns": int((own.ru_utime + own.ru_stime) * 1e9),
            "waited_ns": _waited_ns(options.pid) - waited,
            "p50_us": _microseconds(_found(r"(?m)^\s+50%\s+(\S+)", said)),
            "p99_us": _microseconds(_found(r"(?m)^\s+99%\s+(\S+)", said)),
        }
        if requests == 0:
            raise ValueError("the server answered no request")
    except (OSError, ValueError) as error:
        say({"error": str(error)})
        return
    say({"phases": [phase], "resident_kib": [0, 0]})


if __name__ == "__main__":
    main()
