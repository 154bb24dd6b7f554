"""Workload 9: which quick adaptive attack leaves least, by step size and schedule, at as many gradients.

python -m benchmarks settings

What the adaptive and bpda threats take where nothing was named (`defend.values.threats`) was chosen by it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

import defend
from benchmarks.contest import Result, Scale, timed
from defend.assembly.prepare import prepare
from defend.attacks.apgd import Apgd
from defend.attacks.iterated import Pgd
from defend.attacks.options import ApgdOptions, PgdOptions
from defend.errors import DefendError
from defend.stages import Attack

WORKLOAD = "9 settings"
GRADIENTS, DRAWS = 10, 2


@attrs.frozen
class Setting:
    """One defence, its budget, and how many images and seeds it is attacked with."""

    victim: str
    dataset: str
    purifier: str | None
    images: int
    eps: float
    seeds: int = 1


SETTINGS = (
    Setting("resnet18", "digits", "dae", 64, 0.1, 2),
    Setting("resnet18", "digits", "unet_gan", 64, 0.1, 2),
    Setting("resnet18", "digits", "puvae", 64, 0.1),
    Setting("resnet18", "digits", "vaegan", 24, 0.1),
    Setting("resnet18", "digits", "apudae", 24, 0.1),
    Setting("resnet18", "digits", None, 64, 0.02),
    Setting("resnet20", "cifar10", None, 64, 2 / 255),
    Setting("resnet20", "cifar10", "dae", 64, 4 / 255),
    Setting("classifier_a", "mnist", "puvae", 32, 0.1),
    Setting("classifier_a", "fashion_mnist", "vaegan", 24, 0.05),
)


def run(scale: Scale) -> Iterator[Result]:
    """Yield what each setting of the attack leaves of each defence; one whose data or plugin is missing is left out."""
    for setting in SETTINGS:
        title = f"{setting.purifier or 'no purifier'} before {setting.victim}, {setting.dataset}, eps {setting.eps:.3g}"
        try:
            yield Result(WORKLOAD, title, "", figures=compare(setting, scale))
        except DefendError as error:
            yield Result(WORKLOAD, f"{title}: left out", "", notes=(str(error),))


def attacks(steps: int) -> dict[str, Attack]:
    """Return the contenders, by name."""
    return {
        "pgd, constant 0.25 eps": Pgd(PgdOptions(steps=steps)),
        "pgd, constant eps": EveryStepEps(steps),
        "pgd, falling from eps": Pgd(PgdOptions(steps=steps, schedule="linear")),
        "apgd_ce": Apgd(ApgdOptions(steps=steps), "ce"),
    }


class EveryStepEps:
    """PGD whose every step is as long as the budget."""

    norm = "linf"

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def __call__(self, target: defend.Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        size = float(eps.max())
        return Pgd(PgdOptions(steps=self._steps, step_size=size))(target, images, labels, eps=eps, keys=keys)


def compare(setting: Setting, scale: Scale) -> dict[str, object]:
    """Return, by attack, how many images are left for each seed, and the seconds of the last."""
    images_wanted = 8 if scale.quick else setting.images
    defence = defend.load(setting.victim, dataset=setting.dataset, purifier=setting.purifier).to(scale.device)
    images, labels = (
        part.to(scale.device) for part in defend.dataset(setting.dataset).tensors("test", limit=images_wanted, seed=0)
    )
    ready, _ = prepare(defence, "fp32", images[:8])
    found: dict[str, object] = {"images": images_wanted, "gradients": GRADIENTS}
    for name, attack in attacks(GRADIENTS).items():
        left = []
        for seed in range(setting.seeds):
            target = defend.Target(ready, seed=seed, draws=DRAWS)
            work = functools.partial(defend.craft, attack, target, images, labels, eps=setting.eps)
            adversarial, seconds = timed(work, images.device)
            with torch.no_grad():
                left.append(int((ready(adversarial).argmax(1) == labels).sum()))
        found[name] = {"left": left, "seconds": seconds}
    return found
