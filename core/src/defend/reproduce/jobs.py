"""Which runs a published table needs: its arms and attacks to configs, and the weights that they lack.

Attacks on one arm that differ in nothing but the attack share a run; every run has a folder of its own, named after its
config, so that a table goes on where it was cut off, and a run that two arms or two tables need is made once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from defend.assembly.composition import Composition, Missing
from defend.evaluation.plan import counter_attacks
from defend.plugins import Registry
from defend.reproduce.results import TableResult, find_open
from defend.tables import Adaptive, Table, TableArm, TableAttack
from defend.values.commands import type_source
from defend.values.run_config import RunConfig
from defend.values.threats import DEFENDED, NO_SOURCES, NOISE, THREATS, USUAL
from defend.values.toml import to_toml


@attrs.frozen(kw_only=True)
class MeasureSettings:
    """How to measure.

    Attributes:
        out: the folder that holds a folder for every run.
        limit: at most so many images in any cell, for a quick look.
        train_missing: train weights that do not exist yet.
        only_open: measure what the result that came with the table's plugin lacks, and take the rest from it.
        announce: called with a line when a run begins.
    """

    out: Path
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    data_dir: str | None = None
    batch_size: int = 64
    train_missing: bool = False
    only_open: bool = False
    announce: Callable[[str], None] = lambda line: None


@attrs.frozen
class Job:
    """One run: what of the table it is for, and its config, which names its folder."""

    arm: TableArm
    attacks: tuple[str, ...]
    eps: float
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(str(self.config.out))


def compose_arm(table: Table, arm: TableArm, plugins: Registry) -> Composition:
    """Return what an arm of a table is made of."""
    return Composition.of(
        arm.victim or table.victim,
        arm.purifier,
        arm.detector,
        arm.finetune,
        options=arm.options,
        weights=arm.weights,
        plugins=plugins,
    )


def hash_weights(own: Composition, sources: Iterable[str], dataset: str, plugins: Registry) -> dict[str, str]:
    """Return the hashes of the weights that there are, of a composition and of what transfers from, by part."""
    found = own.hash_weights(dataset)
    for name in sources:
        source = Composition.of(name, plugins=plugins).hash_weights(dataset)
        found |= {f"source {name}": value for value in source.values()}
    return found


def hash_job(job: Job, plugins: Registry) -> dict[str, str]:
    """Return the hashes of the weights that a run would be made with now, by part."""
    sources = () if job.config.sources in (None, NO_SOURCES) else job.config.sources
    return hash_weights(Composition.of_config(job.config, plugins), sources or (), job.config.dataset, plugins)


def find_missing(table: Table, plugins: Registry, data_dir: str | None = None) -> dict[str, list[Missing]]:
    """Return which weights are missing, by arm; `data_dir` is where the commands find the data set."""
    found: dict[str, list[Missing]] = {}
    typed = type_source(table.dataset, data_dir)
    for arm in table.arms:
        if arm.absent or arm.best_of:
            continue
        own = compose_arm(table, arm, plugins)
        others = [Composition.of(arm.source, plugins=plugins)] if arm.source else []  # a transfer's is taken as it is
        gaps = [gap for each in (own, *others) for gap in each.list_missing(table.dataset, typed=typed)]
        if gaps:
            found[arm.name] = gaps
    return found


def jobs(
    table: Table,
    settings: MeasureSettings,
    arms: Sequence[TableArm],
    plugins: Registry,
    kept: TableResult | None = None,
) -> Iterator[Job]:
    """Yield the runs that the cells of some arms need, the cheap ones of all arms before the adaptive ones.

    What is `kept` needs none.
    """
    wanted = _list_wanted(table, kept)
    for arm in arms:
        mine = [attack for attack in table.attacks if (attack.name, arm.name) in wanted]
        for group in _groups(table, arm, mine):
            # clean images are the same at any budget
            budgets = arm.budgets if arm.budgets and group[0].attack else (table.eps_of(group[0]),)
            for eps in budgets:
                yield _job(table, settings, arm, group, eps)
    for arm in arms:
        if table.adaptive is not None and _wants_adaptive(table, arm, kept):
            yield _adaptive_job(table, settings, arm, table.adaptive, plugins)


def find_unmeasured(table: Table, kept: TableResult | None) -> set[str]:
    """Return the names of the arms that have to be run for what a result lacks, whether their weights are there or not.

    An arm that is absent, or the best of others, is never run.
    """
    wanted = {arm for _, arm in _list_wanted(table, kept)}
    return {
        arm.name
        for arm in table.arms
        if not arm.absent and not arm.best_of and (arm.name in wanted or _wants_adaptive(table, arm, kept))
    }


def _list_wanted(table: Table, kept: TableResult | None) -> set[tuple[str, str]]:
    """Return what has to be attacked with what, (attack, arm), for the cells that a result lacks."""
    cells = table.cells if kept is None else find_open(table, kept)
    return {(attack, owner) for attack, arm in cells for owner in _owners(table, arm)}


def _wants_adaptive(table: Table, arm: TableArm, kept: TableResult | None) -> bool:
    there = kept is not None and kept.against(arm.name) is not None
    return table.adaptive is not None and _faces_adaptive(arm) and _has_cells(table, arm) and not there


def _faces_adaptive(arm: TableArm) -> bool:
    """Whether an arm's figure is that of a whole defence, at one budget: what an adaptive attacker attacks."""
    return arm.protected and arm.judged == DEFENDED and not arm.budgets


def _owners(table: Table, name: str) -> tuple[str, ...]:
    return table.arm(name).best_of or (name,)


def _has_cells(table: Table, arm: TableArm) -> bool:
    return any(arm.name in _owners(table, name) for _, name in table.cells)


def threat_of(arm: TableArm, attack: TableAttack) -> str:
    """Return the threat as it is run: an arm without a defence faces the oblivious attacker, not an adaptive one."""
    threat = arm.threat or attack.threat
    return USUAL if THREATS[threat].needs and not arm.protected else threat


def _groups(table: Table, arm: TableArm, attacks: Sequence[TableAttack]) -> list[list[TableAttack]]:
    """Put attacks that can share a run together; clean images go to a run that has no fewer images."""
    groups: list[list[TableAttack]] = []
    for attack in (each for each in attacks if each.attack is not None):
        shared = (threat_of(arm, attack), table.eps_of(attack), attack.n, attack.draws)
        # one attack twice, with other options, needs a run of its own: options go by the attack's name
        for group in groups:
            first = group[0]
            if (threat_of(arm, first), table.eps_of(first), first.n, first.draws) == shared and all(
                each.attack != attack.attack for each in group
            ):
                group.append(attack)
                break
        else:
            groups.append([attack])
    for clean in (each for each in attacks if each.attack is None):
        larger = [group for group in groups if group[0].n >= clean.n]
        if larger:
            min(larger, key=lambda group: group[0].n).append(clean)
        else:
            groups.append([clean])
    return groups


def _job(table: Table, settings: MeasureSettings, arm: TableArm, group: Sequence[TableAttack], eps: float) -> Job:
    first = group[0]
    n = first.n if settings.limit is None else min(first.n, settings.limit)
    named = [attack for attack in group if attack.attack is not None]
    config = _config(
        table,
        settings,
        arm,
        attacks=tuple(str(attack.attack) for attack in named) or THREATS[NOISE].attacks,
        threats=(threat_of(arm, first) if named else NOISE,),
        eps=eps,
        limit=n,
        adaptive_limit=n,
        draws=first.draws,
        checks="none",  # the paper's own attack, however weak: what the checks find is said beside the adaptive figure
        options={**arm.options, **{str(attack.attack): given for attack in named if (given := _options(attack, eps))}},
    )
    return Job(arm, tuple(attack.name for attack in group), eps, _place(settings, config))


def _options(attack: TableAttack, eps: float) -> dict[str, Any]:
    share = {} if attack.step_share is None else {"step_size": eps * attack.step_share}
    return {**attack.options, **share}


def _adaptive_job(table: Table, settings: MeasureSettings, arm: TableArm, adaptive: Adaptive, plugins: Registry) -> Job:
    n = adaptive.n if settings.limit is None else min(adaptive.n, settings.limit)
    # only arms with a defence come here
    there = {"": True, "defence": True, "purifier": arm.purifier, "detector": arm.detector}
    kinds = {kind: one for kind, one in THREATS.items() if one.exact and there[one.needs]}
    config = _config(
        table,
        settings,
        arm,
        attacks=(*adaptive.attacks, *(attack for one in kinds.values() if one.evades for attack in one.attacks)),
        threats=tuple(kinds),
        eps=table.eps,
        limit=n,
        adaptive_limit=n,
        draws=adaptive.draws_of(arm.name),
        checks="basic",
        options=dict(arm.options),
    )
    made = {*(config.attacks or ()), *counter_attacks(config, plugins)}  # options of others would be refused
    own = {name: dict(values) for name, values in adaptive.options.items() if name in made}
    config = attrs.evolve(config, options={**config.options, **own})
    return Job(arm, (), table.eps, _place(settings, config))


def _config(table: Table, settings: MeasureSettings, arm: TableArm, **values: Any) -> RunConfig:
    return RunConfig(
        victim=arm.victim or table.victim,
        dataset=table.dataset,
        purifier=arm.purifier,
        detector=arm.detector,
        finetune=arm.finetune,
        weights=dict(arm.weights),
        sources=(arm.source,) if arm.source else NO_SOURCES,
        seed=settings.seed,
        device=settings.device,
        data_dir=settings.data_dir,
        batch_size=settings.batch_size,
        train_missing=settings.train_missing,
        **values,
    )


def _place(settings: MeasureSettings, config: RunConfig) -> RunConfig:
    """Give a run its folder: named after what it is, and after a hash of the rest."""
    what = attrs.evolve(config, data_dir=None, device="auto", batch_size=64, train_missing=False)  # decide nothing
    digest = hashlib.sha256(to_toml(what).encode()).hexdigest()[:8]
    parts = (config.dataset, config.victim, config.purifier, config.detector, config.finetune, *(config.threats or ()))
    words = "-".join(part for part in (*parts, f"{config.eps:.3g}") if part)
    return attrs.evolve(config, out=str(settings.out / f"{re.sub(r'[^a-z0-9._]+', '-', words.lower())}-{digest}"))


def describe_job(job: Job) -> str:
    """Say in a line what a run is of."""
    config = job.config
    what = ", ".join(job.attacks) or f"adaptive ({', '.join(config.attacks or ())})"
    return f"{job.arm.name}: {what}; eps {job.eps:.3g}, {config.limit} images"
