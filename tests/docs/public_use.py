"""Every public name in use, as in a typed program: for type checkers, which read this file in their strict modes. Not run."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import trio
from typing_extensions import assert_type

import trio_uring


async def positional(path: str) -> None:
    async with await trio.open_file(path, "r+b", buffering=0) as file:
        assert_type(await trio_uring.read_at(file, 4096, 0), bytes)
        assert_type(await trio_uring.readinto_at(file, trio_uring.aligned_buffer(4096), 0), int)
        assert_type(await trio_uring.write_at(file, b"data", 0), int)
        assert_type(await trio_uring.writev_at(file, [b"da", bytearray(b"ta")], 0), int)
        for block in await trio_uring.read_many(file, [(0, 4096)], depth=8):
            if isinstance(block, OSError):
                raise block
            assert_type(block, bytes)
        for count in await trio_uring.readinto_many(file, [(0, bytearray(4096))]):
            if isinstance(count, OSError):
                raise count
            assert_type(count, int)
        await trio_uring.fallocate(file, 0, 4096)
        await trio_uring.fsync(file)
        await trio_uring.fdatasync(file)
        facts: trio_uring.StatxResult = await trio_uring.statx(path, follow_symlinks=False)
        assert_type(facts.size, int)
        assert_type(facts.dio_offset_align, "int | None")


async def whole(paths: list[Path]) -> None:
    for contents in await trio_uring.read_files(["a", b"b", *paths, trio.Path("c")], limit=8):
        if isinstance(contents, OSError):
            raise contents
        assert_type(contents, bytes)


async def between(stream: trio.SocketStream, path: str) -> None:
    with open(path, "rb") as source, open("copy", "wb") as target:  # noqa: ASYNC230 - builtin files serve, too
        assert_type(await trio_uring.sendfile(stream, source, 0, 1 << 20), int)
        assert_type(await trio_uring.copy_file(source, target, offset_target=4096), int)
        assert_type(await trio_uring.splice(source.fileno(), target, 100), int)


async def watched(monitor: trio_uring.RingMonitor) -> None:
    statistics = trio.lowlevel.current_statistics().io_statistics
    if isinstance(statistics, trio_uring.UringStatistics):
        assert_type(statistics.submitted, int)
    trio_uring.dump(sys.stdout, as_json=True)
    ring: trio_uring.RingSnapshot
    for ring in trio_uring.snapshot():
        operation: trio_uring.OperationSnapshot
        for operation in ring.operations:
            assert_type(operation.age, "float | None")
        task: trio_uring.TaskSnapshot
        for task in ring.tasks:
            assert_type(task.stack, "tuple[str, ...]")
    rates: trio_uring.RingRates
    async for rates in monitor:
        assert_type(rates.busy, float)


async def main(number: int) -> str:
    return f"{number}"


def threads(fd: int) -> None:
    with trio_uring.RingPool(rings=2, entries=32) as pool:
        ring: trio_uring.PooledRing
        with pool.acquire(timeout=1) as ring:
            assert_type(ring.read_many(fd, [(0, 4096)], depth=8), "list[bytes | OSError]")
            assert_type(ring.readinto_many(fd, [(0, bytearray(10))]), "list[int | OSError]")
            assert_type(ring.write_many(fd, [(0, b"data")]), "list[int | OSError]")
        reader: trio_uring.PoolReader
        with pool.reader(fd) as reader:
            assert_type(reader.submit([(0, 4096)][: reader.room]), "list[int]")
            while len(reader):
                assert_type(reader.wait(1, timeout=5.0) + reader.poll(), "list[tuple[int, bytes | int | OSError]]")
    assert_type(trio_uring.RingPool.shared().closed, bool)


async def sharded(shard: trio_uring.Shard, number: int) -> int:
    await shard.send((shard.index + 1) % shard.count, number)
    async for message in shard:
        print(message, shard.cpu)
    listener = await shard.listen_tcp(8080, host="::1")
    return listener.socket.family


async def many() -> None:
    group = trio_uring.RingGroup([1], idle=0.001, workers=4)
    assert_type(group.loops(), "dict[int, int]")
    try:
        print(await trio_uring.shards(sharded, 1, shards=2, group=group))
        print(trio_uring.run_shards(sharded, 1, shards=2, cpus=[0], kind="threads", io_backend="uring"))
    except trio_uring.ShardDiedError as error:
        assert_type(error.index + error.exitcode, int)
    except trio_uring.RemoteTraceback as error:
        assert_type(error.text, str)


def runs(host: socket.socket) -> None:
    print(trio_uring.__version__)
    trio_uring.dump_on_signal(signal.SIGUSR1, "dump")
    monitor = trio_uring.RingMonitor(interval=0.5)
    assert_type(trio_uring.run(main, 1, io_backend="auto", instruments=[monitor]), str)
    try:
        trio_uring.run(main, 2, io_backend=trio_uring.UringBackend(sq_entries=1024, spin=0))
    except trio_uring.UringUnavailableError as error:
        assert_type(error.cause + error.remedy, str)
    trio_uring.start_guest_run(
        main,
        3,
        run_sync_soon_threadsafe=lambda function: host.send(b"x"),
        done_callback=lambda result: None,
        io_backend=trio_uring.UringBackend.from_text("sq_entries=2,cq_entries=4"),
    )
