"""Runs beside and after each other, in threads, in forked and spawned processes: one owner for each ring (invariant 9).

Knows Trio's public interface; of rings only that each run has one.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from conftest import GROUP, descriptors
from manager_tools import (
    PATIENCE,
    Backend,
    Waiter,
    blocked,
    in_child,
    in_thread,
    manager,
    pipe,
    read,
    run,
    socket_pair,
    uncleared,
)

pytestmark = [
    pytest.mark.usefixtures("descriptors_flat"),
    # Python 3.12 and newer say so of every fork in a process with threads; Trio keeps some.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


async def ping_pong(rounds: int = 20) -> int:
    """Two tasks, a socket pair, and a timer."""
    count = 0
    with socket_pair() as (a, b):

        async def player(sock: socket.socket, starts: bool) -> None:
            nonlocal count
            if starts:
                sock.send(b"x")
            for _ in range(rounds):
                await trio.lowlevel.wait_readable(sock)
                sock.recv(1)
                count += 1
                await trio.lowlevel.wait_writable(sock)
                sock.send(b"x")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(player, a, True)
            nursery.start_soon(player, b, False)
            await trio.sleep(0.001)
    return count


# ------------------------------------------------------------------ after each other


def test_f19_f34_two_hundred_runs(ring: Backend) -> None:
    """No descriptor stays, and the memory accounting of ended rings does not pile up."""
    run(ring, ping_pong, 1)
    before = descriptors()
    for _ in range(200):
        assert run(ring, ping_pong, 1) == 2
    assert descriptors() == before


def test_a_run_that_fails_leaves_nothing(ring: Backend) -> None:
    async def main() -> None:
        with pipe() as (r, _), pipe() as (other, _):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, r)
                nursery.start_soon(read, other, uncleared(1), 1)
                await blocked()
                raise KeyError("mine")

    for _ in range(5):
        with pytest.RaisesGroup(pytest.RaisesExc(KeyError, match="mine")):
            run(ring, main)


def test_run_inside_a_run_is_refused(ring: Backend) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="from inside"):
            run(ring, ping_pong)
        assert await ping_pong(3) == 6

    run(ring, main)


# ------------------------------------------------------------------ beside each other


def test_runs_in_many_threads(ring: Backend) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: run(ring, ping_pong), range(24))) == [40] * 24


def test_runs_on_the_ring_and_on_epoll_at_once(ring: Backend) -> None:
    async def on(backend: str) -> str:
        await ping_pong()
        name: str = trio.lowlevel.current_statistics().io_statistics.backend
        return name

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        kinds: list[Backend] = [ring, "epoll"] * 6
        names = list(pool.map(lambda kind: run(kind, on, ""), kinds))
    assert names == ["uring", "epoll"] * 6


def test_f30_a_run_started_by_a_thread_that_a_run_started(ring: Backend) -> None:
    async def main() -> None:
        assert await trio.to_thread.run_sync(run, ring, ping_pong) == 40
        assert await ping_pong() == 40

    run(ring, main)


def test_runs_talk_to_each_other(ring: Backend) -> None:
    """Two runs in two threads, one socket pair."""
    with socket_pair() as (a, b):

        async def side(sock: socket.socket) -> int:
            total = 0
            for _ in range(200):
                await trio.lowlevel.wait_writable(sock)
                sock.send(b"x")
                await trio.lowlevel.wait_readable(sock)
                total += len(sock.recv(1))
            return total

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            results = [pool.submit(run, ring, side, sock) for sock in (a, b)]
            assert [result.result(PATIENCE) for result in results] == [200, 200]


def test_the_manager_of_another_thread(ring: Backend) -> None:
    """The ring of a run answers its owner only; what it says to others is clear, and does it no harm."""

    async def main() -> None:
        with pipe() as (r, w):
            m = manager()

            def intrude() -> None:
                with pytest.raises(RuntimeError, match="belongs to another thread"):
                    m.ring.poll(r, 1, 1000)
                with pytest.raises(RuntimeError, match="belongs to another thread"):
                    m.ring.submit()

            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, r)
                await trio.to_thread.run_sync(intrude)
                os.write(w, b"x")
            assert waiter.ready

    run(ring, main)


# ------------------------------------------------------------------ processes


def forked(in_child: Callable[[], object]) -> None:
    """Fork; the child calls a function and must return from it."""
    said, says = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            in_child()
            os._exit(0)
        except BaseException as error:
            os.write(says, repr(error).encode())
            os._exit(1)
    os.close(says)
    with os.fdopen(said) as saying:
        complaint = saying.read()
    _, status = os.waitpid(pid, 0)
    assert not complaint
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_run_in_a_forked_child(ring: Backend) -> None:
    def child() -> None:
        assert run(ring, ping_pong) == 40

    forked(child)
    run(ring, ping_pong)
    forked(child)


def test_f29_a_fork_inside_a_run(ring: Backend) -> None:
    """The child gets a clear error wherever it tries to go on with the run, may close what it inherited, and may run anew."""

    async def main() -> None:
        with socket_pair() as (a, b), pipe() as (r, w), socket_pair() as (c, _):
            theirs = trio.socket.from_stdlib_socket(c)
            waiter, reader = Waiter(), Waiter()

            async def read_one(fd: int) -> None:
                assert await read(fd, uncleared(1), 1) == 1

            def child() -> None:
                for wait in (trio.lowlevel.wait_writable, read_one):
                    coroutine: Any = wait(w)
                    with pytest.raises(RuntimeError, match="parent process"):
                        coroutine.send(None)
                with pytest.raises(RuntimeError, match="parent process"):
                    manager().get_events(0)
                manager().force_wakeup()
                for each in (a, r, theirs):
                    trio.lowlevel.notify_closing(each)
                waiter.scope.cancel()
                theirs.close()
                a.close()
                os.close(r)
                # A new thread has no run, so it may have one of its own.
                assert in_thread(lambda: run(ring, ping_pong)) == 40

            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                nursery.start_soon(reader.run, read_one, r)
                await blocked()
                before = attrs.asdict(manager().statistics())
                forked(child)
                assert attrs.asdict(manager().statistics()) == before
                # The parent's operations are in flight as they were.
                await blocked()
                assert not waiter.ended.is_set()
                assert not reader.ended.is_set()
                b.send(b"x")
                os.write(w, b"x")
            assert waiter.ready
            assert reader.ready
            assert await ping_pong() == 40

    run(ring, main)


def test_f29_a_fork_with_entries_queued(ring: Backend) -> None:
    """What is queued is the parent's: the child submits none of it, the parent all."""

    async def main() -> None:
        with pipe() as (r, w):
            waiter = Waiter()

            class BeforeTheSubmit(trio.abc.Instrument):
                """Between the tasks of a tick and the submit."""

                def before_io_wait(self, timeout: float) -> None:
                    if r in manager().readers and not done:
                        done.append(manager().ring.queued)
                        forked(lambda: None)

            done: list[int] = []
            trio.lowlevel.add_instrument(BeforeTheSubmit())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, r)
                await blocked()
                assert done[0] >= 1 or GROUP is not None  # a poller may have taken it already
                os.write(w, b"x")
            assert waiter.ready

    run(ring, main)


def test_f29_a_fork_in_a_thread_of_a_run(ring: Backend) -> None:
    async def main() -> None:
        with socket_pair() as (a, b):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                for _ in range(5):
                    await trio.to_thread.run_sync(forked, lambda: None)
                assert not waiter.ended.is_set()
                b.send(b"x")
            assert waiter.ready

    run(ring, main)


def test_f29_a_child_that_returns_into_the_run() -> None:
    """It cannot: the error says why, and the process ends with it."""
    done = in_child(
        """
        import os, sys, trio, trio_uring

        async def main():
            pid = os.fork()
            if pid:
                _, status = await trio.to_thread.run_sync(os.waitpid, pid, 0)
                print("child", os.waitstatus_to_exitcode(status), flush=True)
                await trio.sleep(0.01)
                print("parent goes on", flush=True)
            else:
                await trio.sleep(0.01)
                print("never")

        trio.run(main, io_backend="uring")
        """
    )
    assert done.stdout == "child 1\nparent goes on\n", done.stderr
    assert "belongs to the parent process" in done.stderr
    assert done.returncode == 0


def test_subprocesses_inherit_nothing(ring: Backend) -> None:
    """The ring and its eventfd are close-on-exec."""
    listing = """
import os
for fd in os.listdir("/proc/self/fd"):
    try:
        print(os.readlink(f"/proc/self/fd/{fd}"))
    except FileNotFoundError:
        pass
"""

    def inherited(close_fds: bool) -> str:
        command = [sys.executable, "-c", listing]
        return subprocess.run(command, close_fds=close_fds, capture_output=True, check=True, text=True).stdout

    async def main() -> None:
        await blocked()
        ours = "".join(descriptors().values())
        assert "io_uring" in ours
        assert "eventfd" in ours
        by_trio = await trio.run_process([sys.executable, "-c", listing], capture_stdout=True, close_fds=False)
        for found in (by_trio.stdout.decode(), inherited(False), inherited(True)):
            assert "/dev" in found or "pipe" in found
            assert "io_uring" not in found
            assert "eventfd" not in found

    run(ring, main)


def test_a_run_holds_two_descriptors(ring: Backend) -> None:
    """Of its own, beside Trio's: docs/differences.md. On epoll they are three."""

    async def count() -> int:
        await blocked()
        return len(descriptors())

    assert run("epoll", count) - run(ring, count) == 1


def test_many_subprocesses(ring: Backend) -> None:
    async def main() -> None:
        async def one(number: int) -> None:
            done = await trio.run_process(["/bin/echo", str(number)], capture_stdout=True)
            assert done.stdout == b"%d\n" % number

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)

    run(ring, main)


MULTIPROCESSING = """
import multiprocessing, sys, trio, trio_uring

async def work(number):
    await trio.sleep(0.001)
    return trio.lowlevel.current_statistics().io_statistics.backend, number

def job(number):
    return trio.run(work, number, io_backend="uring")

async def main(method):
    # Trio forbids a run inside a run by thread, and a forked child of this thread is inside one: fork from another.
    def pool():
        with multiprocessing.get_context(method).Pool(2) as pool:
            return pool.map(job, range(4))
    print(await trio.to_thread.run_sync(pool))
    print(await work("after"))

if __name__ == "__main__":
    print(job("before"))
    trio.run(main, sys.argv[1], io_backend="uring")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, tmp_path: Any) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.fail("every start method exists on Linux")
    program = tmp_path / "program.py"
    program.write_text(MULTIPROCESSING)
    done = subprocess.run(
        [sys.executable, str(program), method], cwd="/", capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stdout.splitlines() == [
        "('uring', 'before')",
        "[('uring', 0), ('uring', 1), ('uring', 2), ('uring', 3)]",
        "('uring', 'after')",
    ], done.stderr


def test_a_thread_that_outlives_its_run(ring: Backend) -> None:
    """A late run_sync_soon is refused."""
    tokens = []

    async def main() -> None:
        tokens.append(trio.lowlevel.current_trio_token())

    run(ring, main)
    with pytest.raises(trio.RunFinishedError):
        tokens[0].run_sync_soon(lambda: None)
