"""The machine that the figures are from: cores, kernel, versions, limits.

Knows /proc, the affinity and the limits of this process. Changes one thing: it raises the soft limit of
open files.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cores:
    """Where the server and the load generator run. On a machine with one core they share it."""

    server: int
    load: int

    @property
    def shared(self) -> bool:
        return self.server == self.load


def choose_cores() -> Cores:
    """The last core that this process may use for the server, the first for the load."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(server=allowed[-1], load=allowed[0])


def raise_open_files() -> int:
    """Raise the soft limit of open files to the hard one, here and in processes started later; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _cpu_facts() -> tuple[str, bool]:
    model, virtual = "unknown", False
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and model == "unknown":
            model = value.strip()
        if key.strip() == "flags":
            virtual = virtual or "hypervisor" in value.split()
    return model, virtual


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """The commit of this checkout, with a mark if the tree differs from it; empty outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run(
        [git, "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def describe(cores: Cores, distributions: Iterable[str]) -> dict[str, str]:
    """The header of the report, as names and values."""
    model, virtual = _cpu_facts()
    facts = {
        "CPU": f"{model}{' (virtual machine)' if virtual else ''}, {os.cpu_count()} cores",
        "pinned": f"server to core {cores.server}, load generator to core {cores.load}; without one, to both"
        + (" (one core for both: figures other than CPU mean little)" if cores.shared else ""),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for distribution in distributions:
        facts[distribution] = _version(distribution)
    if revision := _revision():
        facts["revision"] = revision
    if options := os.environ.get("TRIO_URING_OPTIONS"):
        facts["TRIO_URING_OPTIONS"] = options
    return facts
