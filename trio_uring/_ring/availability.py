"""Layer 1: why there is no ring here, and what to change. Knows errnos and /proc; not Trio, not the shim.

The kernel refuses a ring with a bare errno, and each errno has several origins: EPERM is a seccomp filter, a
sysctl or a security module; ENOSYS is an old kernel, gVisor or again a filter. `gather` looks at the machine
(nothing else here does), and `diagnose`, a pure function of what it saw, picks the origin that fits. No fact
is required: where /proc is missing, or no descriptor is left to open it with, it is None and the sentence
says less.

Sources: io_uring_setup(2). Linux's Documentation/admin-guide/sysctl/kernel.rst on io_uring_disabled (since
6.6). Seccomp profiles: moby/moby#46762 and containerd/containerd#9320 (both 2023) answer EPERM,
containers/common#573 (Podman) ENOSYS. RLIMIT_MEMLOCK is one budget for all processes of a user; the kernel
charges rings to it up to 5.11 and again from 6.14 on (axboe/liburing#1408; measured on 6.18: a ring of 2
entries takes 8 KiB), except those of a process with CAP_IPC_LOCK.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any, Final

CALLS: Final = {
    "setup": "io_uring_setup(2)",
    "mmap": "mmap(2) of a ring",
    "register": "io_uring_register(2)",
    "enter": "io_uring_enter(2)",
    "eventfd": "eventfd(2)",
    "run": "a run on the ring",
}
OLDEST_KERNEL: Final = (6, 1)
CAP_IPC_LOCK: Final = 14
CAP_SYS_ADMIN: Final = 21

_SHIM: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_ffi")
_SMALLER: Final = "ask for smaller rings with TRIO_URING_OPTIONS=sq_entries=64"


class UringUnavailableError(OSError):
    """io_uring cannot be used here: `io_backend="uring"` raises it, `io_backend="auto"` takes epoll instead.

    Attributes:
      errno: what the kernel answered (int), as in every OSError.
      strerror: the text of that errno (str).
      cause: what forbids io_uring (str); one sentence, without its full stop.
      remedy: what to type or to change (str); likewise.
    """

    cause: str
    remedy: str

    def __init__(self, errno: int, cause: str, remedy: str) -> None:
        super().__init__(errno, os.strerror(errno))
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"io_uring cannot be used: {self.cause}. To change that: {self.remedy}."

    def __reduce__(self) -> tuple[type[UringUnavailableError], tuple[int, str, str]]:
        return type(self), (self.errno or 0, self.cause, self.remedy)


class Facts:
    """What of this process and machine decides about io_uring; None for what could not be read.

    Attributes:
      system: `sys.platform`.
      release: the kernel's, from uname(2).
      disabled: sysctl kernel.io_uring_disabled; None also where the kernel has none (before 6.6).
      group: sysctl kernel.io_uring_group, a group id; -1 for none.
      seccomp: 0 none, 1 strict, 2 filter.
      capabilities: the effective ones, a bit mask.
      initial_namespace: whether the process is in the machine's own user namespace, where capabilities count.
      groups: effective and supplementary group ids.
      memlock: RLIMIT_MEMLOCK in bytes, soft and hard; None in place of a number: no limit.
      nofile: RLIMIT_NOFILE, likewise.
      open_files: descriptors that the process has open.
      shim_built: whether a compiled extension lies in the package.
    """

    # Not a named tuple, which would take as long to be made as the rest of this module; every run loads it, while there are
    # descriptors to load it with.
    def __init__(
        self,
        *,
        system: str = "linux",
        release: str = "",
        disabled: int | None = None,
        group: int | None = None,
        seccomp: int | None = None,
        capabilities: int | None = None,
        initial_namespace: bool | None = None,
        groups: frozenset[int] = frozenset(),
        memlock: tuple[int | None, int | None] = (None, None),
        nofile: tuple[int | None, int | None] = (None, None),
        open_files: int | None = None,
        shim_built: bool = True,
    ) -> None:
        self.system = system
        self.release = release
        self.disabled = disabled
        self.group = group
        self.seccomp = seccomp
        self.capabilities = capabilities
        self.initial_namespace = initial_namespace
        self.groups = groups
        self.memlock = memlock
        self.nofile = nofile
        self.open_files = open_files
        self.shim_built = shim_built

    def replaced(self, **changes: object) -> Facts:
        """The same with other values."""
        values: dict[str, Any] = {**vars(self), **changes}
        return Facts(**values)

    def kernel(self) -> tuple[int, int]:
        """Major and minor version of the kernel; (0, 0) where the release does not begin with one."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def capable(self, capability: int) -> bool:
        """Whether the process has a capability where the kernel asks: in the initial user namespace."""
        return bool(self.initial_namespace and (self.capabilities or 0) >> capability & 1)

    def sysctl_forbids(self) -> bool:
        """Whether kernel.io_uring_disabled alone keeps this process from making a ring."""
        if self.disabled == 1:
            member = bool(self.initial_namespace) and self.group in self.groups
            return not (self.capable(CAP_SYS_ADMIN) or member)
        return self.disabled == 2

    def memlock_charged(self) -> bool:
        """Whether rings of this process count against a RLIMIT_MEMLOCK."""
        charging = self.kernel() < (5, 12) or self.kernel() >= (6, 14)
        return charging and self.memlock[0] is not None and not self.capable(CAP_IPC_LOCK)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _number(text: str | None, base: int = 10) -> int | None:
    try:
        return int(text or "", base)
    except ValueError:
        return None


def _limit(kind: int) -> tuple[int | None, int | None]:
    soft, hard = (None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(kind))
    return soft, hard


def _open_files() -> int | None:
    # The size of this directory is the number of open descriptors since Linux 6.2 (0 before), and asking for
    # it works when no descriptor is left to list it with.
    try:
        return os.stat("/proc/self/fd").st_size or None
    except OSError:
        return None


def gather() -> Facts:
    """The facts about the calling process. Raises nothing."""
    lines = (_read("/proc/self/status") or "").splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    mapping = _read("/proc/self/uid_map")
    return Facts(
        system=sys.platform,
        release=os.uname().release,
        disabled=_number(_read("/proc/sys/kernel/io_uring_disabled")),
        group=_number(_read("/proc/sys/kernel/io_uring_group")),
        seccomp=_number(status.get("Seccomp")),
        capabilities=_number(status.get("CapEff"), 16),
        initial_namespace=None if mapping is None else mapping.split() == ["0", "0", "4294967295"],
        groups=frozenset({os.getegid(), *os.getgroups()}),
        memlock=_limit(resource.RLIMIT_MEMLOCK),
        nofile=_limit(resource.RLIMIT_NOFILE),
        open_files=_open_files(),
        shim_built=any(os.path.exists(_SHIM + suffix) for suffix in EXTENSION_SUFFIXES),
    )


def unavailable(error: OSError | int, step: str) -> UringUnavailableError:
    """The error to raise where making or using a ring failed.

    Args:
      error: the errno, or the OSError that carries it.
      step: what failed: one of `CALLS`, the name of an operation that is refused to every ring (IORING_…), "shim" where the
        compiled extension could not be imported, or "subinterpreter" where it can be, but not there.
    """
    code = error if isinstance(error, int) else error.errno or 0
    return UringUnavailableError(code, *diagnose(code, step, gather()))


def diagnose(code: int, step: str, facts: Facts) -> tuple[str, str]:
    """Cause and remedy, as in `UringUnavailableError`, of errno `code` at `step` where these facts hold."""
    if not facts.system.startswith("linux"):
        return (
            f"io_uring is an interface of Linux and this system is {facts.system}",
            'use io_backend="auto", which takes Trio\'s own backend where there is no io_uring',
        )
    if step == "shim":
        return _no_shim(facts)
    if step == "subinterpreter":
        return _subinterpreter()
    name = errno.errorcode.get(code, str(code))
    failed = f"{CALLS.get(step, step)} failed with {name}"
    if code == errno.EACCES and step.startswith("IORING_"):
        return _restricted(step)
    if code in (errno.EPERM, errno.EACCES):
        return _forbidden(code, step, failed, facts)
    if code == errno.ENOSYS:
        return _not_there(failed, facts)
    if code == errno.EINVAL and step == "setup":
        return _unknown_flags(failed, facts)
    if code == errno.ENOMEM:
        return _no_memory(failed, facts)
    if code == errno.EMFILE:
        return _no_descriptor(failed, facts)
    if code == errno.ENFILE:
        return (
            f"the machine has as many files open as the sysctl fs.file-max allows ({failed})",
            "as root raise it with `sysctl -w fs.file-max=NUMBER`, or find what leaks files with `lsof`",
        )
    return (
        f"{failed} ({os.strerror(code)}) on Linux {facts.release}",
        f'look up {name} in the manual page of {CALLS.get(step, step)}, or use io_backend="epoll"',
    )


def _subinterpreter() -> tuple[str, str]:
    return (
        "this is a subinterpreter, and the compiled part of trio_uring, which cffi has made, can be loaded only by the "
        "main interpreter of a process",
        'run Trio in the main interpreter or in a process of its own, or use io_backend="epoll" here',
    )


def _no_shim(facts: Facts) -> tuple[str, str]:
    state = "cannot be loaded by this Python" if facts.shim_built else "is not installed"
    return (
        f"the compiled part of trio_uring (the module trio_uring._ffi) {state}",
        "run `pip install --force-reinstall trio-uring`, where no wheel fits after installing a C compiler "
        "and liburing's headers (Debian and Ubuntu: `apt-get install gcc pkg-config liburing-dev`)",
    )


def _forbidden(code: int, step: str, failed: str, facts: Facts) -> tuple[str, str]:
    # Only io_uring_setup(2) asks the sysctl. Where there is a filter as well, the sysctl is what is certain.
    if step == "setup" and code == errno.EPERM and facts.sysctl_forbids():
        return _sysctl(failed, facts)
    if facts.seccomp == 2:
        return _filter(failed)
    return (
        f"{failed} although neither a sysctl nor a seccomp filter is seen to forbid it, which leaves a "
        "security module such as SELinux",
        "find the refusal with `journalctl -k` or `ausearch -m avc`, and allow io_uring in that policy",
    )


def _restricted(what: str) -> tuple[str, str]:
    return (
        f"a restriction that this process was started with forbids {what} to its rings (EACCES), which every run needs",
        "allow IORING_OP_READ, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL and IORING_REGISTER_EVENTFD where the "
        "restriction is made, by the container runtime or service manager (io_uring_register(2), "
        "IORING_REGISTER_RESTRICTIONS); other operations that it forbids are done as on epoll",
    )


def _sysctl(failed: str, facts: Facts) -> tuple[str, str]:
    if facts.disabled == 2:
        return (
            f"the sysctl kernel.io_uring_disabled is 2, which forbids io_uring to every process ({failed})",
            "as root of the machine run `sysctl -w kernel.io_uring_disabled=0`",
        )
    group = "unset" if facts.group in (None, -1) else facts.group
    return (
        "the sysctl kernel.io_uring_disabled is 1, which allows io_uring only with CAP_SYS_ADMIN or in the "
        f"group kernel.io_uring_group ({group}), and this process has neither ({failed})",
        "as root of the machine run `sysctl -w kernel.io_uring_disabled=0`, or allow it to a group of this "
        f"process with `sysctl -w kernel.io_uring_group={max(facts.groups, default=0)}`",
    )


def _filter(failed: str) -> tuple[str, str]:
    return (
        "a seccomp filter on this process forbids io_uring, as the default profiles of Docker, containerd "
        f"and Podman do ({failed})",
        "give the process a filter that allows io_uring_setup, io_uring_enter and io_uring_register: in "
        "Docker and Podman --security-opt seccomp=PROFILE.json, in Kubernetes "
        "securityContext.seccompProfile, in systemd SystemCallFilter=@aio",
    )


def _not_there(failed: str, facts: Facts) -> tuple[str, str]:
    if "gvisor" in facts.release or facts.release == "4.4.0":
        return (
            f"the process runs in gVisor (kernel release {facts.release}), which has no io_uring ({failed})",
            "run it with another container runtime, such as runc, crun or Kata Containers",
        )
    if (0, 0) < facts.kernel() < (5, 1):
        return _old(failed, facts)
    if facts.seccomp == 2:
        return _filter(failed)
    if facts.disabled is not None:  # a sysctl that comes with io_uring
        return (
            f"the kernel, {facts.release}, has io_uring, and something between it and the process has not: an emulator of "
            f"another processor, such as qemu-user, which containers of another architecture run on ({failed})",
            "run it on an image of this machine's architecture, or in a virtual machine",
        )
    return (
        f"the kernel, {facts.release}, is built without io_uring ({failed})",
        "boot a kernel with CONFIG_IO_URING=y, as those of the distributions have it",
    )


def _old(failed: str, facts: Facts) -> tuple[str, str]:
    return (
        f"the kernel, {facts.release}, is older than Linux 6.1, the oldest that serves ({failed})",
        "boot Linux 6.1 or newer (Debian 12, Ubuntu 24.04, RHEL 10 and their successors have it)",
    )


def _unknown_flags(failed: str, facts: Facts) -> tuple[str, str]:
    if facts.kernel() < OLDEST_KERNEL:
        return _old(failed, facts)
    return (
        f"the kernel, {facts.release}, or a sandbox around it refuses a set-up flag that every ring needs ({failed})",
        "see which with `python -m trio_uring doctor`, and boot an unmodified Linux 6.1 or newer",
    )


def _no_memory(failed: str, facts: Facts) -> tuple[str, str]:
    if not facts.memlock_charged():
        return (
            f"the memory cgroup (container, service) or the machine has no memory left for a ring ({failed})",
            "raise its limit (in Docker --memory, in Kubernetes resources.limits.memory, in systemd "
            f"MemoryMax=), or {_SMALLER}",
        )
    soft, hard = ("any size" if value is None else f"{value // 1024} KiB" for value in facts.memlock)
    return (
        f"RLIMIT_MEMLOCK allows {soft} for all rings and locked memory of this user together, and another "
        f"ring does not fit ({failed})",
        f"raise it with `ulimit -l` (without privileges up to {hard}; in systemd "
        f"LimitMEMLOCK=, in Docker --ulimit memlock=), or {_SMALLER}",
    )


def _no_descriptor(failed: str, facts: Facts) -> tuple[str, str]:
    soft, hard = ("any number" if value is None else value for value in facts.nofile)
    used = "all" if facts.open_files is None else facts.open_files
    return (
        f"RLIMIT_NOFILE allows this process {soft} open files, {used} are open, and a run on the ring takes "
        f"at least four more ({failed})",
        f"raise it with `ulimit -n` (without privileges up to {hard}; in systemd "
        "LimitNOFILE=, in Docker --ulimit nofile=), or close descriptors before the run",
    )
