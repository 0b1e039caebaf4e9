"""A coverage-guided fuzzer of the ring layer: bytes are read as calls on a Ring of the kernel's, and as faults on the way.

    python fuzz_ring.py replay FILE...                 plays inputs; fails at the first that breaks a promise
    python fuzz_ring.py fuzz CORPUS WORK SECONDS       looks for inputs that break one, and keeps a smallest corpus in CORPUS

Needs a variant of the shim with faults first on PYTHONPATH, and to fuzz one with coverage (tests/fuzz.sh). An input is a header
of one record and then one record for each call, each of four bytes: every string of bytes is an input, and to change, drop,
double or exchange records of a good one gives another. What is kept is what takes a way through the shim that none before it
took, or one more often, as AFL counts. Where the shim crashes, or hangs, the input being played is in WORK/playing.
CORPUS/found* are inputs that have found something; they stay.

What is promised, whatever the calls and faults: a call succeeds or raises the error of a fault; each entry has one last
completion; nobody is cancelled who was not asked to; bytes are neither lost nor made up, nor written outside of where they
belong or after the completion; a peer sees a close at once (F18); no descriptor is left. Where completions were lost
or doubled on purpose, what remains is that nothing is written where it should not.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from trio_uring._ring import ring as _ring
from trio_uring._ring.ring import (
    CANCEL_ALL,
    CANCEL_FD,
    CQE_F_BUFFER,
    CQE_F_MORE,
    FIRST_USER_DATA,
    IOSQE_BUFFER_SELECT,
    OP_NOP,
    OP_POLL_ADD,
    OP_READ,
    OP_RECV,
    OP_SEND,
    POLL_ADD_MULTI,
    BufferRing,
    Ring,
)

ffi: Any = _ring.ffi
lib: Any = _ring.lib

RECORD: Final = 4
MOST_RECORDS: Final = 80
PAIRS: Final = 2
PATIENCE: Final = 100  # seconds; nothing that works waits for them to expire
MARK: Final = 0xA5
CONTENT: Final = bytes(range(1, 256)) * 16  # of the file that batches read
ERRNOS: Final = tuple(
    getattr(errno, name) for name in ("ENOMEM", "EAGAIN", "EBUSY", "EINTR", "EPERM", "EINVAL", "EBADR", "EIO", "EMFILE")
)
CREATION: Final = ("SETUP", "REGISTER", "EVENTFD", "MMAP", "ALLOC")
KINDS: Final = (
    *CREATION, "ENTER", "ENTER", "READ", "WRITE", "POLL", "SQE", "SHORT", "SHORT", "LATE", "NO_ROOM", "LOSE", "DOUBLE",
)  # fmt: skip
NOT_ERRNOS: Final = ("SHORT", "LATE", "NO_ROOM", "LOSE", "DOUBLE")


class Broken(Exception):
    """A promise was broken."""


def promised(kept: bool, *what: object) -> None:
    """Raises `Broken` where a promise was not kept."""
    if not kept:
        raise Broken(*what)


class Entry(NamedTuple):
    """What is known of an entry that was queued."""

    what: str
    pair: Pair | None = None
    size: int = 0
    keep: Any = None


class Pair:
    """Two connected sockets with traffic one way."""

    def __init__(self) -> None:
        self.writer, self.reader = socket.socketpair()
        self.writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        self.sent = self.received = 0

    def close(self) -> None:
        self.writer.close()
        self.reader.close()


class Batch:
    """Memory of a batch of reads, with a gap behind each piece; with a `bounce` the items become bytes objects."""

    def __init__(self, requests: list[tuple[int, int]], bounce: int) -> None:
        self.requests = requests
        self.memory = [ffi.new("char[]", length + 8) for _, length in requests]
        self.offsets = array("Q", [offset for offset, _ in requests])
        self.lengths = array("I", [length for _, length in requests])
        self.addresses = array("Q", [int(ffi.cast("uintptr_t", memory)) for memory in self.memory])
        self.results = array("i", [-999] * len(requests))
        self.longest = max(self.lengths)
        self.bounce = ffi.new("char[]", 2 * bounce * self.longest) if bounce * self.longest else ffi.NULL
        self.blocks: list[bytes | None] = [None] * len(requests)
        self.views = [
            ffi.from_buffer(kind, values)
            for kind, values in (
                ("uint64_t[]", self.offsets),
                ("uint32_t[]", self.lengths),
                ("uint64_t[]", self.addresses),
                ("int32_t[]", self.results),
            )
        ]

    def check(self, ended: bool) -> None:
        """Each item has what it says that it has, and no more was written."""
        for i, (offset, length) in enumerate(self.requests):
            result, there = self.results[i], CONTENT[offset : offset + length]
            found = bytes(ffi.buffer(self.memory[i]))
            if self.bounce:
                promised(not any(found), "a read into memory that was not to be used")
                found = (self.blocks[i] or b"").ljust(length + 8, b"\0")
            promised(result <= len(there), "a read of more than there was", result)
            promised(not ended or result < 0 or result == len(there), "a short read", result)
            promised(
                not ended or result < 0 or found.rstrip(b"\0") == there, "a read of something else", offset, result
            )
            promised(not any(found[length:]), "a read beyond its memory")


class Play:
    """One input, played."""

    def __init__(self, data: bytes, file: int) -> None:
        self.file = file
        self.records = [data[at : at + RECORD].ljust(RECORD, b"\0") for at in range(0, len(data), RECORD)][
            :MOST_RECORDS
        ]
        self.errnos: set[int] = set()  # of faults so far
        self.unreliable = False  # completions may be lost or doubled
        self.entries: dict[int, Entry] = {}
        self.finished: Counter[int] = Counter()
        self.results: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.pairs: list[Pair] = []
        self.buffers: BufferRing | None = None
        self.last = FIRST_USER_DATA - 1

    # -------------------------------------------------------------- faults

    def arm(self, kind: str, nth: int, times: int, value: int) -> None:
        if kind in NOT_ERRNOS:
            value %= 5
        else:
            value = ERRNOS[value % len(ERRNOS)]
            self.errnos |= {value, errno.ENOMEM} if kind in ("MMAP", "ALLOC") else {value}
        self.unreliable |= kind in ("LOSE", "DOUBLE")
        lib.tf_arm(getattr(lib, f"TF_{kind}"), 1 + nth, 1 + times, value)

    def attempt(self, call: Callable[..., Any], *arguments: Any, allowed: tuple[int, ...] = (), **more: Any) -> bool:
        """Whether a call succeeded; it may fail as a fault says."""
        try:
            call(*arguments, **more)
        except OSError as error:
            promised(error.errno in self.errnos or error.errno in allowed, f"{call} raised {error!r}")
            return False
        except MemoryError:
            promised(errno.ENOMEM in self.errnos, f"{call} has no memory")
            return False
        return True

    # -------------------------------------------------------------- the calls

    def queue(self, entry: Entry, opcode: int, **fields: Any) -> None:
        self.last += 1
        self.entries[self.last] = entry
        if not self.attempt(self.ring.queue, opcode, self.last, **fields):
            del self.entries[self.last]  # and no completion may name it

    def nop(self, _a: int, _b: int, _c: int) -> None:
        self.queue(Entry("nop"), OP_NOP)

    def send(self, a: int, b: int, _c: int) -> None:
        pair, size = self.pairs[a % PAIRS], 1 + b * 37
        data = ffi.new("char[]", bytes([MARK]) * size)
        self.queue(Entry("send", pair, size, data), OP_SEND, fd=pair.writer.fileno(), addr=data, length=size)

    def receive(self, a: int, b: int, c: int) -> None:
        pair, size = self.pairs[a % PAIRS], 1 + b * 37
        data = ffi.new("char[]", size + 8)
        opcode = OP_RECV if c % 2 else OP_READ
        self.queue(Entry("receive", pair, size, data), opcode, fd=pair.reader.fileno(), addr=data, length=size)

    def receive_provided(self, a: int, _b: int, _c: int) -> None:
        if self.buffers is not None:
            pair = self.pairs[a % PAIRS]
            entry = Entry("receive", pair, self.buffers.size)
            self.queue(entry, OP_RECV, fd=pair.reader.fileno(), flags=IOSQE_BUFFER_SELECT)

    def poll(self, a: int, b: int, c: int) -> None:
        pair = self.pairs[a % PAIRS]
        fd, events = (pair.reader.fileno(), select.POLLIN) if b % 2 else (pair.writer.fileno(), select.POLLOUT)
        self.queue(Entry("poll", pair), OP_POLL_ADD, fd=fd, length=POLL_ADD_MULTI * (c % 2), op_flags=events)

    def batch(self, a: int, b: int, c: int) -> None:
        count = 1 + a % 8
        requests = [((b * 97 + i * 811) % (len(CONTENT) + 100), (c * 7 + i * 53) % 700) for i in range(count)]
        window = 1 + b % 4
        batch = Batch(requests, window if c % 2 else 0)
        self.last += 1
        rc = lib.tu_batch_read(
            self.ring._r, self.file, *batch.views[:3], 0, batch.views[3], count, window, batch.bounce, batch.longest,
            id(batch.blocks), self.last,
        )  # fmt: skip
        promised(rc == 0 or -rc in self.errnos, "a batch was refused", rc)
        if rc == 0:
            self.entries[self.last] = Entry("batch", None, count, batch)

    def cancel(self, a: int, _b: int, _c: int) -> None:
        self.cancelled.add(self.last - a % 8)
        self.attempt(self.ring.cancel, self.last - a % 8)

    def cancel_fd(self, a: int, b: int, _c: int) -> None:
        pair = self.pairs[a % PAIRS]
        self.cancelled |= {number for number, entry in self.entries.items() if entry.pair is pair}
        self.attempt(self.ring.cancel_fd, (pair.writer if b % 2 else pair.reader).fileno())

    def cancel_sync(self, a: int, b: int, _c: int) -> None:
        told = (errno.ENOENT, errno.EALREADY, errno.ETIME)
        if b % 2:
            self.cancelled.add(self.last - a % 8)
            self.attempt(self.ring.cancel_sync, user_data=self.last - a % 8, timeout=0.001, allowed=told)
        else:
            pair = self.pairs[a % PAIRS]
            self.cancelled |= {number for number, entry in self.entries.items() if entry.pair is pair}
            fd, flags = pair.reader.fileno(), CANCEL_FD | CANCEL_ALL
            self.attempt(self.ring.cancel_sync, fd=fd, flags=flags, timeout=0.001, allowed=told)

    def replace(self, a: int, _b: int, _c: int) -> None:
        """Close a pair, and open another, which gets the same numbers."""
        pair = self.pairs[a % PAIRS]
        self.cancelled |= {number for number, entry in self.entries.items() if entry.pair is pair}
        if not self.attempt(self.ring.cancel_fd, pair.reader.fileno()):
            return
        pair.reader.close()
        try:
            told: object = pair.writer.recv(1, socket.MSG_DONTWAIT)
        except OSError as error:
            told = error
        promised(told == b"" or isinstance(told, ConnectionResetError), "F18: the peer of what was closed sees", told)
        while not self.attempt(self.ring.cancel_fd, pair.writer.fileno()):
            lib.tf_disarm()
        pair.close()
        self.pairs[a % PAIRS] = Pair()

    def wait(self, a: int, b: int, _c: int) -> None:
        for _ in range(1 + a % 4):
            self.attempt(lambda: self.check(self.ring.wait(b % 4 * 0.0001)))

    def wait_elsewhere(self, _a: int, b: int, _c: int) -> None:
        raised: list[Broken] = []

        def sleeper() -> None:
            try:
                self.attempt(lambda: promised(not self.ring.wait(b % 4 * 0.0001), "another thread has reaped"))
            except Broken as broken:
                raised.append(broken)

        thread = threading.Thread(target=sleeper)
        thread.start()
        thread.join()
        for broken in raised:
            raise broken

    def wake(self, _a: int, _b: int, _c: int) -> None:
        self.attempt(self.ring.wake)

    def submit(self, _a: int, _b: int, _c: int) -> None:
        self.attempt(self.ring.submit)

    def owner_back(self, _a: int, _b: int, _c: int) -> None:
        self.attempt(self.ring.owner_back)

    def spin(self, a: int, _b: int, _c: int) -> None:
        self.ring.spin(a * 100)

    def fault(self, a: int, b: int, c: int) -> None:
        self.arm(KINDS[a % len(KINDS)], b % 4, b // 4 % 4, c)

    def disarm(self, _a: int, _b: int, _c: int) -> None:
        lib.tf_disarm()

    CALLS = (
        nop, send, receive, receive_provided, poll, batch, batch, cancel, cancel_fd, cancel_sync, replace,
        wait, wait, wait, wait_elsewhere, wake, submit, owner_back, spin, fault, fault, fault, fault, disarm,
    )  # fmt: skip

    # -------------------------------------------------------------- completions

    def check(self, flat: list[int] | None) -> None:
        each = iter(flat or ())
        for user_data, res, flags in zip(each, each, each, strict=True):
            if user_data == lib.TU_STRAY_DATA:
                promised(self.unreliable, "taken for a stray", res, flags)
                continue
            promised(user_data in self.entries, "a completion of nothing", user_data, res, flags)
            self.finished[user_data] += not flags & CQE_F_MORE
            if self.finished[user_data] > 1:
                promised(self.unreliable, "completed twice", user_data, res)
                continue
            self.check_one(user_data, self.entries[user_data], res, flags)

    def check_one(self, user_data: int, entry: Entry, res: int, flags: int) -> None:
        self.results[user_data] = max(res, 0)
        if res == -errno.ECANCELED:
            promised(user_data in self.cancelled, "cancelled by nobody", entry)
        if entry.what == "batch":
            entry.keep.check(res >= 0)
            return
        if flags & CQE_F_BUFFER and self.buffers is not None:
            promised(entry.what == "receive" and entry.keep is None, "a provided buffer for", entry)
            if res > 0 and not self.unreliable:
                promised(self.buffers.take(flags, res) == bytes([MARK]) * res, "data of somebody else's")
        if res <= 0 or entry.pair is None:
            return
        if entry.what == "poll":
            promised(
                not res & ~(select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLHUP | select.POLLERR), res
            )
            return
        promised(res <= entry.size, "more than was asked for", entry, res)
        if entry.what == "send":
            entry.pair.sent += res
        else:
            entry.pair.received += res

    # -------------------------------------------------------------- the whole

    def play(self) -> None:
        header, *records = self.records or [bytes(RECORD)]
        try:
            if header[3] % 8 == 1:
                self.arm(CREATION[header[3] // 8 % len(CREATION)], 0, header[2] % 4, header[2] // 4)
            if not self.attempt(self.open, (2, 2, 4, 8, 64)[header[0] % 5], 1 << header[1] % 3, 2 << header[1] % 2):
                return
            self.pairs = [Pair() for _ in range(PAIRS)]
            for code, *operands in records:
                self.CALLS[code % len(self.CALLS)](self, *operands)
            lib.tf_disarm()
            self.end(header[2] % 4)
        finally:
            lib.tf_disarm()
            for pair in self.pairs:
                pair.close()

    def open(self, entries: int, times: int, buffers: int) -> None:
        self.ring = Ring(entries, entries * times)
        self.ring.keep = self.entries
        self.attempt(self.provide, buffers)

    def provide(self, buffers: int) -> None:
        self.buffers = self.ring.make_buffers(buffers, 64)

    def end(self, how: int) -> None:
        """Cancel everything and wait for it; or have it done by a close, or by the garbage collector."""
        unfinished = [user_data for user_data in self.entries if not self.finished[user_data]]
        self.cancelled.update(self.entries)
        if how < 2:
            for user_data in unfinished:
                self.ring.cancel(user_data)
            deadline = time.monotonic() + PATIENCE
            while self.ring.counters().inflight and not self.unreliable and time.monotonic() < deadline:
                self.check(self.ring.wait(0.001))
        if how == 3 and not self.unreliable:  # who waits two seconds for completions that never come
            self.ring.abandoned = self.check
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                self.ring.__del__()
        else:
            self.check(self.ring.close(timeout=0.01 if self.unreliable else PATIENCE))
        counters = self.ring.counters()
        if not self.unreliable:
            promised(counters.inflight == 0 and counters.submitted == counters.completed, "the books do not balance")
            missing = set(self.entries) - set(self.finished)
            promised(not missing, "never completed", [self.entries[user_data] for user_data in missing])
            for pair in self.pairs:
                self.conserved(pair)
        for user_data, entry in self.entries.items():
            if entry.what == "receive" and entry.keep is not None:
                there = bytes(ffi.buffer(entry.keep)).rstrip(b"\0")
                promised(len(there) <= entry.size, "a receive beyond its memory")
                promised(
                    self.unreliable or there == bytes([MARK]) * self.results[user_data], "not what was told", there
                )

    @staticmethod
    def conserved(pair: Pair) -> None:
        left = 0
        with suppress(BlockingIOError):
            left = len(pair.reader.recv(1 << 20, socket.MSG_DONTWAIT))
        promised(pair.received + left == pair.sent, "bytes lost or made up", pair.sent, pair.received, left)


def descriptors() -> list[str]:
    """The open descriptors of this process."""
    return sorted(os.listdir("/proc/self/fd"))


@contextmanager
def content_file() -> Iterator[int]:
    """A file with CONTENT."""
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.flush()
        yield file.fileno()


def play(data: bytes, file: int) -> None:
    """Play one input; raises `Broken`, or ends the process where it hangs."""
    before = descriptors()
    signal.alarm(PATIENCE * 2)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        game = Play(data, file)
        game.play()
    signal.alarm(0)
    promised(game.unreliable or not warned, [str(warning.message) for warning in warned])
    _ring._leaked.clear()  # what lost completions have left: the kernel is done with it
    promised(descriptors() == before, "left open", before, descriptors())


# ------------------------------------------------------------------ the fuzzer

# How often an edge is taken counts in eight steps: up to so many times.
STEPS: Final = (1, 2, 3, 7, 15, 31, 127, 255)
BUCKETS: Final = bytes([0, *(1 << min(i for i in range(8) if times <= STEPS[i]) for times in range(1, 256))])


class Coverage:
    """The edges that the last input took."""

    def __init__(self) -> None:
        self.map = ffi.buffer(lib.tf_edges)
        self.blank = bytes(len(self.map))

    def of(self, data: bytes, file: int) -> int:
        """Play an input; one bit for each edge and each step of its count."""
        self.map[:] = self.blank
        play(data, file)
        return int.from_bytes(self.map[:].translate(BUCKETS), "little")


def edges(covered: int) -> int:
    """The number of edges."""
    return sum(map(bool, covered.to_bytes(len(lib.tf_edges), "little")))


def mutated(choose: random.Random, corpus: list[bytes]) -> bytes:
    """An input like one or two others."""
    pick = choose.choice(corpus)
    records = [pick[at : at + RECORD].ljust(RECORD, b"\0") for at in range(0, len(pick), RECORD)]
    for _ in range(1 << choose.randrange(4)):
        at = choose.randrange(len(records))
        change = choose.randrange(6)
        if change == 0:
            where = choose.randrange(RECORD)
            records[at] = records[at][:where] + choose.randbytes(1) + records[at][where + 1 :]
        elif change == 1:
            records.insert(at + 1, choose.randbytes(RECORD))
        elif change == 2 and len(records) > 1:
            del records[choose.randrange(len(records))]
        elif change == 3:
            records[at + 1 : at + 1] = records[at : at + 1 + choose.randrange(4)]
        elif change == 4:
            other = choose.choice(corpus)
            first = choose.randrange(0, len(other), RECORD)
            records[at + 1 : at + 1] = [
                other[i : i + RECORD].ljust(RECORD, b"\0") for i in range(first, len(other), RECORD)
            ]
        else:
            records[at] = choose.randbytes(1) + records[at][1:]
    return b"".join(records[:MOST_RECORDS])


def smallest(taken: dict[bytes, int]) -> list[bytes]:
    """Few and short inputs that take every edge that any of them takes."""
    size = len(lib.tf_edges)
    which = {data: int.from_bytes(map(bool, taken[data].to_bytes(size, "little")), "little") for data in taken}
    kept: list[bytes] = []
    seen = 0
    while left := {data: (which[data] & ~seen).bit_count() for data in which if which[data] & ~seen}:
        best = max(left, key=lambda data: (left[data], -len(data)))
        kept.append(best)
        seen |= which[best]
    return kept


def search(work: Path, seed: int, seconds: float) -> None:
    """Play what the corpus in `work` has, then changes of it, and keep those that take a new way."""
    choose = random.Random(seed)
    coverage = Coverage()
    corpus: list[bytes] = []
    seen = executions = 0
    until = time.monotonic() + seconds
    files = sorted((work / "corpus").iterdir())
    playing = os.open(work / "playing", os.O_RDWR | os.O_CREAT)

    def tried(data: bytes) -> bool:
        nonlocal seen, executions
        os.pwrite(playing, len(data).to_bytes(4, "little") + data, 0)
        covered = coverage.of(data, file)
        executions += 1
        if covered & ~seen:
            seen |= covered
            corpus.append(data)
            return True
        return False

    with content_file() as file:
        tried(bytes(RECORD))
        for path in files:
            tried(path.read_bytes())
        while time.monotonic() < until:
            data = mutated(choose, corpus)
            if tried(data):
                (work / "corpus" / f"{seed}-{executions}").write_bytes(data)
            if executions % 1000 == 0:
                gc.collect()
    os.close(playing)
    print(json.dumps({"executions": executions, "edges": edges(seen), "corpus": len(corpus)}))


def reduce(corpus: Path, work: Path) -> None:
    """Make `corpus` the smallest that covers what `work` covers."""
    coverage = Coverage()
    taken: dict[bytes, int] = {}
    with content_file() as file:
        for path in sorted((work / "corpus").iterdir()):
            data = path.read_bytes()
            taken[data] = coverage.of(data, file)
    kept = smallest(taken)
    for path in corpus.iterdir():
        if not path.name.startswith("found"):
            path.unlink()
    for number, data in enumerate(sorted(kept, key=len)):
        (corpus / f"{number:02}").write_bytes(data)
    print(json.dumps({"inputs": len(taken), "kept": len(kept)}))


def fuzz(corpus: Path, work: Path, seconds: float) -> int:
    """Search in processes of two minutes each, so that one that crashes takes little with it; the number of findings."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(corpus, work / "corpus")
    until = time.monotonic() + seconds
    executions = found = 0
    seed = int(time.time())
    while (left := until - time.monotonic()) > 0 and found < 10:
        seed += 1
        arguments = ["search", str(work), str(seed), str(min(120.0, left))]
        done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            told = json.loads(done.stdout)
            executions += told["executions"]
            print(f"{executions} executions, {told['edges']} edges, {told['corpus']} inputs", flush=True)
            continue
        found += 1
        playing = (work / "playing").read_bytes()
        path = work / f"found-{found}"
        path.write_bytes(playing[4 : 4 + int.from_bytes(playing[:4], "little")])
        print(f"{path}: exit status {done.returncode}\n{done.stderr[-3000:]}", flush=True)
    reduced = subprocess.run([sys.executable, __file__, "reduce", str(corpus), str(work)], check=False)
    return found + abs(reduced.returncode)


def main(command: str, *arguments: str) -> int:
    """See the module."""
    if command == "replay":
        with content_file() as file:
            for name in arguments:
                try:
                    play(Path(name).read_bytes(), file)
                except BaseException as error:
                    raise Broken(name) from error
        print(len(arguments))
        return 0
    if command == "search":
        search(Path(arguments[0]), int(arguments[1]), float(arguments[2]))
        return 0
    if command == "reduce":
        reduce(Path(arguments[0]), Path(arguments[1]))
        return 0
    return fuzz(Path(arguments[0]), Path(arguments[1]), float(arguments[2]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
