"""A Trio or AnyIO newer than supported, one name at a time: prints what happened with each, as JSON. Started by test_upgrades.py.

Each name is renamed in a forked process of its own, before trio_uring is imported there; the version is one that nobody has. A
function of a module is renamed where it is used as well, as its authors would; a method where it is defined.
"""

from __future__ import annotations

import dis
import functools
import importlib
import importlib.metadata
import inspect
import json
import os
import sys
from types import FunctionType, ModuleType
from typing import Any

import trio

NEWER = "99.0"
AFTER = "_as_it_is_called_now"


def used() -> str:
    """The backend of a run, which waits for a socket. It calls nothing that may have another name."""

    async def main() -> str:
        left, right = trio.socket.socketpair()
        await trio.lowlevel.wait_writable(left)
        left.close()
        right.close()
        return str(trio.lowlevel.current_statistics().io_statistics.backend)

    run: Any = getattr(trio, "run", None) or getattr(trio, f"run{AFTER}")
    return str(run(main))


def loads(function: FunctionType, name: str) -> bool:
    return any(each.opname == "LOAD_GLOBAL" and each.argval == name for each in dis.get_instructions(function))


def renamed_in(module: ModuleType, name: str) -> None:
    """What uses the global name in that module uses the new one."""
    for function in [value for value in vars(module).values() if inspect.isfunction(value)]:
        function = inspect.unwrap(function)
        if isinstance(function, FunctionType) and loads(function, name):
            names = tuple(name + AFTER if each == name else each for each in function.__code__.co_names)
            function.__code__ = function.__code__.replace(co_names=names)


def rename(modules: list[str], name: str) -> None:
    *path, last = name.split(".")
    for module_name in modules:
        module = sys.modules[module_name]
        holder = functools.reduce(getattr, path, module)
        if last in vars(holder):
            setattr(holder, last + AFTER, vars(holder)[last])
            delattr(holder, last)
        if not path:
            renamed_in(module, last)


def outcome(modules: list[str], name: str) -> dict[str, Any]:
    """What a user sees where this name is another."""
    rename(modules, name)
    known = importlib.metadata.version
    vars(importlib.metadata)["version"] = lambda of: NEWER if of in ("trio", "anyio") else known(of)
    import trio_uring
    from trio_uring._entry import seams

    found: dict[str, Any] = {}
    for backend in ("", "epoll", "auto", "uring"):
        os.environ["TRIO_IO_BACKEND"] = backend
        try:
            found[backend] = used()
        except trio_uring.UringUnavailableError as error:
            found[backend] = [error.cause, error.remedy]
    found["replaced"] = [
        f"{row.modules[0]}.{row.name}"
        for row in (*seams.OPERATION_SEAMS, *(row for rows in seams.ANYIO_SEAMS for row in rows))
        if is_ours(row)
    ]
    return found


def is_ours(row: Any) -> bool:
    try:
        value = functools.reduce(getattr, row.name.split("."), sys.modules[row.modules[0]])
    except AttributeError:
        return False
    value = getattr(value, "fget", value)
    value = getattr(value, "func", value)
    defined = getattr(getattr(value, "__code__", None), "co_filename", None) or type(value).__module__
    return "trio_uring" in defined


def main() -> None:
    rows = json.load(sys.stdin)
    for module in {module for modules, _ in rows for module in modules}:
        importlib.import_module(module)
    for modules, name in rows:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                said = json.dumps(outcome(modules, name))
            except BaseException as error:
                said = json.dumps({"failed": repr(error)})
            with open(writer, "w") as pipe:
                pipe.write(said)
            os._exit(0)
        os.close(writer)
        with open(reader) as pipe:
            print(pipe.read(), flush=True)
        os.waitpid(child, 0)


main()
