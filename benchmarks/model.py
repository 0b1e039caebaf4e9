"""The words of the harness: workloads, cases, loads, targets, contenders, and what one measurement yields.

Knows no process, no clock, no file and neither Trio nor asyncio: everything here is a value or plain
arithmetic.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

REFERENCE = "trio-epoll"
"""The contender that ratios are taken to."""

CANDIDATE = "trio-uring"
"""The contender that targets are about."""


@dataclass(frozen=True)
class Metric:
    """One figure of a measurement: its column heading, and how it is written."""

    heading: str
    decimals: int
    unit: str = ""


METRICS: Mapping[str, Metric] = {
    "cpu_us": Metric("CPU µs", 2, " µs"),
    "rate": Metric("requests/s", 0, "/s"),
    "p50_us": Metric("p50 µs", 1, " µs"),
    "p99_us": Metric("p99 µs", 1, " µs"),
    "calls": Metric("calls", 3),
    "threads": Metric("threads", 0),
    "busy": Metric("busy", 2),
    "kept": Metric("of alone", 2),
    "idle_kib": Metric("KiB/idle", 2, " KiB"),
}


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the load generator does: `connections` with one outstanding request of `size` bytes each.

    `idle` more connections are opened and held; the case is then measured without them and with them. With `page`, the
    requests are for that page of a web server, `size` is its size, and wrk makes them; with `streams`, h2load, over HTTP/2
    and so many at once on each connection.
    """

    connections: int
    size: int
    idle: int = 0
    page: str = ""
    streams: int = 0

    @property
    def descriptors(self) -> int:
        """Open files that the server and the load generator each need, with some for the process itself."""
        return self.connections + self.idle + 100


@dataclass(frozen=True, kw_only=True)
class Target:
    """A figure that the project promises for `CANDIDATE`: a bound on a metric, or on its ratio to a
    contender's.

    Exactly one of `at_most` and `at_least` is given. With `of`, the metric is divided by that contender's
    in the same round.
    """

    metric: str
    at_most: float | None = None
    at_least: float | None = None
    of: str | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a target has one bound: give at_most or at_least")
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}: the metrics are {', '.join(METRICS)}")

    def met_by(self, value: float) -> bool:
        if self.at_most is not None:
            return value <= self.at_most
        assert self.at_least is not None
        return value >= self.at_least

    @property
    def bound(self) -> str:
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to play a workload: under a load from outside, or with `tasks` tasks that do the requests.

    `block` is the size of a request in bytes, where the workload leaves it to the case. `lap` is how many requests one turn
    of `Stage.laps` stands for: rates and CPU are for each request, p50 and p99 for each lap. `at` is where the case is on the
    axis of its workload's plot. `quick=False` leaves it out of `--quick`.
    """

    label: str = ""
    title: str
    load: Load | None = None
    tasks: int = 1
    block: int = 0
    lap: int = 1
    at: int | None = None
    quick: bool = True
    count_calls: bool = True
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A workload: what it is called, which job the contenders that are not Trio do for it, and its cases.

    `axis` names what differs between the cases, where a plot is made of them, and `plotted` the metric.
    """

    name: str
    title: str
    job: str
    cases: tuple[Case, ...]
    axis: str = ""
    plotted: str = "cpu_us"

    def full_name(self, case: Case) -> str:
        return f"{self.name}/{case.label}" if case.label else self.name


class Stage(Protocol):
    """What a contender's code is given. A server uses `serving`; code that performs requests, the rest."""

    @property
    def tasks(self) -> int:
        """How many tasks (or threads) perform requests at the same time."""

    @property
    def block(self) -> int:
        """The size of a request in bytes, where the case says one."""

    @property
    def seconds(self) -> float:
        """The measured window, for a contender that is a program with a window of its own."""

    @property
    def short(self) -> bool:
        """Whether the windows are short: what has to be made for them should be small."""

    def serving(self, port: int) -> None:
        """Tell the harness that 127.0.0.1:`port` is served now."""

    def laps(self) -> Iterable[None]:
        """One turn for each request, until the measured window is over; each task iterates over its own."""

    def measured(self, requests: int, seconds: float, cpu_seconds: float, p50_us: float, p99_us: float) -> None:
        """In place of `laps`: what another program has measured by itself; requests, not laps."""


Play = Callable[[str, Stage], None]
"""Plays the workload of that name on a stage; returns when it is over (a server never returns)."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A plug-in: something that can play workloads.

    `any_workload` plays what `jobs` does not name. `probe` raises, with a sentence, where the contender
    cannot run. `by_default=False` means only if `--contenders` names it. `python` names an environment variable: where that is
    set, it is the interpreter that this contender is played with, which has its libraries.
    """

    name: str
    title: str
    distributions: tuple[str, ...] = ()
    probe: Callable[[], None]
    jobs: Mapping[str, Play] = field(default_factory=dict)
    any_workload: Play | None = None
    by_default: bool = True
    python: str = ""

    def play_for(self, job: str) -> Play | None:
        return self.jobs.get(job, self.any_workload)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contender in one round of one case. `waited` and `load_busy` are shares of the window, 0 to 1."""

    figures: Mapping[str, float]
    waited: float = 0.0
    load_busy: float = 0.0
    raw: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """A median with the smallest and the largest value that it stands for."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Results:
    """All measurements of one case. `rounds[contender][i]` is round i, None where it failed."""

    workload: Workload
    case: Case
    rounds: dict[str, list[Measurement | None]] = field(default_factory=dict)
    calls: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.workload.full_name(self.case)

    def values(self, contender: str, metric: str) -> list[float | None]:
        """The metric in each round; system calls are counted once and stand for every round."""
        if metric == "calls":
            return [sum(self.calls[contender].values())] if contender in self.calls else []
        return [m.figures.get(metric) if m else None for m in self.rounds.get(contender, [])]

    def spread(self, contender: str, metric: str) -> Spread | None:
        values = [v for v in self.values(contender, metric) if v is not None]
        return Spread.of(values) if values else None

    def ratio(self, contender: str, metric: str, to: str) -> Spread | None:
        """The contender's metric over another's, round by round, without rounds in which either failed."""
        pairs = zip(self.values(contender, metric), self.values(to, metric), strict=False)
        ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
        return Spread.of(ratios) if ratios else None

    def reached(self, target: Target) -> Spread | None:
        """What was measured for a target; None if it was not measured."""
        if target.of is not None:
            return self.ratio(CANDIDATE, target.metric, target.of)
        return self.spread(CANDIDATE, target.metric)


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: A B C, then B C A, then C A B."""
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


def parse_strace_summary(text: str) -> dict[str, int]:
    """Calls by name from the table that `strace -c` writes.

    The columns are: % time, seconds, usecs/call, calls, errors (may be blank), syscall; the last line is
    the total.
    """
    calls: dict[str, int] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) in (5, 6) and fields[3].isdigit() and fields[-1] != "total":
            calls[fields[-1]] = calls.get(fields[-1], 0) + int(fields[3])
    return calls
