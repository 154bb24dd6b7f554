"""The paper's one result as data, and how it is measured again. Imports no torch."""

from __future__ import annotations

import attrs

from defend import Paper
from defend.tables import Adaptive, Reason, Table, TableArm, TableAttack

RESULTS = "defend_vaegan.results"
PAPER = Paper(title="VAE-GAN purification network for adversarial examples")
SWEPT_EPS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
MATCHED_EPS = 0.05
"""The eps of the sweep at which the paper's two figures stand. It is decided by measurement, not by the paper, which
names none: the one whose undefended accuracy is nearest to the paper's 19.64 %."""

FINE_EPS = (0.06, 0.065, 0.07, 0.08)
NEAREST_EPS = 0.07
"""Of the finer sweep, the eps whose undefended accuracy is nearest to the paper's 19.64 %; decided by measurement."""
ADAPTIVE_EPS = 0.065
"""What the adaptive attacker of the finer sweep had: the two cannot be told apart on so many images."""

IMAGES = 2_000  # [P]; of every class its share [R]
FINE_IMAGES = 1_000


def _fgsm(eps: float) -> str:
    return f"FGSM {eps:g}"


NONE = TableArm(name="None", reference=True)
PURIFIED = TableArm(name="Purified", purifier="vaegan")
ARMS = (
    NONE,
    PURIFIED,
    *(
        TableArm(name=f"Purified, {mode}", purifier="vaegan", options={"vaegan": {"mode": mode}})
        for mode in ("recon", "latent")
    ),
)
CLEAN = "Clean"
ATTACKS = (
    TableAttack(name=CLEAN, n=IMAGES),
    *(TableAttack(name=_fgsm(eps), attack="fgsm", eps=eps, n=IMAGES) for eps in SWEPT_EPS),
    TableAttack(name="PGD 0.1", attack="pgd", eps=0.1, options={"steps": 20, "early_stop": False}),
)

FINE_ATTACKS = (
    TableAttack(name=CLEAN, n=FINE_IMAGES),
    *(TableAttack(name=_fgsm(eps), attack="fgsm", eps=eps, n=FINE_IMAGES) for eps in FINE_EPS),
)
SAMPLE = "{:,} test images, of every class its share, seed 0 [R: the paper does not say which]{}"
LOSSES = (
    "PGD climbs the cross-entropy in a form that a saturated softmax does not hide [R]; FGSM and vaegan_straight climb "
    "it literally"
)
WEIGHTS = (
    "made for a CPU, the weights are not of the recipe's defaults, in brackets, Larsen's where he gives any: width "
    "0.25 (1), gamma 0.005 (1e-5), pixel_weight 30 (0), lr 0.001 (2e-4), lr_last 0.02 (1); epochs 50 and train_subset "
    "10000 are the paper's"
)
VICTIM = (
    "the VGG-16 was trained for 2 epochs on a CPU (--set epochs=2 batch_size=64 lr=0.05 shift=0); its weights "
    "are 29.5 MB and do not ship"
)


def _cells(
    attacks: tuple[TableAttack, ...], arms: tuple[TableArm, ...], eps: float
) -> dict[tuple[str, str], float | None]:
    """Return the paper's two figures at an eps, and None for all that we measure besides."""
    ours: dict[tuple[str, str], float | None] = {(attack.name, arm.name): None for attack in attacks for arm in arms}
    return ours | {(_fgsm(eps), NONE.name): 19.64, (_fgsm(eps), PURIFIED.name): 76.24}


TABLE_1 = Table(
    name="vaegan/table-1",
    caption="Fashion-MNIST, VGG-16: the adversarial set before and after purification",
    paper=PAPER,
    dataset="fashion_mnist",
    victim="vgg16_bn",
    eps=MATCHED_EPS,
    arms=ARMS,
    attacks=ATTACKS,
    cells=_cells(ATTACKS, ARMS, MATCHED_EPS),
    knowledge="oblivious, as far as the paper says: one attack of unnamed size on the bare classifier",
    notes=(
        "PGD and black-box attacks are the paper's future work, so its attack is taken for FGSM, with true labels",
        f"the paper names no eps: its figures stand at {MATCHED_EPS:g}, where the undefended accuracy is nearest",
        "'Purified' follows the discriminator's gradient, the paper's stated novelty (mode disc_grad); recon and "
        "latent are the other two readings of its text",
        SAMPLE.format(IMAGES, "; PGD on 1,000 of them"),
        LOSSES,
        WEIGHTS,
        VICTIM,
    ),
    misses={
        f"{_fgsm(MATCHED_EPS)} / {NONE.name}": Reason(
            "the paper names no eps: at 0.07 ours are 18.8 and 73.8 %, both within three points of its figures "
            "(n=1,000; vaegan/eps-1)",
            measured=True,
        )
    },
    adaptive=Adaptive(options={"pgd": {"steps": 20}, "vaegan_straight": {"steps": 20, "logit_scale": 1.0}}),
    results=RESULTS,
)
FINE = attrs.evolve(
    TABLE_1,
    name="vaegan/eps-1",
    caption="Fashion-MNIST, VGG-16: table 1 at the eps where the undefended accuracy is the paper's",
    eps=ADAPTIVE_EPS,
    arms=(NONE, PURIFIED),
    attacks=FINE_ATTACKS,
    cells=_cells(FINE_ATTACKS, (NONE, PURIFIED), NEAREST_EPS),
    notes=(
        f"the paper names no eps: its figures stand at {NEAREST_EPS:g}, where of these four the undefended accuracy is "
        f"nearest to its own; on {FINE_IMAGES:,} images that cannot be told from 0.065, the adaptive attacker's eps",
        SAMPLE.format(FINE_IMAGES, ", where the paper has 2,000"),
        LOSSES,
        WEIGHTS,
        VICTIM,
    ),
    misses={},
    stand_in=True,
)
TABLES = (FINE, TABLE_1)
