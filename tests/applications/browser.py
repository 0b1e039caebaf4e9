"""A headless browser, driven over its debugging pipe. Knows Chromium and its DevTools protocol; knows nothing of trio-uring.

The pipe says when something has happened, so that nothing here waits for a time. A browser whose pipe is closed ends, also
where the process that started it was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from hosting import SECONDS, until

OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which neither root nor a container could have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--ignore-certificate-errors",
    "--no-first-run",
    # Nothing but loopback: what a browser does on its own account is off, and no other name is known.
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@attrs.define
class Page:
    """One page of a browser.

    Attributes:
      pipe: carries messages of JSON, each ended by a zero byte.
    """

    pipe: socket.socket
    _session: str | None = None
    _sent: int = 0
    _received: bytes = b""

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol, and answers its result. Events are not looked at.

        Raises:
          RuntimeError: the browser refused, or is gone.
        """
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self.pipe.sendall(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._received:
                part = self.pipe.recv(65536)
                if not part:
                    raise RuntimeError(f"the browser ended during {method}")
                self._received += part
            one, _, self._received = self._received.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == self._sent:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> None:
        """Goes to an address; over as soon as the server has answered."""
        if self._session is None:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        problem = self.ask("Page.navigate", url=url).get("errorText")
        if problem:
            raise RuntimeError(f"{url}: {problem}")

    def text(self, element: str) -> str:
        """The text of the element of that id, once there is some."""

        def look() -> Any:
            found = self.ask("Runtime.evaluate", expression=f"document.getElementById({element!r})?.textContent")
            return found["result"].get("value")

        return str(until(look, f"the element {element} stays empty"))


def alive(session: int) -> list[int]:
    """The processes of a session (setsid(2)), less those that have ended and that nobody has waited for."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, owner = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                found.append(int(name))
    return found


@contextlib.contextmanager
def browser(directory: Path) -> Iterator[Page]:
    """A browser of its own, whose profile is in that directory. None of its processes is left afterwards."""
    errors = directory / "errors"
    # The browser's pipe is its descriptors 3 and 4.
    command = ["sh", "-c", 'exec "$0" "$@" 3<&0 4>&0 </dev/null', "chromium", *OPTIONS]
    ours, theirs = socket.socketpair()
    with ours, errors.open("wb") as sink:
        ours.settimeout(SECONDS)
        with theirs:
            process = subprocess.Popen(
                [*command, f"--user-data-dir={directory / 'profile'}"],
                env={**os.environ, "HOME": str(directory)},
                stdin=theirs.fileno(),
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        with process:
            try:
                page = Page(ours)
                yield page
                page._session = None
                page.ask("Browser.close")
                process.wait(SECONDS)
                until(lambda: not alive(process.pid), "processes of the browser are left")
            except BaseException:
                print(errors.read_text())
                raise
            finally:
                for pid in alive(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
