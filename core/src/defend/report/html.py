"""What all pages have in common: where their templates lie, and how these write figures."""

from __future__ import annotations

import jinja2

from defend.report.figures.scene import MINUS, NOTHING
from defend.report.figures.svg import to_svg
from defend.report.text import BESIDE, BOUND, beside, bound, interval, percent, points


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
