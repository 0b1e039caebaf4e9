"""Full load with everything that can go wrong at once, for a few seconds (soak.py); `make soak` does it for a minute."""

from __future__ import annotations

import json
from pathlib import Path

from fault_tools import on_faulty


def test_a_few_seconds_at_full_load() -> None:
    """F11, F18, F28, F35: cancels, resets, half-closes, no descriptors, signals: every byte is accounted for, nothing is left."""
    done = on_faulty(str(Path(__file__).with_name("soak.py")), "3")
    assert done.stdout, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert done.returncode == 0, told
    assert told["wrong"] == []
    for what in (
        "bytes",
        "cancelled sends",
        "cancelled receives",
        "resets",
        "half-closes",
        "phases without descriptors",
    ):
        assert told["done"].get(what), what
