"""The purifier stage, and how its autoencoder is trained: attacked images in, clean images as targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from defend import Task, build_stage
from defend.datasets.base import Batch, ImageDataset
from defend.errors import ConfigError
from defend.train import Loss, Optimiser, Training
from defend_dae_finetune.config import AutoencoderOptions, AutoencoderRecipe
from defend_dae_finetune.model import Autoencoder, restoration_error
from defend_dae_finetune.sets import BATCH, CRAFTED, Sets, make_sets


class EpochPlateau(ReduceLROnPlateau):
    """Keras' plateau rule [C] on the mean training loss of an epoch, though stepped after every batch.

    After `patience` epochs in a row whose loss is not below the best by more than `min_delta`, the rate is
    multiplied with `factor`, but falls no lower than `min_lr`. (torch's own rule waits one epoch longer.)

    Args:
        optimizer: whose rate falls.
        steps: batches in an epoch.
        recipe: factor, patience, min_lr, min_delta.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, recipe: AutoencoderRecipe) -> None:
        super().__init__(
            optimizer,
            factor=recipe.factor,
            patience=recipe.patience - 1,
            threshold=recipe.min_delta,
            threshold_mode="abs",
            min_lr=recipe.min_lr,
        )
        self._steps, self._seen = steps, 0
        self._total: Tensor | float = 0.0

    def observe(self, loss: Tensor) -> None:
        """Count a batch's loss, before the step that minimises it."""
        self._total = self._total + loss.detach().double()
        self._seen += 1

    def step(self, *_: Any) -> None:
        """Close the epoch if this was its last batch."""
        if self._seen == self._steps:
            super().step(_over_processes(self._total) / self._steps)
            self._seen, self._total = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs, as numbers that JSON keeps exactly."""
        return {**super().state_dict(), "_total": float(self._total)}


def _over_processes(total: Tensor | float) -> float:
    """Return the mean over processes, so that all of them keep one rate."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return float(total)
    shared = torch.as_tensor(total).clone()
    torch.distributed.all_reduce(shared)
    return float(shared) / torch.distributed.get_world_size()


class AutoencoderTraining(Training):
    """Mean squared error between the restored image and the clean one, over clean, FGSM and PGD images [C].

    Args:
        purifier: the autoencoder.
        recipe: see `AutoencoderRecipe`.
        victim: a trained classifier, whose gradients make the adversarial images.
    """

    _sets: Sets
    _device: torch.device
    _plateau: EpochPlateau

    def __init__(self, purifier: Autoencoder, recipe: AutoencoderRecipe, victim: nn.Module) -> None:
        super().__init__(
            purifier, {"dae": purifier}, epochs=recipe.epochs, batch_size=recipe.batch_size, frozen={"victim": victim}
        )
        self._recipe = recipe
        self._inputs = CRAFTED if recipe.inputs == "all" else CRAFTED[1:]

    def data(self, dataset: ImageDataset, device: torch.device) -> Sets:
        """Make the adversarial images of train and val, once."""
        self._device = device
        victim, told = self.frozen["victim"], self.making
        self._sets = make_sets(dataset, ("train", "val"), self._recipe, victim, device, told=told)
        return self._sets

    def epoch_size(self, epoch: int, size: int) -> int:
        return size // len(CRAFTED) * len(self._inputs)

    def order(self, epoch: int, size: int, seed: int) -> Tensor:
        return self._sets.shuffled(self._inputs, epoch, size, seed)

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        adam = torch.optim.Adam(self.modules["dae"].parameters(), lr=self._recipe.lr)
        self._plateau = EpochPlateau(adam, steps // self.epochs, self._recipe)
        return {"dae": Optimiser(adam, self._plateau)}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        restored = self.modules["dae"](batch.images)
        loss = restoration_error(restored, self._sets.clean("train", batch.keys, self._device)).mean()
        self._plateau.observe(loss)
        yield Loss("dae", loss)

    @torch.no_grad()
    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Measure, on val: the error for each kind, and the victim's accuracy without and with the autoencoder.

        The attacked images are made on the victim alone, so with the autoencoder the attack is oblivious.
        """
        figures = {"val_images": float(self._sets.count("val"))}
        dae, victim = self.modules["dae"], self.frozen["victim"]
        for kind in CRAFTED:
            keys = self._sets.keys_of((kind,), len(self._sets.labels("val")))
            errors = [
                restoration_error(dae(batch.images), self._sets.clean("val", batch.keys, device))
                for batch in self._sets.batches("val", keys, BATCH, device)
            ]
            figures[f"val_mse_{kind}"] = float(torch.cat(errors).mean())
            figures[f"val_bare_{kind}"] = self._sets.accuracy(victim, "val", kind, device)
            threat = "" if kind == "clean" else "_oblivious"
            figures[f"val_purified_{kind}{threat}"] = self._sets.accuracy(
                lambda images: victim(dae(images)), "val", kind, device
            )
        return figures


def build(config: AutoencoderOptions, task: Task) -> Autoencoder:
    """Build the purifier for a task; untrained until weights are loaded.

    Raises:
        ConfigError: no widths, or more halvings than the images have.
    """
    most = (min(task.height, task.width) - 1).bit_length()
    if not 1 <= len(config.widths) <= most:
        raise ConfigError(
            f"widths has {len(config.widths)} numbers, one for each halving of the image: images of "
            f"{task.height}x{task.width} take 1 to {most}"
        )
    return Autoencoder(task.channels, config.widths)


def train(config: AutoencoderOptions, recipe: AutoencoderRecipe, task: Task) -> AutoencoderTraining:
    """Describe the training of the autoencoder.

    Raises:
        ConfigError: widths do not fit the images.
        UnknownNameError, WeightsError: there is no such victim, or it has no weights for this data set.
    """
    victim = build_stage("victim", recipe.victim, task).module
    return AutoencoderTraining(build(config, task), recipe, victim)
