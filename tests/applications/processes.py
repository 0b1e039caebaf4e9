"""Child processes: pipes in both directions, exit codes, a kill, and AnyIO's worker processes, which run Trio themselves.

It knows nothing of trio-uring.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import anyio
import anyio.to_process
import trio
from served import used

LARGE = bytes(range(256)) * 4096  # more than a pipe holds


async def in_the_worker() -> dict[str, object]:
    left, right = trio.socket.socketpair()
    with left, right:
        await left.send(b"ring")
        assert await right.recv(4) == b"ring"
    return used()


def run_trio() -> dict[str, object]:
    return trio.run(in_the_worker)


async def main() -> dict[str, object]:
    # A megabyte into cat and out of it, at the same time.
    async with await anyio.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        received = bytearray()
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        async def feed() -> None:
            await stdin.send(LARGE)
            await stdin.aclose()

        async with anyio.create_task_group() as group:
            group.start_soon(feed)
            async for part in stdout:
                received += part
        assert bytes(received) == LARGE
        assert await process.wait() == 0

    done = await trio.run_process(
        [sys.executable, "-c", "import sys; print(len(sys.stdin.read())); sys.exit(3)"],
        stdin=b"x" * 100_000,
        capture_stdout=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == (b"100000\n", 3)

    killed = await trio.lowlevel.open_process(["sleep", "1000"])
    with trio.move_on_after(0.01) as scope:
        await killed.wait()
    assert scope.cancelled_caught
    killed.kill()
    assert await killed.wait() == -signal.SIGKILL
    with trio.move_on_after(0.01) as scope:
        await trio.run_process(["sleep", "1000"])
    assert scope.cancelled_caught

    worker = await anyio.to_process.run_sync(run_trio)
    assert await anyio.to_process.run_sync(sum, (1, 2, 3)) == 6
    try:
        await anyio.to_process.run_sync(int, "no number")
        raise AssertionError("that is no number")
    except ValueError:
        pass
    return {"here": used(), "worker": worker}


if __name__ == "__main__":
    print(json.dumps(anyio.run(main, backend="trio")))
