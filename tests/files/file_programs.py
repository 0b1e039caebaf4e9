"""Random programs of file calls, run on the builtin `open` and on the ring: whatever both can show has to be equal.

Not only results and errors, and what is in the file at the end. Also what others see in between: the contents of the file, the
position of its descriptor, the state in which its owner finds the builtin object. Reads and writes are mixed without a seek,
lines are longer than every buffer, bytes cannot be decoded, several objects have one file open, and it is cut while they read.

    python tests/files/file_programs.py 20000 [SEED] [BACKEND]

The builtin object before CPython 3.12.2 reads past what is to be written (gh-115059); here it is made to act as the later one.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import trio

import trio_uring  # noqa: F401
from trio_uring._files import ahead
from trio_uring._ring.requests import ENGINE

MENDED = sys.version_info >= (3, 12, 2)

Call = tuple[Any, ...]

CODECS = (
    ("utf-8", "strict"), ("utf-8", "strict"), ("utf-8", "replace"), ("utf-8", "surrogateescape"), ("utf-8-sig", "strict"),
    ("utf-16", "strict"), ("utf-16-le", "replace"), ("utf-32", "strict"), ("latin-1", "strict"), ("ascii", "strict"),
    ("ascii", "backslashreplace"), ("shift_jis", "replace"), ("gb18030", "strict"), ("utf-7", "strict"),
)  # fmt: skip
WORDS = ("a", "xyz ", "\n", "\r", "\r\n", "b\n", "é", "日", "𝄞", "\x85", "one line\n", "two\r\n")
SIZES = (0, 1, 2, 3, 5, 20, 100, 4095, 4096, 4097, 8191, 8192, 8193, 20000, -1)


class Program(NamedTuple):
    """`calls` are (number of the object, whether its owner makes it, name, *arguments)."""

    content: bytes | None
    how: str
    mode: str
    options: dict[str, Any]
    chunk: int
    objects: int
    kept: bool
    calls: list[tuple[Any, ...]]


def _text(source: random.Random, codec: tuple[str, str], most: int) -> str:
    text = "".join(source.choice(WORDS) for _ in range(source.randrange(most)))
    if source.random() < 0.15:
        text += "long" * source.choice((1000, 2048, 2500, 5000)) + source.choice(("\n", ""))
    return text.encode(codec[0], "ignore").decode(codec[0], "ignore")


def _content(source: random.Random, codec: tuple[str, str]) -> bytes | None:
    if source.random() < 0.1:
        return None
    data = _text(source, codec, 40).encode(codec[0], "ignore")
    if source.random() < 0.3:
        line = "y" * source.choice((10, 79, 1000)) + source.choice(("\n", "\r\n", "\r"))
        data += (line * (source.choice((9000, 20000, 70000)) // len(line))).encode(codec[0])
    if source.random() < 0.15:
        at = source.randrange(len(data) + 1)
        data = data[:at] + source.choice((b"\xff", b"\xe6", b"\x80\x81", b"\0")) + data[at:]
    if source.random() < 0.1:
        data = data[:-1]
    return data


def random_program(seed: int) -> Program:
    source = random.Random(seed)
    is_text = source.random() < 0.65
    codec = source.choice(CODECS)
    content = _content(source, codec)
    kept = source.random() < 0.25 and content is not None
    mode = "r" if kept else source.choice(("r", "r+", "r+", "w+", "w", "a", "a+"))
    if content is None and mode[0] == "r":
        content = b""
    options: dict[str, Any] = {}
    if is_text:
        options = {
            "encoding": codec[0],
            "errors": codec[1],
            "newline": source.choice((None, None, "", "\n", "\r", "\r\n")),
        }
        options["buffering"] = source.choice((-1, -1, -1, 1, 2, 16, 5000))
    else:
        mode = f"{mode[0]}b{mode[1:]}"
        options["buffering"] = source.choice((-1, -1, -1, 0, 2, 16, 100, 5000))
    how = "path" if kept else source.choice(("trio", "trio", "trio", "path", "wrap"))
    objects = 1 if kept else source.choice((1, 1, 1, 2))

    def call() -> Call:
        size = source.choice(SIZES)
        return (*source.choice(reads if source.random() < reading else others)(size),)

    reads: list[Any] = [
        lambda n: ("read", n),
        lambda n: ("read",),
        lambda n: ("readline", n) if source.random() < 0.4 else ("readline",),
        lambda n: ("readlines", n),
        lambda n: ("iter", source.choice((1, 2, 5, 200))),
    ]
    others: list[Any] = [
        lambda n: ("flush",),
        lambda n: ("tell", source.randrange(3)),
        lambda n: ("tell", source.randrange(3)),
        lambda n: ("back", source.randrange(3)),
        lambda n: ("seek", 0, source.choice((0, 1, 2))),
        lambda n: ("disk",),
        lambda n: ("position",),
    ]
    if is_text:
        others += [lambda n: ("newlines",)]
        writes: list[Any] = [
            lambda n: ("write", _text(source, codec, 12)),
            lambda n: ("write", _text(source, codec, 3)),
            lambda n: ("writelines", [_text(source, codec, 4) for _ in range(source.randrange(3))]),
            lambda n: ("truncate",),
            lambda n: ("truncate", abs(n)),
        ]
    else:
        reads += [
            lambda n: ("read1", n),
            lambda n: ("read1",),
            lambda n: ("readinto", abs(n)),
            lambda n: ("readinto1", abs(n)),
            lambda n: ("peek",),
        ]
        others += [lambda n: ("seek", source.choice((n, 1, 50)), source.choice((0, 1, 2)))]
        writes = [
            lambda n: ("write", bytes(source.randrange(97, 123) for _ in range(source.choice((0, 1, 2, 20))))),
            lambda n: ("write", b"%d" % n * abs(n)),
            lambda n: ("writelines", [b"one\n" * source.randrange(3), b"2" * abs(n)]),
            lambda n: ("truncate",),
            lambda n: ("truncate", abs(n)),
        ]
    if not kept:
        others += writes * 2
        others.append(lambda n: ("cut", abs(n)))
    reading = source.choice((0.2, 0.5, 0.8))
    # Others use the builtin object of a file that was wrapped at any time, of another one from some time on.
    owner = 0.3 if how == "wrap" else source.choice((0, 0, 0, 0.1))
    calls = [
        (source.randrange(objects), source.random() < owner, *call()) for _ in range(source.choice((2, 3, 5, 10, 20)))
    ]
    chunk = source.choice((8192, 8192, 8192, 1, 2, 3, 7, 16, 100))
    return Program(content, how, mode, options, chunk, objects, kept, calls)


# ------------------------------------------------------------------ running them


def _mend(file: Any) -> None:
    """From now on it does what BufferedRandom.read1 does from CPython 3.12.2 on: what is to be written is written out before."""
    binary = getattr(file, "buffer", file)
    if MENDED or not isinstance(binary, io.BufferedRandom):
        return

    def read1(size: int = -1) -> bytes:
        if size != 0 and os.lseek(binary.fileno(), 0, os.SEEK_CUR) <= binary.tell():
            binary.flush()
        return io.BufferedRandom.read1(binary, size)

    binary.read1 = read1  # type: ignore[method-assign]


class Side:
    """A file object, the cookies that it has told, and how its methods are called."""

    def __init__(self, path: Path, file: Any, real: Any, own: bool) -> None:
        self.path = path
        self.own = own
        self.file = file
        self.real = real
        self.told: dict[int, Any] = {}

    async def outcome(self, name: str, args: list[Any], by_owner: bool) -> Any:
        """A result, or an error's class and text."""
        try:
            return await self._outcome(name, args, by_owner)
        except Exception as error:
            return type(error).__name__, str(error)

    async def _outcome(self, name: str, args: list[Any], by_owner: bool) -> Any:
        if name == "disk":
            return self.path.read_bytes()
        if name == "cut":
            return os.truncate(self.path, args[0])
        if name == "position":
            return os.lseek(self.real.fileno(), 0, os.SEEK_CUR)
        if name == "newlines":
            return self.file.newlines
        if name == "back":
            if args[0] not in self.told:
                return None
            name, args = "seek", [self.told[args[0]]]
        key = args.pop() if name == "tell" else None
        into = bytearray(args[0]) if name in ("readinto", "readinto1") else None
        if into is not None:
            args = [into]
        file = self.owned() if by_owner else self.file
        if file is self.real or self.released():
            _mend(self.real)
        if name == "iter":
            return await self._lines(file, args[0])
        result = getattr(file, name)(*args)
        if hasattr(result, "__await__"):
            result = await result
        if key is not None:
            self.told[key] = result
        return result, into

    async def seen(self) -> tuple[Any, Any]:
        """What somebody else sees after each call: the contents of the file, and the position of its descriptor."""
        return await self.outcome("disk", [], False), await self.outcome("position", [], False)

    def owned(self) -> Any:
        """The builtin object, as its owner has it, or as whoever reaches for it gets it."""
        return self.real if self.own else self.file.wrapped

    def released(self) -> bool:
        engine = self.file.__dict__.get(ENGINE)
        return engine is None or engine.released

    async def _lines(self, file: Any, count: int) -> list[Any]:
        lines: list[Any] = []
        if file is self.real:
            while len(lines) < count:
                if not (line := file.readline()):
                    break
                lines.append(line)
        else:
            async for line in file:
                lines.append(line)
                if len(lines) == count:
                    break
        return lines


async def difference(program: Program, folder: Path, builtin: bool = False) -> str | None:
    """What the builtin and the ring do not agree in, if anything; or the builtin and another one."""
    there, here = folder / "builtin", folder / "ring"
    settled = ahead.SETTLED
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(setattr, ahead, "SETTLED", settled)
        if program.kept:
            ahead.SETTLED = -1 << 62  # type: ignore[misc]
        for path in (there, here):
            path.unlink(missing_ok=True)
            if program.content is not None:
                path.write_bytes(program.content)
        pairs = []
        for _ in range(program.objects):
            oracle: Any = open(there, program.mode, **program.options)  # noqa: SIM115, ASYNC230
            if program.how == "wrap" or builtin:
                real: Any = open(here, program.mode, **program.options)  # noqa: SIM115, ASYNC230
                file: Any = real if builtin else trio.wrap_file(real)
            elif program.how == "path":
                file = await trio.Path(here).open(program.mode, **program.options)
            else:
                file = await trio.open_file(here, program.mode, **program.options)
            if not builtin:
                real = file._wrapped
            if hasattr(oracle, "encoding"):
                oracle._CHUNK_SIZE = real._CHUNK_SIZE = program.chunk
            pairs.append((Side(there, oracle, oracle, True), Side(here, file, real, program.how == "wrap" or builtin)))
        try:
            for number, (which, by_owner, name, *args) in enumerate(program.calls):
                oracle_side, ring_side = pairs[which]
                if name not in ("disk", "cut", "position", "iter", "back") and not hasattr(oracle_side.file, name):
                    continue
                expected = await oracle_side.outcome(name, list(args), by_owner)
                got = await ring_side.outcome(name, list(args), by_owner)
                if expected == got:
                    expected, got = await oracle_side.seen(), await ring_side.seen()
                if expected != got:
                    return f"call {number}, {(which, by_owner, name, *args)!r}: builtin {expected!r:.200}, ring {got!r:.200}"
        finally:
            for oracle_side, ring_side in pairs:
                with contextlib.suppress(Exception):
                    oracle_side.file.close()
                with contextlib.suppress(Exception):
                    await ring_side.file.aclose()
                with contextlib.suppress(Exception):
                    ring_side.real.close()
        expected, got = there.read_bytes(), here.read_bytes()
        return None if expected == got else f"contents: builtin {expected!r:.200}, ring {got!r:.200}"


async def shortened(program: Program, folder: Path) -> Program:
    """The same difference with as few calls as leaving out one after the other gets to."""
    number = 0
    while number < len(program.calls):
        shorter = program._replace(calls=program.calls[:number] + program.calls[number + 1 :])
        if await difference(shorter, folder) is not None:
            program = shorter
        else:
            number += 1
    return program


async def is_stable(program: Program, folder: Path) -> bool:
    """Whether the builtin agrees with itself. It does not where `tell` decodes what is behind the end of its memory, as far
    as the ratio of bytes to characters of the last chunk takes it.
    """
    for _ in range(20):
        if await difference(program, folder, builtin=True) is not None:
            return False
    return True


async def hunt(count: int, seed: int) -> list[tuple[int, Program, str]]:
    """Run so many programs; those that differ."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(seed, seed + count):
            program = random_program(number)
            if await difference(program, folder) is not None and await is_stable(program, folder):
                program = await shortened(program, folder)
                found.append((number, program, await difference(program, folder) or "only once"))
    return found


def main(count: str, seed: str = "0", backend: str = "uring") -> None:
    run: Any = trio.run
    found = run(hunt, int(count), int(seed), io_backend=backend)
    for number, program, words in found[:20]:
        print(
            f"{number}: {program._replace(content=(program.content or b'')[:60])}\n"
            f"    {len(program.content or b'')} bytes; {words}"
        )
    print(f"{sys.version.split()[0]}, {backend}: {count} programs, {len(found)} differ")
    sys.exit(bool(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
