"""wait_readable and wait_writable: what a user sees is what epoll shows, or what docs/differences.md lists.

Knows Trio's public interface and the kernel's descriptors; of the manager only its statistics.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import socket
import subprocess
import tempfile
import termios
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from manager_tools import (
    LIBC,
    PATIENCE,
    Backend,
    Waiter,
    blocked,
    empty,
    fill,
    manager,
    pipe,
    processor_time_asleep,
    run,
    socket_pair,
)

from trio_uring import UringBackend

pytestmark = pytest.mark.usefixtures("descriptors_flat")

WAITS = {"read": trio.lowlevel.wait_readable, "write": trio.lowlevel.wait_writable}

# A descriptor that is not ready, and what makes it ready.
Kind = Callable[[], "contextlib.AbstractContextManager[tuple[int, Callable[[], object]]]"]
READABLE: dict[str, Kind] = {}
WRITABLE: dict[str, Kind] = {}


def kind(kinds: dict[str, Kind]) -> Callable[[Callable[[], Iterator[tuple[int, Callable[[], object]]]]], Kind]:
    """Enter a generator into a table of kinds under its name."""

    def enter(generator: Callable[[], Iterator[tuple[int, Callable[[], object]]]]) -> Kind:
        made: Kind = contextlib.contextmanager(generator)
        kinds[generator.__name__.strip("_")] = made
        return made

    return enter


@kind(READABLE)
def socketpair() -> Iterator[tuple[int, Callable[[], object]]]:
    with socket_pair() as (a, b):
        yield a.fileno(), lambda: b.send(b"x")


@kind(READABLE)
def socketpair_end() -> Iterator[tuple[int, Callable[[], object]]]:
    with socket_pair() as (a, b):
        yield a.fileno(), b.close


@kind(READABLE)
def tcp_half_closed() -> Iterator[tuple[int, Callable[[], object]]]:
    a, b = tcp_pair()
    with a, b:
        yield a.fileno(), lambda: b.shutdown(socket.SHUT_WR)


@kind(READABLE)
def tcp_reset() -> Iterator[tuple[int, Callable[[], object]]]:
    a, b = tcp_pair()
    with a, b:
        b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        yield a.fileno(), b.close


@kind(READABLE)
def listener() -> Iterator[tuple[int, Callable[[], object]]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setblocking(False)
        yield server.fileno(), lambda: client.connect_ex(server.getsockname())


@kind(READABLE)
def unix_listener() -> Iterator[tuple[int, Callable[[], object]]]:
    with tempfile.TemporaryDirectory() as where, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{where}/s")
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            yield server.fileno(), lambda: client.connect(f"{where}/s")


@kind(READABLE)
def udp() -> Iterator[tuple[int, Callable[[], object]]]:
    with socket.socket(type=socket.SOCK_DGRAM) as a, socket.socket(type=socket.SOCK_DGRAM) as b:
        a.bind(("127.0.0.1", 0))
        yield a.fileno(), lambda: b.sendto(b"", a.getsockname())


@kind(READABLE)
def udp_error() -> Iterator[tuple[int, Callable[[], object]]]:
    with socket.socket(type=socket.SOCK_DGRAM) as a:
        with socket.socket(type=socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            a.connect(nobody.getsockname())
        yield a.fileno(), lambda: a.send(b"refused")


@kind(READABLE)
def pipe_() -> Iterator[tuple[int, Callable[[], object]]]:
    with pipe() as (r, w):
        yield r, lambda: os.write(w, b"x")


@kind(READABLE)
def pipe_end() -> Iterator[tuple[int, Callable[[], object]]]:
    with pipe() as (r, w):
        yield r, lambda: os.close(w)


@kind(READABLE)
def blocking_pipe() -> Iterator[tuple[int, Callable[[], object]]]:
    r, w = os.pipe()
    with os.fdopen(r), os.fdopen(w, "wb", 0) as writer:
        yield r, lambda: writer.write(b"x")


@kind(READABLE)
def fifo() -> Iterator[tuple[int, Callable[[], object]]]:
    with tempfile.TemporaryDirectory() as where:
        os.mkfifo(f"{where}/f")
        r = os.open(f"{where}/f", os.O_RDONLY | os.O_NONBLOCK)
        w = os.open(f"{where}/f", os.O_WRONLY)
        with os.fdopen(r), os.fdopen(w, "wb", 0) as writer:
            yield r, lambda: writer.write(b"x")


@contextlib.contextmanager
def pty() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal in raw mode: controller and terminal."""
    controller, terminal = os.openpty()
    try:
        tty.setraw(terminal)
        os.set_blocking(controller, False)
        os.set_blocking(terminal, False)
        yield controller, terminal
    finally:
        termios.tcflush(terminal, termios.TCIOFLUSH)
        os.close(terminal)
        os.close(controller)


@kind(READABLE)
def tty_() -> Iterator[tuple[int, Callable[[], object]]]:
    with pty() as (controller, terminal):
        yield terminal, lambda: os.write(controller, b"x")


@kind(READABLE)
def tty_controller() -> Iterator[tuple[int, Callable[[], object]]]:
    with pty() as (controller, terminal):
        yield controller, lambda: os.write(terminal, b"x")


@kind(READABLE)
def eventfd() -> Iterator[tuple[int, Callable[[], object]]]:
    fd = os.eventfd(0) if hasattr(os, "eventfd") else int(LIBC.eventfd(0, 0))
    with os.fdopen(fd, "r+b", 0):
        yield fd, lambda: os.write(fd, (1).to_bytes(8, "little"))


@kind(READABLE)
def timerfd() -> Iterator[tuple[int, Callable[[], object]]]:
    fd = int(LIBC.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC))
    with os.fdopen(fd):
        in_a_nanosecond = (ctypes.c_long * 4)(0, 0, 0, 1)
        yield fd, lambda: LIBC.timerfd_settime(fd, 0, in_a_nanosecond, None)


@kind(READABLE)
def pidfd() -> Iterator[tuple[int, Callable[[], object]]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        with os.fdopen(os.pidfd_open(process.pid)) as file:
            yield file.fileno(), process.stdin.close


@kind(READABLE)
def epoll() -> Iterator[tuple[int, Callable[[], object]]]:
    with select.epoll() as poller, pipe() as (r, w):
        poller.register(r, select.EPOLLIN)
        yield poller.fileno(), lambda: os.write(w, b"x")


@kind(WRITABLE)
def full_socket() -> Iterator[tuple[int, Callable[[], object]]]:
    with socket_pair() as (a, b):
        fill(a.fileno())
        yield a.fileno(), lambda: empty(b.fileno())


@kind(WRITABLE)
def full_socket_peer_gone() -> Iterator[tuple[int, Callable[[], object]]]:
    with socket_pair() as (a, b):
        fill(a.fileno())
        yield a.fileno(), b.close


@kind(WRITABLE)
def full_pipe() -> Iterator[tuple[int, Callable[[], object]]]:
    with pipe() as (r, w):
        fill(w)
        yield w, lambda: empty(r)


@kind(WRITABLE)
def full_pipe_reader_gone() -> Iterator[tuple[int, Callable[[], object]]]:
    with pipe() as (r, w):
        fill(w)
        yield w, lambda: os.close(r)


@kind(WRITABLE)
def stopped_tty() -> Iterator[tuple[int, Callable[[], object]]]:
    with pty() as (_, terminal):
        termios.tcflow(terminal, termios.TCOOFF)
        yield terminal, lambda: termios.tcflow(terminal, termios.TCOON)


@kind(WRITABLE)
def full_eventfd() -> Iterator[tuple[int, Callable[[], object]]]:
    fd = int(LIBC.eventfd(0, os.O_NONBLOCK))
    with os.fdopen(fd, "r+b", 0):
        os.write(fd, (2**64 - 2).to_bytes(8, "little"))
        yield fd, lambda: os.read(fd, 8)


@kind(WRITABLE)
def connecting() -> Iterator[tuple[int, Callable[[], object]]]:
    # A backlog of one is full with two connections that nobody accepts; the third waits.
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        where = stack.enter_context(tempfile.TemporaryDirectory())
        server.bind(f"{where}/s")
        server.listen(1)
        client = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        client.setblocking(False)
        extra = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in extra:
            each.setblocking(False)
            each.connect_ex(client.getsockname())
        ready = select.select([], extra, [], 0)[1]
        waiting = next(each for each in extra if each not in ready)
        yield waiting.fileno(), lambda: waiting.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("direction", "made"),
    [
        *(pytest.param("read", k, id=f"read-{name}") for name, k in READABLE.items()),
        *(pytest.param("write", k, id=f"write-{name}") for name, k in WRITABLE.items()),
    ],
)
def test_sleeps_until_ready(backend: Backend, direction: str, made: Kind) -> None:
    async def main() -> None:
        with made() as (fd, make_ready):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, WAITS[direction], fd)
                await blocked()
                assert not waiter.ended.is_set()
                make_ready()
            assert waiter.ready
            # Still ready, so the next wait does not sleep.
            await WAITS[direction](fd)

    run(backend, main)


def test_ready_at_once(backend: Backend) -> None:
    async def main() -> None:
        with socket_pair() as (a, b):
            b.send(b"x")
            await trio.lowlevel.wait_readable(a)
            await trio.lowlevel.wait_writable(a)

    run(backend, main)


def test_a_wait_is_a_checkpoint_on_the_ring(ring: Backend) -> None:
    """epoll's too, where the descriptor is good."""

    async def main() -> None:
        with socket_pair() as (a, _):
            with trio.testing.assert_checkpoints():
                await trio.lowlevel.wait_writable(a)
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.lowlevel.wait_writable(a)
            assert scope.cancelled_caught

    run(ring, main)


def test_both_directions_of_one_descriptor(backend: Backend) -> None:
    async def main() -> None:
        for first in ("read", "write"):
            with socket_pair() as (a, b):
                fill(a.fileno())
                reader, writer = Waiter(), Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reader.run, trio.lowlevel.wait_readable, a)
                    nursery.start_soon(writer.run, trio.lowlevel.wait_writable, a)
                    await blocked()
                    if first == "read":
                        b.send(b"x")
                        await reader.ended.wait()
                        await blocked()
                        assert not writer.ended.is_set()
                        empty(b.fileno())
                    else:
                        empty(b.fileno())
                        await writer.ended.wait()
                        await blocked()
                        assert not reader.ended.is_set()
                        b.send(b"x")
                assert reader.ready
                assert writer.ready

    run(backend, main)


@pytest.mark.parametrize("direction", WAITS)
def test_busy(backend: Backend, direction: str) -> None:
    wait = WAITS[direction]

    async def main() -> None:
        with socket_pair() as (a, b):
            fill(a.fileno())
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, wait, a)
                await blocked()
                with pytest.raises(trio.BusyResourceError, match="already reading / writing this fd"):
                    await wait(a)
                await blocked()
                assert not waiter.ended.is_set()
                b.send(b"x")
                empty(b.fileno())
            assert waiter.ready
            await wait(a)

    run(backend, main)


def test_free_again_in_the_same_tick_as_the_cancel(backend: Backend) -> None:
    async def main() -> None:
        with socket_pair() as (a, b):
            first, second = Waiter(), Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.run, trio.lowlevel.wait_readable, a)
                await blocked()
                first.scope.cancel()
                b.send(b"x")
                nursery.start_soon(second.run, trio.lowlevel.wait_readable, a)
            assert second.ready
            assert first.scope.cancelled_caught

    run(backend, main)


@pytest.mark.parametrize("direction", WAITS)
def test_hang_up_and_error_wake_both_directions(backend: Backend, direction: str) -> None:
    """As epoll: whatever is not asked for and always reported concerns readers and writers."""

    async def main() -> None:
        # The write end of a pipe is never readable, the read end never writable; only POLLERR and POLLHUP end the wait.
        with pipe() as (r, w):
            waiter = Waiter()
            fd, other = (w, r) if direction == "read" else (r, w)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, WAITS[direction], fd)
                await blocked()
                assert not waiter.ended.is_set()
                os.close(other)
            assert waiter.ready

    run(backend, main)


def test_an_unconnected_socket_is_hung_up(backend: Backend) -> None:
    async def main() -> None:
        with socket.socket() as sock:
            await trio.lowlevel.wait_readable(sock)
            await trio.lowlevel.wait_writable(sock)

    run(backend, main)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        a = socket.create_connection(server.getsockname())
        b, _ = server.accept()
    a.setblocking(False)
    b.setblocking(False)
    return a, b


async def fill_for_good(sock: socket.socket) -> None:
    """Fill a socket, and again as long as TCP moves data on: an acknowledgement may be delayed for 200 ms."""
    while fill(sock.fileno()):  # noqa: ASYNC110
        await trio.sleep(0.2)


async def empty_until(sock: socket.socket, waiter: Waiter) -> None:
    """Read until the waiter has ended. TCP tells the sender of new room in its own time."""
    with trio.fail_after(PATIENCE):
        while not waiter.ended.is_set():
            empty(sock.fileno())
            await trio.sleep(0.001)


@pytest.mark.parametrize("make", [tcp_pair, lambda: socket.socketpair()], ids=["tcp", "unix"])
def test_a_half_closed_peer_does_not_make_a_writer_spin(
    ring: Backend, make: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    """POLLRDHUP is reported to every poll of the ring. It must neither wake a writer nor burn the processor."""

    async def main() -> None:
        a, b = make()
        with a, b:
            a.setblocking(False)
            b.setblocking(False)
            await fill_for_good(a)
            b.shutdown(socket.SHUT_WR)
            if a.family == socket.AF_INET:
                await trio.lowlevel.wait_readable(a)
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_writable, a)
                await blocked()
                before = manager().statistics()
                await trio.sleep(0.2)
                after = manager().statistics()
                assert not waiter.ended.is_set()
                # One poll stays where it is: nothing is submitted again, and the loop only goes to sleep and wakes up.
                assert after.submitted == before.submitted
                assert after.completed == before.completed
                assert after.kernel_entries - before.kernel_entries <= 3
                assert await processor_time_asleep(0.06) < 0.03
                assert not waiter.ended.is_set()
                await empty_until(b, waiter)
            assert waiter.ready
            await trio.lowlevel.wait_writable(a)

    run(ring, main)


def test_a_peer_that_half_closes_during_the_wait(backend: Backend) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        with a, b:
            await fill_for_good(a)
            reader, writer = Waiter(), Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, trio.lowlevel.wait_readable, a)
                nursery.start_soon(writer.run, trio.lowlevel.wait_writable, a)
                await blocked()
                b.shutdown(socket.SHUT_WR)
                await reader.ended.wait()
                await blocked()
                assert reader.ready
                assert not writer.ended.is_set()
                await empty_until(b, writer)
            assert writer.ready

    run(backend, main)


def test_cancelling_a_writer_whose_peer_is_half_closed(ring: Backend) -> None:
    """The multishot poll that such a wait becomes is cancelled like any other."""

    async def main() -> None:
        with socket_pair() as (a, b):
            fill(a.fileno())
            b.shutdown(socket.SHUT_WR)
            await blocked()
            quiet = manager().statistics().operations_in_flight
            for _ in range(50):
                waiter = Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.run, trio.lowlevel.wait_writable, a)
                    await blocked()
                    waiter.scope.cancel()
                assert waiter.scope.cancelled_caught
            await blocked()
            assert manager().statistics().operations_in_flight == quiet
            assert not manager().cancelling

    run(ring, main)


# ------------------------------------------------------------------ what is not a good descriptor


@pytest.mark.parametrize("direction", WAITS)
def test_closed_descriptor(backend: Backend, direction: str) -> None:
    async def main() -> None:
        with pipe() as (r, _):
            os.close(r)
            for _ in range(2):
                with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
                    await WAITS[direction](r)
                assert caught.value.errno == errno.EBADF
                await blocked()

    run(backend, main)


@pytest.mark.parametrize("direction", WAITS)
@pytest.mark.parametrize("bad", [-1, -7, -(2**31)])
def test_negative_descriptor(backend: Backend, direction: str, bad: int) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="file descriptor cannot be a negative integer"):
            await WAITS[direction](bad)
        if backend != "epoll":  # which then calls itself busy; docs/differences.md
            with pytest.raises(ValueError, match="file descriptor cannot be a negative integer"):
                await WAITS[direction](bad)
            assert bad not in manager().readers
            assert bad not in manager().writers

    run(backend, main)


def test_closed_socket_object(backend: Backend) -> None:
    async def main() -> None:
        sock = socket.socket()
        sock.close()
        with pytest.raises(ValueError, match="file descriptor cannot be a negative integer"):
            await trio.lowlevel.wait_readable(sock)
        if backend != "epoll":  # which blames this caller for the wait before; docs/differences.md
            trio.lowlevel.notify_closing(sock)

    run(backend, main)


@pytest.mark.parametrize("huge", [2**31, 2**32, 2**40, 2**64, 2**100])
def test_huge_descriptor(backend: Backend, huge: int) -> None:
    async def main() -> None:
        with pytest.raises(OverflowError):
            await trio.lowlevel.wait_readable(huge)
        if backend != "epoll":
            assert not manager().cancelling
            assert huge not in manager().readers

    run(backend, main)


def test_the_largest_int_is_a_bad_descriptor(backend: Backend) -> None:
    async def main() -> None:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            await trio.lowlevel.wait_readable(2**31 - 1)

    run(backend, main)


class WithFileno:
    """An object with a descriptor."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def fileno(self) -> Any:
        """What it was told to answer."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_objects_with_fileno(backend: Backend) -> None:
    async def main() -> None:
        with pipe() as (r, w):
            await trio.lowlevel.wait_writable(WithFileno(w))
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, WithFileno(r))
                await blocked()
                trio.lowlevel.notify_closing(WithFileno(r))
            assert isinstance(waiter.error, trio.ClosedResourceError)
            with pytest.raises(KeyError, match="mine"):
                await trio.lowlevel.wait_readable(WithFileno(KeyError("mine")))
            with pytest.raises(RuntimeError):  # Trio's own reading of the AttributeError
                await trio.lowlevel.wait_readable(object())  # type: ignore[arg-type]
            for no_integer in ("3", None, 2.5):
                with pytest.raises(TypeError):
                    await trio.lowlevel.wait_readable(WithFileno(no_integer))

    run(backend, main)


@contextlib.contextmanager
def os_file(fd: int) -> Iterator[int]:
    """Closes it; os.fdopen() refuses directories."""
    try:
        yield fd
    finally:
        os.close(fd)


NEVER_WAIT = ["file", "directory", "/dev/null", "/dev/zero", "/proc/self/status", "/sys/kernel/mm"]


@pytest.mark.parametrize("what", NEVER_WAIT)
def test_what_cannot_be_waited_for_is_ready(backend: Backend, what: str, tmp_path: Path) -> None:
    """F21. poll(2) calls such a file ready, and so does the ring; epoll refuses it with EPERM (docs/differences.md)."""
    if what == "file":
        what = str(tmp_path / "file")
        Path(what).touch()
    elif what == "directory":
        what = str(tmp_path)

    async def main() -> None:
        fd = os.open(what, os.O_RDONLY)
        with os_file(fd):
            for wait in WAITS.values():
                if backend == "epoll":
                    with pytest.raises(PermissionError):
                        await wait(fd)
                else:
                    await wait(fd)

    run(backend, main)


def test_path_descriptor(backend: Backend, tmp_path: Path) -> None:
    async def main() -> None:
        with os_file(os.open(tmp_path, os.O_PATH)) as fd, pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            await trio.lowlevel.wait_readable(fd)

    run(backend, main)


# ------------------------------------------------------------------ many


@pytest.mark.parametrize("small", [False, True], ids=["default", "sq2cq4"])
def test_thousands_of_descriptors(small: bool) -> None:
    """Invariant 7: polls of 3,000 pipes, all cancelled, then all waited for again, then all ready at once."""
    count = 3000

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            pipes = [stack.enter_context(pipe()) for _ in range(count)]
            for ready in (False, True):
                waiters = [Waiter() for _ in pipes]
                async with trio.open_nursery() as nursery:
                    for waiter, (r, _) in zip(waiters, pipes, strict=True):
                        nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, r)
                    await blocked()
                    assert manager().statistics().tasks_waiting_read == count + 1  # Trio's own wake-up socket
                    if ready:
                        for _, w in pipes:
                            os.write(w, b"x")
                    else:
                        nursery.cancel_scope.cancel()
                assert all(waiter.ready is ready and waiter.error is None for waiter in waiters)
            await blocked()
            assert not manager().cancelling
            assert manager().statistics().operations_in_flight == 1

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * count + 1000), hard))
    try:
        run(UringBackend(sq_entries=2, cq_entries=4) if small else "uring", main)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
