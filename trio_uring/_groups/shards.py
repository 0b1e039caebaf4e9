"""Layer 3, shards: N Trio runs that do the same work side by side, each pinned to a processor, with a ring of its own.

Knows Trio, processes and threads, and the ring groups; knows nothing of sockets' or files' operations.

`shards` is a nursery over loops: it returns when all have ended, an exception of one cancels the others and comes out of it, and
cancelling it cancels them all. Each shard is

- a process (spawned, so that it inherits no run, no ring and no thread), where one interpreter lock for all would leave N loops
  the speed of one; or
- a thread, where the interpreter has no such lock (a free-threaded build), or somebody asks for it.

What is the same for both: async_fn(shard, *args) runs in each, and `Shard` is how it knows and reaches the others.

A process has one socket to its parent, on which its outcome comes, pickled, and whose end, from either side, is the end of
the shard: a parent that dies takes its shards with it. It has one socket to each other shard, on which messages go, pickled,
each after its length. A thread has an inbox that the others append to. Either way who sends more than the other takes waits.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Literal, NoReturn

import attrs
import outcome
import trio

from .._loop.options import UringBackend
from .._ring.group import InheritedGroup, RingGroup

_MAX_INBOX: Final = 64  # messages that wait in a shard, whoever they are from, before a sender has to
_LENGTH: Final = struct.Struct("!Q")
_BACKLOG: Final = 1024

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

# It has the keyword io_backend since this package was imported.
_run: Any = trio.run

Kind = Literal["auto", "processes", "threads"]


class ShardDiedError(RuntimeError):
    """The process of a shard ended without an outcome: killed, or by os._exit().

    Attributes:
      index: the shard's (int).
      exitcode: as `multiprocessing.Process.exitcode` (int): negative for the signal that killed it.
    """

    def __init__(self, index: int, exitcode: int) -> None:
        super().__init__(index, exitcode)
        self.index = index
        self.exitcode = exitcode

    def __str__(self) -> str:
        if self.exitcode < 0:
            try:
                how = f"was killed by {signal.Signals(-self.exitcode).name}"
            except ValueError:
                how = f"was killed by signal {-self.exitcode}"
        else:
            how = f"ended with exit code {self.exitcode} before its function returned"
        return f"shard {self.index} {how}"


class RemoteTraceback(Exception):
    """The cause of an exception that has come from a shard's process.

    Attributes:
      text: the traceback that it had there (str).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class Shard:
    """One of the loops, as its function sees it.

    Attributes:
      index: 0 to count - 1.
      count: how many there are.
      cpu: the processor that it is pinned to, or None.
    """

    def __init__(self, index: int, count: int, cpu: int | None) -> None:
        self.index = index
        self.count = count
        self.cpu = cpu

    def __repr__(self) -> str:
        return f"<Shard {self.index} of {self.count}, processor {self.cpu}>"

    async def send(self, index: int, message: Any) -> None:
        """Send an object to a shard; where that one is behind with taking its messages, wait for it.

        Between threads the object itself goes, between processes a pickled copy. Messages of one sender arrive in order. A
        cancelled send has sent nothing, unless the part of it that does not fit into the socket's buffer was under way: then it
        is finished first.

        Raises:
          IndexError: there is no such shard.
          ValueError: it is this one.
          BrokenResourceError: that shard has ended.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"there is no shard {index}: there are 0 to {self.count - 1}")
        if index == self.index:
            raise ValueError(f"shard {index} cannot send to itself")
        await self._send(index, message)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        """The next message to this shard; the end when every other shard has ended and all messages have been taken."""
        try:
            return await self._receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def _send(self, index: int, message: Any) -> None:
        raise NotImplementedError

    async def _receive(self) -> Any:
        raise NotImplementedError

    async def listen_tcp(self, port: int, host: str = "127.0.0.1") -> trio.SocketListener:
        """A listener that shares its port with those of the other shards: the kernel deals the connections (SO_REUSEPORT).

        Args:
          port: not 0, which would be another port in each shard.
          host: an IPv4 or IPv6 address.

        Raises:
          ValueError: port 0.
          OSError: as bind(2).
        """
        if port == 0:
            raise ValueError("port 0 would be another port in each shard: name one")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = trio.socket.socket(family)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            await sock.bind((host, port))
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        return trio.SocketListener(sock)


def run_shards(
    async_fn: Callable[..., Awaitable[Any]],
    *args: Any,
    shards: int,
    cpus: Iterable[int] | None = None,
    group: RingGroup | None = None,
    kind: Kind = "auto",
    io_backend: Any = "auto",
) -> list[Any]:
    """Run `async_fn(shard, *args)` in several Trio loops at once, each with its `Shard`, and return what each returned, by index.

    For plain code; inside a run use `trio_uring.shards`. A program whose shards are processes calls it under
    ``if __name__ == "__main__":``, as one does with `multiprocessing`.

    Args:
      async_fn: what each runs; for processes, as well as `args` and what it returns, something that pickle takes.
      args: its arguments behind the `Shard`.
      shards: how many, at least 1.
      cpus: the processors to pin them to, in turn; None for all that this process may use and the group does not.
      group: the `RingGroup` that does their I/O; processes make one each of the same processors, and are dealt to them in turn.
      kind: "processes", "threads", or "auto": threads on an interpreter without a global lock, else processes.
      io_backend: as of `trio.run`; not beside a group.

    Raises:
      ValueError, TypeError: a bad argument.
      ExceptionGroup: what the shards raised, each with the traceback that it had there (as its cause, a `RemoteTraceback`, where
        it comes from a process); `ShardDiedError` for one whose process was killed.
    """
    plan = _plan(shards, cpus, group, kind, io_backend)
    try:
        results: list[Any] = _run(_supervise, plan, async_fn, args, io_backend="epoll")
    except BaseExceptionGroup as error:
        # Ctrl-C is not something that a shard raised.
        if error.split(KeyboardInterrupt)[1] is None:
            raise KeyboardInterrupt from None
        raise
    return results


async def shards(
    async_fn: Callable[..., Awaitable[Any]],
    *args: Any,
    shards: int,
    cpus: Iterable[int] | None = None,
    group: RingGroup | None = None,
    kind: Kind = "auto",
    io_backend: Any = "auto",
) -> list[Any]:
    """`trio_uring.run_shards` inside a run. Cancelling it cancels every shard, and waits until all have ended.

    The arguments, async_fn, args, shards, cpus, group, kind and io_backend, and what is returned and raised are those of
    `trio_uring.run_shards`.
    """
    return await _supervise(_plan(shards, cpus, group, kind, io_backend), async_fn, args)


# ------------------------------------------------------------------ the plan


@attrs.frozen
class _Plan:
    """What was asked for, checked: for each shard its processor."""

    cpus: Sequence[int]
    group: RingGroup | None
    threads: bool
    io_backend: Any


def _plan(count: int, cpus: Iterable[int] | None, group: RingGroup | None, kind: str, io_backend: Any) -> _Plan:
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"shards must be an int, not {count!r}")
    if count < 1:
        raise ValueError(f"shards must be at least 1, not {count}")
    if kind not in ("auto", "processes", "threads"):
        raise ValueError(f"kind must be 'auto', 'processes' or 'threads', not {kind!r}")
    if group is not None and not isinstance(group, RingGroup):
        raise TypeError(f"group must be a trio_uring.RingGroup, not {group!r}")
    if group is not None and io_backend not in ("auto", "uring"):
        raise ValueError(f"io_backend must be left out beside a group, not {io_backend!r}")
    allowed = os.sched_getaffinity(0)
    io_cpus = group.cpus if group is not None else frozenset()
    chosen = sorted(allowed - io_cpus) if cpus is None else list(cpus)
    if not chosen:
        raise ValueError("no processor is left for the shards: the group has all that this process may use")
    for cpu in chosen:
        if cpu not in allowed:
            raise ValueError(f"processor {cpu} is outside the affinity of this thread, which is {sorted(allowed)}")
        if cpu in io_cpus:
            raise ValueError(f"processor {cpu} is one of the group's: it does I/O, and no shard can be pinned to it")
    free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    threads = kind == "threads" or (kind == "auto" and free_threaded)
    return _Plan([chosen[index % len(chosen)] for index in range(count)], group, threads, io_backend)


async def _supervise(plan: _Plan, async_fn: Callable[..., Awaitable[Any]], args: Sequence[Any]) -> list[Any]:
    return await (_run_threads if plan.threads else _run_processes)(plan, async_fn, args)


def _run_pinned(cpu: int, backend: Any, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """A Trio run on one processor; the thread may run where it could before when it is over."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        return _run(async_fn, *args, io_backend=backend)
    finally:
        os.sched_setaffinity(0, before)


# ------------------------------------------------------------------ processes


async def _send_pickled(stream: trio.abc.SendStream, message: Any) -> None:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    await trio.lowlevel.checkpoint_if_cancelled()
    # Half a message would be the end of all that follow it.
    with trio.CancelScope(shield=True):
        await stream.send_all(_LENGTH.pack(len(data)) + data)


async def _receive_exactly(stream: trio.SocketStream, buffer: bytearray, size: int) -> bytes | None:
    """That many bytes, or None where the stream has ended before. What a cancel leaves unread stays in the buffer."""
    while len(buffer) < size:
        data = await stream.receive_some()
        if not data:
            return None
        buffer += data
    taken = bytes(buffer[:size])
    del buffer[:size]
    return taken


class _ProcessShard(Shard):
    def __init__(self, index: int, count: int, cpu: int, peers: dict[int, trio.SocketStream]) -> None:
        super().__init__(index, count, cpu)
        self._peers = peers
        self._locks = {peer: trio.Lock() for peer in peers}
        self._to_inbox, self._inbox = trio.open_memory_channel[bytes](_MAX_INBOX)

    async def _send(self, index: int, message: Any) -> None:
        async with self._locks[index]:
            await _send_pickled(self._peers[index], message)

    async def _receive(self) -> Any:
        return pickle.loads(await self._inbox.receive())

    async def _take(self, peer: int, to_inbox: trio.MemorySendChannel[bytes]) -> None:
        """Messages of one other shard, until it ends."""
        stream, buffer = self._peers[peer], bytearray()
        async with to_inbox:
            try:
                while (head := await _receive_exactly(stream, buffer, _LENGTH.size)) is not None:
                    data = await _receive_exactly(stream, buffer, *_LENGTH.unpack(head))
                    if data is None:
                        return
                    await to_inbox.send(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return


async def _process_main(
    index: int,
    cpus: Sequence[int],
    async_fn: Callable[..., Awaitable[Any]],
    args: Sequence[Any],
    control: socket.socket,
    sockets: dict[int, socket.socket],
) -> None:
    """The run of a shard's process. Its outcome goes to the parent, and with the parent it ends."""

    def stream(sock: socket.socket) -> trio.SocketStream:
        sock.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    parent = stream(control)
    shard = _ProcessShard(index, len(cpus), cpus[index], {peer: stream(sock) for peer, sock in sockets.items()})
    result: tuple[Any, BaseException | None] = (None, None)
    cancelled = False

    async def watch_parent(scope: trio.CancelScope) -> None:
        nonlocal cancelled
        await parent.receive_some(1)  # it says nothing; but it shuts down its side, or dies
        cancelled = True
        scope.cancel()

    async with trio.open_nursery() as around:
        async with trio.open_nursery() as taking:
            async with shard._to_inbox:
                for peer in sockets:
                    taking.start_soon(shard._take, peer, shard._to_inbox.clone())
            try:
                with trio.CancelScope() as scope:
                    around.start_soon(watch_parent, scope)
                    result = (await async_fn(shard, *args), None)
            except trio.Cancelled:
                raise
            except BaseException as error:
                result = (None, error)
            taking.cancel_scope.cancel()
        around.cancel_scope.cancel()
    for other in shard._peers.values():
        await trio.aclose_forcefully(other)
    if not cancelled or result[1] is not None:
        with trio.CancelScope(shield=True), contextlib.suppress(trio.BrokenResourceError):  # nobody is left to tell
            await parent.send_all(_outcome(*result))
    await parent.aclose()


def _outcome(value: Any, error: BaseException | None) -> bytes:
    """What the parent reads: (value, exception, traceback), pickled."""
    text = "" if error is None else "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        data = pickle.dumps((value, error, text), pickle.HIGHEST_PROTOCOL)
        pickle.loads(data)
    except Exception as problem:
        if error is None:
            told = TypeError(f"what the shard's function returned cannot be pickled: {problem}")
        else:
            told = RuntimeError(f"the shard raised {type(error).__qualname__}: {error}")  # type: ignore[assignment]
        data = pickle.dumps((None, told, text), pickle.HIGHEST_PROTOCOL)
    return data


def _process_entry(
    index: int,
    cpus: Sequence[int],
    group: tuple[frozenset[int], float, int | None] | None,
    io_backend: Any,
    async_fn: Callable[..., Awaitable[Any]],
    args: Sequence[Any],
    control: socket.socket,
    sockets: dict[int, socket.socket],
) -> None:
    """What a spawned process runs. Ctrl-C is for the parent, which cancels."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if group is not None:
        io_backend = UringBackend(group=InheritedGroup(group[0], idle=group[1], workers=group[2]))
    _run_pinned(cpus[index], io_backend, _process_main, index, cpus, async_fn, args, control, sockets)


async def _run_processes(plan: _Plan, async_fn: Callable[..., Awaitable[Any]], args: Sequence[Any]) -> list[Any]:
    count = len(plan.cpus)
    results: list[Any] = [None] * count
    context = multiprocessing.get_context("spawn")
    group = None if plan.group is None else (plan.group.cpus, plan.group.idle, plan.group.workers)
    between: list[dict[int, socket.socket]] = [{} for _ in range(count)]
    controls: list[socket.socket] = []
    processes: list[Any] = []  # of multiprocessing.context.SpawnProcess
    try:
        for one in range(count):
            for other in range(one):
                between[one][other], between[other][one] = socket.socketpair()
        for index in range(count):
            ours, theirs = socket.socketpair()
            controls.append(ours)
            with theirs:
                process = context.Process(
                    target=_process_entry,
                    args=(index, plan.cpus, group, plan.io_backend, async_fn, args, theirs, between[index]),
                    name=f"shard {index}",
                )
                await trio.to_thread.run_sync(process.start)
            processes.append(process)
            for sock in between[index].values():
                sock.close()
        try:
            async with trio.open_nursery() as nursery:
                for index, process in enumerate(processes):
                    nursery.start_soon(_await_process, index, process, controls[index], results)
        finally:
            controls.clear()
    finally:
        # Where one could not be started, the others see the end of their control sockets.
        for sock in [*controls, *(sock for sockets in between for sock in sockets.values())]:
            sock.close()
        for process in processes:
            process.join()
            process.close()
    return results


async def _await_process(index: int, process: Any, control: socket.socket, results: list[Any]) -> None:
    control.setblocking(False)
    data = bytearray()
    async with trio.SocketStream(trio.socket.from_stdlib_socket(control)) as stream:

        async def read() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                async for some in stream:
                    data.extend(some)
            await trio.lowlevel.wait_readable(process.sentinel)

        try:
            await read()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await stream.send_eof()
                await read()
            if not data:
                raise
    process.join()
    if not data:
        raise ShardDiedError(index, process.exitcode or 0)
    value, error, text = pickle.loads(data)
    if error is not None:
        _raise_remote(error, text)
    results[index] = value


def _raise_remote(error: BaseException, text: str) -> NoReturn:
    error.__cause__ = RemoteTraceback(text)
    raise error


# ------------------------------------------------------------------ threads


class _ThreadShard(Shard):
    """Its inbox is under a lock; whoever sleeps on it, receiver or sender, is woken through the token of its run."""

    def __init__(self, index: int, cpus: Sequence[int], all_shards: list[_ThreadShard]) -> None:
        super().__init__(index, len(cpus), cpus[index])
        self._all = all_shards
        self._lock = threading.Lock()
        self._messages: collections.deque[Any] = collections.deque()
        self._receivers: collections.deque[Callable[[], None]] = collections.deque()
        self._senders: collections.deque[Callable[[], None]] = collections.deque()
        self._ended = False

    @staticmethod
    def _waker() -> tuple[trio.Event, Callable[[], None]]:
        """An event of this run, and what sets it, from any thread."""
        event, token = trio.Event(), trio.lowlevel.current_trio_token()

        def wake() -> None:
            with contextlib.suppress(trio.RunFinishedError):  # it was cancelled, and has ended
                token.run_sync_soon(event.set)

        return event, wake

    async def _send(self, index: int, message: Any) -> None:
        other = self._all[index]
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            with other._lock:
                if other._ended:
                    raise trio.BrokenResourceError(f"shard {index} has ended")
                if len(other._messages) < _MAX_INBOX:
                    other._messages.append(message)
                    woken = other._receivers.popleft() if other._receivers else None
                    break
                event, wake = self._waker()
                other._senders.append(wake)
            await self._sleep(event, wake, other._senders, other._lock)
        if woken is not None:
            woken()
        await trio.lowlevel.cancel_shielded_checkpoint()

    @staticmethod
    async def _sleep(
        event: trio.Event, wake: Callable[[], None], where: collections.deque[Callable[[], None]], lock: threading.Lock
    ) -> None:
        try:
            await event.wait()
        except BaseException:
            with lock:
                if wake in where:
                    where.remove(wake)
                    successor = None
                else:  # woken and cancelled: the turn is the next one's
                    successor = where.popleft() if where else None
            if successor is not None:
                successor()
            raise

    async def _receive(self) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            with self._lock:
                if self._messages:
                    message = self._messages.popleft()
                    woken = self._senders.popleft() if self._senders else None
                    break
                if all(other._ended for other in self._all if other is not self):
                    raise trio.EndOfChannel
                event, wake = self._waker()
                self._receivers.append(wake)
            await self._sleep(event, wake, self._receivers, self._lock)
        if woken is not None:
            woken()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return message

    def _end(self) -> None:
        self._ended = True
        for shard in self._all:
            with shard._lock:
                asleep = [*shard._receivers, *(shard._senders if shard is self else ())]
                shard._receivers.clear()
                if shard is self:
                    shard._senders.clear()
                    shard._messages.clear()
            for wake in asleep:
                wake()


async def _run_threads(plan: _Plan, async_fn: Callable[..., Awaitable[Any]], args: Sequence[Any]) -> list[Any]:
    count = len(plan.cpus)
    all_shards: list[_ThreadShard] = []
    all_shards += [_ThreadShard(index, plan.cpus, all_shards) for index in range(count)]
    backend = plan.io_backend if plan.group is None else UringBackend(group=plan.group)
    results: list[Any] = [None] * count
    limiter = trio.CapacityLimiter(count)

    async def supervise(shard: _ThreadShard) -> None:
        lock = threading.Lock()
        stop: list[Callable[[], None]] = []
        stopping = False

        async def main() -> Any:
            scope, token = trio.CancelScope(), trio.lowlevel.current_trio_token()
            with lock:
                stop.append(lambda: token.run_sync_soon(scope.cancel))
                if stopping:
                    scope.cancel()
            try:
                with scope:
                    return await async_fn(shard, *args)
            finally:
                shard._end()

        def run() -> outcome.Outcome[Any]:
            try:
                ended: outcome.Outcome[Any] = outcome.capture(_run_pinned, plan.cpus[shard.index], backend, main)
                return ended
            finally:
                shard._end()

        async def pass_on_a_cancel() -> None:
            nonlocal stopping
            try:
                await trio.sleep_forever()
            finally:
                with lock:
                    stopping = True
                    for each in stop:
                        with contextlib.suppress(trio.RunFinishedError):
                            each()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_on_a_cancel)
            ended = await trio.to_thread.run_sync(run, limiter=limiter)
            nursery.cancel_scope.cancel()
        results[shard.index] = ended.unwrap()

    async with trio.open_nursery() as nursery:
        for shard in all_shards:
            nursery.start_soon(supervise, shard)
    return results
