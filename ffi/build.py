"""Builds the shim (layer 0) and places the start-up hook; named in pyproject.toml as setuptools commands.

Knows cffi, pkg-config and setuptools; knows nothing of what the shim does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from cffi import FFI
from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
ROOT = HERE.parent
OLDEST_LIBURING = (2, 3)
INSTALL_LIBURING = (
    "install it and build again (Debian and Ubuntu: apt-get install liburing-dev pkg-config; "
    "Fedora: dnf install liburing-devel pkgconf)"
)


# cffi lets go of the interpreter's lock around every call, which costs more than queueing an entry does (2 % of an echo). So
# calls keep it here, and the shim lets go where it may block: in io_uring_enter(2) above all.
# With the lock the shim may also make the bytes objects of a batch's results: no Python code runs there.
BINDING = """
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }
#define TU_LET_GO PyThreadState *let_go = PyEval_SaveThread()
#define TU_TAKE_BACK PyEval_RestoreThread(let_go)
#define TU_DELIVER deliver
static int deliver(unsigned long long list, unsigned item, const char *data, int size)
{
    PyObject *bytes = PyBytes_FromStringAndSize(data, size);

    if (bytes && PyList_SetItem((PyObject *)(size_t)list, item, bytes) == 0)
        return 0;
    PyErr_Clear();
    return -1;
}
"""


class BuildProblem(SystemExit):
    """Ends the build with one sentence in place of a traceback."""

    def __init__(self, sentence: str) -> None:
        super().__init__(f"trio-uring cannot be built: {sentence}")


def pkg_config(*arguments: str) -> str:
    """What `pkg-config ARGUMENTS liburing` prints."""
    program = shutil.which("pkg-config") or shutil.which("pkgconf")
    if program is None:
        raise BuildProblem(f"pkg-config, which finds liburing, is not installed; {INSTALL_LIBURING}")
    done = subprocess.run([program, *arguments, "liburing"], capture_output=True, text=True)
    if done.returncode:
        raise BuildProblem(
            f"liburing's headers are not installed (pkg-config does not know liburing); {INSTALL_LIBURING}"
        )
    return done.stdout.strip()


class StableABI(NamedTuple):
    """Which interpreters an extension built by this one serves.

    Attributes:
      limited: whether others than this very version.
      macro: what CPython's headers and cffi's want defined.
      wheel: the oldest one, as a tag of wheels; empty where `limited` is false.
    """

    limited: bool
    macro: tuple[str, str | None]
    wheel: str


def stable_abi() -> StableABI:
    """Of the interpreter that builds.

    A free-threaded one has a stable ABI from 3.15 on (PEP 803, "abi3t"; cffi 2.1), and 3.14t has none: there it is an
    extension for that version alone.
    """
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return StableABI(True, ("Py_LIMITED_API", "0x030a0000"), "cp310")
    if sys.version_info < (3, 15):
        return StableABI(False, ("_CFFI_NO_LIMITED_API", None), "")
    return StableABI(True, ("Py_TARGET_ABI3T", "0x030f0000"), "cp315")


def configure(extension: Extension) -> None:
    """Fills in sources, include paths and the library, statically linked where its archive exists."""
    version = pkg_config("--modversion")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_LIBURING:
        raise BuildProblem(f"liburing is {version} and 2.3 is the oldest that serves; {INSTALL_LIBURING}")
    extension.include_dirs = [str(HERE), *(flag[2:] for flag in pkg_config("--cflags-only-I").split())]
    extension.define_macros = [("TU_LIBURING_VERSION", f'"{version}"'), stable_abi().macro]
    extension.extra_compile_args = ["-std=gnu11", "-O2", "-fvisibility=hidden", "-Wno-unused-function"]
    extension.extra_compile_args += [f"-ffile-prefix-map={ROOT}=."]  # the same bytes wherever it is built
    archive = Path(pkg_config("--variable=libdir"), "liburing.a")
    if archive.exists():
        extension.extra_objects = [str(archive)]
    else:
        extension.libraries = ["uring"]
        extension.library_dirs = [pkg_config("--variable=libdir")]


def declarations() -> str:
    """The headers as cffi reads them: it takes integer macros, but no comments on the same line matter to it."""
    headers = (HERE / "uring.h").read_text() + (HERE / "pool.h").read_text()
    return headers + "static int tu_add_calls(const char *name);"


def source() -> str:
    """The C code of the binding, but for what cffi generates."""
    return BINDING + "".join((HERE / name).read_text() for name in ("uring.c", "pool.c", "calls.c"))


class BuildExt(build_ext):
    """build_ext that generates the binding's C code first."""

    def finalize_options(self) -> None:
        super().finalize_options()
        for extension in self.extensions:
            extension.py_limited_api = stable_abi().limited  # the name of the file has it

    def build_extension(self, ext: Extension) -> None:
        configure(ext)
        compiler = getattr(self.compiler, "compiler", ["cc"])[0]
        if shutil.which(compiler) is None:
            raise BuildProblem(
                f"the C compiler {compiler!r} is not installed; install one (Debian and Ubuntu: apt-get install gcc)"
            )
        # Where this interpreter has its libraries is nothing to who installs the wheel.
        self.compiler.linker_so = [part for part in self.compiler.linker_so if not part.startswith("-Wl,-rpath")]
        builder = FFI()
        builder.cdef(declarations())
        builder.set_source(ext.name, source(), py_limited_api=stable_abi().limited)
        generated = Path(self.build_temp, "binding.c")
        generated.parent.mkdir(parents=True, exist_ok=True)
        builder.emit_c_code(str(generated))
        ext.sources = [str(generated)]
        ext.depends = [str(part) for part in HERE.glob("*.[ch]")]  # uring.c includes the others
        super().build_extension(ext)


class BdistWheel(bdist_wheel):
    """bdist_wheel whose name says which interpreters it serves."""

    def finalize_options(self) -> None:
        self.py_limited_api = stable_abi().wheel or False
        super().finalize_options()


# What the source distribution has: all that builds, tests and explains it.
TREES = ("ffi", "trio_uring", "tests", "benchmarks", "docs", "findings")
FILES = ("CHANGELOG.md", "Makefile", "README.md", "pyproject.toml")


class Sdist(sdist):
    """sdist with the whole of the sources, by folder: setuptools alone takes the packages and the first C file."""

    def make_distribution(self) -> None:
        for tree in TREES:
            for path in sorted(ROOT.joinpath(tree).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc"):
                    self.filelist.append(str(path.relative_to(ROOT)))
        self.filelist.extend(FILES)
        self.filelist.remove_duplicates()
        super().make_distribution()


class BuildPy(build_py):
    """build_py that puts the start-up hook and the pytest plugin at the top of site-packages.

    The interpreter looks for the one there; the other must be importable without the package.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in self._hook_files():
                self.copy_file(str(source), str(Path(self.build_lib, source.name)))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """All that is built, the hook's files among it."""
        hook = [str(Path(self.build_lib, source.name)) for source in self._hook_files()]
        return [*super().get_outputs(include_bytecode), *hook]

    @staticmethod
    def _hook_files() -> list[Path]:
        return sorted((ROOT / "trio_uring" / "startup").glob("trio_uring_*.*"))
