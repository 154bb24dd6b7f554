"""Which rows a run has: a config's attacks, under each threat that fits them, against the arm it attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from defend.datasets.base import ImageDataset
from defend.evaluate import PlannedRow
from defend.options import describe
from defend.plugins import Found, Registry
from defend.stages import Stage
from defend.threats import DEFENDED, THREATS, TUNED, UNDEFENDED
from defend.values import RunConfig, Threat

QUICK_ADAPTIVE_STEPS = 10


@attrs.frozen
class ArmSet:
    """The arms of one defence: what they are called in its report, mapped to what they are called in the run."""

    config: RunConfig
    names: Mapping[str, str]

    def attacked(self, kind: str) -> str:
        """Return the arm that a threat attacks, by its name in the run; the bare victim where nothing was tuned."""
        return self.names.get(THREATS[kind].attacked, UNDEFENDED)


def plan(defences: list[ArmSet], dataset: ImageDataset, plugins: Registry) -> list[PlannedRow]:
    """Return the rows of all defences, in the order of the threats.

    A row whose attack faces the same bare victim is made once, and judged by every defence's arms.
    """
    config = defences[0].config
    keys = dataset.keys("test", config.row_limit, config.seed)
    fewer = keys if config.adaptive_row_limit is None else keys[: config.adaptive_row_limit]
    everyone = tuple(dict.fromkeys(name for defence in defences for name in defence.names.values()))
    rows = [PlannedRow("none", Threat("none", "none", 0.0), None, keys, None, UNDEFENDED, everyone)]
    for kind in THREATS:
        if kind not in config.threats:
            continue
        faced: dict[str, list[ArmSet]] = {}
        for defence in defences:
            if fits(kind, defence):
                faced.setdefault(defence.attacked(kind), []).append(defence)
        for attacked, facing in faced.items():
            judges = tuple(dict.fromkeys(name for defence in facing for name in defence.names.values()))
            rows += _rows(kind, facing[0].config, plugins, keys, fewer, attacked, judges)
    return rows


def fits(kind: str, defence: ArmSet) -> bool:
    """Whether a threat makes sense for a defence."""
    if THREATS[kind].attacked == DEFENDED:
        return DEFENDED in defence.names and defence.names[DEFENDED] != UNDEFENDED
    return not THREATS[kind].tuned_only or TUNED in defence.names


def counter_attacks(config: RunConfig, plugins: Registry) -> tuple[str, ...]:
    """Return the attacks that the parts of the defence name as made against them.

    They look for their own purifier, so one in a sequence brings none.
    """
    parts: tuple[tuple[Stage, str | None], ...] = (
        ("purifier", config.purifier if len(config.purifiers) == 1 else None), ("detector", config.detector),
    )  # fmt: skip
    return tuple(name for stage, part in parts if part for name in plugins.find(stage, part).spec.counter_attacks)


def _rows(
    kind: str, config: RunConfig, plugins: Registry, keys: Tensor, fewer: Tensor, attacked: str,
    judges: tuple[str, ...],
) -> list[PlannedRow]:  # fmt: skip
    rows = []
    expensive = THREATS[kind].expensive
    counter = counter_attacks(config, plugins) if THREATS[kind].attacked == DEFENDED else ()
    for name in dict.fromkeys((*config.attacks, *counter)):
        found = plugins.find("attack", name)
        if (THREATS[kind].suits or kind) not in found.spec.threats:
            continue
        options = dict(config.options.get(name, {}))
        if expensive and not config.thorough:
            if "steps" not in {option.name for option in describe(found.spec.config)}:
                continue  # one step finds little that many do not
            options = _fewer_steps(found, options)
        chosen = found.config(options)
        attack = found.spec.resolve(found.spec.build)(chosen)
        eps = None if attack.norm != "linf" else config.eps + getattr(attack, "excess", 0.0)
        steps = getattr(chosen, "steps", None)
        threat = Threat(kind, attack.norm, eps)
        rows.append(PlannedRow(name, threat, attack, fewer if expensive else keys, steps, attacked, judges))
    return rows


def _fewer_steps(found: Found, options: dict[str, Any]) -> dict[str, Any]:
    for option in describe(found.spec.config):
        if option.name == "steps" and isinstance(option.default, int):
            return {"steps": min(option.default, QUICK_ADAPTIVE_STEPS), **options}
    return options
