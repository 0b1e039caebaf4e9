"""The processes of a measurement: the measured one, the load generator, strace; and how the generator is
compiled.

Knows their command lines and the lines that they exchange. Every process is started here, has a deadline,
and is ended here by its own handle. Raises `MeasurementError`, with a sentence, for whatever goes wrong
with one.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import Cores
from benchmarks.model import Case, Contender, Measurement, Workload, parse_strace_summary

_SOURCE = Path(__file__).with_name("load.c")
_ROOT = Path(__file__).parent.parent
_FLAGS = ("-std=gnu11", "-O2", "-Wall")
# The benchmarks of this checkout, by an interpreter that has a trio_uring of its own, or none.
_FROM_ELSEWHERE = """
import contextlib, runpy, sys
with contextlib.suppress(ImportError):
    import trio_uring
sys.path.insert(0, ".")
runpy.run_module("benchmarks.player", run_name="__main__")
"""
_START_SECONDS = 30.0
_PLAY_SECONDS = 240.0


class MeasurementError(Exception):
    """A measurement could not be made; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How long a measurement is: seconds of warm-up and of the window, requests of the strace pass."""

    warmup: float
    seconds: float
    requests: int


class Child:
    """A process that speaks in lines on one of its outputs, with a deadline on every wait."""

    def __init__(self, argv: Sequence[str], *, watch: str = "stdout") -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        environment = {k: v for k, v in os.environ.items() if k != "TRIO_IO_BACKEND"}  # the contender decides
        self._process = subprocess.Popen(
            argv,
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if watch == "stdout" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if watch == "stderr" else self._errors,
        )
        self.pid = self._process.pid
        self._name = Path(argv[0]).name if watch == "stderr" else " ".join(Path(a).name for a in argv[:3])
        stream = self._process.stdout if watch == "stdout" else self._process.stderr
        assert stream is not None
        self._watched = stream.fileno()
        self._pending = b""

    def line(self, seconds: float) -> str:
        """The next line that it writes. MeasurementError if it ends or says nothing for so long."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._watched, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise MeasurementError(f"{self._name} said nothing for {seconds:g} s")
                if selector.select(left):
                    chunk = os.read(self._watched, 65536)
                    if not chunk:
                        raise MeasurementError(self._last_words())
                    self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace")

    def message(self, seconds: float) -> dict[str, Any]:
        """The next line, as the JSON object that it is; MeasurementError if it reports an error."""
        line = self.line(seconds)
        try:
            message = json.loads(line)
        except ValueError:
            raise MeasurementError(f"{self._name} wrote {line!r}, which is not a message") from None
        if not isinstance(message, dict):
            raise MeasurementError(f"{self._name} wrote {line!r}, which is not a message")
        if "error" in message:
            raise MeasurementError(str(message["error"]))
        return message

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise MeasurementError(self._last_words()) from None

    def interrupt(self, seconds: float) -> None:
        """SIGINT, and wait until it has ended."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"{self._name} did not end within {seconds:g} s of an interrupt") from None

    def end(self) -> None:
        """End it, and wait until it has ended."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):  # a word that it had not read
                    stream.close()
        self._errors.close()

    def last_error(self) -> str:
        """The last line that it wrote to standard error, or nothing."""
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), 4096, max(0, size - 4096))
        lines = tail.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _last_words(self) -> str:
        """Why it ended: the last line that it wrote to standard error, else its exit status."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return f"{self._name} closed its output"
        if said := self.last_error():
            return said
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{self._name} {how}"


@contextmanager
def _running(argv: Sequence[str], *, watch: str = "stdout") -> Iterator[Child]:
    child = Child(argv, watch=watch)
    try:
        yield child
    finally:
        child.end()


def compiled_load_generator() -> Path:
    """load.c as a program, compiled if the cache has none of this source. MeasurementError if that fails."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise MeasurementError("the load generator needs a C compiler: install one, or name it with CC")
    mark = hashlib.sha256(b"\0".join([_SOURCE.read_bytes(), *(f.encode() for f in _FLAGS)])).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = base / "trio-uring-benchmarks" / f"load-{mark}"
    if program.exists():
        return program
    program.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        made = Path(scratch, "load")
        command = [compiler, *_FLAGS, "-o", str(made), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MeasurementError(f"the load generator does not compile: {done.stderr.strip()}")
        made.replace(program)  # whole or not at all, whoever else compiles it now
    return program


class Stagehand:
    """Starts what a measurement needs and reads what it yields."""

    def __init__(self, cores: Cores, windows: Windows, open_files: int) -> None:
        self._cores = cores
        self._windows = windows
        self._open_files = open_files

    def why_unavailable(self, contender: Contender) -> str | None:
        """None if the contender can run here, else the reason."""
        try:
            with _running(self._player(contender, "--probe")) as probe:
                probe.message(_START_SECONDS)
        except MeasurementError as error:
            return str(error)
        return None

    def why_not_measured(self, case: Case) -> str | None:
        """None if this machine's limits allow the case, else the reason."""
        if case.load is not None and case.load.descriptors > self._open_files:
            needed = case.load.descriptors
            return f"needs {needed} open files, the hard limit (RLIMIT_NOFILE) is {self._open_files}"
        return None

    def measure(self, contender: Contender, workload: Workload, case: Case) -> Measurement:
        """One measurement, in a process of its own."""
        span = ["--warmup", str(self._windows.warmup), "--seconds", str(self._windows.seconds)]
        with self._performing(contender, workload, case, span) as (_, performer):
            return self._measurement(case, performer.message(_PLAY_SECONDS))

    def count_calls(self, contender: Contender, workload: Workload, case: Case) -> Mapping[str, float]:
        """System calls per request, by name, of all threads of the measured process."""
        tracer = shutil.which("strace")
        if tracer is None:
            raise MeasurementError("system calls are counted with strace, which is not installed")
        many = case.load is not None and case.load.connections > 100
        requests = self._windows.requests * (5 if many else 1)
        span = ["--warmup", "0.3", "--requests", str(requests), "--hold"]
        with ExitStack() as stack:
            server, performer = stack.enter_context(self._performing(contender, workload, case, span))
            performer.message(_PLAY_SECONDS)  # it is ready, and holds
            summary = stack.enter_context(tempfile.NamedTemporaryFile("r"))
            command = [tracer, "-c", "-f", "-o", summary.name, "-p", str(server.pid)]
            trace = stack.enter_context(_running(command, watch="stderr"))
            os.sched_setaffinity(trace.pid, {self._cores.load})
            said = trace.line(_START_SECONDS)
            if "attached" not in said:
                raise MeasurementError(said)
            performer.say("go")
            answered = performer.message(_PLAY_SECONDS)["phases"][0]["requests"]
            trace.interrupt(_START_SECONDS)
            calls = parse_strace_summary(summary.read())
        return {name: count / answered for name, count in calls.items()}

    @contextmanager
    def _performing(
        self, contender: Contender, workload: Workload, case: Case, span: Sequence[str]
    ) -> Iterator[tuple[Child, Child]]:
        """The measured process, and the one that reports: the load generator, or the same one again."""
        play = [workload.name, "--job", workload.job, "--tasks", str(case.tasks)]
        play += ["--block", str(case.block), "--lap", str(case.lap)]
        if case.load is None:
            both = [self._cores.load, self._cores.server]
            with _running(self._player(contender, *play, *span, cores=both)) as player:
                yield player, player
            return
        load = case.load
        with _running(self._player(contender, *play)) as server:
            port = server.message(_START_SECONDS)["port"]
            if load.page:
                command = [sys.executable, "-m", "benchmarks.web_load", "--page", load.page]
                command += ["--streams", str(load.streams)]
            else:
                command = [str(compiled_load_generator()), "--idle", str(load.idle)]
            command += ["--port", str(port), "--pid", str(server.pid), "--core", str(self._cores.load)]
            command += ["--connections", str(load.connections), "--size", str(load.size), *span]
            with _running(command) as generator:
                try:
                    yield server, generator
                except MeasurementError as error:
                    if said := server.last_error():  # what the generator saw has its cause here
                        raise MeasurementError(f"{error} (the server: {said})") from None
                    raise

    def _player(self, contender: Contender, *arguments: str, cores: Sequence[int] = ()) -> list[str]:
        pinned = ["--cores", ",".join(map(str, cores or [self._cores.server]))]
        python = os.environ.get(contender.python)
        if python is None:
            return [sys.executable, "-m", "benchmarks.player", contender.name, *arguments, *pinned]
        return [python, "-P", "-c", _FROM_ELSEWHERE, contender.name, *arguments, *pinned]

    def _measurement(self, case: Case, raw: Mapping[str, Any]) -> Measurement:
        phases = raw["phases"]
        phase = phases[-1]  # beside the idle connections, where there are any
        seconds, requests = phase["seconds"], phase["requests"]
        figures = {
            "cpu_us": phase["cpu_ns"] / requests / 1e3,
            "rate": requests / seconds,
            "p50_us": phase["p50_us"],
            "p99_us": phase["p99_us"],
            "busy": phase["cpu_ns"] / (seconds * 1e9),
        }
        if "threads" in phase:
            figures["threads"] = phase["threads"]
        if case.load is not None and case.load.idle:
            alone = phases[0]
            before, after = raw["resident_kib"]
            figures["kept"] = figures["rate"] / (alone["requests"] / alone["seconds"])
            figures["idle_kib"] = (after - before) / case.load.idle
        return Measurement(
            figures=figures,
            waited=phase["waited_ns"] / (seconds * 1e9),
            load_busy=phase["load_cpu_ns"] / (seconds * 1e9),
            raw=raw,
        )
