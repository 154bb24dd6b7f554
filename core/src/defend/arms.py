"""A config's parts to arms: what is built, what judges, and what each threat's attacker sees of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from defend.bpda import BackwardThrough, surrogates_of
from defend.build import (
    Built,
    build_parts,
    build_stage,
    compose,
    needs_weights,
    purifier_options,
    transfer_sources,
)
from defend.calibrate import DEFAULT_FPR, calibrate, clean_scores, is_calibrated, thresholds_at
from defend.datasets.base import ImageDataset
from defend.defence import Defence
from defend.editions import edition_of, is_file, tuned_behind
from defend.plan import ArmSet
from defend.plugins import Registry
from defend.speed import LEFT_OUT, prepare
from defend.stages import Stage
from defend.threats import (
    BEFORE_TUNING,
    DEFENDED,
    DETECTOR_AWARE,
    NO_SOURCES,
    RATES,
    THREATS,
    TUNED,
    UNDEFENDED,
    UNTUNED,
    chosen,
)
from defend.train_stage import train_stage
from defend.values import Calibration, RunConfig
from defend.watcher import Watcher
from defend.weights import locate, tuned_name

SAMPLE = 4


@attrs.frozen
class Arms:
    """One defence, ready: what was built, its arms by their names in the run, and how they were prepared."""

    names: ArmSet
    built: Mapping[str, Built]
    arms: Mapping[str, Defence]
    parameters: int
    precision: Mapping[str, str]
    calibration: Calibration | None
    thresholds: Mapping[float, float]
    left_out: Mapping[str, str]


def build_all(
    configs: Sequence[RunConfig],
    dataset: ImageDataset,
    plugins: Registry,
    watcher: Watcher,
    device: torch.device,
    precision: str,
) -> list[Arms]:
    """Build every defence; the bare victim, which they share, once."""
    config, task = configs[0], dataset.task()
    sample, _ = dataset.tensors("val", limit=SAMPLE)
    sample = sample.to(device)
    _train_missing("victim", config.victim, config, dataset, plugins, watcher)
    watcher.preparing("building the defence")
    victim = build_stage(
        "victim", config.victim, task, config.options.get("victim"), config.weights.get("victim"), plugins
    )
    bare, done = prepare(Defence(victim.module).to(device), precision, sample)
    sources = _sources(config, dataset, plugins, watcher, device)
    ready = []
    for each in configs:
        label = f"{each.purifier}: " if len(configs) > 1 else ""
        parts, whole = _build(each, victim, dataset, plugins, watcher)
        calibration = None
        screen = whole.to(device).detector
        if screen is not None and (each.fpr is not None or not is_calibrated(screen)):
            watcher.preparing(f"calibrating {each.detector}")
            calibration = calibrate(
                whole, dataset, each.fpr or DEFAULT_FPR, device=device, batch_size=each.batch_size, seed=each.seed
            )
        behind, behind_done = prepare(Defence(nn.Identity(), whole.purifier, whole.detector), precision, sample)
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
        if DETECTOR_AWARE in faced and judge.detector is not None:
            watcher.preparing(f"scoring held-out clean images with {each.detector}")
            scores = clean_scores(judge, dataset, device=device, batch_size=each.batch_size, seed=each.seed)
            thresholds = thresholds_at(scores, RATES)
            own: Any = judge.detector.threshold
            aim = min([float(own), *thresholds.values()])
        everything = {id(p): p.numel() for p in whole.parameters()}
        added = sum(everything.values()) - sum(p.numel() for p in whole.victim.parameters())
        armed = ArmSet(each, names, faced, aim, frozenset(attackable) - {f"source {name}" for name in sources})
        precisions = done | {stage: how for stage, how in behind_done.items() if stage in ("purifier", "detector")}
        words = dict.fromkeys(each[LEFT_OUT] for each in (done, behind_done) if LEFT_OUT in each)
        precisions |= {LEFT_OUT: "; ".join(words)} if words else {}
        ready.append(Arms(armed, parts, arms | attackable, added, precisions, calibration, thresholds, left_out))
    return ready


def _sources(
    config: RunConfig, dataset: ImageDataset, plugins: Registry, watcher: Watcher, device: torch.device
) -> dict[str, nn.Module]:
    """Build the victims whose gradients the transfer threat takes, frozen, by name."""
    if "transfer" not in chosen(config) or config.sources == NO_SOURCES:
        return {}
    asked = config.threats is not None or config.thorough
    names = config.sources or (
        transfer_sources(plugins.find("victim", config.victim).name, dataset.filed_as, plugins) if asked else ()
    )
    found = {}
    for name in names:
        _train_missing("victim", name, config, dataset, plugins, watcher)
        module = build_stage("victim", name, dataset.task(), None, None, plugins).module
        found[name] = module.to(device).requires_grad_(False)
    return found


def _faced(
    config: RunConfig,
    label: str,
    names: Mapping[str, str],
    arms: Mapping[str, Defence],
    sources: Mapping[str, nn.Module],
) -> tuple[dict[str, dict[str, str]], dict[str, Defence], dict[str, str]]:
    """Return what the attackers of each threat see, the arms made for them alone, and the threats that do not fit."""
    whole = arms[names[DEFENDED]]
    made: dict[str, Defence] = {}
    transfer = {BEFORE_TUNING: UNDEFENDED} if TUNED in names else {}
    for place, (name, module) in enumerate(sources.items()):
        transfer[name] = f"source {name}"
        made[transfer[name]] = Defence(module)
        if place == 0 and whole.purifier is not None:
            behind = f"{name} behind the defence"
            transfer[behind] = f"{label}source {behind}"
            made[transfer[behind]] = Defence(module, whole.purifier)
    bpda = {}
    if whole.purifier is not None and "bpda" in chosen(config):
        for variant, surrogate in surrogates_of(whole.purifier).items():
            bpda[variant] = f"{label}bpda {variant}"
            made[bpda[variant]] = Defence(whole.victim, BackwardThrough(whole.purifier, surrogate), whole.detector)
    everything = {
        "noise": {"": UNDEFENDED},
        "transfer": transfer,
        "oblivious": {"": names.get(TUNED, UNDEFENDED)},
        "query": {"": names[DEFENDED]},
        "bpda": bpda,
        "adaptive": {} if names[DEFENDED] == UNDEFENDED else {"": names[DEFENDED]},
        DETECTOR_AWARE: {} if whole.detector is None else {"": names[DEFENDED]},
    }
    left_out = {}
    for kind in chosen(config):
        needs = THREATS[kind].needs
        if not everything[kind] and (needs or config.threats or config.thorough):
            why = f"there is no {needs}" if needs else f"no other victim has weights for {config.dataset} (--source)"
            left_out[kind] = why
    return everything, made, left_out


def _build(
    config: RunConfig, victim: Built, dataset: ImageDataset, plugins: Registry, watcher: Watcher
) -> tuple[dict[str, Built], Defence]:
    """Build one defence around a victim; return its parts by name, and the whole."""
    for name in config.purifiers:
        _train_missing("purifier", name, config, dataset, plugins, watcher)
    if config.finetune is not None:
        _train_missing("finetuner", config.finetune, config, dataset, plugins, watcher)
    if config.detector is not None:
        _train_missing("detector", config.detector, config, dataset, plugins, watcher)
    parts = build_parts(
        config.victim, dataset.task(), config.purifier, config.detector, finetune=config.finetune,
        options=config.options, weights=config.weights, bare=victim, found_in=plugins,
    )  # fmt: skip
    return parts, compose(parts, config.purifier)


def _train_missing(
    stage: Stage, name: str, config: RunConfig, dataset: ImageDataset, plugins: Registry, watcher: Watcher
) -> None:
    """Train a stage that has no weights yet, if the config allows it."""
    found = plugins.find(stage, name)
    options: Mapping[str, Any] = config.options.get(stage, {})
    if stage == "purifier":
        options = purifier_options(config.options, name)
    elif found.spec.weights_of:
        options = {}  # these are the detector's own; its network is another stage's
    given = config.weights.get(stage) or config.weights.get(name)
    behind, edition = tuned_behind(config.purifier, given), edition_of(given)
    filed_as = tuned_name(found.name, config.victim, behind) if stage == "finetuner" else None
    if not config.train_missing or is_file(given) or not needs_weights(found, found.config(options)):
        return
    if locate(found, dataset.filed_as, given, filed_as) is not None:
        return
    with watcher.training(f"training {stage} {name} on {config.dataset}") as progress:
        train_stage(
            found.spec.weights_of or stage,
            name,
            dataset,
            victim=config.victim if stage == "finetuner" else None,
            purifier=behind if stage == "finetuner" else None,
            parts={"options": config.options, "weights": config.weights},
            options=options,
            edition=edition,
            seed=config.seed,
            device=config.device,
            found_in=plugins,
            progress=progress,
        )
