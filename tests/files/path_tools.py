"""What the tests of paths share: one of everything in a tree, calls of every method, and what can be seen of an outcome.

Knows pathlib; knows nothing of Trio, AnyIO or the ring.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import stat as modes
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

NON_UTF8 = os.fsdecode(b"\xff\xfe")
NAMES = (
    *("file", "empty", "dir", "dir/inner", "full", "link", "dirlink", "dangling", "loop", "file/below", "missing"),
    *("missing/below/this", "fifo", "socket", "dirlink/inner", "loop/below", "dir/../file", "", ".", "full/.."),
    *("x" * 300, "d/" * 2100, NON_UTF8, "nul\0name", "lone\ud800", "häß"),
)
# Outside of the tree, and so for methods that change nothing: root could remove them.
ABSOLUTE = ("/", "/dev/null", "/dev/full", "/proc/self/nothing", "/proc/version")
HARMLESS = ("stat", "lstat", "exists", "is_", "samefile", "read_")


def build(top: pathlib.Path) -> None:
    """One of everything, in an empty directory."""
    (top / "file").write_bytes(b"one\r\ntwo\nthr\xc3\xa9e")
    (top / "empty").touch()
    (top / "dir").mkdir()
    (top / "full").mkdir()
    (top / "full" / "inner").write_bytes(b"inside")
    (top / "link").symlink_to("file")
    (top / "dirlink").symlink_to("full")
    (top / "dangling").symlink_to("nowhere")
    (top / "loop").symlink_to("loop")
    (top / NON_UTF8).write_bytes(b"named in no encoding")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket" if top == pathlib.Path() else str(top / "socket"))


def tree() -> dict[str, object]:
    """What stands in the current directory: kinds, permissions, links and contents."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk("."):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            what: object = None
            if modes.S_ISLNK(status.st_mode):
                what = os.readlink(path)
            elif modes.S_ISREG(status.st_mode):
                what = pathlib.Path(path).read_bytes()
            found[path] = status.st_mode, status.st_nlink if modes.S_ISREG(status.st_mode) else 0, what
    return found


class Call(NamedTuple):
    """A method and its arguments."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012


class Own(str):
    """A name of a class of its own, which only the original knows what to make of."""


CALLS = [
    *(Call(name) for name in ("exists", "is_dir", "is_file", "is_symlink", "is_socket", "is_fifo")),
    *(Call(name) for name in ("is_block_device", "is_char_device", "rmdir", "unlink", "mkdir", "touch")),
    *(Call(name) for name in ("read_bytes", "read_text")),
    *([Call("exists", kwargs={"follow_symlinks": False})] if sys.version_info >= (3, 12) else []),
    *([Call("is_dir", kwargs={"follow_symlinks": False})] if sys.version_info >= (3, 13) else []),
    *([Call("is_file", kwargs={"follow_symlinks": False})] if sys.version_info >= (3, 13) else []),
    Call("unlink", (True,)),
    Call("unlink", kwargs={"missing_ok": True}),
    Call("mkdir", (0o700,)),
    Call("mkdir", (-1,)),
    Call("mkdir", (1 << 40,)),
    Call("mkdir", (0o711, True)),
    Call("mkdir", kwargs={"exist_ok": True}),
    Call("mkdir", kwargs={"exist_ok": 1, "parents": []}),
    Call("mkdir", kwargs={"parents": True, "exist_ok": True}),
    Call("touch", (0o600,)),
    Call("touch", kwargs={"exist_ok": False}),
    *(
        Call(name, (target,))
        for name in ("rename", "replace", "symlink_to", "hardlink_to", "samefile")
        for target in ("new", "file", "dir", "full", "link", "", "missing/new", pathlib.PurePosixPath("new"))
    ),
    *(Call(name, (pathlib.Path("file"),)) for name in ("rename", "samefile", "symlink_to")),
    *(
        Call(name, (target,))
        for name in ("rename", "symlink_to", "samefile")
        for target in (b"new", 3, None, Own("new"))
    ),
    *(
        Call(name, (target,))
        for name in ("rename", "hardlink_to", "symlink_to")
        for target in ("a\0b", "\ud800", ".//file")
    ),
    Call("symlink_to", ("new", True)),
    *(Call("samefile", (other,)) for other in ("dir//../dir/", "a\0b", "missing//", ".")),
    Call("read_text", ("utf-8",)),
    Call("read_text", ("ascii",)),
    Call("read_text", ("ascii", "replace")),
    Call("read_text", kwargs={"encoding": "utf-16"}),
    Call("read_text", kwargs={"encoding": "no such encoding"}),
    Call("read_text", kwargs={"errors": "no such handler", "encoding": "ascii"}),
    Call("read_text", kwargs={"encoding": 5}),
    *([Call("read_text", ("latin-1", None, "\r\n"))] if sys.version_info >= (3, 13) else []),
    *([Call("read_text", ("latin-1", None, "x"))] if sys.version_info >= (3, 13) else []),
    *(
        Call("write_bytes", (data,))
        for data in (b"", b"data", bytearray(b"x" * 70000), memoryview(b"abcd")[::2], "text")
    ),
    Call("write_bytes", (memoryview(b"abcdefgh").cast("I"),)),
    *(Call("write_text", (data,)) for data in ("", "a\nb", b"bytes", Own("own"))),
    Call("write_text", ("thrée\n", "utf-16", None, "\r\n")),
    Call("write_text", ("thrée\n", "utf-8-sig")),
    Call("write_text", ("thrée\n", "ascii")),
    Call("write_text", ("thrée\n", "ascii", "xmlcharrefreplace")),
    Call("write_text", ("x", "no such encoding")),
    Call("write_text", kwargs={"data": "x", "newline": "x"}),
    *(Call(name, (1, 2, 3, 4, 5, 6)) for name in ("stat", "rename", "write_text")),
    *(Call(name, kwargs={"no_such": 1}) for name in ("exists", "mkdir", "read_text", "touch")),
    *(Call(name) for name in ("rename", "samefile", "write_bytes", "symlink_to")),
    Call("mkdir", (0o777,), {"mode": 0o777}),
]


def endless(call: Call, name: str) -> bool:
    """Whether pathlib itself would wait for somebody else, or for ever."""
    if name == "fifo":
        return call.method.startswith(("read_", "write_")) or call == Call("touch", kwargs={"exist_ok": False})
    return name == "/dev/full" and call.method.startswith("read_")


def outcome(result: object) -> object:
    """A result without the class of the path in it."""
    return str(result) if isinstance(result, pathlib.PurePath) else (result.__class__, result)


def failure(error: BaseException) -> object:
    """What can be seen of an exception."""
    names = (getattr(error, name, None) for name in ("errno", "filename", "filename2"))
    return error.__class__, str(error), *names


def oracle(call: Call, name: str) -> object:
    """What pathlib does."""
    try:
        return outcome(getattr(pathlib.Path(name), call.method)(*call.args, **call.kwargs))
    except Exception as error:
        return failure(error)


def names_for(call: Call) -> list[str]:
    """The names that a call is tried with."""
    names = (*NAMES, *ABSOLUTE) if call.method.startswith(HARMLESS) else NAMES
    return [name for name in names if not endless(call, name)]


@contextlib.contextmanager
def inside(top: pathlib.Path) -> Iterator[None]:
    """In that directory: names are relative, so that errors read the same in any tree."""
    before = os.getcwd()
    os.chdir(top)
    try:
        yield
    finally:
        os.chdir(before)


class Twins:
    """Two trees alike, for an oracle and for what is held against it."""

    def __init__(self, top: pathlib.Path) -> None:
        self._top = top
        self._count = 0
        self.renew()

    def renew(self) -> None:
        """New trees, after a call that changed them."""
        self._count += 1
        self.first, self.second = (self._top / f"{self._count}-{which}" for which in ("first", "second"))
        for top in self.first, self.second:
            top.mkdir()
            with inside(top):
                build(pathlib.Path())
                self.built = tree()
