"""How Sphinx makes the documentation: `make docs`, or `sphinx-build -W docs build/docs`.

Knows where the public names live. A name of this project that does not resolve, and a link that leads nowhere, fail the build.
"""

from __future__ import annotations

import trio_uring
from trio_uring import _version

project = "trio-uring"
author = "the trio-uring contributors"
copyright = "the trio-uring contributors, MIT or Apache-2.0"
version = release = _version.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib_trio"]
exclude_patterns = ["demo", "examples"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3

# In docstrings `name` is a name of Python's; those of other projects have no page here to lead to.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!trio_uring\.).*"), (r"py:.*", r"trio_uring\.(_|testing|cancellation).*")]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "alabaster"
html_title = f"trio-uring {release}"
html_theme_options = {
    "description": "The io_uring backend for Trio and AnyIO",
    "page_width": "64rem",
    "body_max_width": "48rem",
    "show_relbars": True,
}
html_static_path = ["static"]
html_css_files = ["narrow.css"]
html_show_sourcelink = False

# A name is documented where users find it, not where it happens to be defined.
for _name in trio_uring.__all__:
    _object = getattr(trio_uring, _name)
    if getattr(_object, "__module__", "").startswith("trio_uring."):
        _object.__module__ = "trio_uring"
