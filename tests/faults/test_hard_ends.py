"""The run dies hard: killed, left by os._exit, broken by an exception out of the loop, forgotten, or the interpreter goes.

Each time in a process of its own: no crash, no hang, no complaint of ours, and nobody else sees more than a process that is gone.
The ring's memory is not freed while the kernel may write there (F8), also where nobody can wait for the kernel.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap

import pytest

PATIENCE = 200

# A run with everything in flight: receives (provided buffers and the caller's), an accept, polls, reads of pipes, and a peer
# that `busy` may write to at any moment.
BUSY = """
import gc, os, queue, signal, socket, sys, threading, time, warnings
import trio, trio.testing, trio_uring
from trio_uring._ring.ring import FIRST_USER_DATA, OP_READ, Ring, ffi

pairs = [socket.socketpair() for _ in range(6)]
pipe = os.pipe()
listener = socket.create_server(("127.0.0.1", 0))
for ours, _ in pairs:
    ours.setblocking(False)

async def read_pipe():
    manager = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
    memory = ffi.new("char[]", 4096)
    await manager.operation(pipe[0], memory, manager.readers).perform(OP_READ, memory, 4096, 2**64 - 1)

async def in_flight(nursery):
    wrapped = [trio.socket.from_stdlib_socket(ours) for ours, _ in pairs]
    nursery.start_soon(wrapped[0].recv, 100)
    nursery.start_soon(wrapped[1].recv_into, bytearray(1 << 20))
    nursery.start_soon(trio.lowlevel.wait_readable, wrapped[2])
    nursery.start_soon(trio.socket.from_stdlib_socket(listener).accept)
    nursery.start_soon(trio.SocketStream(wrapped[3]).send_all, bytes(1 << 24))
    nursery.start_soon(wrapped[4].recvfrom, 1000)
    nursery.start_soon(read_pipe)
    await trio.testing.wait_all_tasks_blocked()

def name_of(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""

def all_at_once():
    client = socket.create_connection(listener.getsockname())
    for _, theirs in pairs:
        theirs.send(b"x" * 1000)
    os.write(pipe[1], b"y" * 4096)
    return client
"""


def program(text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program after BUSY, warnings shown."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", *options, "-c", BUSY + textwrap.dedent(text)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def quiet(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether nothing of this package complained; Trio may, of tasks that it could not finish."""
    return "trio_uring" not in done.stderr and "io_uring" not in done.stderr and "Fatal" not in done.stderr


@pytest.mark.parametrize("how", ["os._exit(7)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_the_process_ends_at_once(how: str) -> None:
    """Requests in flight end with the process: the peers see the end, and the next process has the port."""
    done = program(f"""
        async def main():
            async with trio.open_nursery() as nursery:
                await in_flight(nursery)
                sys.stdout.write(str(listener.getsockname()[1]))
                sys.stdout.flush()
                signal.signal(signal.SIGABRT, signal.SIG_DFL)
                {how}

        trio_uring.run(main, io_backend="uring")
        """)
    assert done.returncode in (7, -signal.SIGKILL, -signal.SIGABRT)
    assert int(done.stdout) > 0


def test_killed_while_asleep_and_its_peer_sees_the_end() -> None:
    """A process that is killed in a receive leaves no orphan that holds the socket and eats the next byte (F18)."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent("""
                    import socket, sys, trio, trio.testing, trio_uring

                    async def main():
                        sock = trio.socket.fromfd(int(sys.argv[1]), socket.AF_UNIX, socket.SOCK_STREAM)
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(sock.recv, 100)
                            await trio.testing.wait_all_tasks_blocked()
                            print("asleep", flush=True)
                            await trio.sleep_forever()

                    trio_uring.run(main, io_backend="uring")
                    """),
                str(ours.fileno()),
            ],
            pass_fds=[ours.fileno()],
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "asleep\n"
        child.kill()
        child.wait(PATIENCE)
        child.stdout.close()
        theirs.send(b"for us")
        ours.settimeout(PATIENCE)
        assert ours.recv(100) == b"for us"


@pytest.mark.parametrize("error", ["RuntimeError", "KeyboardInterrupt", "MemoryError", "SystemExit"])
def test_an_exception_out_of_the_loop(error: str) -> None:
    """Trio breaks down while everything is in flight and completes at once: the ring drains, the next run works."""
    done = program(f"""
        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda args: None
        from trio_uring._loop.manager import UringIOManager
        original = UringIOManager.process_events
        armed = []

        def process_events(manager, events):
            if armed:
                armed.clear()
                raise {error}("out of the loop")
            original(manager, events)

        UringIOManager.process_events = process_events

        async def main():
            async with trio.open_nursery() as nursery:
                await in_flight(nursery)
                all_at_once()
                armed.append(1)
                await trio.sleep(0)

        try:
            trio_uring.run(main, io_backend="uring")
            raise SystemExit("nothing raised")
        except BaseException as error:
            told = error
            while told.__cause__ is not None and type(told) is not {error}:
                told = told.__cause__
            assert type(told) is {error}, repr(error)
        gc.collect()
        assert not [fd for fd in range(3, 100) if "uring" in name_of(fd)]
        from trio_uring._ring import ring as _ring
        assert not _ring._leaked
        print(trio_uring.run(trio.sleep, 0, io_backend="uring"))
        """)
    assert done.returncode == 0, done.stderr
    assert quiet(done), done.stderr


def test_an_abandoned_guest_run_whose_worker_sleeps() -> None:
    """The host stops; a worker thread sleeps in the ring, and the interpreter ends all the same."""
    done = program("""
        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda args: None
        todo = queue.SimpleQueue()
        begun = []

        async def main():
            async with trio.open_nursery() as nursery:
                await in_flight(nursery)
                begun.append(1)

        trio_uring.start_guest_run(main, run_sync_soon_threadsafe=todo.put, done_callback=print, io_backend="uring")
        while not begun:
            todo.get(timeout=200)()
        try:
            while True:
                todo.get(timeout=0.3)()
        except queue.Empty:
            pass
        all_at_once()
        print("done")
        """)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "Fatal" not in done.stderr


@pytest.mark.parametrize("where", ["main", "thread", "daemon"])
def test_the_interpreter_ends_with_a_ring_open(where: str) -> None:
    """A ring nobody closes, requests in flight, kept by a module until the interpreter is gone."""
    done = program(f"""
        warnings.simplefilter("ignore")
        kept = []

        def make():
            ring = Ring(8)
            memory = ffi.new("char[]", 4096)
            ring.keep = memory
            ring.queue(OP_READ, FIRST_USER_DATA, pipe[0], memory, 4096)
            ring.submit()
            kept.append((ring, memory))
            return ring

        if {where!r} == "main":
            make()
        elif {where!r} == "thread":
            thread = threading.Thread(target=make)
            thread.start()
            thread.join()
        else:
            asleep = threading.Event()
            def sleeps():
                ring = make()
                asleep.set()
                while True:
                    ring.wait(None)
            threading.Thread(target=sleeps, daemon=True).start()
            asleep.wait()
        os.write(pipe[1], b"y" * 100)
        print("done")
        """)
    assert (done.returncode, done.stdout) == (0, "done\n"), (done.returncode, done.stderr)
    assert "Fatal" not in done.stderr


def test_a_daemon_thread_in_a_run_when_the_interpreter_ends() -> None:
    """The loop sleeps in the kernel, and then is never woken."""
    done = program("""
        asleep = threading.Event()

        async def main():
            async with trio.open_nursery() as nursery:
                await in_flight(nursery)
                asleep.set()

        threading.Thread(target=trio_uring.run, args=(main,), kwargs={"io_backend": "uring"}, daemon=True).start()
        asleep.wait()
        print("done")
        """)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "Fatal" not in done.stderr


def test_a_ring_dropped_in_a_thread_that_has_ended() -> None:
    """F30: its requests end when their owner does, or never; the memory stays until then, whoever asks for some meanwhile."""
    done = program("""
        warnings.simplefilter("ignore")

        class Memory:
            def __init__(self):
                self.buffer = ffi.new("char[]", 4096)

        kept = []
        def thread():
            ring = Ring(8)
            ring.keep = memory = Memory()
            ring.queue(OP_READ, FIRST_USER_DATA, pipe[0], memory.buffer, 4096)
            ring.submit()
            kept.append(ring)

        worker = threading.Thread(target=thread)
        worker.start()
        worker.join()
        kept.clear()
        gc.collect()
        # Whoever gets freed memory now must find it unchanged when the data arrives.
        taken = [ffi.new("char[]", b"z" * 4095) for _ in range(200)]
        os.write(pipe[1], b"y" * 4096)
        time.sleep(0)
        assert all(bytes(ffi.buffer(some))[:4095] == b"z" * 4095 for some in taken)
        print("done")
        """)
    assert (done.returncode, done.stdout) == (0, "done\n"), (done.returncode, done.stderr)
    assert "Fatal" not in done.stderr


def test_a_child_that_is_forked_in_a_run_and_ends_hard() -> None:
    """F29: the parent's requests are untouched by a child that exits, or is killed, or runs its finalizers."""
    done = program("""
        warnings.simplefilter("ignore")

        async def main():
            async with trio.open_nursery() as nursery:
                await in_flight(nursery)
                for end in range(3):
                    child = os.fork()
                    if child == 0:
                        if end:
                            gc.collect()
                        os.kill(os.getpid(), signal.SIGKILL if end == 1 else signal.SIGTERM)
                        os._exit(0)
                    os.waitpid(child, 0)
                ours, theirs = trio.socket.socketpair()
                with ours, theirs:
                    await theirs.send(b"alive")
                    assert await ours.recv(10) == b"alive"
                nursery.cancel_scope.cancel()

        trio_uring.run(main, io_backend="uring")
        print("done")
        """)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert quiet(done), done.stderr
