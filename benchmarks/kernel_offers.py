"""What newer kernels offer, measured against what is done in its place: `python -m benchmarks.kernel_offers`, about a minute.

Bare rings (kernel_offers.c), in pairs by turns; the table of docs/compatibility.md says what was made of it. Knows the compiler
and pkg-config; an error of the kernel's, where it has not what is asked for, is the program's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    source = Path(__file__).with_suffix(".c")
    found = subprocess.run(["pkg-config", "--cflags", "--libs", "liburing"], capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "kernel_offers")
        command = ["cc", "-O2", "-Wall", "-pthread", "-o", str(program), str(source), *found.stdout.split()]
        subprocess.run(command, check=True)
        return subprocess.run([program], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
