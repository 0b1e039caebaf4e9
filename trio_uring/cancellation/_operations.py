"""The table of operations: how each is set up, made to block, let complete and looked at, and how it may end.

Knows what a call means to a user of Trio; knows nothing of how or when it is cancelled.

A `Subject` is one call about to be made, and the world around it. The rule for all of them: what the outcome says and what the
world shows must agree. Returned: the bytes, the connection, the offset are exactly what was reported. Anything else:
nothing has happened, but where a row says otherwise (`send_all` may have sent a part; a connecting socket is closed).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import attrs
import trio

import trio_uring

RETURNED: Final = "returned"
CANCELLED: Final = "cancelled"  # by Cancelled, or by KeyboardInterrupt
CLOSED: Final = "closed"

CANARY: Final = b"\xca" * 16
UNTOUCHED: Final = b"\xcc"
POISON: Final = b"\xdd"

F_SETPIPE_SZ: Final = 1031  # the module fcntl has it from Python 3.10 on, type checkers do not know

_numbers: Final = itertools.count(1)

# Memory that a failed test found pinned. Kept, because CPython 3.11 crashes where the garbage collector clears a memoryview
# before what pins it.
_pinned: Final[list[object]] = []


class Ended(NamedTuple):
    """How a call ended: RETURNED with its value, CANCELLED with the class of what was raised, CLOSED, or the name of another
    exception, with the exception.
    """

    kind: str
    value: Any = None


def ended_by(error: BaseException) -> Ended:
    """What an exception out of a call means. A closed socket is EBADF to Trio's socket methods."""
    if isinstance(error, (trio.Cancelled, KeyboardInterrupt)):
        return Ended(CANCELLED, type(error))
    if isinstance(error, trio.ClosedResourceError) or (isinstance(error, OSError) and error.errno == errno.EBADF):
        return Ended(CLOSED)
    return Ended(type(error).__name__, error)


class Books:
    """Memory that calls have finished with, and that nobody may write to any more."""

    def __init__(self) -> None:
        self.poisoned: list[bytearray] = []

    def finished(self, memory: bytearray) -> None:
        """Poison it. It must be resizable: not pinned by anybody."""
        try:
            memory.append(0)
        except BufferError as error:
            _pinned.append(memory)
            raise AssertionError("the call is over, and its memory is still pinned") from error
        memory[:] = POISON * len(memory)
        self.poisoned.append(memory)
        if len(self.poisoned) > 400:
            self.check(200)

    def check(self, count: int | None = None) -> None:
        """Look at the oldest `count` pieces, or at all: they are as they were left. These are then let go."""
        for memory in self.poisoned[:count]:
            assert memory.count(POISON) == len(memory), "memory was written to after its call was over"
        del self.poisoned[:count]


class Subject:
    """One call, and the world around it.

    Args:
      books: where memory goes that the call has finished with.
    """

    faulty = False  # whether faults are injected: a transfer of a file may be done in part

    def __init__(self, books: Books) -> None:
        self.books = books
        self.completed = False

    async def call(self) -> Any:
        """Make the call."""
        raise NotImplementedError

    def complete(self) -> None:
        """Let the call complete, or go on by a step: from outside, at once, without Trio. May be called again."""
        if not self.completed:
            self.completed = True
            self.make_ready()

    def make_ready(self) -> None:
        """What lets it complete, done once."""

    def close(self) -> None:
        """Close what the call is made on."""
        raise NotImplementedError

    def over(self, ended: Ended) -> None:
        """The task has just resumed: the memory is the caller's again."""

    async def check(self, ended: Ended) -> None:
        """Result and effect agree; nothing here is cancelled."""
        assert self.completed or ended.kind != RETURNED, "returned before it could"

    async def clear(self) -> None:
        """Leave nothing open."""


@attrs.frozen(eq=False)
class Operation:
    """A row of the table.

    Attributes:
      name: of the call.
      subject: makes the subject of one attempt.
      blocks: whether it waits for `Subject.complete`. Where not, it completes in its own time (a regular file), cannot be
        stopped once the kernel or a thread works on it, and may return at any moment but one before the call.
      completes: whether `Subject.complete` is of any avail; where not, only endings are tried.
      closable: whether there is a resource to close under the call.
      threadsafe: whether `Subject.complete` may be called from another thread.
      ring: whether it is for rings alone: elsewhere it is a thread's, and waits for ever.
      unfinished: how it may end where it was never let complete.
      racing: how it may end where completion and cancel meet.
      resuming: how it may end where the cancel comes as the task is about to run, the completion having been delivered.
    """

    name: str
    subject: Callable[[Books], Subject]
    blocks: bool = True
    completes: bool = True
    closable: bool = True
    threadsafe: bool = True
    ring: bool = False
    unfinished: frozenset[str] = frozenset({CANCELLED})
    racing: frozenset[str] = frozenset({RETURNED, CANCELLED})
    resuming: frozenset[str] = frozenset({RETURNED})

    @contextlib.asynccontextmanager
    async def set_up(self, books: Books) -> AsyncIterator[Subject]:
        """A subject, its world cleared at the end."""
        subject = self.subject(books)
        try:
            if isinstance(subject, Prepared):
                with trio.CancelScope(shield=True):
                    await subject.prepare()
            yield subject
        finally:
            with trio.CancelScope(shield=True):
                await subject.clear()


class Prepared(Subject):
    """A subject whose world takes asynchronous calls to make."""

    async def prepare(self) -> None:
        """Make it."""
        raise NotImplementedError


EITHER: Final = frozenset({RETURNED, CANCELLED})

GONE: Final = object()


def payload(size: int) -> bytearray:
    """Bytes that no other attempt has, none of them zero."""
    pattern = struct.pack("<Q", next(_numbers) | 0x8080808080808080)
    return with_room((pattern * (size // 8 + 1))[:size])


def with_room(data: bytes) -> bytearray:
    """A bytearray that `append` does not move: who still writes to its memory then meets the poison."""
    room = len(data) // 2 + 1  # more would be given back at once
    memory = bytearray(data + bytes(room))
    del memory[-room:]
    return memory


class Memory:
    """A buffer to receive into, between canaries."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.whole = with_room(CANARY + UNTOUCHED * size + CANARY)
        self.view = memoryview(self.whole)[len(CANARY) : len(CANARY) + size]

    def take(self, count: int, books: Books) -> bytes:
        """The first `count` bytes; the rest is as it was, and the memory is poisoned."""
        found = bytes(self.view)
        whole = bytes(self.whole)
        try:
            self.view.release()
        except BufferError as error:
            _pinned.append(self.view)
            raise AssertionError("the call is over, and its memory is still pinned") from error
        books.finished(self.whole)
        assert whole.startswith(CANARY), "written in front of the buffer"
        assert whole.endswith(CANARY), "written behind the buffer"
        assert found[count:] == UNTOUCHED * (self.size - count), "written to more of the buffer than was reported"
        return found[:count]


# ------------------------------------------------------------------ sockets


def unix_stream() -> tuple[socket.socket, socket.socket]:
    """Two connected UNIX stream sockets with the smallest buffers."""
    return _small(*socket.socketpair())


def unix_datagram() -> tuple[socket.socket, socket.socket]:
    """The same, datagrams, both named."""
    ends = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in ends:
        end.bind(b"\0cancellation-%d-%d" % (os.getpid(), next(_numbers)))
    ends[1].connect(ends[0].getsockname())
    ends[0].connect(ends[1].getsockname())
    return _small(*ends)


def _small(near: socket.socket, far: socket.socket) -> tuple[socket.socket, socket.socket]:
    for end in (near, far):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    return near, far


def fill(sock: socket.socket, address: Any = None) -> bytes:
    """Send zeros until nothing more is taken; what was."""
    count = 0
    for size in (2048, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                count += sock.send(bytes(size)) if address is None else sock.sendto(bytes(size), address)
    return bytes(count)


def empty(sock: socket.socket) -> bytes:
    """Receive until nothing is left; what came."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while some := sock.recv(1 << 16):
            data += some
    return data


class OnSocket(Subject):
    """A call on a connected socket: `sock` is Trio's, `watch` another descriptor of it, `far` the other end."""

    def __init__(self, books: Books, pair: Callable[[], tuple[socket.socket, socket.socket]] = unix_stream) -> None:
        super().__init__(books)
        near, self.far = pair()
        self.watch = near.dup()
        self.watch.setblocking(False)
        self.sock = trio.socket.from_stdlib_socket(near)

    def close(self) -> None:
        self.sock.close()

    async def clear(self) -> None:
        for sock in (self.sock, self.watch, self.far):
            sock.close()


class Receive(OnSocket):
    """A receive: makes the call, and takes the data out of its result. What it did not return is still in the socket.

    Args:
      how: the call.
      data: the bytes in its result.
      into: sizes of the buffers that it receives into.
      size: bytes that are there to be received.
    """

    def __init__(
        self,
        books: Books,
        how: Callable[[Any, list[memoryview]], Awaitable[Any]],
        data: Callable[[Any], Any] = lambda result: result,
        into: tuple[int, ...] = (),
        size: int = 48,
        pair: Callable[[], tuple[socket.socket, socket.socket]] = unix_stream,
    ) -> None:
        super().__init__(books, pair)
        self.how = how
        self.data = data
        self.payload = bytes(payload(size))
        self.memory = [Memory(each) for each in into]
        self.received = b""

    async def call(self) -> Any:
        return await self.how(self.sock, [memory.view for memory in self.memory])

    def make_ready(self) -> None:
        self.far.send(self.payload)

    def over(self, ended: Ended) -> None:
        got: Any = self.data(ended.value) if ended.kind == RETURNED else 0 if self.memory else b""
        if not self.memory:
            self.received = got
        for memory in self.memory:
            here = min(got, memory.size)
            self.received += memory.take(here, self.books)
            got -= here

    async def check(self, ended: Ended) -> None:
        await super().check(ended)
        left = empty(self.watch)
        assert self.received + left == (self.payload if self.completed else b""), (
            f"{self.payload!r} was sent, {self.received!r} received and {left!r} is left in the socket"
        )
        assert self.received or ended.kind != RETURNED, "returned nothing"


class Send(OnSocket):
    """A send into a socket that is full. What it reported is what arrives behind the filler.

    Args:
      how: the call.
      size: bytes to send.
      whole: whether it returns None having sent all, and may have sent a part where it did not return.
    """

    def __init__(
        self,
        books: Books,
        how: Callable[[Any, bytearray], Awaitable[Any]],
        size: int = 1000,
        whole: bool = False,
        pair: Callable[[], tuple[socket.socket, socket.socket]] = unix_stream,
    ) -> None:
        super().__init__(books, pair)
        self.how = how
        self.whole = whole
        self.payload = payload(size)
        self.original = bytes(self.payload)
        self.arrived = b""
        self.filler = fill(self.watch)

    async def call(self) -> Any:
        return await self.how(self.sock, self.payload)

    def complete(self) -> None:
        self.completed = True
        self.arrived += empty(self.far)

    def over(self, ended: Ended) -> None:
        self.books.finished(self.payload)

    async def check(self, ended: Ended) -> None:
        await super().check(ended)
        self.arrived += empty(self.far)
        assert self.arrived.startswith(self.filler)
        check_sent(self.arrived[len(self.filler) :], self.original, ended, self.whole)


def check_sent(arrived: bytes, original: bytes, ended: Ended, whole: bool) -> None:
    """What arrived is what was reported: a number, or None for all; where it did not return, nothing, or a part."""
    if ended.kind == RETURNED:
        assert arrived == (original if whole else original[: ended.value]), (
            f"{ended.value} of {len(original)} bytes reported as sent, {len(arrived)} arrived"
        )
        assert arrived
    elif whole:
        assert original.startswith(arrived), "what arrived is no beginning of what was sent"
    else:
        assert not arrived, f"{len(arrived)} bytes arrived of a call that did not return"


class Wait(OnSocket):
    """wait_readable or wait_writable: no effect at all."""

    def __init__(self, books: Books, how: Callable[[Any], Awaitable[None]], full: bool) -> None:
        super().__init__(books)
        self.how = how
        if full:
            fill(self.watch)
        self.full = full

    async def call(self) -> Any:
        await self.how(self.sock)

    def make_ready(self) -> None:
        if self.full:
            empty(self.far)
        else:
            self.far.send(b"ready")

    async def check(self, ended: Ended) -> None:
        await super().check(ended)
        if not self.full and self.completed:
            assert empty(self.watch) == b"ready"


class Accept(Subject):
    """accept: the connection is delivered, or it is still the listener's; none is lost and none is doubled."""

    def __init__(self, books: Books) -> None:
        super().__init__(books)
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        listener.bind(b"\0cancellation-%d-%d" % (os.getpid(), next(_numbers)))
        listener.listen(4)
        self.watch = listener.dup()
        self.watch.setblocking(False)
        self.sock = trio.socket.from_stdlib_socket(listener)
        self.client = socket.socket(socket.AF_UNIX)
        self.client.bind(b"\0cancellation-%d-%d" % (os.getpid(), next(_numbers)))

    async def call(self) -> Any:
        return await self.sock.accept()

    def make_ready(self) -> None:
        self.client.connect(self.watch.getsockname())

    def close(self) -> None:
        self.sock.close()

    async def check(self, ended: Ended) -> None:
        await super().check(ended)
        connections: list[tuple[Any, Any]] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                connections.append(self.watch.accept())
        if ended.kind == RETURNED:
            connections.append(ended.value)
        for connection, address in connections:
            connection.close()
            assert address == self.client.getsockname()
        assert len(connections) == int(self.completed), f"{len(connections)} of {int(self.completed)} connections found"

    async def clear(self) -> None:
        self.sock.close()
        for sock in (self.watch, self.client):
            sock.close()


class Connect(Subject):
    """connect over TCP: connected, or closed (Trio does that, as nobody could know the state), or never begun.

    Args:
      full: to a listener with no room, whose kernel answers no request to connect; else it completes at once.
    """

    def __init__(self, books: Books, full: bool) -> None:
        super().__init__(books)
        self.completed = not full
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(0 if full else 8)
        self.others = [socket.socket() for _ in range(2 if full else 0)]
        for other in self.others:
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                other.connect(self.listener.getsockname())
        self.raw = socket.socket()
        # A reset in place of the long good-bye, so that ten thousand attempts do not use up the ports.
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock = trio.socket.from_stdlib_socket(self.raw)

    async def call(self) -> Any:
        await self.sock.connect(self.listener.getsockname())

    def close(self) -> None:
        self.sock.close()

    async def check(self, ended: Ended) -> None:
        await super().check(ended)
        try:
            peer = self.sock.getpeername()
        except OSError as error:
            assert error.errno in (errno.EBADF, errno.ENOTCONN)  # noqa: PT017
            assert ended.kind != RETURNED or self.sock.fileno() < 0
            # What has an address has begun to connect, and after a cancel nobody may go on with it.
            begun = self.sock.fileno() >= 0 and self.sock.getsockname()[1] != 0
            assert not begun or ended.value is KeyboardInterrupt, "the socket is on its way to connect, and open"
        else:
            # After KeyboardInterrupt Trio leaves the socket as it is, which may be on its way.
            told = ended.kind == RETURNED or ended.value is KeyboardInterrupt
            assert told, "connected, and the caller was not told"
            assert peer == self.listener.getsockname()

    async def clear(self) -> None:
        self.sock.close()
        for sock in (self.listener, *self.others):
            sock.close()


# ------------------------------------------------------------------ pipes, processes, wake-ups


def pipe() -> tuple[int, int]:
    """A non-blocking pipe of one page."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(write, F_SETPIPE_SZ, 4096)
    return read, write


def empty_fd(fd: int) -> bytes:
    """Read until nothing is left; what came."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while some := os.read(fd, 1 << 16):
            data += some
    return data


class OnPipe(Subject):
    """A call on one end of a pipe, as a `trio.lowlevel.FdStream`; `watch` is another descriptor of that end."""

    def __init__(self, books: Books, near: int) -> None:
        super().__init__(books)
        ends = pipe()
        self.far = ends[1 - near]
        self.watch = os.dup(ends[near])
        self.stream = trio.lowlevel.FdStream(ends[near])

    def close(self) -> None:
        self.stream.close()

    async def clear(self) -> None:
        self.stream.close()
        os.close(self.watch)
        os.close(self.far)


class ReceivePipe(OnPipe):
    """FdStream.receive_some."""

    def __init__(self, books: Books) -> None:
        super().__init__(books, 0)
        self.payload = bytes(payload(48))

    async def call(self) -> Any:
        return await self.stream.receive_some(32)

    def make_ready(self) -> None:
        os.write(self.far, self.payload)

    async def check(self, ended: Ended) -> None:
        await super().check(ended)
        received = ended.value if ended.kind == RETURNED else b""
        assert received + empty_fd(self.watch) == (self.payload if self.completed else b"")
        assert received or ended.kind != RETURNED


class SendPipe(OnPipe):
    """FdStream.send_all of more than fits: three pipes full."""

    def __init__(self, books: Books) -> None:
        super().__init__(books, 1)
        self.filler = bytes(os.write(self.watch, bytes(4096)))
        self.payload = payload(3 * 4096)
        self.original = bytes(self.payload)
        self.arrived = b""

    async def call(self) -> Any:
        await self.stream.send_all(self.payload)

    def complete(self) -> None:
        self.completed = True
        self.arrived += empty_fd(self.far)

    def over(self, ended: Ended) -> None:
        self.books.finished(self.payload)

    async def check(self, ended: Ended) -> None:
        await super().check(ended)
        self.arrived += empty_fd(self.far)
        assert self.arrived.startswith(self.filler)
        check_sent(self.arrived[len(self.filler) :], self.original, ended, whole=True)


class ProcessWait(Prepared):
    """Process.wait: the status is not lost by a cancel; it is there for the next who waits."""

    process: trio.Process | None = None

    async def prepare(self) -> None:
        read, self.stdin = os.pipe2(os.O_CLOEXEC)
        try:
            self.process = await trio.lowlevel.open_process(["cat"], stdin=read, stdout=subprocess.DEVNULL)
        finally:
            os.close(read)

    async def call(self) -> Any:
        assert self.process is not None
        return await self.process.wait()

    def make_ready(self) -> None:
        os.close(self.stdin)

    async def check(self, ended: Ended) -> None:
        await super().check(ended)
        self.complete()
        assert self.process is not None
        assert await self.process.wait() == 0
        assert ended.kind != RETURNED or ended.value == 0

    async def clear(self) -> None:
        self.complete()
        # Not by its `wait`, whose lock a run that broke down has taken with it.
        while self.process is not None and self.process.poll() is None:  # noqa: ASYNC110
            await trio.sleep(0.001)


class Wake(Subject):
    """Event.wait, the event set in the run or through run_sync_soon."""

    def __init__(self, books: Books, through_entry_queue: bool) -> None:
        super().__init__(books)
        self.event = trio.Event()
        self.token = trio.lowlevel.current_trio_token() if through_entry_queue else None

    async def call(self) -> Any:
        await self.event.wait()

    def make_ready(self) -> None:
        if self.token is None:
            self.event.set()
        else:
            self.token.run_sync_soon(self.event.set)


# ------------------------------------------------------------------ files


class OnFile(Prepared):
    """A call on a file of its own with `CONTENT` in it; it is never blocked, and what it did shows in the file."""

    CONTENT = b"0123456789abcdef" * 8
    MODE: str | None = "r+b"
    BUFFERING = 0

    def __init__(self, books: Books) -> None:
        super().__init__(books)
        self.file: Any = None
        self.directory = Path(tempfile.mkdtemp(prefix="cancellation-"))
        self.path = self.directory / "file"

    async def prepare(self) -> None:
        self.completed = True
        self.path.write_bytes(self.CONTENT)
        if self.MODE is not None:
            self.file = await trio.open_file(self.path, self.MODE, self.BUFFERING)

    async def clear(self) -> None:
        try:
            if self.file is not None:
                await self.file.aclose()
        finally:
            shutil.rmtree(self.directory)


class FileRead(OnFile):
    """A read at the file's position: the position has moved by what was returned, or not at all."""

    async def call(self) -> Any:
        return await self.file.read(32)

    async def check(self, ended: Ended) -> None:
        got = ended.value if ended.kind == RETURNED else b""
        expected = self.CONTENT[: 32 if ended.kind == RETURNED else 0]
        assert got == expected or (self.faulty and got and expected.startswith(got))
        assert await self.file.tell() == len(got), "the position has moved by something else than was returned"


class FileWrite(OnFile):
    """A write at the file's position: the file and the position show it, or neither."""

    async def prepare(self) -> None:
        await super().prepare()
        self.payload = payload(40)
        self.original = bytes(self.payload)

    async def call(self) -> Any:
        return await self.file.write(self.payload)

    def over(self, ended: Ended) -> None:
        self.books.finished(self.payload)

    async def check(self, ended: Ended) -> None:
        count = ended.value if ended.kind == RETURNED else 0
        assert self.path.read_bytes() == self.original[:count] + self.CONTENT[count:]
        assert await self.file.tell() == count, "the position has moved by something else than was returned"


class FileReadInto(OnFile):
    """readinto: the buffer holds what was reported and is otherwise untouched."""

    async def prepare(self) -> None:
        await super().prepare()
        self.memory = Memory(32)
        self.received = b""

    async def call(self) -> Any:
        return await self.file.readinto(self.memory.view)

    def over(self, ended: Ended) -> None:
        self.received = self.memory.take(ended.value if ended.kind == RETURNED else 0, self.books)

    async def check(self, ended: Ended) -> None:
        assert self.received == self.CONTENT[: len(self.received)]
        assert await self.file.tell() == len(self.received)


class Reading(OnFile):
    """A read ahead of which a buffer is filled: what the call did not return is what the next read returns.

    Args:
      how: the call.
      mode: of `open`.
    """

    CONTENT = b"a line of the file\nanother\n" * 5
    BUFFERING = -1

    def __init__(self, books: Books, how: Callable[[Any], Awaitable[Any]], mode: str) -> None:
        super().__init__(books)
        self.how = how
        self.MODE = mode

    async def call(self) -> Any:
        return await self.how(self.file)

    async def check(self, ended: Ended) -> None:
        rest = await self.file.read()
        whole = ended.value + rest if ended.kind == RETURNED else rest
        assert (whole.encode() if isinstance(whole, str) else whole) == self.CONTENT


class Flushing(OnFile):
    """A call that writes out what was written and held back: it is in the file when the call returns, and in the end it is there
    once.

    Args:
      how: the call.
      closes: whether that also closes the file, which then happens whoever cancels it.
    """

    BUFFERING = -1

    def __init__(self, books: Books, how: Callable[[Any], Awaitable[Any]], closes: bool = False) -> None:
        super().__init__(books)
        self.how = how
        self.closes = closes
        self.payload = bytes(payload(40))

    async def prepare(self) -> None:
        await super().prepare()
        await self.file.write(self.payload)
        self.before = self.path.read_bytes()

    async def call(self) -> Any:
        await self.how(self.file)

    async def check(self, ended: Ended) -> None:
        written = self.payload + self.CONTENT[len(self.payload) :]
        done = ended.kind == RETURNED
        if self.closes:
            # Trio's shield around a close is none against a KeyboardInterrupt that is there before.
            done = self.file.closed
            assert done or ended.value is KeyboardInterrupt
        # What was held back may get there in parts, and a cancel come between them; but all of it is for the call to report.
        parts = [self.payload[:size] + self.CONTENT[size:] for size in range(len(self.payload))]
        there = self.path.read_bytes()
        assert there == (written if done else self.CONTENT) or (
            self.faulty and not done and there in [self.before, *parts]
        )
        await self.file.aclose()
        assert self.path.read_bytes() == written


class Truncate(OnFile):
    """truncate: the file has the new size, or the old one."""

    async def call(self) -> Any:
        return await self.file.truncate(16)

    async def check(self, ended: Ended) -> None:
        assert self.path.read_bytes() == self.CONTENT[: 16 if ended.kind == RETURNED else None]


class PathCall(OnFile):
    """A call on paths: a directory of its own has "file", which holds `CONTENT`, and an empty "directory".

    Args:
      how: the call, given the path of the file.
      result: what it returns.
      returned: what changes in the directory when it returns, by name: what a file holds, where a link goes (a str), None for a
        directory, GONE. After anything else nothing has changed.
    """

    MODE = None

    def __init__(
        self,
        books: Books,
        how: Callable[[trio.Path], Awaitable[Any]],
        result: Callable[[Any], object] = lambda result: result is None,
        returned: dict[str, object] | None = None,
    ) -> None:
        super().__init__(books)
        self.how = how
        self.result = result
        self.returned = returned or {}

    async def prepare(self) -> None:
        await super().prepare()
        self.path.with_name("directory").mkdir()

    async def call(self) -> Any:
        return await self.how(trio.Path(self.path))

    async def check(self, ended: Ended) -> None:
        expected: dict[str, object] = {"file": self.CONTENT, "directory": None}
        if ended.kind == RETURNED:
            assert self.result(ended.value)
            expected = {name: what for name, what in (expected | self.returned).items() if what is not GONE}
        found = {
            str(path.relative_to(self.directory)): (
                os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
            )
            for path in self.directory.rglob("*")
        }
        assert found == expected


class OpenFile(OnFile):
    """trio.open_file: the descriptor is delivered or closed (the suite counts descriptors)."""

    MODE = None

    async def call(self) -> Any:
        self.file = await trio.open_file(self.path, "rb")

    async def check(self, ended: Ended) -> None:
        assert (self.file is not None) == (ended.kind == RETURNED)


class OpenFifo(OnFile):
    """trio.open_file of a FIFO, which opens when somebody writes to it: after anything else nobody reads it."""

    MODE = None

    async def prepare(self) -> None:
        await super().prepare()
        self.completed = False
        self.writer = -1
        self.fifo = self.directory / "fifo"
        os.mkfifo(self.fifo)

    async def call(self) -> Any:
        self.file = await trio.open_file(self.fifo, "rb", buffering=0)

    def make_ready(self) -> None:
        self.writer = os.open(self.fifo, os.O_RDWR | os.O_CLOEXEC)  # the one way that waits for nobody

    async def check(self, ended: Ended) -> None:
        await super(OnFile, self).check(ended)
        assert (self.file is not None) == (ended.kind == RETURNED)
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1
        try:
            os.close(os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            assert error.errno == errno.ENXIO  # noqa: PT017
            assert ended.kind != RETURNED
        else:
            assert ended.kind == RETURNED, "somebody has it open"

    async def clear(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
        await super().clear()


class Positional(OnFile):
    """A call of trio_uring with an offset, which serves on every backend: the file's own position never moves.

    Args:
      how: the call, of a descriptor and a buffer, which it may fill or write.
      result: whether that is what it returns, given it and the buffer.
      returned: what the file holds after it returned, given the same; after anything else it is as it was.
    """

    def __init__(
        self,
        books: Books,
        how: Callable[[int, bytearray], Awaitable[Any]],
        result: Callable[[Any, bytes], object] = lambda result, _: result is None,
        returned: Callable[[Any, bytes], bytes] | None = None,
    ) -> None:
        super().__init__(books)
        self.how = how
        self.result = result
        self.returned = returned
        self.buffer = payload(32)
        self.held = b""

    async def call(self) -> Any:
        return await self.how(self.file.fileno(), self.buffer)

    def over(self, ended: Ended) -> None:
        self.held = bytes(self.buffer)
        self.books.finished(self.buffer)

    async def check(self, ended: Ended) -> None:
        expected = self.CONTENT
        if ended.kind == RETURNED:
            assert self.result(ended.value, self.held) or (self.faulty and ended.value > 0)
            expected = self.returned(ended.value, self.held) if self.returned else expected
        assert self.path.read_bytes() == expected
        assert await self.file.tell() == 0


class Copy(OnFile):
    """copy_file into another file: the number that it returns is there, and after anything else nothing is."""

    BEFORE: Final = b"what the target holds" * 20

    target = -1

    async def prepare(self) -> None:
        await super().prepare()
        self.target = os.memfd_create("target", os.MFD_CLOEXEC)
        os.write(self.target, self.BEFORE)

    async def call(self) -> Any:
        return await trio_uring.copy_file(self.file, self.target, offset_target=8)

    async def check(self, ended: Ended) -> None:
        count = ended.value if ended.kind == RETURNED else 0
        found = os.pread(self.target, 1 << 16, 0)
        assert found == self.BEFORE[:8] + self.CONTENT[:count] + self.BEFORE[8 + count :]

    async def clear(self) -> None:
        if self.target >= 0:
            os.close(self.target)
        await super().clear()


class SendFile(Send):
    """trio_uring.sendfile into a socket that is full; where it did not return, nothing arrived."""

    def __init__(self, books: Books) -> None:
        self.file = os.memfd_create("file", os.MFD_CLOEXEC)
        super().__init__(books, lambda sock, data: trio_uring.sendfile(sock, self.file, 0, len(data)), size=40000)
        os.write(self.file, self.payload)

    async def check(self, ended: Ended) -> None:
        # An error ends it, whatever has gone by then; a cancel does not.
        self.whole = self.faulty and ended.kind == CLOSED
        await super().check(ended)

    async def clear(self) -> None:
        await super().clear()
        os.close(self.file)


class Splice(Subject):
    """trio_uring.splice of an empty pipe into a file: what it returned is in the file, and the rest is in the pipe.

    Args:
      blocking: whether the pipe is, as those of other programs are: then the kernel does the waiting.
    """

    BEFORE: Final = b"what the file holds" * 4

    def __init__(self, books: Books, blocking: bool = False) -> None:
        super().__init__(books)
        self.payload = bytes(payload(48))
        self.read, self.write = pipe()
        os.set_blocking(self.read, blocking)
        self.watch = os.dup(self.read)
        self.target = os.memfd_create("target", os.MFD_CLOEXEC)
        os.write(self.target, self.BEFORE)

    async def call(self) -> Any:
        return await trio_uring.splice(self.read, self.target, 32, offset_target=8)

    def make_ready(self) -> None:
        os.write(self.write, self.payload)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self.read)
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self.read >= 0:
            os.close(self.read)
            self.read = -1

    async def check(self, ended: Ended) -> None:
        await super().check(ended)
        count = ended.value if ended.kind == RETURNED else 0
        assert count or ended.kind != RETURNED
        found = os.pread(self.target, 1 << 16, 0)
        assert found == self.BEFORE[:8] + self.payload[:count] + self.BEFORE[8 + count :]
        os.set_blocking(self.watch, False)
        assert empty_fd(self.watch) == (self.payload[count:] if self.completed else b"")

    async def clear(self) -> None:
        self._close_pipe()
        for fd in (self.write, self.watch, self.target):
            os.close(fd)


# ------------------------------------------------------------------ the table

_received = lambda result: result[0]  # noqa: E731


def _file(name: str, subject: Callable[[Books], Subject]) -> Operation:
    return Operation(name, subject, blocks=False, closable=False, unfinished=EITHER, racing=EITHER, resuming=EITHER)


NEW: Final = b"what was not there before"

OPERATIONS: Final[list[Operation]] = [
    Operation("wait_readable", lambda b: Wait(b, trio.lowlevel.wait_readable, full=False)),
    Operation("wait_writable", lambda b: Wait(b, trio.lowlevel.wait_writable, full=True)),
    Operation("recv", lambda b: Receive(b, lambda s, _: s.recv(32))),
    Operation("recv larger than a buffer", lambda b: Receive(b, lambda s, _: s.recv(1 << 17))),
    Operation("recv with flags", lambda b: Receive(b, lambda s, _: s.recv(32, socket.MSG_NOSIGNAL))),
    Operation("recv_into", lambda b: Receive(b, lambda s, m: s.recv_into(*m), into=(32,))),
    Operation("recvfrom", lambda b: Receive(b, lambda s, _: s.recvfrom(64), _received, pair=unix_datagram)),
    Operation(
        "recvfrom_into",
        lambda b: Receive(b, lambda s, m: s.recvfrom_into(*m), _received, into=(64,), pair=unix_datagram),
    ),
    Operation("recvmsg", lambda b: Receive(b, lambda s, _: s.recvmsg(32, 64), _received)),
    Operation("recvmsg_into", lambda b: Receive(b, lambda s, m: s.recvmsg_into(m, 64), _received, into=(8, 24))),
    Operation("SocketStream.receive_some", lambda b: Receive(b, lambda s, _: trio.SocketStream(s).receive_some(32))),
    Operation("send", lambda b: Send(b, lambda s, data: s.send(data))),
    Operation(
        "sendto",
        lambda b: Send(b, lambda s, data: s.sendto(data, s.getpeername()), pair=unix_datagram),
        resuming=EITHER,  # what resumes it may be readiness alone
    ),
    Operation("sendmsg", lambda b: Send(b, lambda s, data: s.sendmsg([data]))),
    Operation(
        "SocketStream.send_all",
        lambda b: Send(b, lambda s, data: trio.SocketStream(s).send_all(data), size=40000, whole=True),
        resuming=EITHER,
    ),
    Operation("accept", Accept),
    Operation(
        "connect", lambda b: Connect(b, full=False), blocks=False, unfinished=EITHER, racing=EITHER, resuming=EITHER
    ),
    Operation("connect unanswered", lambda b: Connect(b, full=True), completes=False),
    Operation("FdStream.receive_some", ReceivePipe, resuming=EITHER),
    Operation("FdStream.send_all", SendPipe, resuming=EITHER),
    Operation("Process.wait", lambda b: ProcessWait(b), closable=False, resuming=EITHER),
    Operation("Event.wait", lambda b: Wake(b, False), closable=False, threadsafe=False),
    Operation("run_sync_soon", lambda b: Wake(b, True), closable=False),
    Operation("sendfile", SendFile, resuming=EITHER),
    Operation("splice", lambda b: Splice(b), resuming=EITHER),
    Operation("splice of a blocking pipe", lambda b: Splice(b, blocking=True), ring=True),
    Operation("open_file of a FIFO", lambda b: OpenFifo(b), closable=False, ring=True, resuming=EITHER),
    _file("open_file", lambda b: OpenFile(b)),
    _file("file.read", lambda b: FileRead(b)),
    _file("file.readinto", lambda b: FileReadInto(b)),
    _file("file.write", lambda b: FileWrite(b)),
    _file("file.truncate", lambda b: Truncate(b)),
    _file("file.flush", lambda b: Flushing(b, lambda f: f.flush())),
    _file("file.aclose", lambda b: Flushing(b, lambda f: f.aclose(), closes=True)),
    _file("file.read, buffered", lambda b: Reading(b, lambda f: f.read(30), "rb")),
    _file("text file.readline", lambda b: Reading(b, lambda f: f.readline(), "r")),
    _file("text file, async for", lambda b: Reading(b, lambda f: f.__anext__(), "r")),
    _file("Path.stat", lambda b: PathCall(b, lambda p: p.stat(), lambda r: r.st_size == len(OnFile.CONTENT))),
    _file("Path.exists", lambda b: PathCall(b, lambda p: p.exists(), lambda r: r is True)),
    _file("Path.read_bytes", lambda b: PathCall(b, lambda p: p.read_bytes(), lambda r: r == OnFile.CONTENT)),
    _file(
        "Path.read_text", lambda b: PathCall(b, lambda p: p.read_text("ascii"), lambda r: r.encode() == OnFile.CONTENT)
    ),
    _file(
        "Path.write_bytes",
        lambda b: PathCall(b, lambda p: p.write_bytes(NEW), lambda r: r == len(NEW), {"file": NEW}),
    ),
    _file(
        "Path.write_text",
        lambda b: PathCall(b, lambda p: p.write_text(NEW.decode()), lambda r: r == len(NEW), {"file": NEW}),
    ),
    _file("Path.unlink", lambda b: PathCall(b, lambda p: p.unlink(), returned={"file": GONE})),
    _file("Path.mkdir", lambda b: PathCall(b, lambda p: p.with_name("new").mkdir(), returned={"new": None})),
    _file(
        "Path.mkdir with parents",
        lambda b: PathCall(
            b,
            lambda p: p.with_name("a").joinpath("b", "c").mkdir(parents=True),
            returned={"a": None, "a/b": None, "a/b/c": None},
        ),
    ),
    _file(
        "Path.rmdir", lambda b: PathCall(b, lambda p: p.with_name("directory").rmdir(), returned={"directory": GONE})
    ),
    _file(
        "Path.rename",
        lambda b: PathCall(
            b,
            lambda p: p.rename(p.with_name("new")),
            lambda r: r.name == "new",
            {"file": GONE, "new": OnFile.CONTENT},
        ),
    ),
    _file(
        "Path.symlink_to",
        lambda b: PathCall(b, lambda p: p.with_name("new").symlink_to("file"), returned={"new": "file"}),
    ),
    _file(
        "Path.hardlink_to",
        lambda b: PathCall(b, lambda p: p.with_name("new").hardlink_to(p), returned={"new": OnFile.CONTENT}),
    ),
    _file("Path.touch", lambda b: PathCall(b, lambda p: p.with_name("new").touch(), returned={"new": b""})),
    _file(
        "read_at",
        lambda b: Positional(b, lambda fd, _: trio_uring.read_at(fd, 32, 8), lambda r, _: r == OnFile.CONTENT[8:40]),
    ),
    _file(
        "readinto_at",
        lambda b: Positional(
            b, lambda fd, m: trio_uring.readinto_at(fd, m, 8), lambda r, m: r == 32 and m == OnFile.CONTENT[8:40]
        ),
    ),
    _file(
        "write_at",
        lambda b: Positional(
            b,
            lambda fd, m: trio_uring.write_at(fd, m, 8),
            lambda r, m: r == len(m),
            lambda r, m: OnFile.CONTENT[:8] + m[:r] + OnFile.CONTENT[8 + r :],
        ),
    ),
    _file(
        "writev_at",
        lambda b: Positional(
            b,
            lambda fd, m: trio_uring.writev_at(fd, [NEW, m], 8),
            lambda r, m: r == len(NEW) + len(m),
            lambda r, m: OnFile.CONTENT[:8] + (NEW + m)[:r] + OnFile.CONTENT[8 + r :],
        ),
    ),
    _file(
        "read_many",
        lambda b: Positional(
            b,
            lambda fd, _: trio_uring.read_many(fd, [(offset, 8) for offset in range(32)], depth=4),
            lambda r, _: r == [OnFile.CONTENT[offset : offset + 8] for offset in range(32)],
        ),
    ),
    _file(
        "read_files",
        lambda b: PathCall(
            b,
            lambda p: trio_uring.read_files([p, p.with_name("directory"), p.with_name("none"), p], limit=2),
            lambda r: r[0] == r[3] == OnFile.CONTENT and [e.errno for e in r[1:3]] == [errno.EISDIR, errno.ENOENT],
        ),
    ),
    _file(
        "readinto_many",
        lambda b: Positional(
            b,
            lambda fd, m: trio_uring.readinto_many(fd, [(8, m), (0, bytearray(8))], depth=1),
            lambda r, m: r == [32, 8] and m == OnFile.CONTENT[8:40],
        ),
    ),
    _file("fsync", lambda b: Positional(b, lambda fd, _: trio_uring.fsync(fd))),
    _file("fdatasync", lambda b: Positional(b, lambda fd, _: trio_uring.fdatasync(fd))),
    _file(
        "fallocate",
        lambda b: Positional(
            b,
            lambda fd, _: trio_uring.fallocate(fd, 0, 200),
            returned=lambda *_: OnFile.CONTENT.ljust(200, b"\0"),
        ),
    ),
    _file(
        "statx",
        lambda b: Positional(b, lambda fd, _: trio_uring.statx(fd), lambda r, _: r.size == len(OnFile.CONTENT)),
    ),
    _file("copy_file", lambda b: Copy(b)),
]
