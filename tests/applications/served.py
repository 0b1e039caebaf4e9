"""What a program says of the run that it is in. Knows Trio's public statistics and /proc; knows nothing of trio-uring."""

from __future__ import annotations

import contextlib
import os

import trio


def facts() -> dict[str, object]:
    """The backend of the current run, as Trio itself reports it, and the process."""
    statistics = trio.lowlevel.current_statistics().io_statistics
    return {"backend": getattr(statistics, "backend", None), "pid": os.getpid()}


def used() -> dict[str, object]:
    """The backend of the current run, and how many rings and epoll instances the process has."""
    kinds = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor that listed the directory
            kinds.append(os.readlink(f"/proc/self/fd/{name}"))
    return {
        "backend": facts()["backend"],
        "eventpolls": kinds.count("anon_inode:[eventpoll]"),
        "rings": kinds.count("anon_inode:[io_uring]"),
    }
