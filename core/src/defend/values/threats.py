"""Who attacks, knowing what: the rungs of the threat ladder, from random noise to an attacker who knows everything.

A threat is one entry in `THREATS`, weakest first. It says in words what its attacker faces and knows; `evaluation.arms`
and `evaluation.plan` carry that out, and checks and figures ask the entry, never for a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from defend.errors import ConfigError, did_you_mean
from defend.values.run_config import LADDER, RunConfig


@attrs.frozen
class Threat:
    """Who attacks, knowing what, within which budget.

    `eps` is None for an attack that minimises the distance instead of keeping to a budget.
    """

    kind: str
    norm: str
    eps: float | None


UNDEFENDED, DEFENDED = "undefended", "defended"
TUNED, UNTUNED = "tuned", "untuned"
"""The arms of a run: the bare victim; the whole defence; and where a fine-tuner is part of it, the tuned victim
without the purifier, and the purifier before the victim as it was."""
BEFORE_TUNING = "before tuning"
KNOWN_DRAWS, ONE_DRAW = "draws known", "one draw a step"
"""Variants of the adaptive threat against a random defence: the attacker knows the draws that the judge will make, so
the row is no part of the worst case; or averages over none, and takes as many more steps."""
NO_SOURCES = ("none",)  # what a run names that wants no transfer from other victims
IDENTITY = "identity"
RATES = (0.01, 0.05)  # false-positive rates at which detectors are compared


Faces = Literal["bare", "victim", "sources", "surrogates", "defence"]
Knows = Literal["nothing", "answers", "gradient", "unknown"]


@attrs.frozen(kw_only=True)
class ThreatKind:
    """One threat model: all that the rest of the host asks of it, so that adding one is adding its entry.

    Attributes:
        summary: what the attacker knows.
        faces: what it attacks: the "bare" victim as it was before any tuning, the "victim" that judges (tuned where
            there is a fine-tuner), other victims as "sources" of a transfer, the defence with "surrogates" of its
            purifier backwards, or the whole "defence".
        knows: what of that it looks at. Who knows nothing is no attacker: checks expect nothing of it. "unknown" is of
            images whose maker is.
        attacks: what carries it out where no attacks were named.
        more: what a thorough run adds to these.
        needs: what it makes sense for: "" for anything, or one of these parts.
        suits: which of an attack's declared threats it takes to run under this one; its own name if empty.
        evades: what of a detector it works against: the "verdict", as being accepted is part of its aim, or the
            "score", which it wants below every threshold; "" if it takes no notice. Checks judge the classifier alone
            where being accepted is an aim.
        counters: whether the attacks that a stage names against itself belong to it.
        carries: whether images that are fooled at one budget of a sweep are taken over to the next larger one.
        options: options of attacks that every run sets under this threat, by attack; `--set` wins, and with a step
            size of the user's own the schedule of the steps is left alone.
        thorough: the same for a thorough run, beside these.
        quick: whether it is part of a run that names no threats.
        expensive: whether a quick run uses fewer images and steps.
        alone: the threat whose attacks a ladder takes beside its own where there is no defence: nothing is hidden from
            its attacker then, so nothing weaker may stand for one who knows everything.
    """

    summary: str
    faces: Faces
    knows: Knows = "gradient"
    attacks: tuple[str, ...]
    more: tuple[str, ...] = ()
    needs: Literal["", "purifier", "detector", "defence"] = ""
    suits: str = ""
    evades: Literal["", "verdict", "score"] = ""
    counters: bool = False
    carries: bool = False
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    thorough: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    quick: bool = False
    expensive: bool = False
    alone: str = ""

    @property
    def whole(self) -> bool:
        """Whether it attacks the whole defence: what the bare victim says of its images means little.

        Others are unaware of it. Their success on something else than what judges decides nothing, so they take all
        their steps: who stops at the first success on a bare victim leaves a purifier the least there is to remove.
        """
        return self.faces in ("surrogates", "defence")

    @property
    def informed(self) -> bool:
        """Whether its attacker differentiates the defence, exactly or not: the white-box rows."""
        return self.whole and self.knows == "gradient"

    @property
    def exact(self) -> bool:
        """Whether its attacker differentiates the defence as it is."""
        return self.faces == "defence" and self.knows == "gradient"

    @property
    def differentiates_the_victim(self) -> bool:
        """Whether its attacker differentiates the victim that judges, alone or within its defence."""
        return self.informed or (self.faces == "victim" and self.knows == "gradient")


NOISE, USUAL = "noise", "oblivious"
"""Who is there in a run that wants clean images alone; and what a paper's attacker knows where nothing else is said,
which is also who attacks in place of one whose defence is missing."""
THROUGH_A_PURIFIER = {name: {"schedule": "linear"} for name in ("pgd", "pgd_l2")}
"""Steps that fall from eps to nothing leave less of a purifier than constant ones (benchmarks/README.md)."""
FEW_TARGETS = {"targets": 3}
"""Classes in the order `malt`: as many reach what nine by rank do (benchmarks/README.md)."""
THREATS: Mapping[str, ThreatKind] = {
    "noise": ThreatKind(
        summary="random noise, no knowledge", faces="bare", knows="nothing", attacks=("noise",), quick=True
    ),
    "transfer": ThreatKind(
        summary="the gradient of another victim, trained independently; also behind a copy of the defence",
        faces="sources",
        attacks=("pgd",),
        more=("mi_fgsm", "vmi_fgsm"),
        suits="oblivious",
        quick=True,
    ),
    "oblivious": ThreatKind(
        summary="the (tuned) victim's gradient; unaware of purifier and detector",
        faces="victim",
        attacks=("fgsm", "pgd"),
        quick=True,
        alone="adaptive",
    ),
    "query": ThreatKind(
        summary="the answers of the whole pipeline, rejections included; no gradient",
        faces="defence",
        knows="answers",
        attacks=("square", "square_l2"),
        more=("hsj", "hsj_l2"),
        evades="verdict",
        carries=True,
        expensive=True,
    ),
    "bpda": ThreatKind(
        summary="the defence forwards; backwards the identity or a surrogate (Athalye et al. 2018)",
        faces="surrogates",
        attacks=("pgd",),
        needs="purifier",
        suits="oblivious",
        carries=True,
        options=THROUGH_A_PURIFIER,
        thorough={"pgd": {"steps": 100}},
        expensive=True,
    ),
    "adaptive": ThreatKind(
        summary="the exact gradient through the whole defence, averaged over its draws",
        faces="defence",
        attacks=("pgd", "apgd_ce", "apgd_dlr", "apgd_ce_l2", "apgd_dlr_l2"),
        more=("apgd_t", "apgd_t_l2", "fmn", "fmn_l2"),
        needs="defence",
        counters=True,
        carries=True,
        options=THROUGH_A_PURIFIER,
        thorough={"pgd": {"steps": 100, "restarts": 5}, "apgd_t": FEW_TARGETS, "apgd_t_l2": FEW_TARGETS},
        quick=True,
        expensive=True,
    ),
    "detector-aware": ThreatKind(
        summary="the exact gradient of victim and detector: accepted and misclassified",
        faces="defence",
        attacks=("pgd_joint", "pgd_selective", "pgd_orthogonal"),
        needs="detector",
        evades="score",
        expensive=True,
    ),
    "given": ThreatKind(
        summary="unknown: images that somebody else made, from a file (--attack file:adv.npz)",
        faces="bare",
        knows="unknown",
        attacks=(),
        quick=True,
    ),
}


def knows_the_defence(name: str) -> bool:
    """Whether rows of a threat are made against the whole defence; clean rows and what is not listed are not."""
    return name in THREATS and THREATS[name].whole


def is_harmless(name: str) -> bool:
    """Whether rows of a threat have no attacker: clean ones, and those of one who knows nothing."""
    return name == "none" or (name in THREATS and THREATS[name].knows == "nothing")


def is_unknown(name: str) -> bool:
    """Whether nobody knows what made the rows of a threat: images from a file, and what is not listed."""
    return name != "none" and (name not in THREATS or THREATS[name].knows == "unknown")


def rank(name: str) -> int:
    """Return a threat's place in `THREATS`, from 0; clean rows stand before all, and what is not listed after."""
    return -1 if name == "none" else (*THREATS, name).index(name)


def threat(name: str) -> ThreatKind:
    """Look a threat up.

    Raises:
        ConfigError: an unknown one; the nearest is offered.
    """
    if name not in THREATS:
        raise ConfigError(f"unknown threat {name!r}: {did_you_mean(name, [*THREATS, LADDER])}")
    return THREATS[name]


def choose_threats(config: RunConfig) -> tuple[str, ...]:
    """Return the threats that a config asks for, weakest first; those that do not fit its defence are still in it.

    Raises:
        ConfigError: an unknown one.
    """
    quick = [kind for kind, one in THREATS.items() if one.quick]
    named: Sequence[str] = config.threats or ((LADDER,) if config.thorough else quick)
    for name in named:
        if name != LADDER:
            threat(name)
    return tuple(THREATS) if LADDER in named else tuple(kind for kind in THREATS if kind in named)


def find_stronger(kind: str, config: RunConfig, bare: bool) -> ThreatKind | None:
    """Return the threat whose attacks `kind` takes beside its own, see `ThreatKind.alone`; None where it takes none.

    Args:
        kind: the threat.
        config: of the run.
        bare: whether what is attacked is a victim without a defence.
    """
    climbed = config.thorough or LADDER in (config.threats or ())
    return THREATS.get(THREATS[kind].alone) if climbed and bare else None


def find_insisted(config: RunConfig) -> tuple[str, ...]:
    """Return the threats that a config names itself: where one does not fit, that is an error."""
    return tuple(kind for kind in config.threats or () if kind != LADDER)
