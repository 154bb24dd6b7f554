"""Trains the autoencoder on noisy images, then measures mu and sigma on held-out clean ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from defend import Task
from defend.datasets.base import Batch, ImageDataset
from defend.train import Loss, Optimiser, Training
from defend_apudae.config import ApudaeOptions, ApudaeRecipe
from defend_apudae.model import reconstruction_error
from defend_apudae.purifier import ApudaePurifier, build


class DenoisingTraining(Training):
    """MSE(DAE(x + s N(0,1)), x) with s ~ U[0, s_max] drawn for every image."""

    def __init__(self, purifier: ApudaePurifier, recipe: ApudaeRecipe) -> None:
        super().__init__(purifier, {"dae": purifier.dae}, epochs=recipe.epochs, batch_size=recipe.batch_size)
        self._purifier, self._recipe = purifier, recipe

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        recipe = self._recipe
        adam = torch.optim.Adam(self._purifier.dae.parameters(), lr=recipe.lr)
        if recipe.schedule == "constant":
            return {"dae": Optimiser(adam)}
        return {"dae": Optimiser(adam, torch.optim.lr_scheduler.OneCycleLR(adam, recipe.lr, total_steps=steps))}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        images = batch.images if self._recipe.crop is None else crop(batch.images, self._recipe.crop)
        s = self._recipe.s_max * torch.rand(len(images), 1, 1, 1, device=images.device)
        noisy = images + s * torch.randn_like(images)
        restored = self.modules["dae"](noisy.clamp(0, 1) if self._recipe.clip else noisy)
        yield Loss("dae", F.mse_loss(restored, images))

    @torch.no_grad()
    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Set mu and sigma from the validation split, which training never saw; return them as figures."""
        parts = dataset.batches("val", dataset.keys("val"), 128, device)
        errors = torch.cat([reconstruction_error(part.images, self._purifier.dae).double() for part in parts])
        mu, sigma = errors.mean(), errors.std()
        self._purifier.mu.copy_(mu)
        self._purifier.sigma.copy_(sigma)
        channels, height, width = dataset.shape
        rmse = (mu / (channels * height * width)).sqrt()
        return {"mu": float(mu), "sigma": float(sigma), "val_rmse": float(rmse)}


def crop(images: Tensor, side: int) -> Tensor:
    """Cut the same square, at a random place, out of all images [B,C,H,W]; of a shorter side all is kept."""
    height, width = (min(side, own) for own in images.shape[-2:])
    top = int(torch.randint(images.shape[-2] - height + 1, ()))  # drawn on the CPU: the device is not waited for
    left = int(torch.randint(images.shape[-1] - width + 1, ()))
    return images[..., top : top + height, left : left + width]


def train(config: ApudaeOptions, recipe: ApudaeRecipe, task: Task) -> DenoisingTraining:
    """Describe the training of the purifier's autoencoder."""
    return DenoisingTraining(build(config, task), recipe)
