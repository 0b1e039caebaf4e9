"""Layer 2, calls from other threads and from signal handlers: how Trio's entry queue (`TrioToken.run_sync_soon`) wakes a
loop on the ring.

Trio's own way is a byte through a socket pair, for a poll and two reads. Here it is `Ring.call`, which makes no
system call as long as the loop is not asleep, and else writes the ring's eventfd, of which a read is in flight
anyway. Signals stay with the socket pair, as `signal.set_wakeup_fd` writes one byte and an eventfd takes eight; its
poll stays in the ring from one sleep of the queue's task to the next.

No wake-up is lost. `EntryQueue.run_sync_soon` puts the call into the queue and then wakes; the queue's task looks
into the queue and goes to sleep with no turn of the loop in between. So a call that comes too late for that look
finds the task asleep by the time that the loop hands out CALL_DATA, as `Ring.call` has it do in this turn or the
next.
"""

from __future__ import annotations

from typing import Any

from .calls import AsyncMethod, replaces, ring_manager
from .operation import GLOBAL_RUN_CONTEXT, EntryPoll


def wait_woken(original: AsyncMethod) -> AsyncMethod:
    """For WakeupSocketpair.wait_woken, of which only the entry queue's is served here."""

    @replaces(original)
    async def wait_woken(self: Any) -> None:
        manager = ring_manager()
        if manager is None or GLOBAL_RUN_CONTEXT.runner.entry_queue.wakeup is not self:
            return await original(self)  # type: ignore[no-any-return]
        poll = manager.entry_poll
        if poll is None:
            # What has been written to the socket pair before is found by its poll.
            self.wakeup_thread_and_signal_safe = manager.ring.call
        if poll is None or poll.task is None:
            fd = self.wakeup_sock.fileno()
            poll = manager.entry_poll = EntryPoll(manager, fd, GLOBAL_RUN_CONTEXT.task)
        await poll.sleep()
        if poll.task is None:
            self.drain()

    return wait_woken
