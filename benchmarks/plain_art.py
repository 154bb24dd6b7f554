"""The experiment of the whole job as one would plainly write it with the Adversarial Robustness Toolbox.

    python -m benchmarks.plain_art IMAGES DEVICE

The bare victim is attacked once, all images in one call as its interface has it, and every purifier judges the same
images. Uniform noise, which it has no attack for, is numpy's. Modules are as they were built, in eval mode; weights
come through `defend.load`, so that they are the same. Prints JSON: by attack, how many images are right without a
defence and behind each purifier.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from art.attacks.evasion import BasicIterativeMethod, CarliniL2Method, FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

import defend
from benchmarks import experiment, thousand


def main() -> None:
    """Attack, judge, print."""
    count, device = experiment.parse(__doc__)
    images, labels = thousand.tensors(count)
    victim = defend.load(experiment.VICTIM, device=device).victim
    defences = {name: defend.load(experiment.VICTIM, purifier=name, device=device) for name in experiment.PURIFIERS}
    classifier = PyTorchClassifier(
        model=victim,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="gpu" if device.startswith("cuda") else "cpu",
    )
    eps, each = experiment.EPS, {"batch_size": experiment.BATCH}
    attacks = {
        "fgsm": FastGradientMethod(classifier, eps=eps, **each),
        "bim": BasicIterativeMethod(
            classifier, eps=eps, eps_step=experiment.BIM_SIZE, max_iter=experiment.BIM_STEPS, verbose=False, **each
        ),
        "pgd": ProjectedGradientDescent(
            classifier,
            eps=eps,
            eps_step=experiment.PGD_SIZE,
            max_iter=experiment.PGD_STEPS,
            num_random_init=1,
            verbose=False,
            **each,
        ),
        "cw": CarliniL2Method(
            classifier,
            binary_search_steps=experiment.CW_SEARCHES,
            max_iter=experiment.CW_STEPS,
            learning_rate=experiment.CW_RATE,
            initial_const=experiment.CW_CONSTANT,
            verbose=False,
            **each,
        ),
    }
    x, y = images.numpy(), labels.numpy()
    noise = np.random.default_rng(0).uniform(-eps, eps, x.shape).astype(np.float32)
    made = {"none": x, "noise": np.clip(x + noise, 0, 1)}
    made |= {name: attack.generate(x, y) for name, attack in attacks.items()}
    right = {name: dict.fromkeys((experiment.UNDEFENDED, *defences), 0) for name in made}
    for name, attacked in made.items():
        batches = torch.from_numpy(attacked).split(experiment.BATCH), labels.split(experiment.BATCH)
        for some, true in zip(*batches, strict=True):
            some, true = some.to(device), true.to(device)
            with torch.no_grad():
                right[name][experiment.UNDEFENDED] += int((victim(some).argmax(1) == true).sum())
                for purifier, defence in defences.items():
                    right[name][purifier] += int((defence(some).argmax(1) == true).sum())
    print(json.dumps(right))


if __name__ == "__main__":
    main()
