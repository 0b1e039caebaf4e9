"""A pytest plugin for other projects' suites: a Trio run that is not on the ring fails the test that made it.

Knows the class of Trio's own backend; knows nothing of trio-uring.
"""

from __future__ import annotations

from trio._core._io_epoll import EpollIOManager


def _refuse(self: EpollIOManager) -> None:
    self._epoll.close()
    raise AssertionError("a run was set up on epoll")


EpollIOManager.__attrs_post_init__ = _refuse  # type: ignore[method-assign]
