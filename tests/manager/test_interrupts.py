"""Ctrl-C anywhere is safe (invariant 10), and whatever breaks a run, its ring is drained and closed.

Programs run in processes of their own, because they are interrupted at moments that nobody chooses.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import pytest
import trio
from manager_tools import Backend, Waiter, blocked, crash, in_child, manager, pipe, read, run, uncleared

from trio_uring._loop.manager import UringIOManager
from trio_uring._ring.ring import Ring

pytestmark = pytest.mark.usefixtures("descriptors_flat")

SWEEP = """
import gc, os, random, signal, sys, threading, time
import trio, trio_uring
from trio.lowlevel import enable_ki_protection

backend = eval(sys.argv[1])
ON_RING = backend != "epoll"
if ON_RING:
    from trio_uring._ring import ring as _ring
    from trio_uring._ring.ring import OP_READ, ffi
chance = random.Random(1)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def one(delay):
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(4)]
    written, got = [0] * 4, [0] * 4
    started, managers = threading.Event(), []

    # Protected, so that the books below are right; Ctrl-C comes to it as it comes to Trio's own code.
    @enable_ki_protection
    async def reads(number, r):
        while True:
            if ON_RING:
                memory = ffi.new("char[]", 16)
                got[number] += await managers[0].operation(r, memory, managers[0].readers).perform(
                    OP_READ, memory, 16, 2**64 - 1
                )
            else:
                await trio.lowlevel.wait_readable(r)
                got[number] += len(os.read(r, 16))

    @enable_ki_protection
    async def writes():
        while True:
            number = chance.randrange(4)
            written[number] += os.write(pipes[number][1], b"0123456789")
            await trio.lowlevel.checkpoint()

    # Not protected: Ctrl-C may come between any two instructions of it.
    async def cancels(w):
        while True:
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.lowlevel.wait_readable(w)
            with trio.move_on_after(0.0001):
                await trio.lowlevel.wait_readable(w)
            await trio.lowlevel.wait_writable(w)

    async def main():
        if ON_RING:
            managers.append(trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(reads, number, pipes[number][0])
            nursery.start_soon(writes)
            nursery.start_soon(cancels, pipes[3][1])
            started.set()

    def interrupt():
        started.wait()
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        trio.run(main, io_backend=backend)
    except KeyboardInterrupt:
        how = "alone"
    except BaseException as group:
        while getattr(group, "exceptions", None):
            (group,) = group.exceptions
        assert isinstance(group, KeyboardInterrupt), group
        how = "in a group"
    thread.join()
    for (r, w), sent, came in zip(pipes, written, got):
        try:
            came += len(os.read(r, 1 << 20))
        except BlockingIOError:
            pass
        assert sent == came, (sent, came)
        os.close(r)
        os.close(w)
    if ON_RING:
        (m,) = managers
        assert m.ring.closed
        counters = m.ring.counters()
        assert counters.inflight == 0, counters.inflight
        assert counters.submitted == counters.completed
        assert not _ring._leaked
    return how


one(0)
before = descriptors()
hows = {one(n * 0.00003) for n in range(120)}
gc.collect()
assert descriptors() == before
print("done", sorted(hows))
"""


@pytest.mark.parametrize("backend", ['"uring"', "trio_uring.UringBackend(sq_entries=2, cq_entries=4)", '"epoll"'])
def test_ctrl_c_at_any_moment(backend: str) -> None:
    """Swept over 120 delays: nothing in flight, no byte lost, no descriptor left, and KeyboardInterrupt as on epoll."""
    done = in_child(SWEEP, backend)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done")
    assert "in a group" in done.stdout
    assert not done.stderr


LONE = """
import os, signal, sys, threading, trio, trio_uring

async def main():
    r, w = os.pipe()
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    await {wait}

trio.run(main, io_backend=sys.argv[1])
"""


@pytest.mark.parametrize("wait", ["trio.sleep_forever()", "trio.lowlevel.wait_readable(r)"])
def test_the_process_ends_as_on_epoll(wait: str) -> None:
    uring, epoll = (in_child(LONE.replace("{wait}", wait), kind) for kind in ("uring", "epoll"))
    assert uring.returncode == epoll.returncode == -2
    assert uring.stdout == epoll.stdout == ""
    assert uring.stderr.splitlines()[-1] == epoll.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert "Warning" not in uring.stderr


def test_ctrl_c_is_delivered_to_a_main_task_that_waits(backend: Backend) -> None:
    """Not lost, even if the wait ends well in the same moment."""

    async def main() -> None:
        with pipe() as (r, w):

            @trio.lowlevel.enable_ki_protection
            async def interrupts() -> None:
                await blocked()
                signal.raise_signal(signal.SIGINT)
                os.write(w, b"x")

            with pytest.RaisesGroup(KeyboardInterrupt):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(interrupts)
                    await trio.lowlevel.wait_readable(r)
                    await trio.lowlevel.checkpoint()
            assert os.read(r, 10) == b"x"

    run(backend, main)


# ------------------------------------------------------------------ a loop that breaks down


@pytest.mark.parametrize("where", ["get_events", "process_events"])
def test_a_loop_that_breaks_down(ring: Backend, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Trio makes of it: the kernel has let go of everything, and the descriptors are closed."""

    async def main() -> None:
        rings.append(manager().ring)
        trio.lowlevel.spawn_system_task(trio.lowlevel.wait_readable, r)
        trio.lowlevel.spawn_system_task(read, other, uncleared(1), 1)
        await blocked()

        def broken(*_: Any) -> Any:
            raise ZeroDivisionError("mine")

        patches[0].setattr(UringIOManager, where, broken)
        await trio.lowlevel.checkpoint()

    rings: list[Ring] = []
    patches: list[pytest.MonkeyPatch] = []

    def runs() -> None:
        with monkeypatch.context() as patch:
            patches[:] = [patch]
            with pytest.raises((ZeroDivisionError, trio.TrioInternalError)):
                run(ring, main)

    def ended() -> None:
        runs()
        gc.collect()
        assert rings[0].closed
        assert rings[0].counters().inflight == 0
        rings.clear()

    with pipe() as (r, _), pipe() as (other, w):
        crash(ended)
        os.write(w, b"x")
        assert os.read(other, 10) == b"x"

    # And the next run is none the worse.
    async def fine() -> None:
        with pipe() as (r, w):
            waiter = Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, r)
                os.write(w, b"x")
            assert waiter.ready

    run(ring, fine)


def test_f35_no_descriptors_left_for_a_ring() -> None:
    """EMFILE at every point of the set-up: an error that says so, nothing leaks, and with descriptors again it works."""
    done = in_child(
        """
        import errno, os, resource, trio, trio_uring

        async def main():
            await trio.sleep(0)
            return "works"

        trio.run(main, io_backend="uring")
        base = len(os.listdir("/proc/self/fd"))
        refused = 0
        for room in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (base - 1 + room, 4096))
            try:
                trio.run(main, io_backend="uring")
            except OSError as error:
                refused += 1
                assert error.errno == errno.EMFILE or getattr(error, "cause", None), repr(error)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 4096))
            assert len(os.listdir("/proc/self/fd")) == base, (room, os.listdir("/proc/self/fd"))
        assert refused >= 2
        print(trio.run(main, io_backend="uring"))
        """
    )
    assert done.stdout == "works\n", done.stderr
