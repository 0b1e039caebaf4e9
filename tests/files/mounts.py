"""File systems that the tests mount, each in a mount namespace that ends with the process that made it.

Knows mount(2), unshare(2) and the protocol of FUSE (linux/fuse.h, 7.31); knows nothing of Trio nor the ring. As a program
it is the daemon of a FUSE file system: `python mounts.py FOLDER CONTROL KEPT`, with the number of a socket that it
has inherited, and 1 where the kernel may keep names.

The daemon has one folder with one file, and keeps what is made there. Of each request it tells on the control socket, a byte
with the operation, and answers it when it has got a byte back: its owner decides when. For attributes the kernel has to ask each
time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
LIBC = ctypes.CDLL(None, use_errno=True)

CONTENT = bytes(range(256)) * 40
ROOT, FILE = 1, 2

LOOKUP, FORGET, GETATTR, SETATTR, MKDIR, UNLINK, RMDIR, RENAME, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = (
    *(1, 2, 3, 4, 9, 10, 11, 12, 14, 15, 16, 17, 18, 20),
)
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS, CREATE, INTERRUPT, DESTROY, IOCTL, BATCH_FORGET, RENAME2, LSEEK = (
    *(25, 26, 27, 28, 29, 34, 35, 36, 38, 39, 42, 45, 46),
)
SILENT = (FORGET, INTERRUPT, BATCH_FORGET)  # these have no answer
NAMES = {
    number: name
    for name, number in list(globals().items())
    if name.isupper() and isinstance(number, int) and number < 64
}


def _call(name: str, *arguments: object) -> None:
    if getattr(LIBC, name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def private_mounts() -> None:
    """From now on this process, and what it starts, mounts for itself alone."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWNS | (0 if user == 0 else CLONE_NEWUSER))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def mount(kind: str, folder: str | os.PathLike[str], options: str = "", source: str = "none") -> None:
    """mount(2)."""
    _call("mount", source.encode(), os.fsencode(folder), kind.encode(), 0, options.encode())


def overlay(top: Path) -> Path:
    """An overlay of two folders of `top`, `lower` and `upper`; answers where it is mounted."""
    for name in ("lower", "upper", "work", "merged"):
        (top / name).mkdir(exist_ok=True)
    mount("overlay", top / "merged", f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work", "overlay")
    return top / "merged"


@contextlib.contextmanager
def fuse(folder: Path, names_kept: bool = True) -> Iterator[socket.socket]:
    """A FUSE file system whose daemon tells of each request on the socket, and answers it for a byte."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, str(folder), str(theirs.fileno()), str(int(names_kept))]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as daemon:
        theirs.close()
        try:
            if ours.recv(1) != b"\0":
                raise RuntimeError("the daemon has not mounted")
            yield ours
        finally:
            daemon.kill()  # which ends whatever waits for it


# ------------------------------------------------------------------ the daemon


class Daemon:
    """The file system."""

    def __init__(self, names_kept: bool) -> None:
        self.valid = 3600 if names_kept else 0
        self.names = {b"file": FILE}
        self.nodes = {FILE: bytearray(CONTENT)}
        self.folders: set[int] = {ROOT}

    def attributes(self, node: int) -> bytes:
        """struct fuse_attr."""
        folder = node in self.folders
        size = 0 if folder else len(self.nodes[node])
        mode = stat.S_IFDIR | 0o755 if folder else stat.S_IFREG | 0o644
        return struct.pack("=6Q3I7I", node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def entry(self, node: int) -> bytes:
        """struct fuse_entry_out: for how long the name is good, and the attributes for no time."""
        return struct.pack("=4Q2I", node, 0, self.valid, 0, 0, 0) + self.attributes(node)

    def make(self, name: bytes, folder: bool = False) -> int:
        """A new node."""
        node = max(self.nodes, default=FILE) + len(self.folders) + 1
        self.names[name] = node
        if folder:
            self.folders.add(node)
        else:
            self.nodes[node] = bytearray()
        return node

    def answer(self, operation: int, node: int, body: bytes) -> bytes | int:
        """What a request is answered with; a negative errno."""
        if operation == INIT:
            return struct.pack("=4I2H2I2H8I", 7, 31, 0, 0, 16, 12, 1 << 17, 1, 32, 0, *[0] * 8)
        if operation == LOOKUP:
            found = self.names.get(body.rstrip(b"\0"))
            return -errno.ENOENT if found is None else self.entry(found)
        if operation in (GETATTR, SETATTR):
            if operation == SETATTR:
                valid, _, _, size = struct.unpack_from("=2I2Q", body)
                if valid & 8:
                    self.nodes[node] = bytearray(bytes(self.nodes[node][:size]).ljust(size, b"\0"))
            return struct.pack("=Q2I", 0, 0, 0) + self.attributes(node)
        if operation == OPEN:
            return struct.pack("=Q2I", node, 0, 0)
        if operation == OPENDIR:
            return struct.pack("=Q2I", 0, 0, 0)
        if operation == CREATE:
            node = self.make(body[16:].rstrip(b"\0"))
            return self.entry(node) + struct.pack("=Q2I", node, 0, 0)
        if operation == MKDIR:
            return self.entry(self.make(body[8:].rstrip(b"\0"), folder=True))
        if operation in (UNLINK, RMDIR):
            del self.names[body.rstrip(b"\0")]
            return b""
        if operation == READ:
            offset, size = struct.unpack_from("=8xQI", body)
            return bytes(self.nodes[node][offset : offset + size])
        if operation == WRITE:
            offset, size = struct.unpack_from("=8xQI", body)
            data = self.nodes[node]
            data[len(data) : offset] = bytes(max(0, offset - len(data)))
            data[offset : offset + size] = body[40 : 40 + size]
            return struct.pack("=2I", size, 0)
        if operation == STATFS:
            return struct.pack("=5Q4I24x", 1, 1, 1, 1, 1, 4096, 255, 4096, 0)
        if operation in (FLUSH, RELEASE, RELEASEDIR, FSYNC, ACCESS, READDIR):
            return b""
        return -errno.ENOSYS

    def serve(self, device: int, control: socket.socket) -> None:
        """Answer, one request after the other, until nobody is there any more."""
        told = False
        while True:
            if control.fileno() in select.select((device, control.fileno()), (), ())[0]:
                return
            request = os.read(device, 1 << 20)
            _, operation, unique, node = struct.unpack_from("=2I2Q", request)
            if operation in SILENT:
                continue
            if told:
                control.send(bytes((operation,)))
                if not control.recv(1):
                    return
            answer = self.answer(operation, node, request[40:])
            code, data = (answer, b"") if isinstance(answer, int) else (0, answer)
            os.write(device, struct.pack("=IiQ", 16 + len(data), code, unique) + data)
            if operation == INIT:
                control.send(b"\0")
                told = True


def main() -> None:
    """The daemon."""
    folder, control, names_kept = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount("fuse", folder, f"fd={device},rootmode=40000,user_id=0,group_id=0,default_permissions", "test")
    with contextlib.suppress(OSError):
        Daemon(names_kept == "1").serve(device, socket.socket(fileno=int(control)))


if __name__ == "__main__":
    main()
