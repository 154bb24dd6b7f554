"""Defences that are rigged, and honest ones, to prove `defend.checks` on: each says which check catches it.

The task is small enough to learn in a second: 8x8 grey images of four classes. Each class has a bright quadrant, which
noise hides now and then but no small perturbation does, and a faint pattern of all pixels, which tells the classes
apart almost always and which a small perturbation erases (Tsipras et al. 2019, arXiv:1805.12152). So a network trained
on clean images is fooled, and adversarial training helps.

A long file, but a collection: every class stands alone.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.datasets.base import MemoryDataset, Split
from defend.gradients import inner_gradients
from defend.randomness import normal_like

CLASSES, SIDE = 4, 8
EPS = 0.1
COUNTS: dict[Split, int] = {"train": 800, "val": 100, "test": 200}


def toy_dataset(seed: int = 0) -> MemoryDataset:
    """Return the toy task: 800, 100 and 200 images [1,8,8] in train, val and test."""
    generator = torch.Generator().manual_seed(seed)
    quadrants = torch.zeros(CLASSES, SIDE, SIDE)
    for label in range(CLASSES):
        row, column = divmod(label, 2)
        quadrants[label, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.28
    patterns = 0.05 * torch.randn(CLASSES, SIDE, SIDE, generator=generator).sign()
    images, labels = {}, {}
    for split, count in COUNTS.items():
        here = torch.arange(count) % CLASSES
        seen = torch.where(torch.rand(count, generator=generator) < 0.9, here, (here + 1) % CLASSES)
        noise = 0.04 * torch.randn(count, SIDE, SIDE, generator=generator)
        pixels = (0.36 + quadrants[seen] + patterns[here] + noise).clamp(0, 1)
        images[split], labels[split] = (255 * pixels[:, None]).round().byte(), here
    return MemoryDataset("toy", [str(label) for label in range(CLASSES)], images, labels)


class ToyVictim(nn.Module):
    """A small smooth network: [B,1,8,8] in [0,1] to logits [B,4]."""

    random = False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 32), nn.Tanh(), nn.Linear(32, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,4]."""
        logits: Tensor = self.body((images - 0.45) / 0.2)
        return logits


def train_victim(dataset: MemoryDataset, epochs: int = 8) -> nn.Module:
    """Return a victim trained on clean images, which the gate's attacks take to about 0 %."""
    return _train(ToyVictim(), dataset, epochs, steps=0)


def adversarially_tuned(victim: nn.Module, dataset: MemoryDataset, epochs: int = 25, steps: int = 7) -> nn.Module:
    """Return a copy of a victim tuned by PGD training (Madry et al. 2018): honest, and robust to some extent."""
    return _train(copy.deepcopy(victim), dataset, epochs, steps)


def _train(victim: nn.Module, dataset: MemoryDataset, epochs: int, steps: int) -> nn.Module:
    images, labels = dataset.tensors("train")
    victim.train().requires_grad_()
    optimiser = torch.optim.Adam(victim.parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=order).split(200):
            clean, aims = images[batch], labels[batch]
            seen = clean
            for _ in range(steps):
                at = seen.detach().requires_grad_()
                (slope,) = torch.autograd.grad(F.cross_entropy(victim(at), aims), at)
                moved = (seen + 2.5 * EPS / steps * slope.sign() - clean).clamp(-EPS, EPS)
                seen = (clean + moved).clamp(0, 1)
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(victim(seen), aims).backward()
            optimiser.step()
    return victim.eval().requires_grad_(False)


class Quantiser(nn.Module):
    """Rounds to a few grey levels: the gradient is zero almost everywhere. Checks 1, 2, 3, 5, 10."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        return (images * 16).round() / 16


class Detacher(nn.Module):
    """Blurs, and detaches what it made: no gradient at all. Check 5."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        return F.avg_pool2d(images.detach(), 3, 1, 1)


class Randomiser(nn.Module):
    """Adds noise and says so: check 6 only where attacks do not average over its draws."""

    random = True

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        return (images + 0.1 * normal_like(images)).clamp(0, 1)


class SecretRandomiser(nn.Module):
    """Adds noise of torch's own generator and does not say so. Check 6."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        return (images + 0.1 * torch.randn_like(images)).clamp(0, 1)


class Blinder(nn.Module):
    """Changes nothing but its gradient, which leads downhill: Square and the oblivious attacks win. Checks 2, 3, 5."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        return 2 * images.detach() - images  # the images themselves, with a slope of -1


class Shutter(nn.Module):
    """Changes nothing, and shows the gradient of one row of pixels at a time: ten times the steps find it. Check 4."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        shown = (1000 * images.detach().flatten(1).sum(1)).long() % images.shape[2]
        rows = F.one_hot(shown, images.shape[2]).to(images.dtype).view(len(images), 1, -1, 1)
        return rows * images + (1 - rows) * images.detach()


class Rippler(nn.Module):
    """Adds a fine ripple to every pixel: the loss has many small hills, and every restart finds others. Check 4."""

    random = False

    def __init__(self, height: float = 0.05, waves: float = 12.0) -> None:
        super().__init__()
        self.height, self.waves = height, waves

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        return (images + self.height * torch.sin(2 * torch.pi * self.waves * images)).clamp(0, 1)


class StraightThrough(nn.Module):
    """Rounds to some grey levels, and says backwards that it did not: check 5 calls it smoothed, and useful."""

    random = False

    def __init__(self, levels: int = 64) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        return images + ((images * self.levels).round() / self.levels - images).detach()


class FalseSteps(nn.Module):
    """Rounds, and shows backwards a slope whose sign is random from pixel to pixel: masked. Check 5."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        signs = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(3)).sign()
        return (images * 64).round().div(64).detach() + signs * (images - images.detach())


class FineRipple(nn.Module):
    """Adds a ripple so fine that the exact slope holds for less than any attack's step: short-sighted. Check 5."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        return (images + 1e-3 * torch.sin(images * 2e4)).clamp(0, 1)


class LabelReader(nn.Module):
    """Reads the true label out of the noise of an oblivious attack, and paints it. Check 8 (paper 000).

    The attack moves all images of a class along nearly one direction, known here from training images; so an attacked
    image lies near its class's mean moved that way. One that looks unharmed is blurred, and loses some accuracy.
    """

    random = False

    def __init__(self, victim: nn.Module, dataset: MemoryDataset) -> None:
        super().__init__()
        images, labels = dataset.tensors("train")
        at = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(victim(at), labels, reduction="sum"), at)
        means = [(images[labels == label].mean(0), slope[labels == label].sign().mean(0)) for label in range(CLASSES)]
        self.unharmed = torch.stack([mean for mean, _ in means])
        self.centres = torch.cat([self.unharmed, torch.stack([mean + EPS * moved.sign() for mean, moved in means])])

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        far = (images[:, None] - self.centres).square().flatten(2).sum(2)
        shares = torch.softmax(-200 * far, 1)
        painted = torch.einsum("bk,kchw->bchw", shares[:, CLASSES:], self.unharmed)
        blurred = F.avg_pool2d(images, 5, 1, 2)
        return (painted + shares[:, :CLASSES].sum(1).view(-1, 1, 1, 1) * blurred).clamp(0, 1)


class Descender(nn.Module):
    """Smooths by a few steps of gradient descent inside its forward pass. Check 7 where only AutoAttack looked."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        with inner_gradients(images) as (current, outer):
            for _ in range(3):
                at = current if outer else current.detach().requires_grad_()
                rough = (at[..., 1:] - at[..., :-1]).square().sum() + (at[..., 1:, :] - at[..., :-1, :]).square().sum()
                (slope,) = torch.autograd.grad(rough, at, create_graph=outer)
                current = at - 0.02 * slope
        return (current if outer else current.detach()).clamp(0, 1)


class BatchCentred(nn.Module):
    """Takes the batch's mean image off: what it makes of an image depends on the others. Check 13."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        return (images - images.mean(0, keepdim=True) + 0.5).clamp(0, 1)


class Adapting(nn.Module):
    """Follows the mean of what it has seen, in a buffer: what it makes of images depends on the past. Checks 6, 13."""

    random = False
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        with torch.no_grad():
            self.seen += 0.1 * (images.mean() - self.seen)
        return (images - 0.5 * self.seen).clamp(0, 1)


class Overwriting(nn.Module):
    """Rounds the images it is handed in place, behind autograd's back: harmless where it gets a copy."""

    random = False

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W]."""
        images.data.mul_(2).round_().div_(2)
        return images * 1


class NeedsNegative(nn.Module):
    """A victim that expects negatives, which something before it must make. Check 9."""

    random = False

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,4]."""
        logits: Tensor = self.victim(1 - images)
        return logits


class Unnormalised(nn.Module):
    """Divides by 255 what is in [0,1] already, and gives nearly every image the same answer. Check 12."""

    random = False

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,4]."""
        logits: Tensor = self.victim(images / 255)
        return logits


class Reordered(nn.Module):
    """Knows its classes in another order than the data set has them. Check 12."""

    random = False

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,4]."""
        logits: Tensor = self.victim(images).roll(1, 1)
        return logits


class Background(nn.Module):
    """Answers for a class more than there are, which is never the largest. Check 12."""

    random = False

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,5]."""
        logits = self.victim(images)
        return torch.cat([logits, logits.amin(1, keepdim=True) - 1], 1)


class Saturated(nn.Module):
    """Logits so large that the cross-entropy's gradient is exactly zero: accuracy stays at any budget. Checks 1, 5."""

    random = False

    def __init__(self, victim: nn.Module, scale: float = 1e4) -> None:
        super().__init__()
        self.victim, self.scale = victim, scale

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,4]."""
        logits: Tensor = self.victim(images) * self.scale
        return logits


class Probabilities(nn.Module):
    """Returns probabilities for logits. Check 7."""

    random = False

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities [B,4]."""
        return torch.softmax(self.victim(images), 1)


class ConstantDetector(nn.Module):
    """Gives every image the same score. Check 11."""

    random = False
    threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(1.0))

    def forward(self, images: Tensor, purified: Tensor) -> Tensor:
        """Return scores [B]."""
        return images.new_full((len(images),), 0.5)


class RoughnessDetector(nn.Module):
    """Scores how rough an image is: honest, and able to see an attack that knows nothing of it."""

    random = False
    threshold: Tensor

    def __init__(self, threshold: float = float("inf")) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, images: Tensor, purified: Tensor) -> Tensor:
        """Return scores [B]."""
        rough: Tensor = (images - F.avg_pool2d(images, 3, 1, 1)).square().flatten(1).mean(1)
        return rough
