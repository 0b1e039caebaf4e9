"""What the tests of the ring share. Knows the ring; knows nothing of Trio."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from conftest import GROUP
from conftest import handed_over as handed_over

from trio_uring._ring.ring import FIRST_USER_DATA, Ring, ffi
from trio_uring.testing import SimulatedRing

# How long a test waits for what must happen. Only a failing test ever waits that long.
PATIENCE = float(os.environ.get("TRIO_URING_TEST_SECONDS", "600")) / 3

KINDS = ("kernel", "simulated", "simulated-random")
SMALLEST = (2, 4)
SIZES = (SMALLEST, (512, None))


class Completion(NamedTuple):
    """One completion as a test reads it."""

    user_data: int
    res: int
    flags: int


def make_ring(kind: str, sq_entries: int, cq_entries: int | None) -> Ring:
    """A ring of one of the KINDS."""
    if kind == "kernel":
        return Ring(sq_entries, cq_entries) if GROUP is None else GROUP._make_ring(sq_entries, cq_entries)
    return SimulatedRing(sq_entries, cq_entries, seed=1 if kind == "simulated-random" else None, poison=True)


def in_order(ring: Ring) -> bool:
    """Whether the ring completes in order what can complete at once: the kernel does so, a seed does not."""
    return not isinstance(ring, SimulatedRing) or ring._random is None


def decode(flat: Iterable[int]) -> Iterator[Completion]:
    """The completions in what `Ring.wait` answers."""
    each = iter(flat)
    return (Completion(*fields) for fields in zip(each, each, each, strict=True))


def reap(ring: Ring, count: int) -> list[Completion]:
    """Wait for that many completions, in the order in which they come."""
    reaped: list[Completion] = []
    while len(reaped) < count:
        some = ring.wait(PATIENCE)
        assert some is not None, f"{count - len(reaped)} of {count} completions never came"
        reaped += decode(some)
    assert len(reaped) == count
    return reaped


def reap_by_user_data(ring: Ring, count: int) -> dict[int, Completion]:
    """Wait for that many completions, each of another entry."""
    reaped = {completion.user_data: completion for completion in reap(ring, count)}
    assert len(reaped) == count, "an entry completed twice"
    return reaped


def settle(ring: Ring) -> list[Completion]:
    """Submit, and reap until nothing more comes by itself: no seed holds anything back for ten rounds."""
    reaped: list[Completion] = []
    idle = 0
    while idle < 10:
        some = ring.wait(0)
        idle = 0 if some else idle + 1
        reaped += decode(some or ())
    return reaped


def memory(size: int) -> Any:
    """A zeroed cffi buffer."""
    return ffi.new("char[]", size)


def content(buffer: Any, size: int) -> bytes:
    """The first bytes of a cffi buffer."""
    return bytes(ffi.buffer(buffer, size))


def user_datas(count: int) -> range:
    """Numbers that entries may have."""
    return range(FIRST_USER_DATA, FIRST_USER_DATA + count)


def open_descriptors(collect: bool = True) -> set[int]:
    """The descriptors of this process, those of garbage left out: to `collect` that takes long in a large test run."""
    if collect:
        gc.collect()
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in listed if _is_open(fd)}  # without the one that listed them


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class InThread:
    """Runs a function in a thread; `result` joins it and raises what it raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """What the function returned."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the thread is still running"
        if self._error is not None:
            raise self._error
        return self._result


def in_forked_child(function: Callable[[], object]) -> str:
    """Runs a function in a forked child. Answers "" if it returned, and else what it raised."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        said = ""
        try:
            function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, said.encode()[:4000])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    return said if status == 0 else f"the child ended with status {status}; {said}"
