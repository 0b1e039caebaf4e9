"""What happens with a Trio or AnyIO newer than supported: one name at a time is another there.

"uring" says which name does not fit, "auto" and everything else runs on epoll through Trio's own code, and nothing is replaced
by half.
"""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import pytest
from interpreter import python

import trio_uring
from trio_uring._entry import seams

TRIOS = [(list(row.modules), row.name) for row in (*seams.SEAMS, *seams.OPERATION_SEAMS)]
ANYIOS = [(list(row.modules), row.name) for rows in seams.ANYIO_SEAMS for row in rows]
NEWER = "99.0"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """What a user sees where each of the names is another, by name."""
    rows = [*TRIOS, *ANYIOS]
    done = python("upgraded.py", stdin=json.dumps(rows))
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = done.stdout.splitlines()
    return {f"{modules[0]}.{name}": json.loads(line) for (modules, name), line in zip(rows, lines, strict=True)}


def test_each_name_of_trio_that_is_another(outcomes: dict[str, dict[str, Any]]) -> None:
    for modules, name in TRIOS:
        found = outcomes[f"{modules[0]}.{name}"]
        assert (found.get(""), found.get("epoll"), found.get("auto")) == ("epoll",) * 3, (name, found)
        cause, remedy = found["uring"]
        assert f"Trio {NEWER} does not fit" in cause
        assert f"{modules[0]}.{name}" in cause, name
        assert seams.SUPPORTED_TRIO in remedy
        assert found["replaced"] == [], f"{name}: half of it is in place"


def test_each_name_of_anyio_that_is_another(outcomes: dict[str, dict[str, Any]]) -> None:
    """The ring is used all the same; of AnyIO's files the group that belongs together is left alone, and no other."""
    for rows in seams.ANYIO_SEAMS:
        group = {f"{row.modules[0]}.{row.name}" for row in rows}
        others = {f"{row.modules[0]}.{row.name}" for each in seams.ANYIO_SEAMS for row in each} - group
        for name in group:
            found = outcomes[name]
            assert (found.get(""), found.get("auto"), found.get("uring")) == ("epoll", "uring", "uring"), (name, found)
            replaced = set(found["replaced"])
            assert not replaced & group, f"{name}: half of it is in place"
            assert others <= replaced


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in seams.USED.items() for name in names])
def test_each_name_that_is_used_and_not_there(owner: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "USED", {owner: (f"{name}_of_old",)})
    missing = list(seams._not_there())
    assert missing == [f"{owner} has no {name}_of_old"]
    monkeypatch.setattr(seams, "_mismatches", tuple(missing))
    monkeypatch.setattr(seams, "_version", lambda _: NEWER)
    assert seams.choose("auto").ring is None
    with pytest.raises(trio_uring.UringUnavailableError, match=f"Trio {NEWER} does not fit") as caught:
        seams.choose("uring")
    assert missing[0] in caught.value.cause


def test_the_supported_versions_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a version is called decides nothing: a newer one that fits is used."""
    real = importlib.metadata.version
    monkeypatch.setattr(seams, "_version", lambda of: NEWER if of == "trio" else real(of))
    assert seams.choose("uring").ring is not None
