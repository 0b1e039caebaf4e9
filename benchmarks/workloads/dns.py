"""An exchange like DNS: a query with an identifier and a name, a deadline of five seconds, an answer that is compared
(trio#1595).

The server reads the header and the name and answers with an address; both are tasks of one process, as in a resolver that
forwards.
"""

from __future__ import annotations

import itertools
import struct

import trio

from benchmarks.model import Case, Stage, Workload
from benchmarks.workloads.churn import NOT_SLOWER
from benchmarks.workloads.udp_echo import bound

HEADER = struct.Struct(">6H")  # identifier, flags, and how many questions, answers, authorities and additions
NAME = b"\x03www\x07example\x03org\x00" + struct.pack(">2H", 1, 1)
ADDRESS = struct.pack(">3HIH4B", 0xC00C, 1, 1, 60, 4, 192, 0, 2, 1)

WORKLOAD = Workload(
    name="dns",
    title="queries like those of DNS, each with a deadline",
    job="dns",
    cases=(Case(title="50 clients", tasks=50, targets=NOT_SLOWER),),
)


async def _serve(sock: trio.socket.SocketType) -> None:
    while True:
        query, address = await sock.recvfrom(512)
        identifier, _, questions, *_ = HEADER.unpack_from(query)
        if questions == 1 and query.endswith(NAME):
            await sock.sendto(HEADER.pack(identifier, 0x8180, 1, 1, 0, 0) + NAME + ADDRESS, address)


async def _client(address: tuple[str, int], stage: Stage) -> None:
    identifiers = itertools.cycle(range(1 << 16))
    with await bound() as sock:
        await sock.connect(address)
        for _ in stage.laps():
            identifier = next(identifiers)
            with trio.fail_after(5):
                await sock.send(HEADER.pack(identifier, 0x0100, 1, 0, 0, 0) + NAME)
                answer = await sock.recv(512)
            if HEADER.unpack_from(answer)[0] != identifier or not answer.endswith(ADDRESS):
                raise RuntimeError("the answer to another query")


async def main(stage: Stage) -> None:
    with await bound() as sock:
        async with trio.open_nursery() as server:
            server.start_soon(_serve, sock)
            async with trio.open_nursery() as clients:
                for _ in range(stage.tasks):
                    clients.start_soon(_client, sock.getsockname(), stage)
            server.cancel_scope.cancel()
