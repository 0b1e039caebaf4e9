"""What the suite has found in this package and no test of its own says: reduced. Knows the ring.

(That memory stayed pinned after a run had broken down, `test_the_run_breaks_down` says by itself.)
"""

from __future__ import annotations

from typing import Any

import pytest

from trio_uring._ring import ring as _ring
from trio_uring._ring.ring import FIRST_USER_DATA, Ring


def test_a_closed_ring_is_not_asked_to_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine that sleeps in an operation cancels it when it is closed. The garbage collector may close it together with
    the ring, and free the shim's half of the ring first.
    """
    ring = Ring(2, 4)
    ring.close()

    class Freed:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was called with memory that is free")

    with monkeypatch.context() as patch:
        patch.setattr(_ring, "lib", Freed())
        ring.cancel(FIRST_USER_DATA)
