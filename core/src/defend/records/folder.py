"""The run folder: config.toml, report.json, records.csv, examples.safetensors, pictures."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from defend.errors import ConfigError, WriteError
from defend.records.attacked import name_file
from defend.records.document import to_json
from defend.records.per_image import to_csv
from defend.records.reading import is_partial, is_run
from defend.records.rows import RowRecord
from defend.records.unfinished import FOLDER, find_unfinished, is_unfinished
from defend.util.files import place_under, write_bytes, write_text
from defend.util.lock import hold
from defend.util.sealed import to_sealed
from defend.values.commands import say_command
from defend.values.report import Report
from defend.values.run_config import RunConfig
from defend.values.threats import DEFENDED, UNDEFENDED
from defend.values.toml import to_toml


@contextlib.contextmanager
def claim(configs: Sequence[RunConfig], resume: bool = False) -> Iterator[list[Path | None]]:
    """Make the run folders, one a config that names one, and hold them for a block; see `defend.util.lock.hold`.

    Where there are several, the folder that they lie in is held too. Nothing is written before all are held.

    Raises:
        BusyError: another run is at work in one of them.
        ConfigError: one cannot be written to, or already holds a run and this does not `resume` it.
    """
    outs = [Path(each.out) if each.out else None for each in configs]
    folders = [out for out in outs if out is not None]
    around = {out.parent for out in folders} if len(folders) > 1 else set()
    with contextlib.ExitStack() as held:
        for folder in sorted({*folders, *around}):
            _make(folder)
            instead = "wait until it has ended, or name another with --out"
            held.enter_context(hold(folder, f"run folder {str(folder)!r}", instead))
        for place, folder in enumerate(folders):
            _refuse_others(folder, resume, goes_on=place == 0)
        yield outs


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run folder {str(folder)!r} cannot be made ({error.strerror}): name another with --out"
        ) from None


def _refuse_others(folder: Path, resume: bool, goes_on: bool) -> None:
    """Refuse a folder that holds another run; the one that `goes_on` keeps the journal of all arms."""
    name = str(folder)
    # a link there that leads elsewhere is not followed: batches would be written to, and deleted from, others' folders
    place_under(folder, FOLDER, f"run folder {name!r}")
    if not resume and is_unfinished(folder) and (shard := find_unfinished(folder)[0].shard):
        raise ConfigError(
            f"run folder {name!r} holds shard {shard}: go on with --resume {name}, give it to `defend merge`, or name "
            "another with --out"
        )
    if not resume and is_unfinished(folder):
        raise ConfigError(
            f"run folder {name!r} holds a run that is not finished: go on with --resume {name}, or name another with "
            "--out"
        )
    if not resume and is_run(folder):
        raise ConfigError(f"run folder {name!r} already holds a run: name another with --out")
    # another process may have gone on with it, and come to its end, while this one was getting ready
    if resume and goes_on and is_run(folder) and not (is_partial(folder) or (folder / FOLDER).is_dir()):
        raise ConfigError(
            f"the run in {name!r} is complete meanwhile: a page of it is made by {say_command('report', name)}"
        )


def write_config(folder: Path, config: RunConfig) -> None:
    """Write config.toml, with which the run can be made again."""
    write_text(folder / "config.toml", to_toml(config), "settings")


def write(folder: Path, report: Report, records: Sequence[RowRecord]) -> None:
    """Write report.json and records.csv as they stand now; called after every row."""
    # the records first: a run stopped between the two leaves records without a row of the report, which are ignored
    text = to_csv(records)
    write_text(folder / "records.csv", text, "records")
    write_text(folder / "report.json", to_json(report, text), "report")


def write_pictures(folder: Path, records: Sequence[RowRecord]) -> None:
    """Keep the example images of every row, and draw those of the headline's: examples-ATTACK-THREAT[-VARIANT].png.

    What cannot be written is left out, with a warning: the figures do not need it.
    """
    from defend.records.pictures import draw_examples

    writers = [functools.partial(write_examples, folder / "examples.safetensors", records)]
    taken: set[str] = set()
    for record in records:
        plan = record.plan
        if plan.attack is not None and plan.headline:
            name = name_file(plan, taken, "examples-")
            writers.append(functools.partial(draw_examples, record, folder / f"{name}.png"))
    for write_one in writers:
        try:
            write_one()
        except WriteError as error:
            warnings.warn(f"{error}; the run goes on without it", stacklevel=2)


def write_examples(path: Path, records: Sequence[RowRecord]) -> None:
    """Write the example images of attacked rows, by the row's place in the report: "3/clean", "3/attacked", ...

    "clean", "attacked" and "purified" are float16 [M,C,H,W]; "label", "image" (the place in the test split),
    "undefended", "defended" (predictions) and "accepted" int64 [M]. Failures of the defence come first.
    """
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
    write_bytes(path, to_sealed(tensors, {}), "example images")
