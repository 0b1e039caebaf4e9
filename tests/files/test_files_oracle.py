"""Random sequences of file operations, on the ring and on the builtin file: same results, same errors, same file.

Knows the public interface of trio and the builtin `open`, which is the oracle. Files that
`trio.open_file` opens are served by an engine until somebody reaches for `wrapped`; wrapped ones the test goes on using itself.
More of them, and what others see meanwhile, are in file_programs.py.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BINARY_MODES = ("rb", "wb", "ab", "xb", "r+b", "w+b", "a+b", "x+b")
TEXT_MODES = ("r", "w", "a", "r+", "w+", "a+")
BUFFERINGS = (-1, 0, 2, 16, 100, 5000)

Call = tuple[Any, ...]

# What may differ in length: as much as is at hand, which is for the buffering to decide.
SOME = ("read1", "readinto1")

run: Any = trio.run


def builtin(*arguments: Any) -> Any:
    return open(*arguments)


def outcome_of(call: Any) -> Any:
    """A result, or an error's class and text."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error).partition(": ")[0]


async def async_outcome_of(call: Any) -> Any:
    try:
        return await call()
    except Exception as error:
        return type(error).__name__, str(error).partition(": ")[0]


def argument(call: Call) -> list[Any]:
    """Fresh arguments for one side: what is read into must not be shared."""
    return [bytearray(each) if type(each) is bytearray else each for each in call[1:]]


sizes = st.one_of(st.integers(-2, 40), st.integers(0, 12000), st.just(None))
data = st.one_of(st.binary(max_size=30), st.integers(1, 9000).map(lambda size: bytes(range(256)) * (size // 256 + 1)))
memory = st.integers(0, 9000).map(bytearray)
BINARY_CALLS: st.SearchStrategy[Call] = st.one_of(
    st.tuples(st.sampled_from(("read", "read1", "readline", "readlines")), sizes),
    st.tuples(st.sampled_from(("read", "readall", "read1", "readline", "readlines", "flush", "tell", "truncate"))),
    st.tuples(st.sampled_from(("readinto", "readinto1")), memory),
    st.tuples(st.just("peek"), st.integers(0, 50)),
    st.tuples(st.just("write"), st.one_of(data, data.map(bytearray), data.map(lambda some: memoryview(some)))),
    st.tuples(st.just("writelines"), st.lists(data, max_size=4)),
    st.tuples(st.just("seek"), st.integers(-10, 13000)),
    st.tuples(st.just("seek"), st.integers(-60, 60), st.sampled_from((0, 1, 2))),
    st.tuples(st.just("truncate"), st.one_of(st.none(), st.integers(0, 13000))),
    st.sampled_from(
        [
            ("read", "many"), ("read", 1 << 70), ("read", 1, 2), ("readline", 1.5), ("readinto", b"constant"), ("readinto",),
            ("write", "text"), ("write", 5), ("write",), ("writelines", ["text"]), ("writelines", 5), ("seek",),
            ("seek", 0, 9), ("seek", "x"), ("seek", None), ("seek", 1 << 70), ("truncate", "x"), ("truncate", -1),
            ("truncate", 1 << 70), ("peek", "x"), ("flush", 1), ("tell", 1),
        ]
    ),
)  # fmt: skip

letters = st.text("ab\u00e9\u20ac\U0001f600\n\r x", max_size=30)
characters = st.one_of(letters, st.integers(1, 300).map(lambda count: "line \u00e9nd\n" * count))
TEXT_CALLS: st.SearchStrategy[Call] = st.one_of(
    st.tuples(st.sampled_from(("read", "readline", "readlines")), st.one_of(st.integers(-2, 60), st.integers(0, 9000))),
    st.tuples(st.sampled_from(("read", "readline", "readlines", "flush", "tell", "truncate"))),
    st.tuples(st.just("write"), characters),
    st.tuples(st.just("writelines"), st.lists(characters, max_size=4)),
    st.tuples(st.just("seek"), st.just(0), st.sampled_from((0, 1, 2))),
    st.tuples(st.just("seek back")),
    st.sampled_from(
        [("read", "x"), ("write", b"x"), ("write", 5), ("seek", -1), ("seek", 5, 1), ("seek", 0, 9), ("readline", "x")]
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Any:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class Pair:
    """The oracle and our file; nobody else holds either."""

    def __init__(self, oracle: Any, file: Any) -> None:
        self.oracle = oracle
        self.file = file


def seen(call: Call, file: Any, result: Any) -> Any:
    """A result as far as it must be equal. Cookies of the same place differ; what is read from there tells."""
    cookie = call[0] in ("tell", "seek") and hasattr(file, "encoding")
    return type(result) if cookie and type(result) is int else result


async def compare(oracle: Any, file: Any, call: Call) -> Any:
    """One call on both. Answers the result."""
    name = call[0]
    if not hasattr(oracle, name):
        assert not hasattr(file, name)
        return None
    if name in SOME and oracle.writable():
        # BufferedRandom's do not see what was written before, and is not yet in the file.
        assert await async_outcome_of(file.flush) == outcome_of(oracle.flush)
    given, expected_into = argument(call), argument(call)
    expected = outcome_of(lambda: getattr(oracle, name)(*expected_into))
    got = await async_outcome_of(lambda: getattr(file, name)(*given))
    if name == "peek" and type(expected) is bytes:
        assert type(got) is bytes
        shorter = min(len(got), len(expected))
        assert (got[:shorter], bool(got)) == (expected[:shorter], bool(expected))
    elif name in SOME and type(got) is type(expected) is not tuple:
        if name == "readinto1":
            got, expected = given[0][:got], expected_into[0][:expected]
        shorter = min(len(got), len(expected))
        assert (got[:shorter], bool(got)) == (expected[:shorter], bool(expected))
        if len(got) != len(expected):
            there = oracle.tell() - len(expected) + shorter
            oracle.seek(there)
            await file.seek(there)
    else:
        assert (seen(call, oracle, got), given) == (seen(call, oracle, expected), expected_into), call
    return got


# More of them, and other ones each time, for who hunts: TRIO_URING_EXAMPLES=5000 pytest tests/files/test_files_oracle.py
EXAMPLES = os.environ.get("TRIO_URING_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 100),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    report_multiple_bugs=False,
)


@SETTINGS
@given(
    mode=st.sampled_from(BINARY_MODES),
    buffering=st.sampled_from(BUFFERINGS),
    content=st.one_of(st.none(), data),
    calls=st.lists(BINARY_CALLS, max_size=25),
    closing=st.sampled_from(("aclose", "wrapped", "detach", "drop")),
)
def test_binary_files_are_as_the_builtin(
    folder: Path, mode: str, buffering: int, content: bytes | None, calls: list[Call], closing: str
) -> None:
    async def main() -> None:
        theirs, ours = prepared(folder, content)
        oracle = outcome_of(lambda: builtin(theirs, mode, buffering))
        file = await async_outcome_of(partial(trio.open_file, ours, mode, buffering))
        if type(oracle) is tuple:
            assert file == oracle
            return
        pair = Pair(oracle, file)
        del oracle, file
        attributes_agree(pair)
        for call in calls:
            await compare(pair.oracle, pair.file, call)
        await ended(pair, closing)
        assert ours.read_bytes() == theirs.read_bytes()

    run(main, io_backend="uring")


def prepared(folder: Path, content: bytes | None) -> tuple[Path, Path]:
    theirs, ours = folder / "theirs", folder / "ours"
    for path in (theirs, ours):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
    return theirs, ours


def attributes_agree(pair: Pair) -> None:
    oracle, file = pair.oracle, pair.file
    for name in ("closed", "mode", "encoding", "errors", "newlines", "line_buffering", "closefd"):
        assert getattr(file, name, "none") == getattr(oracle, name, "none"), name
    for name in ("readable", "writable", "seekable", "isatty"):
        assert getattr(file, name)() == getattr(oracle, name)(), name


async def ended(pair: Pair, closing: str) -> None:
    """The end, in one of the ways that an end comes; the builtin object must be where the oracle is."""
    if closing == "drop":
        pair.oracle.close()
        with pytest.warns(ResourceWarning, match="unclosed file"):
            del pair.file
        return
    oracle, file = pair.oracle, pair.file
    if closing == "wrapped":
        if not hasattr(oracle, "encoding"):
            assert outcome_of(file.wrapped.tell) == outcome_of(oracle.tell)
        assert outcome_of(file.wrapped.flush) == outcome_of(oracle.flush)
        assert outcome_of(lambda: file.wrapped.read(7)) == outcome_of(lambda: oracle.read(7))
        await compare(oracle, file, ("read", 10))
    elif closing == "detach" and hasattr(oracle, "detach"):
        oracle, file = oracle.detach(), await file.detach()
    oracle.close()
    await file.aclose()
    await file.aclose()
    assert file.closed
    await compare(oracle, file, ("read",))
    await compare(oracle, file, ("tell",))


def settled(calls: list[tuple[bool, Call]]) -> list[tuple[bool, Call]]:
    """With what the builtin needs between reading and writing.

    It writes where the binary file is, which need not be where the text is; and it reads past what was written, since
    BufferedRandom.read1 does.
    """
    result: list[tuple[bool, Call]] = []
    for direct, call in calls:
        if result and result[-1][1][0].startswith("write"):
            result.append((direct, ("flush",)))
        elif call[0].startswith("write"):
            result.append((direct, ("seek", 0, 2)))
        result.append((direct, call))
    return result


@SETTINGS
@given(
    mode=st.sampled_from(TEXT_MODES),
    buffering=st.sampled_from((-1, 1, 16)),
    encoding=st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-16-le", "utf-32")),
    newline=st.sampled_from((None, "", "\n", "\r", "\r\n")),
    content=characters,
    calls=st.lists(TEXT_CALLS, max_size=20),
    closing=st.sampled_from(("aclose", "wrapped", "detach", "drop")),
)
def test_text_files_are_as_the_builtin(
    folder: Path, mode: str, buffering: int, encoding: str, newline: str | None, content: str, calls: list[Call], closing: str
) -> None:  # fmt: skip
    async def main() -> None:
        theirs, ours = prepared(folder, content.encode(encoding, "replace"))
        arguments = mode, buffering, encoding, "replace", newline
        pair = Pair(builtin(theirs, *arguments), await trio.open_file(ours, *arguments))
        attributes_agree(pair)
        told = 0
        for _, call in settled([(False, call) for call in calls]):
            if call[0].startswith("read") and not pair.oracle.readable():
                continue  # refused in test_open_files.py; the builtin disables `tell` by it
            await compare(pair.oracle, pair.file, ("seek", told) if call[0] == "seek back" else call)
            if call[0] == "tell":
                told = outcome_of(pair.oracle.tell)
        await ended(pair, closing)
        assert ours.read_bytes() == theirs.read_bytes()

    run(main, io_backend="uring")


@SETTINGS
@given(
    mode=st.sampled_from(BINARY_MODES),
    buffering=st.sampled_from(BUFFERINGS),
    content=st.one_of(st.none(), data),
    calls=st.lists(st.tuples(st.booleans(), BINARY_CALLS), max_size=25),
)
def test_a_wrapped_binary_file_and_its_owner_agree(
    folder: Path, mode: str, buffering: int, content: bytes | None, calls: list[tuple[bool, Call]]
) -> None:
    async def main() -> None:
        theirs, ours = prepared(folder, content)
        try:
            oracle, owned = builtin(theirs, mode, buffering), builtin(ours, mode, buffering)
        except OSError:
            return
        with oracle, owned:
            file = trio.wrap_file(owned)
            for direct, call in calls:
                either = Directly(owned) if direct else file
                await compare(oracle, either, call)
                if mode.startswith("a"):  # what is appended is not where the position was, once it is in the file
                    await compare(oracle, either, ("flush",))
                assert owned.tell() == oracle.tell()
        assert ours.read_bytes() == theirs.read_bytes()

    run(main, io_backend="uring")


@SETTINGS
@given(
    mode=st.sampled_from(("r", "r+", "w+", "a+")),
    encoding=st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "latin-1")),
    newline=st.sampled_from((None, "", "\n", "\r", "\r\n")),
    content=characters,
    calls=st.lists(st.tuples(st.booleans(), TEXT_CALLS), max_size=20),
)
def test_a_wrapped_text_file_and_its_owner_agree(
    folder: Path, mode: str, encoding: str, newline: str | None, content: str, calls: list[tuple[bool, Call]]
) -> None:
    async def main() -> None:
        if mode != "r" and encoding in ("utf-8-sig", "utf-16"):
            # The builtin decides by the way it got to the beginning whether a mark is to be written there.
            return
        theirs, ours = prepared(folder, content.encode(encoding, "replace"))
        oracle = builtin(theirs, mode, -1, encoding, "replace", newline)
        owned = builtin(ours, mode, -1, encoding, "replace", newline)
        with oracle, owned:
            file = trio.wrap_file(owned)
            told = 0, 0
            for direct, call in settled(calls):
                either = Directly(owned) if direct else file
                if call[0] == "readlines" and call[1:]:
                    continue  # an iteration left in the middle, after which the builtin tells no position, or a wrong one
                if call[0] == "tell":
                    # Cookies of the same place may differ: those of ours start where the file was handed back.
                    told = outcome_of(oracle.tell), await async_outcome_of(either.tell)
                    assert type(told[0]) is type(told[1])
                elif call[0] == "seek back" and type(told[0]) is int:
                    oracle.seek(told[0])
                    await either.seek(told[1])
                else:
                    await compare(oracle, either, call)
        assert ours.read_bytes() == theirs.read_bytes()

    run(main, io_backend="uring")


class Directly:
    """The owner's own use of the file, in the shape of a wrapper."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._file, name)

        async def call(*arguments: Any) -> Any:
            return method(*arguments)

        return call
