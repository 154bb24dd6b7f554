"""What the adapters offer, and the names in each family. Imports neither torch nor the libraries."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

from defend.options import option, options
from defend.stages import Paper, StageSpec

ARGUMENTS_HELP = "arguments of the library's constructor, for example steps=20,rel_stepsize=1/10"

# L0 and L1 budgets are none that the host can hold an attack to; the others need more than a model, images and labels
NOT_FOOLBOX = {"Attack", "EADAttack", "SparseL1DescentAttack"} | {
    "BinarizationRefinementAttack",
    "DatasetAttack",
    "GenAttack",
    "PointwiseAttack",
    "SpatialAttack",
}
NOT_TORCHATTACKS = {"EADEN", "EADL1", "JSMA", "OnePixel", "Pixle", "SparseFool"} | {"GN", "VANILA"}  # the last: no norm


@options
class FoolboxOptions:
    """Options of an attack of foolbox."""

    attack: str = option("LinfPGD", help="foolbox's name for it")
    arguments: str = option("", help=ARGUMENTS_HELP)


@options
class TorchattacksOptions:
    """Options of an attack of torchattacks."""

    attack: str = option("PGD", help="torchattacks' name for it")
    arguments: str = option("", help=f"{ARGUMENTS_HELP}; the budget comes from the run")


@options
class AutoAttackOptions:
    """Options of AutoAttack."""

    version: str = option("standard", help="standard (deterministic) or rand", choices=("standard", "rand"))
    force: bool = option(False, help="run standard where its authors say that it overrates a defence")


def families() -> list[StageSpec]:
    """Return foolbox, torchattacks and autoattack."""
    return [
        StageSpec(
            name="foolbox",
            summary="foolbox's L-inf and L2 attacks, for example foolbox:LinfPGD; needs the extra foolbox",
            build="defend.attacks.adapters.foolbox:build",
            config=FoolboxOptions,
            paper=Paper("Foolbox Native", "Rauber et al.", 2020, "https://doi.org/10.21105/joss.02607"),
            members="defend.attacks.adapters.specs:foolbox_names",
            member_option="attack",
            prefixed=True,
        ),
        StageSpec(
            name="torchattacks",
            summary="torchattacks' L-inf and L2 attacks, for example torchattacks:PGD; needs the extra torchattacks",
            build="defend.attacks.adapters.torchattacks:build",
            config=TorchattacksOptions,
            paper=Paper("Torchattacks: A PyTorch Repository for Adversarial Attacks", "Kim", 2020, "arXiv:2010.01950"),
            members="defend.attacks.adapters.specs:torchattacks_names",
            member_option="attack",
            prefixed=True,
        ),
        StageSpec(
            name="autoattack",
            summary="AutoAttack (L-inf): autoattack:standard, autoattack:rand; needs the extra autoattack",
            build="defend.attacks.adapters.autoattack:build",
            config=AutoAttackOptions,
            paper=Paper(
                "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
                "Croce and Hein",
                2020,
                "arXiv:2003.01690",
            ),
            members="defend.attacks.adapters.specs:autoattack_names",
            member_option="version",
            prefixed=True,
        ),
    ]


@functools.cache
def foolbox_names() -> tuple[str, ...]:
    """Return foolbox's attacks that the host can run, read from its files; none if it is not installed."""
    names = _find_imports("foolbox", "attacks/__init__.py", lambda module: True)
    return tuple(name for name in names if name not in NOT_FOOLBOX and not name.startswith(("L0", "L1")))


@functools.cache
def torchattacks_names() -> tuple[str, ...]:
    """Return torchattacks' attacks that the host can run, read from its files; none if it is not installed."""
    names = _find_imports("torchattacks", "__init__.py", lambda module: module.startswith("attacks."))
    return tuple(name for name in names if name not in NOT_TORCHATTACKS)


def autoattack_names() -> tuple[str, ...]:
    """Return AutoAttack's versions; none if it is not installed."""
    return ("standard", "rand") if importlib.util.find_spec("pyautoattack") else ()


def _find_imports(package: str, file: str, wanted: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the names that a package's file imports from wanted modules beside it, and its aliases of them."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return ()
    names = set()
    for statement in ast.parse((Path(found.origin).parent / file).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom) and statement.level == 1 and wanted(statement.module or ""):
            names |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.Assign) and ast.unparse(statement.value) in names:
            names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return tuple(sorted(names))
