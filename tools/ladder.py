"""Measures the ladder of a victim alone and behind every purifier of this repository on digits, with every rung.

    python -m tools.ladder                       # all arms, one after the other
    python -m tools.ladder --only blur jpeg      # these
    python -m tools.ladder --work DIR            # where the run folders go; the same command goes on there

What an arm left is kept in docs/results/ladder-digits.json as soon as it is measured. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from defend.errors import ConfigError, DefendError
from defend.records.reading import is_partial, is_run
from defend.records.unfinished import is_unfinished
from defend.util.files import write_text
from defend.values.commands import say_command
from tools.finished import failed_checks, read_finished
from tools.manual.included import ROOT

KEPT = ROOT / "docs/results/ladder-digits.json"
IMAGES = 100  # in every row
SETTINGS = (
    *("--victim", "classifier_a", "--source", "resnet20"),
    *("--thorough", "--limit", str(IMAGES), "--adaptive-limit", str(IMAGES)),
    *("--adaptive-steps", "20", "--set", "pgd.restarts=1", "--set", "vmi_fgsm.samples=5"),
    *("--set", "square.queries=200", "--set", "square_l2.queries=200"),
    *("--set", "hsj.queries=400", "--set", "hsj_l2.queries=400"),
)
"""A CPU's budget: a fifth of a thorough run's PGD steps and restarts, a twenty-fifth of its Square queries. The victim
is small, and without a defence it keeps some images at this eps, so that the table shows what a purifier adds."""
ROW = ("attack", "threat", "variant", "norm", "eps", "n", "steps", "queries", "undefended", "defended", "headline")
"""What is kept of a row."""


@attrs.frozen
class Arm:
    """One column: a purifier or `NONE`, and what its run is given beside `SETTINGS`."""

    name: str
    more: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `defend` is called with, less the run folder."""
        purifier = () if self.name == NONE else ("--purifier", self.name)
        return ("run", *purifier, *SETTINGS, *self.more)


NONE = "none"
"""The victim alone, beside which every group stands."""
FEW_DRAWS = ("--draws", "10")
GROUPS: Mapping[str, tuple[Arm, ...]] = {
    "papers": (
        Arm(NONE),
        Arm("apudae"),
        Arm("dae"),
        Arm("puvae", ("--detector", "puvae", *FEW_DRAWS)),
        Arm("unet_gan"),
        Arm("vaegan"),
    ),
    "baselines": (
        Arm(NONE),
        Arm("blur"),
        Arm("median"),
        Arm("bits"),
        Arm("jpeg"),
        Arm("tv"),
        Arm("resize_pad", FEW_DRAWS),
        Arm("noise", FEW_DRAWS),
    ),
}
ARMS = {arm.name: arm for group in GROUPS.values() for arm in group}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the arms that are named and keep what they leave; return 0, 2 for wrong input, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tools.ladder", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--work", type=Path, default=Path("ladder"), metavar="DIR", help="for run folders (ladder)")
    given = parser.parse_args(arguments)
    try:
        for arm in choose(given.only):
            keep(arm, measure(arm, given.work))
    except DefendError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:  # the run has said how to go on
        return 130
    return 0


def choose(names: Sequence[str] | None) -> list[Arm]:
    """Return the arms of these names; all, without any.

    Raises:
        ConfigError: a name is no arm's.
    """
    for name in names or ():
        if name not in ARMS:
            raise ConfigError(f"--only {name!r} is no arm: expected one of {', '.join(ARMS)}")
    return [ARMS[name] for name in names or ARMS]


def measure(arm: Arm, work: Path) -> Path:
    """Run an arm, or go on with its run; return the run folder.

    Raises:
        ConfigError: the run ended with an error, which it has printed, or the folder is of another command.
    """
    folder, begun_with = work / arm.name, work / f"{arm.name}.command"
    command = say_command(*arm.arguments)
    before = begun_with.read_text(encoding="utf-8").strip() if begun_with.exists() else "unknown"
    if folder.exists() and before != command:  # its figures would be kept under this command
        raise ConfigError(
            f"the run in {str(folder)!r} was begun with other settings ({before}): remove it, or give another --work"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_text(begun_with, command + "\n", "the ladder")
    # a report is there from the first row on
    begun = is_unfinished(folder) or is_partial(folder)
    if begun or not is_run(folder):
        call = ("run", "--resume", str(folder)) if begun else (*arm.arguments, "--out", str(folder))
        ended = subprocess.run([sys.executable, "-m", "defend", *call], check=False)
        if ended.returncode:
            raise ConfigError(f"the run of {arm.name} ended with exit code {ended.returncode}, see above")
    return folder


def keep(arm: Arm, folder: Path) -> None:
    """Put what an arm left into the kept results, beside the other arms.

    Raises:
        ConfigError: the run is not complete.
    """
    report = read_finished(folder, f"the run of {arm.name}")
    kept = read()
    kept[arm.name] = {
        "command": say_command(*arm.arguments),
        **{key: report[key] for key in ("versions", "plugins", "seed", "worst_case")},
        "minutes": round(sum(sum(row["seconds"].values()) for row in report["rows"]) / 60, 1),
        "failed": failed_checks(report),
        "rows": [{key: row[key] for key in ROW} for row in report["rows"]],
    }
    ordered = {name: kept[name] for name in ARMS if name in kept}
    write_text(KEPT, json.dumps(ordered, indent=1) + "\n", "the ladder")


def read() -> dict[str, Any]:
    """Return the arms that are kept, by name."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
