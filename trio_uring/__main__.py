"""Layer 5, the command line: `python -m trio_uring`. Knows the names of the commands; each is a module of
its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._entry import run_command
from ._entry.run_command import USAGE
from ._version import __version__


def main(argv: Sequence[str]) -> int:
    """Runs one command.

    Args:
      argv: the arguments after `python -m trio_uring`.

    Returns the exit code.
    """
    command, rest = (argv[0], argv[1:]) if argv else ("", argv)
    if command == "run":
        return run_command.main(rest)
    if command == "doctor":
        from ._entry import doctor

        return doctor.main(rest)
    if command == "dump":
        from ._observe import attach

        return attach.main(rest)
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
