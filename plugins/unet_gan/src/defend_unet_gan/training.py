"""Trains the generator in two stages: as a GAN on attacks made on the fly, then on a classifier's features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend import Task, build_stage
from defend.attacks.host import warn_of_unmoved
from defend.datasets.base import Batch, ImageDataset
from defend.errors import ConfigError
from defend.train import Loss, Optimiser, Training
from defend_unet_gan.attacks import Assignment, assign, attack
from defend_unet_gan.config import LARGEST, UnetGanOptions, UnetGanRecipe
from defend_unet_gan.model import Discriminator, adversarial_loss, discriminator_loss, feature_matching
from defend_unet_gan.purifier import UnetGanPurifier, build

BETAS = (0.5, 0.999)
FIGURES_BATCH = 128


class TopFeatures(nn.Module):
    """A classifier that also returns its top-level features: what its last linear layer is given.

    In an Inception, ResNet or DenseNet, and most others of timm, that is the last convolution's output after
    pooling; in a VGG the second hidden layer.

    Raises:
        ConfigError: it has no linear layer.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        linear = [part for part in classifier.modules() if isinstance(part, nn.Linear)]
        if not linear:
            name = getattr(classifier, "stage_name", type(classifier).__name__)
            raise ConfigError(f"classifier {name} has no linear layer to take features from: use another (--set)")
        self.classifier, self._head = classifier, [linear[-1]]  # in a list: it is the classifier's, not ours

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B,D] and logits [B,K] of images [B,C,H,W] in [0,1]."""
        given: list[Tensor] = []
        hook = self._head[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        try:
            logits = self.classifier(images)
        finally:
            hook.remove()
        return given[0].flatten(1), logits


class UnetGanTraining(Training):
    """Stage 1: L1 + LSGAN + cross-entropy. Stage 2: feature matching, with the adversarial loss if asked for.

    Args:
        purifier: holds the generator.
        discriminator: trained beside it, not kept.
        sources: victims that the training attacks come from.
        classifier: gives the cross-entropy and the features.
        recipe: epochs, weights, attacks.
    """

    def __init__(
        self,
        purifier: UnetGanPurifier,
        discriminator: Discriminator,
        sources: Mapping[str, nn.Module],
        classifier: nn.Module,
        recipe: UnetGanRecipe,
    ) -> None:
        super().__init__(
            purifier,
            {"generator": purifier, "discriminator": discriminator},
            epochs=recipe.epochs + recipe.post_epochs,
            batch_size=recipe.batch_size,
            frozen={"classifier": TopFeatures(classifier), **sources},
        )
        self._recipe, self._sources = recipe, tuple(sources.values())
        self._looked = False

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        recipe = self._recipe
        first = steps * recipe.epochs // self.epochs
        judged = steps if recipe.post_adversarial else first
        lengths = {
            "generator": ("generator", recipe.lr, first),
            "discriminator": ("discriminator", recipe.lr, judged),
            "post": ("generator", recipe.post_lr, steps - first),
        }
        return {name: self._adam(*settings) for name, settings in lengths.items()}

    def _adam(self, module: str, rate: float, steps: int) -> Optimiser:
        adam = torch.optim.Adam(self.modules[module].parameters(), lr=rate, betas=BETAS)
        if self._recipe.schedule == "constant" or steps == 0:
            return Optimiser(adam)
        cycle = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=steps, cycle_momentum=False)
        return Optimiser(adam, cycle)

    def losses(self, batch: Batch) -> Iterator[Loss]:
        recipe, clean = self._recipe, batch.images
        assigned = assign(len(clean), len(self._sources), recipe, clean.device)
        attacked = attack(clean, batch.labels, self._sources, assigned, recipe.labels)
        self._look(attacked, clean, assigned)
        painted = self.modules["generator"](attacked)
        post = self.epoch >= recipe.epochs
        fooling = clean.new_zeros(())
        if not post or recipe.post_adversarial:
            yield Loss("discriminator", discriminator_loss(*self._verdicts(clean, painted.detach())))
            fooling = recipe.adversarial * adversarial_loss(self._verdicts(clean, painted)[1])
        features, logits = self.frozen["classifier"](painted)
        right = {"accuracy": (logits.detach().argmax(1) == batch.labels).float().mean()}
        if post:
            with torch.no_grad():
                wanted = self.frozen["classifier"](clean)
            yield Loss("post", feature_matching((features, logits), wanted) + fooling, right)
        else:
            apart, confused = F.l1_loss(painted, clean), F.cross_entropy(logits, batch.labels)
            total = recipe.l1 * apart + fooling + recipe.cross_entropy * confused
            yield Loss("generator", total, {"l1": apart, "cross_entropy": confused, **right})

    def _look(self, attacked: Tensor, clean: Tensor, assigned: Assignment) -> None:
        """Look once whether FGSM moves what it should; R-FGSM moves whatever its victim's gradient is."""
        if not self._looked:
            self._looked, one_step = True, (assigned.eps > 0) & (assigned.first == 0)
            names = ", ".join(name.removeprefix("source ") for name in self.frozen if name != "classifier")
            instead = "name other sources (--set sources=...)"
            warn_of_unmoved(attacked[one_step], clean[one_step], f"FGSM on {names}", instead)

    def _verdicts(self, clean: Tensor, painted: Tensor) -> tuple[Tensor, Tensor]:
        """Judge both halves in one pass: a network wrapped for several processes may run forward only once a step."""
        real, fake = self.modules["discriminator"](torch.cat([clean, painted])).chunk(2)
        return real, fake

    @torch.no_grad()
    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Measure on the validation split: the classifier behind the purifier, clean and under FGSM at E_max.

        The attack is of the first source, and oblivious of the purifier; val_fgsm_l1 is the mean absolute error that
        the purifier leaves of it.
        """
        purifier, classify = self.modules["generator"], self.frozen["classifier"]
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for batch in dataset.batches("val", dataset.keys("val"), FIGURES_BATCH, device):
            eps = torch.full((len(batch.labels),), self._recipe.eps_max / LARGEST, device=device)
            by_fgsm = Assignment(torch.zeros_like(batch.labels), eps, torch.zeros_like(eps))
            attacked = attack(batch.images, batch.labels, self._sources, by_fgsm)
            from_clean, restored = purifier(batch.images), purifier(attacked)
            sums[0] += (classify(from_clean)[1].argmax(1) == batch.labels).sum()
            sums[1] += (classify(restored)[1].argmax(1) == batch.labels).sum()
            sums[2] += (restored - batch.images).abs().mean((1, 2, 3)).sum()
        names = ("val_clean_accuracy", "val_fgsm_oblivious_accuracy", "val_fgsm_l1")
        return dict(zip(names, (sums / len(dataset.labels("val"))).tolist(), strict=True))


def train(config: UnetGanOptions, recipe: UnetGanRecipe, task: Task) -> UnetGanTraining:
    """Describe the training of the purifier; the victims it needs are loaded by name.

    Raises:
        WeightsError: a victim has no weights for this data set; the message gives the command that trains them.
        ConfigError: no source is named.
    """
    if not recipe.sources:
        raise ConfigError("sources is empty: name the victims that the training attacks come from")
    victims = {
        name: build_stage("victim", name, task).module for name in dict.fromkeys((*recipe.sources, recipe.classifier))
    }
    purifier = build(config, task)
    purifier.noise_range.fill_(recipe.eps_max / LARGEST if config.noise_scale is None else config.noise_scale)
    discriminator = Discriminator(task.channels, purifier.generator.width)
    sources = {f"source {name}": victims[name] for name in recipe.sources}
    return UnetGanTraining(purifier, discriminator, sources, victims[recipe.classifier], recipe)
