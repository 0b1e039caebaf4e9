"""Ctrl-C and SIGTERM to programs on the ring: they end as they would on epoll, with their work done and their exit code."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from hosting import PROGRAMS, SECONDS, WAYS, command_line, hypercorn, is_on_the_ring, until

pytest_plugins = ["serving_fixtures"]

IO_URING_ENTER = "426"  # on every architecture


@pytest.mark.parametrize(
    ("way", "workers", "number"),
    [
        ("command", 4, signal.SIGINT),
        ("command", 1, signal.SIGTERM),
        ("variable", 4, signal.SIGTERM),
        ("variable", 1, signal.SIGINT),
    ],
)
def test_hypercorn_finishes_what_it_serves(way: str, workers: int, number: signal.Signals, site: Path) -> None:
    """As soon as one of its workers has ended, Hypercorn 0.18 sends SIGTERM to the others, which kills those that serve still, on
    epoll as well. So none ends before the answer has.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(hypercorn(way, "starlette_app:app", site, workers=workers, grace=600))
        for name in ("stay", "release"):
            stack.callback((site / name).unlink, missing_ok=True)
        (site / "stay").touch()
        idle, held = (
            stack.enter_context(
                contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS))
            )
            for _ in range(2)
        )
        idle.request("GET", "/backend")
        assert b'"uring"' in idle.getresponse().read()
        held.request("GET", "/hold")
        answer = stack.enter_context(held.getresponse())
        assert answer.readline() == b"begun\n"
        for pid in server.workers:
            is_on_the_ring(pid)
        server.process.send_signal(number)
        # The server closes the connection that nobody uses: it has begun to end.
        assert isinstance(idle.sock, socket.socket)
        assert idle.sock.recv(1) == b""
        assert server.process.poll() is None
        (site / "release").touch()
        assert answer.read() == b"ended\n"
        held.close()  # which may be kept alive otherwise
        (site / "stay").unlink()
        assert server.process.wait(SECONDS) == 0
        assert "Traceback" not in server.errors.read_text()


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_to_hypercorn_without_workers(way: str, site: Path) -> None:
    """KeyboardInterrupt goes to its main task if it comes while all sleep; else it may end any request, on epoll as well."""
    with hypercorn(way, "starlette_app:app", site, workers=0, grace=600) as server:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as idle:
            idle.request("GET", "/backend")
            assert b'"uring"' in idle.getresponse().read()
            is_on_the_ring(server.process.pid)
            system_call = Path(f"/proc/{server.process.pid}/syscall")
            until(lambda: system_call.read_text().split()[0] == IO_URING_ENTER, "the server does not fall asleep")
            server.process.send_signal(signal.SIGINT)
            assert isinstance(idle.sock, socket.socket)
            assert idle.sock.recv(1) == b""
        assert server.process.wait(SECONDS) == 0
        assert "Traceback" not in server.errors.read_text()


@pytest.mark.parametrize("way", WAYS)
def test_open_signal_receiver(way: str) -> None:
    command, environment = command_line(way, str(PROGRAMS / "signals.py"))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "uring\n"
        is_on_the_ring(process.pid)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            process.send_signal(number)
            assert process.stdout.readline() == f"{number.name}\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "SIGTERM\n"
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("busy", ["in a receive", "in Python"])
def test_ctrl_c(way: str, busy: str) -> None:
    command, environment = command_line(way, str(PROGRAMS / "interrupted.py"), busy)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "uring\n"
        is_on_the_ring(process.pid)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=SECONDS)
    assert said == "cleaned up\n"
    assert process.returncode == -signal.SIGINT
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
