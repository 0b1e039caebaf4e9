"""Layer 2, transfers: one read or write of a descriptor that may have many at once, by an operation that is used again.

Knows the entry and the books; knows nothing of files, nor of what a short one means to a user.
"""

from __future__ import annotations

from typing import Any

import trio
from trio.lowlevel import Task

from .._ring.ring import ffi, lib
from .manager import UringIOManager
from .operation import GLOBAL_RUN_CONTEXT, Operation

tu_rw = lib.tu_rw


class Transfer(Operation):
    """One IORING_OP_READ or IORING_OP_WRITE at a position; a descriptor may have many at once.

    Used again, from `manager.transfers`, as long as it succeeds and nobody ever cancelled it; its descriptor is then -1.
    """

    __slots__ = ("ring",)

    def __init__(self, manager: UringIOManager) -> None:
        super().__init__(manager, -1, None, None)
        self.ring = manager.ring.address

    def complete(self, result: int, flags: int) -> Task | None:
        """The completion has been reaped: the memory is the caller's again."""
        task = self.task
        if task is not None and result >= 0 and self.raise_cancel is None:
            # Operation.complete, flattened.
            del self.manager.operations[self.user_data]
            self.result = result
            self.task = None
            self.keep = None
            others = self.manager.concurrent
            same_fd = others[self.fd]
            if len(same_fd) == 1:
                del others[self.fd]
            else:
                same_fd.discard(self)
            self.fd = -1
            return task
        return Operation.complete(self, result, flags)

    def _cancelled_with_another(self) -> bool:
        """That makes no difference: by a thread it can be done whoever cancelled it."""
        return False


def enter(transfer: Transfer, fd: int, keep: object, task: Task) -> None:
    """Enter a transfer that is to be queued into the books."""
    transfer.fd = fd
    transfer.keep = keep
    transfer.task = task
    manager = transfer.manager
    transfer.user_data = user_data = manager.next_user_data()
    manager.operations[user_data] = transfer
    others = manager.concurrent
    if fd in others:
        others[fd].add(transfer)
    else:
        others[fd] = {transfer}


@trio.lowlevel.enable_ki_protection
async def transfer(
    manager: UringIOManager,
    opcode: int,
    fd: int,
    keep: object,
    memory: Any,
    length: int,
    offset: int,
    sqe_flags: int = 0,
) -> int:
    """`Operation.perform` of an OP_READ or OP_WRITE; its result, zero or more.

    Args:
      keep: what pins the memory.
      memory: bytes, or a cffi pointer.
    """
    task = GLOBAL_RUN_CONTEXT.task
    while True:
        task._cancel_points += 1  # trio.lowlevel.checkpoint_if_cancelled, flattened
        if task._cancel_status.effectively_cancelled or task._runner.ki_pending:
            await trio.lowlevel.checkpoint_if_cancelled()
        manager.follow_limiter()
        operation: Transfer = manager.transfers.pop() if manager.transfers else Transfer(manager)
        enter(operation, fd, keep, task)
        try:
            rc = tu_rw(operation.ring, opcode, fd, memory, length, offset, sqe_flags, operation.user_data)
            if not rc:
                await operation.trap
        except BaseException:
            operation.unwind()
            raise
        if rc:
            operation.unwind()
            manager.ring._fail(rc)
        if operation.result >= 0:
            if operation.raise_cancel is None:
                manager.transfers.append(operation)
            return operation.result
        try:
            if operation.refused():
                pointer = ffi.from_buffer("char[]", memory) if memory.__class__ is bytes else memory
                return await operation.by_system_call(keep, opcode, pointer, length, offset)
            await operation.failed()
        finally:
            operation.keep = None
