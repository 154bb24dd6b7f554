"""The report as a table in the terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from defend.values import Arm, Report, Row


def render(report: Report, console: Console) -> None:
    """Print the table, the headline, the cost and where the files are."""
    config = report.config
    stages = " + ".join(part for part in (config.purifier, config.detector, config.victim) if part)
    table = Table(title=f"{stages} on {report.dataset.name} (test)", title_justify="left", caption_justify="left")
    for name in ("attack", "threat"):
        table.add_column(name)
    for name in ("eps", "steps", "n"):
        table.add_column(name, justify="right")
    has_defence = bool(config.purifier or config.detector)
    table.add_column("undefended", justify="right")
    if has_defence:
        table.add_column("defended", justify="right")
    if config.detector:
        table.add_column("rejected", justify="right")
    previous = ""
    for row in report.rows:
        if row.threat != previous:
            table.add_section()
        previous = row.threat
        table.add_row(*_cells(row)[: len(table.columns)])
    lines: list[Text | Table] = [table]
    lines.append(Text("accuracy in %, with Wilson 95 % intervals; adaptive rows attack the whole defence", "dim"))
    if report.worst_case is not None:
        worst = report.worst_case
        low, high = worst.ci95
        lines.append(
            Text.assemble(
                f"\nWorst case per image, {'defended' if has_defence else 'undefended'}: ",
                (f"{100 * worst.accuracy:.1f} %", "bold"),
                f"  [{100 * low:.1f}, {100 * high:.1f}]  n={worst.n}, over {len(worst.over)} rows",
                f"  (undefended {100 * worst.undefended:.1f} %)" if has_defence else "",
            )
        )
    if report.cost is not None and has_defence:
        cost = report.cost
        lines.append(
            Text(
                f"Cost: {cost.defence_ms_per_image:.2f} ms an image defended, {cost.victim_ms_per_image:.2f} ms "
                f"undefended ({report.device}, batch {cost.batch_size}); {cost.parameters:,} parameters added"
            )
        )
    if report.partial:
        lines.append(Text("Partial: interrupted, only what was finished is shown", "yellow"))
    note = _note(report)
    if note:
        lines.append(Text(note, "dim"))
    console.print(Group(*lines))


def _note(report: Report) -> str:
    if report.config.thorough or report.partial:
        return ""
    return "Quick run: a sample of the images, and 10 steps in adaptive rows; --thorough takes all of them"


def _cells(row: Row) -> list[Text | str]:
    eps = "-" if row.eps is None else f"{row.eps:.4g}"
    clean = row.threat == "none"
    name = row.attack if row.norm != "l2" else f"{row.attack} (mean L2 {row.mean_l2:.2f})"
    return [
        "clean" if clean else name,
        "" if clean else row.threat,
        "" if clean else eps,
        "" if row.steps is None else str(row.steps),
        f"{row.n}{'*' if row.partial else ''}",
        Text("") if row.threat == "adaptive" else _arm(row.undefended),
        _arm(row.defended),
        f"{100 * row.defended.rejected:.1f}",
    ]


def _arm(arm: Arm) -> Text:
    low, high = arm.ci95
    return Text.assemble((f"{100 * arm.accuracy:5.1f}", "bold"), f" [{100 * low:.1f}, {100 * high:.1f}]")
