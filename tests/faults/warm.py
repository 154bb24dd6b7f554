"""What a command imports in its course: the fork server of `harness` does so once, instead of every child."""

import accelerate  # noqa: F401
import rich.progress  # noqa: F401
import scipy.stats  # noqa: F401
import timm  # noqa: F401
import torch  # noqa: F401

import defend.evaluation.runner
import defend.records.pictures
import defend.report.terminal
import defend.training.stage  # noqa: F401
from defend.plugins import forget_installed, registry

for entry in registry().all_entries():
    entry.spec.names()
    entry.spec.resolve(entry.spec.build)
forget_installed()  # what a test installs is to be found
