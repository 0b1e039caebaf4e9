"""The plots: `python -m benchmarks.plots [DIRECTORY]` draws them out of the results that are kept, into docs/plots/.

One plot for each workload that has an axis, one line for each contender: the median of the rounds, and as a band their extremes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.kept import Kept, last
from benchmarks.model import CANDIDATE, METRICS, REFERENCE, Workload
from benchmarks.tables import TITLES
from benchmarks.workloads import find_workloads

DIRECTORY = Path(__file__).parent.parent / "docs" / "plots"
YS = {"cpu_us": "CPU µs, each", "p99_us": "99th percentile, µs", "rate": "a second"}


def plotted() -> list[Workload]:
    """The workloads of which there is a plot."""
    return [workload for workload in find_workloads() if workload.axis]


def stamp(workload: Workload, kept: Mapping[str, Kept]) -> str:
    """What stands in a plot and says of which results it is."""
    dates = sorted({kept[workload.full_name(case)].machine["date"] for case in workload.cases})
    return f"{workload.name} of {', '.join(dates)}"


def lines(workload: Workload, kept: Mapping[str, Kept]) -> dict[str, list[tuple[int, float, float, float]]]:
    """By contender, for each place on the axis where it was measured: the place, the median, the lowest and the highest."""
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for case in workload.cases:
        measured = kept[workload.full_name(case)]
        for name in measured.case["rounds"]:
            spread = measured.spread(name, workload.plotted)
            if spread is not None and case.at is not None:
                found.setdefault(name, []).append((case.at, spread.median, spread.low, spread.high))
    return found


def draw(workload: Workload, kept: Mapping[str, Kept], directory: Path) -> None:
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = workload.name
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    for name, points in lines(workload, kept).items():
        at, median, low, high = zip(*points, strict=True)
        strong = {CANDIDATE: {"color": "#c0392b", "linewidth": 2.6}, REFERENCE: {"color": "#34495e", "linewidth": 2.0}}
        (line,) = axes.plot(
            at, median, marker="o", markersize=4, label=TITLES[name], **strong.get(name, {"linewidth": 1.2})
        )
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    places = [case.at for case in workload.cases]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,g}"))
    axes.set_xlabel(workload.axis)
    axes.set_ylabel(YS.get(workload.plotted, METRICS[workload.plotted].heading))
    axes.set_title(workload.title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    said = stamp(workload, kept)
    figure.savefig(directory / f"{workload.name}.png", dpi=110, metadata={"Description": said, "Software": None})
    figure.savefig(directory / f"{workload.name}.svg", metadata={"Description": said, "Date": None, "Creator": None})
    pyplot.close(figure)


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    kept = last()
    for workload in plotted():
        draw(workload, kept, directory)
        print(directory / f"{workload.name}.svg", file=sys.stderr)


if __name__ == "__main__":
    main()
