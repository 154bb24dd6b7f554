"""`defend`: defends image classifiers against adversarial examples, and tells the truth about how well.

Names are imported when first used, so that `import defend` (and the command line's `--help`) does
not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from defend.errors import DefendError
from defend.hookspecs import hookimpl
from defend.options import option, options
from defend.stages import Paper, StageSpec, Task
from defend.values import Report, RunConfig, Verdict

if TYPE_CHECKING:
    from defend.attacks.host import craft
    from defend.attacks.target import Target
    from defend.build import load_defence as load
    from defend.build import open_dataset as dataset
    from defend.config import alternatives
    from defend.defence import Defence
    from defend.ladders import load_recipe
    from defend.ladders import recipe_config as recipe
    from defend.runner import run, run_arms

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
    "craft",
    "dataset",
    "hookimpl",
    "load",
    "load_recipe",
    "option",
    "options",
    "recipe",
    "run",
    "run_arms",
]

_LAZY = {
    "Defence": ("defend.defence", "Defence"),
    "Target": ("defend.attacks.target", "Target"),
    "alternatives": ("defend.config", "alternatives"),
    "craft": ("defend.attacks.host", "craft"),
    "dataset": ("defend.build", "open_dataset"),
    "load": ("defend.build", "load_defence"),
    "load_recipe": ("defend.ladders", "load_recipe"),
    "recipe": ("defend.ladders", "recipe_config"),
    "run": ("defend.runner", "run"),
    "run_arms": ("defend.runner", "run_arms"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'defend' has no attribute {name!r}")
    import importlib

    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
