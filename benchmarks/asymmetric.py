"""The loop thread's own processor time with its I/O on another processor: `python -m benchmarks.asymmetric`.

A server that echoes messages of 1 KiB, in four ways: trio-uring as it comes, trio-uring in a ring group, and uvloop's two. The
loop has the last processor of this process for itself; the I/O processor of the group is the first, which the load generator has
in every measurement. For each: microseconds of the loop's thread for one echo and, of a group, of the poller; echoes per second;
p50 and p99 at the client; and system calls of the loop for one echo, counted by strace(1) in a pass of its own. Rounds are
interleaved, and the medians are what is printed; `--keep` keeps them for the table of docs/asymmetric.md.

Knows /proc and how the load generator is started; knows nothing of how a server does its work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.kept import RESULTS
from benchmarks.machine import choose_cores, describe
from benchmarks.model import Spread
from benchmarks.process import compiled_load_generator

WAYS = ("uring", "group", "uvloop-protocol", "uvloop-streams")
PATIENCE = 20.0


def serve(way: str, loop_cpu: int, io_cpu: int) -> None:
    """The measured process: prints its port, and ends with its standard input."""
    os.sched_setaffinity(0, {loop_cpu})
    if way.startswith("uvloop"):
        import uvloop

        from benchmarks.contenders import _protocol_echo, _stream_echo

        stage: Any = _Stage()
        uvloop.run((_protocol_echo if way == "uvloop-protocol" else _stream_echo)(stage))
        return
    import trio_uring
    from benchmarks.workloads.echo_stream_1k import main

    text = f"async_workers_cpuset={io_cpu}" if way == "group" else ""
    server_of: Any = main
    trio_uring.run(server_of, _Stage(), io_backend=trio_uring.UringBackend.from_text(text))


class _Stage:
    def serving(self, port: int) -> None:
        print(port, flush=True)


@contextmanager
def server(way: str, loop_cpu: int, io_cpu: int) -> Iterator[tuple[int, int]]:
    """A server of that kind: its process id and port."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.asymmetric",
        "--serve",
        way,
        "--loop",
        str(loop_cpu),
        "--io",
        str(io_cpu),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def thread_times(pid: int) -> dict[str, int]:
    """Nanoseconds on a processor so far: of the loop's thread, and of the poller and the workers together."""
    times = {"loop": 0, "kernel": 0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent = int((task / "schedstat").read_text().split()[0])
        if int(task.name) == pid:
            times["loop"] += spent
        elif (task / "comm").read_text().startswith("iou-"):
            times["kernel"] += spent
    return times


def load(pid: int, port: int, core: int, connections: int, seconds: float, warmup: float) -> subprocess.Popen[str]:
    """The load generator, started."""
    command = [str(compiled_load_generator()), "--port", str(port), "--pid", str(pid), "--core", str(core)]
    command += ["--connections", str(connections), "--size", "1024", "--warmup", str(warmup), "--seconds", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measure(way: str, connections: int, loop_cpu: int, io_cpu: int, seconds: float) -> dict[str, float]:
    """One round."""
    with server(way, loop_cpu, io_cpu) as (pid, port):
        client = load(pid, port, io_cpu, connections, seconds, warmup=0.5)
        time.sleep(0.5 + 0.15 * seconds)
        before, began = thread_times(pid), time.monotonic()
        time.sleep(0.6 * seconds)
        after, ended = thread_times(pid), time.monotonic()
        told = json.loads(client.communicate(timeout=PATIENCE + seconds)[0])
    phase = told["phases"][0] if "phases" in told else told
    rate = phase["requests"] / phase["seconds"]
    echoes = rate * (ended - began)
    return {
        "loop_us": (after["loop"] - before["loop"]) / echoes / 1e3,
        "kernel_us": (after["kernel"] - before["kernel"]) / echoes / 1e3,
        "rate": rate,
        "p50_us": phase["p50_us"],
        "p99_us": phase["p99_us"],
    }


def calls(way: str, connections: int, loop_cpu: int, io_cpu: int) -> float:
    """System calls of the loop's thread for one echo."""
    with server(way, loop_cpu, io_cpu) as (pid, port):
        client = load(pid, port, io_cpu, connections, 3.0, warmup=1.0)
        time.sleep(1.5)
        began = time.monotonic()
        trace = subprocess.Popen(["strace", "-c", "-p", str(pid)], stderr=subprocess.PIPE, text=True)
        time.sleep(1.5)
        trace.send_signal(signal.SIGINT)
        summary = trace.communicate(timeout=PATIENCE)[1]
        ended = time.monotonic()
        told = json.loads(client.communicate(timeout=PATIENCE)[0])
    phase = told["phases"][0] if "phases" in told else told
    total = re.search(r"^\s*100\.00\s+\S+\s+\S+\s+(\d+)", summary, re.MULTILINE)
    made = int(total[1]) if total else 0
    return made / float(phase["requests"] / phase["seconds"] * (ended - began))


def idle(loop_cpu: int, io_cpu: int) -> tuple[float, float]:
    """What an idle server in a group burns in a second, when all sleep: microseconds of the loop and of the kernel."""
    with server("group", loop_cpu, io_cpu) as (pid, _):
        time.sleep(1.0)
        before = thread_times(pid)
        time.sleep(3.0)
        after = thread_times(pid)
    return tuple((after[name] - before[name]) / 3e3 for name in ("loop", "kernel"))  # type: ignore[return-value]


def case(name: str, rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """As report.py writes one."""

    def figures(measured: list[dict[str, float]]) -> dict[str, Any]:
        return {name: vars(Spread.of([each[name] for each in measured])) for name in measured[0]}

    return {
        "case": name,
        "contenders": {way: {"figures": figures(measured)} for way, measured in rounds.items()},
        "rounds": {way: [{"figures": each} for each in measured] for way, measured in rounds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asymmetric", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--connections", default="50,500")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--keep", action="store_true", help="keep the figures as benchmarks/results/asymmetric.json")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--loop", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--io", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.loop, options.io)
        return
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        parser.error("this needs two processors")
    io_cpu, loop_cpu = cpus[0], cpus[-1]
    ways = options.ways.split(",")
    cases: list[dict[str, Any]] = []
    for connections in map(int, options.connections.split(",")):
        rounds: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(options.rounds):
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                rounds[way].append(measure(way, connections, loop_cpu, io_cpu, options.seconds))
        print(f"{connections} connections: medians of {options.rounds} rounds")
        for way in ways:
            made = calls(way, connections, loop_cpu, io_cpu)
            for each in rounds[way]:
                each["calls"] = made
            median = {name: statistics.median(each[name] for each in rounds[way]) for name in rounds[way][0]}
            print(
                f"  {way:16} loop {median['loop_us']:6.2f} µs  poller {median['kernel_us']:6.2f} µs  {median['rate']:8.0f}/s  "
                f"p50 {median['p50_us']:6.0f} µs  p99 {median['p99_us']:6.0f} µs  calls {made:6.3f}",
                flush=True,
            )
        cases.append(case(f"asymmetric/{connections}", rounds))
    if options.keep:
        facts = {
            "date": datetime.datetime.now().isoformat(" ", "seconds"),
            **describe(choose_cores(), ["trio", "trio-uring", "uvloop"]),
        }
        settings = {"rounds": options.rounds, "seconds": options.seconds}
        document = {"machine": facts, "settings": settings, "cases": cases}
        (RESULTS / "asymmetric.json").write_text(json.dumps(document, indent=0) + "\n")
    if "group" in ways:
        print("idle, in a second: loop {:.0f} µs, kernel {:.0f} µs".format(*idle(loop_cpu, io_cpu)))


if __name__ == "__main__":
    main()
