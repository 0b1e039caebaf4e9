"""Calls that break one promise each, and what the suite says of them: it must not pass them, and must not hang.

Knows the suite's tables; needs no ring, as the calls are broken on Trio's epoll.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from trio_uring.cancellation import OPERATIONS, Backend, Operation, Subject, _causes
from trio_uring.cancellation._causes import MOMENTS, Attempts, ByAnotherTask, Cause, EndOfRun, Shielded
from trio_uring.cancellation._operations import CANARY

EPOLL = Backend(trio.run, trio.lowlevel.start_guest_run)


def said_of(name: str, spoil: Callable[[Any], None], cause: Cause) -> str:
    """What the suite says of an operation whose subject has been spoilt; nothing, if it has not noticed."""
    (operation,) = (each for each in OPERATIONS if each.name == name)

    def spoilt(books: Any) -> Subject:
        subject = operation.subject(books)
        spoil(subject)
        return subject

    row: Operation = attrs.evolve(operation, subject=spoilt)
    try:
        Attempts(row, cause, MOMENTS).run(EPOLL)
    except BaseException as error:
        return "; ".join(str(leaf) for leaf in leaves(error))
    return ""


def leaves(error: BaseException) -> list[BaseException]:
    """What is at the bottom of groups, and of what Trio makes of a system task's error."""
    inner = getattr(error, "exceptions", None)
    if isinstance(error, trio.TrioInternalError) and error.__cause__ is not None:
        inner = [error.__cause__]
    return [error] if inner is None else [leaf for each in inner for leaf in leaves(each)]


def test_a_call_that_does_not_hear_the_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails in bounded time, and the run goes on."""
    monkeypatch.setattr(_causes, "PATIENCE", 0.3)

    def deaf(subject: Any) -> None:
        call = subject.call

        async def shielded() -> Any:
            with trio.CancelScope(shield=True):
                return await call()

        subject.call = shielded

    assert "the call has not ended 0.3 seconds after the cause" in said_of("recv", deaf, ByAnotherTask())


def test_a_call_that_ends_though_it_is_shielded() -> None:
    def leaky(subject: Any) -> None:
        async def impatient() -> Any:
            with trio.move_on_after(0.001):
                await trio.sleep_forever()
            return b""

        subject.call = impatient

    assert "returned before it could" in said_of("recv", leaky, Shielded())


def test_memory_that_is_written_to_after_the_call() -> None:
    """Poison shows it; a buffer of Python's that moves when it is looked at would not."""

    def late(subject: Any) -> None:
        (memory,) = subject.memory
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory.whole)) + len(CANARY)
        check = subject.check

        async def write_first(ended: Any) -> None:
            ctypes.memset(address, 0x55, 4)
            await check(ended)

        subject.check = write_first

    for name in ("recv_into", "recvfrom_into"):
        assert "memory was written to after its call was over" in said_of(name, late, ByAnotherTask())


def test_a_connect_that_leaves_its_socket_on_its_way() -> None:
    def lenient(subject: Any) -> None:
        async def stay_open() -> None:
            raw = subject.raw
            raw.setblocking(False)
            raw.connect_ex(subject.listener.getsockname())
            await trio.sleep_forever()

        subject.call = stay_open

    assert "on its way to connect, and open" in said_of("connect unanswered", lenient, ByAnotherTask())


@pytest.mark.parametrize("cause", [ByAnotherTask, EndOfRun])
def test_an_entry_that_stays_in_flight(cause: Callable[[], Cause], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noticed before the resource is closed, which would end it; also in a run that is ending."""
    forgotten: list[object] = []
    monkeypatch.setattr(_causes, "in_flight", lambda: len(forgotten))

    def forgetful(subject: Any) -> None:
        call, clear = subject.call, subject.clear

        async def leaves_one() -> Any:
            forgotten.append(subject)
            return await call()

        async def ends_it() -> None:
            forgotten.remove(subject)
            await clear()

        subject.call, subject.clear = leaves_one, ends_it

    assert "something is still in flight" in said_of("recv", forgetful, cause())
