"""The start-up hook: TRIO_IO_BACKEND in the environment of programs that know nothing of trio-uring.

Needs trio-uring installed (not as an editable install): the hook is read from site-packages.
"""

from __future__ import annotations

import importlib.metadata
import zipfile
from pathlib import Path

import pytest
import trio
from interpreter import ALWAYS_LOADED, answer, python
from loopback import ON_EPOLL, ON_THE_RING

SITE_PACKAGES = Path(trio.__file__).parent.parent


def installed(name: str) -> Path:
    """A file of the installed distribution, at the top of site-packages."""
    files = importlib.metadata.files("trio-uring") or []
    (path,) = [file for file in files if str(file) == name]
    return Path(str(path.locate()))


# ------------------------------------------------------------------ the files


def test_the_pth_file_is_one_line_that_looks_before_it_imports() -> None:
    (line,) = installed("trio_uring_startup.pth").read_text(encoding="utf-8").splitlines()
    assert line.startswith("import os; os.environ.get(")
    assert line.index("TRIO_IO_BACKEND") < line.index("trio_uring_startup")


def test_the_start_file_names_a_function_that_takes_no_arguments() -> None:
    """The form of PEP 829, which Python 3.15 and newer read in place of the .pth file of the same name."""
    (line,) = installed("trio_uring_startup.start").read_text(encoding="utf-8").splitlines()
    assert line == "trio_uring_startup:install"
    program = """
import json, pkgutil, sys
pkgutil.resolve_name(sys.argv[1])()
print(json.dumps("trio_uring" in sys.modules))
"""
    assert answer("-S", "-c", program, line, PYTHONPATH=str(SITE_PACKAGES)) is False
    assert answer("-S", "-c", program, line, PYTHONPATH=str(SITE_PACKAGES), TRIO_IO_BACKEND="auto") is True


# ------------------------------------------------------------------ off unless asked

LOADED = """
import json, sys
print(json.dumps([
    [name for name in sys.modules if name.startswith("trio")],
    [type(finder).__module__ for finder in sys.meta_path if type(finder).__module__.startswith("trio")],
]))
"""


@pytest.mark.parametrize("variables", [{}, {"TRIO_IO_BACKEND": ""}, {"TRIO_URING_OPTIONS": "sq_entries=2"}])
def test_it_does_nothing_unless_the_variable_is_set(variables: dict[str, str]) -> None:
    assert answer("-c", LOADED, **variables) == [ALWAYS_LOADED, []]


def test_it_imports_neither_trio_nor_the_ring() -> None:
    modules, finders = answer("-c", LOADED, TRIO_IO_BACKEND="uring")
    assert not [name for name in modules if name == "trio" or name.startswith("trio.")]
    assert not {"trio_uring._entry.seams", "trio_uring._ring.ring", "trio_uring._ffi"} & set(modules)
    assert finders == ["trio_uring._entry.after_trio"]


# ------------------------------------------------------------------ unchanged programs


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TRIO_IO_BACKEND": "uring"}, ON_THE_RING),
        ({"TRIO_IO_BACKEND": "auto"}, ON_THE_RING),
        ({"TRIO_IO_BACKEND": "uring", "TRIO_URING_OPTIONS": "sq_entries=2,cq_entries=4"}, ON_THE_RING),
        ({"TRIO_IO_BACKEND": "epoll"}, ON_EPOLL),
        ({"TRIO_IO_BACKEND": ""}, ON_EPOLL),
        ({}, ON_EPOLL),
    ],
)
@pytest.mark.parametrize("flags", [(), ("-I",), ("-O",), ("-X", "dev")], ids=" ".join)
def test_a_trio_program(flags: tuple[str, ...], variables: dict[str, str], expected: dict[str, object]) -> None:
    assert answer(*flags, "loopback.py", **variables) == {**expected, "arguments": []}


@pytest.mark.parametrize("program", ["trio.run(main)", "run(main)", "t.run(main)", "asynchronous.run(main)"])
def test_whatever_name_the_program_has_bound(program: str) -> None:
    code = f"""
import json
import trio as t
from trio import run
import trio._core as asynchronous
import trio
from loopback import main
print(json.dumps({program}))
"""
    assert answer("-c", code, TRIO_IO_BACKEND="uring") == ON_THE_RING


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"TRIO_IO_BACKEND": "iouring"}, "TRIO_IO_BACKEND must be 'uring', 'auto', 'epoll', not 'iouring'"),
        (
            {"TRIO_IO_BACKEND": "uring", "TRIO_URING_OPTIONS": "queue=9"},
            "TRIO_URING_OPTIONS: unknown option 'queue=9'; the options are sq_entries=2 to 32768, "
            "cq_entries=2 to 65536, speculate=0, 1 or auto, spin=0 to 1000, max_workers=1 to 32768, "
            "async_workers_cpuset=processors such as 6-7 or 5,7",
        ),
    ],
)
def test_a_bad_variable_fails_the_run_and_not_the_import(variables: dict[str, str], sentence: str) -> None:
    assert python("-c", "import trio", **variables).returncode == 0
    done = python("loopback.py", **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"ValueError: {sentence}"


SPAWNER = """
import json, multiprocessing, subprocess, sys
import trio
import loopback

def run(async_fn):
    return trio.run(async_fn)

async def with_processes():
    done = await trio.run_process([sys.executable, "loopback.py"], capture_stdout=True)
    return json.loads(done.stdout)

if __name__ == "__main__":
    found = {"parent": run(loopback.main), "trio.run_process": trio.run(with_processes)}
    found["subprocess"] = json.loads(subprocess.check_output([sys.executable, "-m", "loopback"]))
    for method in ("spawn", "forkserver", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            found[method] = pool.apply(run, [loopback.main])
    print(json.dumps(found))
"""


@pytest.mark.parametrize("command", [(), ("-m", "trio_uring", "run")], ids=["variable", "command"])
def test_every_process_that_it_spawns_follows(command: tuple[str, ...], tmp_path: Path) -> None:
    program = tmp_path / "spawner.py"
    program.write_text(SPAWNER)
    variables = {"PYTHONPATH": str(Path(__file__).parent)}
    if not command:
        variables["TRIO_IO_BACKEND"] = "uring"
    found = answer(*command, str(program), **variables)
    assert found == {
        "parent": ON_THE_RING,
        "trio.run_process": {**ON_THE_RING, "arguments": []},
        "subprocess": {**ON_THE_RING, "arguments": []},
        "spawn": ON_THE_RING,
        "forkserver": ON_THE_RING,
        "fork": ON_THE_RING,
    }


# ------------------------------------------------------------------ imports stay what they are

ORDERS = [
    "import trio",
    "import trio_uring",
    "import trio_uring, trio",
    "import trio, trio_uring",
    "import trio._core",
    "import trio.socket",
    "from trio import run",
    "from trio.lowlevel import start_guest_run",
    "import trio_uring._entry.seams",
    "import trio_uring.testing",
    "from trio_uring import run",
    "import trio._core._run, trio_uring",
    "import anyio._backends._trio",
    "__import__('importlib.util').util.find_spec('trio'); import trio",
]


@pytest.mark.parametrize("variables", [{}, {"TRIO_IO_BACKEND": "uring"}], ids=["by import", "by variable"])
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_imports(order: str, variables: dict[str, str]) -> None:
    code = f"""
import json, sys
{order}
import trio_uring, trio
from loopback import main
assert trio.run is trio_uring.run is trio._core.run
assert trio.lowlevel.start_guest_run is trio_uring.start_guest_run
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("trio")]
print(json.dumps(trio.run(main, io_backend="uring")))
"""
    assert answer("-c", code, **variables) == ON_THE_RING


@pytest.mark.parametrize("variables", [{}, {"TRIO_IO_BACKEND": "uring"}], ids=["without", "with"])
def test_the_module_is_as_its_own_loader_made_it(variables: dict[str, str]) -> None:
    """The same program, with and without the hook."""
    code = """
import importlib, importlib.machinery, importlib.resources, inspect, json
import trio
assert type(trio.__spec__.loader) is importlib.machinery.SourceFileLoader
assert trio.__loader__ is trio.__spec__.loader
assert trio.__spec__.origin == trio.__file__ == trio.__spec__.loader.path
assert "from ._core import" in inspect.getsource(trio)
assert (importlib.resources.files("trio") / "py.typed").is_file()
run = trio.run
assert importlib.reload(trio) is trio
assert trio.run is run
assert type(trio.__spec__.loader) is importlib.machinery.SourceFileLoader
print("true")
"""
    assert answer("-c", code, **variables) is True


@pytest.mark.parametrize("position", [0, 1])
def test_another_finder_that_asks_all_the_others_gets_along(position: int) -> None:
    """It asks this one, which asks it, and so on, unless one of them stops."""
    code = """
import json, sys
class Asks:
    loaded = 0
    def find_spec(self, name, path=None, target=None):
        if name != "trio":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)))
        real = spec.loader.exec_module
        def exec_module(module):
            real(module)
            Asks.loaded += 1
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(int(sys.argv[1]), Asks())
from loopback import main
import trio
assert Asks.loaded == 1
print(json.dumps(trio.run(main)))
"""
    assert answer("-c", code, str(position), TRIO_IO_BACKEND="uring") == ON_THE_RING


def test_many_threads_import_at_once() -> None:
    code = """
import importlib, importlib.util, json, threading
together = threading.Barrier(12)
found = []
def one(index):
    together.wait()
    if index % 3 == 0:
        found.append(importlib.util.find_spec("trio").origin)
    else:
        found.append(importlib.import_module("trio" if index % 3 == 1 else "trio_uring").__name__)
threads = [threading.Thread(target=one, args=(index,)) for index in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 12, found
from loopback import main
import trio
print(json.dumps(trio.run(main)))
"""
    assert answer("-c", code, TRIO_IO_BACKEND="uring") == ON_THE_RING


def test_where_trio_is_not_installed() -> None:
    code = """
import json, sys
path, sys.path = sys.path, [entry for entry in sys.path if "site-packages" not in entry]
try:
    import trio
except ModuleNotFoundError as error:
    assert error.name == "trio"
sys.path = path
from loopback import main
import trio
print(json.dumps(trio.run(main)))
"""
    assert answer("-c", code, TRIO_IO_BACKEND="uring") == ON_THE_RING


def test_where_importing_trio_fails_the_error_is_its_own_and_the_next_attempt_counts(tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text("raise OSError('flaky')")
    code = """
import json, sys, traceback
sys.path.insert(0, sys.argv[1])
try:
    import trio
except OSError as error:
    assert str(error) == "flaky"
    assert [entry.name for entry in traceback.extract_tb(error.__traceback__)][-1] == "<module>"
del sys.path[0]
import trio
from loopback import main
print(json.dumps(trio.run(main)))
"""
    assert answer("-c", code, str(tmp_path), TRIO_IO_BACKEND="uring") == ON_THE_RING


def test_a_directory_that_happens_to_be_called_trio_is_a_namespace_as_ever(tmp_path: Path) -> None:
    (tmp_path / "trio" / "inner").mkdir(parents=True)
    code = """
import sys
sys.path = [sys.argv[1]] + [entry for entry in sys.path if "site-packages" not in entry]
import trio.inner
assert trio.__file__ is None
print("true")
"""
    for backend in ("uring", "epoll"):
        assert answer("-c", code, str(tmp_path), TRIO_IO_BACKEND=backend) is True


def test_trio_in_a_zip_file(tmp_path: Path) -> None:
    archive = tmp_path / "library.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for source in (SITE_PACKAGES / "trio").rglob("*.py"):
            if "_tests" not in source.parts:
                target.write(source, source.relative_to(SITE_PACKAGES))
    code = """
import json, sys, zipimport
sys.path.insert(0, sys.argv[1])
import trio
assert type(trio.__spec__.loader) is type(trio.__loader__) is zipimport.zipimporter
assert trio.__file__.startswith(sys.argv[1])
from loopback import main
print(json.dumps(trio.run(main)))
"""
    assert answer("-c", code, str(archive), TRIO_IO_BACKEND="uring") == ON_THE_RING


BROKEN = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "trio_uring._loop.options":
            raise ImportError("half of it is missing")
sys.meta_path.insert(1, Missing())
"""


@pytest.mark.parametrize("backend", ["auto", "epoll"])
def test_a_broken_installation_does_not_stop_who_did_not_insist(backend: str) -> None:
    code = BROKEN + "import json, trio; from loopback import main; print(json.dumps(trio.run(main)))"
    done = python("-c", code, TRIO_IO_BACKEND=backend)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "half of it is missing" in done.stderr
    assert '"epoll"' in done.stdout


def test_a_broken_installation_stops_who_insisted_and_is_no_import_error() -> None:
    """A program takes an ImportError for "no Trio here", and goes on without."""
    code = BROKEN + "try:\n import trio\nexcept ImportError:\n print('no Trio')"
    done = python("-c", code, TRIO_IO_BACKEND="uring")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: trio_uring is installed and cannot be imported: half of it is missing"
    )
