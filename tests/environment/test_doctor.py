"""The doctor's report: what it says of this kernel, of kernels that lack things, and in which form."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import trio_uring
from trio_uring._entry import doctor as _doctor
from trio_uring._entry import seams as _seams
from trio_uring._ring import ring as _ring
from trio_uring._ring.availability import Facts

KERNEL = Facts(release=os.uname().release).kernel()

ENTRY = {"available", "needed", "since", "number", "effect", "remedy"}


def version(since: str) -> tuple[int, int]:
    major, minor = since.split(".")
    return int(major), int(minor)


def run_doctor(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRIO_IO_BACKEND", "TRIO_URING_OPTIONS")}
    return subprocess.run(
        [sys.executable, "-m", "trio_uring", "doctor", *arguments],
        env={**environment, **variables},
        capture_output=True,
        text=True,
    )


def test_command_line_says_yes_and_exits_with_0() -> None:
    done = run_doctor()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == (
        'yes: io_uring works: a run with io_backend="uring" used a ring, sq_entries=512, cq_entries=4096.'
    )
    assert "\x1b" not in done.stdout
    assert max(map(len, lines)) < 120
    for name in ("DEFER_TASKRUN", "POLL_ADD", "SYNC_CANCEL", "RLIMIT_MEMLOCK", "seccomp", platform.release()):
        assert name in done.stdout


def test_json_has_the_documented_keys() -> None:
    done = run_doctor("--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert set(report) == {
        "usable", "verdict", "cause", "remedy", "errno", "ring", "versions", "limits", "setup_flags",
        "operations", "restricted", "features", "seams", "groups",
    }  # fmt: skip
    assert report["restricted"] == []
    assert report["usable"] is True
    assert [report[key] for key in ("cause", "remedy", "errno")] == [None] * 3
    assert report["ring"] == {"sq_entries": 512, "cq_entries": 4096}
    assert report["seams"] == []
    assert report["groups"] == {"usable": True, "cause": None, "remedy": None}
    assert set(report["limits"]) == {
        "memlock", "memlock_charged", "nofile", "open_files", "max_workers", "io_uring_disabled", "io_uring_group",
        "sysctl_forbids", "seccomp",
    }  # fmt: skip
    assert set(report["versions"]) == {"trio_uring", "python", "trio", "anyio", "liburing", "kernel"}
    assert report["versions"]["trio_uring"] == trio_uring.__version__
    assert report["versions"]["python"] == platform.python_version()
    assert report["versions"]["kernel"] == os.uname().release
    assert report["versions"]["liburing"].split(".")[0].isdecimal()
    entries = [*report["setup_flags"].values(), *report["operations"].values(), *report["features"].values()]
    assert all(set(entry) == ENTRY for entry in entries)
    for key in ("SINGLE_ISSUER", "DEFER_TASKRUN", "TASKRUN_FLAG", "SUBMIT_ALL", "CQSIZE"):
        assert report["setup_flags"][key]["needed"] is True
    # Every key is documented.
    documentation = _doctor.main.__doc__ or ""
    keys = {*report, *report["limits"], *report["versions"], *report["ring"], *ENTRY}
    assert [key for key in keys if key not in documentation] == []


def test_names_numbers_and_kernel_versions_agree_with_this_kernel() -> None:
    report = _doctor.examine()
    for capability, available in [*report.flags, *report.operations, *report.features]:
        if version(capability.since) <= KERNEL:
            assert available is True, capability
    # One number past the last operation of the newest kernel, and an unused flag: the answers can be no.
    prober = _doctor._Prober(_doctor._Patience())
    assert prober.operation(_doctor.Capability("LAST", 250, "99.0")) is False
    assert prober.flag(_doctor.Capability("UNUSED", 1 << 30, "99.0")) is False
    assert prober.feature(_doctor.Capability("UNUSED", 200, "99.0")) is False
    assert prober.feature(_doctor.Capability("UNUSED", 1 << 30, "99.0")) is False


@pytest.mark.parametrize("table", [_doctor.FLAGS, _doctor.OPERATIONS, _doctor.FEATURES])
def test_tables_are_consistent(table: tuple[_doctor.Capability, ...]) -> None:
    assert len({capability.name for capability in table}) == len(table)
    assert len({capability.number for capability in table}) == len(table)
    for capability in table:
        # The floor of this library is 6.1: it cannot need what came later.
        assert capability.without is not None or version(capability.since) <= (6, 1)


def test_operations_are_those_of_the_ring() -> None:
    members = vars(_ring).items()
    numbers = {name.removeprefix("OP_"): number for name, number in members if name.startswith("OP_")}
    table = {operation.name: operation.number for operation in _doctor.OPERATIONS}
    assert numbers.items() <= table.items()


def old_shim(flags: int, operations: int, features: int) -> Any:
    """A kernel that knows these flags (a mask), and operations and features up to a number."""

    def try_setup(asked: int, entries: int) -> int:
        return -errno.EINVAL if asked & ~flags else 0

    def probe_ops(supported: bytearray, length: int) -> int:
        supported[:operations] = b"\1" * operations
        return operations

    lib = SimpleNamespace(
        tu_try_setup=try_setup,
        tu_probe_ops=probe_ops,
        tu_probe_register=lambda number: int(number < features),
        tu_features=lambda: 0,
        tu_liburing_version=lambda: b"2.3",
    )
    ffi = SimpleNamespace(new=lambda kind: bytearray(256), string=lambda text: text)
    return SimpleNamespace(lib=lib, ffi=ffi)


def test_every_no_has_its_effect_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linux 5.15: flags up to R_DISABLED, operations up to LINKAT, features up to IOWQ_MAX_WORKERS.
    monkeypatch.setattr(_doctor, "_shim", lambda: old_shim(0x7F, 40, 20))
    report = _doctor.examine()
    found = _doctor.as_json(report)
    flags, operations, features = found["setup_flags"], found["operations"], found["features"]
    assert flags["CQSIZE"] == {
        "available": True, "needed": True, "since": "5.5", "number": 8, "effect": None, "remedy": None,
    }  # fmt: skip
    assert flags["DEFER_TASKRUN"]["available"] is False
    assert flags["DEFER_TASKRUN"]["remedy"] == "boot Linux 6.1 or newer"
    assert "does not start" in flags["DEFER_TASKRUN"]["effect"]
    assert operations["LINKAT"]["available"] is True
    assert operations["WAITID"]["effect"] == "child processes are waited for as on epoll"
    assert operations["WAITID"]["remedy"] == "boot Linux 6.7 or newer"
    assert features["PBUF_RING"]["available"] is False
    text = "\n".join(_doctor.as_text(report))
    for name, entry in [*flags.items(), *operations.items(), *features.items()]:
        assert (entry["effect"] is None) is (entry["remedy"] is None) is (entry["available"] is not False)
        if entry["available"] is False:
            assert f"  no {name}: {entry['effect']}; {entry['remedy']}\n" in text
    # The ring is real here and would work, but the kernel lacks what is needed later on.
    assert report.verdict.usable is False
    assert "lacks PBUF_RING, SYNC_CANCEL" in (report.verdict.cause or "")


def test_a_lacking_operation_is_no_matter_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linux 6.1: all that is needed, nothing that came later.
    monkeypatch.setattr(_doctor, "_shim", lambda: old_shim(0x3FFF, 49, 26))
    report = _doctor.examine()
    found = _doctor.as_json(report)
    assert report.verdict.usable is True
    assert found["operations"]["SENDMSG_ZC"]["available"] is True
    assert found["operations"]["READ_MULTISHOT"]["available"] is False
    assert found["setup_flags"]["NO_MMAP"]["available"] is False


def test_bad_options_are_a_no_that_names_the_variable() -> None:
    done = run_doctor("--json", TRIO_URING_OPTIONS="sq_entires=2")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert "TRIO_URING_OPTIONS" in report["cause"]
    assert "sq_entires" in report["cause"]
    assert "TRIO_URING_OPTIONS" in report["remedy"]


def test_options_size_the_ring() -> None:
    done = run_doctor("--json", TRIO_URING_OPTIONS="sq_entries=2,cq_entries=4,max_workers=77")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["ring"] == {"sq_entries": 2, "cq_entries": 4}
    assert report["limits"]["max_workers"] == 77


def test_epoll_in_the_environment_does_not_change_the_verdict() -> None:
    assert run_doctor(TRIO_IO_BACKEND="epoll").returncode == 0


def test_a_ring_that_completes_nothing_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        closed = False

        def __init__(self, sq_entries: int, cq_entries: int | None) -> None:
            pass

        def queue(self, opcode: int, user_data: int) -> None:
            pass

        def wait(self, timeout: float) -> list[int]:
            return []

        def close(self) -> None:
            Dead.closed = True

    monkeypatch.setattr(_doctor, "Ring", Dead)
    monkeypatch.setattr(_doctor, "_COMPLETION", 0.001)
    report = _doctor.examine()
    assert report.verdict.usable is False
    assert "did not complete" in (report.verdict.cause or "")
    assert Dead.closed


def test_a_run_that_fails_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(_seams, "run", run)
    verdict = _doctor.examine().verdict
    assert verdict.usable is False
    assert "RuntimeError: no such luck" in (verdict.cause or "")


def test_a_run_on_something_else_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_seams, "run", lambda *arguments, **keywords: "epoll")
    verdict = _doctor.examine().verdict
    assert verdict.usable is False
    assert "'epoll'" in (verdict.cause or "")


def test_mismatched_seams_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_seams, "_mismatches", ("trio._core._run.TheIOManager is gone",))
    report = _doctor.examine()
    assert report.verdict.usable is False
    assert "does not fit (trio._core._run.TheIOManager is gone)" in (report.verdict.cause or "")
    assert _seams.SUPPORTED_TRIO in (report.verdict.remedy or "")
    assert _doctor.as_json(report)["seams"] == ["trio._core._run.TheIOManager is gone"]
    assert "  trio._core._run.TheIOManager is gone" in _doctor.as_text(report)
    # The kernel has been asked all the same.
    assert dict(report.flags)[_doctor.FLAGS[0]] is True


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert _doctor.main([]) == 0
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert _doctor.main([]) == 0
    assert "\x1b[32myes" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert _doctor.main([]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_wrong_arguments_end_with_2() -> None:
    done = run_doctor("--jsno")
    assert done.returncode == 2
    assert "usage: python -m trio_uring doctor" in done.stderr
