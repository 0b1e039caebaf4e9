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
usage: python -m trio_uring run [--io-backend uring|auto|epoll] TARGET [ARGUMENTS]
       python -m trio_uring doctor [--json]
       python -m trio_uring dump PID [--json]
       python -m trio_uring --version

run      runs an unchanged program with Trio, and AnyIO on Trio, on io_uring. TARGET and what follows is
         what stands after `python`: a script, -m MODULE, -c CODE, a directory, a zip file, or - (stdin).
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
    backend, target = _parse(argv)
    if backend not in _BACKENDS or not target:
        asked_for_help = list(argv) in (["-h"], ["--help"])
        print(USAGE, end="", file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    if os.environ.get("TRIO_IO_BACKEND") != backend:
        os.environ["TRIO_IO_BACKEND"] = backend
        _become(sys.orig_argv[1:])
    if "trio_uring_startup" not in sys.modules:
        print(_NO_HOOK.format(executable=sys.executable), end="", file=sys.stderr)
        return 1
    _become([*_interpreter_flags(), *target])


def _parse(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The backend and what stands after it; our own options stand before the target and nowhere else."""
    first = argv[0] if argv else ""
    if first == "--io-backend":
        return (argv[1] if len(argv) > 1 else ""), argv[2:]
    if first.startswith("--io-backend="):
        return first.partition("=")[2], argv[1:]
    if first in ("-h", "--help"):
        return "", ()
    return "uring", argv


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
