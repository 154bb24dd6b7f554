"""The paper's tables before a network that one CPU core can train a generator for, as data. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from defend.tables import Table, TableArm, TableAttack
from defend_unet_gan.tables import PURIFIER, TABLES, unfigured, without_leak

SMALL, UNSEEN = "resnet20", "se_preresnet56"
NARROW_NOTE = (
    "the generator has width 16 and pooled keys, and saw 1 + 1 epochs of attacks on this ResNet-20 alone [R]; the "
    "paper's saw three networks"
)
OTHER = "another network, trained by another recipe"
BRIEF = "trained for two epochs on the attacks of one network, with a sixteenth of the arithmetic"
CPU_IMAGES = 2_000
IMAGES_NOTE = f"{CPU_IMAGES:,} images, where the paper has 10,000; PGD on 1,000"
RANDOM_LABELS = {"labels": "random"}
"""A control: FGSM for a label that is drawn tells the generator nothing of the true one."""
T1_SMALL = {"Noise": "narrow-noise", "Image": "narrow", "Image-2": "narrow-image-2"}
PAIR = {"exposed": None, "recovered": "narrow-eps128"}


def _arms(editions: Mapping[str, str | None], source: str | None = None) -> tuple[TableArm, ...]:
    """Return arms before the ResNet-20, by the edition of the generator; None is no generator."""
    return tuple(
        TableArm(name=name, source=source, reference=True)
        if edition is None
        else TableArm(name=name, source=source, purifier=PURIFIER, weights={"purifier": f"+{edition}"})
        for name, edition in editions.items()
    )


def _stand_in(
    table: Table,
    arms: tuple[TableArm, ...],
    cells: str,
    theirs: str,
    ours: tuple[TableAttack, ...] = (),
    *,
    caption: str,
    takes: str,
) -> Table:
    """Put a table before a ResNet-20, for which one core can train a generator.

    Args:
        table: the paper's.
        arms: those of the stand-in.
        cells: which of the paper's arms stands beside one of them, its name as {}.
        theirs: whose figures the paper's are, in words.
        ours: attacks that the paper has not.
        caption, takes: of the stand-in.
    """
    attacks = (*(table.attack(name) for name in _rows(table)), *ours)
    beside = {
        (attack, arm.name): table.cells[attack, cells.format(arm.name)] for arm in arms for attack in _rows(table)
    }
    return attrs.evolve(
        table,
        name=f"{table.name}-{SMALL}",
        caption=caption,
        victim=SMALL,
        arms=arms,
        attacks=tuple(attrs.evolve(attack, n=min(attack.n, CPU_IMAGES)) for attack in attacks),
        cells={**beside, **unfigured(ours, arms)},
        notes=(f"the paper's figures are of {theirs}", NARROW_NOTE, IMAGES_NOTE, *table.notes),
        misses={arm.name: OTHER if arm.reference else BRIEF for arm in arms},
        stand_in=True,
        takes=takes,
        needs=("defend-dae-finetune",),
    )


def _rows(table: Table) -> list[str]:
    """Return the attacks of which the paper has figures."""
    return [attack.name for attack in table.attacks if any(table.cells[attack.name, arm.name] for arm in table.arms)]


def _labels(eps: int) -> tuple[TableAttack, ...]:
    """Return what is ours: FGSM with predicted labels, with random ones, and PGD."""
    predicted, pgd = without_leak(eps)
    name = f"FGSM {eps}/255, random labels"
    return predicted, attrs.evolve(predicted, name=name, options=RANDOM_LABELS), pgd


STAND_INS = (
    _stand_in(
        TABLES[0],
        _arms(T1_SMALL),
        "{} VGG",
        "its VGG-13",
        _labels(8),
        caption="CIFAR-10, trained up to eps 16/255: what is painted, before a ResNet-20",
        takes="three generators of width 16 (editions narrow, narrow-noise, narrow-image-2), about a core hour each",
    ),
    _stand_in(
        TABLES[1],
        _arms(PAIR),
        "VGG, {}",
        "its VGG-13",
        _labels(20),
        caption="CIFAR-10, trained up to eps 128/255: without and with the generator, before a ResNet-20",
        takes="one generator of width 16 (edition narrow-eps128), about a core hour",
    ),
    _stand_in(
        TABLES[2],
        _arms(PAIR, UNSEEN),
        "DenseNet-121, {}",
        "attacks made on its DenseNet-121",
        caption="CIFAR-10, attacks on a ResNet-20 that were made on an SE-PreResNet-56, which nobody has seen",
        takes="the weights of unet_gan/table-2-resnet20",
    ),
)
