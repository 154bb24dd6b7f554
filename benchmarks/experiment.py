"""The experiment of the whole job: its settings, and `defend`'s command for it. Imports no torch.

A ResNet-20 for digits, five attacks on it that know of no defence, two purifiers before it: how many images are right
without a defence and behind each purifier, clean and attacked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

VICTIM, PURIFIERS = "resnet20", ("dae", "unet_gan")
BATCH = 64  # what `defend run` takes by itself
EPS = 0.1
BIM_STEPS, BIM_SIZE = 10, 0.01
PGD_STEPS, PGD_SIZE = 20, 0.0125
CW_SEARCHES, CW_STEPS, CW_RATE, CW_CONSTANT = 1, 10, 0.05, 1.0
ATTACKS = ("noise", "fgsm", "bim", "pgd", "cw")
UNDEFENDED = "undefended"


def defend_arguments(dataset: str, images: int, device: str, out: Path, weights: dict[str, str]) -> list[str]:
    """Return the arguments of the `defend` command that carries the experiment out.

    Args:
        dataset: its name.
        images: how many.
        device: such as "cpu".
        out: where the run folders go.
        weights: files of the victim and of each purifier, by name.
    """
    settings = {
        "bim.steps": BIM_STEPS,
        "bim.step_size": BIM_SIZE,
        "pgd.steps": PGD_STEPS,
        "pgd.step_size": PGD_SIZE,
        "cw.clip": "none",
        "cw.steps": CW_STEPS,
        "cw.binary_search_steps": CW_SEARCHES,
        "cw.lr": CW_RATE,
        "cw.initial_const": CW_CONSTANT,
    }
    parts = ["run", "--victim", VICTIM, "--victim-weights", weights[VICTIM]]
    for name in PURIFIERS:
        parts += ["--purifier", name, "--purifier-weights", f"{name}={weights[name]}"]
    for name in ATTACKS:
        parts += ["--attack", name]
    for key, value in settings.items():
        parts += ["--set", f"{key}={value}"]
    parts += ["--threat", "noise", "--threat", "oblivious", "--eps", str(EPS), "--batch-size", str(BATCH)]
    parts += ["--dataset", dataset, "--limit", str(images), "--device", device, "--checks", "none"]
    return [*parts, "--quiet", "--out", str(out)]


def parse(what: str | None) -> tuple[int, str]:
    """Read the command line of a plain version of the experiment: how many images, and the device."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("images", type=int, help="how many images")
    parser.add_argument("device", help="such as cpu")
    given = parser.parse_args()
    return given.images, given.device
