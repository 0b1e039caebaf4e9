"""Which encoding a text file has that names none, or "locale": as on epoll, in each locale.

And with UTF-8 mode on and off, which is on by default from CPython 3.15 (PEP 686).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys

import trio
import trio_uring

backend, directory = sys.argv[1:]


async def attempt(answers, function, *args):
    try:
        answers.append(repr(await function(*args)))
    except UnicodeError as error:
        answers.append(repr(error))


async def main():
    answers = []
    for options in ({}, {"encoding": None}, {"encoding": "locale"}, {"encoding": "utf-8"}):
        if sys.version_info < (3, 11) and options.get("encoding") == "locale" and sys.flags.utf8_mode:
            continue  # 3.10 takes it for UTF-8 there, and says so in its documentation
        for contents in ("\\u00e9\\r\\n\\u00fc\\n".encode(), b"\\xe9 of another encoding\\n", b"plain\\n"):
            path = trio.Path(directory, "file")
            await path.write_bytes(contents)
            async with await trio.open_file(path, **options) as file:
                answers.append(f"{file.encoding} {file.errors}")
                await attempt(answers, file.read)
                await attempt(answers, file.seek, 0)
                await attempt(answers, file.readline)
            await attempt(answers, lambda: path.read_text(**options))
        async with await trio.open_file(path, "w", **options) as file:
            await attempt(answers, file.write, "\\u00e9\\n")
            answers.append(file.encoding)
        await attempt(answers, path.read_bytes)
        await attempt(answers, lambda: path.write_text("\\u20ac", **options))
        await attempt(answers, path.read_bytes)
    return answers


print(json.dumps(trio.run(main, io_backend=backend)))
"""

MODES = {
    "C": {"LC_ALL": "C"},
    "C, coerced and without UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "POSIX, ASCII": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "C.UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"},
    "UTF-8 mode in an ASCII locale": {"LC_ALL": "POSIX", "PYTHONUTF8": "1", "PYTHONCOERCECLOCALE": "0"},
}


def answers(backend: str, directory: Path, mode: dict[str, str]) -> list[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8", "TRIO_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, backend, directory],
        env={**kept, **mode},
        capture_output=True,
        text=True,
        encoding="ascii",
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_interpreters_choice(mode: str, tmp_path: Path) -> None:
    plain = answers("epoll", tmp_path, MODES[mode])
    assert answers("uring", tmp_path, MODES[mode]) == plain
    assert len(plain) > 60
    assert any("UnicodeDecodeError" in answer for answer in plain)  # b"\xe9" is no UTF-8 and no ASCII
