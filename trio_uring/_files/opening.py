"""Layer 3, opening: openat(2) on the ring, whatever may have to be waited for.

Knows what an open can wait for and who may be asked meanwhile; knows nothing of file objects.

The kernel tries an OPENAT as it is submitted, in the loop's thread, and most file systems answer then. But FUSE asks its daemon
and NFS its server there, and waits (F53); and an overlay copies a file up that is opened for writing (F54). So first it is looked
up where the path is, which asks nobody (`tu_where`), and whatever is not known to be at hand is left to a worker of the kernel's.

A FIFO is waited for in a worker as well, until somebody opens its other end: that may take for ever, and the other end may
be another task's `open_file`, so such a worker is one more than the others (`UringIOManager.extra_worker`, F41).

Creating and truncating is done by a worker always. What is at hand needs no entry (`tu_open_cached`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

import trio

from .._loop.calls import AT_FDCWD
from .._loop.manager import UringIOManager
from .._loop.operation import NewDescriptor, close_descriptor
from .._ring.ring import IOSQE_ASYNC, OP_OPENAT, ffi, lib

BY_WORKER: Final = os.O_CREAT | os.O_TRUNC


class Open(NewDescriptor):
    """IORING_OP_OPENAT."""

    __slots__ = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The path, as long as the kernel has it."""
        path = self.keep
        return () if path is None else (os.fsdecode(ffi.string(path)),)


def where_is(path: str | bytes) -> int:
    """`tu_where` of a path; -EAGAIN where the kernel has it not in its cache, and nobody was asked.

    Raises:
      ValueError: a null byte in the path.
    """
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return int(lib.tu_where(-1, name))


def where_of(fd: int) -> int:
    """`tu_where` of a descriptor; where that fails, its type at least."""
    where = int(lib.tu_where(fd, ffi.NULL))
    return where if where >= 0 else stat.S_IFMT(os.fstat(fd).st_mode)


def is_local(where: int) -> bool:
    """Whether a regular file that is there, or whatever else, has its data at hand in this machine. Not if nobody knows."""
    return where >= 0 and bool(where & lib.TU_LOCAL)


def is_elsewhere(where: int) -> bool:
    """Whether it is known to be a regular file for which somebody else may have to be asked."""
    return where >= 0 and stat.S_ISREG(where) and not where & lib.TU_LOCAL


def _waits(where: int, flags: int) -> bool:
    """Whether the open waits for another one."""
    return where >= 0 and stat.S_ISFIFO(where) and not flags & os.O_NONBLOCK


def _may_wait(where: int, flags: int) -> bool:
    """Whether the submission of the open may wait for somebody, or for a copy."""
    if where < 0:
        return where != -errno.ENOENT  # which the cache knows; of the rest nobody knows anything
    return not where & lib.TU_LOCAL or (flags & os.O_ACCMODE != os.O_RDONLY and bool(where & lib.TU_COPIES_UP))


@trio.lowlevel.enable_ki_protection
async def open_fd(
    manager: UringIOManager, path: str | bytes, flags: int, mode: int = 0o666, where: int | None = None
) -> int:
    """openat(2), relative to the working directory; the new descriptor. A schedule point and a cancel point.

    Args:
      path: as `os.fspath` answers it.
      flags, mode: those of open(2); O_CLOEXEC is for the caller to give.
      where: what `where_is` has answered, if it has been asked.

    Raises:
      ValueError: a null byte in the path.
      OSError: with the path as its filename.
    """
    if where is None:
        where = where_is(path)
    memory = ffi.from_buffer(os.fsencode(path) + b"\0")
    waits = _waits(where, flags)
    aside = waits or _may_wait(where, flags)
    try:
        while True:
            with manager.extra_worker() if waits else contextlib.nullcontext():
                operation = Open(manager, AT_FDCWD, memory, None)
                try:
                    fd = await operation.perform(
                        OP_OPENAT, memory, mode, op_flags=flags, sqe_flags=IOSQE_ASYNC if aside else 0
                    )
                except OSError as error:
                    if error.errno != errno.ENXIO or aside:
                        raise
                    fd = -1
            # A FIFO by now, which the attempt in the submission has not waited for: once more, and wait.
            if fd >= 0 and (aside or flags & BY_WORKER or not _waits(where_of(fd), flags)):
                return fd
            if fd >= 0:
                close_descriptor(fd)
            waits = aside = True
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
