"""`defend check`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from defend.cli.exits import GATE
from defend.cli.flags import (
    CLASSES,
    DATA_DIR,
    DEVICE,
    JSON,
    OF_VICTIM,
    QUIET,
    SET,
    print_json,
    take_options,
    take_source,
)
from defend.cli.usage import OUTPUT, command, option
from defend.cli.verdicts import VERDICTS, VerdictFiles
from defend.report.progress import open_console, show_waiting
from defend.values.references import shorten

if TYPE_CHECKING:
    from defend.values.report import Check

IMAGES = 100


@command(
    "check",
    {
        "What is looked at": [
            option("--dataset NAME", "Whose held-out images it is asked about.", default="digits", show_default=True),
            DATA_DIR,
            CLASSES,
            *OF_VICTIM,
            SET,
        ],
        OUTPUT: [*VERDICTS, JSON, QUIET],
        "Machine": [DEVICE],
    },
)
@click.argument("victim")
def check_command(
    victim: str,
    dataset: str,
    data_dir: str | None,
    victim_weights: str | None,
    settings: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    device: str | None,
    junit: Path | None,
    sarif: Path | None,
    **values: Any,
) -> int:
    """Look at a victim for a few seconds, and say what is to be mended.

    VICTIM is a name, FILE.py:NAME or MODULE:NAME. Looked at: its answer, normalisation, training mode, gradient,
    logits or probabilities, repetition. Exits with 3 where something must be mended.
    """
    files = VerdictFiles(junit, sarif)
    files.begin()
    with show_waiting(open_console(stderr=True), quiet or as_json):
        options = take_options(settings, values)
        findings = _find(victim, dataset, data_dir, victim_weights, options, device or "auto")
    if as_json:
        print_json([attrs.asdict(each) for each in findings])
    else:
        _print(findings)
    files.write({shorten(victim): [_as_check(each) for each in findings]}, victim)
    return GATE if any(each.status == "fail" for each in findings) else 0


def _find(
    victim: str,
    dataset: str,
    data_dir: str | None,
    weights: str | None,
    options: Mapping[str, Mapping[str, Any]],
    device: str,
) -> list[Any]:
    from defend.assembly.composition import Composition
    from defend.assembly.load import open_dataset
    from defend.assembly.stage import build_module, build_part
    from defend.checks.victim import inspect
    from defend.util.fp32 import ieee_fp32
    from defend.util.processes import resolve_device
    from defend.values.references import anchor

    composition = Composition.of(
        anchor(victim, Path.cwd()), options=options, weights={"victim": weights} if weights else {}
    )
    composition.check_keys("options", options, {"dataset"}, "this check")
    images = open_dataset(*take_source(dataset, data_dir), options.get("dataset", {}))
    (part,) = composition.parts
    if part.pretrained:  # as it comes: a run would put it into eval mode
        built = build_module(part.found, part.found.config(part.options), images.task())
    else:
        built = build_part(part, images.task()).module
    where = resolve_device(device)
    pixels, labels = images.tensors("val", limit=IMAGES)
    with ieee_fp32():  # as a run attacks and judges it
        return list(inspect(built.to(where), pixels.to(where), labels.to(where), len(images.classes)))


def _as_check(found: Any) -> Check:
    from defend.values.report import Check

    return Check(found.name, found.status, f"{found.said}; {found.cure}" if found.cure else found.said)


def _print(findings: list[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from defend.report.terminal import COLOURS

    table = Table("looked at", "", "what was found, and what to do")
    for each in findings:
        said = Text(each.said)
        if each.cure:
            said.append(f"\n→ {each.cure}")
        table.add_row(each.name, Text(each.status, COLOURS[each.status]), said)
    open_console().print(table)
