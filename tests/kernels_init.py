"""The other kernels' machine: packs it on this one, and is process 1 of it. Used by tests/kernels.sh.

    python kernels_init.py pack IMAGE TREE / TEST...  writes an initramfs: this Python, its packages, TREE/tests, and this file
    python kernels_init.py pack IMAGE TREE ROOT TEST...  the same with the foreign system that lies below ROOT
    python kernels_init.py modules IMAGE TREE NAME... adds modules of a kernel's TREE, and what they need, to an initramfs
    python kernels_init.py restricted TREE            runs a program whose rings may not do most operations
    python kernels_init.py probe                      prints what the running kernel offers, as one line of JSON
    python kernels_init.py compare HERE THERE         says in words what the second of two such lines lacks or adds

As process 1 it mounts what tests need, brings the loopback interface up, says what the probe finds, runs pytest and turns the
machine off. Knows cpio's "newc" format (Linux's Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import lzma
import os
import re
import resource
import shutil
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
FOREIGN_PYTHON = "/usr/bin/python3.11"  # Debian 12's
MARK = "trio-uring-probe "
# What tests start; those that this machine has.
PROGRAMS = (
    "sh",
    "cat",
    "echo",
    "env",
    "false",
    "head",
    "kill",
    "printf",
    "seq",
    "sleep",
    "strace",
    "tr",
    "true",
    "yes",
)


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
        yield from (Path(root, name) for name in files if not name.endswith((".a", "opt-1.pyc", "opt-2.pyc")))


def _contents(tree: Path) -> set[Path]:
    paths = sysconfig.get_paths()
    files = {Path(os.path.realpath(sys.executable)), Path(sys.executable), Path(sys.prefix, "pyvenv.cfg")}
    base = {path for key in ("stdlib", "platstdlib") for path in _below(Path(paths[key]))}
    files |= {path for path in base if not {"site-packages", "dist-packages"} & set(path.parts)}
    files |= {path for key in ("purelib", "platlib") for path in _below(Path(paths[key]))}
    files |= set(_below(tree / "tests")) | {tree / "pyproject.toml"}
    files |= {Path(os.path.realpath(found)) for name in PROGRAMS if (found := shutil.which(name))}
    files |= _libraries([path for path in files if ".so" in path.name or os.access(path, os.X_OK)])
    files |= {Path(name) for name in ("/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf")}
    return {path for path in files if path.exists()}


def _record(name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _content(path: Path) -> bytes:
    """What a file holds; compiled Python as what needs no look at its source, whose time an initramfs does not keep (PEP 552)."""
    data = path.read_bytes()
    if path.suffix == ".pyc" and "pytest" not in path.name:
        return data[:4] + (1).to_bytes(4, "little") + data[8:]
    return data


# Of a foreign system.
NOT_NEEDED = ("boot", "dev", "proc", "sys", "usr/share/doc", "usr/share/locale", "usr/share/man", "var")


def _system(root: Path) -> Iterator[bytes]:
    """The records of the system below `root`, as it lies there."""
    for at, directories, files in os.walk(root):
        above = Path(at).relative_to(root)
        directories[:] = [name for name in directories if str(above / name) not in NOT_NEEDED and name != "__pycache__"]
        for name in sorted([*directories, *files]):
            path = Path(at, name)
            data = b""
            if path.is_symlink():
                data = os.readlink(path).encode()
            elif path.is_file():
                data = path.read_bytes()
            yield _record(str(above / name), path.lstat().st_mode, data)


def pack(image: str, tree: str, root: str, tests: list[str]) -> None:
    """Write an initramfs."""
    made: set[str] = set()
    foreign = Path(root) != Path("/")
    executable = FOREIGN_PYTHON if foreign else sys.executable
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
                out.write(_record(str(path)[1:], path.stat().st_mode, _content(path)))

        for name in ("proc", "sys", "dev", "tmp", "run", "root"):
            made.add(f"/{name}")
            out.write(_record(name, stat.S_IFDIR | 0o755, b""))
        out.write(_record("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)))
        if foreign:
            out.writelines(_system(Path(root)))
        mine = {*_below(Path(tree, "tests")), Path(tree, "pyproject.toml")} if foreign else _contents(Path(tree))
        for path in sorted(mine):
            add(path)  # through a link on the way (/lib), which becomes a directory of its own
            real = Path(os.path.realpath(path))
            if real != path:
                add(real)
        for name in PROGRAMS if not foreign else ():
            if found := shutil.which(name):
                directories(Path("/bin", name))
                out.write(_record(f"bin/{name}", stat.S_IFLNK | 0o777, os.path.realpath(found).encode()))
        start = f"#!{executable} -u\n".encode() + Path(__file__).read_bytes()
        out.write(_record(INIT[1:], stat.S_IFREG | 0o755, start))
        out.write(_record("job", stat.S_IFREG | 0o644, json.dumps({"tree": tree, "tests": tests}).encode()))
        out.write(_record("TRAILER!!!", 0, b""))


def modules(image: str, kernel: str, names: list[str]) -> None:
    """Add an archive with modules of a kernel's tree, named in the order in which to load them."""
    found = {path.name.partition(".")[0].replace("_", "-"): path for path in Path(kernel).rglob("*.ko*")}
    order: list[tuple[str, bytes]] = []

    def add(name: str) -> None:
        if name not in found or name in (each for each, _ in order):
            return  # in the kernel itself; or there
        path = found[name]
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in needs.group(1).decode().replace("_", "-").split(",") if needs else ():
            add(needed)
        order.append((name, data))

    for name in names:
        add(name)
    with open(image, "ab") as out:
        out.write(bytes(-out.tell() % 512))
        out.write(_record("modules", stat.S_IFDIR | 0o755, b""))
        for number, (name, data) in enumerate(order):
            out.write(_record(f"modules/{number:02}-{name}", stat.S_IFREG | 0o644, data))
        out.write(_record("TRAILER!!!", 0, b""))


def probe() -> dict[str, object]:
    """What the running kernel offers, as the package sees it."""
    from trio_uring._ring import ring as _ring

    operations = sorted(_ring.supported_operations())
    registers = [number for number in range(64) if _ring.lib.tu_probe_register(number) == 1]
    flags = [bit for bit in range(32) if _ring.lib.tu_try_setup(1 << bit, 2) not in (-22,)]
    served = []
    ring = _ring.Ring(8)
    for number in set(range(100)) - set(operations):
        ring.queue(number, _ring.FIRST_USER_DATA + number)
        told = ring.wait(10) or [0, 0, 0]
        if told[1] not in (-errno.EINVAL, -errno.EOPNOTSUPP):
            served.append(number)
    ring.close()
    return {
        "release": os.uname().release,
        "operations": operations,
        "registers": registers,
        "setup flags": flags,
        "served although denied": served,
    }


def compare(here: str, there: str) -> None:
    """Say what another kernel lacks and adds, and whether the probe knew: what it denies the kernel must refuse."""
    from trio_uring._entry import doctor as _doctor

    names = {
        "operations": {each.number: each.name for each in _doctor.OPERATIONS},
        "setup flags": {each.number.bit_length() - 1: each.name for each in _doctor.FLAGS},
    }
    ours, theirs = (json.loads(line) for line in (here, there))
    print(f"{theirs['release']}, compared with {ours['release']}:")
    for what in ("operations", "registers", "setup flags"):
        for verb, a, b in (("lacks", ours, theirs), ("adds", theirs, ours)):
            differs = sorted(set(a[what]) - set(b[what]))
            told = ", ".join(f"{number} {names.get(what, {}).get(number, '')}".strip() for number in differs)
            print(f"  {what}: {verb} {told or 'none'}")
    denied = theirs["served although denied"]
    print(
        f"  the probe: {f'denies operations that the kernel serves: {denied}' if denied else 'what it denies is refused'}"
    )
    if denied:
        sys.exit(1)


# ------------------------------------------------------------------ on the other


# What a run can do without; all else is allowed. By number: OPENAT, STATX, WRITE, SEND, RECV, SENDMSG, RECVMSG, ACCEPT, CONNECT,
# FSYNC, RENAMEAT, UNLINKAT, MKDIRAT, SYMLINKAT, LINKAT.
REFUSED = {18, 21, 23, 26, 27, 9, 10, 13, 16, 3, 35, 36, 37, 38, 39}


def _restrict_this_task() -> None:
    """IORING_REGISTER_RESTRICTIONS with the ring descriptor -1 (io_uring_register(2)); OSError where the kernel has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    rules = [(1, number) for number in range(58) if number not in REFUSED]  # IORING_RESTRICTION_SQE_OP
    rules.append((2, 0xFF))  # IORING_RESTRICTION_SQE_FLAGS_ALLOWED
    packed = struct.pack("=HH12x", 0, len(rules))
    packed += b"".join(struct.pack("=HBB12x", opcode, number, 0) for opcode, number in rules)
    if libc.syscall(427, -1, 11, packed, 1) < 0:  # IORING_REGISTER_RESTRICTIONS
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def restricted(tree: str) -> None:
    """Say whether a program answers the same when its rings may not do most operations, and is on the ring."""
    program = [sys.executable, f"{tree}/tests/environment/restricted.py"]
    told = []
    for backend, restrict in (("epoll", None), ("uring", _restrict_this_task)):
        os.makedirs(f"/tmp/{backend}", exist_ok=True)
        try:
            done = subprocess.run(
                [*program, backend, f"/tmp/{backend}"], preexec_fn=restrict, capture_output=True, text=True
            )
        except subprocess.SubprocessError:
            print("trio-uring-restricted no: this kernel restricts no tasks")
            return
        if done.returncode:
            print(f"trio-uring-restricted differs: {backend} ended with {done.returncode}\n{done.stderr}")
            return
        answers = json.loads(done.stdout.replace(f"/tmp/{backend}", "/tmp"))
        told.append((answers.pop("backend"), answers))
    differing = [name for name in told[0][1] if told[0][1][name] != told[1][1].get(name)]
    right = [backend for backend, _ in told] == ["epoll", "uring"] and not differing
    print(f"trio-uring-restricted {'holds: every answer is as on epoll' if right else f'differs: {differing}'}")


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
    for module in sorted(Path("/modules").glob("*")):
        init_module = 105 if os.uname().machine == "aarch64" else 175
        loaded = libc.syscall(init_module, module.read_bytes(), ctypes.c_ulong(module.stat().st_size), b"")
        print(f"module {module.name}: {'loaded' if loaded == 0 else os.strerror(ctypes.get_errno())}")
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
        "TMPDIR": "/dev/shm",  # a tmpfs: newer kernels leave reads from a ramfs, such as /, to their workers
        "NO_COLOR": "1",
        "TRIO_URING_TEST_SECONDS": "3000",
    }
    python = [sys.executable, "-u"]
    subprocess.run([*python, INIT, "probe"], env=environment, check=False)
    subprocess.run([*python, "-m", "trio_uring", "doctor"], env=environment, check=False, cwd="/tmp")
    subprocess.run([*python, INIT, "restricted", job["tree"]], env=environment, check=False, cwd="/tmp")
    for program in ("kernel_tls", "many_idle"):
        path = f"{job['tree']}/tests/environment/{program}.py"
        done = subprocess.run([*python, path], env=environment, check=False, cwd="/tmp")
        print(f"trio-uring-program {program}: exit status {done.returncode}")
    options = ["--color=no", "-v", "-p", "no:cacheprovider", "-n", str(os.cpu_count()), "--tb=short", "--durations=10"]
    subprocess.run([*python, "-m", "pytest", *options, *job["tests"]], env=environment, check=False)
    sys.stdout.flush()
    os.sync()
    libc.reboot(0x4321FEDC)  # RB_POWER_OFF


if __name__ == "__main__":
    if os.getpid() == 1:
        init()
    elif sys.argv[1] == "pack":
        pack(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
    elif sys.argv[1] == "modules":
        modules(sys.argv[2], sys.argv[3], sys.argv[4:])
    elif sys.argv[1] == "restricted":
        restricted(sys.argv[2])
    elif sys.argv[1] == "probe":
        print(MARK + json.dumps(probe()), flush=True)
    else:
        compare(*(Path(name).read_text().partition(MARK)[2] for name in sys.argv[2:4]))
