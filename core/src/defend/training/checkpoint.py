"""A training as it stands, in one safetensors file with a JSON header, and its metrics, a line an epoch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.errors import ConfigError, DefendError, WeightsError, WriteError
from defend.train import Optimiser
from defend.util.documents import parse_json
from defend.util.files import make_folder, sweep, write_bytes, write_text
from defend.util.header import read_metadata
from defend.util.processes import Processes
from defend.util.sealed import is_whole, to_sealed
from defend.weights.files import detach

CHECKPOINT = "checkpoint.safetensors"
WRITTEN = "written"  # beside it once the weights of the whole training are in a file


@attrs.define
class Best:
    """The weights of the epoch that scored best, for a training that scores its epochs; kept on the CPU.

    `epoch` is counted from 1; None where none was scored, or a checkpoint does not say.
    """

    score: float | None = None
    tensors: dict[str, Tensor] = attrs.field(factory=dict)
    epoch: int | None = None

    def offer(self, score: float, epoch: int, modules: Mapping[str, nn.Module]) -> None:
        if self.score is None or score > self.score:
            self.score, self.epoch = score, epoch
            self.tensors = {
                f"{name}/{key}": value.detach().cpu().clone()
                for name, module in modules.items()
                for key, value in module.state_dict().items()
            }

    def restore(self, modules: Mapping[str, nn.Module]) -> None:
        if self.score is not None:
            load_modules(modules, self.tensors)


def load_modules(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Load each module's tensors, which are named MODULE/KEY."""
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


@attrs.frozen
class Code:
    """Which code trained what a checkpoint holds.

    Attributes:
        version: a hash of core and the libraries, see `defend.fingerprints.code.code_version`.
        changed_at: the steps from which on another version trained than before.
    """

    version: str = ""
    changed_at: Sequence[int] = ()

    def now(self, version: str, step: int) -> Code:
        """Return this with the version that goes on from a step."""
        return self if version == self.version else Code(version, (*self.changed_at, step))


@attrs.frozen
class Length:
    """How long a training is: the steps that so many processes take."""

    processes: int = 1
    steps: int = 0

    @property
    def said(self) -> str:
        """How many processes, in words."""
        return f"{self.processes} process{'es' if self.processes > 1 else ''}"


class OtherTrainingError(WeightsError):
    """A checkpoint of a training that differs in what decides its weights."""


class Checkpoint:
    """Modules, optimisers, schedules and records as one safetensors file with a JSON header."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimisers: Mapping[str, Optimiser],
        records: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self._modules, self._optimisers, self._records = modules, optimisers, records or {}

    def save(
        self,
        path: Path,
        fingerprint: str,
        step: int,
        sums: Mapping[str, Tensor],
        best: Best,
        code: Code | None = None,
        length: Length | None = None,
    ) -> None:
        tensors: dict[str, Tensor] = {}
        groups, schedules = {}, {}
        for name, module in self._modules.items():
            tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
        for name, record in self._records.items():
            tensors |= {f"record/{name}/{key}": value for key, value in record.state_dict().items()}
        for name, optimiser in self._optimisers.items():
            state = optimiser.optimizer.state_dict()
            groups[name] = state["param_groups"]
            schedules[name] = optimiser.schedule.state_dict() if optimiser.schedule else None
            for index, values in state["state"].items():
                slots = {key: value for key, value in values.items() if value is not None}
                tensors |= {f"optimiser/{name}/{index}/{key}": torch.as_tensor(v) for key, v in slots.items()}
        tensors |= {f"sum/{name}": torch.as_tensor(value) for name, value in sums.items()}
        tensors |= {f"best/{name}": value for name, value in best.tensors.items()}
        header = {
            "fingerprint": fingerprint,
            "step": step,
            "groups": groups,
            "schedules": schedules,
            "best": best.score,
            "best_epoch": best.epoch,
            "code": attrs.asdict(code or Code()),
            "length": attrs.asdict(length or Length()),
        }
        text = json.dumps(header, default=_plain)
        make_folder(path.parent)
        write_bytes(path, to_sealed(detach(tensors), {"state": text}), "checkpoint")

    def read(
        self, path: Path, fingerprint: str, version: str | None = None, length: Length | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what `save` wrote, its header and its tensors on the CPU; nothing is loaded.

        `version` is the code that it must be of, None where any will do.

        Raises:
            ConfigError: as many processes as now take another number of steps.
            WeightsError: it is damaged, or of another training.
        """
        metadata, tensors = _read_whole(path)
        header = parse_json(metadata["state"])
        code = Code(**header["code"])
        if header["fingerprint"] != fingerprint or version not in (None, code.version):
            raise OtherTrainingError(f"checkpoint {str(path)!r} belongs to another training")
        begun, wanted = Length(**header["length"]), length or Length()
        if begun.steps != wanted.steps:  # which schedules are made for
            raise ConfigError(
                f"this training was begun in {begun.said}, and takes {begun.steps} steps so, but {wanted.steps} in "
                f"{wanted.said}: use as many as before, or remove {str(path.parent)!r} to begin anew"
            )
        held = {f"module/{name}/": module for name, module in self._modules.items()}
        held |= {f"record/{name}/": record for name, record in self._records.items()}
        for prefix, module in held.items():
            kept = _under(prefix, tensors)
            if not kept and prefix.startswith("record/"):  # what older code kept has none
                continue
            if {key: value.shape for key, value in module.state_dict().items()} != {
                key: value.shape for key, value in kept.items()
            }:
                raise WeightsError(f"checkpoint {str(path)!r} is of other networks")
        return header, tensors

    def load(
        self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[int, dict[str, Tensor], Best, Code]:
        """Load what `read` returned; return its step, sums, best weights and the code that made it."""
        load_modules(self._modules, _under("module/", tensors))
        kept = _under("record/", tensors)
        load_modules({name: one for name, one in self._records.items() if _under(f"{name}/", kept)}, kept)
        for name, optimiser in self._optimisers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimiser/{name}/"):
                    index, slot = key.removeprefix(f"optimiser/{name}/").split("/")
                    state.setdefault(int(index), {})[slot] = value
            groups = header["groups"][name]
            for group, now in zip(groups, optimiser.optimizer.param_groups, strict=True):
                held = {key: value for key, value in now.items() if isinstance(value, Tensor)}  # a rate, not a number
                group |= {key: torch.full_like(value, group[key]) for key, value in held.items() if key in group}
            optimiser.optimizer.load_state_dict({"state": state, "param_groups": groups})
            if optimiser.schedule is not None:
                optimiser.schedule.load_state_dict(header["schedules"][name])
        best = Best(header.get("best"), _under("best/", tensors), header.get("best_epoch"))
        # older code kept no count beside a sum
        sums = {name: value for name, value in _under("sum/", tensors).items() if value.ndim}
        return header["step"], sums, best, Code(**header["code"])


def _read_whole(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a checkpoint of which every byte is as it was written."""
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"checkpoint {str(path)!r} cannot be read: {error.strerror}") from None
    if not is_whole(data):
        raise WeightsError(f"checkpoint {str(path)!r} is damaged or cut short")
    return read_metadata(io.BytesIO(data)), load(data)


def _plain(value: Any) -> Any:
    """Return a number that an optimiser keeps as a tensor, such as its learning rate, as JSON has it."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    raise TypeError(f"its optimisers or schedules hold a {type(value).__name__}, which is no number, text or list")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


class Keeper:
    """Keeps a checkpoint now and then, by the first process alone; one that cannot be written is given up.

    `version` says which code trains. Other code goes on with a checkpoint, so that an upgrade costs no training, and
    what it keeps says so; but of a training that has ended and whose weights were written it begins anew.
    """

    def __init__(
        self,
        state: Checkpoint,
        folder: Path | None,
        seconds: float,
        identity: Mapping[str, Any],
        processes: Processes,
        version: str = "",
        length: Length | None = None,
    ) -> None:
        self._length = length or Length()
        self.code = Code(version)
        self._whole = False  # whether it began where the weights of all of it were written
        self._state, self._processes, self._seconds = state, processes, seconds
        self._path = folder / CHECKPOINT if folder else None
        self._fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        self._saved = time.monotonic()
        if folder is not None and processes.first:
            sweep(folder)

    def load(self, device: torch.device) -> tuple[int, dict[str, Tensor], Best]:
        """Return the step, the sums and the best weights so far; none where the checkpoint is no use, which is told.

        Of several processes, which may not all see the file, each loads what the first one read; all of them must call.

        Args:
            device: this process's own.

        Raises:
            ConfigError: it was begun in a number of processes that takes another number of steps.
        """
        tensors: dict[str, Tensor] = {}

        def read() -> tuple[dict[str, Any] | None, bool, dict[str, tuple[torch.dtype, torch.Size]]]:
            header, written, found = self._read()
            tensors.update(found)
            return header, written, {name: (one.dtype, one.shape) for name, one in found.items()}

        header, written, kinds = self._processes.do_first(read, "a training's checkpoint")
        if header is None:
            return 0, {}, Best()
        if not self._processes.first:
            tensors = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in kinds.items()}
        self._processes.share(tensors, device)
        step, sums, best, code = self._state.load(header, tensors)
        self.code, self._whole = code.now(self.code.version, step), written
        if self.code != code and self._processes.first and self._path is not None:
            warnings.warn(
                f"this training goes on from step {step}, which another version of defend or of a library under it had "
                f"come to; the card will say so. To begin anew, remove {str(self._path.parent)!r}",
                stacklevel=2,
            )
        return step, sums, best

    def _read(self) -> tuple[dict[str, Any] | None, bool, dict[str, Tensor]]:
        """Return the checkpoint's header, whether the weights of all of it were written, and its tensors."""
        if self._path is None or not self._path.is_file():
            return None, False, {}
        written = self._path.with_name(WRITTEN).exists()
        try:
            needed = self.code.version if written else None
            header, tensors = self._state.read(self._path, self._fingerprint, needed, self._length)
        except OtherTrainingError:
            return None, False, {}
        except WeightsError as error:
            warnings.warn(f"{error}: the training begins anew", stacklevel=2)
            return None, False, {}
        return header, written, tensors

    def keep(self, step: int, sums: Mapping[str, Tensor], best: Best, always: bool) -> None:
        due = always or time.monotonic() - self._saved >= self._seconds
        if self._path is None or not self._processes.first or not due:
            return
        try:
            self._state.save(self._path, self._fingerprint, step, sums, best, self.code, self._length)
            if not self._whole:  # what was written is another training's
                self._path.with_name(WRITTEN).unlink(missing_ok=True)
        except (DefendError, OSError, RuntimeError, TypeError, ValueError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(f"no checkpoint is kept of this training: {said}", stacklevel=2)
            self._path = None
        self._saved = time.monotonic()


def mark_written(folder: Path) -> None:
    """Note beside a checkpoint that the weights of its training are in a file; one that cannot be written is given up.

    Other code then has nothing to go on with: the same command trains anew.
    """
    with contextlib.suppress(WriteError):
        if (folder / CHECKPOINT).is_file():
            write_text(folder / WRITTEN, "", "note of what is written")


class MetricsFile:
    """metrics.jsonl: one line an epoch. Lines after the resumed step are dropped, as those epochs are run again.

    A file that cannot be written is given up, and damaged lines are left out; a warning says so.
    """

    def __init__(self, folder: Path | None, steps_done: int) -> None:
        self._path = folder / "metrics.jsonl" if folder else None
        self._lines: list[str] = []
        if self._path is not None and self._path.is_file():
            lines = _read_lines(self._path)
            known = [(line, _step_of(line)) for line in lines]
            damaged = sum(step is None for _, step in known)
            if damaged:
                warnings.warn(f"{str(self._path)!r} has {damaged} damaged lines, which are left out", stacklevel=2)
            self._lines = [line for line, step in known if step is not None and step <= steps_done]

    def write(self, values: Mapping[str, float]) -> None:
        if self._path is None:
            return
        self._lines.append(json.dumps(values))
        try:
            make_folder(self._path.parent)
            write_text(self._path, "\n".join(self._lines) + "\n", "metrics")
        except WriteError as error:
            warnings.warn(f"no metrics are kept of this training: {error}", stacklevel=2)
            self._path = None


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        warnings.warn(f"{str(path)!r} cannot be read: {error.strerror}", stacklevel=2)
        return []


def _step_of(line: str) -> int | None:
    """Return the step that a line of metrics.jsonl is of; None where it is damaged."""
    try:
        step = parse_json(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if type(step) is int else None
