"""Who attacks, knowing what: each threat says which part of the system its attacker differentiates.

A threat is one entry in `THREATS`; later ones (transfer, query, bpda, detector-aware) join it here.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from defend.errors import ConfigError, did_you_mean

UNDEFENDED, DEFENDED = "undefended", "defended"


@attrs.frozen
class ThreatKind:
    """One threat model.

    Attributes:
        summary: what the attacker knows.
        attacked: the arm that the attacker sees, "undefended" or "defended".
        expensive: whether a quick run uses fewer images and steps.
    """

    summary: str
    attacked: str
    expensive: bool = False


THREATS: Mapping[str, ThreatKind] = {
    "noise": ThreatKind("random noise, no knowledge", UNDEFENDED),
    "oblivious": ThreatKind("the victim's gradient; unaware of the defence", UNDEFENDED),
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
