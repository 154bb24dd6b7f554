"""Who attacks, knowing what: the rungs of the threat ladder, from random noise to an attacker who knows everything.

A threat is one entry in `THREATS`, weakest first: it says which part of the system its attacker differentiates, which
attacks carry it out where none are named, and with which options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from defend.errors import ConfigError, did_you_mean
from defend.values import LADDER, QUICK_THREATS, RunConfig

UNDEFENDED, DEFENDED = "undefended", "defended"
TUNED, UNTUNED = "tuned", "untuned"
"""The arms of a run: the bare victim; the whole defence; and where a fine-tuner is part of it, the tuned victim
without the purifier, and the purifier before the victim as it was."""

BEFORE_TUNING = "before tuning"
NO_SOURCES = ("none",)  # what a run names that wants no transfer from other victims
IDENTITY = "identity"
DETECTOR_AWARE = "detector-aware"
RATES = (0.01, 0.05)  # false-positive rates at which detectors are compared


@attrs.frozen(kw_only=True)
class ThreatKind:
    """One threat model.

    Attributes:
        summary: what the attacker knows.
        attacked: the arm that the attacker sees; `TUNED` is the bare victim where nothing was tuned. None where it
            sees something else: another victim, or the defence with another backward pass.
        needs: what it makes sense for: "" for anything, or a "purifier", "detector" or "defence".
        suits: which of an attack's declared threats it takes to run under this one; its own name if empty.
        attacks: what carries it out where no attacks were named.
        options: options of attacks that every run sets under this threat, by attack; `--set` wins, and with a step
            size of the user's own the schedule of the steps is left alone.
        thorough: the same for a thorough run, beside these.
        expensive: whether a quick run uses fewer images and steps.
        unaware: whether the attacker sees something else than what judges its images. Success there decides nothing,
            so an attack takes all its steps where the two differ: one that stops at the first success on a bare
            victim leaves a purifier the least there is to remove.
    """

    summary: str
    attacked: str | None
    attacks: tuple[str, ...]
    needs: str = ""
    suits: str = ""
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    thorough: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    expensive: bool = False
    unaware: bool = False


THROUGH_A_PURIFIER = {"pgd": {"schedule": "linear"}}
"""Steps that fall from eps to nothing leave less of a purifier than constant ones (benchmarks/README.md)."""

THREATS: Mapping[str, ThreatKind] = {
    "noise": ThreatKind(summary="random noise, no knowledge", attacked=UNDEFENDED, attacks=("noise",)),
    "transfer": ThreatKind(
        summary="the gradient of another victim, trained independently; also behind a copy of the defence",
        attacked=None,
        attacks=("pgd",),
        suits="oblivious",
        unaware=True,
    ),
    "oblivious": ThreatKind(
        summary="the (tuned) victim's gradient; unaware of purifier and detector",
        attacked=TUNED,
        attacks=("fgsm", "pgd"),
        unaware=True,
    ),
    "query": ThreatKind(
        summary="the answers of the whole pipeline, rejections included; no gradient",
        attacked=DEFENDED,
        attacks=("square", "square_l2"),
        expensive=True,
    ),
    "bpda": ThreatKind(
        summary="the defence forwards; backwards the identity or a surrogate (Athalye et al. 2018)",
        attacked=None,
        attacks=("pgd",),
        needs="purifier",
        suits="oblivious",
        options=THROUGH_A_PURIFIER,
        thorough={"pgd": {"steps": 100}},
        expensive=True,
    ),
    "adaptive": ThreatKind(
        summary="the exact gradient through the whole defence, averaged over its draws",
        attacked=DEFENDED,
        attacks=("pgd", "apgd_ce", "apgd_dlr", "apgd_ce_l2", "apgd_dlr_l2"),
        needs="defence",
        options=THROUGH_A_PURIFIER,
        thorough={"pgd": {"steps": 100, "restarts": 5}},
        expensive=True,
    ),
    DETECTOR_AWARE: ThreatKind(
        summary="the exact gradient of victim and detector: accepted and misclassified",
        attacked=DEFENDED,
        attacks=("pgd_joint", "pgd_selective", "pgd_orthogonal"),
        needs="detector",
        expensive=True,
    ),
}


WHOLE = tuple(kind for kind, one in THREATS.items() if one.attacked == DEFENDED or one.needs)
"""The threats that attack the whole defence: what the bare victim says of their images means little."""


def threat(name: str) -> ThreatKind:
    """Look a threat up.

    Raises:
        ConfigError: an unknown one; the nearest is offered.
    """
    if name not in THREATS:
        raise ConfigError(f"unknown threat {name!r}: {did_you_mean(name, [*THREATS, LADDER])}")
    return THREATS[name]


def chosen(config: RunConfig) -> tuple[str, ...]:
    """Return the threats that a config asks for, weakest first; those that do not fit its defence are still in it.

    Raises:
        ConfigError: an unknown one.
    """
    named: Sequence[str] = config.threats or ((LADDER,) if config.thorough else QUICK_THREATS)
    for name in named:
        if name != LADDER:
            threat(name)
    return tuple(THREATS) if LADDER in named else tuple(kind for kind in THREATS if kind in named)


def insisted(config: RunConfig) -> tuple[str, ...]:
    """Return the threats that a config names itself: where one does not fit, that is an error."""
    return tuple(kind for kind in config.threats or () if kind != LADDER)
