"""The training loop: devices, precision, processes, checkpoints, resume, progress.

A stage describes its training as a `Training`: modules, optimisers, losses. `fit` runs it, on
accelerate, so the same code serves a CPU, a GPU, and `torchrun` or `accelerate launch`.

Every step seeds torch's generator from (seed, step, process) and every epoch's order comes from
(seed, epoch), so a run that was killed and resumed ends with the same weights as one that was not. Of several
processes that holds up to what each has of its own until the end of an epoch: batch norm's statistics, by which a
training may craft its images, and free adversarial training's perturbation. A checkpoint has the first one's.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from defend.datasets.base import Batch, ImageDataset
from defend.errors import ContractError, WeightsError
from defend.randomness import step_seed
from defend.records.watcher import TrainingWatcher
from defend.stages import Task
from defend.train import Loss, Training
from defend.training.checkpoint import Checkpoint, Keeper, Length, MetricsFile
from defend.training.contract import (
    as_number,
    blame,
    check_figures,
    check_lengths,
    check_loss,
    check_optimisers,
    check_order,
    finite,
)
from defend.training.layout import find_unfit
from defend.util import interrupts
from defend.util.fp32 import fast_fp32, ieee_fp32
from defend.util.metrics import check_rate
from defend.util.processes import Processes, join, resolve_device
from defend.util.tensors import content_hash
from defend.weights.files import round_to_stored, to_stored

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECKPOINT_SECONDS = 20.0


@attrs.frozen(kw_only=True)
class FitSettings:
    """How to run a training.

    Attributes:
        device: "auto", or what torch knows, with an index too; of several processes each has a GPU of its own.
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


@attrs.frozen
class Fitted:
    """What a training came to.

    Attributes:
        code_changed_at: the steps from which on other code trained than before.
        kept_epoch: the epoch whose weights are kept, counted from 1, where epochs are scored.
    """

    figures: dict[str, float]
    code_changed_at: Sequence[int] = ()
    kept_epoch: int | None = None


def fit(
    training: Training, dataset: ImageDataset, settings: FitSettings, identity: Mapping[str, Any]
) -> dict[str, float]:
    """Train as `fit_in_course` does; return the figures."""
    return fit_in_course(training, dataset, settings, identity).figures


def fit_in_course(
    training: Training, dataset: ImageDataset, settings: FitSettings, identity: Mapping[str, Any], version: str = ""
) -> Fitted:
    """Train, round the kept module to what a file stores, let the stage finish; return what came of it.

    `identity` says which training this is: a checkpoint of another identity is not resumed. `version` says which code
    trains: a checkpoint of another version is, with a warning.

    A checkpoint that cannot be written costs no training: a warning says so once, and the training goes on.

    Raises:
        ConfigError: it was begun in a number of processes that takes another number of steps.
        StageError: the stage's code failed.
        ContractError: the stage said something else than its `Training` promises; a loss is not finite;
            there was none at all, or none that moved a weight; or the trained weights are not finite.
        TrainedError: the stage failed when it judged or measured what was trained.
        WeightsError: part of the module's state is no tensor that a file could hold.
    """
    with interrupts.careful():
        course = _Course(training, dataset, settings, identity, version)
        for epoch in course.left():
            course.run(epoch)
        return Fitted(course.finish(), course.code_changed_at, course.best.epoch)


def _start(settings: FitSettings) -> tuple[Accelerator, Processes]:
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState

    processes, device = join(resolve_device(settings.device))
    # its settings are the process's, and each training has its own
    AcceleratorState._reset_state()
    if processes.world == 1:
        # of itself it keeps to the device of the process's first training, and takes no index
        PartialState._reset_state()
        state: Any = PartialState(cpu=device.type == "cpu")
        state.device = device
    return Accelerator(cpu=device.type == "cpu", mixed_precision=settings.precision), processes


def _place(training: Training, networks: Mapping[str, nn.Module], device: torch.device, task: Task) -> str:
    """Bring all networks to the device, and freeze those that nothing trains.

    They lie in channels-last, or all as they are where that does not work with one; then it is said which.
    """
    for module in (training.stage, *networks.values()):
        to_stored(module)  # what no file can hold is refused before the training, not after
        for key, value in module.state_dict().items():
            if any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)):
                raise WeightsError(
                    f"{key!r} of the module's state is expanded, so nothing can be loaded into it: clone it"
                )
    unfit = find_unfit({"the stage": training.stage, **networks, **training.frozen}, task)
    for module in (training.stage, *networks.values(), *training.frozen.values()):
        if unfit:
            module.to(device)
        else:
            module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in training.frozen.values():
        module.eval()
        module.requires_grad_(False)
    return unfit


def _average_gradients(module: nn.Module, processes: Processes, device: torch.device) -> nn.Module:
    """Wrap a network so that all processes step by the mean of their gradients; of one process it is left as it is.

    accelerate's `prepare` is not asked: it replaces `forward` for mixed precision, and nothing puts that back.
    """
    if processes.world == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(module, device_ids=None if device.type == "cpu" else [device])


@contextlib.contextmanager
def _answering_in_fp32(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Have networks answer in fp32, whatever they compute in, so that losses are no less precise than their inputs."""
    from accelerate.utils import convert_to_fp32

    # first of a network's hooks, as the others are the stage's own
    hooks = [
        network.register_forward_hook(lambda _, __, answer: convert_to_fp32(answer), prepend=True)
        for network in networks
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@attrs.frozen
class _Pace:
    """How long a training is, and how its images are shared out.

    `size` images to train on, `world` processes with `per_process` images each a step; `steps` of every epoch, and the
    count of steps at which it `ends`.
    """

    size: int
    world: int
    per_process: int
    steps: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, training: Training, who: str, size: int, world: int) -> _Pace:
        sizes = check_lengths(training, who, size)
        per_process = max(min(training.batch_size, *sizes) // world, 1)
        # whole steps only, so that every process takes as many
        steps = [count // (per_process * world) for count in sizes]
        if not all(steps):
            raise ContractError(f"{who}: an epoch of {min(sizes)} images is too few for {world} processes")
        return cls(size, world, per_process, steps, list(itertools.accumulate(steps)))

    @property
    def total(self) -> int:
        return self.ends[-1]

    def share(self, order: Tensor, epoch: int, step: int, rank: int) -> Tensor:
        """Return what one process takes of an epoch's order from a step on, int64, whole steps only."""
        steps, taken = self.steps[epoch], step - (self.ends[epoch] - self.steps[epoch])
        whole = order[: steps * self.per_process * self.world].view(steps, self.world, self.per_process)
        return whole[:, rank][taken:].flatten()


def _set_training(module: nn.Module) -> None:
    """Put a network into training mode, less what its owner froze: such a norm's statistics stay, as its weights do."""
    module.train()
    for part in module.modules():
        own = list(part.parameters(recurse=False))
        if isinstance(part, _NormBase) and own and not any(weight.requires_grad for weight in own):
            part.eval()


class _Course:
    """A training under way: what it is made of, and how far it has come.

    Attributes:
        step: how many steps are done.
        sums: of the losses and metrics of the epoch at hand, each with how many they are of: float64 [2].
        best: the weights of the epoch that scored best.
    """

    def __init__(
        self,
        training: Training,
        dataset: ImageDataset,
        settings: FitSettings,
        identity: Mapping[str, Any],
        version: str,
    ) -> None:
        self._training, self._dataset, self._settings = training, dataset, settings
        self._who = f"training {identity['stage']} {identity['name']}" if "stage" in identity else "this training"
        self._accelerator, self._processes = _start(settings)
        accelerator, processes = self._accelerator, self._processes
        self._networks = dict(training.modules)
        unfit = _place(training, self._networks, accelerator.device, dataset.task())
        if unfit and processes.first:
            warnings.warn(
                f"{self._who} keeps its networks in the plain layout, which may be slower: channels-last does not work "
                f"with {unfit}",
                stacklevel=2,
            )
        if training.fpr is not None:
            with blame(self._who, "its false-positive rate"):
                check_rate(training.fpr, len(dataset.labels("val")))
        training.making = settings.progress.making
        with blame(self._who, "data"):
            self._source = training.data(dataset, accelerator.device)
            images = len(self._source.labels("train"))
        self._pace = _Pace.of(training, self._who, images, processes.world)
        with blame(self._who, "optimisers"):
            self._optimisers = check_optimisers(training.optimisers(self._pace.total), self._who)
        self._shared = {
            name: _average_gradients(module, processes, accelerator.device) for name, module in self._networks.items()
        }
        state = Checkpoint(self._networks, self._optimisers, training.records)
        # not the schedules: accelerate would step them once a process, and their length is counted in batches
        self._prepared = {name: accelerator.prepare(each.optimizer) for name, each in self._optimisers.items()}
        length = Length(processes.world, self._pace.total)
        self._keeper = Keeper(state, settings.folder, settings.checkpoint_seconds, identity, processes, version, length)
        self.step, self.sums, self.best = self._keeper.load(accelerator.device)
        self._minimised = self.step > 0
        # of a training that goes on the first weights are not known, and it moved them
        self._first = "" if self.step else _hash(self._networks)
        self._log = MetricsFile(settings.folder if processes.first else None, steps_done=self.step)

    @property
    def code_changed_at(self) -> Sequence[int]:
        """The steps from which on other code trained than before."""
        return self._keeper.code.changed_at

    def left(self) -> range:
        """Return the epochs that are not done."""
        return range(bisect.bisect_right(self._pace.ends, self.step), self._training.epochs)

    def run(self, epoch: int) -> None:
        """Train for what is left of an epoch, score its weights, log it and keep it."""
        training, pace, rank = self._training, self._pace, self._processes.rank
        training.epoch, training.modules = epoch, self._shared
        for module in training.modules.values():
            _set_training(module)
        seed = self._settings.seed
        wanted = pace.steps[epoch] * pace.per_process * pace.world
        with blame(self._who, "order"):
            order = check_order(training.order(epoch, pace.size, seed), self._who, epoch, wanted, pace.size)
        order = pace.share(order, epoch, self.step, rank)
        reduced = self._networks.values() if self._settings.precision != "no" else ()
        # shapes stay from step to step, and gradients need no more digits than TF32's
        with fast_fp32(self._accelerator.device), _answering_in_fp32(reduced):
            for batch in self._source.batches("train", order, pace.per_process, self._accelerator.device):
                torch.manual_seed(step_seed(seed, "step", self.step, rank))
                for loss in self._losses(batch):
                    self._minimise(loss)
                self.step += 1
                interrupts.stop_if_asked()
                if self.step < pace.ends[epoch]:  # at its end an epoch is logged first, then saved
                    self._keep()
                    self._settings.progress.step(self.step, pace.total, {})
        if self.step == pace.total and not self._minimised:
            raise ContractError(
                f"{self._who}: it yielded no loss, so nothing was trained: expected a Loss a step from losses()"
            )
        self._close(epoch)

    def _losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield a batch's losses, computed under autocast, so that frozen networks take part in mixed precision."""
        with blame(self._who, "losses"):
            losses = iter(self._training.losses(batch))
        while True:
            with blame(self._who, "losses"), self._accelerator.autocast():
                loss = next(losses, None)
            if loss is None:
                return
            yield check_loss(loss, self._who, list(self._prepared))

    def _minimise(self, loss: Loss) -> None:
        """Take one step of a loss's optimiser, and add what it says to the sums."""
        self._minimised = True
        optimiser, schedule = self._prepared[loss.optimiser], self._optimisers[loss.optimiser].schedule
        optimiser.zero_grad()
        with blame(self._who, "losses"):
            self._accelerator.backward(loss.value)
        with blame(self._who, "optimisers"):
            optimiser.step()
            if schedule is not None:
                schedule.step()
        for name, value in {f"{loss.optimiser}_loss": loss.value, **loss.metrics}.items():
            now = as_number(value, name).double().to(self._accelerator.device)
            now = torch.stack((now, torch.ones_like(now)))
            before = self.sums.get(name)
            self.sums[name] = now if before is None else before.to(now.device) + now

    def _close(self, epoch: int) -> None:
        """End an epoch: its mean losses must be numbers, and its weights may be the best so far."""
        # once an epoch, as looking at a loss waits for the device
        means = {name: float(total / count) for name, (total, count) in self.sums.items()}
        if not all(math.isfinite(value) for value in means.values()):
            raise ContractError(
                f"{self._who} diverged in epoch {epoch + 1} ({means}): lower the learning rate (--set lr=...)"
            )
        self._unite()
        self._training.modules = self._networks  # what several processes train is wrapped, and waits for the others
        for module in self._networks.values():
            module.eval()
        with torch.no_grad(), ieee_fp32(), blame(self._who, "score", trained=True):
            score = self._training.score(self._dataset, self._accelerator.device)
            if score is not None:
                score = finite(score, "the score")
        score = self._processes.tell(score, "the score of an epoch")
        if score is not None:
            means["score"] = score
            self.best.offer(score, epoch + 1, self._networks)
        self._log.write({"epoch": epoch + 1, "step": self.step, **means})
        self._settings.progress.step(self.step, self._pace.total, means)
        self.sums = {}
        self._keep()

    def finish(self) -> dict[str, float]:
        """Keep the best weights, rounded as a file stores them, and let the stage measure; return its figures.

        Of several processes all have the first one's weights and figures afterwards, whatever each of them measured.
        """
        # whoever is killed while it measures goes on from here
        self._keep(always=True)
        self._settings.progress.measuring()
        training = self._training
        training.modules = self._networks
        if self._first and _hash(self._networks) == self._first:
            raise ContractError(
                f"{self._who} left every weight as it was, so nothing was trained: its optimisers hold other "
                "parameters than its networks', or the learning rate is 0"
            )
        self.best.restore(self._networks)
        self._unite()
        for module in (training.stage, *self._networks.values()):
            module.eval()
        _check_finite(training.stage, self._who)
        round_to_stored(training.stage)
        with ieee_fp32(), blame(self._who, "finish", trained=True):
            figures = check_figures(training.finish(self._dataset, self._accelerator.device))
        self._unite()  # what was calibrated too
        return self._processes.tell(figures, "the figures of a training")

    def _unite(self) -> None:
        """Give every process the first one's weights and buffers, as what the networks saw of the images differs.

        Gradients are shared; batch norm's running statistics, and averages of weights with them, are not.
        """
        whole = {"stage": self._training.stage, **{f"network {name}": one for name, one in self._networks.items()}}
        tensors = {f"{name}/{key}": value for name, one in whole.items() for key, value in one.state_dict().items()}
        self._processes.share(tensors, self._accelerator.device)

    def _keep(self, always: bool = False) -> None:
        self._keeper.keep(self.step, self.sums, self.best, always)


def _check_finite(module: nn.Module, who: str) -> None:
    """Refuse weights that are no numbers; buffers may be infinite, as a threshold is that was not set yet."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, value in module.state_dict().items():
        if (value.is_floating_point() or value.is_complex()) and bool(
            (value.isnan() if name not in parameters else ~value.isfinite()).any()
        ):
            raise ContractError(
                f"{who} diverged: {name!r} is not finite in the end, so no weights are kept: lower the learning "
                "rate (--set lr=...)"
            )


def _hash(networks: Mapping[str, nn.Module]) -> str:
    """Return a hash of all parameters."""
    return content_hash(
        {f"{name}/{key}": p for name, module in networks.items() for key, p in module.named_parameters()}
    )
