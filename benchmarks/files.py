"""What the file workloads read and write: made once, kept beside the results, the same for every contender.

Knows the disk; knows no event loop and no contender.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

DATA = Path(__file__).parent.parent / "build" / "benchmarks" / "data"
"""On the disk of the checkout: a tmpfs has no O_DIRECT, and a cache of its own is what it is."""

BLOCK = 4096
BLOCKS = 16384
"""Blocks of the file for positional reads: 64 MiB."""

FILES = 1000
LINE = "the quick brown fox jumps over the lazy dog, and then does it again, and again, and once more: {:7}\n"
TEXT_BYTES = 100_000_000


def made(name: str, parts: Callable[[], Iterable[bytes]]) -> Path:
    """The file of that name with these contents, written if it is not there yet."""
    path = DATA / name
    if not path.exists():
        DATA.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=DATA, delete=False) as file:
            file.writelines(parts())
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)  # whole or not at all, whoever else makes it now
    return path


def cached(path: Path) -> Path:
    """The same, in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    return path


def file_of_blocks() -> Path:
    """Every block begins with its offset, so that a read can be checked."""
    places = range(0, BLOCKS * BLOCK, BLOCK)
    return made("blocks", lambda: (place.to_bytes(8, "little").ljust(BLOCK, b".") for place in places))


def offsets(seed: int) -> Iterator[int]:
    """Offsets of blocks, the same for every contender."""
    source = random.Random(seed)
    return itertools.cycle([source.randrange(BLOCKS) * BLOCK for _ in range(4096)])


def check(place: int, data: bytes) -> None:
    """RuntimeError unless `data` is the block at offset `place`."""
    if len(data) != BLOCK or int.from_bytes(data[:8], "little") != place:
        raise RuntimeError(f"the read at {place} brought {len(data)} bytes of another place")


def small_files() -> list[str]:
    """Paths of 1,000 different files of 4 KiB, in the page cache; shuffled, the same way each time."""
    paths = [str(cached(made(f"small-{number}", lambda: [b"x" * BLOCK]))) for number in range(FILES)]
    random.Random(1).shuffle(paths)
    return paths


def text_file() -> Path:
    """100 MB of text in the page cache, a million lines of 100 bytes."""
    lines = TEXT_BYTES // len(LINE.format(0))
    return cached(made("lines", lambda: (LINE.format(number).encode() for number in range(lines))))


def large_file(size: int) -> Path:
    """A file of that many bytes, in the page cache."""
    return cached(made(f"large-{size}", lambda: itertools.repeat(bytes(1 << 20), size >> 20)))
