"""Layer 4, the seams: every name of Trio and AnyIO that is replaced, in one table, and the only code that
replaces any.

Knows private names of other projects and how to tell whether they still mean what they meant; knows nothing
of rings beyond the name of the class that serves a run.

How a run comes to its I/O manager
==================================
`setup_runner`, which every run of Trio goes through, calls the global name `TheIOManager`. What stands there
now is `_IOManagers`: it makes the manager that was asked for. `trio.run` and `trio.lowlevel.start_guest_run`
leave the choice of their caller in `_asked`, where the next call of `TheIOManager` on the same thread takes
it. Where there is none (somebody kept a `trio.run` from before this module was imported), the environment
decides, as it does for a caller that gives no `io_backend`.

Whatever may go wrong goes wrong before Trio has made anything: the error comes out of `trio.run`, and the
next run works.

AnyIO
=====
AnyIO has no I/O of its own on Trio, but for files, which it sends to threads itself. `ANYIO_SEAMS` says what is replaced there,
once there is a ring and AnyIO has been imported, whichever comes last. Nothing here imports it. Rows that do not fit
are left out, and AnyIO then goes its own way; nothing else depends on them.

What does not fit
=================
Each row says what must be true of the Trio that is installed. Where that fails the row is left out, and the
ring with it: "uring" raises and "auto" means epoll. Importing this module does not fail, and a run on epoll
goes through Trio's own code alone.

Lazy imports
============
A module of Trio's that has been imported need not have run: where imports are lazy (PEP 810, CPython 3.15) names are made when
they are used, and its own imports are as late. So a name is looked for by importing its home, and is always asked for as an
attribute of the module, which has it made.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import inspect
import logging
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from .._loop.options import Choice, resolve
from .._ring.availability import UringUnavailableError
from .after_trio import when_imported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    import outcome
    from typing_extensions import TypeVarTuple, Unpack

    from .._loop.options import IOBackend

    PosArgT = TypeVarTuple("PosArgT")
    RetT = TypeVar("RetT")

SUPPORTED_TRIO: Final = "0.31 to 0.35"

_log = logging.getLogger("trio_uring")


class _Asked(threading.local):
    choice: Choice | None = None


_asked = _Asked()


def choose(io_backend: object) -> Choice:
    """`resolve`, and whether the installed Trio allows it.

    Raises:
      ValueError: see `resolve`.
      UringUnavailableError: the ring is required and the installed Trio does not fit.
    """
    choice = resolve(io_backend)
    if choice.ring is None or not _mismatches:
        return choice
    misfit = UringUnavailableError(
        errno.ENOSYS,
        f"Trio {_version('trio')} does not fit ({'; '.join(_mismatches)})",
        f"install a supported Trio, which is {SUPPORTED_TRIO}",
    )
    if choice.required:
        raise misfit
    return _epoll_instead(misfit)


def _version(distribution: str) -> str:
    """The installed version. What finds it takes longer to import than all the rest that begins a run, so only an error does."""
    from importlib.metadata import version

    return version(distribution)


def _epoll_instead(reason: UringUnavailableError) -> Choice:
    _log.info("io_backend 'auto' takes epoll: %s", reason)
    return Choice(None, required=True)


class _IOManagers:
    """What `TheIOManager` is now: calling it makes the manager of the run that is being set up.

    Trio's own tests also reach through the name, to patch methods of the class that their runs use. So
    attributes are those of the class that the environment asks for; under "auto", the ring's.
    """

    __slots__ = ("_trios_own",)

    def __init__(self, trios_own: type) -> None:
        object.__setattr__(self, "_trios_own", trios_own)

    def __call__(self) -> Any:
        choice, _asked.choice = _asked.choice, None
        if choice is None:
            choice = choose(None)
        if choice.ring is not None:
            try:
                manager = _ring_manager()(choice.ring)
            except UringUnavailableError as error:
                if choice.required:
                    raise
                _epoll_instead(error)
            else:
                _replace_operations()
                _log.debug(
                    "ring %d made: %d submission and %d completion queue entries, asked for by %s",
                    *(manager.ring.fileno(), manager.ring.sq_entries, manager.ring.cq_entries, choice.ring),
                )
                return manager
        return self._trios_own()

    def _class(self) -> type:
        return self._trios_own if choose(None).ring is None else _ring_manager()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._class(), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._class(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._class(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, (self._trios_own, _ring_manager()))


@functools.cache  # not looked up again: there may be another Trio in sys.modules by then (Trio's test_trio_import)
def _ring_manager() -> type:
    from .._loop.manager import UringIOManager

    return UringIOManager


def _loaded(module: str, name: str) -> Any:
    """What has that name in that module of ours. None where it cannot be loaded: no descriptor is left to open it with, or
    chroot(2) has taken it out of sight."""
    try:
        return getattr(importlib.import_module(f"trio_uring.{module}"), name)
    except (ImportError, OSError) as error:
        _log.info("trio_uring.%s cannot be loaded, and Trio's own way is taken: %s", module, error)
        return None


class AtFirstCall:
    """A replacement that a module of ours makes of an original when it is first called.

    Few programs use all that the ring serves, and loading it takes longer than all the rest that begins a run.

    Attributes:
      module: which, below trio_uring.
      name: of the function there that makes it.
    """

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def standing_in(self, original: Any, put: Callable[[Any, Any], None]) -> Any:
        """What stands there until then. It looks as the original does; `put(it, new)` puts the new one in its place.

        Where the module cannot be loaded the original serves, which works on the ring as well, and the next call tries again.
        """
        made: list[Any] = []

        def real() -> Any:
            if not made:
                make = _loaded(self.module, self.name)
                if make is None:
                    return original
                with _replacing:
                    if not made:
                        new = make(original)
                        put(stand_in, new)
                        made.append(new)
            return made[0]

        stand_in = _standing_in(original, real)
        return stand_in


def _standing_in(original: Any, real: Callable[[], Any]) -> Any:
    """What looks like `original` and does what `real()` does: a property, a coroutine function, a function, or a module."""
    if isinstance(original, property):
        return property(lambda self: real().fget(self), doc=original.__doc__)
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def coroutine_function(*args: Any, **kwargs: Any) -> Any:
            return await real()(*args, **kwargs)

        return coroutine_function
    if inspect.isfunction(original):

        @functools.wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            return real()(*args, **kwargs)

        return function
    return _Module(real)


class _Module:
    """Stands in for a module."""

    def __init__(self, real: Callable[[], Any]) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)


def _open_file(original: Any) -> Any:
    """trio.open_file: replaced from the start, so that `from trio import open_file` finds it; passes on to Trio's own
    as long as there is no ring."""

    loaded: list[Any] = []

    @functools.wraps(original)
    async def open_file(*args: Any, **kwargs: Any) -> Any:
        if not loaded and not _unreplaced:
            found = _loaded("_files.engine", "open_file")
            loaded[:] = [] if found is None else [found]
        ours = loaded[0] if loaded and not _unreplaced else None
        return await (original(*args, **kwargs) if ours is None else ours(original, *args, **kwargs))

    return open_file


def _with_io_backend(original: Callable[..., Any]) -> Callable[..., Any]:
    """`original`, a function that runs Trio, with the keyword `io_backend`."""

    @functools.wraps(original)
    def run(async_fn: Any, *args: Any, io_backend: IOBackend = None, **options: Any) -> Any:
        __tracebackhide__ = True
        try:
            _asked.choice = choose(io_backend)
            if _asked.choice.ring is not None:
                options = _watched(options)
            return original(async_fn, *args, **options)
        except BaseException as error:
            # Tracebacks look as they do without this function: a bare `raise` adds no entry of its own, so
            # with the entry gone that the call above left, none is there. (CPython 3.10 keeps a second copy
            # and still shows it.)
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            raise
        finally:
            _asked.choice = None

    keyword = inspect.Parameter(
        "io_backend",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation="str | trio_uring.UringBackend | None",
    )
    signature = inspect.signature(original)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), keyword])  # type: ignore[attr-defined]
    # Up to CPython 3.12 a docstring has the indentation that it has in the source.
    margin = "" if sys.version_info >= (3, 13) else "    "
    run.__doc__ = f"{(original.__doc__ or '').rstrip()}\n\n{margin}" + _IO_BACKEND_HELP.replace("\n", f"\n{margin}")
    return run


def _watched(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run on the ring; with a monitor where a dump is armed, which then knows ages."""
    armed = sys.modules.get("trio_uring._observe.dump_signal")
    if armed is None or not armed.is_armed():
        return options
    from .._observe.observe import RingMonitor

    return {**options, "instruments": [*options.get("instruments", ()), RingMonitor()]}


_IO_BACKEND_HELP: Final = """\
With trio_uring imported there is one more argument:

  io_backend: "uring" for io_uring, or `trio_uring.UringUnavailableError` (an `OSError`) that names the
    cause and the remedy; "auto" for io_uring where it can be used and epoll where not; "epoll"; or a
    `trio_uring.UringBackend`. Without it the environment variable TRIO_IO_BACKEND decides, and without that
    it is epoll. Anything else is a `ValueError`."""


# ------------------------------------------------------------------ what must be true of the names


# Asked of the code and not of `inspect.signature` or `dis`, which take a millisecond for all of these names.


def _names(function: Any) -> frozenset[str]:
    """The globals and attributes in a function's code, and in that of the functions in it."""
    codes = (function.__code__, *filter(inspect.iscode, function.__code__.co_consts))
    return frozenset(name for code in codes for name in code.co_names)


def _parameters(function: Any) -> tuple[str, ...]:
    """A function's parameters, without * and **: those by position first."""
    code = function.__code__
    return tuple(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def _check_runs_trio(*keywords: str) -> Callable[[Any], Iterator[str]]:
    def check(original: Any) -> Iterator[str]:
        if not inspect.isfunction(original):
            yield "is not a function"
            return
        code = original.__code__
        parameters = _parameters(original)
        if "io_backend" in parameters:
            yield "has an io_backend of its own"
        for name in keywords:
            if name not in parameters[code.co_argcount :]:
                yield f"has no keyword {name}"
        if code.co_argcount != 1 or not code.co_flags & inspect.CO_VARARGS:
            yield "does not take (async_fn, *args)"
        if "setup_runner" not in code.co_names:
            yield "does not call setup_runner"

    return check


def _check_io_manager(original: Any) -> Iterator[str]:
    if not inspect.isclass(original):
        yield "is not a class"
        return
    if "TheIOManager" not in trio._core._run.setup_runner.__code__.co_names:
        yield "is not what setup_runner calls"
    init = original.__init__
    if inspect.isfunction(init) and (
        init.__code__.co_argcount > 1 + len(init.__defaults__ or ())
        or init.__code__.co_kwonlyargcount > len(init.__kwdefaults__ or ())
    ):
        yield "needs arguments"
    ours = _ring_manager()
    for name, member in vars(original).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            replacement = getattr(ours, name, None)
            if replacement is None:
                yield f"has a method {name} that the ring's manager has not"
            elif _parameters(replacement) != _parameters(member):
                yield f"has other parameters in {name}"


def _check_method(*parameters: str) -> Callable[[Any], Iterator[str]]:
    """A coroutine method whose first parameters, after self, have these names."""

    def check(original: Any) -> Iterator[str]:
        if not inspect.iscoroutinefunction(original):
            yield "is not a coroutine function"
        elif _parameters(original)[: len(parameters) + 1] != ("self", *parameters):
            yield f"does not take ({', '.join(parameters)})"

    return check


# The builtin's. It tells them in a text that inspect needs milliseconds to understand.
OPEN_PARAMETERS: Final = ("file", "mode", "buffering", "encoding", "errors", "newline", "closefd", "opener")


def _check_open_file(original: Any) -> Iterator[str]:
    if not inspect.iscoroutinefunction(original):
        yield "is not a coroutine function"
    elif _parameters(original) != OPEN_PARAMETERS:
        yield "has other parameters than the builtin open"


def _check_attribute(original: Any) -> Iterator[str]:
    """A method of AsyncIOWrapper that looks up `_wrapped`, or a property."""
    function = original.fget if isinstance(original, property) else original
    if not inspect.isfunction(function):
        yield "is no function"
    elif _names(function).isdisjoint(("_wrapped", "wrapped")):
        yield "does not use the wrapped file"


def _check_path_method(name: str) -> Callable[[Any], Iterator[str]]:
    """A coroutine method that runs pathlib's of that name."""

    def check(original: Any) -> Iterator[str]:
        if not inspect.iscoroutinefunction(original):
            yield "is not a coroutine function"
        if inspect.unwrap(original) is not getattr(pathlib.Path, name):
            yield f"does not run pathlib.Path.{name}"

    return check


def _check_threads(file: str, classes: tuple[str, ...], others: tuple[str, ...]) -> Callable[[Any], Iterator[str]]:
    """AnyIO's to_thread, as a module sees it: the classes there do nothing with their `file` but call a method of it in a thread.

    `others` are members that do something else and are replaced, or do no harm.
    """

    def check(original: Any) -> Iterator[str]:
        run_sync = getattr(original, "run_sync", None)
        if not inspect.iscoroutinefunction(run_sync):
            yield "has no run_sync"
            return
        module = next(module for module in ANYIO_MODULES if hasattr(sys.modules.get(module), classes[0]))
        for owner in classes:
            for name, member in vars(getattr(sys.modules[module], owner)).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if name in others or not inspect.isfunction(function) or file not in function.__code__.co_names:
                    continue
                if not {"to_thread", "run_sync"} <= set(function.__code__.co_names):
                    yield f"is not what {owner}.{name} calls"

    return check


def _check_uses(*names: str) -> Callable[[Any], Iterator[str]]:
    """A function, or a property, in whose code these names are."""

    def check(original: Any) -> Iterator[str]:
        function = original.fget if isinstance(original, property) else original
        if not inspect.isfunction(function):
            yield "is no function"
        else:
            for name in set(names) - set(function.__code__.co_names):
                yield f"does not use {name}"

    return check


# ------------------------------------------------------------------ the table


class Seam:
    """One name that is replaced.

    Attributes:
      modules: where it is found; the first is its home, and the others, where they hold the same object,
        follow it.
      name: the name there, dotted for an attribute of a class.
      why: what the replacement is for.
      check: given what stands there, yields what does not fit, as the end of a sentence that begins with
        the name.
      replacement: given what stands there, what shall stand there; or what makes that later.
    """

    __slots__ = ("check", "modules", "name", "replacement", "why")

    def __init__(
        self,
        modules: tuple[str, ...],
        name: str,
        why: str,
        check: Callable[[Any], Iterator[str]],
        replacement: Callable[[Any], Any] | AtFirstCall,
    ) -> None:
        self.modules = modules
        self.name = name
        self.why = why
        self.check = check
        self.replacement = replacement

    def _holder(self, module: str) -> tuple[Any, str]:
        *path, last = self.name.split(".")
        holder: Any = importlib.import_module(module)
        for name in path:
            holder = getattr(holder, name)
        return holder, last

    def misfits(self) -> Iterator[str]:
        """What of the installed version does not fit, in sentences."""
        name = f"{self.modules[0]}.{self.name}"
        try:
            holder, last = self._holder(self.modules[0])
            if last not in vars(holder):  # what a base class has of that name is another thing
                yield f"{name} is not there"
                return
            for misfit in self.check(getattr(holder, last)):
                yield f"{name} {misfit}"
        except (AttributeError, ImportError) as error:
            yield f"{name} cannot be examined: {error!r}"

    def replace(self) -> None:
        """Replaces it everywhere. Every start does so for each: what has been found is not looked up again."""
        holder, name = self._holder(self.modules[0])
        original = getattr(holder, name)
        if isinstance(self.replacement, AtFirstCall):
            new = self.replacement.standing_in(original, self._put)
        else:
            new = self.replacement(original)
        setattr(holder, name, new)
        if len(self.modules) > 1:
            self._put(original, new)

    def _put(self, old: Any, new: Any) -> None:
        for module in self.modules:
            holder, name = self._holder(module)
            if getattr(holder, name, None) is old:
                setattr(holder, name, new)


SEAMS: Final = (
    Seam(
        modules=("trio._core._run",),
        name="TheIOManager",
        why="setup_runner calls it for the I/O manager of each run",
        check=_check_io_manager,
        replacement=_IOManagers,
    ),
    Seam(
        modules=("trio._core._run", "trio._core", "trio"),
        name="run",
        why="takes io_backend; AnyIO's run and trio.testing call it by these names",
        check=_check_runs_trio(),
        replacement=_with_io_backend,
    ),
    Seam(
        modules=("trio._core._run", "trio._core", "trio.lowlevel"),
        name="start_guest_run",
        why="takes io_backend; AnyIO's pytest plugin calls it by the last of these names",
        check=_check_runs_trio("run_sync_soon_threadsafe", "done_callback"),
        replacement=_with_io_backend,
    ),
    Seam(
        modules=("trio._file_io", "trio"),
        name="open_file",
        why="opens on the ring",
        check=_check_open_file,
        replacement=_open_file,
    ),
)


# What `paths` serves of trio.Path and anyio.Path.
PATH_METHODS: Final = (
    *("stat", "lstat", "exists", "is_dir", "is_file", "is_symlink", "is_socket", "is_fifo", "is_block_device"),
    *(
        "is_char_device",
        "samefile",
        "mkdir",
        "rmdir",
        "unlink",
        "rename",
        "replace",
        "symlink_to",
        "hardlink_to",
        "touch",
    ),
    *("read_bytes", "read_text", "write_bytes", "write_text"),
)

# Replaced when the first ring of the process is made, so that a process without one runs Trio's own code.
# Runs on another backend beside it (another thread, a later run) are passed on to Trio's own methods.
OPERATION_SEAMS: Final = (
    *(
        Seam(
            modules=("trio._socket",),
            name=f"_SocketType.{name}",
            why="a direct operation; every socket of Trio and AnyIO is of this class",
            check=_check_method(*parameters),
            replacement=AtFirstCall("_sockets.sockets", name),
        )
        for name, parameters in (
            ("accept", ()),
            ("connect", ("address",)),
            ("recv", ()),
            ("recv_into", ()),
            ("send", ()),
        )
    ),
    Seam(
        modules=("trio._socket",),
        name="_SocketType.__exit__",
        why="the ring has to know before the descriptor is closed",
        check=_check_uses("_sock", "__exit__"),
        replacement=AtFirstCall("_sockets.sockets", "leave"),
    ),
    *(
        Seam(
            modules=("trio._socket",),
            name=f"_SocketType.{name}",
            why="a direct operation with an address or ancillary data",
            check=_check_method(*parameters),
            replacement=AtFirstCall("_sockets.messages", name),
        )
        for name, parameters in (
            ("recvfrom", ()),
            ("recvfrom_into", ()),
            ("recvmsg", ()),
            ("recvmsg_into", ()),
            ("sendmsg", ("buffers", "ancdata", "flags", "address")),
            ("sendto", ()),
        )
    ),
    *(
        Seam(
            modules=("trio._highlevel_socket",),
            name=f"SocketStream.{name}",
            why="the operation itself, with no call of the socket's method between",
            check=_check_method(parameter),
            replacement=AtFirstCall("_sockets.sockets", name),
        )
        for name, parameter in (("receive_some", "max_bytes"), ("send_all", "data"))
    ),
    *(
        Seam(
            modules=("trio._unix_pipes",),
            name=f"FdStream.{name}",
            why="a direct operation; pipes to and from child processes are of this class",
            check=_check_method(parameter),
            replacement=AtFirstCall("_files.pipes", name),
        )
        for name, parameter in (("receive_some", "max_bytes"), ("send_all", "data"))
    ),
    *(
        Seam(
            modules=("trio._path",),
            name=f"Path.{name}",
            why="the operations on a path that the ring has",
            check=_check_path_method(name),
            replacement=AtFirstCall("_files.paths", "of_trio"),
        )
        for name in PATH_METHODS
    ),
    Seam(
        modules=("trio._path",),
        name="Path.open",
        why="opens on the ring",
        check=_check_path_method("open"),
        replacement=AtFirstCall("_files.engine", "path_open"),
    ),
    *(
        Seam(
            modules=("trio._file_io",),
            name=f"AsyncIOWrapper.{name}",
            why=why,
            check=check,
            replacement=AtFirstCall("_files.engine", replacement),
        )
        for name, replacement, check, why in (
            ("__getattr__", "wrapper_getattr", _check_attribute, "makes the methods of an open file"),
            ("__dir__", "wrapper_dir", _check_attribute, "looks at the wrapped file without handing it over"),
            ("wrapped", "wrapper_wrapped", _check_attribute, "hands the file over"),
            ("detach", "wrapper_detach", _check_method(), "hands the file over"),
            ("aclose", "wrapper_aclose", _check_method(), "writes out on the ring"),
            ("__anext__", "wrapper_anext", _check_method(), "lines that are at hand, without a call"),
        )
    ),
)


ANYIO_MODULES: Final = ("anyio._core._fileio", "anyio.streams.file")


def _anyio_files(module: str, *rows: tuple[str, str, Callable[[Any], Iterator[str]], str]) -> tuple[Seam, ...]:
    return tuple(
        Seam(
            modules=(module,),
            name=name,
            why=why,
            check=check,
            replacement=AtFirstCall("_files.anyio_files", replacement),
        )
        for name, replacement, check, why in rows
    )


# Of AnyIO: rows that only make sense together stand together, and are of one module.
ANYIO_SEAMS: Final = (
    _anyio_files(
        "anyio._core._fileio",
        (
            "to_thread",
            "to_thread",
            _check_threads("_fp", ("AsyncFile",), ("__init__", "__getattr__", "wrapped")),
            "all that AsyncFile, open_file and Path.open do",
        ),
        ("AsyncFile.__init__", "file_init", _check_uses("_fp"), "keeps what serves the file"),
        ("AsyncFile.__getattr__", "file_getattr", _check_uses("_fp"), "hands the file over"),
        ("AsyncFile.wrapped", "file_wrapped", _check_uses("_fp"), "hands the file over"),
        ("AsyncFile.aclose", "file_aclose", _check_uses("_fp", "to_thread", "CancelScope"), "closes, without a scope"),
        ("AsyncFile.__aiter__", "file_aiter", _check_uses("readline"), "lines that are at hand, without a call"),
    ),
    (
        Seam(
            modules=("anyio._core._fileio",),
            name="_PathIterator.__anext__",
            why="many paths in one trip to a thread",
            check=_check_uses("iterator", "limiter", "path_cls", "run_sync", "to_thread"),
            replacement=AtFirstCall("_files.listing", "iterator_next"),
        ),
    ),
    _anyio_files(
        "anyio.streams.file",
        (
            "to_thread",
            "to_thread",
            _check_threads(
                "_file", ("FileReadStream", "FileWriteStream", "_BaseFileStream"), ("__init__", "extra_attributes")
            ),
            "all that file streams do",
        ),
        ("_BaseFileStream.__init__", "stream_init", _check_uses("_file"), "keeps what serves the file"),
        (
            "_BaseFileStream.extra_attributes",
            "stream_attributes",
            _check_uses("FileStreamAttribute", "_file"),
            "hands the file over",
        ),
    ),
    *(
        (
            Seam(
                modules=("anyio._core._fileio",),
                name=f"Path.{name}",
                why="the operations on a path that the ring has",
                check=_check_method(),
                replacement=AtFirstCall("_files.paths", "of_anyio"),
            ),
        )
        for name in PATH_METHODS
    ),
)


_unreplaced: Final = list(OPERATION_SEAMS)
_unseen: Final = list(ANYIO_MODULES)
_replacing: Final = threading.Lock()


def _replace_operations() -> None:
    # Taken off the list first: whatever interrupts this, none is replaced twice.
    with _replacing:
        while _unreplaced:
            _unreplaced.pop().replace()
        while _unseen:
            module = _unseen.pop()
            when_imported(module, functools.partial(_replace_anyio, module))


def _replace_anyio(module: str) -> None:
    for rows in ANYIO_SEAMS:
        if rows[0].modules[0] != module:
            continue
        misfits = [misfit for row in rows for misfit in row.misfits()]
        if misfits:
            _log.info("AnyIO %s does not fit: %s", _version("anyio"), "; ".join(misfits))
            continue
        for row in rows:
            row.replace()


# Used and not replaced: private attributes of Trio's objects, and the method that sets each if no attrs field does.
USED: Final = {
    "trio._core._run.Task": (
        "_abort_func",
        "_cancel_points",
        "_cancel_status",
        "_next_send",
        "_next_send_fn",
        "_runner",
        "_schedule_points",
    ),
    "trio._core._run.CancelStatus": ("effectively_cancelled",),
    "trio._core._run.Runner": ("deliver_ki", "instruments", "io_manager", "ki_pending", "runq", "tasks"),
    "trio._file_io": ("_FILE_ASYNC_METHODS", "_FILE_SYNC_ATTRS"),
    "trio._file_io.AsyncIOWrapper": ("_wrapped",),
    "trio._core._traps.WaitTaskRescheduled": ("abort_func",),
    "trio._util.ConflictDetector": ("_held",),
    "trio._socket._try_sync": ("__aenter__", "__aexit__"),
    "trio._socket._SocketType": ("_did_shutdown_SHUT_WR", "_resolve_address_nocp", "_sock"),
    "trio._highlevel_socket.SocketStream": ("_send_conflict_detector",),
    "trio._path.PosixPath": ("_wrapped_cls",),
    "trio._unix_pipes.FdStream": ("_fd_holder", "_receive_conflict_detector", "_send_conflict_detector"),
    "trio._unix_pipes._FdHolder": ("closed", "fd"),
}


def _not_there() -> Iterator[str]:
    for path, names in USED.items():
        module, _, name = path.rpartition(".")
        owner = None
        with contextlib.suppress(ImportError):
            owner = getattr(importlib.import_module(module), name, None)
        init = getattr(getattr(owner, "__init__", None), "__code__", None)
        for name in names:
            if hasattr(owner, name) or (init is not None and name in init.co_names):
                continue
            if name not in {field.name for field in getattr(owner, "__attrs_attrs__", ())}:
                yield f"{path} has no {name}"


def mismatches() -> list[str]:
    """What of the installed Trio does not fit, in sentences; empty where all does."""
    return list(_mismatches)


def _put_in_place() -> tuple[str, ...]:
    misfits: list[str] = []
    for seam in SEAMS:
        found = list(seam.misfits())
        misfits += found
        if not found:
            seam.replace()
    for seam in OPERATION_SEAMS:
        misfits += seam.misfits()
    return (*misfits, *_not_there())


_mismatches: Final = _put_in_place()

if TYPE_CHECKING:

    def run(
        async_fn: Callable[[Unpack[PosArgT]], Awaitable[RetT]],
        *args: Unpack[PosArgT],
        io_backend: IOBackend = None,
        clock: trio.abc.Clock | None = None,
        instruments: Sequence[trio.abc.Instrument] = (),
        restrict_keyboard_interrupt_to_checkpoints: bool = False,
        strict_exception_groups: bool = True,
    ) -> RetT:
        """`trio.run`."""

    def start_guest_run(
        async_fn: Callable[..., Awaitable[RetT]],
        *args: object,
        run_sync_soon_threadsafe: Callable[[Callable[[], object]], object],
        done_callback: Callable[[outcome.Outcome[RetT]], object],
        run_sync_soon_not_threadsafe: Callable[[Callable[[], object]], object] | None = None,
        host_uses_signal_set_wakeup_fd: bool = False,
        io_backend: IOBackend = None,
        clock: trio.abc.Clock | None = None,
        instruments: Sequence[trio.abc.Instrument] = (),
        restrict_keyboard_interrupt_to_checkpoints: bool = False,
        strict_exception_groups: bool = True,
    ) -> None:
        """`trio.lowlevel.start_guest_run`."""
else:  # None in a Trio that has no such name, which then does not fit: this module can be imported all the same
    run = getattr(trio, "run", None)
    start_guest_run = getattr(trio.lowlevel, "start_guest_run", None)
