"""What Debian's archive has, unpacked into a folder; nothing is installed. Used by tests/release.py and tests/kernels.sh.

    python debian.py system FOLDER SUITE ARCHITECTURE PACKAGE...    these packages, and all that they depend on

Downloads go through apt, whose signatures it checks, from where this machine gets Debian, and are kept beside the folder. Needs
no root and no emulator: no package's scripts run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _archive() -> str:
    for line in _run("apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages").split(
        "\n"
    ):
        if line.endswith("/debian/ main"):
            return line.removesuffix("/ main")
    raise SystemExit("apt has no archive of Debian in its sources; add one and try again")


class Suite:
    """A suite of Debian's, of one architecture, as apt sees it on a machine where nothing is installed."""

    def __init__(self, name: str, architecture: str, work: Path) -> None:
        self.folder = work / f"{name}-{architecture}"
        for part in ("lists/partial", "cache/archives/partial", "debs"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        sources = self.folder / "sources.list"
        sources.write_text(f"deb [arch={architecture} signed-by={KEYS}] {_archive()} {name} main\n")
        (self.folder / "status").touch()
        self._options = [
            *("-q", "-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures={architecture}"),
            *("-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", f"Dir::State::lists={self.folder / 'lists'}", "-o", f"Dir::State::status={self.folder / 'status'}"),
            *("-o", f"Dir::Cache={self.folder / 'cache'}", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="),
        ]
        self._apt("update")

    def _apt(self, *arguments: str, cwd: Path | None = None) -> str:
        return _run("apt-get", *self._options, *arguments, cwd=cwd)

    def unpack(self, into: Path, *packages: str) -> dict[str, str]:
        """Into the folder `into`, beside what is there; answers their versions."""
        versions = {}
        for package in packages:
            # The one that is newest: several are there while the archive moves on.
            offered = _run("apt-cache", *self._options, "show", "--no-all-versions", package)
            versions[package] = offered.partition("\nVersion: ")[2].partition("\n")[0]
            before = set((self.folder / "debs").iterdir())
            self._apt("download", package, cwd=self.folder / "debs")
            epochless = versions[package].replace(":", "%3a")
            (deb,) = (self.folder / "debs").glob(f"{package}_{epochless}_*.deb")
            for outdated in before - {deb}:
                if outdated.name.startswith(f"{package}_"):
                    outdated.unlink()
            _run("dpkg-deb", "-x", deb, into)
        return versions

    def system(self, into: Path, *packages: str) -> None:
        """All that these need, into a folder that is made afresh."""
        archives = self.folder / "cache" / "archives"
        for stale in archives.glob("*.deb"):
            stale.unlink()
        self._apt("install", "-y", "--download-only", "--no-install-recommends", *packages)
        shutil.rmtree(into, ignore_errors=True)
        # A folder that is a link on the system, which a package may still have as a folder.
        for name in ("bin", "lib", "sbin"):
            (into / "usr" / name).mkdir(parents=True)
            (into / name).symlink_to(f"usr/{name}")
        for deb in sorted(archives.glob("*.deb")):
            tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, check=True).stdout
            subprocess.run(
                ["tar", "x", "-C", into, "--keep-directory-symlink", "--no-same-owner"], input=tar, check=True
            )


def main() -> None:
    command, folder, suite, architecture, *packages = sys.argv[1:]
    if command != "system":
        raise SystemExit(__doc__)
    into = Path(folder).absolute()
    Suite(suite, architecture, into.parent).system(into, *packages)


if __name__ == "__main__":
    os.umask(0o022)
    main()
