"""No figure in README or docs/ that a command does not reproduce: tables and plots are those of the results that are kept."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, ROOT, pages

sys.path.append(str(ROOT))

from benchmarks import kept, plots, report, tables
from benchmarks.__main__ import all_pairs

RATIO = {"median": 0.5, "low": 0.45, "high": 0.55}


def results() -> dict[str, kept.Kept]:
    return kept.last()


@pytest.mark.parametrize("name", tables.PAGES)
def test_tables_are_what_was_measured_last(name: str) -> None:
    text = (ROOT / name).read_text()
    assert tables.BLOCK.search(text), f"{name} has no table of figures"
    assert tables.written(text, results()) == text, "run: python -m benchmarks.tables"


def test_of_the_loops_in_groups_everything_was_measured() -> None:
    for name in tables.ASYMMETRIC:
        for way in tables.WAYS:
            for metric in ("loop_us", "kernel_us", "calls", "rate", "p50_us", "p99_us"):
                assert results()[name].spread(way, metric), (name, way, metric)


def test_every_row_names_a_workload_that_there_is_and_that_was_measured() -> None:
    known = {workload.full_name(case) for workload, case in all_pairs()}
    for row in {row for rows in tables.TABLES.values() for row in rows}:
        assert row.case in known, f"{row.title}: no workload {row.case}"
        measured = results()[row.case]
        for contender in (row.to, "trio-uring"):
            assert measured.spread(contender, row.metric), f"{row.case}: nothing of {contender}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_table_of_figures_is_written_by_hand(page: Path) -> None:
    """On no page: a row with a time, a rate or a gain, or under a heading of one, belongs between the marks, or else below the
    command that prints it."""
    text = tables.BLOCK.sub("", page.read_text())
    text = re.sub(r"`python -m benchmarks\.\w+`.*\n\n(\|.*\n)+", "", text)
    unit = r"\d (µs|times)\b|\d/s\b|\d a second\b|, (µs|ms) \||\| (µs|ms) \|"
    by_hand = [line for line in text.splitlines() if line.startswith("|") and re.search(unit, line)]
    assert not by_hand, "give it a workload and a place in benchmarks/tables.py"


@pytest.mark.parametrize("workload", plots.plotted(), ids=lambda workload: workload.name)
def test_plots_are_of_what_was_measured_last(workload: Any) -> None:
    assert plots.stamp(workload, results()) in (plots.DIRECTORY / f"{workload.name}.svg").read_text(), (
        "run: python -m benchmarks.plots"
    )
    assert (plots.DIRECTORY / f"{workload.name}.png").read_bytes().startswith(b"\x89PNG")
    assert f"plots/{workload.name}.svg" in "".join(page.read_text() for page in DOCS.glob("*.md")), (
        "a plot that no page shows"
    )
    for points in plots.lines(workload, results()).values():
        assert all(low <= median <= high for _, median, low, high in points)
    assert len(plots.lines(workload, results())["trio-uring"]) == len(workload.cases)


def document(ratio: dict[str, float], date: str = "2026-01-01 10:00:00") -> dict[str, Any]:
    figures = {"cpu_us": {"median": 10.0, "low": 9.0, "high": 11.0}}
    contenders = {
        "trio-epoll": {"figures": figures, "cpu_us_ratio": {"median": 1.0, "low": 1.0, "high": 1.0}},
        "trio-uring": {"figures": figures, "cpu_us_ratio": ratio},
    }
    return {"machine": {"date": date, "revision": "abc"}, "cases": [{"case": "echo", "contenders": contenders}]}


@pytest.mark.parametrize(
    ("low", "median", "high", "said"),
    [
        (0.50, 0.60, 0.70, None),  # overlaps
        (0.56, 0.60, 0.70, "+20%"),
        (0.30, 0.40, 0.44, "-20%"),
        (0.30, 0.40, 0.45, None),  # touches
    ],
)
def test_a_comparison_names_what_changed_beyond_the_spread(
    low: float, median: float, high: float, said: str | None
) -> None:
    lines = report.comparison(document(RATIO), document({"median": median, "low": low, "high": high}))
    assert lines[0] == "against abc of 2026-01-01 10:00:00"
    assert lines[-1] == f"  1 compared, {0 if said is None else 1} changed beyond the spread"
    assert len(lines) == (2 if said is None else 3)
    assert said is None or lines[1].endswith(said)


def test_of_a_case_that_was_measured_twice_the_last_counts(tmp_path: Path) -> None:
    for name, date in (("b", "2026-01-01 10:00:00"), ("a", "2026-01-02 10:00:00"), ("c", "2026-01-01 09:00:00")):
        (tmp_path / f"{name}.json").write_text(json.dumps({**document(RATIO, date), "settings": {}}))
    assert kept.last(tmp_path)["echo"].machine["date"] == "2026-01-02 10:00:00"
