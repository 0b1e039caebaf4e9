"""The workloads: every module of this package, in the order of their names.

A module of a workload says what it is (`WORKLOAD`) and holds `async def main(stage)` in plain Trio. It must
not know on which backend it runs.
"""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.model import Workload


def find_workloads() -> tuple[Workload, ...]:
    """All of them. A process that plays one imports that one by its name, and not the others."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}").WORKLOAD for name in names)
