"""Layer 3, messages: the methods of trio.socket that take addresses or ancillary data, as ring operations.

Knows struct msghdr and what it points to (recvmsg(2), cmsg(3)); knows nothing of how the methods come to be
in Trio's classes nor of when an operation is over (`operation`). The rules are those of `sockets`: a
function takes Trio's own method and answers the one that replaces it; what is out of the ordinary, or an
error, goes to Trio's own.

A message takes one block of memory, its operation's own until the completion: the header, and what it names.

    struct msghdr | struct sockaddr_storage | control messages | struct iovec, one for each buffer

Data goes straight between the kernel and the caller's buffers, pinned through the buffer protocol until the
completion. Where bytes are to be made of it, it goes through a provided buffer, so that a task waiting for a
datagram holds no memory for it (F46); more than fits there, or much room for control messages, is Trio's own
method's. The operations of recvfrom and sendto, and of recvmsg without control messages, are used again, with their blocks.

Descriptors that come with a message (SCM_RIGHTS) are this process's own from the moment that the kernel
writes the control messages, so an operation whose message nobody takes closes them (F9). They are
inheritable, as CPython leaves them too where MSG_CMSG_CLOEXEC is not asked for.
"""

from __future__ import annotations

import array
import errno
import functools
import os
import socket as stdlib_socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import trio
from trio._socket import _SocketType
from trio.lowlevel import Task

from .._loop.calls import (
    MAX_RW_COUNT,
    NOT_NOW,
    AsyncMethod,
    address_of,
    attempt,
    new_uninitialized,
    replaces,
    ring_manager,
    trying,
)
from .._loop.manager import BUFFER_GROUP, BUFFER_SIZE, UringIOManager
from .._loop.operation import GLOBAL_RUN_CONTEXT, Operation
from .._ring.ring import CQE_BUFFER_SHIFT, CQE_F_BUFFER, IOSQE_BUFFER_SELECT, OP_RECVMSG, OP_SENDMSG, ffi, lib
from . import sockaddr
from .sockets import FAMILIES, dontwait_flag, family_of

# The kernel's struct user_msghdr (name, its length, iovecs, their number, control, its length, flags), struct
# iovec and struct cmsghdr, in the machine's own sizes and alignment.
_HEADER: Final = struct.Struct("@PIPNPNi0P")
_IOVEC: Final = struct.Struct("@PN")
_CMSG: Final = struct.Struct("@Nii")
_CMSG_LEN: Final = stdlib_socket.CMSG_LEN(0)

_INT: Final = struct.Struct("@I")

_NAME_LENGTH_AT: Final = struct.calcsize("@P")
_NAME_AT: Final = _HEADER.size
_CONTROL_AT: Final = _NAME_AT + sockaddr.SIZE

_MOST_IOVECS: Final = 1024  # UIO_MAXIOV
_MAX_CONTROL: Final = 65536  # bytes; more than the kernel takes in practice
_MAX_CONTROL_WAITING: Final = (
    4096  # bytes that a receive may own while it waits; more than the kernel fills in practice
)
_INTS: Final = range(-(1 << 31), 1 << 31)

AncillaryData = list[tuple[int, int, bytes]]
MessageT = TypeVar("MessageT", bound="Message")

# Who has written once, or has been written to, will be again.
_decode: Final = functools.lru_cache(1024)(sockaddr.decode)
_encode_two: Final = functools.lru_cache(1024)(lambda family, host, port: sockaddr.encode(family, (host, port)))

# The plain numbers: those of socket.socket make an enum of them at every call.

tu_queue = lib.tu_queue


# ------------------------------------------------------------------ operations


class Message(Operation):
    """An operation on a struct msghdr, and the memory that one takes.

    Args:
      control: size of the control messages in bytes.
      buffers: number of iovecs.
      free: where it goes after it ended well, to be used again; None where it is not.
    """

    kinds = ("recvmsg", "sendmsg")

    __slots__ = ("block", "block_at", "control", "free", "iovecs_at", "name", "ring", "view")

    def __init__(
        self,
        manager: UringIOManager,
        waiters: dict[int, Any],
        control: int,
        buffers: int,
        free: list[Any] | None,
    ) -> None:
        super().__init__(manager, -1, None, waiters)
        self.control = control
        self.free = free
        self.name = 0
        self.ring = manager.ring._r
        self.iovecs_at = _CONTROL_AT + (stdlib_socket.CMSG_SPACE(control) if control else 0)
        self.block = new_uninitialized("char[]", self.iovecs_at + buffers * _IOVEC.size)
        self.block_at = address_of(self.block)
        self.view = ffi.buffer(self.block)

    def describe(self, name: int, buffers: Iterable[tuple[int, int]]) -> None:
        """Fill in the header and the iovecs.

        Args:
          name: size of the address in bytes, 0 for none.
          buffers: address and size of each.
        """
        view = self.view
        block_at = self.block_at
        control = self.control
        at = start = self.iovecs_at
        for buffer_at, size in buffers:
            _IOVEC.pack_into(view, at, buffer_at, size)
            at += _IOVEC.size
        _HEADER.pack_into(
            view,
            0,
            name and block_at + _NAME_AT,
            name,
            block_at + start,
            (at - start) // _IOVEC.size,
            control and block_at + _CONTROL_AT,
            control,
            0,
        )
        self.name = name

    def queue(self, opcode: int, fd: int, flags: int = 0, msg_flags: int = 0) -> None:
        """Queue the entry; whoever calls this awaits `trap` next.

        Args:
          flags: IOSQE flags.
          msg_flags: flags of sendmsg(2) and recvmsg(2).
        """
        group = BUFFER_GROUP if flags & IOSQE_BUFFER_SELECT else 0
        self.fd = fd
        self.task = GLOBAL_RUN_CONTEXT.task
        self.waiters[fd] = self  # type: ignore[index]
        manager = self.manager
        self.user_data = user_data = manager.next_user_data()
        manager.operations[user_data] = self
        try:
            rc = tu_queue(self.ring, opcode, fd, self.block, 1, 0, msg_flags, self.user_data, flags, 0, group, 0)
        except BaseException:
            self.unwind()
            raise
        if rc:
            # Not left to the frames of the traceback: they would keep the caller's memory pinned.
            for memory in self.keep if isinstance(self.keep, list) else [self.keep]:
                if memory is not None:
                    ffi.release(memory)
            self.unwind()
            self.manager.ring._fail(rc)

    def complete(self, result: int, flags: int) -> Task | None:
        """The completion has been reaped: the buffers are the caller's to resize again."""
        task = self.task
        self.keep = None
        if self.free is not None and result >= 0 and task is not None and self.raise_cancel is None:
            # Operation.complete, flattened.
            del self.manager.operations[self.user_data]
            self.result = result
            self.task = None
            del self.waiters[self.fd]  # type: ignore[union-attr]
            return task
        return super().complete(result, flags)

    def recycle(self) -> None:
        """What it brought has been taken: it may be used again, unless somebody queued a cancel for it."""
        if self.free is not None and self.raise_cancel is None:
            self.free.append(self)


class Received(Message):
    """IORING_OP_RECVMSG.

    Attributes:
      pooled: whether it asks for a provided buffer, and not for the caller's memory; `provided` is the memory of all of these.
      most: the size of the data that the block is filled in for, where it is for a provided buffer.
      data: what came, as bytes, unless it went to the caller's memory.
    """

    __slots__ = ("data", "most", "pooled", "provided")

    def __init__(
        self,
        manager: UringIOManager,
        control: int,
        buffers: int,
        pooled: bool = False,
        free: list[Any] | None = None,
    ) -> None:
        super().__init__(manager, manager.readers, control, buffers, free)
        self.pooled = pooled
        # Made here, before the first entry that asks for one; without them the kernel answers ENOBUFS.
        if pooled:
            manager.make_buffers()
        self.provided: Any = manager.buffers.memory if pooled and manager.buffers else b""
        self.most = 0
        self.data = b""

    def complete(self, result: int, flags: int) -> Task | None:
        """The completion has been reaped: copy the data out, before a provided buffer goes back."""
        if flags & CQE_F_BUFFER:
            start = (flags >> CQE_BUFFER_SHIFT) * BUFFER_SIZE
            self.data = self.provided[start : start + max(result, 0)]
        return super().complete(result, flags)

    def _without_effect(self, result: int) -> bool:
        # No provided buffer was free, which the kernel asks for before it looks for data.
        return (result == -errno.ENOBUFS and self.pooled) or super()._without_effect(result)

    def recycle(self) -> None:
        """As for every message; and the data is the task's alone."""
        self.data = b""
        super().recycle()

    def discard(self, result: int, flags: int) -> None:
        """Nobody will take the message: close the descriptors that came with it."""
        super().discard(result, flags)
        if result >= 0 and self.control:
            _close_passed(self.ancillary())

    def address(self) -> Any:
        """Whose message it is, as CPython has it."""
        (length,) = _INT.unpack_from(self.view, _NAME_LENGTH_AT)
        return _decode(self.view[_NAME_AT : _NAME_AT + min(length, sockaddr.SIZE)])

    def ancillary(self) -> AncillaryData:
        """The control messages: level, type, data. The last may be cut short (MSG_CTRUNC)."""
        found: AncillaryData = []
        end = _CONTROL_AT + (_HEADER.unpack_from(self.view)[5] if self.control else 0)
        at = _CONTROL_AT
        while at + _CMSG.size <= end:
            length, level, kind = _CMSG.unpack_from(self.view, at)
            if length < _CMSG_LEN:
                break
            found.append((level, kind, self.view[at + _CMSG_LEN : min(at + length, end)]))
            at += stdlib_socket.CMSG_SPACE(length - _CMSG_LEN)
        return found

    def message(self) -> tuple[AncillaryData, int, Any]:
        """What recvmsg answers besides the data."""
        ancillary = self.ancillary()
        try:
            return ancillary, _HEADER.unpack_from(self.view)[6], self.address()
        except BaseException:
            _close_passed(ancillary)
            raise


def _close_passed(ancillary: AncillaryData) -> None:
    passed = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_RIGHTS):
            passed.frombytes(data[: len(data) - len(data) % passed.itemsize])
    for fd in passed:
        os.close(fd)


def _manager_for(sock: stdlib_socket.socket, sending: bool) -> UringIOManager | None:
    """The manager to queue an operation with now; None where Trio's own method is to decide."""
    try:
        task = GLOBAL_RUN_CONTEXT.task
    except AttributeError:
        return None
    runner = task._runner
    manager: Any = runner.io_manager
    if (
        manager.__class__ is not UringIOManager
        or task._cancel_status.effectively_cancelled
        or runner.ki_pending
        or family_of(sock) not in FAMILIES
    ):
        return None
    fd = sock.fileno()
    return None if fd < 0 or fd in (manager.writers if sending else manager.readers) else manager


async def _performed(begin: Callable[[], MessageT | None]) -> MessageT | None:
    """Have `begin` queue an operation, again after an interruption, until one succeeds; None where Trio's own method is to go on.

    `begin` is a plain function: only from those does CPython (3.11) return without a look at signals, whose handler might raise
    with the operation in nobody's hands.
    """
    while (operation := begin()) is not None:
        try:
            await operation.trap
        except BaseException:
            operation.unwind()
            raise
        if operation.result >= 0:
            return operation
        if await _left_to_trio(operation):
            break
    return None


async def _left_to_trio(operation: Message) -> bool:
    """After a negative result: raise what it means, or answer whether Trio's own method goes on, and no other operation."""
    result = operation.result
    if result == -errno.EPIPE and operation.waiters is operation.manager.writers and operation.raise_cancel is None:
        return True  # it may have to raise SIGPIPE
    if operation.refused():
        return True
    await operation.failed()
    return result == -errno.ENOBUFS  # no provided buffer was free


# Nothing below keeps a pinned buffer in a variable of a coroutine: a traceback would keep it pinned. The
# operation alone holds it, in `keep`, until its completion.


def _begin_receive(sock: stdlib_socket.socket, most: int, control: int) -> Received | None:
    """Receive a message with at most `most` bytes of data and `control` bytes of control messages."""
    if most.__class__ is not int or not 0 < most <= BUFFER_SIZE or (manager := _manager_for(sock, False)) is None:
        return None
    if control:
        operation = Received(manager, control, 1, pooled=True)
    else:
        free = manager.free_received
        operation = free.pop() if free else Received(manager, 0, 1, pooled=True, free=free)
    if operation.most == most:
        _INT.pack_into(operation.view, _NAME_LENGTH_AT, sockaddr.SIZE)  # the kernel has written the address's there
    else:
        operation.describe(sockaddr.SIZE, ((0, most),))
        operation.most = most
    operation.queue(OP_RECVMSG, sock.fileno(), IOSQE_BUFFER_SELECT)
    return operation


def _begin_receive_into(
    sock: stdlib_socket.socket, buffers: list[Any] | tuple[Any, ...], nbytes: int, control: int
) -> Received | None:
    """Receive a message into the caller's buffers; into the first only `nbytes` bytes, unless that is 0."""
    if not 0 < len(buffers) <= _MOST_IOVECS or (manager := _manager_for(sock, False)) is None:
        return None
    try:
        pinned = [ffi.from_buffer("char[]", buffer, require_writable=True) for buffer in buffers]
    except (TypeError, BufferError, ValueError):
        return None
    sizes = [len(memory) for memory in pinned]
    if nbytes:
        if not 0 < nbytes <= sizes[0]:
            return None
        sizes[0] = nbytes
    if not 0 < sum(sizes) <= MAX_RW_COUNT:
        return None
    operation = Received(manager, control, len(pinned))
    operation.keep = pinned
    operation.describe(sockaddr.SIZE, zip(map(address_of, pinned), sizes, strict=True))
    operation.queue(OP_RECVMSG, sock.fileno())
    return operation


def _begin_send(
    sock: stdlib_socket.socket,
    buffers: list[Any] | tuple[Any, ...],
    control: bytes,
    address: Any,
    name: bytes,
) -> Message | None:
    """Send a message to `name`, which is `address` as the kernel has it; to the socket's peer where that is empty."""
    if not 0 < len(buffers) <= _MOST_IOVECS or (manager := _manager_for(sock, True)) is None:
        return None
    try:
        pinned = [ffi.from_buffer(buffer) for buffer in buffers]
    except (TypeError, BufferError, ValueError):
        return None
    sizes = [len(memory) for memory in pinned]
    if not 0 < sum(sizes) <= MAX_RW_COUNT:
        return None
    sys.audit("socket.sendmsg", sock, address)
    operation = Message(manager, manager.writers, len(control), len(pinned), None)
    operation.keep = pinned
    operation.view[_NAME_AT : _NAME_AT + len(name)] = name
    operation.view[_CONTROL_AT : _CONTROL_AT + len(control)] = control
    operation.describe(len(name), zip(map(address_of, pinned), sizes, strict=True))
    operation.queue(OP_SENDMSG, sock.fileno(), msg_flags=dontwait_flag(sock))
    return operation


def _begin_send_one(sock: stdlib_socket.socket, data: Any, address: Any, name: bytes) -> Message | None:
    """The same for one buffer and a name, and no control messages."""
    manager = _manager_for(sock, True)
    if manager is None:
        return None
    try:
        pinned = ffi.from_buffer(data)
    except (TypeError, BufferError, ValueError):
        return None
    size = len(pinned)
    if not 0 < size <= MAX_RW_COUNT:
        return None
    sys.audit("socket.sendto", sock, address)
    free = manager.free_sent
    operation = free.pop() if free else Message(manager, manager.writers, 0, 1, free)
    operation.keep = pinned
    length = len(name)
    operation.view[_NAME_AT : _NAME_AT + length] = name
    if operation.name == length:
        _IOVEC.pack_into(operation.view, _CONTROL_AT, address_of(pinned), size)
    else:
        operation.describe(length, ((address_of(pinned), size),))
    operation.queue(OP_SENDMSG, sock.fileno(), msg_flags=dontwait_flag(sock))
    return operation


# ------------------------------------------------------------------ arguments


def _plain(flags: Any) -> bool:
    return flags.__class__ is int and flags == 0


async def _listed(items: Any) -> list[Any] | tuple[Any, ...] | None:
    """Every item, taken once only, so that none is lost where the call has to wait; None if not iterable."""
    if items.__class__ is list or items.__class__ is tuple:
        return items
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        each = iter(items)
    except TypeError:
        return None
    try:
        return list(each)
    except BaseException:
        await trio.lowlevel.cancel_shielded_checkpoint()
        raise


def _control_messages(ancillary: list[Any] | tuple[Any, ...]) -> bytes | None:
    """The control messages of (level, type, data) items; None where they are not plainly right."""
    control = b""
    for item in ancillary:
        if item.__class__ is not tuple or len(item) != 3:
            return None
        level, kind, data = item
        if level.__class__ is int and kind.__class__ is int and level in _INTS and kind in _INTS:
            try:
                plain = bytes(ffi.buffer(ffi.from_buffer(data)))
            except (TypeError, BufferError, ValueError):
                return None
        else:
            return None
        header = _CMSG.pack(stdlib_socket.CMSG_LEN(len(plain)), level, kind)
        control += (header + plain).ljust(stdlib_socket.CMSG_SPACE(len(plain)), b"\0")
        if len(control) > _MAX_CONTROL:
            return None
    return control


def _numeric(sock: stdlib_socket.socket, address: Any) -> bytes | None:
    """The address as the kernel has it, if there is nothing in it to resolve; None otherwise."""
    family = family_of(sock)
    if family == stdlib_socket.AF_UNIX:
        return None
    if type(address) is tuple and len(address) == 2 and type(address[0]) is str and type(address[1]) is int:
        return _encode_two(family, *address)
    return sockaddr.encode(family, address)


async def _resolved(sock: _SocketType, address: Any) -> tuple[Any, bytes | None]:
    """The address resolved, and the same as the kernel has it; None where CPython is to decide."""
    name = _numeric(sock._sock, address)
    if name is None:
        address = await sock._resolve_address_nocp(address, local=False)
        name = sockaddr.encode(family_of(sock._sock), address)
    return address, name


# ------------------------------------------------------------------ trio.socket


def recvfrom(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.recvfrom."""

    @replaces(original)
    async def recvfrom(self: _SocketType, *args: Any, **kwargs: Any) -> tuple[bytes, Any]:
        if not kwargs and (len(args) == 1 or (len(args) == 2 and _plain(args[1]))):
            if trying():
                now = await attempt(self._sock.fileno(), False, self._sock.recvfrom, *args)
                if now is not NOT_NOW:
                    return now  # type: ignore[no-any-return]
            operation = _begin_receive(self._sock, args[0], 0)
            if operation is not None:
                # _performed, flattened.
                try:
                    await operation.trap
                except BaseException:
                    operation.unwind()
                    raise
                if operation.result < 0:
                    operation = (
                        None
                        if await _left_to_trio(operation)
                        else await _performed(lambda: _begin_receive(self._sock, args[0], 0))
                    )
            if operation is not None:
                received = operation.data, operation.address()
                operation.recycle()
                return received
        return await original(self, *args, **kwargs)  # type: ignore[no-any-return]

    return recvfrom


def recvfrom_into(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.recvfrom_into."""

    def arguments(buffer: Any, nbytes: Any = 0, flags: Any = 0) -> tuple[Any, int] | None:
        return (buffer, nbytes) if nbytes.__class__ is int and _plain(flags) else None

    @replaces(original)
    async def recvfrom_into(self: _SocketType, *args: Any, **kwargs: Any) -> tuple[int, Any]:
        try:
            wanted = arguments(*args, **kwargs)
        except TypeError:
            wanted = None
        if wanted is not None:
            buffer, nbytes = wanted
            if trying():
                now = await attempt(self._sock.fileno(), False, self._sock.recvfrom_into, *args, **kwargs)
                if now is not NOT_NOW:
                    return now  # type: ignore[no-any-return]
            operation = await _performed(lambda: _begin_receive_into(self._sock, (buffer,), nbytes, 0))
            if operation is not None:
                return operation.result, operation.address()
        return await original(self, *args, **kwargs)  # type: ignore[no-any-return]

    return recvfrom_into


def _wants_control(size: Any = 0, flags: Any = 0, *extra: Any) -> int | None:
    """The room for control messages that recvmsg(…, size, flags) asks for; None where CPython is to decide."""
    if size.__class__ is int and 0 <= size <= _MAX_CONTROL_WAITING and _plain(flags) and not extra:
        return size
    return None


def recvmsg(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.recvmsg."""

    @replaces(original)
    async def recvmsg(self: _SocketType, *args: Any, **kwargs: Any) -> tuple[bytes, AncillaryData, int, Any]:
        if args and not kwargs and (control := _wants_control(*args[1:])) is not None:
            if trying():
                now = await attempt(self._sock.fileno(), False, self._sock.recvmsg, *args)
                if now is not NOT_NOW:
                    return now  # type: ignore[no-any-return]
            operation = await _performed(lambda: _begin_receive(self._sock, args[0], control))
            if operation is not None:
                received = operation.data, *operation.message()
                operation.recycle()
                return received
        return await original(self, *args, **kwargs)  # type: ignore[no-any-return]

    return recvmsg


def recvmsg_into(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.recvmsg_into."""

    @replaces(original)
    async def recvmsg_into(self: _SocketType, *args: Any, **kwargs: Any) -> tuple[int, AncillaryData, int, Any]:
        if args and not kwargs and (control := _wants_control(*args[1:])) is not None:
            if ring_manager() is None:
                return await original(self, *args)  # type: ignore[no-any-return]
            buffers = await _listed(args[0])
            if buffers is not None:
                if trying():
                    now = await attempt(self._sock.fileno(), False, self._sock.recvmsg_into, buffers, *args[1:])
                    if now is not NOT_NOW:
                        return now  # type: ignore[no-any-return]
                operation = await _performed(lambda: _begin_receive_into(self._sock, buffers, 0, control))
                if operation is not None:
                    return operation.result, *operation.message()
                args = (buffers, *args[1:])
        return await original(self, *args, **kwargs)  # type: ignore[no-any-return]

    return recvmsg_into


def sendto(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.sendto."""

    @replaces(original)
    async def sendto(self: _SocketType, *args: Any) -> int:
        if (len(args) == 2 or (len(args) == 3 and _plain(args[1]))) and ring_manager() is not None:
            address = args[-1]
            name = _numeric(self._sock, address)
            if name is None:
                address, name = await _resolved(self, address)
            if name is not None:
                if trying():
                    now = await attempt(self._sock.fileno(), True, self._sock.sendto, args[0], address)
                    if now is not NOT_NOW:
                        return now  # type: ignore[no-any-return]
                operation = _begin_send_one(self._sock, args[0], address, name)
                if operation is not None:
                    # _performed, flattened.
                    try:
                        await operation.trap
                    except BaseException:
                        operation.unwind()
                        raise
                    if operation.result < 0:
                        operation = (
                            None
                            if await _left_to_trio(operation)
                            else await _performed(lambda: _begin_send_one(self._sock, args[0], address, name))
                        )
                if operation is not None:
                    operation.recycle()
                    return operation.result
        return await original(self, *args)  # type: ignore[no-any-return]

    return sendto


def sendmsg(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.sendmsg."""

    @replaces(original)
    async def sendmsg(self: _SocketType, *args: Any, **kwargs: Any) -> int:
        if kwargs or not 1 <= len(args) <= 4 or ring_manager() is None:
            return await original(self, *args, **kwargs)  # type: ignore[no-any-return]
        given = (*args, *((), 0, None)[len(args) - 1 :])
        address, name = await _resolved(self, given[3]) if given[3] is not None else (None, b"")
        buffers = await _listed(given[0])
        ancillary = await _listed(given[1]) if buffers is not None else None
        if buffers is not None and ancillary is not None:
            control = _control_messages(ancillary)
            if name is not None and control is not None and _plain(given[2]):
                if trying():
                    now = await attempt(
                        self._sock.fileno(),
                        True,
                        self._sock.sendmsg,
                        buffers,
                        ancillary,
                        0,
                        *(() if address is None else (address,)),
                    )
                    if now is not NOT_NOW:
                        return now  # type: ignore[no-any-return]
                operation = await _performed(lambda: _begin_send(self._sock, buffers, control, address, name))
                if operation is not None:
                    return operation.result
            args = (buffers, ancillary, *given[2:])
        return await original(self, *args)  # type: ignore[no-any-return]

    return sendmsg
