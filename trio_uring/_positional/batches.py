"""Layer 3, batches: many reads of one file, one await.

Knows how requests become the arrays that the shim's batch takes (ffi/batch.c), and how its results become Python's; knows
nothing of how a batch gets on, nor when it is over.

A batch costs one completion and one switch of tasks for up to `_CHUNK` reads; in between the shim keeps a window of entries
in flight, and no read of it ever reaches Python by itself. What is left here is work by column, not by item: a column of
offsets, one of lengths, one of addresses. While it is done the device idles, so the columns are made by the shim as well.

Where results are bytes, the kernel writes them into the bytes objects themselves, which nobody else has seen yet: no
second copy. Under O_DIRECT it does not serve, because the storage is not aligned: there the kernel
reads into a few aligned pieces, and the shim makes the bytes objects from these while the device is at the next reads.

Registered files and buffers are not used. Measured (kernel 6.18, 4 KiB, benchmarks/floor.c, CPU for each read): from the
page cache they change nothing that stands out from noise (0.318 µs without, 0.316 with both); with O_DIRECT they saved a fifth
of the CPU once (2.7 and 2.2) and none another time (docs/benchmarks.md), and no time (9.4 and 9.1 with 32 in flight).
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import trio

from .._loop.calls import address_of, new_uninitialized, ring_manager
from .._loop.manager import UringIOManager
from .._loop.operation import Operation, os_error
from .._ring.requests import (
    BYTES_STORAGE,
    PAGE,
    TU_DIRECT,
    Columns,
    File,
    check_all_aligned,
    check_disjoint,
    columns_of,
    descriptor,
    kind,
    pin_all,
    whole_number,
)
from .._ring.ring import ffi, lib
from .positional import _pread, _preadv

# Reads in one batch of the shim: preparing them takes some 0.3 ms, in which no other task runs.
_CHUNK: Final = 1024
_CHUNK_DIRECT: Final = 8192  # no memory is prepared; between two batches the device has nothing to do
_CHUNK_BYTES: Final = 64 << 20  # and their memory, as long as one read alone does not take more
_CHUNKS_CHECKED: Final = 8  # between two schedule points
# Bytes in flight. From the page cache they are copied in the one call that submits them, about 0.1 ms for each MiB.
_IN_FLIGHT: Final = 2 << 20
_IN_FLIGHT_DIRECT: Final = 32 << 20  # takes twice as much memory
_IN_ONE_THREAD_CALL: Final = 64  # reads; between two such calls a cancel counts
_DEPTH: Final = 64

_WORD: Final = 4  # bytes of one result

tu_batch_read = lib.tu_batch_read


# ------------------------------------------------------------------ requests


def _cut(columns: Columns) -> Iterator[Columns]:
    """Pieces whose memory is bounded."""
    offsets, lengths, longest, bits = columns
    if longest * len(lengths) <= _CHUNK_BYTES:
        yield columns
        return
    start = size = 0
    for i, length in enumerate(lengths):
        if size + length > _CHUNK_BYTES and i > start:
            yield Columns(offsets[start:i], lengths[start:i], max(lengths[start:i]), bits)
            start, size = i, 0
        size += length
    yield Columns(offsets[start:], lengths[start:], max(lengths[start:]), bits)


def _window(columns: Columns, depth: int, direct: int) -> int:
    most = (_IN_FLIGHT_DIRECT if direct else _IN_FLIGHT) // (columns.longest or 1)
    return max(1, min(depth, most, len(columns.lengths)))


# ------------------------------------------------------------------ one batch of the shim


class Batch(Operation):
    """A batch of the shim. The second item of `keep` holds the memory of the results."""

    kinds = ("batch of reads", "batch of reads")

    __slots__ = ()


async def _read_batch(
    manager: UringIOManager,
    fd: int,
    columns: Columns,
    addresses: Any,
    skip: int,
    keep: object,
    window: int,
    bounce_size: int = 0,
) -> tuple[array[int], int]:
    """Bytes read, or negated errno, for each; and how many of these are less than was asked for.

    Args:
      addresses: a cffi array of 64-bit addresses, of places `skip` bytes before those that are meant.
      keep: what holds the memory there; with `bounce_size` a list, for the bytes that are read.
      bounce_size: 0, or bytes of the aligned memory that each read goes to instead.

    A schedule point and a cancel point, by the rules of `Operation`: with Cancelled, no read of the batch is in flight.
    """
    offsets, lengths, _, _ = columns
    count = len(lengths)
    results = array("i", bytes(_WORD * count))
    # Not a memoryview: operations are in cycles, and where one is garbage with something that pins a memoryview, the
    # collector may clear the view first, on which CPython crashes (seen on 3.11).
    room = new_uninitialized("char[]", 2 * window * bounce_size + PAGE) if bounce_size else None
    memory = (
        ffi.from_buffer("uint64_t[]", offsets),
        ffi.from_buffer("uint32_t[]", lengths),
        ffi.cast("uint64_t *", addresses),
        ffi.from_buffer("int32_t[]", results),
        ffi.NULL if room is None else room + -address_of(room) % PAGE,
        room,
    )
    operation = Batch(manager, fd, (memory, keep, addresses), None)

    def queue() -> None:
        rc = tu_batch_read(
            manager.ring._r, fd, memory[0], memory[1], memory[2], skip, memory[3], count, window, memory[4], bounce_size,
            id(keep), operation.user_data,
        )  # fmt: skip
        if rc:
            manager.ring._fail(rc)

    while True:
        await trio.lowlevel.checkpoint_if_cancelled()
        operation.user_data = manager.next_user_data()
        await operation.queue_and_wait(queue)
        if operation.result >= 0:
            return results, operation.flags
        await operation.failed()  # or interrupted, and nobody asked for it: from the beginning


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
    direct = kind(fd) & TU_DIRECT
    checked: list[Columns] = []
    chunk = _CHUNK_DIRECT if direct else _CHUNK
    for start in range(0, len(requests), chunk):
        if start and not start % (_CHUNK * _CHUNKS_CHECKED):
            await trio.lowlevel.checkpoint()
        columns = columns_of(requests[start : start + chunk], start)
        if direct:
            check_all_aligned(fd, columns, start)
        checked.append(columns)
    del requests
    manager = ring_manager()
    results: list[bytes | OSError] = []
    for whole in checked:
        for columns in _cut(whole):
            if manager is None:
                found = await _in_threads(fd, list(zip(columns.offsets, columns.lengths, strict=True)), direct)
            else:
                found = await _read_bytes(manager, fd, columns, depth, direct)
            if results:
                results += found
            else:
                results = found  # without a look at each, of which the processor's cache knows nothing any more
    if not checked:
        await trio.lowlevel.checkpoint()
    return results


def _depth(depth: object) -> int:
    depth = whole_number(depth, "depth", 32768)
    if not depth:
        raise ValueError("depth must be at least 1")
    return depth


async def _read_bytes(
    manager: UringIOManager, fd: int, columns: Columns, depth: int, direct: int
) -> list[bytes | OSError]:
    lengths = columns.lengths
    window = _window(columns, depth, direct)
    blocks: list[Any]
    if direct:
        blocks = [None] * len(lengths)
        size = -(-columns.longest // PAGE) * PAGE or PAGE
        ended, short = await _read_batch(manager, fd, columns, ffi.NULL, 0, blocks, window, size)
    else:
        blocks = list(map(bytes, lengths))
        where = ffi.from_buffer("uint64_t[]", array("Q", map(id, blocks)))
        ended, short = await _read_batch(manager, fd, columns, where, BYTES_STORAGE, blocks, window)
    if short:
        for i, (result, length) in enumerate(zip(ended, lengths, strict=True)):
            if result != length:
                blocks[i] = blocks[i][:result] if result >= 0 else os_error(result)
        without_worker = _without_worker(ended)
        again = [(columns.offsets[i], lengths[i]) for i in without_worker]
        for i, block in zip(without_worker, await _in_threads(fd, again, direct), strict=True):
            blocks[i] = block
    return blocks


def _without_worker(ended: array[int]) -> list[int]:
    """Which reads a thread has to do, for want of a worker (F40)."""
    return [i for i, result in enumerate(ended) if result == -errno.ECANCELED]


def _read_some(fd: int, columns: Sequence[tuple[int, int]], direct: int) -> list[bytes | OSError]:
    results: list[bytes | OSError] = []
    for offset, length in columns:
        try:
            results.append(_pread(fd, length, offset, direct))
        except OSError as error:
            results.append(error.with_traceback(None))
    return results


async def _in_threads(fd: int, pairs: Sequence[tuple[int, int]], direct: int) -> list[bytes | OSError]:
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
    direct = kind(fd) & TU_DIRECT
    manager = ring_manager()
    offsets, lengths, addresses = array("Q"), array("I"), array("Q")
    memory: list[Any] = []
    try:
        for start in range(0, len(requests), _CHUNK):
            if start and not start % (_CHUNK * _CHUNKS_CHECKED):
                await trio.lowlevel.checkpoint()
            some, starts = pin_all(fd, requests[start : start + _CHUNK], direct, memory)
            offsets += some.offsets
            lengths += some.lengths
            addresses += starts
        if not memory:
            await trio.lowlevel.checkpoint()
            return []
        check_disjoint(addresses, lengths)
        if manager is None:
            return await _into_in_threads(fd, offsets, memory)
        where = ffi.from_buffer("uint64_t[]", addresses)
        columns = Columns(offsets, lengths, max(lengths), 0)
        window = _window(columns, depth, direct)
        ended, short = await _read_batch(manager, fd, columns, where, 0, memory, window)
        results: list[int | OSError] = [r if r >= 0 else os_error(r) for r in ended] if short else list(lengths)
        if short and (again := _without_worker(ended)):
            found = await _into_in_threads(fd, array("Q", [offsets[i] for i in again]), [memory[i] for i in again])
            for i, result in zip(again, found, strict=True):
                results[i] = result
    except BaseException:
        # Not left to the frames of a traceback; but what is in flight stays pinned.
        if manager is None or not any(_keeps(operation, memory) for operation in manager.concurrent.get(fd, ())):
            for part in memory:
                ffi.release(part)
        raise
    return results


def _keeps(operation: Operation, memory: list[Any]) -> bool:
    return isinstance(operation, Batch) and isinstance(operation.keep, tuple) and operation.keep[1] is memory


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
