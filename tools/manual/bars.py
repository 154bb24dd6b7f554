"""What the benchmarks found, from their kept JSON: every promise of speed, its figure, and where it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.__main__ import WORKLOADS

from tools.manual.included import ROOT
from tools.manual.markdown import cell, code, table

RESULTS = ROOT / "benchmarks/results"


def bars(folder: Path = RESULTS) -> str:
    """Return a table of each kept workload's bars, below the command and the machine they are of.

    What was not measured is named: workloads without a kept file, and those whose file is not of a whole run.

    Raises:
        RuntimeError: a kept file is of a quick run, whose bars mean little.
    """
    kept = {path.name: _read(path) for path in sorted(folder.glob("*.json"))}
    for name, one in kept.items():
        if one.get("scale") == "quick":
            raise RuntimeError(f"{name} is of `--quick`, whose bars mean little: measure it again without")
    having = {name for file, one in kept.items() for name in one.get("names", [Path(file).stem.split("-")[-1]])}
    missing = [name for name in WORKLOADS if name not in having]
    last = [f"\nWithout a kept figure: {', '.join(map(code, missing))}.\n"] if missing else []
    return "\n".join([part for one in kept.values() for part in _said(one)] + last)


def _read(path: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def _said(kept: Mapping[str, Any]) -> Iterator[str]:
    """Yield what stands above the table, the table, and what is missing in it; results without a bar are not shown."""
    results = [result for result in kept.get("results", ()) if result["bars"]]
    if not results:
        return
    command = code(f"python -m benchmarks {' '.join(kept['names'])}")
    threads = f"{kept['threads']} thread{'s' * (kept['threads'] != 1)}"
    without = f", without {', '.join(kept['left_out'])}" * bool(kept["left_out"])
    yield f"{command}, {kept['device']}, {threads}, torch {kept['versions']['torch']}{without}:"
    rows = (
        # a title stands once, over its bars
        ("" if number else cell(result["title"]), cell(bar["what"]), _figure(bar), _bound(bar), _met(bar))
        for result in results
        for number, bar in enumerate(result["bars"])
    )
    yield table(("of", "what", "figure", "bar", ""), rows)
    if not kept["complete"]:
        yield "Not all of this workload was measured: the other parts have no figure.\n"
    notes = dict.fromkeys(note for result in kept["results"] for note in result.get("notes", ()))
    yield from (f"{cell(note)}\n" for note in notes)


def _figure(bar: Mapping[str, Any]) -> str:
    return "no figure" if bar["figure"] is None else f"{bar['figure']:.3g}"  # JSON has no number that is none


def _bound(bar: Mapping[str, Any]) -> str:
    return f"{bar['kind']} {bar['bound']:g}".replace(" ", "\N{NO-BREAK SPACE}")


def _met(bar: Mapping[str, Any]) -> str:
    return "met" if bar["met"] else "**missed**"
