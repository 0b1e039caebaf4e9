"""Imports that are put off (PEP 810, and importlib's LazyLoader): whatever asks for the ring gets it, or an error.

CPython 3.15 and newer put off all imports of a program with PYTHON_LAZY_IMPORTS=all, and one that is marked with the word
lazy; to an older one the variable means nothing, and there the marked import is a plain one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from interpreter import PROGRAMS, python
from interpreter import answer as answer_of
from loopback import ON_EPOLL, ON_THE_RING

LAZILY = "lazy import" if sys.version_info >= (3, 15) else "import"

# A module that runs when it is first used, on every CPython.
LAZY_LOADER = """
import importlib.util
def put_off(name):
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""


@pytest.fixture(params=["all", "normal"])
def mode(request: pytest.FixtureRequest) -> str:
    """How CPython 3.15 imports what is not marked."""
    return str(request.param)


def answer(mode: str, *arguments: str, **variables: str) -> Any:
    return answer_of(*arguments, PYTHON_LAZY_IMPORTS=mode, **variables)


@pytest.mark.parametrize("backend", ["uring", "auto", "epoll", ""])
def test_the_variable(mode: str, backend: str) -> None:
    expected = ON_THE_RING if backend in ("uring", "auto") else ON_EPOLL
    assert answer(mode, "loopback.py", TRIO_IO_BACKEND=backend) == {**expected, "arguments": []}


def test_a_wrong_variable_is_refused(mode: str) -> None:
    done = python("loopback.py", TRIO_IO_BACKEND="iouring", PYTHON_LAZY_IMPORTS=mode)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("ValueError: TRIO_IO_BACKEND must be 'uring', 'auto', 'epoll', not 'iouring'\n")


@pytest.mark.parametrize("program", [("loopback.py",), ("-m", "loopback")], ids=["script", "module"])
def test_the_command(mode: str, program: tuple[str, ...]) -> None:
    assert answer(mode, "-m", "trio_uring", "run", *program) == {**ON_THE_RING, "arguments": []}


@pytest.mark.parametrize(
    "imports",
    [
        "import trio, trio_uring",
        "import trio_uring, trio",
        "import trio\ntrio.lowlevel\nimport trio_uring",
        f"import trio\n{LAZILY} trio_uring",
        f"{LAZILY} trio_uring\n{LAZILY} trio",
        f"import trio\n{LAZILY} trio_uring.testing",
        f"import trio\n{LAZILY.replace('import', 'from')} trio_uring import UringBackend",
        "from trio import run\nimport trio_uring, trio",
    ],
    ids=repr,
)
def test_the_keyword(mode: str, imports: str, tmp_path: Path) -> None:
    """The import is there for its effect: nothing that it binds is used."""
    program = tmp_path / "program.py"
    program.write_text(
        f"{imports}\nimport json, loopback\nprint(json.dumps(trio.run(loopback.main, io_backend='uring')))"
    )
    assert answer(mode, str(program), PYTHONPATH=str(PROGRAMS)) == ON_THE_RING


def test_a_wrong_keyword_is_refused(mode: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import trio, trio_uring, loopback\ntrio.run(loopback.main, io_backend='iouring')")
    done = python(str(program), PYTHONPATH=str(PROGRAMS), PYTHON_LAZY_IMPORTS=mode)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ValueError: io_backend must be 'uring', 'auto', 'epoll' or a trio_uring.UringBackend" in done.stderr


def test_anyio(mode: str, tmp_path: Path) -> None:
    """Through AnyIO, whose own names are replaced as well once it is there."""
    program = tmp_path / "program.py"
    program.write_text("""
import json
import anyio
import trio_uring
from anyio._core import _fileio
import loopback

async def main():
    async with await anyio.open_file(__file__) as file:
        assert "async def main" in await file.read()
    return {**await loopback.main(), "replaced": _fileio.AsyncFile.aclose.__code__.co_filename}

print(json.dumps(anyio.run(main, backend="trio", backend_options={"io_backend": "uring"})))
""")
    found = answer(mode, str(program), PYTHONPATH=str(PROGRAMS))
    assert Path(found.pop("replaced")).name == "anyio_files.py"
    assert found == ON_THE_RING


def test_doctor_finds_that_trio_fits(mode: str) -> None:
    report = answer(mode, "-m", "trio_uring", "doctor", "--json")
    assert report["seams"] == []
    assert report["usable"] is True


@pytest.mark.parametrize("variable", ["", "uring"])
@pytest.mark.parametrize("names", ["trio", "trio_uring", "trio trio_uring", "trio_uring trio"])
def test_a_lazy_loader(names: str, variable: str) -> None:
    """`import trio_uring` finds a Trio that has not run, or the other way round."""
    put_off = "\n".join(f"{name} = put_off({name!r})" for name in names.split())
    code = f"""
import json, sys
{LAZY_LOADER}
{put_off}
import trio, trio_uring
trio_uring.__version__
import loopback
print(json.dumps(trio.run(loopback.main, io_backend="uring")))
"""
    assert answer("normal", "-c", code, TRIO_IO_BACKEND=variable) == ON_THE_RING


def test_a_filter_of_the_programs_own_stays(mode: str, tmp_path: Path) -> None:
    """Where the interpreter has filters: the start-up hook's makes way for another, and lets everything else be lazy."""
    (tmp_path / "used.py").write_text("raise SystemExit('imported at once')")
    program = tmp_path / "program.py"
    program.write_text(f"""
import sys
if sys.version_info >= (3, 15):
    exec({LAZILY + " used"!r})
    assert sys.get_lazy_imports_filter().__module__ == "trio_uring_startup"
    mine = lambda *names: True
    sys.set_lazy_imports_filter(mine)
    import trio_uring_startup
    trio_uring_startup.install()
    assert sys.get_lazy_imports_filter() is mine
print("true")
""")
    assert answer(mode, str(program)) is True
