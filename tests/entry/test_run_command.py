"""`python -m trio_uring run`: the same as plain Python in everything but the backend of Trio's runs.

Needs trio-uring installed (not as an editable install): the command relies on the start-up hook.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import trio
from interpreter import ALWAYS_LOADED, PROGRAMS, SECONDS, answer, environment, python
from loopback import ON_EPOLL, ON_THE_RING

import trio_uring

RUN = ("-m", "trio_uring", "run")

PROGRAM = """
import json, os, sys
spec = __spec__ and [__spec__.name, __spec__.origin]
hook = [name for name in sys.modules if name.startswith("trio_uring")]
print(json.dumps([sys.argv, sys.path, __name__, __package__, spec, globals().get("__file__"), hook]))
"""

# Each is a program, and each ends in its own way.
ENDINGS = {
    "normal": "print('done')",
    "exit without a code": "raise SystemExit",
    "exit with 0": "raise SystemExit(0)",
    "exit with a number": "import sys; sys.exit(3)",
    "exit with a large number": "import sys; sys.exit(259)",
    "exit with text": "import sys; sys.exit('no such luck')",
    "exit with an object": "raise SystemExit([1, 2])",
    "exit with true": "raise SystemExit(True)",
    "os._exit": "import os; os._exit(7)",
    "exception": "def inner():\n    raise ValueError('wrong')\n\ndef outer():\n    inner()\n\nouter()\n",
    "chained": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise LookupError from error\n",
    "group": "raise ExceptionGroup('two', [ValueError(1), KeyError(2)])",
    "syntax error": "def broken(:\n    pass\n",
    "import error": "import no_such_module_anywhere",
    "interrupt": "raise KeyboardInterrupt",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "unclosed output": "import sys; sys.stdout.write('x' * 70000)",
    "at exit": "import atexit; atexit.register(print, 'bye'); print('hello')",
    "input": "print(input() + input())",
}


def same(
    *target: str,
    cwd: Path,
    stdin: str = "first line\nsecond line\n",
    flags: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """What the command does with a target, held against what the interpreter does with it."""
    plain = python(*flags, *target, cwd=cwd, stdin=stdin)
    ours = python(*flags, *RUN, *target, cwd=cwd, stdin=stdin)
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    return ours


def make(directory: Path, program: str) -> dict[str, tuple[str, ...]]:
    """The same program in every form that an interpreter runs."""
    (directory / "script.py").write_text(program)
    package = directory / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(program)
    (package / "module.py").write_text(program)
    plain = directory / "plain"
    plain.mkdir()
    (plain / "__main__.py").write_text(program)
    with zipfile.ZipFile(directory / "program.zip", "w") as archive:
        archive.writestr("__main__.py", program)
    return {
        "script": ("script.py",),
        "absolute": (str(directory / "script.py"),),
        "module": ("-m", "script"),
        "package": ("-m", "package"),
        "submodule": ("-m", "package.module"),
        "directory": ("plain",),
        "zip": ("program.zip",),
        "code": ("-c", program),
        "stdin": ("-",),
    }


FORMS = ["script", "absolute", "module", "package", "submodule", "directory", "zip", "code", "stdin"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_program_finds_itself_as_under_plain_python(form: str, tmp_path: Path) -> None:
    target = make(tmp_path, PROGRAM)[form]
    arguments = ("one", "--io-backend=epoll", "-m", "", "two words")
    stdin = PROGRAM if form == "stdin" else ""
    plain = python(*target, *arguments, cwd=tmp_path, stdin=stdin)
    ours = python(*RUN, *target, *arguments, cwd=tmp_path, stdin=stdin)
    assert (plain.returncode, plain.stderr) == (ours.returncode, ours.stderr) == (0, "")
    *expected, without_hook = json.loads(plain.stdout)
    *found, with_hook = json.loads(ours.stdout)
    assert found == expected
    assert without_hook == ALWAYS_LOADED
    assert {"trio_uring_startup", "trio_uring"} <= set(with_hook)


@pytest.mark.parametrize(
    ("ending", "form"),
    [*((ending, form) for ending in ENDINGS for form in ("script", "module")), ("exception", "zip")],
)
def test_every_ending_is_that_of_plain_python_byte_for_byte(ending: str, form: str, tmp_path: Path) -> None:
    same(*make(tmp_path, ENDINGS[ending])[form], cwd=tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        ("no_such_file.py",),
        ("no_such_directory/",),
        ("empty",),
        ("-m", "no_such_module"),
        ("-m", "empty"),
        ("-m",),
        ("-c",),
        ("-Q",),
    ],
    ids=" ".join,
)
def test_what_python_cannot_run_it_refuses_in_its_own_words(target: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert same(*target, cwd=tmp_path).returncode != 0


FAILING = """
import trio

async def child():
    raise ValueError("wrong")

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)

def start():
    trio.run(main)

start()
"""


def test_a_failing_trio_program_has_the_traceback_of_plain_python(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    plain = python("failing.py", cwd=tmp_path)
    ours = python(*RUN, "failing.py", cwd=tmp_path)
    lines = ours.stderr.splitlines(keepends=True)
    if sys.version_info < (3, 11):  # where a function cannot leave its own entry out of a traceback
        (entry,) = [number for number, line in enumerate(lines) if trio_uring._entry.seams.__file__ in line]
        del lines[entry : entry + 2]
    assert "".join(lines) == plain.stderr
    assert ours.returncode == plain.returncode == 1


WAITS = {
    "plain": "import signal; print('ready', flush=True); signal.pause()",
    "trio": """
import trio
async def main():
    print("ready", flush=True)
    await trio.sleep_forever()
trio.run(main)
""",
    "handled": """
import trio
async def main():
    try:
        print("ready", flush=True)
        await trio.sleep_forever()
    finally:
        print("cleaned up", flush=True)
try:
    trio.run(main)
except KeyboardInterrupt:
    raise SystemExit(5)
""",
}


@pytest.mark.parametrize("program", WAITS)
def test_ctrl_c(program: str, tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS[program])
    found = []
    for prefix in ((), RUN):
        with subprocess.Popen(
            [sys.executable, *prefix, "waits.py"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=SECONDS)
            found.append((process.returncode, stdout, stderr.splitlines()[-1:]))
    assert found[1] == found[0]
    assert found[1][0] == (5 if program == "handled" else -signal.SIGINT)


# ------------------------------------------------------------------ the backend


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ON_THE_RING),
        (("--io-backend", "uring"), ON_THE_RING),
        (("--io-backend=auto",), ON_THE_RING),
        (("--io-backend", "epoll"), ON_EPOLL),
    ],
)
@pytest.mark.parametrize("target", [("loopback.py",), ("-m", "loopback")], ids=["script", "module"])
@pytest.mark.parametrize("before", ["", "auto"])
def test_an_unchanged_program(
    target: tuple[str, ...], options: tuple[str, ...], expected: dict[str, object], before: str
) -> None:
    found = answer(*RUN, *options, *target, "--io-backend", "-m", TRIO_IO_BACKEND=before)
    assert found == {**expected, "arguments": ["--io-backend", "-m"]}


def test_the_options_of_the_environment_count() -> None:
    done = python(*RUN, "loopback.py", TRIO_URING_OPTIONS="sq_entries=1")
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: TRIO_URING_OPTIONS: sq_entries must be 2 to 32768, not 1\n")


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("-u",),
        ("-I",),
        ("-W", "error", "-X", "dev"),
        ("-bb", "-OO", "-Wonce"),
        ("-X", "utf8=1", "-s"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_the_flags_of_the_interpreter_are_kept(flags: tuple[str, ...], joined: bool) -> None:
    code = "import json, sys; print(json.dumps([sys.orig_argv[1:], str(sys.flags)]))"
    own = ["-umtrio_uring", "run"] if joined else ["-m", "trio_uring", "run"]
    plain = [*flags, "-u"] if joined else [*flags]
    assert answer(*flags, *own, "-c", code, "-m", "trio_uring") == answer(*plain, "-c", code, "-m", "trio_uring")


def test_it_keeps_its_process_and_its_descriptors() -> None:
    readable, writable = os.pipe()
    try:
        code = f"import os; os.write({writable}, str(os.getpid()).encode())"
        with subprocess.Popen([sys.executable, *RUN, "-c", code], env=environment(), pass_fds=[writable]) as process:
            assert process.wait(SECONDS) == 0
        assert os.read(readable, 100) == str(process.pid).encode()
    finally:
        os.close(readable)
        os.close(writable)


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("walk",),
        ("run",),
        ("run", "--io-backend"),
        ("run", "--io-backend", "iocp", "loopback.py"),
        ("run", "--io-backend=", "loopback.py"),
        ("run", "--io-backend", "uring"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_bring_the_usage_and_2(arguments: tuple[str, ...]) -> None:
    done = python("-m", "trio_uring", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python -m trio_uring run" in done.stderr
    if arguments == ("walk",):
        assert "there is no command 'walk'" in done.stderr


@pytest.mark.parametrize("arguments", [("-h",), ("--help",), ("run", "-h"), ("run", "--help")], ids=" ".join)
def test_help_is_no_error(arguments: tuple[str, ...]) -> None:
    done = python("-m", "trio_uring", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m trio_uring run")


def test_the_version() -> None:
    done = python("-m", "trio_uring", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"trio-uring {trio_uring.__version__}\n", "")


@pytest.mark.parametrize("variables", [{}, {"TRIO_IO_BACKEND": "uring"}], ids=["unset", "set"])
def test_without_the_hook_it_refuses(variables: dict[str, str]) -> None:
    """-S turns the hook off, as a package that is found through PYTHONPATH alone has none."""
    site_packages = str(Path(trio.__file__).parent.parent)
    done = python("-S", *RUN, "loopback.py", PYTHONPATH=site_packages, cwd=PROGRAMS, **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("python -m trio_uring run: the start-up hook of trio-uring is not active")
    assert "pip" in done.stderr
    assert "Traceback" not in done.stderr
