"""The public interface under pyright, strict: `python tests/docs/public_types.py`, which is a part of `make lint`.

Two questions. Has every public name of `trio_uring` a type that is known completely (`--verifytypes`)? And does a program that
uses them all (public_use.py) pass? mypy, strict, reads the same program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE

USE = Path(__file__).with_name("public_use.py")
# For who tests with this project; their types are mypy's business.
NOT_FOR_PROGRAMS = ("trio_uring.testing", "trio_uring.cancellation")
PYRIGHT = (sys.executable, "-m", "pyright", "--outputjson")
# pyright asks the first `python` on the path where packages are.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def main() -> int:
    with tempfile.TemporaryDirectory() as elsewhere:  # the installed package is asked, not the checkout
        options = Path(elsewhere, "pyrightconfig.json")
        options.write_text(json.dumps({"include": ["use.py"], "typeCheckingMode": "strict"}))
        Path(elsewhere, "use.py").write_text(USE.read_text())
        commands = ((*PYRIGHT, "--verifytypes", "trio_uring", "--ignoreexternal"), (*PYRIGHT, "-p", str(options)))
        started = [
            subprocess.Popen(command, cwd=elsewhere, env=ENVIRONMENT, stdout=PIPE, stderr=PIPE, text=True)
            for command in commands
        ]
        answers = [process.communicate() for process in started]
    for said, errors in answers:
        if not said.startswith("{"):
            print(said or errors, file=sys.stderr)
            return 2
    types, use = (json.loads(said) for said, _ in answers)
    symbols = [s for s in types["typeCompleteness"]["symbols"] if s["isExported"]]
    public = [s for s in symbols if not s["name"].startswith(NOT_FOR_PROGRAMS)]
    problems = [f"{s['name']}: {d['message']}" for s in public for d in s["diagnostics"] if d["severity"] == "error"]
    problems += [f"public_use.py:{d['range']['start']['line'] + 1}: {d['message']}" for d in use["generalDiagnostics"]]
    print(*problems, f"pyright: {len(public)} public names, {len(problems)} problems", sep="\n")
    return 1 if problems or not public or not use["summary"]["filesAnalyzed"] else 0


if __name__ == "__main__":
    sys.exit(main())
