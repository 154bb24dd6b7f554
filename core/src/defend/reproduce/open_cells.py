"""Measures only what a kept result of a table lacks, and joins the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from defend.assembly.composition import Missing
from defend.errors import ConfigError
from defend.plugins import Registry
from defend.reproduce.cells import join_versions
from defend.reproduce.jobs import compose_arm, find_unmeasured, hash_weights
from defend.reproduce.results import Cell, TableResult, find_kept, standing
from defend.tables import Table


def find_current(
    table: Table, seed: int, gaps: Mapping[str, Sequence[Missing]], plugins: Registry, train_missing: bool = False
) -> TableResult | None:
    """Return what came with a table's plugin, less what was measured with other weights than a run would have.

    Args:
        table: whose result it is.
        seed: of what is to be measured beside it.
        gaps: what is missing, by arm: their figures stay.
        plugins: what is installed.
        train_missing: whether that is trained where a run needs it. As it may come to other weights, the figures of
            all arms that it is part of are open then.

    Returns:
        None where nothing came.

    Raises:
        ConfigError: it was measured with another seed.
        DataError: it is damaged.
    """
    kept = find_kept(table)
    if kept is None:
        return None
    if kept.seed != seed:
        raise ConfigError(
            f"--seed {seed}: the kept result of {table.name} is of seed {kept.seed}, and what it lacks is measured "
            f"with the same: give --seed {kept.seed}, or measure all of it, without --open"
        )
    kept = _open_arms(
        table, kept, {name for name in kept.weights if name not in gaps and _is_stale(table, name, kept, plugins)}
    )
    # an arm that is opened may have more trained, which others have too
    while train_missing and (stale := _list_replaced(table, kept, gaps)):
        kept = _open_arms(table, kept, stale)
    return kept


def _list_replaced(table: Table, kept: TableResult, gaps: Mapping[str, Sequence[Missing]]) -> set[str]:
    """Return the arms whose figures are of weights that are missing, and trained for what is to be run."""
    trained = {str(gap) for name in find_unmeasured(table, kept) for gap in gaps.get(name, ())}
    return {name for name in kept.weights if any(str(gap) in trained for gap in gaps.get(name, ()))}


def _open_arms(table: Table, kept: TableResult, stale: set[str]) -> TableResult:
    """Return a result without the figures of some arms, and of those that are the best of them."""
    opened = stale | {arm.name for arm in table.arms if stale & set(arm.best_of)}
    return attrs.evolve(
        kept,
        cells=tuple(_open(table, cell) if cell.arm in opened else cell for cell in kept.cells),
        adaptive=tuple(one for one in kept.adaptive if one.arm not in opened),
        weights={name: then for name, then in kept.weights.items() if name not in opened},
    )


def _is_stale(table: Table, name: str, kept: TableResult, plugins: Registry) -> bool:
    arm = next((arm for arm in table.arms if arm.name == name), None)
    if arm is None:
        return True
    now = hash_weights(compose_arm(table, arm, plugins), filter(None, [arm.source]), table.dataset, plugins)
    return any(now.get(part, value) != value for part, value in kept.weights[name].items())


def _open(table: Table, cell: Cell) -> Cell:
    stands, _ = standing(table, cell.attack, cell.arm, None)
    why = "it was measured with other weights"
    return Cell(attack=cell.attack, arm=cell.arm, paper=cell.paper, standing=stands, why=why)


def join(table: Table, kept: TableResult, new: TableResult) -> TableResult:
    """Return a result with the figures of both: where both have one, that of `new`.

    Devices, versions and times are those of both.
    """
    measured = {(cell.attack, cell.arm) for cell in new.cells if cell.ours is not None}
    there = {one.arm: one for one in (*kept.adaptive, *new.adaptive)}
    return attrs.evolve(
        new,
        dataset=new.dataset if measured or new.adaptive else kept.dataset,
        cells=tuple(
            cell if (cell.attack, cell.arm) in measured else kept.cell(cell.attack, cell.arm) or cell
            for cell in new.cells
        ),
        adaptive=tuple(there[arm.name] for arm in table.arms if arm.name in there),
        versions=join_versions((kept.versions, new.versions)),
        plugins=join_versions((kept.plugins, new.plugins)),
        device="; ".join(dict.fromkeys(device for device in (kept.device, new.device) if device)),
        seconds=kept.seconds + new.seconds,
        weights={
            name: {**kept.weights.get(name, {}), **new.weights.get(name, {})}
            for name in (*kept.weights, *(name for name in new.weights if name not in kept.weights))
        },
    )
