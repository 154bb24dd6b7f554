"""What a reader of a report should know beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from defend.plugins import Registry
from defend.records.rows import PlannedRow
from defend.values.run_config import RunConfig
from defend.values.threats import knows_the_defence
from defend.weights.origin import warn_of


def make_notes(
    config: RunConfig, rows: Sequence[PlannedRow], plugins: Registry, weights: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the notes of a run's report, none where there is nothing to say.

    `weights` are what the report says of them, by part.
    """
    own = [warn_of(part, known) for part, known in weights.items()]
    return tuple(note for note in (_note_victim(config, plugins), *own, _note_rounding(config, rows)) if note)


def _note_victim(config: RunConfig, plugins: Registry) -> str:
    found = plugins.find("victim", config.victim)
    return found.note(found.config(config.options.get("victim", {})))


def _note_rounding(config: RunConfig, rows: Sequence[PlannedRow]) -> str:
    """Say where another batch size may change a prediction: draws are an image's own, rounding is the batch's."""
    if not config.purifier or not any(knows_the_defence(each.threat.kind) for each in rows):
        return ""
    return (
        f"Attacked in batches of {config.batch_size}: another size draws the same numbers for every image but rounds "
        "otherwise, and sign steps through a purifier amplify that, so single predictions may differ"
    )
