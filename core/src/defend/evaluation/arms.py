"""A config's parts to arms: what is built, what judges, and what each threat's attacker sees of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from defend.assembly.calibrate import (
    DEFAULT_FPR,
    calibrate,
    clean_scores,
    describe_parts,
    find_kept,
    is_calibrated,
    say_behind,
    set_threshold,
    thresholds_at,
)
from defend.assembly.composition import Composition
from defend.assembly.load import transfer_sources
from defend.assembly.prepare import LEFT_OUT, prepare
from defend.assembly.stage import Built
from defend.boundary.answers import threshold_of
from defend.datasets.base import ImageDataset
from defend.defence import Defence
from defend.evaluation.agreement import check_alike, check_modules
from defend.evaluation.averaged import Averaged
from defend.evaluation.bpda import BackwardThrough, surrogates_of
from defend.evaluation.plan import ArmNames
from defend.plugins import Registry
from defend.records.watcher import Watcher
from defend.training.missing import train_missing
from defend.util.processes import Processes
from defend.values.report import Calibration
from defend.values.run_config import RunConfig
from defend.values.threats import (
    BEFORE_TUNING,
    DEFENDED,
    NO_SOURCES,
    RATES,
    THREATS,
    TUNED,
    UNDEFENDED,
    UNTUNED,
    Faces,
    choose_threats,
)

SAMPLE = 2  # held-out images that faster forms are tried on, alone, together, and one more
AVERAGED = " + "  # between the sources of a variant that averages them


@attrs.frozen
class BuiltDefence:
    """One defence, ready: what was built, its arms by their names in the run, and how they were prepared.

    `sources` are the victims of the transfer threat, as "source NAME"; `behind` and `parts` the purifiers before the
    detector, and what it and they are like, as `Calibration` has them.
    """

    names: ArmNames
    built: Mapping[str, Built]
    sources: Mapping[str, Built]
    arms: Mapping[str, Defence]
    parameters: int
    precision: Mapping[str, str]
    calibration: Calibration | None
    behind: str | None
    parts: Mapping[str, Mapping[str, Any]]
    thresholds: Mapping[float, float]
    left_out: Mapping[str, str]


def build_all(
    configs: Sequence[RunConfig],
    compositions: Sequence[Composition],
    dataset: ImageDataset,
    watcher: Watcher,
    device: torch.device,
    processes: Processes,
) -> list[BuiltDefence]:
    """Build every defence; the bare victim, which they share, once.

    Each process builds its own, and thresholds are those of process 0.

    Raises:
        ConfigError: the processes have different weights, or prepared them differently.
        DefendError: whatever else is wrong with a part.
    """
    config, task = configs[0], dataset.task()
    precision, plugins = config.precision, compositions[0].plugins
    # held out, so that no test image decides how the defence is prepared
    sample, _ = dataset.tensors("val", limit=SAMPLE)
    sample = sample.to(device)
    if config.train_missing:
        train_missing(compositions[0].of_victim(), dataset, watcher, seed=config.seed, device=config.device)
    watcher.preparing("building the defence")
    victim = compositions[0].of_victim().build(task)["victim"]
    bare, done = prepare(Defence(victim.module).to(device), precision, sample)
    others = _sources(config, dataset, plugins, watcher, device, processes)
    sources = {name: each.module for name, each in others.items()}
    check_modules(processes, {"victim": victim.module, **{f"source {name}": one for name, one in sources.items()}})
    ready = []
    for each, composition in zip(configs, compositions, strict=True):
        label = f"{each.purifier}: " if len(configs) > 1 else ""
        if config.train_missing:
            train_missing(composition, dataset, watcher, seed=each.seed, device=each.device)
        parts = composition.build(task, victim)
        check_modules(processes, {name: one.module for name, one in parts.items()})
        whole = composition.compose(parts)
        screen = whole.to(device).detector
        calibration = None if screen is None else find_kept(parts["detector"].card, screen)
        made_of = {} if calibration is None else describe_parts(composition, parts)
        if screen is not None and (each.fpr is not None or not is_calibrated(screen)):
            watcher.preparing(f"calibrating {each.detector}")
            calibration = _calibrate(whole, dataset, each, device, processes)
        # without the victim: it is prepared once, above or below, and shared by the arms
        behind, behind_done = prepare(Defence(nn.Identity(), whole.purifier, whole.detector), precision, sample)
        # where there is nothing but a victim, the bare one is judged as the defended arm too
        names, arms = {UNDEFENDED: UNDEFENDED, DEFENDED: UNDEFENDED}, {UNDEFENDED: bare}
        last = bare.victim
        if each.finetune is not None:
            tuned, _ = prepare(Defence(whole.victim), precision, sample)
            last = tuned.victim
            names |= {TUNED: label + TUNED, UNTUNED: label + UNTUNED}
            arms |= {names[TUNED]: tuned, names[UNTUNED]: Defence(bare.victim, behind.purifier, behind.detector)}
        if len(parts) > 1:
            names[DEFENDED] = label + DEFENDED
            arms[names[DEFENDED]] = Defence(last, behind.purifier, behind.detector)
        faced, attackable, left_out = _faced(each, label, names, arms, sources)
        thresholds: dict[float, float] = {}
        aim = None
        judge = arms[names[DEFENDED]]
        if judge.detector is not None:
            watcher.preparing(f"scoring held-out clean images with {each.detector}")
            thresholds = _find_thresholds(judge, dataset, each, device, processes)
            # below the lowest, an image is accepted at every rate that the report compares
            aim = min([float(threshold_of(judge.detector)), *thresholds.values()])
        # by identity, as a purifier and a detector may share a network
        everything = {id(p): p.numel() for p in whole.parameters()}
        added = sum(everything.values()) - sum(p.numel() for p in whole.victim.parameters())
        cheap = {f"source {name}" for name in (*sources, AVERAGED.join(sources))}
        armed = ArmNames(each, names, faced, aim, frozenset(attackable) - cheap, judge.random)
        precisions = done | {stage: how for stage, how in behind_done.items() if stage in ("purifier", "detector")}
        words = dict.fromkeys(each[LEFT_OUT] for each in (done, behind_done) if LEFT_OUT in each)
        precisions |= {LEFT_OUT: "; ".join(words)} if words else {}
        check_alike(processes, {f"form of the {stage}": how for stage, how in precisions.items() if stage != LEFT_OUT})
        ready.append(
            BuiltDefence(
                names=armed,
                built=parts,
                sources={f"source {name}": each for name, each in others.items()},
                arms=arms | attackable,
                parameters=added,
                precision=precisions,
                calibration=calibration,
                behind=say_behind(whole),
                parts=made_of,
                thresholds=thresholds,
                left_out=left_out,
            )
        )
    return ready


def _calibrate(
    whole: Defence, dataset: ImageDataset, config: RunConfig, device: torch.device, processes: Processes
) -> Calibration:
    """Calibrate the detector; process 0 scores for all, as another one's device may round a score differently."""
    assert whole.detector is not None
    fpr, size, seed = config.fpr or DEFAULT_FPR, config.batch_size, config.seed
    found = processes.do_first(
        lambda: calibrate(whole, dataset, fpr, device=device, batch_size=size, seed=seed), "its calibration"
    )
    if not processes.first:
        set_threshold(whole.detector, found.threshold)
    return found


def _find_thresholds(
    judge: Defence, dataset: ImageDataset, config: RunConfig, device: torch.device, processes: Processes
) -> dict[float, float]:
    """Return the thresholds of all rates that the report compares; process 0 scores for all."""
    size, seed = config.batch_size, config.seed
    return processes.do_first(
        lambda: thresholds_at(clean_scores(judge, dataset, device=device, batch_size=size, seed=seed), RATES),
        "its thresholds",
    )


def _sources(
    config: RunConfig,
    dataset: ImageDataset,
    plugins: Registry,
    watcher: Watcher,
    device: torch.device,
    processes: Processes,
) -> dict[str, Built]:
    """Build the victims whose gradients the transfer threat takes, frozen, by name."""
    wanted = any(THREATS[kind].faces == "sources" for kind in choose_threats(config))
    if not wanted or config.sources == NO_SOURCES:
        return {}
    # a quick run that named no threats takes only the sources that were named
    asked = config.threats is not None or config.thorough
    names = config.sources or (
        transfer_sources(plugins.find("victim", config.victim).name, dataset.filed_as, plugins) if asked else ()
    )
    names = processes.tell(names, "its sources")  # those that have weights, which each looks for itself
    found = {}
    for name in names:
        other = Composition.of(name, plugins=plugins)
        if not config.sources and other.parts[0].pretrained:  # it was found by its weights here
            other = Composition.of(name, options={"victim": {"pretrained": False}}, plugins=plugins)
        if config.train_missing:
            train_missing(other, dataset, watcher, seed=config.seed, device=config.device)
        found[name] = other.build(dataset.task())["victim"]
        found[name].module.to(device).requires_grad_(False)
    return found


def _faced(
    config: RunConfig,
    label: str,
    names: Mapping[str, str],
    arms: Mapping[str, Defence],
    sources: Mapping[str, nn.Module],
) -> tuple[dict[str, dict[str, str]], dict[str, Defence], dict[str, str]]:
    """Return what the attackers of each threat see, the arms made for them alone, and the threats that do not fit."""
    whole, threats = arms[names[DEFENDED]], {kind: THREATS[kind] for kind in choose_threats(config)}
    made: dict[str, Defence] = {}
    through = {BEFORE_TUNING: UNDEFENDED} if TUNED in names else {}
    for place, (name, module) in enumerate(sources.items()):
        through[name] = f"source {name}"
        made[through[name]] = Defence(module)
        if place == 0 and whole.purifier is not None:
            behind = f"{name} behind the defence"
            through[behind] = f"{label}source {behind}"
            made[through[behind]] = Defence(module, whole.purifier)
    # one row an attack more, so not in a quick run that named nothing but its sources
    if len(sources) > 1 and (config.threats is not None or config.thorough):
        together = AVERAGED.join(sources)
        through[together] = f"source {together}"
        made[through[together]] = Defence(Averaged(sources.values()))
    backwards = {}
    if whole.purifier is not None and any(one.faces == "surrogates" for one in threats.values()):
        for variant, surrogate in surrogates_of(whole.purifier).items():
            backwards[variant] = f"{label}bpda {variant}"
            made[backwards[variant]] = Defence(whole.victim, BackwardThrough(whole.purifier, surrogate), whole.detector)
    ways: dict[Faces, dict[str, str]] = {
        "bare": {"": UNDEFENDED},
        "victim": {"": names.get(TUNED, UNDEFENDED)},
        "sources": through,
        "surrogates": backwards,
        "defence": {"": names[DEFENDED]},
    }
    there = {
        "": True,
        "purifier": whole.purifier is not None,
        "detector": whole.detector is not None,
        "defence": names[DEFENDED] != UNDEFENDED,
    }
    faced = {kind: ways[one.faces] if there[one.needs] else {} for kind, one in threats.items()}
    left_out = {}
    for kind, one in threats.items():
        if not there[one.needs]:
            left_out[kind] = f"there is no {one.needs}"
        # a quick run takes no other victims as sources, so their lack is no news there
        elif not faced[kind] and (config.threats or config.thorough):
            left_out[kind] = f"no other victim has weights for {config.dataset} (--source)"
    return faced, made, left_out
