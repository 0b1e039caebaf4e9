"""What a process pays for its first run on the ring, in counts and not in time, and what is loaded only when it is used.

`benchmarks/workloads/first_run.py` measures the time.
"""

from __future__ import annotations

import pytest
from interpreter import answer

MODULES = """
import json, sys
import trio
async def main(): pass
trio.run(main)
print(json.dumps(sorted(sys.modules)))
"""

OF_A_FIRST_RUN = {
    "trio_uring",
    "trio_uring._entry",
    "trio_uring._entry.after_trio",
    "trio_uring._entry.seams",
    "trio_uring._ffi",
    "trio_uring._ffi.lib",
    "trio_uring._loop",
    "trio_uring._loop.manager",
    "trio_uring._loop.operation",
    "trio_uring._loop.options",
    "trio_uring._ring",
    "trio_uring._ring.availability",
    "trio_uring._ring.ring",
    "trio_uring_startup",
}


def test_a_first_run_loads_what_it_needs_and_no_more() -> None:
    on_epoll = set(answer("-c", MODULES))
    on_the_ring = set(answer("-c", MODULES, TRIO_IO_BACKEND="uring"))
    assert on_the_ring - on_epoll <= OF_A_FIRST_RUN | {"_cffi_backend", "resource"}


CALLS = """
import json, sys
import trio
async def main(): pass
calls = 0
def count(_frame, event, _arg):
    global calls
    calls += event in ("call", "c_call")
counts = []
def counted(function, *args, **kwargs):
    global calls
    calls = 0
    sys.setprofile(count)
    function(*args, **kwargs)
    sys.setprofile(None)
    counts.append(calls)
counted(exec, "import trio_uring")
counted(trio.run, main, io_backend="uring")
counted(trio.run, main, io_backend="uring")
print(json.dumps(counts))
"""


def test_a_first_run_makes_few_calls() -> None:
    """Calls of functions, more than a second run makes: 7,800 on CPython 3.11. They were 22,000 with classes of attrs, signatures
    looked at and everything loaded, and 8,800 with a named tuple."""
    importing, first, second = answer("-c", CALLS)
    assert importing + first - second < 9_500


USES = """
import json, os, sys
import trio

def loaded():
    return sorted(name[11:] for name in sys.modules if name.startswith(("trio_uring._files.", "trio_uring._sockets.")))

async def sockets():
    left, right = trio.socket.socketpair()
    await left.send(b"ping")
    assert await right.recv(4) == b"ping"
    left.close()
    right.close()

async def paths():
    assert await trio.Path("/").exists()

async def files():
    async with trio.wrap_file(open("/dev/null")) as file:
        assert await file.read() == ""

async def pipes():
    reader, writer = os.pipe()
    async with trio.lowlevel.FdStream(reader) as reading, trio.lowlevel.FdStream(writer) as writing:
        await writing.send_all(b"ping")
        assert await reading.receive_some() == b"ping"

async def main():
    assert trio.lowlevel.current_statistics().io_statistics.backend == "uring"
    before = loaded()
    await globals()[sys.argv[1]]()
    print(json.dumps([before, loaded()]))

if __name__ == "__main__":
    trio.run(main)
"""


@pytest.mark.parametrize(
    ("use", "room"),
    [("sockets", "_sockets.sockets"), ("paths", "_files.paths"), ("files", "_files.engine"), ("pipes", "_files.pipes")],
)
def test_what_serves_is_loaded_by_the_first_call_that_it_serves(use: str, room: str) -> None:
    before, after = answer("-c", USES, use, TRIO_IO_BACKEND="uring")
    assert before == []
    assert room in after


NOT_LOADED = (
    USES.partition("async def main")[0]
    + """
class OutOfSight:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("trio_uring."):
            raise ERRORS[sys.argv[2]]

ERRORS = {
    "chroot": ModuleNotFoundError("No module named that"),
    "descriptors": OSError(24, "Too many open files"),
}

async def main():
    hidden = OutOfSight()
    sys.meta_path.insert(0, hidden)
    await globals()[sys.argv[1]]()
    statistics = trio.lowlevel.current_statistics().io_statistics
    assert (statistics.backend, statistics.tasks_waiting_read > 0) == ("uring", True)
    before = loaded()
    sys.meta_path.remove(hidden)
    await globals()[sys.argv[1]]()
    print(json.dumps([before, loaded()]))

trio.run(main)
"""
)


@pytest.mark.parametrize("why", ["chroot", "descriptors"])
@pytest.mark.parametrize(
    ("use", "room"),
    [("sockets", "_sockets.sockets"), ("paths", "_files.paths"), ("files", "_files.engine"), ("pipes", "_files.pipes")],
)
def test_where_it_cannot_be_loaded_trios_own_way_serves_until_it_can(use: str, room: str, why: str) -> None:
    """A process that has called chroot(2), or has no descriptor left to open a module with, is no worse off than on epoll."""
    before, after = answer("-c", NOT_LOADED, use, why, TRIO_IO_BACKEND="uring")
    assert before == []
    assert room in after
