"""F33 to F35, for real: processes that may not use io_uring, or have no room for it.

Each test confines a process of its own and looks at what a user sees there: `trio.run(...,
io_backend="uring")` names the cause and the remedy, `io_backend="auto"` runs on epoll, the doctor says the
same and exits with 1, and no descriptor is left open.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from trio_uring._ring.availability import diagnose, gather

from .conftest import DISABLED, GROUP, Sysctls, may_set_sysctls

HERE = Path(__file__).parent
ALL_CALLS = ("io_uring_setup", "io_uring_enter", "io_uring_register")


def environment() -> dict[str, str]:
    """This process's, without what would choose a backend or its sizes."""
    return {k: v for k, v in os.environ.items() if k not in ("TRIO_IO_BACKEND", "TRIO_URING_OPTIONS")}


def confined(confinement: Sequence[str], command: Sequence[str]) -> list[str]:
    return [sys.executable, str(HERE / "confined.py"), *confinement, "--", sys.executable, *command]


@contextlib.contextmanager
def observer(confinement: Sequence[str], options: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """observe.py in a confined process, all imported and about to begin."""
    command = confined(confinement, [str(HERE / "observe.py"), "--wait", *options])
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        except BaseException:
            child.kill()
            raise
    assert child.returncode == 0


def result(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What observe.py reports; does not wait for the end of the process."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    seen: dict[str, Any] = json.loads(child.stdout.readline() or "null")
    return seen


def observe(confinement: Sequence[str], options: Sequence[str] = ()) -> dict[str, Any]:
    with observer(confinement, options) as child:
        return result(child)


def refuse(code: int, *calls: str) -> list[str]:
    return [f"--refuse={call}={errno.errorcode[code]}" for call in calls]


def assert_refused(seen: dict[str, Any], code: int, cause: Sequence[str], remedy: Sequence[str]) -> None:
    error = seen["uring"]
    assert error.get("error") == "UringUnavailableError", error
    assert error["errno"] == code
    assert [words for words in cause if words not in error["cause"]] == []
    assert [words for words in remedy if words not in error["remedy"]] == []
    assert seen["auto"] == {"backend": "epoll"}
    assert seen["doctor"]["code"] == 1
    last = seen["doctor"]["output"].splitlines()[-1]
    assert last.startswith("no: ")
    assert error["cause"] in last
    assert error["remedy"] in last
    assert seen["doctor_json"]["code"] == 1
    report = json.loads(seen["doctor_json"]["output"])
    assert report["usable"] is False
    assert report["errno"] == errno.errorcode[code]
    assert (report["cause"], report["remedy"]) == (error["cause"], error["remedy"])
    assert seen["leaked"] == 0


def assert_works(seen: dict[str, Any]) -> None:
    assert seen["uring"] == {"backend": "uring"}
    assert seen["auto"] == {"backend": "uring"}
    assert (seen["doctor"]["code"], seen["doctor_json"]["code"]) == (0, 0)
    assert seen["doctor"]["output"].splitlines()[-1].startswith("yes: ")
    assert json.loads(seen["doctor_json"]["output"])["usable"] is True
    assert seen["leaked"] == 0


def test_unconfined_the_ring_works() -> None:
    assert_works(observe([]))


# ---------------------------------------------------------------- F33: seccomp


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS], ids=["EPERM-as-Docker", "ENOSYS-as-Podman"])
def test_f33_seccomp(code: int) -> None:
    seen = observe(refuse(code, *ALL_CALLS))
    name = errno.errorcode[code]
    assert_refused(seen, code, ["seccomp filter", name], ["--security-opt seccomp=", "io_uring_setup"])
    report = json.loads(seen["doctor_json"]["output"])
    assert report["limits"]["seccomp"] == "filter"
    assert report["setup_flags"]["SINGLE_ISSUER"]["available"] is None


def test_f33_seccomp_that_forbids_only_enter() -> None:
    seen = observe(refuse(errno.EPERM, "io_uring_enter"))
    assert_refused(seen, errno.EPERM, ["seccomp filter", "io_uring_enter(2)"], ["io_uring_enter"])


def test_f33_command_line_under_seccomp() -> None:
    command = confined(refuse(errno.EPERM, *ALL_CALLS), ["-m", "trio_uring", "doctor"])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "seccomp filter" in done.stdout.splitlines()[-1]


# ---------------------------------------------------------------- F33: the sysctl


@pytest.mark.parametrize(
    ("value", "confinement"), [(1, ["--unprivileged"]), (2, [])], ids=["1-unprivileged", "2-even-root"]
)
def test_f33_sysctl(value: int, confinement: list[str], sysctls: Sysctls) -> None:
    cause = [f"kernel.io_uring_disabled is {value}", "EPERM"]
    remedy = ["sysctl -w kernel.io_uring_disabled=0"]
    if may_set_sysctls():
        with observer(confinement) as child, sysctls.set({DISABLED: value}):
            seen = result(child)
        assert_refused(seen, errno.EPERM, cause, remedy)
    else:
        facts = gather().replaced(disabled=value, capabilities=0)
        found = diagnose(errno.EPERM, "setup", facts)
        assert all(words in found[0] for words in cause)
        assert all(words in found[1] for words in remedy)


def test_f33_sysctl_remedy_by_group_is_right(sysctls: Sysctls) -> None:
    group = max({os.getegid(), *os.getgroups()})
    if may_set_sysctls():
        with observer(["--unprivileged"]) as child, sysctls.set({DISABLED: 1, GROUP: group}):
            seen = result(child)
        assert_works(seen)
        assert json.loads(seen["doctor_json"]["output"])["limits"]["io_uring_group"] == group
    else:
        facts = gather().replaced(disabled=1, capabilities=0, initial_namespace=True)
        assert facts.sysctl_forbids()
        assert f"kernel.io_uring_group={group}" in diagnose(errno.EPERM, "setup", facts)[1]
        assert not facts.replaced(group=group).sysctl_forbids()


# ---------------------------------------------------------------- F33: kernels


def test_f33_old_kernel() -> None:
    old = "5.15.0-91-generic"
    seen = observe(refuse(errno.EINVAL, "io_uring_setup"), ["--release", old])
    assert_refused(seen, errno.EINVAL, [old, "older than Linux 6.1"], ["boot Linux 6.1 or newer"])


@pytest.mark.parametrize("release", ["4.4.0", "4.19.0-gvisor"])
def test_f33_gvisor(release: str) -> None:
    seen = observe(refuse(errno.ENOSYS, *ALL_CALLS), ["--release", release])
    assert_refused(seen, errno.ENOSYS, ["gVisor", release], ["runc"])


def test_missing_shim() -> None:
    seen = observe([], ["--without-shim"])
    assert_refused(seen, errno.ENOSYS, ["trio_uring._ffi"], ["pip install"])


IN_A_SUBINTERPRETER = """
import sys
try:
    import _interpreters
except ImportError:
    import _xxsubinterpreters as _interpreters
    identity, run = _interpreters.create(isolated=False), _interpreters.run_string
else:
    identity, run = _interpreters.create("isolated"), _interpreters.exec
failure = run(identity, sys.argv[1])
assert failure is None, failure
"""

TWO_RUNS = """
import trio, trio_uring

async def main():
    return trio.lowlevel.current_statistics().io_statistics.backend

print(trio.run(main, io_backend="auto"), flush=True)
try:
    print(trio.run(main, io_backend="uring"), flush=True)
except trio_uring.UringUnavailableError as error:
    print(error, flush=True)
"""


def test_in_a_subinterpreter() -> None:
    """CPython 3.13 and newer can run Trio in one that shares nothing, and refuse to load there what cffi makes."""
    command = [sys.executable, "-c", IN_A_SUBINTERPRETER, TWO_RUNS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    auto, required = done.stdout.splitlines()
    if sys.version_info >= (3, 13):
        assert auto == "epoll"
        assert required.startswith("io_uring cannot be used: this is a subinterpreter, ")
        assert "pip" not in required
    else:
        assert (auto, required) == ("uring", "uring")


# ---------------------------------------------------------------- F34: memory


def test_f34_no_locked_memory() -> None:
    """Rings count to RLIMIT_MEMLOCK up to 5.11 and since 6.14; where not, a limit of 0 is no hindrance."""
    seen = observe(["--unprivileged", "--memlock=0"])
    facts = gather().replaced(memlock=(0, 0), capabilities=0)
    if facts.memlock_charged():
        assert_refused(seen, errno.ENOMEM, ["RLIMIT_MEMLOCK", "0 KiB"], ["ulimit -l", "LimitMEMLOCK="])
    else:
        assert_works(seen)


def test_f34_little_locked_memory_makes_a_smaller_ring() -> None:
    """64 KiB, an old default: fewer entries than the default ring of 512, and the doctor tells how many."""
    seen = observe(["--unprivileged", "--memlock=65536"])
    assert_works(seen)
    report = json.loads(seen["doctor_json"]["output"])
    assert report["limits"]["memlock"] == [65536, 65536]
    facts = gather().replaced(memlock=(65536, 65536), capabilities=0)
    assert report["limits"]["memlock_charged"] is facts.memlock_charged()
    assert (report["ring"]["sq_entries"] < 512) is facts.memlock_charged()


def test_f34_rings_in_a_row_with_little_locked_memory() -> None:
    """The kernel gives the memory of a closed ring back some 20 ms later; nobody is sent to epoll by that.

    A busy machine may take longer for it than a run waits, so here a run waits for as long as it takes.
    """
    program = (
        "import trio, trio_uring, trio_uring._ring.ring\n"
        "assert trio_uring._ring.ring._MEMORY_BACK > 0.02\n"
        "trio_uring._ring.ring._MEMORY_BACK = 60\n"
        "async def used(): return trio.lowlevel.current_statistics().io_statistics.backend\n"
        "print({trio_uring.run(used, io_backend='auto') for _ in range(40)})\n"
    )
    done = subprocess.run(
        confined(["--unprivileged", "--memlock=65536"], ["-c", program]),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'uring'}\n", "")


def test_f34_no_memory_at_all() -> None:
    seen = observe(refuse(errno.ENOMEM, "io_uring_setup"))
    words = "RLIMIT_MEMLOCK" if gather().memlock_charged() else "memory cgroup"
    assert_refused(seen, errno.ENOMEM, [words, "ENOMEM"], ["sq_entries="])


# ---------------------------------------------------------------- F35: descriptors


@pytest.mark.parametrize(("left", "call"), [(0, "io_uring_setup(2)"), (1, "eventfd(2)")])
def test_f35_no_descriptor_for_the_ring(left: int, call: str) -> None:
    seen = observe(["--nofile=100"], [f"--descriptors-left={left}"])
    assert seen["uring"]["error"] == "UringUnavailableError"
    assert seen["uring"]["errno"] == errno.EMFILE
    for words in ("RLIMIT_NOFILE", "100 open files", call):
        assert words in seen["uring"]["cause"]
    assert "ulimit -n" in seen["uring"]["remedy"]
    # Epoll takes more descriptors than the ring: that error is Trio's own.
    assert seen["auto"] == {"error": "OSError", "errno": errno.EMFILE}
    assert seen["doctor"]["code"] == 1
    assert "RLIMIT_NOFILE" in seen["doctor"]["output"].splitlines()[-1]
    report = json.loads(seen["doctor_json"]["output"])
    assert (report["errno"], report["limits"]["nofile"]) == ("EMFILE", [100, 100])
    assert report["limits"]["open_files"] == (None if gather().kernel() < (6, 2) else 100 - left)
    assert "RLIMIT_NOFILE" in report["cause"]
    assert seen["leaked"] == 0
    assert seen["afterwards"] == {"backend": "uring"}


@pytest.mark.parametrize("left", range(2, 8))
def test_f35_no_descriptor_later_on_leaks_nothing(left: int) -> None:
    seen = observe(["--nofile=100"], [f"--descriptors-left={left}"])
    works = {"backend": "uring"}
    assert seen["uring"] in (works, {"error": "OSError", "errno": errno.EMFILE})
    assert seen["auto"] == seen["uring"]
    assert (seen["doctor"]["code"] == 0) is (seen["uring"] == works)
    assert seen["uring"] == works or left < 7
    assert seen["leaked"] == 0
    assert seen["afterwards"] == works


def test_f35_ulimit_n_on_the_command_line() -> None:
    done = subprocess.run(
        confined(["--nofile=6"], ["-m", "trio_uring", "doctor", "--json"]),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["errno"] == "EMFILE"
    assert "allows this process 6 open files" in report["cause"]


@pytest.mark.parametrize("call", ["io_uring_setup", "eventfd2"])
def test_f35_machine_out_of_files(call: str) -> None:
    seen = observe(refuse(errno.ENFILE, call))
    assert_refused(seen, errno.ENFILE, ["fs.file-max"], ["sysctl -w fs.file-max="])
