"""The finished batches of a run that is not finished: RUN/unfinished/, from which it can go on."""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from defend.errors import ConfigError
from defend.records.rows import COLUMNS, EXAMPLE, OF_ARMS, ArmRecord, Example, Part
from defend.records.seen import Seen
from defend.records.unfinished import ABOUT, ANNOUNCED, BATCH, FOLDER, anew, read_sealed, say_difference, seal
from defend.util.files import make_folder, sweep, write_bytes, write_text
from defend.util.header import read_metadata
from defend.util.sealed import is_whole, to_sealed

JOURNAL = "journal"


class Journal:
    """Keeps every finished batch of a run in a file of its own, whole or not there.

    Args:
        folder: the run's; the journal lives in a folder inside it until the run is complete.

    Attributes:
        damaged: finished batches that were read and are not as they were written; they are computed again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._started, self._earlier = time.perf_counter(), 0.0
        self.damaged = 0

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, with what earlier processes took until their last finished batch."""
        return self._earlier + time.perf_counter() - self._started

    def begin(self, configs: Sequence[str], fingerprint: Mapping[str, Any]) -> None:
        """Start, or go on where an earlier process stopped.

        Args:
            configs: the run's, as TOML, one an arm.
            fingerprint: what decides the records: a journal of something else is not continued.

        Raises:
            ConfigError: what was begun is not what would be continued; it names the first difference.
        """
        path = self._folder / ABOUT
        if path.is_file():
            kept = read_sealed(path)["fingerprint"]
            # through JSON, so that it equals what is read back: tuples are lists there
            for key, value in json.loads(json.dumps(fingerprint)).items():
                if kept.get(key) != value:
                    another = say_difference(key, kept.get(key), value)
                    raise ConfigError(
                        f"run {str(self._folder.parent)!r} was begun with another {another}, so its finished batches "
                        f"do not belong to what would be computed now: begin anew with {anew(self._folder.parent)}"
                    )
            return
        make_folder(self._folder, JOURNAL)
        for left in self._folder.glob(f"*{BATCH}"):  # of a run whose table of contents is gone: nobody knows whose
            left.unlink(missing_ok=True)
        write_text(path, seal({"configs": list(configs), "fingerprint": fingerprint}), JOURNAL)

    def announce(self, configs: Sequence[str]) -> None:
        """Write down which configs the run has, before the first folder holds one: it may be killed at any moment."""
        if not (self._folder / ABOUT).is_file():
            make_folder(self._folder, JOURNAL)
            write_text(self._folder / ANNOUNCED, seal({"configs": list(configs)}), JOURNAL)

    def choice(self, name: str) -> dict[str, Any] | None:
        """Return what the run chose when it began, as `choose` was told it; None where it did not choose yet.

        Raises:
            ConfigError: it is damaged: another choice might not go with the finished batches.
        """
        path = self._folder / f"{name}.json"
        return read_sealed(path) if path.is_file() else None

    def choose(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep a choice that could turn out otherwise when the run goes on."""
        write_text(self._folder / f"{name}.json", seal(value), JOURNAL)

    def keep(self, row: int, place: int, part: Part) -> None:
        """Write a finished batch: the `place`-th of its row."""
        tensors, about = _flat(part)
        text = json.dumps({**about, "elapsed": self.seconds})
        write_bytes(self._file(row, place), to_sealed(tensors, {"part": text}), "finished batch")

    def parts(self, row: int) -> list[Part]:
        """Return the finished batches of a row, up to the first that is missing or damaged."""
        found: list[Part] = []
        while (path := self._file(row, len(found))).is_file():
            read = _read(path)
            if read is None:
                self.damaged += 1
                break
            part, elapsed = read
            # the latest of all batches says how long the run had taken
            self._earlier = max(self._earlier, elapsed)
            found.append(part)
        return found

    def finish(self) -> None:
        """Drop the journal of a complete run.

        It is renamed first, in one step. A process killed while it deletes then leaves no half of a journal, which
        would be resumed, or taken for one that was lost.
        """
        folder, done = self._folder.parent, self._folder.with_name(f".{FOLDER}.finished.part")  # a name that is swept
        sweep(folder, age=0)
        why = "some of it is still there"
        try:
            self._folder.replace(done)
        except OSError as error:
            why = error.strerror or str(error)
        sweep(folder, age=0)
        left = next((each for each in (self._folder, done) if each.exists()), None)
        if left is not None:
            warnings.warn(
                f"the run is complete, and its journal {str(left)!r} cannot be deleted ({why}): delete that folder",
                stacklevel=2,
            )

    def adopt(self, row: int, place: int, file: Path) -> None:
        """Take over a finished batch that another journal holds, as it is: the `place`-th of its row here."""
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{str(file)!r} cannot be read: {error.strerror}") from None
        write_bytes(self._file(row, place), data, "finished batch")

    def _file(self, row: int, place: int) -> Path:
        return self.file(self._folder, row, place)

    @staticmethod
    def file(folder: Path, row: int, place: int) -> Path:
        """Return where the journal in a folder keeps a batch."""
        return folder / f"{row:03d}-{place:06d}{BATCH}"


def _flat(part: Part) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {name: getattr(part, name) for name in COLUMNS}
    if part.queries is not None:
        tensors["queries"] = part.queries
    if part.attacked is not None:
        tensors["attacked"] = part.attacked
    if part.seen is not None:
        tensors["seen"] = torch.stack(part.seen.columns())
    if part.fooled is not None:
        tensors["fooled/keys"], tensors["fooled/images"] = part.fooled
    for place, (name, said) in enumerate(part.arms.items()):
        columns = attrs.asdict(said, recurse=False)
        tensors |= {f"arm/{place}/{key}": value for key, value in columns.items() if value is not None}
        tensors |= {f"example/{place}/{key}": getattr(part.example, key)[name] for key in OF_ARMS}
    tensors |= {f"example/{name}": getattr(part.example, name) for name in EXAMPLE}
    about = {
        "arms": list(part.arms),
        "attack_seconds": part.attack_seconds,
        "judge_seconds": dict(part.judge_seconds),
        "judge_ms": dict(part.judge_ms),
        "failures": part.failures,
        "reused": part.reused,
    }
    # copies, as two arms may be one, and safetensors refuses to write the same memory twice
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, about


def _read(path: Path) -> tuple[Part, float] | None:
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        if not is_whole(data):
            return None
        tensors, about = load(data), json.loads(read_metadata(io.BytesIO(data))["part"])
        names = list(enumerate(about["arms"]))
        arms = {
            name: ArmRecord(
                **{key: tensors[f"arm/{place}/{key}"] for key in ("predicted", "confidence", "accepted", "score")},
                passes=tensors.get(f"arm/{place}/passes"),
                distance=tensors.get(f"arm/{place}/distance"),
            )
            for place, name in names
        }
        example: dict[str, Any] = {name: tensors[f"example/{name}"] for name in EXAMPLE}
        example |= {key: {name: tensors[f"example/{place}/{key}"] for place, name in names} for key in OF_ARMS}
        part = Part(
            **{name: tensors[name] for name in COLUMNS},
            queries=tensors.get("queries"),
            attacked=tensors.get("attacked"),
            arms=arms,
            example=Example(**example),
            attack_seconds=about["attack_seconds"],
            judge_seconds=about["judge_seconds"],
            judge_ms=about["judge_ms"],
            failures=about["failures"],
            reused=about["reused"],
            fooled=(tensors["fooled/keys"], tensors["fooled/images"]) if "fooled/keys" in tensors else None,
            seen=Seen(*tensors["seen"]) if "seen" in tensors else None,
        )
        return part, float(about["elapsed"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # computed again
