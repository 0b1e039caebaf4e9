"""The fault catalogue: a test for every number that no other room has one for, and the check of docs/faults.md.

What needs a fault of the shim runs as a program on the variant with faults (shim_variants.py). `tf_arm(kind, nth, times, value)`
makes the nth call from then on and `times` - 1 more (0: all) fail.
"""

from __future__ import annotations

import ast
import errno
import gc
import os
import re
import socket
import textwrap
import warnings
from pathlib import Path

import pytest
from fault_tools import program_on_faulty

from trio_uring import UringBackend
from trio_uring._loop.manager import UringIOManager
from trio_uring._loop.operation import NewDescriptor
from trio_uring._ring.ring import CQE_F_MORE, CQE_F_NOTIF, FIRST_USER_DATA, OP_NOP, Ring, ffi
from trio_uring.testing import SimulatedRing

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 30.0
OP_SEND_ZC = 47  # kernel 6.0

# What the programs below begin with.
RING = """
import errno, gc, os, resource, socket, sys, threading, time, warnings
from trio_uring._ring.ring import FIRST_USER_DATA, OP_NOP, OP_READ, OP_ACCEPT, Ring, ffi, lib
from trio_uring._ring import ring as _ring

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))

def each(flat):
    return list(zip(flat[::3], flat[1::3], flat[2::3]))
"""
RUN = (
    RING
    + """
import trio, trio.testing, trio_uring
"""
)


def on_ring(program: str, *arguments: str) -> str:
    """A program that uses the ring."""
    return program_on_faulty(RING + textwrap.dedent(program), *arguments)


def in_run(program: str, *arguments: str) -> str:
    """A program whose `main` is run on the ring, with nothing answered on the spot."""
    backend = "trio_uring.UringBackend(speculate=False)"
    return program_on_faulty(
        RUN + textwrap.dedent(program) + f"\ntrio_uring.run(main, io_backend={backend})\n", *arguments
    )


# ------------------------------------------------------------------ memory lifetime


def test_f03_a_connect_that_is_refused_has_not_begun() -> None:
    """F3: whatever the refusal is called; EAGAIN of connect(2) itself is another thing."""
    in_run("""
        async def main():
            with trio.socket.socket() as listener, trio.socket.socket() as sock:
                await listener.bind(("127.0.0.1", 0))
                listener.listen()
                for refusal in (errno.EAGAIN, errno.EALREADY, errno.EBUSY):
                    lib.tf_arm(lib.TF_SQE, 1, 1, refusal)
                    try:
                        await sock.connect(listener.getsockname())
                        raise SystemExit("not refused")
                    except OSError as error:
                        assert error.errno == refusal
                    try:
                        sock.getpeername()
                        raise SystemExit("connected")
                    except OSError as error:
                        assert error.errno == errno.ENOTCONN
                    assert sock.getsockname()[1] == 0
                await sock.connect(listener.getsockname())
                assert sock.getpeername() == listener.getsockname()
        """)


def test_f03_an_entry_that_is_refused_after_the_first_effect_of_its_call() -> None:
    """F3: the call has made one directory, so its error is told; cancelled meanwhile, it does not say that nothing happened."""
    in_run("""
        import tempfile

        async def main():
            await trio.testing.wait_all_tasks_blocked()  # Trio's own tasks have queued their polls
            with tempfile.TemporaryDirectory() as directory:
                first = os.path.join(directory, "a")

                class Cancels(trio.abc.Instrument):
                    def before_task_step(self, task):  # the answer is there: the cancel takes no entry
                        if os.path.exists(first):
                            scope.cancel()

                trio.lowlevel.add_instrument(Cancels())
                # Of a/b/c, of a/b and of a, which is made; then of a/b, and the question what is there in its place.
                lib.tf_arm(lib.TF_SQE, 4, 2, errno.EBUSY)
                told = None
                with trio.CancelScope() as scope:
                    try:
                        await trio.Path(first, "b", "c").mkdir(parents=True)
                    except OSError as error:
                        told = error
                assert scope.cancel_called
                assert os.path.exists(first) and not os.path.exists(os.path.join(first, "b")), "the fault hit another entry"
                assert told is not None and told.errno == errno.EBUSY, (told, scope.cancelled_caught)
        """)


def test_f03_an_entry_whose_submission_failed_runs_once_and_with_its_memory_alive() -> None:
    """F3: io_uring_enter(2) refuses what has been queued; the error reaches the caller, and the entry stays pinned and runs."""
    in_run("""
        async def main():
            ours, theirs = trio.socket.socketpair()
            with ours, theirs:
                async with trio.open_nursery() as nursery:
                    lib.tf_arm(lib.TF_ENTER, 1, 5, errno.EAGAIN)
                    memory = bytearray(4)
                    nursery.start_soon(ours.recv_into, memory)
                    await trio.testing.wait_all_tasks_blocked()
                    try:
                        memory.append(0)
                        raise SystemExit("not pinned")
                    except BufferError:
                        pass
                    await theirs.send(b"once")
                assert memory == b"once"
                memory.append(0)
        """)


def test_f03_an_entry_that_is_refused_pins_nothing_and_leaves_nothing_behind() -> None:
    """F3: it was never queued, so its memory is the caller's, though the exception has the frames; and no operation is lost."""
    in_run("""
        import tempfile

        async def main():
            operations = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager.operations
            ours, theirs = trio.socket.socketpair()
            with ours, theirs, tempfile.NamedTemporaryFile() as plain:
                plain.write(bytes(100))
                plain.flush()
                fd = plain.fileno()
                file = await trio.open_file(plain.name, "r+b", buffering=0)
                stream = trio.SocketStream(ours)
                peer = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                await peer.bind(("127.0.0.1", 0))
                name = peer.getsockname()
                read, write = os.pipe2(os.O_CLOEXEC)
                pipe = trio.lowlevel.FdStream(write)
                with peer:
                    for call in (
                        ours.send,
                        stream.send_all,
                        ours.recv_into,
                        ours.recvfrom_into,
                        pipe.send_all,
                        lambda data: ours.recv(len(data)),
                        lambda data: ours.recvfrom(len(data)),
                        lambda data: ours.sendmsg([data]),
                        lambda data: ours.recvmsg_into([data]),
                        lambda data: peer.sendto(data, name),
                        lambda data: trio_uring.write_at(fd, data, 0),
                        lambda data: trio_uring.writev_at(fd, [data], 0),
                        lambda data: trio_uring.readinto_at(fd, data, 0),
                        lambda data: trio_uring.readinto_many(fd, [(0, data)]),
                        file.readinto,
                        file.write,
                    ):
                        data = bytearray(8)
                        counts = set()
                        for _ in range(3):
                            lib.tf_arm(lib.TF_SQE, 1, 1, errno.EBUSY)
                            try:
                                await call(data)
                            except (OSError, trio.BrokenResourceError) as error:
                                data.append(0)  # while `error` has the frames
                            else:
                                raise SystemExit("not refused")
                            finally:
                                lib.tf_disarm()
                            counts.add(len(operations))
                        assert len(counts) == 1, counts
                os.close(read)
                await pipe.aclose()
                await file.aclose()
        """)


def test_f05_completions_are_copied_before_their_places_are_given_back() -> None:
    """F5: what `wait` has answered does not change when the kernel uses the same places of the queue again."""
    ring = Ring(2, 4)
    try:
        seen: list[tuple[list[int], list[int]]] = []
        for first in range(FIRST_USER_DATA, FIRST_USER_DATA + 40, 2):
            ring.queue(OP_NOP, first)
            ring.queue(OP_NOP, first + 1)
            found: list[int] = []
            while len(found) < 6:
                found += ring.wait(PATIENCE) or []
            seen.append((found, [first, 0, 0, first + 1, 0, 0]))
        for found, expected in seen:
            assert found == expected
    finally:
        ring.close()


def test_f06_memory_is_the_kernels_until_the_notification_of_a_zero_copy_send() -> None:
    """F6: nothing in the package sends without a copy, but the ring's books are ready: an entry with F_MORE is not over."""
    ring = Ring(8)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        memory = ffi.new("char[]", b"x" * 100)
        ring.queue(OP_SEND_ZC, FIRST_USER_DATA, ours.fileno(), memory, 100)
        flags: list[int] = []
        while not flags or flags[-1] & CQE_F_MORE:
            assert ring.counters().inflight == 1
            flags += (ring.wait(PATIENCE) or [])[2::3]
        assert ring.counters().inflight == 0
        assert [bool(flag & CQE_F_NOTIF) for flag in flags] == [False, True]
        assert theirs.recv(1000) == b"x" * 100
        theirs.close()
    ring.close()


def test_f08_a_completion_that_never_comes_leaks_its_memory_and_says_so() -> None:
    """F8: closing the ring is bounded in time, and what the kernel may still write to is kept for the rest of the process."""
    on_ring("""
        reader, writer = os.pipe()
        ring = Ring(8)
        class Memory:
            pass
        memory = Memory()
        memory.buffer = ffi.new("char[]", 8)
        ring.queue(OP_READ, 100, reader, memory.buffer, 8)
        ring.submit()
        lib.tf_arm(lib.TF_LOSE, 1, 1, 0)
        began = time.monotonic()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert ring.close(timeout=0.2, keep=memory) == []
        assert time.monotonic() - began < 30
        assert "1 operations did not end in time" in str(warned[0].message), warned
        gone = []
        import weakref
        weakref.finalize(memory, gone.append, 1)
        del memory, ring
        gc.collect()
        assert not gone
        """)


# ------------------------------------------------------------------ results


def test_f09_what_completes_at_the_end_of_an_abandoned_guest_run_is_closed() -> None:
    """F9: a connection that an accept of a run nobody goes on with has taken; the garbage collector closes the ring, and it."""
    program_on_faulty(
        RUN
        + textwrap.dedent("""
        import queue, threading

        def abandon():
            todo = queue.SimpleQueue()

            async def main():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.socket.from_stdlib_socket(listener).accept)
                    while True:
                        await trio.lowlevel.checkpoint()

            trio_uring.start_guest_run(
                main, run_sync_soon_threadsafe=todo.put, done_callback=print, io_backend="uring"
            )
            for _ in range(5):
                todo.get(timeout=200)()
            client.connect(listener.getsockname())
            manager = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
            manager.ring.cancel_fd(0)  # runs deferred work: the accept has its connection, and nobody has reaped it
            del todo, manager
            gc.collect()
            gc.collect()

        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda args: None
        gc.disable()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        client = socket.socket()
        thread = threading.Thread(target=abandon)
        thread.start()
        thread.join()
        listener.close()
        client.settimeout(20)
        try:
            assert client.recv(1) == b""  # closed, and not kept open by a descriptor that nobody knows
        except ConnectionResetError:
            pass
        """)
    )


def test_f09_what_a_guest_run_was_handed_and_never_came_back_with_is_closed() -> None:
    """F9: the host stops between the two halves of a tick; the connection is in what `get_events` answered, and nowhere else."""
    program_on_faulty(
        RUN
        + textwrap.dedent("""
        from trio_uring._loop.manager import UringIOManager
        from trio_uring._loop.options import UringBackend
        from trio_uring._sockets.sockets import Accept

        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        manager = UringIOManager(UringBackend())
        accept = Accept(manager, listener.fileno(), None, manager.readers)
        accept.user_data = manager.next_user_data()
        manager.operations[accept.user_data] = accept
        manager.ring.queue(OP_ACCEPT, accept.user_data, listener.fileno())
        before = descriptors()
        events = manager.get_events(20)
        assert len(descriptors()) == len(before) + 1, events
        warnings.simplefilter("ignore")
        del accept, manager, events
        gc.collect()
        client.settimeout(20)
        assert client.recv(1) == b""
        """)
    )


@pytest.mark.parametrize("state", ["completed", "discarded"])
def test_f09_a_descriptor_that_nobody_takes_is_closed_once(state: str) -> None:
    """F9: an operation is unwound twice, and in between the number has become that of somebody else's file."""
    manager = UringIOManager(UringBackend(), SimulatedRing)
    try:
        fd, other = os.pipe()
        operation = NewDescriptor(manager, -1, None, None)
        operation.user_data = manager.next_user_data()
        manager.operations[operation.user_data] = operation
        if state == "discarded":
            operation.complete(fd, 0)  # no task waits for it
        else:
            operation.result = fd
            operation.unwind()
        assert os.dup(other) == fd
        operation.unwind()
        operation.unwind()
        os.close(fd)  # not closed before
        os.close(other)
    finally:
        manager.close()


def test_f09_a_ring_that_the_garbage_collector_closes_hands_its_last_results_on() -> None:
    """F9: those of a manager that nobody closed; a result may be a descriptor."""
    discarded = []

    class Operation:
        def discard(self, result: int, flags: int) -> None:
            discarded.append((result, flags))

    manager = UringIOManager(UringBackend())
    manager.operations[100] = Operation()
    manager.ring.queue(OP_NOP, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del manager
        gc.collect()
    assert discarded == [(0, 0)]


def test_f12_a_cancel_that_there_is_no_room_for_is_not_lost() -> None:
    """F12: neither does the canceller get an error, nor does the waiter sleep on."""
    in_run("""
        async def main():
            ours, theirs = trio.socket.socketpair()
            with ours, theirs, trio.fail_after(30):
                for wait in (lambda: ours.recv(1), lambda: trio.lowlevel.wait_readable(ours)):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(wait)
                        await trio.testing.wait_all_tasks_blocked()
                        lib.tf_arm(lib.TF_SQE, 1, 3, errno.EBUSY)
                        nursery.cancel_scope.cancel()
                await theirs.send(b"k")
                assert await ours.recv(1) == b"k"
        """)


MISSED = """
        async def main():
            reader, writer = os.pipe()
            ours, theirs = trio.socket.socketpair()
            with open(reader, "rb", 0), open(writer, "wb", 0), ours, theirs, trio.fail_after(30):
                from trio_uring._positional import batches as _batches
                _batches.kind = lambda fd: 0
                calls = [
                    lambda: ours.recv(1), lambda: trio.lowlevel.wait_readable(ours),
                    lambda: trio_uring.read_many(reader, [(0, 2)] * 9, depth=4),
                ]
                for call in calls:
                    for times in (1, 3, 8):
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(call)
                            await trio.testing.wait_all_tasks_blocked()
                            before = lib.tf_calls(lib.TF_MISS)
                            lib.tf_arm(lib.TF_MISS, 1, times, 0)
                            nursery.cancel_scope.cancel()
                        while lib.tf_calls(lib.TF_MISS) - before <= times:
                            await trio.sleep(0.001)  # a poll's task has not waited for its completion
                        lib.tf_disarm()
                await theirs.send(b"k")
                assert await ours.recv(1) == b"k"
                os.write(writer, b"next")
                assert os.read(reader, 9) == b"next"
"""


GUEST = """
        import queue
        todo, results = queue.SimpleQueue(), []
        trio_uring.start_guest_run(
            main, run_sync_soon_threadsafe=todo.put, done_callback=results.append, io_backend="uring"
        )
        while not results:
            todo.get(timeout=60)()
        results[0].unwrap()
"""


@pytest.mark.parametrize("mode", ["run", "guest"])
def test_f15_a_cancel_that_finds_its_target_on_its_way_is_sent_again(mode: str) -> None:
    """F15, F12: between a poll and a worker's queue it is in neither; on 6.1 that is where cancels met blocking pipes."""
    if mode == "run":
        in_run(MISSED)
    else:
        program_on_faulty(RUN + textwrap.dedent(MISSED) + textwrap.dedent(GUEST))


# A batch of reads of the shim, and the ring that the tests of cancels begin with: two of its reads and a third one wait on pipes.
MISSED_ON_RING = """
        from array import array

        F = FIRST_USER_DATA
        pipe, write = os.pipe()
        other, other_write = os.pipe()
        ring = Ring(2, 64)
        ring.wait(0)

        def batch(count, size=8):
            lengths, results = array("I", [size] * count), array("i", [0] * count)
            memory = ffi.new("char[]", size * count)
            base = int(ffi.cast("uintptr_t", memory))
            addresses = array("Q", [base + size * i for i in range(count)])
            arrays = [("uint64_t[]", array("Q", [0] * count)), ("uint32_t[]", lengths), ("uint64_t[]", addresses)]
            keep = [ffi.from_buffer(*each) for each in arrays] + [ffi.from_buffer("int32_t[]", results), memory]
            rc = lib.tu_batch_read(ring._r, pipe, *keep[:3], 0, keep[3], count, count, ffi.NULL, 0, 0, F)
            assert rc == 0
            return keep

        memory = ffi.new("char[8]")
        ring.queue(OP_READ, F + 9, other, memory, 8, 2**64 - 1)
"""


def test_f29_a_fork_in_another_thread_while_a_ring_is_closed() -> None:
    """F29: the child has none of its descriptors, though its owner is still waiting for what is in flight."""
    on_ring("""
        draining, forked = threading.Event(), threading.Event()
        drain = Ring._drain

        def slow(self, deadline):
            draining.set()
            assert forked.wait(60)
            return drain(self, deadline)

        def close():
            ring = Ring(8)
            ring.wait(0)
            ring.close()

        Ring._drain = slow
        thread = threading.Thread(target=close)
        thread.start()
        assert draining.wait(60)
        pid = os.fork()
        if pid == 0:
            left = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) < 1000
                    and os.path.exists(f"/proc/self/fd/{fd}")]
            os._exit(any("io_uring" in each or "eventfd" in each for each in left))
        forked.set()
        thread.join()
        assert os.waitpid(pid, 0)[1] == 0
        """)


def test_f15_a_completion_that_comes_as_a_cancel_is_sent_again() -> None:
    """F15, F23: the refusal of one entry makes room, which brings the completion of a batch's read that is being cancelled again.

    Counted twice, it would have cost another one its cancel, or woken the ring for ever.
    """
    on_ring(
        MISSED_ON_RING
        + """
        keep = batch(2)
        ring.submit()
        lib.tf_arm(lib.TF_MISS, 1, 4, 0)
        ring.cancel(F + 9)
        ring.cancel(F)
        ring.submit()
        ring.wait(0)
        time.sleep(0.002)  # they are due again
        os.write(write, b"x" * 16)
        lib.tf_arm(lib.TF_ENTER, 1, 1, errno.EAGAIN)
        ended = []
        until = time.monotonic() + 60
        while len(ended) < 2 and time.monotonic() < until:
            ended += each(ring.wait(1) or [])
        assert dict(each[:2] for each in ended)[F + 9] == -errno.ECANCELED, ended
        assert ring.counters().inflight == 0
        enters = ring.counters().enters
        assert ring.wait(0.5) is None
        assert ring.counters().enters - enters <= 2
        """
    )


def test_f15_nobody_is_woken_by_a_cancel_that_is_sent_again() -> None:
    """F15: it is no event, so whoever waits until nothing happens is told; and no timeout ends early, batches or not."""
    on_ring(
        MISSED_ON_RING
        + """
        ring.submit()
        lib.tf_arm(lib.TF_MISS, 1, 0, 0)
        ring.cancel(F + 9)
        for begin in (lambda: None, lambda: batch(16)):  # more reads than the submission queue has room for
            keep = begin()
            for timeout in (0.3, 0.03, 0.1):
                before = time.monotonic()
                assert ring.wait(timeout) is None
                assert time.monotonic() - before >= timeout
        assert lib.tf_calls(lib.TF_MISS) > 5
        os.write(other_write, b"done")
        assert each(ring.wait(30)) == [(F + 9, 4, 0)]
        """
    )


def test_f15_a_run_is_idle_while_a_cancel_is_sent_again() -> None:
    """F15: Trio's wait_all_tasks_blocked and MockClock see an idle run, however long the kernel needs."""
    in_run("""
        async def main():
            ours, theirs = trio.socket.socketpair()
            with ours, theirs, trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ours.recv, 1)
                    await trio.testing.wait_all_tasks_blocked()
                    lib.tf_arm(lib.TF_MISS, 1, 0, 0)
                    nursery.cancel_scope.cancel()
                    with trio.CancelScope(shield=True):
                        await trio.testing.wait_all_tasks_blocked(0.1)
                    lib.tf_disarm()
        """)


def test_f23_many_cancels_need_no_more_patience_than_one() -> None:
    """F23, F12: where the kernel takes nothing, cancels after the first are kept for the next wait at once."""
    on_ring("""
        pipes = [os.pipe() for _ in range(5)]
        ring = Ring(2, 64)
        ring.wait(0)
        ring.owner_back()
        memory = [ffi.new("char[8]") for _ in pipes]
        for i, (read, _) in enumerate(pipes):
            ring.queue(OP_READ, FIRST_USER_DATA + i, read, memory[i], 8, 2**64 - 1)
        ring.submit()
        for i in range(50, 52):
            ring.queue(OP_NOP, FIRST_USER_DATA + i)
        lib.tf_arm(lib.TF_ENTER, 1, 0, errno.EAGAIN)
        ring.cancel(FIRST_USER_DATA)
        enters = ring.counters().enters
        for i in range(1, 5):
            ring.cancel(FIRST_USER_DATA + i)
        assert ring.counters().enters == enters
        lib.tf_disarm()
        ended = []
        until = time.monotonic() + 60
        while len(ended) < 7 and time.monotonic() < until:
            ended += each(ring.wait(1) or [])
        assert sorted(each[1] for each in ended) == [-errno.ECANCELED] * 5 + [0, 0], ended
        """)


def test_f13_a_completion_that_comes_twice_completes_one_operation() -> None:
    """F13: the second one names nobody, counts nowhere and is logged; the run ends at once and in silence."""
    in_run("""
        import logging
        logged = []
        handler = logging.Handler()
        handler.emit = lambda record: logged.append(record.getMessage())
        logging.getLogger("trio_uring").addHandler(handler)
        warnings.simplefilter("error")

        async def main():
            await trio.testing.wait_all_tasks_blocked()
            manager = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
            before = manager.statistics()
            reader, writer = os.pipe()
            ours, theirs = trio.socket.socketpair()
            memory = ffi.new("char[]", 1)
            with ours, theirs:
                for byte in b"abcdef":
                    os.write(writer, bytes([byte]))
                    lib.tf_arm(lib.TF_DOUBLE, 1, 3, 0)
                    operation = manager.operation(reader, memory, manager.readers)
                    assert await operation.perform(OP_READ, memory, 1, 2**64 - 1) == 1
                    assert memory[0] == bytes([byte])
                    # These are used again, with the same user_data, and one of them holds a provided buffer.
                    await theirs.send(bytes([byte]))
                    assert await ours.recv(9) == bytes([byte])
                    await trio.testing.wait_all_tasks_blocked()
                    assert len(logged) == 3, logged
                    logged.clear()
            after = manager.statistics()
            assert after.operations_in_flight == before.operations_in_flight
            assert after.completed - before.completed == after.submitted - before.submitted
            os.close(reader)
            os.close(writer)
        """)


@pytest.mark.parametrize("call", ["recv", "send", "recvmsg", "sendmsg", "recvfrom_into", "read", "read_at", "write_at"])
def test_f13_a_completion_that_comes_again_when_its_operation_is_used_again(call: str, tmp_path: Path) -> None:
    """F13: operations are used again, and the second completion of an earlier use comes while the next one is in flight. That
    one gets its own result, and its own data, and its memory stays the kernel's until then (F1)."""
    in_run(
        """
        import logging
        logged = []
        handler = logging.Handler()
        handler.emit = lambda record: logged.append(record.getMessage())
        logging.getLogger("trio_uring").addHandler(handler)
        LONG = bytes(range(256)) * 16  # more than a socket that is full takes

        async def receive(sock):
            if sys.argv[1] == "recvmsg":
                return (await sock.recvmsg(9))[0]
            if sys.argv[1] == "recvfrom_into":
                memory = bytearray(9)
                count, _ = await sock.recvfrom_into(memory)
                return bytes(memory[:count])
            return await sock.recv(9)

        # The second completion of the first call of each pair comes 0 to 3 kernel entries later: as the loop goes round, as the
        # second call is submitted, or while that waits.

        async def receives():
            ours, theirs = trio.socket.socketpair()
            with ours, theirs:
                for number in range(20):
                    old, new = b"old %d" % number, b"new, %d" % number
                    async with trio.open_nursery() as nursery:
                        @nursery.start_soon
                        async def writes():
                            await trio.testing.wait_all_tasks_blocked()
                            os.write(theirs.fileno(), new)

                        os.write(theirs.fileno(), old)
                        lib.tf_arm(lib.TF_AGAIN, 1, 1, number % 4)
                        assert await receive(ours) == old
                        assert await receive(ours) == new

        async def sends():
            ours, theirs = trio.socket.socketpair()
            send = ours.send if sys.argv[1] == "send" else lambda data: ours.sendmsg([data])
            with ours, theirs:
                for number in range(20):
                    memory = bytearray(b"new")
                    ended = []

                    async def drains():
                        await trio.testing.wait_all_tasks_blocked()
                        assert not ended
                        try:
                            memory.append(0)
                            raise SystemExit("the memory is let go")
                        except BufferError:
                            pass
                        while not ended:
                            emptied(theirs)
                            await trio.testing.wait_all_tasks_blocked()

                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(drains)
                        lib.tf_arm(lib.TF_AGAIN, 1, 1, number % 4)
                        assert await send(b"x") == 1
                        filled(ours)
                        ended.append(await send(memory))
                    assert ended == [3]
                    emptied(theirs)

        def filled(sock):
            try:
                while True:
                    os.write(sock.fileno(), LONG)
            except BlockingIOError:
                pass

        def emptied(sock):
            try:
                while True:
                    os.read(sock.fileno(), 1 << 20)
            except BlockingIOError:
                pass

        async def files():
            with open(sys.argv[2], "w+b") as file:
                file.write(LONG)
                file.flush()
                async with await trio.open_file(sys.argv[2], "rb", 0) as opened:
                    for number in range(1, 21):
                        lib.tf_arm(lib.TF_AGAIN, 1, 1, number % 4)
                        for start, length in ((7, number), (7 + number, 2 * number)):
                            if sys.argv[1] == "read_at":
                                found = await trio_uring.read_at(file, length, start)
                                assert found == LONG[start : start + length], (number, start, length, found)
                            elif sys.argv[1] == "write_at":
                                assert await trio_uring.write_at(file, LONG[:length], 0) == length
                            else:
                                assert len(await opened.read(length)) == length

        async def main():
            await trio.testing.wait_all_tasks_blocked()
            if sys.argv[1].startswith("rec"):
                await receives()
            elif sys.argv[1].startswith("send"):
                await sends()
            else:
                await files()
            assert len(logged) >= 19, logged
            assert all("is not in flight, has been ignored" in each for each in logged), logged
        """,
        call,
        str(tmp_path / "file"),
    )


def test_f13_completions_that_come_twice_are_counted_once_however_many() -> None:
    """F13, F8: with hundreds in flight the books stay those of the entries; nothing is freed for a completion too many."""
    on_ring("""
        warnings.simplefilter("error")
        ring = Ring(64, 4096)
        reader, writer = os.pipe()
        memory = [ffi.new("char[]", 1) for _ in range(300)]
        for number, byte in enumerate(memory):  # these wait
            ring.queue(OP_READ, 1000 + number, reader, byte, 1, 2**64 - 1)
        ring.wait(0)
        lib.tf_arm(lib.TF_DOUBLE, 1, 0, 0)
        seen, strays = [], []

        def take(count):
            while len(seen) < count or len(strays) < count:
                for user_data, result, flags in each(ring.wait(30)):
                    (strays if user_data == _ring.STRAY_DATA else seen).append(result if user_data == 2 else user_data)

        for number in range(700):
            ring.queue(OP_NOP, 5000 + 7 * number)
        take(700)
        assert sorted(seen) == sorted(strays) == [5000 + 7 * number for number in range(700)]
        counters = ring.counters()
        assert (counters.submitted, counters.completed, counters.inflight) == (1000, 700, 300)
        assert not lib.tu_idle(ring._r)
        os.write(writer, bytes(100))
        take(800)
        counters = ring.counters()
        assert (counters.completed, counters.inflight) == (800, 200)
        reaped = ring.close()  # raises if it had to leak
        flown = [user_data for user_data, *_ in each(reaped) if user_data != _ring.STRAY_DATA]
        assert len(flown) == len(set(flown)) == 200
        counters = ring.counters()
        assert (counters.completed, counters.inflight) == (1000, 0)
        """)


def test_f36_a_completion_that_comes_twice_gives_its_buffer_back_once() -> None:
    """F13, F36: a buffer that went back twice would be two receives' at a time."""
    on_ring("""
        ring = Ring(8)
        buffers = ring.make_buffers(2, 64)
        pairs = [socket.socketpair() for _ in range(2)]
        for _ in range(10):
            for number, (a, b) in enumerate(pairs):
                assert lib.tu_recv(ring.address, a.fileno(), 64, 100 + number) == 0
            ring.wait(0)
            lib.tf_arm(lib.TF_DOUBLE, 1, 0, 0)
            for number, (a, b) in enumerate(pairs):
                b.send(b"%d" % number * 10)
            taken = {}
            ids = []
            while len(taken) < 2:
                for user_data, result, flags in each(ring.wait(30)):
                    if user_data != _ring.STRAY_DATA:
                        ids.append(flags >> 16)
                        taken[user_data] = buffers.take(flags, result)
            lib.tf_disarm()
            assert taken == {100: b"0" * 10, 101: b"1" * 10}, taken
            assert sorted(ids) == [0, 1]
            ring.wait(0)
        ring.close()
        """)


# ------------------------------------------------------------------ ring pressure


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_f22_a_short_submit_keeps_the_rest(taken: int) -> None:
    """F22: io_uring_enter(2) takes fewer entries than it was handed, again and again; all of them run, in their order."""
    on_ring(
        """
        ring = Ring(16)
        lib.tf_arm(lib.TF_SHORT, 1, 20, int(sys.argv[1]))
        for user_data in range(100, 140):
            ring.queue(OP_NOP, user_data)
        seen = []
        while len(seen) < 40:
            found = ring.wait(30)
            assert found is not None
            seen += found[::3]
        assert seen == list(range(100, 140)), seen
        ring.close()
        """,
        str(taken),
    )


SHORT = """
    reader, writer = os.pipe()
    memory = [ffi.new("char[]", 1) for _ in range(9)]

    def queue(*numbers):
        for number in numbers:
            ring.queue(OP_READ, 100 + number, reader, memory[number], 1, 2**64 - 1)
"""


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_f22_a_wait_that_has_ended_has_submitted_everything(taken: int) -> None:
    """F22, F26, invariant 6: the caller sleeps next, maybe in another thread, and nobody would submit what was left."""
    on_ring(
        SHORT
        + """
    ring = Ring(16)
    assert ring.wait(0) is None
    for first in range(0, 9, 3):
        ring.owner_back()
        queue(first, first + 1, first + 2)
        assert ring.queued == 3
        lib.tf_arm(lib.TF_SHORT, 1, 1, int(sys.argv[1]))
        assert not ring.wait(0)
        assert ring.queued == 0
    lib.tf_disarm()
    os.write(writer, bytes(9))
    seen = []
    while len(seen) < 9:
        seen += ring.wait(30)[::3]
    assert sorted(seen) == list(range(100, 109)), seen
    ring.close()
    """,
        str(taken),
    )


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("how", ["submit", "full", "away", "cancel_fd", "cancel_sync"])
def test_f22_every_way_to_submit_goes_on_after_a_short_one(how: str, taken: int) -> None:
    """F22: `submit`, a full queue, an entry that is queued while the owner is away, and the two cancels that come at once."""
    on_ring(
        SHORT
        + """
    how, taken = sys.argv[1], int(sys.argv[2])
    ring = Ring(4, 64)
    assert ring.wait(0) is None
    if how != "away":
        ring.owner_back()
    if how == "full":
        queue(0, 1, 2, 3)
        lib.tf_arm(lib.TF_SHORT, 1, 1, taken)
        queue(4)  # there has to be room for it, and the others are before it
        assert ring.queued <= 4
        ring.submit()
    elif how == "away":
        lib.tf_arm(lib.TF_SHORT, 1, 1, taken)
        queue(0)
        if ring.queued:  # the kernel took nothing: then the sleeper is woken, and the next wait submits
            assert ring.wait(30) == []
    else:
        queue(0, 1, 2)
        lib.tf_arm(lib.TF_SHORT, 1, 1, taken)
        if how == "submit":
            ring.submit()
        elif how == "cancel_fd":
            ring.cancel_fd(writer)  # of another file: nothing is cancelled
        else:
            assert ring.cancel_sync(user_data=101) == 0
    assert ring.queued == 0
    lib.tf_disarm()
    expected = {"full": 5, "away": 1}.get(how, 3)
    os.write(writer, bytes(9))
    seen = {}
    while len(seen) < expected:
        seen.update((user_data, result) for user_data, result, _ in each(ring.wait(30)))
    ended = {user_data: 1 for user_data in range(100, 100 + expected)}
    if how == "cancel_sync":
        ended[101] = -errno.ECANCELED
    assert seen == ended, seen
    ring.close()
    """,
        how,
        str(taken),
    )


@pytest.mark.parametrize("name", ["EBUSY", "EAGAIN"])
def test_f23_a_refused_submit_reaps_and_does_not_spin(name: str) -> None:
    """F23: two system calls for each refusal, no more: one to try, one to wait; and a bound on them."""
    on_ring(
        """
        number = getattr(errno, sys.argv[1])
        ring = Ring(16)
        ring.wait(0)
        ring.owner_back()  # what is queued waits for a submit again
        ring.queue(OP_NOP, 100)
        lib.tf_arm(lib.TF_ENTER, 1, 10, number)
        before = lib.tf_calls(lib.TF_ENTER)
        seen = []
        while not seen:
            seen += ring.wait(30) or []
        assert seen == [100, 0, 0]
        assert lib.tf_calls(lib.TF_ENTER) - before <= 20
        ring.queue(OP_NOP, 101)
        lib.tf_arm(lib.TF_ENTER, 1, 0, number)
        before = lib.tf_calls(lib.TF_ENTER)
        try:
            ring.submit()
            raise SystemExit("submitted?")
        except OSError as error:
            assert error.errno == number and "io_uring" in str(error)
        assert lib.tf_calls(lib.TF_ENTER) - before < 1000
        lib.tf_disarm()
        assert (ring.wait(30) or ring.wait(30)) == [101, 0, 0]
        ring.close()
        """,
        name,
    )


def test_f24_completions_without_room_come_later_and_in_order() -> None:
    """F24: the kernel says only IORING_SQ_CQ_OVERFLOW."""
    on_ring("""
        ring = Ring(16)
        for nth in (1, 5, 16):
            lib.tf_arm(lib.TF_NO_ROOM, nth, 3, 0)
            for user_data in range(100, 116):
                ring.queue(OP_NOP, user_data)
            seen = []
            while len(seen) < 16:
                found = ring.wait(30)
                assert found is not None
                seen += found[::3]
            assert seen == list(range(100, 116)), seen
        assert ring.counters().cq_overflows > 0
        ring.close()
        """)


def test_f24_a_wait_hands_out_what_there_was_no_room_for() -> None:
    """F24: a call that does not wait hands out as much as it may, and while something is left it is no timeout."""
    on_ring("""
        ring = Ring(2, 4)
        assert ring.wait(0) is None
        reader, writer = os.pipe()
        memory = [ffi.new("char[]", 1) for _ in range(40)]
        for number, byte in enumerate(memory):
            ring.queue(OP_READ, 100 + number, reader, byte, 1, 2**64 - 1)
        assert not ring.wait(0)
        before = ring.counters().cq_overflows
        os.write(writer, bytes(40))
        seen = []
        while len(seen) < 40:
            found = ring.wait(0)
            assert found, (len(seen), found)
            seen += found[::3]
        assert sorted(seen) == list(range(100, 140))
        assert ring.counters().cq_overflows > before
        assert ring.wait(0) is None
        # The same on the injector's word alone: nothing is in the queue, and only the flag says that something is to come.
        ring.owner_back()  # what is queued waits for a submit again
        for number in range(2):
            ring.queue(OP_NOP, 200 + number)
        lib.tf_arm(lib.TF_NO_ROOM, 1, 1, 0)
        found = ring.wait(0)
        assert found is not None and found[::3] == [200, 201], found
        lib.tf_disarm()
        ring.close()
        """)


def test_f24_nobody_sleeps_over_what_there_was_no_room_for() -> None:
    """F24: neither the owner nor another thread, whatever the rest of the ring says."""
    on_ring("""
        ring = Ring(8, 16)
        ring.wait(0)
        helper = []

        def asleep():
            began = time.monotonic()
            answer = ring.wait(20)
            helper.append((answer, time.monotonic() - began < 15))

        def in_thread():
            thread = threading.Thread(target=asleep)
            thread.start()
            thread.join()
            return helper.pop()

        in_thread()  # the owner learns of sleepers
        while ring.wait(0) is not None:
            pass
        # While the owner is away an entry goes at once. What has completed is held back, by want of room.
        lib.tf_arm(lib.TF_NO_ROOM, 1, 0, 0)
        ring.queue(OP_NOP, 100)
        ring.cancel_fd(0)  # runs the deferred work
        assert in_thread() == ([], True)
        lib.tf_disarm()
        assert ring.wait(20) == [100, 0, 0]
        ring.close()
        """)


def test_f24_a_close_of_a_descriptor_makes_room_for_what_it_ends() -> None:
    """F24, F18: more requests end than the queue holds; none of them may hold the file when it returns."""
    on_ring("""
        ring = Ring(2, 4)
        ring.wait(0)
        ours, theirs = socket.socketpair()
        memory = [ffi.new("char[]", 1) for _ in range(60)]
        for number, byte in enumerate(memory):
            ring.queue(OP_READ, 100 + number, ours.fileno(), byte, 1, 0)
        assert not ring.wait(0)
        ring.cancel_fd(ours.fileno())
        ours.close()
        theirs.settimeout(20)
        assert theirs.recv(1) == b""
        seen = []
        while len(seen) < 60:
            found = ring.wait(0)
            assert found, (len(seen), found)
            assert set(found[1::3]) == {-errno.ECANCELED}
            seen += found[::3]
        assert sorted(seen) == list(range(100, 160))
        ring.close()
        """)


@pytest.mark.parametrize("spin", [0, 50_000])
def test_f25_deferred_work_that_is_told_of_when_it_has_been_run_keeps_nobody_busy(spin: int) -> None:
    """F25, F18: one of the kernel's workers sets IORING_SQ_TASKRUN when its work has been run, and the kernel clears it no more.

    io_req_local_work_add() adds the work first and sets the flag then. A close went on for ever (seen once in millions of
    races, on 6.18), and a run that had nothing to do never slept.
    """
    on_ring(
        """
        ring = Ring(16)
        ring.spin(int(sys.argv[1]))
        reader, writer = os.pipe()
        memory = ffi.new("char[]", 1)

        def none_for(seconds):
            ring.owner_back()
            before = ring.counters().enters
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                assert not ring.wait(left)
            assert ring.counters().enters - before < 10, ring.counters().enters - before

        def elsewhere():
            while ring.wait(0) is not None:
                pass
            began = time.monotonic()
            thread = threading.Thread(target=ring.wait, args=(0.2,))
            thread.start()
            thread.join()
            return time.monotonic() - began

        elsewhere()  # the owner learns of sleepers
        for nth in 1, 2, 3:
            ring.queue(OP_READ, 100, reader, memory, 1, 2**64 - 1)
            ring.submit()
            lib.tf_arm(lib.TF_STALE, nth, 1, 0)
            ring.cancel_fd(reader)
            assert ring.wait(5) == [100, -errno.ECANCELED, 0]
            none_for(0.1)
        for _ in range(20):  # it looks for completions before it sleeps, as long as they come
            ring.queue(OP_NOP, 100)
            assert ring.wait(5) == [100, 0, 0]
        lib.tf_arm(lib.TF_STALE, 1, 2, 0)
        none_for(0.1)
        lib.tf_arm(lib.TF_STALE, 1, 1, 0)
        assert elsewhere() >= 0.19
        ring.close()
        """,
        str(spin),
    )


def test_f25_work_that_an_enter_did_not_get_to_is_told_of_again() -> None:
    """F25: the flag is cleared before an enter; where the kernel refuses that, a sleeper elsewhere has to see it still."""
    on_ring("""
        ring = Ring(16)
        reader, writer = os.pipe()
        memory = ffi.new("char[]", 1)
        answers = []

        def elsewhere():
            thread = threading.Thread(target=lambda: answers.append(ring.wait(20)))
            began = time.monotonic()
            thread.start()
            thread.join()
            assert time.monotonic() - began < 15
            return answers.pop()

        elsewhere()  # the owner learns of sleepers
        for kind, value in (lib.TF_ENTER, errno.EAGAIN), (lib.TF_ENTER, errno.EINTR), (lib.TF_SHORT, 0), (lib.TF_SHORT, 1):
            while ring.wait(0) is not None:
                pass
            ring.queue(OP_READ, 100, reader, memory, 1, 2**64 - 1)
            assert ring.wait(0) is None
            os.write(writer, b"x")  # its completion is deferred work now
            if kind == lib.TF_SHORT:
                ring.owner_back()
                ring.queue(OP_NOP, 101)
                ring.queue(OP_NOP, 102)
            lib.tf_arm(kind, 1, 1, value)
            found = list(ring.wait(0) or ())
            lib.tf_disarm()
            while 100 not in found[::3]:
                assert elsewhere() == []
                found += ring.wait(0) or ()
        ring.close()
        """)


def test_f26_nobody_sleeps_where_the_wake_up_could_not_be_queued() -> None:
    """F26: the submission queue is full and the kernel takes nothing: a wait that nobody could end is not begun."""
    on_ring("""
        ring = Ring(16)
        lib.tf_arm(lib.TF_SQE, 1, 1, errno.EBUSY)
        assert ring.wait(None) == []
        ring.wake()
        assert ring.wait(30) == []
        assert ring.wait(0) is None
        ring.close()
        """)


def test_f27_a_wake_up_that_is_reaped_in_passing_still_ends_the_next_wait() -> None:
    """F27: a refused submit takes completions out of the queue to make room, and the wake-up's may be among them."""
    on_ring("""
        ring = Ring(16)
        ring.wait(0)
        ring.owner_back()  # what is queued waits for a submit again
        ring.wake()
        ring.cancel_fd(0)  # runs the deferred work: the completion of the wake-up is in the queue now
        reader, writer = os.pipe()
        memory = ffi.new("char[]", 1)
        ring.queue(OP_READ, 100, reader, memory, 1)
        lib.tf_arm(lib.TF_ENTER, 1, 1, errno.EAGAIN)
        ring.submit()
        assert ring.wait(30) == []
        assert None in [ring.wait(0.01) for _ in range(5)]  # once
        ring.close()
        """)


def test_f28_an_interrupted_wait_of_no_bound_is_bounded_by_its_caller() -> None:
    """F28, F38: under a storm of signals each wait ends, none is taken for a timeout, and a submit gives up."""
    on_ring("""
        ring = Ring(16)
        ring.wait(0)
        ring.owner_back()  # what is queued waits for a submit again
        lib.tf_arm(lib.TF_ENTER, 1, 0, errno.EINTR)
        for _ in range(100):
            assert ring.wait(30) == []
        ring.queue(OP_NOP, 100)
        try:
            ring.submit()
            raise SystemExit("submitted?")
        except OSError as error:
            assert error.errno == errno.EINTR
        lib.tf_disarm()
        assert ring.wait(30) == [100, 0, 0]
        ring.close()
        """)


def test_f38_progress_is_not_counted_as_failure() -> None:
    """F38: 20 refusals for each entry that the kernel takes, 40 entries: more refusals in all than a submit has patience for."""
    on_ring("""
        ring = Ring(64)
        ring.wait(0)
        ring.owner_back()  # what is queued waits for a submit again
        for user_data in range(100, 140):
            ring.queue(OP_NOP, user_data)
        lib.tf_arm(lib.TF_SHORT, 1, 0, 1)
        lib.tf_arm(lib.TF_ENTER, 1, 0, errno.EAGAIN)
        lib.tf_spare(lib.TF_ENTER, 21)
        ring.submit()
        lib.tf_disarm()
        assert ring.queued == 0
        seen = []
        while len(seen) < 40:
            seen += ring.wait(30)[::3]
        assert seen == list(range(100, 140))
        ring.close()
        """)


@pytest.mark.parametrize("make", [Ring, SimulatedRing])
@pytest.mark.parametrize("timeout", [-1.0, -1e-9, 0.0])
def test_f38_a_wait_of_less_than_no_time_does_not_wait(timeout: float, make: type[Ring]) -> None:
    """F38: a deadline that has passed is not for ever."""
    ring = make(8)
    assert ring.wait(timeout) is None
    ring.close()


# ------------------------------------------------------------------ environment


def test_f31_no_thread_of_the_kernel_submits_with_the_credentials_of_the_set_up() -> None:
    """F31: SQPOLL, which would keep them after a setuid, is not used."""
    ring = Ring(8)
    try:
        told = Path(f"/proc/self/fdinfo/{ring.fileno()}").read_text()
        assert re.search(r"^SqThread:\s*-1$", told, re.M), told
    finally:
        ring.close()


def test_f34_less_memory_makes_a_smaller_ring_and_none_a_clear_error() -> None:
    """F34: the first set-ups answer ENOMEM; then all of them do."""
    on_ring("""
        from trio_uring import UringUnavailableError
        before = descriptors()
        lib.tf_arm(lib.TF_SETUP, 1, 3, errno.ENOMEM)
        ring = Ring(512)
        assert ring.sq_entries == 64
        ring.close()
        lib.tf_arm(lib.TF_SETUP, 1, 0, errno.ENOMEM)
        try:
            Ring(512)
            raise SystemExit("made?")
        except UringUnavailableError as error:
            assert error.errno == errno.ENOMEM and error.remedy
        gc.collect()
        assert descriptors() == before
        """)


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM"])
def test_f35_no_eventfd_leaves_no_ring(name: str) -> None:
    """F35: the second of the two descriptors of a ring cannot be had."""
    on_ring(
        """
        from trio_uring import UringUnavailableError
        number = getattr(errno, sys.argv[1])
        before = descriptors()
        lib.tf_arm(lib.TF_EVENTFD, 1, 0, number)
        try:
            Ring(512)
            raise SystemExit("made?")
        except UringUnavailableError as error:
            assert error.errno == number
        gc.collect()
        assert descriptors() == before
        lib.tf_disarm()
        Ring(512).close()
        """,
        name,
    )


def test_f39_a_second_set_of_buffers_is_refused_whatever_its_size() -> None:
    """F39: sizes that differ from those in use are an error, not ignored."""
    ring = Ring(8)
    try:
        ring.make_buffers(4, 64)
        for entries, size in ((4, 64), (8, 64), (4, 128)):
            with pytest.raises(OSError, match="has its provided buffers already") as caught:
                ring.make_buffers(entries, size)
            assert caught.value.errno == errno.EEXIST
    finally:
        ring.close()


# ------------------------------------------------------------------ buffers


def test_f35_no_second_descriptor_while_a_fifo_is_opened() -> None:
    """F35: without a descriptor it is an error, and no wait for ever."""
    in_run("""
        import tempfile

        async def main():
            with tempfile.TemporaryDirectory() as directory:
                path = directory + "/fifo"
                os.mkfifo(path)
                resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
                held = []
                try:
                    while True:
                        held.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
                except OSError as error:
                    assert error.errno == errno.EMFILE
                with trio.fail_after(20):
                    try:
                        await trio.open_file(path, "rb", buffering=0)
                        raise SystemExit("opened")
                    except OSError as error:
                        assert (error.errno, error.filename) == (errno.EMFILE, path), error
                for fd in held:
                    os.close(fd)
        """)


def test_f36_no_buffer_is_handed_out_twice_when_completions_are_put_aside() -> None:
    """F36, F10: a full queue is emptied into a stash; buffers named there are out until their completions are handed out."""
    on_ring("""
        ring = Ring(4, 8)
        buffers = ring.make_buffers(4, 64)
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for _ in range(20):
            ring.wait(0)  # the buffers of the last round go back
            for number in range(4):
                b.send(b"%d" % number * 10)
                assert lib.tu_recv(ring.address, a.fileno(), 64, 100 + number) == 0
            ring.queue(OP_NOP, 99)  # a full queue: what has been submitted completes
            lib.tf_arm(lib.TF_ENTER, 1, 1, errno.EAGAIN)
            ring.submit()
            taken = {}
            ids = []
            while len(taken) < 4:
                for user_data, result, flags in each(ring.wait(30)):
                    if user_data >= 100:
                        assert result == 10
                        ids.append(flags >> 16)
                        taken[user_data] = buffers.take(flags, result)
            assert taken == {100 + number: b"%d" % number * 10 for number in range(4)}, taken
            assert sorted(ids) == [0, 1, 2, 3]
        ring.wait(0)
        ring.close()
        """)


# ------------------------------------------------------------------ files


FILES = """
import tempfile

content = bytes(range(256)) * 1000

def ways(path):
    async def whole(mode, buffering, name, *arguments):
        async with await trio.open_file(path, mode, buffering) as file:
            arm()
            return await getattr(file, name)(*arguments)

    async def in_pieces(name, buffering):
        async with await trio.open_file(path, "rb", buffering) as file:
            arm()
            pieces = []
            while piece := await getattr(file, name)(10_000):
                pieces.append(piece)
            return b"".join(pieces)

    async def into(name, buffering):
        async with await trio.open_file(path, "rb", buffering) as file:
            arm()
            memory = bytearray(len(content) + 1)
            return bytes(memory[: await getattr(file, name)(memory)])

    async def behind_the_end(name, buffering):
        async with await trio.open_file(path, "rb", buffering) as file:
            await file.seek(len(content) + 10)
            arm()
            return content + await getattr(file, name)(10)

    async def lines():
        async with await trio.open_file(path, "rb") as file:
            arm()
            return b"".join([line async for line in file])

    async def text(*arguments):
        async with await trio.open_file(path, "r", encoding="latin-1", newline="") as file:
            arm()
            return (await file.read(*arguments)).encode("latin-1")

    for buffering in (0, -1):
        yield whole, "rb", buffering, "read"
        yield whole, "rb", buffering, "read", len(content)
        yield in_pieces, "read", buffering
        yield in_pieces, "readline", buffering
        yield into, "readinto", buffering
        yield behind_the_end, "read", buffering
    yield in_pieces, "read1", -1
    yield behind_the_end, "read1", -1
    yield lines,
    yield text,
    yield text, len(content)

def arm():
    lib.tf_arm(lib.TF_FILE, *when, errno.EIO)
"""


def test_a_file_that_does_not_tell_its_size_is_read_to_its_end() -> None:
    """fstat(2) and lseek(2) of the shim fail, once or from then on: no read takes that for the end of the file."""
    in_run(
        FILES
        + """
async def main():
    global when
    with tempfile.TemporaryDirectory() as directory:
        path = directory + "/file"
        with open(path, "wb") as file:
            file.write(content)
        for when in [(nth, times) for nth in (1, 2, 3, 4) for times in (0, 1)]:
            for way, *arguments in ways(path):
                found = await way(*arguments)
                lib.tf_disarm()
                assert found == content, (when, way, arguments, len(found))
        for when in [(nth, times) for nth in range(1, 9) for times in (0, 1)]:
            arm()
            found = await trio.Path(path).read_bytes()
            lib.tf_disarm()
            assert found == content, (when, len(found))
"""
    )


def test_a_fifo_that_does_not_tell_its_kind_waits_for_its_writer() -> None:
    """The same where it is a FIFO: opened to read and taken for something else, it would be at its end before its beginning."""
    in_run("""
        import tempfile

        async def comes(path):
            while True:
                try:
                    return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError as error:
                    assert error.errno == errno.ENXIO
                    await trio.sleep(0.01)

        async def main():
            with tempfile.TemporaryDirectory() as directory:
                path = directory + "/fifo"
                os.mkfifo(path)

                async def reads():
                    assert await how() == b"from the writer"

                async def opens():
                    async with await trio.open_file(path, "rb", buffering=0) as file:
                        return await file.read(100)

                for how in (opens, trio.Path(path).read_bytes):
                    for nth in (1, 2):
                        with trio.fail_after(60):
                            async with trio.open_nursery() as nursery:
                                lib.tf_arm(lib.TF_FILE, nth, 0, errno.EIO)
                                nursery.start_soon(reads)
                                await trio.testing.wait_all_tasks_blocked(0.05)
                                os.write(writer := await comes(path), b"from the writer")
                                os.close(writer)
                        lib.tf_disarm()
        """)


# ------------------------------------------------------------------ the table


def _tests() -> set[str]:
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
                found.add(f"{path.relative_to(ROOT / 'tests')}::{node.name}")
    return found


def test_the_table_names_every_fault_and_only_tests_that_exist() -> None:
    """docs/faults.md is what it says it is."""
    rows = re.findall(r"^\| F(\d+) \|(.*)\|$", (ROOT / "docs" / "faults.md").read_text(), re.M)
    existing = _tests()
    named_after_one = {int(number) for name in existing for number in re.findall(r"(?<=_f)\d+(?=_)", name)}
    assert [int(number) for number, _ in rows] == sorted({*range(1, 40), *named_after_one})
    for number, row in rows:
        named = re.findall(r"`([\w/]+\.py::\w+)`", row)
        assert named, f"F{number} names no test"
        for name in named:
            assert name in existing, f"F{number}: there is no {name}"
