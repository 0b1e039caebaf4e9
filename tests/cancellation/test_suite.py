"""The cancellation suite on this project's backends. What is tested stands in trio_uring.cancellation, for others to use."""

from __future__ import annotations

from trio_uring.cancellation.suite import *  # noqa: F403
