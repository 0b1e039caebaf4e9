"""Observing: what a ring does and how fast, from inside, from another thread, and by a signal from outside."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import queue
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import outcome
import pytest
import trio
import trio.testing
from hosting import PROGRAMS, SECONDS, WAYS, command_line, hypercorn, until

import trio_uring
from trio_uring import OperationSnapshot, RingMonitor, RingSnapshot
from trio_uring._files import binary as _binary
from trio_uring._observe import dump_signal as _armed

pytest_plugins = ["serving_fixtures"]


def only() -> RingSnapshot:
    """The snapshot of the one ring of this process."""
    (found,) = trio_uring.snapshot()
    return found


def of_task(name: str) -> OperationSnapshot:
    """The operation that the task of that name waits in."""
    (found,) = [each for each in only().operations if each.task == name]
    return found


async def in_flight(function: Callable[[trio.Nursery], Any], check: Callable[[], Any]) -> None:
    """Starts tasks, waits until all are blocked, checks, and cancels them."""
    async with trio.open_nursery() as nursery:
        function(nursery)
        await trio.testing.wait_all_tasks_blocked()
        check()
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ what is in flight


def test_kinds_descriptors_tasks_and_stacks(ring: Any) -> None:
    async def one_receive(sock: trio.socket.SocketType) -> None:
        await sock.recv(10)

    async def main() -> None:
        left, right = trio.socket.socketpair()
        udp = trio.socket.socket(type=socket.SOCK_DGRAM)
        listener = trio.socket.socket()
        full, receiver = socket.socketpair()
        full.setblocking(False)
        with left, right, udp, listener, full, receiver:
            await udp.bind(("127.0.0.1", 0))
            await listener.bind(("127.0.0.1", 0))
            listener.listen()
            with contextlib.suppress(BlockingIOError):
                while True:
                    full.send(bytes(100_000))

            def start(nursery: trio.Nursery) -> None:
                nursery.start_soon(one_receive, left, name="receiving")
                nursery.start_soon(udp.recvfrom, 100, name="datagram")
                nursery.start_soon(listener.accept, name="accepting")
                nursery.start_soon(trio.lowlevel.wait_readable, right, name="readable")
                nursery.start_soon(trio.lowlevel.wait_writable, full, name="writable")
                nursery.start_soon(trio.sleep_forever, name="sleeping")

            def check() -> None:
                kinds = {each.task: each.kind for each in only().operations}
                del kinds["<TrioToken.run_sync_soon task>"]
                assert kinds == {
                    "receiving": "recv",
                    "datagram": "recvmsg",
                    "accepting": "accept",
                    "readable": "poll in",
                    "writable": "poll out",
                }
                found = of_task("receiving")
                assert (found.state, found.fd, found.age) == ("waiting", left.fileno(), None)
                assert found.target == "UNIX stream socket"
                assert found.stack[-1].startswith(f"{__file__}:")
                assert found.stack[-1].endswith(" in one_receive: await sock.recv(10)")
                port = listener.getsockname()[1]
                assert of_task("accepting").target == f"INET stream socket 127.0.0.1:{port}"
                assert of_task("datagram").target == f"INET dgram socket 127.0.0.1:{udp.getsockname()[1]}"
                (sleeping,) = [each for each in only().tasks if each.name == "sleeping"]
                assert "in sleep_forever" in sleeping.stack[0]
                assert not sleeping.running
                counters = only().counters
                assert counters["inflight"] == counters["submitted"] - counters["completed"] == 6

            await in_flight(start, check)

    trio_uring.run(main, io_backend=ring)
    assert trio_uring.snapshot() == []


class Watcher(trio.abc.Instrument):
    """Sees what each task waits for, before the kernel can have ended it: the loop has not slept since it was queued."""

    def __init__(self) -> None:
        self.seen: dict[str | None, list[OperationSnapshot]] = {}

    def before_io_wait(self, timeout: float) -> None:
        for each in only().operations:
            self.seen.setdefault(each.task, []).append(each)


def test_every_operation_says_what_it_is(pure_ring: Any, tmp_path: Path) -> None:
    """Whatever can be in flight has the kernel's name for it, its descriptor or its path, and its task's stack."""
    path = trio.Path(tmp_path / "file")
    watcher = Watcher()
    kinds: dict[str, list[str]] = {}

    async def one(*wanted: str, of: Callable[..., Any], on: tuple[Any, ...] = ()) -> Any:
        """Calls it in a task of its own."""
        name = f"task {len(kinds)}"
        kinds[name] = list(wanted)
        answers = []

        async def in_a_task() -> None:
            answers.append(await of(*on))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_a_task, name=name)
        return answers[0]

    async def files() -> None:
        await one("openat", "write", of=path.write_bytes, on=(bytes(100_000),))
        await one("openat", "read", of=path.read_bytes)
        await one("statx", of=path.stat)
        await one("mkdirat", of=(path.parent / "made").mkdir)
        await one("renameat", of=(path.parent / "made").rename, on=(path.parent / "named",))
        await one("unlinkat", of=(path.parent / "named").rmdir)
        await one("symlinkat", of=(path.parent / "link").symlink_to, on=(path,))
        await one("linkat", of=(path.parent / "hard").hardlink_to, on=(path,))
        file = await one("openat", of=functools.partial(trio.open_file, path, "r+b", buffering=0))
        async with file:
            await one("read", of=file.read, on=(10,))
            await one("write", of=file.write, on=(b"x",))
            if _binary._truncates():
                await one("ftruncate", of=file.truncate, on=(50_000,))
        with (
            open(path, "r+b") as plain,  # noqa: ASYNC230 - for the functions that take one
            open(tmp_path / "copy", "wb") as copy,  # noqa: ASYNC230
        ):
            await one("read", of=trio_uring.read_at, on=(plain, 0, 10))
            await one("write", of=trio_uring.write_at, on=(plain, b"x", 0))
            await one("writev", of=trio_uring.writev_at, on=(plain, [b"x", b"y"], 0))
            await one("batch of reads", of=trio_uring.read_many, on=(plain, [(0, 10), (100, 10)]))
            await one("fsync", of=trio_uring.fsync, on=(plain,))
            await one("fallocate", of=trio_uring.fallocate, on=(plain, 0, 100))
            await one("statx", of=trio_uring.statx, on=(plain,))
            await one("statx", of=trio_uring.statx, on=(path,))
            directory = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
            await one("statx", of=functools.partial(trio_uring.statx, "file", dir_fd=directory))
            os.close(directory)
            await one("splice", of=trio_uring.copy_file, on=(plain, copy, 100))

    async def sockets() -> None:
        left, right = trio.socket.socketpair()
        with left, right, trio.socket.socket() as listener, trio.socket.socket() as client:
            await one("send", of=left.send, on=(b"abcdef",))
            await one("recv", of=right.recv, on=(1,))
            await one("recv", of=right.recv_into, on=(bytearray(1),))
            await one("recvmsg", of=right.recvmsg, on=(1,))
            await one("sendmsg", of=left.sendmsg, on=([b"x"],))
            await listener.bind(("127.0.0.1", 0))
            listener.listen()
            await one("connect", of=client.connect, on=(listener.getsockname(),))
            accepted, _ = await one("accept", of=listener.accept)
            accepted.close()
            async with trio.SocketStream(left), trio.SocketStream(right) as stream:
                await one("recv", of=stream.receive_some)
                await one("send", of=stream.send_all, on=(b"x",))
        reading, writing = os.pipe()
        async with trio.lowlevel.FdStream(reading) as source, trio.lowlevel.FdStream(writing) as target:
            await one("write", of=target.send_all, on=(b"x",))
            assert await source.receive_some() == b"x"

    async def main() -> None:
        await files()
        await sockets()

    trio_uring.run(main, io_backend=pure_ring, instruments=[watcher])
    assert {name: list(dict.fromkeys(each.kind for each in watcher.seen[name])) for name in kinds} == kinds
    for each in (each for name in kinds for each in watcher.seen[name]):
        assert each.target, each
        assert each.stack[-1].endswith("in in_a_task: answers.append(await of(*on))"), each
        if each.kind in ("openat", "mkdirat", "unlinkat", "symlinkat", "linkat", "renameat"):
            assert each.fd is None
            assert str(tmp_path) in each.target
        elif each.kind == "statx":
            assert each.target == str(path)
        else:
            assert each.fd is not None
    statxs = [each.fd is None for name in kinds for each in watcher.seen[name] if each.kind == "statx"]
    # Of a path by both functions that ask, of an open file, and of a name in a directory that is open.
    assert (statxs.count(True), statxs.count(False)) == (2, 2)


@pytest.mark.parametrize("on", ["path", "name in a directory", "open file"])
def test_a_statx_that_hangs_names_its_path(on: str, tmp_path: Path) -> None:
    """In the text, where it is what a user sees of a file system that does not answer."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    seen: list[str] = []

    class Look(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            out = io.StringIO()
            trio_uring.dump(out)
            seen.append(out.getvalue())

    async def main() -> None:
        directory = os.open(tmp_path, os.O_RDONLY)
        with open(path, "rb") as file:  # noqa: ASYNC230 - for the function that takes one
            if on == "path":
                await trio_uring.statx(path)
            elif on == "open file":
                await trio_uring.statx(file)
            else:
                await trio_uring.statx("file", dir_fd=directory)
        os.close(directory)

    trio_uring.run(main, io_backend="uring", instruments=[Look()])
    (text,) = [each for each in seen if "statx, waiting" in each]
    lines = text.splitlines()
    target = lines[next(i for i, line in enumerate(lines) if "statx, waiting" in line) + 1]
    assert target.endswith(f": {path}")
    assert target.startswith("    path: " if on == "path" else "    fd ")


def test_an_operation_on_a_path_names_it(tmp_path: Path) -> None:
    """In the text too: what hangs on a network file system has no descriptor yet."""
    os.mkfifo(tmp_path / "nobody writes")

    def check() -> None:
        out = io.StringIO()
        trio_uring.dump(out)
        assert "openat, waiting, age unknown\n" in out.getvalue()
        assert f"    path: {tmp_path / 'nobody writes'}\n" in out.getvalue()

    async def main() -> None:
        await in_flight(lambda nursery: nursery.start_soon(trio.open_file, tmp_path / "nobody writes"), check)

    trio_uring.run(main, io_backend="uring")


def test_states(ring: Any) -> None:
    """A cancel and a close are seen until the next tick, in which the kernel lets go."""

    async def main() -> None:
        pairs = [trio.socket.socketpair() for _ in range(3)]
        scope = trio.CancelScope()

        async def cancelled(function: Any, *arguments: Any) -> None:
            with scope:
                await function(*arguments)

        async def closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pairs[1][0].recv(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled, pairs[0][0].recv, 1, name="cancelled")
            nursery.start_soon(closed, name="closed")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            assert of_task("cancelled").state == "cancelling"
            trio.lowlevel.notify_closing(pairs[1][0])
            assert of_task("closed").state == "closing"
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled, trio.lowlevel.wait_readable, pairs[2][0], name="polling")
            await trio.testing.wait_all_tasks_blocked()
            assert of_task("polling").state == "waiting"
            scope.cancel()
            (abandoned,) = [each for each in only().operations if each.task is None]
            assert (abandoned.state, abandoned.kind) == ("abandoned", "poll in")
            assert abandoned.fd == pairs[2][0].fileno()
        await trio.testing.wait_all_tasks_blocked()
        assert {each.state for each in only().operations} == {"waiting"}
        for left, right in pairs:
            left.close()
            right.close()

    trio_uring.run(main, io_backend=ring)


def test_what_is_at_rest_is_not_in_flight(ring: Any) -> None:
    """Operations are used again; between two uses they are in the books, and idle."""

    async def main() -> None:
        left, right = trio.socket.socketpair()
        with left, right:
            for _ in range(3):
                await left.send(b"x")
                assert await right.recv(1) == b"x"
            assert [each.kind for each in only().operations] == ["poll in"]

    trio_uring.run(main, io_backend=ring)


def test_a_snapshot_only_looks(ring: Any) -> None:
    async def main() -> None:
        left, right = trio.socket.socketpair()
        with left, right:

            def check() -> None:
                first = only()
                trio_uring.dump(io.StringIO())
                assert only().counters == first.counters

            await in_flight(lambda nursery: nursery.start_soon(left.recv, 1), check)

    trio_uring.run(main, io_backend=ring)


def test_json_is_the_snapshot(ring: Any) -> None:
    async def main() -> None:
        out = io.StringIO()
        trio_uring.dump(out, as_json=True)
        (found,) = json.loads(out.getvalue())
        wanted = json.loads(json.dumps(attrs.asdict(only())))
        assert found.keys() == wanted.keys()
        assert found["operations"] == wanted["operations"]
        assert found["counters"] == wanted["counters"]
        assert out.getvalue().count("\n") == 1

    trio_uring.run(main, io_backend=ring)


def test_text_puts_together_what_is_alike() -> None:
    async def serve(sock: trio.socket.SocketType) -> None:
        await sock.recv(10)

    async def main() -> None:
        pairs = [trio.socket.socketpair() for _ in range(30)]

        def start(nursery: trio.Nursery) -> None:
            for left, _ in pairs:
                nursery.start_soon(serve, left, name="serving")

        def check() -> None:
            out = io.StringIO()
            trio_uring.dump(out)
            said = out.getvalue()
            assert "recv, waiting: 30 operations, age unknown\n" in said
            left_out = [line for line in said.splitlines() if line.startswith("    and fd ")]
            assert len(left_out) == 1
            named = {int(number) for number in re.findall(r"\bfd (\d+)", said)}
            assert named >= {left.fileno() for left, _ in pairs}
            assert said.count("    task serving\n") == 1
            assert f"process {os.getpid()}" in said

        await in_flight(start, check)
        for left, right in pairs:
            left.close()
            right.close()

    trio_uring.run(main, io_backend="uring")


# ------------------------------------------------------------------ from other threads


def test_from_another_thread_asleep_and_busy(ring: Any) -> None:
    """The loop's thread is found with what it is doing, and none of the two waits for the other."""

    def work_hard(until_set: threading.Event) -> None:
        assert until_set.wait(SECONDS)

    async def main() -> None:
        trio_uring.snapshot()  # imports what it needs
        asleep = await trio.to_thread.run_sync(
            until, lambda: [each for each in trio_uring.snapshot() if each.waiting], ""
        )
        assert asleep[0].thread == threading.current_thread().name
        assert asleep[0].loop == ()

        seen: list[RingSnapshot] = []
        done = threading.Event()

        def look() -> None:
            # Not the line that calls it: where no lock holds main up meanwhile, that is seen above frames of the line before.
            seen.extend(until(lambda: [each for each in trio_uring.snapshot() if "in work_hard" in str(each.loop)], ""))
            done.set()

        thread = threading.Thread(target=look)
        thread.start()
        work_hard(done)
        thread.join(SECONDS)
        assert not seen[0].waiting
        (running,) = [each for each in seen[0].tasks if each.running]
        assert running.name.endswith("main")
        assert "in work_hard" in str(running.stack)

    trio_uring.run(main, io_backend=ring)


def test_a_guest_sleeps_in_another_thread() -> None:
    callbacks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    results: list[outcome.Outcome[RingSnapshot]] = []

    async def main() -> RingSnapshot:
        found = await trio.to_thread.run_sync(
            until, lambda: [each for each in trio_uring.snapshot() if each.waiting], ""
        )
        return found[0]

    trio_uring.start_guest_run(
        main, run_sync_soon_threadsafe=callbacks.put, done_callback=results.append, io_backend="uring"
    )
    while not results:
        callbacks.get(timeout=SECONDS)()
    found = results[0].unwrap()
    assert found.thread == threading.current_thread().name
    assert [each.name for each in found.tasks if "main" in each.name]


def test_many_rings() -> None:
    """Each thread has a run; the snapshot has them all."""
    together = threading.Barrier(4, timeout=SECONDS)

    def in_a_thread() -> None:
        async def main() -> None:
            await trio.to_thread.run_sync(together.wait)  # all are there
            await trio.to_thread.run_sync(together.wait)  # the snapshot has been taken

        trio_uring.run(main, io_backend="uring")

    threads = [threading.Thread(target=in_a_thread, name=f"run {number}") for number in range(3)]
    for thread in threads:
        thread.start()
    together.wait()
    names = {thread.name for thread in threads}
    until(
        lambda: {each.thread for each in trio_uring.snapshot() if each.waiting} == names,
        "the runs do not go to sleep, or are not all there",
    )
    together.wait()
    for thread in threads:
        thread.join(SECONDS)
    assert trio_uring.snapshot() == []


def test_while_another_thread_makes_and_closes_rings() -> None:
    """The books change under the reader."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def look() -> None:
        try:
            while not stop.is_set():
                trio_uring.dump(io.StringIO())
        except BaseException as error:
            errors.append(error)

    async def main() -> None:
        left, right = trio.socket.socketpair()
        with left, right:

            async def echo() -> None:
                for _ in range(50):
                    await right.send(await right.recv(10))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo)
                for _ in range(50):
                    await left.send(b"x")
                    await left.recv(10)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(10):
            trio_uring.run(main, io_backend="uring")
    finally:
        stop.set()
        thread.join(SECONDS)
    assert errors == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_no_ring() -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, b"%d" % len(trio_uring.snapshot()))
            os._exit(0)
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends at once
        assert os.read(reading, 10) == b"0"
        os.close(reading)
        os.close(writing)
        assert len(trio_uring.snapshot()) == 1

    trio_uring.run(main, io_backend="uring")


# ------------------------------------------------------------------ the monitor


def test_ages_are_lower_bounds(ring: Any) -> None:
    """Also of an operation that is used again: each receive of the task below is a new one, of the same object."""
    monitor = RingMonitor(0.02)

    async def receive_twice(sock: trio.socket.SocketType) -> None:
        await sock.recv(1)
        await sock.recv(1)

    async def main() -> None:
        left, right = trio.socket.socketpair()
        with left, right:
            async with trio.open_nursery() as nursery:
                began = time.monotonic()
                nursery.start_soon(receive_twice, left, name="receiving")
                age = 0.0
                while age < 0.1:  # it grows while nothing comes
                    await trio.sleep(0.03)
                    age = of_task("receiving").age or 0
                    assert age <= time.monotonic() - began
                sent = time.monotonic()
                await right.send(b"x")
                age = 0.0
                while not age:
                    await trio.sleep(0.03)
                    age = of_task("receiving").age or 0
                    assert age <= time.monotonic() - sent
                await right.send(b"x")

    trio_uring.run(main, io_backend=ring, instruments=[monitor])


def test_an_idle_run_ages_too() -> None:
    """The loop sleeps once, with no tick in between: another thread sees the age grow."""
    monitor = RingMonitor(30)

    def look() -> None:
        def old() -> bool:
            return any((each.age or 0) > 0.1 for each in only().operations if each.task == "receiving")

        until(old, "no age")

    async def main() -> None:
        left, right = trio.socket.socketpair()
        with left, right:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.recv, 1, name="receiving")
                await trio.to_thread.run_sync(look)
                nursery.cancel_scope.cancel()

    trio_uring.run(main, io_backend="uring", instruments=[monitor])


def test_rates(ring: Any) -> None:
    monitor = RingMonitor(0.05)

    async def main() -> None:
        trio.lowlevel.add_instrument(monitor)
        left, right = trio.socket.socketpair()
        with left, right:
            sent = 0

            async def echo() -> None:
                while True:
                    await right.send(await right.recv(10))

            async def drive() -> None:
                nonlocal sent
                while True:
                    await left.send(b"x")
                    await left.recv(10)
                    sent += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo)
                nursery.start_soon(drive)
                before = 0
                turns = 0
                async for rates in monitor:
                    passed, before = sent - before, sent
                    # Each exchange is four operations; two may be under way at either end.
                    assert abs(rates.completed * rates.seconds - 4 * passed) <= 12
                    assert abs(rates.submitted * rates.seconds - 4 * passed) <= 12
                    assert rates.seconds >= 0.05
                    assert rates.kernel_entries > 0
                    assert rates.ticks > 0
                    assert 0 <= rates.busy <= 1
                    assert rates.in_flight["poll in"] == 1
                    assert f"{rates.submitted:,.0f} submitted/s" in str(rates)
                    turns += 1
                    if turns == 3:
                        break
                nursery.cancel_scope.cancel()
            async for rates in monitor:
                assert rates.in_flight == {"poll in": 1}
                break

    trio_uring.run(main, io_backend=ring)


def test_busy_is_the_share_that_the_loop_did_not_sleep() -> None:
    monitor = RingMonitor(0.1)

    async def main() -> None:
        # Another process may have the processor at any moment; in the end it is as it has to be.
        async for idle in monitor:
            if idle.busy < 0.5:
                break
        readings = aiter(monitor)
        busy = 0.0
        while busy < 0.5:
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                await trio.lowlevel.checkpoint()
            busy = (await anext(readings)).busy

    trio_uring.run(main, io_backend="uring", instruments=[monitor])


def test_where_it_cannot_tell_rates() -> None:
    async def main() -> None:
        async for _ in monitor:
            break

    monitor = RingMonitor()
    with pytest.raises(RuntimeError, match="not on the ring"):
        trio_uring.run(main, io_backend="epoll", instruments=[monitor])
    with pytest.raises(RuntimeError, match="not an instrument of this run"):
        trio_uring.run(main, io_backend="uring")
    with pytest.raises(ValueError, match="interval"):
        RingMonitor(0)


# ------------------------------------------------------------------ logging


def test_debug_log(ring: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await trio.lowlevel.checkpoint()

    caplog.set_level(logging.DEBUG, logger="trio_uring")
    trio_uring.run(main, io_backend=ring)
    made, closed = [record.getMessage() for record in caplog.records if record.name == "trio_uring"]
    assert made.startswith("ring ")
    assert "submission and" in made
    assert "UringBackend(" in made
    assert closed.startswith("ring closed: UringStatistics(")


def test_nothing_of_this_is_paid_for_by_operations(ring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is asked a few times in a run, however much the run does; and nobody watches it."""
    asked: list[str] = []
    original = logging.Logger.isEnabledFor

    def is_enabled_for(self: logging.Logger, level: int) -> bool:
        if self.name == "trio_uring":
            asked.append(self.name)
        return original(self, level)

    async def main(exchanges: int) -> None:
        assert not any(trio._core._run.GLOBAL_RUN_CONTEXT.runner.instruments.values())
        left, right = trio.socket.socketpair()
        with left, right:
            for _ in range(exchanges):
                await left.send(b"x")
                assert await right.recv(1) == b"x"

    trio_uring.run(main, 1, io_backend=ring)  # what is only said once in a process
    monkeypatch.setattr(logging.Logger, "isEnabledFor", is_enabled_for)
    trio_uring.run(main, 1, io_backend=ring)
    few = len(asked)
    asked.clear()
    trio_uring.run(main, 500, io_backend=ring)
    assert len(asked) == few <= 3


def test_overflow_is_logged_by_the_monitor(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pairs = [trio.socket.socketpair() for _ in range(30)]
        async with trio.open_nursery() as nursery:
            for left, _ in pairs:
                nursery.start_soon(left.recv, 1)
            await trio.testing.wait_all_tasks_blocked()
            for _, right in pairs:
                right.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                os.write(right.fileno(), b"x")
        await trio.sleep(0.01)
        await trio.lowlevel.checkpoint()
        assert only().counters["cq_overflows"] > 0
        for left, right in pairs:
            left.close()
            right.close()

    caplog.set_level(logging.DEBUG, logger="trio_uring")
    small = trio_uring.UringBackend(sq_entries=2, cq_entries=4)
    trio_uring.run(main, io_backend=small, instruments=[RingMonitor(0.0001)])
    assert "the completion queue has overflowed" in caplog.text


# ------------------------------------------------------------------ the signal


def started(way: str, mode: str, **variables: str) -> subprocess.Popen[str]:
    command, environment = command_line(way, str(PROGRAMS / "hanging.py"), mode)
    return subprocess.Popen(
        command,
        env={**environment, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_until(process: subprocess.Popen[str], last: str) -> list[str]:
    """What it writes to standard error, to the first line that has `last` in it."""
    assert process.stderr is not None
    found: list[str] = []
    while not found or last not in found[-1]:
        assert select.select([process.stderr], [], [], SECONDS)[0], found
        line = process.stderr.readline()
        assert line, found
        found.append(line)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["asleep", "busy"])
def test_a_program_that_hangs(way: str, mode: str, tmp_path: Path) -> None:
    """Nobody has prepared it but for the variable. It tells where it hangs, and goes on."""
    path = tmp_path / "dump"
    with started(way, mode, TRIO_URING_DUMP=f"SIGUSR1:{path}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging uring\n"
        place = "asleep in the kernel" if mode == "asleep" else "in work_for_ever: sys.stdin.readline()"

        def dumps() -> list[str]:
            return path.read_text().split("trio-uring dump")[1:] if path.exists() else []

        def dumped() -> bool:
            process.send_signal(signal.SIGUSR1)
            return len(dumps()) > 1 and place in dumps()[-1]

        # At least twice; and again where it was still on its way to where it hangs, or about to call the kernel there: a signal
        # that comes between CPython's last look at its signals and read(2) is handled when another one ends that.
        until(dumped, "no dump")
        assert process.communicate("\n", timeout=SECONDS) == ("over\n", "")
        assert process.returncode == 0
    last = [each for each in dumps() if place in each][-1]
    assert f"process {process.pid}," in last
    assert "recv, waiting" in last
    if mode == "asleep":
        assert "age unknown" not in last
        assert "in wait_for_an_answer: await socket.recv(100)" in last
    else:
        assert "loop: thread MainThread, running" in last
        assert "in work_for_ever: sys.stdin.readline()" in last


def test_a_dump_to_standard_error() -> None:
    with started("variable", "asleep", TRIO_URING_DUMP="SIGUSR2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging uring\n"
        process.send_signal(signal.SIGUSR2)
        assert "trio-uring dump" in lines_until(process, "trio-uring dump")[0]
        said, _ = process.communicate("\n", timeout=SECONDS)
    assert (said, process.returncode) == ("over\n", 0)


def test_a_program_that_handles_the_signal_itself_is_not_disturbed() -> None:
    command, environment = command_line("variable", str(PROGRAMS / "signals.py"))
    with subprocess.Popen(
        command,
        env={**environment, "TRIO_URING_DUMP": "SIGUSR1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "uring\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "SIGUSR1\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=SECONDS) == ("SIGTERM\n", "")
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("SIGNONE", "no signal 'SIGNONE'; it takes SIGUSR1, or SIGUSR1:PATH"),
        ("SIGINT", "no dump is armed: the program handles that signal itself"),
        ("SIGKILL", "no dump is armed: "),
    ],
)
def test_a_bad_value_is_told_and_stops_nobody(value: str, sentence: str) -> None:
    with started("variable", "asleep", TRIO_URING_DUMP=value) as process:
        said, errors = process.communicate("\n", timeout=SECONDS)
    assert (said, process.returncode) == ("hanging uring\nover\n", 0)
    assert errors.startswith(f"TRIO_URING_DUMP={value}: {sentence}")
    assert errors.count("\n") == 1


def test_armed_by_a_call_with_the_handler_of_before(tmp_path: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        trio_uring.dump_on_signal(signal.SIGUSR2)
        trio_uring.dump_on_signal(signal.SIGUSR2, tmp_path / "dump")  # again: still one dump

        async def main() -> None:
            os.kill(os.getpid(), signal.SIGUSR2)
            await trio.lowlevel.checkpoint()

        trio_uring.run(main, io_backend="uring")
        assert _armed.is_armed()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not _armed.is_armed()
    assert seen == [signal.SIGUSR2]
    said = (tmp_path / "dump").read_text()
    assert said.startswith("trio-uring dump: process ")
    assert said.count("trio-uring dump") == 1
    assert "os.kill(os.getpid(), signal.SIGUSR2)" in said
    assert "_armed.py" not in said


def test_a_path_that_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    try:
        trio_uring.dump_on_signal(signal.SIGUSR2, tmp_path / "no" / "directory")
        os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert "the dump cannot be written to" in caplog.text


def test_a_server_in_production(site: Path) -> None:
    """Every worker of Hypercorn is armed; a request that hangs is found in the dump of the one that serves it."""
    with (
        hypercorn("variable", "starlette_app:app", site, workers=2, TRIO_URING_DUMP="SIGUSR1") as server,
        socket.create_connection(("127.0.0.1", server.port)) as client,
    ):
        client.sendall(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b"begun" not in received:
            received += client.recv(1000)

        def dumped() -> bool:
            """The request may be on its way still, so it is asked for again."""
            for pid in server.workers:
                os.kill(pid, signal.SIGUSR1)
            said = server.errors.read_text()
            return "starlette_app.py" in said and all(f"process {pid}," in said for pid in server.workers)

        until(dumped, "the request is in no dump")
        assert f"INET stream socket 127.0.0.1:{server.port} to 127.0.0.1:" in server.errors.read_text()
        (site / "release").touch()
        while b"ended" not in received:
            received += client.recv(1000)
        (site / "release").unlink()
