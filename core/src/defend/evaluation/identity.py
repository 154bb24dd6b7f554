"""What decides the records of a run: a run goes on only where all of it is as it was when it began."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from defend.assembly.stage import Built
from defend.custom.spec import CustomSpec
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError
from defend.evaluation.arms import BuiltDefence
from defend.fingerprints.code import code_of, modules_of, versions_of
from defend.fingerprints.values import batch_key, module_hash
from defend.plugins import Registry
from defend.records.rows import PlannedRow
from defend.util.tensors import hash_state


def identify(
    defences: Sequence[BuiltDefence],
    plans: Sequence[PlannedRow],
    dataset: ImageDataset,
    plugins: Registry,
    device: torch.device,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Return what decides the records of a run, in words for whoever changed it, to plain data.

    `versions`: see `find_versions`.
    """
    return {
        "set of library versions": dict(versions),
        "set of plugins": dict(plugins.versions),
        **describe_images(dataset, plans),
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
        **_own_attacks(plans),
        **{
            f"source code of {root}": value
            for root, value in code_of(*sorted(_modules(defences, plans, plugins))).items()
        },
    }


def describe_images(dataset: ImageDataset, plans: Sequence[PlannedRow]) -> dict[str, Any]:
    """Return what decides which images each row judges, in words for whoever changed it, to plain data."""
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
        "data": dataset.sha256("test"),
        # thresholds are set on them, and attacks begin at them
        "held-out data": dataset.sha256("val") if dataset.has("val") else None,
        "plan of rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def find_versions(defences: Sequence[BuiltDefence], plans: Sequence[PlannedRow], plugins: Registry) -> dict[str, str]:
    """Return the versions of core and of the libraries that the rows come from, by distribution."""
    # what is said of torch's build, for a processor or a GPU, the installed distribution may leave out
    return {**versions_of(*sorted(_modules(defences, plans, plugins))), "torch": torch.__version__}


def _fingerprint(built: Built) -> str | None:
    """Return the hash of a part's weights; None of code alone.

    As their card has it; of what a user gave with all that decides its answers; of what a library brought, or that
    nobody trained, as it is.
    """
    if built.card is not None:
        return built.content_hash
    return module_hash(built.module) if built.custom else hash_state(built.module) or None


def _own_attacks(plans: Sequence[PlannedRow]) -> dict[str, str]:
    return {
        f"attack {plan.name} of your own": batch_key(built=plan.attack)
        for plan in plans
        if plan.attack is not None and not type(plan.attack).__module__.startswith("defend")
    }


def _modules(defences: Sequence[BuiltDefence], plans: Sequence[PlannedRow], plugins: Registry) -> set[str]:
    """Return the modules of all that a run is built from."""
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
    return modules
