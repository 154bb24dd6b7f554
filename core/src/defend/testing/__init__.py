"""For tests: `assert_robust` for a model, contract suites for a plugin, toys, and rigged defences.

from defend.testing import PurifierContract

class TestHaze(PurifierContract):
name = "haze"
"""

from defend.testing import rigged
from defend.testing.contracts import (
    AttackContract,
    DatasetContract,
    DetectorContract,
    FinetunerContract,
    PurifierContract,
    RecipeContract,
    StageContract,
    VictimContract,
)
from defend.testing.robust import assert_robust
from defend.testing.toys import SEED, TASK, TinyVictim, images, tiny_dataset

__all__ = [
    "SEED",
    "TASK",
    "AttackContract",
    "DatasetContract",
    "DetectorContract",
    "FinetunerContract",
    "PurifierContract",
    "RecipeContract",
    "StageContract",
    "TinyVictim",
    "VictimContract",
    "assert_robust",
    "images",
    "rigged",
    "tiny_dataset",
]
