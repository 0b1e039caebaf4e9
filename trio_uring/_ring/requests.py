"""Layer 1, requests: what a transfer at a position of a file is asked for, checked before anything is queued.

Knows descriptors, offsets, lengths and memory, and what O_DIRECT wants of them; knows nothing of rings, and no Trio. The errors
name the argument, or the request of a list, that cannot be meant.

Direct I/O: for an offset, a length or an address that is off, a ValueError says by how much (F37). What the file wants is
asked of statx(2), STATX_DIOALIGN, kernel 6.1; a file system that does not tell is left to answer by itself.
"""

from __future__ import annotations

import mmap
import operator
from array import array
from collections.abc import Sequence
from functools import partial, reduce
from itertools import chain, pairwise
from operator import or_, sub
from struct import unpack_from
from typing import Any, Final, NamedTuple, TypeAlias

from .ring import IOSQE_ASYNC, MAX_RW_COUNT, HasFileno, address_of, ffi, lib, os_error, tu_pairs

File: TypeAlias = "int | HasFileno"

# Where a file object of Trio's or AnyIO's keeps what serves it (`_files.engine.Engine`).
ENGINE: Final = "_trio_uring_engine"

LAST: Final = (1 << 63) - 1  # the largest position of a file, loff_t
PAGE: Final = mmap.PAGESIZE
INT_MAX: Final = 0x7FFFFFFF
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_SIZE: Final = 256
_STATX_DIOALIGN: Final = 0x2000
_DIO_ALIGN: Final = 152  # where struct statx has stx_dio_mem_align and stx_dio_offset_align
TU_DIRECT: Final = 1
TU_ELSEWHERE: Final = 2
tu_file = lib.tu_file

_pin_writable = partial(ffi.from_buffer, ffi.typeof("char[]"), require_writable=True)
_pin_readable = partial(ffi.from_buffer, ffi.typeof("char[]"))

# Where a bytes object has its storage, counted from its id() on CPython; it ends with a NUL that its size counts. Looked up, not
# assumed: results are read into bytes objects that nobody else has seen yet.
BYTES_STORAGE: Final = bytes.__basicsize__ - 1
_probe: Final = b"trio_uring"
assert address_of(ffi.from_buffer(_probe)) == id(_probe) + BYTES_STORAGE


# ------------------------------------------------------------------ arguments


def descriptor(file: object, what: str = "file") -> int:
    """The descriptor of a file argument; TypeError or ValueError where it has none."""
    fd: Any
    if isinstance(file, int) and not isinstance(file, bool):
        fd = file
    else:
        # Of a file that the ring serves the builtin object is asked: nobody else gets to know its descriptor (F42).
        engine = getattr(file, "__dict__", {}).get(ENGINE)
        fileno = getattr(file if engine is None else engine.real, "fileno", None)
        if fileno is None:
            raise TypeError(f"{what} must be a file descriptor or have fileno(), not {type(file).__name__}")
        fd = fileno()
        if not isinstance(fd, int):
            raise TypeError(f"fileno() of {what} must answer an int, not {type(fd).__name__}")
    if not 0 <= fd <= INT_MAX:
        raise ValueError(f"{what} has no valid file descriptor ({fd})")
    return int(fd)


def whole_number(value: object, what: str, most: int = LAST) -> int:
    """An argument that counts bytes, from 0 to `most`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be an int, not {type(value).__name__}") from None
    if number < 0:
        raise ValueError(f"{what} must not be negative ({number})")
    if number > most:
        raise ValueError(f"{what} is too large ({number}); the most is {most}")
    return number


def span(length: object, offset: object) -> tuple[int, int]:
    """A length and an offset whose sum is a position of a file."""
    length = whole_number(length, "length")
    offset = whole_number(offset, "offset")
    if length > LAST - offset:
        raise ValueError(f"offset + length is too large ({offset} + {length}); the last position of a file is {LAST}")
    return length, offset


def pinned(buffer: object, what: str, writable: bool) -> Any:
    """The memory of a buffer, pinned until it is released; TypeError where it is no contiguous (writable) buffer."""
    try:
        return ffi.from_buffer("char[]", buffer, require_writable=writable)
    except (TypeError, BufferError, ValueError):
        kind = "a writable, contiguous" if writable else "a contiguous"
        raise TypeError(f"{what} must be {kind} bytes-like object, not {_described(buffer)}") from None


def _described(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, memoryview) and not value.contiguous:
        return f"a {name} with gaps"
    return f"a read-only {name}" if isinstance(value, (bytes, memoryview)) else name


# ------------------------------------------------------------------ direct I/O


def aligned_buffer(size: int, alignment: int = PAGE) -> memoryview:
    """Writable memory at an address that O_DIRECT accepts.

    Args:
      size: bytes, at least 1.
      alignment: of the address, a power of two; the page size fits every file system and device.

    The memory is cleared, and freed when nobody refers to it (or to a slice of it) any more.
    """
    size = whole_number(size, "size", LAST - (1 << 30))
    alignment = whole_number(alignment, "alignment", 1 << 30)
    if not size:
        raise ValueError("size must be at least 1")
    if not alignment or alignment & (alignment - 1):
        raise ValueError(f"alignment must be a power of two, not {alignment}")
    # A mapping begins at a page; what is stricter than that needs room to begin later.
    memory = memoryview(mmap.mmap(-1, size + (alignment if alignment > PAGE else 0)))
    start = -address_of(ffi.from_buffer(memory)) % alignment
    return memory[start : start + size]


def kind(fd: int) -> int:
    """0, or of a descriptor with O_DIRECT TU_DIRECT, and of a file for which somebody may have to be asked TU_ELSEWHERE.

    OSError where it is closed (EBADF) or has no positions (ESPIPE).
    """
    found: int = tu_file(fd)
    if found < 0:
        raise os_error(found)
    return found


def sqe_flags_of(found: int) -> int:
    """The flags of a transfer's entry, from what `kind` has answered: the submission waits for nobody who may be asked (F53)."""
    return IOSQE_ASYNC if found & TU_ELSEWHERE else 0


def alignment_of(fd: int) -> tuple[int, int]:
    """What a descriptor with O_DIRECT wants of addresses, and of offsets and lengths, in bytes; 1 where nobody knows."""
    out = ffi.new("char[]", _STATX_SIZE)
    if lib.tu_statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_DIOALIGN, out) < 0:
        return 1, 1
    memory, offset = unpack_from("=II", ffi.buffer(out), _DIO_ALIGN)
    return memory or 1, offset or 1


def check_aligned(want: Sequence[int], length: int, offset: int, address: int = 0, where: str = "") -> None:
    """ValueError for what O_DIRECT would answer with EINVAL (F37)."""
    for name, value, unit in (("offset", offset, want[1]), ("length", length, want[1]), ("address", address, want[0])):
        if value % unit:
            advice = "; trio_uring.aligned_buffer makes memory that is aligned" if name == "address" else ""
            shown = f"{value:#x}" if name == "address" else value
            raise ValueError(
                f"{where}{name} {shown} is not aligned as O_DIRECT wants it on this file: "
                f"{value % unit} bytes past a multiple of {unit}{advice}"
            )


# ------------------------------------------------------------------ lists of requests


class Columns(NamedTuple):
    """Offsets and lengths of requests, the longest length, and all numbers ORed, which tells whether all are aligned."""

    offsets: array[int]
    lengths: array[int]
    longest: int
    bits: int


def columns_of(requests: list[Any], first: int) -> Columns:
    """Offsets and lengths of some requests. The errors name the request that is wrong, counted from `first`."""
    offsets, lengths = array("Q", bytes(8 * len(requests))), array("I", bytes(4 * len(requests)))
    found = tu_pairs(requests, offsets.buffer_info()[0], lengths.buffer_info()[0], MAX_RW_COUNT)
    if found is None:
        return _checked_columns(*transposed(requests, first), first)
    return Columns(offsets, lengths, *found)


def _checked_columns(offsets: Sequence[Any], lengths: Sequence[Any], first: int) -> Columns:
    """The same of what is in columns already, with every kind of integer, and with the errors."""
    for i, (offset, length) in enumerate(zip(offsets, lengths, strict=True), first):
        try:
            whole_number(length, "length", MAX_RW_COUNT)
            span(length, offset)
        except (TypeError, ValueError) as error:
            raise type(error)(f"requests[{i}]: {error}") from None
    columns = array("Q", offsets), array("I", lengths)
    return Columns(*columns, max(columns[1]), reduce(or_, chain(*columns)))


def transposed(requests: Sequence[Any], first: int) -> tuple[Sequence[Any], Sequence[Any]]:
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


def check_all_aligned(fd: int, columns: Columns, first: int, addresses: Sequence[int] = ()) -> None:
    """ValueError for the first request that O_DIRECT would refuse; `addresses` of the caller's buffers, if there are any."""
    want = alignment_of(fd)
    if columns.bits % want[1] or reduce(or_, addresses, 0) % want[0]:
        starts = addresses or [0] * len(columns.offsets)
        for i, (offset, length, start) in enumerate(zip(columns.offsets, columns.lengths, starts, strict=True), first):
            check_aligned(want, length, offset, start, f"requests[{i}]: ")


def pin_all(
    fd: int, requests: Sequence[Any], direct: int, memory: list[Any], writable: bool = True
) -> tuple[Columns, array[int]]:
    """What some requests say, and the addresses of their buffers, which go to `memory`, pinned."""
    first = len(memory)
    offsets, buffers = transposed(requests, first)
    try:
        memory += map(_pin_writable if writable else _pin_readable, buffers)
    except (TypeError, BufferError, ValueError):
        for i, buffer in enumerate(buffers, first):
            ffi.release(pinned(buffer, f"requests[{i}]: the buffer", writable=writable))
        raise
    fresh = memory[first:]
    columns = columns_of(list(zip(offsets, map(len, fresh), strict=True)), first)
    pointers = ffi.new("char *[]", fresh)
    starts = array("Q", bytes(ffi.buffer(pointers)))
    if direct:
        check_all_aligned(fd, columns, first, starts)
    return columns, starts


def check_disjoint(starts: array[int], lengths: array[int], numbers: Sequence[int] | None = None) -> None:
    """ValueError where two buffers overlap; `numbers` of their requests, where these are not all."""
    ordered = sorted(starts)
    longest = max(lengths)
    if min(map(sub, ordered[1:], ordered), default=longest) >= longest:
        return
    names = range(len(starts)) if numbers is None else numbers
    taken = sorted((s, length, i) for s, length, i in zip(starts, lengths, names, strict=True) if length)
    for (start, length, i), (following, _, j) in pairwise(taken):
        if following < start + length:
            raise ValueError(f"the buffers of requests[{i}] and requests[{j}] overlap: they would be filled at once")
