"""The process that is measured: plays one workload with one contender. Started by the harness, not by hand.

Knows how a process is pinned and bounded. It ends with the harness (the kernel kills it when its parent
goes), at an alarm, or when it is terminated.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal

from benchmarks.contenders import contender_named
from benchmarks.stage import ProcessStage, say

ALARM_SECONDS = 480
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.player", description=__doc__)
    parser.add_argument("contender")
    parser.add_argument("workload", nargs="?")
    parser.add_argument("--job")
    parser.add_argument("--cores", required=True, help="the cores it may run on: 0,1")
    parser.add_argument("--probe", action="store_true", help="only say whether the contender can run here")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--block", type=int, default=0)
    parser.add_argument("--lap", type=int, default=1)
    parser.add_argument("--warmup", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--hold", action="store_true")
    options = parser.parse_args()

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.alarm(ALARM_SECONDS)
    os.sched_setaffinity(0, set(map(int, options.cores.split(","))))
    contender = contender_named(options.contender)
    if options.probe:
        contender.probe()
        say({"available": True})
        return
    play = contender.play_for(options.job)
    if play is None:
        parser.error(f"{contender.name} does not do the job {options.job!r}")
    stage = ProcessStage(
        tasks=options.tasks,
        warmup=options.warmup,
        seconds=options.seconds,
        requests=options.requests,
        hold=options.hold,
        block=options.block,
        lap=options.lap,
    )
    play(options.workload, stage)


if __name__ == "__main__":
    main()
