"""Contract suites: subclass one in a plugin's tests and pytest says what the stage does wrong.

Stages are found through their hooks, by name, and built untrained; `options` sets their options and
`task` the images they are built for. What needs another way to build overrides `stage_module`.
"""

from defend.testing.contracts.attacks import AttackContract
from defend.testing.contracts.datasets import DatasetContract
from defend.testing.contracts.finetuners import FinetunerContract
from defend.testing.contracts.networks import DetectorContract, PurifierContract, VictimContract
from defend.testing.contracts.recipes import RecipeContract
from defend.testing.contracts.stage import StageContract

__all__ = [
    "AttackContract",
    "DatasetContract",
    "DetectorContract",
    "FinetunerContract",
    "PurifierContract",
    "RecipeContract",
    "StageContract",
    "VictimContract",
]
