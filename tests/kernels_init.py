"""The other kernels' machine: packs it on this one, and is process 1 of it. Used by tests/kernels.sh.

    python kernels_init.py pack IMAGE TREE TEST...    writes an initramfs: this Python, its packages, TREE/tests, and this file
    python kernels_init.py probe                      prints what the running kernel offers, as one line of JSON
    python kernels_init.py compare HERE THERE         says in words what the second of two such lines lacks or adds

As process 1 it mounts what tests need, brings the loopback interface up, says what the probe finds, runs pytest and turns the
machine off. Knows cpio's "newc" format (Linux's Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

INIT = "/init"
NOT_PACKED = (
    "__pycache__",
    "test",
    "idlelib",
    "ensurepip",
    "tkinter",
    "lib2to3",
    "turtledemo",
    "mypy",
    "mypyc",
    "pip",
    "setuptools",
)
MARK = "trio-uring-probe "


# ------------------------------------------------------------------ on this machine


def _libraries(paths: list[Path]) -> set[Path]:
    """The shared libraries that programs and extension modules load, and the loader."""
    found = set()
    for path in paths:
        for line in subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout.splitlines():
            found |= {Path(word) for word in line.split() if word.startswith("/")}
    return found


def _below(directory: Path) -> Iterator[Path]:
    for root, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name not in NOT_PACKED]
        yield from (Path(root, name) for name in files if not name.endswith((".a", ".pyc")))


def _contents(tree: Path) -> set[Path]:
    paths = sysconfig.get_paths()
    files = {Path(os.path.realpath(sys.executable)), Path(sys.executable), Path(sys.prefix, "pyvenv.cfg")}
    base = {path for key in ("stdlib", "platstdlib") for path in _below(Path(paths[key]))}
    files |= {path for path in base if not {"site-packages", "dist-packages"} & set(path.parts)}
    files |= {path for key in ("purelib", "platlib") for path in _below(Path(paths[key]))}
    files |= set(_below(tree / "tests")) | {tree / "pyproject.toml"}
    files |= {Path(os.path.realpath(name)) for name in ("/bin/sh", "/bin/true", "/bin/cat", "/bin/sleep")}
    files |= _libraries([path for path in files if ".so" in path.name or os.access(path, os.X_OK)])
    files |= {Path(name) for name in ("/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf")}
    return {path for path in files if path.exists()}


def _record(name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def pack(image: str, tree: str, tests: list[str]) -> None:
    """Write an initramfs."""
    made: set[str] = set()
    with open(image, "wb") as out:

        def directories(path: Path) -> None:
            for parent in [*reversed(path.parents)][1:]:
                if str(parent) not in made:
                    made.add(str(parent))
                    out.write(_record(str(parent)[1:], stat.S_IFDIR | 0o755, b""))

        def add(path: Path) -> None:
            directories(path)
            if path.is_symlink():
                out.write(_record(str(path)[1:], stat.S_IFLNK | 0o777, os.path.realpath(path).encode()))
            else:
                out.write(_record(str(path)[1:], path.stat().st_mode, path.read_bytes()))

        for name in ("proc", "sys", "dev", "tmp", "run", "root"):
            made.add(f"/{name}")
            out.write(_record(name, stat.S_IFDIR | 0o755, b""))
        out.write(_record("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)))
        for path in sorted(_contents(Path(tree))):
            add(path)  # through a link on the way (/lib), which becomes a directory of its own
            real = Path(os.path.realpath(path))
            if real != path:
                add(real)
        for name in ("sh", "true", "cat", "sleep"):
            directories(Path("/bin", name))
            out.write(_record(f"bin/{name}", stat.S_IFLNK | 0o777, os.path.realpath(f"/bin/{name}").encode()))
        start = f"#!{sys.executable} -u\n".encode() + Path(__file__).read_bytes()
        out.write(_record(INIT[1:], stat.S_IFREG | 0o755, start))
        out.write(_record("job", stat.S_IFREG | 0o644, json.dumps({"tree": tree, "tests": tests}).encode()))
        out.write(_record("TRAILER!!!", 0, b""))


def probe() -> dict[str, object]:
    """What the running kernel offers, as the package sees it."""
    from trio_uring import _ring

    operations = sorted(_ring.supported_operations())
    registers = [number for number in range(64) if _ring.lib.tu_probe_register(number) == 1]
    flags = [bit for bit in range(32) if _ring.lib.tu_try_setup(1 << bit, 2) not in (-22,)]
    return {"release": os.uname().release, "operations": operations, "registers": registers, "setup flags": flags}


def compare(here: str, there: str) -> None:
    """Say what another kernel lacks and adds."""
    ours, theirs = (json.loads(line) for line in (here, there))
    print(f"{theirs['release']}, compared with {ours['release']}:")
    for what in ("operations", "registers", "setup flags"):
        lacks, adds = (sorted(set(a) - set(b)) for a, b in ((ours[what], theirs[what]), (theirs[what], ours[what])))
        print(f"  {what}: lacks {lacks or 'none'}, adds {adds or 'none'}")


# ------------------------------------------------------------------ on the other


def init() -> None:
    """Process 1."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, where in (
        (b"proc", b"/proc"),
        (b"sysfs", b"/sys"),
        (b"devtmpfs", b"/dev"),
        (b"tmpfs", b"/run"),
    ):
        libc.mount(kind, where, kind, 0, None)
    for kind, where in ((b"devpts", b"/dev/pts"), (b"tmpfs", b"/dev/shm")):
        os.makedirs(where, exist_ok=True)
        libc.mount(kind, where, kind, 0, None)
    with socket.socket() as any_socket:
        up = struct.pack("16sh14x", b"lo", 1 | 64)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1 << 19))
    with open("/job") as file:
        job = json.load(file)
    os.chdir(job["tree"])
    environment = {
        "PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin",
        "HOME": "/root",
        "TMPDIR": "/tmp",
        "TRIO_URING_TEST_SECONDS": "600",
    }
    python = [sys.executable, "-u"]
    subprocess.run([*python, INIT, "probe"], env=environment, check=False)
    subprocess.run([*python, "-m", "trio_uring", "doctor"], env=environment, check=False, cwd="/tmp")
    options = ["--color=no", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    subprocess.run([*python, "-m", "pytest", *options, *job["tests"]], env=environment, check=False)
    sys.stdout.flush()
    os.sync()
    libc.reboot(0x4321FEDC)  # RB_POWER_OFF


if __name__ == "__main__":
    if os.getpid() == 1:
        init()
    elif sys.argv[1] == "pack":
        pack(sys.argv[2], sys.argv[3], sys.argv[4:])
    elif sys.argv[1] == "probe":
        print(MARK + json.dumps(probe()), flush=True)
    else:
        compare(*(Path(name).read_text().partition(MARK)[2] for name in sys.argv[2:4]))
