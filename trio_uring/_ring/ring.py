"""Layer 1, the ring: one io_uring instance, its queues and its provided buffers. Knows the shim; knows nothing of Trio.

A ring belongs to the thread that makes it (IORING_SETUP_SINGLE_ISSUER): only that thread may call anything here, but
for two methods that say so. `Ring.wake` may be called from any thread and from a signal handler, and `Ring.wait` from
another thread, one at a time, sleeps until the owner has something to reap, and reaps nothing itself.

Who owns what. The caller picks the user_data of each entry, from `FIRST_USER_DATA` to 2**62 - 1, and uses none again whose
entry is in flight or was ever cancelled: a completion then names one entry, and one that nobody waits for is recognised as stale.
The caller also keeps alive whatever memory an entry names until its last completion has been reaped (the one without
IORING_CQE_F_MORE). The ring keeps its half of the bargain in `close`: it does not return the kernel's memory to the
allocator while the kernel may still write there.

Completions come as one flat list, three integers each: user_data, res, flags. One list for a batch costs less than one
object for each completion, and the reader takes them three at a time.
"""

from __future__ import annotations

import errno
import os
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from .availability import unavailable

try:
    from .._ffi import ffi as ffi
    from .._ffi import lib as lib

    lib.tu_add_calls(b"trio_uring._ffi")
    from .._ffi import tu_owner_back as tu_owner_back
    from .._ffi import tu_pairs as tu_pairs
    from .._ffi import tu_pool_add as tu_pool_add
    from .._ffi import tu_pool_buffers as tu_pool_buffers
    from .._ffi import tu_pool_give as tu_pool_give
    from .._ffi import tu_pool_read as tu_pool_read
    from .._ffi import tu_pool_take as tu_pool_take
    from .._ffi import tu_read_cached as tu_read_cached
    from .._ffi import tu_read_files as tu_read_files
    from .._ffi import tu_read_rest as tu_read_rest
    from .._ffi import tu_read_whole as tu_read_whole
    from .._ffi import tu_ready as tu_ready
    from .._ffi import tu_recv as tu_recv
    from .._ffi import tu_send as tu_send
    from .._ffi import tu_stat_cached as tu_stat_cached
    from .._ffi import tu_wait_events as tu_wait_events
except ImportError as missing:  # told at the first use, so that importing the package works everywhere
    # With those of the loop, which is imported before it says so.
    ffi = lib = None
    tu_owner_back = tu_ready = tu_wait_events = None  # type: ignore[assignment]
    _shim_missing: ImportError | None = missing
else:
    _shim_missing = None

STRAY_DATA: Final = 2
FIRST_USER_DATA: Final = 16

# Names and numbers are the kernel's: include/uapi/linux/io_uring.h, io_uring_enter(2).
OP_NOP: Final = 0
OP_READV: Final = 1
OP_WRITEV: Final = 2
OP_FSYNC: Final = 3
OP_POLL_ADD: Final = 6
OP_SENDMSG: Final = 9
OP_RECVMSG: Final = 10
OP_TIMEOUT: Final = 11
OP_ACCEPT: Final = 13
OP_ASYNC_CANCEL: Final = 14
OP_CONNECT: Final = 16
OP_FALLOCATE: Final = 17
OP_OPENAT: Final = 18
OP_CLOSE: Final = 19
OP_STATX: Final = 21
OP_READ: Final = 22
OP_WRITE: Final = 23
OP_SEND: Final = 26
OP_RECV: Final = 27
OP_SPLICE: Final = 30
OP_SHUTDOWN: Final = 34
OP_RENAMEAT: Final = 35
OP_UNLINKAT: Final = 36
OP_MKDIRAT: Final = 37
OP_SYMLINKAT: Final = 38
OP_LINKAT: Final = 39
OP_FTRUNCATE: Final = 55  # kernel 6.9

# SQE lengths have 32 bits; the kernel caps a transfer there anyway (MAX_RW_COUNT).
MAX_RW_COUNT: Final = 0x7FFFF000

CQE_F_BUFFER: Final = 1 << 0
CQE_F_MORE: Final = 1 << 1
CQE_F_SOCK_NONEMPTY: Final = 1 << 2
CQE_F_NOTIF: Final = 1 << 3
CQE_BUFFER_SHIFT: Final = 16

IOSQE_ASYNC: Final = 1 << 4
IOSQE_BUFFER_SELECT: Final = 1 << 5

POLL_ADD_MULTI: Final = 1 << 0

CANCEL_ALL: Final = 1 << 0
CANCEL_FD: Final = 1 << 1
CANCEL_ANY: Final = 1 << 2

NOP_INJECT_RESULT: Final = 1 << 0  # kernel 6.12: a NOP completes with the entry's len as its result

_STEPS: Final = {
    1: "setup",
    2: "eventfd",
    3: "enter",
    4: "IORING_REGISTER_EVENTFD",
    # TU_STEP_OPERATION and the opcode
    256 + OP_READ: "IORING_OP_READ",
    256 + OP_POLL_ADD: "IORING_OP_POLL_ADD",
    256 + OP_ASYNC_CANCEL: "IORING_OP_ASYNC_CANCEL",
}
_MOST_AT_ONCE: Final = 4096  # completions handed out by one wait
# Seconds in which the memory of rings closed before counts no longer (F34; measured on 6.18: about 20 ms).
_MEMORY_BACK: Final = 0.2
_ROUND: Final = 0.05  # seconds in a wait between two rounds of cancels at the end
_SMALLEST: Final = 8  # entries at which a ring that does not fit in memory gives up shrinking

# What a ring that could not be drained keeps alive for the rest of the process (invariant 8).
_leaked: list[object] = []

_rings: weakref.WeakSet[Ring] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for ring in list(_rings):
        ring._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)


class HasFileno(Protocol):
    """An object with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


def os_error(result: int) -> OSError:
    """The exception for a negative completion result: class, errno and text as from the system call itself."""
    return OSError(-result, os.strerror(-result))


def address_of(pointer: Any) -> int:
    """Where the memory of a cffi pointer or array is."""
    return int(ffi.cast("uintptr_t", pointer))


class RingCounters:
    """What a ring has done so far; a snapshot of integers.

    Attributes:
      submitted: entries queued for the kernel by the caller (cancels and the wake-up read are not counted).
      completed: entries whose last completion was reaped.
      cancelled: those of them that ended with -ECANCELED.
      inflight: submitted less completed.
      enters: io_uring_enter(2) calls.
      sq_flushes: submissions forced by a full submission queue.
      cq_overflows: times the kernel reported an overflowed completion queue (nothing is lost by it).
    """

    __slots__ = ("cancelled", "completed", "cq_overflows", "enters", "inflight", "sq_flushes", "submitted")

    def __init__(self, source: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(source, name))

    submitted: int
    completed: int
    cancelled: int
    inflight: int
    enters: int
    sq_flushes: int
    cq_overflows: int


class Poller:
    """The kernel thread that takes the submissions of a ring (IORING_SETUP_SQPOLL).

    Attributes:
      cpu: the processor that it is pinned to, at least 0.
      idle_ms: milliseconds without any submission after which it sleeps, at least 1.
      attach_to: the descriptor of a ring whose poller is to serve this one too, which decides the processor; -1 for a new poller.
    """

    __slots__ = ("attach_to", "cpu", "idle_ms")

    def __init__(self, cpu: int, idle_ms: int, attach_to: int = -1) -> None:
        self.cpu = cpu
        self.idle_ms = idle_ms
        self.attach_to = attach_to


_NO_POLLER: Final = Poller(-1, 0)


class Ring:
    """An io_uring instance with one owner thread (Linux 6.1 or newer).

    Set up with SINGLE_ISSUER, SUBMIT_ALL and CQSIZE, its descriptor registered with the owner thread, and an eventfd whose
    read in the ring is what `wake` completes. Without a poller also with DEFER_TASKRUN and TASKRUN_FLAG; with one, with
    SQPOLL and SQ_AFF, which exclude these two.

    Args:
      sq_entries: submission queue entries, 2 to 32768; the kernel rounds up to a power of two.
      cq_entries: completion queue entries, at least `sq_entries`, at most 65536; None for eight times as many.
      poller: the kernel thread that submits; None for the owner thread.

    Raises:
      ValueError: a size out of range.
      UringUnavailableError: the kernel refused; says why and what to change. With too little memory for the sizes
          asked, smaller rings are tried first.

    Attributes:
      keep: whatever holds the memory that entries in flight name, for a ring that is never closed and that the garbage
        collector finds: `close` gets it then.
      polled: whether a poller submits (bool).
      abandoned: called in that case with the completions that `close` returned, which may be of descriptors (F9).
    """

    polled: bool = False
    keep: object = None
    _closed = True
    abandoned: Callable[[list[int]], object] | None = None

    def __init__(self, sq_entries: int = 512, cq_entries: int | None = None, poller: Poller | None = None) -> None:
        self._closed = True
        self.polled = poller is not None
        if not 2 <= sq_entries <= 32768:
            raise ValueError(f"sq_entries must be 2 to 32768, not {sq_entries}")
        if cq_entries is None:
            cq_entries = min(8 * sq_entries, 65536)
        if not sq_entries <= cq_entries <= 65536:
            raise ValueError(f"cq_entries must be sq_entries ({sq_entries}) to 65536, not {cq_entries}")
        if _shim_missing is not None:
            # What CPython says of an extension that can be there once only, as those that cffi makes.
            elsewhere = "subinterpreter" in str(_shim_missing)
            raise unavailable(errno.ENOSYS, "subinterpreter" if elsewhere else "shim") from _shim_missing
        self._r = ffi.gc(lib.tu_new(), lib.tu_free)
        if not self._r:
            raise MemoryError
        step = ffi.new("int *")
        polled = poller or _NO_POLLER
        wanted = sq_entries, cq_entries
        deadline = time.monotonic() + _MEMORY_BACK
        while True:
            rc = lib.tu_open(self._r, sq_entries, cq_entries, polled.cpu, polled.idle_ms, polled.attach_to, step)
            if rc == 0:
                break
            if rc == -errno.ENOMEM and sq_entries > _SMALLEST:
                sq_entries //= 2
                cq_entries = max(sq_entries, cq_entries // 2)
                continue
            if rc == -errno.ENOMEM and time.monotonic() < deadline:
                time.sleep(0.005)
                sq_entries, cq_entries = wanted
                continue
            raise unavailable(-rc, _STEPS[step[0]])
        self._closed = False
        # The ring as tu_recv and tu_send take it. Of no use once the ring has gone; after `close` they refuse.
        self.address = int(ffi.cast("uintptr_t", self._r))
        self._max = min(lib.tu_cq_entries(self._r), _MOST_AT_ONCE)
        self._out = ffi.new("int64_t[]", 3 * self._max)
        self._out_at = int(ffi.cast("uintptr_t", self._out))
        self._buffers: BufferRing | None = None
        _rings.add(self)

    # -------------------------------------------------------------- facts

    def fileno(self) -> int:
        """The ring's descriptor.

        Do not sleep on it in poll(2) or epoll(7): deferred work that arrives meanwhile does not wake them (kernel 6.18).
        `wait` in another thread is what sleeps.
        """
        return int(lib.tu_fd(self._r))

    @property
    def sq_entries(self) -> int:
        """Submission queue entries that the kernel made."""
        return int(lib.tu_sq_entries(self._r))

    @property
    def cq_entries(self) -> int:
        """Completion queue entries that the kernel made."""
        return int(lib.tu_cq_entries(self._r))

    @property
    def queued(self) -> int:
        """Entries that the kernel has not been handed yet."""
        return int(lib.tu_queued(self._r))

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def counters(self) -> RingCounters:
        """A snapshot of the counters; works after `close`, and in any thread."""
        counters = ffi.new("tu_counters *")
        lib.tu_stats(self._r, counters)
        return RingCounters(counters)

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
        """Queue one submission queue entry; its fields are those of io_uring_enter(2).

        Args:
          addr: a cffi pointer, or None for NULL. The memory stays the caller's to keep until the last completion.
          op_flags: rw_flags, msg_flags, poll32_events, accept_flags and so on, by operation.
          flags: IOSQE flags.

        A full queue is submitted first. Raises OSError where the kernel takes nothing for two seconds, and RuntimeError
        in a forked child.
        """
        rc = lib.tu_queue(
            self._r, opcode, fd, ffi.NULL if addr is None else addr, length, offset, op_flags, user_data, flags,
            ioprio, buf_index, file_index,
        )  # fmt: skip
        if rc:
            self._fail(rc)

    def poll(self, fd: int, events: int, user_data: int) -> None:
        """Queue a one-shot IORING_OP_POLL_ADD; `events` is a mask of poll(2)."""
        rc = lib.tu_poll(self._r, fd, events, user_data)
        if rc:
            self._fail(rc)

    def in_flight(self, user_data: int) -> bool:
        """Whether an entry of that user_data is queued or in flight: its last completion has not been handed out.

        Who queues one asks this when an exception has come out of the call: a refusal has queued nothing, but a signal handler
        may have raised as the call returned. Of a closed ring nobody knows, so it is true.
        """
        return self._closed or bool(lib.tu_in_flight(self._r, user_data))

    def cancel(self, user_data: int) -> None:
        """Queue an IORING_OP_ASYNC_CANCEL of the entry with that user_data; nothing after `close`.

        The target's own completion tells the outcome.
        """
        if self._closed:
            # Nothing is left to cancel. And not asked of the shim: a coroutine that the garbage collector closes together
            # with the ring may come here when it has freed what `_r` points to.
            return
        rc = lib.tu_cancel(self._r, user_data)
        if rc:
            self._fail(rc)

    def cancel_fd(self, fd: int, entries: Sequence[int] = ()) -> bool:
        """Cancel requests on a descriptor now, queued ones included, and make the kernel let go of the file.

        For use before close(2), which ends no request: the cancelled requests hold the file until their deferred work
        has run, so this submits, cancels and enters with GETEVENTS until none is left. The completions are handed out by the
        next `wait`.

        Args:
          entries: the user_data of the requests to cancel, for who knows them all. Without, it is every request on the open
              file, those on its duplicates too (IORING_ASYNC_CANCEL_FD | ALL), and the kernel looks at all that wait in
              the ring, whatever they wait for.

        Returns whether it was by the open file: then requests on duplicates of the descriptor may have been cancelled as well.
        """
        rc = lib.tu_cancel_fd(self._r, fd, entries, len(entries))
        if rc < 0:
            self._fail(rc)
        return bool(rc)

    def release(self) -> None:
        """Make certain that no completed request holds its file any more; for use before close(2).

        A poller lets go of a file a moment after the completion can be seen. Without a poller this does nothing.
        """
        rc = lib.tu_release(self._r)
        if rc:
            self._fail(rc)

    def limit_workers(self, cpu: int, workers: int | None) -> None:
        """Pin the kernel's workers for this ring to a processor, and limit how many work on files at the same time.

        Of a ring with a poller these are the poller's, of all of its rings (IORING_REGISTER_IOWQ_AFF and
        IORING_REGISTER_IOWQ_MAX_WORKERS, io_uring_register(2)).
        """
        rc = lib.tu_workers(self._r, cpu, workers or 0)
        if rc:
            self._fail(rc)

    def recycle_buffers(self) -> None:
        """The data of the last `wait` has been copied out: its provided buffers are the kernel's again, before the next `wait`.

        A poller may look for one as soon as a receive is queued, and not as late as in that `wait`.
        """
        lib.tu_recycle_buffers(self._r)

    def cancel_sync(self, *, user_data: int = 0, fd: int = -1, flags: int = 0, timeout: float | None = None) -> int:
        """IORING_REGISTER_SYNC_CANCEL (kernel 6.0): cancel, and wait for it for at most `timeout` seconds.

        Answers the number of requests cancelled, with CANCEL_ALL, or 0; raises OSError with ENOENT, EALREADY or ETIME
        as io_uring_register(2) says. Submits what is queued first.
        """
        rc = int(lib.tu_cancel_sync(self._r, user_data, fd, flags, -1 if timeout is None else int(timeout * 1e9)))
        if rc < 0:
            self._fail(rc)
        return rc

    def spin(self, nanoseconds: int) -> None:
        """How long the owner's `wait` may look for completions before it sleeps; 0, at first, for not at all.

        It does so only after it has handed out one or two completions, and while its sleeps have been short (`rest` in the
        shim): going to sleep and being woken takes longer then than what it waits for. Not on a machine of one processor.
        """
        lib.tu_spin(self._r, nanoseconds)

    def max_workers(self, bounded: int) -> int:
        """How many kernel workers may be at work for this thread on what is bounded, which is files: a new number, or 0 to ask
        (IORING_REGISTER_IOWQ_MAX_WORKERS, 5.15). Answers what it was; 0 where the kernel does not tell.
        """
        return max(0, int(lib.tu_max_workers(self._r, bounded)))

    def owner_back(self) -> None:
        """The owner is back from an idle `wait` and will wait again: entries may be batched once more.

        Between a `wait` that timed out and this call, every entry is submitted as soon as it is queued, because in
        guest mode another thread may already be asleep on the ring.
        """
        tu_owner_back(self.address)

    def make_buffers(self, entries: int, size: int, group: int = 0) -> BufferRing:
        """See `BufferRing`."""
        return BufferRing(self, entries, size, group)

    # -------------------------------------------------------------- entering the kernel

    def submit(self) -> None:
        """Hand all queued entries to the kernel, without waiting."""
        rc = lib.tu_submit(self._r)
        if rc:
            self._fail(rc)

    def wait(self, timeout: float | None) -> list[int] | None:
        """Submit everything queued, wait for completions, and reap them: one io_uring_enter(2), or none.

        Args:
          timeout: seconds; 0 does not wait, and makes no system call where nothing is queued and nothing is pending;
              None waits for ever.

        Returns None if the timeout expired, else the completions as user_data, res, flags, user_data, res, flags, …; an
        empty list if the wait ended for another reason (`wake`, a signal). A completion of an entry that is not in flight,
        because it has come twice, is in no counter, and told as STRAY_DATA, the user_data that it came with, flags.

        From another thread: sleeps until the owner has something to reap or the timeout expires, and answers [] or None.
        The first such call answers [] at once, because the owner must first arrange in its next `wait` to be watched. One
        thread at a time: of two sleepers each may take the other's wake-up.
        """
        events = tu_wait_events(self.address, timeout, self._out_at, self._max)
        if events.__class__ is int:
            self._fail(events)
        return events  # type: ignore[return-value]

    def peek(self) -> list[int] | None:
        """As `wait(0)`, without waiting for a poller to be done with what it has been given: None tells less then.

        `wait` makes certain, before it says that its timeout expired, that whatever completes at once has completed.
        """
        n = lib.tu_peek(self._r, self._out, self._max)
        if n > 0:
            return ffi.unpack(self._out, 3 * n)  # type: ignore[no-any-return]
        if n == -errno.ETIME:
            return None
        if n:
            self._fail(n)
        return []

    def wake(self) -> None:
        """End the current or the next `wait`. Any thread, any signal handler; after `close` it does nothing."""
        lib.tu_wake(self._r)

    # -------------------------------------------------------------- the end

    def close(self, timeout: float = 2.0, keep: object = None) -> list[int]:
        """Cancel everything, reap until nothing is in flight, and unmap the ring.

        Args:
          timeout: seconds to wait for requests that do not answer their cancel at once.
          keep: whatever holds the memory that entries in flight name. If the kernel does not let go in time, or the
              caller is not the owner thread and so cannot wait, `keep` is kept alive for the rest of the process and a
              ResourceWarning says so: never is memory freed that the kernel may still write to.

        Returns the completions reaped on the way, as `wait` does. Calling it again does nothing.
        """
        if self._closed:
            return []
        self._closed = True
        reaped: list[int] = []
        try:
            if lib.tu_is_owner(self._r):
                reaped = self._drain(time.monotonic() + timeout)
        finally:
            left = 0
            if not lib.tu_idle(self._r):
                left = self.counters().inflight
                # The mappings themselves may go (the kernel has its own reference); what must stay is memory it writes to.
                _leaked.append((self._r, self._out, keep, self._buffers))
            lib.tu_buffers_free(self._r)
            lib.tu_close(self._r)
            _rings.discard(self)  # not before: another thread may fork meanwhile
            if left:  # at the very end, because a warning may be an exception
                self._warn_of(left)
        return reaped

    def _drain(self, deadline: float) -> list[int]:
        reaped: list[int] = []
        while True:
            # Again in each round: a request that was busy when it was cancelled (EALREADY) may have gone back to waiting,
            # and what the kernel refused this time it may take the next.
            lib.tu_cancel_all(self._r)
            self._take(reaped, 0)
            if lib.tu_idle(self._r):
                return reaped
            left = deadline - time.monotonic()
            if left <= 0:
                return reaped
            self._take(reaped, min(left, _ROUND))

    def _take(self, reaped: list[int], timeout: float) -> None:
        try:
            reaped += self.wait(timeout) or ()
        except (OSError, ValueError):  # a refusal; `_drain` has its own bound
            time.sleep(timeout)

    def _warn_of(self, count: int) -> None:
        where = "in time" if lib.tu_is_owner(self._r) else "because another thread than its owner closed the ring"
        warnings.warn(
            f"io_uring: {count} operations did not end {where}; their memory is kept until the process ends",
            ResourceWarning,
            stacklevel=3,
        )

    def __del__(self) -> None:
        if not self._closed:
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                reaped = self.close(keep=self.keep)
                if self.abandoned is not None:
                    self.abandoned(reaped)

    def _forked(self) -> None:
        """In a forked child, before any other Python code: give up our copies of the descriptors, touch nothing else."""
        self._closed = True
        lib.tu_forked(self._r)

    def _fail(self, rc: int) -> None:
        if rc == -errno.EOWNERDEAD:
            raise RuntimeError(
                "this io_uring belongs to the parent process; a forked child must start a run of its own (trio.run), "
                "and cannot go on with the parent's"
            )
        if rc == -errno.EEXIST:
            raise RuntimeError("this io_uring belongs to another thread; only wake() and wait() may be called here")
        if self._closed:
            raise ValueError("operation on a closed ring")
        raise OSError(-rc, f"io_uring: {os.strerror(-rc)}")

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self.fileno()} sq={self.sq_entries} cq={self.cq_entries}"
        return f"<trio_uring Ring {state}>"


class BufferRing:
    """Provided buffers: the kernel picks one only when data is there, so a receive that waits holds no memory.

    One set for a ring. A buffer that a completion names is the caller's until the next `Ring.wait`, which gives all
    such buffers back to the kernel, whether their data was taken or not: none can be forgotten.

    Args:
      ring: the ring to register with (IORING_REGISTER_PBUF_RING, kernel 5.19).
      entries: number of buffers, a power of two, 1 to 32768.
      size: bytes in each.
      group: buffer group id, 0 to 65535, for IOSQE_BUFFER_SELECT entries.

    Raises:
      ValueError: a size out of range.
      OSError: the kernel refused, or (EEXIST) the ring has its buffers already.
    """

    def __init__(self, ring: Ring, entries: int, size: int, group: int = 0) -> None:
        if not 1 <= entries <= 32768 or entries & (entries - 1):
            raise ValueError(f"entries must be a power of two from 1 to 32768, not {entries}")
        if not 1 <= size <= 1 << 30:
            raise ValueError(f"size must be 1 to {1 << 30} bytes, not {size}")
        if not 0 <= group <= 65535:
            raise ValueError(f"group must be 0 to 65535, not {group}")
        if ring._buffers is not None:
            raise OSError(errno.EEXIST, "the ring has its provided buffers already")
        self.size = size
        self.group = group
        import mmap  # not before, as few runs without a socket get here

        self.memory = mmap.mmap(-1, entries * size)
        rc = lib.tu_buffers_new(ring._r, entries, size, group, ffi.from_buffer(self.memory))
        if rc:
            ring._fail(rc)
        ring._buffers = self

    def take(self, flags: int, length: int) -> bytes:
        """A copy of the data of a completion.

        Args:
          flags: the completion's flags, with IORING_CQE_F_BUFFER set.
          length: the completion's result, in bytes.
        """
        start = (flags >> CQE_BUFFER_SHIFT) * self.size
        return self.memory[start : start + length]


def supported_operations() -> frozenset[int]:
    """The operation numbers that this kernel serves (IORING_REGISTER_PROBE); raises OSError where there is no io_uring."""
    if _shim_missing is not None:
        raise unavailable(errno.ENOSYS, "shim") from _shim_missing
    supported = ffi.new("unsigned char[256]")
    rc = lib.tu_probe_ops(supported, 256)
    if rc < 0:
        raise unavailable(-rc, "setup")
    return frozenset(number for number in range(256) if supported[number])
