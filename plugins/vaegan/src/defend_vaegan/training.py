"""Trains encoder, decoder and discriminator: algorithm 1 of Larsen et al. (2016)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from defend import Task, build_stage
from defend.attacks.host import craft, warn_of_unmoved
from defend.attacks.objectives import unscaled_odds
from defend.attacks.options import FgsmOptions
from defend.attacks.single_step import Fgsm
from defend.attacks.target import Target
from defend.datasets.base import Batch, ImageDataset
from defend.randomness import permutation
from defend.train import Loss, Optimiser, Training
from defend_vaegan.config import VaeganOptions, VaeganRecipe
from defend_vaegan.model import gan_costs, gaussian_nll, prior_loss, steps_allowed
from defend_vaegan.purifier import VaeganPurifier, build

ADAM_BETAS = (0.5, 0.999)


class VaeganTraining(Training):
    """Encoder: L_prior + L_llike. Decoder: gamma L_llike + L_GAN. Discriminator: -L_GAN.

    L_GAN is the log-likelihood of the discriminator's judgement, so the decoder lowers what the discriminator raises.
    Every pass through decoder or discriminator takes all kinds of images in one batch, so that the statistics of batch
    norm are those of the mixture which its running averages, used after training, describe.

    Args:
        purifier: holds the three networks.
        recipe: epochs, weights, balance.
        source: the victim whose FGSM images are encoded in place of the clean ones; None for clean ones.
    """

    _subset: Tensor

    def __init__(self, purifier: VaeganPurifier, recipe: VaeganRecipe, source: nn.Module | None = None) -> None:
        networks = purifier.networks
        parts: dict[str, nn.Module] = {
            "encoder": networks.encoder,
            "decoder": networks.decoder,
            "discriminator": networks.discriminator,
        }
        frozen = {} if source is None else {"source": source}
        super().__init__(purifier, parts, epochs=recipe.epochs, batch_size=recipe.batch_size, frozen=frozen)
        self._networks, self._recipe, self._source = networks, recipe, source
        self._chosen: dict[str, Optimiser] = {}
        self._looked = False

    def data(self, dataset: ImageDataset, device: torch.device) -> ImageDataset:
        """Choose what is trained on: of fewer images every class has its share, as folders are sorted by class."""
        self._subset = dataset.keys("train", self._recipe.train_subset, seed=0).sort().values
        return dataset

    def epoch_size(self, epoch: int, size: int) -> int:
        return len(self._subset)

    def order(self, epoch: int, size: int, seed: int) -> Tensor:
        return self._subset[permutation(len(self._subset), seed=seed, stream=f"epoch/{epoch}")]

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        self._chosen = {name: Optimiser(self._optimiser(module)) for name, module in self.modules.items()}
        return self._chosen

    def _optimiser(self, module: nn.Module) -> torch.optim.Optimizer:
        if self._recipe.optimiser == "rmsprop":
            return torch.optim.RMSprop(module.parameters(), lr=self._recipe.lr)
        return torch.optim.Adam(module.parameters(), lr=self._recipe.lr, betas=ADAM_BETAS)

    def _anneal(self) -> None:
        """Set the epoch's learning rate; by epoch, not by step, for an optimiser that waits must not fall behind."""
        gone = self.epoch / max(self._recipe.epochs - 1, 1)
        rate = self._recipe.lr * (1 - gone * (1 - self._recipe.lr_last))
        for optimiser in self._chosen.values():
            for group in optimiser.optimizer.param_groups:
                group["lr"] = rate

    def losses(self, batch: Batch) -> Iterator[Loss]:
        self._anneal()
        networks, recipe, count = self._networks, self._recipe, len(batch.images)
        x = networks.pad(batch.images)
        mu, logvar = self.modules["encoder"](x if self._source is None else networks.pad(self._attacked(batch)))
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        latents = torch.cat([z, torch.randn_like(mu)]).detach().requires_grad_()
        decoded = self.modules["decoder"](latents)
        with frozen(networks.discriminator):
            logits, features = networks.discriminator(torch.cat([x, decoded]))
        prior, llike = prior_loss(mu, logvar), self._llike(x, decoded, features)
        real_cost, fake_cost = self._costs(logits, count)
        decoder_steps, discriminator_steps = steps_allowed(
            *_mean_over_processes(real_cost, fake_cost), recipe.equilibrium, recipe.margin
        )

        # the gradient by z first, so that one pass through decoder and discriminator serves encoder and decoder
        (slope,) = torch.autograd.grad(llike, latents, retain_graph=decoder_steps)
        through_z = ((z - z.detach()) * slope[:count]).sum()
        seen_losses = {"prior": prior, "llike": llike, "real_cost": real_cost, "fake_cost": fake_cost}
        yield Loss("encoder", prior + llike.detach() + through_z, seen_losses)
        if decoder_steps:
            yield Loss("decoder", recipe.gamma * llike - real_cost - fake_cost)
        if discriminator_steps:
            logits, _ = self.modules["discriminator"](torch.cat([x, decoded.detach()]))
            yield Loss("discriminator", torch.stack(self._costs(logits, count)).sum())

    def _attacked(self, batch: Batch) -> Tensor:
        target = Target(self.frozen["source"], seed=0)  # FGSM draws nothing
        fgsm = Fgsm(FgsmOptions(), unscaled_odds)
        attacked = craft(fgsm, target, batch.images, batch.labels, eps=self._recipe.eps, keys=batch.keys)
        if not self._looked:
            self._looked, what = True, f"FGSM on {self._recipe.source or 'the source'}"
            warn_of_unmoved(attacked, batch.images, what, "name another source (--set source=...)")
        return attacked

    def _llike(self, x: Tensor, decoded: Tensor, features: Tensor) -> Tensor:
        """L_llike, and the pixels' if asked for; `decoded` and `features` begin with Dec(z), and with x and Dec(z)."""
        count = len(x)
        llike = gaussian_nll(features[count : 2 * count], features[:count])
        if self._recipe.pixel_weight:
            llike = llike + self._recipe.pixel_weight * gaussian_nll(decoded[:count], x)
        return llike

    def _costs(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The discriminator's mean costs of logits of x, Dec(z) and Dec(z_p), `count` each."""
        fakes = logits[count:] if self._recipe.discriminate == "both" else logits[2 * count :]
        return gan_costs(logits[:count], fakes)

    @torch.no_grad()
    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Measure on the validation split: error of reconstructions, and what the discriminator says of images."""
        networks, errors, real, decoded = self._networks, [], [], []
        for part in dataset.batches("val", dataset.keys("val"), 128, device):
            reconstructed = networks.reconstruct(part.images)
            errors.append((reconstructed - part.images).square().flatten(1).mean(1))
            real.append(networks.log_dis(part.images).exp())
            decoded.append(networks.log_dis(reconstructed).exp())
        means = [float(torch.cat(values).double().mean()) for values in (errors, real, decoded)]
        return {"val_rmse": means[0] ** 0.5, "val_dis_images": means[1], "val_dis_reconstructions": means[2]}


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Keep what is computed in this block from leaving gradients in these modules' parameters."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)


def _mean_over_processes(real_cost: Tensor, fake_cost: Tensor) -> tuple[float, float]:
    """Return costs that all processes agree on, or one would step where another waits."""
    real, fake = reduce(torch.stack([real_cost, fake_cost]).detach(), "mean").tolist()
    return real, fake


def train(config: VaeganOptions, recipe: VaeganRecipe, task: Task) -> VaeganTraining:
    """Describe the training of the three networks.

    Raises:
        UnknownNameError, WeightsError: there is no such source, or it has no weights for this data set.
    """
    source = build_stage("victim", recipe.source, task).module if recipe.source else None
    return VaeganTraining(build(config, task), recipe, source)
