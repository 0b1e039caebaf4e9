"""Starts programs that know nothing of trio-uring, on the ring, and looks at them from outside.

Knows the command line, the environment and /proc; knows nothing of what the programs do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

PROGRAMS = Path(__file__).parent
SECONDS = 200.0  # after which a program counts as hung, on however busy a machine
WAYS = ("command", "variable")  # python -m trio_uring run PROGRAM; TRIO_IO_BACKEND=uring python PROGRAM

T = TypeVar("T")


def until(what: Callable[[], T | None], reason: str) -> T:
    """What `what` answers once it is true; TimeoutError with the reason if it is not in time."""
    deadline = time.monotonic() + SECONDS
    while True:
        found = what()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(reason)
        time.sleep(0.01)


def command_line(way: str, *program: str) -> tuple[list[str], dict[str, str]]:
    """What is typed to run a program on the ring in this way, and the environment."""
    left_out = ("TRIO_IO_BACKEND", "TRIO_URING_OPTIONS", "PYTHONPATH", "PYTHONSAFEPATH")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment["PYTHONPATH"] = str(PROGRAMS)
    if way == "command":
        return [sys.executable, "-m", "trio_uring", "run", *program], environment
    assert way == "variable"
    return [sys.executable, *program], {**environment, "TRIO_IO_BACKEND": "uring"}


def answer(way: str, program: str, *arguments: str, **variables: str) -> Any:
    """Runs a program of this directory to its end, and answers the JSON value that it printed."""
    command, environment = command_line(way, str(PROGRAMS / program), *arguments)
    done = subprocess.run(
        command, env={**environment, **variables}, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


# ------------------------------------------------------------------ looking at a process


def kinds(pid: int) -> list[str]:
    """What each open descriptor of a process is."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def entries(pid: int) -> int:
    """How many entries a process has handed to its rings so far."""
    total = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{name}") == "anon_inode:[io_uring]":
                info = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
                total += sum(int(line.split()[1], 0) for line in info.splitlines() if line.startswith("SqTail:"))
    return total


def is_on_the_ring(pid: int) -> None:
    """Fails where a process waits with epoll, or with no ring."""
    found = kinds(pid)
    assert found.count("anon_inode:[eventpoll]") == 0, found
    assert found.count("anon_inode:[io_uring]") >= 1, found


def children(pid: int) -> list[int]:
    """The child processes."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def is_worker(pid: int) -> bool:
    """Whether it is a process that multiprocessing has spawned to run something of the parent's."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended, perhaps after the opening
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


# ------------------------------------------------------------------ servers


@attrs.define
class Server:
    """A server process that runs.

    Attributes:
      process: the one that was started.
      port: where it listens, on 127.0.0.1.
      scheme: "http" or "https".
      workers: the processes that serve.
      site: the directory of the files that it serves.
      errors: what it has written to standard error, in a file.
    """

    process: subprocess.Popen[bytes]
    port: int
    scheme: str
    workers: list[int]
    site: Path
    errors: Path

    def url(self, path: str, scheme: str | None = None) -> str:
        """The address of a page."""
        return f"{scheme or self.scheme}://localhost:{self.port}{path}"

    def end(self, number: int) -> int:
        """Sends a signal, waits for the end, and answers the exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@contextlib.contextmanager
def hypercorn(
    way: str,
    app: str,
    site: Path,
    *,
    workers: int,
    tls: Mapping[str, str] | None = None,
    grace: int = 3,
    **variables: str,
) -> Iterator[Server]:
    """Hypercorn with its trio worker; `workers` 0 serves in the process itself. `tls` are its options for that.

    `grace` is how long what it serves may take when it is told to end, in seconds.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        # On a busy machine a client may take its time between two requests.
        settings = {"--keep-alive": "600", "--graceful-timeout": str(grace), **(tls or {})}
        options = [part for pair in settings.items() for part in pair]
        command, environment = command_line(
            way, "-m", "hypercorn", "-k", "trio", "-w", str(workers), "-b", f"fd://{listener.fileno()}", *options, app
        )
        errors = Path(tempfile.mkstemp(dir=site.parent)[1])
        with errors.open("wb") as sink:
            process = subprocess.Popen(
                command,
                cwd=PROGRAMS,
                env={**environment, "SITE": str(site), **variables},
                stdin=subprocess.DEVNULL,
                stderr=sink,
                pass_fds=[listener.fileno()],
            )
    with process:
        server = Server(process, port, "https" if tls else "http", [], site, errors)

        def serving() -> list[int] | None:
            assert process.poll() is None, errors.read_text()
            pids = [pid for pid in children(process.pid) if is_worker(pid)] if workers else [process.pid]
            if len(pids) == max(workers, 1) and errors.read_text().count("Running on") == len(pids):
                return pids
            return None

        try:
            server.workers = until(serving, "the server did not start")
            yield server
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(SECONDS)
                except subprocess.TimeoutExpired:
                    for pid in children(process.pid):
                        os.kill(pid, signal.SIGKILL)
                    process.kill()
                    raise


def curl(*arguments: str) -> bytes:
    """What curl wrote to standard output; it has to succeed."""
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--fail", "--max-time", str(SECONDS), *arguments], capture_output=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    return done.stdout
