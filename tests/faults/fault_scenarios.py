"""Programs that between them use everything that the shim does; fault_sweep.py fails each of their calls in turn.

The small ones are written here (`ALL`); the others are the tests of the cancellation suite (`SUITE`): an operation that a cause
ends at a moment. Each checks its own result, keeps its own descriptors in order, and lets every error out.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import queue
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import attrs
import outcome
import trio
import trio.testing

import trio_uring
from trio_uring import UringBackend
from trio_uring._ring.ring import FIRST_USER_DATA, OP_NOP, OP_READ, STRAY_DATA, Ring, ffi
from trio_uring.cancellation import CAUSES, MOMENTS, OPERATIONS, Backend, Cause, Operation, Subject
from trio_uring.cancellation._causes import Attempt, Attempts
from trio_uring.cancellation._operations import EITHER, Books

Scenario: TypeAlias = Callable[[], None]

SMALL = UringBackend(sq_entries=2, cq_entries=4)
MESSAGE = bytes(range(256)) * 300  # more than one provided buffer
PATIENCE = 60.0


async def _read(fd: int, memory: Any, size: int) -> int:
    manager: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
    count: int = await manager.operation(fd, memory, manager.readers).perform(OP_READ, memory, size, 2**64 - 1)
    return count


async def _arrives(message: bytes, sender: trio.socket.SocketType, receiver: trio.socket.SocketType) -> bool:
    """Whether it is what comes out of a stream that it is put into; each call may do a part of it."""
    await trio.SocketStream(sender).send_all(message)
    got = b""
    while len(got) < len(message) and (data := await receiver.recv(100)):
        got += data
    return got == message


async def echo() -> None:
    """Accept, connect, send, receive, half-close, close: every byte comes back."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        got = bytearray()

        async def serve() -> None:
            connection, _ = await listener.accept()
            with connection:
                while data := await connection.recv(10_000):
                    await trio.SocketStream(connection).send_all(data)
                connection.shutdown(socket.SHUT_WR)

        async def take(client: trio.socket.SocketType) -> None:
            while data := await client.recv(100_000):
                got.extend(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with trio.socket.socket() as client:
                await client.connect(listener.getsockname())
                async with trio.open_nursery() as inner:
                    inner.start_soon(take, client)
                    await trio.SocketStream(client).send_all(MESSAGE)
                    client.shutdown(socket.SHUT_WR)
        assert got == MESSAGE


async def cancels() -> None:
    """Cancelled receives, polls, accepts and reads: nothing is eaten, and the descriptors serve on."""
    ours, theirs = trio.socket.socketpair()
    reader, writer = (io.FileIO(fd, mode) for fd, mode in zip(os.pipe2(os.O_CLOEXEC), ("rb", "wb"), strict=True))
    with ours, theirs, reader, writer, trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        memory = ffi.new("char[]", 16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.recv, 100)
            nursery.start_soon(trio.lowlevel.wait_readable, theirs)
            nursery.start_soon(listener.accept)
            nursery.start_soon(_read, reader.fileno(), memory, 16)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        writer.write(b"kept too")
        assert await _arrives(b"kept", theirs, ours)
        assert await _read(reader.fileno(), memory, 16) == 8
        with trio.move_on_after(0.001) as scope:
            await ours.recv(100)
        assert scope.cancelled_caught
        assert await _arrives(b"late", theirs, ours)


async def closes() -> None:
    """notify_closing: the waiters are told, and the peers see the end of the file."""
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        told = []

        async def waits() -> None:
            try:
                await ours.recv(1)
            except trio.ClosedResourceError:
                told.append("recv")

        async def polls() -> None:
            try:
                await trio.lowlevel.wait_writable(ours)
            except trio.ClosedResourceError:
                told.append("poll")

        with contextlib.suppress(BlockingIOError):
            raw = socket.socket(fileno=ours.fileno())
            try:
                raw.setblocking(False)
                while True:
                    raw.send(bytes(65536))
            finally:
                raw.detach()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
            nursery.start_soon(polls)
            await trio.testing.wait_all_tasks_blocked()
            ours.close()
        assert sorted(told) == ["poll", "recv"]
        while await theirs.recv(1 << 20):
            pass


async def files() -> None:
    """Write, read, seek, append, a cancelled read: what is in the file is what was written."""
    with tempfile.TemporaryDirectory() as directory:
        path = trio.Path(directory, "file")
        async with await path.open("wb") as file:
            assert await file.write(MESSAGE) == len(MESSAGE)
        with trio.CancelScope() as scope:
            scope.cancel()
            await path.read_bytes()
        assert scope.cancelled_caught
        async with await path.open("rb") as file:
            assert await file.read(1000) == MESSAGE[:1000]
            await file.seek(-7, os.SEEK_END)
            assert await file.read() == MESSAGE[-7:]
        assert await path.read_bytes() == MESSAGE
        assert (await path.stat()).st_size == len(MESSAGE)


async def whole_files() -> None:
    """Small and large ones, by each of the ways of `read_files`."""
    with tempfile.TemporaryDirectory() as directory:
        contents = [MESSAGE[: 70 * i] for i in range(6)] + [MESSAGE * 4, MESSAGE]
        paths = [os.path.join(directory, str(i)) for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            with open(path, "wb") as file:  # noqa: ASYNC230 - nobody else is there
                file.write(content)
        found = await trio_uring.read_files([*paths, "/proc/version", *paths], limit=3)
        read = []
        for result in found:
            if isinstance(result, OSError):
                raise result
            read.append(result)
        assert read[: len(paths)] == read[-len(paths) :] == contents
        assert b"Linux" in read[len(paths)]


async def wakeups() -> None:
    """Other threads end the sleep of the loop."""
    for _ in range(3):
        assert await trio.to_thread.run_sync(lambda: 7) == 7
    with trio.fail_after(PATIENCE):
        await trio.to_thread.run_sync(trio.from_thread.run_sync, lambda: None)


def _run(main: Callable[[], Any], backend: Any) -> Scenario:
    return lambda: trio_uring.run(main, io_backend=backend, strict_exception_groups=True)


def guest() -> None:
    """A guest run: the host cancels and closes while the worker thread sleeps."""
    todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    results: list[outcome.Outcome[None]] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def main() -> None:
        wrapped = trio.socket.from_stdlib_socket(ours)
        with trio.CancelScope() as scope:
            todo.put(scope.cancel)
            await wrapped.recv(10)
        assert scope.cancelled_caught
        todo.put(lambda: theirs.send(b"from the host"))
        assert await wrapped.recv(100) == b"from the host"
        await trio.sleep(0.001)

    with ours, theirs:
        trio_uring.start_guest_run(
            main, run_sync_soon_threadsafe=todo.put, done_callback=results.append, io_backend="uring"
        )
        while not results:
            todo.get(timeout=PATIENCE)()
        results[0].unwrap()


def bare() -> None:
    """The ring without Trio: a full submission queue, an overflowing completion queue, cancels, provided buffers."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    memory = ffi.new("char[]", 8)
    ring = None
    try:
        ring = Ring(2, 4)
        ring.make_buffers(4, 64)
        wanted = set()
        for user_data in range(FIRST_USER_DATA, FIRST_USER_DATA + 20):
            ring.queue(OP_NOP, user_data)
            wanted.add(user_data)
        ring.queue(OP_READ, 1000, reader, memory, 8)
        ring.submit()
        ring.cancel(1000)
        wanted.add(1000)
        ring.queue(OP_READ, 1001, reader, memory, 8)
        ring.cancel_fd(reader)
        wanted.add(1001)
        ring.wake()
        while wanted:
            found = ring.wait(PATIENCE)
            assert found is not None, f"never completed: {wanted}"
            for user_data in found[::3]:
                if user_data != STRAY_DATA:
                    wanted.remove(user_data)
    finally:
        os.close(reader)
        os.close(writer)
        if ring is not None:
            ring.close()


ALL: dict[str, Scenario] = {
    "bare": bare,
    "echo": _run(echo, "uring"),
    "echo-small": _run(echo, SMALL),
    "cancels": _run(cancels, "uring"),
    "cancels-small": _run(cancels, SMALL),
    "closes": _run(closes, "uring"),
    "wakeups": _run(wakeups, "uring"),
    "files": _run(files, "uring"),
    "whole_files": _run(whole_files, "uring"),
    "whole_files-small": _run(whole_files, UringBackend(sq_entries=2, cq_entries=4, speculate=False)),
    "guest": guest,
}

# ------------------------------------------------------------------ the cancellation suite

UNDER_TEST = Backend(
    functools.partial(trio_uring.run, io_backend="uring"),
    functools.partial(trio_uring.start_guest_run, io_backend="uring"),
)


_set_up: list[Subject] = []
# Called where what a scenario is about begins (True), if that is not its start, and where it ends (False), if not at its end.
listeners: list[Callable[[bool], None]] = []


def clear_up() -> None:
    """What a run that broke down has left behind and can clear no more, when it has been collected."""

    async def main() -> None:
        for subject in list(_set_up):
            subject.books.check()
            await subject.clear()

    if _set_up:
        trio.run(main)


# Calls of several steps: a step that fails undoes nothing of those before it, as everywhere; and a file is closed, whatever could
# not be written before.
HALF_DONE = {"Path.write_bytes", "Path.write_text", "Path.mkdir with parents", "copy_file", "file.aclose"}
# Calls that a fault can make wait before they are tried: there is no memory for provided buffers, or the kernel says EAGAIN where
# it never does. When such a wait resumes, nothing has been done yet.
WAIT_FIRST = {"recv", "recvfrom", "recvmsg", "SocketStream.receive_some", "splice of a blocking pipe"}
AT_A_TIME = 4  # moments: a fault may hit three calls, and the one after them has to be as ever


class CallsFailed(Exception):
    """Calls that the suite made have failed: `errors` says how, one for each."""

    def __init__(self, errors: list[Exception]) -> None:
        super().__init__(f"{len(errors)} calls failed: {errors}")
        self.errors = errors


class Failing(Attempts):
    """An attempt at one moment, and at some more. A call that says that it failed has had no effect; all others end as they must.

    Args:
      number: of the moment, among those that fit.
    """

    def __init__(self, operation: Operation, cause: Cause, number: int) -> None:
        resuming = EITHER if operation.name in WAIT_FIRST else operation.resuming
        super().__init__(attrs.evolve(operation, subject=self._subject, resuming=resuming), cause, MOMENTS)
        self.moments = self.moments[number : number + AT_A_TIME]
        self.number = number
        self.make = operation.subject
        self.errors: list[Exception] = []

    def each(self) -> Iterator[Callable[[Subject], Attempt]]:
        """The others are there to see whether a fault in the first has done harm; of interest are those that begin there."""
        hit, *after = super().each()
        if self.number:
            self._tell(True)  # how a run begins is the first moment's
        yield hit
        if after:
            self._tell(False)
        yield from after

    def _tell(self, begins: bool) -> None:
        for listener in listeners:
            listener(begins)

    def _subject(self, books: Books) -> Subject:
        subject = self.make(books)
        subject.faulty = True
        clear = subject.clear

        async def clear_once() -> None:
            _set_up.remove(subject)
            await clear()

        _set_up.append(subject)
        vars(subject)["clear"] = clear_once
        if self.operation.name == "read_files":
            call = subject.call

            async def call_and_raise() -> Any:
                """What this one says of a file that could not be read is its result, among others."""
                found = await call()
                for result in found:
                    if isinstance(result, OSError) and result.errno not in (errno.EISDIR, errno.ENOENT):
                        raise result
                return found

            vars(subject)["call"] = call_and_raise
        return subject

    async def judge(self, attempt: Attempt) -> None:
        """Also of calls that failed."""
        if attempt.ended is None or attempt.error is not None or not isinstance(attempt.ended.value, Exception):
            await super().judge(attempt)
        else:
            if self.operation.name not in HALF_DONE:
                await attempt.subject.check(attempt.ended)
            self.errors.append(attempt.ended.value)


def _at(operation: Operation, make: Callable[[], Cause], number: int) -> None:
    attempts = Failing(operation, make(), number)
    attempts.run(UNDER_TEST)
    assert sum(attempts.tally.values()) + len(attempts.errors) == len(attempts.moments)
    if attempts.errors:
        raise CallsFailed(attempts.errors)


def _suite() -> dict[str, dict[str, Scenario]]:
    """By pair, as in the suite, and moment.

    In rounds: each round has every operation once, and those next to each other have other causes.
    """
    pairs = []
    for operation in OPERATIONS:
        causes = [(make, Attempts(operation, make(), MOMENTS)) for make in CAUSES]
        pairs.append([(make, attempts) for make, attempts in causes if attempts.moments])
    return {
        f"{operation.name}-{attempts.cause.name}": {
            f"{operation.name}-{attempts.cause.name}-{moment.name}": functools.partial(_at, operation, make, number)
            for number, moment in enumerate(attempts.moments)
        }
        for turn in range(len(CAUSES))
        for place, operation in enumerate(OPERATIONS)
        for make, attempts in [pairs[place][(place + turn) % len(pairs[place])]]
        if turn < len(pairs[place])
    }


SUITE = _suite()
