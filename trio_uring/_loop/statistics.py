"""Layer 2, what a run on the ring tells of itself. Knows nothing of the ring; a room of its own because few runs are asked."""

from __future__ import annotations

import attrs


@attrs.frozen(eq=False)
class UringStatistics:
    """`trio.lowlevel.current_statistics().io_statistics` of a run on the ring.

    Attributes:
      tasks_waiting_read: tasks blocked until a descriptor is readable, or in a direct read of it.
      tasks_waiting_write: the same for writing.
      operations_in_flight: entries queued or with the kernel, their last completion not yet reaped.
      submitted, completed, cancelled: entries since the run began; `cancelled` are those that ended with -ECANCELED.
      kernel_entries: io_uring_enter(2) calls.
      sq_full_flushes: submissions forced by a full submission queue; many of them ask for larger `sq_entries`.
      cq_overflows: times the completion queue overflowed; nothing is lost, many of them ask for larger `cq_entries`.
      max_workers: kernel workers that may run at a time for files and paths, those that wait for FIFOs included; 0 where the
        kernel does not tell.
      backend: "uring".
    """

    tasks_waiting_read: int
    tasks_waiting_write: int
    operations_in_flight: int
    submitted: int
    completed: int
    cancelled: int
    kernel_entries: int
    sq_full_flushes: int
    cq_overflows: int
    max_workers: int
    backend: str = attrs.field(init=False, default="uring")
