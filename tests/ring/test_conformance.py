"""The promises of `Ring`, each kept by the kernel's ring and a simulated one, smallest and default size.

Knows the interface of layer 1 and the fault numbers; knows nothing of how either ring keeps it.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import threading
import time
import types
import warnings
import weakref
from collections import deque
from collections.abc import Callable

import pytest

from trio_uring._ring import ring as _ring
from trio_uring._ring.ring import (
    CANCEL_ALL,
    CANCEL_FD,
    CQE_BUFFER_SHIFT,
    CQE_F_BUFFER,
    CQE_F_MORE,
    FIRST_USER_DATA,
    IOSQE_BUFFER_SELECT,
    OP_ACCEPT,
    OP_ASYNC_CANCEL,
    OP_NOP,
    OP_POLL_ADD,
    OP_READ,
    OP_RECV,
    OP_SEND,
    OP_WRITE,
    POLL_ADD_MULTI,
    Ring,
    ffi,
)

from .conftest import MakeRing, NoDescriptors
from .support import (
    PATIENCE,
    SMALLEST,
    InThread,
    content,
    decode,
    handed_over,
    in_forked_child,
    in_order,
    make_ring,
    memory,
    open_descriptors,
    reap,
    reap_by_user_data,
    settle,
    user_datas,
)

ONE = FIRST_USER_DATA
TWO = FIRST_USER_DATA + 1
CANCELED = -errno.ECANCELED

# ------------------------------------------------------------------ set-up


def test_sizes_are_rounded_up_to_powers_of_two(new_ring: MakeRing) -> None:
    ring = new_ring(5, 9)
    assert (ring.sq_entries, ring.cq_entries) == (8, 16)
    assert new_ring(2, 4).cq_entries == 4
    assert new_ring(512).cq_entries == 4096


@pytest.mark.parametrize(
    ("sq_entries", "cq_entries", "name"),
    [(1, 4, "sq_entries"), (32769, None, "sq_entries"), (8, 4, "cq_entries"), (8, 65537, "cq_entries")],
)
def test_bad_sizes_are_refused_by_name(
    new_ring: MakeRing, sq_entries: int, cq_entries: int | None, name: str, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(ValueError, match=name):
        new_ring(sq_entries, cq_entries)
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_every_public_name_of_the_ring_is_simulated() -> None:
    from trio_uring.testing import SimulatedBufferRing, SimulatedRing

    for real, simulated in ((Ring, SimulatedRing), (_ring.BufferRing, SimulatedBufferRing)):
        code = (types.FunctionType, property)
        public = {name for name, what in vars(real).items() if isinstance(what, code) and name[0] != "_"}
        assert public <= set(vars(simulated))


# ------------------------------------------------------------------ queueing and counting


def test_nops_complete_once_each_and_are_counted(ring: Ring) -> None:
    numbers = list(user_datas(10))
    for user_data in numbers:
        ring.queue(OP_NOP, user_data)
    completions = reap(ring, 10)
    if in_order(ring):
        assert [c.user_data for c in completions] == numbers
    assert sorted(completions) == [(user_data, 0, 0) for user_data in numbers]
    counters = ring.counters()
    assert (counters.submitted, counters.completed, counters.cancelled, counters.inflight) == (10, 10, 0, 0)


def test_inflight_counts_what_is_queued_and_what_is_blocked(ring: Ring, pipe: tuple[int, int]) -> None:
    buffer = memory(1)
    ring.queue(OP_READ, ONE, pipe[0], buffer, 1)
    assert ring.counters().inflight == 1
    ring.submit()
    assert ring.counters().inflight == 1
    os.write(pipe[1], b"x")
    assert reap(ring, 1) == [(ONE, 1, 0)]
    assert ring.counters().inflight == 0


def test_queued_tells_what_the_kernel_has_not_been_handed(ring: Ring) -> None:
    assert ring.queued == 0
    ring.queue(OP_NOP, ONE)
    assert ring.queued == 1 or ring.polled  # a poller may have taken it already
    ring.queue(OP_NOP, TWO)
    assert ring.queued == 2 or ring.polled
    ring.submit()
    assert handed_over(ring)
    reap(ring, 2)


def test_a_full_submission_queue_flushes_and_loses_nothing(new_ring: MakeRing) -> None:
    """F12, F22, F26: a thousand entries through a queue of two."""
    ring = new_ring(*SMALLEST)
    numbers = list(user_datas(1000))
    for user_data in numbers:
        ring.queue(OP_NOP, user_data)
        assert ring.queued <= 2
    assert ring.counters().sq_flushes >= 499 or ring.polled
    completions = reap(ring, 1000)
    if in_order(ring):
        assert [c.user_data for c in completions] == numbers
    assert sorted(c.user_data for c in completions) == numbers
    assert ring.counters().inflight == 0


def test_a_full_submission_queue_keeps_cancels(new_ring: MakeRing, pipe: tuple[int, int]) -> None:
    """F12: of many blocked reads, each is cancelled, though the queue holds two entries."""
    ring = new_ring(*SMALLEST)
    buffers = {user_data: memory(1) for user_data in user_datas(50)}
    for user_data, buffer in buffers.items():
        ring.queue(OP_READ, user_data, pipe[0], buffer, 1)
    for user_data in buffers:
        ring.cancel(user_data)
    assert {c.res for c in reap_by_user_data(ring, 50).values()} == {CANCELED}
    assert ring.counters().cancelled == 50


def test_an_overflowing_completion_queue_loses_nothing(new_ring: MakeRing) -> None:
    """F24: 64 completions at once where four fit."""
    ring = new_ring(*SMALLEST)
    for user_data in user_datas(64):
        ring.queue(OP_NOP, user_data)
    completions = reap(ring, 64)
    if in_order(ring):
        assert [c.user_data for c in completions] == list(user_datas(64))
    assert {c.user_data for c in completions} == set(user_datas(64))
    assert ring.counters().cq_overflows > 0
    assert settle(ring) == []


def test_deferred_completions_overflow_and_lose_nothing(new_ring: MakeRing) -> None:
    """F24, F25: a hundred polls become ready together; four fit in the queue, about twenty in one enter."""
    ring = new_ring(*SMALLEST)
    pipes = [os.pipe() for _ in range(100)]
    try:
        for user_data, (reader, _) in zip(user_datas(100), pipes, strict=True):
            ring.poll(reader, select.POLLIN, user_data)
        assert settle(ring) == []
        for _, writer in pipes:
            os.write(writer, b"x")
        completions = reap_by_user_data(ring, 100)
        assert all(c.res & select.POLLIN for c in completions.values())
    finally:
        for fds in pipes:
            for fd in fds:
                os.close(fd)


@pytest.mark.parametrize("cancels", range(6))
def test_completions_put_aside_are_in_flight_until_they_are_handed_out(
    new_ring: MakeRing, pipe: tuple[int, int], cancels: int
) -> None:
    """F8, F24: `cancel_fd` makes room in a full completion queue, and what it finds there is not lost by a close."""
    ring = new_ring(*SMALLEST)
    for user_data in user_datas(8):
        ring.queue(OP_NOP, user_data)
    for _ in range(cancels):
        ring.cancel(ONE + 100)  # of nothing: takes a place in the queue
    ring.cancel_fd(pipe[0])
    assert ring.counters().inflight == 8
    assert {c.user_data for c in decode(ring.close())} == set(user_datas(8))
    assert ring.counters().inflight == 0


def test_completions_are_handed_out_no_more_than_fit(new_ring: MakeRing) -> None:
    ring = new_ring(*SMALLEST)
    for user_data in user_datas(30):
        ring.queue(OP_NOP, user_data)
    seen = 0
    while seen < 30:
        some = ring.wait(PATIENCE)
        assert some is not None
        assert len(some) <= 3 * 4
        seen += len(some) // 3
    assert seen == 30


def test_a_bad_entry_completes_with_its_error(ring: Ring) -> None:
    ring.queue(OP_READ, ONE, fd=-1, addr=memory(1), length=1)
    ring.queue(255, TWO)
    completions = reap_by_user_data(ring, 2)
    assert completions[ONE].res == -errno.EBADF
    assert completions[TWO].res == -errno.EINVAL


def test_memory_that_is_not_there_is_an_error_of_the_entry(ring: Ring, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"data")
    ring.queue(OP_READ, ONE, pipe[0], ffi.cast("char *", 16), 4)
    assert reap(ring, 1) == [(ONE, -errno.EFAULT, 0)]


def test_an_entry_may_be_queued_from_inside_a_batch_of_completions(ring: Ring) -> None:
    """F26: a completion leads to the next entry, two hundred times."""
    ring.queue(OP_NOP, ONE)
    for user_data in range(ONE, ONE + 200):
        assert [c.user_data for c in reap(ring, 1)] == [user_data]
        ring.queue(OP_NOP, user_data + 1)
    reap(ring, 1)


# ------------------------------------------------------------------ operations


def test_read_and_write_move_the_bytes_of_the_addresses_given(ring: Ring, pipe: tuple[int, int]) -> None:
    source, target = ffi.new("char[]", b"hello"), memory(5)
    ring.queue(OP_WRITE, ONE, pipe[1], source, 5)
    assert reap(ring, 1) == [(ONE, 5, 0)]
    ring.queue(OP_READ, TWO, pipe[0], target, 5)
    assert reap(ring, 1) == [(TWO, 5, 0)]
    assert content(target, 5) == b"hello"


@pytest.mark.parametrize("nonblocking", [False, True])
def test_a_blocked_receive_waits_whatever_the_descriptor_says(
    ring: Ring, pair: tuple[socket.socket, socket.socket], nonblocking: bool
) -> None:
    """F20: on the ring, O_NONBLOCK does not turn a wait into -EAGAIN."""
    ours, theirs = pair
    ours.setblocking(not nonblocking)
    buffer = memory(8)
    ring.queue(OP_RECV, ONE, ours.fileno(), buffer, 8)
    assert settle(ring) == []
    theirs.send(b"late")
    assert reap(ring, 1) == [(ONE, 4, 0)]
    assert content(buffer, 4) == b"late"
    assert ours.getblocking() is not nonblocking


def test_msg_dontwait_answers_eagain(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    """F20."""
    ring.queue(OP_RECV, ONE, pair[0].fileno(), memory(8), 8, op_flags=socket.MSG_DONTWAIT)
    assert reap(ring, 1) == [(ONE, -errno.EAGAIN, 0)]


def test_a_whole_send_to_a_slow_reader_is_one_completion(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    size = 1 << 20
    source = memory(size)
    ring.queue(OP_SEND, ONE, ours.fileno(), source, size, op_flags=socket.MSG_WAITALL)

    def drain() -> int:
        theirs.settimeout(PATIENCE)
        got = 0
        while got < size:
            got += len(theirs.recv(1 << 16))
        return got

    reader = InThread(drain)
    assert reap(ring, 1) == [(ONE, size, 0)]
    assert reader.result() == size


def test_a_cancelled_whole_send_reports_exactly_what_the_peer_gets(
    ring: Ring, pair: tuple[socket.socket, socket.socket]
) -> None:
    """F11: part of the bytes has moved, so the completion is their number and not -ECANCELED."""
    ours, theirs = pair
    size = 1 << 22
    source = memory(size)
    ring.queue(OP_SEND, ONE, ours.fileno(), source, size, op_flags=socket.MSG_WAITALL)
    assert settle(ring) == []
    ring.cancel(ONE)
    (completion,) = reap(ring, 1)
    assert 0 < completion.res < size
    theirs.setblocking(False)
    got = 0
    while got < completion.res:
        got += len(theirs.recv(1 << 20))
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    assert got == completion.res


def test_accept_delivers_a_connection_and_the_peer_address(ring: Ring) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, size = memory(128), ffi.new("unsigned *", 128)
        size_at = int(ffi.cast("uintptr_t", size))
        ring.queue(OP_ACCEPT, ONE, listener.fileno(), address, offset=size_at, op_flags=socket.SOCK_CLOEXEC)
        assert settle(ring) == []
        with socket.create_connection(listener.getsockname()) as client:
            (completion,) = reap(ring, 1)
            with socket.socket(fileno=completion.res) as accepted:
                assert accepted.getpeername() == client.getsockname()
                assert not os.get_inheritable(accepted.fileno())
        assert size[0] == 16
        assert int.from_bytes(content(address, 2), "little") == socket.AF_INET


def test_a_poll_reports_its_events_and_no_others(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ring.poll(ours.fileno(), select.POLLOUT, ONE)
    assert reap(ring, 1) == [(ONE, select.POLLOUT, 0)]
    ring.poll(ours.fileno(), select.POLLIN, TWO)
    assert settle(ring) == []
    theirs.send(b"x")
    assert reap(ring, 1) == [(TWO, select.POLLIN, 0)]


def test_a_poll_always_reports_that_the_peer_has_shut_down(
    ring: Ring, pair: tuple[socket.socket, socket.socket]
) -> None:
    """POLLRDHUP comes unasked, unlike with poll(2)."""
    ours, theirs = pair
    theirs.shutdown(socket.SHUT_WR)
    ring.poll(ours.fileno(), select.POLLOUT, ONE)
    assert reap(ring, 1) == [(ONE, select.POLLOUT | select.POLLRDHUP, 0)]


def test_a_multishot_poll_goes_on_until_it_is_cancelled(ring: Ring, pipe: tuple[int, int]) -> None:
    """F16: every completion but the last says F_MORE, and each edge is told."""
    user_data = ONE
    ring.queue(OP_POLL_ADD, user_data, pipe[0], length=POLL_ADD_MULTI, op_flags=select.POLLIN)
    assert settle(ring) == []
    for _ in range(5):
        os.write(pipe[1], b"x")
        (completion,) = reap(ring, 1)
        assert completion[:2] == (user_data, select.POLLIN)
        os.read(pipe[0], 1)
        if not completion.flags & CQE_F_MORE:  # nobody promised more
            user_data += 1
            ring.queue(OP_POLL_ADD, user_data, pipe[0], length=POLL_ADD_MULTI, op_flags=select.POLLIN)
            assert settle(ring) == []
    assert ring.counters().inflight == 1
    ring.cancel(user_data)
    assert reap(ring, 1) == [(user_data, CANCELED, 0)]
    assert ring.counters().inflight == 0


def test_polls_of_regular_files_are_ready_at_once(ring: Ring) -> None:
    """F21."""
    with open(__file__, "rb") as file:
        ring.poll(file.fileno(), select.POLLIN, ONE)
        assert reap(ring, 1) == [(ONE, select.POLLIN, 0)]


# ------------------------------------------------------------------ cancelling


def test_cancel_in_the_batch_of_its_target(ring: Ring, pipe: tuple[int, int]) -> None:
    """F14: the two are handed over in order, so the cancel finds its target."""
    buffer = memory(1)
    ring.queue(OP_READ, ONE, pipe[0], buffer, 1)
    ring.cancel(ONE)
    assert ring.queued == 2
    assert reap(ring, 1) == [(ONE, CANCELED, 0)]
    assert settle(ring) == []


def test_cancel_of_a_blocked_read(ring: Ring, pipe: tuple[int, int]) -> None:
    buffer = memory(1)
    ring.queue(OP_READ, ONE, pipe[0], buffer, 1)
    assert settle(ring) == []
    ring.cancel(ONE)
    assert reap(ring, 1) == [(ONE, CANCELED, 0)]
    os.write(pipe[1], b"x")
    assert settle(ring) == []
    assert os.read(pipe[0], 1) == b"x"


def test_cancel_of_a_blocked_poll(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.poll(pipe[0], select.POLLIN, ONE)
    assert settle(ring) == []
    ring.cancel(ONE)
    assert reap(ring, 1) == [(ONE, CANCELED, 0)]
    assert ring.counters().cancelled == 1


def test_cancel_after_the_completion_hits_nothing(ring: Ring, pipe: tuple[int, int]) -> None:
    """F13: the cancel of an entry that has completed touches no other, and tells nothing itself."""
    buffer = memory(1)
    ring.queue(OP_NOP, ONE)
    reap(ring, 1)
    ring.queue(OP_READ, TWO, pipe[0], buffer, 1)
    ring.cancel(ONE)
    assert settle(ring) == []
    os.write(pipe[1], b"x")
    assert reap(ring, 1) == [(TWO, 1, 0)]


def test_cancel_twice_completes_once(ring: Ring, pipe: tuple[int, int]) -> None:
    buffer = memory(1)
    ring.queue(OP_READ, ONE, pipe[0], buffer, 1)
    assert settle(ring) == []
    ring.cancel(ONE)
    ring.cancel(ONE)
    assert reap(ring, 1) == [(ONE, CANCELED, 0)]
    assert settle(ring) == []
    assert ring.counters().inflight == 0


@pytest.mark.parametrize("attempt", range(10))
def test_data_that_arrives_before_the_cancel_moves_once(
    ring: Ring, pair: tuple[socket.socket, socket.socket], attempt: int
) -> None:
    """F11: either the receive has the bytes, or they are still in the socket."""
    ours, theirs = pair
    buffer = memory(8)
    for _ in range(attempt):  # another place in the seed's sequence
        ring.queue(OP_NOP, TWO)
        reap(ring, 1)
    ring.queue(OP_RECV, ONE, ours.fileno(), buffer, 8)
    assert settle(ring) == []
    theirs.send(b"bytes")
    ring.cancel(ONE)
    (completion,) = reap(ring, 1)
    if completion.res == CANCELED:
        assert ours.recv(8, socket.MSG_DONTWAIT) == b"bytes"
    else:
        assert completion.res == 5
        assert content(buffer, 5) == b"bytes"
        with pytest.raises(BlockingIOError):
            ours.recv(8, socket.MSG_DONTWAIT)


def test_a_cancel_that_the_caller_queued_itself_tells_its_result(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.poll(pipe[0], select.POLLIN, ONE)
    ring.queue(OP_ASYNC_CANCEL, TWO, addr=ffi.cast("void *", ONE))
    completions = reap_by_user_data(ring, 2)
    assert completions[ONE].res == CANCELED
    assert completions[TWO].res in (0, -errno.EALREADY)
    ring.queue(OP_ASYNC_CANCEL, TWO, addr=ffi.cast("void *", ONE))
    assert reap(ring, 1) == [(TWO, -errno.ENOENT, 0)]


def test_cancel_fd_ends_all_requests_on_it_and_no_others(ring: Ring, pipe: tuple[int, int]) -> None:
    other, other_writer = os.pipe()
    buffers = {user_data: memory(1) for user_data in user_datas(6)}
    for user_data, buffer in buffers.items():
        ring.queue(OP_READ, user_data, pipe[0], buffer, 1)
    other_buffer = memory(1)
    ring.queue(OP_READ, ONE + 100, other, other_buffer, 1)
    ring.cancel_fd(pipe[0])
    assert ring.queued == 0
    completions = {c.user_data: c.res for c in settle(ring)}
    assert completions == dict.fromkeys(buffers, CANCELED)
    os.close(other_writer)
    assert reap(ring, 1) == [(ONE + 100, 0, 0)]
    os.close(other)


def test_cancel_fd_follows_the_file_and_not_the_number(ring: Ring, pipe: tuple[int, int]) -> None:
    """Duplicates of a descriptor are one file."""
    duplicate = os.dup(pipe[0])
    ring.poll(duplicate, select.POLLIN, ONE)
    assert settle(ring) == []
    ring.cancel_fd(pipe[0])
    assert settle(ring) == [(ONE, CANCELED, 0)]
    os.close(duplicate)


def test_cancel_fd_of_a_bad_descriptor_does_nothing(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.poll(pipe[0], select.POLLIN, ONE)
    closed = os.dup(pipe[0])
    os.close(closed)
    ring.cancel_fd(closed)
    assert settle(ring) == []
    assert ring.counters().inflight == 1


def test_a_close_after_cancel_fd_is_a_close(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    """F18: the peer sees the end of file, without another entry into the ring."""
    ours, theirs = pair
    buffer = memory(8)
    ring.queue(OP_RECV, ONE, ours.fileno(), buffer, 8)
    assert settle(ring) == []
    ring.cancel_fd(ours.fileno())
    ours.close()
    theirs.settimeout(PATIENCE)
    assert theirs.recv(1) == b""
    assert settle(ring) == [(ONE, CANCELED, 0)]


def test_a_close_alone_is_none(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    """F18, why cancel_fd exists: a request holds the file, an orphan receive eats the next bytes."""
    ours, theirs = pair
    buffer = memory(8)
    ring.queue(OP_RECV, ONE, ours.fileno(), buffer, 8)
    assert settle(ring) == []
    ours.close()
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    theirs.send(b"eaten")
    assert reap(ring, 1) == [(ONE, 5, 0)]


def test_no_queued_entry_outlives_its_descriptor_number(ring: Ring) -> None:
    """F17: an entry that was queued and not submitted never runs on the next file with the number."""
    old_reader, old_writer = os.pipe()
    buffer = memory(8)
    ring.queue(OP_READ, ONE, old_reader, buffer, 8)
    ring.cancel_fd(old_reader)
    assert ring.queued == 0
    new_reader, new_writer = os.pipe()
    os.dup2(new_reader, old_reader)  # the number is the new file's from here on
    os.write(new_writer, b"new")
    assert settle(ring) == [(ONE, CANCELED, 0)]
    assert os.read(old_reader, 8) == b"new"
    for fd in (old_reader, old_writer, new_reader, new_writer):
        os.close(fd)


def test_cancel_fd_delivers_what_had_completed(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    """F11 at a close: bytes that have moved are reported, and by one completion."""
    ours, theirs = pair
    buffer = memory(8)
    theirs.send(b"there")
    ring.queue(OP_RECV, ONE, ours.fileno(), buffer, 8)
    ring.cancel_fd(ours.fileno())
    (completion,) = settle(ring)
    left = b"" if completion.res == 5 else ours.recv(8, socket.MSG_DONTWAIT)
    assert (completion.res, left) in [(5, b""), (CANCELED, b"there")]


def test_what_is_in_flight(ring: Ring, pipe: tuple[int, int]) -> None:
    """Queued, submitted and completed all are, until the completion has been handed out; what was refused never was."""
    room = memory(4)
    assert not ring.in_flight(ONE)
    ring.queue(OP_READ, ONE, pipe[0], room, 4, 2**64 - 1)
    assert ring.in_flight(ONE)
    ring.submit()
    os.write(pipe[1], b"read")
    assert ring.in_flight(ONE)
    assert not ring.in_flight(ONE + 1)
    assert reap(ring, 1) == [(ONE, 4, 0)]
    assert not ring.in_flight(ONE)
    ring.close()
    assert ring.in_flight(ONE)  # nobody can tell any more


def test_cancel_sync_is_for_the_owner(new_ring: MakeRing, kind: str) -> None:
    """In another thread that has a ring it would submit what is queued there: the kernel's index of a ring is the thread's."""
    ring = new_ring()
    if ring.polled:  # it takes what is queued when it likes
        with pytest.raises(RuntimeError, match="another thread"):
            InThread(lambda: ring.cancel_sync(user_data=ONE, timeout=0)).result()
        return

    def elsewhere() -> tuple[object, int]:
        theirs = make_ring(kind, 8, None)
        try:
            theirs.wait(0)
            theirs.owner_back()
            theirs.queue(OP_NOP, ONE)
            try:
                ring.cancel_sync(user_data=ONE, timeout=0)
            except RuntimeError as error:
                return str(error), theirs.queued
            return None, theirs.queued
        finally:
            theirs.close()

    ring.wait(0)
    ring.owner_back()
    ring.queue(OP_NOP, ONE)
    told, queued = InThread(elsewhere).result()
    assert "another thread" in str(told)
    assert (queued, ring.queued) == (1, 1)


def test_cancel_sync_answers_what_it_found(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.poll(pipe[0], select.POLLIN, ONE)
    ring.poll(pipe[0], select.POLLIN, TWO)
    assert ring.cancel_sync(fd=pipe[0], flags=CANCEL_FD | CANCEL_ALL) == 2
    assert {c.user_data: c.res for c in settle(ring)} == {ONE: CANCELED, TWO: CANCELED}
    with pytest.raises(FileNotFoundError):
        ring.cancel_sync(user_data=ONE)
    ring.poll(pipe[0], select.POLLIN, ONE + 2)
    assert ring.cancel_sync(user_data=ONE + 2) == 0
    assert settle(ring) == [(ONE + 2, CANCELED, 0)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        ring.cancel_sync(fd=-1, flags=CANCEL_FD)


# ------------------------------------------------------------------ waiting


def test_an_idle_wait_of_no_time_is_none(ring: Ring) -> None:
    assert ring.wait(0) is None
    assert ring.wait(0) is None


def test_an_idle_wait_does_not_enter_the_kernel(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.poll(pipe[0], select.POLLIN, ONE)
    settle(ring)
    before = ring.counters().enters
    for _ in range(100):
        assert ring.wait(0) is None
    # A poller is asked whether it is done, and is slow to say so now and then.
    assert ring.counters().enters - before <= (50 if ring.polled else 0)


def test_an_expired_wait_is_none_and_not_early(ring: Ring) -> None:
    for timeout in (0.05, 0.001, 0.000_001):
        started = time.monotonic()
        assert ring.wait(timeout) is None
        assert time.monotonic() - started >= timeout


def test_an_expired_wait_that_submitted_is_none(ring: Ring, pipe: tuple[int, int]) -> None:
    """F28: the kernel answers how many entries it took, and not that the time has passed."""
    settle(ring)
    ring.poll(pipe[0], select.POLLIN, ONE)
    started = time.monotonic()
    assert ring.wait(0.02) is None
    assert time.monotonic() - started >= 0.02


def test_a_wait_ends_with_a_completion_from_outside(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.poll(pipe[0], select.POLLIN, ONE)
    assert settle(ring) == []
    waiting = threading.Event()

    def write() -> None:
        waiting.wait(PATIENCE)
        os.write(pipe[1], b"x")

    writer = InThread(write)
    waiting.set()
    assert reap(ring, 1) == [(ONE, select.POLLIN, 0)]
    writer.result()


def test_wake_before_the_wait(ring: Ring) -> None:
    """F27: a wake-up that nobody was waiting for ends the next wait, once; several count for one."""
    for _ in range(5):
        ring.wake()
    assert ring.wait(PATIENCE) == []
    assert ring.wait(0) is None
    ring.wake()
    assert ring.wait(0) == []
    assert ring.wait(0) is None


def test_wake_of_an_idle_ring(ring: Ring) -> None:
    assert ring.wait(0) is None
    ring.wake()
    assert ring.wait(None) == []


def test_wake_from_another_thread(ring: Ring) -> None:
    for _ in range(20):
        waker = InThread(ring.wake)
        assert ring.wait(PATIENCE) == []
        waker.result()


def test_wake_from_many_threads_loses_none(ring: Ring) -> None:
    """F27: what a thread did before its wake-up is seen after the wait that it ended."""
    done: deque[int] = deque()

    def work() -> None:
        for number in range(200):
            done.append(number)
            ring.wake()

    threads = [InThread(work) for _ in range(8)]
    seen = 0
    while seen < 8 * 200:
        while done:
            done.popleft()
            seen += 1
        if seen < 8 * 200:
            assert ring.wait(PATIENCE) == [], "a wake-up was lost"
    for thread in threads:
        thread.result()


def test_wake_and_completions_in_one_wait(ring: Ring) -> None:
    ring.wake()
    for user_data in user_datas(4):
        ring.queue(OP_NOP, user_data)
    assert set(reap_by_user_data(ring, 4)) == set(user_datas(4))
    assert settle(ring) == []


@pytest.mark.parametrize("cancels", range(1, 12))
def test_a_wake_survives_a_cancel_by_descriptor(new_ring: MakeRing, pipe: tuple[int, int], cancels: int) -> None:
    """F27: `cancel_fd` runs deferred work and makes room in a full queue; it swallows no wake-up."""
    ring = new_ring(*SMALLEST)
    settle(ring)
    ring.wake()
    ring.cancel_fd(pipe[0])
    for _ in range(cancels):
        ring.cancel(ONE)  # of nothing: the kernel says so in a completion that is never handed out
    ring.cancel_fd(pipe[0])
    assert ring.wait(PATIENCE) == []


def test_wake_in_a_signal_handler(ring: Ring) -> None:
    """F27: signals while the owner is in and out of its wait, each of which ends one."""
    caught = 0

    def handler(*_: object) -> None:
        nonlocal caught
        caught += 1
        ring.wake()

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.raise_signal(signal.SIGALRM)
        assert caught == 1
        assert ring.wait(PATIENCE) == []
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        while caught < 50:
            assert ring.wait(PATIENCE) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_signal_is_not_a_timeout(ring: Ring) -> None:
    """F28: EINTR answers an empty list, with entries submitted by the same wait and without."""
    caught = 0

    def handler(*_: object) -> None:
        nonlocal caught
        caught += 1

    assert ring.wait(0) is None
    previous = signal.signal(signal.SIGALRM, handler)
    reader, writer = os.pipe()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        assert ring.wait(PATIENCE) == []
        assert caught > 0
        ring.poll(reader, select.POLLIN, ONE)
        assert ring.wait(PATIENCE) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    os.write(writer, b"x")
    assert reap(ring, 1) == [(ONE, select.POLLIN, 0)]
    os.close(reader)
    os.close(writer)


# ------------------------------------------------------------------ other threads


def watch(ring: Ring) -> None:
    """Let the ring know that another thread will sleep on it: the first such call answers at once."""
    assert InThread(lambda: ring.wait(PATIENCE)).result() == []
    settle(ring)


def test_another_thread_sleeps_until_there_is_work_and_reaps_none(ring: Ring, pipe: tuple[int, int]) -> None:
    watch(ring)
    ring.poll(pipe[0], select.POLLIN, ONE)
    assert settle(ring) == []
    sleeper = InThread(lambda: ring.wait(PATIENCE))
    os.write(pipe[1], b"x")
    assert sleeper.result() == []
    assert ring.counters().completed == 0
    assert reap(ring, 1) == [(ONE, select.POLLIN, 0)]


def test_another_thread_does_not_sleep_when_there_is_work_already(ring: Ring, pipe: tuple[int, int]) -> None:
    watch(ring)
    ring.poll(pipe[0], select.POLLIN, ONE)
    assert settle(ring) == []
    os.write(pipe[1], b"x")
    for _ in range(3):
        assert InThread(lambda: ring.wait(PATIENCE)).result() == []
    assert reap(ring, 1) == [(ONE, select.POLLIN, 0)]


def test_another_thread_sleeps_no_longer_than_its_timeout(ring: Ring) -> None:
    watch(ring)

    def sleep() -> float:
        started = time.monotonic()
        assert ring.wait(0.03) is None
        return time.monotonic() - started

    assert InThread(sleep).result() >= 0.03


def test_another_thread_is_woken(ring: Ring) -> None:
    watch(ring)
    for _ in range(20):
        sleeper = InThread(lambda: ring.wait(PATIENCE))
        time.sleep(0.001)  # so that it is asleep, more often than not; right either way
        ring.wake()
        assert sleeper.result() == []
        assert ring.wait(0) == []
        assert ring.wait(0) is None


def test_another_thread_is_woken_by_a_file_each_time(ring: Ring) -> None:
    """F27: for an eventfd the kernel puts its signal off, and from the second on forgets it (6.18)."""
    watch(ring)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        for user_data in user_datas(20):
            ring.poll(event, select.POLLIN, user_data)
            assert settle(ring) == []
            sleeper = InThread(lambda: ring.wait(PATIENCE))
            time.sleep(0.001)  # so that it is asleep, more often than not; right either way
            os.eventfd_write(event, 1)
            assert sleeper.result() == []
            assert reap(ring, 1) == [(user_data, select.POLLIN, 0)]
            os.eventfd_read(event)
    finally:
        os.close(event)


def test_sleepers_leave_no_descriptor_behind(kind: str) -> None:
    """F19: what the ring opens for them goes with it."""
    before = open_descriptors()
    ring = make_ring(kind, *SMALLEST)
    watch(ring)
    ring.close()
    assert open_descriptors() == before


def test_without_descriptors_a_sleeper_is_sent_back(new_ring: MakeRing, no_descriptors: NoDescriptors) -> None:
    """F35: at the limit the loop lives, if without sleep; below it everything is as always."""
    ring = new_ring(*SMALLEST)
    settle(ring)
    with no_descriptors():
        for _ in range(3):
            assert InThread(lambda: ring.wait(0.001)).result() in ([], None)
            assert ring.wait(0) is None
        ring.wake()
        assert ring.wait(PATIENCE) == []
    settle(ring)
    sleeper = InThread(lambda: ring.wait(PATIENCE))
    ring.wake()
    assert sleeper.result() == []


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_ring_that_cannot_be_made_leaves_nothing(kind: str, no_descriptors: NoDescriptors, spare: int) -> None:
    """F35: whichever descriptor is one too many."""
    before = open_descriptors()
    with no_descriptors(spare):
        try:
            ring = make_ring(kind, *SMALLEST)
        except OSError as error:
            refused = error.errno
        else:
            refused = 0
            ring.close()
    assert refused == (errno.EMFILE if spare < 2 or kind != "kernel" else 0)
    assert open_descriptors() == before
    make_ring(kind, *SMALLEST).close()


def test_entries_queued_while_away_are_submitted_at_once(ring: Ring) -> None:
    """F26, F32: after an idle wait another thread may sleep on the ring, so nothing may stay in the queue."""
    assert ring.wait(0) is None
    ring.queue(OP_NOP, ONE)
    assert handed_over(ring)
    ring.owner_back()
    ring.queue(OP_NOP, TWO)
    assert ring.queued == 1 or ring.polled
    reap(ring, 2)


def test_an_entry_queued_while_away_wakes_the_sleeper(ring: Ring) -> None:
    """F32: a callback of the host queues an entry while the worker sleeps."""
    watch(ring)
    for user_data in user_datas(20):
        sleeper = InThread(lambda: ring.wait(PATIENCE))
        ring.queue(OP_NOP, user_data)
        assert sleeper.result() == []
        assert [c.user_data for c in reap(ring, 1)] == [user_data]
        settle(ring)


def test_a_cancel_queued_while_away_wakes_the_sleeper(ring: Ring, pipe: tuple[int, int]) -> None:
    """F32."""
    watch(ring)
    ring.poll(pipe[0], select.POLLIN, ONE)
    settle(ring)
    sleeper = InThread(lambda: ring.wait(PATIENCE))
    ring.cancel(ONE)
    assert sleeper.result() == []
    assert reap(ring, 1) == [(ONE, CANCELED, 0)]


def test_another_thread_may_not_queue(ring: Ring) -> None:
    """F29, F30: a ring has one owner."""
    calls: list[Callable[[], object]] = [
        lambda: ring.queue(OP_NOP, ONE),
        lambda: ring.poll(0, 1, ONE),
        lambda: ring.cancel(ONE),
        lambda: ring.cancel_fd(0),
        lambda: ring.cancel_sync(user_data=ONE),
        ring.submit,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="belongs to another thread"):
            InThread(call).result()
    assert ring.counters().submitted == 0
    ring.queue(OP_NOP, ONE)
    assert reap(ring, 1) == [(ONE, 0, 0)]


def test_a_ring_in_each_of_eight_threads(kind: str, sizes: tuple[int, int | None]) -> None:
    def work() -> int:
        reader, writer = os.pipe()
        ring = make_ring(kind, *sizes)
        try:
            buffer = memory(1)
            for user_data in user_datas(100):
                ring.queue(OP_READ, user_data, reader, buffer, 1)
                os.write(writer, b"x")
                assert reap(ring, 1) == [(user_data, 1, 0)]
            return ring.counters().completed
        finally:
            ring.close()
            os.close(reader)
            os.close(writer)

    before = open_descriptors()
    threads = [InThread(work) for _ in range(8)]
    assert [thread.result() for thread in threads] == [100] * 8
    assert open_descriptors() == before


def test_more_rings_in_one_thread_than_descriptors_to_register(new_ring: MakeRing) -> None:
    """The kernel registers sixteen ring descriptors for a thread; the others work without."""
    rings = [new_ring(4, 8) for _ in range(24)]
    for ring in rings[::3]:
        ring.close()
    rings += [new_ring(4, 8) for _ in range(4)]
    working = [ring for ring in rings if not ring.closed]
    for user_data, ring in zip(user_datas(len(working)), working, strict=True):
        ring.queue(OP_NOP, user_data)
    for user_data, ring in zip(user_datas(len(working)), working, strict=True):
        assert reap(ring, 1) == [(user_data, 0, 0)]


# ------------------------------------------------------------------ the end


def test_close_cancels_and_hands_out_what_was_in_flight(kind: str, sizes: tuple[int, int | None]) -> None:
    """F8, F19: drained, and every descriptor given back."""
    before = open_descriptors()
    ring = make_ring(kind, *sizes)
    reader, writer = os.pipe()
    buffers = {user_data: memory(64) for user_data in user_datas(40)}
    for user_data, buffer in buffers.items():
        ring.queue(OP_READ, user_data, reader, buffer, 64)
    completions = list(decode(ring.close()))
    assert sorted(completions) == [(user_data, CANCELED, 0) for user_data in buffers]
    assert ring.counters().inflight == 0
    os.write(writer, b"after")
    assert os.read(reader, 64) == b"after"
    assert all(content(buffer, 64) == bytes(64) for buffer in buffers.values())
    os.close(reader)
    os.close(writer)
    assert open_descriptors() == before


def test_close_lets_go_of_files(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    """F18: a peer sees the end of file of a descriptor closed before the ring was."""
    ours, theirs = pair
    buffer = memory(8)
    ring.queue(OP_RECV, ONE, ours.fileno(), buffer, 8)
    settle(ring)
    ours.close()
    ring.close()
    theirs.settimeout(PATIENCE)
    assert theirs.recv(1) == b""


def test_close_of_an_unused_ring(ring: Ring, recwarn: pytest.WarningsRecorder) -> None:
    assert not ring.closed
    assert ring.close() == []
    assert ring.closed
    assert ring.close() == []
    assert [str(warning.message) for warning in recwarn] == []


def test_use_after_close(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.queue(OP_NOP, ONE)
    ring.close()
    calls: list[Callable[[], object]] = [
        lambda: ring.queue(OP_NOP, ONE),
        lambda: ring.poll(pipe[0], 1, ONE),
        lambda: ring.cancel_fd(pipe[0]),
        lambda: ring.cancel_sync(user_data=ONE),
        ring.submit,
        lambda: ring.wait(0),
        lambda: ring.wait(None),
        lambda: ring.make_buffers(2, 8),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed ring"):
            call()
    ring.cancel(ONE)  # there is nothing left to cancel, and a task's end must not fail for that
    ring.wake()
    ring.owner_back()
    assert (ring.queued, ring.sq_entries, ring.cq_entries, ring.fileno()) == (0, 0, 0, -1)
    assert ring.counters().completed == 1
    assert "closed" in repr(ring)


def test_wake_during_and_after_close_touches_no_other_file(kind: str) -> None:
    """F19: a wake-up never goes to a descriptor that has been given to somebody else."""
    for _ in range(20):
        ring = make_ring(kind, *SMALLEST)
        stop = threading.Event()

        def keep_waking(ring: Ring = ring, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                ring.wake()

        wakers = [InThread(keep_waking) for _ in range(3)]
        ring.wait(0)
        ring.close()
        # The numbers that the ring has given back are those of pipes now, and every pipe stays empty.
        pipes = [os.pipe() for _ in range(8)]
        ring.wake()
        stop.set()
        for waker in wakers:
            waker.result()
        for reader, writer in pipes:
            os.close(writer)
            assert os.read(reader, 8) == b""
            os.close(reader)


class Keep:
    """Stands for the memory of entries in flight."""

    def __init__(self) -> None:
        self.buffer = memory(64)


def test_close_in_another_thread_keeps_the_memory_and_says_so(
    kind: str, sizes: tuple[int, int | None], pipe: tuple[int, int]
) -> None:
    """F8: who cannot wait for the kernel does not free under it."""
    before = open_descriptors()
    ring = make_ring(kind, *sizes)

    def use() -> weakref.ref[Keep]:
        keep = Keep()
        ring.queue(OP_READ, ONE, pipe[0], keep.buffer, 64)
        ring.submit()
        with pytest.warns(ResourceWarning, match="1 operations did not end because another thread"):
            assert InThread(lambda: ring.close(keep=keep)).result() == []
        return weakref.ref(keep)

    alive = use()
    gc.collect()
    assert alive() is not None
    assert ring.closed
    assert open_descriptors() == before


def test_close_of_an_idle_ring_in_another_thread_is_quiet(ring: Ring) -> None:
    ring.queue(OP_NOP, ONE)
    ring.submit()
    reap(ring, 1)

    def close() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ring.close() == []

    InThread(close).result()
    assert ring.closed


def test_many_rings_made_and_closed_in_a_row(kind: str) -> None:
    """F19, F34: no descriptor and no locked memory adds up."""
    before = open_descriptors()
    for _ in range(2000):
        ring = make_ring(kind, 8, 16)
        ring.queue(OP_NOP, ONE)
        assert list(decode(ring.wait(0) or ring.wait(PATIENCE) or ())) == [(ONE, 0, 0)]
        ring.close()
    assert open_descriptors() == before


def test_a_dropped_ring_is_closed_and_warned_of(kind: str, pipe: tuple[int, int]) -> None:
    def drop() -> None:
        ring = make_ring(kind, *SMALLEST)
        ring.poll(pipe[0], select.POLLIN, ONE)
        ring.submit()
        del ring
        gc.collect()

    before = open_descriptors()
    for _ in range(20):
        with pytest.warns(ResourceWarning, match="unclosed"):
            drop()
    assert open_descriptors() == before


def test_a_ring_whose_thread_has_ended(kind: str, pipe: tuple[int, int]) -> None:
    """F30: dropped in another thread, it gives back its descriptors, keeps the memory, and eats no data."""
    before = open_descriptors()
    keep = Keep()

    def make() -> Ring:
        ring = make_ring(kind, *SMALLEST)
        ring.queue(OP_READ, ONE, pipe[0], keep.buffer, 64)
        ring.submit()
        return ring

    ring = InThread(make).result()
    with pytest.raises(RuntimeError, match="another thread"):
        ring.submit()
    with pytest.warns(ResourceWarning, match="1 operations did not end"):
        ring.close(keep=keep)
    assert open_descriptors() == before
    os.write(pipe[1], b"x")
    assert os.read(pipe[0], 8) == b"x"


def test_a_dropped_ring_keeps_the_memory_it_was_told_of(kind: str, pipe: tuple[int, int]) -> None:
    """F8, F30: the garbage collector closes it in a thread that is not its owner's."""

    def make() -> tuple[Ring, weakref.ref[Keep]]:
        ring = make_ring(kind, *SMALLEST)
        keep = Keep()
        ring.keep = keep
        ring.queue(OP_READ, ONE, pipe[0], keep.buffer, 64)
        ring.submit()
        return ring, weakref.ref(keep)

    def drop() -> weakref.ref[Keep]:
        alive: weakref.ref[Keep] = InThread(make).result()[1]
        gc.collect()
        return alive

    before = open_descriptors()
    with pytest.warns(ResourceWarning, match="unclosed"), pytest.warns(ResourceWarning, match="1 operations"):
        alive = drop()
    assert alive() is not None
    assert open_descriptors() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_warnings_are_errors_a_ring_still_closes(kind: str, pipe: tuple[int, int]) -> None:
    """F8: the warning comes when everything else has been done, for a ring closed and for one dropped."""
    before = open_descriptors()
    keep = Keep()

    def make() -> Ring:
        ring = make_ring(kind, *SMALLEST)
        ring.keep = keep
        ring.queue(OP_READ, ONE, pipe[0], keep.buffer, 64)
        ring.submit()
        return ring

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ring = InThread(make).result()
        with pytest.raises(ResourceWarning, match="1 operations"):
            ring.close(keep=keep)
        assert open_descriptors() == before
        ring = InThread(make).result()
        leaked = len(_ring._leaked)
        del ring
        assert open_descriptors() == before
        assert len(_ring._leaked) == leaked + 1


# ------------------------------------------------------------------ forks


def test_a_forked_child_gets_an_error_and_leaves_the_ring_alone(ring: Ring, pipe: tuple[int, int]) -> None:
    """F29, with an entry in flight and one queued."""
    buffer = memory(1)
    ring.queue(OP_READ, ONE, pipe[0], buffer, 1)
    assert settle(ring) == []
    ring.owner_back()
    ring.queue(OP_NOP, TWO)
    before = ring.counters().enters
    descriptor = ring.fileno()

    def child() -> None:
        assert ring.closed
        assert ring.fileno() == -1
        assert descriptor not in open_descriptors()
        calls: list[Callable[[], object]] = [
            lambda: ring.queue(OP_NOP, ONE),
            lambda: ring.poll(0, 1, ONE),
            lambda: ring.cancel_fd(0),
            lambda: ring.cancel_sync(user_data=ONE),
            ring.submit,
            lambda: ring.wait(0),
            lambda: ring.make_buffers(2, 8),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="forked child"):
                call()
        ring.cancel(ONE)
        ring.wake()
        assert ring.close() == []

    assert in_forked_child(child) == ""
    assert ring.counters().enters == before
    os.write(pipe[1], b"x")
    assert {c.user_data: c.res for c in reap(ring, 2)} == {ONE: 1, TWO: 0}
    assert ring.wait(0) is None


def test_a_forked_child_holds_no_descriptor_of_the_ring(kind: str, pipe: tuple[int, int]) -> None:
    """F19, F29: the parent's close is a close, though the child lives."""
    before = open_descriptors()
    ring = make_ring(kind, *SMALLEST)
    ring.poll(pipe[0], select.POLLIN, ONE)
    settle(ring)

    def child() -> None:
        added = open_descriptors() - before
        assert len(added) == 1, added  # the pipe through which the child reports

    assert in_forked_child(child) == ""
    ring.close()
    assert open_descriptors() == before


def test_a_forked_child_makes_a_ring_of_its_own(kind: str, ring: Ring) -> None:
    ring.queue(OP_NOP, ONE)
    reap(ring, 1)

    def child() -> None:
        own = make_ring(kind, *SMALLEST)
        for user_data in user_datas(20):
            own.queue(OP_NOP, user_data)
        reap(own, 20)
        own.wake()
        assert own.wait(PATIENCE) == []
        own.close()

    assert in_forked_child(child) == ""
    assert ring.wait(0) is None
    ring.queue(OP_NOP, TWO)
    assert reap(ring, 1) == [(TWO, 0, 0)]


# ------------------------------------------------------------------ provided buffers


def receive(ring: Ring, user_data: int, fd: int, group: int = 0) -> None:
    """Queue a receive into a provided buffer."""
    ring.queue(OP_RECV, user_data, fd, flags=IOSQE_BUFFER_SELECT, buf_index=group)


def test_a_receive_picks_a_buffer_and_take_copies_it(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    buffers = ring.make_buffers(2, 16, group=3)
    for user_data in user_datas(20):
        receive(ring, user_data, ours.fileno(), group=3)
        assert settle(ring) == []
        text = b"message %d" % user_data
        theirs.send(text)
        (completion,) = reap(ring, 1)
        assert completion.res == len(text)
        assert completion.flags & CQE_F_BUFFER
        assert buffers.take(completion.flags, completion.res) == text


def test_a_receive_takes_no_more_than_the_buffer_holds(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    buffers = ring.make_buffers(2, 4)
    theirs.send(b"longer")
    got = b""
    for user_data in user_datas(2):
        receive(ring, user_data, ours.fileno())
        (completion,) = reap(ring, 1)
        got += buffers.take(completion.flags, completion.res)
    assert got == b"longer"


def test_an_end_of_file_leaves_no_buffer_out(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ring.make_buffers(2, 4)
    theirs.shutdown(socket.SHUT_WR)
    for user_data in user_datas(10):
        receive(ring, user_data, ours.fileno())
        (completion,) = reap(ring, 1)
        assert completion.res == 0


def test_a_buffer_is_out_until_the_next_wait(ring: Ring) -> None:
    """F16, F36: each buffer is named once in a wait; without one, -ENOBUFS, and the next recovers."""
    buffers = ring.make_buffers(2, 8)
    pairs = [socket.socketpair() for _ in range(3)]
    try:
        texts = {}
        for user_data, (ours, theirs) in zip(user_datas(3), pairs, strict=True):
            texts[user_data] = b"data %d" % user_data
            theirs.send(texts[user_data])
            receive(ring, user_data, ours.fileno())
        refused: list[int] = []
        got: dict[int, bytes] = {}
        while len(got) + len(refused) < 3:
            batch = list(decode(ring.wait(PATIENCE) or ()))
            named = [c.flags >> CQE_BUFFER_SHIFT for c in batch if c.flags & CQE_F_BUFFER]
            assert len(set(named)) == len(named)
            for completion in batch:
                if completion.res == -errno.ENOBUFS:
                    assert completion.flags == 0
                    refused.append(completion.user_data)
                else:
                    got[completion.user_data] = buffers.take(completion.flags, completion.res)
        for user_data in refused:
            ring.recycle_buffers()
            receive(ring, user_data + 100, pairs[user_data - ONE][0].fileno())
            (completion,) = reap(ring, 1)
            got[user_data] = buffers.take(completion.flags, completion.res)
        assert got == texts
        if in_order(ring):
            assert len(refused) == 1
    finally:
        for both in pairs:
            for end in both:
                end.close()


def test_no_buffer_is_lost(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    """F10: taken, forgotten, or won against a cancel, a buffer is there again after the next wait."""
    ours, theirs = pair
    buffers = ring.make_buffers(2, 8)
    for user_data in range(ONE, ONE + 100):
        receive(ring, user_data, ours.fileno())
        completions = settle(ring)
        if user_data % 2:
            theirs.send(b"data")
        ring.cancel(user_data)
        (completion,) = completions or reap(ring, 1)
        if completion.res < 0:
            assert (completion.res, completion.flags) == (CANCELED, 0)
        else:
            assert completion.res in (4, 8)
            if user_data % 3 and not completions:
                assert buffers.take(completion.flags, completion.res)[:4] == b"data"
    theirs.send(b"end")
    while not ours.recv(64).endswith(b"end"):
        pass
    theirs.send(b"eight by" * 2)
    ring.recycle_buffers()
    receive(ring, ONE + 1001, ours.fileno())
    receive(ring, ONE + 1002, ours.fileno())
    seen = 0
    while seen < 2:
        for completion in decode(ring.wait(PATIENCE) or ()):
            assert buffers.take(completion.flags, completion.res) == b"eight by"
            seen += 1


def test_buffers_of_completions_put_aside_come_back(new_ring: MakeRing, pipe: tuple[int, int]) -> None:
    """F10, F24: `cancel_fd` has taken the completions off a full queue before a wait hands them out."""
    ring = new_ring(*SMALLEST)
    buffers = ring.make_buffers(16, 16)  # those of the last wait are out until the next
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for turn in range(10):
            for user_data in user_datas(8):
                theirs.send(b"message")
                receive(ring, user_data + 8 * turn, ours.fileno())
            ring.cancel_fd(pipe[0])
            seen = 0
            while seen < 8:
                for completion in decode(ring.wait(PATIENCE) or ()):
                    assert completion.res == 7
                    assert buffers.take(completion.flags, 7) == b"message"
                    seen += 1


@pytest.mark.parametrize(
    ("entries", "size", "group", "name"),
    [
        (3, 16, 0, "entries"),
        (0, 16, 0, "entries"),
        (65536, 1, 0, "entries"),
        (2, 0, 0, "size"),
        (2, 1, 65536, "group"),
    ],
)
def test_bad_buffer_sizes_are_refused_by_name(ring: Ring, entries: int, size: int, group: int, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ring.make_buffers(entries, size, group)


def test_a_second_set_of_buffers_is_refused(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    """F39: it is an error, whatever its sizes, and the first set goes on."""
    buffers = ring.make_buffers(2, 16, group=7)
    for group in (7, 8):
        with pytest.raises(FileExistsError, match="already"):
            ring.make_buffers(4, 32, group=group)
    pair[1].send(b"x")
    receive(ring, ONE, pair[0].fileno(), group=7)
    (completion,) = reap(ring, 1)
    assert buffers.take(completion.flags, completion.res) == b"x"


def test_a_receive_into_buffers_that_are_not_there_fails(ring: Ring, pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].send(b"x")
    receive(ring, ONE, pair[0].fileno())
    assert reap(ring, 1) == [(ONE, -errno.ENOBUFS, 0)]
