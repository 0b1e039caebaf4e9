"""What is written at the end: the table, the verdict on each target, the JSON document.

Knows how figures look; measures nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.model import CANDIDATE, METRICS, REFERENCE, Contender, Results, Spread, Target

DISTURBED = 0.03
"""Share of the window that a server may wait for its core before the round is named as disturbed."""

_SATURATED = 0.95


def number(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}"


def range_text(spread: Spread | None, decimals: int) -> str:
    """The median, and the smallest and largest value as such: 17.2 (16.9..18.0)."""
    if spread is None:
        return "-"
    middle = number(spread.median, decimals)
    if spread.low == spread.high:
        return middle
    return f"{middle} ({number(spread.low, decimals)}..{number(spread.high, decimals)})"


def cell_text(spread: Spread | None, decimals: int) -> str:
    """The same in the width of a table: 17.2 -2+5%, which is how far the extremes are from the median."""
    if spread is None:
        return "-"
    middle = number(spread.median, decimals)
    if spread.low == spread.high or spread.median <= 0:
        return middle
    below, above = (spread.median - spread.low) / spread.median, (spread.high - spread.median) / spread.median
    return f"{middle} -{100 * below:.0f}+{100 * above:.0f}%"


def _columns(results: Results) -> list[str]:
    idle = results.case.load is not None and results.case.load.idle > 0
    more = ["kept", "idle_kib"] if idle else ["calls"]
    return ["cpu_us", "rate", "p50_us", "p99_us", *more, *(["threads"] if results.case.load is None else []), "busy"]


def table(results: Results, contenders: Sequence[Contender]) -> list[str]:
    """The lines of one case: a row for each contender, then targets, then notes on the rounds."""
    columns = _columns(results)
    headings = ["", METRICS["cpu_us"].heading, f"of {REFERENCE}"]
    rows = [[*headings, *(METRICS[c].heading for c in columns[1:])]]
    after: list[str] = []
    for contender in contenders:
        note = results.notes.get(contender.name)
        if not any(m is not None for m in results.rounds.get(contender.name, [])):
            rows.append([contender.title, note or "not measured"])
            continue
        if note:
            after.append(f"{contender.title}: {note}")
        row = [contender.title]
        for metric in columns:
            row.append(cell_text(results.spread(contender.name, metric), METRICS[metric].decimals))
            if metric == "cpu_us":
                row.append(cell_text(results.ratio(contender.name, metric, REFERENCE), 3))
        rows.append(row)
        after.extend(_warnings(results, contender))
    lines = [f"{results.name}: {results.workload.title}, {results.case.title}", *_aligned(rows)]
    lines += [f"  {verdict(results, target)}" for target in results.case.targets]
    return [*lines, *(f"  note: {line}" for line in after)]


def _aligned(rows: list[list[str]]) -> list[str]:
    full = [row for row in rows if len(row) > 2]
    widths = [max(len(row[i]) for row in full) for i in range(len(full[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        if len(row) == 2:
            lines.append(f"  {first}  {row[1]}")
        else:
            cells = "  ".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            lines.append(f"  {first}  {cells}")
    return lines


def _warnings(results: Results, contender: Contender) -> list[str]:
    played = [m for m in results.rounds[contender.name] if m is not None]
    lines = []
    waits = [m.waited for m in played if m.waited > DISTURBED]
    if waits:
        lines.append(
            f"{contender.title}: disturbed in {len(waits)} of {len(played)} rounds"
            f" (waited for its core in up to {max(waits):.0%} of the window)"
        )
    limited = [m for m in played if m.load_busy > _SATURATED and m.figures["busy"] < _SATURATED]
    if limited:
        lines.append(
            f"{contender.title}: the load generator was the limit in {len(limited)} of {len(played)} rounds;"
            " throughput and percentiles are its own"
        )
    return lines


def target_text(target: Target) -> str:
    metric = METRICS[target.metric]
    if target.of is None:
        return f"{metric.heading} {target.bound}"
    return f"{metric.heading} {target.bound} times {target.of}"


def state(results: Results, target: Target) -> str:
    """met, missed, or not measured."""
    reached = results.reached(target)
    if reached is None:
        return "not measured"
    return "met" if target.met_by(reached.median) else "missed"


def verdict(results: Results, target: Target) -> str:
    """One line: what is promised, what was measured, met or missed."""
    decimals = 3 if target.of is not None else METRICS[target.metric].decimals
    measured = range_text(results.reached(target), decimals)
    return f"target: {CANDIDATE} {target_text(target)}: measured {measured}: {state(results, target)}"


def progress(results: Results, contender: str, turn: int) -> str:
    """The figures of one round, on one line."""
    measured = results.rounds[contender][turn]
    if measured is None:
        return f"failed: {results.notes.get(contender, '')}"
    f = measured.figures
    text = f"{f['cpu_us']:.2f} µs CPU, {f['rate']:,.0f}/s, p50 {f['p50_us']:,.1f}, p99 {f['p99_us']:,.1f} µs"
    if "idle_kib" in f:
        text += f", {f['kept']:.2f} of alone, {f['idle_kib']:.2f} KiB/idle"
    return text


def document(
    facts: Mapping[str, str],
    settings: Mapping[str, object],
    unavailable: Mapping[str, str],
    all_results: Sequence[Results],
) -> dict[str, Any]:
    """Everything, for the JSON file: medians and targets first, then every round as it was measured."""
    return {
        "machine": dict(facts),
        "settings": dict(settings),
        "unavailable": dict(unavailable),
        "cases": [_case_document(results) for results in all_results],
    }


def _case_document(results: Results) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name in results.rounds:
        figures = {m: s for m in METRICS if (s := results.spread(name, m)) is not None}
        ratio = results.ratio(name, "cpu_us", REFERENCE)
        summary[name] = {
            "figures": {m: vars(s) for m, s in figures.items()},
            "cpu_us_ratio": vars(ratio) if ratio else None,
            "calls_by_name": results.calls.get(name),
        }
    return {
        "case": results.name,
        "title": f"{results.workload.title}, {results.case.title}",
        "contenders": summary,
        "targets": [
            {"target": target_text(t), "measured": vars(r) if r else None, "state": state(results, t)}
            for t in results.case.targets
            for r in [results.reached(t)]
        ],
        "notes": results.notes,
        "rounds": {
            name: [{"figures": m.figures, "waited": m.waited, "raw": m.raw} if m else None for m in rounds]
            for name, rounds in results.rounds.items()
        },
    }


def comparison(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two documents, as lines: a figure whose rounds all lie beyond all of the old ones.

    The reference's own changes are the machine's, so each figure is compared as its ratio to the reference's where there is one.
    """
    before = {case["case"]: case["contenders"] for case in old["cases"]}
    lines = [f"against {old['machine'].get('revision', 'an unknown revision')} of {old['machine']['date']}"]
    compared = 0
    for case in new["cases"]:
        for name, now in case["contenders"].items():
            then = before.get(case["case"], {}).get(name)
            if then is None or name == REFERENCE:
                continue
            kind = "cpu_us_ratio" if now["cpu_us_ratio"] and then["cpu_us_ratio"] else "cpu_us"
            this, that = (
                each["cpu_us_ratio"] if kind == "cpu_us_ratio" else each["figures"].get("cpu_us")
                for each in (now, then)
            )
            if this is None or that is None:
                continue
            compared += 1
            if this["low"] <= that["high"] and that["low"] <= this["high"]:
                continue
            what = f"CPU of {REFERENCE}'s" if kind == "cpu_us_ratio" else "CPU µs"
            was, became = (range_text(Spread(**each), 3) for each in (that, this))
            change = this["median"] / that["median"] - 1
            lines.append(f"  {case['case']} {name}: {what} {was} became {became}: {change:+.0%}")
    changed = len(lines) - 1
    return [*lines, f"  {compared} compared, {changed} changed beyond the spread"]
