"""For the tests of text files: encodings with words that are hard for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NEWLINES = (None, "", "\n", "\r", "\r\n")
WIDE = ("a", "é", "日", "𝄞", "b\n", "\r", "\r\n", "\n", "\u2028", "\x85", "xyz ")
JAPANESE = ("a", "日", "本\n", "\r", "\r\n", "\n", "xyz ", "カ")
PLAIN = ("a", "b\n", "\r", "\r\n", "\n", "\x0b", "xyz ")
CODECS: dict[tuple[str, str], tuple[str, ...]] = {
    ("utf-8", "strict"): WIDE,
    ("utf-8", "replace"): WIDE,
    ("utf-8-sig", "strict"): WIDE,
    ("utf-16", "strict"): WIDE,
    ("utf-16-le", "strict"): WIDE,
    ("utf-32", "strict"): WIDE,
    ("utf-7", "strict"): WIDE,
    ("gb18030", "strict"): WIDE,
    ("latin-1", "strict"): ("a", "é", "b\n", "\r", "\r\n", "\n", "\x85", "xyz "),
    ("ascii", "replace"): PLAIN,
    ("ascii", "surrogateescape"): PLAIN,
    ("ascii", "backslashreplace"): PLAIN,
    ("shift_jis", "replace"): JAPANESE,
    ("iso2022_jp", "strict"): JAPANESE,
}

ERRORS = (OSError, ValueError, TypeError, OverflowError)


def outcome_of(function: Callable[..., Any], *args: Any) -> Any:
    """What it returns, or the class and text of what it raises."""
    try:
        return function(*args)
    except ERRORS as error:
        return type(error), str(error)
