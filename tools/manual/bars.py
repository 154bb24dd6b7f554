"""What the benchmarks found, from their kept JSON: every promise of speed, its figure, and where it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.manual.included import ROOT
from tools.manual.markdown import cell, code, table

RESULTS = ROOT / "benchmarks/results"


def bars(folder: Path = RESULTS) -> str:
    """Return a table of each kept workload's bars, below the command and the machine they are of."""
    return "\n".join(part for path in sorted(folder.glob("*.json")) for part in _said(_read(path)))


def _read(path: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def _said(kept: Mapping[str, Any]) -> Iterator[str]:
    """Yield what stands above the table, and the table; nothing of results without a bar."""
    results = [result for result in kept.get("results", ()) if result["bars"]]
    if not results:
        return
    name = results[0]["workload"].split()[1]
    threads = f"{kept['threads']} thread{'s' * (kept['threads'] != 1)}"
    yield f"{code(f'python -m benchmarks {name}')}, {kept['device']}, {threads}, torch {kept['versions']['torch']}:"
    rows = (
        # a title stands once, over its bars
        ("" if number else cell(result["title"]), cell(bar["what"]), f"{bar['figure']:.3g}", _bound(bar), _met(bar))
        for result in results
        for number, bar in enumerate(result["bars"])
    )
    yield table(("of", "what", "figure", "bar", ""), rows)


def _bound(bar: Mapping[str, Any]) -> str:
    return f"{bar['kind']} {bar['bound']:g}".replace(" ", "\N{NO-BREAK SPACE}")


def _met(bar: Mapping[str, Any]) -> str:
    return "met" if bar["met"] else "**missed**"
