"""trio.lowlevel.FdStream on the ring: what it promises on pipes, FIFOs, terminals and odd descriptors.

Knows Trio's public interface and the manager's counters. What is not special to the ring is run on epoll as well, which
shows that the promise is Trio's.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pty
import random
import resource
import threading
import tty
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipe_tools import (
    Backend,
    Caller,
    blocked,
    empty,
    fill,
    manager,
    outcome_of,
    run,
    statistics,
    stream_and_fd,
    streams,
)
from trio.lowlevel import FdStream

from trio_uring import UringBackend
from trio_uring._loop.manager import UringIOManager
from trio_uring._loop.operation import Operation
from trio_uring._ring.ring import OP_NOP, OP_POLL_ADD, OP_WRITE

pytestmark = pytest.mark.usefixtures("descriptors_flat")

# No end of a pipe is in step with it, so that bytes in the wrong place do not pass for the right ones.
PATTERN = random.Random(7).randbytes(65521)


def pattern(size: int, start: int = 0) -> bytes:
    """Bytes that tell their place."""
    start %= len(PATTERN)
    return (PATTERN * (2 + size // len(PATTERN)))[start : start + size]


@pytest.fixture
def no_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written is written by the ring."""

    def refuse(*args: object) -> None:
        raise AssertionError("a stream made a system call of its own")

    monkeypatch.setattr(os, "write", refuse)


class Queued(list[int]):
    """The operation numbers that a run queues from now on."""

    def __init__(self) -> None:
        super().__init__()
        ring: Any = manager().ring
        queue, poll = ring.queue, ring.poll

        def queue_noted(opcode: int, *args: Any, **options: Any) -> None:
            self.append(opcode)
            queue(opcode, *args, **options)

        def poll_noted(*args: Any) -> None:
            self.append(OP_POLL_ADD)
            poll(*args)

        ring.queue, ring.poll = queue_noted, poll_noted


# ------------------------------------------------------------------ bytes


@pytest.mark.usefixtures("no_writes")
def test_one_entry_for_a_send_and_one_for_a_receive_that_waits(pure_ring: Backend) -> None:
    async def main() -> None:
        with streams() as (receiver, sender):
            await blocked()  # Trio's own wait for wake-ups is queued by then
            queued = Queued()
            await sender.send_all(b"hello")
            assert queued == [OP_WRITE]
            assert await receiver.receive_some() == b"hello"
            assert queued == [OP_WRITE]
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, receiver.receive_some, 3)
                await blocked()
                await sender.send_all(b"later")
            assert caller.outcome == b"lat"
            assert queued == [OP_WRITE, OP_POLL_ADD, OP_WRITE]

    run(pure_ring, main)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview], ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("size", [1, 4096, 65536, 65537, 1_000_003])
def test_all_is_sent_and_received_in_order(backend: Backend, size: int, wrap: Callable[[bytes], Any]) -> None:
    async def main() -> None:
        received = bytearray()
        with streams() as (receiver, sender):

            async def send() -> None:
                await sender.send_all(wrap(pattern(size)))
                await sender.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                async for some in receiver:
                    received += some
        assert received == pattern(size)

    run(backend, main)


def test_a_receive_takes_what_is_there_and_no_more_than_asked(backend: Backend) -> None:
    async def main() -> None:
        with stream_and_fd("receive") as (stream, fd):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 19)
            os.write(fd, pattern(200_000))
            assert await stream.receive_some(1) == pattern(1)
            assert await stream.receive_some() == pattern(65536, 1)
            assert await stream.receive_some(1 << 30) == pattern(200_000 - 65537, 65537)
            os.close(fd)
            assert await stream.receive_some() == b""
            assert await stream.receive_some(1) == b""

    run(backend, main)


# ------------------------------------------------------------------ arguments, errors, checkpoints


MISTAKES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "receive 0": ("receive_some", (0,)),
    "receive -1": ("receive_some", (-1,)),
    "receive too much": ("receive_some", (1 << 70,)),
    "receive a float": ("receive_some", (1.5,)),
    "receive a string": ("receive_some", ("1",)),
    "receive True": ("receive_some", (True,)),
    "send a string": ("send_all", ("text",)),
    "send a number": ("send_all", (5,)),
    "send None": ("send_all", (None,)),
    "send a view with gaps": ("send_all", (memoryview(b"abcdef")[::2],)),
    "send nothing": ("send_all", (b"",)),
    "send an empty view": ("send_all", (memoryview(b""),)),
}


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_odd_arguments_are_answered_as_on_epoll(ring: Backend, mistake: str, closed: bool) -> None:
    method, arguments = MISTAKES[mistake]

    async def main() -> Any:
        with stream_and_fd("receive" if method == "receive_some" else "send") as (stream, fd):
            if method == "receive_some":
                os.write(fd, b"data")
            if closed:
                await stream.aclose()
            first = await outcome_of(getattr(stream, method), *arguments)
            return first, await outcome_of(stream.receive_some, 10), await outcome_of(stream.send_all, b"x")

    assert run(ring, main) == run("epoll", main)


def _broken_pipe(directory: Path) -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _ended_pipe(directory: Path) -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def _ended_fifo(directory: Path) -> int:
    os.mkfifo(directory / "fifo")
    return os.open(directory / "fifo", os.O_RDONLY | os.O_NONBLOCK)


def _hung_up_terminal(directory: Path) -> int:
    ours, theirs = pty.openpty()
    os.close(theirs)
    return ours


def _terminal_without_master(directory: Path) -> int:
    ours, theirs = pty.openpty()
    os.close(ours)
    return theirs


def _file(directory: Path) -> int:
    (directory / "file").write_bytes(b"contents of a file")
    return os.open(directory / "file", os.O_RDWR)


ODD: dict[str, Callable[[Path], int]] = {
    "pipe without reader": _broken_pipe,
    "pipe without writer": _ended_pipe,
    "FIFO that nobody has opened for writing": _ended_fifo,
    "terminal hung up": _hung_up_terminal,
    "terminal without master": _terminal_without_master,
    "regular file": _file,
    "directory": lambda directory: os.open(directory, os.O_RDONLY),
    "/dev/null": lambda _directory: os.open("/dev/null", os.O_RDWR),
    "/dev/full": lambda _directory: os.open("/dev/full", os.O_RDWR),
    "/dev/zero": lambda _directory: os.open("/dev/zero", os.O_RDWR),
    "/proc": lambda _directory: os.open("/proc/self/comm", os.O_RDONLY),
    "eventfd": lambda _directory: os.eventfd(7),
}


@pytest.mark.parametrize("what", ODD)
def test_f21_every_kind_of_descriptor_answers_as_on_epoll(ring: Backend, what: str, tmp_path: Path) -> None:
    async def main(name: str) -> Any:
        stream = FdStream(ODD[what](directories[name]))
        seen = [
            await outcome_of(stream.receive_some, 8),
            await outcome_of(stream.receive_some, 8) if what != "eventfd" else None,
            await outcome_of(stream.send_all, b"12345678"),
            await outcome_of(stream.send_all, b"1234567"),
            os.lseek(stream.fileno(), 0, os.SEEK_CUR) if what == "regular file" else None,
        ]
        if what not in ODD_FOR_POLL:
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, stream.wait_send_all_might_not_block)
                await blocked()
                seen.append(caller.outcome)
                nursery.cancel_scope.cancel()
        await stream.aclose()
        return seen

    directories = {name: tmp_path / name for name in ("ring", "epoll")}
    for directory in directories.values():
        directory.mkdir()
    assert run(ring, main, "ring") == run("epoll", main, "epoll")


# epoll refuses to wait for these, poll(2) calls them ready (docs/differences.md).
ODD_FOR_POLL = {"regular file", "directory", "/dev/null", "/dev/full", "/dev/zero", "/proc"}


@pytest.mark.parametrize("kind", ["eventfd", "FIFO"])
def test_f20_what_is_not_ready_waits(backend: Backend, kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        if kind == "eventfd":
            stream, word = FdStream(os.eventfd(0)), (3).to_bytes(8, "little")
        else:
            os.mkfifo(tmp_path / "fifo")  # open for both, it never ends
            stream, word = FdStream(os.open(tmp_path / "fifo", os.O_RDWR)), b"word"
        caller = Caller()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.run, stream.receive_some)
            await blocked()
            assert caller.outcome == "blocked"
            os.write(stream.fileno(), word)
        assert caller.outcome == word
        await stream.aclose()

    run(backend, main)
    if kind == "FIFO":
        os.unlink(tmp_path / "fifo")


def test_f20_a_busy_answer_of_the_kernel_is_waited_out(pure_ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN, as a kernel worker gives it for a non-blocking descriptor: a poll, and another attempt."""
    complete = Operation.complete

    def busy(self: Operation, result: int, flags: int) -> Any:
        return complete(self, -errno.EAGAIN if self.user_data in refused else result, flags)

    refused: set[int] = set()

    async def main() -> None:
        ring: Any = manager().ring
        queue = ring.queue

        def refuse_once(opcode: int, user_data: int, *args: Any) -> None:
            if opcode == OP_WRITE and not refused:
                refused.add(user_data)
                queue(OP_NOP, user_data)
            else:
                queue(opcode, user_data, *args)

        with streams() as (receiver, sender):
            ring.queue = refuse_once
            await sender.send_all(b"after all")
            assert len(refused) == 1
            assert await receiver.receive_some() == b"after all"

    monkeypatch.setattr(Operation, "complete", busy)
    run(pure_ring, main)


def test_every_call_is_a_schedule_point_and_a_cancel_point(backend: Backend) -> None:
    async def main() -> None:
        with stream_and_fd("receive") as (stream, fd):
            os.write(fd, b"data")
            with trio.testing.assert_checkpoints():
                assert await stream.receive_some(1) == b"d"
            with trio.testing.assert_checkpoints(), pytest.raises(trio.BrokenResourceError):
                await FdStream(os.open("/", os.O_RDONLY)).receive_some()
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.receive_some()
            assert scope.cancelled_caught
            assert await stream.receive_some() == b"ata"
        with stream_and_fd("send") as (stream, fd):
            for data in (b"data", b""):
                with trio.testing.assert_checkpoints():
                    await stream.send_all(data)
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await stream.send_all(data)
                assert scope.cancelled_caught
            assert empty(fd) == b"data"
            with trio.testing.assert_checkpoints():
                await stream.aclose()

    run(backend, main)


def test_one_task_at_a_time_in_each_direction(ring: Backend) -> None:
    async def main() -> Any:
        seen: list[Any] = []
        with stream_and_fd("receive") as (stream, fd):
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, stream.receive_some)
                await blocked()
                seen.append(await outcome_of(stream.receive_some))
                seen.append(await outcome_of(trio.lowlevel.wait_readable, stream.fileno()))
                seen.append(await outcome_of(stream.receive_some, 0))
                os.write(fd, b"one")
            cancelled = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancelled.run, stream.receive_some)
                await blocked()
                cancelled.scope.cancel()
                seen.append(await outcome_of(stream.receive_some))  # its task has not run yet
            seen.append(cancelled.outcome)
            waiting = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.run, trio.lowlevel.wait_readable, stream.fileno())
                await blocked()
                seen.append(await outcome_of(stream.receive_some))
                os.write(fd, b"two")
            seen += [caller.outcome, waiting.outcome, await stream.receive_some()]
        with stream_and_fd("send") as (stream, fd):
            filled = fill(stream.fileno())
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, stream.send_all, b"one")
                await blocked()
                seen.append(await outcome_of(stream.send_all, b"two"))
                seen.append(await outcome_of(stream.send_all, b""))
                seen.append(await outcome_of(stream.wait_send_all_might_not_block))
                seen.append(await outcome_of(trio.lowlevel.wait_writable, stream.fileno()))
                received = empty(fd)
            seen += [caller.outcome, (received + empty(fd))[filled:]]
            fill(stream.fileno())
            cancelled = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancelled.run, stream.send_all, b"no")
                await blocked()
                cancelled.scope.cancel()
                seen.append(await outcome_of(stream.send_all, b"two"))
            seen.append(cancelled.outcome)
            empty(fd)
            fill(stream.fileno())
            waiting = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.run, stream.wait_send_all_might_not_block)
                await blocked()
                seen.append(await outcome_of(stream.send_all, b"three"))
                empty(fd)
            seen.append(waiting.outcome)
            await stream.send_all(b"four")
            seen.append(empty(fd))
        return seen

    assert run(ring, main) == run("epoll", main)


# ------------------------------------------------------------------ cancel


def test_f11_bytes_are_delivered_or_still_there_after_a_cancel(ring: Backend) -> None:
    """The bytes come before the cancel, in the same turn, and the other way round; a timeout is a cancel."""

    async def main() -> None:
        taken = left = 0
        await blocked()
        own = statistics().operations_in_flight  # Trio's wait for wake-ups
        with stream_and_fd("receive") as (stream, fd):
            for turn in range(200):
                caller = Caller()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(caller.run, stream.receive_some)
                    await blocked()
                    word = b"%05d" % turn
                    if turn % 2:
                        os.write(fd, word)
                        caller.scope.cancel()
                    else:
                        caller.scope.cancel()
                        os.write(fd, word)
                if caller.outcome == "cancelled":
                    left += 1
                    assert await stream.receive_some() == word
                else:
                    taken += 1
                    assert caller.outcome == word
                assert statistics().operations_in_flight == own
        assert taken + left == 200

    run(ring, main)


def test_a_cancelled_receive_that_never_got_anything_leaves_nothing_behind(backend: Backend) -> None:
    async def main() -> None:
        with stream_and_fd("receive") as (stream, fd):
            for _ in range(50):
                with trio.move_on_after(0) as scope:
                    await stream.receive_some()
                assert scope.cancelled_caught
                caller = Caller()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(caller.run, stream.receive_some)
                    await blocked()
                    caller.scope.cancel()
                assert caller.outcome == "cancelled"
            os.write(fd, b"whole")
            assert await stream.receive_some() == b"whole"

    run(backend, main)


def test_a_cancelled_send_leaves_the_beginning_of_its_data_and_nothing_follows(backend: Backend) -> None:
    async def main() -> None:
        with stream_and_fd("send") as (stream, fd):
            data = bytearray(pattern(1_000_000))
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, stream.send_all, data)
                await blocked()
                received = os.read(fd, 10_000)
                await blocked()
                caller.scope.cancel()
            assert caller.outcome == "cancelled"
            data[:] = b"\xee" * len(data)  # F1: what is sent from now on would show
            data += b"not pinned any more"
            received += empty(fd)
            await blocked()
            received += empty(fd)
            assert 65536 <= len(received) < 100_000
            assert received == pattern(len(received))
            await stream.send_all(b"the next")
            assert empty(fd) == b"the next"

    run(backend, main)


def test_f1_memory_is_pinned_until_the_completion(ring: Backend) -> None:
    """A coroutine that is torn down while its write is with the kernel: the memory stays the kernel's."""

    async def main() -> None:
        with stream_and_fd("send") as (stream, fd):
            fill(stream.fileno())
            data = bytearray(b"data")
            sending = stream.send_all(data)
            sending.send(None)
            sending.close()
            with pytest.raises(BufferError):
                data += b"more"
            await blocked()
            data += b"more"
            assert set(empty(fd)) == {0}
            await blocked()
            assert not empty(fd)
            await stream.send_all(b"not held")
            assert empty(fd) == b"not held"

    run(ring, main)


def test_an_error_does_not_keep_the_memory(backend: Backend) -> None:
    async def main() -> None:
        stream = FdStream(_broken_pipe(Path()))
        data = bytearray(b"data")
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.send_all(data)
        data += b"more"
        assert isinstance(raised.value.__cause__, BrokenPipeError)
        await stream.aclose()

    run(backend, main)


# ------------------------------------------------------------------ close


@pytest.mark.parametrize("direction", ["receive", "send"])
def test_f18_a_close_ends_what_is_in_flight_and_the_other_side_sees_it_at_once(
    backend: Backend, direction: str
) -> None:
    async def main() -> None:
        with stream_and_fd(direction) as (stream, fd):
            caller = Caller()
            async with trio.open_nursery() as nursery:
                if direction == "receive":
                    nursery.start_soon(caller.run, stream.receive_some)
                else:
                    filled = fill(stream.fileno())
                    nursery.start_soon(caller.run, stream.send_all, b"never")
                await blocked()
                stream.close()
                if direction == "receive":
                    with pytest.raises(BrokenPipeError):
                        os.write(fd, b"x")
                else:
                    assert len(empty(fd)) == filled
                    assert os.read(fd, 1) == b""
            assert caller.outcome[:2] == (trio.ClosedResourceError, "another task closed this fd")
            for call, *data in ((stream.receive_some,), (stream.send_all, b"x")):
                assert (await outcome_of(call, *data))[:2] == (trio.ClosedResourceError, "file was already closed")

    run(backend, main)


@pytest.mark.parametrize("direction", ["receive", "send"])
def test_f17_the_number_of_a_closed_stream_is_another_files(ring: Backend, direction: str) -> None:
    """An entry that has been queued and not submitted when its descriptor is closed and the number used again."""

    async def main() -> None:
        with stream_and_fd(direction) as (stream, _fd), stream_and_fd(direction) as (other, other_fd):
            number = stream.fileno()
            if direction == "send":
                fill(number)
            else:
                os.write(other_fd, b"not yours")
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, getattr(stream, CALL[direction]), *DATA[direction])
                await trio.lowlevel.checkpoint()  # in this turn the entry is queued
                stream.close()
                os.dup2(other.fileno(), number)
            os.close(number)
            assert caller.outcome[0] is trio.ClosedResourceError
            if direction == "receive":
                assert await other.receive_some() == b"not yours"
            else:
                assert empty(other_fd) == b""

    run(ring, main)


CALL = {"receive": "receive_some", "send": "send_all"}
DATA: dict[str, tuple[Any, ...]] = {"receive": (), "send": (b"mine",)}


def test_f17_a_close_between_two_writes_of_a_send(pure_ring: Backend) -> None:
    """The number is another file's by the time that the second write would be queued."""

    async def main() -> None:
        with stream_and_fd("send") as (stream, fd), stream_and_fd("send") as (other, other_fd):
            number = stream.fileno()
            caller = Caller()
            perform = Operation.perform

            async def perform_and_close(self: Operation, *args: Any) -> int:
                result = await perform(self, *args)
                stream.close()
                os.dup2(other.fileno(), number)
                return result

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Operation, "perform", perform_and_close)
                await caller.run(stream.send_all, pattern(1_000_000))
            os.close(number)
            assert caller.outcome[:2] == (trio.ClosedResourceError, "file was already closed")
            assert empty(fd) == pattern(65536)
            assert empty(other_fd) == b""

    run(pure_ring, main)


def test_a_stream_that_is_closed_before_its_reader_has_run(backend: Backend) -> None:
    """Both tasks are woken in one turn, and the one that closes may run first."""

    async def main() -> None:
        seen: set[Any] = set()

        async def close(stream: FdStream, signal: FdStream) -> None:
            assert await signal.receive_some() == b"close it"
            stream.close()

        for _ in range(30):
            with stream_and_fd("receive") as (stream, fd), stream_and_fd("receive") as (signal, signal_fd):
                caller = Caller()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(caller.run, stream.receive_some)
                    nursery.start_soon(close, stream, signal)
                    await blocked()
                    os.write(fd, b"data")
                    os.write(signal_fd, b"close it")
                seen.add(caller.outcome)
        assert {each if each == b"data" else each[0] for each in seen} == {b"data", trio.ClosedResourceError}

    run(backend, main)


def test_f46_a_receive_that_waits_owns_no_memory(ring: Backend) -> None:
    """Of 300 that wait for a mebibyte each, none has its memory; and each gets what comes."""

    def address_space() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    async def main() -> None:
        pipes = [os.pipe() for _ in range(300)]
        receivers = [FdStream(reader) for reader, _ in pipes]
        callers = [Caller() for _ in pipes]
        async with trio.open_nursery() as nursery:
            before = address_space()
            for caller, receiver in zip(callers, receivers, strict=True):
                nursery.start_soon(caller.run, receiver.receive_some, 1 << 20)
            await blocked()
            assert address_space() - before < 100 << 20
            assert [caller.outcome for caller in callers] == ["blocked"] * 300
            for _, writer in pipes:
                os.write(writer, b"x" * 4000)
                os.close(writer)
        assert [caller.outcome for caller in callers] == [b"x" * 4000] * 300
        for receiver in receivers:
            await receiver.aclose()

    run(ring, main)


def test_closing_one_stream_leaves_another_on_the_same_file_waiting(backend: Backend) -> None:
    """The kernel cancels by file, not by number: the other receive must not notice."""

    async def main() -> None:
        with stream_and_fd("receive") as (stream, fd):
            other = FdStream(os.dup(stream.fileno()))
            callers = Caller(), Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(callers[0].run, stream.receive_some)
                nursery.start_soon(callers[1].run, other.receive_some)
                await blocked()
                other.close()
                await blocked()
                assert callers[0].outcome == "blocked"
                assert callers[1].outcome[0] is trio.ClosedResourceError
                # Closing gave the file back as it was, blocking, because a dup shares that.
                os.write(fd, b"for the first")
            assert callers[0].outcome == b"for the first"

    run(backend, main)


# ------------------------------------------------------------------ terminals


@pytest.fixture
def terminal() -> tuple[int, int]:
    """The two sides of a pseudo-terminal, raw and not echoing; whoever takes one closes it."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    return ours, theirs


def test_a_terminal_is_read_and_written_from_both_sides(backend: Backend, terminal: tuple[int, int]) -> None:
    async def main() -> None:
        ours, theirs = map(FdStream, terminal)
        for here, there in ((ours, theirs), (theirs, ours)):
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, there.receive_some)
                await blocked()
                assert caller.outcome == "blocked"
                await here.send_all(b"typed")
            assert caller.outcome == b"typed"
            with trio.move_on_after(0) as scope:
                await there.receive_some()
            assert scope.cancelled_caught
        caller = Caller()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.run, ours.receive_some)
            await blocked()
            await theirs.aclose()
        assert caller.outcome[0] is trio.BrokenResourceError
        assert caller.outcome[3][2] == errno.EIO
        await ours.aclose()

    run(backend, main)


def test_a_terminal_that_reads_by_lines_waits_for_the_line(backend: Backend) -> None:
    async def main() -> None:
        ours, theirs = map(FdStream, pty.openpty())
        caller = Caller()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.run, theirs.receive_some)
            await blocked()
            await ours.send_all(b"half a ")
            await blocked()
            assert caller.outcome == "blocked"
            await ours.send_all(b"line\nand more")
        assert caller.outcome == b"half a line\n"
        echo = b""
        while b"half a line" not in echo:  # it comes in its own time
            echo += await ours.receive_some()
        await theirs.aclose()
        await ours.aclose()

    run(backend, main)


def test_more_than_a_terminal_holds_goes_through_it_whole(backend: Backend, terminal: tuple[int, int]) -> None:
    async def main() -> None:
        ours, theirs = map(FdStream, terminal)
        for here, there in ((ours, theirs), (theirs, ours)):
            received = bytearray()
            caller = Caller()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.run, here.send_all, pattern(100_000))
                await blocked()
                assert caller.outcome == "blocked"
                while len(received) < 100_000:
                    received += await there.receive_some()
            assert received == pattern(100_000)
        await ours.aclose()
        await theirs.aclose()

    run(backend, main)


# ------------------------------------------------------------------ waiting costs nothing


@pytest.mark.parametrize("what", ["empty pipe", "full pipe", "empty terminal", "full terminal"])
def test_who_waits_does_not_keep_the_processor_busy(ring: Backend, what: str, terminal: tuple[int, int]) -> None:
    async def main() -> None:
        for_terminal = [FdStream(fd) for fd in terminal]
        with streams() as for_pipe:
            far, near = for_terminal if "terminal" in what else for_pipe
            caller = Caller()
            async with trio.open_nursery() as nursery:
                if "empty" in what:
                    nursery.start_soon(caller.run, far.receive_some)
                else:
                    nursery.start_soon(caller.run, near.send_all, bytes(1_000_000))
                await blocked()
                # A terminal takes some more as a worker of the kernel pushes its buffers on. That ends, a busy loop does not.
                for _ in range(100):
                    before = statistics()
                    await trio.sleep(0.05)
                    if (
                        statistics().submitted == before.submitted
                        and statistics().kernel_entries <= before.kernel_entries + 2
                    ):
                        break
                else:
                    pytest.fail("busy")
                assert caller.outcome == "blocked"
                nursery.cancel_scope.cancel()
        for stream in for_terminal:
            await stream.aclose()

    run(ring, main)


def test_many_receives_wait_at_once_and_each_gets_its_own(ring: Backend) -> None:
    async def main() -> None:
        await blocked()
        own = statistics().tasks_waiting_read  # Trio's wait for wake-ups
        pipes = [os.pipe() for _ in range(300)]
        receivers = [FdStream(reader) for reader, _ in pipes]
        callers = [Caller() for _ in pipes]
        async with trio.open_nursery() as nursery:
            for caller, receiver in zip(callers, receivers, strict=True):
                nursery.start_soon(caller.run, receiver.receive_some)
            await blocked()
            assert statistics().tasks_waiting_read == 300 + own
            for number, (_, writer) in enumerate(pipes):
                os.write(writer, b"%d" % number)
                os.close(writer)
        assert [caller.outcome for caller in callers] == [b"%d" % number for number in range(300)]
        for receiver in receivers:
            await receiver.aclose()
        assert statistics().operations_in_flight == len(manager().operations) == own

    run(ring, main)


# ------------------------------------------------------------------ other runs


def test_a_run_on_epoll_beside_the_ring_goes_trios_own_way(no_writes: None) -> None:
    """The methods are replaced for the process; a run on epoll, in another thread, must come to Trio's own."""
    own: list[str] = []

    async def on_epoll() -> None:
        with streams() as (receiver, sender):
            try:
                await sender.send_all(b"x")
            except AssertionError as error:
                own.append(str(error))
            finally:
                await receiver.aclose()

    async def main() -> None:
        with streams() as (receiver, sender):
            await sender.send_all(b"x")
            await trio.to_thread.run_sync(run, "epoll", on_epoll)
            assert await receiver.receive_some() == b"x"

    run(UringBackend(speculate=False), main)
    run("epoll", on_epoll)
    assert own == ["a stream made a system call of its own"] * 2


def test_who_replaces_the_managers_waiting_sees_streams_wait(ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trio's own tests of FdStream do, and so go through polls."""
    seen: list[int] = []
    trios_run: Any = trio._core._run

    async def main() -> None:
        with streams() as (receiver, sender):
            for name in ("wait_readable", "wait_writable"):
                monkeypatch.setattr(trios_run.TheIOManager, name, noting(getattr(UringIOManager, name)))
            fill(sender.fileno())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send_all, b"x")
                await blocked()
                assert seen == [sender.fileno()]
                empty(receiver.fileno())
                await blocked()
                assert empty(receiver.fileno()) == b"x"
                nursery.start_soon(receiver.receive_some)
                await blocked()
                assert seen == [sender.fileno(), receiver.fileno()]
                await sender.send_all(b"y")
        monkeypatch.undo()

    def noting(wait: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def noted(self: UringIOManager, fd: int) -> None:
            if isinstance(fd, int):  # Trio's own wait for wake-ups is by a socket
                seen.append(fd)
            await wait(self, fd)

        return noted

    monkeypatch.setenv("TRIO_IO_BACKEND", "uring")  # the class that TheIOManager's attributes are of
    run(ring, main)


# ------------------------------------------------------------------ against epoll, by programs


Step = tuple[Any, ...]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), st.sampled_from([None, 1, 10, 5000, 200_000])),
        st.tuples(st.just("send"), st.sampled_from([0, 1, 10, 4096, 5000, 70_000])),
        st.tuples(st.just("wait to send")),
        st.tuples(st.just("write"), st.sampled_from([1, 10, 4096, 9000])),
        st.tuples(st.just("read"), st.sampled_from([1, 10, 4096, 9000, 100_000])),
        st.tuples(st.just("cancel"), st.integers(0, 3)),
        st.tuples(st.just("close"), st.sampled_from(["receiver", "sender", "reader", "writer"])),
    ),
    min_size=3,
    max_size=16,
)


async def observe(program: list[Step]) -> list[Any]:
    """What a program sees. Each step waits until all tasks are blocked, so that what has ended by then is determined.

    Two pipes: what is sent on one is read from its other end with plain system calls, and likewise for receiving.
    """
    seen: list[Any] = []
    callers: list[Caller] = []
    with stream_and_fd("receive") as (receiver, writer), stream_and_fd("send") as (sender, reader):
        ends = {"writer": writer, "reader": reader}
        placed = 0
        async with trio.open_nursery() as nursery:
            for step, *arguments in program:
                caller = Caller()
                if step == "receive":
                    nursery.start_soon(caller.run, receiver.receive_some, *arguments)
                elif step == "send":
                    nursery.start_soon(caller.run, sender.send_all, pattern(arguments[0], 99))
                elif step == "wait to send":
                    nursery.start_soon(caller.run, sender.wait_send_all_might_not_block)
                elif step == "cancel":
                    for open_caller in [each for each in callers if each.outcome == "blocked"][arguments[0] :][:1]:
                        open_caller.scope.cancel()
                elif step == "close":
                    fd = ends.pop(arguments[0], None)
                    if fd is not None:
                        os.close(fd)
                    elif arguments[0] in ("receiver", "sender"):
                        (receiver if arguments[0] == "receiver" else sender).close()
                try:
                    if step == "write" and "writer" in ends:
                        placed += os.write(writer, pattern(arguments[0], placed))
                    if step == "read" and "reader" in ends:
                        seen.append(os.read(reader, arguments[0]))
                except OSError as error:
                    seen.append(error.errno)
                if step in ("receive", "send", "wait to send"):
                    callers.append(caller)
                await blocked()
                seen.append([each.outcome for each in callers])
            nursery.cancel_scope.cancel()
        if "reader" in ends:
            seen.append(empty(reader))
        if not receiver._fd_holder.closed:
            seen.append(empty(receiver.fileno()))
    return [*seen, [each.outcome for each in callers]]


EXAMPLES = os.environ.get("TRIO_URING_EXAMPLES")


@pytest.mark.parametrize("size", ["default", "sq2cq4"])
@settings(
    max_examples=int(EXAMPLES or 100),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(program=steps)
def test_a_program_sees_what_it_sees_on_epoll(size: str, program: list[Step]) -> None:
    backend: Backend = "uring" if size == "default" else UringBackend(sq_entries=2, cq_entries=4)
    assert run(backend, observe, program) == run("epoll", observe, program)


# ------------------------------------------------------------------ conservation


class Attempts:
    """A stream of messages that are told apart, so that what arrived says how much of each did."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bool]] = []

    def next(self, size: int) -> bytes:
        """The next message: words of 8 bytes, each with the number of its message and its place there."""
        number = len(self.messages)
        return b"".join(number.to_bytes(4, "little") + place.to_bytes(4, "little") for place in range(size // 8))

    def arrived(self, data: bytes) -> None:
        """Each whole message arrived whole, each other one up to some point, all in order, and nothing else."""
        at = 0
        for message, whole in self.messages:
            there = data[at : at + len(message)]
            same = (a == b for a, b in zip(message, there, strict=False))
            length = len(message) if there == message else sum(1 for _ in itertools.takewhile(bool, same))
            assert length == len(message) or not whole
            at += length
        assert at == len(data)


async def interrupted(chance: random.Random, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Make a call that may be cancelled after some time or some turns; None if it was, else a tuple of its result."""

    async def cancel_after(turns: int) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    how = chance.randrange(3)
    with trio.CancelScope() as scope:
        if how == 0:
            return (await call(*args),)
        if how == 1:
            scope.deadline = trio.current_time() + chance.choice((0, 1e-5, 1e-4, 1e-3)) * chance.random()
            return (await call(*args),)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_after, chance.randrange(6))
            result = await call(*args)
            nursery.cancel_scope.cancel()
        return (result,)
    return None


END = b"\xff" * 64


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_no_byte_is_lost_doubled_or_moved_by_random_cancels(backend: Backend, kind: str, seed: int) -> None:
    """F1, F7, F11 and invariant 1. The memory that was sent is overwritten, inside canaries, as soon as its call is over."""

    async def send(stream: FdStream, attempts: Attempts, chance: random.Random) -> None:
        for _ in range(400):
            message = attempts.next(chance.choice((8, 64, 4096, 8192, 20_000)))
            memory = bytearray(b"\xcc" * 16 + message + b"\xcc" * 16)
            with memoryview(memory) as whole, whole[16:-16] as view:
                done = await interrupted(chance, stream.send_all, view)
                whole[:] = b"\xee" * len(whole)
            memory += b"not pinned"
            attempts.messages.append((message, done is not None))
            await pause(chance)
        await stream.send_all(END)
        attempts.messages.append((END, True))

    async def pause(chance: random.Random) -> None:  # so that the other side waits, too
        if chance.random() < 0.4:
            for _ in range(chance.randrange(40)):
                await trio.lowlevel.checkpoint()

    async def main() -> None:
        chance = random.Random(seed)
        attempts, received, cancelled = Attempts(), bytearray(), 0
        if kind == "pipe":
            ends = os.pipe()
            fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, 8192)
        else:
            ends = pty.openpty()
            tty.setraw(ends[1])
        receiver, sender = map(FdStream, ends)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sender, attempts, random.Random(chance.random()))
            while not received.endswith(END):
                result = await interrupted(chance, receiver.receive_some, chance.choice((1, 100, 5000, 65536)))
                if result is None:
                    cancelled += 1
                else:
                    received += result[0]
                await pause(chance)
        attempts.arrived(bytes(received))
        assert cancelled
        assert 20 < sum(whole for _, whole in attempts.messages) < 380
        await receiver.aclose()
        await sender.aclose()

    run(backend, main)


def test_no_thread_is_started_by_any_of_it() -> None:
    """Neither by streams that wait nor by streams that are busy."""

    async def main() -> None:
        before = threading.active_count()
        with streams() as (receiver, sender):
            async with trio.open_nursery() as nursery:
                caller = Caller()
                nursery.start_soon(caller.run, sender.send_all, pattern(1_000_000))
                received = b""
                while len(received) < 1_000_000:
                    received += await receiver.receive_some()
                    assert threading.active_count() <= before  # one that idled may have gone
        assert received == pattern(1_000_000)

    run("uring", main)
