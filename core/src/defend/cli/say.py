"""One line to the terminal: paths and names in it come from outside, and what a terminal would obey is written out."""

from __future__ import annotations

import click

from defend.util.printable import escape


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text, to standard error if `err`."""
    click.echo(escape(text, keep="\n\t"), err=err, nl=nl)
