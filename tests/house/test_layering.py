"""The house: each folder of trio_uring is a layer and imports only those below it; docs/CONTRIBUTING.md says the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trio_uring"

# From the bottom up. Folders of one line do not import each other.
LAYERS = [
    {"_ring"},
    {"_loop"},
    {"_sockets", "_files", "_positional", "_groups"},
    {"_observe"},
    {"_entry"},
]
FLOOR = {folder: floor for floor, folders in enumerate(LAYERS) for folder in sorted(folders)}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the dotted name of everything of ours that a module imports, wherever in it."""
    package = ("trio_uring", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{name}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name


@pytest.mark.parametrize("folder", sorted(FLOOR))
def test_a_layer_imports_only_those_below_it(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((PACKAGE / folder).glob("*.py"))
        for line, name in imported(path)
        if name.startswith("trio_uring.")
        and (other := name.split(".")[1]) not in (folder, "_ffi", "_version")
        and FLOOR.get(other, len(LAYERS)) >= FLOOR[folder]
    ]
    assert not wrong


def test_the_rooms_of_a_layer_have_no_circle() -> None:
    reached: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.glob("_*/*.py")):
        here = f"{path.parent.name}.{path.stem}"
        reached[here] = {
            ".".join(name.split(".")[1:3]) for _, name in imported(path) if name.startswith("trio_uring._")
        }
    ready: set[str] = set()
    while missing := reached.keys() - ready:
        free = {room for room in missing if not (reached[room] & missing - {room})}
        assert free, f"a circle of imports among {sorted(missing)}"
        ready |= free


@pytest.mark.parametrize("path", sorted((PACKAGE / "_ring").glob("*.py")), ids=lambda path: path.stem)
def test_the_ring_knows_no_trio(path: Path) -> None:
    names = {name.split(".")[0] for _, name in imported(path)}
    assert not names & {"trio", "anyio", "outcome", "sniffio"}


def test_every_folder_is_a_layer_and_in_the_table_of_contributing() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("_*/__init__.py")}
    assert folders == FLOOR.keys()
    table = re.findall(r"^\| `trio_uring/(_\w+)/`", (ROOT / "docs" / "CONTRIBUTING.md").read_text(), re.M)
    assert len(table) == len(set(table))
    assert set(table) == folders
    floors = [FLOOR[folder] for folder in table]
    assert floors == sorted(floors, reverse=True)
