"""The leaderboard of several runs."""

from __future__ import annotations

from collections.abc import Sequence

from defend.report.figures.ladder import Bar, Group, bars
from defend.report.figures.scene import Scene
from defend.report.leaderboard import Place


def board(places: Sequence[Place], name: str, narrow: bool = False) -> Scene | None:
    """Return a bar a run, best first, hollow where it has no rank; None where no runs can be compared."""
    if not any(place.rank for place in places):
        return None
    groups = [
        Group(
            name=f"{place.label}{f' ({place.blocked})' if place.blocked else ''}",
            note=f"n={place.worst.n}",
            link=f"run{place.run + 1}",
            bars=(
                Bar(
                    accuracy=place.worst.accuracy,
                    ci95=place.worst.ci95,
                    role="defended" if place.rank else "bare",
                    loose=place.loose,
                    undercut_by=place.worst.undercut_by,
                ),
            ),
        )
        for place in places
        if place.worst is not None
    ]
    said = "; ".join(f"{group.name} {group.bars[0].text}" for group in groups)
    says = f"Bar chart of worst-case accuracy in percent. {said}."
    return bars(groups, name=name, says=says, entries=(), narrow=narrow) if groups else None
