"""Layer 5: a dump on a signal. Knows signals and one variable; imports neither Trio nor the ring.

TRIO_URING_DUMP=SIGUSR1 arms it wherever trio_uring is imported, which the start-up hook does before the program begins. What
the program itself does with the signal wins: a handler that is there already is left alone, and one that it sets later,
for good or in an open_signal_receiver, takes the place of this one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import types
from typing import Final

VARIABLE: Final = "TRIO_URING_DUMP"

_log = logging.getLogger("trio_uring")
_armed: dict[int, str | None] = {}
_handlers: dict[int, object] = {}


def is_armed() -> bool:
    """Whether a signal makes a dump, so that runs are worth watching (`observe.RingMonitor`)."""
    return any(signal.getsignal(number) is handler for number, handler in _handlers.items())


def arm_from_environment() -> None:
    """What TRIO_URING_DUMP asks for: `SIGUSR1`, or `SIGUSR1:PATH`. A wrong value is logged, and the program goes on."""
    value = os.environ.get(VARIABLE)
    if not value:
        return
    name, _, path = value.partition(":")
    try:
        number = signal.Signals[name]
        if signal.getsignal(number) is not signal.SIG_DFL:
            raise ValueError("the program handles that signal itself")
        dump_on_signal(number, path or None)
    except KeyError:
        _log.warning("%s=%s: no signal %r; it takes SIGUSR1, or SIGUSR1:PATH", VARIABLE, value, name)
    except (ValueError, OSError) as error:
        _log.warning("%s=%s: no dump is armed: %s", VARIABLE, value, error)


def dump_on_signal(number: int = signal.SIGUSR1, path: str | os.PathLike[str] | None = None) -> None:
    """Arm: from now on the signal makes the process write `trio_uring.dump`, and go on.

    Runs that begin after this are watched by a `RingMonitor`, so that the dump knows ages. A handler that was there
    before is called after the dump. To disarm, set another handler with signal.signal.

    Args:
      number: the signal.
      path: a file that dumps are added to, made when the first is written; None for standard error.

    Raises:
      ValueError: called in another thread than the main one, or no such signal (signal.signal).
      OSError: a signal that cannot be handled (SIGKILL, SIGSTOP).
    """
    before = signal.getsignal(number)
    if number in _handlers and before is _handlers[number]:  # armed already: only the path is new
        _armed[number] = None if path is None else os.fspath(path)
        return

    def handler(number: int, frame: types.FrameType | None) -> None:
        _write(_armed.get(number))
        if callable(before):
            before(number, frame)

    signal.signal(number, handler)
    _handlers[number] = handler
    _armed[number] = None if path is None else os.fspath(path)


def _write(path: str | None) -> None:
    """Write a dump, by write(2): whatever the signal interrupted may be half-way through a write to sys.stderr."""
    if "trio_uring._loop.manager" in sys.modules:
        from . import observe

        text = observe.text()
    else:
        text = f"trio-uring dump: process {os.getpid()} has had no run on the ring\n"
    data = text.encode(errors="backslashreplace")
    try:
        fd = 2 if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            if fd != 2:
                os.close(fd)
    except OSError as error:
        _log.warning("the dump cannot be written to %s: %s", path or "standard error", error)
