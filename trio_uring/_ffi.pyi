from collections.abc import Callable
from typing import Any

ffi: Any
lib: Any

def tu_recv(ring: int, fd: int, length: int, user_data: int, /) -> int: ...
def tu_send(ring: int, fd: int, data: bytes | int, length: int, msg_flags: int, user_data: int, /) -> int: ...
def tu_read_cached(ring: int, fd: int, length: int, offset: int, /) -> bytes | None: ...
def tu_stat_cached(path: bytes, follow: bool, fstat: Callable[[int], Any] | None, /) -> Any: ...
def tu_ready(fd: int, events: int, /) -> bool: ...
def tu_owner_back(ring: int, /) -> None: ...
def tu_wait_events(ring: int, timeout: float | None, out: int, most: int, /) -> list[int] | int | None: ...
def tu_pairs(pairs: list[Any], offsets: int, lengths: int, most: int, /) -> tuple[int, int] | None: ...
def tu_pool_buffers(
    ring: int,
    turn: int,
    opcode: int,
    fd: int,
    requests: list[Any],
    most: int,
    window: int,
    address: int,
    direct: int,
    /,
) -> list[int | OSError] | int | None: ...
def tu_pool_read(
    ring: int, turn: int, fd: int, requests: list[Any], most: int, window: int, direct: int, /
) -> list[bytes | OSError] | int | None: ...
def tu_pool_give(ring: int, turn: int, /) -> int: ...
def tu_pool_add(
    ring: int,
    turn: int,
    fd: int,
    offsets: int,
    lengths: int,
    addresses: int,
    objects: list[Any],
    ids: list[int],
    memory: dict[int, Any],
    /,
) -> int: ...
def tu_pool_take(
    ring: int, turn: int, minimum: int, timeout_ns: int, memory: dict[int, Any], results: list[Any], /
) -> int: ...
