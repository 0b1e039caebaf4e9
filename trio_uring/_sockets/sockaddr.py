"""Layer 3, socket addresses: between Python's tuples and the kernel's struct sockaddr (ip(7), ipv6(7), unix(7)).

Pure functions of bytes. Serves AF_INET, AF_INET6 and AF_UNIX; for anything else, and for whatever is not plainly right,
`encode` answers None and the caller goes the way that CPython's own code decides.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

SIZE: Final = 128  # sizeof(struct sockaddr_storage)

_INET: Final = struct.Struct("=H2s4s8x")
_INET6: Final = struct.Struct("=H2s4s16sI")
_FAMILY: Final = struct.Struct("=H")
_UNIX_PATH: Final = 108

Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes


def encode(family: int, address: object) -> bytes | None:
    """The struct sockaddr of an address whose host, if any, is numeric; None where it is not plainly one."""
    if family == socket.AF_UNIX:
        if isinstance(address, str):
            path = os.fsencode(address)
        elif isinstance(address, (bytes, bytearray, memoryview)):
            path = bytes(address)
        else:
            return None
        if path[:1] == b"\0":
            return _FAMILY.pack(family) + path if len(path) <= _UNIX_PATH else None
        return _FAMILY.pack(family) + path + b"\0" if 0 < len(path) < _UNIX_PATH and b"\0" not in path else None
    if not isinstance(address, tuple) or len(address) < 2:
        return None
    host, port, *rest = address
    if not isinstance(host, str) or type(port) is not int or not 0 <= port <= 65535:
        return None
    network_port = port.to_bytes(2, "big")
    try:
        if family == socket.AF_INET and not rest:
            return _INET.pack(family, network_port, socket.inet_pton(family, host))
        if family == socket.AF_INET6 and len(rest) <= 2:
            flow, scope = (*rest, 0, 0)[:2]
            if type(flow) is int and type(scope) is int and 0 <= flow <= 0xFFFFF and 0 <= scope <= 0xFFFFFFFF:
                packed = socket.inet_pton(family, host)
                return _INET6.pack(family, network_port, flow.to_bytes(4, "big"), packed, scope)
    except OSError:
        pass
    return None


def decode(raw: bytes) -> Address | None:
    """The address in a struct sockaddr as long as the kernel said it is; None for an empty one, as CPython has it.

    Raises ValueError for a family other than those `encode` knows.
    """
    if not raw:
        return None
    (family,) = _FAMILY.unpack_from(raw)
    if family == socket.AF_INET:
        _, port, packed = _INET.unpack_from(raw)
        return socket.inet_ntop(family, packed), int.from_bytes(port, "big")
    if family == socket.AF_INET6:
        _, port, flow, packed, scope = _INET6.unpack_from(raw)
        host = socket.inet_ntop(family, packed)
        return host, int.from_bytes(port, "big"), int.from_bytes(flow, "big"), scope
    if family == socket.AF_UNIX:
        path = raw[2:]
        if path[:1] == b"\0":
            return path
        return os.fsdecode(path.partition(b"\0")[0])
    raise ValueError(f"address family {family}")
