"""What a reader of a report should know beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from defend.assembly.stage import Built
from defend.checks.clean import CAUSES, beats_chance
from defend.plugins import Registry
from defend.records.rows import PlannedRow, RowRecord, right
from defend.util.metrics import share
from defend.values.run_config import RunConfig
from defend.values.shares import in_percent
from defend.values.threats import UNDEFENDED, knows_the_defence
from defend.weights.card import READ
from defend.weights.origin import warn_of


def make_notes(
    config: RunConfig,
    rows: Sequence[PlannedRow],
    plugins: Registry,
    built: Mapping[str, Built],
    records: Sequence[RowRecord],
    weights: Mapping[str, Mapping[str, Any]],
    batch_size: int,
) -> tuple[str, ...]:
    """Return the notes of a run's report, none where there is nothing to say.

    Args:
        config: of the run.
        rows: that it plans.
        plugins: what is installed.
        built: its parts, with the cards of their weights.
        records: of the rows that are finished.
        weights: what the report says of them, by part.
        batch_size: in which the images were worked on.
    """
    tag = plugins.find("victim", config.victim).note(built["victim"].config)
    own = [warn_of(part, known) for part, known in weights.items()]
    notes = (tag, *_note_weights(built, records), *own, _note_budget(config), _note_rounding(config, rows, batch_size))
    return tuple(note for note in notes if note)


def _note_weights(built: Mapping[str, Built], records: Sequence[RowRecord]) -> list[str]:
    """Say what is known of weights that the user brought, which is what was measured here."""
    notes = []
    for part, value in built.items():
        if value.card is None or not value.card.foreign:
            continue
        how = f", read so: {value.card.recipe[READ]}" if value.card.recipe.get(READ) else ""
        note = f"The weights of {part} {value.card.name} are from {value.card.foreign!r}{how}"
        clean = next((each for each in records if each.plan.attack is None and part == "victim"), None)
        if clean is not None:
            accuracy, n = share(right(clean, UNDEFENDED)), len(clean.labels)
            chance = "" if beats_chance(clean, UNDEFENDED) else f", which is chance. Usual causes: {CAUSES}"
            found = f"{in_percent(accuracy)} % of {n} clean images"
            note += f". Their accuracy was not known before; here it is {found}{chance}"
        notes.append(note)
    return notes


def _note_budget(config: RunConfig) -> str:
    """Say what a budget of time has decided: fewer images widen the interval, fewer steps weaken the attack."""
    if config.budget is None or config.adaptive_limit is None:
        return ""
    return (
        f"To fit a budget of {config.budget}, the adaptive rows have {config.adaptive_limit} images and attacks of at "
        f"most {config.adaptive_steps} steps: more of either may leave less"
    )


def _note_rounding(config: RunConfig, rows: Sequence[PlannedRow], batch_size: int) -> str:
    """Say where another batch size may change a prediction: draws are an image's own, rounding is the batch's."""
    if not config.purifier or not any(knows_the_defence(each.threat.kind) for each in rows):
        return ""
    return (
        f"Attacked in batches of {batch_size}: another size draws the same numbers for every image but rounds "
        "otherwise, and sign steps through a purifier amplify that, so single predictions may differ"
    )
