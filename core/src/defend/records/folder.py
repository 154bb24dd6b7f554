"""The run folder: config.toml, report.json, records.csv, examples.safetensors, pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from defend.errors import ConfigError
from defend.records.document import to_json
from defend.records.per_image import to_csv
from defend.records.reading import is_run
from defend.records.rows import RowRecord
from defend.records.unfinished import is_unfinished
from defend.util.files import atomic, write_text
from defend.values.report import Report
from defend.values.run_config import RunConfig
from defend.values.threats import DEFENDED, UNDEFENDED
from defend.values.toml import to_toml


def create(config: RunConfig, resume: bool = False) -> Path:
    """Make the run folder, before anything is computed.

    Raises:
        ConfigError: it cannot be written to, or already holds a run and this does not `resume` it.
    """
    assert config.out is not None
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run folder {config.out!r} cannot be made ({error.strerror}): name another with --out"
        ) from None
    if not resume and is_unfinished(folder):
        raise ConfigError(
            f"run folder {config.out!r} holds a run that is not finished: go on with --resume {config.out}, or name "
            "another with --out"
        )
    if not resume and is_run(folder):
        raise ConfigError(f"run folder {config.out!r} already holds a run: name another with --out")
    return folder


def write_config(folder: Path, config: RunConfig) -> None:
    """Write config.toml, with which the run can be made again."""
    write_text(folder / "config.toml", to_toml(config))


def write(folder: Path, report: Report, records: Sequence[RowRecord]) -> None:
    """Write report.json and records.csv as they stand now; called after every row."""
    # the records first: a run stopped between the two leaves records without a row of the report, which are ignored
    write_text(folder / "records.csv", to_csv(records))
    write_text(folder / "report.json", to_json(report, seal=True))


def write_pictures(folder: Path, records: Sequence[RowRecord]) -> None:
    """Keep the example images of every row, and draw those of the headline's: examples-ATTACK-THREAT[-VARIANT].png."""
    from defend.records.pictures import draw_examples

    write_examples(folder / "examples.safetensors", records)
    for record in records:
        plan = record.plan
        if plan.attack is not None and plan.headline:
            named = "-".join(part for part in (plan.name, plan.threat.kind, plan.variant) if part)
            draw_examples(record, folder / f"examples-{re.sub(r'[^a-z0-9_.-]+', '_', named.lower())}.png")


def write_examples(path: Path, records: Sequence[RowRecord]) -> None:
    """Write the example images of attacked rows, by the row's place in the report: "3/clean", "3/attacked", ...

    "clean", "attacked" and "purified" are float16 [M,C,H,W]; "label", "image" (the place in the test split),
    "undefended", "defended" (predictions) and "accepted" int64 [M]. Failures of the defence come first.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for place, record in enumerate(records):
        example = record.example
        if record.plan.attack is None:
            continue
        columns = {
            "clean": example.clean.half(),
            "attacked": example.attacked.half(),
            "purified": example.purified[DEFENDED].half(),
            "label": example.labels,
            "image": example.keys,
            "undefended": example.predicted[UNDEFENDED],
            "defended": example.predicted[DEFENDED],
            "accepted": example.accepted[DEFENDED].long(),
        }
        # copies, as two arms may be one, and safetensors refuses to write the same memory twice
        tensors |= {f"{place}/{name}": column.clone().contiguous() for name, column in columns.items()}
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors))
