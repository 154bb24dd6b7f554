"""The command `defend`, one module a command: the only folder that imports click. What it does stands elsewhere."""

from defend.cli.entry import main

__all__ = ["main"]
