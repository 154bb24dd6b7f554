"""The training loop: devices, precision, processes, checkpoints, resume, progress.

A stage describes its training as a `Training`: modules, optimisers, losses. `fit` runs it, on
accelerate, so the same code serves a CPU, a GPU, and `torchrun` or `accelerate launch`.

Every step seeds torch's generator from (seed, step, process) and every epoch's order comes from
(seed, epoch), so a run that was killed and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import abc
import bisect
import contextlib
import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.datasets.base import Batch, ImageDataset
from defend.errors import ContractError, DefendError, WeightsError
from defend.files import atomic, write_text
from defend.randomness import permutation, step_seed
from defend.watcher import TrainingWatcher
from defend.weights import detached, round_to_stored, stored

CHECKPOINT_SECONDS = 20.0


@attrs.frozen
class Loss:
    """One optimisation step: minimise `value` with the optimiser named `optimiser`; `metrics` are logged."""

    optimiser: str
    value: Tensor
    metrics: Mapping[str, Tensor] = attrs.field(factory=dict)


@attrs.frozen
class Optimiser:
    """An optimiser and, if wanted, its schedule, stepped after every optimisation step."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None


class Training(abc.ABC):
    """What a stage says of its training; the loop is core's.

    Args:
        stage: the module whose weights are kept.
        modules: every network that is trained, by name, part of `stage` or not. `fit` may wrap them (for
            several processes), so `losses` must call `self.modules[name](...)`.
        epochs, batch_size: length and size; the batch is shared out between processes.
        frozen: networks that the losses use and nothing trains, by name: `fit` brings them to the device, in
            eval mode and without parameter gradients.

    `epoch` is the epoch at hand, counted from 0, for a training that goes in stages. A `data` that takes long tells
    `making` how many of its images are made: (done, in all).
    """

    def __init__(
        self,
        stage: nn.Module,
        modules: dict[str, nn.Module],
        *,
        epochs: int,
        batch_size: int,
        frozen: dict[str, nn.Module] | None = None,
    ) -> None:
        self.stage, self.modules, self.frozen = stage, modules, frozen or {}
        self.epochs, self.batch_size = epochs, batch_size
        self.epoch = 0
        self.making: Callable[[int, int], None] = lambda done, total: None

    @abc.abstractmethod
    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        """Return the optimisers by name, for a training of `steps` batches."""

    @abc.abstractmethod
    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the losses of a batch. Each is minimised before the generator goes on, so a GAN yields twice."""

    def data(self, dataset: ImageDataset, device: torch.device) -> ImageDataset:
        """Return what is trained on (its train split): by default the data set itself."""
        return dataset

    def epoch_size(self, epoch: int, size: int) -> int:
        """Return how many of the `size` training images an epoch takes; by default all."""
        return size

    def order(self, epoch: int, size: int, seed: int) -> Tensor:
        """Return which training images an epoch takes, and in which order: int64 [epoch_size]."""
        return permutation(size, seed=seed, stream=f"epoch/{epoch}")

    def score(self, dataset: ImageDataset, device: torch.device) -> float | None:
        """Judge the weights after an epoch (eval mode, no gradients), higher is better, never by the test split.

        Where it returns numbers, the weights of the best epoch are kept; None keeps the last.
        """
        return None

    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Calibrate and measure once training has ended (modules in eval mode); return figures for the card."""
        return {}


@attrs.frozen(kw_only=True)
class FitSettings:
    """How to run a training.

    Attributes:
        folder: where checkpoint and metrics go; None keeps neither.
        precision: "no" or "bf16", accelerate's mixed precision.
        checkpoint_seconds: the least time between two checkpoints.
        progress: what is told of it.
    """

    seed: int = 0
    device: str = "cpu"
    precision: str = "no"
    folder: Path | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    progress: TrainingWatcher = attrs.field(factory=TrainingWatcher)


def fit(
    training: Training, dataset: ImageDataset, settings: FitSettings, identity: Mapping[str, Any]
) -> dict[str, float]:
    """Train, round the kept module to what a file stores, let the stage finish; return its figures.

    `identity` says which training this is: a checkpoint of another identity is not resumed.

    A checkpoint that cannot be written costs no training: a warning says so once, and the training goes on.

    Raises:
        ContractError: a loss is not finite, or names an optimiser that does not exist; there was none at all; or the
            trained weights are not finite.
        WeightsError: part of the module's state is no tensor, so that no file could hold it.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # its settings are the process's, and each training has its own
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.precision)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if device.type == "cuda":  # shapes do not change from step to step, and gradients need no more digits than TF32's
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    bare = dict(training.modules)
    for module in (training.stage, *bare.values()):
        stored(module)  # what no file can hold is refused before the training, not after
    for module in (training.stage, *bare.values(), *training.frozen.values()):
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in training.frozen.values():
        module.eval().requires_grad_(False)
    training.making = settings.progress.making
    source = training.data(dataset, device)
    size = len(source.labels("train"))
    sizes = [training.epoch_size(epoch, size) for epoch in range(training.epochs)]
    per_process = max(min(training.batch_size, *sizes) // world, 1)
    steps = [count // (per_process * world) for count in sizes]
    ends = list(itertools.accumulate(steps))
    total = ends[-1]
    chosen = training.optimisers(total)
    training.modules = {name: accelerator.prepare(module) for name, module in bare.items()}
    state = _State(bare, chosen)
    prepared = {name: accelerator.prepare(optimiser.optimizer) for name, optimiser in chosen.items()}

    step = 0
    sums: dict[str, Tensor] = {}
    best = _Best()
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    checkpoint = settings.folder / "checkpoint.safetensors" if settings.folder else None
    if checkpoint is not None and checkpoint.is_file():
        with contextlib.suppress(WeightsError):  # a checkpoint of another training: start anew
            step, sums, best = state.load(checkpoint, fingerprint)
    log = _Metrics(settings.folder, steps_done=step) if accelerator.is_main_process else _Metrics(None, 0)

    saved = time.monotonic()
    begun, minimised = step, 0

    def keep(always: bool = False) -> None:
        nonlocal saved, checkpoint
        due = always or time.monotonic() - saved >= settings.checkpoint_seconds
        if checkpoint is not None and accelerator.is_main_process and due:
            try:
                state.save(checkpoint, fingerprint, step, sums, best)
            except (DefendError, OSError, RuntimeError, TypeError, ValueError) as error:
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warnings.warn(f"no checkpoint is kept of this training: {said}", stacklevel=2)
                checkpoint = None
            saved = time.monotonic()

    for epoch in range(bisect.bisect_right(ends, step), training.epochs):
        training.epoch = epoch
        for module in training.modules.values():
            module.train()
        order = training.order(epoch, size, settings.seed)
        order = order[: steps[epoch] * per_process * world].view(steps[epoch], world, per_process)[:, rank]
        order = order[step - (ends[epoch] - steps[epoch]) :].flatten()
        for batch in source.batches("train", order, per_process, device):
            torch.manual_seed(step_seed(settings.seed, "step", step, rank))
            for loss in _reduced(accelerator.autocast, training.losses(batch)):
                if loss.optimiser not in prepared:
                    raise ContractError(
                        f"a loss names optimiser {loss.optimiser!r}, which is none of {sorted(prepared)}"
                    )
                minimised += 1
                prepared[loss.optimiser].zero_grad()
                accelerator.backward(loss.value)
                prepared[loss.optimiser].step()
                schedule = chosen[loss.optimiser].schedule
                if schedule is not None:
                    schedule.step()
                for name, value in {f"{loss.optimiser}_loss": loss.value, **loss.metrics}.items():
                    total_so_far = sums.get(name)
                    now = value.detach().double().to(device)
                    sums[name] = now if total_so_far is None else total_so_far.to(device) + now
            step += 1
            if step < ends[epoch]:  # at its end an epoch is logged first, then saved
                keep()
                settings.progress.step(step, total, {})
        if step == total and not begun and not minimised:
            raise ContractError(
                "the training yielded no loss, so nothing was trained: expected a Loss a step from `losses`"
            )
        means = {name: float(value) / steps[epoch] for name, value in sums.items()}
        if any(value != value or value in (float("inf"), float("-inf")) for value in means.values()):
            raise ContractError(
                f"the training diverged in epoch {epoch + 1} ({means}): lower the learning rate (--set lr=...)"
            )
        for module in bare.values():
            module.eval()
        with torch.no_grad():
            score = training.score(dataset, device)
        if score is not None:
            best.offer(score, bare)
            means["score"] = score
        log.write({"epoch": epoch + 1, "step": step, **means})
        settings.progress.step(step, total, means)
        sums = {}
        keep()
    keep(always=True)
    settings.progress.measuring()
    accelerator.wait_for_everyone()

    training.modules = bare
    best.restore(bare)
    for module in (training.stage, *bare.values()):
        module.eval()
    _check_finite(training.stage)
    round_to_stored(training.stage)
    return training.finish(dataset, device)


def _check_finite(module: nn.Module) -> None:
    """Refuse weights that are no numbers; buffers may be infinite, as a threshold is that was not set yet."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, value in module.state_dict().items():
        if value.is_floating_point() and bool((value.isnan() if name not in parameters else ~value.isfinite()).any()):
            raise ContractError(
                f"the training diverged: {name!r} is not finite in the end, so no weights are kept: lower the learning "
                "rate (--set lr=...)"
            )


def _reduced(precision: Callable[[], contextlib.AbstractContextManager[Any]], losses: Iterator[Loss]) -> Iterator[Loss]:
    """Compute every loss under autocast, so that frozen networks take part in mixed precision; optimisers do not."""
    while True:
        with precision():
            loss = next(losses, None)
        if loss is None:
            return
        yield loss


@attrs.define
class _Best:
    """The weights of the epoch that scored best, for a training that scores its epochs; kept on the CPU."""

    score: float | None = None
    tensors: dict[str, Tensor] = attrs.field(factory=dict)

    def offer(self, score: float, modules: Mapping[str, nn.Module]) -> None:
        if self.score is None or score > self.score:
            self.score = score
            self.tensors = {
                f"{name}/{key}": value.detach().cpu().clone()
                for name, module in modules.items()
                for key, value in module.state_dict().items()
            }

    def restore(self, modules: Mapping[str, nn.Module]) -> None:
        if self.score is not None:
            _load_modules(modules, self.tensors)


def _load_modules(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


class _State:
    """Modules, optimisers and schedules as one safetensors file with a JSON header."""

    def __init__(self, modules: Mapping[str, nn.Module], optimisers: Mapping[str, Optimiser]) -> None:
        self._modules, self._optimisers = modules, optimisers

    def save(self, path: Path, fingerprint: str, step: int, sums: Mapping[str, Tensor], best: _Best) -> None:
        from safetensors.torch import save as to_bytes

        tensors: dict[str, Tensor] = {}
        groups, schedules = {}, {}
        for name, module in self._modules.items():
            tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
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
            "fingerprint": fingerprint, "step": step, "groups": groups, "schedules": schedules, "best": best.score,
        }  # fmt: skip
        text = json.dumps(header, default=_plain)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(to_bytes(detached(tensors), metadata={"state": text}))

    def load(self, path: Path, fingerprint: str) -> tuple[int, dict[str, Tensor], _Best]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise WeightsError(f"checkpoint {str(path)!r} is damaged: {error}") from None
        if header["fingerprint"] != fingerprint:
            raise WeightsError(f"checkpoint {str(path)!r} belongs to another training")
        for name, module in self._modules.items():
            kept = _under(f"module/{name}/", tensors)
            if {key: value.shape for key, value in module.state_dict().items()} != {
                key: value.shape for key, value in kept.items()
            }:
                raise WeightsError(f"checkpoint {str(path)!r} is of other networks")
        _load_modules(self._modules, _under("module/", tensors))
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
        best = _Best(header.get("best"), _under("best/", tensors))
        return header["step"], _under("sum/", tensors), best


def _plain(value: Any) -> Any:
    """Return a number that an optimiser keeps as a tensor, such as its learning rate, as JSON has it."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    raise TypeError(f"its optimisers or schedules hold a {type(value).__name__}, which is no number, text or list")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


class _Metrics:
    """metrics.jsonl: one line an epoch; lines after the resumed step are dropped."""

    def __init__(self, folder: Path | None, steps_done: int) -> None:
        self._path = folder / "metrics.jsonl" if folder else None
        self._lines: list[str] = []
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.is_file():
                lines = self._path.read_text(encoding="utf-8").splitlines()
                self._lines = [line for line in lines if json.loads(line)["step"] <= steps_done]

    def write(self, values: Mapping[str, float]) -> None:
        if self._path is None:
            return
        self._lines.append(json.dumps(values))
        write_text(self._path, "\n".join(self._lines) + "\n")
