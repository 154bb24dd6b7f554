"""`defend predict`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from defend.cli.flags import DEVICE, FPR, JSON, ONE_VICTIM, PARTS, PATH, SET, print_json, resolve_defence
from defend.cli.say import say
from defend.cli.usage import OUTPUT, command, option
from defend.report.progress import open_console, show_count, show_waiting
from defend.values.shares import in_percent

SAVE = option("--save DIR", "Write the purified images here.", type=PATH)
INVERT = option("--invert", "Invert the images first: dark on light to light on dark.")


@command(
    "predict",
    {
        "What is defended": [ONE_VICTIM, *PARTS, FPR, SET],
        "Your images": [INVERT],
        OUTPUT: [SAVE, JSON],
        "Machine": [DEVICE],
    },
)
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
def predict_command(
    images: tuple[Path, ...],
    victim: str,
    fpr: float | None,
    settings: tuple[str, ...],
    save: Path | None,
    invert: bool,
    device: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Classify your own images, with and without the defence, and show what it changed.

    Images are scaled and centre-cropped as the data set's own are when they are measured, grey or colour.
    """
    console = open_console(stderr=True)
    with show_waiting(console, quiet=as_json):
        from defend.deploy.predict import predict

        composition, source = resolve_defence(victim, settings, values)
    rows: list[dict[str, Any]] = []
    try:
        with show_count(console, "judging images", len(images), quiet=as_json) as progress:
            judged = predict(images, composition, source, device=device or "auto", save=save, invert=invert, fpr=fpr)
            for row in judged:
                rows.append(row)
                progress(1)
    finally:  # what cannot be read is told in the end
        if rows:
            (print_json if as_json else _print_table)(rows)
    if save is not None and not as_json:
        say(f"Purified images written to {save}")


def _print_table(rows: Iterable[Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("image", "undefended", "defended", "purifier changed"):
        table.add_column(column, overflow="fold")
    for row in rows:
        flipped = "" if row["undefended"]["label"] == row["defended"]["label"] else "  <- differs"
        rejected = "" if row["defended"]["accepted"] else "  REJECTED"
        table.add_row(
            row["image"],
            f"{row['undefended']['label']} ({in_percent(row['undefended']['confidence'])} %)",
            f"{row['defended']['label']} ({in_percent(row['defended']['confidence'])} %){flipped}{rejected}",
            f"mean {row['changed']['mean']:.4f}, most {row['changed']['most']:.3f}",
        )
    open_console().print(table, highlight=False)
