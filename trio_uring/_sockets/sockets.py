"""Layer 3, sockets: the methods of trio.socket and of SocketStream as direct ring operations.

Knows what each call means to a user of Trio and which entry says it; knows nothing of how the methods come to be in
Trio's classes (the seams put them there) nor of when an operation is over (`operation`).

Each function here takes Trio's own method and answers the one that replaces it. The replacement serves what it can serve
exactly, in a run that is on the ring. Everything else goes to Trio's own method, which works on the ring as well, through
polls: another backend's run, flags, sizes and types out of the ordinary, a closed socket, an address family without a
codec. So does whatever is an error: CPython words it better than we could.

Order of checks, the same everywhere, because it is Trio's: a scope that is cancelled already wins before anything is
touched; then the descriptor must be free in that direction, or Trio's own method tries, and raises BusyResourceError if
it would block; then the entry is queued, and its completion decides. Every call
is a schedule point, also when the entry completes as soon as it is submitted.

Nothing that waits owns memory for it (F46). Receiving takes a provided buffer where one is large enough: the kernel picks it
when the data is there. It is copied out as the completion is processed and the kernel's again before the task runs. A larger
receive is Trio's own: it waits in a poll. Receiving into the caller's buffer, and sending, pin the caller's memory
through the buffer protocol until the completion: whoever resizes a bytearray meanwhile gets BufferError.

The kernel takes the provided buffer before it asks the socket. Where none is free the answer is ENOBUFS, at the end of a stream
and after a reset too (F47), and Trio's own method asks the socket. But ENOBUFS is also what a socket may say of its
own accord, a netlink socket that has lost messages for one, and it says it once (F43). So only the families get
provided buffers whose receives have no ENOBUFS of their own to tell: `FAMILIES`.

A send that is answered with EPIPE had no effect, and the kernel has raised no SIGPIPE, because io_uring asks for none. The
system call is then made in place, and the process gets the signal that it would have got on epoll.
"""

from __future__ import annotations

import _socket
import errno
import functools
import os
import socket as stdlib_socket
import sys
from collections.abc import Callable
from typing import Any, Final

import trio
from trio._highlevel_socket import _translate_socket_errors_to_stream_errors
from trio._socket import _SocketType

from .._loop.calls import MAX_RW_COUNT, NOT_NOW, AsyncMethod, address_of, attempt, replaces, ring_manager, trying
from .._loop.manager import BUFFER_SIZE
from .._loop.operation import GLOBAL_RUN_CONTEXT, INTERRUPTED, NewDescriptor, Operation, SocketTransfer
from .._ring.ring import OP_ACCEPT, OP_CONNECT, OP_RECV, ffi, lib, tu_recv, tu_send
from . import sockaddr

tu_try_submit = lib.tu_try_submit

# ------------------------------------------------------------------ operations


class Connect(Operation):
    """IORING_OP_CONNECT. EAGAIN is not worth a wait: a UNIX listener's queue is full, and no poll tells when it is not."""

    __slots__ = ()

    def _without_effect(self, result: int) -> bool:
        return result in INTERRUPTED


class Accept(NewDescriptor):
    """IORING_OP_ACCEPT."""

    __slots__ = ()


FAMILIES: Final = frozenset((stdlib_socket.AF_INET, stdlib_socket.AF_INET6, stdlib_socket.AF_UNIX))

family_of: Final[Callable[[stdlib_socket.socket], int]] = _socket.socket.family.__get__
type_of: Final[Callable[[stdlib_socket.socket], int]] = _socket.socket.type.__get__


def dontwait_flag(sock: stdlib_socket.socket) -> int:
    """MSG_DONTWAIT where the kernel must not try again by itself, but answer EAGAIN, which `failed` waits out.

    A UNIX socket with messages copies the data before it finds its receiver's queue full. The kernel's second attempt
    then goes on after that data, and sends a message of no bytes (measured on 6.18).
    """
    if family_of(sock) == stdlib_socket.AF_UNIX and type_of(sock) != stdlib_socket.SOCK_STREAM:
        return stdlib_socket.MSG_DONTWAIT
    return 0


def begin_receive(sock: stdlib_socket.socket, most: int, tried: bool = False) -> SocketTransfer | None:
    """Queue a receive of at most `most` bytes; None where Trio's own method is to decide what happens.

    And where the call is first to be tried in place, and has not been.

    With `begin_send` this is where a busy server spends its time, so the steps of `Operation.queue_and_wait` stand here in a row.
    """
    try:
        task = GLOBAL_RUN_CONTEXT.task
        runner = task._runner
        manager = runner.io_manager
        readers = manager.readers  # no other manager has that
        if task._cancel_status.effectively_cancelled or runner.ki_pending:
            return None
        if type(most) is not int or not 0 < most <= BUFFER_SIZE:
            return None
        if manager.try_first and not tried:
            return None
    except (AttributeError, TypeError):
        return None
    fd = sock.fileno()
    if fd < 0 or fd in readers or family_of(sock) not in FAMILIES:
        return None
    try:
        receive: SocketTransfer = manager.receives.pop()
    except IndexError:
        manager.make_buffers()
        receive = SocketTransfer(manager, readers)
    receive.fd = fd
    receive.task = task
    readers[fd] = receive
    manager.last_user_data = receive.user_data = user_data = manager.last_user_data + 1
    manager.operations[user_data] = receive
    try:
        rc = tu_recv(receive.ring, fd, most, user_data)
    except BaseException:
        receive.unwind()
        raise
    if rc:
        receive.unwind()
        manager.ring._fail(rc)
    return receive


def begin_send(
    sock: stdlib_socket.socket, data: Any, start: int, msg_flags: int, tried: bool = False
) -> SocketTransfer | None:
    """Queue a send of data[start:], counted in bytes; None as in `begin_receive`."""
    try:
        task = GLOBAL_RUN_CONTEXT.task
        runner = task._runner
        manager = runner.io_manager
        writers = manager.writers  # no other manager has that
        if task._cancel_status.effectively_cancelled or runner.ki_pending:
            return None
        if manager.try_first and not tried:
            return None
    except AttributeError:
        return None
    fd = sock.fileno()
    if fd < 0 or fd in writers:
        return None
    if type(data) is bytes and not start:
        keep: Any = data
        address: bytes | int = data  # its storage does not move
        left = size = len(data)
    else:
        try:
            keep = ffi.from_buffer(data)
        except (TypeError, BufferError, ValueError):
            return None
        size = len(keep)
        left = size - start
        address = address_of(keep + start)
    if left <= 0:
        return None
    try:
        send: SocketTransfer = manager.sends.pop()
    except IndexError:
        send = SocketTransfer(manager, writers)
    send.keep = keep
    send.size = size
    send.fd = fd
    send.task = task
    writers[fd] = send
    manager.last_user_data = send.user_data = user_data = manager.last_user_data + 1
    manager.operations[user_data] = send
    try:
        rc = tu_send(send.ring, fd, address, left if left < MAX_RW_COUNT else MAX_RW_COUNT, msg_flags, user_data)
        if manager.lone_completion:
            # The peer need not wait until Trio's tick has ended. No more system calls than otherwise: the completion is there
            # by the next wait, which then does not enter the kernel (benchmarks, latency).
            manager.lone_completion = False
            tu_try_submit(send.ring)
    except BaseException:
        send.unwind()
        raise
    if rc:
        send.unwind()
        if keep is not data:
            ffi.release(keep)  # the frames of the traceback would keep it pinned
        manager.ring._fail(rc)
    return send


# ------------------------------------------------------------------ trio.socket


def recv(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.recv."""

    @replaces(original)
    async def recv(self: _SocketType, *args: Any, **kwargs: Any) -> bytes:
        if len(args) == 1 and not kwargs:
            receive = begin_receive(self._sock, args[0])
            if (
                receive is None
                and trying()
                and self._sock.fileno() >= 0
                and type(args[0]) is int
                and args[0] <= BUFFER_SIZE
            ):
                now = await attempt(self._sock.fileno(), False, self._sock.recv, args[0])
                if now is not NOT_NOW:
                    return now  # type: ignore[no-any-return]
                receive = begin_receive(self._sock, args[0], tried=True)
            if receive is not None:
                try:
                    await receive.trap
                except BaseException:
                    receive.unwind()
                    raise
                data = receive.data
                if data is not None:
                    receive.data = None  # while it waits for another task it must not hold this one's
                    if receive.raise_cancel is None:
                        receive.manager.receives.append(receive)
                    return data
                if receive.result == 0:
                    return b""
                if not receive.refused():
                    await receive.failed()
        return await original(self, *args, **kwargs)  # type: ignore[no-any-return]

    return recv


def recv_into(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.recv_into."""

    @replaces(original)
    async def recv_into(self: _SocketType, /, *args: Any, **kwargs: Any) -> int:
        manager = ring_manager()
        if manager is not None and self._sock.fileno() >= 0 and self._sock.fileno() not in manager.readers:
            if manager.try_first:
                now = await attempt(self._sock.fileno(), False, self._sock.recv_into, *args, **kwargs)
                if now is not NOT_NOW:
                    return now  # type: ignore[no-any-return]
            buffer, nbytes, flags = _recv_into_arguments(*args, **kwargs)
            memory = None if flags else _writable(buffer)
            if memory is not None and 0 <= nbytes <= len(memory) <= MAX_RW_COUNT:
                operation = Operation(manager, self._sock.fileno(), memory, manager.readers)
                try:
                    return await operation.perform(OP_RECV, memory, nbytes or len(memory))
                finally:
                    # Not left to the frames of a traceback: they would keep the caller's memory pinned.
                    if operation.user_data not in manager.operations:
                        ffi.release(memory)
            del memory
        return await original(self, *args, **kwargs)  # type: ignore[no-any-return]

    return recv_into


def _recv_into_arguments(
    buffer: Any = None, nbytes: Any = 0, flags: Any = 0, *extra: Any, **wrong: Any
) -> tuple[Any, int, Any]:
    if extra or wrong or nbytes.__class__ is not int or flags.__class__ is not int:
        return None, 0, None
    return buffer, nbytes, flags


def _writable(buffer: Any) -> Any:
    """A pinned, writable, contiguous, not empty buffer, or None."""
    try:
        memory = ffi.from_buffer("char[]", buffer, require_writable=True)
    except (TypeError, BufferError, ValueError):
        return None
    return memory if len(memory) else None


def send(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.send."""

    @replaces(original)
    async def send(self: _SocketType, *args: Any, **kwargs: Any) -> int:
        if len(args) == 1 and not kwargs:
            tried = False
            while True:
                operation = begin_send(self._sock, args[0], 0, dontwait_flag(self._sock), tried)
                if operation is None:
                    if tried or not trying():
                        break
                    now = await attempt(self._sock.fileno(), True, self._sock.send, args[0])
                    if now is not NOT_NOW:
                        return now  # type: ignore[no-any-return]
                    tried = True
                    continue
                try:
                    await operation.trap
                except BaseException:
                    operation.unwind()
                    raise
                result = operation.result
                if result >= 0:
                    if operation.raise_cancel is None:
                        operation.manager.sends.append(operation)
                    return result
                if operation.refused() or (result == -errno.EPIPE and operation.raise_cancel is None):
                    break
                await operation.failed()
        return await original(self, *args, **kwargs)  # type: ignore[no-any-return]

    return send


def accept(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.accept.

    One accept for one call, not a multishot one: a connection taken off the kernel's queue before anybody asked would be
    lost to whoever uses the descriptor next (docs/differences.md).
    """

    @replaces(original)
    async def accept(self: _SocketType) -> tuple[_SocketType, Any]:
        manager = ring_manager()
        sock = self._sock
        if manager is None or not _plain(sock) or sock.fileno() in manager.readers:
            return await original(self)  # type: ignore[no-any-return]
        if manager.try_first:
            now = await attempt(sock.fileno(), False, sock.accept)
            if now is not NOT_NOW:
                return trio.socket.from_stdlib_socket(now[0]), now[1]  # type: ignore[return-value]
        where = ffi.new("char[]", sockaddr.SIZE)
        length = ffi.new("unsigned *", sockaddr.SIZE)
        operation = Accept(manager, sock.fileno(), (where, length), manager.readers)
        fd = await operation.perform(
            OP_ACCEPT, where, 0, offset=address_of(length), op_flags=stdlib_socket.SOCK_CLOEXEC
        )
        try:
            accepted = stdlib_socket.socket(sock.family, sock.type, sock.proto, fileno=fd)
        except BaseException:
            os.close(fd)
            raise
        address = sockaddr.decode(ffi.unpack(where, min(length[0], sockaddr.SIZE)))
        return trio.socket.from_stdlib_socket(accepted), address  # type: ignore[return-value]

    return accept


def leave(original: Callable[..., None]) -> Callable[..., None]:
    """_SocketType.__exit__, which is Trio's one way to close a socket without telling anybody before (F17)."""

    @functools.wraps(original)
    def __exit__(self: _SocketType, *error: Any) -> None:
        if ring_manager() is not None:
            self.close()
        original(self, *error)

    return __exit__


def connect(original: AsyncMethod) -> AsyncMethod:
    """_SocketType.connect."""

    @replaces(original)
    async def connect(self: _SocketType, address: Any) -> None:
        manager = ring_manager()
        sock = self._sock
        if manager is None or not _plain(sock):
            return await original(self, address)  # type: ignore[no-any-return]
        operation: Connect | None = None
        try:
            address = await self._resolve_address_nocp(address, local=False)
            encoded = sockaddr.encode(sock.family, address)
            if encoded is None or sock.fileno() < 0 or sock.fileno() in manager.writers:
                return await original(self, address)  # type: ignore[no-any-return]
            sys.audit("socket.connect", sock, address)
            where = ffi.from_buffer(encoded)
            operation = Connect(manager, sock.fileno(), where, manager.writers)
            await operation.perform(OP_CONNECT, where, 0, offset=len(encoded))
        except trio.Cancelled:
            # As Trio does: what state the socket is in, nobody knows.
            sock.close()
            raise
        except BlockingIOError:
            # EALREADY: begun before, by somebody else, or by this call if the close of another descriptor of the same
            # socket interrupted it. Trio's own method waits for how it ends. EAGAIN, see Connect: and does so here.
            if operation is None or operation.result >= 0:
                raise  # the entry was refused, and nothing has begun
            return await original(self, address)  # type: ignore[no-any-return]
        except OSError as error:
            if error.errno in _LATE_CONNECT_ERRORS and sock.family != stdlib_socket.AF_UNIX:
                text = f"Error connecting to {address!r}: {os.strerror(error.errno)}"
                raise OSError(error.errno, text) from None
            raise

    return connect


# What connect(2) reports after it has begun and not in the call: Trio finds these in SO_ERROR and names the address.
_LATE_CONNECT_ERRORS: Final = frozenset(
    (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN)
)


def _plain(sock: stdlib_socket.socket) -> bool:
    """Open, of a family whose addresses have a codec, and with no methods of its own."""
    return type(sock) is stdlib_socket.socket and sock.fileno() >= 0 and sock.family in FAMILIES


# ------------------------------------------------------------------ SocketStream


def receive_some(original: AsyncMethod) -> AsyncMethod:
    """SocketStream.receive_some: `recv`, with a stream's errors."""

    @replaces(original)
    async def receive_some(self: trio.SocketStream, max_bytes: int | None = None) -> bytes:
        sock = self.socket
        if sock.__class__ is _SocketType:
            most = BUFFER_SIZE if max_bytes is None else max_bytes
            receive = begin_receive(sock._sock, most)
            if receive is None and trying() and type(most) is int and 0 < most <= BUFFER_SIZE:
                with _translate_socket_errors_to_stream_errors():
                    now = await attempt(sock.fileno(), False, sock._sock.recv, most)
                if now is not NOT_NOW:
                    return now  # type: ignore[no-any-return]
                receive = begin_receive(sock._sock, most, tried=True)
            if receive is not None:
                try:
                    await receive.trap
                except BaseException:
                    receive.unwind()
                    raise
                data = receive.data
                if data is not None:
                    receive.data = None  # while it waits for another task it must not hold this one's
                    if receive.raise_cancel is None:
                        receive.manager.receives.append(receive)
                    return data
                if receive.result == 0:
                    return b""
                if not receive.refused():
                    with _translate_socket_errors_to_stream_errors():
                        await receive.failed()
        return await original(self, max_bytes)  # type: ignore[no-any-return]

    return receive_some


def _send_some(sock: stdlib_socket.socket, data: Any) -> tuple[int, int]:
    with memoryview(data) as view:
        return sock.send(data) if view.nbytes else 0, view.nbytes


def send_all(original: AsyncMethod) -> AsyncMethod:
    """SocketStream.send_all: an entry for as much as the kernel takes, and another for the rest.

    Not one for all, with MSG_WAITALL, with which the kernel goes on after a short send by itself: where the connection breaks
    meanwhile its answer is the part that went, and the error is used up (F44). And kernel TLS refuses the flag (F55).
    """

    @replaces(original)
    async def send_all(self: trio.SocketStream, data: bytes | bytearray | memoryview) -> None:
        sock = self.socket
        detector = self._send_conflict_detector
        if sock.__class__ is not _SocketType or detector._held or sock._did_shutdown_SHUT_WR:
            return await original(self, data)  # type: ignore[no-any-return]
        sent = 0
        operation = begin_send(sock._sock, data, 0, 0)
        if operation is None:
            if not trying():
                return await original(self, data)  # type: ignore[no-any-return]
            detector._held = True
            try:
                with _translate_socket_errors_to_stream_errors():
                    now = await attempt(sock.fileno(), True, _send_some, sock._sock, data)
            finally:
                detector._held = False
            if now is not NOT_NOW:
                sent, size = now
                if sent == size:
                    return None
            operation = begin_send(sock._sock, data, sent, 0, tried=True)
            if operation is None:
                with memoryview(data) as view, view.cast("B") as all_bytes, all_bytes[sent:] as rest:
                    return await original(self, rest)  # type: ignore[no-any-return]
        detector._held = True
        try:
            while True:
                try:
                    await operation.trap
                except BaseException:
                    operation.unwind()
                    raise
                result = operation.result
                if result >= 0:
                    sent += result
                    done = sent == operation.size
                    if operation.raise_cancel is None:
                        operation.manager.sends.append(operation)
                    if done:
                        return None
                    if operation.raise_cancel is not None:
                        operation.raise_cancel()
                elif operation.refused():
                    break
                elif result == -errno.EPIPE and operation.raise_cancel is None:
                    # Trio's own method would look at the shutdown first, and call it another error.
                    with (
                        _translate_socket_errors_to_stream_errors(),
                        memoryview(data) as view,
                        view.cast("B") as all_bytes,
                    ):
                        sent += sock._sock.send(all_bytes[sent:])
                else:
                    with _translate_socket_errors_to_stream_errors():
                        await operation.failed()
                again = begin_send(sock._sock, data, sent, 0, tried=True)
                if again is None:
                    break
                operation = again
        finally:
            detector._held = False
        # Cancelled, closed or refused half-way: Trio's own method finds the words, with what is left to send.
        with memoryview(data) as view, view.cast("B") as all_bytes, all_bytes[sent:] as rest:
            return await original(self, rest)  # type: ignore[no-any-return]

    return send_all
