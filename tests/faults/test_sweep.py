"""Every call of the shim fails once, in every way: see fault_sweep.py. Here a sample; `make faults` tries them all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_scenarios import ALL, SUITE
from fault_tools import on_faulty, program_on_faulty

from trio_uring.cancellation import OPERATIONS

# Every so many faults are tried; no factor in common with the number of ways in which a call may fail.
STRIDE = int(os.environ.get("TRIO_URING_FAULT_STRIDE", "29"))
# The same under the cancellation suite's pairs of operation and cause, of which the first round has each operation once.
SUITE_STRIDE = int(os.environ.get("TRIO_URING_FAULT_SUITE_STRIDE", "397"))
PAIRS = min(int(os.environ.get("TRIO_URING_FAULT_PAIRS", len(OPERATIONS))), len(SUITE))
TOGETHER = 16  # pairs that one process takes
# Of faults that come together. A seed that finds something stays here.
SEEDS = (1, 2)
SWEEP = str(Path(__file__).with_name("fault_sweep.py"))


Record = Callable[[str, object], None]


def swept(record_property: Record, *arguments: str) -> int:
    """What a sweep finds, which has to be nothing; the number of faults that it has tried, which `--junitxml` has too."""
    done = on_faulty(SWEEP, *arguments)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (told, done.stderr[-3000:])
    *failures, last = told
    assert failures == [], failures[:3]
    record_property("tried", last["tried"])
    return int(last["tried"])


@pytest.mark.parametrize("name", ALL)
def test_any_single_fault_ends_in_a_clear_error_or_a_right_result(name: str, record_property: Record) -> None:
    """F3, F12, F22, F23, F24, F26, F28, F35, F38: submits that fail, fall short or are interrupted, a full queue, no room."""
    assert swept(record_property, name, str(STRIDE)) >= 3


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", SEEDS)
def test_faults_that_come_together_end_so_too(name: str, seed: int, record_property: Record) -> None:
    """The same, two to five of them in one run."""
    assert swept(record_property, name, "random", "6", str(seed)) > 0


@pytest.mark.parametrize("first", range(0, PAIRS, TOGETHER))
def test_the_cancellation_suite_survives_any_single_fault(first: int, record_property: Record) -> None:
    """Each operation, ended by a cause at each moment: who was hit is told, and the next call on that ring is none the worse."""
    last = min(first + TOGETHER, PAIRS)
    assert swept(record_property, "suite", str(SUITE_STRIDE), str(first), str(last)) >= last - first


def test_half_of_a_transfer_is_told_and_the_rest_is_where_it_was() -> None:
    """The fault that no program may notice: the kernel does a part of a stream's sends and receives, messages among them."""
    program_on_faulty("""
        import trio, trio_uring
        from trio_uring._ring.ring import lib

        async def main():
            ours, theirs = trio.socket.socketpair()

            async def recvmsg():
                return (await theirs.recvmsg(8))[0]

            async def recvmsg_into():
                one, other = bytearray(4), bytearray(4)
                count, *_ = await theirs.recvmsg_into([one, other])
                return bytes(one + other)[:count]

            with ours, theirs:
                for send in (
                    ours.send,
                    lambda data: ours.sendmsg([data]),
                    lambda data: ours.sendmsg([data[:4], data[4:]]),
                ):
                    lib.tf_arm(lib.TF_PART, 1, 1, 0)
                    assert await send(b"12345678") == 4
                    assert await theirs.recv(9) == b"1234"
                for receive in (lambda: theirs.recv(8), recvmsg, recvmsg, recvmsg_into):
                    await ours.send(b"12345678")
                    lib.tf_arm(lib.TF_PART, 1, 1, 0)
                    assert await receive() == b"1234"
                    assert await receive() == b"5678"

        trio_uring.run(main, io_backend=trio_uring.UringBackend(speculate=False))
        """)


def test_a_raw_readinto_is_one_read_and_all_of_it_is_told(tmp_path: Path) -> None:
    """As the builtin's. A second one that a cancel ends would leave in the caller's memory what nobody has told of."""
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    program_on_faulty(f"""
        import trio, trio_uring
        from trio_uring._ring.ring import lib

        async def main():
            memory = bytearray(8)
            async with await trio.open_file({str(path)!r}, "rb", buffering=0) as file:
                lib.tf_arm(lib.TF_PART, 1, 1, 0)
                assert await file.readinto(memory) == 4
                assert memory == b"1234" + bytes(4) and await file.tell() == 4
            async with await trio.open_file({str(path)!r}, "rb", buffering=4) as file:
                lib.tf_arm(lib.TF_PART, 1, 1, 0)
                assert await file.readinto(memory) == 8 and memory == b"12345678"

        trio_uring.run(main, io_backend=trio_uring.UringBackend(speculate=False))
        """)


def test_what_an_opened_ring_tries_is_not_overwritten_where_the_kernel_does_not_take_it() -> None:
    """F3, F56: on a queue of two, which three trials fill twice."""
    program_on_faulty("""
        from trio_uring._ring.ring import OP_NOP, Ring, lib

        lib.tf_arm(lib.TF_SHORT, 1, 3, 0)
        ring = Ring(2, 4)
        try:
            for user_data in range(100, 110):
                ring.queue(OP_NOP, user_data)
            wanted = set(range(100, 110))
            while wanted:
                found = ring.wait(5)
                assert found is not None, wanted
                wanted -= set(found[::3])
        finally:
            ring.close()
        """)
