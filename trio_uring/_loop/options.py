"""Layer 4: what `io_backend` and the environment may say, and which of them decides.

Knows the words that a user types, and the groups that rings are made in; knows nothing of Trio, nor how a choice is carried out.

Order of precedence: an `io_backend` given to the run, then the variable TRIO_IO_BACKEND, then epoll.
TRIO_URING_OPTIONS gives the options to whoever asked for the ring by name, in the call or in the environment;
a `UringBackend` instance is used as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import attrs

if TYPE_CHECKING:
    from .._ring.group import RingGroup

BACKEND_VARIABLE: Final = "TRIO_IO_BACKEND"
OPTIONS_VARIABLE: Final = "TRIO_URING_OPTIONS"

GROUP_OPTION: Final = "async_workers_cpuset"

_MAX_SQ_ENTRIES: Final = 32768
_MAX_CQ_ENTRIES: Final = 65536
_MAX_WORKERS: Final = 32768


def _number(default: int | None, least: int, most: int) -> Any:
    """An option that is a number; None, where it is the default, leaves it to the ring."""

    def check(_instance: object, attribute: attrs.Attribute[int | None], value: object) -> None:
        if value is None and default is None:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{attribute.name} must be an int, not {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{attribute.name} must be {least} to {most}, not {value}")

    values = f"{least} to {most}"
    return attrs.field(default=default, validator=check, metadata={"parse": int, "values": values})


Speculate = bool | Literal["auto"]


def _switch(default: Speculate) -> Any:
    """An option that is on, off or left to the ring; in text 0, 1 or auto."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, bool) and value != "auto":
            raise TypeError(f"{attribute.name} must be True, False or 'auto', not {value!r}")

    def parse(text: str) -> Speculate:
        values: dict[str, Speculate] = {"0": False, "1": True, "auto": "auto"}
        return values[text]

    return attrs.field(default=default, validator=check, metadata={"parse": parse, "values": "0, 1 or auto"})


def _group() -> Any:
    """The option that is a RingGroup; in text the list of its processors. The shim is loaded for those who ask for a group."""

    def check(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None:
            from .._ring.group import RingGroup

            if not isinstance(value, RingGroup):
                raise TypeError(f"group must be a trio_uring.RingGroup, not {value!r}")

    def parse(text: str) -> frozenset[int]:
        from .._ring.group import parse_cpus

        return parse_cpus(text)

    metadata = {"name": GROUP_OPTION, "parse": parse, "values": "processors such as 6-7 or 5,7"}
    return attrs.field(default=None, validator=check, metadata=metadata)


@attrs.frozen(kw_only=True)
class UringBackend:
    """A configured ring: `trio.run(main, io_backend=UringBackend(sq_entries=1024))`.

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

    sq_entries: int = _number(512, 2, _MAX_SQ_ENTRIES)
    cq_entries: int | None = _number(None, 2, _MAX_CQ_ENTRIES)
    speculate: bool | Literal["auto"] = _switch("auto")
    spin: int = _number(20, 0, 1000)
    max_workers: int | None = _number(None, 1, _MAX_WORKERS)
    group: RingGroup | None = _group()  # noqa: RUF009

    def __attrs_post_init__(self) -> None:
        if self.group is not None and self.speculate is True:
            raise ValueError(
                "speculate is for rings without a group: in one, nothing is tried on the loop's own processor"
            )
        if self.cq_entries is not None and self.cq_entries < self.sq_entries:
            raise ValueError(f"cq_entries must be at least sq_entries ({self.sq_entries}), not {self.cq_entries}")

    @classmethod
    def from_text(cls, text: str) -> UringBackend:
        """The backend that "sq_entries=2,cq_entries=4" describes: the form of TRIO_URING_OPTIONS.

        What the text does not name keeps its default; so does everything where the text is empty.

        Raises:
          ValueError: an unknown or repeated name, or a bad value; the message lists the good ones.
        """
        fields = {field.metadata.get("name", field.name): field for field in attrs.fields(cls)}
        good = ", ".join(f"{name}={field.metadata['values']}" for name, field in fields.items())
        given: dict[str, Any] = {}
        # A processor after a comma is one more of the list that it follows.
        for item in filter(None, map(str.strip, re.split(r",(?!\s*\d[\d\s-]*(?:,|$))", text))):
            name, equals, value = (part.strip() for part in item.partition("="))
            if name not in fields or not equals:
                raise ValueError(f"unknown option {item!r}; the options are {good}")
            if fields[name].name in given:
                raise ValueError(f"{name} is given twice")
            try:
                given[fields[name].name] = fields[name].metadata["parse"](value)
            except (ValueError, KeyError):
                raise ValueError(f"bad value in {item!r}; the options are {good}") from None
        if "group" in given:
            from .._ring.group import shared_group

            given["group"] = shared_group(given["group"])
        return cls(**given)


IOBackend = Literal["uring", "auto", "epoll"] | UringBackend | None
"""What `io_backend` accepts."""


class Choice(NamedTuple):
    """What a run shall use: `ring` is None for Trio's own backend; `required` is False where that may stand
    in.
    """

    ring: UringBackend | None
    required: bool


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
