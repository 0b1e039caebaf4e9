"""What containers and supervisors take away, one at a time, and a run on the ring works all the same (docs/containers.md).

Each is a program of its own, confined as runtimes do it: namespaces, mounts, prctl(2). What a profile of system calls forbids
is in `test_refusals`, with the runtimes' own profiles in tests/containers.py.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE = 100  # seconds, after which a program is taken to hang
RUN = """
import os
import trio

async def main():
    left, right = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send, b"ring")
        assert await right.recv(4) == b"ring"
    assert (await trio.Path("/proc/self/comm").read_text()).strip()
    async with await trio.open_file(os.__file__) as file:
        text = await file.read()
    assert text == open(os.__file__).read()
    assert await trio.Path(os.__file__).is_file()
    assert (await trio.run_process(["true"])).returncode == 0
    print(trio.lowlevel.current_statistics().io_statistics.backend)

trio.run(main)
"""


def told(command: list[str]) -> tuple[str, str]:
    """What such a program prints, and what it complains of."""
    environment = {**os.environ, "TRIO_IO_BACKEND": "uring"}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=PATIENCE)
    return done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["user", "net", "pid", "ipc", "uts", "cgroup", "mount", "time"])
def test_in_a_namespace(kind: str) -> None:
    forked = ["--fork", "--mount-proc"] if kind == "pid" else ["--fork"]
    command = ["unshare", "--map-root-user", *forked, f"--{kind}", sys.executable, "-c", RUN]
    assert told(command) == ("uring\n", "")


def test_with_a_read_only_root_and_no_temporary_directory(tmp_path: Path) -> None:
    """ReadOnlyPaths=/, `docker run --read-only`."""
    confine = f"""
        set -e
        mount --rbind / {shlex.quote(str(tmp_path))}
        cd {shlex.quote(str(tmp_path))}
        mount -o remount,bind,ro .
        mount --bind tmp tmp
        mount -o remount,bind,ro tmp
        exec chroot . "$@"
    """
    program = RUN + "import os\ntry:\n    os.mkdir('/made')\nexcept OSError as error:\n    print(error.strerror)\n"
    program += "try:\n    os.mkdir('/tmp/made')\nexcept OSError as error:\n    print(error.strerror)\n"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", confine, "sh", sys.executable, "-c", program]
    assert told(command) == ("uring\nRead-only file system\nRead-only file system\n", "")


def test_where_no_memory_may_be_made_executable() -> None:
    """PR_SET_MDWE, which is systemd's MemoryDenyWriteExecute=; the program looks whether it is in force."""
    confine = """
import ctypes, mmap
assert ctypes.CDLL(None).prctl(65, ctypes.c_ulong(1), 0, 0, 0) == 0
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    print("in force")
"""
    assert told([sys.executable, "-c", confine + RUN]) == ("in force\nuring\n", "")
