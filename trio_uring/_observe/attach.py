"""Layer 5: `python -m trio_uring dump PID`: a dump of a process that nothing was prepared in. CPython 3.14 and newer.

Knows `sys.remote_exec` (PEP 768), which leaves a script in another process that runs it when its main thread next executes Python
code, and ptrace(2). A run that sleeps in the ring executes none until something happens to it, so its wait is interrupted: a
process that is seized and let go of again finds EINTR there, and nothing else has changed; nobody but the kernel sees it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

PTRACE_DETACH: Final = 17
PTRACE_SEIZE: Final = 0x4206
PTRACE_INTERRUPT: Final = 0x4207
WALL: Final = 0x40000000  # __WALL of waitpid(2)

_AGAIN: Final = 0.25  # seconds until the wait is interrupted, again
_LOOK: Final = 0.01

# Runs in the other process, inside whatever that is doing: it leaves no name behind and imports nothing that is not there.
_SCRIPT: Final = """\
def _dump():
    import os, sys
    try:
        if "trio_uring._loop.manager" in sys.modules:
            from trio_uring._observe import observe
            import io
            out = io.StringIO()
            observe.dump(out, as_json={as_json!r})
            text = out.getvalue()
        else:
            text = {nothing!r}
    except BaseException:
        import traceback
        text = traceback.format_exc()
    with open({answer!r} + ".part", "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    os.rename({answer!r} + ".part", {answer!r})
_dump()
del _dump
"""


class CannotAttachError(Exception):
    """One sentence: why there is no dump, and what to do."""


def interrupt(pid: int) -> None:
    """Make the system call that a process's main thread waits in end with EINTR, if it is one that can.

    Raises OSError: no such process, or it may not be traced (EPERM), or is traced already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request: int) -> None:
        if libc.ptrace(request, pid, None, None) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    ptrace(PTRACE_SEIZE)
    try:
        ptrace(PTRACE_INTERRUPT)
        os.waitpid(pid, WALL)
    finally:
        with contextlib.suppress(OSError):  # it has ended
            ptrace(PTRACE_DETACH)


@contextlib.contextmanager
def _directory(pid: int) -> Iterator[tuple[Path, str]]:
    """A directory that the other process can write to: as we see it, and as it sees it (it may be in a container)."""
    owner = os.stat(f"/proc/{pid}")  # FileNotFoundError: no such process, which is not for want of a directory
    root = Path(f"/proc/{pid}/root")
    for place in ("/tmp", "/dev/shm", "/var/tmp"):
        try:
            made = Path(tempfile.mkdtemp(prefix="trio-uring-dump-", dir=f"{root}{place}"))
            break
        except OSError as error:
            problem = error
    else:
        raise CannotAttachError(f"there is no directory to write to that process {pid} sees ({problem})")
    try:
        if owner.st_uid != os.geteuid():
            os.chown(made, owner.st_uid, owner.st_gid)
        yield made, f"{place}/{made.name}"
    finally:
        shutil.rmtree(made, ignore_errors=True)


def attach(pid: int, as_json: bool = False, timeout: float = 10.0) -> str:
    """What `trio_uring.dump` writes in another process, on this machine or in a container on it.

    Args:
      pid: its process number here.
      as_json: see `dump`.
      timeout: seconds to wait for the answer.

    Raises CannotAttachError.
    """
    if sys.version_info < (3, 14):
        raise CannotAttachError(
            f"attaching takes CPython 3.14 or newer and this is {platform.python_version()}; start the program with "
            "TRIO_URING_DUMP=SIGUSR1 and send it that signal"
        )
    try:
        with _directory(pid) as (ours, theirs):
            script = ours / "script.py"
            nothing = "[]\n" if as_json else f"trio-uring dump: process {pid} has not imported trio_uring\n"
            answer = ours / "answer"
            script.write_text(_SCRIPT.format(as_json=as_json, nothing=nothing, answer=f"{theirs}/answer"))
            script.chmod(0o644)
            sys.remote_exec(pid, f"{theirs}/script.py")
            deadline = time.monotonic() + timeout
            again = time.monotonic() + _LOOK
            while not answer.exists():
                now = time.monotonic()
                if now > deadline:
                    raise CannotAttachError(
                        f"process {pid} has not answered within {timeout:g} s: it is stopped, or its main thread executes "
                        "no Python code (a C extension, a wait for another thread); the run may be in another thread"
                    )
                if now > again:
                    again = now + _AGAIN
                    interrupt(pid)
                time.sleep(_LOOK)
            return answer.read_text(encoding="utf-8")
    except (ProcessLookupError, FileNotFoundError, ChildProcessError):
        raise CannotAttachError(f"there is no process {pid}") from None
    except PermissionError as error:
        raise CannotAttachError(
            f"process {pid} may not be attached to ({error.strerror}); do it as its user where the sysctl "
            "kernel.yama.ptrace_scope is 0, or as root with CAP_SYS_PTRACE"
        ) from None
    except (OSError, RuntimeError) as error:
        version = ".".join(platform.python_version_tuple()[:2])
        raise CannotAttachError(
            f"process {pid} cannot be attached to ({error}); it must run CPython {version}, as this does, with remote "
            "debugging on (not -X disable-remote-debug, nor PYTHON_DISABLE_REMOTE_DEBUG)"
        ) from None


def main(argv: Sequence[str]) -> int:
    """`python -m trio_uring dump PID [--json]`; prints the dump to standard output.

    Returns the exit code: 0, or 1 with one sentence on standard error. Wrong arguments end the process with code 2 (argparse).
    """
    parser = argparse.ArgumentParser(
        prog="python -m trio_uring dump", description="Tells what every run on the ring in a process is doing."
    )
    parser.add_argument("pid", type=int, metavar="PID")
    parser.add_argument("--json", action="store_true", help="one line of JSON, the list of trio_uring.snapshot()")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="10 if not given")
    arguments = parser.parse_args(argv)
    try:
        print(attach(arguments.pid, arguments.json, arguments.timeout), end="")
    except CannotAttachError as error:
        print(f"python -m trio_uring dump: {error}", file=sys.stderr)
        return 1
    return 0
