"""Check 14, planted examples: an attack that misses adversarial inputs which are there by construction is too weak.

After Zimmermann, Brendel, Tramer and Carlini 2022 (arXiv:2206.13991), their binarisation test: for each image the last
layer of a copy of the victim is replaced by a linear readout that calls one known point at the edge of the budget by
another class, and the image itself and other points of its ball by its own. Everything before it, the purifier above
all, is as it was. So the row's attack is known to have something to find; where it finds little, what it leaves of the
defence itself says nothing.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from defend.attacks.balls import clip, measure, random_start, unit
from defend.attacks.host import craft
from defend.attacks.target import Target
from defend.checks.common import Case, Findings, Subject, judge, percent
from defend.checks.following import Group, group_rows
from defend.defence import Defence
from defend.randomness import keyed, normal_like, sign_like

IMAGES = 8
FEWEST = 4  # planted, or nothing can be said
LEAST = 0.75  # of them that an attack must find
INNER = 48  # points of the ball that are the image's own class: half anywhere in it, half at its edge
DRAWS = 8  # of a random defence, at the image and at the planted point
TRIES = 4  # points at the edge that are tried, until one takes root
RIDGE = 1e-3  # of the features' variance
STEEP = (
    4.0  # the other class's logit at the planted point, the label's being 0; at the nearest inner point its negative
)
FAR = -20.0  # the logits of all other classes
FAR_KEYS = 1 << 40  # apart, so that no copy of an image has another's draws


class Features(nn.Module):
    """What a victim's last linear layer is shown, [B,D]; its logits where it has none."""

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.bare = Defence(victim)

    def forward(self, images: Tensor) -> Tensor:
        """Return features [B,D] of images [B,C,H,W]."""
        seen: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
            for layer in self.bare.victim.modules()
            if isinstance(layer, nn.Linear)
        ]
        try:
            logits = self.bare.classify(images)
        finally:
            for hook in hooks:
                hook.remove()
        fitting = [each for each in seen if each.ndim == 2 and len(each) == len(images)]
        return (fitting[-1] if fitting else logits).float()


class Planted(nn.Module):
    """A victim with another last layer: the label's logit is 0, the other class's rises along a direction of features.

    Args:
        features: of the victim.
        direction: [D].
        middle, reach: where along it the other class's logit is 0, and how far from there it is `STEEP`.
        label, other, classes: which logits these are, of how many.
    """

    def __init__(
        self, features: Features, direction: Tensor, middle: Tensor, reach: Tensor, label: int, other: int, classes: int
    ) -> None:
        super().__init__()
        self.features, self.direction, self.middle, self.reach = features, direction, middle, reach
        self.label, self.other, self.classes = label, other, classes
        self.random = bool(getattr(features.bare.victim, "random", False))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,K]."""
        along = STEEP * (self.features(images) @ self.direction - self.middle) / self.reach
        logits = images.new_full((len(images), self.classes), FAR)
        places = torch.tensor([self.label, self.other], device=images.device)
        return logits.index_copy(1, places, torch.stack([torch.zeros_like(along), along], 1))


def planted(case: Case, found: Findings) -> None:
    """Check 14: the strongest white-box row's attack finds what was planted for it, by norm."""
    subject = case.subject
    if subject is None or not (subject.plant or case.level == "full"):
        found.add("skip", "needs --checks full, or --thorough")
        return
    groups = [group for group in group_rows(case) if group.row is not None]
    if not groups:
        found.add("skip", "no white-box row whose attack could be tried: add --threat adaptive")
    for group in groups:
        tried = [hit for place in range(min(IMAGES, len(subject.images))) for hit in _try(subject, group, place)]
        n, hits = len(tried), sum(tried)
        found.numbers[f"{group.norm} {group.eps:.4g}"] = {"row": group.who, "planted": n, "found": hits}
        if n < FEWEST:
            found.add("skip", f"{group.who}: only {n} examples could be planted, as the ball's points look alike")
            continue
        said = f"{group.who} finds {hits} of {n} adversarial examples that were planted ({percent(hits / n)})"
        if hits < LEAST * n:
            found.add(
                "fail", f"{said}, fewer than {percent(LEAST)}: the attack is too weak, what it leaves says nothing"
            )
        else:
            found.add("pass", said)


def _try(subject: Subject, group: Group, place: int) -> list[bool]:
    """Plant an example beside one image, and return whether the row's attack finds one; nothing if none took root."""
    one = subject.part(slice(place, place + 1))
    copy = plant(one, group.norm, group.eps)
    assert group.row is not None and group.row.plan.attack is not None
    attack = group.row.plan.attack
    if copy is None:
        return []
    target = Target(copy, seed=one.seed, draws=one.draws)
    eps = group.eps - getattr(attack, "excess", 0.0)  # which it goes beyond its budget by itself
    attacked = craft(attack, target, one.images, one.labels, eps=eps, keys=one.keys, name=group.row.plan.name)
    # who looks for the smallest change may have gone beyond the ball, where anything is wrong
    if getattr(attack, "minimal", False) and float(measure(attacked - one.images, group.norm)) > group.eps:
        return [False]
    return [not bool(judge(attrs.evolve(one, defence=copy), attacked)[0])]


@torch.no_grad()
def plant(subject: Subject, norm: str, eps: float) -> Defence | None:
    """Return a copy of the defence with an adversarial example of the one image planted within eps; None if it failed.

    That it is misclassified, and the image is not, is judged with the draws of the evaluation.
    """
    whole, image, radius = subject.defence, subject.images, subject.images.new_full((1,), eps)
    features = Features(whole.victim)
    copies = DRAWS if whole.random else 1

    def show(points: Tensor, first: int) -> Tensor:
        keys = subject.keys + FAR_KEYS * (first + torch.arange(len(points), device=points.device))
        with keyed(keys, seed=subject.seed, stream="check/planted"):
            found: Tensor = features(whole.purify(points))
            return found

    points = _points(subject, norm, eps, INNER + TRIES)
    inner = torch.cat([image.expand(copies, *image.shape[1:]), points[TRIES:]])
    own = show(inner, 0)
    centred = (own - own.mean(0)).double()
    spread = centred.T @ centred / len(own)
    ridge = RIDGE * spread.diagonal().mean() + torch.finfo(torch.float32).tiny
    spread += ridge * torch.eye(len(spread), device=spread.device)
    label = int(subject.labels[0])
    for place in range(TRIES):
        edge = clip(points[place : place + 1], image, radius, norm)
        other = show(edge.expand(copies, *image.shape[1:]), len(inner) + place * copies)
        # Fisher's direction: what tells the point from the ball, in units of how the ball's points differ
        direction = torch.linalg.solve(spread, other.double().mean(0) - own.double().mean(0)).float()
        direction = direction / direction.norm().clamp_min(torch.finfo(torch.float32).tiny)
        near, far = (own @ direction).max(), (other @ direction).mean()
        middle, reach, rest = (near + far) / 2, (far - near) / 2, (label + 1) % subject.classes
        if not bool(far > near):
            continue
        victim = Planted(features, direction, middle, reach, label, rest, subject.classes)
        as_one = attrs.evolve(subject, defence=Defence(victim, whole.purifier))
        if bool(judge(as_one, image)[0]) and not bool(judge(as_one, edge)[0]):
            return as_one.defence
    return None


def _points(subject: Subject, norm: str, eps: float, count: int) -> Tensor:
    """Draw points of one image's ball, [count,C,H,W]: half of them at its edge, and these first."""
    many = subject.images.expand(count, *subject.images.shape[1:])
    keys = subject.keys + FAR_KEYS * torch.arange(count, device=many.device)
    with keyed(keys, seed=subject.seed, stream="check/planted/points"):
        inside = random_start(many, eps, norm)
        edge = many + eps * (sign_like(many) if norm == "linf" else unit(normal_like(many)))
    return torch.cat([edge[: count // 2 + 1], inside[count // 2 + 1 :]]).clamp(0, 1)
