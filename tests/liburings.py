"""The shim built with liburing 2.3, 2.9 and the newest of Debian's, and each build tried: `make liburings`.

Each is Debian's own package of it (bookworm, trixie, sid; nothing is installed), with the kernel's headers of the same suite,
linked statically into a wheel, in an environment of its own in which the ring's tests run. Exit status 1 where one does not
build, is not the one that was meant, or a test fails.

    python tests/liburings.py [PYTEST ARGUMENTS]

Knows pip and Debian's archive (debian.py); nothing of the ring.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import debian

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "liburings"
SUITES = {"bookworm": "2.3", "trixie": "2.9", "sid": ""}  # the newest is whichever it is
TESTS = ("tests/ring/test_conformance.py", "tests/ring/test_operations.py", "tests/ring/test_batch.py")


def run(*command: str | Path, **environment: str) -> None:
    """A command in an empty folder, away from the sources."""
    subprocess.run([str(part) for part in command], cwd=WORK, env={**os.environ, **environment}, check=True)


def tried(suite: str, version: str, arguments: list[str]) -> str:
    """Builds with that suite's liburing and runs the tests; answers liburing's version."""
    root = WORK / suite
    shutil.rmtree(root, ignore_errors=True)
    offered = debian.Suite(suite, "amd64", WORK).unpack(root, "liburing-dev", "linux-libc-dev")["liburing-dev"]
    found = offered.partition("-")[0]
    if not found.startswith(version):
        raise SystemExit(f"{suite} has liburing {offered}, and not {version}")
    pkgconfig = root / "usr/lib/x86_64-linux-gnu/pkgconfig"
    described = pkgconfig / "liburing.pc"
    described.write_text(described.read_text().replace("=/usr", f"={root}/usr"))
    python = root / "venv" / "bin" / "python"
    venv.create(root / "venv", with_pip=True)
    source = root / "source"  # a build leaves things where it is made
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("build", ".venv", ".git", "*.so", "__pycache__"))
    run(python, "-m", "pip", "install", "-q", "-U", "pip")
    run(python, "-m", "pip", "install", "-q", f"{source}[test]", PKG_CONFIG_LIBDIR=str(pkgconfig))
    # What the shim itself says that it was built with.
    told = "import trio_uring._ring.ring as r; print(r.ffi.string(r.lib.tu_liburing_version()).decode())"
    built = subprocess.run(
        [str(python), "-c", told], cwd=WORK, capture_output=True, text=True, check=True
    ).stdout.strip()
    if not found.startswith(built):
        raise SystemExit(f"built with liburing {built}, not {found}")
    print(f"== liburing {built}, of Debian's {suite}", flush=True)
    tests = [str(source / each) for each in TESTS]
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={source}", *tests, *arguments)
    return built


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    print("tried:", *(tried(suite, version, sys.argv[1:]) for suite, version in SUITES.items()))


if __name__ == "__main__":
    main()
