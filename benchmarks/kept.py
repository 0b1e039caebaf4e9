"""The results that are kept in results/, by case: the last of each. What tables and plots are made of.

Knows the JSON document of report.py; knows no harness and no process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.model import Spread

RESULTS = Path(__file__).parent / "results"
"""Where `--keep NAME` writes NAME.json."""


class Kept(NamedTuple):
    """One case as it was measured: by whom, when and on what, and the case's part of the document."""

    machine: Mapping[str, str]
    settings: Mapping[str, Any]
    case: Mapping[str, Any]

    def spread(self, contender: str, metric: str) -> Spread | None:
        """The median of the metric, and its extremes; None where it was not measured."""
        found = self.case["contenders"].get(contender, {}).get("figures", {}).get(metric)
        return Spread(**found) if found else None

    def ratio(self, contender: str, metric: str, to: str) -> Spread | None:
        """The metric over another contender's, round by round."""
        rounds = self.case["rounds"]
        pairs = zip(rounds.get(contender, []), rounds.get(to, []), strict=False)
        ratios = [a["figures"][metric] / b["figures"][metric] for a, b in pairs if a and b and b["figures"].get(metric)]
        return Spread.of(ratios) if ratios else None


def last(directory: Path = RESULTS) -> dict[str, Kept]:
    """Every case that is kept, by its full name."""
    documents = sorted(
        (json.loads(path.read_text()) for path in directory.glob("*.json")), key=lambda d: d["machine"]["date"]
    )
    return {case["case"]: Kept(d["machine"], d["settings"], case) for d in documents for case in d["cases"]}


def without_raw(document: dict[str, Any]) -> dict[str, Any]:
    """The document as it is kept: every round's figures, and not what they were computed from."""
    for case in document["cases"]:
        for name, rounds in case["rounds"].items():
            case["rounds"][name] = [measured and {"figures": measured["figures"]} for measured in rounds]
    return document
