from typing import Any

ffi: Any
lib: Any

def tu_recv(ring: int, fd: int, length: int, user_data: int, /) -> int: ...
def tu_send(ring: int, fd: int, data: bytes | int, length: int, msg_flags: int, user_data: int, /) -> int: ...
