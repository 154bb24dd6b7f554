"""Trains the VAE against a frozen classifier, then sets the threshold on held-out clean images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend import Task, build_stage, threshold_at
from defend.datasets.base import Batch, ImageDataset
from defend.randomness import keyed
from defend.train import Loss, Optimiser, Training
from defend_puvae_detect.config import PuvaeOptions, PuvaeRecipe
from defend_puvae_detect.model import divergence, grid_threshold, reconstruction_cost, reconstruction_error
from defend_puvae_detect.purifier import PuvaePurifier, build

PUBLISHED_RATES = (0.001, 0.01, 0.03)
COLLAPSED = 1e-4  # KL below which the latent says nothing of the image; trained networks have 0.1 and more
COLLAPSE = (
    "the latent of puvae has collapsed (KL {kl:.1g} on held-out images): what it returns depends on the label alone, "
    "and hides the gradient from every attack. Its rectified means do not come back: train anew with a lower rate "
    "(--set lr={lr:g}) or another --seed"
)


class PuvaeTraining(Training):
    """10 CE(clf(x_hat), y) + 0.01 RC + 0.1 KL with the true label y, z drawn with e ~ N(0,1) [C].

    Args:
        purifier: whose network is trained and whose threshold is set.
        classifier: images in [0,1] to logits; frozen.
    """

    def __init__(self, purifier: PuvaePurifier, classifier: nn.Module, recipe: PuvaeRecipe) -> None:
        super().__init__(
            purifier,
            {"network": purifier.network},
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            frozen={"classifier": classifier},
        )
        self._purifier, self._recipe, self._told = purifier, recipe, False
        self.fpr = None if recipe.threshold_rule == "grid" else recipe.fpr

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        lr = self._recipe.lr
        adam = torch.optim.Adam(self._purifier.network.parameters(), lr=lr)
        if self._recipe.schedule == "constant":
            return {"network": Optimiser(adam)}
        return {"network": Optimiser(adam, torch.optim.lr_scheduler.OneCycleLR(adam, lr, total_steps=steps))}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        images, recipe = batch.images, self._recipe
        given = images
        if recipe.input_noise > 0:
            size = recipe.input_noise * torch.rand(len(images), 1, 1, 1, device=images.device)
            given = images + size * torch.randn_like(images)
        noise = torch.randn(len(images), self._purifier.network.latent, device=images.device)
        made = self.modules["network"](given, batch.labels, noise)
        ce = F.cross_entropy(self.frozen["classifier"](made.logits.sigmoid()), batch.labels)
        rc = reconstruction_cost(made.logits, images)
        kl = divergence(made.m, made.s, recipe.kl)
        total = recipe.ce_weight * ce + recipe.rc_weight * rc + recipe.kl_weight * kl
        yield Loss("network", total, {"ce": ce, "rc": rc, "kl": kl})

    def score(self, dataset: ImageDataset, device: torch.device) -> None:
        """Warn once of a latent that has collapsed; the last epoch's weights are kept, as the authors do."""
        kl = self._divergence(dataset, device)
        if kl < COLLAPSED and not self._told:
            self._told = True
            warnings.warn(COLLAPSE.format(kl=kl, lr=self._recipe.lr / 3), stacklevel=2)

    @torch.no_grad()
    def _divergence(self, dataset: ImageDataset, device: torch.device) -> float:
        """Return KL of up to 128 held-out images and their labels, a mean over images and dimensions."""
        batch = next(iter(dataset.batches("val", dataset.keys("val"), 128, device)))
        network = self._purifier.network
        made = network(batch.images, batch.labels, torch.zeros(len(batch.images), network.latent, device=device))
        return float(divergence(made.m, made.s, "standard"))

    @torch.no_grad()
    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Set the threshold from the clean images of the validation split, which training never saw.

        Returns the threshold, the mean error, the accuracy of the frozen classifier on what the purifier returns, KL,
        and the thresholds of the paper's three false-positive rates as far as there are images enough.

        Raises:
            ConfigError: no threshold keeps to the rate, or there are too few images to tell.
        """
        recipe = self._recipe
        errors, right = self._errors(dataset, device)
        rule = grid_threshold if recipe.threshold_rule == "grid" else threshold_at
        self._purifier.threshold.fill_(rule(errors, recipe.fpr))
        figures = {
            "threshold": float(self._purifier.threshold),
            "val_rejected": float((errors >= self._purifier.threshold.cpu()).double().mean()),
            "val_error": float(errors.double().mean()),
            "val_accuracy": right,
            "val_kl": self._divergence(dataset, device),
        }
        met = [fpr for fpr in PUBLISHED_RATES if fpr * len(errors) >= 1]
        return figures | {f"threshold_at_fpr_{fpr:g}": threshold_at(errors, fpr) for fpr in met}

    def _errors(self, dataset: ImageDataset, device: torch.device) -> tuple[Tensor, float]:
        purifier, classifier = self._purifier, self.frozen["classifier"]
        errors, right = [], 0
        for batch in dataset.batches("val", dataset.keys("val"), 128, device):
            with keyed(batch.keys, seed=0, stream="defender"):
                purified = purifier(batch.images)
            errors.append(reconstruction_error(batch.images, purified, purifier.config.score).cpu())
            right += int((classifier(purified).argmax(1) == batch.labels).sum())
        every = torch.cat(errors)
        return every, right / len(every)


def train(config: PuvaeOptions, recipe: PuvaeRecipe, task: Task) -> PuvaeTraining:
    """Describe the training of the purifier's VAE, against a victim that is trained already.

    Raises:
        WeightsError: that victim has no weights for this data set; the message says how to train it.
    """
    classifier = build_stage("victim", recipe.classifier, task).module
    return PuvaeTraining(build(config, task), classifier, recipe)
