"""What is kept of adversarial batches, and the user's own weights, as `defend cache` tells it. Imports no torch."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from defend.store.entry import StoredBatch
from defend.store.store import Store
from defend.weights.origin import Own, forgetting

if TYPE_CHECKING:
    from rich.console import Console


GROUPED_BY: Mapping[str, type] = {"victim": str, "attack": str, "dataset": str, "eps": float}


def listing(entries: Iterable[StoredBatch]) -> list[dict[str, Any]]:
    """Return one dictionary an attack on a victim, the last used first.

    Its keys: victim, attack, dataset, eps (None where there is none, or where nothing is known), images, batches,
    bytes, used (ISO 8601).
    """
    groups: dict[tuple[Any, ...], list[StoredBatch]] = {}
    for entry in entries:
        groups.setdefault(tuple(_look_up(entry, name, kind) for name, kind in GROUPED_BY.items()), []).append(entry)
    rows = []
    for names, members in sorted(groups.items(), key=lambda item: -max(entry.used for entry in item[1])):
        last = datetime.datetime.fromtimestamp(max(entry.used for entry in members)).astimezone()
        rows.append(
            dict(zip(GROUPED_BY, names, strict=True))
            | {
                "images": sum(_look_up(entry, "images", int) or 0 for entry in members),
                "batches": len(members),
                "bytes": sum(entry.bytes for entry in members),
                "used": last.isoformat(timespec="seconds"),
            }
        )
    return rows


def contents(store: Store, own: Iterable[Own] = ()) -> dict[str, Any]:
    """Return what the cache holds, for machines.

    Its keys: folder, limit, bytes and kept (see `listing`) of attacked images; and weights, those of the user's `own`:
    file, stage and name (None where the card is damaged), bytes, since (ISO 8601), hides (the package whose weights
    are not taken because of them, "" if none).
    """
    entries = store.entries()
    used = sum(entry.bytes for entry in entries)
    weights = [
        {
            "file": each.path.name,
            "stage": None if each.card is None else each.card.stage,
            "name": None if each.card is None else each.card.name,
            "bytes": each.bytes,
            "since": each.origin.since,
            "hides": each.origin.hides,
        }
        for each in own
    ]
    kept = listing(entries)
    return {"folder": str(store.folder), "limit": store.limit, "bytes": used, "kept": kept, "weights": weights}


def print_contents(console: Console, store: Store, own: Iterable[Own] = ()) -> None:
    """Print `contents` as tables, and the total of the images against the limit."""
    from rich.table import Table

    held = contents(store, own)
    if held["kept"]:
        table = Table(box=None, pad_edge=False)
        for column in ("victim", "attack", "data set", "eps"):
            table.add_column(column, overflow="fold")
        for column in ("images", "batches", "size"):
            table.add_column(column, justify="right")
        table.add_column("last used")
        for row in held["kept"]:
            table.add_row(
                *("?" if row[name] is None else str(row[name]) for name in ("victim", "attack", "dataset")),
                "-" if row["eps"] is None else f"{row['eps']:.4g}",
                str(row["images"]),
                str(row["batches"]),
                size(row["bytes"]),
                row["used"][:16].replace("T", " "),
            )
        console.print(table, highlight=False, markup=False)
    batches = sum(row["batches"] for row in held["kept"])
    off = "" if store.limit else " (the store is off)"
    counted = "1 batch" if batches == 1 else f"{batches} batches"
    console.print(
        f"{counted}, {size(held['bytes'])} of at most {size(store.limit)}{off}, in {held['folder']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if not held["weights"]:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("your own weights", "size", "since", "taken in the place of those shipped with"):
        table.add_column(column, overflow="fold")
    for row in held["weights"]:
        damaged = "" if row["stage"] else " (damaged)"
        since = row["since"][:16].replace("T", " ")
        table.add_row(f"{row['file']}{damaged}", size(row["bytes"]), since, row["hides"] or "-")
    console.print()
    console.print(table)
    console.print(f"To remove one: {forgetting('FILE')}")


def size(count: int) -> str:
    """Return bytes as text: "1.2 MB"."""
    from rich.filesize import decimal

    return decimal(count)


def _look_up(entry: StoredBatch, name: str, kind: type) -> Any:
    """Return what is known of an entry: None where nothing is, its header is damaged, or a budget is infinite."""
    value: Any = entry.about.get(name)
    # JSON may hold a budget of 1 as a whole number; a bool is no number here
    if kind is float and type(value) in (int, float):
        return float(value) if math.isfinite(value) else None
    return value if type(value) is kind else None
