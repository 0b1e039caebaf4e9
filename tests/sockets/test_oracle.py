"""Each socket method against Trio on epoll: hypothesis makes a program of calls, closes, cancels and deadlines on a pair
of sockets; what it observes on the ring is what it observes on epoll.

Knows Trio's public interface and the two counters behind `trio.testing.assert_checkpoints`; knows nothing of the ring.

A program can be compared because what it observes is determined. Its steps are serialised: each starts a task, or does
something, and then waits until all tasks are blocked, so that which calls have ended by which step is itself an observation.
Deadlines are those of a clock that only the program moves. Whatever the kernel may decide differently from run to run
(numbers of ports and descriptors, how much of a large send fits) is replaced by what it stands for.

What is not compared, because it may differ (docs/differences.md), is not in the programs: two events in one tick of the loop
where one call could have either outcome, such as data that arrives for a call that is being cancelled.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import mmap
import os
import re
import socket
import tempfile
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing
from conftest import RINGS, descriptors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from socket_tools import Backend, empty, fill, run, tcp_pair, unix_pair

import trio_uring

# More of them, and other ones each time, for who hunts: TRIO_URING_EXAMPLES=5000 pytest tests/sockets/test_oracle.py
EXAMPLES = os.environ.get("TRIO_URING_EXAMPLES")
HUNT = settings(
    max_examples=int(EXAMPLES or 60),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    report_multiple_bugs=False,
)

STREAMS = ("tcp", "unix")
KINDS = ("tcp", "unix", "udp", "unixgram")
BIG = 300_000

Step = tuple[Any, ...]


# ------------------------------------------------------------------ the world of a program


class World:
    """The sockets of one program: a and b, connected; for streams l, which listens, and c and d, which may connect."""

    def __init__(self, kind: str, directory: str) -> None:
        self.kind = kind
        self.directory = directory
        self.raw: dict[str, socket.socket] = {}
        self.addresses: dict[str, Any] = {}
        self.accepted: list[Any] = []
        self.event = os.eventfd(0, os.EFD_CLOEXEC)
        if kind in STREAMS:
            self.raw["a"], self.raw["b"] = tcp_pair(8192) if kind == "tcp" else unix_pair(8192)
            self._listen()
        else:
            self._datagrams()
        for sock in self.raw.values():
            sock.setblocking(False)

    def _listen(self) -> None:
        family = socket.AF_INET if self.kind == "tcp" else socket.AF_UNIX
        for name in "lcd":
            self.raw[name] = socket.socket(family)
        if self.kind == "tcp":
            self.raw["l"].bind(("127.0.0.1", 0))
            self.addresses["l"] = self.raw["l"].getsockname()
            with socket.create_server(("127.0.0.1", 0)) as gone:
                self.addresses["nobody"] = gone.getsockname()
        else:
            self.addresses["l"] = f"{self.directory}/l"
            self.raw["l"].bind(self.addresses["l"])
            self.addresses["nobody"] = f"{self.directory}/nobody"
            with socket.socket(socket.AF_UNIX) as gone:
                gone.bind(self.addresses["nobody"])
        self.raw["l"].listen(8)

    def _datagrams(self) -> None:
        family = socket.AF_INET if self.kind == "udp" else socket.AF_UNIX
        for name in "ab":
            sock = self.raw[name] = socket.socket(family, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0) if self.kind == "udp" else f"{self.directory}/{name}")
            self.addresses[name] = sock.getsockname()
        self.raw["a"].connect(self.addresses["b"])
        self.raw["b"].connect(self.addresses["a"])

    def wrap(self) -> None:
        """In the run: Trio's sockets, and streams over them."""
        self.sockets = {name: trio.socket.from_stdlib_socket(sock) for name, sock in self.raw.items()}
        self.streams = {name: trio.SocketStream(self.sockets[name]) for name in "ab" if self.kind in STREAMS}

    def close(self) -> None:
        """After the run."""
        for sock in (*self.raw.values(), *self.accepted):
            sock.__exit__(None, None, None)
        os.close(self.event)
        for name in os.listdir(self.directory):
            os.unlink(f"{self.directory}/{name}")

    # -------------------------------------------------------------- what of an observation is the program's own

    def text(self, text: str) -> str:
        """Without numbers that the kernel chose."""
        text = text.replace(self.directory, "DIR")
        return re.sub(r"\b(3[2-9]|[456]\d)\d\d\d\b", "PORT", text)

    def plain(self, value: Any) -> Any:
        """The same of any result."""
        if isinstance(value, bytes):
            return value if len(value) < 40 else (len(value), zlib.crc32(value))
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, trio.socket.SocketType):
            self.accepted.append(value)
            return ("socket", value.family, value.type, value.proto, os.get_blocking(value.fileno()),
                    value.get_inheritable(), self.plain(value.getsockname()))  # fmt: skip
        if isinstance(value, tuple):
            if len(value) == 2 and isinstance(value[1], int) and isinstance(value[0], str):
                return self.plain(str(value))
            return tuple(map(self.plain, value))
        if isinstance(value, list):
            return list(map(self.plain, value))
        return value

    def ancillary(self, items: Any) -> list[Any]:
        """Ancillary data, with the descriptors in it closed."""
        found: list[Any] = []
        for level, kind, data in items:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i", data[: len(data) // 4 * 4])
                found.append(("fds", [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]))
                for fd in fds:
                    os.close(fd)
            else:
                found.append((level, kind, data))
        return found

    def error(self, error: BaseException | None) -> Any:
        """An exception: class, number, text, and the same of its cause."""
        if error is None or isinstance(error, trio.Cancelled):
            return error and "Cancelled"
        return (
            type(error).__name__,
            getattr(error, "errno", None),
            self.text(str(error)),
            self.error(error.__cause__),
        )


# ------------------------------------------------------------------ arguments


def pattern(seed: int, size: int) -> bytes:
    """Bytes that tell where they come from."""
    return bytes((seed * 37 + i) & 0xFF for i in range(size))


class Target:
    """Something to receive into, and all the memory around it."""

    def __init__(self, kind: str, size: int) -> None:
        self.kind = kind
        self.whole: Any = bytearray(b"\xa5" * (size + 16))
        self.buffer: Any
        if kind == "bytearray":
            self.whole = self.buffer = bytearray(b"\xa5" * size)
        elif kind == "array":
            self.whole = self.buffer = array.array("i", [0x5A5A5A5A] * (size // 4))
        elif kind == "slice":
            self.buffer = memoryview(self.whole)[8 : 8 + size]
        elif kind == "ints":
            self.buffer = memoryview(self.whole)[8 : 8 + size // 4 * 4].cast("i")
        elif kind == "square":
            self.buffer = memoryview(self.whole)[:16].cast("B", (4, 4))
        elif kind == "strided":
            self.buffer = memoryview(self.whole)[::2]
        elif kind == "readonly":
            self.buffer = memoryview(self.whole).toreadonly()
        elif kind == "released":
            self.buffer = memoryview(self.whole)
            self.buffer.release()
        elif kind == "mmap":
            self.whole = self.buffer = mmap.mmap(-1, size or 1)
        elif kind == "bytes":
            self.whole = self.buffer = bytes(size)
        else:
            self.buffer = {"none": None, "str": "x" * size, "int": size}[kind]

    def after(self) -> Any:
        """What is in the memory now. Frees it: a pinned one fails here."""
        data = bytes(self.whole)
        if isinstance(self.buffer, memoryview):
            self.buffer.release()
        if isinstance(self.whole, bytearray):
            self.whole.append(0)
        if isinstance(self.whole, mmap.mmap):
            self.whole.close()
        return data.rstrip(b"\xa5\0") if len(data) < 80 else zlib.crc32(data)


TARGETS = st.tuples(
    st.sampled_from(
        [
            "bytearray",
            "bytearray",
            "slice",
            "array",
            "ints",
            "square",
            "strided",
            "readonly",
            "released",
            "mmap",
            "bytes",
            "none",
            "str",
            "int",
        ]
    ),
    st.sampled_from((0, 1, 8, 40, 6000)),
)


def payload(kind: str, seed: int, size: int) -> Any:
    """Something to send."""
    data = pattern(seed, size)
    if kind == "bytearray":
        return bytearray(data)
    if kind == "array":
        return array.array("H", data[: size // 2 * 2])
    if kind == "slice":
        return memoryview(b"<<" + data + b">>")[2:-2]
    if kind == "ints":
        return memoryview(data[: size // 4 * 4]).cast("i")
    if kind == "strided":
        return memoryview(data)[::2]
    if kind == "square":
        return memoryview(pattern(seed, 16)).cast("B", (4, 4))
    if kind == "mmap":
        memory = mmap.mmap(-1, size or 1)
        memory[:size] = data
        return memory
    if kind == "released":
        view = memoryview(data)
        view.release()
        return view
    return {"bytes": data, "none": None, "str": "x" * size, "int": size, "list": [1]}[kind]


PAYLOADS = st.tuples(
    st.sampled_from(
        [
            "bytes",
            "bytes",
            "bytes",
            "bytearray",
            "array",
            "slice",
            "ints",
            "strided",
            "square",
            "mmap",
            "released",
            "none",
            "str",
            "int",
            "list",
        ]
    ),
    st.integers(0, 6),
    st.sampled_from((0, 1, 10, 1000, 5000)),
)
PLAIN_PAYLOADS = st.tuples(
    st.sampled_from(("bytes", "bytearray", "slice")), st.integers(0, 6), st.sampled_from((1, 10, 1000))
)

SIZES = st.sampled_from((0, 1, 5, 100, 65536, 65537, 1 << 20, -1, True, 2.0, "x", None, 1 << 65))
FLAGS = st.sampled_from((0, socket.MSG_PEEK, socket.MSG_DONTWAIT, socket.MSG_OOB, 1 << 40, "x"))
NBYTES = st.sampled_from((0, 1, 5, 40, 7000, -1, True, "x"))


# ------------------------------------------------------------------ calls


class Call:
    """One call of one method, made from the plain values of a step."""

    def __init__(self, world: World, name: str, method: str, args: tuple[Any, ...]) -> None:
        self.world = world
        self.targets: list[Target] = []
        self.name = name
        self.method = method
        holder: Any = world.streams if method in STREAM_METHODS else world.sockets
        self.function: Callable[..., Awaitable[Any]]
        if method in LOWLEVEL:
            self.function = getattr(trio.lowlevel, method)
            self.args: list[Any] = [world.sockets[name]]
            return
        self.function = getattr(holder[name], method)
        self.args = [self.argument(arg) for arg in args]

    def argument(self, spec: Any) -> Any:
        """The value that a description in a step stands for."""
        if not isinstance(spec, tuple) or not spec:
            return spec
        tag, *rest = spec
        if tag == "payload":
            return payload(*rest[0])
        if tag == "payloads":
            return [payload(*each) for each in rest[0]]
        if tag == "target":
            self.targets.append(Target(*rest[0]))
            return self.targets[-1].buffer
        if tag == "targets":
            fresh = [Target(*each) for each in rest[0]]
            self.targets += fresh
            return [target.buffer for target in fresh]
        if tag == "address":
            return self.world.addresses.get(rest[0], rest[0])
        assert tag == "ancillary"
        return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.world.event] * rest[0]))]

    async def make(self) -> Any:
        """Call it, and answer its result in the program's own terms."""
        result = await self.function(*self.args)
        if self.method == "connect" and self.world.kind == "tcp":
            # The first connect(2) after one that did not block tells how that went, any further one is EISCONN. After a
            # connect on the ring that has been told. Told now, on both.
            with contextlib.suppress(OSError):
                self.world.raw[self.name].connect(self.args[0])
        if self.method.startswith("recvmsg"):
            data, ancillary, flags, address = result
            result = (data, self.world.ancillary(ancillary), flags & ~socket.MSG_CMSG_CLOEXEC, address)
        return self.world.plain(result)


LOWLEVEL = ("wait_readable", "wait_writable")
STREAM_METHODS = ("send_all", "receive_some", "send_eof", "wait_send_all_might_not_block", "aclose")


def steps(kind: str) -> st.SearchStrategy[Step]:
    """One step of a program."""
    side = st.sampled_from("ab")

    def call(names: st.SearchStrategy[str], method: str, *args: st.SearchStrategy[Any]) -> Any:
        arguments = st.tuples(*args)
        if len(args) > 1:  # the later ones may be left out
            arguments = st.one_of(arguments, *(st.tuples(*args[:n]) for n in range(1, len(args))))
        return st.tuples(st.just("call"), names, st.just(method), arguments, HOW)

    peers = [
        "a",
        "b",
        "l",
        "nobody",
        "",
        "\0x",
        "nowhere",
        ("127.0.0.1",),
        ("127.0.0.1", "x"),
        ("127.0.0.1", -1),
        None,
        5,
    ]
    address = st.tuples(st.just("address"), st.sampled_from(peers))
    sent = st.tuples(st.just("payload"), PAYLOADS)
    sent_plain = st.tuples(st.just("payload"), PLAIN_PAYLOADS)
    several = st.tuples(st.just("payloads"), st.lists(PLAIN_PAYLOADS | PAYLOADS, max_size=3))
    into = st.tuples(st.just("target"), TARGETS)
    into_several = st.tuples(st.just("targets"), st.lists(TARGETS, max_size=3))
    ancillary = st.just(()) | st.tuples(st.just("ancillary"), st.integers(0, 2))
    receiving = [
        call(side, "recv", SIZES),
        call(side, "recv", st.sampled_from((1, 10, 100, 65536))),
        call(side, "recv", SIZES, FLAGS),
        call(side, "recv_into", into),
        call(side, "recv_into", into, NBYTES, FLAGS),
        call(side, "recvfrom", SIZES, FLAGS),
        call(side, "recvfrom_into", into, NBYTES, FLAGS),
        call(side, "recvmsg", SIZES, st.sampled_from((0, 20, 24, 100, -1)), FLAGS),
        call(side, "recvmsg_into", into_several, st.sampled_from((0, 20, 24, 100)), FLAGS),
        call(side, "wait_readable"),
    ]
    sending = [
        call(side, "send", sent_plain),
        call(side, "send", sent),
        call(side, "send", sent, FLAGS),
        call(side, "sendto", sent_plain, address),
        call(side, "sendto", sent, FLAGS, address),
        call(side, "sendmsg", several),
        call(side, "sendmsg", several, ancillary, FLAGS, address),
        call(side, "wait_writable"),
    ]
    everyone = side
    others = []
    if kind in STREAMS:
        receiving += [call(side, "receive_some", SIZES), call(side, "receive_some", st.sampled_from((None, 10)))]
        sending += [
            call(side, "send_all", sent_plain),
            call(side, "send_all", sent),
            call(side, "send_eof"),
            call(side, "wait_send_all_might_not_block"),
        ]
        everyone = st.sampled_from("aabblcd")
        others = [
            call(st.sampled_from("lllab"), "accept"),
            call(st.sampled_from("cd"), "connect", st.tuples(st.just("address"), st.just("l"))),
            call(st.sampled_from("acdl"), "connect", address),
            call(st.sampled_from("cdl"), "recv", st.just(10)),
            call(st.sampled_from("cdl"), "send", sent_plain),
            st.tuples(st.just("transfer"), side, st.sampled_from(("bytes", "bytearray", "slice"))),
            call(side, "aclose"),
        ]
    return st.one_of(
        *receiving,
        *sending,
        *others,
        *([] if kind == "udp" else [st.tuples(st.just("fill"), side)]),  # UDP drops, and is never full
        st.tuples(st.just("drain"), side),
        st.tuples(st.just("close"), everyone),
        st.tuples(st.just("notify"), everyone),
        # A datagram socket shut down for reading is readable, says poll(2), and EAGAIN, says recv(2), for ever: Trio on epoll
        # spins, and so does the ring where it polls. Where it receives, it answers with the end of file.
        st.tuples(st.just("shutdown"), everyone, st.sampled_from((0, 1, 2, 7) if kind in STREAMS else (1, 7))),
        st.tuples(st.just("cancel"), st.integers(0, 3)),
        st.tuples(st.just("advance"), st.sampled_from((0.5, 1.0))),
    )


# How a call is made: plainly, in a scope that is cancelled already or whose deadline has passed, or with a deadline.
HOW = st.sampled_from(("plain",) * 6 + ("cancelled", "past", "deadline"))


# ------------------------------------------------------------------ running


class Program:
    """One run of a program, and its log."""

    def __init__(self, world: World, program: list[Step], cushion: float) -> None:
        self.world = world
        self.program = program
        self.cushion = cushion
        self.clock = trio.testing.MockClock()
        self.log: list[Any] = []
        self.now: list[Any] = []  # what this step has brought so far
        self.scopes: dict[int, trio.CancelScope] = {}

    async def main(self) -> None:
        """The whole program."""
        self.world.wrap()
        async with trio.open_nursery() as nursery:
            for number, step in enumerate(self.program):
                await self.step(nursery, number, step)
                await self.settle(step)
            nursery.cancel_scope.cancel()
        self.log.append(("end", sorted(self.now, key=repr)))

    async def settle(self, step: Step) -> None:
        """Until all tasks are blocked: what has ended by now is what this step observed."""
        await trio.testing.wait_all_tasks_blocked(self.cushion)
        self.log.append((step, sorted(self.now, key=repr), sorted(self.scopes)))
        self.now.clear()

    async def step(self, nursery: trio.Nursery, number: int, step: Step) -> None:
        """One step."""
        world = self.world
        kind, *rest = step
        try:
            if kind == "call":
                if rest[1] in LOWLEVEL and world.sockets[rest[0]].fileno() < 0:
                    return  # Trio leaves the number -1 marked as waited for
                nursery.start_soon(self.call, number, *rest)
            elif kind == "transfer":
                await self.transfer(nursery, number, *rest)
            elif kind == "fill":
                while fill(world.sockets[rest[0]]):
                    await trio.testing.wait_all_tasks_blocked(self.cushion)
            elif kind == "drain":
                while empty(world.sockets[rest[0]]):
                    await trio.testing.wait_all_tasks_blocked(self.cushion)
            elif kind == "close":
                world.sockets[rest[0]].close()
            elif kind == "notify":
                if world.sockets[rest[0]].fileno() >= 0:
                    trio.lowlevel.notify_closing(world.sockets[rest[0]])
            elif kind == "shutdown":
                world.sockets[rest[0]].shutdown(rest[1])
            elif kind == "cancel":
                for scope in list(self.scopes.values())[rest[0] : rest[0] + 1]:
                    scope.cancel()
            else:
                self.clock.jump(rest[0])
        except (OSError, ValueError) as error:
            self.now.append((kind, world.error(error)))

    async def call(self, number: int, name: str, method: str, args: tuple[Any, ...], how: str) -> None:
        """A task that makes one call."""
        task = trio.lowlevel.current_task()
        outcome: Any = None
        scope = trio.CancelScope()
        if how == "cancelled":
            scope.cancel()
        elif how == "past":
            scope.deadline = trio.current_time() - 1
        elif how == "deadline":
            scope.deadline = trio.current_time() + 1
        with scope:
            self.scopes[number] = scope
            call = Call(self.world, name, method, args)
            before = task._cancel_points, task._schedule_points
            try:
                outcome = ("returned", await call.make())
            except BaseException as error:
                outcome = ("raised", self.world.error(error))
                if isinstance(error, trio.Cancelled):
                    raise
            finally:
                checkpoints = task._cancel_points != before[0], task._schedule_points != before[1]
                del self.scopes[number]
                after = [target.after() for target in call.targets]
                self.now.append((number, method, outcome, "checkpoints", checkpoints, after))

    async def transfer(self, nursery: trio.Nursery, number: int, side: str, kind: str) -> None:
        """More than fits in the buffers, sent and received at the same time; left clean where it does not succeed."""
        other = "ab"["ba".index(side)]
        data = payload(kind, 0, BIG)

        async def send() -> str:
            await self.world.streams[side].send_all(data)
            return "sent"

        async def receive() -> Any:
            received = bytearray()
            while len(received) < BIG and (some := await self.world.streams[other].receive_some(65536)):
                received += some
            # Other data may have been before it.
            return len(received) >= BIG, zlib.crc32(received)

        async def note(what: Callable[[], Awaitable[Any]]) -> None:
            outcome: Any = "Cancelled"
            try:
                outcome = await what()
            except Exception as error:
                outcome = self.world.error(error)
            finally:
                self.now.append((number, what.__name__, outcome))

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as both:
                for task in (receive, send):
                    both.start_soon(note, task)
                    await trio.testing.wait_all_tasks_blocked(self.cushion)
                if both.child_tasks:
                    await trio.testing.wait_all_tasks_blocked(10 * self.cushion)
                scope.cancel()
        if isinstance(data, bytearray):
            data.append(0)
        with contextlib.suppress(OSError, ValueError):
            while empty(self.world.sockets[other]):
                await trio.testing.wait_all_tasks_blocked(self.cushion)


def observe(backend: Backend, kind: str, program: list[Step], cushion: float = 0.0005) -> list[Any]:
    """What a program observes on a backend."""
    with tempfile.TemporaryDirectory(prefix="oracle") as directory:
        before = descriptors()
        world = World(kind, directory)
        running = Program(world, program, cushion)
        try:
            run(backend, running.main, clock=running.clock)
        finally:
            world.close()
        assert descriptors() == before
    return running.log


def differences(ours: list[Any], trios: list[Any]) -> Iterator[str]:
    """The first step at which two logs differ."""
    for number, (mine, theirs) in enumerate(itertools.zip_longest(ours, trios)):
        if mine != theirs:
            yield f"step {number}\n  on the ring: {mine}\n  on epoll:    {theirs}"
            return


def compare(backend: Backend, kind: str, program: list[Step]) -> None:
    """A program observes the same on both."""
    found = list(differences(observe(backend, kind, program), observe("epoll", kind, program)))
    if found:
        # TCP over loopback may be late by a moment. What stays different with time to settle is a difference.
        found = list(differences(observe(backend, kind, program, 0.05), observe("epoll", kind, program, 0.05)))
    assert not found, found[0]


BACKENDS = {**RINGS, "speculate": trio_uring.UringBackend(speculate=True)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ring", BACKENDS.values(), ids=BACKENDS)
def test_oracle(ring: Backend, kind: str) -> None:
    @HUNT
    @given(st.lists(steps(kind), min_size=1, max_size=14))
    def hunt(program: list[Step]) -> None:
        compare(ring, kind, program)

    hunt()
