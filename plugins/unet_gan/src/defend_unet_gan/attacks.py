"""The training batch, made on the fly: every image with its own source victim, attack and eps (paper).

FGSM and R-FGSM are one formula: a random sign step of `first`, then a gradient step of eps - `first`, with
`first` 0 for FGSM. So one pass through a victim serves both attacks, and an image goes through one victim only.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor, nn

from defend.attacks.balls import project_linf
from defend.attacks.objectives import log_odds
from defend.randomness import sign_like
from defend_unet_gan.config import LARGEST, UnetGanRecipe

ATTACKS = 2  # FGSM, R-FGSM


@attrs.frozen
class Assignment:
    """Which attack every image of a batch gets.

    Attributes:
        source: int64 [B], the number of its source victim.
        eps: [B], its budget in [0,1] units; 0 leaves it clean.
        first: [B], the size of R-FGSM's random step; 0 is FGSM.
    """

    source: Tensor
    eps: Tensor
    first: Tensor


def assign(count: int, sources: int, recipe: UnetGanRecipe, device: torch.device) -> Assignment:
    """Share `count` images out evenly among all pairs of source and attack, and draw an eps for each."""
    pair = torch.randperm(count, device=device) % (sources * ATTACKS)
    eps = torch.randint(1, recipe.eps_max + 1, (count,), device=device) / LARGEST
    eps = torch.where(torch.rand(count, device=device) < recipe.clean_share, 0.0, eps)
    return Assignment(pair // ATTACKS, eps, torch.where(pair % ATTACKS == 1, recipe.random_step * eps, 0.0))


def attack(
    images: Tensor, labels: Tensor, sources: Sequence[nn.Module], assigned: Assignment, leave: str = "true"
) -> Tensor:
    """Return adversarial images [B,C,H,W], each within its own eps of `images`.

    Args:
        images: [B,C,H,W] in [0,1].
        labels: int64 [B], the true ones.
        sources: victims in eval mode, images in [0,1] to logits.
        assigned: who attacks which image, and how.
        leave: whose loss is raised: the "true" label's, the "predicted" one's, or a "random" one's.
    """
    start = (images + sign_like(images) * assigned.first.view(-1, 1, 1, 1)).clamp(0, 1)
    gradient = torch.zeros_like(start)
    for number, source in enumerate(sources):
        part = ((assigned.source == number) & (assigned.eps > 0)).nonzero()[:, 0]
        if len(part):
            gradient[part] = _slope(source, start[part], labels[part], leave)
    stepped = start + gradient.sign() * (assigned.eps - assigned.first).view(-1, 1, 1, 1)
    return project_linf(stepped, images, assigned.eps)


def _slope(source: nn.Module, images: Tensor, labels: Tensor, leave: str) -> Tensor:
    """A gradient with the signs of each image's own cross-entropy's, [B,C,H,W], also where the softmax is saturated."""
    point = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = source(point)
        if leave == "predicted":
            labels = logits.argmax(1)
        elif leave == "random":
            labels = torch.randint(logits.shape[1], labels.shape, device=labels.device)
        (gradient,) = torch.autograd.grad(log_odds(logits.float(), labels).sum(), point)
    return gradient
