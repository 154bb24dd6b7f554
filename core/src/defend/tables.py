"""A published table as data: what its cells say, and how each of them is measured again. Imports no torch.

A plugin declares its paper's tables through the hook `defend_tables`; `defend.reproduce` measures them. Every cell is
what one arm (a column of most papers: "None", "PuVAE") leaves of one attack (a row: "FGSM").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs

from defend.errors import ConfigError, did_you_mean
from defend.stages import Paper
from defend.util.distributions import absent, require
from defend.util.documents import digest
from defend.values.threats import BEFORE_TUNING, DEFENDED, THREATS, TUNED, UNDEFENDED, UNTUNED, USUAL

__all__ = [
    "BEFORE_TUNING",
    "TOLERANCE",
    "TUNED",
    "Adaptive",
    "Reason",
    "Table",
    "TableArm",
    "TableAttack",
    "choose_tables",
    "grid",
]

Axis = Literal["attacks", "arms"]
TOLERANCE = 0.03
"""How far a figure may lie from the paper's to count as the same."""


@attrs.frozen
class Reason:
    """Why a figure is not the paper's.

    Attributes:
        text: in one line. A measurement has its figures in it, with n.
        measured: whether that it is the reason was measured; otherwise it is a guess, and is counted as one.
    """

    text: str
    measured: bool = False


def _as_reasons(misses: Mapping[str, Reason | str]) -> dict[str, Reason]:
    """Take a bare text for a guess: who says nothing of a measurement made none."""
    return {where: Reason(why) if isinstance(why, str) else why for where, why in misses.items()}


@attrs.frozen(kw_only=True)
class TableArm:
    """Who is attacked: a column, or a row, of the paper's table.

    Attributes:
        name: its heading.
        victim: another one than the table's.
        purifier, detector, finetune: stage names as in `RunConfig`.
        options, weights: as in `RunConfig`; `weights` may name editions ("+paper").
        source: the victim whose gradients make the attack, where the table is one of transfer.
        threat, variant: another threat than the attacks', and which row of one that is carried out in several ways:
            "transfer" and "before tuning".
        judged: the arm of the run whose figure it is: "undefended", "tuned", "untuned" or "defended".
        credit: whether a rejected attacked image counts as right.
        budgets: where the heading means the least over several eps.
        best_of: where the heading means the best of other arms, their names; nothing is run for it.
        absent: why it is not measured here, in one line: another paper's defence, for example.
        reference: an arm without a defence, of which "more accurate" is no merit.
        baseline: a rival that the paper holds its defence against, adversarial training for example. One that is more
            accurate than the paper's speaks against the paper's claim.
    """

    name: str
    victim: str = ""
    purifier: str | None = None
    detector: str | None = None
    finetune: str | None = None
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    weights: Mapping[str, str] = attrs.field(factory=dict)
    source: str | None = None
    threat: str = ""
    variant: str = ""
    judged: str = DEFENDED
    credit: bool = False
    budgets: tuple[float, ...] = ()
    best_of: tuple[str, ...] = ()
    absent: str = ""
    reference: bool = False
    baseline: bool = False

    @property
    def protected(self) -> bool:
        """Whether there is anything beside the victim as it was trained."""
        return bool(self.purifier or self.detector or self.finetune)


@attrs.frozen(kw_only=True)
class TableAttack:
    """What an arm is attacked with: a row, or a column, of the paper's table.

    Attributes:
        name: its heading.
        attack: the attack's name; None for clean images.
        threat: what the paper's attacker knew, one of `defend.values.threats`. Where it attacks a whole defence and
            an arm has none, that arm's victim is attacked.
        eps: another budget than the table's.
        options: the attack's.
        n: how many test images, at most.
        step_share: the step as a share of eps, for an attack made at several.
        draws: passes that the attacker averages over where the defence is random.
        sight: whether its cells tell how many images ever had a gradient of exactly zero. Not of an attack whose own
            objective ends in one, as that of Carlini and Wagner does once an image is fooled.
    """

    name: str
    attack: str | None = None
    threat: str = USUAL
    eps: float | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    step_share: float | None = None
    n: int = 1000
    draws: int = 1
    sight: bool = False


SAID_OF_ATTACKS = ("name", "n", "sight")
SAID_OF_ARMS = ("name", "best_of", "absent", "reference", "baseline")
SAID_OF_ADAPTIVE = ("n", "draws", "fewer_draws")
"""Fields that change no figure, or are told apart by themselves."""


@attrs.frozen(kw_only=True)
class Adaptive:
    """The attacker who knows the defence, beside every cell.

    Attributes:
        attacks: their names; counter-attacks that a stage names against itself are added.
        options: by attack.
        n, draws: as in `TableAttack`.
        fewer_draws: by arm, where `draws` passes would take too long.
    """

    attacks: tuple[str, ...] = ("pgd",)
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    n: int = 100
    draws: int = 20
    fewer_draws: Mapping[str, int] = attrs.field(factory=dict)

    def draws_of(self, arm: str) -> int:
        """Return how many passes the attacker averages over in an arm."""
        return self.fewer_draws.get(arm, self.draws)


def _full_name(_: Any, __: Any, value: str) -> None:
    if not re.fullmatch(r"[a-z0-9_]+/[a-z0-9-]+", value):
        raise ValueError(f"name={value!r} is not PLUGIN/TABLE, for example apudae/table-2")


@attrs.frozen(kw_only=True)
class Table:
    """One table of a paper.

    Attributes:
        name: PLUGIN/TABLE, for example "apudae/table-2".
        caption: what it shows, in one line.
        paper: whose table it is.
        dataset, victim, eps: what holds for all cells unless an arm or an attack says otherwise.
        arms, attacks: see there.
        cells: the paper's figures in percent, by (attack, arm); None where it has none and we measure all the same.
        knowledge: the threat that the paper's figures really are, in one line.
        notes: what was decided where the paper is silent, a line each.
        misses: why a figure is not the paper's: by "ATTACK / ARM", by arm or by attack. A bare text is a guess.
        adaptive: what is run beside the paper's cells against every protected arm; None: nothing.
        across: what stands at the top, as in the paper.
        results: the package whose data holds the kept result, NAME.json.
        not_run: why none of it was measured by us, if so: it is left out where nobody names it.
        takes: what it would take to measure it, where no result of it is kept yet.
        stand_in: whether it repeats another table's cells, in circumstances that can be afforded: totals leave it out.
        needs: distributions that offer its parts beside its own plugin, for example "defend-dae-finetune".
    """

    name: str = attrs.field(validator=_full_name)
    caption: str
    paper: Paper
    dataset: str
    victim: str
    eps: float
    arms: tuple[TableArm, ...]
    attacks: tuple[TableAttack, ...]
    cells: Mapping[tuple[str, str], float | None]
    knowledge: str
    notes: tuple[str, ...] = ()
    misses: Mapping[str, Reason] = attrs.field(factory=dict, converter=_as_reasons)
    adaptive: Adaptive | None = Adaptive()
    across: Axis = "arms"
    results: str | None = None
    not_run: str = ""
    takes: str = ""
    stand_in: bool = False
    needs: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        arms, attacks = [arm.name for arm in self.arms], [attack.name for attack in self.attacks]
        for names in (arms, attacks):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"table {self.name}: two headings are called {twice[0]!r}")
        for attack, arm in self.cells:
            if attack not in attacks or arm not in arms:
                raise ValueError(f"table {self.name}: cell ({attack!r}, {arm!r}) has no such attack or arm")
        known = {*arms, *attacks, *(f"{attack} / {arm}" for attack in attacks for arm in arms)}
        for where in self.misses:
            if where not in known:
                raise ValueError(f"table {self.name}: the reason for {where!r} is about no cell, arm or attack of it")
        for arm in self.adaptive.fewer_draws if self.adaptive else ():
            if arm not in arms:
                raise ValueError(f"table {self.name}: fewer draws in {arm!r}: {did_you_mean(arm, arms)}")
        for threat in (*(each.threat for each in self.attacks), *(arm.threat for arm in self.arms if arm.threat)):
            if threat not in THREATS:
                raise ValueError(f"table {self.name}: threat {threat!r}: {did_you_mean(threat, list(THREATS))}")
        for one in self.arms:
            missing = sorted(set(one.best_of) - set(arms))
            if missing:
                raise ValueError(f"table {self.name}: {one.name!r} is the best of {missing[0]!r}, which is no arm")
            several = [name for name in one.best_of if self.arm(name).best_of]
            if several:
                raise ValueError(
                    f"table {self.name}: {one.name!r} is the best of {several[0]!r}, itself a best of others"
                )
            judges = (UNDEFENDED, DEFENDED, *((TUNED, UNTUNED) if one.finetune else ()))
            if one.judged not in judges:
                hint = did_you_mean(one.judged, judges)
                raise ValueError(f"table {self.name}: {one.name!r} has judged={one.judged!r}: {hint}")

    @property
    def plugin(self) -> str:
        """The name's first part."""
        return self.name.partition("/")[0]

    @property
    def short(self) -> str:
        """The name's second part."""
        return self.name.partition("/")[2]

    def missing(self) -> tuple[str, ...]:
        """Return the distributions it needs that are not installed."""
        return absent(self.needs)

    def require(self) -> None:
        """Check that what it needs is installed.

        Raises:
            ConfigError: it is not; the message says what to install.
        """
        require(f"table {self.name!r}", self.needs)

    def arm(self, name: str) -> TableArm:
        """Return the arm under a heading."""
        return next(arm for arm in self.arms if arm.name == name)

    def attack(self, name: str) -> TableAttack:
        """Return the attack under a heading."""
        return next(attack for attack in self.attacks if attack.name == name)

    def eps_of(self, attack: TableAttack) -> float:
        """Return the budget of an attack."""
        return self.eps if attack.eps is None else attack.eps

    def declare(self, attack: str, arm: str) -> str:
        """Return a digest of all that decides a cell's figure: another one was measured otherwise.

        Headings, reasons and the number of images are no part of it. What has its default is left out, so that a field
        that is new changes nothing.
        """
        what, who = self.attack(attack), self.arm(arm)
        if who.best_of:
            return digest([self.declare(attack, name) for name in who.best_of])
        return digest({**self._describe(what, SAID_OF_ATTACKS), **self._describe_arm(who, what.attack is not None)})

    def declare_adaptive(self, arm: str) -> str:
        """Return a digest of all that decides what an attacker who knows an arm leaves, as `declare` does."""
        assert self.adaptive is not None
        own = {**self._describe(self.adaptive, SAID_OF_ADAPTIVE), "draws": self.adaptive.draws_of(arm)}
        return digest({**own, **self._describe_arm(self.arm(arm), True)})

    def _describe_arm(self, arm: TableArm, attacked: bool) -> dict[str, Any]:
        found = {**self._describe(arm, SAID_OF_ARMS), "dataset": self.dataset, "victim": arm.victim or self.victim}
        return {**found, "eps": self.eps} if attacked else found

    @staticmethod
    def _describe(each: TableArm | TableAttack | Adaptive, said: Sequence[str]) -> dict[str, Any]:
        plain = attrs.asdict(each, filter=lambda field, value: field.name not in said and value != _default(field))
        return {f"{type(each).__name__}.{name}": value for name, value in plain.items()}

    def miss(self, attack: str, arm: str) -> Reason | None:
        """Return why a figure is not the paper's, None where nothing is known: the closest reason."""
        return self.misses.get(f"{attack} / {arm}") or self.misses.get(arm) or self.misses.get(attack)


def grid(arms: Sequence[TableArm], rows: Mapping[str, Sequence[float | None]]) -> dict[tuple[str, str], float | None]:
    """Return a table's cells from rows as the paper prints them: attack to one figure an arm, None for a dash.

    Raises:
        ValueError: a row has another number of figures than there are arms.
    """
    names = [arm.name for arm in arms]
    return {
        (attack, arm): value
        for attack, values in rows.items()
        for arm, value in zip(names, values, strict=True)
        if value is not None
    }


def _default(field: attrs.Attribute[Any]) -> Any:
    default: Any = field.default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]


def choose_tables(tables: Iterable[Table], asked: Sequence[str]) -> list[Table]:
    """Return the tables that were asked for: by their full name, or all of a plugin's.

    Raises:
        ConfigError: nothing answers to a name; the nearest is offered.
    """
    every = sorted(tables, key=lambda table: table.name)
    names = {table.name for table in every} | {table.plugin for table in every}
    for name in asked:
        if name not in names:
            raise ConfigError(f"unknown table {name!r}: {did_you_mean(name, sorted(names))}")
    return [table for table in every if {table.name, table.plugin} & set(asked)]
