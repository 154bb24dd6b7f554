"""What a reader of a report should know beside its figures."""

from __future__ import annotations

from collections.abc import Sequence

from defend.plugins import Registry
from defend.records.rows import PlannedRow
from defend.values.run_config import RunConfig
from defend.values.threats import knows_the_defence


def make_notes(config: RunConfig, rows: Sequence[PlannedRow], plugins: Registry) -> tuple[str, ...]:
    """Return the notes of a run's report, none where there is nothing to say."""
    return tuple(note for note in (_note_victim(config, plugins), _note_rounding(config, rows)) if note)


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
