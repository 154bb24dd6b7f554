"""Which rows a run has: its attacks, under each threat that fits them, against the arm that the threat attacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from defend.assembly.part import say_training
from defend.attacks.balls import usual_l2
from defend.attacks.given import GivenFile
from defend.attacks.options import count_forward_passes
from defend.custom.spec import CustomSpec
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError
from defend.fingerprints.values import batch_key
from defend.options import describe
from defend.plugins import Found, Registry
from defend.records.rows import PlannedRow
from defend.stages import Attack, Stage, Task
from defend.values.run_config import QUICK_ATTACKS, QUICK_STEPS, RunConfig
from defend.values.threats import (
    DEFENDED,
    KNOWN_DRAWS,
    NO_SOURCES,
    ONE_DRAW,
    THREATS,
    UNDEFENDED,
    Threat,
    choose_threats,
    find_insisted,
    find_stronger,
)

QUICK: Mapping[str, int] = {"steps": QUICK_STEPS, "queries": 200}
"""What a quick run takes of expensive attacks; single-step ones, which have neither, it takes only if named."""
USUAL_SOURCES = ("resnet18", "vgg11_bn")
BATCH = 256  # images at once, where a file of attacked ones is held against them
STEP_SIZE, STEPS = "step_size", "steps"
PATH = "path"  # of a file of attacked images
EARLY_STOP = "early_stop"  # the option of an attack that leaves an image as it is once it is fooled


@attrs.frozen
class ArmNames:
    """The arms of one defence.

    Attributes:
        config: what was asked for.
        names: the arms that judge: what they are called in the report, to what they are called in the run.
        faced: by threat, what its attackers see: variant to the name of an arm in the run. Threats that do not fit
            the defence are missing.
        aim: the score below which an attacker who knows the detector wants to stay, or None.
        costly: arms that are expensive to attack, whatever the threat.
        random: whether the arm that judges draws random numbers.
    """

    config: RunConfig
    names: Mapping[str, str]
    faced: Mapping[str, Mapping[str, str]]
    aim: float | None = None
    costly: frozenset[str] = frozenset()
    random: bool = False

    def has(self, row: PlannedRow) -> bool:
        """Whether a row is this defence's: its arm judges it, and no attacker made it who knows another defence.

        The bare victim judges every row; where it is an arm itself, attacks on the other arms are none of its own.
        """
        judge = self.names[DEFENDED]
        known = {UNDEFENDED, *(attacked for variants in self.faced.values() for attacked in variants.values())}
        return judge in row.judges and (judge != UNDEFENDED or row.attacked in known)


def plan(defences: Sequence[ArmNames], dataset: ImageDataset, plugins: Registry) -> list[PlannedRow]:
    """Return the rows of all defences, in the order of the threats, small budgets before large ones.

    A row whose attack faces the same arm is made once, and judged by every defence's arms.

    Raises:
        ConfigError: a threat was named that does not fit, or that none of the attacks can carry out; or attacks were
            named, and none of them makes sense under any of the run's threats.
    """
    config = defences[0].config
    keys = dataset.keys("test", config.row_limit, config.seed)
    # the first of the same images, so that the worst case has images in common; samples are stratified at any length
    fewer = keys if config.adaptive_row_limit is None else keys[: config.adaptive_row_limit]
    everyone = _judges(defences)
    rows = [PlannedRow("none", Threat("none", "none", 0.0), None, keys, None, UNDEFENDED, everyone)]
    for kind in choose_threats(config):
        faced: dict[tuple[str, str], list[ArmNames]] = {}
        for defence in defences:
            for variant, attacked in defence.faced.get(kind, {}).items():
                faced.setdefault((variant, attacked), []).append(defence)
        before = len(rows)
        for (variant, attacked), facing in faced.items():
            costly = is_costly(kind, attacked, facing)
            rows += _rows(kind, variant, attacked, facing, plugins, fewer if costly else keys, dataset)
        # of the ladder, threats that do not fit are told in the report; one that was named is an error
        if kind in find_insisted(config) and len(rows) == before:
            raise ConfigError(_cannot(kind, config, dataset, bool(faced)))
    if config.attacks is not None and len(rows) == 1:
        raise ConfigError("; ".join(f"{what}: {why}" for what, why in find_undone(config, rows, plugins).items()))
    return rows


def is_costly(kind: str, attacked: str, defences: Sequence[ArmNames]) -> bool:
    """Whether a row of a threat against an arm is one of the adaptive ones, of fewer images.

    A victim without a defence has no adaptive rows; those with the same attacks have fewer images where that was asked.
    """
    config = defences[0].config
    stands_in = find_stronger(kind, config, _are_bare(defences)) is not None and config.adaptive_limit is not None
    return THREATS[kind].expensive or stands_in or any(attacked in defence.costly for defence in defences)


def _are_bare(defences: Sequence[ArmNames]) -> bool:
    """Whether one of the arms is the victim as it is, whose rows the others then share."""
    return any(defence.names[DEFENDED] == UNDEFENDED for defence in defences)


def find_undone(
    config: RunConfig, rows: Sequence[PlannedRow], plugins: Registry, *, random: bool = True
) -> dict[str, str]:
    """Return what a config asks for by name and the rows do not do, with the reason; threats are looked at elsewhere.

    Args:
        config: of one defence.
        rows: those that this defence judges.
        plugins: where the attacks are found.
        random: whether an arm of the run draws random numbers.
    """
    found = {}
    threats = choose_threats(config)
    done = {row.name for row in rows if row.attack is not None}
    for name in config.attacks or ():
        attack = plugins.find("attack", name)
        if attack.name not in done:
            fits = [kind for kind in THREATS if _suits(attack, kind)]
            why = f"it makes sense under {', '.join(fits) or 'no threat'}"
            if set(fits) & set(threats):
                found[f"attack {name}"] = f"{why}, which does not fit this defence"
            else:
                add = f": add --threat {fits[0]}" if fits else ""
                found[f"attack {name}"] = f"{why}, and this run has {', '.join(threats)}{add}"
    if any(THREATS[kind].counters for kind in threats):
        for purifier, name in _lost_counter_attacks(config, plugins):
            found[f"attack {name}"] = (
                f"it is made against {purifier} alone, and finds it in no sequence; bpda takes its surrogates there"
            )
    variants = {row.variant for row in rows if row.attack is not None and THREATS[row.threat.kind].faces == "sources"}
    for name in config.sources if config.sources != NO_SOURCES else ():
        if name not in variants:
            found[f"source {name}"] = "it is for the transfer threat, and there is no such row: add --threat transfer"
    if config.chance and not any(row.chance for row in rows):
        found["chance"] = "the defence draws no random numbers, or no adaptive row climbs in steps within the budget"
    asked = {"draws": config.draws != attrs.fields(RunConfig).draws.default, "passes": (config.passes or 1) > 1}
    found |= {name: "the defence draws no random numbers" for name, given in asked.items() if given and not random}
    norms = {row.threat.norm for row in rows if row.attack is not None}
    if config.eps_l2 is not None and "l2" not in norms:
        found["eps_l2"] = "no attack of this run has an L2 budget"
    if len({*config.sweep, config.eps}) > 1 and "linf" not in norms:
        found["sweep"] = "no attack of this run has an L-inf budget"
    return found


def _lost_counter_attacks(config: RunConfig, plugins: Registry) -> Iterator[tuple[str, str]]:
    """Yield each purifier of a sequence with an attack that is made against it alone."""
    for purifier in config.purifiers:
        spec = plugins.find("purifier", purifier).spec
        alone = spec.counter_attacks if len(config.purifiers) > 1 else ()
        parts = spec.sequence if isinstance(spec, CustomSpec) else {}
        for part, names in {purifier: alone, **parts}.items():
            yield from ((part, name) for name in names)


def _suits(attack: Found, kind: str) -> bool:
    """Whether an attack makes sense under a threat: it declares that threat, or the one that the threat `suits`."""
    return not {kind, THREATS[kind].suits}.isdisjoint(attack.spec.threats)


def _cannot(kind: str, config: RunConfig, dataset: ImageDataset, fits: bool) -> str:
    if not THREATS[kind].attacks:
        return f"threat {kind!r} has no attack of its own: name one, for example --attack file:adv.npz"
    if fits:
        given = ", ".join(config.attacks or ())
        return f"threat {kind!r} has no attack: none of {given} makes sense under it; leave --attack out for its own"
    needs = THREATS[kind].needs
    if needs:
        return f"threat {kind!r} needs a {needs}, and this run has none: add one, or leave the threat out"
    other = next(name for name in USUAL_SOURCES if name != config.victim)
    command = say_training("victim", other, dataset.typed or ("--dataset", dataset.name))
    return (
        f"threat {kind!r} needs another victim with weights for {config.dataset}, and there is none: train one, for "
        f"example `{command}`, and name it with --source"
    )


def _judges(defences: Sequence[ArmNames]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for defence in defences for name in defence.names.values()))


def counter_attacks(config: RunConfig, plugins: Registry) -> tuple[str, ...]:
    """Return the attacks that the parts of the defence name as made against them.

    They look for their own purifier, so one in a sequence brings none.
    """
    parts: tuple[tuple[Stage, str | None], ...] = (
        ("purifier", config.purifier if len(config.purifiers) == 1 else None),
        ("detector", config.detector),
    )
    return tuple(name for stage, part in parts if part for name in plugins.find(stage, part).spec.counter_attacks)


def attacks_of(kind: str, config: RunConfig, plugins: Registry, bare: bool = False) -> list[Found]:
    """Return what carries a threat out: the attacks named that make sense under it, or else its own.

    Its own are taken where no attacks were named, and where none of those named makes sense under a threat that was
    named too; counter-attacks are added where they belong. `bare` is whether there is no defence.
    """
    taken = [one for one in (THREATS[kind], find_stronger(kind, config, bare)) if one is not None]
    default = tuple(name for one in taken for name in one.attacks + (one.more if config.thorough else ()))
    asked = config.attacks
    if _plain(config):
        asked = QUICK_ATTACKS
    found = [plugins.find("attack", name) for name in (default if asked is None else asked)]
    fitting = [each for each in found if _suits(each, kind) or (len(taken) > 1 and _suits(each, THREATS[kind].alone))]
    if not fitting and config.threats is not None and not _only_others(kind, found):
        fitting = [plugins.find("attack", name) for name in default]
    if THREATS[kind].counters:
        fitting += [plugins.find("attack", name) for name in counter_attacks(config, plugins)]
    named: dict[str, Found] = {}
    for each in fitting:
        if named.setdefault(each.name, each).member != each.member:
            both = f"{named[each.name].member} and {each.member}"
            raise ConfigError(f"attack {each.name!r} would name the rows of {both}: rename one of the files")
    return list(named.values())


def _plain(config: RunConfig) -> bool:
    """Whether a run is the quick one that names neither attacks nor threats."""
    return config.attacks is None and config.threats is None and not config.thorough


def _only_others(kind: str, found: Sequence[Found]) -> bool:
    """Whether attacks were named and the threat is one for gradient attacks: then none of its own stand in for them."""
    threat = THREATS[kind]
    return threat.knows == "gradient" and not threat.evades and bool(found)


def _rows(
    kind: str,
    variant: str,
    attacked: str,
    facing: Sequence[ArmNames],
    plugins: Registry,
    keys: Tensor,
    dataset: ImageDataset,
) -> Iterator[PlannedRow]:
    config, threat, task = facing[0].config, THREATS[kind], dataset.task()
    defended = facing[0].names[DEFENDED]
    blind = not threat.whole and any(defence.names[DEFENDED] != attacked for defence in facing)
    bare = _are_bare(facing)
    for found in attacks_of(kind, config, plugins, bare):
        options = _options(kind, found, config, blind, bare)
        if options is None:
            continue
        settings = found.config(options)
        attack: Attack = found.call("build", settings)
        steps = getattr(settings, "steps", None) or getattr(settings, "queries", None)
        for eps, headline in _budgets(attack, config, task):
            if isinstance(attack, GivenFile):
                if not headline:  # a file is made for one budget
                    continue
                parts = list(dataset.batches("test", keys, BATCH, torch.device("cpu")))
                images, labels = (torch.cat([getattr(part, of) for part in parts]) for of in ("images", "labels"))
                attack.take(images, labels, keys, eps or 0.0)
            # with one budget there is no larger one to take images over to
            reusable = threat.carries and eps is not None and bool(config.sweep)
            yield PlannedRow(
                found.name,
                Threat(kind, attack.norm, eps),
                attack,
                keys,
                steps,
                attacked,
                _judges(facing),
                variant,
                headline,
                facing[0].aim if threat.evades == "score" else None,
                (f"{found.name}/{kind}/{variant}/{attacked}", defended) if reusable else None,
                _identify(found, settings, getattr(attack, "digest", "")),
                _digest(found, settings, attack),
                forward_passes=count_forward_passes(settings),
            )
    if config.chance_asked and facing[0].random and threat.exact and not threat.evades:
        yield from _of_chance(kind, attacked, facing, plugins, keys, task)


def _of_chance(
    kind: str, attacked: str, facing: Sequence[ArmNames], plugins: Registry, keys: Tensor, task: Task
) -> Iterator[PlannedRow]:
    """Return the rows that tell what chance is worth: of the threat's first attack that climbs in steps, at one budget.

    One that looks for the nearest point instead, with a single draw, keeps what was lucky, whatever an average buys.
    Whoever knows the draws needs no average, and who averages over none takes as many more steps, so that all three
    rows of the attack take about the same number of gradients, or fewer.
    """
    config = facing[0].config
    for found in attacks_of(kind, config, plugins):
        options = _options(kind, found, config, blind=False)
        steps = None if options is None else getattr(found.config(options), STEPS, None)
        if options is None or not isinstance(steps, int):
            continue
        usual = found.call("build", found.config(options))
        if getattr(usual, "minimal", False) or getattr(usual, "strays", False):
            continue
        for variant, times in ((KNOWN_DRAWS, 1), (ONE_DRAW, config.draws)):
            settings = found.config({**options, STEPS: times * steps})
            attack: Attack = found.call("build", settings)
            (eps,) = [eps for eps, headline in _budgets(attack, config, task) if headline] or [None]
            if eps is None:
                return
            yield PlannedRow(
                found.name,
                Threat(kind, attack.norm, eps),
                attack,
                keys,
                times * steps,
                attacked,
                _judges(facing),
                variant,
                headline=variant != KNOWN_DRAWS,
                identity=_identify(found, settings),
                made_of=_digest(found, settings, attack),
                chance=variant,
                forward_passes=count_forward_passes(settings),
            )
        return


def _identify(found: Found, settings: Any, digest: str = "") -> str:
    """Name an attack with all its options, and the digest of the images that it brings."""
    options = attrs.asdict(settings) if attrs.has(type(settings)) else {}
    about = {"attack": found.name, "build": found.spec.build, "options": options}
    return json.dumps(about | ({"images": digest} if digest else {}), sort_keys=True, default=str)


def _digest(found: Found, settings: Any, attack: Attack) -> str:
    """Return `Row.made_of`, "" of code of one's own that holds what cannot be told apart."""
    content = ""
    if isinstance(attack, GivenFile):
        content = attack.content
    elif isinstance(found.spec, CustomSpec):
        content = batch_key(built=attack)
        if content != batch_key(built=attack):
            return ""
    options = attrs.asdict(settings) if attrs.has(type(settings)) else {}
    # a file is what it holds, wherever it lies; and whether an attack may stop early depends on who judges it
    about = {name: value for name, value in options.items() if name not in (PATH, EARLY_STOP)}
    named = json.dumps([found.name, found.spec.build, about, content], sort_keys=True, default=str)
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _budgets(attack: Attack, config: RunConfig, task: Task) -> list[tuple[float | None, bool]]:
    """Return the budgets to attack with, ascending, and whether each counts in the headline."""
    nearest = getattr(attack, "nearest", False)
    if getattr(attack, "minimal", False) and not nearest:
        # it keeps to no budget, so it is no part of a worst case at one
        return [(None, False)]
    if attack.norm != "linf":
        default = usual_l2(config.eps, task.channels * task.height * task.width)
        return [(default if config.eps_l2 is None else config.eps_l2, True)]
    # some go beyond eps by their paper's own code: APuDAE's R-FGSM takes a full step of eps after a random one
    excess = getattr(attack, "excess", 0.0)
    every = [config.eps] if nearest else sorted({*config.sweep, config.eps})  # its distances tell of all the others
    return [(eps + excess, eps == config.eps) for eps in every]


def _options(kind: str, found: Found, config: RunConfig, blind: bool, bare: bool = False) -> dict[str, Any] | None:
    """Return an attack's options under a threat; None where a quick run leaves the attack out.

    A `blind` one, which something else judges than what it attacks, does not stop early unless told to; where nothing
    was named it takes no more steps than those that know the defence.
    """
    # what is set under a purifier's name is the purifier's, where an attack goes by the same
    own = {} if found.name in config.purifiers else config.options.get(found.name, {})
    threat = THREATS[kind]
    known = {option.name: option for option in describe(found.spec.config)}
    usual = dict(threat.options.get(found.name, {}))
    if STEP_SIZE in own:
        usual.pop("schedule", None)
    if blind and EARLY_STOP in known:
        usual[EARLY_STOP] = False
    given = {**usual, **own}
    stronger = find_stronger(kind, config, bare)
    # what both have is no dearer in a quick ladder than it is without one
    stands_in = stronger is not None and (config.thorough or found.name not in threat.attacks)
    costly = threat.expensive or stands_in
    most_steps = config.adaptive_steps if costly else None
    if config.thorough:
        more = {} if stronger is None else stronger.thorough.get(found.name, {})
        chosen = {**usual, **more, **threat.thorough.get(found.name, {})}
        own_steps = chosen.get("steps", known["steps"].default) if "steps" in known else None
        if most_steps is not None and isinstance(own_steps, int):
            chosen["steps"] = min(own_steps, most_steps)
        return {**chosen, **own}
    if costly and config.attacks is None and not QUICK.keys() & known.keys():
        return None  # one step finds little that many do not
    if not (costly or (blind and _plain(config))):
        return given
    fewer = {
        name: min(known[name].default, most)
        for name, most in {**QUICK, **({"steps": most_steps} if most_steps is not None else {})}.items()
        if name in known and isinstance(known[name].default, int)
    }
    return {**fewer, **given}
