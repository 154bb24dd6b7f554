"""What a shell is told at Tab: commands and options by click, names of stages by what is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from defend.stages import Stage

VARIABLE = "_DEFEND_COMPLETE"  # click's name for it, as completion scripts set it


def answer_shell(cli: click.Command) -> None:
    """Answer a shell that asks, and exit; return where none does."""
    asked = os.environ.get(VARIABLE)
    if asked:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, "defend", VARIABLE, asked))


def names_of(*stages: Stage) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return a completion of the names of stages, all if none is given; of `dae,ap` the last."""

    def complete(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from defend.plugins import registry
        from defend.stages import STAGES

        before, comma, begun = typed.rpartition(",")
        found = {
            entry.spec.name: entry.spec.summary
            for stage in stages or STAGES
            for entry in registry().entries(stage)
            if entry.spec.name.startswith(begun)
        }
        return [CompletionItem(before + comma + name, help=summary) for name, summary in sorted(found.items())]

    return complete
