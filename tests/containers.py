"""The profiles of Docker, Podman and systemd themselves, as a filter of system calls, and a run under each: `make containers`.

Docker's and Podman's are the JSON files of Debian's packages of them (nothing is installed), systemd's the list that this
machine's `systemd-analyze syscall-filter` prints. Under each: what "auto", "uring" and the doctor say; and where that is no, once
more with what `doctor --profile` says to add. Exit status 1 where anything is not as in docs/containers.md.

    python tests/containers.py

Knows libseccomp and Debian's archive (debian.py). Capabilities and namespaces are as they are here: tests/environment.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import debian

WORK = Path(__file__).parent.parent / "build" / "containers"
# Package and file; below by the doctor's names, with the suite, and how that one refuses: the older Docker does not.
PODMAN = ("golang-github-containers-common", "usr/share/containers/seccomp.json")
DOCKER = (
    "golang-github-docker-docker-dev",
    "usr/share/gocode/src/github.com/docker/docker/profiles/seccomp/default.json",
)
PROFILES = (
    ("podman", "bookworm", *PODMAN, "ENOSYS"),
    ("podman", "sid", *PODMAN, "ENOSYS"),
    ("docker", "bookworm", *DOCKER, ""),
    ("docker", "trixie", *DOCKER, "EPERM"),
)
PROGRAM = """
import sys, trio, trio_uring
async def main():
    left, right = trio.socket.socketpair()
    await left.send(b"ring")
    assert await right.recv(4) == b"ring"
    return trio.lowlevel.current_statistics().io_statistics.backend
try:
    print(trio.run(main, io_backend=sys.argv[1]))
except trio_uring.UringUnavailableError as error:
    print(type(error.__cause__ or error).__name__, error)
"""

ALLOW: Final = 0x7FFF0000
OPERATORS: Final = ("", *(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")))


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def refusing(code: int) -> int:
    """SCMP_ACT_ERRNO."""
    return 0x00050000 | code


def applies(rule: dict[str, Any]) -> bool:
    """To a container without capabilities on this machine."""
    only, but = rule.get("includes") or {}, rule.get("excludes") or {}
    return not only.get("caps") and "amd64" in only.get("arches", ["amd64"]) and "amd64" not in but.get("arches", [])


def filtered(default: int, rules: list[dict[str, Any]]) -> Callable[[], None]:
    """What a process has to call to be confined so."""

    def confine() -> None:
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_init.restype = ctypes.c_void_p
        context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
        for rule in rules:
            action = ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else refusing(rule.get("errnoRet", errno.EPERM))
            if action == default or not applies(rule):
                continue
            comparisons = [
                Comparison(each["index"], OPERATORS.index(each["op"]), each["value"], each.get("valueTwo", 0))
                for each in rule.get("args") or []
            ]
            array = (Comparison * len(comparisons))(*comparisons)
            for name in rule["names"]:
                number = library.seccomp_syscall_resolve_name(name.encode())
                if number >= 0:  # else it is not of this processor, or newer than the library
                    library.seccomp_rule_add_array(context, action, number, len(comparisons), array)
        if library.seccomp_load(context):
            raise OSError("seccomp_load")

    return confine


def told(confine: Callable[[], None], *arguments: str) -> str:
    """What a program prints that is so confined."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIO_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        preexec_fn=confine,
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return (done.stdout + done.stderr).strip()


def expect(what: str, found: str, wanted: str) -> None:
    """Says it, and ends where it is otherwise."""
    shown = found.splitlines()[-1] if found else ""
    print(f"  {what}: {shown[:160]}", flush=True)
    if wanted not in found:
        raise SystemExit(f"{what}: {wanted!r} was expected, and not {found!r}")


def tried(what: str, confine: Callable[[], None], refused: str) -> None:
    """A run under that filter, which refuses io_uring with an errno of that name, or with none."""
    print(what)
    expect('"auto"', told(confine, "-c", PROGRAM, "auto"), "epoll" if refused else "uring")
    expect('"uring"', told(confine, "-c", PROGRAM, "uring"), refused or "uring")
    expect("doctor", told(confine, "-m", "trio_uring", "doctor"), "\nno: " if refused else "\nyes: ")


def added(name: str) -> dict[str, Any]:
    """The rule that the doctor says to add."""
    command = [sys.executable, "-m", "trio_uring", "doctor", "--profile", name]
    printed = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout
    rule: dict[str, Any] = json.loads("".join(line for line in printed.splitlines(True) if line[0] != "#"))
    return rule


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    for name, suite, package, path, code in PROFILES:
        with tempfile.TemporaryDirectory(dir=WORK) as root:
            version = debian.Suite(suite, "amd64", WORK).unpack(Path(root), package)[package]
            profile = json.loads(Path(root, path).read_text())
        default = refusing(profile.get("defaultErrnoRet", errno.EPERM))
        rules = profile["syscalls"]
        tried(f"{name}'s default profile ({package} {version})", filtered(default, rules), code)
        if code:
            tried(f"{name}'s, with what the doctor says to add", filtered(default, [*rules, added(name)]), "")
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout.split("\n\n")
    sets = {
        group.split()[0]: [line.strip() for line in group.splitlines()[1:] if "#" not in line]
        for group in listed
        if group
    }

    def names(group: str) -> list[str]:
        return [name for each in sets[group] for name in (names(each) if each.startswith("@") else [each])]

    def allowing(allowed: list[str]) -> Callable[[], None]:
        return filtered(refusing(errno.EPERM), [{"names": allowed, "action": "SCMP_ACT_ALLOW"}])

    # execve(2) is allowed to a service before its filter is in force, and to what it starts by @process, which is in it.
    tried("systemd's SystemCallFilter=@system-service", allowing(names("@default") + names("@system-service")), "")
    own = [name for name in names("@default") + names("@system-service") if name not in names("@aio")]
    tried("systemd, a list of one's own without @aio", allowing(own), "EPERM")
    print("as in docs/containers.md")


if __name__ == "__main__":
    main()
