"""Certificates by randomized smoothing (Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918).

A purifier that adds Gaussian noise (`smoothing_sigma`) makes of everything behind it a vote: the class that most draws
get. No change of an image by less than a radius in L2 moves a vote as clear as the draws show it to be (theorem 1).
That holds for whatever stands behind the noise: clipping, other purifiers, random ones too, any victim. It holds for
the vote, not for one pass, and a row of the ladder is of single passes; so it stands apart from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.boundary.answers import ask
from defend.boundary.given import name_of
from defend.datasets.base import Batch, ImageDataset
from defend.defence import Defence, PurifierSequence
from defend.errors import ConfigError, ContractError
from defend.evaluation import smoothed
from defend.evaluation.arms import BuiltDefence
from defend.evaluation.votes import ALPHA, SELECTION, count, radius_of
from defend.randomness import keyed
from defend.records.journal import Journal
from defend.records.rows import REJECTED
from defend.records.watcher import Watcher
from defend.util import interrupts
from defend.util.memory import Fitting
from defend.util.statistics import wilson
from defend.values.report import Certified, CertifiedImage
from defend.values.threats import DEFENDED

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the largest radius that so many draws can show
EXAMINED = 100_000  # pixels of grey images that show whether the noise is what it is said to be
CERTAIN = 1e-9  # chance that noise which is what it should be is refused
ROUNDING = 1e-4


def smoothing_of(defence: Defence) -> tuple[nn.Module | None, str]:
    """Return the purifier whose noise a defence's vote is over and "", or None and why nothing can be certified."""
    purifier = defence.purifier
    first = purifier.purifiers[0] if isinstance(purifier, PurifierSequence) else purifier
    sigma = getattr(first, "smoothing_sigma", 0)
    if isinstance(sigma, int | float) and not 0 < sigma < math.inf and sigma != 0:
        return None, f"the first purifier's smoothing_sigma is {sigma!r}, and no noise has such a standard deviation"
    if first is None or not sigma:
        return None, "the first purifier adds no Gaussian noise, and what is certified is a vote over it"
    if defence.detector is not None:
        return None, "a detector sees images without the noise, so the vote is of more than noisy ones"
    return first, ""


class Certifier:
    """Certifies what can be certified of a run's defences, where its config asks for it.

    Args:
        defences: built; what judges is certified.
        dataset: the images are those of its adaptive rows.

    Raises:
        ConfigError: it was asked for, and fits none of them.
    """

    def __init__(self, defences: Sequence[BuiltDefence], dataset: ImageDataset) -> None:
        self._dataset = dataset
        self._asked = [each for each in defences if each.names.config.certify is not None]
        self._done: dict[str, list[CertifiedImage]] = {}
        reasons = [smoothing_of(_judge(each))[1] for each in self._asked]
        if reasons and all(reasons):
            raise ConfigError(f"nothing can be certified: {reasons[0]}; leave out --certify, or add --purifier noise")

    def run(self, journal: Journal | None, watcher: Watcher, batch_size: int, device: torch.device) -> None:
        """Certify image after image, and keep each in the journal as soon as it is done.

        Raises:
            KeyboardInterrupt: the user's; what was done is there.
        """
        task = self._dataset.task()
        fitting = Fitting(batch_size, task.height * task.width, device)
        for place, defence in enumerate(self._asked):
            config, judge = defence.names.config, _judge(defence)
            if smoothing_of(judge)[0] is None or config.certify is None:
                continue
            keys = self._dataset.keys("test", config.row_limit, config.seed)[: config.adaptive_row_limit]
            kept = None if journal is None else journal.choice(f"certified-{place}")
            done = [CertifiedImage(**each) for each in kept["images"]] if kept else []
            self._done[defence.names.names[DEFENDED]] = done
            how: dict[str, Any] = {"draws": config.certify, "seed": config.seed}
            while len(done) < len(keys):
                batches = self._dataset.batches("test", keys[len(done) :], fitting.size, device)
                try:
                    # an image's draws are its own, however many are taken at a time
                    for image in certify(judge, batches, batch_size=fitting.size, **how):
                        done.append(image)
                        if journal is not None:
                            journal.choose(f"certified-{place}", {"images": [attrs.asdict(each) for each in done]})
                        watcher.preparing(f"certifying: {len(done)} of {len(keys)} images")
                        interrupts.stop_if_asked()
                except (RuntimeError, MemoryError) as error:
                    fitting.halve(fitting.size, error)

    def found(self, defence: BuiltDefence) -> Certified | None:
        """Return what is certified of a defence; None where nothing is, or nobody asked."""
        done, draws = self._done.get(defence.names.names[DEFENDED], []), defence.names.config.certify
        return summarise(done, _sigma(_judge(defence)), draws) if done and draws else None

    def left_out(self, defence: BuiltDefence) -> dict[str, str]:
        """Return why nothing can be certified of a defence where that was asked for, as in a report's `left_out`."""
        why = smoothing_of(_judge(defence))[1] if defence.names.config.certify is not None else ""
        return {"certify": why} if why else {}


def _judge(defence: BuiltDefence) -> Defence:
    return defence.arms[defence.names.names[DEFENDED]]


def _sigma(defence: Defence) -> float:
    return float(smoothing_of(defence)[0].smoothing_sigma)  # type: ignore[union-attr, arg-type]


def certify(
    defence: Defence, batches: Iterator[Batch], *, draws: int, seed: int, batch_size: int
) -> Iterator[CertifiedImage]:
    """Certify images one by one (the paper's CERTIFY), and attack each vote within the radii of `summarise`.

    Args:
        defence: whose first purifier adds the noise, on the images' device; see `smoothing_of`.
        batches: the images.
        draws: passes that count the chosen class, beside `SELECTION` that choose it.
        seed: of the draws, which belong to the image.
        batch_size: draws at a time.

    Raises:
        ContractError: the purifier's noise is not what it says it is.
    """
    noise, why = smoothing_of(defence)
    if noise is None:
        raise ContractError(why)
    sigma, looked = _sigma(defence), False
    for batch in batches:
        if not looked:
            examine_noise(noise, sigma, batch.images[:1], seed=seed, batch_size=batch_size)
            looked = True
        for image, label, key in zip(batch.images, batch.labels.tolist(), batch.keys.tolist(), strict=True):
            how: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
            chosen = int(count(defence, image, key, SELECTION, stream="select", **how).argmax())
            agreed = int(count(defence, image, key, draws, stream="count", **how)[chosen])
            radius = radius_of(agreed, draws, sigma)
            predicted = chosen if radius > 0 else REJECTED
            attacked, blind = smoothed.attack_vote(
                defence,
                image,
                label,
                key,
                predicted=predicted,
                certified=radius,
                radii=radii_of(draws, sigma),
                draws=draws,
                **how,
            )
            yield CertifiedImage(key, label, predicted, radius, attacked, blind)


def summarise(images: Sequence[CertifiedImage], sigma: float, draws: int) -> Certified:
    """Return what a report says of certified images, at least one."""
    n, curve = len(images), list[dict[str, Any]]()
    for place, radius in enumerate(radii_of(draws, sigma)):
        held = sum(each.predicted == each.label and each.radius >= radius for each in images)
        point = {"radius": radius, "accuracy": held / n, "ci95": list(wilson(held, n))}
        if all(each.attacked for each in images):
            said = [(each.attacked[place], each.label) for each in images]
            unsure = sum(vote == REJECTED for vote, _ in said)
            left = unsure + sum(vote == label for vote, label in said)
            point |= {"left": left / n, "left_ci95": list(wilson(left, n)), "unsure": unsure / n}
        curve.append(point)
    return Certified(
        sigma=sigma,
        draws=draws,
        selection=SELECTION,
        alpha=ALPHA,
        n=n,
        abstained=sum(each.predicted == REJECTED for each in images) / n,
        largest=radius_of(draws, draws, sigma),
        curve=tuple(curve),
        images=tuple(images),
        attack={
            "threat": smoothed.THREAT,
            "attack": "pgd",
            "norm": "l2",
            "steps": smoothed.STEPS,
            "draws": smoothed.DRAWS,
            "blind": sum(each.blind for each in images) / n,
        },
    )


def radii_of(draws: int, sigma: float) -> list[float]:
    """Return the L2 radii that are reported: shares of the largest that so many draws can show."""
    return [share * radius_of(draws, draws, sigma) for share in SHARES]


@torch.no_grad()
def examine_noise(noise: nn.Module, sigma: float, image: Tensor, *, seed: int = 0, batch_size: int = 64) -> None:
    """Hold a purifier's noise to what it says: Gaussian, of that size, drawn for itself, whatever the image.

    A certificate rests on nothing else, and would look like robustness where it is wrong.

    Args:
        noise: the purifier, on the image's device.
        sigma: the standard deviation that it says.
        image: any, [1,C,H,W] in [0,1].
        seed, batch_size: of the draws.

    Raises:
        ContractError: it is something else.
    """
    passes = max(EXAMINED // image.numel(), 4)
    batch_size = min(batch_size, passes // 2)  # draws that begin anew with every batch are seen in two

    def drawn(pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (what is added to every pixel, whether it was clipped), [N,P] each."""
        found = []
        for start in range(0, passes, batch_size):
            keys = torch.arange(start, min(start + batch_size, passes), device=image.device)
            with keyed(keys, seed=seed, stream="certify/examine"):
                found.append(ask("purifier", noise, pixels.expand(len(keys), *image.shape[1:])))
        noisy = torch.cat(found)
        return (noisy - pixels).flatten(1).double(), ((noisy <= 0) | (noisy >= 1)).flatten(1)

    added, clipped = drawn(torch.full_like(image, 0.5))
    others, also = drawn((0.5 + 0.4 * (image - 0.5)).clamp(0, 1))
    # Dvoretzky, Kiefer and Wolfowitz's bound on how far shares lie from their chances, inside the box
    slack = math.sqrt(math.log(2 / CERTAIN) / (2 * added.numel()))
    bounds = [way * size for size in (0.0, 0.5 * sigma, sigma, 2 * sigma, 0.25, 0.45) for way in (-1, 1) if size < 0.5]
    off = max(abs(float((added <= bound).double().mean()) - NormalDist(0, sigma).cdf(bound)) for bound in bounds)
    signs = added.sign()
    # shares of equal signs: of neighbouring pixels, and of one draw and the next
    alike = [(signs[:, 1:] * signs[:, :-1]).mean(), (signs[1:] * signs[:-1]).mean()]
    tied = max(abs(float(each)) for each in alike) / 2
    free = ~(clipped | also)
    moved = float((added - others)[free].abs().max()) if bool(free.any()) else 0.0
    if off > slack or tied > 2 * slack or moved > ROUNDING * max(sigma, 1.0):
        raise ContractError(
            f"purifier {name_of(noise)} says that it adds Gaussian noise of standard deviation {sigma:g}, drawn anew "
            f"for every pixel whatever the image, and does not (shares are {off:.2g} off, neighbours {tied:.2g}, "
            f"another image moves it by {moved:.2g}): a certificate would be wrong; mend the noise, or take the "
            "attribute smoothing_sigma away"
        )
    if len(added.round(decimals=6).unique(dim=0)) < len(added):
        raise ContractError(
            f"purifier {name_of(noise)} draws the same noise again, so a vote over its draws counts one several times, "
            "and a certificate would be wrong: draw with defend.randomness, or take the attribute smoothing_sigma away"
        )
