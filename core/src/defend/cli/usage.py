"""How a command explains itself: its options under titles, its summary wrapped and never cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from defend.errors import nearest

OUTPUT = "Output"
"""The title that every command has: --help stands there too."""

PATHS = ("DIR", "FILE")  # what stands for the value of an option that takes a path as text

Groups = Mapping[str, Sequence[click.Option]]


class Command(click.Command):
    """A command whose help lists its options in groups, each under a title.

    Attributes:
        groups: the options by title, in the order of the help.
    """

    def __init__(self, name: str, *, groups: Groups, params: Sequence[click.Parameter], **others: Any) -> None:
        self.groups = groups
        options = [option for group in groups.values() for option in group]
        super().__init__(name, params=[*params, *options], **others)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse an empty path, as that of a variable that is not set: it would be the current folder.

        Raises:
            click.UsageError: naming the option.
        """
        paths = [each for each in self.params if isinstance(each.type, click.Path) or each.metavar in PATHS]
        flags = {flag for each in paths if isinstance(each, click.Option) for flag in each.opts}
        takes_one = any(isinstance(each, click.Argument) for each in paths)
        for before, given in zip(["", *args], args, strict=False):
            flag = given[:-1] if given.endswith("=") else before if not given else None
            if flag in flags:
                raise click.UsageError(f"{flag} is empty: expected a path", ctx)
            if not given and takes_one and not before.startswith("--"):
                raise click.UsageError("a path is empty: expected the name of a file or a folder", ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = self.get_help_option(ctx)
        groups = {**self.groups, OUTPUT: [*self.groups[OUTPUT], *([shown] if shown else [])]}
        lines = {
            title: [record for option in group if (record := option.get_help_record(ctx))]
            for title, group in groups.items()
        }
        width = max(len(flag) for group in lines.values() for flag, _ in group)  # one column for all groups
        for title, group in lines.items():
            with formatter.section(title):
                formatter.write_dl([(flag.ljust(width), text) for flag, text in group])

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first sentence of the help, whole, however long: the caller wraps it."""
        return super().get_short_help_str(max(limit, len(self.help or "")))


class Choice(click.Choice[str]):
    """One of some words; of a misspelt one the nearest is offered."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        near = nearest(str(value), map(str, self.choices))
        hint = f" Did you mean {near!r}?" if near else ""
        return f"{super().get_invalid_choice_message(value, ctx)}{hint}"


def command(name: str, groups: Groups) -> Callable[[Callable[..., Any]], Command]:
    """Return a decorator that makes a function the command `name`; its docstring is the help."""
    return click.command(name, cls=Command, groups=groups)


def option(shown: str, help: str, into: str = "", **attributes: Any) -> click.Option:
    """Return an option, as its help shows it: "--eps SIZE" takes a value, "--quiet" is a flag.

    Args:
        shown: the option and what stands for its value.
        help: a line or two.
        into: the argument that it becomes, where that is not its own name.
        attributes: others of `click.Option`.
    """
    flag, _, metavar = shown.partition(" ")
    names = [flag, into] if into else [flag]
    return click.Option(names, help=help, metavar=metavar or None, is_flag=None if metavar else True, **attributes)
