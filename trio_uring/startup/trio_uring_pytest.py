"""Layer 5: `pytest --trio-io-backend=uring`. Knows pytest's hooks and one variable; knows nothing of Trio.

pytest imports this module in every session of an environment that trio-uring is installed in, so it stands
outside the package, and the package is imported, and Trio's names are replaced, only where the option is
given.
"""

from __future__ import annotations

import os

import pytest

_VARIABLE = "TRIO_IO_BACKEND"
_before = pytest.StashKey[str | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.getgroup("trio").addoption(
        "--trio-io-backend",
        choices=("uring", "auto", "epoll"),
        help="I/O backend of every Trio run of the session, in spawned processes and xdist workers too",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Sets the variable, which spawned processes inherit, and has this process heed it."""
    backend = config.getoption("--trio-io-backend")
    if backend is not None:
        config.stash[_before] = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = backend
        import trio_uring  # noqa: F401


def pytest_unconfigure(config: pytest.Config) -> None:
    """Puts the variable back."""
    if _before in config.stash:
        before = config.stash[_before]
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def pytest_report_header(config: pytest.Config) -> str | None:
    """One line, if the option was given."""
    backend = config.getoption("--trio-io-backend")
    return f"trio io_backend: {backend}" if backend else None
