"""What the documentation says is so: its programs print what it prints, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, ROOT, anchors, as_printed, blocks, commands, file_name, pages, without_blocks

SECONDS = 120  # a bound, not a measure of speed
WITH_PROGRAMS = [page for page in pages() if any(map(file_name, blocks(page)))]


def typed(command: str, directory: Path) -> str:
    """Types a command into a shell's place: variables first, then a program; answers what it printed."""
    words = shlex.split(command)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRIO_", "PYTEST_"))}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    program = {"python": [sys.executable], "pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]}
    done = subprocess.run(
        [*program[words[0]], *words[1:]],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    made, run = set(), set()
    for block in blocks(page):
        if name := file_name(block):
            (tmp_path / name).write_text(block.text)
            made.add(name)
        elif block.kind == "console":
            for command in commands(block):
                printed = typed(command.typed, tmp_path)
                assert as_printed(command.printed).fullmatch(printed), (
                    f"{page}:{block.line}: {command.typed}\n{printed}"
                )
                run |= {word for word in shlex.split(command.typed) if word in made}
    assert run == made, "a program that the page does not run"


def test_the_pages_with_programs_are_known() -> None:
    """One that loses its programs (a renamed fence, say) is noticed."""
    assert DOCS / "tutorial.md" in WITH_PROGRAMS
    assert {page.name for page in (DOCS / "howto").glob("*.md")} <= {page.name for page in WITH_PROGRAMS}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Read as files, too, and not only as Sphinx makes them: on the way to the code most people read them there."""
    for target in re.findall(r"\]\(([^()\s]+)\)", without_blocks(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


def test_readme_is_short_and_has_one_picture() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 100
    assert readme.count("![") == 1, "one picture"


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text()
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS).with_suffix(""))
        assert name == "index" or name.startswith(("demo/", "examples/")) or f"\n{name}\n" in index, name


def test_commands_that_pages_name_exist() -> None:
    """`make x`, and `python -m trio_uring x`."""
    targets = set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets |= {
        name
        for line in re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for name in line.split()
    }
    for page in pages():
        for name in re.findall(r"`make ([a-z-]+)|^ {4}make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert set(name) & targets, f"{page.name}: make {name}"


def test_every_finding_is_told_and_none_else() -> None:
    told = set(re.findall(r"`findings/([\w.]+)`", (DOCS / "findings.md").read_text()))
    assert told == {path.name for path in (ROOT / "findings").iterdir()}
