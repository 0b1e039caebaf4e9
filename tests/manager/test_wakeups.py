"""Nothing sleeps through a wake-up, and nothing wakes up for an idle loop's sake (F27, F28).

`get_events` is falsy if and only if the timeout expired: Trio decides by it whether a run is idle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from manager_tools import PATIENCE, Backend, Waiter, blocked, fill, manager, pipe, run, socket_pair

from trio_uring import UringBackend
from trio_uring._loop.manager import UringIOManager

pytestmark = pytest.mark.usefixtures("descriptors_flat")


@contextlib.contextmanager
def bare_manager(backend: Backend = "uring") -> Iterator[UringIOManager]:
    """An I/O manager without a run."""
    options = UringBackend() if isinstance(backend, str) else backend
    made = UringIOManager(options)
    try:
        yield made
    finally:
        made.close()


# ------------------------------------------------------------------ force_wakeup


def test_f27_woken_before_the_wait(ring: Backend) -> None:
    with bare_manager(ring) as m:
        m.force_wakeup()
        assert m.get_events(PATIENCE)
        # Once: the next wait is idle again.
        assert not m.get_events(0)
        assert not m.get_events(0.001)


def test_f27_many_wakeups_are_one(ring: Backend) -> None:
    with bare_manager(ring) as m:
        for _ in range(1000):
            m.force_wakeup()
        assert m.get_events(PATIENCE)
        assert not m.get_events(0)


def test_f27_woken_by_threads_during_the_wait(ring: Backend) -> None:
    """Each round the loop goes to sleep at about the time when others wake it."""
    rounds, wakers = 300, 3
    with bare_manager(ring) as m:
        start = threading.Barrier(wakers + 1)

        def wake() -> None:
            for _ in range(rounds):
                start.wait(PATIENCE)
                m.force_wakeup()

        threads = [threading.Thread(target=wake) for _ in range(wakers)]
        for thread in threads:
            thread.start()
        for _ in range(rounds):
            start.wait(PATIENCE)
            began = time.monotonic()
            assert m.get_events(PATIENCE)
            assert time.monotonic() - began < PATIENCE / 2
        for thread in threads:
            thread.join()


def test_f27_woken_by_a_signal_handler(ring: Backend) -> None:
    with bare_manager(ring) as m:
        previous = signal.signal(signal.SIGUSR1, lambda *_: m.force_wakeup())
        try:
            for _ in range(100):
                signal.raise_signal(signal.SIGUSR1)
                assert m.get_events(PATIENCE)
                assert not m.get_events(0)
        finally:
            signal.signal(signal.SIGUSR1, previous)


def test_f19_waking_after_the_end(ring: Backend) -> None:
    """A late waker writes to nothing, above all not to whatever got the number of the eventfd."""
    with bare_manager(ring) as m:
        pass
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket_pair()) for _ in range(10)]
        for _ in range(10):
            m.force_wakeup()
        for a, b in sockets:
            for sock in (a, b):
                with pytest.raises(BlockingIOError):
                    sock.recv(1)


def test_f19_threads_that_wake_while_the_manager_is_closed(ring: Backend) -> None:
    for _ in range(20):
        with bare_manager(ring) as m:
            stop = threading.Event()

            def wake(m: UringIOManager = m, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    m.force_wakeup()

            threads = [threading.Thread(target=wake) for _ in range(2)]
            for thread in threads:
                thread.start()
            m.get_events(0)
        with socket_pair() as (a, b):
            stop.set()
            for thread in threads:
                thread.join()
            for sock in (a, b):
                with pytest.raises(BlockingIOError):
                    sock.recv(1)


def test_f24_completions_that_a_close_came_across() -> None:
    """More completions than the queue holds are there when a close runs the kernel's deferred work: each comes once."""
    with contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(pipe()) for _ in range(20)]
        m = stack.enter_context(bare_manager(UringBackend(sq_entries=2, cq_entries=4)))
        assert not m.get_events(0)
        for number, (r, w) in enumerate(pipes):
            m.ring.poll(r, 1, 1000 + number)
            os.write(w, b"x")
        m.force_wakeup()
        m.ring.cancel_fd(pipes[0][0])
        came: list[int] = []
        while len(came) < len(pipes):
            events = m.get_events(PATIENCE)
            came += [user_data for user_data in events[::3] if user_data >= 1000]
        assert sorted(came) == list(range(1000, 1020))
        while m.get_events(0):
            pass
        assert m.ring.counters().inflight == 0


# ------------------------------------------------------------------ run_sync_soon


@pytest.mark.parametrize("threads", [1, 4])
def test_run_sync_soon_storm(backend: Backend, threads: int) -> None:
    """Every callback of every thread runs, with the loop going to sleep between them as often as it can."""
    each = 500

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()
        ran: list[int] = []
        done = trio.Event()

        def callback(number: int) -> None:
            ran.append(number)
            if len(ran) == threads * each:
                done.set()

        def storm() -> None:
            for number in range(each):
                token.run_sync_soon(callback, number)
                if number % 50 == 0:
                    time.sleep(0)

        storming = [threading.Thread(target=storm) for _ in range(threads)]
        for thread in storming:
            thread.start()
        await done.wait()
        for thread in storming:
            thread.join()
        assert sorted(ran) == sorted(list(range(each)) * threads)

    run(backend, main)


def test_run_sync_soon_one_by_one(backend: Backend) -> None:
    """Each callback comes when the loop is asleep, or about to be."""
    rounds = 300

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()
        go = threading.Semaphore(0)

        def caller() -> None:
            for _ in range(rounds):
                go.acquire()
                token.run_sync_soon(lambda: event.set())

        event = trio.Event()
        thread = threading.Thread(target=caller)
        thread.start()
        for _ in range(rounds):
            event = trio.Event()
            go.release()
            await event.wait()
        thread.join()

    run(backend, main)


def test_f27_signals_and_threads_at_once(backend: Backend) -> None:
    """run_sync_soon from a signal handler, during a storm of it from a thread."""
    signals = 100

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()
        count = {"signals": 0, "threads": 0}
        done = trio.Event()

        def callback(kind: str) -> None:
            count[kind] += 1
            if count == {"signals": signals, "threads": signals}:
                done.set()

        def handler(*_: object) -> None:
            token.run_sync_soon(callback, "signals")
            handled.release()

        def storm() -> None:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGUSR1)
                token.run_sync_soon(callback, "threads")
                handled.acquire()  # pending signals of one kind are one

        handled = threading.Semaphore(0)
        previous = signal.signal(signal.SIGUSR1, handler)
        try:
            thread = threading.Thread(target=storm)
            thread.start()
            await done.wait()
            thread.join()
        finally:
            signal.signal(signal.SIGUSR1, previous)

    run(backend, main)


def test_signal_receiver(backend: Backend) -> None:
    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            for _ in range(20):
                os.kill(os.getpid(), signal.SIGUSR1)
                async for number in signals:
                    assert number == signal.SIGUSR1
                    break

    run(backend, main)


def test_threads_and_back(backend: Backend) -> None:
    async def main() -> None:
        async def one(number: int) -> None:
            def in_thread() -> int:
                trio.from_thread.run(trio.lowlevel.checkpoint)
                return trio.from_thread.run_sync(lambda: number)

            assert await trio.to_thread.run_sync(in_thread) == number

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)

    run(backend, main)


# ------------------------------------------------------------------ timeouts


def test_a_timeout_is_not_early_and_is_a_timeout(ring: Backend) -> None:
    with bare_manager(ring) as m:
        for timeout in (0, 1e-10, 0.0005, 0.02):
            began = time.monotonic()
            assert not m.get_events(timeout)
            assert time.monotonic() - began >= timeout - 1e-6


def test_deadlines(backend: Backend) -> None:
    async def main() -> None:
        async def sleeper(seconds: float) -> None:
            began = trio.current_time()
            with trio.move_on_after(seconds) as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught
            assert trio.current_time() - began >= seconds

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(sleeper, number / 1000)
        with socket_pair() as (a, _):
            with trio.move_on_after(0.001) as scope:
                await trio.lowlevel.wait_readable(a)
            assert scope.cancelled_caught

    run(backend, main)


def test_f28_a_signal_is_not_a_timeout(ring: Backend) -> None:
    """The wait ends, with an answer that is not falsy, and long before its timeout."""
    with bare_manager(ring) as m, signals_every(0.002):
        for _ in range(20):
            began = time.monotonic()
            assert m.get_events(PATIENCE)
            assert time.monotonic() - began < PATIENCE


@contextlib.contextmanager
def signals_every(seconds: float, most: int | None = None) -> Iterator[list[int]]:
    """A harmless signal again and again, to whatever the main thread does; the list grows with each, up to `most`."""
    seen: list[int] = []

    def handler(number: int, _frame: object) -> None:
        seen.append(number)
        if len(seen) == most:
            signal.setitimer(signal.ITIMER_REAL, 0)

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Answers:
    """Asks of each wait whether it may be called idle. Not an instrument: those see the timeout and not the answer."""

    def __init__(self, patch: pytest.MonkeyPatch, m: UringIOManager) -> None:
        self.idle: list[tuple[float, float]] = []
        self.interrupted = 0
        original = type(m).get_events

        def get_events(m: UringIOManager, timeout: float) -> object:
            began = time.monotonic()
            events = original(m, timeout)
            if not events:
                self.idle.append((timeout, time.monotonic() - began))
            else:
                self.interrupted += 1
            return events

        patch.setattr(UringIOManager, "get_events", get_events)


def test_f28_signals_do_not_make_an_idle_loop(ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """wait_all_tasks_blocked(cushion) under fire: it may take longer, and it never takes less."""

    async def main() -> None:
        answers = Answers(monkeypatch, manager())
        with signals_every(0.003):
            for cushion in (0.0, 0.02):
                # The cushion is shorter than what other timers allow for, longer than the pause between two signals.
                with trio.move_on_after(0.3):
                    began = time.monotonic()
                    await trio.testing.wait_all_tasks_blocked(cushion)
                    assert time.monotonic() - began >= cushion
            await trio.sleep(0.1)
        assert answers.interrupted
        for timeout, took in answers.idle:
            assert took >= timeout - 1e-6

    run(ring, main)


def test_f28_signals_do_not_shorten_or_prolong_a_sleep(backend: Backend) -> None:
    async def main() -> None:
        with signals_every(0.002) as seen:
            began = time.monotonic()
            await trio.sleep(0.2)
            took = time.monotonic() - began
        assert took >= 0.2
        assert took < PATIENCE / 2  # a timeout that starts afresh with each signal would never end
        assert seen

    run(backend, main)


def test_wait_all_tasks_blocked_waits_for_io_that_is_on_its_way(backend: Backend) -> None:
    """A task that is about to be woken by a completion is not blocked."""

    async def main() -> None:
        hops = 50
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(socket_pair()) for _ in range(hops)]
            passed: list[int] = []

            async def hop(number: int) -> None:
                await trio.lowlevel.wait_readable(pairs[number][0])
                passed.append(number)
                if number + 1 < hops:
                    pairs[number + 1][1].send(b"x")

            async with trio.open_nursery() as nursery:
                for number in range(hops):
                    nursery.start_soon(hop, number)
                await blocked()
                assert not passed
                pairs[0][1].send(b"x")
                await blocked()
                assert passed == list(range(hops))

    run(backend, main)


def test_autojump_waits_for_io(backend: Backend) -> None:
    """MockClock jumps over a sleep when the run is idle, and a completion on its way is not idle."""

    async def main() -> None:
        with socket_pair() as (a, b):
            began = trio.current_time()
            with trio.move_on_after(1000) as scope:
                for _ in range(50):
                    b.send(b"x")
                    await trio.lowlevel.wait_readable(a)
                    a.recv(1)
            assert not scope.cancelled_caught
            assert trio.current_time() == began
            real = time.monotonic()
            await trio.sleep(10_000)
            assert time.monotonic() - real < PATIENCE
            assert trio.current_time() == began + 10_000
            with trio.move_on_after(500) as scope:
                await trio.lowlevel.wait_readable(a)
            assert scope.cancelled_caught
            assert trio.current_time() == began + 10_500

    run(backend, main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_f28_autojump_under_signals(backend: Backend) -> None:
    """Each threshold has to pass without a signal's help before the clock jumps: it waits until they are over."""

    async def main() -> None:
        began = trio.current_time()
        await trio.sleep(1)
        assert trio.current_time() >= began + 1

    threshold = 0.02
    with signals_every(0.01, most=20):
        real = time.monotonic()
        run(backend, main, clock=trio.testing.MockClock(autojump_threshold=threshold))
        assert time.monotonic() - real >= threshold


def test_a_busy_run_still_sees_io_and_signals(backend: Backend) -> None:
    """A task that never lets the loop sleep starves nobody."""

    async def main() -> None:
        with socket_pair() as (a, b):
            fill(a.fileno())
            reader, writer = Waiter(), Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run, trio.lowlevel.wait_readable, a)
                nursery.start_soon(writer.run, trio.lowlevel.wait_writable, a)
                b.send(b"x")
                while not reader.ended.is_set():
                    await trio.lowlevel.checkpoint()
                while not writer.ended.is_set():
                    with contextlib.suppress(BlockingIOError):
                        b.recv(1 << 20)
                    await trio.lowlevel.checkpoint()
            assert reader.ready
            assert writer.ready

    run(backend, main)
