"""Layer 5, the command line: `python -m trio_uring`. Knows the names of the commands; each is a module of
its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._version import __version__

USAGE = """\
usage: python -m trio_uring run [--io-backend uring|auto|epoll] TARGET [ARGUMENTS]
       python -m trio_uring doctor [--json]
       python -m trio_uring --version

run      runs an unchanged program with Trio, and AnyIO on Trio, on io_uring. TARGET and what follows is
         what stands after `python`: a script, -m MODULE, -c CODE, a directory, a zip file, or - (stdin).
doctor   tells whether io_uring can be used here, and what to change if not
"""


def main(argv: Sequence[str]) -> int:
    """Runs one command.

    Args:
      argv: the arguments after `python -m trio_uring`.

    Returns the exit code.
    """
    command, rest = (argv[0], argv[1:]) if argv else ("", argv)
    if command == "run":
        from . import _run_command

        return _run_command.main(rest)
    if command == "doctor":
        from . import _doctor

        return _doctor.main(rest)
    if command == "--version":
        print(f"trio-uring {__version__}")
        return 0
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    problem = f"python -m trio_uring: there is no command {command!r}\n" if command else ""
    print(problem + USAGE, end="", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
