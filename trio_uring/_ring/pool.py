"""Layer 1, a pool of rings for threads: many positional transfers of a file at once, without an event loop.

Knows the rings of ffi/pool.c and what may be asked of a file (requests.py); knows nothing of Trio, and imports none. What a list
of requests may hold, what comes of it and which errors are raised is as in the asynchronous `trio_uring.read_many`.

Who may use what. A pool may be used by any thread, and so may what it lends, by one thread at a time. A ring is lent for a turn,
a number that the shim counts: every call names its turn, so what is called after the ring has come back is refused there,
and never reaches the ring in somebody else's turn. Nothing here relies on the interpreter's lock: one reentrant lock guards
the pool's lists (reentrant, because a finalizer or a signal handler may give a ring back in the middle of anything), and it is
never held over a system call.

Whose memory is pinned by whom. A list of transfers is one call of the shim, which holds everything that it needs until the kernel
has let go, whatever comes out of a signal handler meanwhile. What a reader has in flight is in a dict that the ring's own
record holds, so that a ring that comes back dirty, in whatever way, brings it along: it is drained then, or replaced and its
memory kept for ever, with a ResourceWarning (invariant 8, F8).
"""

from __future__ import annotations

import atexit
import errno
import math
import os
import threading
import time
import warnings
import weakref
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn, TypeVar

from .availability import UringUnavailableError, unavailable
from .requests import (
    BYTES_STORAGE,
    INT_MAX,
    PAGE,
    File,
    alignment_of,
    check_all_aligned,
    check_disjoint,
    columns_of,
    descriptor,
    kind,
    pin_all,
    pinned,
    whole_number,
)
from .ring import (
    MAX_RW_COUNT,
    OP_READ,
    OP_WRITE,
    address_of,
    ffi,
    lib,
    tu_pool_add,
    tu_pool_buffers,
    tu_pool_give,
    tu_pool_read,
    tu_pool_take,
)

MOST_ENTRIES: Final = 32768  # IORING_MAX_ENTRIES
_ENTRIES: Final = 64
_PATIENCE: Final = 2.0  # seconds, for what is in flight to answer its cancel
_MEMORY_BACK: Final = 0.2  # seconds, as for any ring (F34)
_NS: Final = 1_000_000_000
_SLICE_NS: Final = _NS // 10

_new_uninitialized = ffi.new_allocator(should_clear_after_alloc=False)

_Lent = TypeVar("_Lent", bound="_Lease")


class _Record:
    """A ring of a pool, lent or not.

    Attributes:
      c: the shim's ring. Freed by the garbage collector.
      address: the same as a number, which the binding takes faster.
      turn: the number of the turn that it is lent for, or will be lent for next.
      keep: what holds the memory of a reader's transfers in flight.
    """

    __slots__ = ("address", "c", "keep", "turn")

    def __init__(self, entries: int) -> None:
        deadline = time.monotonic() + _MEMORY_BACK
        while True:
            self.c = ffi.gc(lib.tu_pool_new(), lib.tu_pool_free)
            if not self.c:
                raise MemoryError
            rc = lib.tu_pool_open(self.c, entries)
            if not rc:
                break
            if rc != -errno.ENOMEM or time.monotonic() > deadline:
                raise _no_ring(-rc)
            time.sleep(0.005)
        self.address = address_of(self.c)
        self.turn = 0
        self.keep: dict[int, Any] | None = None


def _no_ring(code: int) -> UringUnavailableError:
    """As for any ring; but what helps is to ask this pool for less."""
    error = unavailable(code, "setup")
    if code in (errno.ENOMEM, errno.EMFILE):
        return UringUnavailableError(code, error.cause, "ask for fewer or smaller rings: RingPool(rings=, entries=)")
    return error


def _let_go(record: _Record) -> None:
    """The caller's buffers are his again at once, and not when the garbage collector finds a traceback that has them."""
    keep, record.keep = record.keep, None
    if keep and not lib.tu_pool_left(record.c):
        for held in keep.values():
            if not isinstance(held, (bytes, tuple)):
                ffi.release(held)
        keep.clear()


# What could not be drained, with its memory, for the rest of the process (invariant 8).
_leaked: list[object] = []


def _drained(record: _Record, left: int) -> bool:
    """Whether nothing is in flight; else what the kernel may write to is kept for ever, and a warning says so."""
    if left <= 0:
        return True
    _leaked.append((record, record.keep))
    warnings.warn(
        f"io_uring: {left} transfers of a pool's ring did not end in time; their memory is kept until the process ends",
        ResourceWarning,
        stacklevel=3,
    )
    return False


class _Waiter:
    """One who waits for a ring. `asleep` is let go when there is one, in its lease, or when it may make one, or at the close."""

    __slots__ = ("asleep", "lease", "may_make")

    def __init__(self, lease: _Lease) -> None:
        self.asleep = threading.Lock()
        self.asleep.acquire()
        self.lease = lease
        self.may_make = False


def _seconds(timeout: float | None) -> float | None:
    """A timeout argument."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}")
    if math.isnan(timeout) or timeout < 0:
        raise ValueError(f"timeout must be seconds from 0 on, or None, not {timeout}")
    return min(float(timeout), threading.TIMEOUT_MAX)


def _size(value: int | None, what: str, most: int, default: int) -> int:
    if value is None:
        return default
    value = whole_number(value, what, most)
    if not value:
        raise ValueError(f"{what} must be at least 1")
    return value


class RingPool:
    """Rings that threads borrow for many positional reads or writes of a file at once (Linux 6.1 or newer).

    Args:
      rings: how many, at least 1; None for one for each CPU that this process may use, but two at least.
      entries: transfers that each ring has in flight at most, 1 to 32768; None for 64.

    Both are had exactly, or not at all. As a context manager it closes itself.

    Raises:
      ValueError, TypeError: a size that cannot be.
      UringUnavailableError: the kernel refused; says why and what to change.

    A forked child may go on with its copy of the pool, which makes rings of its own there; what the parent has borrowed is
    refused in the child.
    """

    def __init__(self, rings: int | None = None, entries: int | None = None) -> None:
        self._closed = True
        self.rings: Final = _size(rings, "rings", INT_MAX, _default_rings())
        self.entries: Final = _size(entries, "entries", MOST_ENTRIES, _ENTRIES)
        self._lock = threading.RLock()
        self._waiting: deque[_Waiter] = deque()
        self._missing = 0  # rings that are still to be made
        self._free: list[_Record] = []
        while len(self._free) < self.rings:
            self._free.append(_Record(self.entries))
        self._records = set(self._free)
        self._closed = False
        _pools.add(self)

    @classmethod
    def shared(cls, rings: int | None = None, entries: int | None = None) -> RingPool:
        """The pool of this process: made at the first call, closed when the interpreter exits.

        Args: as for `RingPool`; without them, the pool that is there, whatever its sizes.

        Raises ValueError where it is there with other sizes than those that are given (F39), and what `RingPool` raises.
        """
        global _shared
        with _shared_lock:
            if _shared is None or _shared.closed:
                _shared = cls(rings, entries)
            pool = _shared
        asked = _size(rings, "rings", INT_MAX, pool.rings), _size(entries, "entries", MOST_ENTRIES, pool.entries)
        if asked != (pool.rings, pool.entries):
            raise ValueError(
                f"the shared pool has {pool.rings} rings of {pool.entries} entries already, and cannot have {asked[0]} of "
                f"{asked[1]}: ask for those, for none, or make a pool of your own with RingPool(rings=, entries=)"
            )
        return pool

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def acquire(self, timeout: float | None = None) -> PooledRing:
        """Borrow a ring: `with pool.acquire() as ring`.

        Args:
          timeout: seconds to wait for one at most; None for as long as it takes. Who waits longest is served first.

        Raises:
          TimeoutError: none has come back in time.
          RuntimeError: the pool is closed, or was while this waited.
          UringUnavailableError: one had to be made anew, and the kernel refused.
        """
        lease = PooledRing(self)
        if timeout is None:  # flattened: this is most of what a short list costs beside its reads
            with self._lock:
                if self._free:
                    record = self._free.pop()
                    lease._turn = record.turn
                    lease._record = record
                    return lease
        return self._lend(lease, timeout)

    def reader(self, file: File, timeout: float | None = None) -> PoolReader:
        """Borrow a ring for reads of one file that end one by one, in any order: `with pool.reader(fd) as reader`.

        Args:
          file: a descriptor, or what has `fileno()`. It has to stay open as long as the reader is.
          timeout: as for `acquire`.

        Raises what `acquire` raises; OSError where the descriptor is bad (EBADF) or has no positions (ESPIPE).
        """
        return self._lend(PoolReader(self, descriptor(file)), timeout)

    # -------------------------------------------------------------- lending

    def _lend(self, lease: _Lent, timeout: float | None) -> _Lent:
        """The lease is there before its ring: whatever is raised here, its finalizer gives the ring back."""
        waiter = None
        timeout = _seconds(timeout)
        with self._lock:
            if self._closed:
                raise _is_closed()
            if self._free:
                lease._take(self._free.pop())
                return lease
            if self._missing:
                self._missing -= 1
            else:
                waiter = _Waiter(lease)
                self._waiting.append(waiter)
        if waiter is not None:
            self._await(waiter, timeout)
            if lease._record is not None:
                return lease
        try:
            record = _Record(self.entries)
        except BaseException:
            with self._lock:
                self._offer(None)
            raise
        with self._lock:
            if not self._closed:
                self._records.add(record)
                lease._take(record)
                return lease
        lib.tu_pool_close(record.c, 0)
        raise _is_closed()

    def _await(self, waiter: _Waiter, timeout: float | None) -> None:
        """Returns when the lease has a ring, or may make one."""
        woken = False
        try:
            woken = waiter.asleep.acquire(timeout=-1 if timeout is None else timeout)
        finally:
            with self._lock:
                served = waiter.lease._record is not None or waiter.may_make
                if not served and waiter in self._waiting:
                    self._waiting.remove(waiter)
                if waiter.may_make and not woken:
                    self._offer(None)
        if served:
            return
        if woken:
            raise RuntimeError("the pool has been closed while this waited for a ring")
        raise TimeoutError(f"all {self.rings} rings of the pool were in use for {timeout:g} seconds")

    def _offer(self, record: _Record | None) -> None:
        """Under the lock: a ring, or the right to make one, to whoever waits longest."""
        if self._waiting:
            waiter = self._waiting.popleft()
            if record is None:
                waiter.may_make = True
            else:
                waiter.lease._take(record)
            waiter.asleep.release()
        elif record is None:
            self._missing += 1
        else:
            self._free.append(record)

    def _give_back(self, record: _Record, turn: int) -> None:
        """A ring that a lease has let go of, in whatever state."""
        left = tu_pool_give(record.address, turn)
        while left == -errno.EBUSY:  # another thread is in a call with it, and comes back
            time.sleep(0.001)
            left = tu_pool_give(record.address, turn)
        if left > 0:
            if _drained(record, lib.tu_pool_settle(record.c, turn, int(_PATIENCE * _NS))):
                left = tu_pool_give(record.address, turn)
            else:
                with self._lock:
                    self._records.discard(record)
                    if not self._closed:
                        self._offer(None)
                return
        if left == -errno.ESTALE:
            return  # another thread has given it back at the same moment
        if record.keep is not None:
            _let_go(record)
        if left:
            return  # closed, or the parent's
        with self._lock:
            record.turn = turn + 1
            if not self._closed:
                if self._waiting:
                    self._offer(record)
                else:
                    self._free.append(record)
                return
            self._records.discard(record)
        lib.tu_pool_close(record.c, 0)

    # -------------------------------------------------------------- the end

    def close(self, timeout: float = 2.0) -> None:
        """Lend nothing any more, wait for what is in flight, and close the rings.

        Args:
          timeout: seconds in which lists of transfers that other threads have under way may end by themselves; then they are
            cancelled, and those threads get a RuntimeError. What readers have in flight is cancelled at once.

        Whoever waits in `acquire` gets a RuntimeError, and so does the next call with a ring that is borrowed. Memory stays
        where it is until the kernel has let go of it; where that takes longer than two seconds after the cancel, it is kept for
        the rest of the process, and a ResourceWarning says so. Calling it again does nothing.
        """
        timeout = _seconds(timeout) or 0.0
        with self._lock:
            if self._closed:
                return
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
            records, self._records = self._records, set()
            self._free = []
        for waiter in waiting:
            waiter.asleep.release()
        for record in records:
            lib.tu_pool_closing(record.c, lib.TU_POOL_LAST)
        deadline = time.monotonic() + timeout
        busy = self._close_rings(records, deadline)
        for record in busy:
            lib.tu_pool_closing(record.c, lib.TU_POOL_ABORT)
        busy = self._close_rings(busy, time.monotonic() + _PATIENCE)
        _pools.discard(self)
        if busy:  # at the very end, because a warning may be an exception
            warnings.warn(
                f"{len(busy)} rings of a pool are in a transfer that does not answer its cancel; each is closed when that ends",
                ResourceWarning,
                stacklevel=2,
            )

    @staticmethod
    def _close_rings(records: Iterable[_Record], deadline: float) -> list[_Record]:
        """Those that a thread is in a call with still at the deadline; the others are closed."""
        pause = 0.0005
        while True:
            busy = []
            for record in records:
                left = lib.tu_pool_close(record.c, int(_PATIENCE * _NS))
                if left == -errno.EBUSY:
                    busy.append(record)
                else:
                    _drained(record, left)
            if not busy or time.monotonic() >= deadline:
                return busy
            records = busy
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def __enter__(self) -> RingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                self.close()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<trio_uring RingPool rings={self.rings} entries={self.entries}{state}>"

    def _forked(self) -> None:
        """In a forked child, where the parent's threads are not: they hold no lock and wait for nothing."""
        records = self._records
        self._lock = threading.RLock()
        self._waiting = deque()
        self._free = []
        self._records = set()
        self._missing = self.rings
        for record in records:
            lib.tu_pool_forked(record.c)


def _is_closed() -> RuntimeError:
    return RuntimeError("the pool is closed")


def _default_rings() -> int:
    return max(2, len(os.sched_getaffinity(0)))


# ------------------------------------------------------------------ what is lent


class _Lease:
    """A ring, lent to its holder until `release`, the end of the `with`, or the garbage collector gives it back."""

    __slots__ = ("__weakref__", "_pool", "_record", "_turn")

    def __init__(self, pool: RingPool) -> None:
        self._pool = pool
        self._record: _Record | None = None
        self._turn = 0

    def _take(self, record: _Record) -> None:
        self._turn = record.turn
        self._record = record

    def release(self) -> None:
        """Give the ring back; nothing where that has been done. What a reader has in flight is cancelled and waited for."""
        record = self._record
        if record is not None:
            self._record = None
            self._pool._give_back(record, self._turn)

    def _own(self) -> _Record:
        record = self._record
        if record is None:
            raise RuntimeError("this ring has been given back to its pool: acquire another")
        return record

    def _fail(self, rc: int | None) -> NoReturn:
        """Raises what a negated errno of the shim stands for."""
        if rc is None:
            raise RuntimeError("the requests have been changed by another thread while they were looked at")
        if rc == -errno.ESTALE:
            raise RuntimeError("this ring has been given back to its pool: acquire another")
        if rc == -errno.EBUSY:
            raise RuntimeError("another thread is in a call with this ring: each thread acquires its own")
        if rc == -errno.ESHUTDOWN:
            raise _is_closed()
        if rc == -errno.EOWNERDEAD:
            raise RuntimeError("this ring belongs to the parent process; a forked child acquires its own from the pool")
        raise OSError(-rc, f"io_uring: {os.strerror(-rc)}")

    def __enter__(self: _Lent) -> _Lent:
        self._own()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if self._record is not None and not self._pool._closed:
            self.release()
            warnings.warn(f"a {type(self).__name__} was never given back to its pool", ResourceWarning, stacklevel=2)


class PooledRing(_Lease):
    """A ring of a `RingPool`, for one thread at a time.

    Its functions take the same requests as the asynchronous ones, give the same results, and raise the same errors; but
    they block the calling thread, without the interpreter's lock, and return when all has ended. A signal handler that raises
    ends them: what is in flight is cancelled and waited for first. RuntimeError is raised where the ring has been given back,
    its pool closed, the process forked, or another thread is in a call with it.
    """

    __slots__ = ()

    def read_many(
        self, file: File, requests: Iterable[tuple[int, int]], *, depth: int | None = None
    ) -> list[bytes | OSError]:
        """Read many places of a file.

        Args:
          file: a descriptor, or what has `fileno()`.
          requests: pairs of an offset and a length, in bytes; a length is at most 2,147,479,552.
          depth: the most reads in flight at a time, at most and at first the pool's `entries`.

        Returns one result for each request, in their order: the bytes, fewer than asked only where the file ends; or, where
        that read failed, the OSError, not raised.

        Raises:
          ValueError, TypeError: a request that cannot be meant, before anything is read; with O_DIRECT also an offset or
            length that is not aligned.
          OSError: the descriptor itself is bad (EBADF), or has no positions (ESPIPE).
        """
        record = self._record or self._own()
        fd = file if file.__class__ is int and 0 <= file <= INT_MAX else descriptor(file)
        depth = _depth(depth)
        requests = list(requests)
        found = tu_pool_read(record.address, self._turn, fd, requests, MAX_RW_COUNT, depth, 0)
        if found.__class__ is list:
            return found
        if found is None:
            fd = descriptor(fd)
            direct = kind(fd)
            columns = columns_of(requests, 0)
            if direct:
                check_all_aligned(fd, columns, 0)
                direct = alignment_of(fd)[1]
            requests = list(zip(columns.offsets, columns.lengths, strict=True))
            found = tu_pool_read(record.address, self._turn, fd, requests, MAX_RW_COUNT, depth, direct)
        if isinstance(found, list):
            return found
        self._fail(found)

    def readinto_many(
        self, file: File, requests: Iterable[tuple[int, Any]], *, depth: int | None = None
    ) -> list[int | OSError]:
        """Read many places of a file into the caller's buffers.

        Args:
          requests: pairs of an offset and a writable buffer; no two buffers may overlap, for they would be filled at once. With
            O_DIRECT their addresses have to be aligned (`aligned_buffer`).

        Returns the number of bytes for each, in their order, or the OSError. Otherwise as `read_many`. The buffers are pinned
        until the kernel has let go of them.
        """
        return self._transfer(OP_READ, file, list(requests), depth)

    def write_many(
        self, file: File, requests: Iterable[tuple[int, Any]], *, depth: int | None = None
    ) -> list[int | OSError]:
        """Write to many places of a file.

        Args:
          requests: pairs of an offset and a buffer of bytes. What overlaps in the file ends up in no order.

        Returns the number of bytes for each, in their order, all of them or the OSError; then a part of it may have been
        written. Otherwise as `readinto_many`.
        """
        return self._transfer(OP_WRITE, file, list(requests), depth)

    def _transfer(self, opcode: int, file: File, requests: list[Any], depth: int | None) -> list[int | OSError]:
        record = self._record or self._own()
        fd = file if file.__class__ is int and 0 <= file <= INT_MAX else descriptor(file)
        depth = _depth(depth)
        found = tu_pool_buffers(record.address, self._turn, fd, requests, MAX_RW_COUNT, depth, 0, 0, opcode)
        if found is None:
            fd = descriptor(fd)
            direct = kind(fd)
            memory: list[Any] = []
            try:
                columns, starts = pin_all(fd, requests, direct, memory, writable=opcode == OP_READ)
                if opcode == OP_READ:
                    check_disjoint(starts, columns.lengths)
            finally:
                for part in memory:  # not left to the frames of a traceback
                    ffi.release(part)
            requests = [(offset, buffer) for offset, (_, buffer) in zip(columns.offsets, requests, strict=True)]
            address, unit = alignment_of(fd) if direct else (1, 1)
            found = tu_pool_buffers(
                record.address, self._turn, fd, requests, MAX_RW_COUNT, depth, unit, address, opcode
            )
        if isinstance(found, list):
            return found
        self._fail(found)


def _at(column: array[int]) -> int:
    return column.buffer_info()[0]


def _is_length(what: object) -> bool:
    """Whether a request says a length; an array of numpy's has both of these methods, and is a buffer."""
    return hasattr(what, "__index__") and not hasattr(what, "__len__")


def _depth(depth: int | None) -> int:
    return _size(depth, "depth", MOST_ENTRIES, MOST_ENTRIES)


class PoolReader(_Lease):
    """Reads of one file that end one by one, in any order; `RingPool.reader` makes one.

    Args:
      pool: whose ring it borrows.
      fd: what it reads, a descriptor that stays open as long as this is.

    `len(reader)` is how many have not been handed out. For one thread at a time, as `PooledRing`; it may go on in another thread
    than it began in, but what a device has completed is seen soonest by the thread that submitted it. Backpressure: `submit`
    waits while the pool's `entries` are in flight, and is refused where as many results wait for `poll` or `wait`.
    """

    __slots__ = ("_aligned", "_fd", "_memory", "_ready")

    def __init__(self, pool: RingPool, fd: int) -> None:
        super().__init__(pool)
        self._fd = fd
        self._aligned = alignment_of(fd) if kind(fd) else None
        self._memory: dict[int, Any] = {}  # of what is in flight, by id
        self._ready: list[tuple[int, Any]] = []

    def _take(self, record: _Record) -> None:
        record.keep = self._memory
        super()._take(record)

    def __len__(self) -> int:
        return len(self._memory) + len(self._ready)

    def __bool__(self) -> bool:
        """True, also with nothing in flight."""
        return True

    @property
    def room(self) -> int:
        """How many more reads can be submitted before `submit` waits."""
        return max(0, self._pool.entries - len(self))

    def submit(self, requests: Iterable[tuple[int, Any]]) -> list[int]:
        """Start reads; waits while there are `entries` of the pool in flight.

        Args:
          requests: pairs of an offset and a length in bytes, for bytes; or of an offset and a writable buffer, to be filled. Of
            buffers in flight no two may overlap. With O_DIRECT offsets, lengths and addresses have to be aligned.

        Returns an id for each, in their order: numbers that go up, and are used once by a ring.

        Raises:
          ValueError, TypeError: a request that cannot be meant, before any of them has been started.
          BlockingIOError: so many results as the pool has `entries` wait already; nothing has been started.
        """
        record = self._own()
        requests = list(requests)
        if len(self._ready) >= self._pool.entries:
            raise BlockingIOError(
                errno.EAGAIN,
                f"{len(self._ready)} results wait for poll() or wait(): take them before more is submitted",
            )
        offsets, lengths, addresses, objects = self._prepare(requests)
        places = _at(offsets), _at(lengths), _at(addresses)
        ids: list[int] = []
        while len(ids) < len(objects):
            started = tu_pool_add(
                record.address, self._turn, self._fd, places[0], places[1], places[2], objects, ids, self._memory
            )
            if started < 0:
                self._fail(started)
            if len(ids) < len(objects):
                self._collect(record, 1, _SLICE_NS)
        return ids

    def poll(self) -> list[tuple[int, bytes | int | OSError]]:
        """What has ended, without waiting: pairs of an id and its result, in any order.

        A result is the bytes, or with a buffer of the caller's their number: fewer than asked only where the file ends; or the
        OSError, not raised.
        """
        self._collect(self._own(), 0, 0)
        return self._hand_out()

    def wait(self, min_count: int = 1, timeout: float | None = None) -> list[tuple[int, bytes | int | OSError]]:
        """Wait until at least so many have ended, and return all that have, as `poll` does.

        Args:
          min_count: no more are waited for than there are.
          timeout: seconds; None for as long as it takes. Fewer, or none, are returned when it is over.
        """
        record = self._own()
        min_count = whole_number(min_count, "min_count")
        timeout = _seconds(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            missing = min(min_count, len(self)) - len(self._ready)
            left = _SLICE_NS
            if deadline is not None:
                left = max(0, min(left, int((deadline - time.monotonic()) * _NS)))
            self._collect(record, max(0, missing), left if missing > 0 else 0)
            if len(self._ready) >= min(min_count, len(self)) or not left:
                return self._hand_out()

    def _collect(self, record: _Record, at_least: int, ns: int) -> None:
        rc = tu_pool_take(record.address, self._turn, at_least, ns, self._memory, self._ready)
        if rc < 0:
            self._fail(rc)

    def _hand_out(self) -> list[tuple[int, bytes | int | OSError]]:
        found, self._ready = self._ready, []
        return found

    def _prepare(self, requests: Sequence[Any]) -> tuple[array[int], array[int], array[int], list[Any]]:
        """Offsets, lengths and addresses, and for each what holds its memory, as the shim's tu_pool_take() wants to find it."""
        plain: list[tuple[Any, Any]] = []
        buffers: dict[int, Any] = {}
        for i, request in enumerate(requests):
            if isinstance(request, (tuple, list)) and len(request) == 2 and not _is_length(request[1]):
                memory = pinned(request[1], f"requests[{i}]: the buffer", writable=True)
                buffers[i] = memory
                plain.append((request[0], len(memory)))
            else:
                plain.append(request)
        columns = columns_of(plain, 0)
        objects: list[Any] = []
        addresses = array("Q")
        for i, length in enumerate(columns.lengths):
            if i in buffers:
                objects.append(buffers[i])
                addresses.append(address_of(buffers[i]))
            elif self._aligned is None:
                objects.append(bytes(length))
                addresses.append(id(objects[-1]) + BYTES_STORAGE)
            else:
                room = _new_uninitialized("char[]", length + PAGE)
                addresses.append(-(-address_of(room) // PAGE) * PAGE)
                objects.append((room, addresses[-1]))
        if self._aligned is not None:
            check_all_aligned(self._fd, columns, 0, addresses)
        if buffers:
            at = sorted(buffers)
            check_disjoint(array("Q", [addresses[i] for i in at]), array("I", [columns.lengths[i] for i in at]), at)
        return columns.offsets, columns.lengths, addresses, objects


# ------------------------------------------------------------------ the process

_pools: weakref.WeakSet[RingPool] = weakref.WeakSet()
_shared: RingPool | None = None
_shared_lock = threading.Lock()


def _close_all() -> None:
    """At the interpreter's exit. Threads that are daemons may be in the middle of a transfer."""
    for pool in list(_pools):
        pool.close(timeout=0)


def _after_fork_in_child() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for pool in list(_pools):
        pool._forked()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
