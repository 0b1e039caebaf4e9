"""F33 to F35, the sentences: cause and remedy that `diagnose` finds for an errno, by the facts alone."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import resource
import subprocess
import sys
from itertools import product
from typing import Any

import pytest

from trio_uring._ring.availability import (
    CALLS,
    CAP_IPC_LOCK,
    CAP_SYS_ADMIN,
    Facts,
    UringUnavailableError,
    diagnose,
    gather,
    unavailable,
)

ROOT: dict[str, Any] = {"capabilities": (1 << 41) - 1, "initial_namespace": True}
USER: dict[str, Any] = {"capabilities": 0, "initial_namespace": True, "groups": frozenset({1000, 4})}
MODERN = "6.12.9-amd64"

CASES = [
    # F33: EPERM
    pytest.param(
        (errno.EPERM, "setup"), Facts(release=MODERN, disabled=0, seccomp=2, **USER),
        ["seccomp filter", "Docker", "Podman", "EPERM"], ["--security-opt seccomp=", "io_uring_enter"],
        id="seccomp",
    ),
    pytest.param(
        (errno.EPERM, "enter"), Facts(release=MODERN, disabled=2, seccomp=2, **USER),
        ["seccomp filter", "io_uring_enter(2)"], ["--security-opt seccomp="],
        id="seccomp-enter-is-not-the-sysctl",
    ),
    pytest.param(
        (errno.EPERM, "setup"), Facts(release=MODERN, disabled=2, group=-1, seccomp=0, **ROOT),
        ["kernel.io_uring_disabled is 2", "every process"], ["sysctl -w kernel.io_uring_disabled=0"],
        id="sysctl-2-even-for-root",
    ),
    pytest.param(
        (errno.EPERM, "setup"), Facts(release=MODERN, disabled=2, group=-1, seccomp=2, **USER),
        ["kernel.io_uring_disabled is 2"], ["sysctl -w kernel.io_uring_disabled=0"],
        id="sysctl-2-before-seccomp",
    ),
    pytest.param(
        (errno.EPERM, "setup"), Facts(release=MODERN, disabled=1, group=-1, seccomp=0, **USER),
        ["kernel.io_uring_disabled is 1", "CAP_SYS_ADMIN", "(unset)"],
        ["kernel.io_uring_disabled=0", "kernel.io_uring_group=1000"],
        id="sysctl-1-no-group",
    ),
    pytest.param(
        (errno.EPERM, "setup"), Facts(release=MODERN, disabled=1, group=27, seccomp=0, **USER),
        ["kernel.io_uring_disabled is 1", "(27)"], ["kernel.io_uring_group=1000"],
        id="sysctl-1-other-group",
    ),
    pytest.param(
        (errno.EPERM, "setup"), Facts(release=MODERN, disabled=1, group=4, seccomp=2, **USER),
        ["seccomp filter"], ["--security-opt"],
        id="sysctl-1-member-so-seccomp",
    ),
    pytest.param(
        (errno.EPERM, "setup"), Facts(release=MODERN, disabled=1, group=-1, seccomp=2, **ROOT),
        ["seccomp filter"], ["--security-opt"],
        id="sysctl-1-root-so-seccomp",
    ),
    pytest.param(
        (errno.EPERM, "setup"),
        Facts(release=MODERN, disabled=1, group=0, seccomp=0, capabilities=-1, initial_namespace=False,
              groups=frozenset({0})),
        ["kernel.io_uring_disabled is 1"], ["kernel.io_uring_disabled=0"],
        id="sysctl-1-root-of-a-container-is-nobody",
    ),
    pytest.param(
        (errno.EPERM, "setup"), Facts(release=MODERN, disabled=0, seccomp=0, **USER),
        ["security module", "EPERM"], ["journalctl -k"],
        id="neither",
    ),
    pytest.param(
        (errno.EACCES, "setup"), Facts(release=MODERN, disabled=2, seccomp=0, **USER),
        ["security module", "EACCES"], ["ausearch"],
        id="selinux",
    ),
    # F33: ENOSYS
    pytest.param(
        (errno.ENOSYS, "setup"), Facts(release=MODERN, disabled=0, seccomp=2, **USER),
        ["seccomp filter", "ENOSYS"], ["--security-opt seccomp="],
        id="seccomp-podman",
    ),
    pytest.param(
        (errno.ENOSYS, "setup"), Facts(release="4.4.0", seccomp=2, **USER),
        ["gVisor", "4.4.0"], ["runc"],
        id="gvisor-older",
    ),
    pytest.param(
        (errno.ENOSYS, "setup"), Facts(release="4.19.0-gvisor", seccomp=0, **USER),
        ["gVisor", "4.19.0-gvisor"], ["runc"],
        id="gvisor-newer",
    ),
    pytest.param(
        (errno.ENOSYS, "setup"), Facts(release="4.18.0-553.el8.x86_64", seccomp=0, **USER),
        ["4.18.0-553.el8.x86_64", "older than Linux 6.1"], ["Linux 6.1 or newer"],
        id="before-io_uring",
    ),
    pytest.param(
        (errno.ENOSYS, "setup"), Facts(release=MODERN, seccomp=0, **USER),
        [MODERN, "built without io_uring"], ["CONFIG_IO_URING=y"],
        id="built-without",
    ),
    pytest.param(
        (errno.ENOSYS, "setup"), Facts(release=MODERN, disabled=0, seccomp=0, **USER),
        [MODERN, "emulator", "qemu-user"], ["this machine's architecture"],
        id="emulated",
    ),
    # F33: old kernels know io_uring, but not the flags
    pytest.param(
        (errno.EINVAL, "setup"), Facts(release="5.15.0-91-generic", seccomp=2, disabled=None, **USER),
        ["5.15.0-91-generic", "older than Linux 6.1"], ["Linux 6.1 or newer"],
        id="5.15",
    ),
    pytest.param(
        (errno.EINVAL, "setup"), Facts(release="6.0.19", **USER), ["6.0.19", "older than Linux 6.1"], ["6.1"],
        id="6.0",
    ),
    pytest.param(
        (errno.EINVAL, "setup"), Facts(release="6.1.0-26-amd64", **USER),
        ["6.1.0-26-amd64", "refuses a set-up flag"], ["trio_uring doctor"],
        id="6.1-is-not-old",
    ),
    pytest.param(
        (errno.EINVAL, "enter"), Facts(release="5.15.0", **USER),
        ["io_uring_enter(2) failed with EINVAL", "5.15.0"], ["manual page of io_uring_enter(2)"],
        id="einval-elsewhere",
    ),
    # F34
    pytest.param(
        (errno.ENOMEM, "setup"), Facts(release="6.18.1", memlock=(65536, 131072), **USER),
        ["RLIMIT_MEMLOCK", "64 KiB"], ["ulimit -l", "128 KiB", "LimitMEMLOCK=", "sq_entries="],
        id="memlock",
    ),
    pytest.param(
        (errno.ENOMEM, "setup"), Facts(release="6.14.0", memlock=(0, None), **USER),
        ["RLIMIT_MEMLOCK", "0 KiB"], ["ulimit -l", "any size"],
        id="memlock-since-6.14",
    ),
    pytest.param(
        (errno.ENOMEM, "setup"), Facts(release="6.13.9", memlock=(0, 0), **USER),
        ["memory cgroup"], ["--memory", "MemoryMax=", "sq_entries="],
        id="memlock-not-charged-in-6.13",
    ),
    pytest.param(
        (errno.ENOMEM, "setup"), Facts(release="5.11.22", memlock=(65536, 65536), **USER),
        ["RLIMIT_MEMLOCK"], ["ulimit -l"],
        id="memlock-charged-before-5.12",
    ),
    pytest.param(
        (errno.ENOMEM, "setup"), Facts(release="6.18.1", memlock=(65536, 65536), **ROOT),
        ["memory cgroup"], ["MemoryMax="],
        id="memlock-does-not-bind-root",
    ),
    pytest.param(
        (errno.ENOMEM, "setup"), Facts(release="6.18.1", memlock=(None, None), **USER),
        ["memory cgroup"], ["resources.limits.memory"],
        id="memlock-unlimited",
    ),
    # F35
    pytest.param(
        (errno.EMFILE, "setup"), Facts(release=MODERN, nofile=(1024, 524288), open_files=1023),
        ["RLIMIT_NOFILE", "1024 open files", "1023 are open", "io_uring_setup(2)"],
        ["ulimit -n", "524288", "LimitNOFILE="],
        id="emfile-setup",
    ),
    pytest.param(
        (errno.EMFILE, "eventfd"), Facts(release=MODERN, nofile=(1024, None)),
        ["RLIMIT_NOFILE", "all are open", "eventfd(2)"], ["ulimit -n", "any number"],
        id="emfile-eventfd",
    ),
    pytest.param(
        (errno.ENFILE, "setup"), Facts(release=MODERN, nofile=(1024, None)),
        ["fs.file-max"], ["sysctl -w fs.file-max="],
        id="enfile",
    ),
    # the rest
    pytest.param(
        (errno.EIO, "register"), Facts(release=MODERN),
        ["io_uring_register(2) failed with EIO", MODERN], ["manual page of io_uring_register(2)"],
        id="something-else",
    ),
    pytest.param(
        (errno.ENOSYS, "shim"), Facts(release=MODERN, shim_built=False),
        ["trio_uring._ffi", "not installed"], ["pip install", "liburing-dev"],
        id="no-shim",
    ),
    pytest.param(
        (errno.ENOSYS, "shim"), Facts(release=MODERN, shim_built=True),
        ["trio_uring._ffi", "cannot be loaded"], ["pip install"],
        id="unloadable-shim",
    ),
    pytest.param(
        (errno.ENOSYS, "subinterpreter"), Facts(release=MODERN),
        ["subinterpreter", "cffi"], ["main interpreter", "process of its own", 'io_backend="epoll"'],
        id="subinterpreter",
    ),
    pytest.param(
        (errno.ENOSYS, "shim"), Facts(system="darwin", release="23.1.0"),
        ["interface of Linux", "darwin"], ['io_backend="auto"'],
        id="not-linux",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("failure", "facts", "in_cause", "in_remedy"), CASES)
def test_f33_to_f35_cause_and_remedy(
    failure: tuple[int, str], facts: Facts, in_cause: list[str], in_remedy: list[str]
) -> None:
    cause, remedy = diagnose(*failure, facts)
    assert [words for words in in_cause if words not in cause] == []
    assert [words for words in in_remedy if words not in remedy] == []


def test_every_failure_has_one_sentence_of_each_even_without_facts() -> None:
    for code, step in product([*errno.errorcode, 4000], [*CALLS, "shim", "subinterpreter"]):
        for facts in (Facts(), Facts(seccomp=2, release="5.10.0", disabled=1), gather()):
            for sentence in diagnose(code, step, facts):
                assert sentence
                assert not sentence.endswith(".")
                assert ". " not in sentence
                assert "None" not in sentence


def test_the_error_is_an_oserror_that_says_both() -> None:
    error = unavailable(errno.EMFILE, "eventfd")
    assert isinstance(error, OSError)
    assert error.errno == errno.EMFILE
    assert error.strerror == os.strerror(errno.EMFILE)
    assert error.cause in str(error)
    assert error.remedy in str(error)


def test_the_error_is_made_from_an_oserror_too() -> None:
    error = unavailable(OSError(errno.EIO, "Input/output error"), "enter")
    assert error.errno == errno.EIO
    assert "EIO" in error.cause


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_error_can_be_pickled(protocol: int) -> None:
    error = unavailable(errno.ENOMEM, "setup")
    twin = pickle.loads(pickle.dumps(error, protocol))
    for other in (twin, copy.copy(error)):
        assert type(other) is UringUnavailableError
        assert (other.errno, other.strerror) == (error.errno, error.strerror)
        assert (other.cause, other.remedy, str(other)) == (error.cause, error.remedy, str(error))


def test_gather_sees_this_process() -> None:
    facts = gather()
    assert facts.system == sys.platform
    assert facts.release == os.uname().release
    assert facts.groups == {os.getegid(), *os.getgroups()}
    assert facts.seccomp in (0, 1, 2)
    assert facts.shim_built
    with open("/proc/self/uid_map", encoding="ascii") as file:
        assert facts.initial_namespace == (file.read().split() == ["0", "0", "4294967295"])


def test_gather_counts_open_descriptors() -> None:
    before = gather().open_files
    with open(os.devnull, "rb"):
        after = gather().open_files
    # The kernel counts since 6.2; before that nobody pretends to know.
    if gather().kernel() < (6, 2):
        assert (before, after) == (None, None)
    else:
        assert before is not None
        assert after == before + 1


def test_gather_reads_limits_and_capabilities() -> None:
    program = (
        "import resource\n"
        "from trio_uring._ring.availability import gather\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (8192, 8192))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))\n"
        "facts = gather()\n"
        "print(facts.memlock, facts.nofile)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(8192, 8192) (100, 200)\n"
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert gather().nofile[0] == (None if soft == resource.RLIM_INFINITY else soft)


def test_capabilities_are_those_of_capability_h() -> None:
    facts = Facts(capabilities=1 << 21 | 1 << 14, initial_namespace=True)
    assert facts.capable(CAP_SYS_ADMIN)
    assert facts.capable(CAP_IPC_LOCK)
    assert not Facts(capabilities=1 << 21, initial_namespace=True).capable(CAP_IPC_LOCK)
    assert not Facts(capabilities=-1, initial_namespace=False).capable(CAP_SYS_ADMIN)
