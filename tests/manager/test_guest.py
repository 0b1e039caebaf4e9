"""Guest runs: another loop drives Trio, another thread sleeps, and callbacks of the host come at any moment (F32).

Knows how Trio's guest mode calls an I/O manager: `get_events(0)` on the host's thread, `get_events(timeout)` in a worker
thread if that found nothing, and `process_events` on the host's thread again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from manager_tools import (
    PATIENCE,
    Backend,
    Host,
    Waiter,
    blocked,
    fill,
    in_child,
    in_thread,
    manager,
    pipe,
    read,
    run,
    socket_pair,
    uncleared,
)

import trio_uring
from trio_uring._manager import UringIOManager

pytestmark = pytest.mark.usefixtures("descriptors_flat")


@pytest.fixture(autouse=True)
def _quiet_workers() -> Iterator[None]:
    """Trio keeps its worker threads for a while; a test leaves none asleep in a manager."""
    yield
    gc.collect()


class Sleeps:
    """Counts the calls of get_events in threads other than the host's."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun = self.over = 0
        host = threading.get_ident()
        original = UringIOManager.get_events

        def get_events(m: UringIOManager, timeout: float) -> Any:
            if threading.get_ident() == host:
                return original(m, timeout)
            self.begun += 1
            try:
                return original(m, timeout)
            finally:
                self.over += 1

        patch.setattr(UringIOManager, "get_events", get_events)

    def asleep(self) -> bool:
        """In a sleep, and not the first, which answers at once."""
        return self.begun > 1 and self.begun == self.over + 1


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> Sleeps:
    """How often the worker has slept on the ring."""
    return Sleeps(monkeypatch)


def asleep(host: Host, sleeps: Sleeps) -> Callable[[], bool]:
    """The worker sleeps and nothing else is going on."""

    def check() -> bool:
        return sleeps.asleep() and host.worker_asleep()

    return check


def until_asleep(host: Host, sleeps: Sleeps) -> None:
    """Run callbacks until the worker sleeps."""
    deadline = time.monotonic() + PATIENCE
    while not asleep(host, sleeps)():
        assert time.monotonic() < deadline
        with contextlib.suppress(Exception):
            host.todo.get(timeout=0.001)()


# ------------------------------------------------------------------ all of Trio, under a host


async def a_bit_of_everything() -> str:
    """I/O, time, threads, cancels, and the run's own idleness."""
    with socket_pair() as (a, b):
        fill(a.fileno())
        reader, writer, cancelled = Waiter(), Waiter(), Waiter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run, trio.lowlevel.wait_readable, a)
            nursery.start_soon(writer.run, trio.lowlevel.wait_writable, a)
            nursery.start_soon(cancelled.run, trio.lowlevel.wait_readable, b)
            await blocked()
            while not writer.ended.is_set():
                with contextlib.suppress(BlockingIOError):
                    b.recv(1 << 20)
                await blocked()
            b.send(b"x")
            await reader.ended.wait()
            cancelled.scope.cancel()
        assert reader.ready
        assert writer.ready
    with trio.move_on_after(0.01):
        await trio.sleep_forever()
    assert await trio.to_thread.run_sync(lambda: trio.from_thread.run_sync(lambda: 5)) == 5
    stream = trio.testing.memory_stream_pair()
    await stream[0].send_all(b"x")
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:

        async def echo(stream: trio.SocketStream) -> None:
            async for data in stream:
                await stream.send_all(data)

        nursery.start_soon(trio.serve_listeners, echo, listeners)
        async with await trio.open_tcp_stream(*listeners[0].socket.getsockname()) as client:
            for _ in range(20):
                await client.send_all(b"ping")
                assert await client.receive_some() == b"ping"
        nursery.cancel_scope.cancel()
    return "done"


def test_guest(backend: Backend) -> None:
    host = Host()
    host.start(backend, a_bit_of_everything)
    assert host.finish() == "done"


def test_guest_in_another_thread(backend: Backend) -> None:
    def guest() -> Any:
        host = Host()
        host.start(backend, a_bit_of_everything)
        return host.finish()

    assert in_thread(guest) == "done"


def test_guests_in_many_threads(ring: Backend) -> None:
    finished: list[str] = []

    def guest() -> None:
        host = Host()
        host.start(ring, a_bit_of_everything)
        finished.append(host.finish())

    threads = [threading.Thread(target=guest) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert finished == ["done"] * 4


def test_guest_after_run_after_guest(ring: Backend) -> None:
    for _ in range(3):
        host = Host()
        host.start(ring, a_bit_of_everything)
        assert host.finish() == "done"
        assert run(ring, a_bit_of_everything) == "done"


def test_guest_on_asyncio(backend: Backend) -> None:
    async def host() -> outcome.Outcome[str]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[outcome.Outcome[str]] = loop.create_future()
        trio_uring.start_guest_run(
            a_bit_of_everything,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
            host_uses_signal_set_wakeup_fd=True,
            io_backend=backend,
        )
        await asyncio.sleep(0)
        return await done

    assert asyncio.run(host()).unwrap() == "done"


def test_guest_that_fails(backend: Backend) -> None:
    async def main() -> None:
        await trio.sleep(0)
        raise KeyError("mine")

    host = Host()
    host.start(backend, main)
    with pytest.raises(KeyError, match="mine"):
        host.finish()


def test_idle_in_guest_mode(backend: Backend) -> None:
    """The answers of the worker are no timeouts unless they are."""

    async def main() -> None:
        with socket_pair() as (a, b):
            for _ in range(20):
                waiter = Waiter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.run, trio.lowlevel.wait_readable, a)
                    began = time.monotonic()
                    await blocked(0.001)
                    assert time.monotonic() - began >= 0.001
                    assert not waiter.ended.is_set()
                    b.send(b"x")
                    await blocked()
                    assert waiter.ended.is_set()
                    a.recv(1)

    host = Host()
    host.start(backend, main)
    host.finish()


def test_autojump_in_guest_mode(backend: Backend) -> None:
    async def main() -> None:
        began = trio.current_time()
        await trio.sleep(1000)
        assert trio.current_time() - began == 1000

    host = Host()
    host.start(backend, main, clock=trio.testing.MockClock(autojump_threshold=0))
    host.finish()


# ------------------------------------------------------------------ callbacks while the worker sleeps


def test_f32_the_host_wakes_a_task(ring: Backend, sleeps: Sleeps) -> None:
    events = [trio.Event() for _ in range(30)]

    async def main() -> None:
        for event in events:
            await event.wait()

    host = Host()
    host.start(ring, main)
    for event in events:
        until_asleep(host, sleeps)
        event.set()
    host.finish()


def test_f32_the_host_cancels_a_wait(ring: Backend, sleeps: Sleeps) -> None:
    """Invariant 6: what the host queues goes to the kernel at once, because nobody else would hand it over."""
    scopes = [trio.CancelScope() for _ in range(20)]

    async def main() -> None:
        with socket_pair() as (a, _):
            fill(a.fileno())
            for number, scope in enumerate(scopes):
                with scope:
                    if number % 3 == 0:
                        await trio.lowlevel.wait_readable(a)
                    elif number % 3 == 1:
                        await trio.lowlevel.wait_writable(a)
                    else:
                        await read(a.fileno(), uncleared(1), 1)
                assert scope.cancelled_caught

    host = Host()
    host.start(ring, main)
    for scope in scopes:
        until_asleep(host, sleeps)
        scope.cancel()
        assert manager().ring.queued == 0
    host.finish()


def test_f32_the_host_cancels_a_hundred_operations_at_once(ring: Backend, sleeps: Sleeps) -> None:
    scope = trio.CancelScope()

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            pipes = [stack.enter_context(pipe()) for _ in range(100)]
            with scope:
                async with trio.open_nursery() as nursery:
                    for r, _ in pipes:
                        nursery.start_soon(read, r, uncleared(1), 1)
            assert scope.cancelled_caught

    host = Host()
    host.start(ring, main)
    until_asleep(host, sleeps)
    assert manager().statistics().tasks_waiting_read == 101
    scope.cancel()
    assert manager().ring.queued == 0
    host.finish()


def test_f32_the_host_closes_what_is_waited_for(ring: Backend, sleeps: Sleeps) -> None:
    waiters = [Waiter() for _ in range(20)]
    current: list[socket.socket] = []

    async def main() -> None:
        for number, waiter in enumerate(waiters):
            with socket_pair() as pair:
                current[:] = pair
                if number % 2:
                    await waiter.run(trio.lowlevel.wait_readable, pair[0])
                else:
                    await waiter.run(lambda fd: read(fd, uncleared(1), 1), pair[0].fileno())

    host = Host()
    host.start(ring, main)
    for waiter in waiters:
        until_asleep(host, sleeps)
        assert not waiter.ended.is_set()
        a, b = current
        trio.lowlevel.notify_closing(a)
        a.close()
        assert b.recv(1) == b""
    host.finish()
    assert all(isinstance(waiter.error, trio.ClosedResourceError) for waiter in waiters)


def test_f32_only_a_cancelled_wait_is_left_when_the_host_closes(ring: Backend, sleeps: Sleeps) -> None:
    """Nobody waits any more, so nobody is rescheduled; the kernel still holds the file."""
    scope = trio.CancelScope()
    finish = trio.Event()
    current: list[socket.socket] = []

    async def main() -> None:
        with socket_pair() as pair:
            current[:] = pair
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with scope:
                        await trio.lowlevel.wait_readable(pair[0])

                nursery.start_soon(wait)
                await finish.wait()

    host = Host()
    host.start(ring, main)
    until_asleep(host, sleeps)
    scope.cancel()
    a, b = current
    trio.lowlevel.notify_closing(a)
    a.close()
    assert b.recv(1) == b""
    finish.set()
    host.finish()


def test_f32_callbacks_before_the_worker_falls_asleep(ring: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker thread has been asked for and has not come to the ring yet: nothing that happens now may be slept through."""
    gate, released = threading.Event(), threading.Event()
    held: list[Callable[[], Any]] = []
    start_thread_soon = trio._core._run.start_thread_soon

    def held_back(function: Callable[[], Any], deliver: Callable[..., object], name: str | None = None) -> None:
        def when_released() -> Any:
            if gate.is_set():
                assert released.wait(PATIENCE)
            return function()

        if gate.is_set():
            held.append(function)
        start_thread_soon(when_released, deliver)

    monkeypatch.setattr(trio._core._run, "start_thread_soon", held_back)
    scopes = [trio.CancelScope() for _ in range(8)]
    current: list[socket.socket] = []

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(socket_pair()) for _ in scopes]
            current[:] = [sock for pair in pairs for sock in pair]
            async with trio.open_nursery() as nursery:

                async def wait(scope: trio.CancelScope, sock: socket.socket) -> None:
                    with scope:
                        await trio.lowlevel.wait_readable(sock)

                for scope, (a, _) in zip(scopes, pairs, strict=True):
                    nursery.start_soon(wait, scope, a)

    host = Host()
    host.start(ring, main)
    # Past the first sleep, which answers at once.
    deadline = time.monotonic() + PATIENCE
    while not (current and host.worker_asleep() and manager().statistics().tasks_waiting_read == len(scopes) + 1):
        assert time.monotonic() < deadline
        with contextlib.suppress(Exception):
            host.todo.get(timeout=0.001)()
    # One more tick, with the worker held back at its end.
    gate.set()
    trio._core._run.GLOBAL_RUN_CONTEXT.runner.force_guest_tick_asap()
    while not held:
        host.step()
    for scope in scopes[1:]:
        scope.cancel()
    trio.lowlevel.notify_closing(current[2])
    scopes[0].cancel()
    gate.clear()
    released.set()
    host.finish()


def test_f27_threads_wake_a_guest(ring: Backend) -> None:
    rounds = 200

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()
        event = trio.Event()
        go = threading.Semaphore(0)

        def caller() -> None:
            for _ in range(rounds):
                go.acquire()
                token.run_sync_soon(lambda: event.set())

        thread = threading.Thread(target=caller)
        thread.start()
        for _ in range(rounds):
            event = trio.Event()
            go.release()
            await event.wait()
        thread.join()

    host = Host()
    host.start(ring, main)
    host.finish()


def test_f27_the_host_wakes_a_guest_again_and_again(ring: Backend) -> None:
    """At whatever point of its tick the guest is."""
    rounds = 500
    events = [trio.Event() for _ in range(rounds)]
    count = 0

    async def main() -> None:
        nonlocal count
        for event in events:
            await event.wait()
            count += 1

    host = Host()
    host.start(ring, main)
    for event in events:
        event.set()
        if count % 7 == 0:
            host.step()
    host.finish()
    assert count == rounds


# ------------------------------------------------------------------ between get_events and process_events


@contextlib.contextmanager
def reaped_and_not_processed(ring: Backend, wait: Callable[[int], Any]) -> Iterator[tuple[Host, Waiter, int, int]]:
    """A guest run whose completion of a wait on a pipe has been reaped, and whose next tick has not begun."""
    waiter, go = Waiter(), trio.Event()
    fds: list[int] = []

    async def main() -> None:
        with pipe() as (r, w):
            fds[:] = [r, w]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run, wait, r)
                await go.wait()
                os.write(w, b"data")  # and nobody can run any more: the tick ends with get_events(0)

    host = Host()
    host.start(ring, main)
    while not (fds and fds[0] in manager().readers and host.worker_asleep()):
        with contextlib.suppress(Exception):
            host.todo.get(timeout=0.001)()
    go.set()
    state: list[Any] = []
    while not state:
        callback = host.todo.get(timeout=PATIENCE)
        callback()
        guest = getattr(callback, "__self__", None)
        pending = getattr(guest, "unrolled_run_next_send", None)
        if isinstance(pending, outcome.Value) and pending.value and not waiter.ended.is_set() and go.is_set():
            completions = list(pending.value)
            if any(manager().operations.get(u) is manager().readers.get(fds[0]) for u in completions[::3]):
                state.append(completions)
        elif not state and callback_is_delivery(callback):
            continue
    yield host, waiter, fds[0], fds[1]
    host.finish()


def callback_is_delivery(callback: Callable[[], object]) -> bool:
    """Whether a host callback brings the worker's answer."""
    return getattr(callback, "__name__", "") == "in_main_thread"
