"""Nearest neighbours over a file of 1 GB, by the program of docs/howto/vectors.md as it stands there: what its workload shares.

Knows that page, and the disk; knows nothing of the harness but its stage. A run is over when all queries are answered, not when a
window is.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import pickle
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.files import DATA, cached
from benchmarks.model import Stage

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "vectors.md"
COUNT, SHORT_COUNT = 250_000, 25_000
QUERIES = 256
COLD = 1
"""The case's block size says which it is."""


def program() -> Any:
    """The page's program, as a module."""
    found = re.search(r"^```python\n(# nearest\.py\n.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found, "the page has no program"
    DATA.mkdir(parents=True, exist_ok=True)
    path = DATA / f"nearest-{os.getpid()}.py"
    path.write_text(found[1])
    try:
        spec = importlib.util.spec_from_file_location("nearest", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        path.unlink()
    return module


class Search:
    """A file of vectors, its index, and what is looked for."""

    def __init__(self, stage: Stage) -> None:
        import numpy as np

        count = SHORT_COUNT if stage.short else COUNT
        self.stage = stage
        self.nearest = program()
        path, index = DATA / f"vectors-{count}", DATA / f"vectors-{count}.index"
        if not index.exists():
            DATA.mkdir(parents=True, exist_ok=True)
            made = self.nearest.make(path, count)
            index.write_bytes(pickle.dumps(made))
        self.path = path
        self.index = pickle.loads(index.read_bytes())
        self.fd = os.open(path, os.O_RDONLY)
        self.memory = mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)
        self.memory.madvise(mmap.MADV_RANDOM)
        vectors = np.frombuffer(self.memory, np.float32).reshape(-1, self.nearest.WORDS)
        chosen = np.random.default_rng(2).integers(count, size=QUERIES)
        self.queries = [vectors[number] + np.float32(0.01) for number in chosen]
        self.chosen = chosen.tolist()

    def begin(self) -> None:
        """Brings the page cache into the state of the case. RuntimeError where the file would not leave it."""
        if self.stage.block != COLD:
            cached(self.path)
        else:
            self.nearest.forget(self.fd, self.memory)
            said = subprocess.run(["fincore", "-n", "-b", "-o", "RES", self.path], check=True, capture_output=True)
            if int(said.stdout):
                raise RuntimeError(f"{int(said.stdout)} bytes of the file are in the page cache still")
        self.began = time.monotonic(), time.process_time()

    def over(self, found: list[Any]) -> None:
        wall, cpu = time.monotonic() - self.began[0], time.process_time() - self.began[1]
        if [nearest.found[0][1] for nearest in found] != self.chosen:
            raise RuntimeError("another vector was found than that beside which each query was chosen")
        lap = wall / QUERIES * self.nearest.WORKERS * 1e6
        self.stage.measured(sum(nearest.read for nearest in found), wall, cpu, lap, lap)


def play(name: str) -> Callable[[str, Stage], None]:
    """One of the page's ways, as a contender's."""

    def played(_workload: str, stage: Stage) -> None:
        search = Search(stage)
        run = search.nearest.ways(search.fd, search.memory, search.index)[name]
        search.begin()
        search.over(run(search.queries))

    return played
