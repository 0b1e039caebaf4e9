"""The start-up hook of trio-uring: puts Trio's runs on the ring in a process that was started with
TRIO_IO_BACKEND set.

It stands at the top of site-packages, where the interpreter reads trio_uring_startup.pth (and
trio_uring_startup.start from Python 3.15 on, PEP 829) when it starts. It knows one variable, and how imports are put off.

PYTEST_DONT_REWRITE: see trio_uring/__init__.py.
"""

import os
import sys


def install() -> None:
    """Does nothing unless TRIO_IO_BACKEND is set; imports no Trio (see trio_uring/_entry/after_trio.py).

    From Python 3.15 on imports may be lazy (PEP 810), and "import trio_uring" for the sake of io_backend names nothing that is
    used later: it would never happen. So there it is made one that is not put off, unless the program has a filter of its own.
    """
    if os.environ.get("TRIO_IO_BACKEND"):
        import trio_uring  # noqa: F401
    elif sys.version_info >= (3, 15) and sys.get_lazy_imports_filter() is None:
        sys.set_lazy_imports_filter(_may_be_lazy)


def _may_be_lazy(_importer: str, name: str, _names: object = None) -> bool:
    return name.partition(".")[0] != "trio_uring"
