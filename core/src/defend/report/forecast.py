"""What a run will take, as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from defend.values.durations import say_duration

if TYPE_CHECKING:
    from defend.evaluation.forecast import Forecast
    from defend.values.run_config import RunConfig


def render(found: Forecast, chosen: RunConfig, console: Console) -> None:
    """Print the rows with their images, minutes and memory, and the whole."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("attack", "threat"):
        table.add_column(title)
    for title in ("images", "steps", "takes", "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in found.rows:
        row = each.row
        eps = "" if row.headline or row.threat.eps is None else f" eps {row.threat.eps:.3g}"
        table.add_row(
            "clean" if row.attack is None else f"{row.name}{eps}",
            "" if row.attack is None else f"{row.threat.kind}{': ' if row.variant else ''}{row.variant}",
            str(len(row.keys)),
            str(row.steps or ""),
            say_duration(found.of(each)),
            _say_memory(each.memory(found.batch_size)),
        )
    whole = f"\nAbout {say_duration(found.seconds)} and {_say_memory(found.memory) or 'an unknown amount'} of memory"
    lines: list[Table | Text] = [table, Text(f"{whole}, of which {say_duration(found.ready)} before the first row")]
    if chosen.budget is not None:
        lines.append(
            Text(
                f"For {chosen.budget}: --adaptive-limit {chosen.adaptive_limit} "
                f"--adaptive-steps {chosen.adaptive_steps}"
            )
        )
    lines.append(
        Text(
            f"From two small batches a row, on this machine as busy as it is; batches of {found.batch_size}. Checks, "
            "pictures and certificates come on top.",
            "dim",
        )
    )
    console.print(Group(*lines))


def _say_memory(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f} GB"
