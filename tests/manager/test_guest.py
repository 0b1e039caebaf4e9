"""Guest runs: another loop drives Trio, another thread sleeps, and callbacks of the host come at any moment (F32).

Knows how Trio's guest mode calls an I/O manager: `get_events(0)` on the host's thread, `get_events(timeout)` in a worker
thread if that found nothing, and `process_events` on the host's thread again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import queue
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import outcome
import pytest
import trio
import trio.lowlevel
import trio.testing
from conftest import handed_over
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
from trio_uring._loop.manager import UringIOManager

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


def until_asleep(host: Host, sleeps: Sleeps, begun: Callable[[], object]) -> None:
    """Run callbacks until the guest has begun something and the worker sleeps."""
    until(host, lambda: begun() and asleep(host, sleeps)())


def until(host: Host, condition: Callable[[], object]) -> None:
    """Run callbacks until a condition holds that another thread may bring about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        # Not get(timeout=0.001): CPython 3.11's may wait for ever where it is woken for nothing and the time is over by then.
        try:
            callback = host.todo.get_nowait()
        except queue.Empty:
            time.sleep(0.001)
        else:
            callback()


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
        await trio.lowlevel.checkpoint()
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
        until_asleep(host, sleeps, lambda: event.statistics().tasks_waiting)  # noqa: B023
        event.set()
    host.finish()


def test_f32_the_host_cancels_a_wait(ring: Backend, sleeps: Sleeps) -> None:
    """Invariant 6: what the host queues goes to the kernel at once, because nobody else would hand it over."""
    scopes = [trio.CancelScope() for _ in range(20)]
    current: list[trio.CancelScope] = []

    async def main() -> None:
        with socket_pair() as (a, _):
            fill(a.fileno())
            for number, scope in enumerate(scopes):
                with scope:
                    current[:] = [scope]
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
        until_asleep(host, sleeps, lambda: current == [scope])  # noqa: B023
        scope.cancel()
        assert handed_over(manager().ring)
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
    until_asleep(host, sleeps, lambda: manager().statistics().tasks_waiting_read == 101)
    scope.cancel()
    assert handed_over(manager().ring)
    host.finish()


def test_f32_the_host_closes_what_is_waited_for(ring: Backend, sleeps: Sleeps) -> None:
    waiters = [Waiter() for _ in range(20)]
    current: list[socket.socket] = []
    begun = 0

    async def main() -> None:
        nonlocal begun
        for number, waiter in enumerate(waiters):
            with socket_pair() as pair:
                current[:] = pair
                begun += 1
                if number % 2:
                    await waiter.run(trio.lowlevel.wait_readable, pair[0])
                else:
                    await waiter.run(read_data, pair[0].fileno())

    host = Host()
    host.start(ring, main)
    for number, waiter in enumerate(waiters):
        until_asleep(host, sleeps, lambda: begun == number + 1)  # noqa: B023
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
    until_asleep(host, sleeps, lambda: current)
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
    start_thread_soon: Callable[..., None] = vars(trio._core._run)["start_thread_soon"]

    def held_back(function: Callable[[], Any], deliver: Callable[..., object], name: str | None = None) -> None:
        def when_released() -> Any:
            assert released.wait(PATIENCE)
            return function()

        if gate.is_set():
            held.append(function)
            start_thread_soon(when_released, deliver)
        else:
            start_thread_soon(function, deliver)

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
    until(host, lambda: host.worker_asleep() and manager().statistics().tasks_waiting_read == len(scopes) + 1)
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
    waiter, go, leave = Waiter(), trio.Event(), trio.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter.run, wait, r)
            await go.wait()
            os.write(w, b"data")  # and nobody can run any more: the tick ends with get_events(0)
            await leave.wait()

    with pipe() as (r, w):
        host = Host()
        host.start(ring, main)
        until(host, lambda: host.worker_asleep() and r in manager().readers)
        waiting = manager().readers[r]
        go.set()
        while not (completions := _in_hand(host)) or waiting.user_data not in completions:
            host.step()
        yield host, waiter, r, w
        leave.set()
        host.finish()


def _in_hand(host: Host) -> list[int]:
    """The user_data of the completions that the next tick of the guest will process."""
    callback = host.todo.get(timeout=PATIENCE)
    host.todo.put(callback)  # the only one
    guest = getattr(callback, "__self__", None)
    send = getattr(guest, "unrolled_run_next_send", None)
    return list(send.value[::3]) if isinstance(send, outcome.Value) and send.value else []


async def read_data(fd: int) -> None:
    """A direct read that has to get what the pipe was given."""
    memory = uncleared(8)
    assert await read(fd, memory, 8) == 4
    assert memory[0:4] == b"data" or bytes(b"".join(memory[i] for i in range(4))) == b"data"


def test_f32_nothing_happens_in_between(ring: Backend) -> None:
    for wait in (trio.lowlevel.wait_readable, read_data):
        with reaped_and_not_processed(ring, wait) as (_, waiter, _, _):
            assert not waiter.ended.is_set()
        assert waiter.ready


def test_f32_a_poll_is_cancelled_in_between(ring: Backend) -> None:
    with reaped_and_not_processed(ring, trio.lowlevel.wait_readable) as (_, waiter, _, _):
        waiter.scope.cancel()
    assert waiter.scope.cancelled_caught


def test_f32_a_read_is_cancelled_in_between(ring: Backend) -> None:
    """The bytes have moved, so they are delivered."""
    with reaped_and_not_processed(ring, read_data) as (_, waiter, _, _):
        waiter.scope.cancel()
    assert waiter.ready
    assert not waiter.scope.cancelled_caught


@pytest.mark.parametrize("kind", ["poll", "read"])
def test_f32_closed_in_between(ring: Backend, kind: str) -> None:
    """And the number reused, by somebody who waits at once, and is not woken by what was meant for another file."""
    with reaped_and_not_processed(ring, trio.lowlevel.wait_readable if kind == "poll" else read_data) as state:
        host, waiter, r, _ = state
        newcomer = Waiter()
        a, b = socket.socketpair()
        with a, b:
            trio.lowlevel.notify_closing(r)
            os.dup2(a.fileno(), r)
            trio.lowlevel.spawn_system_task(newcomer.run, trio.lowlevel.wait_readable, r)
            until(host, lambda: waiter.ended.is_set() and host.worker_asleep())
            assert not newcomer.ended.is_set()
            b.send(b"x")
            until(host, newcomer.ended.is_set)
            assert newcomer.ready
            os.close(r)
    if kind == "poll":
        assert isinstance(waiter.error, trio.ClosedResourceError)
    else:
        assert waiter.ready  # the bytes had moved


# ------------------------------------------------------------------ the end


@pytest.mark.parametrize("collected", ["in its own thread", "in another thread"])
def test_abandoned(ring: Backend, collected: str) -> None:
    """The host forgets its guest, and the garbage collector finds it: Trio warns, and the descriptors are closed."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, r)
            nursery.start_soon(read, other, uncleared(1), 1)
            while True:
                await trio.lowlevel.checkpoint()

    def abandon() -> None:
        host = Host()
        host.start(ring, main)
        for _ in range(5):
            host.step()
        if collected == "in its own thread":
            del host
            gc.collect()

    complaints: list[Any] = []
    with pipe() as (r, _), pipe() as (other, w), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", complaints.append)  # Trio's, about tasks that are torn down
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            gc.disable()
            in_thread(abandon)
            for _ in range(3):
                gc.collect()
            gc.enable()
        complaints.clear()
        assert "Trio guest run got abandoned" in "".join(str(t.message) for t in told)
        # The owner drains its ring. Another thread cannot, and says what it kept because of that.
        kept = [t for t in told if "their memory is kept" in str(t.message)]
        assert len(kept) == (collected == "in another thread")
        os.write(w, b"x")
        assert os.read(other, 10) == b"x"


def test_f35_no_descriptor_left_for_the_sleep() -> None:
    """EMFILE when the worker is to fall asleep for the first time: the run goes on."""
    done = in_child(
        """
        import os, queue, resource, trio, trio_uring

        todo, result = queue.SimpleQueue(), []

        async def main():
            await trio.sleep(0.05)
            for fd in taken:
                os.close(fd)
            await trio.sleep(0.05)
            return "alive"

        trio_uring.start_guest_run(
            main, run_sync_soon_threadsafe=todo.put, done_callback=result.append, io_backend="uring"
        )
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        while not result:
            todo.get(timeout=200)()
        print(result[0].unwrap())
        """
    )
    assert done.stdout == "alive\n", done.stderr
