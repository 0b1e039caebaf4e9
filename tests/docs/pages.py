"""The pages of the documentation, as the tests read them: their links, their programs, their tables.

The programs of a page. A block of Python whose first line is `# name.py` is a file of that name. A console block is what a reader
types after `$`, and what it prints. `…` in an output stands for anything, a line with nothing else for any lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """One fenced block: what stands behind the fence, its text, and the line that it begins in."""

    kind: str
    text: str
    line: int


class Command(NamedTuple):
    """What is typed, and the lines that it prints."""

    typed: str
    printed: list[str]


def pages() -> list[Path]:
    """Every page, README among them."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found["kind"].strip(), found["text"], text.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(text)
    ]


def without_blocks(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def file_name(block: Block) -> str | None:
    """The name that a block of Python gives itself, if it is a file."""
    found = re.match(r"# (\S+\.py)\n", block.text)
    return found[1] if block.kind == "python" and found else None


def commands(block: Block) -> Iterator[Command]:
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        typed, *printed = part.splitlines()
        yield Command(typed, printed)


def as_printed(printed: list[str]) -> re.Pattern[str]:
    """Matches the whole of an output that is as the page says."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else ".*".join(re.escape(part) for part in line.split("…")) + r"\n"
        for line in printed
    ]
    return re.compile("".join(lines))


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
