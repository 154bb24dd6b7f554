"""The report as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from defend.report.fitting import choose_fitting
from defend.report.text import (
    beside,
    bound,
    calibration_in_words,
    certified_in_words,
    chance_in_words,
    distances_in_words,
    interval,
    of_norms,
    over_passes,
    percent,
    row_title,
    sources_in_words,
    spent,
    undercut_in_words,
    with_interval,
)
from defend.values.commands import say_command, type_settings
from defend.values.references import shorten
from defend.values.report import ArmResult, Certified, Check, Report, Row, WorstCase
from defend.values.run_config import LADDER
from defend.values.threats import DEFENDED, TUNED, UNDEFENDED, UNTUNED, knows_the_defence
from defend.weights.origin import describe

ARM_TITLES = {TUNED: "tuned, bare", UNTUNED: "defended, untuned"}
REJECTED, WORST, MAJORITY = "rejected", "worst", "majority"
LEAVE_OUT = (MAJORITY, "steps", WORST, REJECTED)
"""Columns that a narrow terminal goes without, in this order, before a figure is cut; report.json has them all."""
LOUD = ("warn", "fail")
COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


def render(report: Report, console: Console) -> None:
    """Print the table, the headline, the cost and where the files are."""
    config = report.config
    intervals = tuple(_arms(report))
    table = _table(report, intervals)
    # measured with room for everything, as a table that wraps fits any console
    while intervals and console.measure(table, options=console.options.update(width=10_000)).maximum > console.width:
        intervals = intervals[1:]  # narrow the least important arm first; report.json has them all
        table = _table(report, intervals)
    if not intervals:
        table = choose_fitting(console, (_table(report, (), LEAVE_OUT[:count]) for count in range(len(LEAVE_OUT) + 1)))
    lines: list[Text | Table] = [table]
    whole = "; rows without an undefended figure attack the whole defence" if report.defended else ""
    lines.append(Text(f"accuracy in %{', with Wilson 95 % intervals' * bool(intervals)}{whole}", "dim"))
    if far := distances_in_words(report.rows):
        lines.append(Text(f"smallest change that fools: {far}"))
    further = more_steps(report)
    if further:
        lines.append(
            Text("≤: the second half of its steps still fooled images, so it is an upper bound; to go further:")
        )
        lines.append(Text(f"  {further}", no_wrap=True, overflow="ignore"))
    if config.detector:
        lines.append(Text("a rejected image counts as wrong; with credit, a rejected attacked image as right", "dim"))
    if config.finetune:
        lines.append(Text("transfer: made against the victim before tuning; oblivious: against the tuned one", "dim"))
    lines += [Text(f"{kind}: left out, {why}", "dim") for kind, why in report.left_out.items()]
    if said := report.dataset.images.get("said"):
        lines.append(Text(f"test images: {said}", "dim"))
    if origins := [f"{part} {said}" for part, known in report.weights.items() if (said := describe(known))]:
        lines.append(Text(f"weights: {'; '.join(origins)}", "dim"))
    lines += [Text(warning, "yellow") for warning in report.dataset.warnings]
    lines += [Text(note, "dim") for note in report.notes]
    if report.detector is not None:
        lines.append(Text(f"\n{_detector(report)}"))
    lines += _checks(report)
    if report.worst_case is not None:
        lines.append(_headline(report))
    elif not report.partial:
        lines.append(
            Text("\nNo worst case: it needs two rows with images in common, one of them of an attacker", "yellow")
        )
    lines += [Text(f"{caveat[0].upper()}{caveat[1:]}", "yellow") for caveat in report.caveats]
    if report.worst_case is not None:
        if report.worst_case.passes:
            lines.append(Text(over_passes(report.worst_case.passes)))
        if weakest := next((row for row in report.rows if row.key == report.worst_case.weakest and row.budget), None):
            lines.append(Text(f"{weakest.key} spent {spent(weakest.budget or {})} on an image", "dim"))
    if report.chance is not None:
        lines.append(Text(f"Chance: {chance_in_words(report.chance)}"))
    if report.certified is not None:
        lines += certificate(report.certified, failed=report.failed)
    if report.cost is not None and report.defended:
        cost = report.cost
        lines.append(
            Text(
                f"Cost: {cost.defence_ms_per_image:.2f} ms an image defended, {cost.victim_ms_per_image:.2f} ms "
                f"undefended ({report.device}, batch {cost.batch_size}); {cost.parameters:,} parameters added"
            )
        )
    reused = sum(row.reused for row in report.rows)
    if reused:
        lines.append(Text(f"{reused} attacked images are those of an earlier run (`defend cache`; --no-store)", "dim"))
    if report.partial:
        lines.append(Text("Partial: interrupted, only what was finished is shown", "yellow"))
    note = _note(report)
    if note:
        lines.append(Text(note, "dim"))
    console.print(Group(*lines))


def _headline(report: Report) -> Text:
    worst = report.worst_case
    assert worst is not None
    figure, below = f"{percent(worst.accuracy)} %", worst.undercut_by
    blocked = ", ".join(f"{check.number} {check.name}" for check in report.failed)
    return Text.assemble(
        ("\nNot to be trusted, a check failed (", "bold red") if blocked else "\n",
        (f"{blocked}): ", "bold red") if blocked else "",
        f"{'worst' if blocked else 'Worst'} case per image, {'defended' if report.defended else 'undefended'}: ",
        "at most " if worst.rising else "",
        (figure, "strike" if blocked else "bold"),
        (f"{beside(below)} %" if below else "", "strike" if blocked else "bold"),
        f"  {interval(worst.ci95)}  n={worst.n}, {basis(worst)}",
        f"  (undefended {percent(worst.undefended)} %)" if report.defended else "",
        f"\n{undercut_in_words(below)}" if below else "",
        f"\n{of_norms(worst.norms, worst.rising)}" if worst.norms else "",
        _with_credit(worst),
        f"\nLeast is left by {'the clean row' if worst.weakest.endswith('/none') else worst.weakest}"
        if worst.weakest
        else "",
        f"\n{said}" if (said := sources_in_words(worst)) else "",
    )


def basis(worst: WorstCase) -> str:
    """Say what a worst case rests on: its rows, their steps, and all the looks (gradients and queries) an image got."""
    steps = "" if worst.steps is None else f", up to {worst.steps:,} steps"
    looks = "" if worst.gradients is None else f", {worst.gradients:,} looks an image"
    return f"{len(worst.over)} rows{steps}{looks}"


def more_steps(report: Report) -> str:
    """Return what takes the attacks further which were still fooling images; "" where there are none.

    A command, or of objects that a program gave, what it passes to `evaluate`.
    """
    config = report.config
    further = {row.attack: row for row in report.rows if row.curve is not None and row.is_loose(report.defended)}
    steps = {name: ("queries" if row.queries else "steps", 4 * row.steps) for name, row in further.items() if row.steps}
    chosen = [word for name, (key, many) in steps.items() for word in type_settings(name, {key: many})]
    if not chosen:
        return ""
    if report.given:
        return f"evaluate(..., options={ {name: {key: many} for name, (key, many) in steps.items()} })"
    return say_command("run", "--config", Path(config.out, "config.toml") if config.out else "CONFIG.toml", *chosen)


def _with_credit(worst: WorstCase) -> str:
    if not worst.with_credit:
        return ""
    said = f"With credit for rejected attacks {bound(worst.rising)}{_share(worst.with_credit)}"
    said += ": no attack on these images was accepted and misclassified"
    return "\n" + "; ".join(filter(None, [said, undercut_in_words(worst.undercut_with_credit)]))


def _share(figures: Mapping[str, Any]) -> str:
    return with_interval(figures["accuracy"], figures["ci95"], between=" %  ")


def _checks(report: Report) -> list[Text]:
    if not report.checks:
        return []
    count = {status: sum(check.status == status for check in report.checks) for status in COLOURS}
    said = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    lines = [Text(f"\nChecks: {said}")]
    lines += [
        Text(f"  {check.number} {check.name}, {check.status}: {check.detail}", COLOURS[check.status])
        for check in report.checks
        if check.status in LOUD
    ]
    return lines


def _arms(report: Report) -> list[str]:
    tuning = (TUNED, UNTUNED) if report.config.finetune else ()
    return [UNDEFENDED, *tuning, *([DEFENDED] if report.defended else [])]


def _table(report: Report, intervals: Sequence[str], without: Sequence[str] = ()) -> Table:
    """Make the table of all rows, with intervals for some of its arms, `without` some of its columns."""
    config, arms = report.config, _arms(report)
    tuned = f"{config.victim} (tuned by {config.finetune})" if config.finetune else config.victim
    stages = " + ".join(shorten(part) for part in (config.purifier, config.detector, tuned) if part)
    table = Table(title=f"{stages} on {report.dataset.name} (test)", title_justify="left", caption_justify="left")
    names = ["attack", "threat", "eps", "steps", "n", *(ARM_TITLES.get(arm, arm) for arm in arms)]
    if config.detector:
        names += [REJECTED, "with credit"]
    asked = [row.passes for row in report.rows if row.passes]
    if asked:
        names += [WORST, MAJORITY]
    for name in names:
        title = f"worst/{asked[0]['n']}" if name == WORST else name
        if name in ("attack", "threat"):
            table.add_column(title, overflow="fold")
        elif name not in without:
            table.add_column(title, justify="right", no_wrap=name in ("eps", "steps", "n", *arms))
    previous = ""
    for row in report.rows:
        if row.threat != previous:
            table.add_section()
        previous = row.threat
        more = []
        if config.detector:
            more = [percent(share) for share in (row.defended.rejected, row.defended.accuracy_with_credit)]
        if asked:
            more += [percent(row.passes[name]["accuracy"]) if row.passes else "" for name in ("worst", "majority")]
        cells = zip(names, (*_cells(row, arms, intervals), *more), strict=True)
        table.add_row(*(cell for name, cell in cells if name not in without))
    return table


def certificate(found: Certified, of: str = "", failed: Sequence[Check] = ()) -> list[Text | Table]:
    """Return what holds against every attack, apart from the rows.

    Args:
        found: the certificate.
        of: which arm, where there are several.
        failed: the checks of the run that failed: then nothing of it is to be trusted, this neither.
    """
    blocked = ", ".join(f"{check.number} {check.name}" for check in failed)
    table, attacked = Table(), found.attack is not None
    for name in ("L2 radius", "n", "accuracy", *(["left", "unsure"] if attacked else [])):
        table.add_column(name, justify="right")
    for point in found.curve:
        accuracy = Text(with_interval(point["accuracy"], point["ci95"]), "strike" if blocked else "")
        cells: list[str | Text] = [f"{point['radius']:.3f}", str(found.n), accuracy]
        if attacked:
            cells += [with_interval(point["left"], point["left_ci95"]), percent(point["unsure"])]
        table.add_row(*cells)
    said = "apart from the rows: the vote is right, and no attack within the radius moves it"
    doubt = [Text(f"Not to be trusted, a check failed ({blocked})", "bold red")] if blocked else []
    return [Text(f"\nCertified{of and f' of {of}'}, {said}"), *doubt, table, Text(certified_in_words(found), "dim")]


def _note(report: Report) -> str:
    if report.config.thorough or report.partial:
        return ""
    every = "" if report.config.threats == (LADDER,) else "; --threat ladder every threat quickly"
    return (
        "Quick run: a sample of the images, and few steps of an attack; --thorough takes all of them, under every "
        f"threat{every}"
    )


def _detector(report: Report) -> str:
    found = report.detector
    assert found is not None
    how = calibration_in_words(found["calibration"])
    text = f"Detector: rejects {percent(found['clean_rejected'])} % of the clean images; threshold "
    text += f"{found['threshold']:.4g} {how}"
    if found["auroc"] is not None:
        rates = _at_rates(found["tpr_at_fpr"])
        text += f"\n          AUROC {found['auroc']:.3f} on {found['auroc_row']}, its worst row; it finds {rates}"
    for row in report.rows:
        if row.success_at_fpr:
            text += f"\n          {row.key}: accepted and misclassified {_at_rates(row.success_at_fpr)}"
    return text


def _at_rates(shares: Mapping[str, float]) -> str:
    said = (f"{percent(share)} % at {100 * float(rate):g} % false positives" for rate, share in shares.items())
    return ", ".join(said)


def _cells(row: Row, arms: Sequence[str], intervals: Sequence[str]) -> list[Text | str]:
    known = {UNDEFENDED: row.undefended, DEFENDED: row.defended, **row.arms}
    name = row.attack if row.norm != "l2" else f"{row.attack} (mean L2 {row.mean_l2:.2f})"
    return [
        *row_title(name, row.threat, row.variant, row.eps),
        "" if row.steps is None else str(row.steps),
        f"{row.n}{'*' if row.partial else ''}",
        *(
            Text("")
            if knows_the_defence(row.threat) and arm != DEFENDED and DEFENDED in arms
            else _arm(known[arm], whole=arm in intervals, loose=row.is_loose(DEFENDED in arms) and arm == arms[-1])
            for arm in arms
        ),
    ]


def _arm(arm: ArmResult, whole: bool, loose: bool = False) -> Text:
    said = f" {interval(arm.ci95)}" if whole else ""
    return Text.assemble(bound(loose), (percent(arm.accuracy).rjust(5), "bold"), said)
