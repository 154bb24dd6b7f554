"""An attack on the vote that randomized smoothing certifies (Salman et al. 2019, arXiv:1906.04584): PGD in L2.

A certificate is a lower bound of what the vote stands. What an attacker leaves, who differentiates the vote itself, is
an upper one; the truth lies between. An image that the attack turns within its certified radius shows that one of the
two is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.attacks.goals import Goal
from defend.attacks.host import craft
from defend.attacks.iterated import climb_ball
from defend.attacks.objectives import Objective
from defend.attacks.target import Target
from defend.defence import Defence
from defend.evaluation.votes import decide
from defend.records.rows import REJECTED

THREAT = "smoothed"  # the name that a report gives this attacker; her rows stand beside the certificates
STEPS, DRAWS = 20, 16  # the paper's attack takes as many steps, and up to 128 draws


def odds_against(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-odds against the labels [B] of the softmax's mean over draws, of logits [D,B,K]: [B].

    It rises as the paper's loss, -log of the label's mean probability, and its slope is never rounded to zero where
    all draws are certain of it.
    """
    own = F.one_hot(labels, logits.shape[2]).bool()
    whole = logits.logsumexp(2)
    for_it = logits.gather(2, labels.expand(len(logits), -1)[..., None])[..., 0] - whole
    against = logits.masked_fill(own, -torch.inf).logsumexp(2) - whole
    odds: Tensor = against.logsumexp(0) - for_it.logsumexp(0)
    return odds


def vote_objective(draws: int) -> Objective:
    """Return `odds_against` as an objective of images that a target repeats `draws` times."""

    def objective(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = module(images)
        odds = odds_against(logits.float().unflatten(0, (draws, -1)), labels[: len(labels) // draws])
        return odds.repeat(draws), logits

    return objective


class VotePgd:
    """Steps in L2 that fall from eps to nothing, up the odds against the label in the mean of the target's draws.

    The image that fools most draws is kept, as by every attack that averages (`defend.attacks.keeping`).
    """

    norm = "l2"

    def __init__(self, start: Tensor, steps: int = STEPS) -> None:
        """Begin at `start` [B,C,H,W], for example where a smaller budget ended."""
        self._start, self._steps = start, steps

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        return climb_ball(
            target,
            images,
            self._start,
            Goal(labels, 1),
            eps=eps,
            keys=keys,
            steps=self._steps,
            step_size=eps,
            early_stop=False,
            objective=vote_objective(target.draws),
            stream="vote",
            schedule="linear",
            norm=self.norm,
        )


def attack_vote(
    defence: Defence,
    image: Tensor,
    label: int,
    key: int,
    *,
    predicted: int,
    certified: float,
    radii: Sequence[float],
    draws: int,
    seed: int,
    batch_size: int,
) -> tuple[list[int], bool]:
    """Attack one image's vote within each radius; return what it then is, and whether no gradient was ever usable.

    Begun at the largest radius that is certified, where it must fail, as what is turned within a radius is turned
    within all larger ones. From there on each attack begins where the last one ended. An image whose vote is clear and
    wrong as it is needs no attack.

    Args:
        defence: whose vote it is, on the image's device.
        image: [C,H,W] in [0,1].
        label, key: of the image.
        predicted, certified: its vote as it is, `REJECTED` for an abstention, and its radius.
        radii: rising, in L2, from 0.
        draws: passes that decide a vote, besides those that choose its class.
        seed, batch_size: of the draws.

    Returns:
        For each radius the class of the vote, or `REJECTED`; and whether the attack was blind.
    """
    found = [predicted] * len(radii)
    if predicted not in (label, REJECTED):
        return found, False
    images, labels = image[None], torch.tensor([label], device=image.device)
    keys, start, looks, blind = torch.tensor([key], device=image.device), image[None], 0, 0
    first = max([place for place, radius in enumerate(radii) if radius <= certified], default=0)
    for place in range(max(first, 1), len(radii)):
        target = Target(defence, seed=seed, draws=DRAWS)
        start = craft(VotePgd(start), target, images, labels, eps=radii[place], keys=keys, name=THREAT)
        if target.sight is not None:
            seen = target.sight.seen
            looks, blind = looks + int(seen.looks.sum()), blind + int((seen.absent + seen.zero + seen.broken).sum())
        stream = f"{THREAT}/{place}"
        said = decide(defence, start[0], key, draws, seed=seed, stream=stream, batch_size=batch_size)
        found[place] = said
        if said not in (label, REJECTED):
            found[place:] = [said] * (len(radii) - place)
            break
    return found, looks > 0 and blind == looks
