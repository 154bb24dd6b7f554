"""Check 15, a detector's controls: what it makes of harmless noise, and what it would see if it had learned nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from defend.boundary.copies import copy_module
from defend.checks.climbs import climb
from defend.checks.common import Case, Findings, Subject, title
from defend.checks.detection import rank_deviate
from defend.checks.records import has_scores
from defend.defence import Defence
from defend.randomness import keyed
from defend.util.metrics import auroc
from defend.values.threats import DEFENDED

INITS = 5  # random weights that the untrained scorer is given
BEYOND = 2.0  # standard errors


def noise(case: Case, found: Findings) -> None:
    """Check 15: noise within the budget scores as clean images do, or what is detected is that an image was changed.

    It fails where no attack scores above the noise: then noise is all that is detected.
    """
    if case.clean is None or not has_scores(case.records):
        found.add("skip", "no detector" if case.clean is not None else "no clean row")
        return
    clean = case.clean.arms[DEFENDED].score
    rows = case.of(lambda threat: threat.knows == "nothing")
    attacks = case.of(lambda threat: threat.knows == "gradient" and not threat.evades)
    if not rows:
        found.add("skip", "no row of noise: add --threat noise")
    for row in rows:
        scores = row.arms[DEFENDED].score
        area, z = auroc(clean, scores), rank_deviate(clean, scores)
        beyond = [title(each) for each in attacks if rank_deviate(scores, each.arms[DEFENDED].score) > BEYOND]
        found.numbers[title(row)] = {"auroc": area, "z": z, "attacks_above": beyond}
        said = f"{title(row)}: AUROC {area:.3f} on {len(clean)} clean images and {len(scores)} with noise of the budget"
        if z <= BEYOND:
            found.add("pass", f"{said}, no better than chance, as it should be")
        elif attacks and not beyond:
            found.add("fail", f"{said}, and no attack scores above that noise: it detects noise, not attacks")
        else:
            found.add("warn", f"{said}: it rejects harmless noise too; quote its false positives on noise")


def untrained(case: Case, found: Findings) -> None:
    """Check 15: the same detector with random weights tells attacked images from clean ones no better than chance.

    Its threshold would be set as the real one's, so that the area under the curve, which needs none, is compared. The
    attack is an oblivious PGD. A detector without weights of its own has nothing that could be taken from it.
    """
    subject = case.full
    if subject is None or subject.defence.detector is None:
        return
    attacked = climb(subject, subject.undefended, start=0, early_stop=False)
    own = [_score(subject, subject.defence, images) for images in (subject.images, attacked)]
    areas, deviates = [], []
    for seed in range(INITS):
        blank = forget(subject.defence, seed)
        if blank is None:
            found.add("skip", "the detector has no weights that could be random instead")
            return
        clean, moved = (_score(subject, blank, images) for images in (subject.images, attacked))
        areas.append(auroc(clean, moved))
        deviates.append(rank_deviate(clean, moved))
    mean = sum(deviates) / INITS
    between = sum((each - mean) ** 2 for each in deviates) / (INITS - 1)
    # chance of the images, and of the weights
    z = mean / math.sqrt(1 + between / INITS)
    area, trained = sum(areas) / INITS, auroc(*own)
    found.numbers["untrained"] = {"auroc": areas, "z": z, "trained": trained, "n": len(attacked)}
    said = (
        f"with random weights it tells PGD-{subject.steps} on the victim from clean images with AUROC {area:.3f} (mean "
        f"of {INITS}), as trained with {trained:.3f}, of {len(attacked)}"
    )
    if z > BEYOND:
        found.add("warn", f"{said}: better than chance, so what it sees was not learned; name what it measures")
    else:
        found.add("pass", said)


def forget(defence: Defence, seed: int) -> Defence | None:
    """Return a defence whose detector has random weights; victim and purifier are the same. None if it has no weights.

    Layers draw as they do when they are built; a parameter that stands alone is drawn from a normal distribution of its
    own mean and deviation. What the purifier shares with the detector is random in it too: a detector may score the
    purifier's own reconstruction.
    """
    assert defence.detector is not None
    # what a detector shares with the victim is not the detector's
    shared = [defence.victim]
    if defence.purifier is not None and not _overlap(defence.purifier, defence.detector, defence.victim):
        shared.append(defence.purifier)
    blank = copy_module(defence, shared)
    assert blank.detector is not None
    kept = set(defence.victim.modules())
    parts = [part for part in blank.detector.modules() if part not in kept]
    if not any(True for part in parts for _ in part.parameters(recurse=False)):
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in parts:
            _draw(part)
    return blank


def _overlap(first: nn.Module, second: nn.Module, known: nn.Module) -> bool:
    """Whether two modules hold the same part or parameter, other than those of a third that is known."""
    # with the objects, as those that TorchScript hands out live no longer than they are held
    one, other, third = (
        {id(each): each for each in (*module.modules(), *module.parameters())} for module in (first, second, known)
    )
    return not (one.keys() & other.keys()).issubset(third)


def _draw(part: nn.Module) -> None:
    reset = getattr(part, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for weight in part.parameters(recurse=False):
        spread = weight.std(correction=0) if weight.numel() > 1 else weight.abs()
        weight.copy_(weight.mean() + spread * torch.randn(weight.shape).to(weight))


def _score(subject: Subject, defence: Defence, images: Tensor) -> Tensor:
    found = []
    for place in range(0, len(images), subject.pack):
        with keyed(subject.keys[place : place + subject.pack], seed=subject.seed, stream="defender"):
            found.append(defence.screen(images[place : place + subject.pack]).score)
    return torch.cat(found).cpu()
