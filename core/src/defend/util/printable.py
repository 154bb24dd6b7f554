"""Text that came from outside, as a terminal may have it: what it would obey, or show otherwise, is written out."""

from __future__ import annotations

import unicodedata

OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, marks of direction, halves of characters, separators of lines
JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji


def escape(text: str, keep: str = "") -> str:
    r"""Return a text whose control characters, marks of direction and undecodable bytes stand as \x1b, \u202e, \udcff.

    Those in `keep` stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_written(one) if _is_obeyed(one) and one not in keep else one for one in text)


def _is_obeyed(one: str) -> bool:
    return one not in JOINERS and unicodedata.category(one) in OBEYED


def _written(one: str) -> str:
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")
