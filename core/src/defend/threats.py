"""Who attacks, knowing what: each threat says which part of the system its attacker differentiates.

A threat is one entry in `THREATS`; later ones (transfer, query, bpda, detector-aware) join it here.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from defend.errors import ConfigError, did_you_mean

UNDEFENDED, DEFENDED = "undefended", "defended"
TUNED, UNTUNED = "tuned", "untuned"
"""The arms of a run: the bare victim; the whole defence; and where a fine-tuner is part of it, the tuned victim
without the purifier, and the purifier before the victim as it was."""


@attrs.frozen
class ThreatKind:
    """One threat model.

    Attributes:
        summary: what the attacker knows.
        attacked: the arm that the attacker sees; `TUNED` is the bare victim where nothing was tuned.
        expensive: whether a quick run uses fewer images and steps.
        suits: which of an attack's declared threats it takes to run under this one; its own name if empty.
        tuned_only: whether it makes sense for a fine-tuned victim alone.
    """

    summary: str
    attacked: str
    expensive: bool = False
    suits: str = ""
    tuned_only: bool = False


THREATS: Mapping[str, ThreatKind] = {
    "noise": ThreatKind("random noise, no knowledge", UNDEFENDED),
    "transfer": ThreatKind(
        "the gradient of the victim before it was fine-tuned", UNDEFENDED, suits="oblivious", tuned_only=True
    ),
    "oblivious": ThreatKind("the (tuned) victim's gradient; unaware of purifier and detector", TUNED),
    "adaptive": ThreatKind("the exact gradient through the whole defence", DEFENDED, expensive=True),
}


def threat(name: str) -> ThreatKind:
    """Look a threat up.

    Raises:
        ConfigError: an unknown one; the nearest is offered.
    """
    if name not in THREATS:
        raise ConfigError(f"unknown threat {name!r}: {did_you_mean(name, THREATS)}")
    return THREATS[name]
