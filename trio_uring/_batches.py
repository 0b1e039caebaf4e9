"""Layer 3, batches: many reads of one file, one await.

Knows how requests become the arrays that the shim's batch takes (ffi/batch.c), and how its results become Python's; knows
nothing of how a batch gets on, nor when it is over.

A batch costs one completion and one switch of tasks for up to `_CHUNK` reads; in between the shim keeps a window of entries
in flight, and no read of it ever reaches Python by itself. What is left here is work by column, not by item: a column of
offsets, one of lengths, one of addresses.

Where results are bytes, the kernel writes them into the bytes objects themselves, which nobody else has seen yet: no
second copy. That takes the address of an object's storage, which is `id()` and a constant on CPython; the constant is
looked up, not assumed, at import. Under O_DIRECT it does not serve, because the storage is not aligned: there the kernel
reads into a few aligned pieces, and the shim copies from there while the data is in the cache.

Registered files and buffers are not used. Measured (kernel 6.18, 4 KiB, benchmarks/floor.c, CPU for each read): from the
page cache they change nothing that stands out from noise (0.318 µs without, 0.316 with both); with O_DIRECT they save a fifth
of the CPU (2.7 and 2.2) but no time that stands out (9.4 and 9.1 with 32 in flight), because the device decides.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import sub
from typing import Any, Final

import trio
from trio.lowlevel import Task

from ._manager import UringIOManager
from ._operation import GLOBAL_RUN_CONTEXT, Operation, os_error
from ._positional import (
    LAST,
    PAGE,
    File,
    _pread,
    _preadv,
    alignment_of,
    all_aligned,
    check_aligned,
    descriptor,
    kind,
    pinned,
    span,
    whole_number,
)
from ._ring import ffi, lib
from ._sockets import MOST, address_of, ring_manager, uncleared

# Reads in one batch of the shim: preparing them takes some 0.3 ms, in which no other task runs.
_CHUNK: Final = 1024
_CHUNK_DIRECT: Final = 8192  # with memory made in pieces; between two batches the device has nothing to do
_CHUNK_BYTES: Final = 64 << 20  # and their memory, as long as one read alone does not take more
_PIECE: Final = 96  # reads for whose results memory is made at a time, while others are in flight
_CHUNKS_CHECKED: Final = 8  # between two schedule points
# Bytes in flight. From the page cache they are copied in the one call that submits them, about 0.1 ms for each MiB.
_IN_FLIGHT: Final = 2 << 20
_IN_FLIGHT_DIRECT: Final = 64 << 20
_IN_ONE_THREAD_CALL: Final = 64  # reads; between two such calls a cancel counts
_DEPTH: Final = 64

_WORD: Final = 4  # bytes of one result

_probe: Final = b"trio_uring"
# Where a bytes object has its storage; ends with a NUL that its size counts.
_STORAGE: Final = bytes.__basicsize__ - 1
assert address_of(ffi.from_buffer(_probe)) == id(_probe) + _STORAGE

tu_batch_read = lib.tu_batch_read
_pin_writable = functools.partial(ffi.from_buffer, ffi.typeof("char[]"), require_writable=True)

Columns = tuple["array[int]", "array[int]"]


# ------------------------------------------------------------------ requests


def _columns(offsets: Sequence[Any], lengths: Sequence[Any], first: int) -> Columns:
    """Offsets and lengths as arrays. The errors name the request that is wrong, counted from `first`."""
    try:
        columns = array("Q", offsets), array("I", lengths)
        if max(lengths) <= MOST and max(offsets) <= LAST - MOST:
            return columns
    except (TypeError, OverflowError):
        columns = array("Q"), array("I")
    for i, (offset, length) in enumerate(zip(offsets, lengths, strict=True), first):
        try:
            whole_number(length, "length", MOST)
            span(length, offset)
        except (TypeError, ValueError) as error:
            raise type(error)(f"requests[{i}]: {error}") from None
    return columns


def _transposed(requests: Sequence[Any], first: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """The two columns of a list of pairs."""
    try:
        firsts, seconds = zip(*requests, strict=True)
    except (TypeError, ValueError):
        for i, request in enumerate(requests, first):
            if not isinstance(request, (tuple, list)) or len(request) != 2:
                raise TypeError(
                    f"requests[{i}] must be a pair, an offset and what to read there, not {request!r:.80}"
                ) from None
        raise
    return firsts, seconds


def _cut(offsets: array[int], lengths: array[int]) -> Iterator[Columns]:
    """Pieces whose memory is bounded."""
    if sum(lengths) <= _CHUNK_BYTES:
        yield offsets, lengths
        return
    start = size = 0
    for i, length in enumerate(lengths):
        if size + length > _CHUNK_BYTES and i > start:
            yield offsets[start:i], lengths[start:i]
            start, size = i, 0
        size += length
    yield offsets[start:], lengths[start:]


def _window(lengths: array[int], depth: int, direct: int) -> int:
    return max(1, min(depth, (_IN_FLIGHT_DIRECT if direct else _IN_FLIGHT) // (max(lengths) or 1)))


# ------------------------------------------------------------------ one batch of the shim


class Batch(Operation):
    """A batch of the shim, which may be fed.

    Args:
      keep: what holds the memory that the kernel writes to.
      feed: makes the memory of the next reads, and yields how many then have theirs, all in the end. The task goes on making
        memory, with a schedule point for each piece, while the first reads are in flight already; None where all is made.
    """

    __slots__ = ("feed", "over")

    def __init__(self, manager: UringIOManager, fd: int, keep: object, feed: Iterator[int] | None) -> None:
        super().__init__(manager, fd, keep, None)
        self.feed = feed
        self.over = False

    async def asleep(self, user_data: int) -> None:
        """As for every operation, after feeding it."""
        manager = self.manager
        task = GLOBAL_RUN_CONTEXT.task
        if self.feed is not None:
            self.user_data = user_data
            manager.operations[user_data] = self
            manager.others.setdefault(self.fd, set()).add(self)
            try:
                for ready in self.feed:
                    lib.tu_batch_ready(manager.ring._r, user_data, ready)
                    # A cancel is for the sleep to see: by then there must be somebody to wait for the completion.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    if self.over or task._cancel_status.effectively_cancelled:
                        break
            except BaseException:
                self.feed = None
                if not self.over:
                    manager.ring.cancel(user_data)
                raise
            self.feed = None
            if self.over:
                return
        await super().asleep(user_data)

    def complete(self, result: int, flags: int) -> Task | None:
        """The last completion has been reaped."""
        if self.feed is None:
            return super().complete(result, flags)
        # All was read while the task made memory for the last of it; or the descriptor is being closed.
        self.over = True
        self.keep = None
        self.result = result
        self.flags = flags
        del self.manager.operations[self.user_data]
        self.manager.forget(self, self.manager.others)
        return None


async def _read_batch(
    manager: UringIOManager,
    fd: int,
    columns: Columns,
    addresses: Any,
    skip: int,
    keep: object,
    window: int,
    bounce_size: int = 0,
    feed: Iterator[int] | None = None,
) -> tuple[array[int], int]:
    """Bytes read, or negated errno, for each; and how many of these are less than was asked for.

    Args:
      addresses: a cffi array of 64-bit addresses, of places `skip` bytes before those that are meant.
      keep: what holds the memory there.
      bounce_size: bytes of aligned memory for each read of the window, which the kernel reads into instead; 0 for none.
      feed: see `Batch`.

    A schedule point and a cancel point, by the rules of `Operation`: with Cancelled, no read of the batch is in flight.
    """
    offsets, lengths = columns
    count = len(lengths)
    results = array("i", bytes(_WORD * count))
    # Not a memoryview: operations are in cycles, and where one is garbage with something that pins a memoryview, the
    # collector may clear the view first, on which CPython crashes (seen on 3.11).
    room = uncleared("char[]", window * bounce_size + PAGE) if bounce_size else None
    memory = (
        ffi.from_buffer("uint64_t[]", offsets),
        ffi.from_buffer("uint32_t[]", lengths),
        ffi.cast("uint64_t *", addresses),
        ffi.from_buffer("int32_t[]", results),
        ffi.NULL if room is None else room + -address_of(room) % PAGE,
        room,
    )
    operation = Batch(manager, fd, (memory, keep, addresses), feed)
    ready = count if feed is None else next(feed)
    while True:
        await trio.lowlevel.checkpoint_if_cancelled()
        user_data = manager.next_user_data()
        rc = tu_batch_read(
            manager.ring._r, fd, memory[0], memory[1], memory[2], skip, memory[3], count, ready, window, memory[4],
            bounce_size, user_data,
        )  # fmt: skip
        if rc:
            manager.ring._fail(rc)
        await operation.asleep(user_data)
        if operation.result >= 0:
            return results, operation.flags
        await operation.failed()
        # Interrupted, and nobody asked for it: from the beginning, with the memory that is there.
        if feed is not None:
            for _ in feed:
                await trio.lowlevel.checkpoint()
            ready = count


# ------------------------------------------------------------------ results as bytes


@trio.lowlevel.enable_ki_protection
async def read_many(file: File, requests: Iterable[tuple[int, int]], *, depth: int = _DEPTH) -> list[bytes | OSError]:
    """Read many places of a file with one await.

    Args:
      requests: pairs of an offset and a length, in bytes; a length is at most 2,147,479,552.
      depth: the most reads in flight at a time; fewer where they are large.

    Returns one result for each request, in their order: the bytes, fewer than asked only where the file ends; or, where
    that read failed, the OSError, not raised. (`[r for r in results if isinstance(r, OSError)]` are the failures.)

    Cancelled as a whole: when Cancelled comes out nothing is in flight any more, and what was read is forgotten. Other tasks
    run meanwhile, however many requests there are.

    Raises:
      ValueError, TypeError: a request that cannot be meant, before anything is read; with O_DIRECT also an offset or length
        that is not aligned.
      ClosedResourceError: `trio.lowlevel.notify_closing` was called for the descriptor meanwhile.
      OSError: the descriptor itself is bad (EBADF), or has no positions (ESPIPE).
    """
    fd = descriptor(file)
    depth = _depth(depth)
    requests = list(requests)
    direct = kind(fd)
    checked: list[Columns] = []
    chunk = _CHUNK_DIRECT if direct else _CHUNK
    for start in range(0, len(requests), chunk):
        if start and not start % (_CHUNK * _CHUNKS_CHECKED):
            await trio.lowlevel.checkpoint()
        columns = _columns(*_transposed(requests[start : start + chunk], start), start)
        if direct:
            _check_all_aligned(fd, columns, start)
        checked.append(columns)
    del requests
    manager = ring_manager()
    results: list[bytes | OSError] = []
    for whole in checked:
        for columns in _cut(*whole):
            if manager is None:
                results += await _in_threads(fd, columns, direct)
            else:
                results += await _read_bytes(manager, fd, columns, depth, direct)
    if not checked:
        await trio.lowlevel.checkpoint()
    return results


def _depth(depth: object) -> int:
    depth = whole_number(depth, "depth", 32768)
    if not depth:
        raise ValueError("depth must be at least 1")
    return depth


def _check_all_aligned(fd: int, columns: Columns, first: int) -> None:
    want = alignment_of(fd)
    if not all_aligned(want, *columns):
        for i, (offset, length) in enumerate(zip(*columns, strict=True), first):
            check_aligned(want, length, offset, where=f"requests[{i}]: ")


async def _read_bytes(
    manager: UringIOManager, fd: int, columns: Columns, depth: int, direct: int
) -> list[bytes | OSError]:
    lengths = columns[1]
    window = min(_window(lengths, depth, direct), len(lengths))
    blocks: list[Any] = []
    where = array("Q", bytes(8 * len(lengths)))
    addresses = ffi.from_buffer("uint64_t[]", where)
    bounce_size = 0
    feed = None
    if direct:
        # A device takes its time: it gets on while memory is made, which for new pages takes a microsecond each.
        bounce_size = -(-max(lengths) // PAGE) * PAGE or PAGE
        feed = _make_blocks(lengths, blocks, where, _PIECE)
    else:
        for _ in _make_blocks(lengths, blocks, where, len(lengths)):
            pass
    ended, partial = await _read_batch(manager, fd, columns, addresses, _STORAGE, blocks, window, bounce_size, feed)
    if partial:
        for i, (result, length) in enumerate(zip(ended, lengths, strict=True)):
            if result != length:
                blocks[i] = blocks[i][:result] if result >= 0 else os_error(result)
    return blocks


def _make_blocks(lengths: array[int], blocks: list[Any], where: array[int], piece: int) -> Iterator[int]:
    """Make bytes objects for the results, and note where they are; yields how many there are."""
    for start in range(0, len(lengths), piece):
        fresh = list(map(bytes, lengths[start : start + piece]))
        where[start : start + len(fresh)] = array("Q", map(id, fresh))
        blocks += fresh
        yield len(blocks)


def _read_some(fd: int, columns: Sequence[tuple[int, int]], direct: int) -> list[bytes | OSError]:
    results: list[bytes | OSError] = []
    for offset, length in columns:
        try:
            results.append(_pread(fd, length, offset, direct))
        except OSError as error:
            results.append(error.with_traceback(None))
    return results


async def _in_threads(fd: int, columns: Columns, direct: int) -> list[bytes | OSError]:
    pairs = list(zip(*columns, strict=True))
    results: list[bytes | OSError] = []
    for start in range(0, len(pairs), _IN_ONE_THREAD_CALL):
        some = pairs[start : start + _IN_ONE_THREAD_CALL]
        results += await trio.to_thread.run_sync(_read_some, fd, some, direct)
    return results


# ------------------------------------------------------------------ results in the caller's memory


@trio.lowlevel.enable_ki_protection
async def readinto_many(file: File, requests: Iterable[tuple[int, Any]], *, depth: int = _DEPTH) -> list[int | OSError]:
    """Read many places of a file into the caller's buffers with one await.

    Args:
      requests: pairs of an offset and a writable buffer; no two buffers may overlap, for they would be filled at once. With
        O_DIRECT their addresses have to be aligned (`aligned_buffer`).
      depth: as for `read_many`.

    Returns the number of bytes for each, in their order, or the OSError. Otherwise as `read_many`; what Cancelled leaves in
    the buffers is undefined. The buffers are pinned until the kernel has let go of them.
    """
    fd = descriptor(file)
    depth = _depth(depth)
    requests = list(requests)
    direct = kind(fd)
    manager = ring_manager()
    columns = array("Q"), array("I")
    addresses = array("Q")
    memory: list[Any] = []
    try:
        for start in range(0, len(requests), _CHUNK):
            if start and not start % (_CHUNK * _CHUNKS_CHECKED):
                await trio.lowlevel.checkpoint()
            _pin(fd, requests[start : start + _CHUNK], direct, columns, addresses, memory)
        if not memory:
            await trio.lowlevel.checkpoint()
            return []
        _check_disjoint(addresses, columns[1])
        if manager is None:
            return await _into_in_threads(fd, columns[0], memory)
        where = ffi.from_buffer("uint64_t[]", addresses)
        window = _window(columns[1], depth, direct)
        ended, partial = await _read_batch(manager, fd, columns, where, 0, memory, window)
    except BaseException:
        # Not left to the frames of a traceback; but what is in flight stays pinned.
        if manager is None or not any(_keeps(operation, memory) for operation in manager.others.get(fd, ())):
            for part in memory:
                ffi.release(part)
        raise
    return [r if r >= 0 else os_error(r) for r in ended] if partial else list(columns[1])


def _keeps(operation: Operation, memory: list[Any]) -> bool:
    return isinstance(operation, Batch) and isinstance(operation.keep, tuple) and operation.keep[1] is memory


def _pin(
    fd: int, requests: Sequence[Any], direct: int, columns: Columns, addresses: array[int], memory: list[Any]
) -> None:
    """Append what some requests say to the columns, and their buffers, pinned, to `memory`."""
    first = len(memory)
    offsets, buffers = _transposed(requests, first)
    try:
        memory += map(_pin_writable, buffers)
    except (TypeError, BufferError, ValueError):
        for i, buffer in enumerate(buffers, first):
            ffi.release(pinned(buffer, f"requests[{i}]: the buffer", writable=True))
        raise
    fresh = memory[first:]
    some = _columns(offsets, list(map(len, fresh)), first)
    pointers = ffi.new("char *[]", fresh)
    starts = array("Q", bytes(ffi.buffer(pointers)))
    if direct:
        want = alignment_of(fd)
        if not all_aligned(want, *some, starts):
            for i, (offset, length, start) in enumerate(zip(*some, starts, strict=True), first):
                check_aligned(want, length, offset, start, f"requests[{i}]: ")
    columns[0].extend(some[0])
    columns[1].extend(some[1])
    addresses.extend(starts)


def _check_disjoint(starts: array[int], lengths: array[int]) -> None:
    ordered = sorted(starts)
    longest = max(lengths)
    if min(map(sub, ordered[1:], ordered), default=longest) >= longest:
        return
    taken = sorted((start, length, i) for i, (start, length) in enumerate(zip(starts, lengths, strict=True)) if length)
    for (start, length, i), (following, _, j) in pairwise(taken):
        if following < start + length:
            raise ValueError(f"the buffers of requests[{i}] and requests[{j}] overlap: they would be filled at once")


def _read_some_into(fd: int, some: Sequence[tuple[int, memoryview]]) -> list[int | OSError]:
    results: list[int | OSError] = []
    for offset, view in some:
        try:
            results.append(_preadv(fd, view, offset))
        except OSError as error:
            results.append(error.with_traceback(None))
    return results


async def _into_in_threads(fd: int, offsets: array[int], memory: Sequence[Any]) -> list[int | OSError]:
    pairs = [(offset, memoryview(ffi.buffer(part))) for offset, part in zip(offsets, memory, strict=True)]
    results: list[int | OSError] = []
    for start in range(0, len(pairs), _IN_ONE_THREAD_CALL):
        results += await trio.to_thread.run_sync(_read_some_into, fd, pairs[start : start + _IN_ONE_THREAD_CALL])
    return results
