"""What one CPU core trains and measures, in many sittings, of what the papers' tables still want. Imports no torch.

Cheap and urgent items come first. A time that was measured says so; it is of one core beside other work, in bf16 of a
core that multiplies bfloat16 itself. What ships with the plugins is taken as it is (`tools.train_all`).
"""

from __future__ import annotations

from typing import Any

from defend.stages import Stage
from tools.plan import HALF, Item, Measure, Train, make_training


def _train(rank: int, minutes: float, stage: Stage, stage_name: str, dataset: str = "cifar10", **more: Any) -> Train:
    return make_training(stage, stage_name, dataset, rank=rank, seconds=60 * minutes, **{"options": {}, **more})


def _measure(rank: int, minutes: float, table: str, dataset: str, *needs: str, measured: bool = False) -> Measure:
    return Measure(
        name=table,
        table=table,
        dataset=dataset,
        seconds=60 * minutes,
        rank=rank,
        measured=measured,
        needs=needs,
        only_open=True,
    )


LONG = {"victim": "+long", "purifier": "+long"}
CPU_PLAN: tuple[Item, ...] = (
    # 004: its victim, autoencoder and tuning for longer
    _train(1, 50, "victim", "resnet20", edition="long", precision=HALF, measured=True),
    _train(
        2,
        40,
        "purifier",
        "dae",
        measured=True,
        edition="long",
        needs=("resnet20/cifar10+long",),
        victim="resnet20",
        weights={"victim": "+long"},
    ),
    _train(
        3,
        40,
        "finetuner",
        "dae",
        edition="long",
        needs=("resnet20/cifar10+long", "dae/cifar10+long"),
        victim="resnet20",
        purifier="dae",
        weights=LONG,
        precision=HALF,
    ),
    _measure(4, 12, "dae_finetune/table-2-long", "cifar10", "dae/resnet20/dae/cifar10+long"),
    _train(5, 25, "purifier", "dae", edition="se_preresnet56", options={"train_subset": 10_000}, measured=True),
    _train(
        6,
        37,
        "finetuner",
        "dae",
        edition="se_preresnet56",
        needs=("dae/cifar10+se_preresnet56",),
        victim="se_preresnet56",
        purifier="dae",
        weights={"purifier": "+se_preresnet56"},
        precision=HALF,
        options={"train_subset": 10_000},
        measured=True,
    ),
    _measure(7, 16, "dae_finetune/table-3", "cifar10", "dae/se_preresnet56/dae/cifar10+se_preresnet56", measured=True),
    # 001, before a victim that a core can train
    _measure(8, 95, "apudae/table-3-resnet20", "cifar10"),
    # 003: the compact network and its victim as long as the paper's reasons want
    _train(9, 60, "victim", "classifier_a", "mnist", edition="paper", precision=HALF),
    _train(
        10,
        90,
        "purifier",
        "puvae",
        "mnist",
        edition="rc-0.01",
        needs=("classifier_a/mnist+paper",),
        victim="classifier_a",
        weights={"victim": "+paper"},
    ),
    _measure(11, 30, "puvae_detect/training-mnist", "mnist", "puvae/mnist+rc-0.01"),
    # 000 and 001: their own victims
    _train(12, 115, "victim", "resnet18", precision=HALF, options={"epochs": 14}),
    _train(13, 120, "victim", "vgg13_bn", precision=HALF, options={"epochs": 12}),
    # 003 on CIFAR-10: before a network that ships, then before its own
    _train(14, 33, "purifier", "puvae", edition="compact", measured=True),
    _measure(15, 60, "puvae_detect/table-5-resnet20", "cifar10", "puvae/cifar10+compact"),
    _train(20, 175, "victim", "classifier_b", precision=HALF, options={"epochs": 15}),
    _train(21, 240, "purifier", "puvae", needs=("classifier_b/cifar10",), options={"epochs": 12}),
    _measure(22, 60, "puvae_detect/table-5", "cifar10", "puvae/cifar10"),
)
