"""The start-up hook of trio-uring: puts Trio's runs on the ring in a process that was started with
TRIO_IO_BACKEND set.

It stands at the top of site-packages, where the interpreter reads trio_uring_startup.pth (and
trio_uring_startup.start from Python 3.15 on, PEP 829) when it starts. It knows one variable.

PYTEST_DONT_REWRITE: see trio_uring/__init__.py.
"""

import os


def install() -> None:
    """Does nothing unless TRIO_IO_BACKEND is set; imports no Trio (see trio_uring/_entry/after_trio.py)."""
    if os.environ.get("TRIO_IO_BACKEND"):
        import trio_uring  # noqa: F401
