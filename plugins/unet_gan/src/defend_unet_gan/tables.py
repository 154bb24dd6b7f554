"""The paper's results, Tables 1 to 3, as data: every cell, and how it is measured again. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from defend import Paper
from defend.tables import Adaptive, Table, TableArm, TableAttack, grid

RESULTS = "defend_unet_gan.results"
PURIFIER = "unet_gan"
PAPER = Paper(title="Robust Recovery of Adversarial Examples")
INCEPTION, VGG = "inception_v3", "vgg13_bn"
INCEPTION_CLEAN = 93.1
"""Inception-v3's accuracy on clean images in the paper, in percent."""

ADAPTIVE_EPS = 8 / 255  # what CIFAR-10 defences are compared at
WIDE = {"purifier": "+eps128"}
ALONE = "the bare classifier is differentiated with the true labels, and the attacker does not know of the generator"
LEAK = (
    f"label leaking: the paper recovers more than the {INCEPTION_CLEAN} % that Inception-v3 has on clean images, as "
    "single-step noise made with the true label tells it; the cell says how much of that a generator reads"
)
LABELS_NOTE = (
    "the row with predicted labels and the PGD row are ours: they leak no label that the classifier itself would not "
    "have given"
)
MODE_NOTE = "the paper does not say which of its generators this is: image mode, E_max 128"
ADAPTIVE_NOTE = "the adaptive attacker has eps 8/255; FGSM is part of it, as single-step noise is what was trained on"
LOSSES_NOTE = (
    "PGD climbs the cross-entropy in a form that a saturated softmax does not hide [R]; FGSM climbs it literally"
)
ADAPTIVE = Adaptive(attacks=("fgsm", "pgd"), options={"pgd": {"steps": 20}})


VICTIMS = (
    "{} of CIFAR-10: VGG-13-BN is about 2 core hours, Inception-v3 (6.9 GFLOP an image) an estimated 3.7 core hours an "
    "epoch; and {}, whose every step attacks them"
)


def _fgsm(eps: int, threat: str = "oblivious") -> TableAttack:
    return TableAttack(name=f"FGSM {eps}/255", attack="fgsm", threat=threat, eps=eps / 255, n=10_000)


def without_leak(eps: int) -> tuple[TableAttack, ...]:
    """Return what the paper does not have: FGSM that does not tell the label, and PGD."""
    return (
        TableAttack(
            name=f"FGSM {eps}/255, predicted labels", attack="fgsm", eps=eps / 255, options={"labels": "predicted"}
        ),
        TableAttack(name="PGD 8/255", attack="pgd", eps=ADAPTIVE_EPS, options={"steps": 20, "early_stop": False}),
    )


def unfigured(attacks: tuple[TableAttack, ...], arms: tuple[TableArm, ...]) -> dict[tuple[str, str], None]:
    """Return the cells of attacks that are ours, of which the paper has no figures."""
    return {(attack.name, arm.name): None for attack in attacks for arm in arms}


def _leaks(cells: Mapping[tuple[str, str], float | None], arms: tuple[TableArm, ...]) -> dict[str, str]:
    """Return the reason for the cells in which Inception-v3 is better under attack than it is clean."""
    inception = {arm.name for arm in arms if arm.victim in ("", INCEPTION)}
    return {
        f"{attack} / {arm}": LEAK
        for (attack, arm), figure in cells.items()
        if arm in inception and figure is not None and figure > INCEPTION_CLEAN
    }


def _painted(name: str, weights: Mapping[str, str]) -> tuple[TableArm, ...]:
    return tuple(
        TableArm(name=f"{name} {short}", victim=victim, purifier=PURIFIER, weights=weights)
        for short, victim in (("Inc", INCEPTION), ("VGG", VGG))
    )


T1_ARMS = (
    *_painted("Noise", {"purifier": "+noise"}),
    *_painted("Image", {}),
    *_painted("Image-2", {"purifier": "+image-2"}),
)
T1_CELLS = grid(
    T1_ARMS,
    {
        "Clean": (92.71, 92.26, 92.21, 92.25, 92.52, 92.92),
        "FGSM 4/255": (91.27, 88.88, 88.87, 88.72, 90.19, 89.69),
        "FGSM 8/255": (93.47, 88.5, 92.29, 89.04, 92.45, 89.66),
        "FGSM 16/255": (93.91, 88.3, 93.86, 89.02, 93.58, 89.69),
        "FGSM 32/255": (8.02, 26.98, 57.92, 72.57, 56.43, 74.18),
    },
)
T1_OURS = without_leak(8)

WIDE_EPS = (5, 10, 20, 25, 35, 50, 65)


def _pair(name: str, victim: str, source: str | None = None) -> tuple[TableArm, TableArm]:
    return (
        TableArm(name=f"{name}, exposed", victim=victim, source=source, reference=True),
        TableArm(name=f"{name}, recovered", victim=victim, source=source, purifier=PURIFIER, weights=WIDE),
    )


T2_ARMS = (*_pair("VGG", VGG), *_pair("Inc", INCEPTION))
T2_CELLS = grid(
    T2_ARMS,
    {
        "FGSM 5/255": (43.18, 86.46, 11.24, 90.32),
        "FGSM 10/255": (38.89, 89.64, 5.96, 96.32),
        "FGSM 20/255": (24.86, 90.86, 7.52, 98.13),
        "FGSM 25/255": (18.34, 90.44, 8.21, 98.5),
        "FGSM 35/255": (12.65, 87.36, 8.83, 98.4),
        "FGSM 50/255": (10.69, 77.37, 9.18, 96.83),
        "FGSM 65/255": (10.40, 67.19, 9.26, 91.85),
    },
)
T2_OURS = without_leak(20)

T3_ARMS = (*_pair("DenseNet-121", INCEPTION, "densenet121"), *_pair("VGG-11", INCEPTION, "vgg11_bn"))
T3_CELLS = grid(
    T3_ARMS,
    {
        "FGSM 5/255": (70.22, 79.82, 64.84, 77.78),
        "FGSM 10/255": (53.88, 79.26, 46.85, 76.35),
        "FGSM 20/255": (27.51, 79.01, 24.96, 76.63),
        "FGSM 25/255": (20.61, 77.40, 19.39, 75.46),
        "FGSM 35/255": (14.76, 68.86, 14.69, 66.16),
        "FGSM 50/255": (11.03, 59.18, 12.04, 57.28),
        "FGSM 65/255": (9.67, 55.66, 10.78, 54.32),
    },
)

TABLES = (
    Table(
        name="unet_gan/table-1",
        caption="CIFAR-10, trained up to eps 16/255: what is painted, before Inception-v3 and VGG-13",
        paper=PAPER,
        dataset="cifar10",
        victim=INCEPTION,
        eps=ADAPTIVE_EPS,
        arms=T1_ARMS,
        attacks=(TableAttack(name="Clean", n=10_000), *(_fgsm(eps) for eps in (4, 8, 16, 32)), *T1_OURS),
        cells={**T1_CELLS, **unfigured(T1_OURS, T1_ARMS)},
        knowledge=f"oblivious: {ALONE}",
        notes=(
            "Image-2 is Image Reconstruction-2, which keeps the adversarial loss in stage 2",
            LABELS_NOTE,
            LOSSES_NOTE,
            ADAPTIVE_NOTE,
        ),
        misses=_leaks(T1_CELLS, T1_ARMS),
        adaptive=ADAPTIVE,
        results=RESULTS,
        takes=VICTIMS.format("Inception-v3, VGG-13-BN and ResNet-18", "three generators of E_max 16"),
    ),
    Table(
        name="unet_gan/table-2",
        caption="CIFAR-10, trained up to eps 128/255: without and with the generator",
        paper=PAPER,
        dataset="cifar10",
        victim=INCEPTION,
        eps=ADAPTIVE_EPS,
        arms=T2_ARMS,
        attacks=(*(_fgsm(eps) for eps in WIDE_EPS), *T2_OURS),
        cells={**T2_CELLS, **unfigured(T2_OURS, T2_ARMS)},
        knowledge=f"oblivious, under the title 'white box': {ALONE}",
        notes=(MODE_NOTE, LABELS_NOTE, LOSSES_NOTE, ADAPTIVE_NOTE),
        misses=_leaks(T2_CELLS, T2_ARMS),
        adaptive=ADAPTIVE,
        results=RESULTS,
        takes=VICTIMS.format("Inception-v3, VGG-13-BN and ResNet-18", "one generator of E_max 128"),
    ),
    Table(
        name="unet_gan/table-3",
        caption="CIFAR-10, attacks on Inception-v3 that were made on another network",
        paper=PAPER,
        dataset="cifar10",
        victim=INCEPTION,
        eps=ADAPTIVE_EPS,
        arms=T3_ARMS,
        attacks=tuple(_fgsm(eps, "transfer") for eps in WIDE_EPS),
        cells=T3_CELLS,
        knowledge="transfer: the gradient of a network that neither the classifier nor the generator has seen",
        notes=(MODE_NOTE, "the defence is table-2's: its adaptive figure stands there"),
        adaptive=None,
        results=RESULTS,
        takes="the weights of unet_gan/table-2, and DenseNet-121 and VGG-11-BN of CIFAR-10 as unseen sources",
    ),
)
