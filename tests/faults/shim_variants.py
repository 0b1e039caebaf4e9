"""Builds variants of the shim for tests: one that fails on demand (inject.h), one whose rings may not do all operations
(restrict.h), one under the sanitizers, one that tells which ways through it were taken (coverage.h), or all at once.

A variant is a directory that holds the whole package with another shim. Put first on PYTHONPATH, it is what a program
imports. Knows ffi/build.py and the compiler; knows nothing of what is tested. As a program: `python shim_variants.py
[--faults] [--restrict] [--sanitize] [--coverage]` builds and prints the directory.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from cffi import FFI
from setuptools import Extension

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILDS = ROOT / "build" / "variants"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
COVERAGE = ["-fsanitize-coverage=trace-pc"]


def build(*, faults: bool = False, restrict: bool = False, sanitize: bool = False, coverage: bool = False) -> Path:
    """Answers the directory of a variant, made afresh if anything that it is made of has changed."""
    parts = sorted([*(ROOT / "ffi").glob("*.[ch]"), *HERE.glob("*.h"), ROOT / "ffi" / "build.py", Path(__file__)])
    digest = hashlib.sha256(repr((faults, restrict, sanitize, coverage, sys.version_info[:2])).encode())
    for part in parts:
        digest.update(part.read_bytes())
    made = BUILDS / digest.hexdigest()[:16]
    BUILDS.mkdir(parents=True, exist_ok=True)
    with open(BUILDS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of the workers of pytest-xdist builds, the others wait
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=BUILDS) as scratch:
                _compile(Path(scratch), faults, restrict, sanitize, coverage)
                package = Path(scratch, "trio_uring")
                shutil.move(str(package), str(BUILDS / f"{made.name}.new"))
            made.mkdir()
            os.rename(BUILDS / f"{made.name}.new", made / "trio_uring")
    _link_sources(made / "trio_uring")
    return made


def _compile(scratch: Path, faults: bool, restrict: bool, sanitize: bool, coverage: bool) -> None:
    shipped = runpy.run_path(str(ROOT / "ffi" / "build.py"))
    extension = Extension("trio_uring._ffi", [])
    shipped["configure"](extension)
    declarations = shipped["declarations"]()
    source = shipped["source"]()
    if faults:
        declarations += (HERE / "inject_api.h").read_text()
        source = '#include "inject.h"\n' + source
    if restrict:
        source = '#include "restrict.h"\n' + source
    if coverage:
        declarations += "static unsigned char tf_edges[...];"
        source += '#include "coverage.h"\n'
    builder = FFI()
    builder.cdef(declarations)
    builder.set_source(extension.name, source, py_limited_api=shipped["stable_abi"]().limited)
    builder.emit_c_code(str(scratch / "binding.c"))
    package = scratch / "trio_uring"
    package.mkdir()
    includes = [*extension.include_dirs, str(HERE), sysconfig.get_path("include")]
    subprocess.run(
        [
            *(sysconfig.get_config_var("CC") or "cc").split()[:1],
            "-shared",
            "-fPIC",
            *extension.extra_compile_args,
            *(f"-I{path}" for path in includes),
            *(f"-D{name}={value}" for name, value in extension.define_macros),
            *(SANITIZERS if sanitize else []),
            *(COVERAGE if coverage else []),
            str(scratch / "binding.c"),
            *extension.extra_objects,
            *(f"-L{path}" for path in extension.library_dirs),
            *(f"-l{name}" for name in extension.libraries),
            "-o",
            str(package / f"_ffi{EXTENSION_SUFFIXES[0]}"),
        ],
        check=True,
    )


def _link_sources(package: Path) -> None:
    """The Python part of a variant is the checkout's, always as it is now."""
    for source in (ROOT / "trio_uring").iterdir():
        link = package / source.name
        if not source.name.endswith(".so") and source.name != "__pycache__" and not link.is_symlink():
            try:
                link.symlink_to(source)
            except FileExistsError:
                continue  # another worker's


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--restrict", action="store_true")
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--coverage", action="store_true")
    arguments = parser.parse_args()
    print(build(**vars(arguments)))
