"""A simulated ring for tests: the interface of `Ring`, and no io_uring underneath.

Knows what the kernel promises about submission queue entries, completions and cancels, and every way in
which it may keep those promises late, out of order or in the worst moment; knows nothing of Trio, and never
enters the real ring.

How it works. An entry is issued when it is submitted: the ring takes its own reference to the file (a
duplicate of the descriptor, so a close(2) does not end the request, exactly as in the kernel), then tries
the operation without blocking, with the plain system call of the same name and the very addresses that the
entry holds. What would block is armed: its duplicate goes into an epoll instance, which is also the ring's
descriptor and what other threads sleep on; an eventfd in it tells of work that no file stands for. A seed
decides which entries are held back, for how many rounds, in which order those that are due complete, and
who wins when a cancel meets its target. With `seed=None` everything happens as early as it can and in
order.

What it checks. From submission to completion the memory that an entry names belongs to the kernel. The ring
remembers what was in it and looks again before it touches it; memory that has been unmapped, or that holds
something else because somebody freed and reused it, is written down in `violations`. It is stricter than
the kernel, which has its own copy of paths, iovecs and message headers after the submission: this project
pins those until the completion too.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import resource
import select
import socket
import struct
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from ._ring.ring import (
    CANCEL_ALL,
    CANCEL_ANY,
    CANCEL_FD,
    CQE_BUFFER_SHIFT,
    CQE_F_BUFFER,
    CQE_F_MORE,
    FIRST_USER_DATA,
    IOSQE_BUFFER_SELECT,
    NOP_INJECT_RESULT,
    OP_ACCEPT,
    OP_ASYNC_CANCEL,
    OP_CLOSE,
    OP_CONNECT,
    OP_FALLOCATE,
    OP_FSYNC,
    OP_LINKAT,
    OP_MKDIRAT,
    OP_NOP,
    OP_OPENAT,
    OP_POLL_ADD,
    OP_READ,
    OP_READV,
    OP_RECV,
    OP_RECVMSG,
    OP_RENAMEAT,
    OP_SEND,
    OP_SENDMSG,
    OP_SHUTDOWN,
    OP_SPLICE,
    OP_STATX,
    OP_SYMLINKAT,
    OP_TIMEOUT,
    OP_UNLINKAT,
    OP_WRITE,
    OP_WRITEV,
    POLL_ADD_MULTI,
    STRAY_DATA,
    BufferRing,
    Ring,
    RingCounters,
    _leaked,
    _rings,
    ffi,
)

__all__ = ["Pending", "SimulatedBufferRing", "SimulatedRing"]

_WAKE_DATA: Final = 0  # the shim's own user_data, as in ffi/uring.h
_IGNORED_DATA: Final = 1
_MOST_AT_ONCE: Final = 4096

_OP_FTRUNCATE: Final = 55  # kernel 6.9

_IOSQE_ASYNC: Final = 1 << 4
_IOSQE_CQE_SKIP_SUCCESS: Final = 1 << 6
_KNOWN_FLAGS: Final = IOSQE_BUFFER_SELECT | _IOSQE_ASYNC | _IOSQE_CQE_SKIP_SUCCESS
_RECVSEND_POLL_FIRST: Final = 1 << 0
_TIMEOUT_ABS: Final = 1 << 0
_SPLICE_F_NONBLOCK: Final = 2
_CURRENT_POSITION: Final = (1 << 64) - 1
_STATX_SIZE: Final = 256
_TIMESPEC_SIZE: Final = 16

_POISON: Final = 0xA5

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> int:
    """A system call through the C library: its result, or a negated errno. All results fit in an int."""
    result = int(getattr(_libc, name)(*(ctypes.c_long(a) for a in arguments)))
    return result if result >= 0 else -ctypes.get_errno()


def _copy(name: str, local: int, remote: int, length: int) -> int:
    """process_vm_readv(2) or process_vm_writev(2) on this process: a bad address is an error, not a crash."""
    near, far = (ctypes.c_size_t * 2)(local, length), (ctypes.c_size_t * 2)(remote, length)
    return max(0, int(getattr(_libc, name)(os.getpid(), near, 1, far, 1, 0)))


def _peek(address: int, length: int) -> bytes:
    """What is at an address; less than `length` bytes where some of it is not mapped."""
    buffer = ctypes.create_string_buffer(length)
    copied = _copy("process_vm_readv", ctypes.addressof(buffer), address, length)
    return buffer.raw[:copied]


def _poke(address: int, data: bytes) -> None:
    buffer = ctypes.create_string_buffer(data, len(data))
    _copy("process_vm_writev", ctypes.addressof(buffer), address, len(data))


def _same_file(a: int, b: int) -> bool:
    """Whether two descriptors share one open file description: then they share its status flags."""
    before = fcntl.fcntl(a, fcntl.F_GETFL)
    if fcntl.fcntl(b, fcntl.F_GETFL) != before:
        return False
    fcntl.fcntl(a, fcntl.F_SETFL, before ^ os.O_NONBLOCK)
    try:
        return fcntl.fcntl(b, fcntl.F_GETFL) != before
    finally:
        fcntl.fcntl(a, fcntl.F_SETFL, before)


def _poll_now(fd: int, events: int) -> int:
    """poll(2) of one open file, without waiting: the events it has."""
    poller = select.poll()
    poller.register(fd, events)
    return sum(found for _, found in poller.poll(0))


def _high_number() -> int:
    """Where the ring's own descriptors begin: a number that the program has just closed must stay bad."""
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 4096)


def _sleep_on(fd: int, timeout_ns: int) -> int:
    """ppoll(2) for input; negative is for ever. Not select.poll, which hides EINTR."""
    ready = ctypes.create_string_buffer(struct.pack("ihh", fd, select.POLLIN, 0))
    limit = (ctypes.c_long * 2)(*divmod(timeout_ns, 1_000_000_000)) if timeout_ns >= 0 else None
    rc = int(_libc.ppoll(ready, 1, limit, None))
    return rc if rc >= 0 else -ctypes.get_errno()


_thread = threading.local()


def _this_thread() -> object:
    """An object that stands for this thread and no other, unlike threading.get_ident()."""
    token: object = _thread.__dict__.setdefault("token", object())
    return token


# ------------------------------------------------------------------ entries and operations


@dataclass(slots=True)
class _Span:
    """Memory that an entry names, and what was there when the kernel got it."""

    address: int
    length: int
    written: bool  # by the kernel
    saved: bytes = b""
    expected: bytes = b""


@dataclass(slots=True, eq=False)
class _Entry:
    """A submission queue entry, and once it is issued, the request."""

    opcode: int
    user_data: int
    fd: int = -1
    addr: int = 0
    length: int = 0
    offset: int = 0
    op_flags: int = 0
    flags: int = 0
    ioprio: int = 0
    buf_index: int = 0
    file_index: int = 0
    file: int = -1  # the request's own reference to the file
    hold: int = 0  # rounds for which it is left alone
    armed: bool = False  # waits in the epoll instance
    cancelled: bool = False
    stuck: bool = False  # never completes
    copies: int = 1  # of its completion
    injected: tuple[int, int] | None = None  # res and flags in place of the operation
    done: int = 0  # bytes moved so far under MSG_WAITALL; for a connect and a timeout, whether it has begun
    spans: list[_Span] = field(default_factory=list)

    @property
    def poll_events(self) -> int:
        """What a POLL_ADD waits for: POLLRDHUP whether asked or not (IO_POLL_UNMASK in the kernel)."""
        return self.op_flags & 0xFFFF | select.POLLRDHUP

    @property
    def multishot(self) -> bool:
        """Whether it goes on after a completion, edge triggered."""
        return self.opcode == OP_POLL_ADD and bool(self.length & POLL_ADD_MULTI)

    @property
    def quiet(self) -> bool:
        """Whether nothing but its file can make it go on."""
        return self.stuck or (self.armed and not self.hold and not self.cancelled)


class Pending(NamedTuple):
    """A request in flight: submitted, and not completed yet."""

    user_data: int
    opcode: int
    fd: int
    cancelled: bool


class _Completion(NamedTuple):
    user_data: int
    res: int
    flags: int
    last: bool  # of its entry


@dataclass(slots=True)
class _Injection:
    opcode: int
    nth: int
    res: int | None
    flags: int
    late: int
    copies: int


class _Operation(NamedTuple):
    """How an operation is performed: -EAGAIN means not yet, ask again when the file has `events`."""

    perform: Callable[[_Entry], int]
    events: int = 0
    memory: Callable[[_Entry], list[_Span]] = lambda entry: []
    on_file: bool = True


def _nop(e: _Entry) -> int:
    return ctypes.c_int(e.length).value if e.op_flags & NOP_INJECT_RESULT else 0


def _poll(e: _Entry) -> int:
    if e.length & ~POLL_ADD_MULTI:
        return -errno.EINVAL
    return _poll_now(e.file, e.poll_events) or -errno.EAGAIN


def _positioned(name: str, e: _Entry) -> int:
    """read, write, readv, writev: at the offset where the file has positions, else where the stream is."""
    if e.offset != _CURRENT_POSITION:
        rc = _call(f"p{name}", e.file, e.addr, e.length, e.offset)
        if rc != -errno.ESPIPE:
            return rc
    return _call(name, e.file, e.addr, e.length)


def _streamed(name: str, e: _Entry) -> int:
    """send and recv. MSG_WAITALL goes on until all is moved, and reports what was where it ends early."""
    whole = e.op_flags & socket.MSG_WAITALL
    flags = (e.op_flags | socket.MSG_NOSIGNAL) & ~socket.MSG_WAITALL
    rc = _call(name, e.file, e.addr + e.done, e.length - e.done, flags)
    if rc > 0:
        e.done += rc
        return e.done if not whole or e.done == e.length else -errno.EAGAIN
    return e.done if e.done and rc != -errno.EAGAIN else rc


def _message(name: str, e: _Entry) -> int:
    return _call(name, e.file, e.addr, (e.op_flags | socket.MSG_NOSIGNAL) & ~socket.MSG_WAITALL)


def _connect(e: _Entry) -> int:
    if e.done:
        if not _poll_now(e.file, select.POLLOUT):
            return -errno.EAGAIN
        value, size = ctypes.c_int(), ctypes.c_uint(4)
        where = (ctypes.addressof(value), ctypes.addressof(size))
        return _call("getsockopt", e.file, socket.SOL_SOCKET, socket.SO_ERROR, *where) or -value.value
    rc = _call("connect", e.file, e.addr, e.offset)
    if rc == -errno.EINPROGRESS:
        e.done = 1
        return -errno.EAGAIN
    return rc


def _timeout(e: _Entry) -> int:
    if e.done:
        return -errno.ETIME if _poll_now(e.file, select.POLLIN) else -errno.EAGAIN
    if e.offset or e.length != 1 or e.op_flags & ~_TIMEOUT_ABS:
        return -errno.EINVAL
    seconds, nanoseconds = struct.unpack("qq", _peek(e.addr, _TIMESPEC_SIZE))
    e.file = _call("timerfd_create", time.CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)
    if e.file < 0:
        return e.file
    # All zeros would disarm the timer.
    spec = (ctypes.c_long * 4)(0, 0, seconds, nanoseconds or (seconds == 0))
    e.done = 1
    return _call("timerfd_settime", e.file, e.op_flags, ctypes.addressof(spec), 0) or -errno.EAGAIN


def _splice(e: _Entry) -> int:
    """Never waits: where the kernel's worker would, because a descriptor blocks, it answers -EAGAIN too."""
    places = [ctypes.c_int64(ctypes.c_int64(place).value) for place in (e.addr, e.offset)]
    where = [0 if place.value == -1 else ctypes.addressof(place) for place in places]
    return _call("splice", e.file_index, where[0], e.file, where[1], e.length, e.op_flags | _SPLICE_F_NONBLOCK)


def _two_paths(e: _Entry) -> list[_Span]:
    return [*_path(e.addr), *_path(e.offset)]


def _span(address: int, length: int, written: bool) -> list[_Span]:
    return [_Span(address, length, written)] if address and length else []


def _read_buffer(e: _Entry) -> list[_Span]:
    return [] if e.flags & IOSQE_BUFFER_SELECT else _span(e.addr, e.length, True)


def _write_buffer(e: _Entry) -> list[_Span]:
    return _span(e.addr, e.length, False)


def _vector(address: int, count: int, written: bool) -> list[_Span]:
    array = _peek(address, count * struct.calcsize("PN"))
    spans = _span(address, len(array), False)
    for base, length in struct.iter_unpack("PN", array[: len(array) // 16 * 16]):
        spans += _span(base, length, written)
    return spans


def _header(e: _Entry) -> list[_Span]:
    layout = "PIPNPNi"
    header = _peek(e.addr, struct.calcsize(layout))
    if len(header) < struct.calcsize(layout):
        return []
    name, name_size, vector, count, control, control_size, _ = struct.unpack(layout, header)
    written = e.opcode == OP_RECVMSG
    return [
        *_span(e.addr, len(header), False),
        *_span(name, name_size, written),
        *_vector(vector, count, written),
        *_span(control, control_size, written),
    ]


def _path(address: int) -> list[_Span]:
    return _span(address, len(_peek(address, 4096).split(b"\0")[0]) + 1, False)


def _peer_address(e: _Entry) -> list[_Span]:
    size = _peek(e.offset, 4) if e.offset else b""
    return [*_span(e.offset, len(size), False), *_span(e.addr, int.from_bytes(size, "little"), True)]


_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT

_OPERATIONS: Final[dict[int, _Operation]] = {
    OP_NOP: _Operation(_nop, on_file=False),
    OP_READV: _Operation(lambda e: _positioned("readv", e), _IN, lambda e: _vector(e.addr, e.length, True)),
    OP_WRITEV: _Operation(lambda e: _positioned("writev", e), _OUT, lambda e: _vector(e.addr, e.length, False)),
    OP_FSYNC: _Operation(lambda e: _call("fdatasync" if e.op_flags & 1 else "fsync", e.file)),
    OP_POLL_ADD: _Operation(_poll),  # its events are the entry's own
    OP_SENDMSG: _Operation(lambda e: _message("sendmsg", e), _OUT, _header),
    OP_RECVMSG: _Operation(lambda e: _message("recvmsg", e), _IN, _header),
    OP_TIMEOUT: _Operation(_timeout, _IN, lambda e: _span(e.addr, _TIMESPEC_SIZE, False), on_file=False),
    OP_ACCEPT: _Operation(lambda e: _call("accept4", e.file, e.addr, e.offset, e.op_flags), _IN, _peer_address),
    OP_CONNECT: _Operation(_connect, _OUT, lambda e: _span(e.addr, e.offset, False)),
    OP_FALLOCATE: _Operation(lambda e: _call("fallocate", e.file, e.length, e.offset, e.addr)),
    OP_OPENAT: _Operation(
        lambda e: _call("openat", e.fd, e.addr, e.op_flags, e.length),
        0,
        lambda e: _path(e.addr),
        on_file=False,
    ),
    OP_UNLINKAT: _Operation(
        lambda e: _call("unlinkat", e.fd, e.addr, e.op_flags),
        0,
        lambda e: _path(e.addr),
        on_file=False,
    ),
    OP_CLOSE: _Operation(lambda e: _call("close", e.fd), on_file=False),
    OP_STATX: _Operation(
        lambda e: _call("statx", e.fd, e.addr, e.op_flags, e.length, e.offset),
        0,
        lambda e: [*_path(e.addr), *_span(e.offset, _STATX_SIZE, True)],
        on_file=False,
    ),
    OP_READ: _Operation(lambda e: _positioned("read", e), _IN, _read_buffer),
    OP_WRITE: _Operation(lambda e: _positioned("write", e), _OUT, _write_buffer),
    OP_SEND: _Operation(lambda e: _streamed("send", e), _OUT, _write_buffer),
    OP_RECV: _Operation(lambda e: _streamed("recv", e), _IN, _read_buffer),
    OP_SPLICE: _Operation(_splice),
    OP_SHUTDOWN: _Operation(lambda e: _call("shutdown", e.file, e.length)),
    OP_RENAMEAT: _Operation(
        lambda e: _call("renameat2", e.fd, e.addr, ctypes.c_int(e.length).value, e.offset, e.op_flags),
        0,
        _two_paths,
        on_file=False,
    ),
    OP_MKDIRAT: _Operation(
        lambda e: _call("mkdirat", e.fd, e.addr, e.length),
        0,
        lambda e: _path(e.addr),
        on_file=False,
    ),
    OP_SYMLINKAT: _Operation(lambda e: _call("symlinkat", e.addr, e.fd, e.offset), 0, _two_paths, on_file=False),
    OP_LINKAT: _Operation(
        lambda e: _call("linkat", e.fd, e.addr, ctypes.c_int(e.length).value, e.offset, e.op_flags),
        0,
        _two_paths,
        on_file=False,
    ),
    _OP_FTRUNCATE: _Operation(lambda e: _call("ftruncate", e.file, e.offset)),
}

_SOCKET_ONLY: Final = frozenset({OP_SENDMSG, OP_RECVMSG, OP_SEND, OP_RECV})
_SELECTS_BUFFER: Final = frozenset({OP_READ, OP_RECV, OP_RECVMSG})


# ------------------------------------------------------------------ the ring


class SimulatedRing(Ring):
    """The interface of `Ring` over plain system calls; a seed decides what the kernel leaves open.

    Args:
      sq_entries, cq_entries: as for `Ring`, rounded up to powers of two as the kernel does.
      seed: of the order and time of completions and of the races between cancels and their targets; None for
          everything at once and in order.
      manual: nothing completes but through `complete`, `cancel_fd`, `cancel_sync` and `close`.
      poison: memory that the kernel will write holds a pattern while it is the kernel's, and gets its bytes
          back before the operation writes its own: every completion, however late, writes to it.

    Raises:
      ValueError: a size out of range.

    Attributes:
      violations: one sentence for each piece of memory that was not left alone while the kernel owned it, and
          for each provided buffer that was given back when it was not out.
    """

    address = 0  # where the shim would have its ring: what asks the shim in passing is not asked here

    def __init__(
        self,
        sq_entries: int = 512,
        cq_entries: int | None = None,
        *,
        seed: int | None = 0,
        manual: bool = False,
        poison: bool = False,
    ) -> None:
        self._closed = True
        if not 2 <= sq_entries <= 32768:
            raise ValueError(f"sq_entries must be 2 to 32768, not {sq_entries}")
        if cq_entries is None:
            cq_entries = min(8 * sq_entries, 65536)
        if not sq_entries <= cq_entries <= 65536:
            raise ValueError(f"cq_entries must be sq_entries ({sq_entries}) to 65536, not {cq_entries}")
        self.violations: list[str] = []
        self._sq_size = 1 << (sq_entries - 1).bit_length()
        self._cq_size = 1 << (cq_entries - 1).bit_length()
        self._random = None if seed is None else random.Random(seed)
        self._manual = manual
        self._poison = poison
        self._owner = _this_thread()
        self._sq: deque[_Entry] = deque()
        self._flight: list[_Entry] = []
        self._cq: deque[_Completion] = deque()
        self._overflow: deque[_Completion] = deque()
        self._injections: list[_Injection] = []
        self._refusals: deque[int] = deque()
        self._buffers: SimulatedBufferRing | None = None
        self._counts = dict.fromkeys(RingCounters.__slots__, 0)
        self._away = False
        self._sleepers = self._watched = False  # a thread has asked to sleep; the owner knows
        self._ending = False  # no new read of the eventfd
        self._wake_armed = False
        self._wake_value = ctypes.create_string_buffer(8)
        self._wakers: list[None] = []  # one for each thread inside wake(); appending and popping are atomic
        self._shut = False  # wakers are turned away
        self._was_forked = False
        self._ready_files: set[int] = set()  # reported by the epoll instance, not acted on yet
        self._work_shown = False
        self._epoll = select.epoll()
        self._event_fd = self._work_fd = -1
        try:
            self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._work_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self._close_descriptors()
            raise
        self._epoll.register(self._work_fd, select.EPOLLIN)
        self._closed = False
        _rings.add(self)

    # -------------------------------------------------------------- for tests

    def inject(
        self,
        opcode: int,
        res: int | None = None,
        flags: int = 0,
        *,
        nth: int = 1,
        late: int = 0,
        copies: int = 1,
    ) -> None:
        """Decide the fate of the nth entry of an opcode that is submitted from now on.

        Args:
          res: its result, in place of the operation, which is then not performed; None performs it.
          flags: of that completion. IORING_CQE_F_MORE leaves the request in flight, for `complete`.
          late: rounds (enters with GETEVENTS) that it is held back.
          copies: 0 loses the completion: the request stays in flight, whatever cancels it. 2 doubles it.
        """
        self._injections.append(_Injection(opcode, nth, res, flags, late, copies))

    def refuse(self, error: int, times: int = 1) -> None:
        """Make the next `times` calls that queue an entry raise OSError, as where the kernel has no room."""
        self._refusals.extend([error] * times)

    def pending(self) -> list[Pending]:
        """The caller's requests in flight, oldest first: what has been submitted and has not completed."""
        ours = (e for e in self._flight if e.user_data >= FIRST_USER_DATA)
        return [Pending(e.user_data, e.opcode, e.fd, e.cancelled) for e in ours]

    def complete(self, user_data: int, res: int | None = None, flags: int = 0) -> None:
        """Complete a request in flight by hand.

        Args:
          res: its result; None performs the operation. With IORING_CQE_F_MORE in flags it stays in flight.

        Raises:
          KeyError: no such request is in flight.
          BlockingIOError: the operation was to be performed, and would block.
        """
        entry = next((e for e in self._flight if e.user_data == user_data), None)
        if entry is None:
            raise KeyError(user_data)
        if res is not None:
            self._settle(entry)
            self._post(entry, res, flags)
        elif not self._try(entry, arm=not self._manual):
            raise BlockingIOError(errno.EAGAIN, f"the operation of user_data {user_data} would block")
        self._show_work()

    # -------------------------------------------------------------- facts

    def fileno(self) -> int:
        return -1 if self._shut else self._epoll.fileno()

    @property
    def sq_entries(self) -> int:
        return 0 if self._shut else self._sq_size

    @property
    def cq_entries(self) -> int:
        return 0 if self._shut else self._cq_size

    @property
    def queued(self) -> int:
        return 0 if self._shut else len(self._sq)

    @property
    def closed(self) -> bool:
        return self._closed

    def counters(self) -> RingCounters:
        return RingCounters(type("Counts", (), dict(self._counts)))

    # -------------------------------------------------------------- queueing

    def queue(
        self,
        opcode: int,
        user_data: int,
        fd: int = -1,
        addr: Any = None,
        length: int = 0,
        offset: int = 0,
        op_flags: int = 0,
        flags: int = 0,
        ioprio: int = 0,
        buf_index: int = 0,
        file_index: int = 0,
    ) -> None:
        address = 0 if addr is None else int(ffi.cast("uintptr_t", addr))
        self._queue(
            _Entry(opcode, user_data, fd, address, length, offset, op_flags, flags, ioprio, buf_index, file_index)
        )

    def poll(self, fd: int, events: int, user_data: int) -> None:
        self._queue(_Entry(OP_POLL_ADD, user_data, fd, op_flags=events))

    def in_flight(self, user_data: int) -> bool:
        return self._shut or any(
            each.user_data == user_data
            for where in (self._sq, self._flight, self._cq, self._overflow)
            for each in where
        )

    def cancel(self, user_data: int) -> None:
        if self._shut:
            return
        self._queue(_Entry(OP_ASYNC_CANCEL, _IGNORED_DATA, addr=user_data, flags=_IOSQE_CQE_SKIP_SUCCESS))

    def cancel_fd(self, fd: int, entries: Sequence[int] = ()) -> bool:
        if not entries:
            self._cancel_now(fd, CANCEL_FD | CANCEL_ALL)
            return True
        for user_data in entries:
            self._queue(
                _Entry(
                    OP_ASYNC_CANCEL, _IGNORED_DATA, addr=user_data, op_flags=CANCEL_ALL, flags=_IOSQE_CQE_SKIP_SUCCESS
                )
            )
        self._enter(get_events=True)
        return False

    def cancel_sync(self, *, user_data: int = 0, fd: int = -1, flags: int = 0, timeout: float | None = None) -> int:
        self.submit()
        matches = self._matcher(user_data, fd, flags)
        if matches is None:
            self._fail(-errno.EBADF)
        assert matches is not None
        every = bool(flags & (CANCEL_ALL | CANCEL_ANY))
        found, ended = self._cancel(matches, every, now=True)
        self._show_work()
        if found > ended:
            self._fail(-errno.ETIME)
        if not found and not every:
            self._fail(-errno.ENOENT)
        return found if every else 0

    def spin(self, nanoseconds: int) -> None:
        """Nothing here has to be waited for."""

    def peek(self) -> list[int] | None:
        return self.wait(0)

    def release(self) -> None:
        """No file is held here longer than its operation."""

    def limit_workers(self, cpu: int, workers: int | None) -> None:
        """There are none."""

    def recycle_buffers(self) -> None:
        if self._buffers is not None:
            self._buffers._take_back()

    def max_workers(self, bounded: int) -> int:
        """There are none."""
        return 0

    def owner_back(self) -> None:
        self._away = False

    def make_buffers(self, entries: int, size: int, group: int = 0) -> SimulatedBufferRing:
        return SimulatedBufferRing(self, entries, size, group)

    def _check(self) -> None:
        if self._was_forked:
            self._fail(-errno.EOWNERDEAD)
        if self._shut:
            self._fail(-errno.EBADF)

    def _check_owner(self) -> None:
        self._check()
        if not self._is_owner():
            self._fail(-errno.EEXIST)

    def _is_owner(self) -> bool:
        return self._owner is _this_thread()

    def _queue(self, entry: _Entry) -> None:
        self._check_owner()
        if self._refusals:
            self._fail(-self._refusals.popleft())
        if len(self._sq) == self._sq_size:
            self._counts["sq_flushes"] += 1
            self._enter()
        if entry.user_data >= FIRST_USER_DATA:
            self._counts["submitted"] += 1
            self._counts["inflight"] += 1
        self._sq.append(entry)
        if self._away:
            self._enter()

    # -------------------------------------------------------------- entering the kernel

    def submit(self) -> None:
        self._check_owner()
        if self._sq:
            self._enter()

    def wait(self, timeout: float | None) -> list[int] | None:
        self._check()
        timeout_ns = -1 if timeout is None else int(max(timeout, 0) * 1e9)
        if not self._is_owner():
            self._sleepers = True
            if not self._watched:
                return []
            return None if _sleep_on(self._epoll.fileno(), timeout_ns) == 0 else []
        self._watched = self._sleepers
        self._away = False
        if self._buffers is not None:
            self._buffers._take_back()
        self._arm_wake()
        self._counts["cq_overflows"] += bool(self._overflow)
        sleeping = timeout_ns != 0 and not self._cq
        interrupted = False
        if sleeping:
            interrupted = self._enter(get_events=True, timeout_ns=timeout_ns)
        elif self._sq or self._has_work():
            self._enter(get_events=True)
        most = min(self._cq_size, _MOST_AT_ONCE)
        out: list[int] = []
        seen = self._reap(out, most)
        while self._overflow and len(out) < 3 * most:
            self._counts["cq_overflows"] += 1
            self._enter(get_events=True)
            seen |= self._reap(out, most)
        self._show_work()
        # What the seed holds back is not idleness: a run must not believe that all its tasks are blocked for good.
        if seen or interrupted or self._has_pending_work():
            return out
        self._away = True
        return None

    def wake(self) -> None:
        self._wakers.append(None)
        try:
            if not self._shut:
                os.eventfd_write(self._event_fd, 1)
        except BlockingIOError:
            pass  # the counter is full, so a wake-up is pending already
        finally:
            self._wakers.pop()

    def _arm_wake(self) -> None:
        if self._wake_armed or self._ending:
            return
        if len(self._sq) == self._sq_size:
            self._counts["sq_flushes"] += 1
            self._enter()
        self._wake_armed = True
        address = ctypes.addressof(self._wake_value)
        self._sq.append(_Entry(OP_READ, _WAKE_DATA, self._event_fd, address, 8))

    def _enter(self, get_events: bool = False, timeout_ns: int = 0) -> bool:
        """io_uring_enter(2): submits all, with get_events runs what is due, with a timeout waits for it.

        Answers whether a signal ended the wait.
        """
        self._counts["enters"] += 1
        while self._sq:
            self._issue(self._sq.popleft())
        interrupted = False
        if get_events:
            deadline = time.monotonic_ns() + timeout_ns
            self._run()
            while timeout_ns and not self._cq:
                if self._has_pending_work():
                    self._run()
                    continue
                left = -1 if timeout_ns < 0 else max(0, deadline - time.monotonic_ns())
                self._show_work()
                rc = _sleep_on(self._epoll.fileno(), left)
                if rc == 0:
                    break
                if rc < 0:
                    interrupted = True
                    break
                self._run()
        self._show_work()
        return interrupted

    def _reap(self, out: list[int], most: int) -> bool:
        seen = False
        while self._cq and len(out) < 3 * most:
            seen = True
            user_data, res, flags, last = self._cq.popleft()
            if user_data == _WAKE_DATA:
                self._wake_armed = False
            if user_data < FIRST_USER_DATA:
                continue
            if not last and not flags & CQE_F_MORE:
                out += (STRAY_DATA, ctypes.c_int64(user_data).value, flags)
                continue
            if flags & CQE_F_BUFFER and self._buffers is not None:
                self._buffers._lent.append(flags >> CQE_BUFFER_SHIFT)
            if last:
                self._counts["completed"] += 1
                self._counts["inflight"] -= 1
                self._counts["cancelled"] += res == -errno.ECANCELED
            out += (ctypes.c_int64(user_data).value, res, flags)
        return seen

    # -------------------------------------------------------------- the kernel's side

    def _controlled(self, entry: _Entry) -> bool:
        """Whether a test completes this entry by hand."""
        return self._manual and entry.user_data >= FIRST_USER_DATA

    def _has_pending_work(self) -> bool:
        """Whether another round would get on with something, without any file becoming ready."""
        return bool(self._overflow) or any(not e.quiet and not self._controlled(e) for e in self._flight)

    def _has_work(self) -> bool:
        self._look()
        return self._has_pending_work() or bool(self._ready_files)

    def _look(self) -> None:
        self._ready_files.update(fd for fd, _ in self._epoll.poll(0) if fd != self._work_fd)

    def _show_work(self) -> None:
        """Keep the ring's descriptor readable while there is something to reap or to get on with."""
        work = bool(self._cq) or self._has_pending_work()
        if work and not self._work_shown:
            os.eventfd_write(self._work_fd, 1)
        elif self._work_shown and not work:
            os.eventfd_read(self._work_fd)
        self._work_shown = work

    def _held_back(self) -> int:
        return 0 if self._random is None else self._random.choice((0, 0, 0, 1, 2, 4))

    def _issue(self, e: _Entry) -> None:
        operation = _OPERATIONS.get(e.opcode)
        if e.opcode == OP_ASYNC_CANCEL:
            self._post(e, self._cancel_entry(e), 0)
            return
        bad_flags = e.flags & ~_KNOWN_FLAGS or e.ioprio & ~_RECVSEND_POLL_FIRST
        bad_select = e.flags & IOSQE_BUFFER_SELECT and (
            e.opcode not in _SELECTS_BUFFER or (e.opcode == OP_RECV and e.op_flags & socket.MSG_WAITALL)
        )
        if operation is None or bad_flags or bad_select:
            self._post(e, -errno.EINVAL, 0)
            return
        if operation.on_file:
            try:
                e.file = fcntl.fcntl(e.fd, fcntl.F_DUPFD_CLOEXEC, _high_number())
            except (OSError, ValueError) as bad:
                self._post(e, -(getattr(bad, "errno", None) or errno.EBADF), 0)
                return
        ours = e.user_data < FIRST_USER_DATA
        if not ours:
            e.hold = self._held_back()
            self._apply_injections(e)
        e.spans = operation.memory(e)
        self._post_cqe(e)
        self._flight.append(e)
        if not e.hold and not e.stuck and not self._controlled(e):
            self._try(e)

    def _apply_injections(self, e: _Entry) -> None:
        for injection in list(self._injections):
            if injection.opcode != e.opcode:
                continue
            injection.nth -= 1
            if injection.nth == 0:
                self._injections.remove(injection)
                e.hold = max(e.hold, injection.late)
                e.copies, e.stuck = injection.copies, injection.copies == 0
                if injection.res is not None:
                    e.injected = (injection.res, injection.flags)

    def _run(self) -> None:
        """One round: everything that is due, in an order of the seed's choice."""
        self._look()
        ready, self._ready_files = self._ready_files, set()
        due = []
        for e in self._flight:
            if e.stuck or self._controlled(e):
                continue
            if e.hold:
                e.hold -= 1
            elif e.cancelled or not e.armed or e.file in ready:
                due.append(e)
        if self._random is not None:
            self._random.shuffle(due)
        for e in due:
            if e in self._flight:
                self._try(e)
        while self._overflow and len(self._cq) < self._cq_size:
            self._cq.append(self._overflow.popleft())

    def _try(self, e: _Entry, arm: bool = True) -> bool:
        """Complete a request if it can be, else leave it waiting. Answers whether it completed."""
        self._settle(e)
        if e.cancelled:
            res, flags = e.done if e.opcode in _SOCKET_ONLY and e.done else -errno.ECANCELED, 0
        elif e.injected is not None:
            (res, flags), e.injected = e.injected, None
        else:
            if e.multishot and arm and not e.armed and self._arm(e):
                return False  # being ready already is its first edge
            res, flags = self._perform(e)
            if res == -errno.EAGAIN and (not arm or self._arm(e)):
                self._post_cqe(e)
                return False
            if res > 0 and e.multishot and self._goes_on(e):
                flags = CQE_F_MORE
        self._post(e, res, flags)
        return True

    def _goes_on(self, e: _Entry) -> bool:
        """The kernel ends a multishot where its completion would overflow, and when it likes (F16)."""
        room = not self._overflow and len(self._cq) < self._cq_size
        return e.armed and room and (self._random is None or self._random.random() < 0.8)

    def _perform(self, e: _Entry) -> tuple[int, int]:
        perform = _OPERATIONS[e.opcode].perform
        if e.file < 0:
            return perform(e), 0
        buffers = None
        chosen = e
        if e.flags & IOSQE_BUFFER_SELECT:
            buffers = self._buffers
            if buffers is None or buffers.group != e.buf_index or not buffers._ready:
                return -errno.ENOBUFS, 0
            buffer_id = buffers._ready[0]
            where = buffers._base + buffer_id * buffers.size
            if e.opcode == OP_RECVMSG:
                return self._receive_message(e, buffers, where)
            length = min(e.length or buffers.size, buffers.size)
            chosen = replace(e, addr=where, length=length)
        status = fcntl.fcntl(e.file, fcntl.F_GETFL)
        # The kernel's own attempt never blocks, whatever the descriptor says.
        if not status & os.O_NONBLOCK:
            fcntl.fcntl(e.file, fcntl.F_SETFL, status | os.O_NONBLOCK)
        try:
            res = perform(chosen)
        finally:
            if not status & os.O_NONBLOCK:
                fcntl.fcntl(e.file, fcntl.F_SETFL, status)
        # An end of file takes a buffer in a read and none in a receive.
        if buffers is not None and (res > 0 or (res == 0 and e.opcode == OP_READ)):
            return res, CQE_F_BUFFER | buffers._ready.popleft() << CQE_BUFFER_SHIFT
        return res, 0

    def _receive_message(self, e: _Entry, buffers: SimulatedBufferRing, where: int) -> tuple[int, int]:
        """recvmsg into a provided buffer: in place of the only iovec, whose length is the most that it takes."""
        vector = struct.unpack("P", _peek(e.addr + struct.calcsize("PI0P"), struct.calcsize("P")))[0]
        asked = _peek(vector, struct.calcsize("PN"))
        _, length = struct.unpack("PN", asked)
        _poke(vector, struct.pack("PN", where, min(length or buffers.size, buffers.size)))
        try:
            res = _message("recvmsg", replace(e, op_flags=e.op_flags | socket.MSG_DONTWAIT))
        finally:
            _poke(vector, asked)
        return (res, CQE_F_BUFFER | buffers._ready.popleft() << CQE_BUFFER_SHIFT) if res > 0 else (res, 0)

    def _arm(self, e: _Entry) -> bool:
        """Wait for the file; False where the operation's -EAGAIN is its result."""
        if e.opcode in _SOCKET_ONLY and e.op_flags & socket.MSG_DONTWAIT:
            return False
        if not e.armed:
            events = e.poll_events if e.opcode == OP_POLL_ADD else _OPERATIONS[e.opcode].events
            if e.file < 0 or not events:
                return False
            try:
                self._epoll.register(e.file, events | (select.EPOLLET if e.multishot else 0))
            except PermissionError:  # no file to wait for: a regular file is always ready
                return False
            e.armed = True
        return True

    def _post(self, e: _Entry, res: int, flags: int) -> None:
        last = not flags & CQE_F_MORE
        if last:
            self._release(e)
            if e in self._flight:
                self._flight.remove(e)
        else:
            e.stuck = not e.multishot
            self._post_cqe(e)
        if e.flags & _IOSQE_CQE_SKIP_SUCCESS and res >= 0:
            return
        for copy in range(max(1, e.copies)):
            completion = _Completion(e.user_data, res, flags, last and copy == 0)
            if self._overflow or len(self._cq) >= self._cq_size:
                self._overflow.append(completion)
            else:
                self._cq.append(completion)

    def _release(self, e: _Entry) -> None:
        if e.file >= 0:
            if e.armed:
                self._epoll.unregister(e.file)
            os.close(e.file)
            e.file, e.armed = -1, False

    # -------------------------------------------------------------- memory

    def _post_cqe(self, e: _Entry) -> None:
        """The memory is the kernel's from here on."""
        for span in e.spans:
            span.saved = span.expected = _peek(span.address, span.length)
            if self._poison and span.written:
                span.expected = bytes([_POISON]) * len(span.saved)
                _poke(span.address, span.expected)

    def _settle(self, e: _Entry) -> None:
        """Look whether it has been, and touch it."""
        for span in reversed(e.spans):
            found = _peek(span.address, span.length)
            if found != span.expected:
                what = "changed" if len(found) == len(span.expected) else "was unmapped"
                self.violations.append(
                    f"opcode {e.opcode}, user_data {e.user_data}: memory of {span.length} bytes {what} "
                    "between submission and completion"
                )
            elif span.expected is not span.saved:
                _poke(span.address, span.saved)

    # -------------------------------------------------------------- cancelling

    def _matcher(self, user_data: int, fd: int, flags: int) -> Callable[[_Entry], bool] | None:
        """Which requests a cancel means; None for a bad descriptor."""
        if flags & CANCEL_ANY:
            return lambda e: True
        if flags & CANCEL_FD:
            try:
                fcntl.fcntl(fd, fcntl.F_GETFD)
            except (OSError, ValueError):
                return None
            return lambda e: e.file >= 0 and _same_file(e.file, fd)
        return lambda e: e.user_data == user_data

    def _cancel_entry(self, e: _Entry) -> int:
        matches = self._matcher(e.addr, e.fd, e.op_flags)
        if matches is None:
            return -errno.EBADF
        every = bool(e.op_flags & (CANCEL_ALL | CANCEL_ANY))
        found, ended = self._cancel(matches, every, now=every)
        if every:
            return found
        if not found:
            return -errno.ENOENT
        return 0 if ended else -errno.EALREADY

    def _cancel(self, matches: Callable[[_Entry], bool], every: bool, *, now: bool) -> tuple[int, int]:
        """Cancel requests. Answers how many were found, and how many of these will end by it."""
        found = [e for e in self._flight if matches(e)]
        ended = 0
        for e in found if every else found[:1]:
            if e.copies == 0:
                continue
            e.stuck = False
            ended += 1
            if self._controlled(e) and not now:
                e.cancelled = True
                continue
            # Who wins? What can complete may do so before the cancel gets to it (F9, F11).
            target_first = not e.multishot and (self._random is None or self._random.random() < 0.5)
            if not e.cancelled and target_first and not self._controlled(e):
                self._try(e)
                if e not in self._flight:
                    continue
            e.cancelled = True
            e.hold = 0 if now else self._held_back()
            if not e.hold:
                self._try(e)
        return min(len(found), len(found) if every else 1), ended

    def _cancel_now(self, fd: int, flags: int) -> None:
        self._queue(_Entry(OP_ASYNC_CANCEL, _IGNORED_DATA, fd, op_flags=flags, flags=_IOSQE_CQE_SKIP_SUCCESS))
        self._enter(get_events=True)

    # -------------------------------------------------------------- the end

    def close(self, timeout: float = 2.0, keep: object = None) -> list[int]:
        if self._closed:
            return []
        self._closed = True
        _rings.discard(self)
        reaped: list[int] = []
        try:
            if self._is_owner():
                reaped = self._drain(time.monotonic() + timeout)
        finally:
            left = self._counts["inflight"]
            if left or self._wake_armed:
                _leaked.append((self._wake_value, keep, self._buffers))
            self._shut = True
            while self._wakers:
                time.sleep(0)
            for e in self._flight:
                self._release(e)
            self._close_descriptors()
            if left:
                self._warn_of(left)
        return reaped

    def _drain(self, deadline: float) -> list[int]:
        self._ending = True
        self._refusals.clear()
        reaped: list[int] = []
        while True:
            self._cancel_now(-1, CANCEL_ANY | CANCEL_ALL)
            reaped += self.wait(0) or []
            left = deadline - time.monotonic()
            if left <= 0 or not (self._counts["inflight"] or self._wake_armed):
                return reaped
            reaped += self.wait(min(left, 0.05)) or []

    def _warn_of(self, count: int) -> None:
        where = "in time" if self._is_owner() else "because another thread than its owner closed the ring"
        warnings.warn(
            f"io_uring: {count} operations did not end {where}; their memory is kept until the process ends",
            ResourceWarning,
            stacklevel=3,
        )

    def _close_descriptors(self) -> None:
        self._epoll.close()
        for fd in (self._event_fd, self._work_fd):
            if fd >= 0:
                os.close(fd)

    def _forked(self) -> None:
        self._closed = self._was_forked = self._shut = True
        # No unregistering: the epoll instance is shared with the parent.
        for e in self._flight:
            if e.file >= 0:
                os.close(e.file)
        self._flight.clear()
        self._close_descriptors()


class SimulatedBufferRing(BufferRing):
    """The interface of `BufferRing` on a `SimulatedRing`; taking a buffer that is not out is a violation."""

    def __init__(self, ring: SimulatedRing, entries: int, size: int, group: int = 0) -> None:
        if not 1 <= entries <= 32768 or entries & (entries - 1):
            raise ValueError(f"entries must be a power of two from 1 to 32768, not {entries}")
        if not 1 <= size <= 1 << 30:
            raise ValueError(f"size must be 1 to {1 << 30} bytes, not {size}")
        if not 0 <= group <= 65535:
            raise ValueError(f"group must be 0 to 65535, not {group}")
        if ring._buffers is not None:
            raise OSError(errno.EEXIST, "the ring has its provided buffers already")
        ring._check_owner()
        self.size = size
        self.group = group
        self.memory = mmap.mmap(-1, entries * size)
        self._base = int(ffi.cast("uintptr_t", ffi.from_buffer(self.memory)))
        self._ready = deque(range(entries))
        self._lent: list[int] = []  # named by the completions that the last wait handed out
        self._violations = ring.violations
        self._poison = ring._poison
        ring._buffers = self

    def take(self, flags: int, length: int) -> bytes:
        buffer_id = flags >> CQE_BUFFER_SHIFT
        if not flags & CQE_F_BUFFER or buffer_id not in self._lent or length > self.size:
            self._violations.append(f"{length} bytes of buffer {buffer_id} were taken and it was not out ({flags=:#x})")
        return super().take(flags, length)

    def _take_back(self) -> None:
        while self._lent:
            buffer_id = self._lent.pop()
            if self._poison:
                start = buffer_id * self.size
                self.memory[start : start + self.size] = bytes([_POISON]) * self.size
            self._ready.append(buffer_id)
