"""`defend`: defends image classifiers against adversarial examples, and tells the truth about how well.

Names are imported when first used, so that the program listens to Ctrl-C almost at once, and shows `--help`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from defend.options import option, options  # at once, as the module of the same name would hide the function

if TYPE_CHECKING:
    from defend.assembly.load import load_defence as load
    from defend.assembly.load import open_dataset as dataset
    from defend.assembly.stage import build_stage
    from defend.attacks.host import craft
    from defend.attacks.target import Target
    from defend.defence import Defence, Verdict
    from defend.errors import DefendError
    from defend.evaluation.runner import run, run_arms
    from defend.hookspecs import hookimpl
    from defend.reproduce.ladders import load_recipe
    from defend.reproduce.ladders import recipe_config as recipe
    from defend.session.evaluate import evaluate
    from defend.session.prepare import calibrate
    from defend.stages import Paper, StageSpec, Task
    from defend.util.metrics import threshold_at
    from defend.values.report import Report
    from defend.values.run_config import RunConfig
    from defend.values.toml import alternatives

IMPORTED_AT = time.time()  # what is written later is not what runs

__version__ = "0.5.0"

__all__ = [
    "Defence",
    "DefendError",
    "Paper",
    "Report",
    "RunConfig",
    "StageSpec",
    "Target",
    "Task",
    "Verdict",
    "alternatives",
    "build_stage",
    "calibrate",
    "craft",
    "dataset",
    "evaluate",
    "hookimpl",
    "load",
    "load_recipe",
    "option",
    "options",
    "recipe",
    "run",
    "run_arms",
    "threshold_at",
    "train",
]

_LAZY = {
    "Defence": ("defend.defence", "Defence"),
    "DefendError": ("defend.errors", "DefendError"),
    "Paper": ("defend.stages", "Paper"),
    "Report": ("defend.values.report", "Report"),
    "RunConfig": ("defend.values.run_config", "RunConfig"),
    "StageSpec": ("defend.stages", "StageSpec"),
    "Target": ("defend.attacks.target", "Target"),
    "Task": ("defend.stages", "Task"),
    "Verdict": ("defend.defence", "Verdict"),
    "alternatives": ("defend.values.toml", "alternatives"),
    "calibrate": ("defend.session.prepare", "calibrate"),
    "evaluate": ("defend.session.evaluate", "evaluate"),
    "build_stage": ("defend.assembly.stage", "build_stage"),
    "craft": ("defend.attacks.host", "craft"),
    "dataset": ("defend.assembly.load", "open_dataset"),
    "hookimpl": ("defend.hookspecs", "hookimpl"),
    "load": ("defend.assembly.load", "load_defence"),
    "load_recipe": ("defend.reproduce.ladders", "load_recipe"),
    "recipe": ("defend.reproduce.ladders", "recipe_config"),
    "run": ("defend.evaluation.runner", "run"),
    "run_arms": ("defend.evaluation.runner", "run_arms"),
    "train": ("defend.train", ""),  # a page that can be called
    "threshold_at": ("defend.util.metrics", "threshold_at"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'defend' has no attribute {name!r}")
    import importlib

    module, attribute = _LAZY[name]
    found: Any = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
