"""The command line: what is played, in which order, and what is printed. See the package's docstring for
the how-to.

Knows the other modules of the harness, and no figure, process or library itself.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import benchmarks
from benchmarks import kept, report
from benchmarks.contenders import CONTENDERS, contender_named
from benchmarks.machine import choose_cores, describe, raise_open_files
from benchmarks.model import Case, Contender, Results, Workload, rotated
from benchmarks.process import MeasurementError, Stagehand, Windows, compiled_load_generator
from benchmarks.workloads import find_workloads

FULL = Windows(warmup=0.7, seconds=2.0, requests=5000)
QUICK = Windows(warmup=0.2, seconds=0.4, requests=1000)
_BUILD = Path(__file__).parent.parent / "build" / "benchmarks"

Pair = tuple[Workload, Case]


def all_pairs() -> list[Pair]:
    return [(workload, case) for workload in find_workloads() for case in workload.cases]


def chosen_pairs(names: str | None) -> list[Pair]:
    """The cases that `--only` names, by workload or by workload/case. ValueError for an unknown name."""
    if names is None:
        return all_pairs()
    chosen: list[Pair] = []
    for name in names.split(","):
        found = [(w, c) for w, c in all_pairs() if name in (w.name, w.full_name(c))]
        if not found:
            known = ", ".join(dict.fromkeys(n for w, c in all_pairs() for n in (w.name, w.full_name(c))))
            raise ValueError(f"no workload {name!r}: there are {known}")
        chosen += [pair for pair in found if pair not in chosen]
    return chosen


def chosen_contenders(names: str | None) -> list[Contender]:
    if names is None:
        return [contender for contender in CONTENDERS if contender.by_default]
    return [contender_named(name) for name in names.split(",")]


class Progress:
    """Lines on standard error; on a terminal each replaces the one before it."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def step(self, text: str) -> None:
        self._done += 1
        left = (time.monotonic() - self._began) / self._done * (self._steps - self._done)
        line = f"[{self._done}/{self._steps}, {left:.0f} s left] {text}"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def play_case(
    hand: Stagehand,
    pair: Pair,
    contenders: Sequence[Contender],
    *,
    rounds: int,
    strace: bool,
    progress: Progress,
) -> Results:
    """All rounds of one case, contenders interleaved, then the counting of system calls."""
    workload, case = pair
    results = Results(workload, case)
    by_name = {contender.name: contender for contender in contenders}
    results.rounds = {name: [] for name in by_name}
    for turn in range(rounds):
        for name in rotated(list(by_name), turn):
            try:
                results.rounds[name].append(hand.measure(by_name[name], workload, case))
            except MeasurementError as error:
                results.rounds[name].append(None)
                results.notes[name] = f"failed in round {turn + 1}: {error}"
            said = report.progress(results, name, turn)
            progress.step(f"{results.name} round {turn + 1}/{rounds} {name}: {said}")
    if strace and case.count_calls:
        for name, contender in by_name.items():
            try:
                results.calls[name] = dict(hand.count_calls(contender, workload, case))
                said = f"{sum(results.calls[name].values()):.3f} system calls per request"
            except MeasurementError as error:
                said = f"system calls not counted: {error}"
                results.notes.setdefault(name, said)
            progress.step(f"{results.name} {name}: {said}")
    return results


def print_list(pairs: Sequence[Pair], contenders: Sequence[Contender], hand: Stagehand) -> None:
    print("workloads and targets")
    for workload, case in pairs:
        print(f"  {workload.full_name(case):20}  {workload.title}, {case.title}")
        for target in case.targets:
            print(f"  {'':20}    {report.target_text(target)}")
    print("contenders")
    for contender in contenders:
        reason = hand.why_unavailable(contender)
        state = f"not available: {reason}" if reason else "available"
        jobs = "every workload" if contender.any_workload else ", ".join(contender.jobs)
        print(f"  {contender.name:20}  {contender.title} ({jobs}): {state}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAME[,NAME]", help="workloads, or cases of them (workload/case)")
    parser.add_argument("--contenders", metavar="NAME[,NAME]", help="else all that run by default")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (else 5, with --quick 2)")
    parser.add_argument(
        "--quick", action="store_true", help="short windows, two rounds, fewer cases, no strace: four minutes"
    )
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="say what changed beyond the spread")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where every figure is written")
    parser.add_argument("--keep", metavar="NAME", help="keep the figures as benchmarks/results/NAME.json")
    parser.add_argument("--no-strace", action="store_true", help="do not count system calls")
    parser.add_argument("--check", action="store_true", help="exit status 1 unless every target is met")
    parser.add_argument("--list", action="store_true", help="say what there is, and measure nothing")
    options = parser.parse_args(arguments)
    if options.rounds is not None and not 1 <= options.rounds <= 100:
        parser.error("--rounds takes 1 to 100")
    try:
        options.old = json.loads(options.compare.read_text()) if options.compare else None
        options.pairs = chosen_pairs(options.only)
        if options.quick and options.only is None:
            options.no_strace = True
            options.pairs = [(workload, case) for workload, case in options.pairs if case.quick]
        options.chosen = chosen_contenders(options.contenders)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    windows = QUICK if options.quick else FULL
    rounds = options.rounds or (2 if options.quick else 5)
    cores = choose_cores()
    hand = Stagehand(cores, windows, raise_open_files())
    if options.list:
        print_list(all_pairs(), CONTENDERS, hand)
        return 0

    pairs: list[Pair] = options.pairs
    chosen: list[Contender] = options.chosen
    began = datetime.datetime.now()
    distributions = ["trio", "trio-uring", "uvloop", *(d for c in chosen for d in c.distributions)]
    facts = {"date": began.isoformat(" ", "seconds"), **describe(cores, dict.fromkeys(distributions))}
    settings = {**vars(windows), "rounds": rounds, "quick": options.quick}
    for name, value in facts.items():
        print(f"{name:12}  {value}")
    span = f"{windows.seconds:g} s after {windows.warmup:g} s of warm-up"
    print(f"{'rounds':12}  {rounds}, each of {span}", flush=True)
    try:
        compiled_load_generator()
    except MeasurementError as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2
    unavailable = {c.name: f"not available: {why}" for c in chosen if (why := hand.why_unavailable(c))}
    for name, why in unavailable.items():
        print(f"{name:12}  {why}", flush=True)

    def taking_part(pair: Pair) -> list[Contender]:
        return [c for c in chosen if c.play_for(pair[0].job) is not None]

    def able(pair: Pair) -> list[Contender]:
        return [c for c in taking_part(pair) if c.name not in unavailable]

    def steps(pair: Pair) -> int:
        if hand.why_not_measured(pair[1]):
            return 0
        return len(able(pair)) * (rounds + (pair[1].count_calls and not options.no_strace))

    progress = Progress(sum(steps(pair) for pair in pairs))
    all_results: list[Results] = []
    try:
        for pair in pairs:
            impossible = hand.why_not_measured(pair[1])
            if impossible is None:
                results = play_case(
                    hand, pair, able(pair), rounds=rounds, strace=not options.no_strace, progress=progress
                )
            else:
                results = Results(*pair)
            for contender in taking_part(pair):
                reason = unavailable.get(contender.name) or impossible
                if reason is not None:
                    results.notes[contender.name] = reason
            all_results.append(results)
            progress.clear()
            print("", *report.table(results, taking_part(pair)), sep="\n", flush=True)
    except KeyboardInterrupt:
        progress.clear()
        print("\ninterrupted: what was finished is kept")
    path: Path = options.json or _BUILD / f"{began:%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = report.document(facts, settings, unavailable, all_results)
    path.write_text(json.dumps(document, indent=1) + "\n")
    if options.keep is not None:
        kept.RESULTS.mkdir(exist_ok=True)
        (kept.RESULTS / f"{options.keep}.json").write_text(json.dumps(kept.without_raw(document), indent=0) + "\n")
    if options.old is not None:
        print("", *report.comparison(options.old, document), sep="\n")
    print(f"\nevery round: {path}")
    complete = len(all_results) == len(pairs)
    states = [report.state(results, target) for results in all_results for target in results.case.targets]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("met", "missed", "not measured") if s in states)
    print(f"targets: {counts or 'none'}")
    return 1 if options.check and (not complete or any(state != "met" for state in states)) else 0


if __name__ == "__main__":
    sys.exit(main())
