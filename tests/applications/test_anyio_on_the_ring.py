"""AnyIO's own interface on the ring, by AnyIO's pytest plugin with `("trio", {"io_backend": ...})`.

The plugin runs a test as a guest. The last parameter is Trio's own epoll, which is the oracle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.from_thread
import anyio.to_process
import anyio.to_thread
import pytest
import trio
from served import facts, used
from test_programs import ON_THE_RING, expected

from trio_uring import UringBackend

pytestmark = pytest.mark.anyio

BACKENDS: list[Any] = ["uring", UringBackend(sq_entries=2, cq_entries=4), "epoll"]


@pytest.fixture(params=BACKENDS, ids=["uring", "sq2cq4", "epoll"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "trio", {"io_backend": request.param}


@pytest.fixture(autouse=True)
async def backend(anyio_backend: tuple[str, dict[str, object]]) -> AsyncIterator[str]:
    """Before and after the test, in the same run as the test."""
    wanted = expected(anyio_backend[1]["io_backend"])
    assert used() == wanted
    yield str(wanted["backend"])
    assert used() == wanted


@pytest.fixture
async def greeting() -> AsyncIterator[list[str]]:
    """An asynchronous fixture: AnyIO runs it in the same guest run."""
    said: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        yield said
        group.cancel_scope.cancel()
    said.append("over")


async def test_fixtures_share_the_run(greeting: list[str], backend: str) -> None:
    greeting.append("hello")
    assert facts()["backend"] == backend


async def test_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with await anyio.open_file(path, "wb") as file:
        assert await file.write(b"0123456789" * 10_000) == 100_000
    async with await anyio.open_file(path, "r+b") as file:
        assert await file.seek(-5, os.SEEK_END) == 99_995
        assert await file.read() == b"56789"
        await file.seek(10)
        await file.write(b"XX")
        await file.flush()
        await file.seek(8)
        assert await file.read(5) == b"89XX2"
        assert await file.tell() == 13
        await file.truncate(20)
    assert path.stat().st_size == 20
    async with await anyio.open_file(path, "w", encoding="utf-8") as text:
        await text.writelines(["eins\n", "zwei\n", "drei ✓\n"])
    async with await anyio.open_file(path, encoding="utf-8") as text:
        assert [line async for line in text] == ["eins\n", "zwei\n", "drei ✓\n"]
    with pytest.raises(FileNotFoundError):
        await anyio.open_file(tmp_path / "nothing")


async def test_paths(tmp_path: Path) -> None:
    base = anyio.Path(tmp_path)
    await (base / "a" / "b").mkdir(parents=True)
    assert await (base / "a" / "one").write_bytes(b"1" * 70_000) == 70_000
    assert await (base / "a" / "two").write_text("zwei", encoding="utf-8") == 4
    assert await (base / "a" / "one").read_bytes() == b"1" * 70_000
    assert (await (base / "a" / "one").stat()).st_size == 70_000
    assert sorted([entry.name async for entry in (base / "a").iterdir()]) == ["b", "one", "two"]
    assert sorted([entry.name async for entry in base.rglob("*")]) == ["a", "b", "one", "two"]
    await (base / "a" / "two").rename(base / "three")
    assert await (base / "three").read_text(encoding="utf-8") == "zwei"
    await (base / "link").symlink_to(base / "three")
    assert await (base / "link").is_symlink()
    assert await (base / "link").resolve() == base / "three"
    await (base / "link").unlink()
    assert not await (base / "link").exists()
    with pytest.raises(FileNotFoundError):
        await (base / "link").stat()
    async with await (base / "three").open("ab") as file:
        await file.write(b"!")
    assert await (base / "three").read_bytes() == b"zwei!"


async def test_streams_and_their_ends() -> None:
    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    await stream.send(await stream.receive())
            await stream.send(b"bye")

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, echo)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            message = bytes(range(256)) * 1000
            received = bytearray()
            async with anyio.create_task_group() as both:
                both.start_soon(stream.send, message)
                while len(received) < len(message):
                    received += await stream.receive()
            assert received == message
            with anyio.move_on_after(0.01) as scope:
                await stream.receive()
            assert scope.cancelled_caught
            await stream.send_eof()
            assert await stream.receive() == b"bye"
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            both_closed = stream
        with pytest.raises(anyio.ClosedResourceError):
            await both_closed.receive()
        group.cancel_scope.cancel()


async def test_a_close_ends_a_receive() -> None:
    async with await anyio.create_udp_socket(local_host="127.0.0.1") as udp:

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await udp.receive()

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await udp.aclose()


async def test_datagrams(tmp_path: Path) -> None:
    async with (
        await anyio.create_udp_socket(local_host="127.0.0.1") as one,
        await anyio.create_connected_udp_socket("127.0.0.1", one.extra(anyio.abc.SocketAttribute.local_port)) as two,
    ):
        for size in (0, 1, 1400, 60_000):
            await two.send(bytes(size))
            data, (host, port) = await one.receive()
            assert (data, host) == (bytes(size), "127.0.0.1")
            await one.sendto(data + b"back", host, port)
            assert await two.receive() == bytes(size) + b"back"
    async with (
        await anyio.create_unix_datagram_socket(local_path=tmp_path / "one") as here,
        await anyio.create_connected_unix_datagram_socket(tmp_path / "one", local_path=tmp_path / "two") as there,
    ):
        await there.send(b"datagram")
        assert await here.receive() == (b"datagram", str(tmp_path / "two"))
        await here.sendto(b"answer", str(tmp_path / "two"))
        assert await there.receive() == b"answer"


async def test_processes(backend: str) -> None:
    done = await anyio.run_process([sys.executable, "-c", "print(input()[::-1])"], input=b"abc\n")
    assert done.stdout == b"cba\n"
    with pytest.raises(subprocess.CalledProcessError):
        await anyio.run_process("exit 7")
    async with await anyio.open_process(["cat"]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send(b"through")
        assert await process.stdout.receive() == b"through"
        process.terminate()
        assert await process.wait() == -signal.SIGTERM
    assert await anyio.to_process.run_sync(os.getppid) == os.getpid()


async def test_threads_and_limits() -> None:
    main_thread = threading.get_ident()
    limiter = anyio.CapacityLimiter(2)
    running = 0
    most = 0
    lock = threading.Lock()
    together = threading.Barrier(2, timeout=200)

    def work() -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1
        found = anyio.from_thread.run_sync(threading.get_ident)
        assert anyio.from_thread.run(facts_of_the_run) == main_facts
        return found == main_thread

    async def facts_of_the_run() -> dict[str, object]:
        await anyio.lowlevel.checkpoint()
        return facts()

    main_facts = facts()
    found: list[bool] = []

    async def one() -> None:
        found.append(await anyio.to_thread.run_sync(work, limiter=limiter))

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(one)
    assert found == [True] * 8
    assert most == 2
    assert limiter.statistics().borrowed_tokens == 0


async def test_a_portal_serves_threads() -> None:
    left, right = socket.socketpair()
    with left, right:
        async with anyio.from_thread.BlockingPortal() as portal:

            def in_a_thread() -> bytes:
                async def receive() -> bytes:
                    await anyio.wait_readable(left)
                    return left.recv(100)

                future = portal.start_task_soon(receive)
                right.send(b"to the run")
                return future.result(60)

            assert await anyio.to_thread.run_sync(in_a_thread) == b"to the run"


async def test_cancelling_a_group_ends_whatever_it_waits_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    ended: list[str] = []

    async def wait(name: str, what: Any, *arguments: Any) -> None:
        try:
            await what(*arguments)
        except anyio.get_cancelled_exc_class():
            ended.append(name)
            raise

    left, right = socket.socketpair()
    with left, right:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            await anyio.create_udp_socket(local_host="127.0.0.1") as udp,
            await anyio.open_process(["sleep", "1000"]) as process,
        ):
            async with anyio.create_task_group() as group:
                group.start_soon(wait, "accept", listener.serve, print)
                group.start_soon(wait, "receive", udp.receive)
                group.start_soon(wait, "readable", anyio.wait_readable, left)
                group.start_soon(wait, "sleep", anyio.sleep_forever)
                group.start_soon(wait, "process", process.wait)
                group.start_soon(wait, "event", anyio.Event().wait)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            process.kill()
    assert sorted(ended) == ["accept", "event", "process", "readable", "receive", "sleep"]


async def test_shielded_work_is_done(tmp_path: Path) -> None:
    with anyio.move_on_after(0) as scope:
        with anyio.CancelScope(shield=True):
            await anyio.Path(tmp_path / "kept").write_bytes(b"kept")
            assert await anyio.Path(tmp_path / "kept").read_bytes() == b"kept"
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught


async def test_signals() -> None:
    with anyio.open_signal_receiver(signal.SIGUSR2) as receiver:
        os.kill(os.getpid(), signal.SIGUSR2)
        async for number in receiver:
            assert number == signal.SIGUSR2
            break


class TestBlockingPortals:
    """Portals that start a run of their own, in another thread."""

    @pytest.fixture(autouse=True)
    def backend(self) -> None:
        """None of the tests here is in a run."""

    @pytest.fixture(scope="class", params=["uring"])
    def anyio_backend(self) -> None:
        """Nor takes a backend."""

    def test_start_blocking_portal(self) -> None:
        with anyio.from_thread.start_blocking_portal("trio", {"io_backend": "uring"}) as portal:
            with (
                portal.wrap_async_context_manager(self.listening()) as port,
                socket.create_connection(("127.0.0.1", port)) as client,
            ):
                client.sendall(b"from a thread")
                assert client.recv(100) == b"from a thread"
            assert portal.call(used) == ON_THE_RING

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        async def echo(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                async for data in stream:
                    await stream.send(data)

        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, echo)
            yield listener.extra(anyio.abc.SocketAttribute.local_port)
            group.cancel_scope.cancel()

    def test_many_portals_at_once(self) -> None:
        """A ring for each thread, beside a run on epoll."""
        with contextlib.ExitStack() as stack:
            portals = [
                stack.enter_context(anyio.from_thread.start_blocking_portal("trio", {"io_backend": which}))
                for which in ("uring", "uring", "epoll", "uring")
            ]
            assert [portal.call(facts)["backend"] for portal in portals] == ["uring", "uring", "epoll", "uring"]


async def test_trio_and_anyio_in_one_run() -> None:
    sender, receiver = anyio.create_memory_object_stream[int](0)
    async with trio.open_nursery() as nursery, sender, receiver:
        nursery.start_soon(sender.send, 1)
        assert await receiver.receive() == 1
