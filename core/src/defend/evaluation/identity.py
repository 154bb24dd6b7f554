"""What decides the records of a run: a run goes on only where all of it is as it was when it began."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from defend import __version__
from defend.assembly.stage import Built
from defend.custom.spec import CustomSpec
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError
from defend.evaluation.arms import BuiltDefence
from defend.plugins import Registry
from defend.records.rows import PlannedRow
from defend.store.code import code_of, modules_of
from defend.store.fingerprint import batch_key, module_hash


def identify(
    defences: Sequence[BuiltDefence],
    plans: Sequence[PlannedRow],
    dataset: ImageDataset,
    plugins: Registry,
    device: torch.device,
) -> dict[str, Any]:
    """Return what decides the records of a run, in words for whoever changed it, to plain data."""
    rows = [
        (
            plan.name,
            plan.threat.kind,
            plan.threat.norm,
            plan.threat.eps,
            plan.variant,
            plan.attacked,
            plan.judges,
            plan.identity,
            plan.keys.tolist(),
        )
        for plan in plans
    ]
    return {
        "version of defend or torch": [__version__, torch.__version__],
        "set of plugins": dict(plugins.versions),
        "data": dataset.sha256("test"),
        # thresholds are set on them, and attacks begin at them
        "held-out data": dataset.sha256("val") if dataset.has("val") else None,
        "kind of device": device.type,
        # finished batches are counted by their place, so all must be cut alike
        "batch size": defences[0].names.config.batch_size,
        "weights file": [
            {
                part: found
                for part, built in {**each.built, **each.sources}.items()
                if (found := _fingerprint(built)) is not None
            }
            for each in defences
        ],
        **_code(defences, plans, plugins),
        "plan of rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def _fingerprint(built: Built) -> str | None:
    """Return the hash of a part's weights: as their card has it, or of what a user gave; None of code alone."""
    return module_hash(built.module) if built.card is None and built.custom else built.content_hash


def _code(defences: Sequence[BuiltDefence], plans: Sequence[PlannedRow], plugins: Registry) -> dict[str, str]:
    """Return the hashes of the code that makes the rows: core, and the packages of all that a run is built from."""
    attacks = [plan.attack for plan in plans if plan.attack is not None]
    modules: set[str] = set().union(*map(modules_of, attacks))
    for each in defences:
        config = each.names.config
        modules = modules.union(*map(modules_of, each.arms.values()))
        named = [
            ("victim", config.victim),
            ("detector", config.detector),
            ("finetuner", config.finetune),
            ("dataset", config.dataset),
            *(("purifier", name) for name in config.purifiers),
            *(("attack", name) for name in dict.fromkeys(plan.name for plan in plans)),
        ]
        for stage, name in named:
            if name:
                with contextlib.suppress(ConfigError):  # the clean row is of no attack
                    spec = plugins.find(stage, name).spec  # type: ignore[arg-type]
                    modules |= {spec.build.partition(":")[0], spec.config.__module__}
                    if isinstance(spec, CustomSpec):
                        modules |= modules_of(spec.thing)
    own = {
        f"attack {plan.name} of your own": batch_key(built=plan.attack)
        for plan in plans
        if plan.attack is not None and not type(plan.attack).__module__.startswith("defend")
    }
    return {**own, **{f"source code of {root}": value for root, value in code_of(*sorted(modules)).items()}}
