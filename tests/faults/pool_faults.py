"""A pool of rings on a shim that fails (inject.h): each fault, at each of the first moments, under lists and under a reader.

Started by test_pool_faults.py. Whatever the kernel refuses for a while, does by half, says late or says twice, the results
are those of the file, or an OSError is raised; and nothing is left in flight.
"""

from __future__ import annotations

import errno
import random
import tempfile
from typing import Any

from trio_uring._ring import pool as pool_module
from trio_uring._ring.pool import RingPool
from trio_uring._ring.ring import lib

CONTENT = random.Random(5).randbytes(40_000)
REQUESTS = [(i * 777, 700) for i in range(50)] + [(39_990, 100), (50_000, 5)]
EXPECTED = [CONTENT[offset : offset + length] for offset, length in REQUESTS]


def lists(pool: RingPool, fd: int) -> None:
    with pool.acquire() as ring:
        assert ring.read_many(fd, REQUESTS) == EXPECTED
        buffers = [bytearray(length) for _, length in REQUESTS]
        told = ring.readinto_many(fd, [(offset, buffer) for (offset, _), buffer in zip(REQUESTS, buffers, strict=True)])
        assert told == list(map(len, EXPECTED))
        assert [bytes(b[: len(e)]) for b, e in zip(buffers, EXPECTED, strict=True)] == EXPECTED


def reader(pool: RingPool, fd: int) -> None:
    with pool.reader(fd) as one:
        ids = one.submit(REQUESTS)
        found = dict(one.wait(len(ids)))
        assert [found[number] for number in ids] == EXPECTED
        assert not len(one)


def nothing_at_hand() -> None:
    """As if every descriptor had O_DIRECT, with blocks of one byte: no list is answered by the page cache, without the ring."""
    pool: Any = pool_module
    read, fill = pool.tu_pool_read, pool.tu_pool_buffers
    pool.tu_pool_read = lambda *said: read(*said[:6], 1)
    pool.tu_pool_buffers = lambda *said: fill(*said[:6], 1, 1, said[8])


def main() -> None:
    nothing_at_hand()
    # kind, value, in a row, whether an error may come out of it
    faults = [
        *((lib.TF_ENTER, code, row, False) for code in (errno.EAGAIN, errno.EBUSY, errno.EINTR) for row in (1, 5)),
        *((lib.TF_ENTER, code, 1, True) for code in (errno.ENOMEM, errno.EPERM)),
        (lib.TF_SHORT, 0, 3, False),
        (lib.TF_SHORT, 1, 20, False),
        (lib.TF_PART, 0, 40, False),
        (lib.TF_DOUBLE, 0, 40, False),
        (lib.TF_LATE, 2, 10, False),
        (lib.TF_ALLOC, errno.ENOMEM, 1, True),
        (lib.TF_FILE, errno.EIO, 1, True),
    ]
    tried = raised = 0
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.flush()
        fd = file.fileno()
        for entries in (4, 64):
            with RingPool(1, entries) as pool:
                for kind, value, row, may_fail in faults:
                    for moment in range(1, 6):
                        for work in (lists, reader):
                            lib.tf_arm(kind, moment, row, value)
                            try:
                                work(pool, fd)
                            except (OSError, MemoryError):
                                assert may_fail, (kind, value, row, moment, work.__name__)
                                raised += 1
                            finally:
                                lib.tf_disarm()
                            (record,) = pool._records
                            assert not lib.tu_pool_left(record.c)
                            assert pool._free == [record]
                            tried += 1
    assert not pool_module._leaked
    print(tried, raised)


if __name__ == "__main__":
    main()
