"""Layer 3, paths: the methods of trio.Path, and of anyio.Path on Trio, as ring operations.

Knows what each method of pathlib means, in every version of Python that is supported, and which entries say it; knows nothing of
how the methods come to be in Trio's and AnyIO's classes (the seams put them there) nor of when an operation is over
(`operation`). AnyIO is never imported here.

Each method is first a function of this module, on the manager and the text of a path. It answers NotImplemented for whatever
it does not serve exactly, and then the original does it all, in a thread, as it does today: arguments of types out
of the ordinary, names that cannot be encoded, devices. An operation that failed had no effect, so going to the original
after it is as good as going there at once. Errors that pathlib passes on are raised here, with the names that the os
functions give them.

Left to threads, because the ring has no operation for them: readlink, chmod, utimensat(2), getdents(2) and whatever is made of
these (docs/files.md has the list).

Cancellation
============
What changes nothing (stat, reading) can be cancelled anywhere. What changes something is one entry wherever the kernel has
one, and then its completion decides: `mkdir` cancelled has made the directory and says so, or has not. Where it takes
several (mkdir with parents, writing a whole file), a cancel counts until the first of them has had an effect. From there on
nothing ends them, KeyboardInterrupt no more than a cancel (`Uninterrupted`), because pathlib's callers do not know half a call;
it takes as long as it takes today.

Whole files
===========
openat(2) is asked with the entry: where the names are in the kernel's cache it completes as it is submitted. A small file that
is in the page cache is then read by preadv2(2) with RWF_NOWAIT, which is what the ring would do first with an entry, without
the second trip through the scheduler. What is large is copied by a worker of the kernel's, so that other tasks run
meanwhile. Files over a network, /proc and devices are read by a thread, since their fstat(2) and close(2) may wait.
"""

from __future__ import annotations

import errno
import inspect
import io
import os
import pathlib
import stat as modes
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from trio.lowlevel import Abort, RaiseCancelT

from .._loop.calls import (
    AT_FDCWD,
    CURRENT_POSITION,
    MAX_RW_COUNT,
    WORKER_THRESHOLD,
    AsyncMethod,
    Pinned,
    new_uninitialized,
    replaces,
    ring_manager,
)
from .._loop.manager import UringIOManager
from .._loop.operation import GLOBAL_RUN_CONTEXT, Operation, close_descriptor, redeliver, schedule_point
from .._ring.ring import (
    IOSQE_ASYNC,
    OP_CLOSE,
    OP_LINKAT,
    OP_MKDIRAT,
    OP_READ,
    OP_RENAMEAT,
    OP_STATX,
    OP_SYMLINKAT,
    OP_UNLINKAT,
    OP_WRITE,
    ffi,
    lib,
    tu_read_whole,
    tu_stat_cached,
)
from .anyio_files import manager_on_trio
from .opening import is_elsewhere, is_local, open_fd, where_is, where_of

# include/uapi/linux/fcntl.h and stat.h.
NEW_AT_FDCWD: Final = AT_FDCWD & 0xFFFFFFFF  # the second directory stands in a field without a sign
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_SYMLINK_FOLLOW: Final = 0x400
AT_REMOVEDIR: Final = 0x200
AT_NO_AUTOMOUNT: Final = 0x800  # stat(2) mounts nothing either
STATX_BASIC_STATS: Final = 0x7FF

READING: Final = os.O_RDONLY | os.O_CLOEXEC
WRITING: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
MAKING: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

PATH_MAX: Final = 4096  # bytes, with the one at the end

# struct statx as far as stat(2) goes; its last two pairs are the device numbers.
STATX_SIZE: Final = 256
STATX: Final = struct.Struct("=4xI8xIIIHxxQQQ8x qi4x 16x qi4x qi4x IIII")

SMALL: Final = 1 << 16  # bytes: a file that is smaller is read at once

# What `exists` and its like take for "no", in every version; what they make of another error differs.
ABSENT: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP))

Answer = Any  # what the method answers, or NotImplemented


class PathOperation(Operation):
    """An operation on one or two paths. Its errors carry their names, as those of the os functions do.

    Args:
      names: what follows errno and text in the arguments of OSError.
      keep: the memory of the paths, and of the result.
    """

    __slots__ = ("names",)

    def __init__(self, manager: UringIOManager, names: tuple[str | None, ...], keep: object) -> None:
        super().__init__(manager, AT_FDCWD, keep, None)
        self.names = names

    def error(self, result: int) -> OSError:
        """The exception for a negative result."""
        return OSError(-result, os.strerror(-result), *self.names)


class Uninterrupted(Operation):
    """What a call does after its first effect: it goes on to its end, as the thread does in which pathlib runs otherwise.

    In place of a shield, which is none against KeyboardInterrupt: that stays pending, until after the call.
    """

    __slots__ = ()

    @trio.lowlevel.enable_ki_protection
    async def finish(
        self, opcode: int, addr: Any, length: int, offset: int = 0, op_flags: int = 0, sqe_flags: int = 0
    ) -> int:
        """`perform`, without its cancel points."""
        while True:
            self.user_data = user_data = self.manager.next_user_data()
            queue = self.manager.ring.queue
            await self.queue_and_wait(queue, opcode, user_data, self.fd, addr, length, offset, op_flags, sqe_flags)
            if self.result >= 0:
                return self.result
            keep = self.keep
            if self.refused():
                return await self._finish_by_system_call(keep, opcode, addr, length, offset, op_flags)
            await self.failed()

    async def _finish_by_system_call(self, *entry: Any) -> int:
        interrupt: KeyboardInterrupt | None = None
        try:
            with trio.CancelScope(shield=True):
                while True:
                    try:
                        result = await self.by_system_call(*entry)
                        break
                    except KeyboardInterrupt as error:  # before it began
                        interrupt = error
        finally:
            if interrupt is not None:
                redeliver(interrupt)
        return result

    def abort(self, raise_cancel: RaiseCancelT) -> Abort:
        """Trio's abort_fn. What it was to end is raised by the next checkpoint."""
        return Abort.FAILED


class UninterruptedPathOperation(PathOperation, Uninterrupted):
    """Both."""

    __slots__ = ()


def _memory(path: str) -> Any:
    return ffi.new("char[]", os.fsencode(path))


def _address(memory: Any) -> int:
    return int(ffi.cast("uintptr_t", memory))


async def _one_path(
    manager: UringIOManager,
    event: str,
    opcode: int,
    path: str,
    audited: tuple[int, ...],
    length: int = 0,
    flags: int = 0,
    begun: bool = False,
) -> None:
    sys.audit(event, path, *audited)
    memory = _memory(path)
    if begun:
        await UninterruptedPathOperation(manager, (path,), memory).finish(opcode, memory, length, 0, flags)
    else:
        await PathOperation(manager, (path,), memory).perform(opcode, memory, length, 0, flags)


async def _two_paths(
    manager: UringIOManager,
    event: str,
    opcode: int,
    first: str,
    second: str,
    directories: tuple[int, ...],
    length: int = 0,
    flags: int = 0,
) -> None:
    sys.audit(event, first, second, *directories)
    memory = _memory(first), _memory(second)
    operation = PathOperation(manager, (first, None, second), memory)
    await operation.perform(opcode, memory[0], length, _address(memory[1]), flags)


# ------------------------------------------------------------------ status


def stat_result(memory: Any) -> os.stat_result:
    """What stat(2) would have said, from a struct statx."""
    (
        blksize, nlink, uid, gid, mode, ino, size, blocks,
        atime, atime_nsec, ctime, ctime_nsec, mtime, mtime_nsec,
        rdev_major, rdev_minor, dev_major, dev_minor,
    ) = STATX.unpack_from(memory)  # fmt: skip
    return os.stat_result(
        (mode, ino, os.makedev(dev_major, dev_minor), nlink, uid, gid, size, atime, mtime, ctime),
        {
            "st_atime": atime + 1e-9 * atime_nsec,
            "st_mtime": mtime + 1e-9 * mtime_nsec,
            "st_ctime": ctime + 1e-9 * ctime_nsec,
            "st_atime_ns": atime * 1_000_000_000 + atime_nsec,
            "st_mtime_ns": mtime * 1_000_000_000 + mtime_nsec,
            "st_ctime_ns": ctime * 1_000_000_000 + ctime_nsec,
            "st_blksize": blksize,
            "st_blocks": blocks,
            "st_rdev": os.makedev(rdev_major, rdev_minor),
        },
    )


def _at_hand(manager: UringIOManager, path: str, follow: bool, fstat: Callable[[int], Any] | None) -> Any:
    """What `tu_stat_cached` finds on the spot (`UringBackend.speculate`), or None. A cancel point, but no schedule point."""
    task = GLOBAL_RUN_CONTEXT.task
    if not manager.at_hand or task._cancel_status.effectively_cancelled or task._runner.ki_pending:
        return None
    found = tu_stat_cached(os.fsencode(path), follow, fstat)
    if found == -errno.EAGAIN:
        return None
    task._cancel_points += 1  # trio.lowlevel.checkpoint_if_cancelled, flattened
    return found


async def stat(manager: UringIOManager, path: str, follow_symlinks: bool = True, *, begun: bool = False) -> Answer:
    """Path.stat; `begun` where it belongs to a call that has had an effect."""
    if not begun:
        found = _at_hand(manager, path, follow_symlinks, os.fstat)
        if found is not None:
            await schedule_point()
            if found == -errno.ENOENT:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return found
    memory = _memory(path)
    result = ffi.new("char[]", STATX_SIZE)
    flags = AT_NO_AUTOMOUNT if follow_symlinks else AT_NO_AUTOMOUNT | AT_SYMLINK_NOFOLLOW
    where = _address(result)
    if begun:
        await UninterruptedPathOperation(manager, (path,), (memory, result)).finish(
            OP_STATX, memory, STATX_BASIC_STATS, where, flags
        )
    else:
        await PathOperation(manager, (path,), (memory, result)).perform(
            OP_STATX, memory, STATX_BASIC_STATS, where, flags
        )
    return stat_result(ffi.buffer(result))


async def lstat(manager: UringIOManager, path: str) -> Answer:
    """Path.lstat."""
    return await stat(manager, path, follow_symlinks=False)


def _question(true_of: Callable[[int], bool], follow: bool = True) -> Callable[..., Awaitable[Answer]]:
    async def answer(
        manager: UringIOManager, path: str, follow_symlinks: bool = follow, *, begun: bool = False
    ) -> Answer:
        if not begun:
            mode = _at_hand(manager, path, follow_symlinks, None)
            if mode is not None:
                await schedule_point()
                return mode > 0 and true_of(mode)
        try:
            status = await stat(manager, path, follow_symlinks, begun=begun)
        except OSError as error:
            return False if error.errno in ABSENT else NotImplemented
        return true_of(status.st_mode)

    return answer


exists: Final = _question(lambda _mode: True)
is_dir: Final = _question(modes.S_ISDIR)


async def samefile(manager: UringIOManager, path: str, other_path: str | pathlib.PurePosixPath) -> Answer:
    """Path.samefile."""
    if not isinstance(other_path, str) or sys.version_info >= (3, 11):
        other_path = str(pathlib.PurePosixPath(other_path))
    if not _encodable(other_path):
        return NotImplemented
    return os.path.samestat(await stat(manager, path), await stat(manager, other_path))


# ------------------------------------------------------------------ directories and names


async def mkdir(
    manager: UringIOManager,
    path: str,
    mode: int = 0o777,
    parents: bool = False,
    exist_ok: bool = False,
    begun: bool = False,
) -> Answer:
    """Path.mkdir; its first effect has been if it has `begun`."""
    if not 0 <= mode <= 0o7777:
        return NotImplemented
    try:
        await _one_path(manager, "os.mkdir", OP_MKDIRAT, path, (mode, -1), length=mode, begun=begun)
    except FileNotFoundError:
        parent = str(pathlib.PurePosixPath(path).parent)
        if not parents or parent == path:
            raise
        answer = await mkdir(manager, parent, parents=True, exist_ok=True)
        if answer is NotImplemented:
            return answer
        return await mkdir(manager, path, mode, exist_ok=exist_ok, begun=True)
    except OSError:
        # Not only EEXIST: the kernel may say EACCES or EROFS of a directory that is there. After an effect Trio's own method,
        # which can be cancelled, is no way out.
        answer = exist_ok and await is_dir(manager, path, begun=begun)
        if answer is NotImplemented and not begun:
            return answer
        if answer is not True:
            raise
    return None


async def rmdir(manager: UringIOManager, path: str) -> Answer:
    """Path.rmdir."""
    await _one_path(manager, "os.rmdir", OP_UNLINKAT, path, (-1,), flags=AT_REMOVEDIR)


async def unlink(manager: UringIOManager, path: str, missing_ok: bool = False) -> Answer:
    """Path.unlink."""
    try:
        await _one_path(manager, "os.remove", OP_UNLINKAT, path, (-1,))
    except FileNotFoundError:
        if not missing_ok:
            raise


async def rename(manager: UringIOManager, path: str, target: str) -> Answer:
    """Path.rename and Path.replace, which are one on Linux."""
    await _two_paths(manager, "os.rename", OP_RENAMEAT, path, target, (-1, -1), length=NEW_AT_FDCWD)


async def symlink_to(manager: UringIOManager, path: str, target: str, target_is_directory: bool = False) -> Answer:
    """Path.symlink_to; what the target is matters on Windows only."""
    await _two_paths(manager, "os.symlink", OP_SYMLINKAT, target, path, (-1,))


async def hardlink_to(manager: UringIOManager, path: str, target: str) -> Answer:
    """Path.hardlink_to: of a symbolic link, the link itself before CPython 3.14, and what it leads to from there on (os.link)."""
    flags = AT_SYMLINK_FOLLOW if sys.version_info >= (3, 14) else 0
    await _two_paths(manager, "os.link", OP_LINKAT, target, path, (-1, -1), length=NEW_AT_FDCWD, flags=flags)


async def touch(manager: UringIOManager, path: str, mode: int = 0o666, exist_ok: bool = True) -> Answer:
    """Path.touch of what is not there yet. The ring cannot set the times of what is."""
    if not 0 <= mode <= 0o7777:
        return NotImplemented
    try:
        sys.audit("open", path, None, MAKING)
        fd = await open_fd(manager, path, MAKING, mode)
    except OSError:
        if exist_ok:
            return NotImplemented
        raise
    await _close(manager, fd)
    return None


# ------------------------------------------------------------------ whole files


async def _close(manager: UringIOManager, fd: int) -> None:
    """close(2), by a worker where it may have to ask somebody, which takes time and may fail."""
    if is_local(lib.tu_where(fd, ffi.NULL)):
        os.close(fd)
    else:
        closing = Uninterrupted(manager, fd, None, None)
        try:
            await closing.finish(OP_CLOSE, None, 0)
        except BaseException:
            # An entry that was not taken, or that had no effect, leaves the descriptor open; one that failed does not (close(2)).
            open_still = not closing.result or closing._without_effect(closing.result)
            if open_still and not manager.ring.in_flight(closing.user_data):
                close_descriptor(fd)
            raise


async def _transfer(
    manager: UringIOManager,
    opcode: int,
    fd: int,
    memory: Any,
    length: int,
    skip: int = 0,
    offset: int = CURRENT_POSITION,
    begun: bool = False,
    elsewhere: bool = False,
) -> int:
    """One read or write of what is in `memory`, from `skip` on. The operation keeps `memory`: a pointer into it owns nothing."""
    size, aside = min(length, MAX_RW_COUNT), IOSQE_ASYNC if length >= WORKER_THRESHOLD or elsewhere else 0
    if begun:
        return await Uninterrupted(manager, fd, memory, None).finish(opcode, memory + skip, size, offset, 0, aside)
    return await Operation(manager, fd, memory, None).perform(opcode, memory + skip, size, offset, 0, aside)


async def _to_the_end(
    manager: UringIOManager, fd: int, pieces: list[bytes], position: int | None, elsewhere: bool = False
) -> bytes:
    """These pieces and what follows, until read(2) answers nothing; from `position` on, where there are positions."""
    memory = new_uninitialized("char[]", SMALL)
    while True:
        offset = CURRENT_POSITION if position is None else position
        size = await _transfer(manager, OP_READ, fd, memory, SMALL, offset=offset, elsewhere=elsewhere)
        if not size:
            return b"".join(pieces)
        pieces.append(ffi.buffer(memory, size)[:])
        if position is not None:
            position += size


async def _contents(manager: UringIOManager, fd: int, size: int) -> bytes:
    """All of a regular file that has this many bytes, or had."""
    if size < SMALL:
        buffer = bytearray(size + 1)  # one byte more tells whether it has grown
        try:
            got = os.preadv(fd, (buffer,), 0, os.RWF_NOWAIT)
        except OSError:  # not in the page cache, or a filesystem that does not know; a real error will come again
            got = await _transfer(manager, OP_READ, fd, ffi.from_buffer(buffer), size + 1, offset=0)
        if got == size > 0:
            return bytes(memoryview(buffer)[:size])
        return await _to_the_end(manager, fd, [bytes(memoryview(buffer)[:got])], got)
    # Nobody has seen this object yet, so it may still be filled: no second gigabyte, and no copy that stops the loop.
    whole = bytes(size)
    memory = ffi.from_buffer(whole)
    done = 0
    while done < size:
        got = await _transfer(manager, OP_READ, fd, memory, size - done, done, done)
        if not got:
            return whole[:done]
        done += got
    rest = await _to_the_end(manager, fd, [], size)
    return whole + rest if rest else whole


async def read_bytes(manager: UringIOManager, path: str) -> Answer:
    """Path.read_bytes."""
    sys.audit("open", path, "r", READING)
    task = GLOBAL_RUN_CONTEXT.task
    if manager.at_hand and not (task._cancel_status.effectively_cancelled or task._runner.ki_pending):
        found = tu_read_whole(manager.at_hand, os.fsencode(path), WORKER_THRESHOLD)
        if isinstance(found, bytes):
            task._cancel_points += 1  # trio.lowlevel.checkpoint, flattened
            await schedule_point()
            return found
        if found >= 0:
            try:
                await trio.lowlevel.checkpoint()
                return await _contents(manager, found, max(lib.tu_remaining(found), 0))
            finally:
                os.close(found)
    where = where_is(path)
    if is_elsewhere(where):
        return NotImplemented
    fd = await open_fd(manager, path, READING, where=where)
    try:
        where = where_of(fd)
        if modes.S_ISREG(where) and is_local(where):
            # Negative where the file does not tell: read to the end then, as of a file that has grown.
            return await _contents(manager, fd, max(lib.tu_remaining(fd), 0))
        if modes.S_ISFIFO(where):  # not to be opened twice: a writer would meet the first reader
            return await _to_the_end(manager, fd, [], None)
        if modes.S_ISDIR(where):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return NotImplemented
    finally:
        close_descriptor(fd)


async def read_text(
    manager: UringIOManager,
    path: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> Answer:
    """Path.read_text."""
    if encoding is None and sys.flags.warn_default_encoding:
        return NotImplemented
    contents = await read_bytes(manager, path)
    if contents is NotImplemented:
        return contents
    return io.TextIOWrapper(io.BytesIO(contents), encoding, errors, newline).read()


async def _write_whole(manager: UringIOManager, path: str, data: Any) -> None:
    sys.audit("open", path, "w", WRITING)
    fd = await open_fd(manager, path, WRITING)
    try:
        where = where_of(fd)
        regular = modes.S_ISREG(where)
        # A file has lost its contents: ended now, it would stay without. A pipe has had nothing yet.
        begun = regular
        with Pinned(ffi.from_buffer(data)) as memory:
            done, size = 0, len(memory)
            while done < size:
                # After a short write the kernel may not have moved the file's position (see BinaryFile._write).
                offset = done if regular else CURRENT_POSITION
                done += await _transfer(
                    manager, OP_WRITE, fd, memory, size - done, done, offset, begun, not is_local(where)
                )
                begun = True
    except BaseException:
        close_descriptor(fd)
        raise
    await _close(manager, fd)


async def write_bytes(manager: UringIOManager, path: str, data: Any) -> Answer:
    """Path.write_bytes."""
    try:
        view = memoryview(data)
    except TypeError:
        return NotImplemented
    if not view.c_contiguous:
        return NotImplemented
    await _write_whole(manager, path, view)
    return view.nbytes


async def write_text(
    manager: UringIOManager,
    path: str,
    data: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> Answer:
    """Path.write_text."""
    if data.__class__ is not str or (encoding is None and sys.flags.warn_default_encoding):
        return NotImplemented
    binary = io.BytesIO()
    try:
        text = io.TextIOWrapper(binary, encoding, errors, newline)
        text.write(data)
        text.flush()
    except (LookupError, ValueError):  # the file is emptied even then
        return NotImplemented
    # Not getbuffer(): garbage that holds one, of a call that has failed, crashes CPython 3.12.1 when it is collected (gh-111049).
    await _write_whole(manager, path, memoryview(binary.getvalue()))
    return len(data)


# ------------------------------------------------------------------ what stands in Trio's and AnyIO's classes

SERVED: Final[dict[str, Callable[..., Awaitable[Answer]]]] = {
    "stat": stat,
    "lstat": lstat,
    "exists": exists,
    "is_dir": is_dir,
    "is_file": _question(modes.S_ISREG),
    "is_symlink": _question(modes.S_ISLNK, follow=False),
    "is_socket": _question(modes.S_ISSOCK),
    "is_fifo": _question(modes.S_ISFIFO),
    "is_block_device": _question(modes.S_ISBLK),
    "is_char_device": _question(modes.S_ISCHR),
    "samefile": samefile,
    "mkdir": mkdir,
    "rmdir": rmdir,
    "unlink": unlink,
    "rename": rename,
    "replace": rename,
    "symlink_to": symlink_to,
    "hardlink_to": hardlink_to,
    "touch": touch,
    "read_bytes": read_bytes,
    "read_text": read_text,
    "write_bytes": write_bytes,
    "write_text": write_text,
}

_NAME: Final = (str, pathlib.PosixPath, pathlib.PurePosixPath)
_TEXT: Final = (str, type(None))

# The types that an argument may have, by its name; of anything else the original knows what to make.
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "data": (str, bytes, bytearray, memoryview),
    "encoding": _TEXT,
    "errors": _TEXT,
    "exist_ok": (bool,),
    "follow_symlinks": (bool,),
    "missing_ok": (bool,),
    "mode": (int,),
    "newline": _TEXT,
    "other_path": _NAME,
    "parents": (bool,),
    "target": (*_NAME, trio.PosixPath),
    "target_is_directory": (bool,),
}


def _encodable(path: str) -> bool:
    """Whether the kernel gets to look at the path.

    One that is empty or too long it refuses as well, but for an entry before anything else that may be wrong.
    """
    if path.isascii():
        return 0 < len(path) < PATH_MAX and "\0" not in path
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return 0 < len(encoded) < PATH_MAX and b"\0" not in encoded


def _arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments by name, if they are what the function of this module takes."""
    try:
        given = signature.bind(None, *args, **kwargs).arguments
    except TypeError:
        return None
    self, *names = given
    del given[self]
    for name in names:
        if given[name].__class__ not in _TYPES.get(name, ()):
            return None
    if "target" in given:
        given["target"] = os.fspath(given["target"])
        if not _encodable(given["target"]):
            return None
    return given


class _Method:
    """What a method of a class of paths becomes: the function of this module behind it, and how it is called.

    Args:
      original: the method that is replaced.
    """

    __slots__ = ("bare", "serve", "signature")

    def __init__(self, original: AsyncMethod) -> None:
        self.serve = SERVED[original.__name__]
        self.signature = inspect.signature(original)
        _self, *others = self.signature.parameters.values()
        # Whether it can be called with no arguments.
        self.bare = all(other.default is not other.empty for other in others)

    def arguments(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """What to call `serve` with after manager and path; None where the original has to be asked."""
        if not _encodable(path):
            return None
        if args or kwargs or not self.bare:
            return _arguments(self.signature, args, kwargs)
        return kwargs


def of_trio(original: AsyncMethod) -> AsyncMethod:
    """A method of trio.Path."""
    method = _Method(original)
    serve = method.serve
    renames = serve is rename

    @replaces(original)
    async def replacement(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        manager = ring_manager()
        # Not a subclass: its _wrapped_cls may be a class with methods of its own.
        if manager is not None and self.__class__ is trio.PosixPath:
            path = str(self)
            arguments = method.arguments(path, args, kwargs)
            if arguments is not None and (answer := await serve(manager, path, **arguments)) is not NotImplemented:
                return self.__class__(*args, *kwargs.values()) if renames else answer
        return await original(self, *args, **kwargs)

    return replacement


def of_anyio(original: AsyncMethod) -> AsyncMethod:
    """A method of anyio.Path, for calls from Trio's tasks. A limiter limits threads, and there is none."""
    method = _Method(original)
    serve = method.serve
    renames = serve is rename
    module: dict[str, Any] = original.__globals__

    def without_anyio(argument: Any) -> Any:
        return argument._path if isinstance(argument, module["Path"]) else argument

    @replaces(original)
    async def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
        manager = manager_on_trio()
        if manager is not None and self._path.__class__ is pathlib.PosixPath:
            names = {name: without_anyio(value) for name, value in kwargs.items()}
            path = str(self._path)
            arguments = method.arguments(path, tuple(map(without_anyio, args)), names)
            if arguments is not None and (answer := await serve(manager, path, **arguments)) is not NotImplemented:
                return renamed(self, *args, *kwargs.values()) if renames else answer
        return await original(self, *args, **kwargs)

    def renamed(self: Any, target: Any) -> Any:
        if hasattr(self, "_limiter"):  # AnyIO 4.14
            return type(self)(target, limiter=self._limiter)
        return module["Path"](target)

    return replacement
