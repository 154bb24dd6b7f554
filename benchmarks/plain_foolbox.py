"""The experiment of the whole job as one would plainly write it with foolbox.

    python -m benchmarks.plain_foolbox IMAGES DEVICE

The bare victim is attacked once, batch by batch, and every purifier judges the same images. Modules are as they were
built, in eval mode; weights come through `defend.load`, so that they are the same. Prints JSON: by attack, how many
images are right without a defence and behind each purifier.
"""

from __future__ import annotations

import json

import foolbox
import torch

import defend
from benchmarks import experiment, thousand


def main() -> None:
    """Attack, judge, print."""
    count, device = experiment.parse(__doc__)
    images, labels = thousand.tensors(count)
    victim = defend.load(experiment.VICTIM, device=device).victim
    defences = {name: defend.load(experiment.VICTIM, purifier=name, device=device) for name in experiment.PURIFIERS}
    model = foolbox.PyTorchModel(victim, bounds=(0, 1), device=device)
    attacks = {
        "none": None,
        "noise": foolbox.attacks.LinfAdditiveUniformNoiseAttack(),
        "fgsm": foolbox.attacks.LinfFastGradientAttack(),
        "bim": foolbox.attacks.LinfBasicIterativeAttack(steps=experiment.BIM_STEPS, abs_stepsize=experiment.BIM_SIZE),
        "pgd": foolbox.attacks.LinfPGD(steps=experiment.PGD_STEPS, abs_stepsize=experiment.PGD_SIZE),
        "cw": foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=experiment.CW_SEARCHES,
            steps=experiment.CW_STEPS,
            stepsize=experiment.CW_RATE,
            initial_const=experiment.CW_CONSTANT,
        ),
    }
    right = {name: dict.fromkeys((experiment.UNDEFENDED, *defences), 0) for name in attacks}
    for name, attack in attacks.items():
        for x, y in zip(images.split(experiment.BATCH), labels.split(experiment.BATCH), strict=True):
            x, y = x.to(device), y.to(device)
            if attack is not None:
                x = attack(model, x, y, epsilons=None if name == "cw" else experiment.EPS)[1]
            with torch.no_grad():
                right[name][experiment.UNDEFENDED] += int((victim(x).argmax(1) == y).sum())
                for purifier, defence in defences.items():
                    right[name][purifier] += int((defence(x).argmax(1) == y).sum())
    print(json.dumps(right))


if __name__ == "__main__":
    main()
