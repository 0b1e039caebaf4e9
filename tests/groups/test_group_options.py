"""`RingGroup` and the ways to ask for one: what is refused, and with which words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import trio
from group_tools import ALLOWED, IO_CPU, LOOP_CPUS, gone, io_group, pollers

import trio_uring
from trio_uring import RingGroup, UringBackend
from trio_uring._ring import group as groups
from trio_uring._ring.group import format_cpus, parse_cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("3", {3}), ("6-7", {6, 7}), ("0,2-4,9", {0, 2, 3, 4, 9}), (" 1 , 2 ", {1, 2}), ("5-5", {5})],
)
def test_lists_of_processors(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus
    assert parse_cpus(format_cpus(cpus)) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1;2", "1.5", "9999999", "0x1"])
def test_what_is_no_list_of_processors(text: str) -> None:
    with pytest.raises(ValueError, match="is not a list of processors"):
        parse_cpus(text)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([],), {}, ValueError, "cpus is empty"),
        (([100_000],), {}, ValueError, "processor 100000 does not exist on this machine: it has "),
        (([-1],), {}, ValueError, "processor -1 does not exist"),
        ((["1"],), {}, TypeError, "cpus must be ints"),
        (([True],), {}, TypeError, "cpus must be ints"),
        (([IO_CPU],), {"idle": 0}, ValueError, "idle must be 0.001 to 60 seconds, not 0"),
        (([IO_CPU],), {"idle": 61.0}, ValueError, "idle must be 0.001 to 60 seconds"),
        (([IO_CPU],), {"idle": float("nan")}, ValueError, "idle must be"),
        (([IO_CPU],), {"idle": "1"}, TypeError, "idle must be a number of seconds"),
        (([IO_CPU],), {"workers": 0}, ValueError, "workers must be 1 to 65535"),
        (([IO_CPU],), {"workers": 1.5}, TypeError, "workers must be an int or None"),
    ],
)
def test_what_a_group_refuses(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        RingGroup(*arguments, **options)


def test_a_processor_outside_the_affinity_is_refused() -> None:
    """The kernel would take it (kernel 6.18), and the group would be on somebody else's processor."""
    os.sched_setaffinity(0, LOOP_CPUS)
    try:
        with pytest.raises(ValueError, match=rf"processor {IO_CPU} is outside the affinity of this thread"):
            io_group()
    finally:
        os.sched_setaffinity(0, ALLOWED)


@pytest.mark.parametrize(
    ("path", "listed", "words"),
    [
        ("online", "0-1023", "processor 5 is offline"),
        ("cpuset", "0-1", "processor 5 is outside the cpuset of this process"),
    ],
)
def test_processors_that_are_offline_or_not_in_the_cpuset(
    path: str, listed: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listing(name: str) -> frozenset[int] | None:
        if path == "online" and name.endswith("online"):
            return parse_cpus("0-4,6-1023")
        if path == "cpuset" and "cpuset" in name:
            return parse_cpus("0-1")
        return parse_cpus("0-1023")

    monkeypatch.setattr(groups, "_listed", listing)
    with pytest.raises(ValueError, match=words):
        RingGroup([5])


def test_a_loop_that_has_only_the_groups_processors_is_refused() -> None:
    group = io_group()
    os.sched_setaffinity(0, {IO_CPU})
    try:
        with pytest.raises(ValueError, match="which are the I/O processors of its ring group"):
            trio_uring.run(trio.sleep, 0, io_backend=UringBackend(group=group))
    finally:
        os.sched_setaffinity(0, ALLOWED)
    trio_uring.run(trio.sleep, 0, io_backend=UringBackend(group=group))


def test_the_backend_takes_a_group_and_nothing_else() -> None:
    with pytest.raises(TypeError, match=r"group must be a trio_uring\.RingGroup"):
        UringBackend(group=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="speculate is for rings without a group"):
        UringBackend(group=io_group(), speculate=True)


@pytest.mark.parametrize(
    "text", [f"async_workers_cpuset={IO_CPU}", f"sq_entries=8, async_workers_cpuset= {IO_CPU} ,spin=0"]
)
def test_the_option_in_text(text: str) -> None:
    backend = UringBackend.from_text(text)
    assert backend.group is not None
    assert backend.group.cpus == {IO_CPU}
    assert UringBackend.from_text(text).group is backend.group


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("async_workers_cpuset=", "bad value in 'async_workers_cpuset='"),
        ("async_workers_cpuset=x", "the options are sq_entries=2 to 32768"),
        ("async_workers_cpuset=1,x", "unknown option 'x'"),
        ("async_workers_cpuset=70000", "processor 70000 does not exist"),
        ("async_workers_cpuset=1,70000,sq_entries=2", "processor 70000 does not exist"),
        ("group=1", "unknown option 'group=1'"),
    ],
)
def test_bad_text(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        UringBackend.from_text(text)


PROGRAM = """
import os, trio, trio_uring

async def main():
    manager = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
    print(manager.ring.cpu, sorted(os.sched_getaffinity(0)))

trio.run(main)
"""


@pytest.mark.parametrize("way", ["variable", "command"])
def test_a_program_asks_for_it_from_outside(way: str, tmp_path: Any) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = dict(os.environ)
    command = [sys.executable, str(script)]
    if way == "variable":
        environment |= {"TRIO_IO_BACKEND": "uring", "TRIO_URING_OPTIONS": f"async_workers_cpuset={IO_CPU}"}
    else:
        environment.pop("TRIO_URING_OPTIONS", None)
        command[1:1] = ["-m", "trio_uring", "run", "--async-workers-cpuset", str(IO_CPU)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=100)
    assert done.stdout == f"{IO_CPU} {sorted(LOOP_CPUS)}\n", done.stderr


def test_processes_of_one_parent_are_dealt_different_numbers() -> None:
    first, number = groups._process_number(frozenset({IO_CPU}))
    second, other = groups._process_number(frozenset({IO_CPU}))
    assert first is not None
    assert second is not None
    with first, second:
        assert number != other
    again, once_more = groups._process_number(frozenset({IO_CPU}))
    assert again is not None
    with again:
        assert once_more == number


def test_what_a_run_leaves_behind_is_nothing(descriptors_flat: None) -> None:
    async def main() -> None:
        pollers()
        await trio.sleep(0.001)

    for _ in range(3):
        assert gone("iou-")
        trio_uring.run(main, io_backend=UringBackend(group=io_group()))
    assert sorted(os.sched_getaffinity(0)) == ALLOWED


@pytest.mark.parametrize("idle", [0.001, 1.0])
def test_data_that_is_there_wins_against_a_deadline_that_has_passed(idle: float) -> None:
    """As on epoll: the poller is asked before a run that has nothing to do is told that time is up."""

    async def main() -> None:
        ours, theirs = trio.socket.socketpair()
        with ours, theirs:
            for _ in range(300):
                await theirs.send(b"x")
                with trio.move_on_after(0.0001) as scope:
                    while trio.current_time() < scope.deadline:
                        pass
                    assert await ours.recv(10) == b"x"
                assert not scope.cancelled_caught

    trio_uring.run(main, io_backend=UringBackend(group=io_group(idle=idle)))


def test_a_run_is_idle_only_when_the_poller_is() -> None:
    async def main() -> None:
        ours, theirs = trio.socket.socketpair()
        got: list[bytes] = []

        async def receive() -> None:
            while data := await ours.recv(10):
                got.append(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for number in range(200):
                await theirs.send(b"%d" % number)
                await trio.testing.wait_all_tasks_blocked()
                assert len(got) == number + 1
            theirs.close()
        ours.close()

    trio_uring.run(main, io_backend=UringBackend(group=io_group(idle=0.001)))


def test_a_socket_whose_operations_are_over_is_closed_when_it_is_closed() -> None:
    """F49: through Trio, whose close asks the ring to make certain."""

    async def main() -> None:
        listener = trio.socket.socket()
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        for _ in range(200):
            client = trio.socket.socket()
            await client.connect(listener.getsockname())
            server, _ = await listener.accept()
            await client.send(b"x")
            assert await server.recv(1) == b"x"
            server.close()
            client._sock.setblocking(False)  # type: ignore[attr-defined]
            assert client._sock.recv(1) == b""  # type: ignore[attr-defined]
            client.close()
        listener.close()

    trio_uring.run(main, io_backend=UringBackend(group=io_group(idle=1.0)))
