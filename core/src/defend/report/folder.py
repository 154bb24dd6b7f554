"""The run folder: config.toml, report.json, records.csv, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from defend.config import to_toml
from defend.errors import ConfigError
from defend.evaluate import RowRecord
from defend.files import write_text
from defend.report.document import to_json
from defend.report.records import to_csv
from defend.values import Report, RunConfig


def create(config: RunConfig) -> Path:
    """Make the run folder and write config.toml into it, before anything is computed.

    Raises:
        ConfigError: it cannot be written to, or already holds a run.
    """
    assert config.out is not None
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run folder {config.out!r} cannot be made ({error.strerror}): name another with --out"
        ) from None
    if (folder / "report.json").exists():
        raise ConfigError(f"run folder {config.out!r} already holds a run: name another with --out")
    write_text(folder / "config.toml", to_toml(config))
    return folder


def write(folder: Path, report: Report, records: Sequence[RowRecord]) -> None:
    """Write report.json and records.csv as they stand now; called after every row."""
    write_text(folder / "records.csv", to_csv(records))
    write_text(folder / "report.json", to_json(report))


def write_pictures(folder: Path, records: Sequence[RowRecord]) -> None:
    """Draw one picture a row that changed images: examples-ATTACK-THREAT.png."""
    from defend.report.pictures import draw_examples

    for record in records:
        if record.plan.attack is not None:
            draw_examples(record, folder / f"examples-{record.plan.name}-{record.plan.threat.kind}.png")
