"""Layer 5: puts the seams (layer 4) in place as soon as Trio has been imported, and not before.

Knows the import system; knows nothing of what the seams are. Runs at interpreter start where the start-up
hook is on, so it imports little. The seams wait for modules of AnyIO in the same way.

Where a module is not loaded yet, a finder waits for it at the front of sys.meta_path. It asks the finders
behind it for the real specification and hooks the one loader in it until that has run: what remains in the
module's `__spec__` and `__loader__` is what would be there without us, so inspect, importlib.resources and
reload see no difference. The finder goes when the module has been loaded; where loading fails, it stays for the
next attempt.
"""

from __future__ import annotations

import importlib
import os
import sys
from _thread import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def arrange() -> None:
    """Puts the seams in place now, if Trio has been imported, or else when it is."""
    if "trio" in sys.modules:
        _import_seams()
    else:
        sys.meta_path.insert(0, _Finder("trio", _import_seams))


def when_imported(name: str, then: Callable[[], object]) -> None:
    """Calls `then` now, if a module has been imported, or else right after it has run."""
    if name in sys.modules:
        importlib.import_module(name)  # another thread may be in the middle of it
        then()
    else:
        sys.meta_path.insert(0, _Finder(name, then))


def _import_seams() -> None:
    """Imports the seams, which puts them in place.

    Only a broken installation makes this fail: neither a kernel without io_uring nor a Trio that does not
    fit does. Whoever did not insist on the ring goes on without it. For everybody else the import of Trio
    fails, and not with an ImportError, which programs take for "no Trio here": there is nothing left that
    could refuse the run later, and it must not quietly use epoll.
    """
    try:
        importlib.import_module(f"{__package__}.seams")
    except Exception as error:
        if os.environ.get("TRIO_IO_BACKEND") not in ("auto", "epoll"):
            raise RuntimeError(f"trio_uring is installed and cannot be imported: {error}") from error
        import logging

        logging.getLogger("trio_uring").warning("Trio stays on epoll: trio_uring cannot be imported: %s", error)


class _Finder:
    """Finds one module, and nothing else, the way that it would be found without this finder.

    Args:
      name: the module's.
      then: called after the module has run.
    """

    def __init__(self, name: str, then: Callable[[], object]) -> None:
        self._name = name
        self._then = then
        # Threads that are in find_spec: a finder that is asked here may in its turn ask all the others.
        self._asking: set[int] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        thread = get_ident()
        if name != self._name or thread in self._asking:
            return None
        self._asking.add(thread)
        try:
            finders = list(sys.meta_path)
            # Those in front of this one have been asked, or are asking.
            for finder in finders[finders.index(self) + 1 if self in finders else 0 :]:
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = None if find is None else find(name, path, target)
                if spec is not None:
                    break
            else:
                return None
        finally:
            self._asking.discard(thread)
        # A namespace package, which has no location, or an antique loader is nothing that could be served.
        if spec.has_location and hasattr(spec.loader, "exec_module"):
            self._hook(spec.loader)
        return spec

    def _hook(self, loader: Any) -> None:
        """Has this one loader call `then` after the module.

        Not by a loader of our own around it: tools that ask for the specification alone, such as Jedi, look at
        the loader's type. The loader may be one for many modules (zipimport), and may carry the hooks of others.
        """
        before = loader.exec_module
        is_hooked = "exec_module" in vars(loader)

        def exec_module(module: ModuleType) -> None:
            if module.__name__ == self._name:
                if is_hooked:
                    loader.exec_module = before
                else:
                    del loader.exec_module
            before(module)
            if module.__name__ == self._name:
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                self._then()

        loader.exec_module = exec_module
