"""`UringBackend`, TRIO_URING_OPTIONS, and who decides: the call or the environment. No Trio in it."""

from __future__ import annotations

from typing import Any

import pytest

import trio_uring
from trio_uring import UringBackend
from trio_uring._loop.options import Choice, resolve

DEFAULT = UringBackend()
GOOD = (
    "the options are sq_entries=2 to 32768, cq_entries=2 to 65536, speculate=0, 1 or auto, spin=0 to 1000, "
    "max_workers=1 to 32768, async_workers_cpuset=processors such as 6-7 or 5,7"
)


def test_the_defaults() -> None:
    assert (DEFAULT.sq_entries, DEFAULT.cq_entries, DEFAULT.speculate, DEFAULT.spin) == (512, None, "auto", 20)
    assert DEFAULT.max_workers is None


def test_a_backend_is_a_value() -> None:
    assert UringBackend(sq_entries=8) == UringBackend(sq_entries=8) != DEFAULT
    with pytest.raises(AttributeError):
        DEFAULT.sq_entries = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sq_entries": 1}, "sq_entries must be 2 to 32768, not 1"),
        ({"sq_entries": 32769}, "sq_entries must be 2 to 32768, not 32769"),
        ({"max_workers": 0}, "max_workers must be 1 to 32768, not 0"),
        ({"cq_entries": 65537}, "cq_entries must be 2 to 65536, not 65537"),
        ({"cq_entries": 511}, "cq_entries must be at least sq_entries (512), not 511"),
    ],
)
def test_a_size_out_of_range_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + sentence.replace("(", r"\(").replace(")", r"\)") + "$"):
        UringBackend(**options)


@pytest.mark.parametrize(
    "options", [{"sq_entries": "8"}, {"sq_entries": True}, {"sq_entries": None}, {"cq_entries": 8.0}]
)
def test_a_size_that_is_no_int_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(TypeError, match=f"^{name} must be an int, not "):
        UringBackend(**options)


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_a_switch_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^speculate must be True, False or 'auto', not "):
        UringBackend(speculate=value)


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("", DEFAULT),
        ("sq_entries=2,cq_entries=4", UringBackend(sq_entries=2, cq_entries=4)),
        (" cq_entries = 1024 , ", UringBackend(cq_entries=1024)),
        ("speculate=1", UringBackend(speculate=True)),
        ("speculate=0", UringBackend(speculate=False)),
        ("speculate=auto", DEFAULT),
        ("max_workers=64", UringBackend(max_workers=64)),
    ],
)
def test_from_text(text: str, backend: UringBackend) -> None:
    assert UringBackend.from_text(text) == backend


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("entries=2", "unknown option 'entries=2'; "),
        ("sq_entries", "unknown option 'sq_entries'; "),
        ("sq_entries=many", "bad value in 'sq_entries=many'; "),
        ("sq_entries=", "bad value in 'sq_entries='; "),
        ("speculate=yes", "bad value in 'speculate=yes'; "),
    ],
)
def test_text_that_means_nothing_is_refused_with_the_list_of_what_does(text: str, beginning: str) -> None:
    with pytest.raises(ValueError, match="the options are ") as caught:
        UringBackend.from_text(text)
    assert str(caught.value) == beginning + GOOD


def test_text_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sq_entries is given twice$"):
        UringBackend.from_text("sq_entries=2,sq_entries=2")


SMALL = UringBackend(sq_entries=2, cq_entries=4)
SMALL_TEXT = {"TRIO_URING_OPTIONS": "sq_entries=2,cq_entries=4"}


@pytest.mark.parametrize(
    ("io_backend", "environ", "choice"),
    [
        (None, {}, Choice(None, True)),
        (None, {"TRIO_IO_BACKEND": ""}, Choice(None, True)),
        (None, {"TRIO_IO_BACKEND": "epoll"}, Choice(None, True)),
        (None, {"TRIO_IO_BACKEND": "uring"}, Choice(DEFAULT, True)),
        (None, {"TRIO_IO_BACKEND": "auto"}, Choice(DEFAULT, False)),
        (None, {"TRIO_IO_BACKEND": "auto", **SMALL_TEXT}, Choice(SMALL, False)),
        (None, SMALL_TEXT, Choice(None, True)),
        ("epoll", {"TRIO_IO_BACKEND": "uring"}, Choice(None, True)),
        ("uring", {"TRIO_IO_BACKEND": "epoll", **SMALL_TEXT}, Choice(SMALL, True)),
        ("auto", {"TRIO_IO_BACKEND": "uring"}, Choice(DEFAULT, False)),
        ("uring", {"TRIO_IO_BACKEND": "nonsense"}, Choice(DEFAULT, True)),
        (UringBackend(sq_entries=8), SMALL_TEXT, Choice(UringBackend(sq_entries=8), True)),
    ],
)
def test_who_decides(io_backend: object, environ: dict[str, str], choice: Choice) -> None:
    found = resolve(io_backend, environ)
    assert (found.ring, found.required) == (choice.ring, choice.required)


@pytest.mark.parametrize("io_backend", ["", "URING", "iocp", True, 1, b"uring", UringBackend])
def test_any_other_value_is_refused(io_backend: object) -> None:
    with pytest.raises(ValueError, match="io_backend") as caught:
        resolve(io_backend, {})
    assert str(caught.value) == (
        f"io_backend must be 'uring', 'auto', 'epoll' or a trio_uring.UringBackend, not {io_backend!r}"
    )


def test_any_other_value_of_the_variable_is_refused_in_its_name() -> None:
    with pytest.raises(ValueError, match=r"^TRIO_IO_BACKEND must be 'uring', 'auto', 'epoll', not 'io_uring'$"):
        resolve(None, {"TRIO_IO_BACKEND": "io_uring"})


@pytest.mark.parametrize("io_backend", ["uring", "auto"])
def test_bad_options_are_refused_in_the_name_of_their_variable(io_backend: str) -> None:
    with pytest.raises(ValueError, match=r"^TRIO_URING_OPTIONS: sq_entries must be 2 to 32768, not 0$"):
        resolve(io_backend, {"TRIO_URING_OPTIONS": "sq_entries=0"})


def test_the_public_names() -> None:
    assert sorted(trio_uring.__all__) == [
        "OperationSnapshot",
        "PoolReader",
        "PooledRing",
        "RemoteTraceback",
        "RingGroup",
        "RingMonitor",
        "RingPool",
        "RingRates",
        "RingSnapshot",
        "Shard",
        "ShardDiedError",
        "StatxResult",
        "TaskSnapshot",
        "UringBackend",
        "UringStatistics",
        "UringUnavailableError",
        "__version__",
        "aligned_buffer",
        "copy_file",
        "dump",
        "dump_on_signal",
        "fallocate",
        "fdatasync",
        "fsync",
        "read_at",
        "read_files",
        "read_many",
        "readinto_at",
        "readinto_many",
        "run",
        "run_shards",
        "sendfile",
        "shards",
        "snapshot",
        "splice",
        "start_guest_run",
        "statx",
        "write_at",
        "writev_at",
    ]
    assert all(getattr(trio_uring, name) is not None for name in trio_uring.__all__)
    assert set(trio_uring.__all__) <= set(dir(trio_uring))
    with pytest.raises(AttributeError, match=r"^module 'trio_uring' has no attribute 'Uring'$"):
        trio_uring.Uring  # noqa: B018
