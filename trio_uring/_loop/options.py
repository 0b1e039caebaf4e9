"""Layer 4: what `io_backend` and the environment may say, and which of them decides.

Knows the words that a user types, and the groups that rings are made in; knows nothing of Trio, nor how a choice is carried out.

Order of precedence: an `io_backend` given to the run, then the variable TRIO_IO_BACKEND, then epoll.
TRIO_URING_OPTIONS gives the options to whoever asked for the ring by name, in the call or in the environment;
a `UringBackend` instance is used as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from .._ring.group import RingGroup

    Speculate: TypeAlias = bool | Literal["auto"]
    IOBackend: TypeAlias = "Literal['uring', 'auto', 'epoll'] | UringBackend | None"
    """What `io_backend` accepts."""

BACKEND_VARIABLE: Final = "TRIO_IO_BACKEND"
OPTIONS_VARIABLE: Final = "TRIO_URING_OPTIONS"

GROUP_OPTION: Final = "async_workers_cpuset"

_MAX_SQ_ENTRIES: Final = 32768
_MAX_CQ_ENTRIES: Final = 65536
_MAX_WORKERS: Final = 32768
_MAX_SPIN: Final = 1000

_SWITCH: Final[dict[str, Speculate]] = {"0": False, "1": True, "auto": "auto"}


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be {least} to {most}, not {value}")


def _cpus(text: str) -> frozenset[int]:
    # The shim is loaded for those who ask for a group.
    from .._ring.group import parse_cpus

    return parse_cpus(text)


class UringBackend:
    """A configured ring: `trio.run(main, io_backend=UringBackend(sq_entries=1024))`. A value: it cannot be changed.

    Attributes:
      sq_entries: submission queue entries, 2 to 32768; the kernel rounds up to a power of two
        (io_uring_setup(2)).
      cq_entries: completion queue entries, `sq_entries` to 65536, rounded up likewise; None for eight times
        `sq_entries`, at most 65536.
      speculate: whether a call first tries, on the calling core, the system call that cannot wait, and queues an entry only
        where that finds nothing at hand. "auto" tries where it nearly always succeeds and is the faster: data of a file that is
        in the page cache, a write to a pipe; and sends, receives, accepts and waits for a descriptor as long as one task has the
        loop for itself, so that there is no batch for its entry to go with. Receives that found nothing are tried less and less.
        True tries those always. False: every operation goes through the ring (docs/benchmarks.md). In a group
        "auto" is False.
      spin: microseconds, 0 to 1000, for which a run with one or two operations a tick looks for the next completion before it
        sleeps. Only while its sleeps are so short that this pays; other threads run meanwhile. 0 sleeps at once, always.
      max_workers: kernel workers at a time, 1 to 32768, for what files and paths have to wait for; None for as many as Trio's
        default thread limiter has tokens, at least 40, and whatever the kernel allows by itself. They are the thread's, which any
        other ring of that thread has part in. A FIFO that waits for its other end has one beside. In a group it is the
        group's `workers`.
      group: the `RingGroup` whose processors do the run's I/O; None for the run's own. In text, async_workers_cpuset with the
        list of the processors, and one group for all runs of the process.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: an option out of its range.
    """

    # Not an attrs class, which would take longer to be made than all the rest of this package that begins a run.
    __slots__ = ("cq_entries", "group", "max_workers", "speculate", "spin", "sq_entries")

    def __init__(
        self,
        *,
        sq_entries: int = 512,
        cq_entries: int | None = None,
        speculate: bool | Literal["auto"] = "auto",
        spin: int = 20,
        max_workers: int | None = None,
        group: RingGroup | None = None,
    ) -> None:
        _check_number("sq_entries", sq_entries, 2, _MAX_SQ_ENTRIES)
        if cq_entries is not None:
            _check_number("cq_entries", cq_entries, 2, _MAX_CQ_ENTRIES)
        if not isinstance(speculate, bool) and speculate != "auto":
            raise TypeError(f"speculate must be True, False or 'auto', not {speculate!r}")
        _check_number("spin", spin, 0, _MAX_SPIN)
        if max_workers is not None:
            _check_number("max_workers", max_workers, 1, _MAX_WORKERS)
        if group is not None:
            from .._ring.group import RingGroup

            if not isinstance(group, RingGroup):
                raise TypeError(f"group must be a trio_uring.RingGroup, not {group!r}")
            if speculate is True:
                raise ValueError(
                    "speculate is for rings without a group: in one, nothing is tried on the loop's own processor"
                )
        if cq_entries is not None and cq_entries < sq_entries:
            raise ValueError(f"cq_entries must be at least sq_entries ({sq_entries}), not {cq_entries}")
        self.sq_entries: Final = sq_entries
        self.cq_entries: Final = cq_entries
        self.speculate: Final = speculate
        self.spin: Final = spin
        self.max_workers: Final = max_workers
        self.group: Final = group

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):
            raise AttributeError(f"a UringBackend cannot be changed; make another one with another {name}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a UringBackend cannot be changed; {name} cannot be deleted")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, UringBackend) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"UringBackend({', '.join(f'{name}={getattr(self, name)!r}' for name, *_ in _IN_TEXT.values())})"

    @classmethod
    def from_text(cls, text: str) -> UringBackend:
        """The backend that "sq_entries=2,cq_entries=4" describes: the form of TRIO_URING_OPTIONS.

        What the text does not name keeps its default; so does everything where the text is empty.

        Raises:
          ValueError: an unknown or repeated name, or a bad value; the message lists the good ones.
        """
        good = ", ".join(f"{name}={values}" for name, (_, values, _parse) in _IN_TEXT.items())
        given: dict[str, Any] = {}
        # A processor after a comma is one more of the list that it follows.
        items = re.split(r",(?!\s*\d[\d\s-]*(?:,|$))", text) if text else ()
        for item in filter(None, map(str.strip, items)):
            name, equals, value = (part.strip() for part in item.partition("="))
            if name not in _IN_TEXT or not equals:
                raise ValueError(f"unknown option {item!r}; the options are {good}")
            option, _, parse = _IN_TEXT[name]
            if option in given:
                raise ValueError(f"{name} is given twice")
            try:
                given[option] = parse(value)
            except (ValueError, KeyError):
                raise ValueError(f"bad value in {item!r}; the options are {good}") from None
        if "group" in given:
            from .._ring.group import shared_group

            given["group"] = shared_group(given["group"])
        return cls(**given)


# What TRIO_URING_OPTIONS calls an option: the option, its good values in words, and what makes one of its text.
_IN_TEXT: Final[dict[str, tuple[str, str, Callable[[str], object]]]] = {
    "sq_entries": ("sq_entries", f"2 to {_MAX_SQ_ENTRIES}", int),
    "cq_entries": ("cq_entries", f"2 to {_MAX_CQ_ENTRIES}", int),
    "speculate": ("speculate", "0, 1 or auto", _SWITCH.__getitem__),
    "spin": ("spin", f"0 to {_MAX_SPIN}", int),
    "max_workers": ("max_workers", f"1 to {_MAX_WORKERS}", int),
    GROUP_OPTION: ("group", "processors such as 6-7 or 5,7", _cpus),
}


class Choice:
    """What a run shall use: `ring` is None for Trio's own backend; `required` is False where that may stand
    in.
    """

    __slots__ = ("required", "ring")

    def __init__(self, ring: UringBackend | None, required: bool) -> None:
        self.ring = ring
        self.required = required


def resolve(io_backend: object, environ: Mapping[str, str] = os.environ) -> Choice:
    """The choice that a call's `io_backend` (None where it gave none) and the environment make together.

    Raises:
      ValueError: a bad `io_backend`, TRIO_IO_BACKEND or TRIO_URING_OPTIONS; the message names it and lists
        the good values.
    """
    if isinstance(io_backend, UringBackend):
        return Choice(io_backend, required=True)
    source = "io_backend"
    if io_backend is None:
        source = BACKEND_VARIABLE
        io_backend = environ.get(BACKEND_VARIABLE) or "epoll"
    if io_backend == "epoll":
        return Choice(None, required=True)
    if io_backend not in ("uring", "auto"):
        instance = "" if source == BACKEND_VARIABLE else " or a trio_uring.UringBackend"
        raise ValueError(f"{source} must be 'uring', 'auto', 'epoll'{instance}, not {io_backend!r}")
    try:
        options = UringBackend.from_text(environ.get(OPTIONS_VARIABLE, ""))
    except ValueError as error:
        raise ValueError(f"{OPTIONS_VARIABLE}: {error}") from None
    return Choice(options, required=io_backend == "uring")
