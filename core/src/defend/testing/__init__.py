"""For plugins' tests: contract suites to subclass, toys, and rigged defences that the checks must catch.

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
    "images",
    "rigged",
    "tiny_dataset",
]
