"""What the tests of servers serve: files whose content is known, and certificates."""

from __future__ import annotations

from pathlib import Path

import attrs

SIZES = {"empty": 0, "small": 1024, "middle": 65_537, "large": 1_048_576}


def content(name: str) -> bytes:
    """What the file of that name holds: every eight bytes differ."""
    return b"".join(number.to_bytes(8, "little") for number in range(SIZES[name] // 8 + 1))[: SIZES[name]]


@attrs.frozen
class Certificates:
    """Files: the certificate of who signs, and the server's chain and key."""

    ca: Path
    chain: Path
    key: Path
