"""Per-image records to a `Report`: every figure is computed here, from what was recorded."""

from __future__ import annotations

import platform
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.assembly.stage import Built
from defend.datasets.base import ImageDataset
from defend.evaluation.provenance import describe
from defend.evaluation.rounded import name_rounded
from defend.records.chance import compare_chance, sum_passes
from defend.records.distances import distances_of
from defend.records.looks import curve_of, find_draws, gradients_of
from defend.records.rows import RowRecord, find_clean, right, worst_case
from defend.util.distributions import version_of
from defend.util.metrics import auroc, proportion, share, tpr_at
from defend.util.statistics import mcnemar, paired_interval, wilson
from defend.util.tensors import hash_state
from defend.values.report import ArmResult, Calibration, Certified, Check, Cost, LeastRow, Report, Row, WorstCase
from defend.values.run_config import RunConfig
from defend.values.threats import DEFENDED, RATES, UNDEFENDED, is_harmless
from defend.weights.card import CUT_SHORT


def arm(predicted: Tensor, labels: Tensor, accepted: Tensor, attacked: bool) -> ArmResult:
    """Return one arm's figures.

    Args:
        predicted, labels: int64 [N].
        accepted: bool [N]; a rejected image counts as wrong in `accuracy`.
        attacked: on attacked images a rejection counts as right in `accuracy_with_credit`.
    """
    right = (predicted == labels) & accepted
    credited = right | ~accepted if attacked else right
    return ArmResult(**proportion(right), rejected=share(~accepted), accuracy_with_credit=share(credited))


@attrs.frozen(kw_only=True)
class Circumstances:
    """What a report says beside its records.

    `parameters` are those that the defence adds to the victim; `thresholds` the detector's by false-positive rate, set
    on held-out clean images; `left_out` the threats that do not fit the defence, with the reason; `notes` what else a
    reader should know; `random` whether the defence is; `certified` what holds of it against every attack; `given` the
    stages of which a program gave objects.
    """

    dataset: ImageDataset
    versions: Mapping[str, str]
    plugins: Mapping[str, str]
    device: torch.device
    precision: Mapping[str, str]
    seconds: float
    batch_size: int
    built: Mapping[str, Built]
    sources: Mapping[str, Built]
    parameters: int
    threshold: float | None = None
    thresholds: Mapping[float, float] = attrs.field(factory=dict)
    calibration: Calibration | None = None
    checks: tuple[Check, ...] = ()
    left_out: Mapping[str, str] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()
    partial: bool = False
    random: bool = False
    certified: Certified | None = None
    given: tuple[str, ...] = ()


def assemble(config: RunConfig, records: Sequence[RowRecord], known: Circumstances) -> Report:
    """Return the report of one defence; its records have the arms "undefended", "defended" and perhaps others."""
    clean_row = find_clean(records)
    rows = _mark_rounded(
        _row(record, config.seed, known.thresholds, clean_row, config.draws if known.random else None)
        for record in records
    )
    counted = {row.key: record for row, record in zip(rows, records, strict=True) if row.headline}
    clean = records[0].judge_ms
    return Report(
        versions={
            "defend-core": version_of("defend-core") or "unknown",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": version_of("timm") or "unknown",
            **known.versions,
        },
        plugins=dict(known.plugins),
        config=config,
        seed=config.seed,
        device=_device_name(known.device),
        precision=dict(known.precision),
        seconds=known.seconds,
        dataset=describe(config.dataset, known.dataset, max(row.n for row in rows), known.built),
        rows=rows,
        worst_case=_worst_case(counted, [row for row in rows if row.headline], screened=known.threshold is not None),
        detector=None if known.threshold is None else _detector(records, known),
        checks=known.checks,
        cost=Cost(clean[UNDEFENDED], clean[DEFENDED], known.parameters, known.batch_size),
        weights=describe_weights({**known.built, **known.sources}),
        partial=known.partial,
        left_out=dict(known.left_out),
        notes=known.notes,
        certified=known.certified,
        given=known.given,
        chance=compare_chance(records, config.draws) if known.random else None,
    )


def _mark_rounded(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the rows, of which those in 8 bits know whether the row whose images they are was still rising."""
    made = list(rows)
    rising = {(row.attack, row.threat, row.eps, name_rounded(row.variant)) for row in made if row.rising}
    own = [(row.attack, row.threat, row.eps, row.variant) for row in made]
    return tuple(attrs.evolve(row, of_rising=key in rising) for key, row in zip(own, made, strict=True))


def describe_weights(built: Mapping[str, Built]) -> dict[str, dict[str, Any]]:
    """Return what a report says of each part's weights: their file, hash and figures, and where they came from."""
    said: dict[str, dict[str, Any]] = {}
    for part, value in built.items():
        if value.path is not None and value.card is not None:
            said[part] = {
                "file": value.path.name,
                "sha256": value.card.content_sha256,
                "figures": dict(value.card.figures),
            }
            if (origin := value.origin) is not None:
                said[part] |= {"origin": origin.kind, "package": origin.package, "since": origin.since}
            if value.card.cut_short:
                said[part][CUT_SHORT] = value.card.cut_short
        elif value.custom and (held := _hash_once(value.module)):
            said[part] = {"file": "", "sha256": held, "figures": {}, "origin": "given"}
    return said


_hashed: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""What was hashed already: a report is made after every row, and a run changes no weights."""


def _hash_once(module: nn.Module) -> str:
    """Return the hash of a user's own weights, which have no file and no card; "" where there is nothing to hash."""
    if module not in _hashed:
        _hashed[module] = hash_state(module)
    return _hashed[module]


def _credit(record: RowRecord, arm: str) -> Tensor:
    """Right, or rejected and attacked, bool [N]."""
    held = right(record, arm)
    return held if record.plan.attack is None else held | ~record.arms[arm].accepted


def _worst_case(counted: Mapping[str, RowRecord], rows: Sequence[Row], screened: bool) -> WorstCase | None:
    records = list(counted.values())
    common, held = worst_case(records, DEFENDED)
    # one row, be it the clean one, is no worst case of several; nor are rows that no attacker made
    if not len(common) or len(records) < 2 or all(is_harmless(record.plan.threat.kind) for record in records):
        return None
    _, bare = worst_case(records, UNDEFENDED)
    _, credited = worst_case(records, DEFENDED, _credit)
    kept = set(common.tolist())
    alone = {
        key: sum(
            ok
            for image, ok in zip(record.keys.tolist(), right(record, DEFENDED).tolist(), strict=True)
            if image in kept
        )
        for key, record in counted.items()
    }
    weakest = min(alone, key=alone.__getitem__)
    return WorstCase(
        accuracy=float(held.double().mean()),
        ci95=wilson(int(held.sum()), len(held)),
        n=len(held),
        over=tuple(counted),
        undefended=float(bare.double().mean()),
        weakest=weakest,
        with_credit=proportion(credited) if screened else None,
        passes=sum_passes(records, find_clean(records)),
        norms=_of_norms(counted, rows, kept),
        steps=max((row.steps for row in rows if row.steps), default=None),
        gradients=_most_looks(counted, rows, kept),
        rising=tuple(row.key for row in rows if row.rising),
        by_threat=_weakest_of(rows, alone),
        weakest_accuracy=alone[weakest] / len(held),
        least_row=_least(counted, right),
        least_row_with_credit=_least(counted, _credit) if screened else None,
    )


def _least(counted: Mapping[str, RowRecord], judged: Callable[[RowRecord, str], Tensor]) -> LeastRow:
    """Return the row that leaves least of all its own images."""
    held = {key: judged(record, DEFENDED) for key, record in counted.items()}
    row = min(held, key=lambda key: share(held[key]))
    return LeastRow(row, **proportion(held[row]), n=len(held[row]))


def _weakest_of(rows: Sequence[Row], alone: Mapping[str, int]) -> dict[str, str]:
    """Return, of each threat with several rows, the one that leaves least: `alone` counts what is left, by row."""
    threats: dict[str, list[str]] = {}
    for row in rows:
        threats.setdefault(row.threat, []).append(row.key)
    return {threat: min(keys, key=alone.__getitem__) for threat, keys in threats.items() if len(keys) > 1}


def _most_looks(counted: Mapping[str, RowRecord], rows: Sequence[Row], kept: set[int]) -> int | None:
    """Return how many looks the image that was looked at most got from all attacks; each of a look's draws counts."""
    total: dict[int, int] = dict.fromkeys(kept, 0)
    for row in rows:
        record = counted[row.key]
        if record.plan.attack is None or row.gradients is None or record.seen is None:
            continue
        for key, looks in zip(record.keys.tolist(), record.seen.looks.tolist(), strict=True):
            if key in total:
                total[key] += looks * row.gradients["draws"]
    return max(total.values(), default=0) or None


def _of_norms(counted: Mapping[str, RowRecord], rows: Sequence[Row], kept: set[int]) -> dict[str, Any] | None:
    """Return the worst case over the attacks of each norm, on the images `kept`; None where there is but one norm."""
    norms = list(
        dict.fromkeys(record.plan.threat.norm for record in counted.values() if record.plan.attack is not None)
    )
    if len(norms) < 2:
        return None
    found = {}
    for norm in norms:
        own = {
            key: record
            for key, record in counted.items()
            if record.plan.attack is None or record.plan.threat.norm == norm
        }
        common, held = worst_case(list(own.values()), DEFENDED)
        left = proportion(held[torch.tensor([key in kept for key in common.tolist()])])
        rising = [row.key for row in rows if row.rising and row.key in own]
        found[norm] = {**left, "rising": rising, "least_row": attrs.asdict(_least(own, right))}
    return found


def _row(
    record: RowRecord,
    seed: int,
    thresholds: Mapping[float, float],
    clean: RowRecord | None = None,
    draws: int | None = None,
) -> Row:
    """Return a record as a row; `draws` are those of a run, None where the defence is not random."""
    attacked = record.plan.attack is not None
    own = 1 if draws is None else find_draws(record.plan, draws)
    arms = {name: arm(said.predicted, record.labels, said.accepted, attacked) for name, said in record.arms.items()}
    return Row(
        attack=record.plan.name,
        threat=record.plan.threat.kind,
        norm=record.plan.threat.norm,
        eps=record.plan.threat.eps,
        n=len(record.labels),
        steps=record.plan.steps,
        seed=seed,
        undefended=arms.pop(UNDEFENDED),
        defended=arms.pop(DEFENDED),
        mean_linf=float(record.linf.double().mean()),
        mean_l2=float(record.l2.double().mean()),
        seconds={"attack": record.attack_seconds, "purify": record.judge_seconds[DEFENDED]},
        partial=record.partial,
        arms=arms,
        variant=record.plan.variant,
        headline=record.plan.headline,
        queries=None if record.queries is None else _queries(record.queries),
        paired=_compare_arms(record),
        passes=sum_passes([record], clean),
        budget=_budget(record, own) if attacked and draws is not None else None,
        # only an attacker who aims at a score below every threshold can be judged at each of them
        success_at_fpr=_success(record, thresholds) if record.plan.aim is not None else None,
        reused=record.reused,
        gradients=gradients_of(record, own),
        curve=curve_of(record),
        distances=distances_of(record),
        made_of=record.plan.made_of or None,
    )


def _compare_arms(record: RowRecord) -> dict[str, Any]:
    """Compare the defended arm with the undefended, image by image."""
    bare, whole = right(record, UNDEFENDED), right(record, DEFENDED)
    lost, won, n = int((bare & ~whole).sum()), int((whole & ~bare).sum()), len(bare)
    return {
        "difference": (won - lost) / n,
        "ci95": paired_interval(lost, won, n),
        "only_undefended": lost,
        "only_defended": won,
        "p": mcnemar(lost, won),
    }


def _queries(counted: Tensor) -> dict[str, float]:
    """Summarise the counts of who was asked at this budget: an image that a smaller one fooled is carried over."""
    many = counted[counted > 0].double()
    many = many if len(many) else counted.double()
    return {"mean": float(many.mean()), "median": float(many.median()), "max": float(many.max())}


def _budget(record: RowRecord, draws: int) -> dict[str, int] | None:
    """Return what was spent on an image of a random defence, `Row.budget`; None where nothing looked at any."""
    passes = record.arms[DEFENDED].passes
    looks = 0 if record.seen is None else int(record.seen.looks.max())  # of all restarts
    return {"draws": draws, "steps": looks, "passes": 1 if passes is None else passes.shape[1]} if looks else None


def _success(record: RowRecord, thresholds: Mapping[float, float]) -> dict[str, float]:
    """Return the share of images misclassified and scored below the threshold of each false-positive rate."""
    said = record.arms[DEFENDED]
    wrong = said.predicted != record.labels
    return {f"{rate:g}": float((wrong & (said.score < bound)).double().mean()) for rate, bound in thresholds.items()}


def _detector(records: Sequence[RowRecord], known: Circumstances) -> dict[str, Any]:
    """Return the detector's figures: for every attacked row, and for the one that it tells apart worst."""
    calibration = known.calibration
    clean = find_clean(records) or records[0]
    scores = clean.arms[DEFENDED].score
    rows = {
        _row(record, 0, {}).key: _separation(scores, record.arms[DEFENDED].score)
        for record in records
        if not is_harmless(record.plan.threat.kind)
    }
    worst = min(rows, key=lambda key: rows[key]["auroc"]) if rows else None
    return {
        "auroc": rows[worst]["auroc"] if worst else None,
        "auroc_row": worst,
        "threshold": known.threshold,
        "thresholds": {f"{rate:g}": bound for rate, bound in known.thresholds.items()},
        "fpr": calibration.fpr if calibration else None,
        "calibration": attrs.asdict(calibration) if calibration else None,
        "clean_rejected": float((~clean.arms[DEFENDED].accepted).double().mean()),
        "tpr_at_fpr": rows[worst]["tpr_at_fpr"] if worst else {},
        "rows": rows,
    }


def _separation(clean: Tensor, attacked: Tensor) -> dict[str, Any]:
    return {
        "auroc": auroc(clean, attacked),
        "tpr_at_fpr": {f"{rate:g}": tpr_at(clean, attacked, rate) for rate in RATES},
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
