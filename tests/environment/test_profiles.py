"""`doctor --profile`: what it says to add is what makes the difference, and all that does."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .confined import CALLS

HERE = Path(__file__).parent
CONFINED = str(HERE / "confined.py")


def doctor(*arguments: str, refused: tuple[str, ...] = (), errno: str = "EPERM") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIO_")}
    command = [sys.executable, "-m", "trio_uring", "doctor", *arguments]
    if refused:
        command = [sys.executable, CONFINED, *(f"--refuse={call}={errno}" for call in refused), "--", *command]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120)


def rule(name: str) -> dict[str, object]:
    """The JSON object in what is printed for a container."""
    text = "".join(line for line in doctor("--profile", name).stdout.splitlines(True) if not line.startswith("#"))
    found: dict[str, object] = json.loads(text)
    return found


@pytest.mark.parametrize(("name", "errno"), [("docker", "EPERM"), ("podman", "ENOSYS")])
def test_the_rule_for_containers_names_what_is_missing(name: str, errno: str) -> None:
    """Docker's default profile refuses with EPERM, Podman's with ENOSYS. All of io_uring is in it, and nothing else."""
    names = rule(name)["names"]
    assert rule(name)["action"] == "SCMP_ACT_ALLOW"
    assert isinstance(names, list)
    assert set(names) == {call for call in CALLS if call.startswith("io_uring_")}
    assert doctor(refused=tuple(names), errno=errno).returncode == 1
    assert doctor().returncode == 0


def test_the_drop_in_for_systemd_is_one() -> None:
    told = doctor("--profile", "systemd")
    assert (told.returncode, told.stderr) == (0, "")
    unit = configparser.ConfigParser(strict=True)
    unit.read_string(told.stdout)
    assert dict(unit["Service"]) == {"systemcallfilter": "@aio", "limitmemlock": "8M"}


def test_another_name_is_refused_with_the_list() -> None:
    told = doctor("--profile", "lxc")
    assert told.returncode == 2
    assert "docker" in told.stderr
