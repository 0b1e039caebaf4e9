"""Runs app.py under Hypercorn as it is, on Trio's epoll and then on the ring, and looks at both from outside. Then busy.py, as it
is, on both: how many requests and files a second."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
REQUESTS = 200


@contextlib.contextmanager
def server(*launcher: str) -> Iterator[tuple[int, int]]:
    """Hypercorn started with `launcher`; yields its process id and port, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*launcher, "-m", "hypercorn", "-k", "trio", "-w", "0", "-b", f"127.0.0.1:{port}", "app:app"]
    print("$", " ".join(["python", *command[1:]]))
    with subprocess.Popen(command, cwd=HERE, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        sys.exit("the server did not start")
                    time.sleep(0.05)
            yield process.pid, port
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def fetch(port: int) -> None:
    """REQUESTS requests on one connection, their answers checked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(REQUESTS):
        connection.request("GET", "/hello?name=ring")
        assert connection.getresponse().read() == b'{"hello":"ring"}'
    connection.request("GET", "/docs/LICENSE-MIT")
    assert connection.getresponse().read() == (HERE.parent / "LICENSE-MIT").read_bytes()
    connection.close()


def look(pid: int) -> bool:
    """Say which descriptors the process waits with, and what its ring has done. Answers whether there is a ring."""
    kinds: Counter[str] = Counter()
    entries = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # closed meanwhile
            continue
        if target in ("anon_inode:[io_uring]", "anon_inode:[eventpoll]"):
            kinds[target] += 1
        if target == "anon_inode:[io_uring]":
            info = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
            entries += sum(int(line.split()[1], 0) for line in info.splitlines() if line.startswith("SqTail:"))
    print(f"  {REQUESTS + 1} requests answered; waiting with {dict(kinds)}; entries handed to the ring: {entries}")
    return kinds["anon_inode:[io_uring]"] > 0 and not kinds["anon_inode:[eventpoll]"] and entries > 0


def doctor() -> None:
    """The last line of the doctor's report, which is its verdict; all of it where io_uring cannot be used."""
    print("$ python -m trio_uring doctor")
    done = subprocess.run([sys.executable, "-m", "trio_uring", "doctor"], cwd=HERE, stdout=subprocess.PIPE, text=True)
    print(done.stdout if done.returncode else f"  ...\n  {done.stdout.splitlines()[-1]}")
    if done.returncode:
        sys.exit(done.returncode)


def busy(*launcher: str) -> tuple[float, float]:
    """Requests and files a second of busy.py, started with `launcher`."""
    said = subprocess.run(
        [*launcher, "busy.py"], cwd=HERE, stdout=subprocess.PIPE, text=True, timeout=120, check=True
    ).stdout
    requests, files = map(float, said.split())
    return requests, files


def bar(value: float, most: float) -> str:
    return "█" * max(1, round(30 * value / most))


def before_and_after() -> None:
    """The same program on epoll and on the ring, side by side."""
    print("$ python busy.py; python -m trio_uring run busy.py")
    print(
        "  an unchanged AnyIO program: 50 connections that are answered, then files of 4 KiB opened, read and closed\n"
    )
    rounds = [(busy(sys.executable), busy(sys.executable, "-m", "trio_uring", "run")) for _ in range(2)]
    before, after = (tuple(map(max, *of_one)) for of_one in zip(*rounds, strict=True))
    for what, epoll, ring in zip(("requests", "files"), before, after, strict=True):
        most = max(epoll, ring)
        print(f"  {what:8}  epoll {epoll:9,.0f}/s  {bar(epoll, most)}")
        print(f"  {'':8}  ring  {ring:9,.0f}/s  {bar(ring, most)}  {ring / epoll:.1f} times\n")


def main() -> None:
    """Two runs of the server, then two of the busy program."""
    with server(sys.executable) as (pid, port):
        fetch(port)
        look(pid)
    with server(sys.executable, "-m", "trio_uring", "run") as (pid, port):
        fetch(port)
        if not look(pid):
            sys.exit("the ring was not used")
    print("The same application, unchanged, ran on the ring.")
    doctor()
    before_and_after()


main()
