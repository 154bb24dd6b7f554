"""`python -m benchmarks [NAME ...]`: run workloads, print tables and bars, write JSON and a plot."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contest import PEERS, Bar, Result, Scale, Timing, find_installed, ratio
from defend.errors import ConfigError, DefendError
from defend.util.files import atomic
from defend.util.processes import resolve_device

WORKLOADS = (
    "pgd",
    "cw",
    "square",
    "purifiers",
    "whole_job",
    "unrolled",
    "start",
    "adaptive",
    "batch_sizes",
    "settings",
    "standard",
    "nearest",
    "small_maps",
    "others",
    "neighbours",
    "small_files",
    "steps",
)
DISTRIBUTIONS = {"art": "adversarial-robustness-toolbox"}
VERSIONS = ("defend-core", "torch", "torchvision", "timm", "numpy", *(DISTRIBUTIONS.get(peer, peer) for peer in PEERS))
LEFT_OUT = ": left out"  # of what could not be measured then, and may be now
FULL, QUICK = {"rounds": 5, "images": 256}, {"rounds": 2, "images": 16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return 0, or 2 for a wrong request."""
    given = parse(arguments)
    console = Console()
    errors = Console(stderr=True)
    try:
        scale = choose_scale(given.quick, given.rounds, given.device)
    except DefendError as error:
        errors.print(f"error: {error}", markup=False)
        return 2
    names = given.names or WORKLOADS
    about = {**surroundings(scale), "names": list(names)}
    try:
        kept = read_kept(given.json, about) if given.resume else Kept()
    except DefendError as error:
        errors.print(f"error: {error}", markup=False)
        return 2
    scale = attrs.evolve(scale, kept=frozenset(result.title for result in kept.results))
    said = ", ".join(f"{key} {value}" for key, value in about.items() if isinstance(value, str | int))
    console.print(said, highlight=False)
    if about["left_out"]:
        missing = ", ".join(about["left_out"])
        console.print(f"left out, not installed: {missing} (pip install -r benchmarks/requirements.txt)")
    if kept.results:
        console.print(f"kept from {given.json}: {len(kept.results)} results", highlight=False)
    done, finished = list(kept.results), list(kept.finished)
    for name in names:
        if name in finished:
            continue
        for result in results(name, scale):
            done = [one for one in done if (one.workload, one.title) != (result.workload, result.title)] + [result]
            show(result, console)
            if given.json:
                write(given.json, {**about, "complete": False, "finished": finished}, done)
            if given.plot:
                draw(done, given.plot)
        finished.append(name)
    if given.json:
        write(given.json, {**about, "complete": True, "finished": finished}, done)
    bars = [bar for result in done for bar in result.bars]
    if bars:
        console.print(f"{sum(bar.met for bar in bars)} of {len(bars)} bars met")
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a look: few rounds and images; its bars mean little")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, after each result")
    parser.add_argument("--resume", action="store_true", help="go on with what --json FILE holds of an earlier run")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios there (.png, .svg, .pdf)")
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in WORKLOADS:
            parser.error(f"workload {name!r}: expected one of {', '.join(WORKLOADS)}")
    if given.rounds is not None and given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: expected at least 1")
    for name in ("json", "plot"):
        path = getattr(given, name)
        if path is not None and not path.resolve().parent.is_dir():
            parser.error(f"--{name} {path}: there is no folder {path.parent}")
    if given.resume and given.json is None:
        parser.error("--resume: expected --json FILE, the file that an earlier run wrote")
    return given


def choose_scale(quick: bool = False, rounds: int | None = None, device: str = "auto") -> Scale:
    """Turn the command line's choices into a scale.

    Raises:
        ConfigError: a device that is not there, or not one that times can be taken on.
    """
    where = resolve_device(device)
    if where.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r}: times are taken on cpu and cuda only")
    size = QUICK if quick else FULL
    return Scale(rounds or size["rounds"], size["images"], quick, where, find_installed())


@attrs.frozen
class Kept:
    """What an earlier run wrote: its results, and the workloads that it ended."""

    results: tuple[Result, ...] = ()
    finished: tuple[str, ...] = ()


def read_kept(path: Path, about: Mapping[str, Any]) -> Kept:
    """Return what a run before this one wrote; nothing where there is no file yet.

    Raises:
        ConfigError: the file is no benchmark's, or was measured elsewhere than `about` says, which would mix figures of
            two machines, or of two versions, in one file.
    """
    if not path.exists():
        return Kept()
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        for key, value in about.items():
            if key != "names" and held[key] != value:
                raise ConfigError(
                    f"--resume: {path} was measured with {key} {held[key]!r}, here it is {value!r}: give --json "
                    "another file"
                )
        done = [_read_result(one) for one in held["results"] if not one["title"].endswith(LEFT_OUT)]
        return Kept(tuple(done), tuple(held.get("finished", ())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DefendError):
            raise
        raise ConfigError(f"--resume: {path} is not what `python -m benchmarks --json` writes ({error!r})") from error


def _read_result(held: Mapping[str, Any]) -> Result:
    """Undo `describe`; a figure that JSON had no number for is NaN again."""
    bars = (
        Bar(one["what"], math.nan if one["figure"] is None else one["figure"], one["bound"], one["kind"])
        for one in held["bars"]
    )
    timings = (Timing(one["name"], one["rounds"]) for one in held["timings"])
    return Result(
        held["workload"],
        held["title"],
        held["unit"],
        tuple(timings),
        tuple(bars),
        held["figures"],
        tuple(held["notes"]),
    )


def results(name: str, scale: Scale) -> Iterator[Result]:
    """Run a workload; yield what it finds as it finds it."""
    yield from importlib.import_module(f"benchmarks.{name}").run(scale)


def surroundings(scale: Scale) -> dict[str, Any]:
    """Return device, threads and versions; no date, so that two runs of the same compare."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name(scale.device) if scale.device.type == "cuda" else processor()
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "scale": "quick" if scale.quick else "full",
        "rounds": scale.rounds,
        "left_out": [DISTRIBUTIONS.get(peer, peer) for peer in PEERS if peer not in scale.peers],
        "versions": found,
    }


def processor() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def show(result: Result, console: Console) -> None:
    """Print a table of the contenders, then the bars, figures and notes."""
    table = Table(title=f"{result.workload}: {result.title}", title_justify="left", title_style="bold")
    for column in (result.unit, "median", "least", "most", "ratio"):
        table.add_column(column, justify="left" if column == result.unit else "right")
    for one in result.timings:
        share = ratio(result.timings, one.name, result.timings[0].name)
        table.add_row(one.name, *(f"{value:.4g}" for value in (one.median, one.least, one.most)), f"{share:.2f}")
    if result.timings:
        console.print(table)
    else:
        console.print(f"{result.workload}: {result.title}", style="bold")
    for name, value in result.figures.items():
        console.print(f"  {name}: {plain(value)}", markup=False, highlight=False)
    for bar in result.bars:
        verdict = "[green]met[/]" if bar.met else "[red]MISSED[/]"
        console.print(f"  {verdict} {bar.what}: {bar.figure:.3g}, {bar.kind} {bar.bound:g}", highlight=False)
    for note in result.notes:
        console.print(f"  {note}", markup=False, highlight=False)


def plain(value: Any) -> str:
    """Write a figure for a reader: four digits of a number, pairs of a mapping."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items())
    return str(value)


def describe(result: Result) -> dict[str, Any]:
    """Return a result as JSON has it: medians, ratios to the first contender and verdicts included."""
    timings = [
        {**attrs.asdict(one), "median": one.median, "ratio": ratio(result.timings, one.name, result.timings[0].name)}
        for one in result.timings
    ]
    bars = [{**attrs.asdict(bar), "met": bar.met} for bar in result.bars]
    return {**attrs.asdict(result), "timings": timings, "bars": bars, "figures": dict(result.figures)}


def write(path: Path, about: dict[str, Any], done: Sequence[Result]) -> None:
    """Write all results so far, atomically; what is not a finite number becomes null."""
    document = finite({**about, "results": [describe(result) for result in done]})
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON has not, by None."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(done: Sequence[Result], path: Path) -> None:
    """Draw every contender's ratio to the first of its contest, spreads as lines, one panel a result."""
    from matplotlib.figure import Figure

    shown = [result for result in done if len(result.timings) > 1]
    if not shown:
        return
    sizes = [len(result.timings) for result in shown]
    figure = Figure(figsize=(9, 0.32 * sum(sizes) + 0.9 * len(shown)), layout="constrained")
    for axes, result in zip(
        figure.subplots(len(shown), 1, squeeze=False, height_ratios=sizes)[:, 0], shown, strict=True
    ):
        names = [one.name for one in result.timings]
        first = result.timings[0].rounds
        shares = [[mine / base for mine, base in zip(one.rounds, first, strict=True)] for one in result.timings]
        middle = [statistics.median(share) for share in shares]
        spread = [
            [centre - min(share) for centre, share in zip(middle, shares, strict=True)],
            [max(share) - centre for centre, share in zip(middle, shares, strict=True)],
        ]
        colours = ["tab:blue" if name.startswith("ours") else "silver" for name in names]
        axes.barh(names, middle, xerr=spread, color=colours, error_kw={"elinewidth": 0.8})
        axes.axvline(1, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set_title(f"{result.workload}: {result.title}", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
    figure.supxlabel("time, as a ratio to the first", fontsize=9)
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=130)


if __name__ == "__main__":
    sys.exit(main())
