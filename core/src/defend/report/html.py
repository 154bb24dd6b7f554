"""What all pages have in common: where their templates lie, and how these write figures."""

from __future__ import annotations

from pathlib import Path

import jinja2

from defend.errors import ConfigError
from defend.report.figures.scene import MINUS, NOTHING
from defend.report.figures.svg import to_svg
from defend.report.text import BESIDE, BOUND, beside, bound, interval, percent, points

SUFFIXES = (".html", ".htm", ".xhtml")


def check_page(path: Path, flag: str, example: str) -> None:
    """Refuse a file for a page that cannot be one, before anything is drawn.

    Args:
        flag: what named it.
        example: a name that could be.

    Raises:
        ConfigError: a folder, a file in none, or one of another kind.
    """
    named = f"{flag} {str(path)!r}"
    if path.is_dir() or not path.parent.is_dir():
        why = "is a folder" if path.is_dir() else f"folder {str(path.parent)!r} does not exist"
        raise ConfigError(f"{named}: {why}; name a file, for example {example}")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{named}: a page is HTML, which a browser prints as PDF; expected {str(path.with_suffix(SUFFIXES[0]))!r}"
        )


def environment() -> jinja2.Environment:
    """Return the templates of the package, strict, with filters for figures and charts."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("defend.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(
        percent=lambda share: percent(share, NOTHING),
        points=lambda difference: points(difference).replace("-", MINUS),
        interval=interval,
        svg=to_svg,
    )
    made.globals.update(BESIDE=BESIDE, BOUND=BOUND, beside=beside, bound=bound)
    return made
