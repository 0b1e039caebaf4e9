"""Layer 5: `python -m trio_uring run`. Knows the interpreter's command line and the start-up hook; knows
nothing of Trio.

The program is not run in this process: the interpreter is started anew in its place (execve(2): the same
process id, descriptors and terminal) with TRIO_IO_BACKEND in its environment and the command line that
the user would type without us. So sys.argv, sys.path, `__main__`, exit codes, Ctrl-C and tracebacks are
plain Python's because it is plain Python. The start-up hook does the rest.

Whether the hook is active in this interpreter is not guessed from its files: the command first starts
itself anew with the variable set, and then looks whether the hook has run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

USAGE = """\
usage: python -m trio_uring run [--io-backend uring|auto|epoll] [--async-workers-cpuset LIST]
                                TARGET [ARGUMENTS]
       python -m trio_uring doctor [--json]
       python -m trio_uring dump PID [--json]
       python -m trio_uring --version

run      runs an unchanged program with Trio, and AnyIO on Trio, on io_uring. TARGET and what follows is
         what stands after `python`: a script, -m MODULE, -c CODE, a directory, a zip file, or - (stdin).
         LIST, such as 6,7 or 6-7, are processors that do the I/O for it, and nothing else of it.
doctor   tells whether io_uring can be used here, and what to change if not
dump     tells what every run on the ring in a process is doing (CPython 3.14 and newer)
"""

_BACKENDS: Final = ("uring", "auto", "epoll")
_NO_HOOK: Final = """\
python -m trio_uring run: the start-up hook of trio-uring is not active in this interpreter, {executable}.
Install trio-uring into it with pip (an editable install or a directory in PYTHONPATH brings no hook) and
do not start it with -S. Or else import trio_uring in the program and set TRIO_IO_BACKEND.
"""


def main(argv: Sequence[str]) -> int:
    """Runs a program with its Trio runs on the ring.

    Args:
      argv: the arguments after "run".

    Returns the exit code 2 for wrong arguments and 1 where the start-up hook is missing; otherwise does not
    return.
    """
    backend, cpus, target = _parse(argv)
    if backend not in _BACKENDS or not target:
        asked_for_help = list(argv) in (["-h"], ["--help"])
        print(USAGE, end="", file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    options = os.environ.get("TRIO_URING_OPTIONS", "")
    if cpus and f",async_workers_cpuset={cpus}," not in f",{options},":
        options = ",".join(filter(None, [options, f"async_workers_cpuset={cpus}"]))
    if (os.environ.get("TRIO_IO_BACKEND"), os.environ.get("TRIO_URING_OPTIONS", "")) != (backend, options):
        os.environ["TRIO_IO_BACKEND"] = backend
        if options:
            os.environ["TRIO_URING_OPTIONS"] = options
        _become(sys.orig_argv[1:])
    if "trio_uring_startup" not in sys.modules:
        print(_NO_HOOK.format(executable=sys.executable), end="", file=sys.stderr)
        return 1
    _become([*_interpreter_flags(), *target])


def _parse(argv: Sequence[str]) -> tuple[str, str, Sequence[str]]:
    """The backend, the processors for its I/O, and what stands after them; our own options stand before the target and nowhere
    else. No backend where they are wrong, or help is asked for."""
    given = {"--io-backend": "uring", "--async-workers-cpuset": ""}
    while argv and argv[0].partition("=")[0] in given:
        name, equals, value = argv[0].partition("=")
        if not equals:
            value = argv[1] if len(argv) > 1 else ""
        if not value:
            return "", "", ()
        given[name] = value
        argv = argv[1 if equals else 2 :]
    if argv and argv[0] in ("-h", "--help"):
        return "", "", ()
    return given["--io-backend"], given["--async-workers-cpuset"], argv


def _interpreter_flags() -> list[str]:
    """What stands between `python` and `-m trio_uring` on the command line, also what sys.flags forgets."""
    flags = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    # It ends in -m trio_uring: one word or two, and other letters may stand before the m.
    module = flags.pop()
    if not module.startswith("-"):
        module = flags.pop() + module
    letters = module[: module.index("mtrio_uring")]
    return flags if letters == "-" else [*flags, letters]


def _become(arguments: Sequence[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, *arguments])
