"""The inputs that the fuzzer of the ring has kept (fuzz_ring.py), and those that found something; `make fuzz` looks for more."""

from __future__ import annotations

from pathlib import Path

from fault_tools import on_faulty

HERE = Path(__file__).parent


def test_no_input_of_the_corpus_breaks_a_promise() -> None:
    """F3, F12, F13, F18, F22, F23, F24, F26, F36: calls on a ring and faults under them, in any order."""
    inputs = sorted(str(path) for path in (HERE / "corpus").iterdir())
    assert len(inputs) > 20
    done = on_faulty(str(HERE / "fuzz_ring.py"), "replay", *inputs)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == len(inputs)
