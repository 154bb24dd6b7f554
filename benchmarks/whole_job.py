"""Workload 4, the whole job: five attacks on 1,000 images, two purifiers; `defend run` against the same by hand.

Each contender is a process of its own, timed from its start to its end, imports, weights and results included:
`defend run` as anybody would type it (`experiment.defend_arguments`), and the same experiment as one would plainly
write it with foolbox (`plain_foolbox`) and with ART (`plain_art`). The images are those of `thousand`, the same
tensors for all: digits itself has 500 test images.

All three attack the bare victim once and let both purifiers judge the same images. For the peers that is the cheaper
way to write it; attacking once a purifier would double their attacks. What is less plain is left out: no parameters
frozen, nothing folded. They take images in the batches of 64 that `defend` takes, also where their own default is
fewer (ART's CW: one at a time). CW gets one constant and ten steps, ART's default number: at foolbox's default of 9
times 10,000 it would be all of the time that is measured, and the peers' worst attack would decide alone.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import experiment, thousand
from benchmarks.contest import Bar, Result, Scale, Timing, alone, progress, ratio
from defend.plugins import registry
from defend.stages import Stage
from defend.weights.find import available

OURS = "ours: defend run"
PEERS = {"foolbox": "benchmarks.plain_foolbox", "art": "benchmarks.plain_art"}
IMAGES, QUICK_IMAGES = 1000, 8
FASTER = 3.0


def run(scale: Scale) -> Iterator[Result]:
    """Run each contender once, whatever the rounds: the last takes minutes."""
    images = QUICK_IMAGES if scale.quick else IMAGES
    contenders = [OURS, *(name for name in PEERS if name in scale.peers)]
    measured: dict[str, dict[str, Any]] = {}
    right: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, progress() as shown:
        task = shown.add_task("", total=len(contenders))
        for name in contenders:
            shown.update(task, description=name)
            work = carry_out if name == OURS else carry_out_plainly
            measured[name], right[name] = work(name, images, str(scale.device), Path(folder))
            shown.advance(task)
    yield judge(measured, right, images, bars=not scale.quick)


def carry_out(_: str, images: int, device: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the command line in an empty cache, where nothing was kept; return what it took and what it found."""
    thousand.install(folder / "site")
    out = folder / "runs"
    command = experiment.defend_arguments(thousand.NAME, images, device, out, weights())
    measured = in_process("defend", command, folder)
    reports = {name: json.loads((out / name / "report.json").read_text()) for name in experiment.PURIFIERS}
    return measured, count(reports)


def carry_out_plainly(name: str, images: int, device: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a plain version of the experiment; return what it took and what it found."""
    measured = in_process(PEERS[name], [str(images), device], folder)
    found: dict[str, Any] = json.loads(measured["out"].strip().splitlines()[-1])
    return measured, found


def in_process(module: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Measure `python -m module arguments`, see `benchmarks.launch`.

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    path = [str(folder / "site"), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "DEFEND_CACHE_DIR": str(folder / "cache")}
    measured = alone("benchmarks.launch", sys.executable, "-m", module, *arguments, env=env)
    if measured["code"] != 0:
        raise RuntimeError(f"{module} ended with {measured['code']}: {measured['error'][-1000:]}")
    return measured


def weights() -> dict[str, str]:
    """Return the weights for digits that ship, not the user's own: of the victim, and of each purifier by its name."""
    stages: dict[str, Stage] = {experiment.VICTIM: "victim"}
    for name in experiment.PURIFIERS:
        stages[name] = "purifier"
    files = {}
    for name, stage in stages.items():
        packages = registry().find(stage, name).packages
        kept = [one for one in available(stage, name, packages) if one.shipped and one.card.dataset["name"] == "digits"]
        files[name] = str(kept[0].path)
    return files


def count(reports: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return from the reports of all purifiers what the plain versions print: by attack and arm, images still right."""
    right: dict[str, dict[str, int]] = {}
    for purifier, report in reports.items():
        for row in report["rows"]:
            for name, arm in ((experiment.UNDEFENDED, "undefended"), (purifier, "defended")):
                right.setdefault(row["attack"], {})[name] = round(row[arm]["accuracy"] * row["n"])
    return right


def judge(measured: Mapping[str, Mapping[str, Any]], right: Mapping[str, Any], images: int, bars: bool) -> Result:
    """Lay the contenders side by side."""
    timings = tuple(Timing(name, (1000 * one["seconds"] / images,)) for name, one in measured.items())
    mib = {name: one["mib"] for name, one in measured.items()}
    promised = []
    for name in measured:
        if name != OURS and bars:
            promised += [
                Bar(f"{name} / ours, wall time", ratio(timings, name, OURS), FASTER, "at least"),
                Bar(f"ours / {name}, peak memory", mib[OURS] / mib[name], 1.0, "at most"),
            ]
    return Result(
        "4 whole_job",
        f"{images} images, {len(experiment.ATTACKS)} attacks, {' and '.join(experiment.PURIFIERS)}",
        "ms an image, process start included",
        timings,
        tuple(promised),
        {"seconds": {name: one["seconds"] for name, one in measured.items()}, "peak MiB": mib, "right": dict(right)},
        ("each contender is one process, run once; random starts and noise differ between libraries",),
    )
