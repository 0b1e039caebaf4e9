"""What is built for which interpreter (ffi/build.py), driven with the configuration of others than this one."""

from __future__ import annotations

import collections
import importlib
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from setuptools import Distribution, Extension
from setuptools.command import bdist_wheel

VersionInfo = collections.namedtuple("VersionInfo", "major minor micro releaselevel serial")
BUILD = str(Path(__file__).parent.parent.parent / "ffi" / "build.py")


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this one look as if it were another, and answers the build's names."""

    def look_like(version: tuple[int, int], free_threaded: bool) -> dict[str, Any]:
        real = sysconfig.get_config_var

        def get_config_var(name: str) -> Any:
            return (1 if free_threaded else None) if name == "Py_GIL_DISABLED" else real(name)

        monkeypatch.setattr(sys, "version_info", VersionInfo(*version, 0, "final", 0))
        monkeypatch.setattr(bdist_wheel, "_python_version", lambda: version, raising=False)
        monkeypatch.setattr(sysconfig, "get_config_var", get_config_var)
        return runpy.run_path(BUILD)

    return look_like


@pytest.mark.parametrize(
    ("version", "free_threaded", "limited", "macro", "wheel"),
    [
        ((3, 10), False, True, ("Py_LIMITED_API", "0x030a0000"), "cp310"),
        ((3, 15), False, True, ("Py_LIMITED_API", "0x030a0000"), "cp310"),
        ((3, 14), True, False, ("_CFFI_NO_LIMITED_API", None), False),
        ((3, 15), True, True, ("Py_TARGET_ABI3T", "0x030f0000"), "cp315"),
    ],
)
def test_the_stable_abi_is_the_one_that_the_interpreter_has(
    interpreter: Any,
    version: tuple[int, int],
    free_threaded: bool,
    limited: bool,
    macro: tuple[str, str | None],
    wheel: str | bool,
) -> None:
    names = interpreter(version, free_threaded)
    extension = Extension("trio_uring._ffi", ["ffi/uring.c"])
    names["configure"](extension)
    assert macro in extension.define_macros
    assert len([name for name, _ in extension.define_macros if name.startswith(("Py_", "_CFFI"))]) == 1
    distribution = Distribution({"ext_modules": [extension], "cmdclass": {"bdist_wheel": names["BdistWheel"]}})
    builder = names["BuildExt"](distribution)
    builder.finalize_options()
    assert extension.py_limited_api is limited
    wheels = names["BdistWheel"](distribution)
    wheels.finalize_options()
    assert wheels.py_limited_api == wheel


def test_importing_it_leaves_the_interpreters_lock_as_it_was() -> None:
    """On a free-threaded interpreter it stays off: the extension says that it can do without (Py_mod_gil)."""
    code = """
import sys
before = getattr(sys, "_is_gil_enabled", lambda: True)()
import trio_uring._ring.ring as ring
assert ring.lib is not None
assert getattr(sys, "_is_gil_enabled", lambda: True)() == before
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Of glibc after 2.28, the oldest that the wheel serves, or with a version of its own since; or of musl after 1.2.3.
TOO_NEW = {
    *("fstat", "fstat64", "stat", "stat64", "lstat", "lstat64", "fstatat", "fstatat64", "statx"),
    *("preadv2", "preadv64v2", "pwritev2", "pwritev64v2", "renameat2", "gettid", "close_range"),
    *("dlsym", "dlopen", "pthread_create"),
}


def test_the_shim_calls_nothing_that_is_newer_than_what_the_wheel_serves() -> None:
    """One such function, and the wheel of `make release` is for later systems (it refuses that, but is not run each time)."""
    shim = importlib.import_module("trio_uring._ffi").__file__
    assert shim is not None
    listed = subprocess.run(["readelf", "-W", "--dyn-syms", shim], capture_output=True, text=True, check=True).stdout
    wanted = {line.split()[7].partition("@")[0] for line in listed.splitlines() if " UND " in line and line.split()[7:]}
    assert "syscall" in wanted
    assert not wanted & TOO_NEW
