"""The documentation as Sphinx builds it, looked at in a browser: wide, and as narrow as a telephone."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from pages import DOCS

sys.path.append(str(Path(__file__).parent.parent / "applications"))

from browser import Page, browser
from hosting import until

SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it: a warning is an error."""
    directory = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(directory / "trees")]
    done = subprocess.run([*command, str(DOCS), str(directory / "html")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return directory / "html"


def value(page: Page, expression: str) -> object:
    return page.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


def pixels(png: bytes) -> tuple[int, int, set[bytes]]:
    """Width and height of a PNG of 8-bit samples, and the different rows of it, as they are stored."""
    width, height, _, kind = struct.unpack(">IIBB", png[16:26])
    data, place = b"", 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            data += png[place + 8 : place + 8 + length]
        place += 12 + length
    line = 1 + width * {2: 3, 6: 4}[kind]
    raw = zlib.decompress(data)
    return width, height, {raw[start : start + line] for start in range(0, len(raw), line)}


def test_pages_are_readable_wide_and_narrow(built: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        for name, title in (
            ("index", "trio-uring"),
            ("reference", "Reference"),
            ("differences", "What is not as on epoll"),
        ):
            for size, (width, height) in SIZES.items():
                page.open((built / f"{name}.html").as_uri())
                page.ask(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=height,
                    deviceScaleFactor=1,
                    mobile=size == "narrow",
                )
                here = f"document.readyState == 'complete' && location.pathname.endsWith('/{name}.html')"
                until(lambda here=here: value(page, here), f"{name} is not loaded")  # type: ignore[misc]
                assert str(value(page, "document.querySelector('div.body h1').innerText")).startswith(title)
                top = value(page, "document.querySelector('div.body h1').getBoundingClientRect().top")
                assert isinstance(top, (int, float))
                assert 0 <= top < 200, "the text is not what is seen first"
                # The page itself never has to be moved sideways, and its text fills what there is.
                assert value(page, "document.documentElement.scrollWidth <= window.innerWidth"), (name, size)
                body = value(page, "document.querySelector('div.body').getBoundingClientRect().width")
                assert isinstance(body, (int, float))
                assert body > (500 if size == "wide" else 300), (name, size)
                assert value(page, "[...document.images].every(i => i.complete && i.naturalWidth > 0)"), (name, size)
                shot = base64.b64decode(page.ask("Page.captureScreenshot", format="png")["data"])
                (tmp_path / f"{name}-{size}.png").write_bytes(shot)
                found_width, found_height, rows = pixels(shot)
                assert (found_width, found_height) == (width, height)
                assert len(rows) > 100, "an empty page"


def test_the_reference_shows_each_function_with_its_types(built: Path) -> None:
    """What autodoc makes of a lazily loaded name: the coroutine as one to await, arguments, types, errors."""
    text = (built / "reference.html").read_text()
    for name in ("read_at", "fsync", "statx", "sendfile"):
        assert f'id="trio_uring.{name}"' in text
    entry = text[text.index('id="trio_uring.read_at"') :][:6000]
    for part in ("await", "length", "bytes", "Raises", "OSError"):
        assert part in entry
