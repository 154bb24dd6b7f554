"""What is installed, as `defend list` and `defend show` tell it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from defend.errors import UnknownNameError
from defend.options import describe
from defend.plugins import Entry, Registry
from defend.report.text import calibration_in_words
from defend.stages import STAGES
from defend.values.commands import say_command
from defend.values.editions import EDITION
from defend.weights.card import Card
from defend.weights.find import Available, available
from defend.weights.origin import find_origin, forgetting

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def listing(plugins: Registry) -> list[dict[str, Any]]:
    """Return one dictionary a stage: stage, name, summary, plugin, weights (data set names), yours (of these)."""
    return [
        {
            "stage": stage,
            "name": entry.spec.name,
            "summary": entry.spec.summary,
            "plugin": entry.origin,
            "weights": _weights_of(plugins, entry),
            "yours": _weights_of(plugins, entry, own=True),
        }
        for stage in STAGES
        for entry in plugins.entries(stage)
    ]


def descriptions(plugins: Registry, name: str) -> list[dict[str, Any]]:
    """Return everything known of the stages that answer to a name.

    Raises:
        UnknownNameError: none does; the nearest is offered.
    """
    entries = [entry for entry in plugins.all_entries() if entry.spec.name == name or _member(plugins, entry, name)]
    if not entries:
        broken = "".join(f"; note: {failure.plugin} failed to load: {failure.cause}" for failure in plugins.failures)
        choices = {entry.spec.name for entry in plugins.all_entries()}
        for entry in plugins.all_entries():
            if entry.spec.tags is not None and "." in name:
                choices |= set(entry.spec.tagged())
        raise UnknownNameError("stage", name, choices, broken)
    return [_description(plugins, entry, name) for entry in entries]


def print_listing(console: Console, plugins: Registry, stage: str | None = None) -> None:
    """Print what is installed, in brackets the data sets with weights, or a stage's with a line on each.

    The plugins that failed to load come after it.
    """
    from rich.table import Table

    rows = [row for row in listing(plugins) if stage in (None, row["stage"])]
    table = Table(box=None, pad_edge=False, show_header=stage is not None)
    if stage is None:
        table.add_column(no_wrap=True)
        for kind in dict.fromkeys(row["stage"] for row in rows):
            table.add_row(kind, _flow([_with_weights(row) for row in rows if row["stage"] == kind]))
    else:
        _describe(table, rows)
    console.print(table, highlight=False)
    for failure in plugins.failures:
        console.print(f"not loaded: {failure.plugin}: {failure.cause}", highlight=False, markup=False, style="red")
    how = (
        "In brackets: data sets with weights. `defend list STAGE` says what each is, with all editions; "
        if stage is None
        else ""
    )
    console.print(f"\n{how}`defend show NAME` explains one.", highlight=False)


def _flow(names: Sequence[tuple[str, str]]) -> Text:
    """Return names, each with what stands behind it, as one text that wraps."""
    from rich.text import Text

    parts = [Text.assemble((name, "bold"), after) for name, after in names]
    return Text(", ").join(parts)


def _with_weights(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return a stage's name, and in brackets its weights, counted where they are of several victims.

    An edition stands there where its data set has no usual weights, or it is the user's.
    """
    held, yours = row["weights"], row["yours"]
    shown = [name for name in held if name in yours or name.partition(EDITION)[0] not in held or EDITION not in name]
    kept = [f"{name} (yours)" if name in yours else name for name in shown]
    if any("/" in name for name in held):
        own = f", {len(yours)} of them yours" if yours else ""
        kept = [f"{len(held)} file{'s' * (len(held) > 1)}{own}"]
    return row["name"], f" ({', '.join(kept)})" if kept else ""


def _describe(table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.text import Text

    for column in ("name", "what it is", "plugin", "weights for"):
        table.add_column(column, overflow="fold")
    for row in rows:
        kept = [f"{name} (yours)" if name in row["yours"] else name for name in row["weights"]]
        table.add_row(Text(row["name"], "bold"), *map(Text, (row["summary"], row["plugin"], ", ".join(kept))))


def print_threat(console: Console, name: str, summary: str) -> None:
    """Print who attacks, knowing what, and the options of `defend run` that ask for it."""
    console.print(f"threat {name}, what its attacker has: {summary}", highlight=False, markup=False)
    console.print(
        f"Add --threat {name} to `defend run`, or --threat ladder for every threat", highlight=False, markup=False
    )


def print_description(console: Console, shown: dict[str, Any]) -> None:
    """Print one of `descriptions` as a page."""
    from rich.table import Table
    from rich.text import Text

    heading = (f"{shown['stage']} {shown['name']}", "bold")
    console.print(Text.assemble(heading, f": {shown['summary']} ({shown['plugin']})"))
    if shown["tag"]:
        model = shown["name"].removesuffix(f".{shown['tag']}")
        console.print(
            f"The network is {model}; {shown['tag']} are weights that its authors publish, which "
            f"--set {shown['stage']}.pretrained=true takes. Without it the tag means nothing.",
            highlight=False,
            markup=False,
        )
    paper = shown["paper"]
    if paper:
        parts = (paper["authors"], str(paper["year"] or ""), paper["url"])
        console.print(
            f'Paper: "{paper["title"]}", {", ".join(part for part in parts if part)}', highlight=False, markup=False
        )
    prefix = shown["name"] if shown["stage"] == "attack" else shown["stage"]
    for title, key in (("Options", "options"), ("Training options", "training")):
        if not shown[key]:
            continue
        how = (
            f"--set {prefix}.NAME=VALUE with `defend run`"
            if key == "options"
            else "--set NAME=VALUE with `defend train`"
        )
        console.print(f"\n{title} ({how}):", highlight=False, markup=False)
        table = Table(box=None, pad_edge=False)
        for column in ("name", "type", "default", "accepted", "help"):
            table.add_column(column, overflow="fold")
        for option in shown[key]:
            baked = " (fixed by the weights)" if option["architecture"] else ""
            table.add_row(
                option["name"], option["type"], _short(option["default"]), option["accepted"], option["help"] + baked
            )
        console.print(table, highlight=False, markup=False)
    for dataset, values in shown["training_overrides"].items():
        console.print(f"On {dataset}: {_values(values)}", highlight=False, markup=False)
    for edition, values in shown["editions"].items():
        console.print(f"Edition {edition} (--edition {edition}): {_values(values)}", highlight=False, markup=False)
    for trained, cost in shown["costs"].items():
        console.print(f"Training on {trained} takes {cost}", highlight=False, markup=False)
    for weights in shown["weights"]:
        figures = ", ".join(f"{key} {value:.4g}" for key, value in weights["figures"].items())
        origin = "shipped" if weights["shipped"] else f"trained here {weights['since'][:16].replace('T', ' ')}"
        edition = f", edition {weights['edition']}" if weights["edition"] else ""
        what = f"{weights['name']}{edition}, {origin}, {weights['bytes'] / 1e6:.1f} MB"
        if weights["filed_as"] != weights["learnt_of"]:
            what += f", trained on {weights['learnt_of']}"
        console.print(f"\nWeights for {weights['filed_as']} ({what}): {figures}", highlight=False, markup=False)
        if weights["calibration"]:
            threshold = calibration_in_words({**weights["calibration"], "kept": True})
            console.print(f"Its threshold {threshold}", highlight=False, markup=False)
        if weights["hides"]:
            instead = f"They are taken in the place of those shipped with {weights['hides']}; to take these again: "
            console.print(f"{instead}{forgetting(weights['file'])}", highlight=False, markup=False)
    if commands := what_next(shown):
        console.print("\nNext:", highlight=False)
        for command in commands:
            console.print(Text(f"  {command}", no_wrap=True, overflow="ignore"), soft_wrap=True)


def what_next(shown: Mapping[str, Any]) -> list[str]:
    """Return the commands that a stage is for, ready to be typed: those that its weights allow, or that make some."""
    name, stage = shown["name"], shown["stage"]
    data = [one["dataset"] for one in shown["weights"] if one["name"] == name]
    chosen = () if not data or "digits" in data else ("--dataset", data[0])
    victim = "VICTIM" if chosen else "resnet18"
    if stage == "attack":
        return [say_command("run", "--victim", "resnet18", "--attack", f"{name}:NAME" if shown["family"] else name)]
    if stage == "dataset":
        return [say_command("run", "--victim", "VICTIM", "--dataset", name if name != "imagefolder" else "./FOLDER")]
    if stage == "victim" and not shown["family"]:
        commands = [say_command("run", "--victim", name, *chosen)]
    elif stage in ("purifier", "detector"):
        commands = [say_command("run", f"--{stage}", name, "--victim", victim, *chosen)]
    elif stage == "finetuner" and shown["weights"]:
        tuned = min(shown["weights"], key=lambda one: one["dataset"] != "digits")
        made_of = {part: tuned["config"][part] for part in ("victim", "purifier") if tuned["config"][part]}
        parts = [word for part, value in made_of.items() for word in (f"--{part}", value)]
        where = () if tuned["dataset"] == "digits" else ("--dataset", tuned["dataset"])
        edition = ("--finetune-weights", f"+{tuned['edition']}") if tuned["edition"] else ()
        return [say_command("run", "--finetune", name, *parts, *where, *edition)]
    else:
        return []
    meant = [each.partition("+")[0] for each in (*shown["training_overrides"], *shown["costs"])]
    taken = "digits" if "digits" in meant or not meant else meant[0]
    missing = say_command("train", stage, name, "--dataset", taken)
    return commands if data or not shown["training"] else [missing, *commands]


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _description(plugins: Registry, entry: Entry, name: str) -> dict[str, Any]:
    spec = entry.spec
    member, tag = spec.split_tag(name) if spec.tags else ("", "")
    wanted = None if name == spec.name and spec.is_family else member or name
    return {
        "stage": entry.stage,
        "name": name,
        "summary": spec.summary,
        "plugin": entry.origin,
        "tag": tag or None,
        "family": name == spec.name and spec.is_family,
        "paper": attrs.asdict(spec.paper) if spec.paper else None,
        "options": [attrs.asdict(option) for option in describe(spec.config)],
        "training": [attrs.asdict(option) for option in describe(spec.recipe)] if spec.train else [],
        "training_overrides": {dataset: dict(values) for dataset, values in spec.recipes.items()},
        "editions": {edition: dict(values) for edition, values in spec.editions.items()},
        "costs": dict(spec.costs),
        "threats": list(spec.threats) if entry.stage == "attack" else [],
        "weights": [
            {
                "name": _filed_as(found.card),
                "dataset": found.card.dataset["name"],
                "filed_as": found.card.serves,
                "calibration": found.card.calibration and dict(found.card.calibration),
                "learnt_of": found.card.filing,
                "edition": found.edition,
                "file": found.path.name,
                "bytes": found.path.stat().st_size,
                "shipped": found.shipped,
                "since": origin.since,
                "hides": origin.hides,
                "config": dict(found.card.config),
                "recipe": dict(found.card.recipe),
                "figures": dict(found.card.figures),
            }
            for found in _known_weights(plugins, entry, wanted)
            for origin in [find_origin(found.path, plugins.packages(entry))]
        ],
    }


def _weights_of(plugins: Registry, entry: Entry, own: bool = False) -> list[str]:
    """Name the data sets that a stage has weights for; with `own` those whose weights are the user's."""
    # a family, or a fine-tuner of many victims, has weights under several names
    named = entry.spec.is_family or entry.stage == "finetuner"
    known = _known_weights(plugins, entry, None if entry.spec.is_family else entry.spec.name)
    return sorted(
        {
            f"{_filed_as(found.card)}/{found.filed_for}" if named else found.filed_for
            for found in known
            if not (own and found.shipped)
        }
    )


def _known_weights(plugins: Registry, entry: Entry, name: str | None) -> Iterator[Available]:
    """Yield the weights that serve a stage: its own, and those of the stage whose network it shares."""
    for stage in (entry.stage, entry.spec.weights_of):
        if stage is not None:
            for found in available(stage, name, plugins.packages(entry)):
                if name is not None or entry.stage == "finetuner" or _member(plugins, entry, found.card.name):
                    yield found


def _filed_as(card: Card) -> str:
    """Name weights: the stage's name, or for a tuned victim "resnet20 behind dae"."""
    if card.stage != "finetuner":
        return card.name
    return f"{card.config['victim']} behind {card.config['purifier'] or 'no purifier'}"


def _member(plugins: Registry, entry: Entry, name: str) -> bool:
    if not entry.spec.is_family:
        return False
    if entry.spec.pattern is not None:
        return bool(entry.spec.match(name))
    tagged = entry.spec.tags is not None and bool(entry.spec.split_tag(name)[1])
    return name in plugins.names_of(entry) or tagged
