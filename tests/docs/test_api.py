"""Every public name has a docstring that says what is passed, types, an entry in the reference, and a use for type checkers."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from pages import DOCS, ROOT

import trio_uring

PUBLIC = [name for name in trio_uring.__all__ if name != "__version__"]
# Trio's functions, with Trio's docstrings.
TRIOS = {"run", "start_guest_run"}


def parameters(thing: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(thing).parameters.values()) if callable(thing) else []


@pytest.mark.parametrize("name", PUBLIC)
def test_the_docstring_names_everything_that_is_passed_or_read(name: str) -> None:
    thing = getattr(trio_uring, name)
    said = inspect.getdoc(thing) or ""
    assert len(said) > 40, f"trio_uring.{name} has no docstring that explains it"
    if name in TRIOS:
        assert "io_backend" in said
        return
    names = {parameter.name for parameter in parameters(thing)}
    if inspect.isclass(thing) and attrs.has(thing):
        names |= {field.name for field in attrs.fields(thing) if not field.name.startswith("_")}
    told_by_the_class = {"mask", "uid", "gid", "mode", "ino", "nlink", "size", "atime_ns", "ctime_ns", "mtime_ns"}
    if name == "StatxResult":
        names -= told_by_the_class  # stat(2)'s own
    untold = {each for each in names if not re.search(rf"\b{each}\b", said)}
    assert not untold, f"the docstring of trio_uring.{name} does not say what {sorted(untold)} is"


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in TRIOS])
def test_everything_that_is_passed_or_read_has_a_type(name: str) -> None:
    thing = getattr(trio_uring, name)
    bare = [p.name for p in parameters(thing) if p.annotation is p.empty]
    if inspect.isclass(thing):
        members = {n: m for n, m in vars(thing).items() if not n.startswith("_") and inspect.isroutine(m)}
    else:
        members = {name: thing}
    for member_name, member in members.items():
        function = getattr(member, "__func__", member)
        signature = inspect.signature(function)
        bare += [f"{member_name}({p.name})" for p in signature.parameters.values() if p.annotation is p.empty]
        if signature.return_annotation is inspect.Signature.empty:
            bare.append(f"the result of {member_name}")
    assert not [each for each in bare if not re.search(r"\b(self|cls)\b", each)]


def documented() -> set[str]:
    """The names that the reference describes."""
    said = "".join(page.read_text() for page in DOCS.glob("reference*.md"))
    return set(re.findall(r"\.\. (?:auto)?(?:function|class|exception|data):: ([\w.]+)", said))


def test_the_reference_is_complete_and_names_nothing_else() -> None:
    missing = set(trio_uring.__all__) - documented()
    assert not missing, f"add `.. autofunction:: NAME` (or autoclass) to docs/reference.md for {sorted(missing)}"
    public = {name for name in documented() if "." not in name}
    assert public <= set(trio_uring.__all__), "names that are no longer public"


def test_type_checkers_see_every_public_name_in_use() -> None:
    """public_use.py is what `make lint` shows to mypy and to pyright, both strict."""
    tree = ast.parse(Path(__file__).with_name("public_use.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trio_uring"
    }
    assert set(trio_uring.__all__) <= used, "use the new name in tests/docs/public_use.py"


def test_no_page_says_that_a_public_name_is_there_which_is_not() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for name in re.findall(r"\btrio_uring\.([A-Za-z_]\w*)", page.read_text()):
            assert hasattr(trio_uring, name) or name.startswith("_") or name in ("testing", "cancellation"), (
                page,
                name,
            )
