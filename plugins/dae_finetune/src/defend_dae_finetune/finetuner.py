"""The fine-tuner stage: a victim goes on training on adversarial images and on a purifier's outputs."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend import Task
from defend.datasets.base import SPLITS, Batch, ImageDataset
from defend.defence import Defence
from defend.finetuners.adversarial import accuracies
from defend.options import NoOptions
from defend.train import Loss, Optimiser, Training, copy_to_tune
from defend.victims.training import augment
from defend_dae_finetune.config import FineTuneRecipe
from defend_dae_finetune.sets import CRAFTED, PURIFIED, Sets, make_sets


@attrs.frozen
class Phase:
    """Some epochs at one learning rate on one set, which is a choice of kinds."""

    epochs: int
    lr: float
    kinds: tuple[str, ...]


def phases(recipe: FineTuneRecipe, purified: bool) -> tuple[Phase, ...]:
    """Return the schedule: the code's for SE-PreResNet-56, or the paper's for ResNet-20 (`mix`).

    Without a purifier both sets are clean, FGSM and PGD: clean images alone would undo the rest.
    """
    first = (*CRAFTED, *PURIFIED) if purified else CRAFTED
    second = ("clean", *PURIFIED) if purified else CRAFTED
    n = recipe.repeats
    if recipe.schedule == "mix":
        return (Phase(3 * n, recipe.lr, first),)
    return (Phase(3 * n, recipe.lr, first), Phase(n, recipe.lr, second), Phase(3 * n, recipe.low_lr, second))


class FineTuning(Training):
    """Cross-entropy on logits over fixed sets, all made against the weights before tuning (contradiction 2).

    Args:
        tuned: what is trained; starts as a copy of the victim.
        recipe: see `FineTuneRecipe`.
        victim: the victim as it was, whose gradients make the adversarial images.
        purifier: whose outputs the victim is adapted to; None leaves them out.
    """

    _sets: Sets
    _adam: torch.optim.Optimizer

    def __init__(self, tuned: nn.Module, recipe: FineTuneRecipe, victim: nn.Module, purifier: nn.Module | None) -> None:
        self._phases = phases(recipe, purified=purifier is not None)
        frozen = {"victim": victim} if purifier is None else {"victim": victim, "purifier": purifier}
        super().__init__(
            tuned,
            {"victim": tuned},
            epochs=sum(phase.epochs for phase in self._phases),
            batch_size=recipe.batch_size,
            frozen=frozen,
        )
        self._recipe = recipe

    def phase(self, epoch: int) -> Phase:
        """Return the phase that an epoch, counted from 0, belongs to."""
        return [phase for phase in self._phases for _ in range(phase.epochs)][epoch]

    def data(self, dataset: ImageDataset, device: torch.device) -> Sets:
        """Make every kind of every split that there is, once; test's are for the figures alone."""
        victim, purifier = self.frozen["victim"], self.frozen.get("purifier")
        self._sets = make_sets(
            dataset, tuple(filter(dataset.has, SPLITS)), self._recipe, victim, device, purifier, self.making
        )
        return self._sets

    def epoch_size(self, epoch: int, size: int) -> int:
        return size // len(self._sets.kinds) * len(self.phase(epoch).kinds)

    def order(self, epoch: int, size: int, seed: int) -> Tensor:
        return self._sets.shuffled(self.phase(epoch).kinds, epoch, size, seed)

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        self._adam = torch.optim.Adam(self.modules["victim"].parameters(), lr=self._recipe.lr)
        return {"victim": Optimiser(self._adam)}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        for group in self._adam.param_groups:
            group["lr"] = self.phase(self.epoch).lr
        images = augment(batch.images, self._recipe.shift, flips=False) if self._recipe.shift else batch.images
        logits = self.modules["victim"](images)
        right = (logits.detach().argmax(1) == batch.labels).float().mean()
        yield Loss("victim", F.cross_entropy(logits, batch.labels), {"accuracy": right})

    def score(self, dataset: ImageDataset, device: torch.device) -> float:
        """Mean accuracy on val's clean, FGSM and PGD images as the defence sees them (contradiction 5)."""
        kinds = PURIFIED if "purifier" in self.frozen else CRAFTED
        return sum(self._sets.accuracy(self.modules["victim"], "val", kind, device) for kind in kinds) / len(kinds)

    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Measure the accuracy before and after tuning on every kind of val and test, each of `val_images` and so on.

        The adversarial images are those made against the victim before tuning: after it, they transfer, and purified
        they are oblivious, as the names say. Of val also what PGD, made anew against the tuned victim, leaves of it.
        """
        victims = {"before": self.frozen["victim"], "after": self.modules["victim"]}
        figures: dict[str, float] = {}
        for split in (split for split in ("val", "test") if dataset.has(split)):
            figures[f"{split}_images"] = float(self._sets.count(split))
            for kind in self._sets.kinds:
                for when, victim in victims.items():
                    figures[name_figure(split, kind, when)] = self._sets.accuracy(victim, split, kind, device)
        anew = accuracies(Defence(victims["after"]), dataset, self._recipe.eps, self._sets.count("val"), device)
        return {**figures, "val_pgd_anew_after": anew["pgd"]}


def name_figure(split: str, kind: str, when: str) -> str:
    """Return what the accuracy on a kind of images is called in a card, with the threat where there is one."""
    attacked = not kind.endswith("clean")
    threat = "transfer_" if attacked and when == "after" else "oblivious_" if attacked and kind in PURIFIED else ""
    return f"{split}_{kind}_{threat}{when}"


def build(_: NoOptions, __: Task, victim: nn.Module) -> nn.Module:
    """Build what will hold the tuned weights: a copy of the victim."""
    return copy_to_tune(victim)


def train(
    config: NoOptions, recipe: FineTuneRecipe, task: Task, victim: nn.Module, purifier: nn.Module | None
) -> FineTuning:
    """Describe the fine-tuning of a victim behind a purifier, or of a bare one."""
    return FineTuning(build(config, task, victim), recipe, victim, purifier)
