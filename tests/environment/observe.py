"""Says, as a JSON object, what a user sees who asks for the ring here: python observe.py [OPTION]...

A program for the tests in this directory, run in processes that may not use io_uring. The object's keys:
"uring" and "auto", the outcome of a run with that backend; "doctor" and "doctor_json", exit code and output
of the doctor; "leaked", how many descriptors all that left open; with --descriptors-left also "afterwards", a
run once there are descriptors again.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import sys
import warnings
from typing import Any


def outcome(backend: str) -> dict[str, Any]:
    """What `trio.run(..., io_backend=backend)` does: the backend that it used or the error that it raised."""
    import trio

    import trio_uring

    async def used() -> str:
        return str(trio.lowlevel.current_statistics().io_statistics.backend)

    run: Any = trio.run  # type checkers know the keyword only of trio_uring.run
    try:
        return {"backend": run(used, io_backend=backend)}
    except trio_uring.UringUnavailableError as error:
        why = {"cause": error.cause, "remedy": error.remedy}
        return {"error": type(error).__name__, "errno": error.errno, **why}
    except OSError as error:
        return {"error": type(error).__name__, "errno": error.errno}


def doctor(*arguments: str) -> dict[str, Any]:
    """Exit code and standard output of the doctor."""
    from trio_uring._entry import doctor as _doctor

    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = _doctor.main(arguments)
    return {"code": code, "output": output.getvalue()}


def observe() -> dict[str, Any]:
    """All of it, but for the leak."""
    return {
        "uring": outcome("uring"),
        "auto": outcome("auto"),
        "doctor": doctor(),
        "doctor_json": doctor("--json"),
    }


def pretend_release(release: str) -> None:
    """Makes uname(2) say that the kernel is another one."""
    real = os.uname()
    os.uname = lambda: os.uname_result((real.sysname, real.nodename, release, real.version, real.machine))


@contextlib.contextmanager
def descriptors_left(number: int) -> Any:
    """Uses up all file descriptors but that many."""
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    for descriptor in taken[len(taken) - number :]:
        os.close(descriptor)
    del taken[len(taken) - number :]
    try:
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--release", help="pretend to run on this kernel")
    parser.add_argument("--without-shim", action="store_true", help="as if it were not built")
    parser.add_argument("--descriptors-left", type=int, help="use up all file descriptors but that many")
    parser.add_argument("--wait", action="store_true", help="begin after reading a line")
    arguments = parser.parse_args()
    if arguments.release:
        pretend_release(arguments.release)
    if arguments.without_shim:
        sys.modules["trio_uring._ffi"] = None  # type: ignore[assignment]
    # Whatever is imported or opened once is so before the machine gets uncomfortable, and before counting.
    outcome("epoll")
    from trio_uring._entry import doctor as _doctor

    del _doctor
    if arguments.wait:
        print("ready", flush=True)
        sys.stdin.readline()
    warnings.simplefilter("ignore", ResourceWarning)
    before = len(os.listdir("/proc/self/fd"))
    left = arguments.descriptors_left
    with contextlib.nullcontext() if left is None else descriptors_left(left):
        seen = observe()
    gc.collect()
    if left is not None:
        seen["afterwards"] = outcome("uring")
    seen["leaked"] = len(os.listdir("/proc/self/fd")) - before
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
